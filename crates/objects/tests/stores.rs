//! Both places, held to the same: a folder, and a bucket of a real store.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by ending"
)]

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _};
use objects::{Bucket, Keys, Listed, Name, ObjectError, Objects, Place};
use testkit::s3::{ACCESS_KEY, BUCKET, S3Server, SECRET_KEY};
use testkit::scratch::Scratch;
use tokio_util::sync::CancellationToken;

/// More than two parts, and not a whole number of them.
const LARGE_BYTES: usize = (20 << 20) + 7;

fn bucket(server: &S3Server, prefix: Option<&str>) -> Bucket {
    Bucket {
        name: BUCKET.to_owned(),
        prefix: prefix.map(name),
        endpoint: Some(server.endpoint()),
        region: "us-east-1".to_owned(),
        keys: Keys::new(ACCESS_KEY.to_owned(), SECRET_KEY.to_owned(), None),
    }
}

fn open(bucket: Bucket) -> Objects {
    Objects::open(&Place::Bucket(Box::new(bucket))).unwrap()
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn content(size: usize) -> Vec<u8> {
    let mut state = 1u32;
    let next = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    });
    next.take(size).collect()
}

fn file(scratch: &Scratch, content: &[u8]) -> File {
    File::open(scratch.write("content", content)).unwrap()
}

async fn put(objects: &Objects, at: &str, content: &[u8]) {
    let scratch = Scratch::new();
    let (name, never) = (name(at), CancellationToken::new());
    let put = objects.put(&name, file(&scratch, content), &never).await;
    assert_eq!(put.unwrap(), content.len() as u64);
}

async fn read(objects: &Objects, at: &str, range: Option<std::ops::Range<u64>>) -> Option<Vec<u8>> {
    let stream = objects.get(&name(at), range).await.unwrap()?;
    let pieces: Vec<_> = stream.try_collect().await.unwrap();
    Some(pieces.concat())
}

async fn listed(objects: &Objects, below: Option<&str>) -> Vec<(String, u64)> {
    let below = below.map(name);
    let found: Vec<Listed> = objects.list(below.as_ref()).try_collect().await.unwrap();
    let mut found: Vec<_> = found
        .into_iter()
        .map(|listed| (listed.name.to_string(), listed.size_bytes))
        .collect();
    found.sort();
    found
}

/// What is true wherever objects are.
async fn keeps_what_it_is_given(objects: &Objects) {
    assert_eq!(objects.head(&name("a/one")).await.unwrap(), None);
    assert!(read(objects, "a/one", None).await.is_none());
    objects.delete(&name("a/one")).await.unwrap();

    let large = content(LARGE_BYTES);
    put(objects, "a/one", b"first").await;
    put(objects, "a/empty", b"").await;
    put(objects, "b=2/large.tar", &large).await;
    assert_eq!(objects.head(&name("a/one")).await.unwrap(), Some(5));
    assert_eq!(read(objects, "a/one", None).await.unwrap(), b"first");
    assert_eq!(read(objects, "a/one", Some(1..3)).await.unwrap(), b"ir");
    assert_eq!(read(objects, "a/empty", None).await.unwrap(), b"");
    assert!(read(objects, "b=2/large.tar", None).await.unwrap() == large);
    let middle = (8 << 20) - 3..(8 << 20) + 3;
    let expected = &large[(8 << 20) - 3..(8 << 20) + 3];
    assert_eq!(
        read(objects, "b=2/large.tar", Some(middle)).await.unwrap(),
        expected
    );

    put(objects, "a/one", b"second").await;
    assert_eq!(read(objects, "a/one", None).await.unwrap(), b"second");
    let all = [
        ("a/empty".to_owned(), 0),
        ("a/one".to_owned(), 6),
        ("b=2/large.tar".to_owned(), LARGE_BYTES as u64),
    ];
    assert_eq!(listed(objects, None).await, all);
    assert_eq!(listed(objects, Some("a")).await, all[..2]);
    assert_eq!(listed(objects, Some("nothing")).await, []);
    objects.delete(&name("a/one")).await.unwrap();
    assert_eq!(listed(objects, Some("a")).await, all[..1]);
}

