//! What the distribution specification describes, request by request.

use oci::Digest;
use serde_json::json;

use crate::harness::{OCI, Server, manifest};

#[test]
fn the_registry_says_what_it_is() {
    let server = Server::start();
    for path in ["/v2/", "/v2"] {
        let answer = server.get(path);
        assert_eq!(answer.status, 200);
        let version = answer.header("docker-distribution-api-version");
        assert_eq!(version, "registry/2.0");
    }
    server.get("/v2/nothing/here").is(404, "UNSUPPORTED");
    server.send("DELETE /v2/", &[], "").is(405, "UNSUPPORTED");
}

#[test]
fn a_blob_sent_at_once_is_read_whole_and_in_parts() {
    let server = Server::start();
    let content: Vec<u8> = (0..2_000_000_u32).map(|n| n.to_le_bytes()[1]).collect();
    let digest = server.push("a/b", &content);
    let path = format!("/v2/a/b/blobs/{digest}");
    let answer = server.get(&path);
    assert_eq!((answer.status, answer.body.len()), (200, content.len()));
    assert!(answer.body == content);
    assert_eq!(answer.header("docker-content-digest"), digest.to_string());
    let answer = server.send(&format!("HEAD {path}"), &[], "");
    assert_eq!((answer.status, answer.body.len()), (200, 0));
    assert_eq!(answer.header("content-length"), "2000000");
    for (range, begin, end) in [
        ("bytes=0-0", 0, 1),
        ("bytes=700000-1699999", 700_000, 1_700_000),
        ("bytes=1999999-", 1_999_999, 2_000_000),
        ("bytes=-10", 1_999_990, 2_000_000),
    ] {
        let answer = server.send(&format!("GET {path}"), &[("range", range)], "");
        assert_eq!(answer.status, 206, "{range}");
        assert!(answer.body == content[begin..end], "{range}");
        let expected = format!("bytes {begin}-{}/2000000", end - 1);
        assert_eq!(answer.header("content-range"), expected);
    }
    let answer = server.send(&format!("GET {path}"), &[("range", "bytes=2000000-")], "");
    assert_eq!(answer.status, 416);
    assert_eq!(answer.header("content-range"), "bytes */2000000");
    let other = [("range", "bytes=0-0"), ("if-range", "\"other\"")];
    let answer = server.send(&format!("GET {path}"), &other, "");
    assert_eq!(answer.status, 200);
}

#[test]
fn an_empty_blob_is_a_blob() {
    let server = Server::start();
    let digest = server.push("a", b"");
    let answer = server.get(&format!("/v2/a/blobs/{digest}"));
    assert_eq!((answer.status, answer.body.len()), (200, 0));
    assert_eq!(answer.header("content-length"), "0");
}

#[test]
fn chunks_go_on_where_the_upload_stands() {
    let server = Server::start();
    let at = server.begin("a/b");
    let patch = |range: &str, body: &str| {
        let headers = [("content-range", range)];
        server.send(&format!("PATCH {at}"), &headers, body)
    };
    let answer = patch("0-3", "0123");
    assert_eq!(answer.status, 202);
    assert_eq!(answer.header("range"), "0-3");
    assert_eq!(answer.header("location"), at);
    for range in ["0-3", "3-6", "5-8"] {
        let answer = patch(range, "4567");
        assert_eq!(answer.status, 416, "{range}");
        assert_eq!(answer.header("range"), "0-3");
    }
    let answer = server.get(&at);
    assert_eq!((answer.status, answer.header("range")), (204, "0-3"));
    assert_eq!(patch("4-7", "4567").status, 202);
    let digest = Digest::sha256(b"0123456789");
    let headers = [("content-range", "8-9")];
    let answer = server.send(&format!("PUT {at}?digest={digest}"), &headers, "89");
    assert_eq!(answer.status, 201, "{answer:?}");
    let location = format!("/v2/a/b/blobs/{digest}");
    assert_eq!(answer.header("location"), location);
    assert_eq!(server.get(&location).body, b"0123456789");
    assert_eq!(server.get(&at).status, 404);
}

#[test]
fn a_stream_of_unknown_length_is_taken() {
    let server = Server::start();
    let at = server.begin("a");
    let content = vec![9_u8; 3_000_000];
    let answer = server.stream(&format!("PATCH {at}"), &content);
    assert_eq!((answer.status, answer.header("range")), (202, "0-2999999"));
    let digest = Digest::sha256(&content);
    let answer = server.send(&format!("PUT {at}?digest={digest}"), &[], "");
    assert_eq!(answer.status, 201);
    assert_eq!(server.get(answer.header("location")).body.len(), 3_000_000);
}

