//! A state directory, a context, and builds of it whose files can be looked at; and a server of files that counts.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Response, Uri};
use engine::event::{BuiltImage, Event, Failure};
use engine::id::BuildId;
use engine::journal::{Body as Entry, Reader, Writer};
use engine::recorder::{Environment, LogLimits, Recorder};
use engine::redact::Redactor;
use engine::sandbox::{Script, Scripted, SecretBytes, StepExit};
use engine::spec::{
    BuildOptions, BuildSpec, Context, ExportFormat, Limits, Output, Registries, Source, StepOptions,
};
use engine::{Rig, build};
use source::git::FetchOptions;
use store::Store;
use tokio_util::sync::CancellationToken;

/// A state directory and a context.
pub(crate) struct Bench {
    state: tempfile::TempDir,
    context: tempfile::TempDir,
    n_builds: u8,
    pub(crate) epoch: Option<i64>,
    pub(crate) fetch: FetchOptions,
    pub(crate) secrets: BTreeMap<String, SecretBytes>,
    pub(crate) limits: Limits,
    pub(crate) shm_bytes: Option<u64>,
    pub(crate) format: ExportFormat,
}

/// What a build came to.
pub(crate) struct Outcome {
    result: Result<BuiltImage, Failure>,
    pub(crate) events: Vec<Event>,
    output: PathBuf,
}

/// A file of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) mode: u32,
    pub(crate) owner: (u64, u64),
    pub(crate) mtime: u64,
    pub(crate) text: String,
}

impl Bench {
    pub(crate) fn new(files: &[(&str, &str)]) -> Self {
        let bench = Self {
            state: tempfile::tempdir().unwrap(),
            context: tempfile::tempdir().unwrap(),
            n_builds: 0,
            epoch: None,
            fetch: FetchOptions {
                retry_pause: std::time::Duration::from_millis(1),
                ..FetchOptions::default()
            },
            secrets: BTreeMap::new(),
            limits: Limits::default(),
            shm_bytes: None,
            format: ExportFormat::Tar,
        };
        for (name, text) in files {
            bench.write(name, text);
        }
        bench
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.context.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub(crate) fn dockerfile(&self, text: &str) {
        self.write("Dockerfile", text);
    }

    pub(crate) async fn build(&mut self) -> Outcome {
        self.n_builds += 1;
        let id = BuildId::from_random([self.n_builds; 16]);
        let folder = self.state.path().join("builds").join(id.as_str());
        fs::create_dir_all(folder.join("work")).unwrap();
        fs::create_dir_all(folder.join("output")).unwrap();
        let writer = Writer::create(&folder).unwrap();
        let recorder = Recorder::new(
            writer,
            Redactor::default(),
            LogLimits::of(&Limits::default()),
            Environment::real(),
        );
        let sandbox = Scripted::new(|_| Script {
            output: Vec::new(),
            exit: StepExit::Code(0),
        });
        let rig = Rig {
            store: Store::open(&self.state.path().join("store"), None).unwrap(),
            sandbox: Arc::new(sandbox),
            recorder,
            folder: folder.clone(),
            cancel: CancellationToken::new(),
        };
        let result = build(&self.spec(id), &rig).await;
        let mut reader = Reader::open(&folder).unwrap();
        let mut events = Vec::new();
        while let Some(record) = reader.next().unwrap() {
            if let Entry::Event(event) = record.body {
                events.push(event);
            }
        }
        Outcome {
            result,
            events,
            output: folder.join("output/root.tar"),
        }
    }

    fn spec(&self, id: BuildId) -> BuildSpec {
        BuildSpec {
            cache_from: Vec::new(),
            cache_to: Vec::new(),
            secrets: self.secrets.clone(),
            ssh: BTreeMap::new(),
            id,
            tenant: "t".to_owned(),
            source: Source::Dockerfile {
                context: Context::Directory {
                    path: self.context.path().to_owned(),
                    dockerfile_text: None,
                    name: "ctx".to_owned(),
                },
                dockerfile: None,
                context_path: None,
            },
            options: BuildOptions {
                source_date_epoch: self.epoch,
                steps: StepOptions {
                    shm_bytes: self.shm_bytes,
                    ..StepOptions::default()
                },
                ..BuildOptions::default()
            },
            contexts: BTreeMap::new(),
            outputs: vec![Output::Export {
                format: self.format,
                name: "root.tar".to_owned(),
                references: Vec::new(),
            }],
            registries: Registries::default(),
            fetch: self.fetch.clone(),
            limits: self.limits.clone(),
        }
    }

    /// Builds, and returns why steps ran and how many did not have to.
    pub(crate) async fn reasons(&mut self) -> (Vec<String>, u32) {
        let outcome = self.build().await;
        let n_cached = outcome.image().n_cached;
        (outcome.reasons(), n_cached)
    }
}

impl Outcome {
    pub(crate) fn image(&self) -> &BuiltImage {
        self.result
            .as_ref()
            .unwrap_or_else(|failure| panic!("{}", failure.message))
    }

