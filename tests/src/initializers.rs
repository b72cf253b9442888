//! What a workspace can be filled with beside a repository: files, archives, and several things in their order.

use std::path::Path;
use std::process::Command;

use api::builder::build_source::From;
use api::builder::{BuildRequest, BuildSource, BuildSourceDockerfile};
use api::contentservice::file_download_initializer::FileInfo;
use api::contentservice::workspace_initializer::Spec;
use api::contentservice::{
    CloneTargetMode, CompositeInitializer, EmptyInitializer, FileDownloadInitializer,
    FromBackupInitializer, GitInitializer, PrebuildInitializer, SnapshotInitializer,
    WorkspaceInitializer,
};
use testkit::docker_registry::DockerRegistry;
use testkit::git_server::{File, LfsObject};
use testkit::process::{run, tool};
use testkit::scratch::Scratch;
use tonic::Code;

use crate::reader;
use crate::scene::{Scene, Target, all_credentials};

/// A scene with a folder of snapshots.
struct Stage {
    scene: Scene,
    snapshots: Scratch,
}

impl Stage {
    fn new() -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        let snapshots = Scratch::new();
        // Workers are somebody else.
        std::fs::set_permissions(snapshots.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let config = format!("[snapshots]\nfolder = \"{}\"\n", snapshots.path().display());
        Self {
            scene: Scene::around(DockerRegistry::start(), Target::Embedded, &config),
            snapshots,
        }
    }

    /// Packs files into an archive of the store.
    fn archive(&self, name: &str, files: &[(&str, &str)]) {
        let root = Scratch::new();
        for (path, content) in files {
            root.write(path, content);
        }
        let path = self.snapshots.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut tar = Command::new(tool("tar", "tar"));
        tar.args(["--create", "--gzip", "--file"]).arg(&path);
        run(tar.arg("--directory").arg(root.path()).arg("."));
        let mut open = Command::new("chmod");
        run(open.args(["-R", "a+rX"]).arg(self.snapshots.path()));
    }

    fn git(&self, name: &str, files: &[File]) -> Spec {
        let commit = self.scene.git.repository(name).commit("main", files);
        Spec::Git(self.git_at(name, &commit, ""))
    }

    fn git_at(&self, name: &str, commit: &str, location: &str) -> GitInitializer {
        GitInitializer {
            remote_uri: self.scene.git.url(name),
            target_mode: CloneTargetMode::RemoteCommit.into(),
            clone_taget: commit.to_owned(),
            checkout_location: location.to_owned(),
            ..GitInitializer::default()
        }
    }

    /// Returns a download of a file, over the server's own registry: any HTTP server would do.
    fn file(&self, content: &str, path: &str) -> FileInfo {
        let image = self.scene.busybox();
        let repository = image
            .split_once('/')
            .unwrap()
            .1
            .split(':')
            .next()
            .unwrap()
            .to_owned();
        let (host, digest) = (
            self.scene.registry.host(),
            put_blob(self.scene.registry.host(), &repository, content),
        );
        FileInfo {
            url: format!("http://{host}/v2/{repository}/blobs/{digest}"),
            file_path: path.to_owned(),
            digest,
        }
    }

    async fn build(&self, spec: Spec) -> crate::scene::Said {
        self.scene.build(request(spec)).await
    }
}

/// Puts a blob into a registry and returns its digest.
fn put_blob(host: &str, repository: &str, content: &str) -> String {
    let scratch = Scratch::new();
    let path = scratch.write("blob", content);
    let digest = format!(
        "sha256:{}",
        &run(Command::new("sha256sum").arg(&path))[..64]
    );
    let begun = crate::http::ask(
        "POST",
        &format!("http://{host}/v2/{repository}/blobs/uploads/"),
        &["Content-Length: 0"],
    );
    assert_eq!(begun.status, 202);
    let place = begun.header("location").unwrap();
    let url = format!("{place}&digest={digest}");
    let put = crate::http::send(
        "PUT",
        &url,
        &["Content-Type: application/octet-stream"],
        content.as_bytes(),
    );
    assert_eq!(put.status, 201);
    digest
}

fn request(spec: Spec) -> BuildRequest {
    let file = BuildSourceDockerfile {
        source: Some(WorkspaceInitializer { spec: Some(spec) }),
        dockerfile_path: "Dockerfile".to_owned(),
        context_path: ".".to_owned(),
        ..BuildSourceDockerfile::default()
    };
    BuildRequest {
        source: Some(BuildSource {
            from: Some(From::File(file)),
        }),
        auth: Some(all_credentials()),
        ..BuildRequest::default()
    }
}