#[test]
fn an_upload_can_be_given_up() {
    let server = Server::start();
    let at = server.begin("a");
    assert_eq!(server.send(&format!("PATCH {at}"), &[], "x").status, 202);
    assert_eq!(server.send(&format!("DELETE {at}"), &[], "").status, 204);
    server
        .send(&format!("PATCH {at}"), &[], "x")
        .is(404, "BLOB_UPLOAD_UNKNOWN");
    assert_eq!(server.count("ingest/uploads"), 0);
}

#[test]
fn a_blob_is_mounted_from_a_repository_that_has_it() {
    let server = Server::start();
    let digest = server.push("a", b"content");
    let mount = |to: &str, from: &str| {
        let line = format!("POST /v2/{to}/blobs/uploads/?mount={digest}{from}");
        server.send(&line, &[], "")
    };
    let answer = mount("b", "&from=a");
    assert_eq!(answer.status, 201);
    assert_eq!(server.get(answer.header("location")).body, b"content");
    // Nobody learns by mounting whether the store has something.
    for from in ["", "&from=c", "&from=..%2fa", "&from="] {
        let answer = mount("d", from);
        assert_eq!(answer.status, 202, "{from}");
        assert!(answer.header("location").contains("/uploads/"));
    }
    server
        .get(&format!("/v2/d/blobs/{digest}"))
        .is(404, "BLOB_UNKNOWN");
}

#[test]
fn a_manifest_is_read_by_tag_and_by_digest() {
    let server = Server::start();
    let bytes = server.push_image("a/b", "v1", b"layer");
    let digest = Digest::sha256(&bytes);
    for key in ["v1".to_owned(), digest.to_string()] {
        for method in ["GET", "HEAD"] {
            let answer = server.send(&format!("{method} /v2/a/b/manifests/{key}"), &[], "");
            assert_eq!(answer.status, 200);
            assert_eq!(answer.header("docker-content-digest"), digest.to_string());
            assert_eq!(answer.header("content-type"), oci::media_type::OCI_MANIFEST);
            assert_eq!(answer.header("content-length"), bytes.len().to_string());
            assert!(answer.body == bytes || method == "HEAD");
        }
    }
    let line = format!("PUT /v2/a/b/manifests/{digest}");
    assert_eq!(server.send(&line, &[OCI], &bytes).status, 201);
    server
        .get("/v2/a/b/manifests/v2")
        .is(404, "MANIFEST_UNKNOWN");
    server
        .get(&format!("/v2/a/manifests/{digest}"))
        .is(404, "MANIFEST_UNKNOWN");
}

#[test]
fn an_index_is_taken_when_its_manifests_are_there() {
    let server = Server::start();
    let one = server.push_image("a", "one", b"layer");
    let index = |digest: Digest| {
        json!({
            "schemaVersion": 2,
            "mediaType": oci::media_type::OCI_INDEX,
            "manifests": [{
                "mediaType": oci::media_type::OCI_MANIFEST,
                "digest": digest,
                "size": one.len(),
                "platform": { "os": "linux", "architecture": "amd64" },
            }],
        })
        .to_string()
    };
    let headers = [("content-type", oci::media_type::OCI_INDEX)];
    let put = |index: String| server.send("PUT /v2/a/manifests/all", &headers, index);
    put(index(Digest::sha256(b"absent"))).is(404, "MANIFEST_BLOB_UNKNOWN");
    // A blob is not a manifest.
    put(index(Digest::sha256(b"layer"))).is(404, "MANIFEST_BLOB_UNKNOWN");
    assert_eq!(put(index(Digest::sha256(&one))).status, 201);
    let answer = server.get("/v2/a/manifests/all");
    assert_eq!(answer.header("content-type"), oci::media_type::OCI_INDEX);
}

