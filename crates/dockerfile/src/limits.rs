//! Every limit of this crate, in one place.
//!
//! A Dockerfile comes from whoever asks for a build, hence from anybody. Nothing that it says may make us use more
//! memory or time than these numbers allow; what exceeds one is an error at the line that did it.

/// Largest Dockerfile, in bytes.
pub const FILE_MAX_BYTES: usize = 1 << 20;
/// Longest line as it stands in the file, in bytes.
pub const LINE_MAX_BYTES: usize = 64 << 10;
/// Most instructions in a Dockerfile.
pub const INSTRUCTIONS_MAX: usize = 10_000;
/// Most stages (`FROM`) in a Dockerfile.
pub const STAGES_MAX: usize = 200;
/// Most heredocs that one instruction may open.
pub const HEREDOCS_MAX: usize = 100;
/// Most comments right above an instruction that are kept.
pub const COMMENTS_MAX: usize = 100;
/// Most mounts that one RUN may have.
pub const MOUNTS_MAX: usize = 64;
/// Broken rules that one Dockerfile is told about; also those that its text alone breaks.
pub const LINTS_MAX: usize = 1_000;
/// Undefined variables for which a near name is looked for.
pub const SUGGESTIONS_MAX: usize = 20;
/// Errors after which parsing stops: nobody reads more.
pub const DIAGNOSTICS_MAX: usize = 50;

/// Longest result of expanding one word, in bytes.
pub const VALUE_MAX_BYTES: usize = 128 << 10;
/// Sum of all variables that a stage may see, in bytes.
pub const ENVIRONMENT_MAX_BYTES: usize = 1 << 20;
/// How deep `${a:-${b:-…}}` may nest.
pub const EXPANSION_DEPTH_MAX: usize = 64;
/// Steps that matching the patterns of `${x#p}`, `${x%p}` and `${x/p/r}` may take in one plan.
pub const PATTERN_STEPS_MAX: u64 = 50_000_000;
/// Characters that the expansion of all words of one plan may read and write.
pub const EXPANSION_BYTES_MAX: u64 = 256 << 20;

/// What the instructions of one stage may add to the image's configuration, in bytes.
pub const CONFIG_MAX_BYTES: usize = 1 << 20;
/// What all steps of a plan may hold together (each carries the environment that it runs with), in bytes.
pub const PLAN_MAX_BYTES: usize = 128 << 20;
/// Most `ONBUILD` triggers that a base may bring along.
pub const TRIGGERS_MAX: usize = 128;
/// Most `ONBUILD` triggers in one plan, over all stages.
pub const TRIGGERS_TOTAL_MAX: usize = 2_000;

/// Largest ignore file, in bytes.
pub const IGNORE_FILE_MAX_BYTES: usize = 1 << 20;
/// Most patterns in an ignore file.
pub const IGNORE_PATTERNS_MAX: usize = 10_000;
/// Steps that all matching with one ignore file may take.
pub const IGNORE_STEPS_MAX: u64 = 2_000_000_000;
/// Longest pattern, of an ignore file or a COPY source, in bytes.
pub const PATTERN_MAX_BYTES: usize = 4 << 10;
