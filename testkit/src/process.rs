//! Tools and child processes.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Time for a process to end after it was asked to.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Pause between two looks at something that takes its time.
const POLL_PAUSE: Duration = Duration::from_millis(10);

/// Returns the path of `name`, or panics naming the Debian package it is in.
#[must_use]
pub fn tool(name: &str, package: &str) -> PathBuf {
    let search = std::env::var_os("PATH").unwrap_or_default();
    // Ordinary users have no sbin in their path, and that is where some of them are.
    let directories =
        std::env::split_paths(&search).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    let found = directories
        .map(|directory| directory.join(name))
        .find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{name} is missing; it is in the Debian package {package}"))
}

/// Runs a command to its end and returns its standard output; panics with everything it said when it fails.
pub fn run(command: &mut Command) -> String {
    let output = finish(command);
    assert!(
        output.status.success(),
        "{command:?} failed with {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a command to its end and returns how that went.
pub fn finish(command: &mut Command) -> Output {
    command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("start {command:?}: {error}"))
}

/// Asks `question` again and again until it has an answer; panics after `limit`.
pub fn wait_for<T>(what: &str, limit: Duration, mut question: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(answer) = question() {
            return answer;
        }
        assert!(
            started.elapsed() < limit,
            "{what}: not within {} s",
            limit.as_secs()
        );
        std::thread::sleep(POLL_PAUSE);
    }
}

/// A child process that writes to a log file, and is ended when this is dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command` with its output in the file `log`.
    pub fn start(command: &mut Command, log: &Path) -> Self {
        let open = || std::fs::File::create(log).and_then(|file| Ok((file.try_clone()?, file)));
        let (stdout, stderr) =
            open().unwrap_or_else(|error| panic!("create {}: {error}", log.display()));
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("start {command:?}: {error}"));
        Self {
            child,
            log: log.to_path_buf(),
        }
    }

    /// Returns the process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns what the process has written so far.
    #[must_use]
    pub fn output(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Asks `question` until it has an answer, and panics when the process ends before.
    pub fn wait_for<T>(
        &mut self,
        what: &str,
        limit: Duration,
        question: impl FnMut(&Self) -> Option<T>,
    ) -> T {
        let answer = self.wait_for_or_end(what, limit, question);
        answer.unwrap_or_else(|reason| panic!("{reason}"))
    }

    /// Asks `question` until it has an answer; fails with all it said when the process ends before, and panics after `limit`.
    pub fn wait_for_or_end<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut question: impl FnMut(&Self) -> Option<T>,
    ) -> Result<T, String> {
        let started = Instant::now();
        loop {
            if let Some(answer) = question(self) {
                return Ok(answer);
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                let output = self.output();
                return Err(format!("{what}: the process ended with {status}\n{output}"));
            }
            assert!(
                started.elapsed() < limit,
                "{what}: not within {} s\n{}",
                limit.as_secs(),
                self.output()
            );
            std::thread::sleep(POLL_PAUSE);
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // Gone already is what is wanted.
            let _gone = kill_process(pid, signal);
        }
    }

    /// Ends the process: politely, and by force when it takes longer than ten seconds. Returns whether politeness was enough.
    pub fn stop(&mut self) -> Stopped {
        if let Ok(Some(_)) = self.child.try_wait() {
            return Stopped::Gracefully;
        }
        self.signal(Signal::TERM);
        let started = Instant::now();
        while started.elapsed() < STOP_TIMEOUT {
            if let Ok(Some(_)) = self.child.try_wait() {
                return Stopped::Gracefully;
            }
            std::thread::sleep(POLL_PAUSE);
        }
        self.kill();
        Stopped::ByForce
    }

    /// Ends the process at once, as a crash would.
    pub fn kill(&mut self) {
        // Both fail only when the process is gone.
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}

/// How a process was ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// It ended when asked, or had ended before.
    Gracefully,
    /// It had to be killed.
    ByForce,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Returns the id and command line of every process that names `path` in its arguments, its working directory or its root.
#[must_use]
pub fn processes_using(path: &Path) -> Vec<(u32, String)> {
    let own = std::process::id();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.filter(|id| *id != own)
        .filter_map(|id| {
            let folder = PathBuf::from(format!("/proc/{id}"));
            let arguments = String::from_utf8_lossy(&std::fs::read(folder.join("cmdline")).ok()?)
                .replace('\0', " ");
            let names = |link: &str| {
                std::fs::read_link(folder.join(link)).is_ok_and(|target| target.starts_with(path))
            };
            (arguments.contains(&*path.to_string_lossy()) || names("cwd") || names("root"))
                .then_some((id, arguments))
        })
        .collect()
}

/// Makes a command with an environment that holds only a search path and a home that is nobody's.
pub fn clean_command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("LC_ALL", "C.UTF-8");
    command
}
