//! Pushing to registries that lose, lie and break: R-04, R-16, R-17.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use oci::{Digest, Manifest, media_type};
use registry::client::{BlobSource, BlobToPush, ErrorKind, ImageToPush, Presence, Pushed};

use super::support::client;
use super::support::evil::{Asked, Evil, Manner, Reply, descriptor, layer, noise};
use super::support::memory::Memory;

const SIZE: usize = 200_000;

/// Starts a registry whose answers go through `spoil`.
async fn spoiled(
    spoil: impl Fn(&Memory, &Asked, usize) -> Option<Reply> + Send + Sync + 'static,
) -> (Evil, Arc<Memory>) {
    let memory = Arc::new(Memory::default());
    let behind = Arc::clone(&memory);
    let evil = Evil::start(move |asked, n_before| {
        spoil(&behind, asked, n_before).unwrap_or_else(|| behind.answer(asked))
    })
    .await;
    (evil, memory)
}

async fn push(evil: &Evil, bytes: &[u8]) -> Result<Pushed, registry::client::Error> {
    let source = BlobSource::Bytes(Bytes::copy_from_slice(bytes));
    let repository = evil.reference("a/b");
    client()
        .push_blob(&repository, &layer(bytes), source, &[], &|_| {})
        .await
}

fn image(config: &[u8], layers: &[&[u8]]) -> ImageToPush {
    let blob = |media_type: &str, bytes: &[u8]| BlobToPush {
        descriptor: descriptor(media_type, bytes),
        source: BlobSource::Bytes(Bytes::copy_from_slice(bytes)),
        mount_from: Vec::new(),
        presence: Presence::Unknown,
    };
    let mut blobs = vec![blob(media_type::OCI_CONFIG, config)];
    blobs.extend(layers.iter().map(|l| blob(media_type::OCI_LAYER_GZIP, l)));
    let manifest = Manifest {
        schema_version: 2,
        media_type: media_type::OCI_MANIFEST.to_owned(),
        artifact_type: None,
        config: blobs[0].descriptor.clone(),
        layers: blobs[1..].iter().map(|b| b.descriptor.clone()).collect(),
        subject: None,
        annotations: std::collections::BTreeMap::new(),
    };
    ImageToPush {
        manifest: serde_json::to_vec(&manifest).unwrap().into(),
        media_type: media_type::OCI_MANIFEST.to_owned(),
        blobs,
    }
}

#[tokio::test]
async fn a_second_push_of_the_same_blob_moves_nothing() {
    for size in [0, 1, 1000, 1001, SIZE] {
        let (evil, memory) = spoiled(|_, _, _| None).await;
        let bytes = noise(size);
        assert_eq!(
            push(&evil, &bytes).await.unwrap(),
            Pushed::Uploaded,
            "{size}"
        );
        assert!(memory.blob("a/b", &Digest::sha256(&bytes)).unwrap() == bytes);
        let n_asked = evil.asked().len();
        assert_eq!(push(&evil, &bytes).await.unwrap(), Pushed::Existed);
        assert_eq!(evil.asked().len(), n_asked + 1);
    }
}

#[tokio::test]
async fn files_and_store_blobs_are_streamed_and_progress_is_told() {
    let (evil, memory) = spoiled(|_, _, _| None).await;
    let (one, two) = (noise(SIZE), noise(SIZE + 1));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("blob");
    std::fs::write(&path, &one).unwrap();
    let store = store::Store::open(&directory.path().join("store"), None).unwrap();
    let digest = store.put(&two).unwrap();
    let (client, repository) = (client(), evil.reference("a/b"));
    for (bytes, source) in [
        (&one, BlobSource::File(path)),
        (&two, BlobSource::Store(store, digest)),
    ] {
        let sent = AtomicUsize::new(0);
        let progress = |n: u64| {
            sent.fetch_max(usize::try_from(n).unwrap(), Ordering::Relaxed);
        };
        client
            .push_blob(&repository, &layer(bytes), source, &[], &progress)
            .await
            .unwrap();
        assert_eq!(sent.into_inner(), bytes.len());
        assert!(memory.blob("a/b", &Digest::sha256(bytes)).unwrap() == *bytes);
    }
    let gone = BlobSource::File(directory.path().join("gone"));
    let error = client
        .push_blob(&repository, &layer(b"x"), gone, &[], &|_| {})
        .await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Internal);
}

