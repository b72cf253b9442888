//! Files kept with LFS: what they become, who is asked for them, and what lies get.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt as _;

use source::git::{FetchError, FetchErrorKind, FetchOptions, GitAuth, GitSource, Lfs};
use testkit::git_server::{File, FileMode, GitServer, LfsObject};

use super::{Fetched, quick, run, source_of};

const PASSWORD: &str = "pass-4711";
const ATTRIBUTES: &str = "*.bin filter=lfs diff=lfs merge=lfs -text\n";

fn on() -> FetchOptions {
    FetchOptions {
        lfs: Lfs::On,
        ..quick()
    }
}

fn oid(content: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, content);
    let mut text = String::new();
    for byte in digest.as_ref() {
        write!(text, "{byte:02x}").unwrap();
    }
    text
}

fn pointer(content: &[u8]) -> String {
    format!(
        "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {}\n",
        oid(content),
        content.len()
    )
}

/// Makes `project`, whose `big.bin` stands for `content`.
fn project(server: &GitServer, content: &[u8]) {
    let files = [
        File::new(".gitattributes", ATTRIBUTES),
        File::new("big.bin", pointer(content)),
        File::new("plain.txt", pointer(content)),
    ];
    server.repository("project").commit("main", &files);
}

fn asked_for_objects(server: &GitServer) -> usize {
    let requests = server.requests();
    let objects = requests.iter().filter(|asked| asked.path.contains("lfs"));
    objects.count()
}

#[tokio::test]
async fn pointers_become_their_files_and_only_where_an_attribute_says_so() {
    let server = GitServer::start();
    let content = vec![7; 300_000];
    server.keep(&oid(&content), LfsObject::Content(content.clone()));
    server.keep(&oid(b"other\n"), LfsObject::Content(b"other\n".to_vec()));
    let files = [
        File::new(".gitattributes", ATTRIBUTES),
        File::new("a/big.bin", pointer(&content)),
        File {
            mode: FileMode::Executable,
            ..File::new("a/same.bin", pointer(&content))
        },
        File::new("other.bin", pointer(b"other\n")),
        File::new("no-pointer.bin", "just so\n"),
        File::symlink("link.bin", "other.bin"),
        File::new("plain.txt", pointer(&content)),
    ];
    server.repository("project").commit("main", &files);
    let fetched = run(&source_of(&server.url("project")), &on()).await;
    assert!(fetched.result.is_ok(), "{}", fetched.error());
    let path = |name: &str| fetched.workspace().join(name);
    for name in ["a/big.bin", "a/same.bin"] {
        assert!(std::fs::read(path(name)).unwrap() == content, "{name}");
    }
    assert_eq!(fetched.read("link.bin"), "other\n");
    assert_eq!(fetched.read("no-pointer.bin"), "just so\n");
    assert_eq!(fetched.read("plain.txt"), pointer(&content));
    let mode = |name: &str| path(name).metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("a/big.bin"), mode("a/same.bin")), (0o644, 0o755));
    assert!(!path(".git/kiln-lfs").exists() && !path(".git/kiln-lfs.copy").exists());
    // One question, and each object once.
    assert_eq!(asked_for_objects(&server), 3);
}

#[tokio::test]
async fn without_a_word_in_the_configuration_pointers_stay_and_the_log_says_so() {
    let server = GitServer::start();
    project(&server, b"big\n");
    let fetched = run(&source_of(&server.url("project")), &quick()).await;
    assert_eq!(
        fetched.read("big.bin"),
        pointer(b"big\n"),
        "{}",
        fetched.error()
    );
    assert!(!fetched.result.as_ref().unwrap().is_all);
    let said = "big.bin is kept with LFS and stays a pointer";
    assert!(fetched.log.contains(said), "{}", fetched.log);
    assert!(!fetched.log.contains("plain.txt"), "{}", fetched.log);
    assert_eq!(asked_for_objects(&server), 0);
}

