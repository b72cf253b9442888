//! `kiln build --check` and `--call`: what can be told of a Dockerfile without building it.
//!
//! Nothing is built and no worker starts, here or on a server: what is told is told by the files, and they are here. Base images are looked up for the variables and triggers that they bring, in OCI layouts and
//! among the images that were kept here too; where one cannot be, everything else is still told.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use dockerfile::ignore::IgnoreFile;
use dockerfile::lint::Settings;
use dockerfile::lint::rules::UNDEFINED_VAR;
use dockerfile::{
    Base, BaseKey, BaseNeed, Diagnostic, Plan, PlanOptions, PlanOutcome, Scope, StageGraph,
};
use engine::spec::LayoutImage;
use oci::{ImageConfig, Platform};
use registry::client::Client;
use serde_json::Value;
use store::Store;

use super::answer::{self, Source};
use super::look::{self, Looked};
use super::{context, options};
use crate::args::BuildArgs;
use crate::args::call::{Call, CallFormat, CallMethod};
use crate::args::named::NamedWhat;
use crate::failure::{Exit, Failure, OrExit, Outcome};
use crate::place::{self, Found};
use crate::terminal;

/// Rounds of planning: each brings bases that triggers of earlier ones asked for.
const ROUNDS_MAX: usize = 8;

/// Answers `call`.
pub(crate) async fn run(args: &BuildArgs, call: Call) -> Outcome {
    let input = context::read(&args.context, args.file.as_deref())?;
    let Looked { source, ignore } = look::look(args, input).await?;
    let (file, mut found) = dockerfile::parse(source.text.as_bytes());
    if found.iter().any(Diagnostic::is_error) {
        return show(call, &source, &found);
    }
    if call.method == CallMethod::Targets {
        let targets = dockerfile::outline::targets(&file);
        return print(call, &answer::targets(&source, &targets));
    }
    let options = plan_options(args, call, ignore);
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

fn plan_options(args: &BuildArgs, call: Call, ignore: IgnoreFile) -> PlanOptions {
    let contexts = args.contexts.iter().map(|arg| {
        let kind = match &arg.what {
            NamedWhat::Scratch => dockerfile::NamedContext::Scratch,
            NamedWhat::Image(reference) => dockerfile::NamedContext::Image(reference.clone()),
            NamedWhat::Layout(..) => dockerfile::NamedContext::Layout,
            NamedWhat::Repository(_) | NamedWhat::Folder(_) => dockerfile::NamedContext::Files,
        };
        (arg.name.clone(), kind)
    });
    PlanOptions {
        target: args.target.clone(),
        build_args: options::build_args(args),
        contexts: contexts.collect(),
        scope: match (call.method, &args.target) {
            (CallMethod::Check, None) => Scope::All,
            _ => Scope::Needed,
        },
        ignore: Some(Arc::new(ignore)),
        ..PlanOptions::new(args.platform.clone().unwrap_or_else(Platform::host))
    }
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
    let library = Library {
        client: client.or_exit(Exit::Usage)?,
        kept: kept(args, &found),
        layouts: layouts(args),
    };
    let mut bases = BTreeMap::new();
    let mut known = Known::All;
    for _ in 0..ROUNDS_MAX {
        match dockerfile::plan(file, &graph, options, &bases) {
            Ok(PlanOutcome::Ready(plan)) => return Ok(Ok((graph, plan, known))),
            Ok(PlanOutcome::NeedsBases(needs)) => {
                for need in needs {
                    let config = library.base(&need).await;
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

/// Where base images are looked for.
struct Library {
    client: Client,
    /// Images that were kept under their names.
    kept: Option<Store>,
    layouts: BTreeMap<String, (PathBuf, LayoutImage)>,
}

/// Returns the store, if there is one that this user may read, and it is the one that the build would use.
fn kept(args: &BuildArgs, found: &Found) -> Option<Store> {
    let folder = found.state.join(worker::folder::STORE);
    let is_elsewhere = args.server.address.is_some();
    if is_elsewhere || args.earlier.pull || !folder.is_dir() {
        return None;
    }
    Store::open(&folder, None).ok()
}

fn layouts(args: &BuildArgs) -> BTreeMap<String, (PathBuf, LayoutImage)> {
    let layouts = args.contexts.iter().filter_map(|arg| match &arg.what {
        NamedWhat::Layout(path, image) => {
            Some((arg.name.clone(), (PathBuf::from(path), image.clone())))
        }
        _ => None,
    });
    layouts.collect()
}

impl Library {
    /// Looks up a base; says so when it cannot.
    async fn base(&self, need: &BaseNeed) -> Option<ImageConfig> {
        let (reference, platform) = (&need.key.reference, &need.key.platform);
        let layout = need
            .key
            .layout
            .as_ref()
            .and_then(|name| self.layouts.get(&**name));
        let kept = || engine::kept_config(self.kept.as_ref()?, reference, platform);
        let found = if let Some((path, image)) = layout {
            engine::layout_config(path, image, platform).map_err(|e| e.message)
        } else if let Some(kept) = kept() {
            kept.map_err(|e| e.message)
        } else {
            let image = self.client.image(reference, platform).await;
            image.map(|image| image.config).map_err(|e| e.to_string())
        };
        found
            .inspect_err(|why| {
                let name = reference.familiar();
                terminal::say(&format!(
                    "note: {name} could not be looked up ({why}): variables are not checked"
                ));
            })
            .ok()
    }
}
