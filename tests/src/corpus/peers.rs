//! What cases talk to: a registry with the bases, a git server, a web server. All on loopback, all from declarations.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use testkit::background::Background;
use testkit::docker_registry::DockerRegistry;
use testkit::git_server::{File, GitServer};
use testkit::process::{clean_command, run, tool};
use testkit::scratch::Scratch;

use super::case::{Case, Commit, Make};
use super::describe::sha256;
use super::input;

/// Programs that steps of cases use.
const APPLETS: &[&str] = &[
    "sh",
    "ash",
    "awk",
    "basename",
    "base64",
    "cat",
    "chgrp",
    "chmod",
    "chown",
    "cp",
    "cut",
    "date",
    "dd",
    "dirname",
    "du",
    "echo",
    "env",
    "expr",
    "false",
    "find",
    "grep",
    "head",
    "hostname",
    "id",
    "ln",
    "ls",
    "mkdir",
    "mkfifo",
    "mknod",
    "mktemp",
    "mount",
    "mv",
    "nproc",
    "od",
    "printenv",
    "printf",
    "ps",
    "pwd",
    "readlink",
    "realpath",
    "rm",
    "rmdir",
    "sed",
    "seq",
    "sha256sum",
    "sleep",
    "sort",
    "stat",
    "tail",
    "tar",
    "tee",
    "test",
    "touch",
    "tr",
    "true",
    "tty",
    "umask",
    "uname",
    "uniq",
    "wc",
    "wget",
    "which",
    "whoami",
    "xargs",
];

/// Everything that cases talk to.
pub(super) struct Peers {
    registry: DockerRegistry,
    git: GitServer,
    web: Background,
    names: Vec<String>,
    commits: HashMap<String, String>,
    /// The layers of the bases, by the digest of their tar.
    pub(super) layers: BTreeMap<String, String>,
    layouts: Scratch,
}

/// The surroundings of one case.
pub(super) struct Scene<'a> {
    /// Everything below is removed with it.
    pub(super) scratch: Scratch,
    /// The context.
    pub(super) context: PathBuf,
    /// Named contexts, without braces.
    pub(super) contexts: Vec<(String, String)>,
    /// The socket of an agent.
    pub(super) agent: Option<(PathBuf, UnixListener)>,
    /// The layers of the bases.
    pub(super) layers: &'a BTreeMap<String, String>,
    values: Vec<(&'static str, String)>,
}

/// `tests/corpus/bases.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Bases {
    base: Vec<Base>,
}

/// An image that cases build on.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Base {
    /// Name in FROM.
    name: String,
    /// Whether its first layer is busybox.
    #[serde(default)]
    busybox: bool,
    /// What is in its other layers.
    #[serde(default)]
    layers: Vec<Vec<Make>>,
    /// Its `config`.
    #[serde(default)]
    config: Value,
    /// Members of the whole configuration that are not as usual.
    #[serde(default)]
    image: serde_json::Map<String, Value>,
}

type Answers = HashMap<String, (StatusCode, HeaderMap, Vec<u8>)>;

impl Peers {
    /// Starts the servers with everything that these cases want of them.
    pub(super) fn start(cases: &[Case]) -> Self {
        let text = fs::read_to_string(super::root().join("tests/corpus/bases.toml")).unwrap();
        let bases: Bases = toml::from_str(&text).unwrap();
        let (registry, git, layouts) =
            (DockerRegistry::start(), GitServer::start(), Scratch::new());
        let mut layers = BTreeMap::new();
        for base in &bases.base {
            let folder = layouts.join(&base.name);
            write_layout(base, &folder, &mut layers);
            push(
                &folder,
                &format!("{}/{}:latest", registry.host(), base.name),
            );
        }
        let mut commits = HashMap::new();
        for case in cases.iter().filter(|case| !case.options.git.is_empty()) {
            commits.insert(case.name.clone(), commit(&git, case));
        }
        let web = Background::serve(
            Router::new()
                .fallback(answer)
                .with_state(Arc::new(answers(cases))),
        );
        let names = bases.base.into_iter().map(|base| base.name).collect();
        Self {
            registry,
            git,
            web,
            names,
            commits,
            layers,
            layouts,
        }
    }

