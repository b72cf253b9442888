//! The command line, as typed. What it means is decided by the command that reads it.

pub(crate) mod cache;
pub(crate) mod call;
pub(crate) mod history;
pub(crate) mod moment;
pub(crate) mod named;
pub(crate) mod output;
pub(crate) mod pair;
pub(crate) mod refused;
pub(crate) mod steps;
pub(crate) mod storage;
pub(crate) mod subassembly;
pub(crate) mod times;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use engine::id::BuildId;
use oci::{Platform, Reference};

use self::cache::{CacheFromArg, CacheToArg};
use self::call::CallArgs;
use self::history::{HistoryArgs, InspectArgs, LogsArgs, LsArgs, RetryArgs};
use self::named::NamedArg;
use self::output::OutputOption;
use self::pair::{Annotation, BuildArg, Label};
use self::refused::RefusedArgs;
use self::steps::StepArgs;
use self::storage::{DuArgs, FsckArgs, PruneArgs};
use self::subassembly::SubassemblyCommand;
use self::times::TimeArgs;

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    the build failed: the Dockerfile, its context, or a command in it
  2    the command line or the configuration is wrong, or asks for what is not supported
  3    a registry, git server or kiln server did not answer, or refused
  4    this machine lacks something (see `kiln doctor`)
  5    kiln itself failed
  130  interrupted";

/// Builds container images from Dockerfiles, as a service or right here.
#[derive(Debug, Parser)]
#[command(name = "kiln", version, after_help = EXIT_CODES, propagate_version = true)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Build an image from a folder or a git repository.
    Build(Box<BuildArgs>),
    /// Run the service: gRPC, the embedded registry and logs, on one port.
    Serve(ServeArgs),
    /// Print the configuration, every key documented with its default.
    Config,
    /// Print what an image reference points to, as a digest.
    Resolve(ResolveArgs),
    /// List builds that go on; with `--all`, those that have ended too.
    Ls(LsArgs),
    /// Tell what became of builds that have ended.
    History(HistoryArgs),
    /// Tell everything that is known of a build.
    Inspect(InspectArgs),
    /// Print the log of a build, or of one of its steps.
    Logs(LogsArgs),
    /// Make the request of a build of a server once more.
    Retry(RetryArgs),
    /// End a build that is running.
    Cancel(CancelArgs),
    /// Make one file of an image's root filesystem; fetch it, mount it.
    #[command(subcommand)]
    Subassembly(SubassemblyCommand),
    /// Tell what the store holds, and how much that takes.
    Du(DuArgs),
    /// Remove from the store what nobody has used for longest.
    Prune(PruneArgs),
    /// Check that everything in the state directory is as it has to be, beside a running server or without one.
    Fsck(FsckArgs),
    /// Tell whether this machine has what builds need.
    Doctor(DoctorArgs),
    /// Print a completion script for a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Print the version.
    Version,
}

/// Where state and configuration are.
#[derive(Debug, Clone, Args)]
pub(crate) struct Place {
    /// Folder of images, cache and builds [default: /var/lib/kiln for root, else kiln in `$XDG_DATA_HOME`]
    #[arg(long, value_name = "DIR", env = "KILN_STATE")]
    pub(crate) state: Option<PathBuf>,
    /// Configuration file [default: /etc/kiln/kiln.toml for root, else kiln/kiln.toml in `$XDG_CONFIG_HOME`, if there is one]
    #[arg(long, value_name = "FILE", env = "KILN_CONFIG")]
    pub(crate) config: Option<PathBuf>,
}

/// A kiln server to ask.
#[derive(Debug, Clone, Args)]
pub(crate) struct Server {
    /// Ask the server at this address (`host:port` or a URL) and do nothing here
    #[arg(id = "server", long, value_name = "ADDR", env = "KILN_SERVER")]
    pub(crate) address: Option<String>,
    /// File with the token that says to the server who we are
    #[arg(long, value_name = "FILE", env = "KILN_TOKEN_FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// File with the certificate that says so, in PEM form
    #[arg(
        long,
        value_name = "FILE",
        env = "KILN_CLIENT_CERT",
        requires = "client_key"
    )]
    pub(crate) client_cert: Option<PathBuf>,
    /// File with the private key of that certificate
    #[arg(
        long,
        value_name = "FILE",
        env = "KILN_CLIENT_KEY",
        requires = "client_cert"
    )]
    pub(crate) client_key: Option<PathBuf>,
}

