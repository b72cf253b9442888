//! One commit of a remote repository, checked out into a directory by the machine's own git.
//!
//! What [`fetch`] does, in order:
//!
//! 1. check the request ([`GitSource::check`]); nothing has been contacted yet;
//! 2. get the credential, asking for a one-time secret at most once;
//! 3. make the checkout location and an empty repository in it, with the remotes and the harmless settings asked for;
//! 4. find out and fetch what the target names, retrying what may pass;
//! 5. count what the commit holds, against the limits, before a file of it is written;
//! 6. check it out and compare HEAD with what was asked for;
//! 7. fetch what is kept with LFS, when [`Lfs`] says so;
//! 8. do the same, from step 3, for each submodule that [`Submodules`] allows;
//! 9. remove what differs from one fetch to the next.
//!
//! What it does not do: no hooks, no filters, no protocol but https (and http where it is
//! allowed), no fallback from a branch that is missing to another one. Where it may connect to is decided by [`egress`]: the
//! hosts are resolved here, once, and git is told what they are.
//!
//! The limits hold while git works, not after: a watcher measures the workspace, each git process has a ceiling for
//! memory and file size, and when a limit, the deadline or the caller ends the fetch, the whole process group is killed
//! and waited for before [`fetch`] returns.

mod auth;
mod checkout;
mod classify;
mod command;
mod config;
mod error;
mod http;
mod lfs;
mod limits;
mod pin;
mod refname;
mod remote;
mod resolve;
mod submodules;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

pub use self::auth::GitAuth;
pub use self::config::ConfigError;
pub use self::error::{FetchError, FetchErrorKind, Missing, RequestError, SecretError};
pub use self::lfs::Lfs;
pub use self::limits::Limits;
pub use self::remote::{ParseRemoteUrlError, RemoteUrl};
pub use self::submodules::Submodules;

use self::auth::Credential;
use self::command::Git;
use self::submodules::Allowance;
use crate::path::RelPath;

/// What to fetch, and where to put it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GitSource {
    /// The repository.
    pub remote: RemoteUrl,
    /// A second repository, fetched as the remote `upstream`.
    #[serde(default)]
    pub upstream: Option<RemoteUrl>,
    /// What `target` names.
    pub target_mode: TargetMode,
    /// The commit or branch; not looked at for [`TargetMode::RemoteHead`].
    #[serde(default)]
    pub target: String,
    /// How much history to fetch.
    #[serde(default)]
    pub depth: Depth,
    /// Where in the workspace to put the files.
    #[serde(default)]
    pub checkout_location: RelPath,
    /// Harmless git settings to keep in the repository; anything else is an error.
    #[serde(default)]
    pub custom_config: BTreeMap<String, String>,
    /// How to authenticate.
    #[serde(default)]
    pub auth: GitAuth,
}

/// What a target names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetMode {
    /// Whatever the remote's HEAD is.
    RemoteHead,
    /// A commit: 40 hexadecimal digits mean exactly that commit; 7 to 39 an abbreviation that must be unique among
    /// everything reachable from branches and tags; `refs/…` that reference; anything else a tag, or else a branch of that
    /// name. Annotated tags stand for the commit that they name.
    RemoteCommit,
    /// A branch of the remote. It is an error when there is none of that name.
    RemoteBranch,
    /// A new local branch of that name, starting at the remote's HEAD.
    LocalBranch,
}

/// How much history to fetch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Depth {
    /// The one commit.
    #[default]
    Shallow,
    /// All branches and tags with all their history.
    Full,
}

/// Whether the repository's own data stay beside the files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GitDirectory {
    /// `.git` stays, without logs, fetch records and file times, so that two fetches of one commit look alike.
    #[default]
    Keep,
    /// `.git` is removed after the checkout.
    Remove,
}

impl GitDirectory {
    /// Returns what the build argument `BUILDKIT_CONTEXT_KEEP_GIT_DIR` says, as docker reads it.
    pub fn of_argument(value: Option<&str>) -> Self {
        match value {
            Some("1" | "t" | "T" | "true" | "True" | "TRUE") => Self::Keep,
            _ => Self::Remove,
        }
    }
}