#[tokio::test]
async fn a_broken_upload_goes_on_where_it_broke() {
    let (evil, memory) = spoiled(|memory, asked, _| {
        let is_first = asked.method == "PATCH" && asked.header("content-range").is_none();
        is_first.then(|| {
            memory.receive(asked, SIZE / 2);
            Reply::new(202)
                .manner(Manner::ResetAfter(0))
                .with("Content-Length", 5)
        })
    })
    .await;
    let bytes = noise(SIZE);
    // The first answer has no Location, as if a proxy had cut in: the client has to find out by itself.
    let pushed = push(&evil, &bytes).await;
    assert!(pushed.is_err() || memory.blob("a/b", &Digest::sha256(&bytes)).is_some());

    let (evil, memory) = spoiled(|memory, asked, _| {
        let is_first = asked.method == "PATCH" && asked.header("content-range").is_none();
        is_first.then(|| {
            memory.receive(asked, SIZE / 2);
            Reply::new(503)
        })
    })
    .await;
    assert_eq!(push(&evil, &bytes).await.unwrap(), Pushed::Uploaded);
    assert!(memory.blob("a/b", &Digest::sha256(&bytes)).unwrap() == bytes);
    let patches: Vec<usize> = evil
        .asked()
        .iter()
        .filter(|asked| asked.method == "PATCH")
        .map(|asked| asked.body.len())
        .collect();
    assert_eq!(patches, [SIZE, SIZE / 2]);
}

#[tokio::test]
async fn a_lost_session_is_begun_anew() {
    for status in [404, 416] {
        for method in ["PATCH", "PUT"] {
            let n_spoiled = AtomicUsize::new(0);
            let (evil, memory) = spoiled(move |_, asked, _| {
                let is_first =
                    asked.method == method && n_spoiled.fetch_add(1, Ordering::Relaxed) == 0;
                is_first.then(|| Reply::new(status))
            })
            .await;
            let bytes = noise(SIZE);
            push(&evil, &bytes).await.unwrap();
            assert!(
                memory.blob("a/b", &Digest::sha256(&bytes)).is_some(),
                "{method} {status}"
            );
            assert_eq!(evil.count("POST", "/uploads/"), 2);
        }
        let (evil, _) =
            spoiled(move |_, asked, _| (asked.method == "PATCH").then(|| Reply::new(status))).await;
        assert!(push(&evil, &noise(SIZE)).await.is_err());
        assert!(evil.asked().len() < 12, "it never gives up");
    }
}

#[tokio::test]
async fn a_blob_whose_answer_was_lost_is_not_sent_twice() {
    let (evil, _) = spoiled(|memory, asked, _| {
        (asked.method == "PUT").then(|| {
            memory.answer(asked);
            Reply::new(502)
        })
    })
    .await;
    push(&evil, &noise(SIZE)).await.unwrap();
    assert_eq!(evil.count("PATCH", "s1"), 1);
    assert_eq!(evil.count("PUT", "s1"), 1);
}

#[tokio::test]
async fn uploads_to_another_host_are_refused() {
    let elsewhere = Evil::start(|_, _| Reply::new(201)).await;
    let host = elsewhere.host.clone();
    for location in [
        format!("http://{host}/v2/a/b/blobs/uploads/x"),
        format!("//{host}/v2/a/b/blobs/uploads/x"),
        format!("https://{host}/x"),
        "file:///x".to_owned(),
        String::new(),
    ] {
        let (evil, _) = spoiled(move |_, asked, _| {
            (asked.method == "POST").then(|| match location.as_str() {
                "" => Reply::new(202),
                location => Reply::new(202).with("Location", location),
            })
        })
        .await;
        let error = push(&evil, &noise(SIZE)).await.unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::Refused | ErrorKind::Invalid),
            "{error}"
        );
    }
    assert!(elsewhere.asked().is_empty());
    // Relative, with a query of its own: the usual one.
    let (evil, memory) = spoiled(|memory, asked, _| {
        (asked.method == "POST").then(|| {
            memory.answer(asked);
            Reply::new(202).with("Location", "s1?_state=a%2Bb%3D%3D&x")
        })
    })
    .await;
    push(&evil, b"small").await.unwrap();
    assert!(memory.blob("a/b", &Digest::sha256(b"small")).is_some());
    let put = evil
        .asked()
        .into_iter()
        .find(|a| a.method == "PUT")
        .unwrap();
    assert!(
        put.target
            .contains("?_state=a%2Bb%3D%3D&x&digest=sha256%3A"),
        "{}",
        put.target
    );
}

