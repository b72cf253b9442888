//! Finds out what a target names and fetches it. All the network traffic of git is here.

use super::auth::Credential;
use super::classify;
use super::command::{Failure, Git, Outcome, Reach};
use super::error::FetchError;
use super::http;
use super::refname::{self, CommitName};
use super::remote::RemoteUrl;
use super::{Depth, GitSource, Session, TargetMode};

/// Most bytes of an answer that is one line or a few.
pub(super) const SMALL_OUTPUT_BYTES: usize = 64 * 1024;

/// Where branches of the remote are kept.
const BRANCHES: &str = "refs/remotes/origin/";

/// All branches, as a refspec.
const ALL_BRANCHES: &str = "+refs/heads/*:refs/remotes/origin/*";

/// All tags, as a refspec.
const ALL_TAGS: &str = "+refs/tags/*:refs/tags/*";

/// Where something is kept that has no name of its own here.
const SCRATCH: &str = "refs/kiln/target";

/// What to check out.
#[derive(Debug)]
pub(super) struct Found {
    /// The commit, in full.
    pub(super) commit: String,
    /// The local branch to make; none leaves HEAD detached.
    pub(super) branch: Option<String>,
}

/// Fetches what `source` names.
pub(super) async fn fetch_target(
    git: &Git<'_>,
    session: &Session<'_>,
    source: &GitSource,
    credential: Option<&Credential>,
) -> Result<Found, FetchError> {
    let fetcher = Fetcher {
        git,
        session,
        source,
    };
    match fetcher.target().await {
        Err(FetchError::Redirected { url }) => {
            fetcher.follow(url, credential).await?;
            fetcher.target().await
        }
        result => result,
    }
}

/// Asks which commit the target of `source` is; fetches nothing. `None` when the server cannot be asked, or has no such name.
pub(super) async fn look_up_target(
    git: &Git<'_>,
    session: &Session<'_>,
    source: &GitSource,
    credential: Option<&Credential>,
) -> Result<Option<String>, FetchError> {
    let fetcher = Fetcher {
        git,
        session,
        source,
    };
    match fetcher.advertised_target().await {
        Err(FetchError::Redirected { url }) => {
            fetcher.follow(url, credential).await?;
            fetcher.advertised_target().await
        }
        result => result,
    }
}

/// Fetches all branches of the upstream repository.
pub(super) async fn fetch_upstream(
    git: &Git<'_>,
    session: &Session<'_>,
    upstream: &RemoteUrl,
    depth: Depth,
) -> Result<(), FetchError> {
    git.remark(&format!("fetching upstream {upstream}"));
    let arguments = fetch_arguments(
        depth,
        "upstream",
        &["+refs/heads/*:refs/remotes/upstream/*"],
    );
    match retry(git, session, &arguments).await? {
        Ok(_) => Ok(()),
        Err(failure) => Err(classify::explain(upstream.as_str(), &failure)),
    }
}

/// The target's fetch.
struct Fetcher<'a> {
    git: &'a Git<'a>,
    session: &'a Session<'a>,
    source: &'a GitSource,
}

