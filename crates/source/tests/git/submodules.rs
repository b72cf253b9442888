//! Submodules: which are fetched, from where, with which credential, and what hostile ones get.

use source::git::{
    Depth, FetchError, FetchErrorKind, FetchOptions, GitAuth, GitDirectory, GitSource, Missing,
    Submodules,
};
use source::path::RelPath;
use testkit::git_server::{File, GitServer, Repository};

use super::{Fetched, quick, run, source_of};

const PASSWORD: &str = "pass-4711";

fn with(submodules: Submodules) -> FetchOptions {
    FetchOptions {
        submodules,
        ..quick()
    }
}

/// Returns `.gitmodules` with one submodule for each path and address.
fn modules(entries: &[(&str, &str)]) -> File {
    let lines = entries
        .iter()
        .map(|(path, url)| format!("[submodule \"{path}\"]\n\tpath = {path}\n\turl = {url}\n"));
    File::new(".gitmodules", lines.collect::<String>())
}

/// Makes `project` on `server`, with these submodules at `commit`.
fn project(server: &GitServer, entries: &[(&str, &str)], commit: &str) -> Repository {
    let mut repository = server.repository("project");
    let mut files = vec![modules(entries), File::new("a", "outer\n")];
    files.extend(
        entries
            .iter()
            .map(|(path, _)| File::submodule(path, commit)),
    );
    repository.commit("main", &files);
    repository
}

/// Makes a repository with two commits and returns the first.
fn inner(server: &GitServer) -> String {
    let mut repository = server.repository("inner");
    let first = repository.commit("main", &[File::new("i", "first\n")]);
    repository.commit("main", &[File::new("i", "second\n")]);
    first
}

fn is_empty(fetched: &Fetched, path: &str) -> bool {
    std::fs::read_dir(fetched.workspace().join(path))
        .unwrap()
        .next()
        .is_none()
}

#[tokio::test]
async fn a_submodule_is_the_recorded_commit_wherever_its_address_is_relative_to() {
    let server = GitServer::start();
    let commit = inner(&server);
    let absolute = server.url("inner");
    let entries = [("libs/one", "../inner.git"), ("two", absolute.as_str())];
    let _project = project(&server, &entries, &commit);
    let source = GitSource {
        checkout_location: RelPath::parse("src").unwrap(),
        ..source_of(&server.url("project"))
    };
    let fetched = run(&source, &with(Submodules::SameHost)).await;
    assert_eq!(fetched.read("src/a"), "outer\n", "{}", fetched.error());
    for path in ["src/libs/one", "src/two"] {
        assert_eq!(fetched.read(&format!("{path}/i")), "first\n");
        assert_eq!(fetched.git(&["-C", path, "rev-parse", "HEAD"]), commit);
        assert_eq!(
            fetched.git(&["-C", path, "rev-list", "--count", "HEAD"]),
            "1"
        );
    }
    assert_eq!(fetched.git(&["-C", "src", "status", "--porcelain"]), "");
}

#[tokio::test]
async fn without_a_word_in_the_configuration_none_is_fetched_and_the_log_says_so() {
    let server = GitServer::start();
    let commit = inner(&server);
    let _project = project(&server, &[("m", "../inner.git")], &commit);
    let fetched = run(&source_of(&server.url("project")), &quick()).await;
    assert_eq!(fetched.read("a"), "outer\n");
    assert!(!fetched.result.as_ref().unwrap().is_all);
    assert!(is_empty(&fetched, "m"));
    let said = "submodule \"m\" is not fetched: the configuration wants none (git.submodules)";
    assert!(fetched.log.contains(said), "{}", fetched.log);
    assert!(
        !server
            .requests()
            .iter()
            .any(|asked| asked.path.contains("inner"))
    );
}

#[tokio::test]
async fn submodules_of_submodules_are_fetched_and_git_directories_can_be_left_out_of_all() {
    let server = GitServer::start();
    let commit = inner(&server);
    let mut middle = server.repository("middle");
    let between = middle.commit(
        "main",
        &[
            modules(&[("deep", "../inner")]),
            File::submodule("deep", &commit),
        ],
    );
    let _project = project(&server, &[("m", "../middle.git")], &between);
    for depth in [Depth::Shallow, Depth::Full] {
        let options = FetchOptions {
            git_directory: GitDirectory::Remove,
            ..with(Submodules::All)
        };
        let source = GitSource {
            depth,
            ..source_of(&server.url("project"))
        };
        let fetched = run(&source, &options).await;
        assert!(fetched.result.is_ok(), "{}", fetched.error());
        assert_eq!(fetched.read("m/deep/i"), "first\n");
        for path in [".git", "m/.git", "m/deep/.git"] {
            assert!(!fetched.workspace().join(path).exists(), "{path}");
        }
    }
}

