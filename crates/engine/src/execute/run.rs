//! RUN and WORKDIR: a command ([`super::command`]), or a directory, over what the steps before have left ([`super::prospect`]).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use dockerfile::{Op, RunOp, RunSecurity, Step};

use super::cache::Operation;
use super::command::{HOST_NAME_ARGUMENT, command, network, network_mode, user_ids};
use super::export::Directory;
use super::mounts::{self, Fetched, Inputs};
use super::prospect::prospect;
use super::stage::{Prepared, located};
use super::{Execution, waiting};
use crate::event::{Failure, FailureKind, Stream};
use crate::failure::{chain, dockerfile as dockerfile_failure, failure, platform};
use crate::recorder::{self, Recorder};
use crate::rootfs::root::Root;
use crate::sandbox::{self, SandboxError, StepExit};
use crate::spec::StepOptions;

/// A disk with less room than that is full.
const FULL_BELOW_BYTES: u64 = 1 << 20;
/// Lines of a failed command's output that its failure repeats.
const TAIL_LINES: usize = 10;

/// Returns what decides the result of a RUN.
pub(super) fn operation(
    execution: &Execution,
    step: &Step,
    op: &RunOp,
    inputs: Option<&Inputs>,
) -> Operation {
    let mut settings = place(step);
    if let Some(name) = execution.options.build_args.get(HOST_NAME_ARGUMENT) {
        settings.insert("the host name".to_owned(), name.clone());
    }
    let network = network_mode(execution, op.network);
    settings.insert("the network".to_owned(), format!("{network:?}"));
    if op.security == RunSecurity::Insecure {
        settings.insert("the security".to_owned(), "insecure".to_owned());
    }
    if !op.mounts.is_empty() {
        let mounts: Vec<String> = op.mounts.iter().map(mounts::describe).collect();
        settings.insert("the mounts".to_owned(), format!("{mounts:?}"));
    }
    settings.extend(options(&execution.options.steps));
    if let Some(script) = &op.script {
        settings.insert("the script".to_owned(), script.content.clone());
    }
    Operation {
        instruction: format!("RUN {}", serde_json::json!(op.args)),
        variables: step.env.iter().cloned().collect(),
        settings,
        files: inputs
            .map(|inputs| inputs.named.clone())
            .unwrap_or_default(),
        many: Arc::default(),
    }
}

/// Returns what counts of the options of all steps: of hosts their names and not where they are, as with `BuildKit`.
fn options(options: &StepOptions) -> Vec<(String, String)> {
    let mut settings = Vec::new();
    let mut add = |name: &str, value: String| settings.push((name.to_owned(), value));
    if !options.extra_hosts.is_empty() {
        let hosts = options.extra_hosts.iter().map(|(name, _)| name.as_str());
        add("the added hosts", hosts.collect::<Vec<_>>().join(" "));
    }
    if !options.ulimits.is_empty() {
        add("the limits", format!("{:?}", options.ulimits));
    }
    if let Some(size) = options.shm_bytes {
        add("the size of /dev/shm", size.to_string());
    }
    settings
}

/// Returns what decides the result of a WORKDIR.
pub(super) fn workdir_operation(step: &Step) -> Operation {
    let path = match &step.op {
        Op::Workdir { path } => path.as_str(),
        Op::Run(_) | Op::Copy(_) => "",
    };
    Operation {
        instruction: format!("WORKDIR {path}"),
        variables: BTreeMap::new(),
        settings: BTreeMap::from([("the user".to_owned(), step.user.clone())]),
        files: Vec::new(),
        many: Arc::default(),
    }
}

fn place(step: &Step) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("the user".to_owned(), step.user.clone()),
        ("the working directory".to_owned(), step.workdir.clone()),
    ])
}

/// The vertex of a step that begins when it runs, or with what is said about its waiting.
#[derive(Clone)]
struct Beginning {
    recorder: Recorder,
    name: String,
    reason: String,
    vertex: Arc<OnceLock<recorder::Step>>,
}

