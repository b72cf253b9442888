//! A real server on a port of its own, an executor that does what the test says, and clients.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::builder as wire;
use api::builder::image_builder_client::ImageBuilderClient;
use api::contentservice as content;
use api::kiln::v1::kiln_client::KilnClient;
use engine::event::{BuiltImage, Event, Failure, FailureKind, Phase, StepId, Stream};
use engine::id::BuildId;
use engine::journal::{Body, Record as JournalRecord, Writer};
use engine::spec::{BuildSpec, Output, Record};
use engine::turn::Turn;
use futures_util::future::BoxFuture;
use oci::{Digest, Reference};
use registry::client::Options as ClientOptions;
use service::agents::AgentId;
use service::app::{RunError, Setup};
use service::config::Config;
use service::environment::Environment;
use service::executor::{Disk, Executor, ExecutorError, Running};
use store::Store;
use store::collect::{Collected, Policy};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

/// Long enough for anything that is not broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("it took too long")
}

/// Starts "workers" that do nothing by themselves. Outlives servers, as workers do.
#[derive(Clone)]
pub(crate) struct Scripted {
    state: PathBuf,
    started: mpsc::UnboundedSender<Arc<Worker>>,
    alive: Arc<Mutex<HashMap<BuildId, Arc<Worker>>>>,
    refuses: Arc<Mutex<HashSet<&'static str>>>,
    /// How much is free on the disk, and how much more after a collection.
    pub(crate) free_bytes: Arc<Mutex<u64>>,
    pub(crate) freed_bytes: Arc<Mutex<u64>>,
    pub(crate) collections: Arc<Mutex<Vec<Policy>>>,
}

/// A build that the test carries out.
pub(crate) struct Worker {
    pub(crate) folder: PathBuf,
    pub(crate) record: Record,
    pub(crate) spec: Option<BuildSpec>,
    writer: Mutex<Writer>,
    gone: CancellationToken,
    turn: Mutex<Turn>,
}

impl Worker {
    fn told(&self, turn: Turn) {
        if let Turn::After(ahead) = turn {
            self.event(Event::Queued { ahead });
        }
    }

    pub(crate) fn event(&self, event: Event) {
        self.append(Body::Event(event));
    }

    pub(crate) fn phase(&self, phase: Phase) {
        self.event(Event::Phase { phase });
    }

    pub(crate) fn output(&self, bytes: &[u8]) {
        self.append(Body::Output {
            step: StepId(1),
            stream: Stream::Stdout,
            bytes: bytes.to_vec(),
        });
    }

    fn append(&self, body: Body) {
        let at_ms = (Environment::real().now_ms)();
        let record = JournalRecord { at_ms, body };
        self.writer.lock().unwrap().append(&record).unwrap();
    }

    /// Ends the build well, with an image that stands under its names in the embedded registry.
    pub(crate) fn succeed(&self, server: &Server) -> Digest {
        let bytes = manifest(self.record.id.as_str());
        for output in &self.spec.as_ref().unwrap().outputs {
            let Output::Publish { reference } = output else {
                panic!("the service publishes only");
            };
            put(&server.store, reference, &bytes);
        }
        let image = BuiltImage {
            digest: Digest::sha256(&bytes),
            config_digest: Digest::sha256(b"config"),
            references: Vec::new(),
            outputs: Vec::new(),
            n_run: 1,
            n_cached: 0,
        };
        let digest = image.digest.clone();
        self.event(Event::Succeeded { image });
        self.gone.cancel();
        digest
    }

    pub(crate) fn fail(&self, kind: FailureKind, message: &str) {
        let failure = Failure {
            kind,
            message: message.to_owned(),
            step: None,
            exit_code: None,
        };
        self.event(Event::Failed { failure });
        self.gone.cancel();
    }

    /// Dies without a word.
    pub(crate) fn die(&self) {
        self.gone.cancel();
    }

    fn running(self: &Arc<Self>) -> Running {
        let worker = Arc::clone(self);
        Running {
            folder: self.folder.clone(),
            agents: Vec::new(),
            waits: *self.turn.lock().unwrap() != Turn::Now,
            ended: Box::pin(async move { worker.gone.cancelled().await }),
        }
    }
}