/// Arguments of `kiln serve`.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Address to listen on; port 0 lets the system choose [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Option<SocketAddr>,
    /// State and configuration.
    #[command(flatten)]
    pub(crate) place: Place,
}

/// Arguments of `kiln build`; named as those of `docker buildx build`.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct BuildArgs {
    /// Folder, git URL (`https://host/repo.git#ref:subdir`), or `-` for a Dockerfile or a tar of the context on standard input
    #[arg(value_name = "CONTEXT")]
    pub(crate) context: String,
    /// Dockerfile [default: CONTEXT/Dockerfile]; `-` reads standard input
    #[arg(short, long, value_name = "PATH")]
    pub(crate) file: Option<String>,
    /// Name of the image; may be given several times
    #[arg(short, long = "tag", value_name = "NAME")]
    pub(crate) tags: Vec<Reference>,
    /// Stage to build [default: the last]
    #[arg(long, value_name = "STAGE")]
    pub(crate) target: Option<String>,
    /// Value of an ARG; without `=VALUE` it is taken from the environment
    #[arg(long = "build-arg", value_name = "NAME[=VALUE]")]
    pub(crate) arguments: Vec<BuildArg>,
    /// What stands for a stage, a base or a `--from` of that name: a folder, a git repository, `docker-image://REF` or
    /// `oci-layout://PATH[:TAG|@DIGEST]`
    #[arg(long = "build-context", value_name = "NAME=WHAT")]
    pub(crate) contexts: Vec<NamedArg>,
    /// Label added to the image
    #[arg(long = "label", value_name = "NAME=VALUE")]
    pub(crate) labels: Vec<Label>,
    /// Annotation of the image's manifest
    #[arg(long = "annotation", value_name = "NAME=VALUE")]
    pub(crate) annotations: Vec<Annotation>,
    /// What of earlier builds is used.
    #[command(flatten)]
    pub(crate) earlier: EarlierArgs,
    /// Run every step, whatever is in the cache
    #[arg(long)]
    pub(crate) no_cache: bool,
    /// To look instead of building.
    #[command(flatten)]
    pub(crate) look: CallArgs,
    /// How progress is shown
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    pub(crate) progress: Progress,
    /// Show nothing but errors, and print the digest of the image
    #[arg(short, long, conflicts_with = "progress")]
    pub(crate) quiet: bool,
    /// Push the image to the registries its names are on
    #[arg(long)]
    pub(crate) push: bool,
    /// Write the image: `type=oci|docker|tar|local,dest=PATH` or `type=image[,name=NAME][,push=true]`
    #[arg(short, long = "output", value_name = "OUTPUT")]
    pub(crate) outputs: Vec<OutputOption>,
    /// Write the image's id (digest of its configuration) to a file
    #[arg(long, value_name = "FILE")]
    pub(crate) iidfile: Option<PathBuf>,
    /// Write what was built to a file, as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) metadata_file: Option<PathBuf>,
    /// Platform of the image: this machine's
    #[arg(long, value_name = "OS/ARCH")]
    pub(crate) platform: Option<Platform>,
    /// Network of RUN steps [default: the configuration's]
    #[arg(long, value_enum, value_name = "NETWORK")]
    pub(crate) network: Option<Network>,
    /// What steps get.
    #[command(flatten)]
    pub(crate) steps: StepArgs,
    /// How long it may take, and what is remembered of it.
    #[command(flatten)]
    pub(crate) times: TimeArgs,
    /// What docker has and kiln has not.
    #[command(flatten)]
    pub(crate) refused: RefusedArgs,
    /// A server to build on.
    #[command(flatten)]
    pub(crate) server: Server,
    /// State and configuration.
    #[command(flatten)]
    pub(crate) place: Place,
}

