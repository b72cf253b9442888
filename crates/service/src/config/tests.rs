use super::*;

#[test]
fn what_is_printed_is_the_default_and_names_every_key() {
    assert_eq!(parse(print_documented()).unwrap().config, Config::default());
    // With the comment signs before keys and tables gone, every key is set: a missing one would be missed by its neighbours.
    let uncommented: String = print_documented()
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if !rest.starts_with(' ') => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let config = toml::from_str::<Config>(&uncommented).unwrap();
    assert!(config.tls.is_some() && config.state.is_some() && config.address.is_some());
    assert!(config.worker.user_namespace_base.is_some());
    assert!(config.limits.step_memory_bytes.is_some());
    assert_eq!(config.registry.hosts().count(), 2);
    assert_eq!(config.callers.len(), 1);
    assert!(config.admission.tenants["team-a"].queued.is_some());
    assert!(config.admission.min_free_bytes.is_some());
    assert!(config.contexts.max_bytes.is_some());
    assert!(config.callers[0].token_file.is_some());
    assert!(config.base_image_repository.is_some());
    assert!(config.pull_secret_file.is_some());
}

#[test]
fn keys_that_nobody_knows_and_values_that_make_no_sense_are_refused() {
    for bad in [
        "lisen = \"127.0.0.1:1\"",
        "listen = \"localhost\"",
        "base_image_repository = \"registry.example/base:tag\"",
        "base_image_repository = \"registry.example/UPPER\"",
        "network = \"host\"",
        "address = \"http://example.com\"",
        "[server]\nmax_running_builds = 0",
        "[server]\nretries_of_lost_workers = 11",
        "[server]\nniceness = 1",
        "[server]\nniceness = -21",
        "[ref_cache]\ninterval = \"6 hours\"",
        "[ref_cache]\nrefs = [\"not a ref\"]",
        "[ref_cache]\nfresh_for = \"2h\"",
        "[limits]\nwall_time = 3",
        "[tls]\ncert = \"x\"",
        "[registry.\"user@host\"]",
    ] {
        assert!(parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn ecr_tokens_and_compression_are_by_choice() {
    let config = parse("enable_additional_ecr_auth = true\ncompression = \"zstd\"")
        .unwrap()
        .config;
    assert!(config.enable_additional_ecr_auth);
    assert_eq!(config.compression, engine::spec::Compression::Zstd);
    assert!(parse("compression = \"xz\"").is_err());
}

#[test]
fn submodules_and_lfs_are_by_choice() {
    let options = |text: &str| parse(text).map(|parsed| parsed.config.git.fetch_options());
    let fetch = options("").unwrap();
    assert_eq!((fetch.submodules, fetch.lfs), (Submodules::Off, Lfs::Off));
    for (word, submodules) in [
        ("off", Submodules::Off),
        ("same-host", Submodules::SameHost),
        ("all", Submodules::All),
    ] {
        let fetch = options(&format!("[git]\nsubmodules = \"{word}\"\nlfs = \"on\"")).unwrap();
        assert_eq!((fetch.submodules, fetch.lfs), (submodules, Lfs::On));
    }
    for bad in [
        "submodules = true",
        "submodules = \"some\"",
        "lfs = \"all\"",
    ] {
        assert!(options(&format!("[git]\n{bad}")).is_err(), "{bad}");
    }
}

#[test]
fn the_published_json_is_accepted_with_warnings() {
    let parsed = parse(
        r#"{
          "orchestrator": {
            "wsman": { "address": "ws-manager:8080", "tls": { "ca": "/x" } },
            "pullSecret": "secret", "pullSecretFile": "/config/pull-secret.json",
            "baseImageRepository": "registry.example.com/base-images",
            "workspaceImageRepository": "registry.example.com/workspace-images",
            "builderImage": "registry.example.com/bob:1",
            "enableAdditionalECRAuth": false,
            "subassemblyBucketName": "files", "subassemblyBucketPrefix": "sub/assemblies/"
          },
          "refCache": { "interval": "6h", "refs": ["alpine", "docker.io/library/alpine:latest"] },
          "server": { "services": { "grpc": {
            "address": ":8080",
            "tls": { "caPath": "/certs/ca.crt", "certPath": "/certs/tls.crt", "keyPath": "/certs/tls.key" }
          } } }
        }"#,
    )
    .unwrap();
    let config = parsed.config;
    assert_eq!(config.listen.to_string(), "0.0.0.0:8080");
    let base = config.base_image_repository.unwrap();
    assert_eq!(base.name(), "registry.example.com/base-images");
    assert_eq!(
        config.tls.unwrap().client_ca,
        Some(PathBuf::from("/certs/ca.crt"))
    );
    assert_eq!(config.ref_cache.interval, Duration::from_secs(6 * 3600));
    let names: Vec<&str> = parsed
        .warnings
        .iter()
        .filter_map(|warning| warning.split(' ').nth(2))
        .collect();
    assert_eq!(
        names,
        [
            "orchestrator.wsman",
            "orchestrator.builderImage",
            "orchestrator.pullSecret",
        ]
    );
    assert_eq!(config.subassembly.bucket.as_deref(), Some("files"));
    let prefix = config.subassembly.bucket_prefix.unwrap();
    assert_eq!(prefix.as_str(), "sub/assemblies");
}

#[test]
fn unknown_keys_of_the_published_json_are_refused() {
    let text = r#"{ "orchestrator": { "baseImageRepository": "r.example/b", "workspaceImageRepository": "r.example/w", "x": 1 } }"#;
    assert!(matches!(parse(text), Err(ConfigError::Json(_))));
}

#[test]
fn a_bucket_is_checked_before_anything_is_put_into_it() {
    let good = "[subassembly]\nbucket = \"files\"\nbucket_prefix = \"a/b\"\nurl_lifetime = \"168h\"\n[objects]\nendpoint = \"http://127.0.0.1:1\"\naccess_key_id_file = \"/a\"\nsecret_access_key_file = \"/b\"";
    parse(good).unwrap();
    for (bad, key) in [
        (
            "[subassembly]\nbucket_prefix = \"a\"",
            "subassembly.bucket_prefix",
        ),
        ("[subassembly]\nbucket = \"a/b\"", "subassembly.bucket"),
        ("[subassembly]\nbucket = \"a?b\"", "subassembly.bucket"),
        ("[subassembly]\nbucket = \"...\"", "subassembly.bucket"),
        (
            "[subassembly]\nbucket = \"files\"\nurl_lifetime = \"169h\"",
            "subassembly.url_lifetime",
        ),
        ("[objects]\naccess_key_id_file = \"/a\"", "objects"),
        (
            "[objects]\nsession_token_file = \"/a\"",
            "objects.session_token_file",
        ),
        (
            "[objects]\nendpoint = \"s3.example.com\"",
            "objects.endpoint",
        ),
        (
            "[objects]\nendpoint = \"https://user:word@s3.example.com\"",
            "objects.endpoint",
        ),
        (
            "[objects]\nendpoint = \"https://s3.example.com/path\"",
            "objects.endpoint",
        ),
        ("[objects]\nendpoint = \"file:///etc\"", "objects.endpoint"),
    ] {
        match parse(bad) {
            Err(ConfigError::Value { key: found, .. }) => assert_eq!(found, key, "{bad}"),
            other => panic!("{bad}: {other:?}"),
        }
    }
    assert!(parse("[subassembly]\nbucket = \"files\"\nbucket_prefix = \"../a\"").is_err());
}
