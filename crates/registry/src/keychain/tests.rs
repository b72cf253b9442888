//! Tests of the keychain and its sources.

use super::docker::{DockerConfig, DockerConfigError, HELPER_TIMEOUT};
use super::*;

fn basic(username: &str, password: &str) -> Credential {
    Credential::Basic {
        username: username.to_owned(),
        password: Secret::new(password),
    }
}

fn encode(text: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode(text)
}

#[test]
fn every_form_of_a_docker_config_key_is_understood() {
    let text = format!(
        r#"{{"auths": {{
            "https://index.docker.io/v1/": {{"auth": "{}"}},
            "plain.example": {{"username": "u", "password": "p"}},
            "http://url.example:5000/v2/": {{"identitytoken": "refresh"}},
            "token.example": {{"registrytoken": "access"}},
            "hidden.example": {{"auth": "{}"}},
            "empty.example": {{}},
            "null.example": null,
            "quay.io/some/namespace": {{"auth": "{}"}},
            "not a host": {{"auth": "{}"}}
        }}, "HttpHeaders": {{"X": "y"}}}}"#,
        encode("hub:pa:ss"),
        encode("<token>:refresh-2"),
        encode("a:b"),
        encode("a:b"),
    );
    let keychain = Keychain::from_docker_config(text.as_bytes()).unwrap();
    let expected = [
        ("docker.io", basic("hub", "pa:ss")),
        (
            "hidden.example",
            Credential::IdentityToken(Secret::new("refresh-2")),
        ),
        ("plain.example", basic("u", "p")),
        (
            "token.example",
            Credential::RegistryToken(Secret::new("access")),
        ),
        (
            "url.example:5000",
            Credential::IdentityToken(Secret::new("refresh")),
        ),
    ];
    assert_eq!(
        keychain.hosts().collect::<Vec<_>>(),
        expected.iter().map(|(host, _)| *host).collect::<Vec<_>>()
    );
    for (host, credential) in &expected {
        assert_eq!(keychain.get(host), Some(credential), "{host}");
    }
}

#[test]
fn a_broken_docker_config_is_refused_without_showing_it() {
    for bad in [
        "",
        "[]",
        r#"{"auths": {"a.example": {"auth": "canary!"}}}"#,
        r#"{"auths": {"a.example": {"auth": "Y2FuYXJ5"}}}"#,
        r#"{"auths": {"a.example": {"auth": {"canary": 1}}}}"#,
        r#"{"credsStore": "../canary/x"}"#,
    ] {
        let error = Keychain::from_docker_config(bad.as_bytes()).unwrap_err();
        let is_name = matches!(error, DockerConfigError::HelperName(_));
        assert!(
            is_name || !format!("{error}{error:?}").contains("canary"),
            "{error:?}"
        );
    }
}

#[test]
fn look_alikes_of_a_host_get_no_credential() {
    let mut keychain = Keychain::empty();
    let aws = "123456789012.dkr.ecr.us-east-1.amazonaws.com";
    assert!(keychain.insert(aws, basic("AWS", "token")));
    assert!(keychain.insert("docker.io", basic("u", "p")));
    for alike in [
        "123456789012.dkr.ecr.us-east-1.amazonaws.com.evil.test",
        "x123456789012.dkr.ecr.us-east-1.amazonaws.com",
        "123456789012xdkrxecrxus-east-1xamazonawsxcom",
        "123456789012.dkr.ecr.us-east-1.amazonaws.com:443",
        "123456789012.dkr.ecr.us-east-1.amazonaws.com.cn",
        "123456789012.dkr.ecr.us-gov-west-1.amazonaws.com",
        "docker.io.evil.test",
        "evil.docker.io",
        "docker.io:443",
    ] {
        assert_eq!(keychain.get(alike), None, "{alike}");
        let reference: oci::Reference = format!("{alike}/a/b").parse().unwrap();
        // Without a dot it is no host at all, but a repository of docker.io.
        let is_host = reference.host() == alike;
        assert!(
            !is_host || keychain.get(reference.host()).is_none(),
            "{alike}"
        );
    }
    for same in ["index.docker.io/a/b", "REGISTRY-1.docker.io/a/b", "a/b"] {
        let reference: oci::Reference = same.parse().unwrap();
        assert!(keychain.get(reference.host()).is_some(), "{same}");
    }
}

