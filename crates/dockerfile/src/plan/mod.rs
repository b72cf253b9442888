//! [`Dockerfile`] → [`Plan`], in two calls with the resolving of base images between them.
//!
//! 1. [`stages`] resolves names and numbers of stages, picks the target, and says which base images it needs (`graph.rs`);
//! 2. the caller resolves those;
//! 3. [`plan`] expands the triggers that the bases bring along (`trigger.rs`). When one of them copies from an image that nobody has
//!    resolved yet, it asks for that one and is called again;
//! 4. it goes through the instructions of each needed stage in order (`stage.rs`): what only changes the configuration is folded
//!    into it (`settings.rs`), what changes files becomes a [`Step`] (`run.rs`, `copy.rs`).
//!
//! All of it is a function of its arguments. Everything that an instruction says is either carried out, or an error at its place.

mod arguments;
mod copy;
mod environment;
mod graph;
mod lint;
mod named;
mod notation;
mod origin;
mod ports;
mod remote;
mod run;
mod settings;
mod signal;
mod stage;
#[cfg(test)]
mod tests;
mod trigger;
mod types;
mod user;

use std::collections::{BTreeMap, BTreeSet};

pub use named::{ContextNameError, context_name};
pub use types::{
    Base, BaseKey, BaseNeed, BaseRef, Checksum, ChecksumAlgorithm, CopyFrom, CopyOp, CopySource,
    Environment, GitFolder, GraphArgument, GraphBase, GraphStage, InlineFile, InlineScript, Link,
    NamedContext, NeedKind, Op, PathSource, Plan, PlanOptions, PlanOutcome, PlanStage, RemoteFile,
    Replaced, RunNetwork, RunOp, Scope, StageGraph, StageIndex, Step, Unpack,
};

use crate::ast::{Body, Dockerfile};
use crate::diagnostic::Diagnostic;

/// Resolves the stages of `file` and tells which base images are needed.
pub fn stages(file: &Dockerfile, options: &PlanOptions) -> Result<StageGraph, Vec<Diagnostic>> {
    graph::build(file, options)
}

/// Plans the target of `graph`. `bases` holds what [`StageGraph::needs`] and earlier [`PlanOutcome::NeedsBases`] asked for.
pub fn plan(
    file: &Dockerfile,
    graph: &StageGraph,
    options: &PlanOptions,
    bases: &BTreeMap<BaseKey, Base>,
) -> Result<PlanOutcome, Vec<Diagnostic>> {
    let work = match trigger::collect(file, graph, options, bases)? {
        trigger::Collected::Ready(work) => work,
        trigger::Collected::NeedsBases(needs) => return Ok(PlanOutcome::NeedsBases(needs)),
    };
    let (stages, mut warnings, target) = stage::plan_all(file, graph, options, bases, &work)?;
    warnings.splice(0..0, graph.warnings.iter().cloned());
    Ok(PlanOutcome::Ready(Plan {
        stages,
        target,
        warnings,
        unused_build_args: unused_build_args(file, options),
    }))
}

fn unused_build_args(file: &Dockerfile, options: &PlanOptions) -> Vec<String> {
    let declared: BTreeSet<&str> = file
        .instructions
        .iter()
        .flat_map(|instruction| match &instruction.body {
            Body::Arg(arguments) => arguments.as_slice(),
            _ => &[],
        })
        .map(|argument| argument.name.text.as_str())
        .collect();
    let is_predefined = |name: &str| {
        run::is_proxy(name) || arguments::is_for_builder(name) || name == "SOURCE_DATE_EPOCH"
    };
    let names = options.build_args.keys();
    names
        .filter(|name| !declared.contains(name.as_str()) && !is_predefined(name))
        .cloned()
        .collect()
}
