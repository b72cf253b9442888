//! COPY and ADD in whole builds: what is in the image, and what the cache makes of changes. Needs to be root, or root of a user
//! namespace.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what went wrong by ending"
)]

mod bench;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use bench::{Bench, Files};
use engine::event::FailureKind;
use engine::sandbox::SecretBytes;
use engine::spec::ExportFormat;
use source::git::Submodules;
use testkit::git_server::{File, GitServer};

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_a_copy_and_nothing_else_makes_it_run_again() {
    let mut bench = Bench::new(&[("d/a", "1"), ("d/b", "2"), ("other", "")]);
    bench.dockerfile("FROM scratch\nCOPY d /d\n");
    let (reasons, _) = bench.reasons().await;
    assert_eq!(reasons, ["not built before"]);
    let mode = |name: &str, mode| {
        fs::set_permissions(bench.path(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    // Times, owners, what is not copied, and the mode of the directory whose contents are copied.
    fs::write(bench.path("d/a"), "1").unwrap();
    std::os::unix::fs::chown(bench.path("d/a"), Some(7), Some(7)).unwrap();
    fs::write(bench.path("other"), "changed").unwrap();
    mode("d", 0o700);
    assert_eq!(bench.reasons().await, (vec![], 1));
    fs::write(bench.path("d/b"), "3").unwrap();
    assert_eq!(bench.reasons().await.0, ["file d/b changed"]);
    let mode = |bench: &Bench, name: &str, mode| {
        fs::set_permissions(bench.path(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(&bench, "d/a", 0o600);
    assert_eq!(bench.reasons().await.0, ["file d/a changed"]);
    fs::rename(bench.path("d/b"), bench.path("d/c")).unwrap();
    assert_eq!(bench.reasons().await.0, ["file d/c was added, and 1 more"]);
    symlink("a", bench.path("d/link")).unwrap();
    assert_eq!(bench.reasons().await.0, ["file d/link was added"]);
    fs::create_dir(bench.path("d/empty")).unwrap();
    assert_eq!(bench.reasons().await.0, ["file d/empty was added"]);
    for (line, reason) in [
        ("COPY --chmod=u=rwX d /d", "the mode changed"),
        ("COPY --chmod=u=rwX --chown=1 d /d", "the ownership changed"),
        (
            "COPY --chmod=u=rwX --chown=1 d /e",
            "the destination changed",
        ),
        (
            "COPY --chmod=u=rwX --chown=1 --exclude=x d /e",
            "what is excluded changed",
        ),
    ] {
        bench.dockerfile(&format!("FROM scratch\n{line}\n"));
        assert_eq!(bench.reasons().await.0, [reason], "{line}");
        assert_eq!(bench.reasons().await.1, 1, "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ignore_files_decide_what_there_is_and_what_changes() {
    let mut bench = Bench::new(&[("a.txt", "a"), ("b.md", "b"), ("s/c.md", "c")]);
    bench.dockerfile("FROM scratch\nCOPY . /x/\n");
    bench.write(
        ".dockerignore",
        "\u{feff}# comment\r\n*.md \r\nDockerfile\r\n.dockerignore\r\n",
    );
    let built = bench.build().await;
    assert_eq!(built.names(), ["x/", "x/a.txt", "x/s/", "x/s/c.md"]);
    // What is ignored may change; a comment in the ignore file may, too.
    bench.write("b.md", "changed");
    bench.write(".dockerignore", "*.md\nDockerfile*\n.dockerignore\n");
    assert_eq!(bench.reasons().await, (vec![], 1));
    bench.write(
        ".dockerignore",
        "**/*.md\n!b.md\nDockerfile*\n.dockerignore\n",
    );
    let built = bench.build().await;
    assert_eq!(built.reasons(), ["file b.md was added, and 1 more"]);
    assert_eq!(built.names(), ["x/", "x/a.txt", "x/b.md", "x/s/"]);
    // The Dockerfile's own goes before the context's.
    bench.write("Dockerfile.dockerignore", "*\n!s/c.md\n");
    let built = bench.build().await;
    assert_eq!(built.names(), ["x/", "x/s/", "x/s/c.md"]);
    bench.dockerfile("FROM scratch\nCOPY a.txt /x/\n");
    let built = bench.build().await;
    let message = &built.failure().message;
    assert!(
        message.contains("\"a.txt\" is excluded by the ignore file"),
        "{message}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_linked_copy_stands_whatever_is_below_it() {
    let mut bench = Bench::new(&[("base", "1"), ("f", "x")]);
    fs::create_dir(bench.path("lower")).unwrap();
    fs::create_dir_all(bench.path("lower/real")).unwrap();
    bench.write("lower/real/below", "");
    symlink("real", bench.path("lower/link")).unwrap();
    bench.dockerfile(
        "FROM scratch AS b\nCOPY base /base\nCOPY lower /\n\
         FROM b\nCOPY --link f /real/sub/f\nCOPY --link f /link/f\nCOPY f /plain\n",
    );
    let built = bench.build().await;
    let files = built.files();
    let names: Vec<_> = files.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "base",
            "link/",
            "link/f",
            "plain",
            "real/",
            "real/below",
            "real/sub/",
            "real/sub/f"
        ]
    );
    bench.write("base", "2");
    let built = bench.build().await;
    // The two links are from the cache, and what is built on other layers is not.
    assert_eq!(
        built.reasons(),
        [
            "file base changed",
            "what it is built on changed",
            "what it is built on changed"
        ]
    );
    assert_eq!(built.image().n_cached, 2);
    assert_eq!(built.files()["base"].text, "2");
    assert_eq!(built.names(), names);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_linked_copy_knows_the_names_below_it_and_with_a_mode_it_is_none() {
    let mut bench = Bench::new(&[("b/etc/passwd", "me:x:5:6::/:\n"), ("f", "x")]);
    fs::create_dir(bench.path("b/real")).unwrap();
    symlink("real", bench.path("b/link")).unwrap();
    bench.dockerfile(
        "FROM scratch AS b\nCOPY b /\n\
         FROM b\nCOPY --link --chown=me f /link/f\n\
         FROM b\nCOPY --link --chmod=640 --chown=me f /link/f\nCOPY --from=1 / /1/\n",
    );
    let built = bench.build().await;
    let files = built.files();
    assert_eq!(files["1/link/f"].owner, (5, 6));
    assert_eq!(
        (files["real/f"].owner, files["real/f"].mode),
        ((5, 6), 0o640)
    );
    bench.write("b/etc/passwd", "me:x:7:8::/:\n");
    let built = bench.build().await;
    assert_eq!(built.files()["1/link/f"].owner, (7, 8));
}

#[tokio::test(flavor = "multi_thread")]
async fn files_in_the_dockerfile_are_copied_with_owner_and_mode() {
    let mut bench = Bench::new(&[("f", "file")]);
    bench.dockerfile(
        "FROM scratch\nARG WHO=you\nCOPY --chown=3:4 --chmod=750 f <<a <<-\"b\" /d/\nhello $WHO\na\n\thello $WHO\nb\n",
    );
    let built = bench.build().await;
    let files = built.files();
    let text = |name: &str| files[name].text.clone();
    assert_eq!(
        (text("d/a"), text("d/b")),
        ("hello you\n".to_owned(), "hello $WHO\n".to_owned())
    );
    for name in ["d/", "d/a", "d/b", "d/f"] {
        assert_eq!(
            (files[name].owner, files[name].mode),
            ((3, 4), 0o750),
            "{name}"
        );
    }
    bench.dockerfile(
        &fs::read_to_string(bench.path("Dockerfile"))
            .unwrap()
            .replace("=you", "=me"),
    );
    assert_eq!(bench.reasons().await.0, ["file a changed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_from_a_url_is_downloaded_once_and_asked_for_ever_after() {
    let files = Files::start().await;
    files.put("/dir/tool.sh", "#!/bin/sh\n");
    let url = format!("{}/dir/tool.sh", files.address);
    let mut bench = Bench::new(&[]);
    bench.dockerfile(&format!(
        "FROM scratch\nADD {url}?x=1 /bin/\nADD {url} /named\n"
    ));
    let built = bench.build().await;
    let found = &built.files()["bin/tool.sh"];
    assert_eq!(
        (found.mode, found.owner, found.mtime),
        (0o600, (0, 0), 1_000_000_000)
    );
    assert_eq!(found.text, "#!/bin/sh\n");
    assert_eq!(built.files()["named"], *found);
    assert_eq!(files.counts(), (2, 2));
    assert_eq!(bench.reasons().await, (vec![], 2));
    assert_eq!(
        files.counts(),
        (2, 0),
        "the server was asked, and sent nothing"
    );
    files.put("/dir/tool.sh", "changed");
    let built = bench.build().await;
    assert_eq!(built.image().n_cached, 0);
    assert_eq!(built.reasons()[0], "file tool.sh changed");
    assert_eq!(built.files()["named"].text, "changed");
    // The same content at another address is the same step.
    files.counts();
    files.put("/other/tool.sh", "changed");
    bench.dockerfile(&format!(
        "FROM scratch\nADD {}/other/tool.sh /bin/\n",
        files.address
    ));
    assert_eq!(bench.reasons().await, (vec![], 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_for_a_host_are_shown_to_it_and_stay_out_of_keys() {
    let files = Files::start().await;
    files.put("/f", "x");
    let mut bench = Bench::new(&[]);
    bench.dockerfile(&format!("FROM scratch\nADD {}/f /f\n", files.address));
    let secret = |text: &str| SecretBytes::new(text.as_bytes().to_vec());
    bench.secrets = [("HTTP_AUTH_TOKEN_127.0.0.1".to_owned(), secret("one\n"))].into();
    assert_eq!(bench.build().await.files()["f"].text, "x");
    bench.secrets = [("HTTP_AUTH_HEADER_127.0.0.1".to_owned(), secret("Basic two"))].into();
    assert_eq!(bench.reasons().await, (vec![], 1));
    bench.secrets = [("HTTP_AUTH_TOKEN_example.com".to_owned(), secret("three"))].into();
    assert_eq!(bench.reasons().await, (vec![], 1));
    assert_eq!(files.shown(), ["Bearer one", "Basic two"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checksum_is_verified_once_and_then_saves_the_request() {
    let files = Files::start().await;
    files.put("/f", "x");
    let sums = [
        "sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881",
        "sha384:d752c2c51fba0e29aa190570a9d4253e44077a058d3297fa3a5630d5bd012622f97c28acaed313b5c83bb990caa7da85",
        "sha512:a4abd4448c49562d828115d13a1fccea927f52b4d5459297f8b43e42da89238bc13626e43dcb38ddb082488927ec904fb42057443983e88585179d50551afe62",
    ];
    for (index, sum) in sums.iter().enumerate() {
        let mut bench = Bench::new(&[]);
        let line = |sum: &str| {
            format!(
                "FROM scratch\nARG SUM={sum}\nADD --checksum=$SUM {}/f /f\n",
                files.address
            )
        };
        bench.dockerfile(&line(sum));
        assert_eq!(bench.build().await.files()["f"].text, "x");
        assert_eq!(files.counts(), (1, 1), "{sum}");
        assert_eq!(bench.reasons().await, (vec![], 1));
        assert_eq!(files.counts(), (0, 0), "{sum}");
        let wrong = sum.replace('a', "0").replace("sh0", "sha");
        bench.dockerfile(&line(&wrong));
        let built = bench.build().await;
        assert_eq!(built.failure().kind, FailureKind::Dockerfile);
        let message = &built.failure().message;
        assert!(
            message.contains("checksum") && message.contains("Dockerfile:3"),
            "{index} {message}"
        );
        files.counts();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn downloads_are_unpacked_when_it_is_asked_for_and_only_then() {
    let files = Files::start().await;
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(1);
    header.set_mode(0o644);
    header.set_cksum();
    archive
        .append_data(&mut header, "inner", &b"x"[..])
        .unwrap();
    files.put("/a.tar", archive.into_inner().unwrap());
    files.put("/a[b]*.txt", "odd");
    let at = &files.address;
    let mut bench = Bench::new(&[]);
    bench.dockerfile(&format!(
        "FROM scratch\nADD {at}/a.tar /1/\nADD --unpack {at}/a.tar /2/\nADD --unpack=false {at}/a.tar /3/\n\
         ADD --chmod=644 --chown=5 {at}/a%5Bb%5D*.txt /4/\n"
    ));
    files.put("/a%5Bb%5D*.txt", "odd");
    let built = bench.build().await;
    let names = built.names();
    assert_eq!(
        names,
        [
            "1/",
            "1/a.tar",
            "2/",
            "2/inner",
            "3/",
            "3/a.tar",
            "4/",
            "4/a[b]*.txt"
        ]
    );
    let odd = &built.files()["4/a[b]*.txt"];
    assert_eq!((odd.mode, odd.owner), (0o644, (5, 5)));
    bench.dockerfile(&format!("FROM scratch\nADD {at}/none /1/\n"));
    let built = bench.build().await;
    assert_eq!(built.failure().kind, FailureKind::Dockerfile);
    let message = &built.failure().message;
    assert!(message.contains("answered with status 404"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn repositories_are_added_at_a_commit_a_branch_or_a_folder() {
    let server = GitServer::start();
    let mut repository = server.repository("r.git");
    let first = repository.commit(
        "main",
        &[
            File::new("a", "1"),
            File::executable("sub/run", "2"),
            File::symlink("sub/out", "/etc/passwd"),
        ],
    );
    repository.tag("v1", &first);
    let url = server.url("r.git");
    let mut bench = Bench::new(&[]);
    bench.dockerfile(&format!(
        "FROM scratch\nADD {url} /all/\nADD {url}#v1:sub /sub\nADD --keep-git-dir {url}#main /git/\n\
         ADD --checksum={} {url}?tag=v1 /sum/\n",
        &first[..8]
    ));
    let built = bench.build().await;
    let files = built.files();
    let names: Vec<_> = files
        .keys()
        .filter(|name| !name.starts_with("git/.git/"))
        .collect();
    assert_eq!(
        names,
        [
            "all/",
            "all/a",
            "all/sub/",
            "all/sub/out",
            "all/sub/run",
            "git/",
            "git/a",
            "git/sub/",
            "git/sub/out",
            "git/sub/run",
            "sub/",
            "sub/out",
            "sub/run",
            "sum/",
            "sum/a",
            "sum/sub/",
            "sum/sub/out",
            "sum/sub/run"
        ]
    );
    assert!(files.contains_key("git/.git/HEAD"));
    assert_eq!(
        (files["all/a"].mode, files["all/sub/run"].mode),
        (0o644, 0o755)
    );
    assert_eq!(files["sub/out"].text, "-> /etc/passwd");
    assert_eq!(bench.reasons().await, (vec![], 4));
    repository.commit("main", &[File::new("a", "changed")]);
    let built = bench.build().await;
    assert_eq!(built.files()["all/a"].text, "changed");
    assert_eq!(built.files()["sum/a"].text, "1");
    // A full commit is fetched once.
    bench.dockerfile(&format!("FROM scratch\nADD {url}#{first} /x/\n"));
    bench.build().await;
    let n = server.requests().len();
    assert_eq!(bench.reasons().await, (vec![], 1));
    assert_eq!(server.requests().len(), n);
}

/// Returns how many requests asked what there is, and how many for files.
fn asked_and_fetched(server: &GitServer, since: usize) -> (usize, usize) {
    let requests = server.requests().split_off(since);
    let n = |end: &str| {
        requests
            .iter()
            .filter(|request| request.path.ends_with(end))
            .count()
    };
    (
        n("info/refs?service=git-upload-pack"),
        n("/git-upload-pack"),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_is_fetched_when_its_commit_is_another_one_and_not_before() {
    let server = GitServer::start();
    let mut repository = server.repository("r.git");
    let first = repository.commit("main", &[File::new("a", "1"), File::new("sub/b", "2")]);
    repository.tag("v1", &first);
    repository.annotated_tag("v2", &first);
    let url = server.url("r.git");
    let mut bench = Bench::new(&[]);
    for reference in ["", "#main", "#v1", "#v2", "#refs/heads/main", "#:sub"] {
        bench.dockerfile(&format!("FROM scratch\nADD {url}{reference} /x/\n"));
        bench.build().await.names();
        let n = server.requests().len();
        assert_eq!(bench.reasons().await, (vec![], 1), "{reference}");
        let protocol_two_asks_by_post = 1;
        let seen = asked_and_fetched(&server, n);
        assert_eq!(seen, (1, protocol_two_asks_by_post), "{reference}");
    }
    // A branch is told by its commit, even if the step is to be run again.
    bench.dockerfile(&format!("FROM scratch\nADD {url}#main /elsewhere/\n"));
    let n = server.requests().len();
    assert_eq!(bench.build().await.files()["elsewhere/a"].text, "1");
    assert!(server.requests().len() > n + 2);
    let latest = repository.commit("main", &[File::new("a", "changed")]);
    assert_eq!(bench.build().await.files()["elsewhere/a"].text, "changed");
    // With the repository's own data, the name under which it was fetched is part of them.
    repository.tag("same", &latest);
    for (name, other) in [("main", "same"), ("same", "main")] {
        bench.dockerfile(&format!(
            "FROM scratch\nADD --keep-git-dir {url}#{name} /x/\n"
        ));
        let files = bench.build().await.files();
        let knows = |name: &str| {
            let end = format!("/{name}");
            let mut own = files.iter().filter(|(path, _)| path.starts_with("x/.git/"));
            own.any(|(path, file)| path.ends_with(&end) || file.text.contains(&end))
        };
        assert!(knows(name) && !knows(other), "{name}: {:?}", files.keys());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn submodules_of_an_added_repository_are_the_operators_choice_and_the_lines() {
    let server = GitServer::start();
    let inner = server
        .repository("inner")
        .commit("main", &[File::new("i", "1")]);
    let modules = "[submodule \"m\"]\n\tpath = m\n\turl = ../inner.git\n";
    let files = [
        File::new(".gitmodules", modules),
        File::submodule("m", &inner),
    ];
    let commit = server.repository("r").commit("main", &files);
    let url = server.url("r");
    let mut bench = Bench::new(&[]);
    let plain = format!("FROM scratch\nADD {url}#{commit} /x/\n");
    bench.dockerfile(&format!("FROM scratch\nADD {url}?submodules=1 /x/\n"));
    let built = bench.build().await;
    let message = &built.failure().message;
    assert!(message.contains("git.submodules"), "{message}");
    bench.dockerfile(&plain);
    let without = ["x/", "x/.gitmodules", "x/m/"];
    assert_eq!(bench.build().await.names(), without);
    // What was found without them is not taken for what there is with them.
    bench.fetch.submodules = Submodules::SameHost;
    let with = ["x/", "x/.gitmodules", "x/m/", "x/m/i"];
    assert_eq!(bench.build().await.names(), with);
    bench.dockerfile(&format!("FROM scratch\nADD {url}?submodules=1 /x/\n"));
    assert_eq!(bench.build().await.names(), with);
    bench.dockerfile(&format!("FROM scratch\nADD {url}?submodules=0 /x/\n"));
    assert_eq!(bench.build().await.names(), without);
}

#[tokio::test(flavor = "multi_thread")]
async fn repositories_that_are_not_what_was_asked_for_are_refused() {
    let server = GitServer::start();
    let mut repository = server.repository("r.git");
    let commit = repository.commit("main", &[File::new("a", "1"), File::symlink("out", "/")]);
    let url = server.url("r.git");
    let mut bench = Bench::new(&[]);
    for (source, words) in [
        (format!("--checksum=0000000 {url}"), commit.as_str()),
        (format!("{url}#none"), "none"),
        (format!("{url}#main:missing"), "missing"),
        (format!("{url}#main:a"), "folder \"a\""),
        (format!("{url}#{}?", "0".repeat(40)), "0000"),
    ] {
        bench.dockerfile(&format!("FROM scratch\nADD {source} /x/\n"));
        let built = bench.build().await;
        let message = &built.failure().message;
        assert!(message.contains(words), "{source}: {message}");
    }
    // A link in a repository leads to nothing but the repository.
    bench.dockerfile(&format!("FROM scratch\nADD {url}#main:out /x/\n"));
    assert_eq!(bench.build().await.names(), ["x/", "x/a", "x/out"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_no_layer_can_hold_are_the_authors_fault() {
    let mut bench = Bench::new(&[("d/.wh.x", "")]);
    bench.dockerfile("FROM scratch\nCOPY d /\n");
    let built = bench.build().await;
    assert_eq!(built.failure().kind, FailureKind::Dockerfile);
    let message = &built.failure().message;
    assert!(
        message.contains(".wh.") && message.contains("Dockerfile:2"),
        "{message}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_order_in_which_files_were_made_is_nowhere_in_the_image() {
    let names = ["d/a", "d/b/c", "d/b/d", "d/e", "z", "y/x"];
    let mut digests = Vec::new();
    for turn in [0, 1] {
        let mut bench = Bench::new(&[]);
        let mut order = names.to_vec();
        if turn == 1 {
            order.reverse();
        }
        for name in order {
            bench.write(name, name);
        }
        bench.dockerfile(
            "FROM scratch\nARG SOURCE_DATE_EPOCH\nCOPY . /x/\nCOPY --link --parents d/b y /p/\n",
        );
        bench.write(".dockerignore", "Dockerfile");
        bench.epoch = Some(1_700_000_000);
        digests.push(bench.build().await.image().digest.clone());
    }
    assert_eq!(digests[0], digests[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_steps_that_make_the_same_layer_make_one_image() {
    let mut bench = Bench::new(&[("f", "x"), ("g", "y")]);
    bench.dockerfile("FROM scratch\nCOPY f /f\nCOPY g /g\nCOPY f /f\nCOPY g /h\n");
    let built = bench.build().await;
    assert_eq!(built.names(), ["f", "g", "h"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_is_larger_than_allowed_fails_in_words_and_leaves_nothing() {
    let hash = |n: u32| oci::Digest::sha256(&n.to_le_bytes()).hex().to_owned();
    let noise: String = (0..2000).map(hash).collect();
    let mut bench = Bench::new(&[("a", &noise)]);
    bench.dockerfile("FROM scratch\nCOPY a /\n");
    for format in [ExportFormat::Tar, ExportFormat::Oci, ExportFormat::Docker] {
        bench.format = format;
        bench.limits.export_bytes = 20_000;
        let refused = bench.build().await;
        let failure = refused.failure();
        assert_eq!(failure.kind, FailureKind::Dockerfile, "{failure:?}");
        assert!(
            failure
                .message
                .contains("larger than 20000 bytes (limits.export_bytes)"),
            "{failure:?}"
        );
        assert!(!refused.has_output(), "{format:?}");
        bench.limits.export_bytes = 1 << 20;
        let exported = bench.build().await;
        exported.image();
        assert!(exported.has_output(), "{format:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_shared_memory_than_allowed_is_refused_before_anything_runs() {
    let mut bench = Bench::new(&[("a", "")]);
    bench.dockerfile("FROM scratch\nCOPY a /\n");
    bench.shm_bytes = Some(bench.limits.step_shm_bytes);
    bench.build().await.image();
    bench.shm_bytes = Some(bench.limits.step_shm_bytes + 1);
    let refused = bench.build().await;
    let failure = refused.failure();
    assert_eq!(failure.kind, FailureKind::Dockerfile);
    assert!(
        failure.message.contains("limits.step_shm_bytes"),
        "{failure:?}"
    );
}