/// Puts an object whose file goes on growing under our hands, and one that nobody waits for.
async fn gives_up_as_a_whole(objects: &Objects) {
    let scratch = Scratch::new();
    let cancel = CancellationToken::new();
    cancel.cancel();
    for size in [5, LARGE_BYTES] {
        let source = file(&scratch, &content(size));
        let cancelled = name("x/cancelled");
        let put = objects.put(&cancelled, source, &cancel).await;
        assert!(matches!(put, Err(ObjectError::Cancelled { .. })), "{put:?}");
    }
    let path = scratch.write("growing", content(LARGE_BYTES));
    let growing = File::open(&path).unwrap();
    let target = name("x/growing");
    let never = CancellationToken::new();
    let put = objects.put(&target, growing, &never);
    let mut put = std::pin::pin!(put);
    // The size is taken before anything else happens: what comes now comes later.
    let pending = futures_util::poll!(&mut put);
    assert!(pending.is_pending());
    File::options()
        .append(true)
        .open(&path)
        .unwrap()
        .write_all(b"more")
        .unwrap();
    let put = put.await;
    assert!(matches!(put, Err(ObjectError::Changed { .. })), "{put:?}");
    assert_eq!(listed(objects, Some("x")).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_keeps_what_it_is_given() {
    let scratch = Scratch::new();
    let folder = scratch.join("made/when/missing");
    let objects = Objects::open(&Place::Folder(folder.clone())).unwrap();
    keeps_what_it_is_given(&objects).await;
    gives_up_as_a_whole(&objects).await;
    assert_eq!(
        objects
            .presign(&name("a"), Duration::from_secs(1))
            .await
            .unwrap(),
        None
    );
    // Nothing half is left beside it.
    let left = |folder: &Path| std::fs::read_dir(folder).map_or(0, Iterator::count);
    assert_eq!(left(&folder.join("x")), 0);
    assert_eq!(left(&folder.join("a")), 1);
    let blocked = Objects::open(&Place::Folder(folder.join("a/empty")));
    assert!(matches!(blocked, Err(ObjectError::Open { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_keeps_what_it_is_given_below_its_prefix() {
    let server = S3Server::start();
    let other = open(bucket(&server, None));
    put(&other, "sub-other/of-somebody-else", b"theirs").await;
    let objects = open(bucket(&server, Some("sub/deeper")));
    keeps_what_it_is_given(&objects).await;
    gives_up_as_a_whole(&objects).await;
    assert_eq!(server.n_unfinished(), 0);
    assert_eq!(
        listed(&other, None).await,
        [
            ("sub-other/of-somebody-else".to_owned(), 6),
            ("sub/deeper/a/empty".to_owned(), 0),
            ("sub/deeper/b=2/large.tar".to_owned(), LARGE_BYTES as u64),
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_address_opens_one_object_until_it_expires() {
    let mut server = S3Server::start();
    let objects = open(bucket(&server, Some("p")));
    put(&objects, "one", b"0123456789").await;
    let sign = |lifetime| objects.presign(&ONE, lifetime);
    let url = sign(Duration::from_secs(60)).await.unwrap().unwrap();
    assert!(!url.as_str().contains(SECRET_KEY));
    let client = reqwest::Client::new();
    let whole = client.get(url.clone()).send().await.unwrap();
    assert_eq!(whole.status(), 200);
    assert_eq!(whole.bytes().await.unwrap(), "0123456789");
    let part = client
        .get(url.clone())
        .header("range", "bytes=2-4")
        .send()
        .await
        .unwrap();
    assert_eq!(part.status(), 206);
    assert_eq!(part.bytes().await.unwrap(), "234");

    let mut another = url.clone();
    another.set_path(&url.path().replace("one", "two"));
    let mut bare = url.clone();
    bare.set_query(None);
    let expired = sign(Duration::from_secs(1)).await.unwrap().unwrap();
    for refused in [another, bare] {
        assert_eq!(client.get(refused).send().await.unwrap().status(), 403);
    }
    let put = client.put(url.clone()).body("x").send().await.unwrap();
    assert_eq!(put.status(), 403);
    let is_over = async {
        while client.get(expired.clone()).send().await.unwrap().status() == 200 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), is_over)
        .await
        .unwrap();

    // Wrong keys, a wrong bucket and a store that is gone are errors, never "not there".
    let stranger = Bucket {
        keys: Keys::new(ACCESS_KEY.to_owned(), "guessed".to_owned(), None),
        ..bucket(&server, None)
    };
    let refused = open(stranger).head(&ONE).await.unwrap_err();
    assert!(matches!(refused, ObjectError::Head { .. }));
    assert!(!format!("{refused:?}").contains("guessed"), "{refused:?}");
    server.stop();
    let gone = tokio::time::timeout(Duration::from_secs(60), objects.head(&ONE)).await;
    assert!(matches!(gone.unwrap(), Err(ObjectError::Head { .. })));
    let mut list = objects.list(None);
    drop(client);
    assert!(matches!(list.next().await, Some(Err(ObjectError::List(_)))));
}

static ONE: std::sync::LazyLock<Name> = std::sync::LazyLock::new(|| name("one"));
