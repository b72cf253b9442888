//! Requests that lie, and a store that was tampered with.

use std::io::Write as _;
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use oci::Digest;
use registry::server::ServerOptions;
use serde_json::json;

use crate::harness::{Answer, OCI, Server, head, manifest};

#[test]
fn a_wrong_digest_leaves_nothing() {
    let server = Server::start();
    let (right, wrong) = (Digest::sha256(b"right"), Digest::sha256(b"wrong"));
    let line = format!("POST /v2/a/blobs/uploads/?digest={right}");
    server.send(&line, &[], "wrong").is(400, "DIGEST_INVALID");
    let at = server.begin("a");
    assert_eq!(
        server.send(&format!("PATCH {at}"), &[], "wrong").status,
        202
    );
    let line = format!("PUT {at}?digest={right}");
    server.send(&line, &[], "").is(400, "DIGEST_INVALID");
    for digest in [&right, &wrong] {
        let path = format!("/v2/a/blobs/{digest}");
        server.get(&path).is(404, "BLOB_UNKNOWN");
        assert_eq!(server.store.size_of(digest).unwrap(), None);
    }
    assert_eq!(server.count("ingest/uploads"), 0);
    assert_eq!(server.get(&at).status, 404);
}

#[test]
fn malformed_digests_are_refused_everywhere() {
    let server = Server::start();
    let hex = "a".repeat(64);
    for bad in [
        "sha256:../../x".to_owned(),
        "sha256:short".to_owned(),
        format!("sha256:{}", hex.to_uppercase()),
        format!("sha256:{}", &hex[..63]),
        format!("sha256:{hex}a"),
        format!("md5:{}", &hex[..32]),
        format!("sha512:{hex}"),
        format!("sha256:{}%00", &hex[..63]),
    ] {
        let line = format!("POST /v2/a/blobs/uploads/?digest={bad}");
        server.send(&line, &[], "x").is(400, "DIGEST_INVALID");
        let line = format!("POST /v2/a/blobs/uploads/?mount={bad}&from=b");
        server.send(&line, &[], "").is(400, "DIGEST_INVALID");
        let at = server.begin("a");
        let line = format!("PUT {at}?digest={bad}");
        server.send(&line, &[], "x").is(400, "DIGEST_INVALID");
        for kind in ["blobs", "manifests", "referrers"] {
            let answer = server.get(&format!("/v2/a/{kind}/{bad}"));
            assert!([400, 404].contains(&answer.status), "{bad}: {answer:?}");
        }
    }
    let at = server.begin("a");
    server
        .send(&format!("PUT {at}"), &[], "x")
        .is(400, "DIGEST_INVALID");
}

#[test]
fn no_path_reaches_outside_of_its_repository() {
    let server = Server::start();
    std::fs::write(server.dir.path().join("secret"), "hidden words").unwrap();
    for path in [
        "/v2/../secret",
        "/v2/a/../../../secret",
        "/v2/a/%2e%2e/%2e%2e/secret/manifests/x",
        "/v2/a%2f..%2f..%2fsecret/tags/list",
        "/v2/../../tags/list",
        "/v2/a/manifests/..%2f..%2f..%2fsecret",
        "/v2/a/manifests/..",
        "/v2/a/blobs/sha256:../../../../secret",
        "/v2/a/blobs/uploads/..%2f..%2fsecret",
        "/v2/a/blobs/uploads/..",
        "/v2/_catalog/../x",
        "/v2//etc/passwd",
        "/v2/a\\..\\b/tags/list",
        "/v2/a/_tags/manifests/x",
        "/v2/A/manifests/x",
    ] {
        for method in ["GET", "HEAD", "PUT", "POST", "PATCH", "DELETE"] {
            let answer = server.send(&format!("{method} {path}"), &[OCI], "");
            assert!((400..=405).contains(&answer.status), "{path}: {answer:?}");
            assert!(!answer.body.windows(6).any(|text| text == b"hidden"));
        }
    }
    assert_eq!(server.count("repositories"), 0);
    let long = format!("/v2/{}/tags/list", "a/".repeat(300));
    assert_eq!(server.get(&long).status, 400);
}

