//! Folders that callers upload.

use std::path::Path;
use std::time::Duration;

use api::builder::BuildStatus;
use api::kiln::v1 as wire;
use api::kiln::v1::context_entry::Kind;
use api::kiln::v1::create_context_request::Message as Ask;
use api::kiln::v1::create_context_response::Message as Said;
use oci::Digest;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::harness::*;
use crate::web::get;

/// A conversation from the caller's side.
struct Talk {
    asks: mpsc::Sender<wire::CreateContextRequest>,
    answers: Streaming<wire::CreateContextResponse>,
}

impl Talk {
    async fn begin(server: &Server) -> Self {
        let mut client = server.native().await;
        let (asks, requests) = mpsc::channel(64);
        let answered = soon(client.create_context(ReceiverStream::new(requests))).await;
        Self {
            asks,
            answers: answered.unwrap().into_inner(),
        }
    }

    /// Says something; that the server has hung up is seen in its answer.
    async fn ask(&self, message: Ask) {
        let message = Some(message);
        let _hung_up = soon(self.asks.send(wire::CreateContextRequest { message })).await;
    }

    async fn header(&self, n_entries: u64, n_bytes: u64) {
        self.ask(Ask::Header(wire::ContextHeader { n_entries, n_bytes }))
            .await;
    }

    async fn entries(&self, entries: &[wire::ContextEntry]) {
        let entries = entries.to_vec();
        self.ask(Ask::Entries(wire::ContextEntries { entries }))
            .await;
    }

    async fn content(&self, data: &[u8]) {
        let data = data.to_vec();
        self.ask(Ask::Content(wire::ContextContent { data })).await;
    }

    async fn answer(&mut self) -> Result<Said, Status> {
        let answer = soon(self.answers.message()).await?;
        Ok(answer.expect("an answer").message.unwrap())
    }

    async fn missing(&mut self) -> Result<Vec<u64>, Status> {
        let mut missing = Vec::new();
        loop {
            let Said::Missing(piece) = self.answer().await? else {
                panic!("no word of what is missing");
            };
            missing.extend(piece.entries);
            if piece.last {
                return Ok(missing);
            }
        }
    }

    /// Says that there is nothing more, and returns what the server makes of it.
    async fn end(self) -> Result<wire::ContextCreated, Status> {
        drop(self.asks);
        let mut answers = self.answers;
        let mut created = None;
        while let Some(answer) = soon(answers.message()).await? {
            if let Some(Said::Created(answer)) = answer.message {
                created = Some(answer);
            }
        }
        Ok(created.expect("a context"))
    }

    async fn refused(self) -> Status {
        self.end().await.unwrap_err()
    }
}

fn entry(path: &str, kind: Kind) -> wire::ContextEntry {
    wire::ContextEntry {
        path: path.into(),
        mode: 0o644,
        kind: Some(kind),
        ..wire::ContextEntry::default()
    }
}

fn file(path: &str, content: &[u8]) -> wire::ContextEntry {
    let digest = Digest::sha256(content).to_string();
    let size = content.len() as u64;
    entry(path, Kind::File(wire::ContextFile { size, digest }))
}

fn folder(path: &str) -> wire::ContextEntry {
    entry(path, Kind::Folder(wire::ContextFolder {}))
}

/// Uploads files; returns the context and how many bytes of content were asked for.
pub(crate) async fn upload(
    server: &Server,
    files: &[(String, Vec<u8>)],
) -> (wire::ContextCreated, usize) {
    let mut talk = Talk::begin(server).await;
    let n_bytes = files.iter().map(|(_, content)| content.len() as u64).sum();
    talk.header(files.len() as u64, n_bytes).await;
    let entries: Vec<_> = files
        .iter()
        .map(|(path, content)| file(path, content))
        .collect();
    for piece in entries.chunks(1000) {
        talk.entries(piece).await;
    }
    let missing = talk.missing().await.unwrap();
    let contents = missing
        .iter()
        .map(|at| files[usize::try_from(*at).unwrap()].1.as_slice());
    let contents = contents.collect::<Vec<_>>().concat();
    for piece in contents.chunks(256 << 10) {
        talk.content(piece).await;
    }
    (talk.end().await.unwrap(), contents.len())
}

fn tree(n: usize) -> Vec<(String, Vec<u8>)> {
    let file = |i| {
        (
            format!("file-{i:05}"),
            format!("content of {i}\n").into_bytes(),
        )
    };
    (0..n).map(file).collect()
}

fn n_files(folder: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return 1;
    };
    entries.map(|entry| n_files(&entry.unwrap().path())).sum()
}

fn kept(world: &World) -> usize {
    let contexts = world.state().join("store/contexts");
    if contexts.exists() {
        n_files(&contexts)
    } else {
        0
    }
}