impl Scripted {
    fn new(state: &Path) -> (Self, mpsc::UnboundedReceiver<Arc<Worker>>) {
        let (started, workers) = mpsc::unbounded_channel();
        let scripted = Self {
            state: state.to_owned(),
            started,
            alive: Arc::default(),
            refuses: Arc::default(),
            free_bytes: Arc::new(Mutex::new(1 << 39)),
            freed_bytes: Arc::default(),
            collections: Arc::default(),
        };
        (scripted, workers)
    }

    /// From now on, nothing can be started, and readiness says so.
    pub(crate) fn refuse(&self) {
        self.refuses.lock().unwrap().insert("start");
    }

    fn folder_of(&self, record: &Record) -> PathBuf {
        let folder = self.state.join("builds").join(record.id.as_str());
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn create(&self, record: Record, spec: Option<BuildSpec>, turn: Turn) -> Arc<Worker> {
        let folder = self.folder_of(&record);
        let text = serde_json::to_vec(&record).unwrap();
        std::fs::write(folder.join("record.json"), text).unwrap();
        let worker = Arc::new(Worker {
            writer: Mutex::new(Writer::create(&folder).unwrap()),
            folder,
            record,
            spec,
            gone: CancellationToken::new(),
            turn: Mutex::new(turn),
        });
        worker.told(turn);
        let mut alive = self.alive.lock().unwrap();
        alive.insert(worker.record.id.clone(), Arc::clone(&worker));
        worker
    }
}

impl Executor for Scripted {
    fn start(
        &self,
        record: Record,
        mut spec: BuildSpec,
        agents: Vec<AgentId>,
        turn: Turn,
    ) -> BoxFuture<'_, Result<Running, ExecutorError>> {
        Box::pin(async move {
            if self.refuses.lock().unwrap().contains("start") {
                return Err(ExecutorError::Start {
                    id: record.id,
                    source: "no room for another process".into(),
                });
            }
            assert_eq!(record.id, spec.id);
            let folder = self.folder_of(&record);
            let mut listeners = Vec::new();
            for id in agents {
                let socket = folder.join(id.as_str());
                listeners.push((id.clone(), UnixListener::bind(&socket).unwrap()));
                spec.ssh.insert(id.as_str().to_owned(), socket);
            }
            let worker = self.create(record, Some(spec), turn);
            let running = Running {
                agents: listeners,
                ..worker.running()
            };
            if turn == Turn::Now {
                self.started.send(worker).unwrap();
            }
            Ok(running)
        })
    }

    fn turn(&self, id: BuildId, turn: Turn) -> BoxFuture<'_, Result<(), ExecutorError>> {
        Box::pin(async move {
            let worker = self.alive.lock().unwrap().get(&id).cloned();
            let Some(worker) = worker.filter(|worker| !worker.gone.is_cancelled()) else {
                return Ok(());
            };
            {
                let mut last = worker.turn.lock().unwrap();
                if *last == Turn::Now {
                    return Ok(());
                }
                *last = turn;
            }
            worker.told(turn);
            if turn == Turn::Now {
                self.started.send(worker).unwrap();
            }
            Ok(())
        })
    }

    fn disk(&self) -> std::io::Result<Disk> {
        Ok(Disk {
            bytes: 1 << 40,
            free_bytes: *self.free_bytes.lock().unwrap(),
        })
    }

    fn adopt(&self, id: BuildId) -> BoxFuture<'_, Result<Option<Running>, ExecutorError>> {
        Box::pin(async move {
            let worker = self.alive.lock().unwrap().get(&id).cloned();
            match worker {
                Some(worker) if !worker.gone.is_cancelled() => Ok(Some(worker.running())),
                Some(worker) => {
                    worker.fail(FailureKind::WorkerLost, "the worker was lost");
                    Ok(None)
                }
                None => Ok(None),
            }
        })
    }

    fn cancel(&self, id: BuildId) -> BoxFuture<'_, Result<(), ExecutorError>> {
        Box::pin(async move {
            let worker = self.alive.lock().unwrap().get(&id).cloned();
            if let Some(worker) = worker {
                worker.event(Event::Cancelled);
                worker.die();
            }
            Ok(())
        })
    }

    fn collect(&self, policy: Policy) -> BoxFuture<'_, Result<Collected, ExecutorError>> {
        Box::pin(async move {
            self.collections.lock().unwrap().push(policy);
            *self.free_bytes.lock().unwrap() += *self.freed_bytes.lock().unwrap();
            Ok(Collected {
                removed: Vec::new(),
                left_bytes: 0,
            })
        })
    }

    fn ready(&self) -> BoxFuture<'_, Result<(), ExecutorError>> {
        Box::pin(async move {
            if self.refuses.lock().unwrap().contains("start") {
                let problem = "no room for another process".to_owned();
                return Err(ExecutorError::NotReady { problem });
            }
            Ok(())
        })
    }
}

