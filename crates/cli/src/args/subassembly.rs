//! `kiln subassembly`, as typed.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use engine::subassembly::Format;
use oci::Reference;

use super::{Place, Progress, Server};

/// What to do with a subassembly.
#[derive(Debug, Subcommand)]
pub(crate) enum SubassemblyCommand {
    /// Make one file of an image's root filesystem.
    Create(CreateArgs),
    /// Tell where a subassembly stands, and fetch its file.
    Get(GetArgs),
    /// Mount a subassembly, read-only.
    Mount(MountArgs),
}

/// Arguments of `kiln subassembly create`.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// The image
    #[arg(value_name = "REF")]
    pub(crate) reference: Reference,
    /// What the file is, without --server: `squashfs` or `tar+zstd` [default: the configuration's]
    #[arg(long, value_name = "FORMAT", conflicts_with = "server")]
    pub(crate) format: Option<Format>,
    /// Do not wait until it is made
    #[arg(long, requires = "server")]
    pub(crate) detach: bool,
    /// Print all that is known, as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// How progress is shown
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    pub(crate) progress: Progress,
    /// A server to ask.
    #[command(flatten)]
    pub(crate) server: Server,
    /// State and configuration.
    #[command(flatten)]
    pub(crate) place: Place,
}

/// Arguments of `kiln subassembly get`.
#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    /// The image
    #[arg(value_name = "REF")]
    pub(crate) reference: Reference,
    /// Write the subassembly's file here; what an interrupted download left in `FILE.part` is gone on with
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// What the file is, without --server [default: the configuration's]
    #[arg(long, value_name = "FORMAT", conflicts_with = "server")]
    pub(crate) format: Option<Format>,
    /// Print all that is known, as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// A server to ask.
    #[command(flatten)]
    pub(crate) server: Server,
    /// State and configuration.
    #[command(flatten)]
    pub(crate) place: Place,
}

/// Arguments of `kiln subassembly mount`.
#[derive(Debug, Args)]
pub(crate) struct MountArgs {
    /// The file, as `get -o` wrote it; or an image whose subassembly was made here
    #[arg(value_name = "FILE|REF")]
    pub(crate) what: String,
    /// Where to
    #[arg(value_name = "DIR")]
    pub(crate) folder: PathBuf,
    /// State and configuration.
    #[command(flatten)]
    pub(crate) place: Place,
}
