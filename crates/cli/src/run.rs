//! From the command line to one command, and from its outcome to the exit code.

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Command};
use crate::failure::{Exit, OrExit, Outcome};
use crate::{build, cancel, doctor, fsck, history, inspect, serve, storage, subassembly, terminal};

/// Runs the command that was asked for.
pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help goes to standard output and is no error; there is nobody to tell if printing fails.
            let _ = error.print();
            return if error.use_stderr() {
                Exit::Usage.into()
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    match carry_out(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(report) = failure.report() {
                terminal::say(&report);
            }
            failure.exit().into()
        }
    }
}

fn carry_out(command: Command) -> Outcome {
    match command {
        Command::Config => inspect::config(),
        Command::Completions { shell } => inspect::completions(shell),
        Command::Version => inspect::version(),
        Command::Doctor(args) => doctor::run(&args),
        command => {
            // One provider for every client and server in this process; only the first call decides, and this is it.
            let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()
                .or_exit(Exit::Machine)?;
            runtime.block_on(wait_for(command))
        }
    }
}

async fn wait_for(command: Command) -> Outcome {
    match command {
        Command::Build(args) => Box::pin(build::run(*args)).await,
        Command::Serve(args) => Box::pin(serve::run(args)).await,
        Command::Resolve(args) => inspect::resolve(args).await,
        Command::Ls(args) => history::list::ls(args).await,
        Command::History(args) => history::list::history(args).await,
        Command::Inspect(args) => history::one::inspect(args).await,
        Command::Logs(args) => history::logs::logs(args).await,
        Command::Retry(args) => history::retry::retry(args).await,
        Command::Cancel(args) => cancel::run(args).await,
        Command::Du(args) => storage::du(args).await,
        Command::Prune(args) => storage::prune(args).await,
        Command::Fsck(args) => fsck::run(args).await,
        Command::Subassembly(command) => Box::pin(subassembly::run(command)).await,
        Command::Doctor(_) | Command::Config | Command::Completions { .. } | Command::Version => {
            Ok(())
        }
    }
}
