//! A process that is killed, or whose system calls fail, at each point of what it does in turn: `strace` does it.
//!
//! The process must have one thread and do the same every time. Where its work begins it looks for [`BEGIN`], which is not there; what it
//! did before (being loaded) counts for nothing. Of a process with several threads the first call of each thread can fail
//! ([`Victim::suffer_in_threads`]).

use std::collections::HashMap;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::process::{Daemon, tool};

/// How many processes suffer at a time.
pub const RUNS_AT_A_TIME: usize = 4;

/// How long it may take to attach to a process.
const ATTACH_TIME: Duration = Duration::from_secs(30);

/// What can go wrong with a call, all of it.
pub const ERRORS: &[&str] = &["EIO", "ENOSPC", "EDQUOT", "EMFILE", "ENOMEM"];

/// What the process looks for where its work begins.
pub const BEGIN: &str = "/kiln-faults-begin-here";

/// The system calls that change what is on disk, or open what is.
pub const CALLS: &[&str] = &[
    "write",
    "pwrite64",
    "writev",
    "fsync",
    "fdatasync",
    "syncfs",
    "fallocate",
    "ftruncate",
    "open",
    "openat",
    "openat2",
    "mkdir",
    "mkdirat",
    "link",
    "linkat",
    "rename",
    "renameat",
    "renameat2",
    "unlink",
    "unlinkat",
    "rmdir",
    "fchmod",
    "fchmodat",
    "utimensat",
    "flock",
    "copy_file_range",
    "getdents64",
];

/// A call of the process: the n-th of its kind, from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    /// Which system call.
    pub call: String,
    /// Which one of that kind, those before the work began included.
    pub nth: usize,
}

/// What happens at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The process is killed.
    Kill,
    /// The call fails, with the name of the error.
    Error(&'static str),
    /// This call and every later one of its kind fail.
    ErrorFrom(&'static str),
}

/// How the process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// With this code.
    Code(i32),
    /// It was killed.
    Killed,
}

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} number {}", self.call, self.nth)
    }
}

/// A program that is run again and again.
#[derive(Debug, Clone)]
pub struct Victim {
    program: PathBuf,
    arguments: Vec<String>,
    strace: PathBuf,
}

impl Victim {
    /// Makes it of a program and its arguments, to which the folder to work in is added.
    #[must_use]
    pub fn new(program: &Path, arguments: &[&str]) -> Self {
        Self {
            program: program.to_path_buf(),
            arguments: arguments.iter().map(|&word| word.to_owned()).collect(),
            strace: tool("strace", "strace"),
        }
    }

    /// Returns every call of [`CALLS`] that it makes in `folder`.
    #[must_use]
    pub fn points(&self, folder: &Path) -> Vec<Point> {
        let log = folder.with_extension("strace");
        let mut options = vec!["-qq".to_owned(), "-o".to_owned(), log.display().to_string()];
        options.extend([
            "-e".to_owned(),
            format!("trace=?{},stat,statx,newfstatat", CALLS.join(",?")),
        ]);
        let status = self.run(&options, folder);
        assert_eq!(
            status.code(),
            Some(0),
            "without any fault it has to succeed"
        );
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let mut counts = HashMap::<&str, usize>::new();
        let (mut points, mut has_begun) = (Vec::new(), false);
        for line in text.lines() {
            has_begun |= line.contains(BEGIN);
            let call = line.split('(').next().unwrap_or_default();
            let Some(call) = CALLS.iter().find(|known| **known == call) else {
                continue;
            };
            let nth = counts.entry(call).or_default();
            *nth += 1;
            if has_begun {
                points.push(Point {
                    call: (*call).to_owned(),
                    nth: *nth,
                });
            }
        }
        assert!(has_begun, "it never began");
        points
    }

    /// Runs it in `folder` with a fault at a point.
    #[must_use]
    pub fn suffer(&self, folder: &Path, point: &Point, fault: Fault) -> Ended {
        let Point { call, nth } = point;
        let inject = match fault {
            Fault::Kill => format!("inject={call}:signal=KILL:when={nth}"),
            Fault::Error(error) => format!("inject={call}:error={error}:when={nth}"),
            Fault::ErrorFrom(error) => format!("inject={call}:error={error}:when={nth}+"),
        };
        let options = [
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            &format!("trace={call}"),
            "-e",
            &inject,
        ];
        let status = self.run(&options.map(str::to_owned), folder);
        match (status.signal(), status.code()) {
            (Some(9), _) | (_, Some(137)) => Ended::Killed,
            (_, Some(code)) => Ended::Code(code),
            _ => panic!("{call} number {nth}: it ended with {status}"),
        }
    }

