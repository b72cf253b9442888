//! `kiln serve`: gives the service its executor, which starts a worker process on this machine for each build.

mod priority;
mod watch;

use std::error::Error;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use engine::chain;
use engine::id::BuildId;
use engine::spec::{BuildSpec, Record};
use engine::turn::Turn;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use service::agents::AgentId;
use service::app::{self, Setup};
use service::environment::Environment;
use service::executor::{Disk, Executor, ExecutorError, Running};
use store::collect::{Collected, Policy};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use worker::{Cause, WorkerCommand, WorkerHandle, WorkerSignals};

use self::watch::{Contacts, Watch};
use crate::args::ServeArgs;
use crate::build::agent;
use crate::build::import::Reader;
use crate::failure::{Exit, Failure, OrExit, Outcome};
use crate::{environment, place, terminal};

/// How often, and after which pauses, a server looks for what workers left of an earlier one.
const SWEEPS_MAX: u32 = 60;
const SWEEP_PAUSE: Duration = Duration::from_millis(500);

/// Serves until SIGTERM or SIGINT.
pub(crate) async fn run(args: ServeArgs) -> Outcome {
    start_log()?;
    let found = place::find(&args.place)?;
    let mut ready = found.ready()?;
    let mut config = found.config;
    config.state = Some(ready.command.state.clone());
    if let Some(listen) = args.listen {
        config.listen = listen;
    }
    let workers = priority::go_before(config.server.niceness);
    ready.command.arguments.extend(workers);
    let owner = ready.command.owner.map(place::store_owner);
    let retries = config.server.retries_of_lost_workers;
    let setup = Setup {
        executor: Arc::new(Workers::new(ready.command, retries)),
        owner,
        config_file: found.config_file,
        environment: Environment::real(),
        client: place::client_options(),
        ambient: environment::buckets(),
    };
    let mut terminate = signal(SignalKind::terminate()).or_exit(Exit::Internal)?;
    let mut interrupt = signal(SignalKind::interrupt()).or_exit(Exit::Internal)?;
    let listener = app::bind(&config).await.or_exit(Exit::Machine)?;
    sweep_for_a_while(config.state.clone());
    if let Ok(address) = listener.local_addr() {
        terminal::say(&format!("listening on {address}"));
    }
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
    };
    app::run(config, setup, listener, shutdown)
        .await
        .or_exit(Exit::Machine)
}

/// Removes what workers leave, in their folders and outside of them, who are on their way out, and whose server was killed. Builds that go on are waited
/// for by whoever adopts them.
fn sweep_for_a_while(state: Option<PathBuf>) {
    let Some(state) = state else {
        return;
    };
    std::thread::spawn(move || {
        worker::tidy(&state);
        for _ in 0..SWEEPS_MAX {
            if worker::sweep(&state) == 0 {
                return;
            }
            std::thread::sleep(SWEEP_PAUSE);
        }
    });
}

