//! One image's root filesystem as one file: made once, handed out by address, the same as what others unpack.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use api::builder::{
    CreateSubassemblyRequest, GetSubassemblyRequest, ListBuildsRequest, SubassemblyPhase,
    SubassemblyStatus,
};
use serde_json::Value;
use testkit::process::{finish, run, tool};
use testkit::s3::{ACCESS_KEY, BUCKET, S3Server, SECRET_KEY};
use testkit::scratch::Scratch;
use tonic::Code;

use crate::command::{Bench, Ended};
use crate::http;
use crate::reader::{self, tar_names};
use crate::scene::{BUILD_TIMEOUT, Scene, Target};

/// What the tests make images of: everything that a flattened tree can get wrong, in several layers.
const DOCKERFILE: &str = "\
RUN mkdir -p /t/sub /t/hidden && echo one > /t/file && ln /t/file /t/hard && echo p > /t/pair && ln /t/pair /t/twin && ln -s sub/../file /t/link && echo x > /t/hidden/x
RUN chmod 6755 /t/file && chown 1000:2000 /t/sub && chmod 1777 /t/sub && mkfifo /t/pipe && touch -d @12345 /t/old && echo y > /t/gone
RUN rm -r /t/hidden && mkdir /t/hidden && echo z > /t/hidden/z && rm /t/gone && echo two > /t/hard.new && mv /t/hard.new /t/other
RUN echo long > /t/$(printf 'n%.0s' $(seq 200)) && printf raw > \"$(printf '/t/\\351')\"
ENV GREETING=hello
USER 1000
WORKDIR /t
ENTRYPOINT [\"/bin/cat\"]
LABEL a=b
";

async fn image(scene: &Scene, name: &str) -> String {
    let base = scene.busybox();
    let request = scene.dockerfile(name, &format!("FROM {base}\n{DOCKERFILE}"));
    scene.build(request).await.image()
}

async fn create(scene: &Scene, image: &str) -> SubassemblyStatus {
    let request = CreateSubassemblyRequest {
        oci_reference: image.to_owned(),
    };
    let answer = scene
        .kiln
        .subassemblies()
        .await
        .create_subassembly(request)
        .await;
    answer.unwrap().into_inner().status.unwrap()
}

async fn get(scene: &Scene, image: &str) -> SubassemblyStatus {
    let request = GetSubassemblyRequest {
        oci_reference: image.to_owned(),
    };
    let answer = scene
        .kiln
        .subassemblies()
        .await
        .get_subassembly(request)
        .await;
    answer.unwrap().into_inner().status.unwrap()
}

/// Waits until it is not being made any more.
async fn made(scene: &Scene, image: &str) -> SubassemblyStatus {
    let ended = async {
        loop {
            let status = get(scene, image).await;
            if status.phase() != SubassemblyPhase::Creating {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    };
    tokio::time::timeout(BUILD_TIMEOUT, ended).await.unwrap()
}

/// Returns the name of an image of the embedded registry after a restart, when the system has chosen another port.
fn moved(scene: &Scene, image: &str) -> String {
    let (_, rest) = image.split_once('/').unwrap();
    format!("{}/{rest}", scene.kiln.host())
}

fn is_root() -> bool {
    run(Command::new("id").arg("-u")).trim() == "0"
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_becomes_one_file_that_is_downloaded_by_an_address() {
    let scene = Scene::start(Target::Embedded);
    let image = image(&scene, "whole").await;
    let before = get(&scene, &image).await;
    assert_eq!(before.phase(), SubassemblyPhase::Unavailable);
    assert!(
        before.message.contains("nobody has asked"),
        "{}",
        before.message
    );
    let first = create(&scene, &image).await;
    assert_eq!(first.phase(), SubassemblyPhase::Creating, "{first:?}");
    let status = made(&scene, &image).await;
    assert_eq!(
        status.phase(),
        SubassemblyPhase::Available,
        "{}",
        status.message
    );
    assert_eq!(create(&scene, &image).await.digest, status.digest);

    let manifest: Value = serde_json::from_slice(&status.manifest).unwrap();
    assert_eq!(manifest["entrypoint"], serde_json::json!(["/bin/cat"]));
    assert_eq!(manifest["workdir"], "/t");
    assert_eq!(manifest["user"], "1000");
    assert_eq!(manifest["labels"]["a"], "b");
    assert_eq!(manifest["platform"]["os"], "linux");
    assert_eq!(manifest["digest"], status.digest.as_str());
    assert_eq!(
        manifest["sourceDigest"],
        reader::digest(&image, None).as_str()
    );
    assert_eq!(manifest["format"], "tar+zstd");
    conforms(&manifest);

    let whole = http::ask("GET", &status.url, &[]);
    assert_eq!(whole.status, 200);
    assert_eq!(whole.body.len() as u64, manifest["size"].as_u64().unwrap());
    let scratch = Scratch::new();
    let path = scratch.write("file", &whole.body);
    let digest = run(Command::new("sha256sum").arg(&path));
    assert_eq!(format!("sha256:{}", &digest[..64]), status.digest);
    let part = http::ask("GET", &status.url, &["Range: bytes=100-199"]);
    assert_eq!(part.status, 206);
    assert_eq!(part.body, whole.body[100..200]);
    assert_eq!(
        part.header("content-range"),
        Some(format!("bytes 100-199/{}", whole.body.len()).as_str())
    );
    assert_eq!(
        http::ask("GET", &status.url, &["Range: bytes=99999999-"]).status,
        416
    );
    let head = http::ask("HEAD", &status.url, &[]);
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(
        head.header("content-length"),
        Some(whole.body.len().to_string().as_str())
    );
}

/// Holds a manifest against the schema that is published: every field of it, and no other.
fn conforms(manifest: &Value) {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/subassembly-manifest.schema.json");
    let schema: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    check(&schema, manifest, "manifest");
}

/// As much of JSON Schema as that document uses.
fn check(schema: &Value, value: &Value, at: &str) {
    if let Some(expected) = schema.get("const") {
        assert_eq!(value, expected, "{at}");
    }
    if let Some(choices) = schema.get("enum").and_then(Value::as_array) {
        assert!(choices.contains(value), "{at}: {value}");
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    match schema.get("type") {
        Some(Value::String(wanted)) => assert_eq!(kind, wanted, "{at}"),
        Some(Value::Array(wanted)) => {
            assert!(wanted.iter().any(|wanted| wanted == kind), "{at}: {kind}");
        }
        _ => {}
    }
    if let (Some(items), Some(values)) = (schema.get("items"), value.as_array()) {
        for (index, value) in values.iter().enumerate() {
            check(items, value, &format!("{at}[{index}]"));
        }
    }
    let Some(fields) = value.as_object() else {
        return;
    };
    for required in schema
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        assert!(
            fields.contains_key(required.as_str().unwrap()),
            "{at} lacks {required}"
        );
    }
    for (name, value) in fields {
        let known = schema.pointer(&format!("/properties/{name}"));
        match known.or_else(|| {
            schema
                .get("additionalProperties")
                .filter(|more| more.is_object())
        }) {
            Some(schema) => check(schema, value, &format!("{at}.{name}")),
            None => panic!("{at}.{name} is not in the schema"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_that_were_not_signed_for_this_file_open_nothing() {
    let scene = Scene::around(
        testkit::docker_registry::DockerRegistry::start(),
        Target::Embedded,
        "[subassembly]\nurl_lifetime = \"2s\"\n",
    );
    let image = image(&scene, "addresses").await;
    create(&scene, &image).await;
    let status = made(&scene, &image).await;
    let (address, query) = status.url.split_once('?').unwrap();
    let (expires, signature) = query.split_once('&').unwrap();
    let another = format!(
        "{}{}",
        &address[..address.len() - 1],
        if address.ends_with('0') { '1' } else { '0' }
    );
    let refused = [
        address.to_owned(),
        format!("{address}?{expires}&signature=AAAA"),
        format!("{address}?expires=99999999999&{signature}"),
        format!("{another}?{query}"),
        format!("{address}/../../etc/passwd?{query}"),
    ];
    for url in &refused {
        let answer = http::ask("GET", url, &[]);
        assert!(
            (400..500).contains(&answer.status),
            "{url}: {}",
            answer.status
        );
    }
    let is_over = async {
        while http::ask("GET", &status.url, &[]).status == 200 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), is_over)
        .await
        .unwrap();
    assert_eq!(http::ask("GET", &status.url, &[]).status, 404);
    let renewed = get(&scene, &image).await;
    assert_eq!(http::ask("HEAD", &renewed.url, &[]).status, 200);
}

/// Returns the configuration for subassemblies in the bucket of `server`; `folder` is for the keys.
fn in_bucket(server: &S3Server, folder: &Scratch) -> String {
    let id = folder.write("id", ACCESS_KEY);
    let secret = folder.write("secret", format!("{SECRET_KEY}\n"));
    format!(
        "[subassembly]\nbucket = \"{BUCKET}\"\nbucket_prefix = \"made/by-kiln\"\n[objects]\nendpoint = \"{}\"\naccess_key_id_file = \"{}\"\nsecret_access_key_file = \"{}\"\n",
        server.endpoint(),
        id.display(),
        secret.display()
    )
}

/// Tells whether a file below `folder` holds `text`.
fn holds(folder: &Path, text: &str) -> bool {
    let found = finish(Command::new("grep").args(["-rqF", text]).arg(folder));
    found.status.success()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_in_a_bucket_is_fetched_from_there() {
    let (mut server, keys) = (S3Server::start(), Scratch::new());
    let mut scene = Scene::around(
        testkit::docker_registry::DockerRegistry::start(),
        Target::Embedded,
        &in_bucket(&server, &keys),
    );
    let mut image = image(&scene, "bucket").await;
    create(&scene, &image).await;
    let status = made(&scene, &image).await;
    assert_eq!(
        status.phase(),
        SubassemblyPhase::Available,
        "{}",
        status.message
    );
    let hex = status.digest.strip_prefix("sha256:").unwrap();
    let place = format!("{}/{BUCKET}/made/by-kiln/sha256/{hex}?", server.endpoint());
    assert!(status.url.starts_with(&place), "{}", status.url);

    // The command goes on with a download that has begun, in the bucket as with us.
    let scratch = Scratch::new();
    let path = scratch.join("file");
    let mut command = scene.kiln.command();
    command
        .args(["subassembly", "get", "--server", scene.kiln.host(), &image])
        .arg("-o")
        .arg(&path);
    run(&mut command);
    let actual = run(Command::new("sha256sum").arg(&path));
    assert_eq!(actual.get(..64), Some(hex));
    let part = http::ask("GET", &status.url, &["Range: bytes=5-9"]);
    let whole = std::fs::read(&path).unwrap();
    assert_eq!((part.status, &part.body[..]), (206, &whole[5..10]));
    let bare = status.url.split_once('?').unwrap().0;
    assert_eq!(http::ask("GET", bare, &[]).status, 403);

    // Only the bucket counts: the store may forget its own, and the next server finds it too.
    let blob = scene.kiln.state().join("store/blobs/sha256").join(hex);
    std::fs::remove_file(&blob).unwrap();
    scene.kiln.kill();
    scene.kiln.start_again();
    image = moved(&scene, &image);
    let again = create(&scene, &image).await;
    assert_eq!(again.phase(), SubassemblyPhase::Available);
    assert_eq!(again.digest, status.digest);

    // What the bucket has lost is put there again.
    server.empty();
    assert_eq!(
        get(&scene, &image).await.phase(),
        SubassemblyPhase::Unavailable
    );
    create(&scene, &image).await;
    let renewed = made(&scene, &image).await;
    assert_eq!(renewed.digest, status.digest, "{}", renewed.message);
    assert_eq!(http::ask("GET", &renewed.url, &[]).body, whole);
    assert!(!holds(&scene.kiln.state(), SECRET_KEY));

    // A store that is gone is a failure of the call, and nothing that is said of the image.
    server.stop();
    let request = GetSubassemblyRequest {
        oci_reference: image,
    };
    let mut client = scene.kiln.subassemblies().await;
    let refused = client.get_subassembly(request).await.unwrap_err();
    assert!(!refused.message().contains(SECRET_KEY), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_refuses_says_so_and_is_tried_again() {
    let (server, keys) = (S3Server::start(), Scratch::new());
    let scene = Scene::around(
        testkit::docker_registry::DockerRegistry::start(),
        Target::Embedded,
        &in_bucket(&server, &keys),
    );
    let image = image(&scene, "refused").await;
    // Read again for each use; nothing is recorded yet, so the first to use it is the worker.
    keys.write("secret", "guessed-hidden-key");
    create(&scene, &image).await;
    let status = made(&scene, &image).await;
    assert_eq!(status.phase(), SubassemblyPhase::Unavailable);
    assert!(
        status
            .message
            .contains("put a subassembly into bucket kiln"),
        "{}",
        status.message
    );
    assert!(!holds(&scene.kiln.state(), "guessed-hidden-key"));
    keys.write("secret", SECRET_KEY);
    create(&scene, &image).await;
    let status = made(&scene, &image).await;
    assert_eq!(
        status.phase(),
        SubassemblyPhase::Available,
        "{}",
        status.message
    );
    assert_eq!(http::ask("GET", &status.url, &[]).status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_who_ask_at_once_make_one_file() {
    let scene = Scene::start(Target::Embedded);
    let image = image(&scene, "many").await;
    let builds = || {
        std::fs::read_dir(scene.kiln.state().join("builds"))
            .unwrap()
            .count()
    };
    let before = builds();
    let mut asked = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let (mut client, image) = (scene.kiln.subassemblies().await, image.clone());
        asked.spawn(async move {
            let request = CreateSubassemblyRequest {
                oci_reference: image,
            };
            client
                .create_subassembly(request)
                .await
                .unwrap()
                .into_inner()
                .status
                .unwrap()
        });
    }
    let statuses = asked.join_all().await;
    assert!(
        statuses
            .iter()
            .all(|status| status.phase() != SubassemblyPhase::Unavailable)
    );
    let running = scene
        .kiln
        .image_builder()
        .await
        .list_builds(ListBuildsRequest {})
        .await
        .unwrap();
    assert!(
        running.into_inner().builds.is_empty(),
        "it is no build of an image"
    );
    assert_eq!(
        made(&scene, &image).await.phase(),
        SubassemblyPhase::Available
    );
    assert_eq!(builds() - before, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_for_wrongly_gets_the_codes_of_resolving() {
    let scene = Scene::start(Target::Embedded);
    let mut client = scene.kiln.subassemblies().await;
    for (reference, code) in [
        (String::new(), Code::InvalidArgument),
        ("NOT/a/Reference:!".to_owned(), Code::InvalidArgument),
        (format!("{}/nothing:1", scene.kiln.host()), Code::NotFound),
        (
            format!("{}/nothing:1", scene.registry.host()),
            Code::NotFound,
        ),
        ("127.0.0.1:1/x:1".to_owned(), Code::Unavailable),
    ] {
        let request = CreateSubassemblyRequest {
            oci_reference: reference.clone(),
        };
        let answer = client.create_subassembly(request).await;
        assert_eq!(answer.unwrap_err().code(), code, "{reference}");
        let request = GetSubassemblyRequest {
            oci_reference: reference.clone(),
        };
        assert_eq!(
            client.get_subassembly(request).await.unwrap_err().code(),
            code,
            "{reference}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_says_why_survives_a_restart_and_is_tried_again() {
    let mut scene = Scene::start(Target::Embedded);
    let mut image = image(&scene, "failing").await;
    let manifest = reader::digest(&image, None);
    let blobs = scene.kiln.state().join("store/blobs/sha256");
    // The newest layers of the image, out of reach for a while.
    let text =
        std::fs::read_to_string(blobs.join(manifest.strip_prefix("sha256:").unwrap())).unwrap();
    let document: Value = serde_json::from_str(&text).unwrap();
    let layer = document["layers"].as_array().unwrap().last().unwrap()["digest"]
        .as_str()
        .unwrap()
        .to_owned();
    let blob = blobs.join(layer.strip_prefix("sha256:").unwrap());
    let aside = blob.with_extension("aside");
    std::fs::rename(&blob, &aside).unwrap();
    create(&scene, &image).await;
    let status = made(&scene, &image).await;
    assert_eq!(status.phase(), SubassemblyPhase::Unavailable);
    assert!(status.message.contains(&layer), "{}", status.message);
    scene.kiln.kill();
    scene.kiln.start_again();
    image = moved(&scene, &image);
    assert_eq!(get(&scene, &image).await.message, status.message);
    std::fs::rename(&aside, &blob).unwrap();
    create(&scene, &image).await;
    assert_eq!(
        made(&scene, &image).await.phase(),
        SubassemblyPhase::Available
    );
    scene.kiln.kill();
    scene.kiln.start_again();
    image = moved(&scene, &image);
    let again = get(&scene, &image).await;
    assert_eq!(again.phase(), SubassemblyPhase::Available);
    assert_eq!(http::ask("HEAD", &again.url, &[]).status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_waits_is_made_by_the_next_server() {
    let mut scene = Scene::around(
        testkit::docker_registry::DockerRegistry::start(),
        Target::Registry,
        "[server]\nmax_running_builds = 1\n",
    );
    let image = image(&scene, "waiting").await;
    let base = scene.busybox();
    let slow = scene.dockerfile("slow", &format!("FROM {base}\nRUN sleep 3\n"));
    let mut client = scene.kiln.image_builder().await;
    let mut stream = client.build(slow).await.unwrap().into_inner();
    let _first = stream.message().await.unwrap();
    assert_eq!(
        create(&scene, &image).await.phase(),
        SubassemblyPhase::Creating
    );
    scene.kiln.kill();
    scene.kiln.start_again();
    let status = made(&scene, &image).await;
    assert_eq!(
        status.phase(),
        SubassemblyPhase::Available,
        "{}",
        status.message
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_holds_what_another_tool_unpacks_from_the_image() {
    let scene = Scene::around(
        testkit::docker_registry::DockerRegistry::start(),
        Target::Embedded,
        "[subassembly]\nformat = \"squashfs\"\n",
    );
    let _needed = tool("tar2sqfs", "squashfs-tools-ng");
    let image = image(&scene, "compared").await;
    let scratch = Scratch::new();
    let path = scratch.join("image.squashfs");
    let mut command = scene.kiln.command();
    command.args([
        "subassembly",
        "create",
        "--server",
        scene.kiln.host(),
        &image,
    ]);
    run(&mut command);
    let mut command = scene.kiln.command();
    command
        .args([
            "subassembly",
            "get",
            "--server",
            scene.kiln.host(),
            &image,
            "-o",
        ])
        .arg(&path);
    let digest = run(&mut command);
    let actual = run(Command::new("sha256sum").arg(&path));
    assert_eq!(digest.trim(), format!("sha256:{}", &actual[..64]));
    let mut pulled = reader::pull(&image, None);
    let theirs = pulled.root();
    if !is_root() {
        // Owners and mounts are root's; names are everybody's.
        return lists_what_is_there(&path);
    }
    let mounted = Mounted::new(&scene, &path, scratch.join("mounted"));
    let (ours, theirs) = (tree(&mounted.0), tree(&theirs));
    for (name, line) in &theirs {
        assert_eq!(ours.get(name), Some(line), "{name}");
    }
    assert_eq!(ours.len(), theirs.len());
    assert!(
        ours.get("t/file").unwrap().starts_with("6755 0:0 "),
        "{:?}",
        ours.get("t/file")
    );
    assert_eq!(
        std::fs::metadata(mounted.0.join("t/pair")).unwrap().ino(),
        std::fs::metadata(mounted.0.join("t/twin")).unwrap().ino()
    );
    let written = std::fs::write(mounted.0.join("t/new"), "x");
    assert_eq!(
        written.unwrap_err().kind(),
        std::io::ErrorKind::ReadOnlyFilesystem
    );
}

fn lists_what_is_there(path: &Path) {
    let mut command = Command::new(tool("unsquashfs", "squashfs-tools"));
    let list = run(command.args(["-no-progress", "-lls"]).arg(path));
    for name in ["t/file", "t/hidden/z", "t/pipe"] {
        assert!(
            list.contains(&format!("squashfs-root/{name}")),
            "{name}\n{list}"
        );
    }
    assert!(
        !list.contains("t/gone") && !list.contains("t/hidden/x"),
        "{list}"
    );
}

/// A mounted file, until this is dropped.
struct Mounted(std::path::PathBuf);

impl Mounted {
    fn new(scene: &Scene, file: &Path, folder: std::path::PathBuf) -> Self {
        std::fs::create_dir(&folder).unwrap();
        let mut command = scene.kiln.command();
        command
            .args(["subassembly", "mount"])
            .arg(file)
            .arg(&folder);
        run(&mut command);
        Self(folder)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _tried = finish(Command::new("umount").arg(&self.0));
    }
}

/// Returns everything below `root` but devices: mode, owner, time, and what it is.
fn tree(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(folder) = pending.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let metadata = std::fs::symlink_metadata(&path).unwrap();
            let kind = metadata.mode() & 0o170_000;
            let what = match kind {
                0o040_000 => {
                    pending.push(path.clone());
                    "directory".to_owned()
                }
                0o120_000 => format!("-> {}", std::fs::read_link(&path).unwrap().display()),
                0o100_000 => format!(
                    "{:?}",
                    std::fs::read(&path)
                        .unwrap()
                        .iter()
                        .fold(0u64, |sum, byte| {
                            sum.wrapping_mul(31).wrapping_add(u64::from(*byte))
                        })
                ),
                0o010_000 => "fifo".to_owned(),
                _ => continue,
            };
            let name = path.strip_prefix(root).unwrap();
            let line = format!(
                "{:o} {}:{} {} {} {what}",
                metadata.mode() & 0o7777,
                metadata.uid(),
                metadata.gid(),
                metadata.mtime(),
                if kind == 0o040_000 {
                    0
                } else {
                    metadata.nlink()
                },
            );
            found.insert(format!("{name:?}").trim_matches('"').to_owned(), line);
        }
    }
    found
}

#[test]
fn the_command_makes_one_without_a_server() {
    let bench = Bench::new();
    let kiln = |arguments: &[&str]| Ended::of(finish(bench.kiln().args(arguments)));
    let text = |ended: Ended| String::from_utf8(ended.stdout).unwrap();
    kiln(&["build", "-t", "one", "context"]).well();
    let made = text(
        kiln(&[
            "subassembly",
            "create",
            "--format",
            "tar+zstd",
            "--json",
            "one",
        ])
        .well(),
    );
    let document: Value = serde_json::from_str(&made).unwrap();
    conforms(&document["manifest"]);
    let again = text(kiln(&["subassembly", "create", "--format", "tar+zstd", "one"]).well());
    assert_eq!(again.trim(), document["digest"].as_str().unwrap());
    kiln(&[
        "subassembly",
        "get",
        "--format",
        "tar+zstd",
        "-o",
        "one.tar.zst",
        "one",
    ])
    .well();
    let plain = bench.path("one.tar");
    let mut unpack = Command::new(tool("zstd", "zstd"));
    run(unpack
        .args(["-q", "-d", "-o"])
        .arg(&plain)
        .arg(bench.path("one.tar.zst")));
    let names = tar_names(&plain);
    assert!(
        names.contains(&"made".to_owned()) && names.contains(&"data".to_owned()),
        "{names:?}"
    );
    kiln(&["subassembly", "mount", "one.tar.zst", "context"])
        .with(2, &["cannot be mounted", "tar --zstd"]);
    kiln(&["subassembly", "mount", "context/Dockerfile", "context"])
        .with(2, &["not the file of a subassembly"]);
    kiln(&["subassembly", "get", "--format", "squashfs", "one"])
        .with(1, &["nobody has made it here"]);
}