#[tokio::test]
async fn a_redirected_upload_is_refused() {
    let elsewhere = Evil::start(|_, _| Reply::new(201)).await;
    let target = format!("http://{}/", elsewhere.host);
    let (evil, _) = spoiled(move |_, asked, _| {
        (asked.method == "PUT").then(|| Reply::new(307).with("Location", &target))
    })
    .await;
    let error = push(&evil, b"small").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(elsewhere.asked().is_empty());
}

#[tokio::test]
async fn mounts_are_asked_of_the_same_registry_alone_and_may_be_refused() {
    let bytes = noise(SIZE);
    let source = || BlobSource::Bytes(noise(SIZE).into());
    let refuse = |status: u16| {
        move |_: &Memory, asked: &Asked, _: usize| {
            asked.target.contains("from=").then(|| Reply::new(status))
        }
    };
    for status in [401, 403, 404, 405] {
        let (evil, memory) = spoiled(refuse(status)).await;
        let from = [
            evil.reference("other"),
            evil.reference("a/b"),
            "elsewhere.example/other".parse().unwrap(),
        ];
        let pushed = client()
            .push_blob(
                &evil.reference("a/b"),
                &layer(&bytes),
                source(),
                &from,
                &|_| {},
            )
            .await;
        assert_eq!(pushed.unwrap(), Pushed::Uploaded);
        assert!(memory.blob("a/b", &Digest::sha256(&bytes)).is_some());
        let mounts: Vec<String> = evil.asked().into_iter().map(|a| a.target).collect();
        let mounts = mounts.iter().filter(|target| target.contains("mount="));
        assert!(mounts.clone().all(|target| target.ends_with("from=other")));
        assert_eq!(mounts.count(), 1);
    }
    // 202 begins an upload, which is used; of two, one is cancelled.
    let (evil, _) = spoiled(|_, _, _| None).await;
    let from = [evil.reference("one"), evil.reference("two")];
    let pushed = client()
        .push_blob(
            &evil.reference("a/b"),
            &layer(&bytes),
            source(),
            &from,
            &|_| {},
        )
        .await;
    assert_eq!(pushed.unwrap(), Pushed::Uploaded);
    assert_eq!(evil.count("POST", "/uploads/"), 2);
    assert_eq!(evil.count("DELETE", "/uploads/s2"), 1);
    assert_eq!(evil.count("PATCH", "/uploads/s1"), 1);
    // 201 without the blob is not believed.
    let (evil, memory) = spoiled(refuse(201)).await;
    let pushed = client()
        .push_blob(
            &evil.reference("a/b"),
            &layer(&bytes),
            source(),
            &from_of(&evil),
            &|_| {},
        )
        .await;
    assert_eq!(pushed.unwrap(), Pushed::Uploaded);
    assert!(memory.blob("a/b", &Digest::sha256(&bytes)).is_some());
}

fn from_of(evil: &Evil) -> [oci::Reference; 1] {
    [evil.reference("other")]
}

#[tokio::test]
async fn an_image_is_pushed_only_when_the_registry_shows_all_of_it() {
    let image = image(b"{}", &[&noise(SIZE), b"small"]);
    let (evil, _) = spoiled(|_, _, _| None).await;
    let reference = evil.reference("a/b:v1");
    let digest = client()
        .push_image(&reference, &image, &|_, _| {})
        .await
        .unwrap();
    assert_eq!(digest, Digest::sha256(&image.manifest));
    assert_eq!(evil.count("GET", &digest.to_string()), 1);
    for blob in &image.blobs {
        let path = format!("/blobs/{}", blob.descriptor.digest);
        assert_eq!(evil.count("HEAD", &path), 2, "once before, once after");
    }
    let head = client().head(&reference).await.unwrap().unwrap();
    assert_eq!(head.digest, digest);
}

#[tokio::test]
async fn blobs_that_were_sent_before_are_asked_for_at_the_end_alone() {
    let (evil, memory) = spoiled(|_, _, _| None).await;
    let (config, one, two) = (b"{}".to_vec(), noise(5000), noise(7000));
    let mut image = image(&config, &[&one, &two]);
    for blob in &mut image.blobs[1..] {
        blob.presence = Presence::Told;
    }
    for bytes in [&one, &two] {
        memory.put_blob("a/b", bytes);
    }
    let push = async || {
        let target = evil.reference("a/b:v1");
        let pushed = client().push_image(&target, &image, &|_, _| {}).await;
        pushed.unwrap();
    };
    push().await;
    for bytes in [&one, &two] {
        assert_eq!(evil.count("HEAD", &Digest::sha256(bytes).to_string()), 1);
    }
    // What is not there, whatever was said, is sent all the same.
    memory.forget_blob("a/b", &Digest::sha256(&two));
    push().await;
    assert!(memory.blob("a/b", &Digest::sha256(&two)).unwrap() == two);
}