#[test]
fn a_body_that_breaks_off_can_be_gone_on_with() {
    let server = Server::start();
    let content: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let at = server.begin("a");
    let mut stream = server.connect();
    let headers = [("content-length", "3000000")];
    let line = format!("PATCH {at}");
    stream.write_all(head(&line, &headers).as_bytes()).unwrap();
    stream.write_all(&content[..1_500_000]).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let _ = Answer::read_if_any(stream);
    // Nobody tells when the server has noticed; until then the upload is busy or grows.
    let stands_at = wait_until_settled(&server, &at);
    assert!(stands_at <= 1_500_000);
    let range = format!("{stands_at}-2999999");
    let headers = [("content-range", range.as_str())];
    let digest = Digest::sha256(&content);
    let line = format!("PUT {at}?digest={digest}");
    let answer = server.send(&line, &headers, &content[stands_at..]);
    assert_eq!(answer.status, 201, "{answer:?}");
}

/// Returns where an upload stands once nobody writes to it any more.
fn wait_until_settled(server: &Server, at: &str) -> usize {
    loop {
        let answer = server.send(&format!("PATCH {at}"), &[], "");
        if answer.status == 202 {
            let id = at.rsplit('/').next().unwrap().parse().unwrap();
            let size = server.store.upload_size("a", &id).unwrap();
            return usize::try_from(size.unwrap()).unwrap();
        }
        assert_eq!(answer.status, 409, "{answer:?}");
        std::thread::yield_now();
    }
}

#[test]
fn a_blob_sent_at_once_that_breaks_off_leaves_nothing() {
    let server = Server::start();
    let digest = Digest::sha256(b"content");
    for n_sent in [0, 1, 3, 6] {
        let mut stream = server.connect();
        let line = format!("POST /v2/a/blobs/uploads/?digest={digest}");
        let headers = [("content-length", "7")];
        stream.write_all(head(&line, &headers).as_bytes()).unwrap();
        stream.write_all(&b"content"[..n_sent]).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let answer = Answer::read_if_any(stream);
        assert!(answer.is_none_or(|answer| answer.status == 400));
        assert_eq!(server.store.size_of(&digest).unwrap(), None);
    }
}

#[test]
fn lies_about_a_chunk_are_found_out() {
    let server = Server::start();
    let at = server.begin("a");
    let patch = |range: &str, body: &str| {
        let headers = [("content-range", range)];
        server.send(&format!("PATCH {at}"), &headers, body)
    };
    patch("0-99", "only this").is(400, "SIZE_INVALID");
    patch("0-3", "more than four").is(400, "SIZE_INVALID");
    for range in [
        "",
        "x",
        "5",
        "5-",
        "-5",
        "9-5",
        "a-b",
        "0-18446744073709551615",
        "bytes 0-3/4",
    ] {
        patch(range, "0123").is(400, "BLOB_UPLOAD_INVALID");
    }
    patch("1-4", "0123").is(416, "BLOB_UPLOAD_INVALID");
    assert_eq!(patch("0-3", "0123").status, 202);
    // The id is worth nothing in another repository.
    let elsewhere = at.replace("/v2/a/", "/v2/b/");
    for method in ["GET", "PATCH", "DELETE"] {
        let answer = server.send(&format!("{method} {elsewhere}"), &[], "x");
        answer.is(404, "BLOB_UPLOAD_UNKNOWN");
    }
    let digest = Digest::sha256(b"0123");
    let line = format!("PUT {elsewhere}?digest={digest}");
    server.send(&line, &[], "").is(404, "BLOB_UPLOAD_UNKNOWN");
    let line = format!("PUT {at}?digest={digest}");
    assert_eq!(server.send(&line, &[], "").status, 201);
    server.send(&line, &[], "").is(404, "BLOB_UPLOAD_UNKNOWN");
}