    /// Makes the context of a case and what else it builds with.
    pub(super) fn scene(&self, case: &Case) -> Scene<'_> {
        let scratch = Scratch::new();
        let context = scratch.join("context");
        input::write(case, &context);
        let flat = flat(case);
        let values = vec![
            ("{http}", format!("http://{}/{flat}", self.web.address())),
            ("{git}", self.git.url(&flat)),
            ("{githost}", self.git.host()),
            ("{registry}", self.registry.host().to_owned()),
            (
                "{commit}",
                self.commits.get(&case.name).cloned().unwrap_or_default(),
            ),
            ("{layouts}", self.layouts.path().display().to_string()),
        ];
        let agent = case.options.ssh.then(|| {
            let path = scratch.join("agent");
            let listener = UnixListener::bind(&path).unwrap();
            (path, listener)
        });
        let mut scene = Scene {
            scratch,
            context,
            contexts: Vec::new(),
            agent,
            layers: &self.layers,
            values,
        };
        for name in &self.names {
            scene.contexts.push((
                name.clone(),
                format!("docker-image://{}/{name}:latest", self.registry.host()),
            ));
        }
        for (name, what) in &case.options.contexts {
            let what = scene.filled(what);
            scene.contexts.retain(|(other, _)| other != name);
            let what = if what.contains("://") {
                what
            } else {
                let folder = scene.scratch.join("contexts").join(&what);
                input::write_named(case, &what, &folder);
                folder.display().to_string()
            };
            scene.contexts.push((name.clone(), what));
        }
        scene
    }
}

impl Scene<'_> {
    /// Returns a text with the addresses of the peers.
    pub(super) fn filled(&self, text: &str) -> String {
        self.values
            .iter()
            .fold(text.to_owned(), |text, (name, value)| {
                text.replace(name, value)
            })
    }

    /// Returns a text with names for the addresses of the peers, which are others each time.
    pub(super) fn blanked(&self, text: &str) -> String {
        let known = self.values.iter().filter(|(_, value)| !value.is_empty());
        let text = known.fold(text.to_owned(), |text, (name, value)| {
            text.replace(value.as_str(), name)
        });
        text.replace(&self.scratch.path().display().to_string(), "{folder}")
    }
}

/// Returns the name of a case as one part of a path.
fn flat(case: &Case) -> String {
    case.name.replace('/', "-")
}

/// Makes the repository of a case and returns the name of its last commit.
fn commit(git: &GitServer, case: &Case) -> String {
    let mut repository = git.repository(&flat(case));
    let mut last = String::new();
    for Commit { branch, tag, files } in &case.options.git {
        let files: Vec<File> = files
            .iter()
            .map(
                |(path, text)| match (text.strip_prefix("-> "), text.strip_prefix("+x ")) {
                    (Some(target), _) => File::symlink(path, target),
                    (None, Some(text)) => File::executable(path, text),
                    (None, None) => File::new(path, text.as_str()),
                },
            )
            .collect();
        last = repository.commit(branch.as_deref().unwrap_or("main"), &files);
        if let Some(tag) = tag {
            repository.tag(tag, &last);
        }
    }
    last
}

