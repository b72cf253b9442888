//! Credentials and tokens: R-01, R-02, R-05, R-10, R-13.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use registry::client::{Client, ErrorKind};
use registry::hosts::Hosts;
use registry::keychain::{Credential, Keychain, Secret};

use super::support::evil::{Asked, Evil, Reply, layer};
use super::support::memory::Memory;
use super::support::{basic, client, client_with, options};

const BASIC: &str = "Basic dXNlcjpwYXNzd29yZA==";

fn query(asked: &Asked, name: &str) -> Vec<String> {
    let query = asked.target.split_once('?').map_or("", |(_, query)| query);
    let pairs = url::form_urlencoded::parse(query.as_bytes());
    let pairs = pairs.filter(|(key, _)| key == name);
    pairs.map(|(_, value)| value.into_owned()).collect()
}

/// A registry that wants a bearer token of `realm`, and has the blob `bytes`.
async fn guarded(realm: String, token: &'static str) -> Evil {
    Evil::start(move |asked, _| {
        if asked.header("authorization") == Some(&format!("Bearer {token}")) {
            return Reply::ok("bytes");
        }
        let challenge = format!("Bearer realm=\"{realm}\",service=\"kiln.test\"");
        Reply::new(401).with("WWW-Authenticate", challenge)
    })
    .await
}

async fn token_service(answer: &'static str) -> Evil {
    Evil::start(move |_, _| Reply::ok(answer)).await
}

async fn read(client: &Client, registry: &Evil) -> Result<(), registry::client::Error> {
    let (repository, layer) = (registry.reference("a/b"), layer(b"bytes"));
    let read = client.blob_bytes(&repository, &layer, 100);
    read.await.map(drop)
}

#[tokio::test]
async fn a_password_is_sent_only_when_asked_for_and_then_at_once() {
    let evil = Evil::start(|asked, _| match asked.header("authorization") {
        Some(BASIC) => Reply::ok("bytes"),
        _ => Reply::new(401).with("WWW-Authenticate", "Basic realm=\"x\""),
    })
    .await;
    let client = client_with(&[(&evil.host, "password")]);
    read(&client, &evil).await.unwrap();
    read(&client, &evil).await.unwrap();
    let sent: Vec<bool> = evil
        .asked()
        .iter()
        .map(|asked| asked.header("authorization").is_some())
        .collect();
    assert_eq!(sent, [false, true, true]);
    let wrong = client_with(&[(&evil.host, "wrong")]);
    let error = read(&wrong, &evil).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    assert!(!format!("{error} {error:?}").contains("wrong"));
    assert_eq!(evil.asked().len(), 5, "a refused password was tried again");
}

#[tokio::test]
async fn a_token_is_fetched_once_for_a_scope_and_used_again() {
    let tokens = token_service(r#"{"token":"t1","expires_in":300}"#).await;
    let registry = guarded(format!("http://{}/token", tokens.host), "t1").await;
    let client = client_with(&[(&registry.host, "password")]);
    let (one, two) = tokio::join!(read(&client, &registry), read(&client, &registry));
    one.unwrap();
    two.unwrap();
    read(&client, &registry).await.unwrap();
    let asked = tokens.asked();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].header("authorization"), Some(BASIC));
    assert_eq!(query(&asked[0], "scope"), ["repository:a/b:pull"]);
    assert_eq!(query(&asked[0], "service"), ["kiln.test"]);
}