/// Waits until no upload goes on any more.
async fn nothing_unfinished(world: &World) {
    let unfinished = world.state().join("store/tmp");
    let gone = async {
        while n_files(&unfinished) > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(gone).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_upload_of_five_thousand_files_moves_only_what_has_changed() {
    let world = World::new();
    let server = world.serve().await;
    let mut files = tree(5000);
    let n_bytes: usize = files.iter().map(|(_, content)| content.len()).sum();
    let (first, moved) = upload(&server, &files).await;
    assert_eq!(moved, n_bytes);
    let (second, moved) = upload(&server, &files).await;
    assert_eq!(moved, 0);
    assert_ne!(first.context_id, second.context_id);
    assert!(first.expires_at_ms > 0 && first.expires_at_ms <= second.expires_at_ms);
    files[1234].1 = b"something else".to_vec();
    let (_, moved) = upload(&server, &files).await;
    assert_eq!(moved, b"something else".len());
    server.stopped().await;
    // What was uploaded outlives the server.
    let server = world.serve().await;
    assert_eq!(upload(&server, &files).await.1, 0);
    server.stopped().await;
}

type Row = (Vec<wire::ContextEntry>, &'static str);

fn hard_link(path: &str, to: &str) -> wire::ContextEntry {
    entry(path, Kind::HardLink(to.into()))
}

fn hostile_paths() -> Vec<Row> {
    let symlink = entry("a", Kind::Symlink(b"/etc".to_vec()));
    vec![
        (vec![file("../a", b"x")], "`.` or `..`"),
        (vec![file("/etc/passwd", b"x")], "absolute"),
        (vec![folder("a"), file("a//b", b"x")], "empty"),
        (vec![file("", b"x")], "empty"),
        (vec![file("a\0b", b"x")], "NUL"),
        (vec![file(&"x".repeat(300), b"x")], "too long"),
        (
            vec![file("a", b"x"), file("a", b"x")],
            "does not come after",
        ),
        (
            vec![file("b", b"x"), file("a", b"x")],
            "does not come after",
        ),
        (vec![file("a/b", b"x")], "folder is not among"),
        (vec![file("a", b"x"), file("a/b", b"x")], "no folder"),
        (vec![symlink, file("a/b", b"x")], "no folder"),
        (vec![hard_link("a", "/etc/shadow")], "hard link"),
        (vec![folder("a"), hard_link("b", "a")], "hard link"),
    ]
}

fn hostile_values() -> Vec<Row> {
    let mut moded = file("a", b"x");
    moded.mode = 0o100_644;
    let mut late = file("a", b"x");
    late.modified_ns = 1_000_000_000;
    let mut kindless = file("a", b"x");
    kindless.kind = None;
    let digest = |digest: String| {
        vec![entry(
            "a",
            Kind::File(wire::ContextFile { size: 1, digest }),
        )]
    };
    vec![
        (vec![moded], "mode"),
        (vec![late], "nanoseconds"),
        (vec![kindless], "no kind"),
        (digest("sha256:abc".to_owned()), "digest"),
        (digest(format!("sha512:{}", "a".repeat(128))), "sha256"),
        (digest(Digest::sha256(b"").to_string()), "contradict"),
        (vec![], "has none"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_that_mean_no_good_are_refused_by_name() {
    let world = World::new();
    let server = world.serve().await;
    for (entries, expected) in hostile_paths().into_iter().chain(hostile_values()) {
        let talk = Talk::begin(&server).await;
        talk.header(entries.len().max(1) as u64, 1 << 20).await;
        talk.entries(&entries).await;
        let status = talk.refused().await;
        assert_eq!(
            status.code(),
            Code::InvalidArgument,
            "{expected}: {status:?}"
        );
        assert!(
            status.message().contains(expected),
            "{expected}: {status:?}"
        );
    }
    assert_eq!(kept(&world), 0);
    assert_eq!(get(&server, "/healthz").await.0, 200);
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_sizes_and_contents_that_are_lies_are_refused() {
    let world = World::new();
    let server = world.serve().await;
    let files = [file("a", b"abc"), file("b", b"def")];
    for (n_entries, n_bytes, contents, expected) in [
        (1, 6, &[][..], "where 1 were announced"),
        (3, 6, &[], "entries, and something else came"),
        (2, 5, &[], "where 5 were announced"),
        (2, 7, &[], "where 7 were announced"),
        (2, 6, &[b"abcdefg".as_slice()], "not asked for"),
        (2, 6, &[b"abcdef", b"g"], "not asked for"),
        (2, 6, &[b"abcde"], "content, and something else came"),
        (2, 6, &[b"abd"], "does not have the digest"),
        (2, 6, &[b""], "has none"),
    ] {
        let talk = Talk::begin(&server).await;
        talk.header(n_entries, n_bytes).await;
        talk.entries(&files).await;
        for content in contents {
            talk.content(content).await;
        }
        let status = talk.refused().await;
        assert_eq!(
            status.code(),
            Code::InvalidArgument,
            "{expected}: {status:?}"
        );
        assert!(
            status.message().contains(expected),
            "{expected}: {status:?}"
        );
        // Each begins with nothing but what came whole in an earlier one.
        nothing_unfinished(&world).await;
        let _removed = std::fs::remove_dir_all(world.state().join("store/contexts"));
    }
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_out_of_turn_and_bytes_that_are_no_message_are_refused() {
    let world = World::new();
    let server = world.serve().await;
    for (message, expected) in [
        (
            Some(Ask::Entries(wire::ContextEntries {
                entries: vec![folder("a")],
            })),
            "a header",
        ),
        (
            Some(Ask::Content(wire::ContextContent { data: vec![1] })),
            "a header",
        ),
        (None, "not known"),
    ] {
        let talk = Talk::begin(&server).await;
        soon(talk.asks.send(wire::CreateContextRequest { message }))
            .await
            .unwrap();
        let status = talk.refused().await;
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert!(status.message().contains(expected), "{status:?}");
    }
    let talk = Talk::begin(&server).await;
    let status = talk.refused().await;
    assert_eq!(
        status.code(),
        Code::InvalidArgument,
        "an early end: {status:?}"
    );

    let talk = Talk::begin(&server).await;
    talk.header(1, 100 << 20).await;
    talk.content(&vec![0; 100 << 20]).await;
    let status = talk.refused().await;
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");

    let talk = Talk::begin(&server).await;
    talk.header(1, 0).await;
    let mut xattrs = wire::ContextEntry::default();
    xattrs
        .xattrs
        .insert("user.x".to_owned(), vec![0; 300 << 10]);
    talk.entries(&[wire::ContextEntry {
        xattrs: xattrs.xattrs,
        ..folder("a")
    }])
    .await;
    assert!(
        talk.refused()
            .await
            .message()
            .contains("extended attributes")
    );
    assert_eq!(kept(&world), 0);
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_protobuf_are_the_callers_fault() {
    let world = World::new();
    let server = world.serve().await;
    // A message of the call's own framing whose bytes are a field without an end.
    let body = [&[0, 0, 0, 0, 2][..], &[0x0a, 0x7f]].concat();
    let answer = posted(&server, body).await;
    assert_eq!(answer.as_deref(), Some("3"), "INVALID_ARGUMENT");
    assert_eq!(get(&server, "/healthz").await.0, 200);
    server.stopped().await;
}

/// Posts bytes as the caller's side of the conversation; returns the status that the trailers tell.
async fn posted(server: &Server, body: Vec<u8>) -> Option<String> {
    use http_body_util::{BodyExt as _, Full};
    let stream = tokio::net::TcpStream::connect(&server.address)
        .await
        .unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io)
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    let request = http::Request::post(format!("{}/kiln.v1.Kiln/CreateContext", server.url()))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(bytes::Bytes::from(body)))
        .unwrap();
    let response = soon(sender.send_request(request)).await.unwrap();
    let in_header = response.headers().get("grpc-status").cloned();
    let collected = soon(response.into_body().collect()).await.unwrap();
    let in_trailer = collected
        .trailers()
        .and_then(|trailers| trailers.get("grpc-status"))
        .cloned();
    connection.abort();
    let status = in_header.or(in_trailer)?;
    Some(status.to_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_the_operator_allows_is_refused_before_anything_is_sent() {
    let world = World::new();
    let config = "[limits]\ncontext_files = 2\ncontext_bytes = 10\n[contexts]\nmax_uploads = 1\nwait_timeout = \"100ms\"";
    let server = world.serve_with(config).await;
    for (n_entries, n_bytes, key) in [
        (3, 1, "context_files"),
        (1, 11, "context_bytes"),
        (u64::MAX, u64::MAX, "context_files"),
    ] {
        let talk = Talk::begin(&server).await;
        talk.header(n_entries, n_bytes).await;
        let status = talk.refused().await;
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains(key), "{status:?}");
    }
    let mut first = Talk::begin(&server).await;
    first.header(1, 3).await;
    first.entries(&[file("a", b"abc")]).await;
    assert_eq!(first.missing().await.unwrap(), [0]);
    let second = Talk::begin(&server).await;
    second.header(1, 3).await;
    let status = second.refused().await;
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    first.content(b"abc").await;
    first.end().await.unwrap();
    nothing_unfinished(&world).await;
    assert_eq!(
        upload(&server, &[("a".to_owned(), b"abc".to_vec())])
            .await
            .1,
        0
    );
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_are_refused_before_builds_are_and_after_what_nobody_uses_was_collected() {
    let world = World::new();
    let wanted = 1_u64 << 60;
    let config = format!("[admission]\nmin_free_bytes = {wanted}\n");
    let server = world.serve_with(&config).await;
    *world.scripted.free_bytes.lock().unwrap() = wanted + 1;
    let talk = Talk::begin(&server).await;
    talk.header(1, 3).await;
    talk.entries(&[file("a", b"abc")]).await;
    let status = talk.refused().await;
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(
        status.message().contains("admission.min_free_bytes"),
        "{status:?}"
    );
    {
        let collections = world.scripted.collections.lock().unwrap();
        assert_eq!(collections.len(), 1);
        assert!(collections[0].min_free_bytes.unwrap() >= wanted + (256 << 20));
    }
    let (_, stream) = server.start(crate::admission::numbered(0)).await;
    world.worker().await.succeed(&server);
    assert_eq!(last(stream).await.status(), BuildStatus::DoneSuccess);
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_uploads_no_more_than_it_may_have() {
    let world = World::new();
    let server = world.serve_with("[contexts]\nmax_bytes = 1000000").await;
    let file_of = |n: u8| vec![(format!("f{n}"), vec![n; 400_000])];
    upload(&server, &file_of(1)).await;
    upload(&server, &file_of(2)).await;
    let talk = Talk::begin(&server).await;
    talk.header(1, 400_000).await;
    talk.entries(&[file("a", &file_of(3)[0].1)]).await;
    let status = talk.refused().await;
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(
        status.message().contains("contexts.max_bytes"),
        "{status:?}"
    );
    // What it has need not come again, and costs nothing.
    assert_eq!(upload(&server, &file_of(1)).await.1, 0);
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_uploads_than_may_go_on_wait_for_their_turn() {
    let world = World::new();
    let server = world.serve_with("[contexts]\nmax_uploads = 1").await;
    let mut first = Talk::begin(&server).await;
    first.header(1, 3).await;
    first.entries(&[file("a", b"abc")]).await;
    assert_eq!(first.missing().await.unwrap(), [0]);
    // One gives up while it waits; the others get their turn all the same.
    let impatient = Talk::begin(&server).await;
    impatient.header(1, 3).await;
    let files = ["b", "c", "d"].map(|name| vec![(name.to_owned(), name.into())]);
    let others = files.iter().map(|files| upload(&server, files));
    let mut others = Box::pin(futures_util::future::join_all(others));
    let waits = tokio::time::timeout(Duration::from_millis(300), &mut others).await;
    assert!(waits.is_err(), "{waits:?}");
    drop(impatient);
    first.content(b"abc").await;
    first.end().await.unwrap();
    let sent = others.await.into_iter().map(|(_, n_bytes)| n_bytes);
    assert_eq!(sent.collect::<Vec<_>>(), [1, 1, 1]);
    nothing_unfinished(&world).await;
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_is_slow_or_gone_leaves_nothing_but_whole_contents() {
    let world = World::new();
    let server = world.serve_with("[contexts]\npiece_timeout = \"2s\"").await;
    let files: Vec<_> = [("a", "abc"), ("b", "def")]
        .map(|(path, content)| (path.to_owned(), content.as_bytes().to_vec()))
        .into();
    let mut slow = Talk::begin(&server).await;
    slow.header(2, 6).await;
    slow.entries(&[file("a", b"abc"), file("b", b"def")]).await;
    assert_eq!(slow.missing().await.unwrap(), [0, 1]);
    slow.content(b"ab").await;
    let status = slow.answer().await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    nothing_unfinished(&world).await;
    assert_eq!(kept(&world), 0, "half of a file");

    let mut gone = Talk::begin(&server).await;
    gone.header(2, 6).await;
    gone.entries(&[file("a", b"abc"), file("b", b"def")]).await;
    assert_eq!(gone.missing().await.unwrap(), [0, 1]);
    gone.content(b"abcd").await;
    let unfinished = world.state().join("store/tmp");
    let came = async {
        while n_files(&unfinished) < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(came).await;
    drop(gone);
    nothing_unfinished(&world).await;
    assert_eq!(kept(&world), 1, "the file that came whole, and no list");
    assert_eq!(
        upload(&server, &files).await.1,
        3,
        "the second try sends the rest"
    );
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn contexts_are_forgotten_while_the_server_runs_and_after_it() {
    let world = World::new();
    let server = world.serve_with("[contexts]\nlifetime = \"1s\"").await;
    upload(&server, &tree(3)).await;
    assert_eq!(kept(&world), 4);
    server.stopped().await;
    let server = world.serve_with("[contexts]\nlifetime = \"1s\"").await;
    let forgotten = async {
        while kept(&world) > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon(forgotten).await;
    server.stopped().await;
}
