//! What planning takes and gives. Plain data; everything public here is re-exported at the crate's root.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use oci::{ImageConfig, Platform, Reference};

use super::mount::Mount;
use crate::diagnostic::{Diagnostic, Span};
use crate::ignore::IgnoreFile;
use crate::outline::OutlineArgument;

mod copies;

pub use copies::{
    Checksum, ChecksumAlgorithm, CopyFrom, CopyOp, CopySource, GitFolder, InlineFile, Link,
    PathSource, RemoteFile, Unpack,
};

/// What a build asks of a Dockerfile.
#[derive(Debug, Clone)]
pub struct PlanOptions {
    /// The stage to build, by name or number; the last one without it.
    pub target: Option<String>,
    /// Values for ARG.
    pub build_args: BTreeMap<String, String>,
    /// Labels for the image, over those of the Dockerfile.
    pub labels: BTreeMap<String, String>,
    /// What the image is to run on.
    pub platform: Platform,
    /// What steps are run on.
    pub build_platform: Platform,
    /// What stands for a name instead of the stage or image that has it ([`context_name`](super::context_name)); a name may end in `::os/arch`, for that
    /// platform only.
    pub contexts: BTreeMap<String, NamedContext>,
    /// Which stages are planned.
    pub scope: Scope,
    /// The context's ignore file, where it is to be told what it hides.
    pub ignore: Option<Arc<IgnoreFile>>,
}

/// Which stages are planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Those that the target needs.
    Needed,
    /// All: to look for what is wrong anywhere.
    All,
}

/// What a name of `--build-context` stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamedContext {
    /// Nothing.
    Scratch,
    /// An image.
    Image(Reference),
    /// An image in an OCI layout; the caller knows where that is.
    Layout,
    /// Files; the caller knows where they are.
    Files,
}

impl PlanOptions {
    /// Returns the options of a build of the last stage for the platform that it runs on.
    pub fn new(platform: Platform) -> Self {
        Self {
            target: None,
            build_args: BTreeMap::new(),
            labels: BTreeMap::new(),
            build_platform: platform.clone(),
            platform,
            contexts: BTreeMap::new(),
            scope: Scope::Needed,
            ignore: None,
        }
    }
}

/// The name of a base image in a plan: a reference, and the platform that is wanted of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BaseKey {
    /// As the Dockerfile says it, normalised; a missing tag is still missing.
    pub reference: Reference,
    /// Which of its platforms.
    pub platform: Platform,
    /// The named context that is an OCI layout with the image in it; `None` for an image of a registry.
    pub layout: Option<Box<str>>,
}

/// Why a base image is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NeedKind {
    /// A stage starts from it.
    From,
    /// Files are copied from it.
    CopyFrom,
}

/// A base image that has to be resolved before planning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseNeed {
    /// Which image.
    pub key: BaseKey,
    /// Where the Dockerfile names it.
    pub span: Span,
    /// What for.
    pub kind: NeedKind,
    /// The stage that was perhaps meant, in words.
    pub hint: Option<String>,
}

/// A resolved base image.
#[derive(Debug, Clone)]
pub struct Base {
    /// The reference with its digest, for progress and records.
    pub pinned: Reference,
    /// Its configuration.
    pub config: ImageConfig,
}

/// The stages of a Dockerfile and what they start from, before any base image is known.
#[derive(Debug, Clone)]
pub struct StageGraph {
    /// All stages, in their order.
    pub stages: Vec<GraphStage>,
    /// Index of the stage to build.
    pub target: usize,
    /// The base images that the target needs, each once. Triggers of bases may add to them: see [`PlanOutcome`].
    pub needs: Vec<BaseNeed>,
    /// ARGs from before the first FROM and the predefined ones, with their values.
    pub globals: BTreeMap<String, String>,
    /// The ARGs before the first FROM.
    pub arguments: Vec<GraphArgument>,
    /// Findings that do not stop the build.
    pub warnings: Vec<Diagnostic>,
}

/// An ARG before the first FROM.
#[derive(Debug, Clone)]
pub struct GraphArgument {
    /// It.
    pub argument: OutlineArgument,
    /// The variables in its default.
    pub uses: BTreeSet<String>,
}

/// One stage as the Dockerfile has it.
#[derive(Debug, Clone)]
pub struct GraphStage {
    /// What `AS` says.
    pub name: Option<String>,
    /// What it starts from.
    pub base: GraphBase,
    /// What it runs on.
    pub platform: Platform,
    /// Its FROM.
    pub span: Span,
    /// Its instructions without FROM, as a range of the Dockerfile's; none when the whole stage is replaced.
    pub instructions: std::ops::Range<usize>,
    /// Whether a named context stands for the stage.
    pub replaced: Replaced,
    /// The variables of its FROM.
    pub uses: BTreeSet<String>,
    /// True when the target needs it, as far as can be told without the bases' triggers.
    pub reachable: bool,
}

/// Whether a named context stands for a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replaced {
    /// No.
    No,
    /// Nothing of the stage is carried out, and triggers of what it became do not count for it.
    Yes,
}

/// What a stage starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GraphBase {
    /// Nothing.
    Scratch,
    /// An image.
    Image(BaseKey),
    /// An earlier stage, by its index among all stages.
    Stage(usize),
    /// The files of a named context, and no configuration.
    Files(String),
}

/// What planning came to.
#[derive(Debug, Clone)]
pub enum PlanOutcome {
    /// The plan.
    Ready(Plan),
    /// A base brought a trigger that needs more base images: resolve them too, then plan again.
    NeedsBases(Vec<BaseNeed>),
}

/// Index of a stage in [`Plan::stages`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StageIndex(pub usize);

