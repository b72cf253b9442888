//! The protocol of SSH agents, as much of it as builds may speak.
//!
//! Steps reach a socket in the build's folder and never an agent's own. [`serve`] answers on it: requests to list keys and to sign
//! become a [`Request`] and are asked of whoever has the agent; whatever would change the agent (adding, removing, locking), and every
//! extension, is answered with a failure. Nothing else can become a [`Request`], so that nothing else can be passed on.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

/// Largest message of the protocol, as agents have it.
pub const MESSAGE_MAX_BYTES: usize = 256 << 10;
/// Most programs that talk to one agent at the same time.
pub const CONNECTIONS_MAX: usize = 64;
/// `SSH_AGENT_FAILURE`: the whole message.
pub const FAILURE: [u8; 1] = [5];
/// `SSH_AGENTC_REQUEST_IDENTITIES` and `SSH_AGENTC_SIGN_REQUEST`.
const PASSED_ON: [u8; 2] = [11, 13];

/// A message that asks for nothing but the list of keys or a signature.
#[derive(Clone, PartialEq, Eq)]
pub struct Request(Vec<u8>);

impl std::fmt::Debug for Request {
    /// What is to be signed is nobody's business.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request")
            .field("kind", &self.0.first())
            .finish_non_exhaustive()
    }
}

impl Request {
    /// Returns `message` (without its length) as a request; `None` when it may not be passed on.
    pub fn new(message: Vec<u8>) -> Option<Self> {
        let is_allowed = message.first().is_some_and(|kind| PASSED_ON.contains(kind));
        (is_allowed && message.len() <= MESSAGE_MAX_BYTES).then_some(Self(message))
    }

    /// Returns the message, without its length.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// Asks the agent that listens on the other end of `agent`.
    ///
    /// # Errors
    /// When it says nothing, or nothing of the protocol.
    pub async fn ask(&self, agent: &mut UnixStream) -> io::Result<Vec<u8>> {
        write_message(agent, &self.0).await?;
        let answer = read_message(agent).await?;
        answer.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

/// Answers whoever connects to `listener`, until it breaks: requests with what `ask` returns, and with a failure when that is `None`.
///
/// Ends with the future; connections end with it.
pub async fn serve<A>(listener: UnixListener, ask: impl Fn(Request) -> A + Clone + Send + 'static)
where
    A: Future<Output = Option<Vec<u8>>> + Send,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // Without its socket the build goes on without the agent.
                let Ok((client, _)) = accepted else { return };
                if connections.len() < CONNECTIONS_MAX {
                    let ask = ask.clone();
                    // A client that talks nonsense sees the end.
                    connections.spawn(async move { drop(converse(client, ask).await) });
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Answers requests of one client, one after the other.
async fn converse<A>(mut client: UnixStream, ask: impl Fn(Request) -> A) -> io::Result<()>
where
    A: Future<Output = Option<Vec<u8>>>,
{
    while let Some(message) = read_message(&mut client).await? {
        let answer = match Request::new(message) {
            Some(request) => ask(request).await,
            None => None,
        };
        let answer = answer.unwrap_or_else(|| FAILURE.to_vec());
        write_message(&mut client, &answer).await?;
    }
    Ok(())
}

/// Reads a message; `None` when there is none any more.
///
/// # Errors
/// When it is empty, too long, or cut off.
async fn read_message(from: &mut UnixStream) -> io::Result<Option<Vec<u8>>> {
    let length = match from.read_u32().await {
        Ok(length) => length,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    let is_possible = usize::try_from(length).is_ok_and(|length| length <= MESSAGE_MAX_BYTES);
    if length == 0 || !is_possible {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut message = Vec::new();
    let n = from
        .take(u64::from(length))
        .read_to_end(&mut message)
        .await?;
    if n as u64 != u64::from(length) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(message))
}

async fn write_message(to: &mut UnixStream, message: &[u8]) -> io::Result<()> {
    let length = u32::try_from(message.len()).map_err(io::Error::other)?;
    to.write_all(&[&length.to_be_bytes()[..], message].concat())
        .await
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Serves, and answers each request with an exclamation mark and its kind; those that end in 0 with nothing.
    fn server() -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let ask = |request: Request| async move {
            let bytes = request.into_bytes();
            (bytes.last() != Some(&0)).then(|| vec![b'!', bytes[0]])
        };
        tokio::spawn(serve(listener, ask));
        (folder, path)
    }

    async fn answer(client: &mut UnixStream, message: &[u8]) -> Vec<u8> {
        write_message(client, message).await.unwrap();
        let read = tokio::time::timeout(Duration::from_secs(10), read_message(client));
        read.await.unwrap().unwrap().unwrap()
    }

    #[tokio::test]
    async fn only_listing_and_signing_are_asked() {
        let (_folder, path) = server();
        let mut client = UnixStream::connect(&path).await.unwrap();
        for kind in 0..=255 {
            let expected = match kind {
                11 | 13 => vec![b'!', kind],
                _ => FAILURE.to_vec(),
            };
            assert_eq!(answer(&mut client, &[kind, 1, 2]).await, expected, "{kind}");
        }
        assert_eq!(answer(&mut client, &[11, 0]).await, FAILURE);
        assert_eq!(
            answer(&mut client, &[11]).await,
            [b'!', 11],
            "the talk goes on"
        );
    }

    #[tokio::test]
    async fn nonsense_is_the_end_for_who_talks_it_and_for_nobody_else() {
        let (_folder, path) = server();
        let mut other = UnixStream::connect(&path).await.unwrap();
        for length in [0, u32::try_from(MESSAGE_MAX_BYTES).unwrap() + 1, u32::MAX] {
            let mut client = UnixStream::connect(&path).await.unwrap();
            client.write_u32(length).await.unwrap();
            assert_eq!(client.read(&mut [0]).await.unwrap(), 0, "{length}");
        }
        let mut cut_off = UnixStream::connect(&path).await.unwrap();
        cut_off.write_all(&[0, 0, 0, 9, 11, 1]).await.unwrap();
        cut_off.shutdown().await.unwrap();
        assert_eq!(cut_off.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(answer(&mut other, &[13, 1]).await, [b'!', 13]);
    }

    #[tokio::test]
    async fn the_largest_message_passes_and_only_so_many_talk_at_once() {
        let (_folder, path) = server();
        let mut largest = vec![1; MESSAGE_MAX_BYTES];
        largest[0] = 13;
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            let mut client = UnixStream::connect(&path).await.unwrap();
            assert_eq!(answer(&mut client, &[11]).await, [b'!', 11]);
            clients.push(client);
        }
        assert_eq!(answer(&mut clients[0], &largest).await, [b'!', 13]);
        let mut one_more = UnixStream::connect(&path).await.unwrap();
        assert_eq!(one_more.read(&mut [0]).await.unwrap(), 0);
        assert!(Request::new(vec![13; MESSAGE_MAX_BYTES + 1]).is_none());
        assert!(Request::new(Vec::new()).is_none());
    }
}
