//! `ForwardAgent`: a caller answers what the steps of its build ask an SSH agent, for as long as the stream or the build lasts.
//!
//! The first message says which agent of which build; every other one answers a question that was put. Whatever ends the conversation,
//! open questions are answered with a failure then, and the build goes on.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use api::kiln::v1 as wire;
use api::kiln::v1::forward_agent_request::Message as Said;
use engine::agent::MESSAGE_MAX_BYTES;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use tokio::sync::{mpsc, oneshot};
use tonic::{Status, Streaming};

use super::Calls;
use crate::access::Tenant;
use crate::agents::{AgentId, Lease, LendError, Question};
use crate::builds::build::Build;
use crate::failure::{Blame, Failure};

/// How long the first message may take.
const OFFER_TIMEOUT: Duration = Duration::from_secs(10);

type Asked = Result<wire::ForwardAgentResponse, Status>;

/// Carries the conversation on in the background, and returns what we ask in it.
pub(super) fn forward(
    calls: &Calls,
    tenant: Tenant,
    mut messages: Streaming<wire::ForwardAgentRequest>,
) -> BoxStream<'static, Asked> {
    let (asked, questions) = mpsc::channel(1);
    let (calls, shutdown) = (calls.clone(), calls.inner.shutdown.clone());
    let tasks = calls.inner.tasks.clone();
    tasks.spawn(async move {
        let ended = {
            let talk = async {
                let (build, lease) = offer(&calls, &tenant, &mut messages).await?;
                relay(&build, lease, messages, &asked).await
            };
            tokio::select! {
                ended = talk => ended,
                () = asked.closed() => Ok(()),
                () = shutdown.cancelled() => {
                    Err(Failure::new(Blame::Shutdown, "server is shutting down").status())
                }
            }
        };
        if let Err(status) = ended {
            // Nobody listens any more: then nobody needs it.
            let _ = asked.send(Err(status)).await;
        }
    });
    stream::unfold(questions, |mut questions| async move {
        questions.recv().await.map(|question| (question, questions))
    })
    .boxed()
}

/// Takes the first message.
async fn offer(
    calls: &Calls,
    tenant: &Tenant,
    messages: &mut Streaming<wire::ForwardAgentRequest>,
) -> Result<(Arc<Build>, Lease), Status> {
    let first = tokio::time::timeout(OFFER_TIMEOUT, messages.message()).await;
    let slow = |_| Failure::new(Blame::Slow, "no offer has come").status();
    let first = first.map_err(slow)??.and_then(|message| message.message);
    let Some(Said::Offer(wire::AgentOffer { build_id, agent })) = first else {
        return Err(request("the first message is no offer"));
    };
    let build = calls.native_build(tenant, &build_id)?;
    let id: AgentId = agent
        .parse()
        .map_err(|error| Failure::field("agent", &error).status())?;
    let lease = build.agents.lend(&id).map_err(|error| match error {
        LendError::Unknown => Failure::new(Blame::Missing, error.to_string()).status(),
        LendError::Lent => Failure::new(Blame::Conflict, error.to_string()).status(),
    })?;
    Ok((build, lease))
}

/// Questions that were put, by number.
#[derive(Default)]
struct Open {
    n_put: u64,
    answers: HashMap<u64, oneshot::Sender<Vec<u8>>>,
}

/// Puts questions and takes answers, until the caller or the build has had enough.
async fn relay(
    build: &Build,
    mut lease: Lease,
    mut messages: Streaming<wire::ForwardAgentRequest>,
    asked: &mpsc::Sender<Asked>,
) -> Result<(), Status> {
    let mut open = Open::default();
    let mut progress = build.watch();
    let ended = async move {
        // An error: the build is forgotten, which only happens to those that have ended.
        drop(
            progress
                .wait_for(|progress| progress.state.is_terminal())
                .await,
        );
    };
    let mut ended = std::pin::pin!(ended);
    loop {
        tokio::select! {
            () = &mut ended => return Ok(()),
            question = lease.next() => match question {
                Some(question) => {
                    let message = open.put(question);
                    if asked.send(Ok(message)).await.is_err() {
                        return Ok(());
                    }
                }
                None => return Ok(()),
            },
            message = messages.message() => match message? {
                Some(message) => open.take(message)?,
                None => return Ok(()),
            },
        }
    }
}

impl Open {
    fn put(&mut self, question: Question) -> wire::ForwardAgentResponse {
        // Who has given up waiting: there are no more than may connect to a socket.
        self.answers.retain(|_, answer| !answer.is_closed());
        let number = self.n_put;
        self.n_put += 1;
        self.answers.insert(number, question.answer);
        let data = question.request.into_bytes();
        wire::ForwardAgentResponse {
            request: Some(wire::AgentMessage { number, data }),
        }
    }

    fn take(&mut self, message: wire::ForwardAgentRequest) -> Result<(), Status> {
        let Some(Said::Answer(wire::AgentMessage { number, data })) = message.message else {
            return Err(request("a message is no answer"));
        };
        if number >= self.n_put {
            return Err(request("an answer to what was not asked"));
        }
        if data.is_empty() || data.len() > MESSAGE_MAX_BYTES {
            let text = format!("an answer has 1 to {MESSAGE_MAX_BYTES} bytes");
            return Err(request(&text));
        }
        // Answered twice, or too late: nobody waits.
        if let Some(answer) = self.answers.remove(&number) {
            let _gone = answer.send(data);
        }
        Ok(())
    }
}

fn request(text: &str) -> Status {
    Failure::new(Blame::Request, text).status()
}
