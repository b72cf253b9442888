//! Dockerfiles: text → instructions → [`Plan`]. Pure and synchronous: no clock, no disk, no network, no async.
//!
//! | module | what it does |
//! |---|---|
//! | [`parse()`] | text → [`Dockerfile`] ([`ast`]) and everything that is wrong with it |
//! | [`stages`] | stages, target, and which base images have to be resolved first |
//! | [`plan()`] | the steps of each needed stage and the configuration of its image |
//! | [`expand`] | `$x`, `${x:-w}` and quotes in words |
//! | [`ignore`] | `.dockerignore` |
//! | [`glob`] | patterns of COPY sources |
//! | [`chmod`] | modes as `--chmod` has them |
//! | [`lint`] | what can be built and is probably not what was meant |
//! | [`outline`] | targets, and what one of them takes |
//! | [`diagnostic`] | findings with line, caret and hint |
//! | [`limits`] | how much of anything a Dockerfile may ask for |
//!
//! A caller goes through it like this:
//!
//! ```
//! use std::collections::BTreeMap;
//!
//! use dockerfile::{Op, PlanOptions, PlanOutcome};
//!
//! let text = "FROM scratch\nCOPY app /\nENV A=1\nCMD [\"/app\"]\n";
//! let (file, findings) = dockerfile::parse(text.as_bytes());
//! for finding in findings.iter().filter(|finding| finding.is_error()) {
//!     panic!("{}", dockerfile::render(finding, text, "Dockerfile"));
//! }
//! let options = PlanOptions::new(oci::Platform::host());
//! let graph = dockerfile::stages(&file, &options).unwrap();
//! let mut bases = BTreeMap::new();
//! let plan = loop {
//!     // Resolve `graph.needs` (and later what is asked for in addition) into `bases` here.
//!     match dockerfile::plan(&file, &graph, &options, &bases).unwrap() {
//!         PlanOutcome::Ready(plan) => break plan,
//!         PlanOutcome::NeedsBases(needs) => {
//!             for need in needs {
//!                 let config = oci::ImageConfig::scratch(&need.key.platform);
//!                 bases.insert(need.key.clone(), dockerfile::Base { pinned: need.key.reference, config });
//!             }
//!         }
//!     }
//! };
//! let stage = plan.stage(plan.target).unwrap();
//! let step = &stage.steps[0];
//! assert_eq!(format!("{} {}", stage.label(step.number), step.text), "[1/1] COPY app /");
//! assert!(matches!(&step.op, Op::Copy(copy) if copy.sources.len() == 1 && copy.destination == "/"));
//! assert_eq!(stage.config.config.env.last().unwrap(), "A=1");
//! assert_eq!(stage.config.history[step.history_index].created_by.as_deref(), Some("COPY app / # buildkit"));
//! ```

#![forbid(unsafe_code)]

pub mod ast;
pub mod chmod;
pub mod diagnostic;
pub mod expand;
pub mod glob;
pub mod ignore;
pub mod limits;
pub mod lint;
pub mod outline;
mod parse;
pub mod path;
mod plan;
mod suggest;

pub use ast::Dockerfile;
pub use diagnostic::{Diagnostic, Severity, Span, render};
pub use parse::parse;
pub use plan::{
    Base, BaseKey, BaseNeed, BaseRef, BindMount, CacheMount, Checksum, ChecksumAlgorithm,
    ContextNameError, CopyFrom, CopyOp, CopySource, Environment, GitFolder, GraphArgument,
    GraphBase, GraphStage, InlineFile, InlineScript, Link, Mount, MountAccess, MountOwner,
    NamedContext, NeedKind, Op, PathSource, Plan, PlanOptions, PlanOutcome, PlanStage, RemoteFile,
    Replaced, RunNetwork, RunOp, RunSecurity, Scope, SecretMount, Sharing, SshMount, StageGraph,
    StageIndex, Step, TmpfsMount, Unpack, context_name, plan, size_in_bytes, stages,
};
