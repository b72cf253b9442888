//! A server that answers although the machine is busy with its builds: it gets the processors before them, as far as the system lets it.
//!
//! The niceness counts among the processes of a control group, or where the system groups by session, of a session. There, it is also that of
//! the server's session, if the server leads one, as what a service manager starts does. Workers go back to what the server began with.

use std::fs;
use std::io;

use rustix::process::{Pid, getpid, getpriority_process, getsid, setpriority_process};

use crate::worker_args::NICENESS;

/// The niceness of the session of whoever reads or writes this, where the system groups by session.
const SESSION: &str = "/proc/self/autogroup";

/// Gives every thread of this process a niceness. Returns what workers are to be started with, to go back to the one before.
pub(super) fn go_before(niceness: i32) -> Vec<String> {
    let before = match getpriority_process(None) {
        Ok(before) if before > niceness => before,
        // It is there already, or nobody can tell.
        Ok(_) | Err(_) => return Vec::new(),
    };
    if let Err(error) = every_thread(niceness) {
        tracing::info!(%error, niceness, "the server gets no processor sooner than its builds");
        return Vec::new();
    }
    let leads_session = getsid(None).is_ok_and(|session| session == getpid());
    if leads_session && let Err(error) = fs::write(SESSION, niceness.to_string()) {
        tracing::debug!(%error, "the session gets no processor sooner than others");
    }
    vec![NICENESS.to_owned(), before.to_string()]
}

/// Threads have a niceness each, and give it to those that they start.
fn every_thread(niceness: i32) -> io::Result<()> {
    for entry in fs::read_dir("/proc/self/task")? {
        let name = entry?.file_name();
        let id = name.to_str().and_then(|name| name.parse().ok());
        let Some(id) = id.and_then(Pid::from_raw) else {
            continue;
        };
        match setpriority_process(Some(id), niceness) {
            // It has ended meanwhile.
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