#[tokio::test]
async fn another_host_is_left_alone_or_gets_no_credential() {
    let server = GitServer::with_basic_auth("user", PASSWORD);
    let commit = inner(&server);
    let other = GitServer::start();
    assert_eq!(inner(&other), commit);
    let elsewhere = other.url("inner");
    let entries = [("here", "../inner.git"), ("there", elsewhere.as_str())];
    let _project = project(&server, &entries, &commit);
    let source = GitSource {
        auth: GitAuth::Basic {
            user: "user".to_owned(),
            password: PASSWORD.to_owned(),
        },
        ..source_of(&server.url("project"))
    };
    let fetched = run(&source, &with(Submodules::SameHost)).await;
    assert_eq!(fetched.read("here/i"), "first\n", "{}", fetched.error());
    assert!(is_empty(&fetched, "there") && other.requests().is_empty());
    let said = "is another host than the repository's (git.submodules)";
    assert!(fetched.log.contains(said), "{}", fetched.log);

    let fetched = run(&source, &with(Submodules::All)).await;
    assert_eq!(fetched.read("there/i"), "first\n", "{}", fetched.error());
    assert!(!other.requests().is_empty());
    assert!(
        other
            .requests()
            .iter()
            .all(|asked| asked.authorization.is_none())
    );
    // Nor when it asks for one.
    let locked = GitServer::with_basic_auth("user", PASSWORD);
    let _inner = inner(&locked);
    let mut again = server.repository("again");
    let files = [
        modules(&[("m", &locked.url("inner"))]),
        File::submodule("m", &commit),
    ];
    again.commit("main", &files);
    let source = GitSource {
        remote: server.url("again").parse().unwrap(),
        ..source
    };
    let fetched = run(&source, &with(Submodules::All)).await;
    let error = fetched.result.as_ref().unwrap_err();
    assert_eq!(error.kind(), FetchErrorKind::Unauthorized, "{error}");
    assert!(
        locked
            .requests()
            .iter()
            .all(|asked| asked.authorization.is_none())
    );
}

#[tokio::test]
async fn what_is_allowed_and_cannot_be_fetched_is_an_error_that_names_it() {
    let server = GitServer::start();
    let commit = inner(&server);
    for (name, url, commit, kind) in [
        (
            "gone",
            "../nowhere.git",
            commit.clone(),
            FetchErrorKind::NotFound(Missing::Repository),
        ),
        (
            "lost",
            "../inner.git",
            "1".repeat(40),
            FetchErrorKind::NotFound(Missing::Commit),
        ),
    ] {
        let mut repository = server.repository(name);
        let files = [
            modules(&[("libs/m", url)]),
            File::submodule("libs/m", &commit),
        ];
        repository.commit("main", &files);
        let fetched = run(&source_of(&server.url(name)), &with(Submodules::SameHost)).await;
        let error = fetched.result.as_ref().unwrap_err();
        assert_eq!(error.kind(), kind, "{}", fetched.error());
        assert_eq!(error.to_string(), "fetch submodule libs/m");
    }
}

