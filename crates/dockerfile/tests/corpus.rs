//! Every folder of `corpus/` is a Dockerfile and what becomes of it: its plan, or its errors as people see them.
//!
//! Cases called `as-buildkit-…` were given to `BuildKit`'s frontend too, and what is expected is what came out there; what differs on purpose is listed in
//! `docs/decisions/0007-dockerfile-language.md`.
//!
//! A case is added by adding a folder with a `Dockerfile`, and an `options.json` where it needs one:
//! `{"target": "x", "args": {"A": "1"}, "labels": {}, "bases": {"docker.io/library/alpine": {config…}}}`.
//! `KILN_UPDATE_EXPECTED=1` writes what was seen into `expected`; look at the difference before committing it.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of a test: a wrong case is to stop it"
)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use dockerfile::ignore::IgnoreFile;
use dockerfile::lint::Settings;
use dockerfile::{
    Base, BaseKey, BaseNeed, BaseRef, CopyFrom, CopyOp, CopySource, Diagnostic, Link, Mount,
    MountOwner, NamedContext, Op, Plan, PlanOptions, PlanOutcome, PlanStage, RunNetwork, RunOp,
    RunSecurity, Scope, Step, Unpack,
};
use oci::{ImageConfig, Platform};
use serde_json::Value;

const UPDATE: &str = "KILN_UPDATE_EXPECTED";
const CASES_MIN: usize = 40;

