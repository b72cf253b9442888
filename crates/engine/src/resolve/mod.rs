//! From a request to a plan: sources, Dockerfile, pinned bases. After this there are no tags any more.

pub(crate) mod bases;
mod commits;
pub(crate) mod context;
mod files;
pub(crate) mod layout;
mod lookout;
pub(crate) mod uploaded;
mod workspace;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dockerfile::lint::Settings;
use dockerfile::{Base, BaseKey, BaseNeed, Diagnostic, Plan, PlanOptions, PlanOutcome, Span};
use futures_util::future::try_join_all;
use oci::Platform;

pub use self::bases::kept_config;
use self::bases::{BaseImage, Library};
use self::context::Workspace;
pub use self::layout::config as layout_config;
use crate::event::{Event, Failure, FailureKind, Phase};
use crate::failure::failure;
use crate::recorder::Recorder;
use crate::spec::{BuildSpec, NamedContext};

/// Rounds of planning: each brings bases that triggers of earlier ones asked for.
const ROUNDS_MAX: usize = 8;

/// A Dockerfile as text, to show lines of it.
#[derive(Debug)]
pub(crate) struct DockerfileText {
    /// Its path in the workspace.
    pub(crate) name: String,
    pub(crate) text: Vec<u8>,
}

impl DockerfileText {
    /// Returns `message` with the place it is about: file, line and caret.
    pub(crate) fn excerpt(&self, span: &Span, message: &str) -> String {
        self.render(&Diagnostic::error(*span, message))
    }

    fn render(&self, diagnostic: &Diagnostic) -> String {
        let text = String::from_utf8_lossy(&self.text);
        let shown = dockerfile::render(diagnostic, &text, &self.name);
        // Whoever shows it says that it is one.
        let shown = shown.trim_end();
        shown.strip_prefix("error: ").unwrap_or(shown).to_owned()
    }

    fn failure(&self, diagnostics: &[Diagnostic]) -> Failure {
        let errors = diagnostics
            .iter()
            .filter(|diagnostic| diagnostic.is_error());
        let texts: Vec<String> = errors.map(|diagnostic| self.render(diagnostic)).collect();
        failure(FailureKind::Dockerfile, texts.join("\n"))
    }

    fn warn(&self, diagnostics: &[Diagnostic], recorder: &Recorder) {
        for diagnostic in diagnostics
            .iter()
            .filter(|diagnostic| !diagnostic.is_error())
        {
            recorder.warn(self.render(diagnostic));
        }
    }
}

/// A plan, and the images that it stands on.
pub(crate) struct Resolved {
    pub(crate) plan: Plan,
    pub(crate) bases: BTreeMap<BaseKey, BaseImage>,
}

/// Parses the Dockerfile, pins what it is based on, and plans.
pub(crate) async fn resolve(
    workspace: &Workspace,
    spec: &BuildSpec,
    library: &Library,
    recorder: &Recorder,
) -> Result<Resolved, Failure> {
    let text = &workspace.dockerfile;
    let (file, found) = dockerfile::parse(&text.text);
    if found.iter().any(Diagnostic::is_error) {
        text.warn(&found, recorder);
        return Err(text.failure(&found));
    }
    let options = &spec.options;
    let settings = Settings::of(&file, &options.build_args);
    let (settings, unknown) = settings.map_err(|error| text.failure(&[error]))?;
    let mut findings = Findings {
        text,
        file: &file,
        settings,
        recorder,
        broken: BTreeSet::new(),
    };
    findings.tell(found.into_iter().chain(unknown));
    findings.tell(dockerfile::lint::check(&file));
    let plan_options = PlanOptions {
        contexts: named_contexts(spec),
        target: options.target.clone(),
        build_args: options.build_args.clone(),
        labels: options.labels.clone(),
        build_platform: Platform::host(),
        ignore: Some(Arc::clone(&workspace.context.ignore)),
        ..PlanOptions::new(options.platform.clone())
    };
    let graph = dockerfile::stages(&file, &plan_options).map_err(|found| text.failure(&found))?;
    let mut bases = BTreeMap::new();
    let mut needs = graph.needs.clone();
    for _ in 0..ROUNDS_MAX {
        bases.extend(pin_all(&needs, library, text).await?);
        recorder.event(&Event::Phase {
            phase: Phase::Planning,
        });
        let known: BTreeMap<BaseKey, Base> = bases
            .iter()
            .map(|(key, image)| (key.clone(), base_of(image)))
            .collect();
        match dockerfile::plan(&file, &graph, &plan_options, &known)
            .map_err(|found| text.failure(&found))?
        {
            PlanOutcome::Ready(plan) => {
                findings.tell(plan.warnings.iter().cloned());
                findings.end()?;
                warn_of_names(spec, &file, recorder);
                return Ok(Resolved { plan, bases });
            }
            PlanOutcome::NeedsBases(more) => needs = more,
        }
    }
    Err(failure(
        FailureKind::Dockerfile,
        "triggers of base images ask for ever more base images",
    ))
}