#[tokio::test]
async fn an_identity_token_is_exchanged_by_post() {
    let tokens = token_service(r#"{"access_token":"t1"}"#).await;
    let registry = guarded(format!("http://{}/token", tokens.host), "t1").await;
    let mut keychain = Keychain::empty();
    keychain.insert(
        &registry.host,
        Credential::IdentityToken(Secret::new("refresh&me")),
    );
    let client = Client::new(Hosts::default(), keychain, options()).unwrap();
    read(&client, &registry).await.unwrap();
    let asked = &tokens.asked()[0];
    assert_eq!(asked.method, "POST");
    assert_eq!(asked.target, "/token");
    assert_eq!(
        String::from_utf8_lossy(&asked.body),
        "grant_type=refresh_token&service=kiln.test&client_id=kiln&scope=repository%3Aa%2Fb%3Apull&refresh_token=refresh%26me"
    );
}

#[tokio::test]
async fn a_registry_token_is_sent_as_it_is() {
    let tokens = token_service("{}").await;
    let registry = guarded(format!("http://{}/token", tokens.host), "given").await;
    let mut keychain = Keychain::empty();
    keychain.insert(
        &registry.host,
        Credential::RegistryToken(Secret::new("given")),
    );
    let client = Client::new(Hosts::default(), keychain, options()).unwrap();
    read(&client, &registry).await.unwrap();
    assert!(tokens.asked().is_empty());
}

#[tokio::test]
async fn a_token_that_is_not_good_any_more_is_renewed_once() {
    let n_issued = Arc::new(AtomicUsize::new(0));
    let issued = Arc::clone(&n_issued);
    let tokens = Evil::start(move |_, _| {
        let n = issued.fetch_add(1, Ordering::Relaxed);
        Reply::ok(format!(r#"{{"token":"t{n}","expires_in":300}}"#))
    })
    .await;
    let realm = format!("http://{}/token", tokens.host);
    let registry = Evil::start(move |asked, n_before| {
        // Good twice, then another one is wanted.
        let wanted = if n_before < 3 {
            "Bearer t0"
        } else {
            "Bearer t1"
        };
        if asked.header("authorization") == Some(wanted) {
            return Reply::ok("bytes");
        }
        Reply::new(401).with("WWW-Authenticate", format!("Bearer realm=\"{realm}\""))
    })
    .await;
    let client = client();
    for _ in 0..4 {
        read(&client, &registry).await.unwrap();
    }
    assert_eq!(n_issued.load(Ordering::Relaxed), 2);
    // A storm of refusals ends.
    let realm = format!("http://{}/token", tokens.host);
    let storm = guarded(realm, "never").await;
    let error = read(&client, &storm).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    assert_eq!(storm.asked().len(), 2);
}

#[tokio::test]
async fn no_password_goes_to_a_token_service_of_somebody_else() {
    // 127.0.0.1 is a registry here, and [::1] somebody else, unless both are loopback: so use names that are not.
    let tokens = token_service(r#"{"token":"t1"}"#).await;
    let registry = guarded(format!("http://{}/token", tokens.host), "t1").await;
    // The proxy is how a name that does not exist reaches our socket.
    let proxied = Evil::start({
        let host = registry.host.clone();
        move |asked, _| {
            let url = url::Url::parse(&asked.target).unwrap();
            match url.host_str() {
                Some("registry.alpha.test")
                    if asked.header("authorization") == Some("Bearer t1") =>
                {
                    Reply::ok("bytes")
                }
                Some("registry.alpha.test" | "registry.beta.test") => Reply::new(401).with(
                    "WWW-Authenticate",
                    "Bearer realm=\"http://auth.alpha.test/token\"",
                ),
                Some("auth.alpha.test") => Reply::ok(r#"{"token":"t1"}"#),
                other => panic!("{other:?} was asked, the registry is {host}"),
            }
        }
    })
    .await;
    let plain = registry::hosts::HostConfig {
        http: Some(true),
        ..Default::default()
    };
    let names = ["registry.alpha.test", "registry.beta.test"];
    let hosts = Hosts::new(names.map(|name| (name.to_owned(), plain.clone()))).unwrap();
    let mut keychain = Keychain::empty();
    for name in names {
        keychain.insert(name, basic("password"));
    }
    let options = registry::client::Options {
        proxy: Some(registry::client::ProxyOptions {
            http: Some(format!("http://{}", proxied.host)),
            ..Default::default()
        }),
        ..options()
    };
    let client = Client::new(hosts, keychain, options).unwrap();
    let alpha = "registry.alpha.test/a/b".parse().unwrap();
    client
        .blob_bytes(&alpha, &layer(b"bytes"), 100)
        .await
        .unwrap();
    let asked = proxied.asked();
    let asked = asked
        .iter()
        .find(|asked| asked.target.contains("auth.alpha"))
        .unwrap();
    assert_eq!(asked.header("authorization"), Some(BASIC));
    // Over plain http a strange token service is not even asked.
    let beta = "registry.beta.test/a/b".parse().unwrap();
    let error = client
        .blob_bytes(&beta, &layer(b"bytes"), 100)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    let n_tokens = proxied
        .asked()
        .iter()
        .filter(|a| a.target.contains("auth."))
        .count();
    assert_eq!(n_tokens, 1);
    // Loopback hosts are never asked through a proxy.
    read(&client, &registry).await.unwrap();
}

#[tokio::test]
async fn realms_that_make_no_sense_are_refused() {
    for realm in [
        "",
        "/token",
        "file:///etc/passwd",
        "http://169.254.169.254/latest",
        "http://user:pw@127.0.0.1/token",
        "https://1.2.3.4/token",
        "ftp://127.0.0.1/",
    ] {
        let registry = guarded(realm.to_owned(), "t").await;
        let client = client_with(&[(&registry.host, "password")]);
        let error = read(&client, &registry).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused, "{realm}: {error}");
        assert_eq!(registry.asked().len(), 1);
    }
    let flood = "Bearer x=y, ".repeat(1000);
    for challenge in ["Bearer", "", "Negotiate", flood.as_str()] {
        let challenge = challenge.to_owned();
        let evil =
            Evil::start(move |_, _| Reply::new(401).with("WWW-Authenticate", &challenge)).await;
        assert!(read(&client(), &evil).await.is_err());
    }
}

#[tokio::test]
async fn hostile_token_answers_are_errors() {
    let long = format!(r#"{{"token":"{}"}}"#, "a".repeat(2 << 20));
    for answer in [
        r#"{"token":"a\nb"}"#,
        r#"{"token":"a\u0000b"}"#,
        r#"{"token":"é"}"#,
        r#"{"token":""}"#,
        "{}",
        "not json",
        "",
        long.as_str(),
    ] {
        let answer = answer.to_owned();
        let tokens = Evil::start(move |_, _| Reply::ok(answer.clone())).await;
        let registry = guarded(format!("http://{}/token", tokens.host), "t").await;
        let error = read(&client(), &registry).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
    }
    for life in ["9223372036854775808", "-1", "1.5", "\"x\"", "null", "1e400"] {
        let answer = format!(r#"{{"token":"t","expires_in":{life}}}"#);
        let tokens = Evil::start(move |_, _| Reply::ok(answer.clone())).await;
        let registry = guarded(format!("http://{}/token", tokens.host), "t").await;
        // What cannot even be written as a number may fail; nothing may panic.
        let read = read(&client(), &registry).await;
        assert!(read.is_ok() || life == "1e400", "{life}");
    }
}

#[tokio::test]
async fn failures_of_the_token_service_have_the_right_kind() {
    for (status, kind, n_asked) in [
        (401, ErrorKind::Unauthorized, 1),
        (403, ErrorKind::Unauthorized, 1),
        (404, ErrorKind::Unauthorized, 1),
        (429, ErrorKind::TooManyRequests, 6),
        (503, ErrorKind::Unavailable, 6),
    ] {
        let tokens = Evil::start(move |_, _| Reply::new(status)).await;
        let registry = guarded(format!("http://{}/token", tokens.host), "t").await;
        let error = read(&client(), &registry).await.unwrap_err();
        assert_eq!(
            (error.kind(), tokens.asked().len()),
            (kind, n_asked),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_mount_asks_for_both_repositories() {
    let memory = Memory::default();
    memory.put_blob("base/image", b"bytes");
    let tokens = token_service(r#"{"token":"t1"}"#).await;
    let realm = format!("http://{}/token", tokens.host);
    let registry = Evil::start(move |asked, _| match asked.header("authorization") {
        Some("Bearer t1") => memory.answer(asked),
        _ => Reply::new(401).with("WWW-Authenticate", format!("Bearer realm=\"{realm}\"")),
    })
    .await;
    let from = [registry.reference("base/image")];
    let source = registry::client::BlobSource::Bytes(b"bytes".as_slice().into());
    let pushed = client()
        .push_blob(
            &registry.reference("a/b"),
            &layer(b"bytes"),
            source,
            &from,
            &|_| {},
        )
        .await;
    assert_eq!(pushed.unwrap(), registry::client::Pushed::Mounted);
    let scopes: Vec<Vec<String>> = tokens.asked().iter().map(|a| query(a, "scope")).collect();
    let push = "repository:a/b:pull,push".to_owned();
    let pull = "repository:base/image:pull".to_owned();
    assert_eq!(scopes, [vec![push.clone()], vec![push, pull]]);
}

#[tokio::test]
async fn errors_never_show_what_is_secret() {
    let evil = Evil::start(|_, _| {
        Reply::new(302).with("Location", "http://127.0.0.1:1/x?X-Amz-Signature=canary")
    })
    .await;
    let client = client_with(&[(&evil.host, "canary")]);
    let error = read(&client, &evil).await.unwrap_err();
    let mut text = format!("{error} {error:?}");
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        write!(text, "{cause} {cause:?}").unwrap();
        source = cause.source();
    }
    assert!(!text.contains("canary"), "{text}");
    assert!(!format!("{client:?}").contains("canary"));
}
