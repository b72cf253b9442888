//! One run of git, with nothing of this machine's or the repository's configuration and within limits.
//!
//! Invariants: arguments never hold a credential; the environment holds one only for network commands; no hook, filter,
//! pager, helper or submodule command is ever started; the whole process group is dead before a run returns.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};

use super::Session;
use super::auth::Credential;
use super::classify;
use super::error::FetchError;

/// Sets limits on the process and what it starts, then becomes git. A limit that cannot be raised is lower already.
const LIMITED: &str = r#"ulimit -c 0; ulimit -f "$1" 2>/dev/null || :; ulimit -v "$2" 2>/dev/null || :; shift 2; exec "$@""#;

/// Where git finds its own helpers' tools; the caller's `PATH` stays outside.
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Longest line of git's that is passed on.
const MAX_LINE_BYTES: usize = 4096;

/// Lines of git's that are kept for the error.
const MAX_LAST_LINES: usize = 8;

/// Most lines passed to the log by one run; a server can send remarks without end.
const MAX_LOGGED_LINES: usize = 10_000;

/// How often to look whether a killed group is gone. What is left after that is dead and only not waited for.
const MAX_LOOKS: u32 = 500;

/// Pause between two such looks.
const LOOK_PAUSE: Duration = Duration::from_millis(2);

/// Settings for every run. Later ones in the repository's own file do not count: the environment wins.
const SETTINGS: &[(&str, &str)] = &[
    ("core.hooksPath", "/dev/null"),
    ("core.fsmonitor", "false"),
    ("core.attributesFile", "/dev/null"),
    ("core.excludesFile", "/dev/null"),
    ("core.sshCommand", "false"),
    ("core.askPass", ""),
    ("core.pager", "cat"),
    ("core.editor", "false"),
    ("core.logAllRefUpdates", "false"),
    ("core.protectNTFS", "true"),
    ("core.protectHFS", "true"),
    ("core.packedGitWindowSize", "32m"),
    ("core.packedGitLimit", "1g"),
    ("credential.helper", ""),
    ("safe.bareRepository", "explicit"),
    ("protocol.allow", "never"),
    ("protocol.version", "2"),
    ("http.followRedirects", "false"),
    ("http.emptyAuth", "false"),
    ("http.delegation", "none"),
    ("http.saveCookies", "false"),
    // Below this rate for this long, a transfer counts as dead.
    ("http.lowSpeedLimit", "1000"),
    ("http.lowSpeedTime", "60"),
    ("transfer.bundleURI", "false"),
    ("transfer.fsckObjects", "true"),
    ("fetch.fsckObjects", "true"),
    // Flaws that old but honest repositories have and that harm nobody.
    ("fetch.fsck.badTimezone", "ignore"),
    ("fetch.fsck.missingSpaceBeforeDate", "ignore"),
    ("fetch.fsck.zeroPaddedFilemode", "ignore"),
    // Few objects are stored one by one, under names that depend on nothing but their content.
    ("fetch.unpackLimit", "1000"),
    ("fetch.recurseSubmodules", "false"),
    ("fetch.writeCommitGraph", "false"),
    ("submodule.recurse", "false"),
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
];

/// Git for one repository.
#[derive(Debug)]
pub(super) struct Git<'a> {
    session: &'a Session<'a>,
    /// Where files are checked out; `.git` is in it.
    location: PathBuf,
    /// The credential and the origin it is for.
    credential: Option<(String, Credential)>,
    spellings: Vec<String>,
}

/// Whether a run may talk to the remote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// It has no business with the network and gets no credential.
    Local,
    /// It talks to the remote.
    Remote,
}

/// How a run ended that did not succeed.
#[derive(Debug)]
pub(super) struct Failure {
    /// The subcommand.
    pub(super) command: String,
    /// The exit status.
    pub(super) status: ExitStatus,
    /// The last lines git wrote, without credentials.
    pub(super) words: String,
}

/// What a run gives: its output, or how it failed.
pub(super) type Outcome = Result<Vec<u8>, Failure>;

/// A consumer of a run's output, chunk by chunk.
pub(super) type Sink<'a> = &'a mut (dyn FnMut(&[u8]) -> Result<(), FetchError> + Send);

impl<'a> Git<'a> {
    /// Makes a git for `location`, with a credential for `origin`.
    pub(super) fn new(
        session: &'a Session<'a>,
        location: PathBuf,
        credential: Option<(String, Credential)>,
    ) -> Self {
        let spellings = credential
            .iter()
            .flat_map(|(_, credential)| credential.spellings())
            .collect();
        Self {
            session,
            location,
            credential,
            spellings,
        }
    }

    /// Runs git, which must succeed, and returns its output of at most `max_bytes`.
    pub(super) async fn expect(
        &self,
        reach: Reach,
        args: &[&str],
        max_bytes: usize,
    ) -> Result<Vec<u8>, FetchError> {
        match self.attempt(reach, args, max_bytes).await? {
            Ok(output) => Ok(output),
            Err(failure) => Err(self.explain(&failure)),
        }
    }

