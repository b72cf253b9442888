//! `--ssh`: a socket in the build's folder for each agent, behind which only some requests are passed on.
//!
//! The worker and the commands of the build reach this socket and never the agent's own. They may ask for the list of keys, and for
//! signatures; whatever would change the agent (adding, removing, locking), and every extension, is answered with a failure.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use engine::agent::{self, Request};
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use super::import::Reader;
use crate::args::steps::SshArg;
use crate::environment;
use crate::failure::{Exit, Failure, OrExit, Outcome};

/// Where the environment says that the user's agent listens.
const VARIABLE: &str = "SSH_AUTH_SOCK";
/// Names of sockets in a build's folder begin with this.
const PREFIX: &str = "ssh-";

/// Agents that the steps of a build may use, as long as this is there.
#[derive(Debug, Default)]
pub(crate) struct Agents {
    /// The sockets in the build's folder, by id.
    pub(crate) sockets: BTreeMap<String, PathBuf>,
    serving: JoinSet<()>,
}

/// Puts up a socket in `folder` for each of `args`, for `reader`.
pub(crate) fn serve(args: &[SshArg], folder: &Path, reader: Reader) -> Outcome<Agents> {
    let mut agents = Agents::default();
    for (index, (id, path)) in find(args)?.into_iter().enumerate() {
        let (socket, listener) = listen(folder, index, reader)
            .with_context(|| format!("put up a socket in {}", folder.display()))
            .or_exit(Exit::Machine)?;
        let ask = move |request| {
            let path = path.clone();
            async move { ask(request, &path).await }
        };
        agents.serving.spawn(agent::serve(listener, ask));
        agents.sockets.insert(id, socket);
    }
    Ok(agents)
}

/// Returns where the agents that `args` name listen, by id.
pub(crate) fn find(args: &[SshArg]) -> Outcome<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    for arg in args {
        if found.insert(arg.id.clone(), agent_of(arg)?).is_some() {
            let text = format!("two SSH agents have the id {:?}", arg.id);
            return Err(Failure::text(Exit::Usage, text));
        }
    }
    Ok(found)
}

fn agent_of(arg: &SshArg) -> Outcome<PathBuf> {
    let variable = || environment::variable(VARIABLE).filter(|path| !path.is_empty());
    let Some(path) = arg.socket.clone().or_else(|| variable().map(PathBuf::from)) else {
        let text = format!(
            "SSH agent {:?}: there is none: {VARIABLE} is not set",
            arg.id
        );
        return Err(Failure::text(Exit::Usage, text).hint("start one: eval $(ssh-agent); ssh-add"));
    };
    let shown = path.display();
    let found = fs::metadata(&path)
        .with_context(|| format!("SSH agent {:?}: open \"{shown}\"", arg.id))
        .or_exit(Exit::Usage)?;
    if !found.file_type().is_socket() {
        let text = format!(
            "SSH agent {:?}: \"{shown}\" is not the socket of an agent",
            arg.id
        );
        let hint = "a key file is given to an agent: ssh-add KEY, then --ssh default";
        return Err(Failure::text(Exit::Usage, text).hint(hint));
    }
    Ok(path)
}

/// Puts up the socket of the agent that is the `index`th, in a build's folder; only `reader` may connect.
pub(crate) fn listen(
    folder: &Path,
    index: usize,
    reader: Reader,
) -> std::io::Result<(PathBuf, UnixListener)> {
    let name = &*format!("{PREFIX}{index}");
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(CWD, folder, flags, Mode::empty())?;
    // By descriptor: the address of a socket holds no long path.
    let listener = UnixListener::bind(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()))?;
    rustix::fs::chmodat(
        &directory,
        name,
        Mode::from_raw_mode(0o600),
        AtFlags::empty(),
    )?;
    if let Reader::Other(uid, gid) = reader {
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        rustix::fs::chownat(&directory, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok((folder.join(name), listener))
}

/// Asks the agent at `agent`; `None` when it is gone or talks nonsense.
pub(super) async fn ask(request: Request, agent: &Path) -> Option<Vec<u8>> {
    let mut agent = UnixStream::connect(agent).await.ok()?;
    request.ask(&mut agent).await.ok()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// An agent that answers every request of two bytes with an exclamation mark.
    fn echo(folder: &Path) -> PathBuf {
        let path = folder.join("real");
        let listener = UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                client.read_exact(&mut [0; 6]).await.unwrap();
                client.write_all(&[0, 0, 0, 1, b'!']).await.unwrap();
            }
        });
        path
    }

    #[tokio::test]
    async fn only_listing_and_signing_reach_the_agent() {
        let folder = tempfile::tempdir().unwrap();
        let real = echo(folder.path());
        let arg = SshArg {
            id: "x".to_owned(),
            socket: Some(real.clone()),
        };
        let agents = serve(std::slice::from_ref(&arg), folder.path(), Reader::Caller).unwrap();
        let mut client = UnixStream::connect(&agents.sockets["x"]).await.unwrap();
        let mut ask = async |kind| {
            client.write_all(&[0, 0, 0, 2, kind, 1]).await.unwrap();
            let mut answer = [0; 5];
            client.read_exact(&mut answer).await.unwrap();
            answer
        };
        for (kind, answer) in [(11, b'!'), (13, b'!'), (17, 5), (22, 5), (27, 5)] {
            assert_eq!(ask(kind).await, [0, 0, 0, 1, answer], "{kind}");
        }
        fs::remove_file(real).unwrap();
        assert_eq!(ask(11).await, [0, 0, 0, 1, 5], "the agent is gone");
    }

    #[test]
    fn two_agents_of_one_id_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("real");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let arg = |id: &str| SshArg {
            id: id.to_owned(),
            socket: Some(socket.clone()),
        };
        assert_eq!(find(&[arg("a"), arg("b")]).unwrap().len(), 2);
        let failure = find(&[arg("a"), arg("a")]).unwrap_err();
        assert_eq!(failure.exit(), Exit::Usage);
    }

    #[tokio::test]
    async fn a_key_file_is_not_an_agent() {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("id_ed25519");
        std::fs::write(&key, "-----BEGIN").unwrap();
        let arg = SshArg {
            id: "default".to_owned(),
            socket: Some(key),
        };
        let failure = serve(&[arg], folder.path(), Reader::Caller).unwrap_err();
        assert_eq!(failure.exit(), Exit::Usage);
    }
}
