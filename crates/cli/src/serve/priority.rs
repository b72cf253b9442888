//! A server that answers although the machine is busy with its builds: it gets the processors before them, as far as the system lets it.
//!
//! The niceness counts among the processes of a control group, or where the system groups by session, of a session. There, it is also that of
//! the server's session, if the server leads one, as what a service manager starts does. Workers go back to what the server began with.

use std::fs;
use std::io;

use rustix::process::{Pid, getpriority_process, setpriority_process};

use crate::worker_args::NICENESS;

/// The niceness of the session of whoever reads or writes this, where the system groups by session.
const SESSION: &str = "/proc/self/autogroup";

/// State of this process, `proc_pid_stat(5)`. `getsid` of rustix does not bear a session whose leader is in another pid namespace, as that of
/// a shell in a container may be.
const STATE: &str = "/proc/self/stat";

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
    let leads_session = fs::read_to_string(STATE).is_ok_and(|state| leads_session(&state));
    if leads_session && let Err(error) = fs::write(SESSION, niceness.to_string()) {
        tracing::debug!(%error, "the session gets no processor sooner than others");
    }
    vec![NICENESS.to_owned(), before.to_string()]
}

/// Tells whether the process leads its session: `id (name) state parent group session ...`, where a name holds anything. The session is 0
/// when its leader cannot be seen from here.
fn leads_session(state: &str) -> bool {
    let id = state.split(' ').next();
    let session = state
        .rsplit(')')
        .next()
        .and_then(|rest| rest.split(' ').nth(4));
    id.is_some() && id == session
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

#[cfg(test)]
mod tests {
    use super::leads_session;

    #[test]
    fn who_has_the_id_of_its_session_leads_it() {
        assert!(leads_session("71 (kiln) S 1 71 71 0 -1 4194560 1"));
        assert!(leads_session("71 (a ) S 1 2 3) S 1 71 71 0 -1"));
        assert!(!leads_session("71 (kiln) S 1 71 70 0 -1 4194560 1"));
    }

    #[test]
    fn a_session_of_another_pid_namespace_is_led_by_nobody_here() {
        assert!(!leads_session("2 (kiln) S 1 0 0 0 -1 4194560 1"));
        assert!(!leads_session("0 (kiln) S"));
        assert!(!leads_session(""));
    }
}
