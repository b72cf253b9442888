//! SSH agents that callers lend to builds.
//!
//! A build names the agents that its steps may use; its executor puts up a socket for each. Whoever connects there asks the caller that
//! lends the agent, through [`Lease`], as long as one does. Without one, requests wait for a little while and are then answered with a
//! failure; the build goes on either way. What may be asked at all is decided by [`engine::agent`].
//!
//! After a restart of the service nobody listens on the sockets of builds from before: their steps find that the agent is gone.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use engine::agent::{self, CONNECTIONS_MAX, MESSAGE_MAX_BYTES, Request};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

/// Longest id of an agent.
const ID_MAX_BYTES: usize = 128;
/// How long a request waits for somebody to lend the agent.
const LENDER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long somebody may think about a request: agents ask their users.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);

/// What a build calls an agent.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct AgentId(String);

/// Tells why something is not the id of an agent.
#[derive(Debug, thiserror::Error)]
pub enum AgentIdError {
    /// It is empty.
    #[error("the id of an agent is empty")]
    Empty,
    /// It is too long.
    #[error("the id of an agent has more than {ID_MAX_BYTES} bytes")]
    TooLong,
    /// It cannot be shown.
    #[error("the id of an agent has a character that cannot be printed")]
    Unprintable,
}

impl FromStr for AgentId {
    type Err = AgentIdError;