#[test]
fn ten_concurrent_uploads_of_one_blob_all_succeed() {
    let server = Server::start();
    let content = vec![5_u8; 2_000_000];
    let digest = Digest::sha256(&content);
    let barrier = Barrier::new(10);
    std::thread::scope(|scope| {
        for n in 0..10 {
            let (server, content, digest, barrier) = (&server, &content, &digest, &barrier);
            scope.spawn(move || {
                let at = server.begin("a");
                barrier.wait();
                let put = format!("PUT {at}?digest={digest}");
                let answer = if n % 2 == 0 {
                    server.send(&put, &[], content)
                } else {
                    assert_eq!(server.stream(&format!("PATCH {at}"), content).status, 202);
                    server.send(&put, &[], "")
                };
                assert_eq!(answer.status, 201, "{answer:?}");
            });
        }
    });
    assert!(server.store.verify_blob(&digest).unwrap());
    assert_eq!(server.count("blobs/sha256"), 1);
    assert_eq!(server.count("ingest/uploads"), 0);
}

#[test]
fn what_is_too_large_is_refused_before_and_while_it_is_sent() {
    let server = Server::start_with(ServerOptions {
        blob_max_bytes: 1000,
        manifest_max_bytes: 2000,
        ..ServerOptions::default()
    });
    let digest = Digest::sha256(b"x");
    let line = format!("POST /v2/a/blobs/uploads/?digest={digest}");
    server.send(&line, &[], [0; 1001]).is(413, "SIZE_INVALID");
    server.stream(&line, &[0; 1001]).is(413, "SIZE_INVALID");
    let at = server.begin("a");
    assert_eq!(server.stream(&format!("PATCH {at}"), &[0; 900]).status, 202);
    server
        .stream(&format!("PATCH {at}"), &[0; 101])
        .is(413, "SIZE_INVALID");
    assert_eq!(server.get(&at).status, 404);
    let line = "PUT /v2/a/manifests/x";
    server
        .send(line, &[OCI], [b' '; 2001])
        .is(413, "SIZE_INVALID");
    server.stream(line, &[b' '; 2001]).is(413, "SIZE_INVALID");
    assert_eq!(server.count("ingest/uploads"), 0);
}

#[test]
fn a_body_that_does_not_come_is_not_waited_for() {
    let server = Server::start_with(ServerOptions {
        body_idle_max: Duration::from_millis(100),
        uploads_max: 1,
        ..ServerOptions::default()
    });
    let at = server.begin("a");
    let mut slow = server.connect();
    let headers = [("content-length", "10")];
    slow.write_all(head(&format!("PATCH {at}"), &headers).as_bytes())
        .unwrap();
    slow.write_all(b"x").unwrap();
    let answer = Answer::read(slow);
    answer.is(408, "BLOB_UPLOAD_INVALID");
    // What it held is free again.
    let other = server.begin("a");
    assert_eq!(server.send(&format!("PATCH {other}"), &[], "x").status, 202);
}

#[test]
fn only_so_many_bodies_are_taken_at_a_time() {
    let server = Server::start_with(ServerOptions {
        uploads_max: 1,
        ..ServerOptions::default()
    });
    let (one, two) = (server.begin("a"), server.begin("a"));
    let mut open = server.connect();
    let headers = [("content-length", "2"), ("expect", "100-continue")];
    open.write_all(head(&format!("PATCH {one}"), &headers).as_bytes())
        .unwrap();
    // The server asks for the body once the request holds its place.
    let mut asked = [0; 25];
    std::io::Read::read_exact(&mut open, &mut asked).unwrap();
    assert!(asked.starts_with(b"HTTP/1.1 100"));
    let answer = server.send(&format!("PATCH {two}"), &[], "x");
    answer.is(429, "TOOMANYREQUESTS");
    assert_eq!(answer.header("retry-after"), "1");
    open.write_all(b"xy").unwrap();
    assert_eq!(Answer::read(open).status, 202);
    assert_eq!(server.send(&format!("PATCH {two}"), &[], "x").status, 202);
}

