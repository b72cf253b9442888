use source::git::GitAuth;
use source::initializer::Initializer;

use super::*;

fn fetch() -> FetchOptions {
    FetchOptions::default()
}

fn initializer(git: content::GitInitializer) -> content::WorkspaceInitializer {
    content::WorkspaceInitializer {
        spec: Some(content::workspace_initializer::Spec::Git(git)),
    }
}

fn git() -> content::GitInitializer {
    content::GitInitializer {
        remote_uri: "https://example.com/a.git".to_owned(),
        target_mode: content::CloneTargetMode::RemoteCommit.into(),
        clone_taget: "0123456789012345678901234567890123456789".to_owned(),
        ..content::GitInitializer::default()
    }
}

fn file() -> wire::BuildSourceDockerfile {
    wire::BuildSourceDockerfile {
        source: Some(initializer(git())),
        dockerfile_path: "docker/Dockerfile".to_owned(),
        ..wire::BuildSourceDockerfile::default()
    }
}

fn decode(file: wire::BuildSourceDockerfile) -> Result<FileSource, Failure> {
    let from = Some(wire::build_source::From::File(file));
    match source(Some(wire::BuildSource { from }), &fetch())? {
        Source::File(file) => Ok(*file),
        Source::Image(_) => panic!("a file became an image"),
    }
}

fn refused(result: Result<impl Sized, Failure>) -> String {
    match result {
        Ok(_) => panic!("it was accepted"),
        Err(failure) => {
            assert_eq!(failure.blame(), Blame::Request);
            failure.status().message().to_owned()
        }
    }
}

#[test]
fn a_source_that_is_missing_is_named_as_callers_expect() {
    let empty = wire::BuildSource { from: None };
    for source_ in [None, Some(empty)] {
        assert_eq!(
            refused(source(source_, &fetch())),
            "build source is missing"
        );
    }
}

fn of_spec(spec: content::workspace_initializer::Spec) -> Result<FileSource, Failure> {
    let source = Some(content::WorkspaceInitializer { spec: Some(spec) });
    let options = FetchOptions {
        snapshots: Some("/srv/snapshots".into()),
        egress: egress::Policy::public(),
        ..fetch()
    };
    let from = Some(wire::build_source::From::File(
        wire::BuildSourceDockerfile { source, ..file() },
    ));
    match super::source(Some(wire::BuildSource { from }), &options)? {
        Source::File(file) => Ok(*file),
        Source::Image(_) => panic!("a file became an image"),
    }
}

fn download(
    url: &str,
    file_path: &str,
    digest: &str,
    target: &str,
) -> content::workspace_initializer::Spec {
    content::workspace_initializer::Spec::Download(content::FileDownloadInitializer {
        files: vec![content::file_download_initializer::FileInfo {
            url: url.to_owned(),
            file_path: file_path.to_owned(),
            digest: digest.to_owned(),
        }],
        target_location: target.to_owned(),
    })
}

fn snapshot(name: &str, volume: Option<()>) -> content::SnapshotInitializer {
    content::SnapshotInitializer {
        snapshot: name.to_owned(),
        from_volume_snapshot: volume.is_some(),
    }
}