#[test]
fn every_case_of_the_corpus_becomes_what_is_expected() {
    #[expect(
        clippy::disallowed_methods,
        reason = "whoever changes a plan on purpose rewrites the expectations with it"
    )]
    let update = std::env::var(UPDATE).is_ok();
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut cases: Vec<_> = std::fs::read_dir(corpus)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    cases.sort();
    assert!(cases.len() >= CASES_MIN, "only {} cases", cases.len());
    let mut failures = String::new();
    for case in cases {
        let text = std::fs::read(case.join("Dockerfile")).unwrap();
        let options =
            std::fs::read_to_string(case.join("options.json")).unwrap_or_else(|_| "{}".to_owned());
        let seen = outcome(&text, &serde_json::from_str(&options).unwrap());
        let expected = case.join("expected");
        if update {
            std::fs::write(&expected, &seen).unwrap();
        }
        if std::fs::read_to_string(&expected).unwrap_or_default() != seen {
            let name = case.file_name().unwrap().display();
            write!(failures, "== {name}: {UPDATE}=1 accepts this ==\n{seen}\n").unwrap();
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

fn outcome(text: &[u8], options: &Value) -> String {
    let shown = String::from_utf8_lossy(text);
    let render = |found: &[Diagnostic]| {
        let texts: Vec<String> = found
            .iter()
            .map(|one| dockerfile::render(one, &shown, "Dockerfile"))
            .collect();
        texts.join("\n\n") + "\n"
    };
    let (file, mut found) = dockerfile::parse(text);
    if found.iter().any(Diagnostic::is_error) {
        return render(&found);
    }
    let plan_options = plan_options(options);
    let settings = Settings::of(&file, &plan_options.build_args);
    let (settings, unknown) = match settings {
        Ok(settings) => settings,
        Err(error) => return render(&[error]),
    };
    found.extend(unknown);
    found.extend(dockerfile::lint::check(&file));
    let is_lint = options["lint"] == true;
    let result = dockerfile::stages(&file, &plan_options).and_then(|graph| {
        let mut bases = BTreeMap::new();
        loop {
            match dockerfile::plan(&file, &graph, &plan_options, &bases)? {
                PlanOutcome::Ready(plan) => return Ok(plan),
                PlanOutcome::NeedsBases(needs) => {
                    bases.extend(needs.iter().map(|need| resolve(need, options)));
                }
            }
        }
    });
    match result {
        Ok(plan) => {
            found.extend(plan.warnings.iter().cloned());
            found.retain(|one| settings.keeps(&file, one) && (is_lint || one.rule.is_none()));
            let warnings = if found.is_empty() {
                String::new()
            } else {
                render(&found)
            };
            warnings + &show(&plan)
        }
        Err(errors) => render(&errors),
    }
}

fn plan_options(options: &Value) -> PlanOptions {
    let map = |name: &str| -> BTreeMap<String, String> {
        serde_json::from_value(options[name].clone()).unwrap_or_default()
    };
    PlanOptions {
        target: options["target"].as_str().map(str::to_owned),
        build_args: map("args"),
        labels: map("labels"),
        scope: if options["lint"] == true {
            Scope::All
        } else {
            Scope::Needed
        },
        ignore: options["ignore"]
            .as_str()
            .map(|text| Arc::new(IgnoreFile::parse(text.as_bytes()).unwrap())),
        contexts: map("contexts")
            .into_iter()
            .map(|(name, what)| (name, named(&what)))
            .collect(),
        ..PlanOptions::new(Platform::linux_amd64())
    }
}

/// `files`, `layout`, `scratch`, or an image.
fn named(what: &str) -> NamedContext {
    match what {
        "files" => NamedContext::Files,
        "layout" => NamedContext::Layout,
        "scratch" => NamedContext::Scratch,
        image => NamedContext::Image(image.parse().unwrap()),
    }
}

fn resolve(need: &BaseNeed, options: &Value) -> (BaseKey, Base) {
    let name = need.key.reference.to_string();
    let config = if let Some(config) = options["bases"].get(&name) {
        serde_json::from_value(config.clone()).unwrap()
    } else {
        let mut config = ImageConfig::scratch(&need.key.platform);
        config.config.set_env("PATH", "/base/bin");
        config.config.cmd = Some(vec!["sh".to_owned()]);
        config
    };
    let base = Base {
        pinned: need.key.reference.clone(),
        config,
    };
    (need.key.clone(), base)
}

fn show(plan: &Plan) -> String {
    let mut out = String::new();
    for (index, stage) in plan.stages.iter().enumerate() {
        let target = if plan.target.0 == index {
            ", the target"
        } else {
            ""
        };
        let from = match &stage.base {
            BaseRef::Scratch => "nothing".to_owned(),
            BaseRef::Image(key) => image(key),
            BaseRef::Stage(stage) => format!("stage {}", stage.0),
        };
        writeln!(
            out,
            "stage {index} {:?} from {from}{target}",
            stage.display_name
        )
        .unwrap();
        for step in &stage.steps {
            show_step(&mut out, stage, step);
        }
        let mut config = serde_json::to_value(&stage.config).unwrap();
        let history = config.as_object_mut().unwrap().remove("history");
        config.as_object_mut().unwrap().remove("rootfs");
        writeln!(out, "  config {config}").unwrap();
        for entry in history
            .as_ref()
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            let created_by = entry["created_by"].as_str().unwrap_or_default();
            let empty = if entry["empty_layer"] == true {
                "-"
            } else {
                "+"
            };
            writeln!(out, "  {empty} {created_by:?}").unwrap();
        }
    }
    if let Some(date) = plan.source_date_epoch {
        writeln!(out, "dated {date}").unwrap();
    }
    out
}

fn show_step(out: &mut String, stage: &PlanStage, step: &Step) {
    writeln!(
        out,
        "  {} {:?} at line {}",
        stage.label(step.number),
        step.text,
        step.span.line
    )
    .unwrap();
    match &step.op {
        Op::Run(run) => show_run(out, run),
        Op::Copy(copy) => show_copy(out, copy),
        Op::Workdir { path } => writeln!(out, "      directory {path}").unwrap(),
    }
    if matches!(step.op, Op::Run(_)) {
        let env: Vec<String> = step
            .env
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        writeln!(out, "      in {} with {env:?}", step.workdir).unwrap();
    }
    if !step.user.is_empty() {
        writeln!(out, "      as {}", step.user).unwrap();
    }
    if step.from_trigger {
        writeln!(out, "      from a trigger").unwrap();
    }
    assert!(
        stage.config.history[step.history_index]
            .empty_layer
            .is_none()
    );
}

fn show_run(out: &mut String, run: &RunOp) {
    writeln!(out, "      run {:?}", run.args).unwrap();
    if let Some(script) = &run.script {
        writeln!(out, "      script {} {:?}", script.path, script.content).unwrap();
    }
    if !run.proxy.is_empty() {
        writeln!(out, "      proxy {:?}", run.proxy).unwrap();
    }
    if run.network != RunNetwork::Default {
        writeln!(out, "      network {:?}", run.network).unwrap();
    }
    if run.security != RunSecurity::Sandbox {
        writeln!(out, "      security {:?}", run.security).unwrap();
    }
    for mount in &run.mounts {
        show_mount(out, mount);
    }
}

fn show_mount(out: &mut String, mount: &Mount) {
    let from = match mount.from() {
        Some(from) => origin(from),
        None => "nothing".to_owned(),
    };
    match mount {
        Mount::Bind(bind) => writeln!(
            out,
            "      mount {} of {from} at {} {:?}",
            bind.source, bind.target, bind.access
        ),
        Mount::Cache(cache) => writeln!(
            out,
            "      cache {:?} {:?} {} of {from} at {} {:?}{}",
            cache.id,
            cache.sharing,
            cache.source,
            cache.target,
            cache.access,
            cache.owner.as_ref().map(owner).unwrap_or_default()
        ),
        Mount::Tmpfs(tmpfs) => writeln!(
            out,
            "      memory {:?} at {} {:?}",
            tmpfs.size_bytes, tmpfs.target, tmpfs.access
        ),
        Mount::Secret(secret) => writeln!(
            out,
            "      secret {:?} required {} at {:?} in {:?}{}",
            secret.id,
            secret.required,
            secret.target,
            secret.env,
            owner(&secret.owner)
        ),
        Mount::Ssh(ssh) => writeln!(
            out,
            "      ssh {:?} required {} at {:?}{}",
            ssh.id,
            ssh.required,
            ssh.target,
            owner(&ssh.owner)
        ),
    }
    .unwrap();
}

fn owner(owner: &MountOwner) -> String {
    format!(" {}:{} {:o}", owner.uid, owner.gid, owner.mode)
}

fn origin(from: &CopyFrom) -> String {
    match from {
        CopyFrom::Context => "context".to_owned(),
        CopyFrom::Stage(stage) => format!("stage {}", stage.0),
        CopyFrom::Image(key) => image(key),
        CopyFrom::Named(name) => format!("named context {name}"),
    }
}

fn show_copy(out: &mut String, copy: &CopyOp) {
    let from = origin(&copy.from);
    let kind = if copy.destination_is_directory {
        "directory"
    } else {
        "path"
    };
    let sources: Vec<String> = copy.sources.iter().map(source).collect();
    writeln!(
        out,
        "      copy [{}] of {from} to {kind} {}",
        sources.join(", "),
        copy.destination
    )
    .unwrap();
    for file in &copy.inline {
        writeln!(out, "      inline {} {:?}", file.name, file.content).unwrap();
    }
    if !copy.exclude.is_empty() {
        writeln!(out, "      without {:?}", copy.exclude).unwrap();
    }
    if let Some(owner) = &copy.chown {
        writeln!(out, "      owner {owner}").unwrap();
    }
    if let Some(mode) = &copy.chmod {
        writeln!(out, "      mode {mode}").unwrap();
    }
    match copy.unpack {
        Unpack::None => {}
        Unpack::Local => writeln!(out, "      archives are unpacked").unwrap(),
        Unpack::All => writeln!(out, "      all archives are unpacked").unwrap(),
    }
    if copy.link == Link::Yes {
        writeln!(out, "      linked").unwrap();
    }
}

fn source(source: &CopySource) -> String {
    match source {
        CopySource::Path(source) => match &source.below {
            None => format!("{:?}", source.path),
            Some(below) => format!("{below:?} below {:?}", source.path),
        },
        CopySource::File(file) => {
            let checksum = file.checksum.as_ref();
            let checksum = checksum.map(|sum| format!(" {:?} {}", sum.algorithm, sum.hex));
            let checksum = checksum.unwrap_or_default();
            format!("{} as {:?}{checksum}", file.url, file.name)
        }
        CopySource::Git(git) => format!(
            "{} at {:?} folder {:?} commit {:?} .git {:?}",
            git.remote, git.reference, git.folder, git.commit, git.git_directory
        ),
    }
}

fn image(key: &BaseKey) -> String {
    let layout = key.layout.iter().map(|name| format!(" in layout {name}"));
    format!(
        "{} for {}{}",
        key.reference,
        key.platform,
        layout.collect::<String>()
    )
}
