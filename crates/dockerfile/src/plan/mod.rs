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
mod mount;
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

pub use mount::{
    BindMount, CacheMount, Mount, MountAccess, MountOwner, SecretMount, Sharing, SshMount,
    TmpfsMount, size_in_bytes,
};
pub use named::{ContextNameError, context_name};
pub use types::{
    Base, BaseKey, BaseNeed, BaseRef, Checksum, ChecksumAlgorithm, CopyFrom, CopyOp, CopySource,
    Environment, GitFolder, GraphArgument, GraphBase, GraphStage, InlineFile, InlineScript, Link,
    NamedContext, NeedKind, Op, PathSource, Plan, PlanOptions, PlanOutcome, PlanStage, RemoteFile,
    Replaced, RunNetwork, RunOp, RunSecurity, Scope, StageGraph, StageIndex, Step, Unpack,
};

use crate::ast::{Body, Dockerfile};
use crate::diagnostic::{Diagnostic, Span};
use crate::suggest::did_you_mean;

/// The argument that everybody uses for the date of a build.
const SOURCE_DATE_EPOCH: &str = "SOURCE_DATE_EPOCH";

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
    warnings.extend(unused_build_args(file, options));
    let source_date_epoch = source_date_epoch(graph).map_err(|error| vec![error])?;
    Ok(PlanOutcome::Ready(Plan {
        stages,
        target,
        warnings,
        source_date_epoch,
    }))
}

fn source_date_epoch(graph: &StageGraph) -> Result<Option<i64>, Diagnostic> {
    let mut arguments = graph.arguments.iter().rev();
    let argument = arguments.find(|argument| argument.argument.name == SOURCE_DATE_EPOCH);
    let Some((argument, value)) =
        argument.and_then(|argument| Some((argument, argument.argument.value.as_deref()?)))
    else {
        return Ok(None);
    };
    let date = (!value.is_empty())
        .then(|| value.parse::<i64>())
        .transpose();
    date.map_err(|_| {
        let message = format!("{SOURCE_DATE_EPOCH}={value:?} is not a number of seconds");
        Diagnostic::error(argument.argument.span, message)
            .with_hint("dates of stages and contexts are not taken: give the seconds since 1970")
    })
}

/// Tells about build arguments that no ARG takes.
fn unused_build_args(file: &Dockerfile, options: &PlanOptions) -> Vec<Diagnostic> {
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
        run::is_proxy(name) || arguments::is_for_builder(name) || name == SOURCE_DATE_EPOCH
    };
    let names = options.build_args.keys();
    names
        .filter(|name| !declared.contains(name.as_str()) && !is_predefined(name))
        .map(|name| {
            let message = format!("no ARG takes the build argument {name:?}");
            Diagnostic::warning(Span::default(), message)
                .with_hint_if(did_you_mean(name, declared.iter().copied()))
        })
        .collect()
}