/// Names that are meant for stages or images and that nothing is called.
fn warn_of_names(spec: &BuildSpec, file: &dockerfile::Dockerfile, recorder: &Recorder) {
    let targets = dockerfile::outline::targets(file);
    let stages: Vec<String> = targets
        .into_iter()
        .filter_map(|target| target.name)
        .collect();
    for name in &spec.options.no_cache_stages {
        if !stages.iter().any(|stage| stage.eq_ignore_ascii_case(name)) {
            recorder.warn(format!(
                "--no-cache-filter: there is no stage called {name:?}"
            ));
        }
    }
}

/// Tells what was found that does not stop the build, as far as the Dockerfile wants to know.
struct Findings<'a> {
    text: &'a DockerfileText,
    file: &'a dockerfile::Dockerfile,
    settings: Settings,
    recorder: &'a Recorder,
    broken: BTreeSet<&'static str>,
}

impl Findings<'_> {
    fn tell(&mut self, found: impl IntoIterator<Item = Diagnostic>) {
        let found = found.into_iter();
        let found: Vec<Diagnostic> = found
            .filter(|finding| self.settings.keeps(self.file, finding))
            .collect();
        let rules = found.iter().filter_map(|finding| finding.rule);
        self.broken.extend(rules.map(|rule| rule.name));
        self.text.warn(&found, self.recorder);
    }

    /// Fails when the Dockerfile wants what was found to be an error.
    fn end(&self) -> Result<(), Failure> {
        if !self.settings.is_error || self.broken.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = self.broken.iter().copied().collect();
        let message = format!(
            "checks that failed, which is an error here: {}",
            names.join(", ")
        );
        Err(failure(FailureKind::Dockerfile, message))
    }
}

async fn pin_all(
    needs: &[BaseNeed],
    library: &Library,
    text: &DockerfileText,
) -> Result<Vec<(BaseKey, BaseImage)>, Failure> {
    let pins = needs.iter().map(|need| async {
        let image = library.pin(&need.key).await.map_err(|failure| {
            let error = Diagnostic::error(need.span, failure.message.as_str());
            let hint = need.hint.clone();
            let hint = hint.filter(|_| failure.kind == FailureKind::BaseImageMissing);
            let message = text.render(&error.with_hint_if(hint));
            Failure { message, ..failure }
        })?;
        Ok::<_, Failure>((need.key.clone(), image))
    });
    try_join_all(pins).await
}

fn named_contexts(spec: &BuildSpec) -> BTreeMap<String, dockerfile::NamedContext> {
    let kind = |context: &NamedContext| match context {
        NamedContext::Scratch => dockerfile::NamedContext::Scratch,
        NamedContext::Image { reference } => dockerfile::NamedContext::Image(reference.clone()),
        NamedContext::Layout { .. } | NamedContext::UploadedLayout { .. } => {
            dockerfile::NamedContext::Layout
        }
        NamedContext::Files { .. } => dockerfile::NamedContext::Files,
    };
    let contexts = spec.contexts.iter();
    contexts
        .map(|(name, context)| (name.clone(), kind(context)))
        .collect()
}

fn base_of(image: &BaseImage) -> Base {
    Base {
        pinned: image.pinned.clone(),
        config: image.config.clone(),
    }
}