/// What of earlier builds is used.
#[derive(Debug, Args)]
pub(crate) struct EarlierArgs {
    /// Tell at the end of each step whether it was in the cache, and why not
    #[arg(long, conflicts_with = "quiet")]
    pub(crate) explain: bool,
    /// Ask registries for every base: images kept here under the same name do not count
    #[arg(long)]
    pub(crate) pull: bool,
    /// Run every step of these stages, whatever is in the cache
    #[arg(long, value_name = "STAGE,…", value_delimiter = ',')]
    pub(crate) no_cache_filter: Vec<String>,
    /// Cache of another machine to read: `type=registry,ref=NAME`, `type=local,src=FOLDER`, or the name of an image that carries one
    #[arg(long = "cache-from", value_name = "CACHE")]
    pub(crate) cache_from: Vec<CacheFromArg>,
    /// Cache to write for other machines: `type=registry,ref=NAME[,mode=max]`, `type=local,dest=FOLDER[,mode=max]`, or `type=inline`
    #[arg(long = "cache-to", value_name = "CACHE")]
    pub(crate) cache_to: Vec<CacheToArg>,
}

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Progress {
    /// `tty` in a terminal, else `plain`
    #[default]
    Auto,
    /// One line per event and line of output
    Plain,
    /// Running steps with their times, redrawn
    Tty,
    /// One JSON document per line
    Rawjson,
}

/// Network of RUN steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Network {
    /// Their own, with a way out but not to this machine
    Default,
    /// None but their own loopback
    None,
    /// This machine's
    Host,
}

/// Arguments of `kiln resolve`.
#[derive(Debug, Args)]
pub(crate) struct ResolveArgs {
    /// Image to look up
    #[arg(value_name = "REF")]
    pub(crate) reference: Reference,
    /// A server to ask.
    #[command(flatten)]
    pub(crate) server: Server,
    /// State and configuration.
    #[command(flatten)]
    pub(crate) place: Place,
}

/// Arguments of `kiln cancel`.
#[derive(Debug, Args)]
pub(crate) struct CancelArgs {
    /// Id of the build, as `kiln ls` shows it
    #[arg(value_name = "ID")]
    pub(crate) build: BuildId,
    /// The server that it runs on.
    #[command(flatten)]
    pub(crate) server: Server,
    /// State and configuration.
    #[command(flatten)]
    pub(crate) place: Place,
}

/// Arguments of `kiln doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// State and configuration.
    #[command(flatten)]
    pub(crate) place: Place,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn build(line: &[&str]) -> BuildArgs {
        let line = ["kiln", "build"].iter().chain(line);
        match Cli::try_parse_from(line).unwrap().command {
            Command::Build(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_command_line_for_docker_buildx_is_understood() {
        let args = build(&[
            "-f",
            "docker/Dockerfile",
            "-t",
            "localhost:5000/app:1",
            "-t",
            "app",
            "--target=run",
            "--build-arg",
            "A=b=c",
            "--label",
            "org.example=x",
            "--no-cache",
            "--progress=plain",
            "--push",
            "-o",
            "type=oci,dest=out.tar",
            "--iidfile",
            "iid",
            "--metadata-file",
            "meta.json",
            "--platform",
            "linux/amd64",
            "--network",
            "none",
            ".",
        ]);
        assert_eq!(args.context, ".");
        assert_eq!(args.tags.len(), 2);
        assert_eq!(args.outputs.len(), 1);
        assert_eq!(args.network, Some(Network::None));
        assert!(args.no_cache && args.push);
    }

    #[test]
    fn nonsense_is_a_usage_error() {
        for line in [
            &["build"][..],
            &["build", "-t", "name/UPPER", "."],
            &["build", "--output", "type=nothing", "."],
            &["build", "--progress", "loud", "."],
            &["build", "--secret", "src=x", "."],
            &["build", "--ulimit", "files=1", "."],
            &["build", "--add-host", "a:host-gateway", "."],
            &["build", "--cgroup-parent", "x", "."],
            &["build", "--allow", "device=/dev/fuse", "."],
            &["serve", "--listen", "nowhere"],
            &["cancel"],
            &["cancel", "../../etc"],
            &["frobnicate"],
        ] {
            let parsed = Cli::try_parse_from(["kiln"].iter().chain(line));
            assert_eq!(parsed.unwrap_err().exit_code(), 2, "{line:?}");
        }
    }
}
