//! How much memory a large object takes: a process of its own, so that nothing else is counted.

#![expect(clippy::unwrap_used, reason = "a test says what went wrong by ending")]

use std::fs::File;

use objects::{Bucket, Keys, Objects, Place};
use testkit::s3::{ACCESS_KEY, BUCKET, S3Server, SECRET_KEY};
use testkit::scratch::Scratch;
use tokio_util::sync::CancellationToken;

/// Size of the object.
const OBJECT_BYTES: u64 = 256 << 20;
/// What putting it may take: a few parts of 8 MiB, and what the allocator keeps.
const MEMORY_MAX_BYTES: u64 = 96 << 20;

fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.unwrap().trim().split(' ').next().unwrap();
    kilobytes.parse::<u64>().unwrap() << 10
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_object_takes_little_memory() {
    let server = S3Server::start();
    let scratch = Scratch::new();
    let path = scratch.join("large");
    File::create(&path).unwrap().set_len(OBJECT_BYTES).unwrap();
    let bucket = Bucket {
        name: BUCKET.to_owned(),
        prefix: None,
        endpoint: Some(server.endpoint()),
        region: "us-east-1".to_owned(),
        keys: Keys::new(ACCESS_KEY.to_owned(), SECRET_KEY.to_owned(), None),
    };
    let objects = Objects::open(&Place::Bucket(Box::new(bucket))).unwrap();
    let name = "large".parse().unwrap();
    let before = peak_bytes();
    let (file, never) = (File::open(&path).unwrap(), CancellationToken::new());
    let put = objects.put(&name, file, &never).await;
    assert_eq!(put.unwrap(), OBJECT_BYTES);
    let taken = peak_bytes() - before;
    assert!(taken < MEMORY_MAX_BYTES, "{} MiB", taken >> 20);
    assert_eq!(objects.head(&name).await.unwrap(), Some(OBJECT_BYTES));
}
