//! Manifests and blobs from misbehaving registries: R-01, R-03, R-07 to R-12, R-15.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use oci::{Digest, Document, Platform, media_type};
use registry::client::{Client, ErrorKind, Options};
use registry::hosts::{HostConfig, Hosts};
use registry::keychain::Keychain;
use store::Store;

use super::support::evil::{Asked, Evil, Manner, Reply, descriptor, layer, noise};
use super::support::memory::Memory;
use super::support::{client, client_with, options};

const SIZE: usize = 300_000;

type Answer = Box<dyn Fn(&[u8]) -> Reply + Send + Sync>;

fn store() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path(), None).unwrap();
    (directory, store)
}

fn manifest_text(layers: usize) -> String {
    let config = noise(10);
    let layers: Vec<_> = (0..layers).map(|_| layer(b"layer")).collect();
    serde_json::json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "config": descriptor(media_type::OCI_CONFIG, &config),
        "layers": layers,
    })
    .to_string()
}

async fn pull(
    client: &Client,
    evil: &Evil,
    bytes: &[u8],
) -> Result<Vec<u8>, registry::client::Error> {
    let (_directory, store) = store();
    let (repository, layer) = (evil.reference("a/b"), layer(bytes));
    client
        .blob_to_store(&repository, &layer, &store, &|_| {})
        .await?;
    Ok(store.read_blob(&layer.digest, SIZE * 2).unwrap().unwrap())
}

#[tokio::test]
async fn a_manifest_is_read_by_tag_and_by_digest() {
    let memory = Memory::default();
    let text = manifest_text(1);
    memory.put_manifest("a/b", "v1", media_type::OCI_MANIFEST, text.as_bytes());
    let evil = Evil::start(move |asked, _| memory.answer(asked)).await;
    let client = client();
    let by_tag = client.resolve(&evil.reference("a/b:v1")).await.unwrap();
    assert_eq!(by_tag.bytes, text.as_bytes());
    let digest = Digest::sha256(text.as_bytes());
    assert_eq!(by_tag.descriptor.digest, digest);
    assert!(matches!(by_tag.document, Document::Manifest(_)));
    let by_digest = evil.reference("a/b:v1").with_digest(digest);
    assert_eq!(
        client.manifest(&by_digest).await.unwrap().descriptor,
        by_tag.descriptor
    );
    let head = client.head(&evil.reference("a/b:v1")).await.unwrap();
    assert_eq!(head, Some(by_tag.descriptor));
    assert_eq!(client.head(&evil.reference("a/b:v2")).await.unwrap(), None);
    let error = client.resolve(&evil.reference("a/b:v2")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(error.code(), Some("MANIFEST_UNKNOWN"));
    assert_eq!(
        error.to_string(),
        format!(
            "read manifest a/b:v2 at {}: the registry answered 404 Not Found (MANIFEST_UNKNOWN: unknown)",
            evil.host
        )
    );
    assert!(evil.asked()[0].header("accept").is_some());
    assert_eq!(evil.asked()[0].header("accept-encoding"), Some("identity"));
}

#[tokio::test]
async fn manifests_with_a_wrong_digest_are_never_believed() {
    let text = manifest_text(0);
    let other = Digest::sha256(b"other");
    for claimed in [
        other.to_string(),
        "sha256:../../../etc/passwd".to_owned(),
        "sha256:abc".to_owned(),
        other.to_string().to_uppercase(),
        format!("md5:{}", other.hex()),
    ] {
        let (body, said) = (text.clone(), claimed.clone());
        let evil =
            Evil::start(move |_, _| Reply::ok(body.clone()).with("Docker-Content-Digest", &said))
                .await;
        let error = client().resolve(&evil.reference("a/b")).await.unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Invalid),
            "{error}"
        );
        // Where bits may have turned on the way it is asked a second time, and not a third.
        let n_asked = 1 + usize::from(claimed == other.to_string());
        assert_eq!(evil.asked().len(), n_asked, "{claimed}");
    }
    let evil = Evil::start(move |_, _| Reply::ok(text.clone())).await;
    let reference = evil.reference("a/b").with_digest(other);
    let error = client().resolve(&reference).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