impl Beginning {
    fn new(execution: &Execution, name: &str, reason: String) -> Self {
        Self {
            recorder: execution.recorder.clone(),
            name: name.to_owned(),
            reason,
            vertex: Arc::default(),
        }
    }

    fn begin(&self) -> recorder::Step {
        let begin = || self.recorder.begin(&self.name, Some(self.reason.clone()));
        self.vertex.get_or_init(begin).clone()
    }

    fn begun(&self) -> Option<recorder::Step> {
        self.vertex.get().cloned()
    }

    fn waits(&self) -> mounts::Waits {
        let this = self.clone();
        Arc::new(move |line| this.begin().say(line))
    }
}

/// Runs a command.
pub(super) async fn run(
    execution: &Arc<Execution>,
    prepared: &Prepared<'_>,
    (op, inputs): (&RunOp, Option<&Inputs>),
    reason: String,
) -> Result<Directory, Failure> {
    // What is pulled is asked for first: it takes longer than making a network.
    let expecting = async { execution.sandbox.expect(network(execution, op.network)) };
    let lowers = tokio::join!(execution.depot.directories(prepared.parents), expecting).0?;
    let beginning = Beginning::new(execution, &prepared.name, reason);
    // Before the slot: who waits for a cache mount does not keep others from running, one of whom may hold it.
    let fetched = match inputs {
        Some(inputs) => mounts::fetch(execution, op, inputs, beginning.waits()).await,
        None => Ok(Fetched::default()),
    };
    let fetched = match (fetched, beginning.begun()) {
        (Ok(fetched), _) => Arc::new(fetched),
        (Err(failure), None) => return Err(located(execution, prepared.step, failure)),
        (Err(failure), Some(vertex)) => {
            return Err(fail_step(execution, prepared.step, vertex, failure));
        }
    };
    let _turn = waiting::turn(execution, prepared).await?;
    let vertex = beginning.begin();
    let (shared, step, run) = (Arc::clone(execution), prepared.step.clone(), op.clone());
    let mounted = Arc::clone(&fetched);
    let ready =
        tokio::task::spawn_blocking(move || command(&shared, &step, (&run, &mounted), lowers));
    let ready = ready.await;
    let ready = ready.unwrap_or_else(|e| Err(platform("prepare a step", &e)));
    let (command, upper) = match ready {
        Ok(ready) => ready,
        Err(failure) => return Err(fail_step(execution, prepared.step, vertex, failure)),
    };
    let sink = vertex.clone();
    let output = Arc::new(move |stream: sandbox::Stream, bytes: &[u8]| {
        let stream = match stream {
            sandbox::Stream::Stdout => Stream::Stdout,
            sandbox::Stream::Stderr => Stream::Stderr,
        };
        sink.output(stream, bytes);
    });
    let exit = execution
        .sandbox
        .run(command, output, execution.cancel.clone())
        .await;
    // Locks and sockets, kept until no process of the step is alive.
    drop(fetched);
    let id = vertex.id;
    let verdict = verdict(execution, exit).map_err(|failure| disk_is_full(&upper, failure));
    match verdict {
        Ok(()) => {
            vertex.finish();
            Ok(Directory {
                path: upper,
                step: id,
            })
        }
        Err(failure) => Err(fail_step(execution, prepared.step, vertex, failure)),
    }
}

