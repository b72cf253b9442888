//! `kiln build --check` and `--call`: what can be told of a Dockerfile without building it.
//!
//! Nothing is written and no worker starts. Base images are looked up for the variables and triggers that they bring; where one
//! cannot be, everything else is still told.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use dockerfile::lint::Settings;
use dockerfile::lint::rules::UNDEFINED_VAR;
use dockerfile::{
    Base, BaseKey, BaseNeed, Diagnostic, Plan, PlanOptions, PlanOutcome, Scope, StageGraph,
};
use oci::{ImageConfig, Platform};
use registry::client::Client;
use serde_json::Value;

use super::answer::{self, Source};
use super::context::{self, Dockerfile, FolderInput, Input};
use super::{import, options};
use crate::args::BuildArgs;
use crate::args::call::{Call, CallFormat, CallMethod};
use crate::args::named::NamedWhat;
use crate::failure::{Exit, Failure, OrExit, Outcome};
use crate::{place, terminal};

/// Rounds of planning: each brings bases that triggers of earlier ones asked for.
const ROUNDS_MAX: usize = 8;

/// Answers `call`.
pub(crate) async fn run(args: &BuildArgs, call: Call) -> Outcome {
    if args.server.server.is_some() {
        let text = "--check and --call are answered here: they take no --server";
        return Err(Failure::text(Exit::Usage, text));
    }
    let input = match context::read(&args.context, args.file.as_deref())? {
        Input::Folder(input) => input,
        Input::Git(_) | Input::Archive(_) => {
            let text = "--check and --call are supported for folders only";
            return Err(Failure::text(Exit::Usage, text).hint("unpack or clone it first"));
        }
    };
    let source = source(&input)?;
    let (file, mut found) = dockerfile::parse(source.text.as_bytes());
    if found.iter().any(Diagnostic::is_error) {
        return show(call, &source, &found);
    }
    if call.method == CallMethod::Targets {
        let targets = dockerfile::outline::targets(&file);
        return print(call, &answer::targets(&source, &targets));
    }
    let options = plan_options(args, call, &input)?;
    let (settings, unknown) = match Settings::of(&file, &options.build_args) {
        Ok(settings) => settings,
        Err(error) => return show(call, &source, &[error]),
    };
    found.extend(unknown);
    found.extend(dockerfile::lint::check(&file));
    let planned = match dockerfile::stages(&file, &options) {
        Ok(graph) => plan(args, &file, graph, &options).await?,
        Err(errors) => Err(errors),
    };
    match planned {
        Ok((graph, plan, _)) if call.method == CallMethod::Outline => {
            let outline = dockerfile::outline::outline(&file, &graph, &plan);
            return print(call, &answer::outline(&source, &outline));
        }
        Ok((_, plan, bases)) => {
            let warnings = plan.warnings.into_iter();
            let is_known =
                |finding: &Diagnostic| bases == Known::All || finding.rule != Some(&UNDEFINED_VAR);
            found.extend(warnings.filter(is_known));
        }
        Err(errors) => found.extend(errors),
    }
    found.retain(|finding| finding.is_error() || settings.keeps(&file, finding));
    show(call, &source, &found)
}

/// Shows what was found, and ends with an error if anything was.
fn show(call: Call, source: &Source, found: &[Diagnostic]) -> Outcome {
    print(call, &answer::findings(source, found))?;
    if found.is_empty() {
        return Ok(());
    }
    Err(Failure::silent(Exit::BuildFailed))
}

fn print(call: Call, (text, json): &(String, Value)) -> Outcome {
    let printed = match call.format {
        CallFormat::Text => terminal::data(text.trim_end()),
        CallFormat::Json => terminal::data(&format!("{json:#}")),
    };
    printed.or_exit(Exit::Machine)
}