    /// Runs it in `folder` while a call waits for `delay` and fails then. Returns its exit code.
    #[must_use]
    pub fn suffer_late(
        &self,
        folder: &Path,
        point: &Point,
        error: &str,
        delay: Duration,
    ) -> Option<i32> {
        let Point { call, nth } = point;
        let trace = format!("trace={call}");
        let delay = delay.as_micros();
        let inject = format!("inject={call}:error={error}:delay_enter={delay}:when={nth}");
        let options = ["-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject];
        self.run(&options.map(str::to_owned), folder).code()
    }

    /// Runs it in `folder`, where it must succeed, and writes every one of `calls` that it and its threads make to `log`, whole.
    pub(crate) fn trace(&self, folder: &Path, log: &Path, calls: &[&str]) {
        let log = log.display().to_string();
        let trace = format!("trace=?{}", calls.join(",?"));
        let options = [
            "-qq", "-f", "-xx", "-s", "16777216", "-o", &log, "-e", &trace,
        ];
        let status = self.run(&options.map(str::to_owned), folder);
        assert_eq!(status.code(), Some(0), "it has to succeed");
    }

    /// Runs it in `folder` while the first `call` of each of its threads fails, the main one included. Returns its exit code.
    #[must_use]
    pub fn suffer_in_threads(&self, folder: &Path, call: &str, error: &str) -> Option<i32> {
        let trace = format!("trace={call}");
        let inject = format!("inject={call}:error={error}:when=1");
        let options = ["-qq", "-f", "-o", "/dev/null", "-e", &trace, "-e", &inject];
        self.run(&options.map(str::to_owned), folder).code()
    }

    /// Runs it in `folder` as on a disk on which no file can be larger than `max_bytes`. Returns its exit code.
    #[must_use]
    pub fn suffer_small_files(&self, folder: &Path, max_bytes: u64) -> Option<i32> {
        let prlimit = tool("prlimit", "util-linux");
        // Else the process would be killed instead of being told.
        let script = format!(
            "trap '' XFSZ; exec {} --fsize={max_bytes} \"$@\"",
            prlimit.display()
        );
        let mut command = Command::new("sh");
        command
            .args(["-c", &script, "sh"])
            .arg(&self.program)
            .args(&self.arguments)
            .arg(folder);
        quietly(&mut command).code()
    }

    fn run(&self, options: &[String], folder: &Path) -> ExitStatus {
        let mut command = Command::new(&self.strace);
        command
            .args(options)
            .arg(&self.program)
            .args(&self.arguments)
            .arg(folder);
        quietly(&mut command)
    }
}

/// Makes every `call` of a process that runs fail that is about the file at `path`, until what is returned is dropped. Programs that it
/// starts are left alone.
///
/// # Panics
/// When it cannot be attached to.
#[must_use]
pub fn attach(pid: u32, call: &str, path: &Path, error: &str) -> Daemon {
    let log = tempfile::NamedTempFile::new().unwrap_or_else(|error| panic!("{error}"));
    let mut command = Command::new(tool("strace", "strace"));
    command.args(["-f", "-b", "execve", "-o", "/dev/null"]);
    command.args(["-p", &pid.to_string(), "-P"]).arg(path);
    command.args(["-e", &format!("trace={call}")]);
    command.args(["-e", &format!("inject={call}:error={error}")]);
    let mut strace = Daemon::start(&mut command, log.path());
    strace.wait_for("attach", ATTACH_TIME, |strace| {
        strace.output().contains("attached").then_some(())
    });
    strace
}

fn quietly(command: &mut Command) -> ExitStatus {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap_or_else(|error| panic!("start {command:?}: {error}"))
}

/// Does something with each item, a few at a time: each waits most of the time.
pub fn in_parallel<T: Sync>(items: &[T], act: &(dyn Fn(usize, &T) + Sync)) {
    let next = Mutex::new(items.iter().enumerate());
    let take = || next.lock().unwrap_or_else(PoisonError::into_inner).next();
    std::thread::scope(|scope| {
        let runners: Vec<_> = (0..RUNS_AT_A_TIME)
            .map(|_| {
                scope.spawn(|| {
                    while let Some((index, item)) = take() {
                        act(index, item);
                    }
                })
            })
            .collect();
        for runner in runners {
            if let Err(panic) = runner.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
}

/// Returns what is done to a process at its points: in a soak it is killed at every one, and every call fails with every error, once and for
/// ever; else it is killed at half of them, and half of them fail, with one error or another.
#[must_use]
pub fn plan(points: &[Point], is_soak: Soak) -> Vec<(Point, Fault)> {
    let mut runs = Vec::new();
    for (n, point) in points.iter().enumerate() {
        let mut add = |fault| runs.push((point.clone(), fault));
        if is_soak == Soak::Yes {
            add(Fault::Kill);
            for error in ERRORS {
                add(Fault::Error(error));
                add(Fault::ErrorFrom(error));
            }
        } else if n % 2 == 0 {
            add(Fault::Kill);
        } else {
            let error = ERRORS.get(n / 2 % ERRORS.len()).copied();
            add(Fault::Error(error.unwrap_or("EIO")));
        }
    }
    runs
}

/// Whether there is time for everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Soak {
    /// Yes, by `$KILN_SOAK_SECONDS`.
    Yes,
    /// It is an ordinary run of the tests.
    No,
}

impl Soak {
    /// Returns which of both this is.
    #[must_use]
    pub fn asked() -> Self {
        match soak_time() {
            Some(_) => Self::Yes,
            None => Self::No,
        }
    }
}

/// Returns where folders are best put in which the process works many times: in memory, where there is a file system for that.
#[must_use]
pub fn quick_folder() -> PathBuf {
    let memory = Path::new("/dev/shm");
    let probe = memory.join(format!("kiln-test-{}", std::process::id()));
    let is_usable = std::fs::create_dir(&probe)
        .and_then(|()| std::fs::remove_dir(&probe))
        .is_ok();
    if is_usable {
        memory.to_path_buf()
    } else {
        std::env::temp_dir()
    }
}

/// Looks for [`BEGIN`]: the process calls it where its work begins.
pub fn begin() {
    let _absent = std::fs::metadata(BEGIN);
}

/// Returns how long a soak lasts, by `$KILN_SOAK_SECONDS`; `None` in an ordinary run of the tests.
#[must_use]
pub fn soak_time() -> Option<Duration> {
    let text = std::env::var_os("KILN_SOAK_SECONDS")?;
    let seconds = text.to_string_lossy().parse();
    Some(Duration::from_secs(seconds.unwrap_or_else(|error| {
        panic!("KILN_SOAK_SECONDS={}: {error}", text.display())
    })))
}

/// Returns numbers that look random and are the same for the same seed.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// Makes them of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns the next number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        // SplitMix64: every seed is good, and one state of 64 bits is all there is.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n.max(1)
    }
}

/// Prints a line of figures: name, then `key=value`. They are kept like those of [`crate::figures`], without a goal.
#[expect(clippy::print_stdout, reason = "what it is for")]
pub fn figure(name: &str, values: &[(&str, String)]) {
    for (key, value) in values {
        crate::figures::keep([name, key, value, "", ""]);
    }
    let values: Vec<String> = values
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    println!("{name} {}", values.join(" "));
}

/// Something that is tried, and its name.
pub type Part = (&'static str, fn(&Path));

/// Tries the parts that `words`, the arguments of a test program without a harness, ask for as `cargo test NAME` does; all of them without a
/// name. Lists none.
///
/// # Panics
/// When there is no room for a scratch folder.
pub fn try_parts(words: &[&str], parts: &[Part]) {
    if words.contains(&"--list") {
        return;
    }
    let scratch = tempfile::tempdir_in(quick_folder())
        .unwrap_or_else(|error| panic!("make a scratch folder: {error}"));
    let asked: Vec<&&str> = words.iter().filter(|word| !word.starts_with('-')).collect();
    for (name, part) in parts {
        if asked.is_empty() || asked.iter().any(|word| name.contains(**word)) {
            part(scratch.path());
        }
    }
}