/// What the machine allows and offers; not part of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FetchOptions {
    /// The git program.
    pub git_program: PathBuf,
    /// Time for the whole fetch.
    pub timeout: Duration,
    /// How much the repository may take.
    pub limits: Limits,
    /// How often to try what a server refuses for passing reasons; at least once.
    pub attempts: u32,
    /// Pause before the second try; doubled for each further one.
    pub retry_pause: Duration,
    /// Whether plain http is allowed to this machine itself.
    pub loopback_http: bool,
    /// Hosts (`name` or `name:port`) to which plain http is allowed.
    pub http_hosts: Vec<String>,
    /// Hosts that one-time secrets may come from; any https host when empty.
    pub secret_hosts: Vec<String>,
    /// Where connections may lead.
    #[serde(default)]
    pub egress: egress::Policy,
    /// Folder of the archives that snapshots and backups are; none when there are none.
    #[serde(default)]
    pub snapshots: Option<PathBuf>,
    /// The http proxy, as in `https_proxy`.
    pub proxy: Option<String>,
    /// Hosts reached without the proxy, as in `no_proxy`.
    pub no_proxy: Option<String>,
    /// Certificate authorities in PEM form, instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Whether `.git` stays.
    pub git_directory: GitDirectory,
    /// Which submodules are fetched.
    #[serde(default)]
    pub submodules: Submodules,
    /// Whether files kept with LFS are fetched.
    #[serde(default)]
    pub lfs: Lfs,
}

impl Default for FetchOptions {
    fn default() -> Self {
        Self {
            git_program: PathBuf::from("git"),
            timeout: Duration::from_secs(600),
            limits: Limits::default(),
            attempts: 4,
            retry_pause: Duration::from_secs(1),
            loopback_http: true,
            http_hosts: Vec::new(),
            secret_hosts: Vec::new(),
            egress: egress::Policy::default(),
            snapshots: None,
            proxy: None,
            no_proxy: None,
            ca_file: None,
            git_directory: GitDirectory::Keep,
            submodules: Submodules::Off,
            lfs: Lfs::Off,
        }
    }
}

impl FetchOptions {
    /// Returns whether `url` may be spoken to without TLS.
    pub fn allows_plain_http(&self, url: &url::Url) -> bool {
        let Some(host) = url.host_str() else {
            return false;
        };
        let with_port = url
            .port_or_known_default()
            .map(|port| format!("{host}:{port}"));
        (self.loopback_http && remote::is_loopback(url))
            || self
                .http_hosts
                .iter()
                .any(|allowed| allowed == host || Some(allowed) == with_port.as_ref())
    }
}

/// A finished checkout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkout {
    /// The commit that is checked out, 40 lower-case hexadecimal digits.
    pub commit: String,
    /// When it was committed, in seconds since 1970.
    pub commit_time_unix: i64,
    /// Whether the files are those of the commit and no others: it has no submodules, and nothing that is kept with LFS.
    pub is_all: bool,
}

impl GitSource {
    /// Returns what is secret in it: a password, or the address of a one-time secret.
    pub fn secret(&self) -> Option<String> {
        match &self.auth {
            GitAuth::None => None,
            GitAuth::Basic { password, .. } => Some(password.clone()),
            GitAuth::OneTimeSecret { url } => Some(url.clone()),
        }
    }

    /// Checks what can be checked without contacting anything.
    pub fn check(&self, options: &FetchOptions) -> Result<(), RequestError> {
        for url in std::iter::once(&self.remote).chain(&self.upstream) {
            if url.url().scheme() == "http" && !options.allows_plain_http(url.url()) {
                return Err(RequestError::PlainHttp(
                    url.url().host_str().unwrap_or_default().to_owned(),
                ));
            }
            let allowed = options.egress.check_url(url.url());
            allowed.map_err(RequestError::Egress)?;
        }
        match self.target_mode {
            TargetMode::RemoteHead => {}
            TargetMode::RemoteCommit => {
                refname::parse_commit_name(&self.target)
                    .ok_or_else(|| RequestError::Commit(shorten(&self.target)))?;
            }
            TargetMode::RemoteBranch | TargetMode::LocalBranch => {
                if !refname::is_valid(&self.target) {
                    return Err(RequestError::Branch(shorten(&self.target)));
                }
            }
        }
        config::check(&self.custom_config).map_err(RequestError::Config)?;
        auth::check(&self.auth, options)
    }
}