fn source(input: &FolderInput) -> Outcome<Source> {
    let (name, text) = match (&input.dockerfile, &input.path) {
        (Dockerfile::Outside { text, path }, _) => {
            let name = path.as_ref().map(|path| path.display().to_string());
            (name.unwrap_or_else(|| "-".to_owned()), text.clone())
        }
        (Dockerfile::Inside(inside), root) => {
            let path = root.clone().unwrap_or_default().join(inside);
            let failed = |e| anyhow::Error::new(e).context(format!("read {}", path.display()));
            let bytes = fs::read(&path).map_err(failed).or_exit(Exit::Usage)?;
            let text = String::from_utf8_lossy(&bytes).into_owned();
            (inside.display().to_string(), text)
        }
    };
    Ok(Source { name, text })
}

fn plan_options(args: &BuildArgs, call: Call, input: &FolderInput) -> Outcome<PlanOptions> {
    let contexts = args.contexts.iter().map(|arg| {
        let kind = match &arg.what {
            NamedWhat::Scratch => dockerfile::NamedContext::Scratch,
            NamedWhat::Image(reference) => dockerfile::NamedContext::Image(reference.clone()),
            NamedWhat::Layout(..) => dockerfile::NamedContext::Layout,
            NamedWhat::Repository(_) | NamedWhat::Folder(_) => dockerfile::NamedContext::Files,
        };
        (arg.name.clone(), kind)
    });
    Ok(PlanOptions {
        target: args.target.clone(),
        build_args: options::build_args(args),
        contexts: contexts.collect(),
        scope: match (call.method, &args.target) {
            (CallMethod::Check, None) => Scope::All,
            _ => Scope::Needed,
        },
        ignore: Some(Arc::new(import::ignore_file(input)?)),
        ..PlanOptions::new(args.platform.clone().unwrap_or_else(Platform::host))
    })
}

/// Whether all bases could be looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    All,
    Some,
}

type Planned = Result<(StageGraph, Plan, Known), Vec<Diagnostic>>;

async fn plan(
    args: &BuildArgs,
    file: &dockerfile::Dockerfile,
    graph: StageGraph,
    options: &PlanOptions,
) -> Outcome<Planned> {
    let found = place::find(&args.place)?;
    let hosts = found.config.registry.with_files_read();
    let hosts = hosts.or_exit(Exit::Usage)?;
    let client = Client::new(hosts, place::keychain()?, place::client_options());
    let client = client.or_exit(Exit::Usage)?;
    let mut bases = BTreeMap::new();
    let mut known = Known::All;
    for _ in 0..ROUNDS_MAX {
        match dockerfile::plan(file, &graph, options, &bases) {
            Ok(PlanOutcome::Ready(plan)) => return Ok(Ok((graph, plan, known))),
            Ok(PlanOutcome::NeedsBases(needs)) => {
                for need in needs {
                    let config = base(&client, &need).await;
                    known = if config.is_none() { Known::Some } else { known };
                    let config = config.unwrap_or_else(|| ImageConfig::scratch(&need.key.platform));
                    bases.insert(need.key.clone(), known_as(&need.key, config));
                }
            }
            Err(errors) => return Ok(Err(errors)),
        }
    }
    let text = "triggers of base images ask for ever more base images";
    Err(Failure::text(Exit::BuildFailed, text))
}

fn known_as(key: &BaseKey, config: ImageConfig) -> Base {
    Base {
        pinned: key.reference.clone(),
        config,
    }
}

/// Looks up a base; says so when it cannot.
async fn base(client: &Client, need: &BaseNeed) -> Option<ImageConfig> {
    let name = need.key.reference.familiar();
    if need.key.layout.is_some() {
        terminal::say(&format!(
            "note: {name} is in an OCI layout, which is not looked into: variables are not checked"
        ));
        return None;
    }
    match client.image(&need.key.reference, &need.key.platform).await {
        Ok(image) => Some(image.config),
        Err(error) => {
            terminal::say(&format!(
                "note: {name} could not be looked up ({error}): variables are not checked"
            ));
            None
        }
    }
}