#[tokio::test]
async fn bits_that_turn_on_the_way_cost_a_second_try() {
    let text = manifest_text(0);
    let digest = Digest::sha256(text.as_bytes()).to_string();
    let sent = text.clone();
    let flipping = Evil::start(move |_, n_before| {
        let body = match n_before {
            0 => sent.replacen("schema", "scheme", 1),
            _ => sent.clone(),
        };
        Reply::ok(body).with("Docker-Content-Digest", &digest)
    })
    .await;
    let resolved = client().resolve(&flipping.reference("a/b")).await.unwrap();
    assert_eq!(resolved.bytes, text.as_bytes());

    let wanted = layer(&[7; 1000]);
    let flip = |_: &Asked, n_before: usize| {
        let mut body = vec![7; 1000];
        body[500] ^= u8::from(n_before == 0);
        Reply::ok(body)
    };
    let client = client();
    let flipping = Evil::start(flip).await;
    let reference = flipping.reference("a/b");
    let read = client.blob_bytes(&reference, &wanted, 4096).await;
    assert_eq!(read.unwrap(), [7; 1000].as_slice());
    let (flipping, (_directory, store)) = (Evil::start(flip).await, store());
    let reference = flipping.reference("a/b");
    let pulled = client.blob_to_store(&reference, &wanted, &store, &|_| {});
    pulled.await.unwrap();
    assert_eq!(flipping.asked().len(), 2);
}