/// Returns the beginning of a text that may be of any length.
fn shorten(text: &str) -> String {
    text.chars().take(256).collect()
}

/// What every part of one fetch needs.
struct Session<'a> {
    options: &'a FetchOptions,
    remote: &'a RemoteUrl,
    plain_http: bool,
    /// Where the hosts of remotes are, for git, which is not to resolve them again.
    pins: Vec<String>,
    log: &'a (dyn Fn(&str) + Send + Sync),
    stop: CancellationToken,
}

impl std::fmt::Debug for Session<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("remote", self.remote)
            .finish_non_exhaustive()
    }
}

/// Fetches `source` into `workspace` and returns what was checked out.
///
/// `workspace` must exist and be ours alone; the checkout location in it must not hold anything yet. `log` gets git's
/// remarks line by line, without credentials. When this fails, what is left in the location is for the caller to remove.
pub async fn fetch(
    source: &GitSource,
    workspace: &Path,
    options: &FetchOptions,
    log: &(dyn Fn(&str) + Send + Sync),
    cancel: &CancellationToken,
) -> Result<Checkout, FetchError> {
    source.check(options).map_err(FetchError::Request)?;
    let session = session(source, options, log, cancel.child_token()).await?;
    let work = Box::pin(run(&session, source, workspace));
    in_bounds(&session, workspace, cancel, work).await
}

/// Asks which commit the target of `source` is, and fetches nothing. `None` when only a fetch can tell: for an abbreviation, and for
/// what the remote does not have. Also where the target says it, the remote is asked: who may not read there gets an error.
///
/// `workspace` must exist, be ours alone and be empty; git's own files are left there.
pub async fn look_up(
    source: &GitSource,
    workspace: &Path,
    options: &FetchOptions,
    log: &(dyn Fn(&str) + Send + Sync),
    cancel: &CancellationToken,
) -> Result<Option<String>, FetchError> {
    source.check(options).map_err(FetchError::Request)?;
    let session = session(source, options, log, cancel.child_token()).await?;
    let work = Box::pin(ask(&session, source, workspace));
    in_bounds(&session, workspace, cancel, work).await
}

/// Waits for `work`, and for the end of every git it started when it is cancelled or goes beyond a limit.
async fn in_bounds<T>(
    session: &Session<'_>,
    workspace: &Path,
    cancel: &CancellationToken,
    mut work: Pin<Box<dyn Future<Output = Result<T, FetchError>> + Send + '_>>,
) -> Result<T, FetchError> {
    let options = session.options;
    let ended = tokio::select! {
        biased;
        () = cancel.cancelled() => FetchError::Cancelled,
        result = &mut work => return result,
        () = tokio::time::sleep(options.timeout) => FetchError::TimedOut { after: options.timeout },
        outgrown = limits::watch(workspace, &options.limits) => outgrown,
    };
    session.stop.cancel();
    // Ends at once: every git is killed when `stop` is, and waited for. Its error is only that.
    let _stopped = work.await;
    Err(ended)
}

/// Finds out where the hosts of `source` are, which was checked, and gathers what its fetch needs.
async fn session<'a>(
    source: &'a GitSource,
    options: &'a FetchOptions,
    log: &'a (dyn Fn(&str) + Send + Sync),
    stop: CancellationToken,
) -> Result<Session<'a>, FetchError> {
    let plain_http = std::iter::once(&source.remote)
        .chain(&source.upstream)
        .any(|url| url.url().scheme() == "http");
    Ok(Session {
        options,
        remote: &source.remote,
        plain_http,
        pins: pin::pins(source, options).await?,
        log,
        stop,
    })
}

/// Steps 2 to 9.
async fn run(
    session: &Session<'_>,
    source: &GitSource,
    workspace: &Path,
) -> Result<Checkout, FetchError> {
    let credential = tokio::select! {
        credential = auth::credential(&source.auth, session.options) => credential.map_err(FetchError::Secret)?,
        () = session.stop.cancelled() => return Err(FetchError::Cancelled),
    };
    let whole = Whole {
        workspace,
        top: &source.remote,
        credential,
    };
    populate(session, source, &whole, &mut Allowance::default()).await
}