/// Our own log: text for a person, JSON for everything else.
fn start_log() -> Outcome {
    let filter = environment::variable("KILN_LOG").unwrap_or_else(|| "info".to_owned());
    let filter = EnvFilter::try_new(&filter).map_err(|error| {
        let error = anyhow::Error::new(error).context(format!("read KILN_LOG={filter:?}"));
        Failure::new(Exit::Usage, error)
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let started = if std::io::stderr().is_terminal() {
        builder.with_ansi(terminal::is_coloured()).try_init()
    } else {
        builder.json().try_init()
    };
    started.map_err(|error| Failure::text(Exit::Internal, format!("start the log: {error}")))
}

type BoxedError = Box<dyn Error + Send + Sync>;

/// Starts workers on this machine.
struct Workers {
    command: WorkerCommand,
    /// How often a build is begun again whose worker was killed.
    retries: u32,
    contacts: Contacts,
}

impl Workers {
    fn new(command: WorkerCommand, retries: u32) -> Self {
        Self {
            command,
            retries,
            contacts: Contacts::default(),
        }
    }

    /// Takes note of a worker and returns what the service waits for. With its spec, which is in no file, a build can be begun again.
    fn running(&self, id: BuildId, handle: WorkerHandle, spec: Option<BuildSpec>) -> Running {
        self.contacts.note(&id, &handle);
        let (folder, waits) = (handle.folder.clone(), handle.waits());
        let watch = Watch {
            id,
            folder: folder.clone(),
            command: self.command.clone(),
            retry: spec
                .filter(|_| self.retries > 0)
                .map(|spec| (spec, self.retries)),
            contacts: self.contacts.clone(),
        };
        Running {
            folder,
            agents: Vec::new(),
            waits,
            ended: watch.until_the_end(handle).boxed(),
        }
    }

    /// Speaks to the worker of a build on a thread that may wait. Nothing happens when it is gone.
    async fn speak(
        &self,
        id: &BuildId,
        speak: impl FnOnce(&WorkerSignals) -> std::io::Result<()> + Send + 'static,
    ) -> Result<(), BoxedError> {
        let Some(signals) = self.contacts.of(id) else {
            return Ok(());
        };
        tokio::task::spawn_blocking(move || speak(&signals)).await??;
        Ok(())
    }

    /// [`worker::prepare`], on a thread that may wait for the disk.
    async fn prepare(&self, record: Record) -> Result<PathBuf, BoxedError> {
        let command = self.command.clone();
        let prepared = tokio::task::spawn_blocking(move || worker::prepare(&command, &record));
        Ok(prepared.await??)
    }

    /// [`worker::launch_in_turn`], on a thread that may wait until the new process has got a processor. Returns the spec too.
    async fn launch(
        &self,
        spec: BuildSpec,
        turn: Turn,
    ) -> Result<(WorkerHandle, BuildSpec), BoxedError> {
        let (command, runtime) = (self.command.clone(), tokio::runtime::Handle::current());
        let launched = tokio::task::spawn_blocking(move || {
            let launched = runtime.block_on(worker::launch_in_turn(&command, &spec, turn));
            launched.map(|handle| (handle, spec))
        });
        Ok(launched.await??)
    }

    /// Puts up a socket for each of `agents` in the build's folder, and says in `spec` where.
    fn listen(
        &self,
        folder: &Path,
        agents: Vec<AgentId>,
        spec: &mut BuildSpec,
    ) -> std::io::Result<Vec<(AgentId, UnixListener)>> {
        let reader = match self.command.owner {
            Some(owner) => Reader::Other(owner.uid, owner.gid),
            None => Reader::Caller,
        };
        let mut listeners = Vec::new();
        for (index, id) in agents.into_iter().enumerate() {
            let (socket, listener) = agent::listen(folder, index, reader)?;
            spec.ssh.insert(id.as_str().to_owned(), socket);
            listeners.push((id, listener));
        }
        Ok(listeners)
    }
}

/// Ends the build in `folder`, for which no worker could be started, as its caller is told; returns why. Also who starts after us finds that end.
async fn not_started(folder: &Path, error: BoxedError) -> BoxedError {
    if let Err(error) = watch::conclude(folder, because(&*error)).await {
        let error = chain(&*error);
        tracing::error!(folder = %folder.display(), error, "a build that was not started could not be concluded");
    }
    error
}

fn because(error: &(dyn Error + Send + Sync + 'static)) -> Cause {
    Cause::NotStarted {
        kind: engine::blame(error),
        message: chain(error),
    }
}

impl Executor for Workers {
    fn start(
        &self,
        record: Record,
        mut spec: BuildSpec,
        agents: Vec<AgentId>,
        turn: Turn,
    ) -> BoxFuture<'_, Result<Running, ExecutorError>> {
        async move {
            let id = record.id.clone();
            let failed = |source: BoxedError| ExecutorError::Start {
                id: id.clone(),
                source,
            };
            let folder = self.prepare(record).await.map_err(failed)?;
            let agents = match self.listen(&folder, agents, &mut spec) {
                Ok(agents) => agents,
                Err(error) => return Err(failed(not_started(&folder, error.into()).await)),
            };
            // Beside each other: nobody is told of the build before both are done.
            let to_keep = folder.clone();
            let durable = tokio::task::spawn_blocking(move || worker::make_durable(&to_keep));
            let (durable, launched) = tokio::join!(durable, self.launch(spec, turn));
            let (handle, spec) = match launched {
                Ok(launched) => launched,
                Err(error) => return Err(failed(not_started(&folder, error).await)),
            };
            let durable = match durable {
                Ok(durable) => durable.map_err(Into::into),
                Err(error) => Err(error.into()),
            };
            let durable: Result<(), BoxedError> = durable;
            if let Err(error) = durable {
                if let Err(error) = handle.withdraw(because(&*error)).await {
                    tracing::error!(%id, error = %chain(&error), "a build that was not accepted could not be concluded");
                }
                return Err(failed(error));
            }
            Ok(Running {
                agents,
                ..self.running(id, handle, Some(spec))
            })
        }
        .boxed()
    }

    fn adopt(&self, id: BuildId) -> BoxFuture<'_, Result<Option<Running>, ExecutorError>> {
        async move {
            let failed = |source: BoxedError| ExecutorError::Adopt {
                id: id.clone(),
                source,
            };
            let found = worker::adopt(&self.command.state, &id).map_err(|e| failed(Box::new(e)))?;
            if let Some(handle) = found {
                return Ok(Some(self.running(id, handle, None)));
            }
            let folder = worker::folder::of(&self.command.state, &id);
            watch::conclude(&folder, Cause::Lost)
                .await
                .map_err(failed)?;
            Ok(None)
        }
        .boxed()
    }

    fn turn(&self, id: BuildId, turn: Turn) -> BoxFuture<'_, Result<(), ExecutorError>> {
        async move {
            let told = self.speak(&id, move |signals| signals.tell(turn)).await;
            told.map_err(|source| ExecutorError::Turn { id, source })
        }
        .boxed()
    }

    fn cancel(&self, id: BuildId) -> BoxFuture<'_, Result<(), ExecutorError>> {
        async move {
            self.contacts.give_up(&id);
            let told = self.speak(&id, WorkerSignals::cancel).await;
            told.map_err(|source| ExecutorError::Cancel { id, source })
        }
        .boxed()
    }

    fn collect(&self, policy: Policy) -> BoxFuture<'_, Result<Collected, ExecutorError>> {
        async move {
            let collected = worker::storage::collect(&self.command, policy).await;
            collected.map_err(|source| ExecutorError::Collect(Box::new(source)))
        }
        .boxed()
    }

    fn disk(&self) -> std::io::Result<Disk> {
        let found = rustix::fs::statvfs(&self.command.state)?;
        Ok(Disk {
            bytes: found.f_blocks * found.f_frsize,
            free_bytes: found.f_bavail * found.f_frsize,
        })
    }

    fn ready(&self) -> BoxFuture<'_, Result<(), ExecutorError>> {
        async move {
            let builds = self.command.state.join(worker::folder::BUILDS);
            let probe = tokio::task::spawn_blocking(move || writable(&builds)).await;
            let problem = match probe {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => format!("the state directory cannot be written to: {error}"),
                Err(error) => format!("the state directory could not be checked: {error}"),
            };
            Err(ExecutorError::NotReady { problem })
        }
        .boxed()
    }
}

fn writable(builds: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(builds)?;
    let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    rustix::fs::access(builds, access)?;
    let free = rustix::fs::statvfs(builds)?;
    match free.f_bavail {
        0 => Err(std::io::ErrorKind::StorageFull.into()),
        _ => Ok(()),
    }
}