/// A state directory, and whoever works in it.
pub(crate) struct World {
    folder: tempfile::TempDir,
    pub(crate) scripted: Scripted,
    workers: tokio::sync::Mutex<mpsc::UnboundedReceiver<Arc<Worker>>>,
}

impl World {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (scripted, workers) = Scripted::new(folder.path());
        Self {
            folder,
            scripted,
            workers: tokio::sync::Mutex::new(workers),
        }
    }

    pub(crate) fn state(&self) -> &Path {
        self.folder.path()
    }

    /// Returns the next build that was started.
    pub(crate) async fn worker(&self) -> Arc<Worker> {
        let mut workers = self.workers.lock().await;
        soon(workers.recv())
            .await
            .expect("nothing is started any more")
    }

    /// Tells whether a build was started that nobody has asked about.
    pub(crate) async fn has_worker(&self) -> bool {
        !self.workers.lock().await.is_empty()
    }

    pub(crate) async fn serve(&self) -> Server {
        self.serve_with("").await
    }

    /// Starts a server with a configuration; the address and the state directory are added to it.
    pub(crate) async fn serve_with(&self, config: &str) -> Server {
        self.serve_config(self.config(config)).await
    }

    /// Starts a server whose clock is two hours ahead.
    pub(crate) async fn serve_two_hours_later(&self) -> Server {
        let environment = Environment {
            now_ms: || (Environment::real().now_ms)() + 2 * 3600 * 1000,
            ..Environment::real()
        };
        let config = self.config("");
        self.serve_in(config, environment).await
    }

    fn config(&self, text: &str) -> Config {
        let mut config = service::config::parse(text).unwrap().config;
        config.listen = "127.0.0.1:0".parse().unwrap();
        config.state = Some(self.state().to_owned());
        config
    }

    pub(crate) async fn serve_config(&self, config: Config) -> Server {
        self.serve_in(config, Environment::real()).await
    }

    /// The peers of tests are on this machine: it may be reached unless the configuration has its own word on that.
    async fn serve_in(&self, mut config: Config, environment: Environment) -> Server {
        config.egress.reach.get_or_insert(egress::Reach::Private);
        let setup = Setup {
            executor: Arc::new(self.scripted.clone()),
            owner: None,
            config_file: Some(self.state().join("kiln.toml")),
            environment,
            ambient: service::subassembly::Ambient::default(),
            client: ClientOptions {
                tries: 2,
                backoff_base: Duration::from_millis(1),
                backoff_max: Duration::from_millis(5),
                retry_after_max: Duration::from_millis(50),
                header_timeout: Duration::from_secs(2),
                ..ClientOptions::default()
            },
        };
        let listener = service::app::bind(&config).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (stop, stopped) = oneshot::channel::<()>();
        let running = tokio::spawn(service::app::run(config, setup, listener, async {
            let _dropped = stopped.await;
        }));
        // The socket is bound: whoever connects is served once everything is there.
        Server {
            store: Store::open(&self.state().join("store"), None).unwrap(),
            address,
            stop: Some(stop),
            running,
        }
    }
}

/// A server that runs.
pub(crate) struct Server {
    pub(crate) address: String,
    pub(crate) store: Store,
    stop: Option<oneshot::Sender<()>>,
    running: tokio::task::JoinHandle<Result<(), RunError>>,
}