    /// Runs git and returns how that went; errors are those that say nothing about the remote.
    pub(super) async fn attempt(
        &self,
        reach: Reach,
        args: &[&str],
        max_bytes: usize,
    ) -> Result<Outcome, FetchError> {
        let mut output = Vec::new();
        let mut sink = |chunk: &[u8]| {
            if output.len() + chunk.len() > max_bytes {
                return Err(FetchError::Limit {
                    limit: format!("{max_bytes} bytes of output from git"),
                });
            }
            output.extend_from_slice(chunk);
            Ok(())
        };
        let failure = self.stream(reach, args, &mut sink).await?;
        Ok(failure.map_or(Ok(output), Err))
    }

    /// Runs git and hands its output to `sink`; an error of `sink` ends git at once.
    pub(super) async fn stream(
        &self,
        reach: Reach,
        args: &[&str],
        sink: Sink<'_>,
    ) -> Result<Option<Failure>, FetchError> {
        let name = args.first().copied().unwrap_or_default();
        let failed = |source| FetchError::Start {
            program: self.session.options.git_program.clone(),
            source,
        };
        let mut child = Group(self.command(reach, args).spawn().map_err(failed)?);
        let (stdout, stderr) = (child.0.stdout.take(), child.0.stderr.take());
        let mut last_lines = VecDeque::new();
        let pumped = tokio::select! {
            pumped = async { tokio::try_join!(pump(stdout, sink), self.pump_lines(stderr, &mut last_lines)) } => pumped.map(|_| ()),
            () = self.session.stop.cancelled() => Err(FetchError::Cancelled),
        };
        let group = child.id();
        if pumped.is_err() {
            child.kill();
        }
        let status = child.0.wait().await.map_err(failed)?;
        if pumped.is_err() {
            gone(group).await;
        }
        pumped?;
        if status.success() {
            return Ok(None);
        }
        let words = Vec::from(last_lines).join("\n");
        if status.signal() == Some(Signal::XFSZ.as_raw()) || classify::is_too_large(&words) {
            return Err(self.session.options.limits.too_large());
        }
        if classify::is_out_of_memory(&words) {
            return Err(FetchError::Limit {
                limit: format!(
                    "{} bytes of memory",
                    self.session.options.limits.memory_bytes
                ),
            });
        }
        Ok(Some(Failure {
            command: name.to_owned(),
            status,
            words,
        }))
    }

    /// Returns the error that `failure` stands for.
    pub(super) fn explain(&self, failure: &Failure) -> FetchError {
        classify::explain(self.session.remote.as_str(), failure)
    }

    /// Passes a remark to the log, without credentials.
    pub(super) fn remark(&self, line: &str) {
        (self.session.log)(&self.redact(line));
    }

    /// Returns `line` without credentials and control characters.
    fn redact(&self, line: &str) -> String {
        let mut text: String = line
            .chars()
            .filter(|c| !c.is_control() || *c == '\t')
            .collect();
        for spelling in &self.spellings {
            text = text.replace(spelling, "***");
        }
        text
    }

    /// Returns the command with its limits, arguments and environment.
    fn command(&self, reach: Reach, args: &[&str]) -> Command {
        let options = self.session.options;
        let mut command = Command::new("/bin/sh");
        command.args(["-c", LIMITED, "sh"]);
        // POSIX counts `-f` in blocks of 512 bytes; `-v` is in kibibytes wherever it exists.
        command
            .arg((options.limits.size_bytes / 512).to_string())
            .arg((options.limits.memory_bytes / 1024).to_string());
        // Both as seen from where git runs: the location itself may be relative to where we run.
        command
            .arg(&options.git_program)
            .args(["--git-dir=.git", "--work-tree=."])
            .args(args);
        command.current_dir(&self.location);
        command.env_clear().envs(self.environment(reach));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.process_group(0).kill_on_drop(true);
        command
    }

