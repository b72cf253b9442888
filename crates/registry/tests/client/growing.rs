//! Blobs that are sent while they are written: to registries that take them, and to those that break, refuse and lie.
//!
//! Whatever happens, the ordinary push comes afterwards and finds the blob there or sends it.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use oci::{Descriptor, Digest, Reference};
use registry::client::{BlobSource, Client, Error, ErrorKind, GrowingBlob, Pushed};
use store::{Growth, Ingest, Store};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::support::evil::{Asked, Chunked, Evil, Manner, Reply, layer, noise};
use super::support::memory::Memory;
use super::support::program::DockerRegistry;
use super::support::{client, client_with};

/// More than a tests' client sends in one request, and more than one piece.
const SIZE: usize = 2_000_000;

/// A blob and who writes it.
struct Writing {
    _directory: tempfile::TempDir,
    ingest: Ingest,
    known: watch::Sender<Option<Descriptor>>,
    blob: GrowingBlob,
}

impl Writing {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("store"), None).unwrap();
        let mut ingest = store.ingest().unwrap();
        let growth = Growth::new();
        ingest.read_along(&growth).unwrap();
        let (known, receiver) = watch::channel(None);
        Self {
            _directory: directory,
            ingest,
            known,
            blob: GrowingBlob {
                growth,
                known: receiver,
            },
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        self.ingest.write_all(bytes).unwrap();
    }

    fn finish(&self, bytes: &[u8]) {
        self.known.send_replace(Some(layer(bytes)));
        self.ingest.whole();
    }
}

type Answer = Result<Option<Pushed>, Error>;

/// Sends `bytes` while they are written, all that is before `pause` at once and the rest when `go_on` says so.
async fn send(
    client: &Client,
    repository: &Reference,
    (bytes, pause): (&[u8], usize),
    go_on: impl AsyncFnOnce(),
) -> Answer {
    let mut writing = Writing::new();
    let cancel = CancellationToken::new();
    let (before, after) = bytes.split_at(pause);
    writing.write(before);
    let sending = client.push_growing(repository, writing.blob.clone(), &cancel);
    let rest = async {
        go_on().await;
        writing.write(after);
        writing.finish(bytes);
    };
    tokio::join!(sending, rest).0
}

async fn push(client: &Client, repository: &Reference, bytes: &[u8]) -> Pushed {
    let source = BlobSource::Bytes(Bytes::copy_from_slice(bytes));
    let blob = layer(bytes);
    let pushed = client.push_blob(repository, &blob, source, &[], &|_| {});
    pushed.await.unwrap()
}

/// Starts a registry whose answers go through `spoil`.
async fn spoiled(
    chunked: Chunked,
    spoil: impl Fn(&Memory, &Asked) -> Option<Reply> + Send + Sync + 'static,
) -> (Evil, Arc<Memory>) {
    let memory = Arc::new(Memory::default());
    let behind = Arc::clone(&memory);
    let evil = Evil::start_chunked(chunked, move |asked, _| {
        spoil(&behind, asked).unwrap_or_else(|| behind.answer(asked))
    })
    .await;
    (evil, memory)
}

/// Waits for something that comes, within limits.
async fn until(mut is_so: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("it did not come to be");
}

fn methods(evil: &Evil) -> Vec<String> {
    evil.asked().into_iter().map(|asked| asked.method).collect()
}

/// What changes something at the registry. Whether it is looked for a blob depends on how much is left to be sent when it gets known.
fn changes(evil: &Evil) -> Vec<String> {
    let mut methods = methods(evil);
    methods.retain(|method| method != "HEAD");
    methods
}

#[tokio::test]
async fn a_blob_is_sent_while_it_is_written_and_is_there_when_it_is_pushed() {
    let (evil, memory) = spoiled(Chunked::Whole, |_, _| None).await;
    let (client, repository) = (client(), evil.reference("a/b"));
    let bytes = noise(SIZE);
    let is_begun = || evil.count("POST", "/uploads/") == 1;
    let sent = send(&client, &repository, (&bytes, SIZE / 2), async || {
        // Half of it is there, nobody knows what it will be, and the session has begun.
        until(is_begun).await;
    });
    assert_eq!(sent.await.unwrap(), Some(Pushed::Uploaded));
    assert!(memory.blob("a/b", &Digest::sha256(&bytes)).unwrap() == bytes);
    assert_eq!(changes(&evil), ["POST", "PATCH", "PUT"]);
    let n_asked = evil.asked().len();
    assert_eq!(push(&client, &repository, &bytes).await, Pushed::Existed);
    assert_eq!(evil.asked().len(), n_asked + 1);
}

