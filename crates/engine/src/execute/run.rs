//! RUN and WORKDIR: a command, or a directory, over what the steps before have left.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use dockerfile::{Op, RunNetwork, RunOp, RunSecurity, Step};

use super::cache::Operation;
use super::export::Directory;
use super::mounts::{self, Attached, Fetched, Inputs};
use super::stage::{Prepared, located};
use super::{Execution, waiting};
use crate::event::{Failure, FailureKind, Stream};
use crate::failure::{chain, dockerfile as dockerfile_failure, failure, platform};
use crate::recorder::{self, Recorder};
use crate::rootfs::overlay::{self, Upper};
use crate::rootfs::root::Root;
use crate::rootfs::user;
use crate::sandbox::{
    self, Confinement, Network, SandboxError, StepCommand, StepExit, StepLimits, UserIds,
};
use crate::spec::{NetworkMode, StepOptions};

/// A disk with less room than that is full.
const FULL_BELOW_BYTES: u64 = 1 << 20;
/// Lines of a failed command's output that its failure repeats.
const TAIL_LINES: usize = 10;
/// Largest `/etc/passwd` that is read.
const PASSWD_MAX_BYTES: u64 = 10 << 20;
/// The host name of steps.
const HOST_NAME: &str = "buildkitsandbox";
/// The build argument that gives them another one.
const HOST_NAME_ARGUMENT: &str = "BUILDKIT_SANDBOX_HOSTNAME";
/// Longest host name.
const HOST_NAME_MAX_BYTES: usize = 64;
/// Where scripts of heredocs are put, in a layer that is never part of the image.
const SCRIPTS: &str = ".kiln";

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