#[tokio::test]
async fn ambiguous_and_oversized_documents_are_refused() {
    let deep = "[".repeat(100_000);
    let entry = serde_json::to_string(&layer(b"x")).unwrap();
    let many = vec![entry.as_str(); 128].join(",");
    let config = serde_json::to_string(&descriptor(media_type::OCI_CONFIG, b"x")).unwrap();
    for body in [
        r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#.to_owned(),
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[]}}"#,
            media_type::OCI_MANIFEST
        ),
        r#"{"schemaVersion":1}"#.to_owned(),
        r#"{"schemaVersion":2,"config":{"digest":"sha256:x","size":-1}}"#.to_owned(),
        format!(r#"{{"schemaVersion":2,"config":{config},"config":{config},"layers":[]}}"#),
        format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{many}]}}"#),
        format!(r#"{{"schemaVersion":2,"mediaType":"\ud800","config":{config}}}"#),
        deep,
        "NaN".to_owned(),
        " ".repeat((4 << 20) + 1),
    ] {
        let sent = body.clone();
        let evil = Evil::start(move |_, _| Reply::ok(sent.clone())).await;
        let error = client().resolve(&evil.reference("a/b")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    }
    let evil = Evil::start(|_, _| {
        let body = r#"{"schemaVersion":2,"manifests":[]}"#;
        Reply::ok(body).with("Content-Type", media_type::DOCKER_MANIFEST)
    })
    .await;
    assert!(client().resolve(&evil.reference("a/b")).await.is_err());
    let endless = Evil::start(|_, _| Reply::new(200).manner(Manner::Endless)).await;
    let error = client()
        .resolve(&endless.reference("a/b"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
}

#[tokio::test]
async fn an_image_goes_by_digest_after_its_tag_was_asked_once() {
    let (memory, flips) = (Memory::default(), AtomicUsize::new(0));
    let config =
        br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
    memory.put_blob("a/b", config);
    let manifest = serde_json::json!({
        "schemaVersion": 2, "config": descriptor(media_type::OCI_CONFIG, config), "layers": [],
    })
    .to_string();
    memory.put_manifest("a/b", "m", media_type::OCI_MANIFEST, manifest.as_bytes());
    let mut entry = descriptor(media_type::OCI_MANIFEST, manifest.as_bytes());
    entry.platform = Some(Platform::linux_amd64());
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
    memory.put_manifest("a/b", "i", media_type::OCI_INDEX, index.as_bytes());
    let evil = Evil::start(move |asked, _| {
        if asked.path().ends_with("/manifests/flip") {
            // Another image each time.
            let n = flips.fetch_add(1, Ordering::Relaxed);
            let mut asked = asked.clone();
            asked.target = format!("/v2/a/b/manifests/{}", ["i", "m"][n % 2]);
            return memory.answer(&asked);
        }
        memory.answer(asked)
    })
    .await;
    let amd64 = Platform::linux_amd64();
    let image = client()
        .image(&evil.reference("a/b:flip"), &amd64)
        .await
        .unwrap();
    assert_eq!(evil.count("GET", "/flip"), 1);
    assert_eq!(
        image.index.unwrap().digest,
        Digest::sha256(index.as_bytes())
    );
    assert_eq!(image.descriptor.digest, Digest::sha256(manifest.as_bytes()));
    assert_eq!(image.config.platform(), amd64);
    assert_eq!(image.config_bytes, &config[..]);
    let arm: Platform = "linux/arm/v7".parse().unwrap();
    let error = client()
        .image(&evil.reference("a/b:i"), &arm)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSuchPlatform);
    assert!(error.to_string().contains("it has linux/amd64"), "{error}");
}

#[tokio::test]
async fn images_that_contradict_themselves_are_refused() {
    let config =
        br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
    let good = descriptor(media_type::OCI_CONFIG, config);
    let document = |config: &oci::Descriptor, layers: &[oci::Descriptor]| {
        serde_json::json!({"schemaVersion": 2, "config": config, "layers": layers}).to_string()
    };
    let mut wrong_size = good.clone();
    wrong_size.size += 1;
    let mut huge = good.clone();
    huge.size = u64::MAX;
    let mut artifact = good.clone();
    artifact.media_type = "application/vnd.example".to_owned();
    for body in [
        document(&good, &[layer(b"one layer too many")]),
        document(&wrong_size, &[]),
        document(&huge, &[]),
        document(&artifact, &[]),
    ] {
        let memory = Memory::default();
        memory.put_blob("a/b", config);
        memory.put_manifest("a/b", "t", media_type::OCI_MANIFEST, body.as_bytes());
        let evil = Evil::start(move |asked, _| memory.answer(asked)).await;
        let platform = Platform::linux_amd64();
        let error = client().image(&evil.reference("a/b:t"), &platform).await;
        assert!(error.is_err(), "{body} was accepted");
    }
    // An index of itself cannot be written, but one of an index can.
    let inner = br#"{"schemaVersion":2,"manifests":[]}"#;
    let mut entry = descriptor(media_type::OCI_INDEX, inner);
    entry.platform = Some(Platform::linux_amd64());
    let outer = serde_json::json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
    let memory = Memory::default();
    memory.put_manifest("a/b", "i", media_type::OCI_INDEX, inner);
    memory.put_manifest("a/b", "o", media_type::OCI_INDEX, outer.as_bytes());
    let evil = Evil::start(move |asked, _| memory.answer(asked)).await;
    let error = client()
        .image(&evil.reference("a/b:o"), &Platform::linux_amd64())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
}

#[tokio::test]
async fn a_broken_download_is_resumed_where_it_broke() {
    let bytes = noise(SIZE);
    for manner in [
        Manner::CutAfter(0),
        Manner::CutAfter(1),
        Manner::CutAfter(SIZE / 2),
        Manner::CutAfter(SIZE - 1),
        Manner::ResetAfter(SIZE / 2),
        Manner::StallAfter(SIZE * 9 / 10),
    ] {
        let memory = Memory::default();
        memory.put_blob("a/b", &bytes);
        let evil = Evil::start(move |asked, n_before| {
            let answer = memory.answer(asked);
            if n_before == 0 {
                answer.manner(manner)
            } else {
                answer
            }
        })
        .await;
        let client = client();
        let layer = layer(&bytes);
        let mut stream = client
            .blob_stream(&evil.reference("a/b"), &layer)
            .await
            .unwrap();
        let mut read = Vec::new();
        while let Some(chunk) = stream.chunk().await.unwrap() {
            read.extend_from_slice(&chunk);
        }
        assert!(read == bytes, "{manner:?}");
        assert!(
            stream.received_bytes() <= SIZE as u64 * 13 / 10,
            "{manner:?} cost {} bytes",
            stream.received_bytes()
        );
        assert_eq!(evil.asked().len(), 2, "{manner:?}");
        if !matches!(manner, Manner::CutAfter(0) | Manner::ResetAfter(_)) {
            assert!(evil.asked()[1].range().is_some(), "{manner:?}");
        }
    }
}

#[tokio::test]
async fn servers_that_cannot_resume_properly_do_no_harm() {
    let bytes = noise(SIZE);
    let half = SIZE / 2;
    let last = SIZE - 1;
    let answers: [(&str, Answer); 5] = [
        ("200 instead of 206", Box::new(|b: &[u8]| Reply::ok(b))),
        ("416", Box::new(|_: &[u8]| Reply::new(416))),
        (
            "another range",
            Box::new(move |b: &[u8]| {
                let range = format!("bytes 0-{last}/{SIZE}");
                Reply::new(206).body(b).with("Content-Range", range)
            }),
        ),
        (
            "no range",
            Box::new(move |b: &[u8]| Reply::new(206).body(&b[half..])),
        ),
        (
            "another ETag",
            Box::new(move |b: &[u8]| {
                let mut wrong = b[half..].to_vec();
                wrong[0] ^= 1;
                let range = format!("bytes {half}-{last}/{SIZE}");
                let reply = Reply::new(206).body(wrong).with("Content-Range", range);
                reply.with("ETag", "\"new\"")
            }),
        ),
    ];
    for (name, answer) in answers {
        let sent = bytes.clone();
        let evil = Evil::start(move |asked, n_before| match (n_before, asked.range()) {
            (0, _) => Reply::ok(sent.clone())
                .with("ETag", "\"old\"")
                .manner(Manner::CutAfter(half)),
            (_, Some(_)) => answer(&sent),
            (_, None) => Reply::ok(sent.clone()),
        })
        .await;
        let read = pull(&client(), &evil, &bytes).await;
        assert!(read.unwrap() == bytes, "{name}");
    }
}

#[tokio::test]
async fn wrong_bytes_are_never_a_success() {
    let bytes = noise(SIZE);
    for position in [0, SIZE / 2, SIZE - 1] {
        let mut flipped = bytes.clone();
        flipped[position] ^= 4;
        let evil = Evil::start(move |_, _| Reply::ok(flipped.clone())).await;
        let error = pull(&client(), &evil, &bytes).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert_eq!(evil.asked().len(), 2, "once more, and no more");
        let client = client();
        let mut stream = client
            .blob_stream(&evil.reference("a/b"), &layer(&bytes))
            .await
            .unwrap();
        let end = loop {
            match stream.chunk().await {
                Ok(Some(_)) => {}
                end => break end,
            }
        };
        assert_eq!(end.unwrap_err().kind(), ErrorKind::Corrupt);
    }
    // A resumed download whose second half is wrong is read once more as a whole.
    let (good, mut wrong) = (bytes.clone(), bytes.clone());
    wrong[SIZE - 1] ^= 1;
    let evil = Evil::start(move |asked, n_before| match (n_before, asked.range()) {
        (0, _) => Reply::ok(good.clone()).manner(Manner::CutAfter(SIZE / 2)),
        (1, Some(n)) => Reply::new(206)
            .body(&wrong[n..])
            .with("Content-Range", format!("bytes {n}-{}/{SIZE}", SIZE - 1)),
        _ => Reply::ok(good.clone()),
    })
    .await;
    assert!(pull(&client(), &evil, &bytes).await.unwrap() == bytes);
}

#[tokio::test]
async fn bodies_of_the_wrong_length_are_refused() {
    let bytes = noise(SIZE);
    let longer = noise(SIZE + 1);
    let evil = Evil::start(move |_, _| Reply::ok(longer.clone())).await;
    let error = pull(&client(), &evil, &bytes).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    let endless = Evil::start(|_, _| Reply::new(200).manner(Manner::Endless)).await;
    let error = pull(&client(), &endless, &bytes).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    let shorter = bytes[..SIZE - 1].to_vec();
    let evil = Evil::start(move |_, _| Reply::ok(shorter.clone())).await;
    let error = pull(&client(), &evil, &bytes).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let encoded = bytes.clone();
    let evil = Evil::start(move |_, _| Reply::ok(encoded.clone()).with("Content-Encoding", "gzip"));
    let error = pull(&client(), &evil.await, &bytes).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
}

#[tokio::test]
async fn two_callers_download_a_blob_once() {
    let bytes = noise(SIZE);
    let memory = Memory::default();
    memory.put_blob("a/b", &bytes);
    let evil = Evil::start(move |asked, _| memory.answer(asked)).await;
    let (_directory, store) = store();
    let (client, repository, layer) = (client(), evil.reference("a/b"), layer(&bytes));
    let seen = AtomicUsize::new(0);
    let progress = |n: u64| {
        seen.fetch_max(usize::try_from(n).unwrap(), Ordering::Relaxed);
    };
    let one = client.blob_to_store(&repository, &layer, &store, &progress);
    let two = client.blob_to_store(&repository, &layer, &store, &progress);
    let (one, two) = tokio::join!(one, two);
    one.unwrap();
    two.unwrap();
    assert_eq!(evil.asked().len(), 1);
    assert_eq!(seen.into_inner(), SIZE);
}

#[tokio::test]
async fn a_dropped_download_leaves_nothing_and_lets_the_next_one_go_ahead() {
    let bytes = noise(SIZE);
    let sent = bytes.clone();
    let evil = Evil::start(move |_, n_before| match n_before {
        0 => Reply::ok(sent.clone()).manner(Manner::StallAfter(SIZE / 2)),
        _ => Reply::ok(sent.clone()),
    })
    .await;
    let (_directory, store) = store();
    let (client, repository, layer) = (client(), evil.reference("a/b"), layer(&bytes));
    let half = tokio::sync::Notify::new();
    let progress = |n: u64| {
        if n == SIZE as u64 / 2 {
            half.notify_one();
        }
    };
    tokio::select! {
        _ = client.blob_to_store(&repository, &layer, &store, &progress) => panic!("it ended"),
        () = half.notified() => {}
    }
    assert_eq!(store.size_of(&layer.digest).unwrap(), None);
    let again = client.blob_to_store(&repository, &layer, &store, &|_| {});
    again.await.unwrap();
}

#[tokio::test]
async fn redirects_are_followed_without_the_password() {
    let bytes = noise(SIZE);
    for status in [301, 302, 303, 307, 308] {
        let sent = bytes.clone();
        let cdn = Evil::start(move |_, _| Reply::ok(sent.clone())).await;
        let target = format!("http://{}/signed?X-Signature=canary", cdn.host);
        let registry = Evil::start(move |asked, _| match asked.header("authorization") {
            None => Reply::new(401).with("WWW-Authenticate", "Basic realm=\"x\""),
            Some(_) => Reply::new(status).with("Location", &target),
        })
        .await;
        let client = client_with(&[(&registry.host, "password")]);
        assert!(pull(&client, &registry, &bytes).await.unwrap() == bytes);
        assert_eq!(cdn.asked().len(), 1);
        assert_eq!(cdn.asked()[0].header("authorization"), None);
        assert_eq!(cdn.asked()[0].header("cookie"), None);
    }
}

#[tokio::test]
async fn a_host_that_we_were_sent_to_cannot_ask_who_we_are() {
    let cdn =
        Evil::start(|_, _| Reply::new(401).with("WWW-Authenticate", "Basic realm=\"x\"")).await;
    let target = format!("http://{}/x", cdn.host);
    let registry = Evil::start(move |asked, _| match asked.header("authorization") {
        None => Reply::new(401).with("WWW-Authenticate", "Basic realm=\"x\""),
        Some(_) => Reply::new(307).with("Location", &target),
    })
    .await;
    let client = client_with(&[(&registry.host, "password"), (&cdn.host, "other")]);
    let error = pull(&client, &registry, b"bytes").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    assert!(
        cdn.asked()
            .iter()
            .all(|asked| asked.header("authorization").is_none())
    );
    assert_eq!(cdn.asked().len(), 1);
}

#[tokio::test]
async fn unsafe_redirects_are_refused() {
    for location in [
        "http://user:pw@127.0.0.1:1/x",
        "file:///etc/passwd",
        "gopher://127.0.0.1/",
        "http:///",
        "\u{1}",
    ] {
        let evil = Evil::start(move |_, _| Reply::new(302).with("Location", location)).await;
        let error = pull(&client(), &evil, b"bytes").await.unwrap_err();
        assert!(
            matches!(
                error.kind(),
                ErrorKind::Refused | ErrorKind::Invalid | ErrorKind::Unavailable
            ),
            "{location}: {error}"
        );
    }
    let loop_ = Evil::start(|_, n| Reply::new(302).with("Location", format!("/hop{n}"))).await;
    let error = pull(&client(), &loop_, b"bytes").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert_eq!(loop_.asked().len(), 6);
}

#[tokio::test]
async fn the_urls_of_a_foreign_layer_are_not_asked() {
    let elsewhere = Evil::start(|_, _| Reply::new(401)).await;
    let text = format!(
        r#"{{"mediaType":"{}","digest":"{}","size":5,"urls":["http://{}/layer"]}}"#,
        media_type::OCI_LAYER_GZIP,
        Digest::sha256(b"bytes"),
        elsewhere.host
    );
    let foreign: oci::Descriptor = serde_json::from_str(&text).unwrap();
    let evil = Evil::start(|_, _| Reply::new(404)).await;
    let read = client()
        .blob_bytes(&evil.reference("a/b"), &foreign, 100)
        .await;
    assert_eq!(read.unwrap_err().kind(), ErrorKind::NotFound);
    assert!(elsewhere.asked().is_empty());
}

#[tokio::test]
async fn transient_failures_are_tried_again_and_others_are_not() {
    for (status, n_asked, kind) in [
        (500, 6, ErrorKind::Unavailable),
        (502, 6, ErrorKind::Unavailable),
        (503, 6, ErrorKind::Unavailable),
        (504, 6, ErrorKind::Unavailable),
        (429, 6, ErrorKind::TooManyRequests),
        (400, 1, ErrorKind::Invalid),
        (401, 1, ErrorKind::Unauthorized),
        (403, 1, ErrorKind::Unauthorized),
        (404, 1, ErrorKind::NotFound),
        (410, 1, ErrorKind::NotFound),
        (418, 1, ErrorKind::Invalid),
    ] {
        let evil = Evil::start(move |_, _| Reply::new(status)).await;
        let error = client().resolve(&evil.reference("a/b")).await.unwrap_err();
        assert_eq!(
            (error.kind(), evil.asked().len()),
            (kind, n_asked),
            "{status}"
        );
    }
    let text = manifest_text(0);
    let evil = Evil::start(move |_, n_before| match n_before {
        0 => Reply::new(500),
        1 => Reply::new(429).with("Retry-After", "0"),
        2 => Reply::ok(text.clone()).manner(Manner::CutAfter(7)),
        3 => Reply::ok(text.clone()).manner(Manner::ResetAfter(0)),
        _ => Reply::ok(text.clone()),
    })
    .await;
    client().resolve(&evil.reference("a/b")).await.unwrap();
    assert_eq!(evil.asked().len(), 5);
}

#[tokio::test]
async fn a_wish_to_wait_is_honoured_within_limits() {
    for wish in [
        "1",
        "1000000000",
        "99999999999999999999999",
        "Fri, 31 Dec 9999 23:59:59 GMT",
    ] {
        let started = Instant::now();
        let text = manifest_text(0);
        let evil = Evil::start(move |_, n_before| match n_before {
            0 => Reply::new(429).with("Retry-After", wish),
            _ => Reply::ok(text.clone()),
        })
        .await;
        client().resolve(&evil.reference("a/b")).await.unwrap();
        assert!(started.elapsed() >= options().retry_after_max, "{wish}");
        assert!(started.elapsed() < Duration::from_secs(5), "{wish}");
    }
    for nonsense in ["-1", "soon", "", "Fri, 31 Dec 1999 23:59:59 GMT"] {
        let text = manifest_text(0);
        let evil = Evil::start(move |_, n_before| match n_before {
            0 => Reply::new(503).with("Retry-After", nonsense),
            _ => Reply::ok(text.clone()),
        })
        .await;
        client().resolve(&evil.reference("a/b")).await.unwrap();
    }
}

#[tokio::test]
async fn nobody_makes_us_wait_for_ever() {
    for (manner, kind) in [
        (Manner::Silent, ErrorKind::Unavailable),
        (Manner::StallAfter(3), ErrorKind::Unavailable),
        (Manner::EndlessHead, ErrorKind::Unavailable),
    ] {
        let evil = Evil::start(move |_, _| Reply::ok("abcdef").manner(manner)).await;
        let options = Options {
            tries: 1,
            ..options()
        };
        let client = Client::new(Hosts::default(), Keychain::empty(), options).unwrap();
        let limit = Duration::from_secs(20);
        let answer = tokio::time::timeout(limit, client.resolve(&evil.reference("a/b"))).await;
        let error = answer.expect("no limit").unwrap_err();
        assert_eq!(error.kind(), kind, "{manner:?}: {error}");
    }
    // Nobody listens there any more.
    let gone = Evil::start(|_, _| Reply::new(200)).await.reference("a/b");
    let error = client().resolve(&gone).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("connect"), "{error}");
}

