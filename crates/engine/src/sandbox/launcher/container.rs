//! The container's first process: from the clone to the command it becomes.
//!
//! It never returns into the launcher. Until it executes the command it is not dumpable, dies with its parent, and runs
//! from a binary nobody can write.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::process::{DumpableBehavior, Resource, Rlimit, Signal};

use super::wire::Plan;
use super::{Attempt as _, Descriptors, Failed, filesystem, privileges};
use crate::sandbox::Confinement;

/// What a shell answers when a command does not exist.
const EXIT_NOT_FOUND: i32 = 127;
/// What a shell answers when a command exists but cannot be executed.
const EXIT_NOT_EXECUTABLE: i32 = 126;
/// What this process exits with after it has reported a failure over the pipe; nobody looks at it.
const EXIT_REPORTED: i32 = 125;
/// Where a command is searched when the environment has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Where the kernel stops listing directories of a working directory that has to be made.
const MAX_CWD_COMPONENTS: usize = 256;

/// Becomes the command, or explains over `errors` why it cannot.
pub(super) fn run(
    plan: &Plan,
    descriptors: Descriptors,
    sysfs: Option<OwnedFd>,
    go: OwnedFd,
    errors: OwnedFd,
) -> ! {
    match become_ready(plan, descriptors, sysfs, go) {
        Ok(command) => {
            let (code, text) = command.execute();
            let _ = writeln!(io::stderr(), "{text}");
            exit(code)
        }
        Err(failed) => {
            let text = format!("{}\n{}", failed.attempt.replace('\n', " "), failed.source);
            let _ = File::from(errors).write_all(text.as_bytes());
            exit(EXIT_REPORTED)
        }
    }
}

/// Ends this process and nothing else.
pub(in crate::sandbox) fn exit(code: i32) -> ! {
    // SAFETY: ends this process without running the exit handlers of the process it was cloned from.
    unsafe { libc::_exit(code) }
}

fn become_ready(
    plan: &Plan,
    descriptors: Descriptors,
    sysfs: Option<OwnedFd>,
    go: OwnedFd,
) -> Result<Command, Failed> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .attempt("tie the container to its launcher")?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .attempt("refuse to be traced")?;
    let mut word = [0_u8; 1];
    File::from(go)
        .read_exact(&mut word)
        .attempt("wait for the launcher")?;
    // Compiled while memory is still ours alone to fail over; loaded at the very end.
    let filters = match plan.confinement {
        Confinement::Sandbox => {
            Some(super::seccomp::compile().attempt("compile the seccomp filter")?)
        }
        Confinement::Insecure => None,
    };
    let command = Command::new(plan)?;
    rustix::process::setsid().attempt("start a session")?;
    rustix::process::umask(Mode::empty());
    let Descriptors {
        root,
        stdin,
        stdout,
        stderr,
        network,
        mounts,
        held,
    } = descriptors;
    // The launcher keeps what is held.
    drop((network, held));
    filesystem::enter(plan, root, mounts, sysfs)?;
    rustix::system::sethostname(plan.hostname.as_bytes()).attempt("set the host name")?;
    set_limits(plan)?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    enter_working_directory(&plan.cwd)?;
    set_stdio(plan, &stdin, &stdout, &stderr)?;
    drop((stdin, stdout, stderr));
    reset_signals();
    close_the_rest()?;
    match filters {
        Some(filters) => privileges::give_up(plan, &filters)?,
        None => privileges::keep(plan)?,
    }
    Ok(command)
}

fn set_limits(plan: &Plan) -> Result<(), Failed> {
    let allowed = rustix::process::getrlimit(Resource::Nofile).maximum;
    let open_files = Some(plan.open_files.min(allowed.unwrap_or(u64::MAX)));
    rustix::process::setrlimit(
        Resource::Nofile,
        Rlimit {
            current: open_files,
            maximum: open_files,
        },
    )
    .attempt("limit open files")?;
    if let Some(processes) = plan.processes {
        // Where cgroups limit them too this changes nothing; where they do not, it stops a fork bomb of one user.
        let processes = Some(u64::from(processes));
        rustix::process::setrlimit(
            Resource::Nproc,
            Rlimit {
                current: processes,
                maximum: processes,
            },
        )
        .attempt("limit processes")?;
    }
    rustix::process::setrlimit(
        Resource::Core,
        Rlimit {
            current: Some(0),
            maximum: Some(0),
        },
    )
    .attempt("forbid core files")?;
    for ulimit in &plan.ulimits {
        rustix::process::setrlimit(ulimit.name.resource(), ulimit.rlimit())
            .attempt(format!("limit {}", ulimit.name.as_str()))?;
    }
    Ok(())
}