impl Fetcher<'_> {
    /// Goes where the server says that the repository is, if that is the same server.
    async fn follow(&self, url: String, credential: Option<&Credential>) -> Result<(), FetchError> {
        let remote = &self.source.remote;
        let hop = http::same_origin_hop(self.session, remote, credential).await;
        let hop = hop.ok_or(FetchError::Redirected { url })?;
        self.git.remark(&format!("{remote} is at {hop}"));
        let arguments = ["remote", "set-url", "origin", hop.as_str()];
        self.git
            .expect(Reach::Local, &arguments, SMALL_OUTPUT_BYTES)
            .await
            .map(drop)
    }

    /// Asks for the commit that a fetch by the mode of the request would find.
    async fn advertised_target(&self) -> Result<Option<String>, FetchError> {
        let target = self.source.target.as_str();
        match self.source.target_mode {
            TargetMode::RemoteHead | TargetMode::LocalBranch => {
                let output = self
                    .network(&["ls-remote", "--quiet", "--symref", "origin", "HEAD"])
                    .await?;
                let (_, commit) = self.advertised_head(&String::from_utf8_lossy(&output))?;
                Ok(commit)
            }
            TargetMode::RemoteBranch => self.advertised(&[format!("refs/heads/{target}")]).await,
            TargetMode::RemoteCommit => match refname::parse_commit_name(target) {
                Some(CommitName::Full(commit)) => {
                    self.network(&["ls-remote", "--quiet", "origin", "HEAD"])
                        .await?;
                    Ok(Some(commit))
                }
                Some(CommitName::Abbreviated(_)) | None => Ok(None),
                Some(CommitName::Reference(name)) => {
                    self.advertised(&[format!("{name}^{{}}"), name.to_owned()])
                        .await
                }
                Some(CommitName::Short(name)) => {
                    let tag = format!("refs/tags/{name}");
                    let names = [format!("{tag}^{{}}"), tag, format!("refs/heads/{name}")];
                    self.advertised(&names).await
                }
            },
        }
    }

    /// Asks for the first of `names` that the remote has.
    async fn advertised(&self, names: &[String]) -> Result<Option<String>, FetchError> {
        let mut arguments = vec!["ls-remote", "--quiet", "--", "origin"];
        arguments.extend(names.iter().map(String::as_str));
        let output = self.network(&arguments).await?;
        let text = String::from_utf8_lossy(&output);
        // The names are taken for ends of names.
        let commit_of = |wanted: &String| {
            text.lines().find_map(|line| {
                let (commit, name) = line.split_once('\t')?;
                (name == wanted && refname::is_full_commit(commit)).then(|| commit.to_owned())
            })
        };
        Ok(names.iter().find_map(commit_of))
    }

    /// Fetches by the mode of the request.
    async fn target(&self) -> Result<Found, FetchError> {
        let target = self.source.target.as_str();
        self.git.remark(&format!(
            "fetching {} ({})",
            self.source.remote,
            self.describe()
        ));
        match self.source.target_mode {
            TargetMode::RemoteHead => self.head().await,
            TargetMode::LocalBranch => {
                let head = self.head().await?;
                Ok(Found {
                    branch: Some(target.to_owned()),
                    ..head
                })
            }
            TargetMode::RemoteBranch => {
                self.branch(target)
                    .await?
                    .ok_or_else(|| FetchError::BranchNotFound {
                        url: self.url(),
                        branch: target.to_owned(),
                    })
            }
            TargetMode::RemoteCommit => match refname::parse_commit_name(target) {
                Some(CommitName::Full(commit)) => self.full_commit(commit).await,
                Some(CommitName::Abbreviated(prefix)) => self.abbreviated_commit(&prefix).await,
                Some(CommitName::Reference(name)) => self
                    .reference(name, SCRATCH)
                    .await?
                    .ok_or_else(|| self.no_commit()),
                Some(CommitName::Short(name)) => self.short_name(name).await,
                None => Err(self.no_commit()),
            },
        }
    }

    /// Returns the target in words.
    fn describe(&self) -> String {
        let target = &self.source.target;
        match self.source.target_mode {
            TargetMode::RemoteHead if target.is_empty() => "HEAD".to_owned(),
            TargetMode::RemoteHead => "HEAD; the target given with it is not used".to_owned(),
            TargetMode::RemoteCommit => format!("commit {target}"),
            TargetMode::RemoteBranch => format!("branch {target}"),
            TargetMode::LocalBranch => format!("HEAD as branch {target}"),
        }
    }

    /// Fetches what the remote's HEAD points to.
    async fn head(&self) -> Result<Found, FetchError> {
        let output = self
            .network(&["ls-remote", "--quiet", "--symref", "origin", "HEAD"])
            .await?;
        let (branch, commit) = self.advertised_head(&String::from_utf8_lossy(&output))?;
        if commit.is_none() {
            return Err(FetchError::RepositoryNotFound {
                url: self.url(),
                detail: "it has no commit".to_owned(),
            });
        }
        let Some(branch) = branch else {
            let found = self.reference("HEAD", SCRATCH).await?;
            return found.ok_or_else(|| FetchError::RepositoryNotFound {
                url: self.url(),
                detail: "it has no commit".to_owned(),
            });
        };
        let found = self.branch(&branch).await?;
        let found = found.ok_or_else(|| FetchError::BranchNotFound {
            url: self.url(),
            branch: branch.clone(),
        })?;
        let name = format!("{BRANCHES}{branch}");
        self.git
            .expect(
                Reach::Local,
                &["symbolic-ref", "refs/remotes/origin/HEAD", &name],
                SMALL_OUTPUT_BYTES,
            )
            .await?;
        Ok(found)
    }

    /// Reads the answer about HEAD, believing none of it.
    fn advertised_head(&self, text: &str) -> Result<(Option<String>, Option<String>), FetchError> {
        let hostile = |what| FetchError::Hostile {
            url: self.url(),
            what,
        };
        let (mut branch, mut commit) = (None, None);
        for line in text.lines() {
            let Some((value, "HEAD")) = line.split_once('\t') else {
                continue;
            };
            if let Some(name) = value.strip_prefix("ref: ") {
                let name = name
                    .strip_prefix("refs/heads/")
                    .ok_or_else(|| hostile("HEAD points outside the branches"))?;
                if !refname::is_valid(name) {
                    return Err(hostile("HEAD points to an invalid branch name"));
                }
                branch = Some(name.to_owned());
            } else if refname::is_full_commit(value) {
                commit = Some(value.to_owned());
            } else {
                return Err(hostile("HEAD is not a SHA-1 object name"));
            }
        }
        Ok((branch, commit))
    }

    /// Fetches a branch; `None` when the remote has none of that name.
    async fn branch(&self, name: &str) -> Result<Option<Found>, FetchError> {
        let kept = format!("{BRANCHES}{name}");
        let found = match self.source.depth {
            Depth::Shallow => self.reference(&format!("refs/heads/{name}"), &kept).await?,
            Depth::Full => {
                self.everything().await?;
                self.peel(&kept).await?.map(|commit| Found {
                    commit,
                    branch: None,
                })
            }
        };
        Ok(found.map(|found| Found {
            branch: Some(name.to_owned()),
            ..found
        }))
    }

    /// Fetches the reference `name` and keeps it as `kept`; `None` when the remote has none of that name.
    async fn reference(&self, name: &str, kept: &str) -> Result<Option<Found>, FetchError> {
        let refspec = format!("+{name}:{kept}");
        match self.fetch(self.source.depth, &[&refspec]).await? {
            Ok(_) => {}
            Err(failure) if classify::is_missing_reference(&failure) => return Ok(None),
            Err(failure) => return Err(self.git.explain(&failure)),
        }
        let what = "not a commit";
        let commit = self
            .peel(kept)
            .await?
            .ok_or_else(|| FetchError::NotACommit {
                url: self.url(),
                target: name.to_owned(),
                what,
            })?;
        Ok(Some(Found {
            commit,
            branch: None,
        }))
    }

    /// Fetches a tag, else a branch of that name.
    async fn short_name(&self, name: &str) -> Result<Found, FetchError> {
        let tag = format!("refs/tags/{name}");
        if let Some(found) = self.reference(&tag, &tag).await? {
            return Ok(found);
        }
        let found = self.branch(name).await?.ok_or_else(|| self.no_commit())?;
        Ok(Found {
            branch: None,
            ..found
        })
    }

    /// Fetches exactly `commit`: by its name, else, where a server does not allow that, with everything there is.
    async fn full_commit(&self, commit: String) -> Result<Found, FetchError> {
        if self.source.depth == Depth::Full {
            self.everything().await?;
        }
        if self.peel(&commit).await?.is_none() {
            match self.fetch(self.source.depth, &[&commit]).await? {
                Ok(_) => {}
                Err(failure) if classify::is_refused_object(&failure) => {
                    if self.source.depth == Depth::Shallow {
                        self.git.remark(
                            "the server does not hand out single commits; fetching everything",
                        );
                        self.everything().await?;
                    }
                }
                Err(failure) => return Err(self.git.explain(&failure)),
            }
        }
        match self.peel(&commit).await? {
            Some(found) if found == commit => Ok(Found {
                commit,
                branch: None,
            }),
            Some(_) => Err(FetchError::NotACommit {
                url: self.url(),
                target: commit,
                what: "a tag, not a commit",
            }),
            None if self.exists(&commit).await? => Err(FetchError::NotACommit {
                url: self.url(),
                target: commit,
                what: "not a commit",
            }),
            None => Err(self.no_commit()),
        }
    }

    /// Fetches everything and looks for the one commit that begins with `prefix`.
    async fn abbreviated_commit(&self, prefix: &str) -> Result<Found, FetchError> {
        self.everything().await?;
        // `rev-parse prefix^{commit}` would take a branch or tag that is named like the prefix.
        let argument = format!("--disambiguate={prefix}");
        let names = self
            .git
            .expect(Reach::Local, &["rev-parse", &argument], SMALL_OUTPUT_BYTES)
            .await?;
        let mut commits = Vec::new();
        for name in String::from_utf8_lossy(&names).lines() {
            // A tag object that happens to begin so is not what was meant: its own name is not a commit's.
            if refname::is_full_commit(name) && self.peel(name).await?.as_deref() == Some(name) {
                commits.push(name.to_owned());
            }
        }
        match (commits.pop(), commits.is_empty()) {
            (Some(commit), true) => Ok(Found {
                commit,
                branch: None,
            }),
            (None, _) => Err(self.no_commit()),
            (Some(_), false) => Err(FetchError::NotACommit {
                url: self.url(),
                target: prefix.to_owned(),
                what: "an ambiguous abbreviation",
            }),
        }
    }

    /// Fetches all branches and tags with their history.
    async fn everything(&self) -> Result<(), FetchError> {
        match self.fetch(Depth::Full, &[ALL_BRANCHES, ALL_TAGS]).await? {
            Ok(_) => Ok(()),
            Err(failure) => Err(self.git.explain(&failure)),
        }
    }

    /// Returns the commit that `name` stands for here, if it does.
    async fn peel(&self, name: &str) -> Result<Option<String>, FetchError> {
        let name = format!("{name}^{{commit}}");
        let outcome = self
            .git
            .attempt(
                Reach::Local,
                &[
                    "rev-parse",
                    "--verify",
                    "--quiet",
                    "--end-of-options",
                    &name,
                ],
                SMALL_OUTPUT_BYTES,
            )
            .await?;
        let Ok(output) = outcome else { return Ok(None) };
        let commit = String::from_utf8_lossy(&output).trim().to_owned();
        Ok(refname::is_full_commit(&commit).then_some(commit))
    }

    /// Returns whether there is an object of that name.
    async fn exists(&self, object: &str) -> Result<bool, FetchError> {
        Ok(self
            .git
            .attempt(
                Reach::Local,
                &["cat-file", "-e", object],
                SMALL_OUTPUT_BYTES,
            )
            .await?
            .is_ok())
    }

    /// Runs `git fetch` from origin.
    async fn fetch(&self, depth: Depth, refspecs: &[&str]) -> Result<Outcome, FetchError> {
        retry(
            self.git,
            self.session,
            &fetch_arguments(depth, "origin", refspecs),
        )
        .await
    }

    /// Runs a command that talks to the remote and must succeed.
    async fn network(&self, arguments: &[&str]) -> Result<Vec<u8>, FetchError> {
        retry(self.git, self.session, arguments)
            .await?
            .map_err(|failure| self.git.explain(&failure))
    }

    fn url(&self) -> String {
        self.source.remote.to_string()
    }

    fn no_commit(&self) -> FetchError {
        FetchError::CommitNotFound {
            url: self.url(),
            commit: self.source.target.clone(),
        }
    }
}