/// Returns all that the web server has.
fn answers(cases: &[Case]) -> Answers {
    let mut answers = Answers::new();
    for case in cases.iter().filter(|case| !case.options.http.is_empty()) {
        let scratch = Scratch::new();
        let made = scratch.join("made");
        input::write(case, &made);
        for served in &case.options.http {
            let content = served.file.as_ref().map_or_else(
                || served.text.clone().unwrap_or_default().into_bytes(),
                |file| fs::read(made.join(file)).unwrap(),
            );
            let mut headers = HeaderMap::new();
            for (name, value) in &served.headers {
                let value = value.replace("{here}", &format!("/{}", flat(case)));
                headers.insert(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
            }
            let status = StatusCode::from_u16(served.status.unwrap_or(200)).unwrap();
            answers.insert(
                format!("/{}{}", flat(case), served.path),
                (status, headers, content),
            );
        }
    }
    answers
}

async fn answer(State(answers): State<Arc<Answers>>, uri: Uri) -> Response {
    let path = uri.path_and_query().map_or("", |path| path.as_str());
    match answers.get(path).or_else(|| answers.get(uri.path())) {
        Some((status, headers, content)) => {
            (*status, headers.clone(), content.clone()).into_response()
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

/// Writes a base as an OCI layout.
fn write_layout(base: &Base, folder: &Path, known: &mut BTreeMap<String, String>) {
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let keep = |content: &[u8], media_type: &str| {
        let digest = sha256(content);
        fs::write(blobs.join(&digest), content).unwrap();
        json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": content.len() })
    };
    let mut tars: Vec<_> = base
        .layers
        .iter()
        .map(|entries| input::archive(entries))
        .collect();
    if base.busybox {
        tars.insert(0, busybox());
    }
    let (mut descriptors, mut diff_ids) = (Vec::new(), Vec::new());
    for (index, tar) in tars.iter().enumerate() {
        let diff_id = format!("sha256:{}", sha256(tar));
        known
            .entry(diff_id.clone())
            .or_insert_with(|| format!("{}/{index}", base.name));
        diff_ids.push(diff_id);
        descriptors.push(keep(tar, "application/vnd.oci.image.layer.v1.tar"));
    }
    let history: Vec<_> = tars
        .iter()
        .map(|_| json!({ "created": "2020-01-01T00:00:00Z", "created_by": "a layer of the base" }))
        .collect();
    let mut config = json!({
        "created": "2020-01-01T00:00:00Z",
        "architecture": architecture(),
        "os": "linux",
        "config": base.config,
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "history": history,
    });
    config.as_object_mut().unwrap().extend(base.image.clone());
    let config = keep(
        config.to_string().as_bytes(),
        "application/vnd.oci.image.config.v1+json",
    );
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({ "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": descriptors });
    let mut manifest = keep(manifest.to_string().as_bytes(), media_type);
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "latest" });
    fs::write(
        folder.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .unwrap();
    let index = json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [manifest] });
    fs::write(folder.join("index.json"), index.to_string()).unwrap();
}

/// Returns the architecture of this machine as images name it.
pub(super) fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    }
}

/// Returns the tar of a small system.
fn busybox() -> Vec<u8> {
    let program = fs::read(tool("busybox", "busybox-static")).unwrap();
    let folders = [
        "bin", "dev", "etc", "proc", "root", "sys", "tmp", "usr", "var",
    ];
    let mut entries: Vec<_> = folders
        .iter()
        .map(|path| Make {
            path: (*path).to_owned(),
            dir: true,
            ..Make::default()
        })
        .collect();
    entries[6].mode = Some("1777".to_owned());
    let text = |path: &str, text: &str| Make {
        path: path.to_owned(),
        text: Some(text.to_owned()),
        ..Make::default()
    };
    entries.push(text("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\nnobody:x:65534:65534::/nonexistent:/bin/false\n"));
    entries.push(text(
        "etc/group",
        "root:x:0:\nextra:x:20:user\nuser:x:1000:\nnogroup:x:65534:\n",
    ));
    // Container runtimes mount over these; where they are missing is a case of its own.
    entries.extend(["etc/hosts", "etc/resolv.conf", "etc/hostname"].map(|path| text(path, "")));
    entries.extend(APPLETS.iter().map(|applet| Make {
        path: format!("bin/{applet}"),
        symlink: Some("busybox".to_owned()),
        ..Make::default()
    }));
    let mut archive = input::archive(&entries);
    // The two blocks of zeros that end an archive.
    archive.truncate(archive.len() - 1024);
    let mut builder = tar::Builder::new(archive);
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o755);
    header.set_size(program.len() as u64);
    builder
        .append_data(&mut header, "bin/busybox", program.as_slice())
        .unwrap();
    builder.into_inner().unwrap()
}

fn push(layout: &Path, reference: &str) {
    let mut command = clean_command(tool("skopeo", "skopeo"));
    command.args([
        "--insecure-policy",
        "copy",
        "--quiet",
        "--dest-tls-verify=false",
        "--dest-no-creds",
    ]);
    // Else it packs the layers.
    command.arg("--preserve-digests");
    command
        .arg(format!("oci:{}:latest", layout.display()))
        .arg(format!("docker://{reference}"));
    run(command.env("HOME", "/nonexistent"));
}

#[test]
fn a_path_may_hold_bytes_and_repetitions() {
    assert_eq!(input::bytes("a\\xff{b*3}{c}"), b"a\xffbbb{c}");
}