#[tokio::test]
async fn real_registries_take_blobs_of_unknown_length() {
    let debian = DockerRegistry::plain();
    let secret = DockerRegistry::with_password("user", "correct horse");
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path(), None).unwrap();
    let router = registry::server::router(store, registry::server::ServerOptions::default());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap().to_string();
    let server = tokio::spawn(async move { axum::serve(listener, router).await });
    let bytes = noise(SIZE);
    for (host, password) in [
        (&debian.host, None),
        (&secret.host, Some("correct horse")),
        (&own, None),
    ] {
        let client = match password {
            Some(password) => client_with(&[(host, password)]),
            None => client(),
        };
        let repository: Reference = format!("{host}/kiln/app:v1").parse().unwrap();
        let pause = async || tokio::time::sleep(Duration::from_millis(50)).await;
        let sent = send(&client, &repository, (&bytes, SIZE / 2), pause).await;
        assert_eq!(sent.unwrap(), Some(Pushed::Uploaded), "{host}");
        assert_eq!(push(&client, &repository, &bytes).await, Pushed::Existed);
        let found = client.has_blob(&repository, &Digest::sha256(&bytes)).await;
        assert_eq!(found.unwrap(), Some(SIZE as u64));
    }
    server.abort();
}

#[tokio::test]
async fn what_stays_small_is_looked_for_and_goes_in_one_request() {
    let (evil, memory) = spoiled(Chunked::Never, |_, _| None).await;
    let (client, repository) = (client(), evil.reference("a/b"));
    for size in [0, 1, 1000] {
        let bytes = noise(size);
        let n_asked = methods(&evil).len();
        let sent = send(&client, &repository, (&bytes, size / 2), async || ()).await;
        assert_eq!(sent.unwrap(), Some(Pushed::Uploaded));
        assert!(memory.blob("a/b", &Digest::sha256(&bytes)).unwrap() == bytes);
        assert_eq!(methods(&evil)[n_asked..], ["HEAD", "POST", "PUT"]);
        let sent = send(&client, &repository, (&bytes, size / 2), async || ()).await;
        assert_eq!(sent.unwrap(), Some(Pushed::Existed));
        assert_eq!(methods(&evil)[n_asked + 3..], ["HEAD"]);
    }
}

#[tokio::test]
async fn what_is_given_up_early_asks_the_registry_nothing() {
    let (evil, _) = spoiled(Chunked::Whole, |_, _| None).await;
    let (client, repository) = (client(), evil.reference("a/b"));
    let mut writing = Writing::new();
    writing.write(&noise(999));
    let (blob, cancel) = (writing.blob.clone(), CancellationToken::new());
    drop(writing);
    let sent = client.push_growing(&repository, blob, &cancel).await;
    assert_eq!(sent.unwrap(), None);
    assert_eq!(methods(&evil), Vec::<String>::new());
}

#[tokio::test]
async fn a_blob_that_the_registry_has_is_not_sent_once_it_is_known() {
    let bytes = noise(SIZE);
    // Known before anything is sent.
    let (evil, memory) = spoiled(Chunked::Whole, |_, _| None).await;
    memory.put_blob("a/b", &bytes);
    let (client, repository) = (client(), evil.reference("a/b"));
    let mut writing = Writing::new();
    writing.write(&bytes);
    writing.finish(&bytes);
    let (blob, cancel) = (writing.blob.clone(), CancellationToken::new());
    let sent = client.push_growing(&repository, blob, &cancel).await;
    assert_eq!(sent.unwrap(), Some(Pushed::Existed));
    assert_eq!(methods(&evil), ["HEAD"]);

    // Known while most of it waits to be sent.
    let behind = Arc::new(Memory::default());
    let memory = Arc::clone(&behind);
    let evil = Evil::start_chunked(Chunked::Until(1), move |asked, _| {
        let is_it = asked.method == "PATCH";
        let silent = is_it.then(|| Reply::new(202).manner(Manner::Silent));
        silent.unwrap_or_else(|| memory.answer(asked))
    })
    .await;
    let repository = evil.reference("a/b");
    let bytes = noise(64 << 20);
    behind.put_blob("a/b", &bytes);
    let is_begun = async || until(|| evil.count("PATCH", "/s1") == 1).await;
    let sent = send(&client, &repository, (&bytes, SIZE), is_begun).await;
    assert_eq!(sent.unwrap(), Some(Pushed::Existed));
    assert_eq!(methods(&evil), ["POST", "PATCH", "HEAD", "DELETE"]);
}