fn composite(parts: impl IntoIterator<Item = Spec>) -> Spec {
    let initializer = parts
        .into_iter()
        .map(|spec| WorkspaceInitializer { spec: Some(spec) });
    Spec::Composite(CompositeInitializer {
        initializer: initializer.collect(),
    })
}

fn download(files: Vec<FileInfo>, target: &str) -> Spec {
    Spec::Download(FileDownloadInitializer {
        files,
        target_location: target.to_owned(),
    })
}

fn snapshot(name: &str) -> SnapshotInitializer {
    SnapshotInitializer {
        snapshot: name.to_owned(),
        ..SnapshotInitializer::default()
    }
}

/// Returns what is in a file of an image.
fn read(image: &str, path: &str) -> String {
    let mut pulled = reader::pull(image, None);
    std::fs::read_to_string(pulled.root().join(path)).unwrap()
}

const COPY_ALL: &str = "COPY . /all/\n";

#[tokio::test(flavor = "multi_thread")]
async fn several_are_carried_out_in_their_order() {
    let stage = Stage::new();
    let base = stage.scene.busybox();
    stage.archive(
        "tools/one.tar.gz",
        &[("tool/t", "tool"), ("old", "from the archive")],
    );
    let dockerfile = format!("FROM {base}\n{COPY_ALL}");
    let spec = composite([
        Spec::Empty(EmptyInitializer {}),
        stage.git(
            "first",
            &[
                File::new("Dockerfile", dockerfile),
                File::new("a", "from git"),
            ],
        ),
        Spec::Snapshot(snapshot("tools/one.tar.gz")),
        download(
            vec![stage.file("one", "sub/one"), stage.file("two", "old")],
            "/workspace",
        ),
    ]);
    let image = stage.build(spec.clone()).await.image();
    for (path, content) in [
        ("a", "from git"),
        ("tool/t", "tool"),
        ("sub/one", "one"),
        ("old", "two"),
    ] {
        assert_eq!(read(&image, &format!("all/{path}")), content, "{path}");
    }
    // The same inputs have the same name, and it is there.
    assert_eq!(stage.build(spec).await.responses.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_comes_with_its_submodules_and_large_files_when_the_operator_wants_them() {
    const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:98ea6e4f216f2fb4b69fff9b3a44842c38686ca685f3f55dc48c5d3fb1107be4\nsize 3\n";
    let object = &POINTER[54..118];
    for wanted in [false, true] {
        let config = if wanted {
            "[git]\nsubmodules = \"same-host\"\nlfs = \"on\"\n"
        } else {
            ""
        };
        let scene = Scene::around(DockerRegistry::start(), Target::Embedded, config);
        let inner = scene
            .git
            .repository("inner")
            .commit("main", &[File::new("i", "inner")]);
        scene.git.keep(object, LfsObject::Content(b"hi\n".to_vec()));
        let modules = "[submodule \"m\"]\n\tpath = m\n\turl = ../inner.git\n";
        let dockerfile = format!("FROM {}\n{COPY_ALL}", scene.busybox());
        let files = [
            File::new("Dockerfile", dockerfile),
            File::new(".gitmodules", modules),
            File::submodule("m", &inner),
            File::new(".gitattributes", "*.bin filter=lfs -text\n"),
            File::new("x.bin", POINTER),
        ];
        let said = scene.build(scene.repository("outer", &files)).await;
        let image = said.image();
        let log = scene.log(&said.build_id().unwrap()).await;
        if wanted {
            assert_eq!(read(&image, "all/m/i"), "inner", "{log}");
            assert_eq!(read(&image, "all/x.bin"), "hi\n", "{log}");
        } else {
            assert_eq!(read(&image, "all/x.bin"), POINTER);
            assert!(log.contains("submodule \"m\" is not fetched"), "{log}");
            assert!(log.contains("x.bin is kept with LFS"), "{log}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_that_fails_ends_it_and_says_which() {
    let stage = Stage::new();
    let wrong = FileInfo {
        digest: format!("sha256:{}", "0".repeat(64)),
        ..stage.file("content", "Dockerfile")
    };
    let said = stage
        .build(composite([
            download(vec![wrong], ""),
            stage.git("never", &[File::new("x", "x")]),
        ]))
        .await;
    assert!(
        said.failure().contains("has the checksum"),
        "{}",
        said.failure()
    );
    let log = stage.scene.log(&said.build_id().unwrap()).await;
    assert!(
        log.contains("initializer download") && !log.contains("initializer git"),
        "{log}"
    );
    let missing = stage.build(Spec::Snapshot(snapshot("nothing.tar"))).await;
    assert!(
        missing
            .failure()
            .contains("there is no snapshot \"nothing.tar\""),
        "{}",
        missing.failure()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prebuild_is_its_archive_or_else_its_repositories() {
    let stage = Stage::new();
    let base = stage.scene.busybox();
    let dockerfile = |from: &str| format!("FROM {base}\nRUN echo {from} > /from\n");
    stage.archive("prebuilt.tar.gz", &[("Dockerfile", &dockerfile("archive"))]);
    let commit = stage
        .scene
        .git
        .repository("fallback")
        .commit("main", &[File::new("Dockerfile", dockerfile("git"))]);
    let prebuild = |name: &str| {
        Spec::Prebuild(PrebuildInitializer {
            prebuild: Some(snapshot(name)),
            git: vec![stage.git_at("fallback", &commit, "")],
        })
    };
    let image = stage.build(prebuild("prebuilt.tar.gz")).await.image();
    assert_eq!(read(&image, "from"), "archive\n");
    stage.archive(
        "damaged.tar.gz",
        &[("Dockerfile", &dockerfile("damage")), ("left", "over")],
    );
    let path = stage.snapshots.join("damaged.tar.gz");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 20]).unwrap();
    for name in ["missing.tar", "damaged.tar.gz"] {
        let said = stage.build(prebuild(name)).await;
        assert_eq!(read(&said.image(), "from"), "git\n", "{name}");
        let log = stage.scene.log(&said.build_id().unwrap()).await;
        assert!(
            log.contains("are fetched instead") && log.contains(name),
            "{log}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_the_tenants_own() {
    let stage = Stage::new();
    let base = stage.scene.busybox();
    let dockerfile = format!("FROM {base}\n{COPY_ALL}");
    stage.archive("default/full.tar", &[("f", "backed up")]);
    let spec = composite([
        stage.git("outside", &[File::new("Dockerfile", dockerfile)]),
        Spec::Backup(FromBackupInitializer {
            checkout_location: "/workspace/back".to_owned(),
            from_volume_snapshot: false,
        }),
    ]);
    let image = stage.build(spec).await.image();
    assert_eq!(read(&image, "all/back/f"), "backed up");
}

#[tokio::test(flavor = "multi_thread")]
async fn links_that_an_earlier_part_has_left_lead_nowhere_outside() {
    let stage = Stage::new();
    let canary = Scratch::new();
    let outside = canary.path().display().to_string();
    run(Command::new("chmod").arg("777").arg(canary.path()));
    let link = |name: &str| File::symlink(name, &outside);
    let trap = || stage.git("trap", &[link("out"), link("Dockerfile")]);
    let (file, base) = (stage.file("x", "out/planted"), stage.scene.busybox());
    let said = stage
        .build(composite([trap(), download(vec![file], "")]))
        .await;
    assert!(!said.failure().is_empty());
    stage.archive("planted.tar.gz", &[("planted", "x")]);
    let back = Spec::Backup(FromBackupInitializer {
        checkout_location: "out".to_owned(),
        from_volume_snapshot: false,
    });
    stage.archive("default/full.tar", &[("planted", "x")]);
    let said = stage.build(composite([trap(), back])).await;
    assert!(!said.failure().is_empty());
    let commit = stage
        .scene
        .git
        .repository("second")
        .commit("main", &[File::new("Dockerfile", format!("FROM {base}\n"))]);
    let second = Spec::Git(stage.git_at("second", &commit, "out"));
    let said = stage.build(composite([trap(), second])).await;
    assert!(!said.failure().is_empty());
    assert_eq!(
        std::fs::read_dir(canary.path()).unwrap().count(),
        0,
        "something was written outside"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_never_work_is_refused_before_anything_is_started() {
    let stage = Stage::new();
    let builds =
        || std::fs::read_dir(stage.scene.kiln.state().join("builds")).map_or(0, Iterator::count);
    let mut client = stage.scene.kiln.image_builder().await;
    for spec in [
        Spec::Empty(EmptyInitializer {}),
        Spec::Snapshot(snapshot("../../etc/shadow")),
        Spec::Snapshot(snapshot("https://example.com/x.tar")),
        download(
            vec![FileInfo {
                url: "file:///etc/passwd".to_owned(),
                ..stage.file("x", "x")
            }],
            "",
        ),
        download(
            vec![FileInfo {
                digest: String::new(),
                ..stage.file("x", "x")
            }],
            "",
        ),
        download(vec![stage.file("x", "../x")], ""),
        download(vec![stage.file("x", "x")], "/etc"),
    ] {
        let error = client.build(request(spec.clone())).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{spec:?}: {error:?}");
    }
    assert_eq!(builds(), 0);
    assert!(Path::new("/etc/passwd").exists());
}