#[tokio::test]
async fn a_huge_error_body_is_cut() {
    let evil = Evil::start(|_, _| Reply::new(400).manner(Manner::Endless)).await;
    let error = client().resolve(&evil.reference("a/b")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().len() < 1000);
}

#[tokio::test]
async fn mirrors_are_asked_first_and_the_registry_when_they_fail() {
    let bytes = noise(SIZE);
    let (good, mut bad) = (bytes.clone(), bytes.clone());
    bad[7] ^= 1;
    let dead = Evil::start(|_, _| Reply::new(503)).await;
    let lying = Evil::start(move |_, _| Reply::ok(bad.clone())).await;
    let origin = Evil::start(move |_, _| Reply::ok(good.clone())).await;
    let config = HostConfig {
        mirrors: vec![format!("{}/proxy", dead.host), lying.host.clone()],
        ..HostConfig::default()
    };
    let hosts = Hosts::new([(origin.host.clone(), config)]).unwrap();
    let client = Client::new(hosts, Keychain::empty(), options()).unwrap();
    assert!(pull(&client, &origin, &bytes).await.unwrap() == bytes);
    let digest = Digest::sha256(&bytes);
    assert_eq!(
        dead.asked()[0].target,
        format!("/v2/proxy/a/b/blobs/{digest}")
    );
    assert_eq!(dead.asked().len(), 2);
    assert_eq!(lying.asked().len(), 1);
    assert_eq!(origin.asked().len(), 1);
}

#[tokio::test]
async fn every_future_can_be_given_to_another_thread() {
    let evil = Evil::start(|_, _| Reply::new(404)).await;
    let (_directory, store) = store();
    let client = Arc::new(client());
    let reference = evil.reference("a/b");
    let task = tokio::spawn(async move {
        let layer = layer(b"x");
        let platform = Platform::linux_amd64();
        let _ = client.image(&reference, &platform).await;
        let _ = client
            .blob_to_store(&reference, &layer, &store, &|_| {})
            .await;
        client.has_blob(&reference, &layer.digest).await
    });
    assert_eq!(task.await.unwrap().unwrap(), None);
}
