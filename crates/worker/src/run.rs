//! The worker process.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use engine::chain;
use engine::event::{BuiltImage, Event, Failure, FailureKind};
use engine::id::BuildId;
use engine::journal::Writer;
use engine::recorder::{Environment, LogLimits, Recorder};
use engine::redact::Redactor;
use engine::rootfs::remove::remove_tree;
use engine::sandbox::{
    CgroupParent, LauncherImage, Namespaces, NamespacesOptions, NetworkPool, NetworkProgram,
    Permission,
};
use engine::spec::BuildSpec;
use rustix::fs::{Mode, OFlags};
use store::Store;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::folder;
use crate::line::{self, Waited};
use crate::start::{Handover, Scratch};
use crate::userns::{self, UserNsOptions};

/// How long threads may go on with what nobody waits for, when the build has its end.
const LAST_WORK_TIME: std::time::Duration = std::time::Duration::from_secs(1);
/// Largest spec that is read.
const SPEC_MAX_BYTES: u64 = 64 << 20;

/// What `kiln worker` is told on its command line; the rest comes over standard input.
#[derive(Debug, Clone)]
pub struct WorkerArgs {
    /// The state directory.
    pub state: PathBuf,
    /// Which build.
    pub id: BuildId,
    /// The user namespace to enter.
    pub user_namespace: UserNsOptions,
}