#[test]
fn additional_credentials_are_split_at_the_first_colon() {
    for (domain, decoded, expected) in [
        ("a.example", "user:pa:ss", basic("user", "pa:ss")),
        (
            "a.example",
            "_json_key:{\"a\":1}",
            basic("_json_key", "{\"a\":1}"),
        ),
        (
            "a.example:5000",
            "a.example:5000:token",
            basic("a.example:5000", "token"),
        ),
        ("a.example:5000", "user:a:b", basic("user", "a:b")),
        (
            "a.example",
            "a.example:5000:token",
            basic("a.example", "5000:token"),
        ),
        ("a.example", "user:", basic("user", "")),
        (
            "a.example",
            "<token>:t",
            Credential::IdentityToken(Secret::new("t")),
        ),
        (
            "a.example",
            "lonely",
            Credential::IdentityToken(Secret::new("lonely")),
        ),
    ] {
        let parsed = Credential::from_additional(domain, &encode(decoded));
        assert_eq!(parsed, Ok(expected), "{decoded}");
    }
    let unpadded = encode("u:pass").trim_end_matches('=').to_owned();
    assert_eq!(
        Credential::from_additional("a.example", &unpadded),
        Ok(basic("u", "pass"))
    );
    for bad in ["", "*canary*", "/w=="] {
        let error = Credential::from_additional("a.example", bad).unwrap_err();
        assert!(!error.to_string().contains("canary"));
    }
    assert!(Keychain::from_additional([("user@host", encode("a:b").as_str())]).is_err());
}

#[test]
fn secrets_are_shown_only_through_the_explicit_door() {
    #[derive(Debug, serde::Serialize, serde::Deserialize)]
    struct Spec {
        #[serde(with = "super::exposed")]
        keychain: Keychain,
    }
    let mut keychain = Keychain::empty();
    keychain.insert("a.example", basic("user", "canary"));
    keychain.insert(
        "b.example",
        Credential::IdentityToken(Secret::new("canary2")),
    );
    let spec = Spec { keychain };
    assert!(!format!("{spec:?}").contains("canary"));
    let again: Spec = serde_json::from_str(&serde_json::to_string(&spec).unwrap()).unwrap();
    assert_eq!(again.keychain, spec.keychain);
    let secrets = spec.keychain.secrets();
    let secrets: Vec<&str> = secrets.iter().map(Secret::reveal).collect();
    assert_eq!(secrets, ["canary", &encode("user:canary"), "canary2"]);
}

#[test]
fn merging_keeps_what_was_there() {
    let mut ours = Keychain::empty();
    ours.insert("a.example", basic("ours", "1"));
    let mut theirs = Keychain::empty();
    theirs.insert("a.example", basic("theirs", "2"));
    theirs.insert("b.example", basic("theirs", "3"));
    ours.merge(theirs);
    assert_eq!(ours.get("a.example"), Some(&basic("ours", "1")));
    assert_eq!(ours.get("b.example"), Some(&basic("theirs", "3")));
    assert_eq!(
        ours.only(&["b.example"]).hosts().collect::<Vec<_>>(),
        ["b.example"]
    );
}

#[tokio::test]
async fn a_helper_that_is_not_installed_is_named() {
    let config = DockerConfig::parse(br#"{"credHelpers": {"a.example": "kiln-no-such"}}"#).unwrap();
    let error = config
        .keychain_for(&["a.example"], HELPER_TIMEOUT)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("docker-credential-kiln-no-such"));
    let none = config
        .keychain_for(&["b.example"], HELPER_TIMEOUT)
        .await
        .unwrap();
    assert_eq!(none, Keychain::empty());
}