#[tokio::test]
async fn the_credential_opens_the_service_and_goes_to_no_other_host() {
    let server = GitServer::with_basic_auth("user", PASSWORD);
    let other = GitServer::start();
    let content = b"elsewhere\n";
    other.keep(&oid(content), LfsObject::Content(content.to_vec()));
    let elsewhere = format!("http://{}/lfs-objects/{}", other.host(), oid(content));
    project(&server, content);
    let source = GitSource {
        auth: GitAuth::Basic {
            user: "user".to_owned(),
            password: PASSWORD.to_owned(),
        },
        ..source_of(&server.url("project"))
    };
    server.keep(&oid(content), LfsObject::Content(content.to_vec()));
    assert_eq!(run(&source, &on()).await.read("big.bin"), "elsewhere\n");
    server.keep(&oid(content), LfsObject::At(elsewhere.clone()));
    let fetched = run(&source, &on()).await;
    assert_eq!(
        fetched.read("big.bin"),
        "elsewhere\n",
        "{}",
        fetched.error()
    );
    // A redirect takes no header along, so that this server, which wants one, refuses.
    server.keep(&oid(content), LfsObject::Redirect(elsewhere));
    let fetched = run(&source, &on()).await;
    let error = fetched.result.as_ref().unwrap_err();
    assert_eq!(error.kind(), FetchErrorKind::Unauthorized, "{error}");
    let requests = other.requests();
    assert_eq!(requests.len(), 2);
    assert!(requests.iter().all(|asked| asked.authorization.is_none()));
}

async fn with_object(object: LfsObject, options: &FetchOptions) -> Fetched {
    let server = GitServer::start();
    project(&server, b"honest\n");
    server.keep(&oid(b"honest\n"), object);
    let fetched = run(&source_of(&server.url("project")), options).await;
    assert_eq!(fetched.read("big.bin"), pointer(b"honest\n"));
    fetched
}

#[tokio::test]
async fn content_that_is_not_the_pointer_s_never_takes_its_place() {
    for content in ["hones\n", "Honest\n", "honest\n and more", ""] {
        let object = LfsObject::Content(content.as_bytes().to_vec());
        let fetched = with_object(object, &on()).await;
        let hostile = matches!(fetched.result, Err(FetchError::Hostile { .. }));
        assert!(hostile, "{content:?}: {}", fetched.error());
    }
}

#[tokio::test]
async fn objects_that_are_nowhere_or_where_nobody_connects_are_errors() {
    for (url, expected) in [
        ("file:///etc/passwd", "not acceptable"),
        ("http://example.com/x", "not acceptable"),
        ("https://user:secret-1@example.com/x", "not acceptable"),
        ("https://169.254.169.254/secret-1", "169.254.169.254"),
        (
            "https://[::ffff:169.254.169.254]/secret-1",
            "not connected to",
        ),
    ] {
        let fetched = with_object(LfsObject::At(url.to_owned()), &on()).await;
        assert!(
            fetched.error().contains(expected),
            "{url}: {}",
            fetched.error()
        );
        let shown = fetched.error() + &fetched.log;
        assert!(!shown.contains("secret-1"), "{shown}");
        let fetched = with_object(LfsObject::Redirect(url.to_owned()), &on()).await;
        assert!(
            fetched.error().contains(expected),
            "{url}: {}",
            fetched.error()
        );
    }
    let server = GitServer::start();
    project(&server, b"lost\n");
    let fetched = run(&source_of(&server.url("project")), &on()).await;
    assert!(
        fetched.error().contains("there is no object"),
        "{}",
        fetched.error()
    );
}

#[tokio::test]
async fn pointers_to_more_than_the_limit_are_not_followed() {
    let server = GitServer::start();
    let oid = oid(b"x");
    let huge = format!(
        "version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {}\n",
        u64::MAX
    );
    let files = [
        File::new(".gitattributes", ATTRIBUTES),
        File::new("a.bin", huge.clone()),
        File::new("b.bin", huge),
    ];
    server.repository("project").commit("main", &files);
    let fetched = run(&source_of(&server.url("project")), &on()).await;
    let error = fetched.result.as_ref().unwrap_err();
    assert_eq!(error.kind(), FetchErrorKind::Limit, "{error}");
    assert_eq!(asked_for_objects(&server), 0);
}

#[tokio::test]
async fn the_settings_of_a_repository_choose_no_other_service() {
    let server = GitServer::start();
    let other = GitServer::start();
    let config = format!("[lfs]\n\turl = http://{}/x/info/lfs\n", other.host());
    let files = [
        File::new(".gitattributes", ATTRIBUTES),
        File::new(".lfsconfig", config),
        File::new("big.bin", pointer(b"big\n")),
    ];
    server.repository("project").commit("main", &files);
    server.keep(&oid(b"big\n"), LfsObject::Content(b"big\n".to_vec()));
    let fetched = run(&source_of(&server.url("project")), &on()).await;
    assert_eq!(fetched.read("big.bin"), "big\n", "{}", fetched.error());
    assert_eq!(other.requests(), []);
}