/// What has to be done to build the target.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The stages that are needed; each refers to earlier ones only.
    pub stages: Vec<PlanStage>,
    /// The stage that becomes the image.
    pub target: StageIndex,
    /// Findings that do not stop the build.
    pub warnings: Vec<Diagnostic>,
    /// Unix seconds that an ARG `SOURCE_DATE_EPOCH` before the first FROM asks for.
    pub source_date_epoch: Option<i64>,
}

impl Plan {
    /// Returns the stage at `index`.
    pub fn stage(&self, index: StageIndex) -> Option<&PlanStage> {
        self.stages.get(index.0)
    }

    /// Returns the names of the contexts whose files are needed.
    pub fn named_files(&self) -> BTreeSet<&str> {
        let steps = self.stages.iter().flat_map(|stage| &stage.steps);
        steps.flat_map(|step| step.op.named_files()).collect()
    }
}

/// One stage to be built.
#[derive(Debug, Clone)]
pub struct PlanStage {
    /// What `AS` says.
    pub name: Option<String>,
    /// Its place among all stages of the Dockerfile.
    pub declared_index: usize,
    /// What is shown for it: the name, `stage-1` without one, nothing when it is the only stage of the Dockerfile.
    pub display_name: String,
    /// Its FROM.
    pub span: Span,
    /// What it starts from.
    pub base: BaseRef,
    /// What it runs on.
    pub platform: Platform,
    /// What changes its files, in order.
    pub steps: Vec<Step>,
    /// How many numbered things it does: its steps, and one more when it starts from an image.
    pub n_numbered: usize,
    /// The image's configuration after the last step: the base's, changed by the instructions. `rootfs` is still the base's,
    /// `history` holds the base's entries and one for each instruction; `created` is left to the engine.
    pub config: ImageConfig,
    /// How many entries of `config.history` come from the base.
    pub n_base_history: usize,
    /// The ARGs that it declares itself.
    pub arguments: Vec<OutlineArgument>,
    /// The ARGs from before the first FROM, and the predefined ones, that it takes.
    pub inherited: BTreeSet<String>,
}

impl PlanStage {
    /// Returns what is shown before thing `number` of this stage: `[build 2/4]`.
    pub fn label(&self, number: usize) -> String {
        let total = self.n_numbered.to_string();
        let blank = if self.display_name.is_empty() {
            ""
        } else {
            " "
        };
        let width = total.len();
        format!("[{}{blank}{number:>width$}/{total}]", self.display_name)
    }
}

/// What a planned stage starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BaseRef {
    /// Nothing.
    Scratch,
    /// An image.
    Image(BaseKey),
    /// An earlier stage.
    Stage(StageIndex),
}

/// The variables that a step runs with, in the order in which they were first set. Shared between steps.
pub type Environment = Arc<Vec<(String, String)>>;

/// Something that changes the files of a stage.
#[derive(Debug, Clone)]
pub struct Step {
    /// Its number in the stage, for [`PlanStage::label`].
    pub number: usize,
    /// The instruction as it is shown: `RUN make`. Variables are not expanded in it.
    pub text: String,
    /// Where it stands; the FROM for a trigger of a base.
    pub span: Span,
    /// True when it comes from a trigger of the base.
    pub from_trigger: bool,
    /// What to do.
    pub op: Op,
    /// Its entry in the stage's `config.history`. An entry whose step made no layer is to be marked `empty_layer`.
    pub history_index: usize,
    /// ENV and ARG as they are here.
    pub env: Environment,
    /// USER as it is here; empty when none is set.
    pub user: String,
    /// WORKDIR as it is here, absolute.
    pub workdir: String,
    /// SHELL as it is here.
    pub shell: Arc<Vec<String>>,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Runs a command.
    Run(RunOp),
    /// Copies files.
    Copy(Box<CopyOp>),
    /// Creates a directory (with its parents, mode 0755, owned by the step's user) unless it exists.
    Workdir {
        /// Absolute and clean.
        path: String,
    },
}

impl Op {
    /// Returns the named contexts whose files it needs.
    fn named_files(&self) -> Vec<&str> {
        let froms: Vec<&CopyFrom> = match self {
            Self::Copy(copy) => vec![&copy.from],
            Self::Run(run) => run.mounts.iter().filter_map(Mount::from).collect(),
            Self::Workdir { .. } => Vec::new(),
        };
        let named = froms.into_iter().filter_map(|from| match from {
            CopyFrom::Named(name) => Some(name.as_str()),
            _ => None,
        });
        named.collect()
    }
}

/// A command to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunOp {
    /// Program and arguments; the shell is already among them.
    pub args: Vec<String>,
    /// The proxies that the build was given. To be set for the command, in upper and lower case, unless [`Step::env`] has them; no part of
    /// what the step means, hence of no cache key.
    pub proxy: Vec<(String, String)>,
    /// A file to be there, read-only and executable, while the command runs.
    pub script: Option<InlineScript>,
    /// What it may reach.
    pub network: RunNetwork,
    /// What it may do.
    pub security: RunSecurity,
    /// What it sees besides the files of its stage.
    pub mounts: Vec<Mount>,
}

/// A heredoc that names its own interpreter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InlineScript {
    /// Where it is expected: `/dev/pipes/NAME`.
    pub path: String,
    /// What it says, `#!` line first.
    pub content: String,
}

/// What a command may reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunNetwork {
    /// What the operator chose.
    Default,
    /// Nothing.
    None,
    /// What the host may; only if the operator allows it.
    Host,
}

/// What a command may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunSecurity {
    /// What every command may.
    Sandbox,
    /// What the one who started the worker may; only if the operator allows it.
    Insecure,
}