/// Returns the name that steps see for their machine.
fn host_name(execution: &Execution) -> Result<String, Failure> {
    let given = execution.options.build_args.get(HOST_NAME_ARGUMENT);
    let Some(name) = given.filter(|name| !name.is_empty()) else {
        return Ok(HOST_NAME.to_owned());
    };
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    if name.len() > HOST_NAME_MAX_BYTES || !name.split('.').all(is_label) {
        let message = format!("build argument {HOST_NAME_ARGUMENT}: {name:?} is not a host name");
        return Err(failure(FailureKind::Dockerfile, message));
    }
    Ok(name.clone())
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

/// A writable root filesystem: what the steps before have left, and a directory for what changes.
pub(super) struct Prospect {
    pub(super) root: OwnedFd,
    /// What the steps before have left, alone.
    pub(super) view: Root,
    /// Becomes the layer.
    pub(super) upper: PathBuf,
}

/// Mounts `lowers` under a fresh upper directory; `above` adds layers that are seen and never written into the image.
pub(super) fn prospect(
    execution: &Execution,
    mut lowers: Vec<PathBuf>,
    above: impl FnOnce(&Root, &Path) -> Result<Option<PathBuf>, Failure>,
) -> Result<Prospect, Failure> {
    let scratch = execution.scratch()?;
    let fail = |e: &(dyn std::error::Error + 'static)| platform("mount the root filesystem", e);
    if lowers.is_empty() {
        let empty = scratch.join("empty");
        fs::create_dir(&empty).map_err(|e| fail(&e))?;
        fs::set_permissions(&empty, fs::Permissions::from_mode(0o755)).map_err(|e| fail(&e))?;
        lowers.push(empty);
    }
    let view = Root::from_fd(overlay::mount(&lowers, None).map_err(|e| fail(&e))?);
    lowers.extend(above(&view, &scratch)?);
    let upper = Upper::create(Some(view.as_fd()), &scratch.join("step")).map_err(|e| fail(&e))?;
    let root = overlay::mount(&lowers, Some(&upper)).map_err(|e| fail(&e))?;
    Ok(Prospect {
        root,
        view,
        upper: upper.path(),
    })
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

fn command(
    execution: &Execution,
    step: &Step,
    (op, fetched): (&RunOp, &Fetched),
    lowers: Vec<PathBuf>,
) -> Result<(StepCommand, PathBuf), Failure> {
    let (mut attached, mut etc) = (Attached::default(), String::new());
    let prospect = prospect(execution, lowers, |view, scratch| {
        attached = mounts::attach(execution, op, fetched, view)?;
        let (layer, place) = init_layer(view, scratch, op, &attached.places)?;
        etc = place;
        Ok(Some(layer))
    })?;
    let user = user_ids(&prospect.view, &step.user)?;
    let mut env: Vec<(String, String)> = (*step.env).clone();
    for (name, value) in &op.proxy {
        for name in [name.to_ascii_uppercase(), name.to_ascii_lowercase()] {
            if !env.iter().any(|(known, _)| *known == name) {
                env.push((name, value.clone()));
            }
        }
    }
    for (name, value) in attached.env {
        env.retain(|(known, _)| *known != name);
        env.push((name, value));
    }
    complete_env(&mut env, &prospect.view, &user);
    let scripts = |arg: &String| match &op.script {
        Some(script) => arg.replace(&script.path, &format!("/{SCRIPTS}/script")),
        None => arg.clone(),
    };
    let (limits, asked) = (&execution.limits, &execution.options.steps);
    let usual = StepLimits::default();
    let command = StepCommand {
        root: prospect.root,
        args: op.args.iter().map(scripts).collect(),
        env,
        cwd: step.workdir.clone(),
        user,
        network: network(execution, op.network),
        confinement: confinement(op),
        hostname: host_name(execution)?,
        etc,
        extra_hosts: asked
            .extra_hosts
            .iter()
            .map(|(name, address)| (name.clone(), address.to_string()))
            .collect(),
        limits: StepLimits {
            memory_bytes: limits.step_memory_bytes,
            processes: Some(limits.step_pids),
            wall_time: Duration::from_secs(limits.step_time_s),
            idle_time: limits.step_idle_s.map(Duration::from_secs),
            shm_bytes: asked.shm_bytes.unwrap_or(usual.shm_bytes),
            ulimits: asked.ulimits.clone(),
            ..usual
        },
        mounts: attached.mounts,
        held: attached.held,
        stdin: None,
    };
    Ok((command, prospect.upper))
}

/// Makes the layer of what is mounted on, and returns it and where `/etc` is.
fn init_layer(
    view: &Root,
    scratch: &std::path::Path,
    op: &RunOp,
    places: &[sandbox::Place],
) -> Result<(PathBuf, String), Failure> {
    let init = scratch.join("init");
    fs::create_dir(&init).map_err(|e| platform("create the init layer", &e))?;
    let etc = sandbox::prepare_init_layer(view.as_fd(), &init, places)
        .map_err(|e| platform("create the init layer", &e))?;
    if let Some(script) = &op.script {
        let write = || {
            let folder = init.join(SCRIPTS);
            fs::create_dir(&folder)?;
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
            let path = folder.join("script");
            fs::write(&path, &script.content)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
        };
        write().map_err(|e| platform("write the script of a heredoc", &e))?;
    }
    Ok((init, etc))
}

/// Docker gives every command a PATH and a HOME.
fn complete_env(env: &mut Vec<(String, String)>, view: &Root, user: &UserIds) {
    const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let has = |env: &[(String, String)], name: &str| env.iter().any(|(known, _)| known == name);
    if !has(env, "PATH") {
        env.push(("PATH".to_owned(), PATH.to_owned()));
    }
    if !has(env, "HOME") {
        env.push(("HOME".to_owned(), home_of(view, user.uid)));
    }
}

/// Returns the home of a user by the image's own `/etc/passwd`; `/` when it says nothing.
fn home_of(view: &Root, uid: u32) -> String {
    let passwd = view
        .read_file(Path::new("/etc/passwd"), PASSWD_MAX_BYTES)
        .unwrap_or_default();
    let text = String::from_utf8_lossy(&passwd);
    let home = text.lines().find_map(|line| {
        let mut fields = line.split(':').skip(2);
        let is_user = fields.next()?.parse() == Ok(uid);
        let home = fields.nth(2)?;
        (is_user && home.starts_with('/')).then(|| home.to_owned())
    });
    home.unwrap_or_else(|| {
        if uid == 0 {
            "/root".to_owned()
        } else {
            "/".to_owned()
        }
    })
}

/// Returns the numbers of `user[:group]`, by the files of the image.
pub(super) fn user_ids(view: &Root, user: &str) -> Result<UserIds, Failure> {
    let found = user::lookup_user(view, user)
        .map_err(|e| dockerfile_failure(&format!("user {user:?}"), &e))?;
    Ok(UserIds {
        uid: found.uid,
        gid: found.gid,
        groups: found.supplementary,
    })
}

/// Returns what the command is kept from.
pub(super) fn confinement(op: &RunOp) -> Confinement {
    match op.security {
        RunSecurity::Sandbox => Confinement::Sandbox,
        RunSecurity::Insecure => Confinement::Insecure,
    }
}

fn network_mode(execution: &Execution, asked: RunNetwork) -> NetworkMode {
    match asked {
        RunNetwork::Default => execution.options.network,
        RunNetwork::None => NetworkMode::None,
        RunNetwork::Host => NetworkMode::Host,
    }
}

fn network(execution: &Execution, asked: RunNetwork) -> Network {
    match network_mode(execution, asked) {
        NetworkMode::Default => Network::Default,
        NetworkMode::None => Network::Isolated,
        // Whether it may was asked before anything ran, and the sandbox asks again.
        NetworkMode::Host => Network::Host,
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
