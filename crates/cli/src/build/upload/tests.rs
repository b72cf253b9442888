use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use engine::id::BuildId;
use engine::spec::{BuildSpec, Record};
use engine::turn::Turn;
use futures_util::future::BoxFuture;
use service::agents::AgentId;
use service::executor::{Disk, Executor, ExecutorError, Running};
use store::Store;
use store::collect::{Collected, Policy};
use store::context::{Entry, EntryKind};
use tokio::sync::oneshot;

use super::*;
use crate::build::context::Dockerfile;

/// A server that takes folders and starts nothing.
struct Server {
    folder: tempfile::TempDir,
    client: Client,
    stop: oneshot::Sender<()>,
    running: tokio::task::JoinHandle<Result<(), service::app::RunError>>,
}

struct Nobody;

fn nobody(id: BuildId) -> ExecutorError {
    let source = "nobody builds here".into();
    ExecutorError::Start { id, source }
}

impl Executor for Nobody {
    fn start(
        &self,
        record: Record,
        _: BuildSpec,
        _: Vec<AgentId>,
        _: Turn,
    ) -> BoxFuture<'_, Result<Running, ExecutorError>> {
        Box::pin(async move { Err(nobody(record.id)) })
    }

    fn adopt(&self, _: BuildId) -> BoxFuture<'_, Result<Option<Running>, ExecutorError>> {
        Box::pin(async move { Ok(None) })
    }

    fn turn(&self, _: BuildId, _: Turn) -> BoxFuture<'_, Result<(), ExecutorError>> {
        Box::pin(async move { Ok(()) })
    }

    fn disk(&self) -> std::io::Result<Disk> {
        Ok(Disk {
            bytes: 1 << 40,
            free_bytes: 1 << 40,
        })
    }

    fn cancel(&self, _: BuildId) -> BoxFuture<'_, Result<(), ExecutorError>> {
        Box::pin(async move { Ok(()) })
    }

    fn collect(&self, _: Policy) -> BoxFuture<'_, Result<Collected, ExecutorError>> {
        let (removed, left_bytes) = (Vec::new(), 0);
        Box::pin(async move {
            Ok(Collected {
                removed,
                left_bytes,
            })
        })
    }

    fn ready(&self) -> BoxFuture<'_, Result<(), ExecutorError>> {
        Box::pin(async move { Ok(()) })
    }
}

impl Server {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = service::config::Config {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            state: Some(folder.path().to_owned()),
            ..service::config::Config::default()
        };
        let setup = service::app::Setup {
            executor: Arc::new(Nobody),
            owner: None,
            config_file: None,
            environment: service::environment::Environment::real(),
            client: registry::client::Options::default(),
            ambient: service::subassembly::Ambient::default(),
        };
        let listener = service::app::bind(&config).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (stop, stopped) = oneshot::channel::<()>();
        let running = tokio::spawn(service::app::run(config, setup, listener, async {
            let _dropped = stopped.await;
        }));
        Self {
            client: crate::client::connect(&crate::client::Target::open(&address))
                .await
                .unwrap()
                .kiln,
            folder,
            stop,
            running,
        }
    }

    async fn upload(&mut self, root: &Path) -> Uploaded {
        folder(&mut self.client, &input(root), &Limits::default())
            .await
            .unwrap()
    }

    /// Returns what is in a context.
    fn entries(&self, uploaded: &Uploaded) -> Vec<Entry> {
        let store = Store::open(&self.folder.path().join("store"), None).unwrap();
        let id = uploaded.context_id.parse().unwrap();
        let context = store.context("default", &id).unwrap().unwrap();
        context.entries().unwrap().map(Result::unwrap).collect()
    }

    async fn stop(self) {
        let _gone = self.stop.send(());
        self.running.await.unwrap().unwrap();
    }
}

