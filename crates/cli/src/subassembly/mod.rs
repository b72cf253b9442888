//! `kiln subassembly`: one image's root filesystem as one file, made here or by a server.

mod download;
mod here;
mod mount;
mod server;

use engine::subassembly::manifest::Manifest;
use serde_json::json;

use crate::args::subassembly::SubassemblyCommand;
use crate::failure::{Exit, Failure, OrExit, Outcome};
use crate::terminal;

/// Carries the command out.
pub(crate) async fn run(command: SubassemblyCommand) -> Outcome {
    match command {
        SubassemblyCommand::Create(args) => match args.server.target() {
            Some(server) => server::create(&server, &args).await,
            None => here::create(&args).await,
        },
        SubassemblyCommand::Get(args) => match args.server.target() {
            Some(server) => server::get(&server, &args).await,
            None => here::get(&args).await,
        },
        SubassemblyCommand::Mount(args) => mount::run(&args),
    }
}

/// A subassembly that is there, and where.
struct Found {
    digest: String,
    /// An address, or the path of a file.
    location: String,
    manifest: Manifest,
}

impl Found {
    /// Prints the digest, or all that is known.
    fn tell(&self, as_json: Shape) -> Outcome {
        let text = match as_json {
            Shape::Line => self.digest.clone(),
            Shape::Json => {
                let document = json!({
                    "phase": "available",
                    "digest": self.digest,
                    "url": self.location,
                    "manifest": self.manifest,
                });
                format!("{document:#}")
            }
        };
        terminal::data(&text).or_exit(Exit::Machine)
    }
}

/// How a result is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// One line.
    Line,
    /// One document.
    Json,
}

impl From<bool> for Shape {
    fn from(as_json: bool) -> Self {
        if as_json { Self::Json } else { Self::Line }
    }
}

/// Ends the program for a subassembly that is not there: as a document where one is wanted.
fn not_there(phase: &str, message: &str, shape: Shape) -> Outcome {
    if shape == Shape::Json {
        let document = json!({ "phase": phase, "message": message });
        terminal::data(&format!("{document:#}")).or_exit(Exit::Machine)?;
    }
    let failure = Failure::text(
        Exit::BuildFailed,
        format!("the subassembly is {phase}: {message}"),
    );
    Err(failure.hint("`kiln subassembly create` makes it"))
}
