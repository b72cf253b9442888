//! Looking after the store as whom everything in it belongs to: a process of its own that lists, or collects, and ends.
//!
//! It reads a job from its standard input and writes an answer to its standard output, both as JSON. Its standard error says why
//! there is none.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};

use engine::chain;
use serde::{Deserialize, Serialize};
use store::Store;
use store::check::{Checking, Report};
use store::collect::{Collected, Policy, Usage};
use tokio::io::AsyncWriteExt;

use crate::folder;
use crate::start::WorkerCommand;
use crate::userns::{self, UserNsOptions};

/// The argument that makes a worker process one of these.
pub const ARGUMENT: &str = "--look-after-store";
/// Largest job that is read.
const JOB_MAX_BYTES: u64 = 1 << 20;

/// What is to be done.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Job {
    /// Say what is there.
    List,
    /// Remove what the policy says.
    Collect(Policy),
    /// Say what is wrong.
    Check(Checking),
}

/// What came of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Listed(Usage),
    Collected(Collected),
    Checked(Report),
}

/// What the process is told on its command line.
#[derive(Debug, Clone)]
pub struct StorageArgs {
    /// The state directory.
    pub state: PathBuf,
    /// The user namespace to enter.
    pub user_namespace: UserNsOptions,
}

/// Tells why the store was not looked after.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The process could not be started.
    #[error("start {}", program.display())]
    Spawn {
        /// Which program.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The process could not be talked to.
    #[error("talk to the process that looks after the store")]
    Talk(#[source] io::Error),
    /// It failed.
    #[error("{0}")]
    Failed(String),
    /// It said something else.
    #[error("understand what the process that looks after the store says")]
    Answer(#[source] serde_json::Error),
}

/// Carries out one job. Must be called before the process has a second thread.
pub fn main(args: &StorageArgs) -> ExitCode {
    match try_main(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // There is nobody else to tell.
            let _nowhere_else = writeln!(io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

fn try_main(args: &StorageArgs) -> Result<(), String> {
    let mut text = Vec::new();
    let read = io::stdin()
        .lock()
        .take(JOB_MAX_BYTES)
        .read_to_end(&mut text);
    read.map_err(|e| format!("read what to do: {e}"))?;
    let job: Job = serde_json::from_slice(&text).map_err(|e| format!("read what to do: {e}"))?;
    // The folders above it may be closed to us once the ids have changed.
    std::env::set_current_dir(&args.state)
        .map_err(|e| format!("enter {}: {e}", args.state.display()))?;
    userns::enter(&args.user_namespace).map_err(|e| chain(&e))?;
    let store = Store::open(Path::new(folder::STORE), None).map_err(|e| chain(&e))?;
    let answer = match job {
        Job::List => Answer::Listed(store.usage(engine::NAMED_RECORDS).map_err(|e| chain(&e))?),
        Job::Collect(policy) => {
            let collected = store.collect(&policy, engine::NAMED_RECORDS);
            let collected = collected.map_err(|e| chain(&e))?;
            // What stays is worth keeping over a crash of the machine.
            store.sync_snapshots().map_err(|e| chain(&e))?;
            Answer::Collected(collected)
        }
        Job::Check(how) => {
            let report = store.check(how, engine::NAMED_RECORDS);
            Answer::Checked(report.map_err(|e| chain(&e))?)
        }
    };
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, &answer).map_err(|e| format!("answer: {e}"))?;
    out.flush().map_err(|e| format!("answer: {e}"))
}

/// Returns everything that is in the store of `command`.
///
/// # Errors
/// See [`StorageError`].
pub async fn list(command: &WorkerCommand) -> Result<Usage, StorageError> {
    match ask(command, &Job::List).await? {
        Answer::Listed(usage) => Ok(usage),
        _ => Err(StorageError::Failed("it did something else".to_owned())),
    }
}

/// Removes what `policy` says from the store of `command`.
///
/// # Errors
/// See [`StorageError`].
pub async fn collect(command: &WorkerCommand, policy: Policy) -> Result<Collected, StorageError> {
    match ask(command, &Job::Collect(policy)).await? {
        Answer::Collected(collected) => Ok(collected),
        _ => Err(StorageError::Failed("it did something else".to_owned())),
    }
}

/// Checks the store of `command`.
///
/// # Errors
/// See [`StorageError`].
pub(crate) async fn check(command: &WorkerCommand, how: Checking) -> Result<Report, StorageError> {
    match ask(command, &Job::Check(how)).await? {
        Answer::Checked(report) => Ok(report),
        _ => Err(StorageError::Failed("it did something else".to_owned())),
    }
}

/// Has the store of `command` collected by a process that nobody waits for.
///
/// # Errors
/// See [`StorageError`].
pub async fn collect_aside(command: &WorkerCommand, policy: Policy) -> Result<(), StorageError> {
    let mut child = spawn(command, Stdio::null(), Stdio::null())?;
    tell(&mut child, &Job::Collect(policy)).await
}

async fn ask(command: &WorkerCommand, job: &Job) -> Result<Answer, StorageError> {
    let mut child = spawn(command, Stdio::piped(), Stdio::piped())?;
    tell(&mut child, job).await?;
    let output = child.wait_with_output().await.map_err(StorageError::Talk)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let text = match said.trim() {
            "" => format!("it ended with {}", output.status),
            said => said.to_owned(),
        };
        return Err(StorageError::Failed(text));
    }
    serde_json::from_slice(&output.stdout).map_err(StorageError::Answer)
}

fn spawn(
    command: &WorkerCommand,
    stdout: Stdio,
    stderr: Stdio,
) -> Result<tokio::process::Child, StorageError> {
    tokio::process::Command::new(&command.program)
        .arg("worker")
        .arg(ARGUMENT)
        .arg(&command.state)
        .args(&command.arguments)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(stdout)
        .stderr(stderr)
        // Whoever collects holds a lock that goes with it, and leaves nothing half done: nothing is gained by ending it.
        .kill_on_drop(false)
        .process_group(0)
        .spawn()
        .map_err(|source| StorageError::Spawn {
            program: command.program.clone(),
            source,
        })
}

async fn tell(child: &mut tokio::process::Child, job: &Job) -> Result<(), StorageError> {
    let text = serde_json::to_vec(job).map_err(StorageError::Answer)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(&text).await.map_err(StorageError::Talk)?;
        stdin.shutdown().await.map_err(StorageError::Talk)?;
    }
    Ok(())
}