/// Steps 2 and 3, and the question that begins step 4.
async fn ask(
    session: &Session<'_>,
    source: &GitSource,
    workspace: &Path,
) -> Result<Option<String>, FetchError> {
    let credential = tokio::select! {
        credential = auth::credential(&source.auth, session.options) => credential.map_err(FetchError::Secret)?,
        () = session.stop.cancelled() => return Err(FetchError::Cancelled),
    };
    let location = checkout::make_location(workspace, &source.checkout_location)?;
    let scoped = credential
        .clone()
        .map(|credential| (source.remote.origin(), credential));
    let git = Git::new(session, location, scoped);
    checkout::init(&git, source).await?;
    resolve::look_up_target(&git, session, source, credential.as_ref()).await
}

/// What a repository and all its submodules have in common.
struct Whole<'a> {
    workspace: &'a Path,
    /// The repository that the request names; the credential is for its origin.
    top: &'a RemoteUrl,
    credential: Option<Credential>,
}

impl Whole<'_> {
    /// Returns the credential if it is one for `remote`.
    fn credential_for(&self, remote: &RemoteUrl) -> Option<&Credential> {
        let is_its_own = remote.origin() == self.top.origin();
        self.credential.as_ref().filter(|_| is_its_own)
    }
}

/// Steps 3 to 9, for one repository.
async fn populate(
    session: &Session<'_>,
    source: &GitSource,
    whole: &Whole<'_>,
    allowance: &mut Allowance,
) -> Result<Checkout, FetchError> {
    let credential = whole.credential_for(&source.remote);
    let location = checkout::make_location(whole.workspace, &source.checkout_location)?;
    let scoped = credential.map(|credential| (source.remote.origin(), credential.clone()));
    let git = Git::new(session, location.clone(), scoped);
    checkout::init(&git, source).await?;
    let found = resolve::fetch_target(&git, session, source, credential).await?;
    if let Some(upstream) = &source.upstream {
        resolve::fetch_upstream(&git, session, upstream, source.depth).await?;
    }
    let links = checkout::count(&git, &found.commit, &session.options.limits).await?;
    checkout::check_out(&git, &found).await?;
    let kept = lfs::fill(&git, session, source, credential, &location).await?;
    let pair = (whole.top, source);
    let wanted = submodules::wanted(&git, session, pair, &found.commit, &links).await?;
    allowance.take(wanted.len())?;
    for submodule in &wanted {
        let populated = Box::pin(populate_submodule(session, submodule, whole, allowance)).await;
        match populated {
            Ok(()) => {}
            // As with addresses that can be judged without asking where they are.
            Err(FetchError::Egress(refused)) => {
                let path = &submodule.checkout_location;
                git.remark(&format!("submodule {path} is not fetched: {refused}"));
            }
            Err(error) => return Err(in_submodule(submodule, error)),
        }
    }
    allowance.come_up(wanted.len());
    let commit_time_unix = checkout::commit_time(&git, &found.commit).await?;
    checkout::tidy(&git, &location, session.options.git_directory).await?;
    Ok(Checkout {
        commit: found.commit,
        commit_time_unix,
        is_all: links.is_empty() && kept == lfs::Kept::Nothing,
    })
}

/// Step 8, for one submodule.
async fn populate_submodule(
    session: &Session<'_>,
    source: &GitSource,
    whole: &Whole<'_>,
    allowance: &mut Allowance,
) -> Result<(), FetchError> {
    let stop = session.stop.clone();
    let session = tokio::select! {
        session = self::session(source, session.options, session.log, stop.clone()) => session?,
        () = stop.cancelled() => return Err(FetchError::Cancelled),
    };
    populate(&session, source, whole, allowance).await.map(drop)
}

/// Says in which submodule something failed; what ends the whole fetch stays what it is.
fn in_submodule(source: &GitSource, error: FetchError) -> FetchError {
    match error {
        FetchError::Cancelled | FetchError::Limit { .. } | FetchError::Submodule { .. } => error,
        error => FetchError::Submodule {
            path: source.checkout_location.to_string(),
            source: Box::new(error),
        },
    }
}