#[tokio::test]
async fn blobs_that_a_registry_loses_are_sent_once_more() {
    let image_ = image(b"{}", &[&noise(SIZE)]);
    let lost = image_.blobs[1].descriptor.digest.clone();
    // Forgets a blob when the manifest comes, once.
    let n_puts = AtomicUsize::new(0);
    let (evil, memory) = spoiled(move |memory, asked, _| {
        let is_manifest = asked.method == "PUT" && asked.path().contains("/manifests/");
        if is_manifest && n_puts.fetch_add(1, Ordering::Relaxed) == 0 {
            memory.forget_blob("a/b", &lost);
        }
        None
    })
    .await;
    let reference = evil.reference("a/b:v1");
    client()
        .push_image(&reference, &image_, &|_, _| {})
        .await
        .unwrap();
    assert!(
        memory
            .blob("a/b", &image_.blobs[1].descriptor.digest)
            .is_some()
    );
    // Says so by itself.
    let n_puts = AtomicUsize::new(0);
    let (evil, _) = spoiled(move |_, asked, _| {
        let is_manifest = asked.method == "PUT" && asked.path().contains("/manifests/");
        (is_manifest && n_puts.fetch_add(1, Ordering::Relaxed) == 0)
            .then(|| Reply::new(400).body(r#"{"errors":[{"code":"MANIFEST_BLOB_UNKNOWN"}]}"#))
    })
    .await;
    let reference = evil.reference("a/b:v1");
    client()
        .push_image(&reference, &image_, &|_, _| {})
        .await
        .unwrap();
    // Loses it every time.
    let lost = image_.blobs[1].descriptor.digest.clone();
    let (evil, _) = spoiled(move |_, asked, _| {
        asked
            .is("HEAD", &format!("/blobs/{lost}"))
            .then(|| Reply::new(404))
    })
    .await;
    let reference = evil.reference("a/b:v1");
    let error = client()
        .push_image(&reference, &image_, &|_, _| {})
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(error.to_string().contains("does not have it"), "{error}");
    assert_eq!(
        evil.count("PATCH", "s1") + evil.count("PATCH", "s2") + evil.count("PATCH", "s3"),
        2
    );
}

#[tokio::test]
async fn a_manifest_that_is_not_there_afterwards_was_not_pushed() {
    let image = image(b"{}", &[]);
    let (evil, _) = spoiled(|_, asked, _| {
        asked
            .path()
            .contains("/manifests/")
            .then(|| match asked.method.as_str() {
                "PUT" => Reply::new(201),
                _ => Reply::new(404),
            })
    })
    .await;
    let reference = evil.reference("a/b:v1");
    let error = client()
        .push_image(&reference, &image, &|_, _| {})
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    // Nor one of which the registry claims another digest.
    let (evil, _) = spoiled(|_, asked, _| {
        let is_put = asked.method == "PUT" && asked.path().contains("/manifests/");
        is_put.then(|| Reply::new(201).with("Docker-Content-Digest", Digest::sha256(b"other")))
    })
    .await;
    let reference = evil.reference("a/b:v1");
    let error = client()
        .push_image(&reference, &image, &|_, _| {})
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

#[tokio::test]
async fn a_token_that_expires_during_an_upload_is_renewed() {
    let tokens =
        Evil::start(|_, n| Reply::ok(format!(r#"{{"token":"t{n}","expires_in":300}}"#))).await;
    let realm = format!("http://{}/token", tokens.host);
    // One token is good for the HEAD and the POST, the next for the PATCH, the third for the rest.
    let (evil, memory) = spoiled(move |_, asked, _| {
        let wanted = match asked.method.as_str() {
            "HEAD" | "POST" => "Bearer t0",
            "PATCH" => "Bearer t1",
            _ => "Bearer t2",
        };
        (asked.header("authorization") != Some(wanted))
            .then(|| Reply::new(401).with("WWW-Authenticate", format!("Bearer realm=\"{realm}\"")))
    })
    .await;
    let bytes = noise(SIZE);
    push(&evil, &bytes).await.unwrap();
    assert!(memory.blob("a/b", &Digest::sha256(&bytes)).unwrap() == bytes);
    assert_eq!(tokens.asked().len(), 3);
}