#[tokio::test]
async fn who_gives_up_half_way_or_is_cancelled_leaves_no_session() {
    for is_cancelled in [false, true] {
        let (evil, memory) = spoiled(Chunked::Whole, |_, _| None).await;
        let (client, repository) = (client(), evil.reference("a/b"));
        let bytes = noise(SIZE);
        let mut writing = Writing::new();
        writing.write(&bytes);
        let (blob, cancel) = (writing.blob.clone(), CancellationToken::new());
        let sending = client.push_growing(&repository, blob, &cancel);
        let stop = async {
            until(|| evil.count("POST", "/uploads/") == 1).await;
            if is_cancelled {
                cancel.cancel();
                // It ends without waiting for whoever writes.
                return Some(writing);
            }
            drop(writing);
            None
        };
        let (sent, _writing) = tokio::join!(sending, stop);
        assert_eq!(sent.unwrap(), None, "{is_cancelled}");
        assert_eq!(
            methods(&evil).last().map(String::as_str),
            Some("DELETE"),
            "{is_cancelled}"
        );
        assert!(memory.blob("a/b", &Digest::sha256(&bytes)).is_none());
    }
}

/// Sends to a registry that spoils it, then pushes as usual, and returns how the former failed and what was asked by then.
async fn spoiled_first(
    chunked: Chunked,
    spoil: impl Fn(&Memory, &Asked) -> Option<Reply> + Send + Sync + 'static,
) -> (Error, Vec<String>) {
    let is_ahead = |asked: &Asked| asked.is_chunked();
    let (evil, memory) = spoiled(chunked, move |memory, asked| {
        let is_first = is_ahead(asked) || asked.method != "PATCH";
        if is_first { spoil(memory, asked) } else { None }
    })
    .await;
    let (client, repository) = (client(), evil.reference("a/b"));
    let bytes = noise(SIZE);
    let error = send(&client, &repository, (&bytes, SIZE / 2), async || ()).await;
    let error = error.unwrap_err();
    let asked = changes(&evil);
    assert_eq!(push(&client, &repository, &bytes).await, Pushed::Uploaded);
    assert!(memory.blob("a/b", &Digest::sha256(&bytes)).unwrap() == bytes);
    (error, asked)
}

#[tokio::test]
async fn a_registry_that_refuses_to_patch_is_asked_once_and_gets_the_blob_as_usual() {
    for status in [400, 404, 405, 413, 415, 501, 503] {
        let (_, asked) = spoiled_first(Chunked::Until(1), move |_, asked| {
            let is_it = asked.method == "PATCH";
            is_it.then(|| Reply::new(status))
        })
        .await;
        assert_eq!(asked, ["POST", "PATCH", "DELETE"], "{status}");
    }
}

#[tokio::test]
async fn a_connection_that_breaks_on_the_way_is_no_matter() {
    for n_bytes in [1, 300_000, SIZE - 1] {
        let (error, asked) = spoiled_first(Chunked::Until(n_bytes), |_, asked| {
            let is_it = asked.method == "PATCH";
            is_it.then(|| Reply::new(202).manner(Manner::ResetAfter(0)))
        })
        .await;
        assert_eq!(asked, ["POST", "PATCH", "DELETE"], "{n_bytes}");
        assert!(
            matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Invalid),
            "{error}"
        );
    }
}

#[tokio::test]
async fn answers_that_make_no_sense_end_it() {
    // Where the session goes on is not said, or is somewhere else.
    for location in [None, Some("http://127.0.0.1:1/v2/a/b/blobs/uploads/s1")] {
        let (_, asked) = spoiled_first(Chunked::Whole, move |memory, asked| {
            let is_it = asked.method == "PATCH";
            is_it.then(|| {
                let reply = memory.answer(asked);
                let reply = Reply::new(reply.status);
                match location {
                    Some(location) => reply.with("Location", location),
                    None => reply,
                }
            })
        })
        .await;
        assert_eq!(asked, ["POST", "PATCH", "DELETE"], "{location:?}");
    }
    // It answers before it has read all of it, and closes the connection: an answer that is seen leads to a digest that is not right.
    let (error, asked) = spoiled_first(Chunked::Until(SIZE / 2), |_, _| None).await;
    match error.kind() {
        ErrorKind::Invalid => assert_eq!(asked, ["POST", "PATCH", "PUT", "DELETE"]),
        ErrorKind::Unavailable => assert_eq!(asked, ["POST", "PATCH", "DELETE"]),
        other => panic!("{other:?}: {error}"),
    }
}

