//! Whole builds with a scripted sandbox: everything but the containers is real. Needs to be root, or root of a user namespace.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what went wrong by ending"
)]

#[path = "build/ahead.rs"]
mod ahead;
#[path = "build/tenants.rs"]
mod tenants;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Barrier, Mutex};

use engine::event::{BuiltImage, Event, Failure, FailureKind};
use engine::id::BuildId;
use engine::journal::{Body, Reader, Writer};
use engine::recorder::{Environment, LogLimits, Recorder};
use engine::redact::Redactor;
use engine::sandbox::{Mounted, Script, Scripted, StepCommand, StepExit, Stream};
use engine::spec::{
    BuildOptions, BuildSpec, CacheMode, CacheMountScope, Context, LayoutImage, Limits,
    NamedContext, Output, Registries, Source,
};
use engine::{Rig, build};
use oci::{Document, Manifest};
use rustix::fs::{Mode, OFlags};
use source::git::FetchOptions;
use store::Store;
use store::context::{Allowance, Announced, ContentId, Entry, EntryKind, Keeping};
use tokio_util::sync::CancellationToken;

/// A state directory and a context.
struct Bench {
    state: tempfile::TempDir,
    context: tempfile::TempDir,
    n_builds: u8,
    /// What is built from instead of the folder.
    uploaded: Option<Context>,
    options: BuildOptions,
    contexts: BTreeMap<String, NamedContext>,
    cancel: CancellationToken,
    tenant: &'static str,
    registries: Registries,
    /// What the context is called.
    name: &'static str,
    outputs: Vec<Output>,
}

/// What a build came to.
struct Outcome {
    result: Result<BuiltImage, Failure>,
    events: Vec<Event>,
}

impl Bench {
    fn new(files: &[(&str, &str)]) -> Self {
        let bench = Self {
            state: tempfile::tempdir().unwrap(),
            context: tempfile::tempdir().unwrap(),
            n_builds: 0,
            uploaded: None,
            options: BuildOptions {
                source_date_epoch: Some(1_700_000_000),
                ..BuildOptions::default()
            },
            contexts: BTreeMap::new(),
            cancel: CancellationToken::new(),
            tenant: "t",
            registries: Registries::default(),
            name: "ctx",
            outputs: vec![Output::Keep {
                reference: "app:1".parse().unwrap(),
            }],
        };
        for (name, text) in files {
            bench.write(name, text);
        }
        bench
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.context.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn store(&self) -> Store {
        Store::open(&self.state.path().join("store"), None).unwrap()
    }

    /// Returns the id of the next build, and its folder.
    fn next(&self) -> (BuildId, PathBuf) {
        let id = BuildId::from_random([self.n_builds + 1; 16]);
        let folder = self.state.path().join("builds").join(id.as_str());
        (id, folder)
    }

    async fn build(
        &mut self,
        answer: impl Fn(&StepCommand) -> Script + Send + Sync + 'static,
    ) -> Outcome {
        let (id, folder) = self.next();
        self.n_builds += 1;
        fs::create_dir_all(folder.join("work")).unwrap();
        fs::create_dir_all(folder.join("output")).unwrap();
        let writer = Writer::create(&folder).unwrap();
        let recorder = Recorder::new(
            writer,
            Redactor::default(),
            LogLimits::of(&Limits::default()),
            Environment::real(),
        );
        let rig = Rig {
            store: self.store(),
            sandbox: Arc::new(Scripted::new(answer)),
            recorder,
            folder: folder.clone(),
            cancel: self.cancel.child_token(),
        };
        let spec = BuildSpec {
            cache_from: Vec::new(),
            cache_to: Vec::new(),
            secrets: BTreeMap::new(),
            ssh: BTreeMap::new(),
            id,
            tenant: self.tenant.to_owned(),
            source: Source::Dockerfile {
                context: self.uploaded.clone().unwrap_or_else(|| Context::Directory {
                    path: self.context.path().to_owned(),
                    dockerfile_text: None,
                    name: self.name.to_owned(),
                }),
                dockerfile: None,
                context_path: None,
            },
            options: self.options.clone(),
            contexts: self.contexts.clone(),
            outputs: self.outputs.clone(),
            registries: self.registries.clone(),
            fetch: FetchOptions::default(),
            limits: Limits::default(),
        };
        let result = build(&spec, &rig).await;
        Outcome {
            result,
            events: events(&folder),
        }
    }
}

fn events(folder: &Path) -> Vec<Event> {
    let mut reader = Reader::open(folder).unwrap();
    let mut events = Vec::new();
    while let Some(record) = reader.next().unwrap() {
        if let Body::Event(event) = record.body {
            events.push(event);
        }
    }
    events
}

impl Outcome {
    /// Tells whether the files of an uploaded folder were made.
    fn put_together(&self) -> bool {
        let name = "[internal] put build context together";
        let mut events = self.events.iter();
        events.any(|event| matches!(event, Event::StepStarted { name: found, .. } if found == name))
    }