#[tokio::test]
async fn addresses_that_are_not_spoken_to_are_skipped_with_their_reason() {
    let server = GitServer::start();
    let commit = inner(&server);
    for (name, url, expected) in [
        ("file", "file:///etc", "neither relative nor https://"),
        (
            "ssh",
            "ssh://git@127.0.0.1/x",
            "neither relative nor https://",
        ),
        ("scp", "git@127.0.0.1:x/y", "neither relative nor https://"),
        ("above", "../../../x", "neither relative nor https://"),
        (
            "user",
            "http://u:secret-1@127.0.0.1/x",
            "neither relative nor https://",
        ),
        (
            "plain",
            "http://example.com/x",
            "plain http to example.com is not allowed",
        ),
        ("metadata", "https://169.254.169.254/x", "169.254.169.254"),
    ] {
        let mut repository = server.repository(name);
        let files = [
            modules(&[("m", url)]),
            File::submodule("m", &commit),
            File::submodule("unnamed", &commit),
        ];
        repository.commit("main", &files);
        let fetched = run(&source_of(&server.url(name)), &with(Submodules::All)).await;
        assert!(fetched.result.is_ok(), "{name}: {}", fetched.error());
        assert!(is_empty(&fetched, "m") && is_empty(&fetched, "unnamed"));
        assert!(fetched.log.contains(expected), "{name}: {}", fetched.log);
        assert!(
            fetched.log.contains(
                "submodule \"unnamed\" is not fetched: .gitmodules has no address for it"
            )
        );
        assert!(!fetched.log.contains("secret-1"));
    }
}

#[tokio::test]
async fn settings_of_submodules_that_attack_git_end_the_fetch() {
    let server = GitServer::start();
    let commit = inner(&server);
    let scratch = testkit::scratch::Scratch::new();
    let marker = scratch.join("ran");
    let touch = format!("touch {}", marker.display());
    for (name, file) in [
        (
            "name",
            File::new(
                ".gitmodules",
                "[submodule \"../../x\"]\n\tpath = m\n\turl = ../inner.git\n",
            ),
        ),
        ("url", modules(&[("m", "-u./x")])),
        (
            "update",
            File::new(
                ".gitmodules",
                format!(
                    "[submodule \"m\"]\n\tpath = m\n\turl = ../inner.git\n\tupdate = !{touch}\n"
                ),
            ),
        ),
        ("link", File::symlink(".gitmodules", "/etc/passwd")),
    ] {
        let mut repository = server.repository(name);
        repository.commit("main", &[file, File::submodule("m", &commit)]);
        let fetched = run(&source_of(&server.url(name)), &with(Submodules::All)).await;
        assert!(fetched.result.is_err(), "{name}: {}", fetched.log);
        assert!(!marker.exists());
    }
}

#[tokio::test]
async fn a_submodule_below_a_link_writes_nothing_where_the_link_leads() {
    let server = GitServer::start();
    let commit = inner(&server);
    let scratch = testkit::scratch::Scratch::new();
    let outside = scratch.path().to_str().unwrap();
    let mut repository = server.repository("project");
    // On a file system without cases, `A` would be `a`, and the submodule would land in the link's place.
    let files = [
        modules(&[("A/m", "../inner.git")]),
        File::symlink("a", outside),
        File::submodule("A/m", &commit),
    ];
    repository.commit("main", &files);
    let fetched = run(&source_of(&server.url("project")), &with(Submodules::All)).await;
    assert_eq!(fetched.read("A/m/i"), "first\n", "{}", fetched.error());
    assert_eq!(std::fs::read_dir(outside).unwrap().count(), 0);
}

#[tokio::test]
async fn more_submodules_than_allowed_end_the_fetch() {
    let server = GitServer::start();
    let commit = inner(&server);
    let paths: Vec<String> = (0..65).map(|n| format!("m{n}")).collect();
    let entries: Vec<(&str, &str)> = paths
        .iter()
        .map(|path| (path.as_str(), "../inner"))
        .collect();
    let _project = project(&server, &entries, &commit);
    let fetched = run(&source_of(&server.url("project")), &with(Submodules::All)).await;
    let limit = matches!(fetched.result, Err(FetchError::Limit { .. }));
    assert!(
        limit && fetched.error().contains("64 submodules"),
        "{}",
        fetched.error()
    );
    let mut below = commit;
    for level in 0..5 {
        let mut repository = server.repository(&format!("level{level}"));
        let url = match level {
            0 => "../inner".to_owned(),
            level => format!("../level{}", level - 1),
        };
        below = repository.commit(
            "main",
            &[modules(&[("m", &url)]), File::submodule("m", &below)],
        );
    }
    let four = run(&source_of(&server.url("level3")), &with(Submodules::All)).await;
    assert_eq!(four.read("m/m/m/m/i"), "first\n", "{}", four.error());
    let five = run(&source_of(&server.url("level4")), &with(Submodules::All)).await;
    assert!(
        five.error().contains("4 levels of submodules"),
        "{}",
        five.error()
    );
}
