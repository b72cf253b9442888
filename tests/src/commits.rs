//! A commit that was built from before: nothing of it is fetched unless a step needs its files, and nobody builds it who may not read it.

use api::builder::{BuildRequest, BuildStatus};
use testkit::bases;
use testkit::docker_registry::DockerRegistry;
use testkit::git_server::{File, GitServer};

use crate::command::{Bench, Ended};
use crate::reader;
use crate::scene::{Scene, Target, request, set_password};

/// What the log says of a commit that is known, and of one that is fetched before any step, or after all.
const KNOWN: &str = "was fetched before";
const FETCHING: &str = "fetching http";
const AFTER_ALL: &str = "[internal] fetch build context";

struct World {
    bench: Bench,
    git: GitServer,
}

impl World {
    fn new() -> Self {
        Self {
            bench: Bench::new(),
            git: GitServer::start(),
        }
    }

    fn commit(&self, files: &[File]) -> String {
        self.git.repository("app").commit("main", files)
    }

    fn build(&self, fragment: &str, arguments: &[&str]) -> Ended {
        let url = format!("{}#{fragment}", self.git.url("app"));
        let arguments = ["--progress=plain", "-o", "type=oci,dest=image.tar", &url]
            .into_iter()
            .chain(arguments.iter().copied());
        self.bench.build(&arguments.collect::<Vec<_>>()).well()
    }

    /// Returns how many requests fetched something.
    fn n_fetches(&self) -> usize {
        let requests = self.git.requests();
        let posts = requests.iter().filter(|request| request.method == "POST");
        // With the second version of the protocol, names are asked for in the same way: twice for a question, three times for a fetch.
        posts.count()
    }
}

fn digest(ended: &Ended) -> &str {
    let said = ended.stderr.split_once("built sha256:").unwrap().1;
    said.split(':').next().unwrap()
}

#[test]
fn what_is_in_the_cache_is_built_without_a_fetch_and_what_is_not_is_right_all_the_same() {
    let world = World::new();
    let base = &world.bench.base;
    let dockerfile = format!(
        "FROM {base}\nARG NAME=one\nCOPY . /app\nRUN --mount=type=bind,target=/in cat /in/sub/data /app/data > /$NAME; ls -a /app > /listed\n"
    );
    let files = |data: &str| {
        [
            File::new("Dockerfile", dockerfile.as_str()),
            File::new(".dockerignore", "ignored\n"),
            File::new("ignored", "ignored\n"),
            File::new("data", data),
            File::new("sub/data", "below\n"),
            File::symlink("link", "data"),
        ]
    };
    let commit = world.commit(&files("first\n"));
    let first = world.build("main", &[]);
    assert!(first.stderr.contains(FETCHING), "{}", first.stderr);
    for fragment in ["main", &commit] {
        let before = world.n_fetches();
        let again = world.build(fragment, &[]);
        assert_eq!(digest(&again), digest(&first));
        let said = &again.stderr;
        assert!(said.contains(KNOWN), "{said}");
        assert!(
            !said.contains(FETCHING) && !said.contains(AFTER_ALL),
            "{said}"
        );
        assert!(world.n_fetches() - before <= 1, "{said}");
        assert!(
            said.contains(&format!("context is commit {commit}")),
            "{said}"
        );
    }
    // A step that is not in the cache gets its files.
    let other = world.build("main", &["--build-arg=NAME=two"]);
    let said = &other.stderr;
    assert!(said.contains(KNOWN) && said.contains(AFTER_ALL), "{said}");
    let forced = world.build("main", &["--build-arg=NAME=two", "--no-cache"]);
    assert_eq!(
        digest(&forced),
        digest(&other),
        "as if it were for the first time"
    );

    // The branch moves on: another commit is another context, and what is the same in it is still in the cache.
    world.commit(&files("second\n"));
    let second = world.build("main", &[]);
    assert!(second.stderr.contains(FETCHING), "{}", second.stderr);
    assert_ne!(digest(&second), digest(&first));
}

#[test]
fn a_commit_whose_files_are_not_its_own_alone_is_fetched_each_time() {
    let world = World::new();
    let base = &world.bench.base;
    let dockerfile = format!("FROM {base}\nCOPY . /app\n");
    // A link has a say in what the Dockerfile is.
    world.commit(&[
        File::new("real", dockerfile.as_str()),
        File::symlink("Dockerfile", "real"),
        File::new("plain/Dockerfile", dockerfile.as_str()),
    ]);
    for _ in 0..2 {
        let said = world.build("main", &[]).stderr;
        assert!(said.contains(FETCHING) && !said.contains(KNOWN), "{said}");
    }
    // A folder in which none does; with `.git`, or without: these are not the same files.
    for arguments in [&[][..], &["--build-arg=BUILDKIT_CONTEXT_KEEP_GIT_DIR=1"]] {
        let first = world.build("main:plain", arguments);
        assert!(first.stderr.contains(FETCHING), "{}", first.stderr);
        let again = world.build("main:plain", arguments);
        let said = &again.stderr;
        assert!(said.contains(KNOWN) && !said.contains(FETCHING), "{said}");
        assert_eq!(digest(&again), digest(&first));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_read_a_repository_does_not_build_what_others_have_fetched_of_it() {
    let scene = Scene::around(DockerRegistry::start(), Target::Embedded, "");
    let base = scene.base(&bases::busybox(), "base/busybox:1");
    let git = GitServer::with_basic_auth("user", "battery staple");
    let dockerfile = format!("FROM {base}\nCOPY . /app\n");
    let commit = git
        .repository("app")
        .commit("main", &[File::new("Dockerfile", dockerfile)]);
    let ask = async |password: Option<&str>| {
        let mut asked = request(&git.url("app"), &commit);
        if let Some(password) = password {
            set_password(&mut asked, "user", password);
        }
        scene
            .build(BuildRequest {
                force_rebuild: true,
                ..asked
            })
            .await
    };
    let first = ask(Some("battery staple")).await;
    let again = ask(Some("battery staple")).await;
    let log = scene.log(&again.build_id().unwrap()).await;
    assert!(log.contains(KNOWN), "{log}");
    assert_eq!(
        reader::digest(&again.image(), None),
        reader::digest(&first.image(), None)
    );
    for password in [None, Some("wrong")] {
        let refused = ask(password).await;
        assert_eq!(refused.last().status(), BuildStatus::DoneFailure);
        let log = scene.log(&refused.build_id().unwrap()).await;
        assert!(!log.contains(KNOWN), "{log}");
    }
}