    fn image(&self) -> &BuiltImage {
        self.result
            .as_ref()
            .unwrap_or_else(|failure| panic!("{}", failure.message))
    }

    fn failure(&self) -> &Failure {
        self.result.as_ref().expect_err("the build succeeded")
    }

    /// Why steps ran.
    fn reasons(&self) -> Vec<(String, String)> {
        let pair = |event: &Event| match event {
            Event::StepStarted {
                name,
                reason: Some(reason),
                ..
            } => Some((name.clone(), reason.clone())),
            _ => None,
        };
        self.events.iter().filter_map(pair).collect()
    }
}

fn succeed(_: &StepCommand) -> Script {
    exit(0)
}

fn exit(code: i32) -> Script {
    Script {
        output: vec![(Stream::Stdout, b"some output\nlast words\n".to_vec())],
        exit: StepExit::Code(code),
    }
}

/// Writes a file below the root filesystem of a step.
fn put(step: &StepCommand, name: &str, text: &str) {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
    let file =
        rustix::fs::openat(step.root.as_fd(), name, flags, Mode::from_raw_mode(0o644)).unwrap();
    rustix::io::write(file, text.as_bytes()).unwrap();
}

fn manifest(store: &Store, image: &BuiltImage) -> Manifest {
    let (_, bytes) = store
        .manifest("library/app", &image.digest.to_string())
        .unwrap()
        .unwrap();
    match Document::parse(None, &bytes).unwrap() {
        Document::Manifest(manifest) => manifest,
        Document::Index(_) => panic!("an index"),
    }
}

/// Returns the files of an image with their content, by name, after checking the image.
fn files(store: &Store, image: &BuiltImage) -> BTreeMap<String, String> {
    let manifest = manifest(store, image);
    let mut files = BTreeMap::new();
    for layer in &manifest.layers {
        let blob = store.open_blob(&layer.digest).unwrap().unwrap();
        let plain = oci::layer::decompress(blob, oci::layer::Limits::default()).unwrap();
        let mut archive = tar::Archive::new(plain);
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().to_string_lossy().into_owned();
            let mut text = String::new();
            if entry.header().entry_type().is_file() {
                entry.read_to_string(&mut text).unwrap();
                files.insert(name, text);
            }
        }
    }
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_build_runs_nothing_and_gives_the_same_digest() {
    let mut bench = Bench::new(&[
        (
            "Dockerfile",
            "FROM scratch\nCOPY a.txt /data/\nRUN [\"/make\"]\nENV X=1\nCMD [\"/data/a.txt\"]\n",
        ),
        ("a.txt", "hello"),
    ]);
    let make = |step: &StepCommand| {
        put(step, "made", "by the step");
        exit(0)
    };
    let first = bench.build(make).await;
    let image = first.image().clone();
    assert_eq!((image.n_run, image.n_cached), (2, 0));
    let found = files(&bench.store(), &image);
    assert_eq!(
        found.get("data/a.txt").map(String::as_str),
        Some("hello"),
        "{found:?}"
    );
    assert_eq!(
        found.get("made").map(String::as_str),
        Some("by the step"),
        "{found:?}"
    );

    let second = bench.build(|_| panic!("a step ran")).await;
    assert_eq!((second.image().n_run, second.image().n_cached), (0, 2));
    assert_eq!(second.image().digest, image.digest);

    bench.options.cache = CacheMode::Ignore;
    let third = bench.build(make).await;
    assert_eq!(third.image().n_run, 2);
    assert_eq!(third.image().digest, image.digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_run_step_says_why_it_ran() {
    let mut bench = Bench::new(&[
        (
            "Dockerfile",
            "FROM scratch\nARG V=1\nCOPY src /src\nRUN [\"/make\"]\n",
        ),
        ("src/main.c", "1"),
    ]);
    let first = bench.build(succeed).await;
    let whys: Vec<String> = first.reasons().into_iter().map(|(_, why)| why).collect();
    assert_eq!(whys, ["not built before", "not built before"]);
    bench.write("src/main.c", "2");
    let second = bench.build(succeed).await;
    assert!(
        second.reasons()[0].1.contains("main.c changed"),
        "{:?}",
        second.reasons()
    );
    bench
        .options
        .build_args
        .insert("V".to_owned(), "2".to_owned());
    let third = bench.build(succeed).await;
    assert_eq!(third.reasons().len(), 1);
    assert_eq!(third.reasons()[0].1, "variable V changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn time_stamps_and_ignored_files_do_not_matter() {
    let mut bench = Bench::new(&[
        ("Dockerfile", "FROM scratch\nCOPY . /all\n"),
        (".dockerignore", "*.log\n"),
        ("a.txt", "1"),
        ("noise.log", "1"),
    ]);
    let first = bench.build(succeed).await;
    let names: Vec<String> = files(&bench.store(), first.image()).into_keys().collect();
    assert_eq!(names, ["all/.dockerignore", "all/Dockerfile", "all/a.txt"]);
    bench.write("noise.log", "2");
    bench.write("a.txt", "1");
    let second = bench.build(succeed).await;
    assert_eq!(second.image().n_cached, 1, "{:?}", second.reasons());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_step_is_told_with_its_line_its_code_and_its_last_words() {
    let mut bench = Bench::new(&[(
        "Dockerfile",
        "FROM scratch\n# a comment\nRUN [\"/fail\", \"now\"]\n",
    )]);
    let outcome = bench.build(|_| exit(3)).await;
    let failure = outcome.failure();
    assert_eq!(
        (failure.kind, failure.exit_code),
        (FailureKind::Dockerfile, Some(3))
    );
    for part in [
        "Dockerfile:3",
        "exit code: 3",
        "last words",
        "RUN [\"/fail\", \"now\"]",
    ] {
        assert!(
            failure.message.contains(part),
            "{part} is not in {}",
            failure.message
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stages_run_side_by_side_and_unused_ones_not_at_all() {
    let dockerfile = "FROM scratch AS a\nRUN [\"/a\"]\nFROM scratch AS b\nRUN [\"/b\"]\nFROM scratch AS unused\nRUN [\"/unused\"]\n\
        FROM scratch\nCOPY --from=a /a /\nCOPY --from=b /b /\n";
    let mut bench = Bench::new(&[("Dockerfile", dockerfile)]);
    // Both steps must be inside at the same time, or this never ends.
    let both = Arc::new(Barrier::new(2));
    let outcome = bench
        .build(move |step| {
            assert_ne!(step.args, ["/unused"]);
            both.wait();
            put(step, &step.args[0][1..], &step.args[0]);
            exit(0)
        })
        .await;
    let found = files(&bench.store(), outcome.image());
    assert_eq!(
        found,
        BTreeMap::from([
            ("a".to_owned(), "/a".to_owned()),
            ("b".to_owned(), "/b".to_owned())
        ])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_in_the_context_leads_nowhere_outside_of_it() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    let mut bench = Bench::new(&[("Dockerfile", "FROM scratch\nCOPY link/secret /\n")]);
    std::os::unix::fs::symlink(outside.path(), bench.context.path().join("link")).unwrap();
    let outcome = bench.build(succeed).await;
    assert_eq!(outcome.failure().kind, FailureKind::Dockerfile);
    assert!(
        outcome.failure().message.contains("Dockerfile:2"),
        "{}",
        outcome.failure().message
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dockerfile_is_a_file_of_the_context_and_of_sensible_size() {
    type Make = fn(&Path);
    let makers: [(&str, Make); 7] = [
        ("a pipe", |path| {
            rustix::fs::mkfifoat(rustix::fs::CWD, path, Mode::RUSR).unwrap();
        }),
        ("a folder", |path| fs::create_dir(path).unwrap()),
        ("a device", |path| {
            std::os::unix::fs::symlink("/dev/zero", path).unwrap();
        }),
        ("the host's", |path| {
            std::os::unix::fs::symlink("/etc/passwd", path).unwrap();
        }),
        ("above", |path| {
            std::os::unix::fs::symlink("../../../../../../../etc/passwd", path).unwrap();
        }),
        ("a circle", |path| {
            std::os::unix::fs::symlink("Dockerfile", path).unwrap();
        }),
        ("too large", |path| {
            fs::File::create(path).unwrap().set_len(3 << 30).unwrap();
        }),
    ];
    for (what, make) in makers {
        let mut bench = Bench::new(&[("a", "1")]);
        make(&bench.context.path().join("Dockerfile"));
        let outcome = bench.build(succeed).await;
        let failure = outcome.failure();
        assert_eq!(failure.kind, FailureKind::Dockerfile, "{what}");
        assert!(
            failure
                .message
                .contains("could not find Dockerfile at \"Dockerfile\""),
            "{what}: {}",
            failure.message
        );
        assert!(!failure.message.contains("root:"), "{what}");
    }
    // A link that stays inside is as good as the file.
    let mut bench = Bench::new(&[("docker/real", "FROM scratch\nCOPY a /\n"), ("a", "1")]);
    std::os::unix::fs::symlink("docker/real", bench.context.path().join("Dockerfile")).unwrap();
    let outcome = bench.build(succeed).await;
    assert!(outcome.result.is_ok(), "{:?}", outcome.result);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_syntax_error_shows_its_line() {
    let mut bench = Bench::new(&[("Dockerfile", "FROM scratch\nCOYP a b\n")]);
    let outcome = bench.build(succeed).await;
    let message = &outcome.failure().message;
    assert!(
        message.contains("Dockerfile:2") && message.contains("COPY"),
        "{message}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_image_is_complete() {
    let mut bench = Bench::new(&[
        (
            "Dockerfile",
            "FROM scratch\nCOPY a /x\nCOPY a /y\nWORKDIR /w/y/../z\n",
        ),
        ("a", "1"),
    ]);
    let outcome = bench.build(succeed).await;
    let store = bench.store();
    let manifest = manifest(&store, outcome.image());
    let blobs = |digest: &oci::Digest| -> std::io::Result<Option<Box<dyn std::io::Read>>> {
        let blob = store.open_blob(digest).map_err(std::io::Error::other)?;
        Ok(blob.map(|file| Box::new(file) as Box<dyn std::io::Read>))
    };
    let checked = oci::validate::validate(&manifest, &blobs).unwrap();
    assert_eq!(checked.config.config.working_dir, "/w/z");
}

fn folder(path: &Path) -> NamedContext {
    NamedContext::Files {
        context: Context::Directory {
            path: path.to_owned(),
            dockerfile_text: None,
            name: "other".to_owned(),
        },
        folder: String::new(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_a_named_context_stand_for_a_base_and_for_a_source() {
    let mut bench = Bench::new(&[(
        "Dockerfile",
        "FROM files\nCOPY --from=example.com/image:1 x /copied\nCOPY own /\n",
    )]);
    bench.write("own", "own");
    let other = tempfile::tempdir().unwrap();
    for (name, text) in [("x", "1"), ("hidden", "2"), (".dockerignore", "hidden\n")] {
        fs::write(other.path().join(name), text).unwrap();
    }
    for name in ["files", "example.com/image:1", "nobody-asks-for-it"] {
        bench.contexts.insert(name.to_owned(), folder(other.path()));
    }
    let first = bench.build(succeed).await;
    let found = files(&bench.store(), first.image());
    let found: Vec<_> = found
        .iter()
        .map(|(n, t)| (n.as_str(), t.as_str()))
        .collect();
    assert_eq!(
        found,
        [
            (".dockerignore", "hidden\n"),
            ("copied", "1"),
            ("own", "own"),
            ("x", "1")
        ]
    );
    let again = bench.build(succeed).await;
    assert_eq!(again.image().n_run, 0, "{:?}", again.reasons());
    fs::write(other.path().join("x"), "3").unwrap();
    let changed = bench.build(succeed).await;
    assert_eq!(changed.image().n_run, 3, "{:?}", changed.reasons());
}

/// Writes an image of the store as an OCI layout.
fn layout(store: &Store, image: &BuiltImage, tag: &str, into: &Path) {
    let manifest = manifest(store, image);
    let (_, bytes) = store
        .manifest("library/app", &image.digest.to_string())
        .unwrap()
        .unwrap();
    let blobs = into.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(image.digest.hex()), &bytes).unwrap();
    for descriptor in manifest.layers.iter().chain([&manifest.config]) {
        let mut content = Vec::new();
        let mut blob = store.open_blob(&descriptor.digest).unwrap().unwrap();
        blob.read_to_end(&mut content).unwrap();
        fs::write(blobs.join(descriptor.digest.hex()), content).unwrap();
    }
    let entry = format!(
        r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{}","size":{},"annotations":{{"org.opencontainers.image.ref.name":"{tag}"}}}}"#,
        image.digest,
        bytes.len()
    );
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{entry}]}}"#);
    fs::write(into.join("index.json"), index).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_an_oci_layout_stands_for_a_base() {
    let mut maker = Bench::new(&[
        ("Dockerfile", "FROM scratch\nCOPY a /a\nENV A=1\n"),
        ("a", "1"),
    ]);
    let made = maker.build(succeed).await;
    let folder = tempfile::tempdir().unwrap();
    layout(&maker.store(), made.image(), "v1", folder.path());

    let mut bench = Bench::new(&[("Dockerfile", "FROM packed\nCOPY b /b\n"), ("b", "2")]);
    let mut build = async |image: LayoutImage| {
        let path = folder.path().to_owned();
        let context = NamedContext::Layout { path, image };
        bench.contexts.insert("packed".to_owned(), context);
        let outcome = bench.build(succeed).await;
        (outcome, bench.store())
    };
    let digest = made.image().digest.clone();
    for image in [
        LayoutImage::Default,
        LayoutImage::Tag("v1".to_owned()),
        LayoutImage::Digest(digest.clone()),
    ] {
        let (outcome, store) = build(image).await;
        let names: Vec<String> = files(&store, outcome.image()).into_keys().collect();
        assert_eq!(names, ["a", "b"]);
    }
    let (outcome, _) = build(LayoutImage::Tag("v2".to_owned())).await;
    let message = &outcome.failure().message;
    assert!(message.contains("no image has the tag \"v2\""), "{message}");

    // What a layout holds is believed under its digest only.
    fs::write(folder.path().join("blobs/sha256").join(digest.hex()), "{}").unwrap();
    let (outcome, _) = build(LayoutImage::Digest(digest)).await;
    let message = &outcome.failure().message;
    assert!(message.contains("has other content"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_are_warnings_or_errors_as_the_dockerfile_says() {
    let text = "FROM scratch AS Upper\nCOPY Dockerfile hidden /\nCMD x\n";
    let mut bench = Bench::new(&[("Dockerfile", text), (".dockerignore", "hidden*\n")]);
    bench.write("hidden", "");
    let told = |outcome: &Outcome| -> Vec<String> {
        let warnings = outcome.events.iter().filter_map(|event| match event {
            Event::Warning { text } => Some(text.lines().next().unwrap().to_owned()),
            _ => None,
        });
        warnings.collect()
    };
    let outcome = bench.build(succeed).await;
    let warnings = told(&outcome);
    for rule in ["StageNameCasing", "CopyIgnoredFile", "JSONArgsRecommended"] {
        let n = warnings.iter().filter(|text| text.contains(rule)).count();
        assert_eq!(n, 1, "{rule} in {warnings:?}");
    }
    bench.write("Dockerfile", &text.replace(" hidden", ""));
    let argument = |value: &str| ("BUILDKIT_DOCKERFILE_CHECK".to_owned(), value.to_owned());
    bench.options.build_args = BTreeMap::from([argument("skip=StageNameCasing;error=true")]);
    let outcome = bench.build(succeed).await;
    assert_eq!(outcome.failure().kind, FailureKind::Dockerfile);
    let message = &outcome.failure().message;
    assert!(message.ends_with("JSONArgsRecommended"), "{message}");
    assert!(
        !told(&outcome)
            .iter()
            .any(|text| text.contains("StageNameCasing"))
    );
    bench.options.build_args = BTreeMap::from([argument("skip=all;error=true")]);
    let outcome = bench.build(succeed).await;
    outcome.image();
    assert_eq!(told(&outcome), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_argument_matters_from_where_it_is_declared_and_one_that_nothing_declares_never() {
    let text = "FROM scratch\nRUN [\"/before\"]\nARG V\nRUN [\"/after\"]\nCOPY Dockerfile /\n";
    let mut bench = Bench::new(&[("Dockerfile", text)]);
    bench.build(succeed).await.image();
    let argument = |name: &str| (name.to_owned(), "1".to_owned());
    bench.options.build_args = BTreeMap::from([argument("NOBODYS"), argument("https_proxy")]);
    let outcome = bench.build(succeed).await;
    assert_eq!(outcome.image().n_run, 0, "{:?}", outcome.reasons());
    bench.options.build_args = BTreeMap::from([argument("V")]);
    let outcome = bench.build(succeed).await;
    // COPY stands on what the second RUN made, which is the same as before.
    assert_eq!(outcome.reasons().len(), 1, "{:?}", outcome.reasons());
    assert!(outcome.reasons()[0].0.contains("/after"));
    bench.options.build_args = BTreeMap::from([argument("BUILDKIT_SANDBOX_HOSTNAME")]);
    let outcome = bench
        .build(|step| {
            assert_eq!(step.hostname, "1");
            succeed(step)
        })
        .await;
    assert_eq!(outcome.image().n_run, 2, "{:?}", outcome.reasons());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_argument_before_the_first_stage_may_date_the_image() {
    let text = "ARG SOURCE_DATE_EPOCH=86400\nFROM scratch\nCOPY dockerfile /\n";
    let mut bench = Bench::new(&[("dockerfile", text)]);
    bench.options.source_date_epoch = None;
    let outcome = bench.build(succeed).await;
    let store = bench.store();
    let manifest = manifest(&store, outcome.image());
    let config = store
        .read_blob(&manifest.config.digest, 1 << 20)
        .unwrap()
        .unwrap();
    let config: oci::ImageConfig = serde_json::from_slice(&config).unwrap();
    assert_eq!(config.created.as_deref(), Some("1970-01-02T00:00:00Z"));
    bench.write("dockerfile", &text.replace("86400", "yesterday"));
    let outcome = bench.build(succeed).await;
    let message = &outcome.failure().message;
    assert!(
        message.contains("dockerfile:1") && message.contains("not a number"),
        "{message}"
    );
}

/// Returns the entries of a folder in the order of an upload, and the contents of its files.
fn entries_of(folder: &Path, prefix: &str, found: &mut Vec<(Entry, Vec<u8>)>) {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
    names.sort_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
    for name in names {
        let (path, shown) = (
            folder.join(&name),
            format!("{prefix}{}", name.to_str().unwrap()),
        );
        let meta = path.symlink_metadata().unwrap();
        let (kind, content) = if meta.is_dir() {
            (EntryKind::Folder, Vec::new())
        } else if meta.is_symlink() {
            let to = fs::read_link(&path).unwrap();
            (
                EntryKind::Symlink(to.as_os_str().as_bytes().to_vec()),
                Vec::new(),
            )
        } else {
            let content = fs::read(&path).unwrap();
            let (size, id) = (content.len() as u64, ContentId::of(&content));
            (EntryKind::File { size, content: id }, content)
        };
        let entry = Entry {
            path: shown.clone().into_bytes(),
            mode: meta.mode() & 0o7777,
            modified_s: meta.mtime(),
            modified_ns: u32::try_from(meta.mtime_nsec()).unwrap(),
            xattrs: BTreeMap::new(),
            kind,
        };
        found.push((entry, content));
        if meta.is_dir() {
            entries_of(&path, &format!("{shown}/"), found);
        }
    }
}

impl Bench {
    /// Uploads a folder; returns the id of the context.
    fn upload(&self, folder: &Path) -> String {
        let mut found = Vec::new();
        entries_of(folder, "", &mut found);
        let (entries, contents): (Vec<_>, Vec<_>) = found.into_iter().unzip();
        let announced = Announced {
            n_entries: entries.len() as u64,
            n_bytes: contents.iter().map(|content| content.len() as u64).sum(),
        };
        let keeping = Keeping {
            now_ms: 2_000_000_000_000,
            lifetime: std::time::Duration::from_secs(3600),
        };
        let store = self.store();
        let mut draft = store
            .begin_context("t", announced, keeping, Allowance::default())
            .unwrap();
        draft.entries(&entries).unwrap();
        for position in draft.missing().unwrap() {
            let at = usize::try_from(position).unwrap();
            draft.content(contents.get(at).unwrap()).unwrap();
        }
        draft.commit(keeping.now_ms).unwrap().id.to_string()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_image_of_an_uploaded_folder_is_that_of_the_folder_itself() {
    let files = [
        (
            "Dockerfile",
            "FROM scratch\nCOPY . /app/\nCOPY sub /other/\n",
        ),
        (".dockerignore", "*.log\n"),
        ("main.c", "int main;"),
        ("noise.log", "x"),
        ("sub/deep/file", "deep"),
    ];
    let mut bench = Bench::new(&files);
    std::os::unix::fs::symlink("../main.c", bench.context.path().join("sub/link")).unwrap();
    let here = bench.build(|_| panic!("nothing runs")).await;
    let digest = here.image().digest.clone();

    let uploaded = |context: String, archive: Option<&str>| Context::Uploaded {
        context,
        archive: archive.map(str::to_owned),
        dockerfile_text: None,
        name: "ctx".to_owned(),
    };
    // Another state: nothing is known of the first build there.
    let mut other = Bench::new(&[]);
    let id = other.upload(bench.context.path());
    other.uploaded = Some(uploaded(id, None));
    let there = other.build(|_| panic!("nothing runs")).await;
    assert_eq!(there.image().digest, digest);
    assert_eq!(there.image().n_run, 2);
    assert!(there.put_together());

    // Of the same list, nobody makes files; of another one that has the same files to copy, they are made, and found to be the same.
    for text in ["x", "more noise"] {
        bench.write("noise.log", text);
        let id = other.upload(bench.context.path());
        other.uploaded = Some(uploaded(id, None));
        let again = other.build(|_| panic!("nothing runs")).await;
        assert_eq!((&again.image().digest, again.image().n_run), (&digest, 0));
        assert_eq!(again.put_together(), text != "x", "{text}");
    }
    bench.write("main.c", "int changed;");
    let id = other.upload(bench.context.path());
    other.uploaded = Some(uploaded(id, None));
    let changed = other.build(|_| panic!("nothing runs")).await;
    assert_eq!(changed.image().n_run, 2);
    bench.write("main.c", "int main;");

    let folder = tempfile::tempdir().unwrap();
    let tar = fs::File::create(folder.path().join("context.tar")).unwrap();
    let mut tar = tar::Builder::new(tar);
    tar.follow_symlinks(false);
    tar.append_dir_all("", bench.context.path()).unwrap();
    tar.finish().unwrap();
    let id = other.upload(folder.path());
    other.uploaded = Some(uploaded(id.clone(), Some("context.tar")));
    let unpacked = other.build(|_| panic!("nothing runs")).await;
    assert_eq!(unpacked.image().digest, digest);
    other.uploaded = Some(uploaded(id, Some("missing.tar")));
    let failed = other.build(|_| panic!("nothing runs")).await;
    assert!(
        failed.failure().message.contains("missing.tar"),
        "{:?}",
        failed.failure()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_uploaded_context_is_found_for_its_own_tenant_only() {
    let mut bench = Bench::new(&[("Dockerfile", "FROM scratch\n")]);
    let id = bench.upload(bench.context.path());
    let store = bench.store();
    let parsed = id.parse().unwrap();
    assert!(store.context("t", &parsed).unwrap().is_some());
    assert!(store.context("other", &parsed).unwrap().is_none());
    for id in ["aaaaaaaaaaaaaaaaaaaaaaaaaa", "../../blobs", ""] {
        bench.uploaded = Some(Context::Uploaded {
            context: id.to_owned(),
            archive: None,
            dockerfile_text: None,
            name: "ctx".to_owned(),
        });
        let failed = bench.build(|_| panic!("nothing runs")).await;
        assert!(
            failed.failure().message.contains("not there any more"),
            "{:?}",
            failed.failure()
        );
    }
}

/// Waits until a build has said `words`.
async fn said(folder: &Path, words: &str) {
    let has = |record: &Body| matches!(record, Body::Output { bytes, .. } if String::from_utf8_lossy(bytes).contains(words));
    for _ in 0..1000 {
        if let Ok(mut reader) = Reader::open(folder) {
            while let Ok(Some(record)) = reader.next() {
                if has(&record.body) {
                    return;
                }
            }
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("the build has not said {words:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_says_for_which_cache_mount_it_waits_and_can_be_cancelled() {
    let mut bench = Bench::new(&[]);
    let line = |word: &str| {
        format!("FROM scratch\nRUN --mount=type=cache,target=/cache,sharing=locked [\"{word}\"]\n")
    };
    bench.write("Dockerfile", &line("first"));
    bench.build(succeed).await.image();
    let mounts = fs::read_dir(bench.state.path().join("store/mounts")).unwrap();
    let mounts: Vec<_> = mounts.map(|entry| entry.unwrap().path()).collect();
    assert_eq!(mounts.len(), 1);
    let lock = fs::File::open(mounts[0].join("0/lock")).unwrap();
    lock.lock().unwrap();
    let words = "waiting for the cache mount at /cache, which is in use";

    bench.write("Dockerfile", &line("second"));
    let (_, folder) = bench.next();
    let (built, ()) = tokio::join!(bench.build(succeed), async {
        said(&folder, words).await;
        lock.unlock().unwrap();
    });
    built.image();
    assert_eq!(built.reasons().len(), 1, "the step begins once");

    lock.lock().unwrap();
    bench.write("Dockerfile", &line("third"));
    let (_, folder) = bench.next();
    let cancel = bench.cancel.clone();
    let (built, ()) = tokio::join!(bench.build(succeed), async {
        said(&folder, words).await;
        cancel.cancel();
    });
    assert!(built.failure().message.contains("cancelled"));
    // Somebody else still has it.
    assert!(
        fs::File::open(mounts[0].join("0/lock"))
            .unwrap()
            .try_lock()
            .is_err()
    );
}

/// Builds a step that looks into its cache mount and leaves something there; returns what it has found.
async fn left_behind(bench: &mut Bench, mark: &'static str) -> Vec<String> {
    bench.options.cache = CacheMode::Ignore;
    let found = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&found);
    let look = move |step: &StepCommand| {
        let Some(Mounted::Files { mount, .. }) = step.mounts.first().map(|mount| &mount.what)
        else {
            panic!("there is no mount");
        };
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::openat(mount, ".", flags, Mode::empty()).unwrap();
        for entry in rustix::fs::Dir::read_from(&folder).unwrap() {
            let name = entry.unwrap().file_name().to_str().unwrap().to_owned();
            if !name.starts_with('.') {
                seen.lock().unwrap().push(name);
            }
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
        rustix::fs::openat(&folder, mark, flags, Mode::from_raw_mode(0o644)).unwrap();
        exit(0)
    };
    bench.build(look).await.image();
    let mut found = found.lock().unwrap().clone();
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_mount_is_seen_by_its_own_tenant_and_project_whatever_its_id() {
    let mut bench = Bench::new(&[(
        "Dockerfile",
        "FROM scratch\nRUN --mount=type=cache,id=/shared/../id,target=/cache [\"x\"]\n",
    )]);
    bench.options.cache_mounts = CacheMountScope::Project;
    assert_eq!(left_behind(&mut bench, "first").await, [""; 0]);
    assert_eq!(left_behind(&mut bench, "again").await, ["first"]);
    bench.name = "another project";
    assert_eq!(left_behind(&mut bench, "other").await, [""; 0]);
    (bench.name, bench.tenant) = ("ctx", "u");
    assert_eq!(left_behind(&mut bench, "poison").await, [""; 0]);
    bench.options.cache_mounts = CacheMountScope::Tenant;
    assert_eq!(left_behind(&mut bench, "whole tenant").await, [""; 0]);
    bench.name = "another project";
    assert_eq!(left_behind(&mut bench, "x").await, ["whole tenant"]);
    bench.tenant = "v";
    assert_eq!(left_behind(&mut bench, "x").await, [""; 0]);
    (bench.name, bench.tenant) = ("ctx", "t");
    bench.options.cache_mounts = CacheMountScope::Project;
    assert_eq!(left_behind(&mut bench, "x").await, ["again", "first"]);
}