/// Carries out one build. Must be called before the process has a second thread.
///
/// Exits with 0 when the build has a terminal event, whatever it says; otherwise whoever waits concludes the build.
pub fn main(args: &WorkerArgs) -> ExitCode {
    match try_main(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error is worker.log: the last resort of a process that has no journal.
            let _nowhere_else = writeln!(io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

fn try_main(args: &WorkerArgs) -> Result<(), String> {
    // Alone in a session: a signal to the starter's terminal is not for us.
    let _already_leader = rustix::process::setsid();
    let mut text = Vec::new();
    let read = io::stdin()
        .lock()
        .take(SPEC_MAX_BYTES)
        .read_to_end(&mut text);
    read.map_err(|e| format!("read the spec: {e}"))?;
    let handover: Handover<'_> =
        serde_json::from_slice(&text).map_err(|e| format!("decode the spec: {e}"))?;
    text.fill(0);
    let scratch = handover.scratch;
    let (spec, cgroups) = (handover.spec.into_owned(), handover.cgroups);
    if spec.id != args.id {
        return Err(format!("spec is for build {}, not {}", spec.id, args.id));
    }
    let (spec, _lent) = borrowed(localised(spec, &args.state))?;
    // From here on everything is reached from inside the state directory: the folders above it may be closed to us once the
    // ids have changed.
    std::env::set_current_dir(&args.state)
        .map_err(|e| format!("enter {}: {e}", args.state.display()))?;
    if let Some(cgroups) = &cgroups {
        cgroups.join().map_err(|e| chain(&e))?;
    }
    let resolv_conf = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let entered = userns::enter(&args.user_namespace).map_err(|e| chain(&e))?;
    let state = Path::new(".");
    let folder = folder::of(state, &args.id);
    let held = folder::try_lock(&folder).map_err(|e| format!("lock the build: {e}"))?;
    let _held = held.ok_or("another worker carries out this build")?;
    folder::write_pid(&folder).map_err(|e| format!("write the lock: {e}"))?;
    if scratch == Scratch::Left {
        empty_again(&folder)?;
    }
    let sandbox_options = SandboxOptions {
        image: entered.image,
        host_network: spec.limits.allow_host_network.into(),
        insecure: spec.limits.allow_insecure.into(),
        resolv_conf,
        cgroups,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("start the runtime: {e}"))?;
    let outcome = runtime.block_on(carry_out(state, &folder, spec, sandbox_options));
    // What is still at work, in threads that cannot be told, ends with the process.
    runtime.shutdown_timeout(LAST_WORK_TIME);
    outcome
}

/// Removes what another worker has left, whose user namespace was like ours.
fn empty_again(folder: &Path) -> Result<(), String> {
    for name in [folder::WORK, folder::OUTPUT] {
        let path = folder.join(name);
        remove_tree(&path).map_err(|e| format!("remove what is left in {name}: {}", chain(&e)))?;
        let made = fs::DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|e| format!("make {name} again: {e}"))?;
    }
    Ok(())
}

async fn carry_out(
    state: &Path,
    folder: &Path,
    spec: BuildSpec,
    options: SandboxOptions,
) -> Result<(), String> {
    let writer = Writer::resume(folder).map_err(|e| chain(&e))?;
    let redactor = Redactor::new(spec.secrets());
    let recorder = Recorder::new(
        writer,
        redactor,
        LogLimits::of(&spec.limits),
        Environment::real(),
    );
    let cancel = CancellationToken::new();
    let mut terminate =
        signal(SignalKind::terminate()).map_err(|e| format!("listen for signals: {e}"))?;
    let wall_time = spec.limits.wall_time();
    let work = folder.join(folder::WORK);
    let sandbox = Arc::new(options.sandbox());
    let rig = Job {
        state: state.to_owned(),
        folder: folder.to_owned(),
        sandbox: Arc::clone(&sandbox),
        recorder: recorder.clone(),
        cancel: cancel.clone(),
    };
    let waited = line::wait((state, folder), &spec, &recorder, &mut terminate).await?;
    let end = match waited {
        Waited::Turn => rig.carry_through(spec, wall_time, &mut terminate).await,
        Waited::Cancelled => Event::Cancelled,
    };
    let end = match (recorder.take_error(), end) {
        (_, Event::Cancelled) => Event::Cancelled,
        // Whatever else went wrong: what is told of it has a hole.
        (Some(error), _) => failed(
            engine::blame(&error),
            format!("the log could not be written: {}", chain(&error)),
        ),
        (None, end) => end,
    };
    sandbox.shut_down().await;
    recorder.event(&end);
    let told = recorder.take_error();
    // Nobody waits for this but the next build: the end is told, and this one's turn is over when we are gone.
    let removed = tokio::task::spawn_blocking(move || remove_tree(&work)).await;
    match (told, removed) {
        (Some(error), _) => Err(chain(&error)),
        (None, Ok(Err(error))) => Err(format!(
            "scratch files could not be removed: {}",
            chain(&error)
        )),
        (None, _) => Ok(()),
    }
}

/// Gives a cancelled build a moment to stop its processes before the worker goes.
async fn wind_down(
    build: std::pin::Pin<&mut tokio::task::JoinHandle<Result<BuiltImage, Failure>>>,
) {
    let _stopped = tokio::time::timeout(std::time::Duration::from_secs(10), build).await;
}

/// What the sandbox is made of, found before the process had given up its ids.
struct SandboxOptions {
    image: LauncherImage,
    host_network: Permission,
    insecure: Permission,
    resolv_conf: String,
    cgroups: Option<CgroupParent>,
}

impl SandboxOptions {
    fn sandbox(self) -> Namespaces {
        Namespaces::new(NamespacesOptions {
            image: self.image,
            // Without a program for it, a step that needs the network says so.
            network: NetworkProgram::find().ok().map(NetworkPool::new),
            host_network: self.host_network,
            insecure: self.insecure,
            cgroups: self.cgroups,
            host_resolv_conf: self.resolv_conf,
        })
    }
}

/// One build, and what it works with.
struct Job {
    state: PathBuf,
    folder: PathBuf,
    sandbox: Arc<Namespaces>,
    recorder: Recorder,
    cancel: CancellationToken,
}

impl Job {
    /// Carries the build out, for as long as it may take and until it is told to end; returns how it ended.
    async fn carry_through(
        self,
        spec: BuildSpec,
        wall_time: std::time::Duration,
        terminate: &mut Signal,
    ) -> Event {
        let (cancel, recorder) = (self.cancel.clone(), self.recorder.clone());
        let build = tokio::spawn(self.build(spec));
        tokio::pin!(build);
        tokio::select! {
            joined = &mut build => match joined {
                Ok(Ok(image)) => Event::Succeeded { image },
                Ok(Err(failure)) => Event::Failed { failure },
                Err(error) => failed(FailureKind::Platform, format!("internal error: {error}")),
            },
            () = tokio::time::sleep(wall_time) => {
                cancel.cancel();
                wind_down(build).await;
                failed(FailureKind::Timeout, format!("timed out after {}", humane(wall_time.as_secs())))
            }
            _ = terminate.recv() => {
                cancel.cancel();
                wind_down(build).await;
                Event::Cancelled
            }
            () = recorder.broken() => {
                cancel.cancel();
                wind_down(build).await;
                failed(FailureKind::Platform, "the log could not be written".to_owned())
            }
        }
    }

    async fn build(self, spec: BuildSpec) -> Result<BuiltImage, Failure> {
        let opened = Store::open(&self.state.join(folder::STORE), None);
        let store = opened.map_err(|e| Failure {
            kind: engine::blame(&e),
            message: chain(&e),
            step: None,
            exit_code: None,
        })?;
        // What this build finds in the store stays there until it has ended.
        store.lease().map_err(|e| Failure {
            kind: engine::blame(&e),
            message: format!("hold what the build needs: {e}"),
            step: None,
            exit_code: None,
        })?;
        let rig = engine::Rig {
            store,
            sandbox: self.sandbox,
            recorder: self.recorder,
            folder: self.folder,
            cancel: self.cancel,
        };
        engine::build(&spec, &rig).await
    }
}

/// Names paths below the state directory from there, where the worker will be.
fn localised(mut spec: BuildSpec, state: &Path) -> BuildSpec {
    for path in spec.local_paths_mut() {
        if let Ok(below) = path.strip_prefix(state) {
            *path = Path::new(".").join(below);
        }
    }
    spec
}

/// Opens the folders that the starter lends ([`userns::lend`]), as long as we are who may; what is returned beside the spec keeps them open.
fn borrowed(mut spec: BuildSpec) -> Result<(BuildSpec, Vec<OwnedFd>), String> {
    let mut lent = Vec::new();
    for path in spec.local_paths_mut() {
        if !path.starts_with("/proc") {
            continue;
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(&*path, flags, Mode::empty())
            .map_err(|e| format!("open the folder that is lent at {}: {e}", path.display()))?;
        *path = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()));
        lent.push(folder);
    }
    Ok((spec, lent))
}

fn failed(kind: FailureKind, message: String) -> Event {
    Event::Failed {
        failure: Failure {
            kind,
            message,
            step: None,
            exit_code: None,
        },
    }
}

fn humane(seconds: u64) -> String {
    match (seconds / 60, seconds % 60) {
        (0, seconds) => format!("{seconds} s"),
        (minutes, 0) => format!("{minutes} min"),
        (minutes, seconds) => format!("{minutes} min {seconds} s"),
    }
}