#[test]
fn bodies_of_one_owner_keep_no_other_from_pushing() {
    let first_part = |repository: &str| Some(repository.split('/').next()?.to_owned());
    let server = Server::start_with(ServerOptions {
        uploads_max: 1,
        owner_uploads_max: 1,
        owner_uploads_min: 1,
        owner_of: Some(Arc::new(first_part)),
        ..ServerOptions::default()
    });
    let (one, two, other) = (
        server.begin("a/x"),
        server.begin("a/y"),
        server.begin("b/x"),
    );
    let mut open = server.connect();
    let headers = [("content-length", "2"), ("expect", "100-continue")];
    open.write_all(head(&format!("PATCH {one}"), &headers).as_bytes())
        .unwrap();
    let mut asked = [0; 25];
    std::io::Read::read_exact(&mut open, &mut asked).unwrap();
    let answer = server.send(&format!("PATCH {two}"), &[], "x");
    answer.is(429, "TOOMANYREQUESTS");
    let text = String::from_utf8(answer.body).unwrap();
    assert!(text.contains("the same owner"), "{text}");
    let manifest = server.send("PUT /v2/a/y/manifests/1", &[OCI], "{}");
    manifest.is(429, "TOOMANYREQUESTS");
    assert_eq!(server.send(&format!("PATCH {other}"), &[], "x").status, 202);
    open.write_all(b"xy").unwrap();
    assert_eq!(Answer::read(open).status, 202);
    assert_eq!(server.send(&format!("PATCH {two}"), &[], "x").status, 202);
}

#[test]
fn manifests_that_lie_are_refused() {
    let server = Server::start();
    server.push("a", b"{}");
    server.push("a", b"layer");
    server.push("b", b"private");
    let put = |kind: &str, body: &[u8]| {
        let headers = [("content-type", kind)];
        server.send("PUT /v2/a/manifests/x", &headers, body)
    };
    let oci = oci::media_type::OCI_MANIFEST;
    let good = manifest(b"{}", b"layer");
    put(oci, b"").is(400, "MANIFEST_INVALID");
    put(oci, b"{").is(400, "MANIFEST_INVALID");
    put(oci, "[".repeat(100_000).as_bytes()).is(400, "MANIFEST_INVALID");
    put(oci, br#"{"schemaVersion":1}"#).is(400, "MANIFEST_INVALID");
    put(oci::media_type::DOCKER_MANIFEST, &good).is(400, "MANIFEST_INVALID");
    put("text/html", &good).is(400, "MANIFEST_INVALID");
    let mut both: serde_json::Value = serde_json::from_slice(&good).unwrap();
    both["manifests"] = json!([]);
    put(oci, both.to_string().as_bytes()).is(400, "MANIFEST_INVALID");
    let mut sized: serde_json::Value = serde_json::from_slice(&good).unwrap();
    sized["layers"][0]["size"] = json!(6);
    put(oci, sized.to_string().as_bytes()).is(400, "MANIFEST_INVALID");
    put(oci, &manifest(b"{}", b"absent")).is(404, "MANIFEST_BLOB_UNKNOWN");
    // In the store, but not in this repository.
    put(oci, &manifest(b"{}", b"private")).is(404, "MANIFEST_BLOB_UNKNOWN");
    let line = format!("PUT /v2/a/manifests/{}", Digest::sha256(b"other"));
    server.send(&line, &[OCI], &good).is(400, "DIGEST_INVALID");
    server.get("/v2/a/manifests/x").is(404, "MANIFEST_UNKNOWN");
    assert_eq!(put(&format!("{oci}; charset=utf-8"), &good).status, 201);
}

#[test]
fn a_damaged_blob_is_never_sent_whole_and_then_is_gone() {
    let server = Server::start();
    let content = vec![1_u8; 2_000_000];
    let digest = server.push("a", &content);
    let tagged = server.push_image("a", "v1", b"layer");
    for (digest, position) in [(&digest, 700_000), (&Digest::sha256(&tagged), 5)] {
        let path = server.store.path().join("blobs/sha256").join(digest.hex());
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[position] ^= 1;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        std::fs::write(&path, bytes).unwrap();
    }
    let path = format!("/v2/a/blobs/{digest}");
    let answer = server.get(&path);
    assert!(answer.body.len() < content.len());
    server.get(&path).is(404, "BLOB_UNKNOWN");
    server.get("/v2/a/manifests/v1").is(404, "MANIFEST_UNKNOWN");
    // Pushing again heals.
    server.push("a", &content);
    assert!(server.get(&path).body == content);
}
