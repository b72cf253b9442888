//! This machine's SSH agents, lent to a build on a server by `ForwardAgent`.
//!
//! The server asks for nothing but keys and signatures, and we believe it as little as it believes us: whatever else comes is answered with
//! a failure here. When the connection breaks it is made again; without the agent the build goes on, and tells what it lacks.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::kiln::v1 as wire;
use api::kiln::v1::forward_agent_request::Message;
use api::kiln::v1::kiln_client::KilnClient;
use engine::agent::{CONNECTIONS_MAX, FAILURE, Request};
use engine::id::BuildId;
use futures_util::stream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::{Code, Status};

use crate::build::agent;
use crate::client::Wire;
use crate::terminal;

/// How often a broken connection is made again without a request in between, and how long is waited each time.
const TRIES_MAX: u32 = 30;
const PAUSE: Duration = Duration::from_secs(1);

/// Lends `agents` to a build, until the returned set is dropped.
pub(super) fn lend(
    client: &KilnClient<Wire>,
    build: &BuildId,
    agents: BTreeMap<String, PathBuf>,
) -> JoinSet<()> {
    let mut lending = JoinSet::new();
    for (id, path) in agents {
        let offer = wire::AgentOffer {
            build_id: build.to_string(),
            agent: id,
        };
        lending.spawn(keep_lending(client.clone(), offer, path));
    }
    lending
}

async fn keep_lending(client: KilnClient<Wire>, offer: wire::AgentOffer, path: PathBuf) {
    let mut n_failed = 0;
    loop {
        let mut n_asked = 0;
        let lent = lend_once(client.clone(), offer.clone(), &path, &mut n_asked).await;
        // The build has ended.
        let Err(status) = lent else { return };
        n_failed = if n_asked > 0 { 1 } else { n_failed + 1 };
        if !may_pass(status.code()) || n_failed > TRIES_MAX {
            let (id, why) = (&offer.agent, status.message());
            terminal::say(&format!("SSH agent {id:?} is no longer lent: {why}"));
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Tells whether it may be another time next time.
fn may_pass(code: Code) -> bool {
    match code {
        // Our own stream before this one, whose end the server has not seen yet.
        Code::AlreadyExists
        | Code::Unavailable
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::Internal
        | Code::Aborted => true,
        Code::Ok
        | Code::InvalidArgument
        | Code::NotFound
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::DataLoss
        | Code::Unauthenticated => false,
    }
}

/// Answers requests until the stream ends: well, when the build has ended.
async fn lend_once(
    mut client: KilnClient<Wire>,
    offer: wire::AgentOffer,
    path: &Path,
    n_asked: &mut u64,
) -> Result<(), Status> {
    let (said, messages) = mpsc::channel(CONNECTIONS_MAX);
    let messages = stream::unfold(messages, |mut messages| async move {
        let message = messages.recv().await?;
        let message = wire::ForwardAgentRequest {
            message: Some(message),
        };
        Some((message, messages))
    });
    let gone = |_| Status::unavailable("the server listens no more");
    said.send(Message::Offer(offer)).await.map_err(gone)?;
    let mut questions = client.forward_agent(messages).await?.into_inner();
    let mut answering = JoinSet::new();
    loop {
        tokio::select! {
            question = questions.message() => {
                let Some(question) = question? else { return Ok(()) };
                *n_asked += 1;
                let wire::AgentMessage { number, data } = question.request.unwrap_or_default();
                let request = Request::new(data);
                let is_room = answering.len() < CONNECTIONS_MAX;
                let (said, path) = (said.clone(), path.to_owned());
                answering.spawn(async move {
                    let data = match request {
                        Some(request) if is_room => agent::ask(request, &path).await,
                        _ => None,
                    };
                    let data = data.unwrap_or_else(|| FAILURE.to_vec());
                    // The stream has ended meanwhile: nobody waits for the answer.
                    let _gone = said.send(Message::Answer(wire::AgentMessage { number, data })).await;
                });
            }
            Some(_) = answering.join_next() => {}
        }
    }
}