/// Makes the working directory where it is missing and enters it, never through a magic link such as `/proc/self/fd/3`.
fn enter_working_directory(cwd: &str) -> Result<(), Failed> {
    let slash = rustix::fs::open(
        "/",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .attempt("open the root directory")?;
    let open = |path: &str| {
        rustix::fs::openat2(
            &slash,
            path,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        )
    };
    let what = || format!("enter the working directory {cwd}");
    let mut path = String::from("/");
    let components: Vec<&str> = cwd
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect();
    if components.len() > MAX_CWD_COMPONENTS {
        return Err(io::Error::from(rustix::io::Errno::NAMETOOLONG)).attempt(what());
    }
    let mut directory = open("/").attempt(what())?;
    for component in components {
        path.push_str(component);
        directory = match open(&path) {
            Ok(found) => found,
            Err(rustix::io::Errno::NOENT) => {
                rustix::fs::mkdirat(&directory, component, Mode::from_raw_mode(0o755))
                    .attempt(what())?;
                open(&path).attempt(what())?
            }
            Err(errno) => return Err(errno).attempt(what()),
        };
        path.push('/');
    }
    rustix::process::fchdir(&directory).attempt(what())
}

/// Puts the pipes where the command expects them and lets its user reopen them as `/dev/stdout`.
fn set_stdio(
    plan: &Plan,
    stdin: &OwnedFd,
    stdout: &OwnedFd,
    stderr: &OwnedFd,
) -> Result<(), Failed> {
    rustix::stdio::dup2_stdin(stdin).attempt("set standard input")?;
    rustix::stdio::dup2_stdout(stdout).attempt("set standard output")?;
    rustix::stdio::dup2_stderr(stderr).attempt("set standard error")?;
    for pipe in [stdout, stderr] {
        let owner = Some(Uid::from_raw(plan.uid));
        rustix::fs::chownat(
            pipe.as_fd(),
            "",
            owner,
            Some(Gid::from_raw(plan.gid)),
            AtFlags::EMPTY_PATH,
        )
        .attempt("give the output pipes to the step's user")?;
    }
    Ok(())
}

/// Undoes what the language's runtime and our ancestors did to signals: the command starts from the defaults.
pub(in crate::sandbox) fn reset_signals() {
    for signal in 1..=64 {
        // SAFETY: restores default dispositions only; the two that cannot be changed answer with an error.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: an empty set is valid for both calls.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Marks every descriptor but 0, 1 and 2 to be closed by the execution; the error pipe must live until then.
pub(in crate::sandbox) fn close_the_rest() -> Result<(), Failed> {
    // SAFETY: changes flags of descriptors only.
    let answer = unsafe {
        libc::close_range(
            3,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC.cast_signed(),
        )
    };
    if answer == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error()).attempt("close descriptors")
    }
}

/// The command as the kernel wants it.
struct Command {
    name: String,
    candidates: Vec<CString>,
    args: Vec<CString>,
    env: Vec<CString>,
}

impl Command {
    fn new(plan: &Plan) -> Result<Self, Failed> {
        let name = plan.args.first().cloned().unwrap_or_default();
        let text = |text: String| CString::new(text).attempt("pass the command's words");
        let candidates = candidates(&name, path_of(&plan.env))
            .into_iter()
            .map(text)
            .collect::<Result<_, _>>()?;
        let args = plan
            .args
            .iter()
            .cloned()
            .map(text)
            .collect::<Result<_, _>>()?;
        let env = plan
            .env
            .iter()
            .map(|(key, value)| text(format!("{key}={value}")))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            name,
            candidates,
            args,
            env,
        })
    }

    /// Executes the command; on failure returns the exit code and text a shell would.
    fn execute(&self) -> (i32, String) {
        let pointers = |words: &[CString]| -> Vec<*const libc::c_char> {
            words
                .iter()
                .map(|word| word.as_ptr())
                .chain(std::iter::once(std::ptr::null()))
                .collect()
        };
        let (args, env) = (pointers(&self.args), pointers(&self.env));
        let mut worst = io::Error::from(rustix::io::Errno::NOENT);
        for candidate in &self.candidates {
            // SAFETY: both arrays end in a null pointer and hold pointers into strings that `self` owns.
            unsafe { libc::execve(candidate.as_ptr(), args.as_ptr(), env.as_ptr()) };
            let error = io::Error::last_os_error();
            if !is_absence(&error) {
                worst = error;
                // As a shell does: go on looking after a file one may not execute, stop at anything else.
                if worst.kind() != io::ErrorKind::PermissionDenied {
                    break;
                }
            }
        }
        let name = &self.name;
        match (is_absence(&worst), name.contains('/')) {
            (true, false) => (
                EXIT_NOT_FOUND,
                format!("exec: {name:?}: executable file not found in $PATH"),
            ),
            (true, true) => (
                EXIT_NOT_FOUND,
                format!("exec: {name:?}: no such file or directory"),
            ),
            (false, _) => (
                EXIT_NOT_EXECUTABLE,
                format!("exec: {name:?}: {}", reason(&worst)),
            ),
        }
    }
}

fn is_absence(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR))
}

fn reason(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EACCES) => "permission denied",
        Some(libc::ENOEXEC) => "exec format error",
        Some(libc::E2BIG) => "argument list too long",
        Some(libc::ELOOP) => "too many levels of symbolic links",
        Some(libc::ETXTBSY) => "text file busy",
        _ => "cannot be executed",
    }
}

fn path_of(env: &[(String, String)]) -> &str {
    env.iter()
        .rev()
        .find(|(key, _)| key == "PATH")
        .map_or(DEFAULT_PATH, |(_, value)| value)
}

/// The files that `name` may mean, in the order in which they are tried.
fn candidates(name: &str, path: &str) -> Vec<String> {
    if name.contains('/') {
        return vec![name.to_owned()];
    }
    if name.is_empty() {
        return Vec::new();
    }
    path.split(':')
        .map(|directory| {
            if directory.is_empty() {
                format!("./{name}")
            } else {
                format!("{directory}/{name}")
            }
        })
        .collect()
}
