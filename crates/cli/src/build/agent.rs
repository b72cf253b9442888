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
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
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
/// Largest message of the protocol, as agents have it.
const MESSAGE_MAX_BYTES: u32 = 256 << 10;
/// Most programs that talk to one agent at the same time.
const CONNECTIONS_MAX: usize = 64;
/// `SSH_AGENT_FAILURE`.
const FAILURE: u8 = 5;
/// `SSH_AGENTC_REQUEST_IDENTITIES` and `SSH_AGENTC_SIGN_REQUEST`.
const PASSED_ON: [u8; 2] = [11, 13];

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
    for (index, arg) in args.iter().enumerate() {
        let agent = agent_of(arg)?;
        let name = format!("{PREFIX}{index}");
        let listener = listen(folder, &name, reader)
            .with_context(|| format!("put up a socket in {}", folder.display()))
            .or_exit(Exit::Machine)?;
        agents.serving.spawn(accept(listener, agent));
        let socket = folder.join(name);
        if agents.sockets.insert(arg.id.clone(), socket).is_some() {
            let text = format!("two SSH agents have the id {:?}", arg.id);
            return Err(Failure::text(Exit::Usage, text));
        }
    }
    Ok(agents)
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

fn listen(folder: &Path, name: &str, reader: Reader) -> std::io::Result<UnixListener> {
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
    Ok(listener)
}

async fn accept(listener: UnixListener, agent: PathBuf) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // Without its socket the build goes on without the agent.
                let Ok((client, _)) = accepted else { return };
                if connections.len() < CONNECTIONS_MAX {
                    let agent = agent.clone();
                    // A client that talks nonsense, or an agent that is gone: the client sees the end.
                    connections.spawn(async move { drop(relay(client, &agent).await) });
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Passes requests on, one after the other.
async fn relay(mut client: UnixStream, agent: &Path) -> std::io::Result<()> {
    let mut agent = UnixStream::connect(agent).await?;
    while let Some(request) = read_message(&mut client).await? {
        let is_allowed = request.first().is_some_and(|kind| PASSED_ON.contains(kind));
        let answer = if is_allowed {
            write_message(&mut agent, &request).await?;
            let answer = read_message(&mut agent).await?;
            answer.ok_or(std::io::ErrorKind::UnexpectedEof)?
        } else {
            vec![FAILURE]
        };
        write_message(&mut client, &answer).await?;
    }
    Ok(())
}

async fn read_message(from: &mut UnixStream) -> std::io::Result<Option<Vec<u8>>> {
    let length = match from.read_u32().await {
        Ok(length) => length,
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    if length == 0 || length > MESSAGE_MAX_BYTES {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    let mut message = Vec::new();
    let n = from
        .take(u64::from(length))
        .read_to_end(&mut message)
        .await?;
    if n as u64 != u64::from(length) {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(message))
}

async fn write_message(to: &mut UnixStream, message: &[u8]) -> std::io::Result<()> {
    let length = u32::try_from(message.len()).map_err(std::io::Error::other)?;
    to.write_all(&[&length.to_be_bytes()[..], message].concat())
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An agent that answers every request with its kind.
    fn echo(folder: &Path) -> PathBuf {
        let path = folder.join("real");
        let listener = UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                tokio::spawn(async move {
                    while let Ok(Some(request)) = read_message(&mut client).await {
                        write_message(&mut client, &[b'!', request[0]])
                            .await
                            .unwrap();
                    }
                });
            }
        });
        path
    }

    #[tokio::test]
    async fn only_listing_and_signing_reach_the_agent() {
        let folder = tempfile::tempdir().unwrap();
        let socket = Some(echo(folder.path()));
        let arg = SshArg {
            id: "x".to_owned(),
            socket,
        };
        let agents = serve(std::slice::from_ref(&arg), folder.path(), Reader::Caller).unwrap();
        let mut client = UnixStream::connect(&agents.sockets["x"]).await.unwrap();
        for kind in 0..=255 {
            write_message(&mut client, &[kind, 1, 2]).await.unwrap();
            let answer = read_message(&mut client).await.unwrap().unwrap();
            let passed = matches!(kind, 11 | 13);
            assert_eq!(
                answer,
                if passed {
                    vec![b'!', kind]
                } else {
                    vec![FAILURE]
                }
            );
        }
        // Too long, and nothing at all: the end.
        for length in [MESSAGE_MAX_BYTES + 1, 0] {
            let mut client = UnixStream::connect(&agents.sockets["x"]).await.unwrap();
            client.write_u32(length).await.unwrap();
            assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        }
        drop(agents);
        assert!(serve(&[arg.clone(), arg], folder.path(), Reader::Caller).is_err());
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