    /// Returns the whole environment of a run.
    fn environment(&self, reach: Reach) -> Vec<(OsString, OsString)> {
        let options = self.session.options;
        let protocols = if reach == Reach::Local {
            ""
        } else if self.session.plain_http {
            "http:https"
        } else {
            "https"
        };
        let mut variables: Vec<(OsString, OsString)> = [
            ("PATH", SEARCH_PATH),
            ("HOME", "/nonexistent"),
            ("LC_ALL", "C"),
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_CONFIG_SYSTEM", "/dev/null"),
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("GIT_ATTR_NOSYSTEM", "1"),
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_PROTOCOL_FROM_USER", "0"),
            ("GIT_ALLOW_PROTOCOL", protocols),
            ("GIT_NO_REPLACE_OBJECTS", "1"),
            ("GIT_NO_LAZY_FETCH", "1"),
            ("GIT_LFS_SKIP_SMUDGE", "1"),
            ("GIT_OPTIONAL_LOCKS", "0"),
        ]
        .into_iter()
        .map(|(key, value)| (key.into(), value.into()))
        .collect();
        let mut settings: Vec<(OsString, OsString)> = SETTINGS
            .iter()
            .map(|(key, value)| (key.into(), value.into()))
            .collect();
        if reach == Reach::Remote {
            settings.extend(self.remote_settings());
            for name in ["http_proxy", "https_proxy"] {
                variables.extend(
                    options
                        .proxy
                        .as_ref()
                        .map(|proxy| (name.into(), proxy.into())),
                );
            }
            variables.extend(
                options
                    .no_proxy
                    .as_ref()
                    .map(|hosts| ("no_proxy".into(), hosts.into())),
            );
        }
        variables.push(("GIT_CONFIG_COUNT".into(), settings.len().to_string().into()));
        for (index, (key, value)) in settings.into_iter().enumerate() {
            variables.push((format!("GIT_CONFIG_KEY_{index}").into(), key));
            variables.push((format!("GIT_CONFIG_VALUE_{index}").into(), value));
        }
        variables
    }

    /// Returns the settings that only a run with a remote gets.
    fn remote_settings(&self) -> Vec<(OsString, OsString)> {
        let mut settings: Vec<(OsString, OsString)> = Vec::new();
        if let Some((origin, credential)) = &self.credential {
            settings.push((
                format!("http.{origin}.extraHeader").into(),
                format!("Authorization: {}", credential.header()).into(),
            ));
        }
        for pin in &self.session.pins {
            settings.push(("http.curloptResolve".into(), pin.into()));
        }
        if let Some(path) = &self.session.options.ca_file {
            settings.push(("http.sslCAInfo".into(), path.into()));
        }
        settings
    }

    /// Passes git's remarks to the log line by line and keeps the last ones.
    async fn pump_lines(
        &self,
        from: Option<impl AsyncRead + Unpin>,
        last_lines: &mut VecDeque<String>,
    ) -> Result<(), FetchError> {
        let mut line = Vec::new();
        let mut logged = 0_usize;
        // A line that was cut may end within a credential: so much of its end is not shown.
        let longest = self.spellings.first().map_or(0, String::len);
        let most = MAX_LINE_BYTES + longest;
        let mut end_line = |line: &mut Vec<u8>| {
            let text = self.redact(&String::from_utf8_lossy(line));
            let shown = if line.len() < most {
                text.len()
            } else {
                text.len().saturating_sub(longest)
            };
            let text = shorten(text, shown.min(MAX_LINE_BYTES));
            line.clear();
            if text.trim().is_empty() {
                return;
            }
            logged += 1;
            if logged <= MAX_LOGGED_LINES {
                (self.session.log)(&text);
            }
            if last_lines.len() == MAX_LAST_LINES {
                last_lines.pop_front();
            }
            last_lines.push_back(text);
        };
        pump(from, &mut |chunk| {
            for &byte in chunk {
                if byte == b'\n' || byte == b'\r' {
                    end_line(&mut line);
                } else if line.len() < most {
                    line.push(byte);
                }
            }
            Ok(())
        })
        .await?;
        end_line(&mut line);
        Ok(())
    }
}

/// Returns the first `most` bytes of a line, or a little less where a character would be cut.
fn shorten(mut line: String, most: usize) -> String {
    let end = (0..=most.min(line.len()))
        .rev()
        .find(|&at| line.is_char_boundary(at));
    line.truncate(end.unwrap_or(0));
    line
}

/// Reads to the end, handing on what comes.
async fn pump(from: Option<impl AsyncRead + Unpin>, sink: Sink<'_>) -> Result<(), FetchError> {
    let Some(mut from) = from else { return Ok(()) };
    let mut buffer = vec![0_u8; 16 * 1024];
    loop {
        match from.read(&mut buffer).await {
            Ok(0) => return Ok(()),
            Ok(n) => sink(buffer.get(..n).unwrap_or_default())?,
            Err(source) => {
                return Err(FetchError::Start {
                    program: "git".into(),
                    source,
                });
            }
        }
    }
}

/// Waits until a killed group is gone: its members other than the child are waited for by somebody else.
async fn gone(group: Option<Pid>) {
    let Some(group) = group else { return };
    for _ in 0..MAX_LOOKS {
        if test_kill_process_group(group).is_err() {
            return;
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

/// A child that leads a process group, which dies with it.
struct Group(Child);

impl Group {
    /// Returns the id of the group, until the child was waited for: it may be another's after that.
    fn id(&self) -> Option<Pid> {
        self.0
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .and_then(Pid::from_raw)
    }

    /// Kills the whole group; the child stays to be waited for.
    fn kill(&self) {
        if let Some(pid) = self.id() {
            // Fails only when the group is gone, which is what is wanted.
            let _gone = kill_process_group(pid, Signal::KILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}
