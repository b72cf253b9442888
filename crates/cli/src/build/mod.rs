//! `kiln build`: command line → [`engine::spec::BuildSpec`] → worker → image, or the same through a server.
//!
//! Without a server this process takes the server's place for one build: it writes what the build starts from, starts the worker,
//! and follows the journal. The worker is a process of its own, in a user namespace of its own, here as there.

pub(crate) mod agent;
mod answer;
mod call;
pub(crate) mod context;
mod download;
pub(crate) mod explain;
pub(crate) mod import;
mod lend;
pub(crate) mod local;
mod look;
mod named;
mod options;
pub(crate) mod outputs;
pub(crate) mod remote;
pub(crate) mod report;
pub(crate) mod secrets;
mod upload;

use crate::args::BuildArgs;
use crate::failure::Outcome;

/// Builds an image.
pub(crate) async fn run(args: BuildArgs) -> Outcome {
    args.refused.check()?;
    if let Some(call) = args.look.asked() {
        return call::run(&args, call).await;
    }
    match args.server.target() {
        Some(server) => remote::run(&server, &args).await,
        None => local::run(&args).await,
    }
}