fn input(root: &Path) -> FolderInput {
    FolderInput {
        path: Some(root.to_owned()),
        dockerfile: Dockerfile::Inside("Dockerfile".into()),
        name: ".".to_owned(),
    }
}

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// Tells whether any file below `folder` has `text` in it.
fn is_anywhere(folder: &Path, text: &[u8]) -> bool {
    let mut places = vec![PathBuf::from(folder)];
    while let Some(place) = places.pop() {
        if place.is_dir() {
            let entries = fs::read_dir(place).unwrap();
            places.extend(entries.map(|entry| entry.unwrap().path()));
        } else if place.is_file() {
            let content = fs::read(&place).unwrap();
            if content.windows(text.len()).any(|window| window == text) {
                return true;
            }
        }
    }
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_upload_of_an_unchanged_tree_moves_no_content() {
    let mut server = Server::start().await;
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "Dockerfile", "FROM scratch\n");
    for n in 0..5000 {
        let text = format!("file {n}");
        write(root.path(), &format!("d{}/f{n}", n % 50), &text);
    }
    let first = server.upload(root.path()).await;
    let n_bytes: u64 = (0..5000).map(|n| format!("file {n}").len() as u64).sum();
    assert_eq!(first.sent_bytes, n_bytes + "FROM scratch\n".len() as u64);
    let second = server.upload(root.path()).await;
    assert_eq!(second.sent_bytes, 0);
    write(root.path(), "d7/f7", "changed");
    fs::rename(root.path().join("d1"), root.path().join("moved")).unwrap();
    assert_eq!(
        server.upload(root.path()).await.sent_bytes,
        "changed".len() as u64
    );
    assert_eq!(server.entries(&second).len(), 5051);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_ignored_never_leaves_the_machine() {
    let mut server = Server::start().await;
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "Dockerfile", "FROM scratch\n");
    write(root.path(), ".dockerignore", "secret*\nlogs\n!logs/kept\n");
    write(root.path(), "secret.key", "CANARY-1");
    write(root.path(), "logs/CANARY-2", "x");
    write(root.path(), "logs/kept", "kept");
    write(root.path(), "main.c", "int main;");
    let uploaded = server.upload(root.path()).await;
    let entries = server.entries(&uploaded);
    let paths: Vec<&str> = entries
        .iter()
        .map(|e| std::str::from_utf8(&e.path).unwrap())
        .collect();
    assert_eq!(
        paths,
        [".dockerignore", "Dockerfile", "logs", "logs/kept", "main.c"]
    );
    assert!(!is_anywhere(server.folder.path(), b"CANARY"));
    assert!(is_anywhere(server.folder.path(), b"int main;"));

    // The Dockerfile's own file goes before the folder's.
    write(
        root.path(),
        "Dockerfile.dockerignore",
        "main.c\nsecret*\n**/CANARY*\n",
    );
    let uploaded = server.upload(root.path()).await;
    assert!(
        !server
            .entries(&uploaded)
            .iter()
            .any(|e| e.path == b"main.c")
    );
    assert!(!is_anywhere(server.folder.path(), b"CANARY-1"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn modes_times_links_pipes_and_attributes_arrive_as_they_are() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let mut server = Server::start().await;
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "Dockerfile", "FROM scratch\n");
    write(root.path(), "a/f", "content");
    fs::set_permissions(root.path().join("a/f"), fs::Permissions::from_mode(0o4711)).unwrap();
    fs::hard_link(root.path().join("a/f"), root.path().join("same")).unwrap();
    std::os::unix::fs::symlink("../out", root.path().join("link")).unwrap();
    rustix::fs::mkfifoat(
        rustix::fs::CWD,
        root.path().join("pipe"),
        rustix::fs::Mode::RUSR,
    )
    .unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(root.path().join("a/f"), "user.note", b"n", flags).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(root.path().join("socket")).unwrap();
    let uploaded = server.upload(root.path()).await;
    let entries = server.entries(&uploaded);
    let kinds: Vec<(&str, &str)> = entries
        .iter()
        .map(|entry| {
            let kind = match &entry.kind {
                EntryKind::Folder => "folder",
                EntryKind::File { .. } => "file",
                EntryKind::Symlink(to) if to == b"../out" => "link",
                EntryKind::HardLink(to) if to == b"a/f" => "same",
                EntryKind::Pipe => "pipe",
                other => panic!("{other:?}"),
            };
            (std::str::from_utf8(&entry.path).unwrap(), kind)
        })
        .collect();
    let expected = [
        ("Dockerfile", "file"),
        ("a", "folder"),
        ("a/f", "file"),
        ("link", "link"),
        ("pipe", "pipe"),
        ("same", "same"),
    ];
    assert_eq!(kinds, expected);
    let file = entries.get(2).unwrap();
    let here = fs::metadata(root.path().join("a/f")).unwrap();
    assert_eq!((file.mode, file.modified_s), (0o4711, here.mtime()));
    assert_eq!(i64::from(file.modified_ns), here.mtime_nsec());
    assert_eq!(file.xattrs, [(b"user.note".to_vec(), b"n".to_vec())].into());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changes_meanwhile_is_an_error_that_names_it() {
    let mut server = Server::start().await;
    let root = tempfile::tempdir().unwrap();
    for (n, text) in ["one", "two", "three"].iter().enumerate() {
        write(root.path(), &format!("f{n}"), text);
    }
    for (at, change) in [("f1", "TWO"), ("f2", "th"), ("f0", "")] {
        let listing = import::list(&input(root.path()), &Limits::default()).unwrap();
        let before = fs::read(root.path().join(at)).unwrap();
        write(root.path(), at, change);
        let failed = upload(&mut server.client, listing).await.unwrap_err();
        assert!(
            format!("{failed:?}").contains(&format!("{at} has changed")),
            "{failed:?}"
        );
        fs::write(root.path().join(at), before).unwrap();
        let contexts = server.folder.path().join("store/contexts");
        fs::remove_dir_all(contexts).unwrap();
    }
    let listing = import::list(&input(root.path()), &Limits::default()).unwrap();
    fs::remove_file(root.path().join("f2")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", root.path().join("f2")).unwrap();
    let failed = upload(&mut server.client, listing).await.unwrap_err();
    assert!(
        format!("{failed:?}").contains("read f2 again"),
        "{failed:?}"
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_and_nothing_at_all_are_uploaded_too() {
    let mut server = Server::start().await;
    let listing = spool(&b"not really a tar"[..], 100).unwrap();
    let uploaded = upload(&mut server.client, listing).await.unwrap();
    assert_eq!(uploaded.sent_bytes, 16);
    let entries = server.entries(&uploaded);
    assert_eq!(entries.len(), 1);
    assert_eq!(entries.first().unwrap().path, ARCHIVE.as_bytes());
    assert!(spool(&b"too much"[..], 7).is_err());

    let nothing = FolderInput {
        path: None,
        dockerfile: Dockerfile::Outside {
            text: "FROM scratch".to_owned(),
            path: None,
        },
        name: "-".to_owned(),
    };
    let uploaded = folder(&mut server.client, &nothing, &Limits::default())
        .await
        .unwrap();
    assert_eq!(
        (uploaded.sent_bytes, server.entries(&uploaded).len()),
        (0, 0)
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_refuses_is_said_in_its_words() {
    let mut server = Server::start().await;
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "f", "x");
    let flags = rustix::fs::XattrFlags::empty();
    for n in 0..2 {
        let value = vec![b'x'; 1500];
        rustix::fs::setxattr(root.path().join("f"), format!("user.{n}"), &value, flags).unwrap();
    }
    let mut listing = import::list(&input(root.path()), &Limits::default()).unwrap();
    for n in 0..200 {
        let entry = listing.entries.first_mut().unwrap();
        entry
            .attributes
            .insert(format!("user.more{n}").into_bytes(), Vec::new());
    }
    let failed = upload(&mut server.client, listing).await.unwrap_err();
    assert!(
        format!("{failed:?}").contains("extended attributes"),
        "{failed:?}"
    );
    server.stop().await;
}