    /// Tells whether there is an exported file.
    pub(crate) fn has_output(&self) -> bool {
        self.output.exists()
    }

    pub(crate) fn failure(&self) -> &Failure {
        self.result.as_ref().expect_err("the build succeeded")
    }

    /// Why steps ran.
    pub(crate) fn reasons(&self) -> Vec<String> {
        let reason = |event: &Event| match event {
            Event::StepStarted {
                reason: Some(reason),
                ..
            } => Some(reason.clone()),
            _ => None,
        };
        self.events.iter().filter_map(reason).collect()
    }

    /// The files of the image, by name; directories end in a slash.
    pub(crate) fn files(&self) -> BTreeMap<String, Found> {
        self.image();
        let mut archive = tar::Archive::new(fs::File::open(&self.output).unwrap());
        let mut files = BTreeMap::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().to_string_lossy().into_owned();
            let name = name.trim_start_matches("./").to_owned();
            let header = entry.header().clone();
            let mut text = Vec::new();
            entry.read_to_end(&mut text).unwrap();
            if let Some(link) = entry.link_name().unwrap() {
                text = format!("-> {}", link.display()).into_bytes();
            }
            let found = Found {
                mode: header.mode().unwrap() & 0o7777,
                owner: (header.uid().unwrap(), header.gid().unwrap()),
                mtime: header.mtime().unwrap(),
                text: String::from_utf8_lossy(&text).into_owned(),
            };
            files.insert(name, found);
        }
        files
    }

    /// Names of the files of the image.
    pub(crate) fn names(&self) -> Vec<String> {
        self.files().into_keys().collect()
    }
}

/// What the server has, and what it was asked for.
#[derive(Default)]
struct Site {
    files: Mutex<BTreeMap<String, Vec<u8>>>,
    asked: Mutex<Vec<String>>,
    sent: Mutex<Vec<String>>,
    shown: Mutex<Vec<String>>,
}

/// A server of files, each with a tag made of its content.
pub(crate) struct Files {
    pub(crate) address: String,
    site: Arc<Site>,
}

impl Files {
    pub(crate) async fn start() -> Self {
        let site = Arc::new(Site::default());
        let app = Router::new().fallback(answer).with_state(Arc::clone(&site));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { address, site }
    }

    pub(crate) fn put(&self, path: &str, content: impl Into<Vec<u8>>) {
        let mut files = self.site.files.lock().unwrap();
        files.insert(path.to_owned(), content.into());
    }

    /// Returns what was shown as authorization.
    pub(crate) fn shown(&self) -> Vec<String> {
        self.site.shown.lock().unwrap().clone()
    }

    /// Returns how many requests there were since the last time, and how many were answered with a file.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let count = |list: &Mutex<Vec<String>>| std::mem::take(&mut *list.lock().unwrap()).len();
        (count(&self.site.asked), count(&self.site.sent))
    }
}

async fn answer(State(site): State<Arc<Site>>, uri: Uri, headers: HeaderMap) -> Response<Body> {
    let path = uri.path().to_owned();
    site.asked.lock().unwrap().push(path.clone());
    if let Some(shown) = headers.get("authorization") {
        let shown = shown.to_str().unwrap().to_owned();
        site.shown.lock().unwrap().push(shown);
    }
    let content = site.files.lock().unwrap().get(&path).cloned();
    let Some(content) = content else {
        return Response::builder().status(404).body(Body::empty()).unwrap();
    };
    let tag = format!("\"{}\"", oci::Digest::sha256(&content).hex());
    let is_known = headers
        .get("if-none-match")
        .is_some_and(|known| *known == *tag);
    let response = Response::builder()
        .header("etag", tag)
        .header("last-modified", "Sun, 09 Sep 2001 01:46:40 GMT");
    if is_known {
        return response.status(304).body(Body::empty()).unwrap();
    }
    site.sent.lock().unwrap().push(path);
    response.body(Body::from(content)).unwrap()
}