    fn from_str(text: &str) -> Result<Self, AgentIdError> {
        if text.is_empty() {
            return Err(AgentIdError::Empty);
        }
        if text.len() > ID_MAX_BYTES {
            return Err(AgentIdError::TooLong);
        }
        if text.chars().any(char::is_control) {
            return Err(AgentIdError::Unprintable);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AgentId {
    /// Returns its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The agents of one build.
#[derive(Debug, Default)]
pub struct Agents {
    by_id: BTreeMap<AgentId, Arc<Agent>>,
}

/// One agent: who lends it now, if anybody does.
#[derive(Debug, Default)]
struct Agent {
    lender: watch::Sender<Option<mpsc::Sender<Question>>>,
}

/// A request that waits for its answer. Without one, it was answered with a failure.
#[derive(Debug)]
pub struct Question {
    /// What is asked.
    pub request: Request,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Vec<u8>>,
}

/// Tells why an agent cannot be lent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LendError {
    /// The build has not asked for it.
    #[error("the build has no agent of that id")]
    Unknown,
    /// Somebody lends it.
    #[error("the agent is lent already")]
    Lent,
}

/// An agent that somebody lends: until this is dropped.
#[derive(Debug)]
pub struct Lease {
    agent: Arc<Agent>,
    questions: mpsc::Receiver<Question>,
}

impl Agents {
    /// Returns these agents, which nobody lends yet.
    pub fn new(ids: impl IntoIterator<Item = AgentId>) -> Self {
        let by_id = ids.into_iter().map(|id| (id, Arc::default()));
        Self {
            by_id: by_id.collect(),
        }
    }

    /// Returns which there are.
    pub fn ids(&self) -> Vec<AgentId> {
        self.by_id.keys().cloned().collect()
    }

    /// Lends an agent.
    ///
    /// # Errors
    /// When there is none of that id, or somebody lends it already.
    pub fn lend(&self, id: &AgentId) -> Result<Lease, LendError> {
        let agent = self.by_id.get(id).ok_or(LendError::Unknown)?;
        let (sender, questions) = mpsc::channel(CONNECTIONS_MAX);
        let is_free = agent.lender.send_if_modified(|lender| {
            let is_free = lender.is_none();
            if is_free {
                *lender = Some(sender);
            }
            is_free
        });
        if !is_free {
            return Err(LendError::Lent);
        }
        Ok(Lease {
            agent: Arc::clone(agent),
            questions,
        })
    }

    /// Answers whoever connects to `listeners`, until the returned set is dropped. A listener of an unknown id is closed.
    pub fn serve(&self, listeners: Vec<(AgentId, UnixListener)>) -> JoinSet<()> {
        let mut serving = JoinSet::new();
        for (id, listener) in listeners {
            let Some(agent) = self.by_id.get(&id) else {
                continue;
            };
            let agent = Arc::clone(agent);
            let ask = move |request| {
                let agent = Arc::clone(&agent);
                async move { agent.ask(request).await }
            };
            serving.spawn(agent::serve(listener, ask));
        }
        serving
    }
}

impl Agent {
    async fn ask(&self, request: Request) -> Option<Vec<u8>> {
        let mut lender = self.lender.subscribe();
        let found = tokio::time::timeout(LENDER_TIMEOUT, lender.wait_for(Option::is_some));
        let lender = found.await.ok()?.ok()?.clone()?;
        let (answer, answered) = oneshot::channel();
        lender.send(Question { request, answer }).await.ok()?;
        drop(lender);
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, answered).await;
        let answer = answer.ok()?.ok()?;
        let is_one = !answer.is_empty() && answer.len() <= MESSAGE_MAX_BYTES;
        is_one.then_some(answer)
    }
}

impl Lease {
    /// Returns the next question.
    pub async fn next(&mut self) -> Option<Question> {
        self.questions.recv().await
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // First nobody can ask any more; then those that have asked learn that there is no answer.
        self.agent.lender.send_replace(None);
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixStream;

    use super::*;

    struct Bench {
        agents: Agents,
        folder: tempfile::TempDir,
        _serving: JoinSet<()>,
    }

    fn id(text: &str) -> AgentId {
        text.parse().unwrap()
    }

    fn bench() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let agents = Agents::new([id("a"), id("b")]);
        let listener = |id: AgentId| {
            let socket = UnixListener::bind(folder.path().join(id.as_str())).unwrap();
            (id, socket)
        };
        let listeners = agents.ids().into_iter().map(listener).collect();
        let serving = agents.serve(listeners);
        Bench {
            agents,
            folder,
            _serving: serving,
        }
    }

    impl Bench {
        /// Asks for the list of keys of agent `a`, and returns the answer without its length.
        fn ask(&self) -> tokio::task::JoinHandle<Vec<u8>> {
            let path = self.folder.path().join("a");
            tokio::spawn(async move {
                let mut client = UnixStream::connect(path).await.unwrap();
                client.write_all(&[0, 0, 0, 1, 11]).await.unwrap();
                let n = client.read_u32().await.unwrap();
                let mut answer = vec![0; usize::try_from(n).unwrap()];
                client.read_exact(&mut answer).await.unwrap();
                answer
            })
        }
    }

    #[tokio::test]
    async fn a_request_waits_for_a_lender_and_gets_its_answer() {
        let bench = bench();
        let asked = bench.ask();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut lease = bench.agents.lend(&id("a")).unwrap();
        let question = lease.next().await.unwrap();
        assert_eq!(question.request.into_bytes(), [11]);
        question.answer.send(vec![12, 0, 0]).unwrap();
        assert_eq!(asked.await.unwrap(), [12, 0, 0]);
    }

    #[tokio::test]
    async fn whoever_lends_goes_away_and_the_next_one_is_asked() {
        let bench = bench();
        let mut lease = bench.agents.lend(&id("a")).unwrap();
        assert_eq!(bench.agents.lend(&id("a")).unwrap_err(), LendError::Lent);
        assert_eq!(bench.agents.lend(&id("c")).unwrap_err(), LendError::Unknown);
        let (taken, waiting) = (bench.ask(), bench.ask());
        let question = lease.next().await.unwrap();
        drop(lease);
        drop(question);
        let answers = [taken.await.unwrap(), waiting.await.unwrap()];
        assert_eq!(answers, [agent::FAILURE, agent::FAILURE]);
        let mut lease = bench.agents.lend(&id("a")).unwrap();
        let asked = bench.ask();
        let question = lease.next().await.unwrap();
        question.answer.send(vec![12]).unwrap();
        assert_eq!(asked.await.unwrap(), [12]);
    }

    #[tokio::test]
    async fn without_a_lender_and_without_a_sensible_answer_it_has_failed() {
        let bench = bench();
        let begun = tokio::time::Instant::now();
        assert_eq!(bench.ask().await.unwrap(), agent::FAILURE);
        assert!(begun.elapsed() >= LENDER_TIMEOUT);
        assert!(begun.elapsed() < LENDER_TIMEOUT * 2);
        let mut lease = bench.agents.lend(&id("a")).unwrap();
        for nonsense in [Vec::new(), vec![12; MESSAGE_MAX_BYTES + 1]] {
            let asked = bench.ask();
            let question = lease.next().await.unwrap();
            question.answer.send(nonsense).unwrap();
            assert_eq!(asked.await.unwrap(), agent::FAILURE);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_lends_and_never_answers_is_waited_for_so_long_and_then_it_has_failed() {
        let agents = Agents::new([id("a")]);
        let agent = Arc::clone(&agents.by_id[&id("a")]);
        let mut lease = agents.lend(&id("a")).unwrap();
        let begun = tokio::time::Instant::now();
        let asked = tokio::spawn(async move { agent.ask(Request::new(vec![11]).unwrap()).await });
        let question = lease.next().await.unwrap();
        assert_eq!(asked.await.unwrap(), None);
        assert_eq!(begun.elapsed(), ANSWER_TIMEOUT);
        // Whoever lends sees that nobody waits for it any more.
        assert!(question.answer.is_closed());
    }

    #[test]
    fn ids_can_be_shown() {
        let text = "a".repeat(ID_MAX_BYTES);
        assert_eq!(id(&text).as_str(), text);
        for wrong in ["", "a\nb", "\u{1b}[31m", &"a".repeat(ID_MAX_BYTES + 1)] {
            assert!(wrong.parse::<AgentId>().is_err(), "{wrong:?}");
        }
    }
}