/// Returns the arguments of a fetch of `refspecs`, none of which can be taken for an option.
fn fetch_arguments<'a>(depth: Depth, remote: &'a str, refspecs: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec![
        "fetch",
        "--quiet",
        "--no-tags",
        "--no-recurse-submodules",
        "--no-auto-maintenance",
        "--no-write-fetch-head",
    ];
    if depth == Depth::Shallow {
        arguments.push("--depth=1");
    }
    arguments.extend(["--", remote]);
    arguments.extend(refspecs);
    arguments
}

/// Runs a command that talks to a remote, again when it failed for a reason that may pass.
async fn retry(
    git: &Git<'_>,
    session: &Session<'_>,
    arguments: &[&str],
) -> Result<Outcome, FetchError> {
    let mut pause = session.options.retry_pause;
    let mut left = session.options.attempts.max(1);
    loop {
        left -= 1;
        let outcome = git
            .attempt(Reach::Remote, arguments, SMALL_OUTPUT_BYTES)
            .await?;
        match outcome {
            Err(failure) if left > 0 && may_pass(git, &failure) => {
                git.remark(&format!(
                    "the server is not available, trying again in {} ms",
                    pause.as_millis()
                ));
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = session.stop.cancelled() => return Err(FetchError::Cancelled),
                }
                pause *= 2;
            }
            outcome => return Ok(outcome),
        }
    }
}

/// Returns whether trying again may help.
fn may_pass(git: &Git<'_>, failure: &Failure) -> bool {
    let named = classify::is_missing_reference(failure) || classify::is_refused_object(failure);
    !named && matches!(git.explain(failure), FetchError::Unavailable { .. })
}