#[test]
fn every_initializer_is_understood() {
    use content::workspace_initializer::Spec;
    let digest = format!("sha256:{}", "a".repeat(64));
    let all = Spec::Composite(content::CompositeInitializer {
        initializer: [
            Spec::Empty(content::EmptyInitializer {}),
            Spec::Git(git()),
            download("https://example.com/a", "a/b", &digest, "/workspace/sub"),
            Spec::Snapshot(snapshot("one.tar", None)),
            Spec::Prebuild(content::PrebuildInitializer {
                prebuild: Some(snapshot("two.tar", None)),
                git: vec![git()],
            }),
            Spec::Backup(content::FromBackupInitializer {
                checkout_location: "back".to_owned(),
                from_volume_snapshot: false,
            }),
        ]
        .into_iter()
        .map(|spec| content::WorkspaceInitializer { spec: Some(spec) })
        .collect(),
    });
    let decoded = of_spec(all).unwrap();
    let Initializer::Composite { parts } = &decoded.initializer else {
        panic!("{:?}", decoded.initializer);
    };
    let names: Vec<&str> = parts.iter().map(Initializer::name).collect();
    assert_eq!(
        names,
        ["empty", "git", "download", "snapshot", "prebuild", "backup"]
    );
    assert_eq!(decoded.initializer.repositories().len(), 2);
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn hopeless() -> Vec<(content::workspace_initializer::Spec, &'static str)> {
    use content::workspace_initializer::Spec;
    let digest = format!("sha256:{}", "a".repeat(64));
    let nested = (0..20).fold(Spec::Empty(content::EmptyInitializer {}), |inner, _| {
        let part = content::WorkspaceInitializer { spec: Some(inner) };
        Spec::Composite(content::CompositeInitializer {
            initializer: vec![part],
        })
    });
    let silent = Spec::Composite(content::CompositeInitializer {
        initializer: vec![content::WorkspaceInitializer { spec: None }],
    });
    vec![
        (
            Spec::Empty(content::EmptyInitializer {}),
            "empty has no Dockerfile",
        ),
        (nested, "nested deeper than 8"),
        (silent, "a part says nothing"),
        (download("file:///etc/passwd", "a", &digest, ""), "url: "),
        (
            download("https://example.com/a", "a", "", ""),
            "digest: missing",
        ),
        (
            download("https://example.com/a", "a", "md5:abc", ""),
            "digest: ",
        ),
        (
            download("https://example.com/a", "a", "sha256:../../x", ""),
            "digest: ",
        ),
        (
            download("https://example.com/a", "../a", &digest, ""),
            "file_path: ",
        ),
        (
            download("https://example.com/a", "/etc/shadow", &digest, ""),
            "file_path: ",
        ),
        (
            download("https://example.com/a", "a", &digest, "/workspace-evil"),
            "target_location: ",
        ),
        (
            download("https://example.com/a", ".git/hooks/x", &digest, ""),
            "within .git",
        ),
        (
            download("https://example.com/a", "hooks/x", &digest, ".git"),
            "within .git",
        ),
        (
            download("https://example.com/a", "", &digest, ""),
            "no path",
        ),
        (
            download("http://example.com/a", "a", &digest, ""),
            "plain http",
        ),
        (
            download("https://169.254.169.254/a", "a", &digest, ""),
            "not connected to",
        ),
        (
            download("https://[::ffff:127.0.0.1]/a", "a", &digest, ""),
            "not connected to",
        ),
        (Spec::Snapshot(snapshot("", None)), "snapshot: "),
        (Spec::Snapshot(snapshot("../x", None)), "snapshot: "),
        (Spec::Snapshot(snapshot("/etc/shadow", None)), "snapshot: "),
        (
            Spec::Snapshot(snapshot("https://example.com/x", None)),
            "snapshot: ",
        ),
        (
            Spec::Snapshot(snapshot("x", Some(()))),
            "from_volume_snapshot: ",
        ),
        (
            Spec::Prebuild(content::PrebuildInitializer::default()),
            "prebuild is missing",
        ),
        (
            Spec::Backup(content::FromBackupInitializer {
                checkout_location: "../x".to_owned(),
                from_volume_snapshot: false,
            }),
            "checkout_location: ",
        ),
    ]
}

#[test]
fn initializers_that_can_never_work_are_refused_with_the_field() {
    for (spec, expected) in hopeless() {
        let text = refused(of_spec(spec));
        assert!(text.contains(expected), "{expected:?} is not in {text:?}");
    }
}

#[test]
fn what_is_not_there_is_named() {
    use content::workspace_initializer::Spec;
    let without_store = content::WorkspaceInitializer {
        spec: Some(Spec::Snapshot(snapshot("x", None))),
    };
    let text = refused(decode(wire::BuildSourceDockerfile {
        source: Some(without_store),
        ..file()
    }));
    assert!(text.contains("snapshots.folder"), "{text}");
    for source in [None, Some(content::WorkspaceInitializer { spec: None })] {
        let text = refused(decode(wire::BuildSourceDockerfile { source, ..file() }));
        assert!(text.contains("no context initializer"), "{text}");
    }
}

#[test]
fn names_are_made_of_the_raw_values_and_paths_are_normalised() {
    let decoded = decode(wire::BuildSourceDockerfile {
        dockerfile_path: "/workspace/a//./Dockerfile".to_owned(),
        context_path: "./".to_owned(),
        dockerfile_version: "v".to_owned(),
        ..file()
    })
    .unwrap();
    assert_eq!(decoded.dockerfile.as_deref(), Some("a/Dockerfile"));
    assert_eq!(decoded.context_path.as_deref(), Some("."));
    assert_eq!(decoded.fields.dockerfile_path, "/workspace/a//./Dockerfile");
    assert_eq!(decoded.fields.context_path, "./");
    assert_eq!(decoded.fields.dockerfile_version, "v");
    assert_eq!(decoded.fields.remote_uri, "https://example.com/a.git");
    let decoded = decode(wire::BuildSourceDockerfile {
        dockerfile_path: String::new(),
        ..file()
    });
    assert_eq!(decoded.unwrap().dockerfile, None);
}

#[test]
fn paths_that_leave_the_workspace_are_refused_by_field() {
    let hostile = [
        "..",
        "../..",
        "/etc/shadow",
        "/workspace-evil",
        "/workspace/../x",
        "a/../../x",
        "a\0b",
        "a\nb",
        &"a/".repeat(5000),
        &"a".repeat(300),
    ]
    .map(str::to_owned);
    for path in hostile {
        let dockerfile = wire::BuildSourceDockerfile {
            dockerfile_path: path.clone(),
            ..file()
        };
        assert!(
            refused(decode(dockerfile)).starts_with("dockerfile_path: "),
            "{path:?}"
        );
        let context = wire::BuildSourceDockerfile {
            context_path: path.clone(),
            ..file()
        };
        assert!(
            refused(decode(context)).starts_with("context_path: "),
            "{path:?}"
        );
        let git = content::GitInitializer {
            checkout_location: path.clone(),
            ..git()
        };
        let checkout = wire::BuildSourceDockerfile {
            source: Some(initializer(git)),
            ..file()
        };
        assert!(
            refused(decode(checkout)).starts_with("checkout_location: "),
            "{path:?}"
        );
    }
    // Names like any other: nothing unescapes them on the way.
    for path in ["%2e%2e", "..%2f", "a\\b"] {
        let dockerfile = wire::BuildSourceDockerfile {
            dockerfile_path: path.to_owned(),
            ..file()
        };
        assert_eq!(
            decode(dockerfile).unwrap().dockerfile.as_deref(),
            Some(path)
        );
    }
}

#[test]
fn git_requests_that_reach_elsewhere_are_refused() {
    let with = |change: &dyn Fn(&mut content::GitInitializer)| {
        let mut git = git();
        change(&mut git);
        decode(wire::BuildSourceDockerfile {
            source: Some(initializer(git)),
            ..file()
        })
    };
    let setting = |key: &str| content::GitConfig {
        custom_config: HashMap::from([(key.to_owned(), "x".to_owned())]),
        ..content::GitConfig::default()
    };
    for change in [
        &|git: &mut content::GitInitializer| git.remote_uri = "file:///etc".to_owned(),
        &|git: &mut content::GitInitializer| git.remote_uri = "ext::sh -c id".to_owned(),
        &|git: &mut content::GitInitializer| git.remote_uri = String::new(),
        &|git: &mut content::GitInitializer| {
            git.upstream_remote_uri = "--upload-pack=id".to_owned();
        },
        &|git: &mut content::GitInitializer| git.clone_taget = "--upload-pack=id".to_owned(),
        &|git: &mut content::GitInitializer| git.clone_taget = String::new(),
        &|git: &mut content::GitInitializer| git.target_mode = 17,
        &|git: &mut content::GitInitializer| {
            git.config = Some(content::GitConfig {
                authentication: 9,
                ..content::GitConfig::default()
            });
        },
    ] as [&dyn Fn(&mut content::GitInitializer); 8]
    {
        refused(with(change));
    }
    let text = refused(with(&|git| {
        git.config = Some(setting("url.https://evil/.insteadOf"));
    }));
    assert!(text.contains("url.https://evil/.insteadOf"), "{text}");
}

#[test]
fn every_way_to_authenticate_is_understood_and_no_secret_is_repeated() {
    let config = |authentication: content::GitAuthMethod| content::GitConfig {
        authentication: authentication.into(),
        auth_user: "user".to_owned(),
        auth_password: "hunter2hunter2".to_owned(),
        auth_ots: "https://example.com/once".to_owned(),
        ..content::GitConfig::default()
    };
    let auth = |method| super::initializer::git_auth(&config(method)).unwrap();
    assert_eq!(auth(content::GitAuthMethod::NoAuth), GitAuth::None);
    assert!(matches!(
        auth(content::GitAuthMethod::BasicAuth),
        GitAuth::Basic { .. }
    ));
    assert!(matches!(
        auth(content::GitAuthMethod::BasicAuthOts),
        GitAuth::OneTimeSecret { .. }
    ));
    let decoded = decode(wire::BuildSourceDockerfile {
        source: Some(initializer(content::GitInitializer {
            config: Some(config(content::GitAuthMethod::BasicAuth)),
            ..git()
        })),
        ..file()
    });
    assert!(!format!("{:?}", decoded.unwrap()).contains("hunter2"));
}

#[test]
fn rights_are_what_the_request_says() {
    use wire::build_registry_auth::Mode;
    let auth = |mode| {
        rights(Some(wire::BuildRegistryAuth {
            mode,
            additional: HashMap::from([("r.example".to_owned(), "dTpwOnE".to_owned())]),
        }))
    };
    assert_eq!(rights(None).unwrap().grant, Grant::Nothing);
    let none = auth(None).unwrap();
    assert_eq!(none.grant, Grant::Nothing);
    assert!(none.additional.get("r.example").is_some());
    let total = |allow_all| {
        auth(Some(Mode::Total(wire::BuildRegistryAuthTotal {
            allow_all,
        })))
    };
    assert_eq!(total(true).unwrap().grant, Grant::Everything);
    assert_eq!(total(false).unwrap().grant, Grant::Nothing);
    let selective = |any_of: &[&str]| {
        auth(Some(Mode::Selective(wire::BuildRegistryAuthSelective {
            allow_baserep: true,
            allow_workspacerep: false,
            any_of: any_of.iter().map(|host| (*host).to_owned()).collect(),
        })))
    };
    assert!(matches!(
        selective(&["INDEX.docker.io"]).unwrap().grant,
        Grant::Hosts { others, .. } if others.contains("docker.io")
    ));
    refused(selective(&["user@host"]));
    refused(selective(&["a.example"; HOSTS_MAX + 1]));
    for value in ["", "%%%", "/w=="] {
        let bad = wire::BuildRegistryAuth {
            mode: None,
            additional: HashMap::from([("r.example".to_owned(), value.to_owned())]),
        };
        refused(rights(Some(bad)));
    }
}

#[test]
fn fields_without_a_limit_of_their_own_have_one() {
    let long = "x".repeat(FIELD_MAX_BYTES + 1);
    let request = |change: &dyn Fn(&mut wire::BuildRequest)| {
        let mut request = wire::BuildRequest {
            source: Some(wire::BuildSource {
                from: Some(wire::build_source::From::File(file())),
            }),
            ..wire::BuildRequest::default()
        };
        change(&mut request);
        build_call(request, &fetch())
    };
    assert!(request(&|_| ()).is_ok());
    refused(request(&|r| r.triggered_by.clone_from(&long)));
    refused(request(&|r| r.supervisor_ref.clone_from(&long)));
    refused(request(&|r| r.base_image_name_resolved.clone_from(&long)));
}