fn verdict(execution: &Execution, exit: Result<StepExit, SandboxError>) -> Result<(), Failure> {
    let with_code = |kind, message: String, code| Failure {
        exit_code: code,
        ..failure(kind, message)
    };
    match exit {
        Ok(StepExit::Code(0)) => Ok(()),
        Ok(StepExit::Code(code)) => Err(with_code(
            FailureKind::Dockerfile,
            format!("exit code: {code}"),
            Some(code),
        )),
        Ok(StepExit::Signal(signal)) => Err(with_code(
            FailureKind::Dockerfile,
            format!("killed by signal {signal}"),
            Some(128 + signal),
        )),
        Ok(StepExit::OutOfMemory) => Err(with_code(
            FailureKind::OutOfMemory,
            "it ran out of memory".to_owned(),
            Some(137),
        )),
        Ok(StepExit::TimedOut) => Err(failure(
            FailureKind::Timeout,
            format!("timed out after {} s", execution.limits.step_time_s),
        )),
        Ok(StepExit::Silent) => Err(failure(
            FailureKind::Timeout,
            format!(
                "timed out: it wrote nothing for {} s",
                execution.limits.step_idle_s.unwrap_or_default()
            ),
        )),
        Err(error @ SandboxError::MountPoint { .. }) => {
            Err(failure(FailureKind::Dockerfile, chain(&error)))
        }
        Err(error) => Err(failure(FailureKind::Platform, chain(&error))),
    }
}

/// Says so when a command failed while the disk was full that it writes to: hardly any says it in a way that could be understood.
fn disk_is_full(upper: &Path, mut failure: Failure) -> Failure {
    let is_full = rustix::fs::statvfs(upper).is_ok_and(|disk| {
        let free_bytes = disk.f_bavail.saturating_mul(disk.f_frsize);
        free_bytes < FULL_BELOW_BYTES || (disk.f_files > 0 && disk.f_favail == 0)
    });
    if is_full && failure.kind == FailureKind::Dockerfile && failure.exit_code.is_some() {
        failure.kind = FailureKind::OutOfDisk;
        failure.message.push_str(": the disk of builds is full");
    }
    failure
}

/// Ends a vertex with `failure`, and completes it: which instruction, at which line, and what it said last.
pub(super) fn fail_step(
    execution: &Execution,
    step: &Step,
    vertex: recorder::Step,
    failure: Failure,
) -> Failure {
    let id = vertex.id;
    let tail = vertex.fail(&failure.message);
    if !failure.kind.is_users() {
        return Failure {
            step: Some(id),
            ..failure
        };
    }
    let mut message = execution.dockerfile.excerpt(
        &step.span,
        &format!(
            "{} did not complete successfully: {}",
            step.text, failure.message
        ),
    );
    let tail = String::from_utf8_lossy(&tail);
    let lines: Vec<&str> = tail.lines().collect();
    let last = lines
        .get(lines.len().saturating_sub(TAIL_LINES)..)
        .unwrap_or_default();
    if !last.is_empty() {
        message.push_str("\nlast output:\n");
        for line in last {
            message.push_str("  ");
            message.push_str(line);
            message.push('\n');
        }
    }
    Failure {
        step: Some(id),
        message: message.trim_end().to_owned(),
        ..failure
    }
}

/// Creates the directory of a WORKDIR.
pub(super) async fn workdir(
    execution: &Arc<Execution>,
    prepared: &Prepared<'_>,
    path: &str,
    reason: String,
) -> Result<Directory, Failure> {
    let lowers = execution.depot.directories(prepared.parents).await?;
    let vertex = execution.recorder.begin(&prepared.name, Some(reason));
    let (shared, path, user) = (
        Arc::clone(execution),
        path.to_owned(),
        prepared.step.user.clone(),
    );
    let made = tokio::task::spawn_blocking(move || {
        let prospect = prospect(&shared, lowers, |_, _| Ok(None))?;
        let user = user_ids(&prospect.view, &user)?;
        let root = Root::from_fd(prospect.root);
        root.create_dir_all(Path::new(&path), 0o755, (user.uid, user.gid))
            .map_err(|e| dockerfile_failure(&format!("create {path}"), &e))?;
        Ok(prospect.upper)
    });
    match made
        .await
        .unwrap_or_else(|e| Err(platform("create a directory", &e)))
    {
        Ok(upper) => {
            let step = vertex.id;
            vertex.finish();
            Ok(Directory { path: upper, step })
        }
        Err(failure) => {
            vertex.fail(&failure.message);
            Err(located(execution, prepared.step, failure))
        }
    }
}