#[test]
fn what_is_removed_is_gone_from_its_repository_only() {
    let server = Server::start();
    let bytes = server.push_image("a", "v1", b"layer");
    server.push_image("a", "v2", b"layer");
    server.push_image("b", "v1", b"layer");
    let remove = |path: String| server.send(&format!("DELETE {path}"), &[], "");
    assert_eq!(remove("/v2/a/manifests/v2".to_owned()).status, 202);
    remove("/v2/a/manifests/v2".to_owned()).is(404, "MANIFEST_UNKNOWN");
    assert_eq!(server.get("/v2/a/manifests/v1").status, 200);
    let digest = Digest::sha256(&bytes);
    assert_eq!(remove(format!("/v2/a/manifests/{digest}")).status, 202);
    assert_eq!(server.get("/v2/a/manifests/v1").status, 404);
    assert_eq!(server.get("/v2/a/tags/list").json()["tags"], json!([]));
    let blob = Digest::sha256(b"layer");
    assert_eq!(remove(format!("/v2/a/blobs/{blob}")).status, 202);
    remove(format!("/v2/a/blobs/{blob}")).is(404, "BLOB_UNKNOWN");
    assert_eq!(server.get(&format!("/v2/b/blobs/{blob}")).status, 200);
    assert_eq!(server.get("/v2/b/manifests/v1").status, 200);
}

#[test]
fn lists_come_in_pages() {
    let server = Server::start();
    for (repository, tag) in [
        ("b", "x"),
        ("a/c", "x"),
        ("a", "v3"),
        ("a", "v1"),
        ("a", "v2"),
    ] {
        server.push_image(repository, tag, b"layer");
    }
    let tags = |query: &str| server.get(&format!("/v2/a/tags/list{query}"));
    let all = tags("");
    assert_eq!(all.json(), json!({"name": "a", "tags": ["v1", "v2", "v3"]}));
    assert!(all.find("link").is_none());
    let first = tags("?n=2");
    assert_eq!(first.json()["tags"], json!(["v1", "v2"]));
    let link = first.header("link");
    assert_eq!(link, "</v2/a/tags/list?last=v2&n=2>; rel=\"next\"");
    let rest = tags("?last=v2&n=2");
    assert_eq!(rest.json()["tags"], json!(["v3"]));
    assert!(rest.find("link").is_none());
    assert_eq!(tags("?n=0").json()["tags"], json!([]));
    tags("?n=-1").is(400, "PAGINATION_NUMBER_INVALID");
    server.get("/v2/z/tags/list").is(404, "NAME_UNKNOWN");
    let catalog = server.get("/v2/_catalog").json();
    assert_eq!(catalog["repositories"], json!(["a", "a/c", "b"]));
    let catalog = server.get("/v2/_catalog?n=1&last=a");
    assert_eq!(catalog.json()["repositories"], json!(["a/c"]));
}

#[test]
fn referrers_are_listed_and_filtered() {
    let server = Server::start();
    let subject = server.push_image("a", "v1", b"layer");
    let digest = Digest::sha256(&subject);
    let mut referrers = Vec::new();
    for kind in ["application/x-one", "application/x-two"] {
        let mut manifest: serde_json::Value =
            serde_json::from_slice(&manifest(b"{}", b"layer")).unwrap();
        manifest["artifactType"] = json!(kind);
        manifest["annotations"] = json!({"kind": kind});
        manifest["subject"] = json!({
            "mediaType": oci::media_type::OCI_MANIFEST,
            "digest": digest,
            "size": subject.len(),
        });
        let bytes = manifest.to_string();
        let own = Digest::sha256(bytes.as_bytes());
        let answer = server.send(&format!("PUT /v2/a/manifests/{own}"), &[OCI], &bytes);
        assert_eq!(answer.status, 201);
        assert_eq!(answer.header("oci-subject"), digest.to_string());
        referrers.push(own);
    }
    let path = format!("/v2/a/referrers/{digest}");
    let answer = server.get(&path);
    assert_eq!(answer.header("content-type"), oci::media_type::OCI_INDEX);
    assert_eq!(answer.json()["manifests"].as_array().unwrap().len(), 2);
    let answer = server.get(&format!("{path}?artifactType=application/x-one"));
    assert_eq!(answer.header("oci-filters-applied"), "artifactType");
    let found = answer.json()["manifests"].clone();
    assert_eq!(found[0]["digest"], json!(referrers[0]));
    assert_eq!(found[0]["artifactType"], "application/x-one");
    assert_eq!(found[0]["annotations"]["kind"], "application/x-one");
    assert_eq!(found.as_array().unwrap().len(), 1);
    for own in &referrers {
        let line = format!("DELETE /v2/a/manifests/{own}");
        assert_eq!(server.send(&line, &[], "").status, 202);
    }
    assert_eq!(server.get(&path).json()["manifests"], json!([]));
    let nobody = format!("/v2/a/referrers/{}", Digest::sha256(b"nobody"));
    assert_eq!(server.get(&nobody).json()["manifests"], json!([]));
}