impl Server {
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) async fn channel(&self) -> Channel {
        let endpoint = Channel::from_shared(self.url()).unwrap();
        soon(endpoint.connect()).await.unwrap()
    }

    pub(crate) async fn client(&self) -> ImageBuilderClient<Channel> {
        ImageBuilderClient::new(self.channel().await)
    }

    pub(crate) async fn native(&self) -> KilnClient<Channel> {
        KilnClient::new(self.channel().await)
    }

    /// Tells the server to stop, without waiting.
    pub(crate) fn tell_to_stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _gone = stop.send(());
        }
    }

    /// Waits until it has stopped.
    pub(crate) async fn stopped(mut self) {
        self.tell_to_stop();
        soon(self.running).await.unwrap().unwrap();
    }

    /// Returns why it did not start.
    pub(crate) async fn failed(self) -> RunError {
        soon(self.running).await.unwrap().unwrap_err()
    }

    pub(crate) async fn build(
        &self,
        request: wire::BuildRequest,
    ) -> Result<tonic::Streaming<wire::BuildResponse>, tonic::Status> {
        let mut client = self.client().await;
        let answer = soon(client.build(request)).await?;
        Ok(answer.into_inner())
    }

    /// Requests a build and returns its stream after the first message, with that message.
    pub(crate) async fn start(
        &self,
        request: wire::BuildRequest,
    ) -> (wire::BuildResponse, tonic::Streaming<wire::BuildResponse>) {
        let mut stream = self.build(request).await.unwrap();
        let first = next(&mut stream).await.expect("a first message");
        assert_eq!(first.status(), wire::BuildStatus::Running);
        (first, stream)
    }

    /// Starts reading the log of a build.
    pub(crate) async fn logs(
        &self,
        request: wire::LogsRequest,
    ) -> Result<tonic::Streaming<wire::LogsResponse>, tonic::Status> {
        let mut client = self.client().await;
        Ok(soon(client.logs(request)).await?.into_inner())
    }

    pub(crate) async fn whole_log(&self, request: wire::LogsRequest) -> String {
        let stream = self.logs(request).await.unwrap();
        String::from_utf8(read_to_end(stream).await.unwrap()).unwrap()
    }
}

pub(crate) async fn next<T>(stream: &mut tonic::Streaming<T>) -> Option<T> {
    soon(stream.message()).await.unwrap()
}

/// Returns the last message of a build's stream; the stream must end after it.
pub(crate) async fn last(mut stream: tonic::Streaming<wire::BuildResponse>) -> wire::BuildResponse {
    let mut last = None;
    while let Some(message) = next(&mut stream).await {
        last = Some(message);
    }
    last.expect("a last message")
}

pub(crate) async fn read_to_end(
    mut stream: tonic::Streaming<wire::LogsResponse>,
) -> Result<Vec<u8>, tonic::Status> {
    let mut text = Vec::new();
    while let Some(message) = soon(stream.message()).await? {
        text.extend(message.content);
    }
    Ok(text)
}

/// Returns a manifest that is unlike those of other seeds.
pub(crate) fn manifest(seed: &str) -> Vec<u8> {
    let digest = Digest::sha256(seed.as_bytes());
    serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": seed.len() },
        "layers": [],
    })
    .to_string()
    .into_bytes()
}

/// Puts a manifest into the embedded registry the way workers do.
pub(crate) fn put(store: &Store, reference: &Reference, bytes: &[u8]) -> Digest {
    let (repository, tag) = (reference.repository(), reference.tag());
    store.put_manifest(repository, bytes, tag).unwrap()
}

pub(crate) const COMMIT: &str = "0123456789012345678901234567890123456789";

pub(crate) fn git() -> content::GitInitializer {
    content::GitInitializer {
        remote_uri: "https://example.com/victim.git".to_owned(),
        target_mode: content::CloneTargetMode::RemoteCommit.into(),
        clone_taget: COMMIT.to_owned(),
        ..content::GitInitializer::default()
    }
}

pub(crate) fn git_source(git: content::GitInitializer) -> wire::BuildSource {
    let source = content::WorkspaceInitializer {
        spec: Some(content::workspace_initializer::Spec::Git(git)),
    };
    let file = wire::BuildSourceDockerfile {
        source: Some(source),
        dockerfile_version: "1".to_owned(),
        dockerfile_path: "Dockerfile".to_owned(),
        context_path: ".".to_owned(),
    };
    wire::BuildSource {
        from: Some(wire::build_source::From::File(file)),
    }
}

pub(crate) fn ref_source(reference: &str) -> wire::BuildSource {
    let r#ref = reference.to_owned();
    wire::BuildSource {
        from: Some(wire::build_source::From::Ref(wire::BuildSourceReference {
            r#ref,
        })),
    }
}

pub(crate) fn request(source: wire::BuildSource) -> wire::BuildRequest {
    wire::BuildRequest {
        source: Some(source),
        triggered_by: "somebody".to_owned(),
        ..wire::BuildRequest::default()
    }
}

pub(crate) fn by_id(id: &str) -> wire::LogsRequest {
    wire::LogsRequest {
        build_id: id.to_owned(),
        ..wire::LogsRequest::default()
    }
}