#[tokio::test]
async fn a_wrong_range_does_not_matter_for_the_digest_decides() {
    let (evil, memory) = spoiled(Chunked::Whole, |memory, asked| {
        (asked.method == "PATCH").then(|| {
            let mut reply = memory.answer(asked);
            reply.headers.retain(|(name, _)| name != "Range");
            reply.with("Range", "0-0")
        })
    })
    .await;
    let (client, repository) = (client(), evil.reference("a/b"));
    let bytes = noise(SIZE);
    let sent = send(&client, &repository, (&bytes, 5000), async || ()).await;
    assert_eq!(sent.unwrap(), Some(Pushed::Uploaded));
    assert!(memory.blob("a/b", &Digest::sha256(&bytes)).unwrap() == bytes);
}

#[tokio::test]
async fn a_session_that_is_gone_at_the_end_is_no_matter() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let has_lost = AtomicBool::new(false);
    let (_, asked) = spoiled_first(Chunked::Whole, move |_, asked| {
        let is_it = asked.method == "PUT" && !has_lost.swap(true, Ordering::Relaxed);
        is_it.then(|| Reply::new(404))
    })
    .await;
    assert_eq!(asked, ["POST", "PATCH", "PUT", "DELETE"]);
}

#[tokio::test]
async fn a_registry_that_reads_no_more_is_given_up_and_does_not_hold_up_the_writing() {
    let (evil, _) = spoiled(Chunked::Until(1), |_, asked| {
        let is_it = asked.method == "PATCH";
        is_it.then(|| Reply::new(202).manner(Manner::Silent))
    })
    .await;
    let (client, repository) = (client(), evil.reference("a/b"));
    let mut writing = Writing::new();
    let (blob, cancel) = (writing.blob.clone(), CancellationToken::new());
    // More than all buffers between the two hold.
    let bytes = noise(64 << 20);
    writing.write(&bytes);
    let sent = client.push_growing(&repository, blob, &cancel).await;
    assert_eq!(sent.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(methods(&evil), ["POST", "PATCH", "DELETE"]);
}

#[tokio::test]
async fn who_writes_slowly_is_waited_for() {
    let (evil, memory) = spoiled(Chunked::Whole, |_, _| None).await;
    let (client, repository) = (client(), evil.reference("a/b"));
    let bytes = noise(SIZE);
    // Longer than a registry may stall.
    let slowly = async || tokio::time::sleep(Duration::from_millis(1000)).await;
    let sent = send(&client, &repository, (&bytes, SIZE / 2), slowly).await;
    assert_eq!(sent.unwrap(), Some(Pushed::Uploaded));
    assert!(memory.blob("a/b", &Digest::sha256(&bytes)).unwrap() == bytes);
}

#[tokio::test]
async fn errors_hold_no_address_of_a_session_and_no_password() {
    let (evil, _) = spoiled(Chunked::Whole, |memory, asked| {
        match asked.method.as_str() {
            "POST" => {
                let reply = memory.answer(asked);
                let location = &reply.headers[0].1;
                let location = format!("{location}?_state=very-secret");
                Some(Reply::new(202).with("Location", location))
            }
            "PATCH" => Some(Reply::new(500)),
            _ => None,
        }
    })
    .await;
    let host = evil.host.clone();
    let (client, repository) = (
        client_with(&[(&host, "correct horse")]),
        evil.reference("a/b"),
    );
    let error = send(&client, &repository, (&noise(SIZE), 5000), async || ()).await;
    let error = error.unwrap_err();
    let text = format!("{error} {error:?}");
    assert!(
        text.contains("send a blob that is being written to a/b"),
        "{text}"
    );
    for secret in ["very-secret", "correct horse", "uploads/s1"] {
        assert!(!text.contains(secret), "{text}");
    }
}
