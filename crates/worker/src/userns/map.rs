//! The helper that maps ids: a child that stays in the parent namespace, because only from there may the maps of a
//! range be written.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions};

use super::UserNsOptions;
use super::ids::{Extent, Ids, Writer};

/// What the helper answers when all went well.
const DONE: &[u8] = b"ok";

/// A started helper, waiting for its parent to be in the new namespace.
pub(super) struct Helper {
    pid: Pid,
    go: OwnedFd,
    answer: OwnedFd,
}

impl Helper {
    /// Forks the helper. The process must have a single thread.
    pub(super) fn start(ids: &Ids, options: &UserNsOptions) -> io::Result<Self> {
        let (go_reader, go) = pipe_with(PipeFlags::CLOEXEC)?;
        let (answer, answer_writer) = pipe_with(PipeFlags::CLOEXEC)?;
        let parent = rustix::process::getpid();
        // SAFETY: the process has a single thread, so the child may do anything the parent may.
        let forked = unsafe { libc::fork() };
        match forked {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                drop((go, answer));
                serve(parent, ids, options, go_reader, answer_writer)
            }
            pid => {
                let pid = Pid::from_raw(pid).ok_or_else(|| io::Error::other("no process id"))?;
                Ok(Self { pid, go, answer })
            }
        }
    }

    /// Lets the helper map this process's ids and waits for its answer.
    pub(super) fn map(self) -> Result<(), String> {
        let Self { pid, go, answer } = self;
        let said = File::from(go).write_all(b"g");
        let mut text = Vec::new();
        let heard = File::from(answer).read_to_end(&mut text);
        let reaped = rustix::process::waitpid(Some(pid), WaitOptions::empty());
        if let Err(error) = said
            .and(heard.map(drop))
            .and(reaped.map(drop).map_err(Into::into))
        {
            return Err(format!("talk to the helper: {error}"));
        }
        if text == DONE {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&text).into_owned())
        }
    }
}

fn serve(parent: Pid, ids: &Ids, options: &UserNsOptions, go: OwnedFd, answer: OwnedFd) -> ! {
    let mut word = [0_u8; 1];
    // An end of file means that the parent could not make its namespace: nothing to do.
    if File::from(go).read_exact(&mut word).is_ok() {
        let text = match write_maps(parent, ids, options) {
            Ok(()) => DONE.to_vec(),
            Err(reason) => reason.into_bytes(),
        };
        let _ = File::from(answer).write_all(&text);
    }
    // SAFETY: ends this process without running the exit handlers of the process it was forked from.
    unsafe { libc::_exit(0) }
}

fn write_maps(parent: Pid, ids: &Ids, options: &UserNsOptions) -> Result<(), String> {
    let maps = [
        ("uid_map", &ids.uids, &options.newuidmap),
        ("gid_map", &ids.gids, &options.newgidmap),
    ];
    for (file, extents, program) in maps {
        match ids.writer {
            Writer::Ourselves => write_map(parent, file, extents)?,
            Writer::Programs => run_program(parent, program, extents)?,
        }
    }
    Ok(())
}

pub(super) fn write_map(parent: Pid, file: &str, extents: &[Extent]) -> Result<(), String> {
    let mut text = String::new();
    for Extent {
        inside,
        outside,
        count,
    } in extents
    {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{inside} {outside} {count}");
    }
    let path = format!("/proc/{}/{file}", parent.as_raw_nonzero());
    std::fs::write(path, text).map_err(|error| format!("write {file}: {error}"))
}

fn run_program(parent: Pid, program: &Path, extents: &[Extent]) -> Result<(), String> {
    let mut command = Command::new(program);
    command
        .arg(parent.as_raw_nonzero().to_string())
        .stdin(Stdio::null());
    for Extent {
        inside,
        outside,
        count,
    } in extents
    {
        command.args([inside, outside, count].map(u32::to_string));
    }
    let output = command
        .output()
        .map_err(|error| format!("run {}: {error}", program.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(format!("{}: {}", program.display(), text.trim()))
}
