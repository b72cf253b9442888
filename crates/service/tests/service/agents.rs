//! SSH agents that callers lend to builds: who may, what passes, and what happens when somebody goes away.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::kiln::v1 as wire;
use api::kiln::v1::forward_agent_request::Message;
use engine::event::{Event, FailureKind};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::harness::{Server, Worker, World, soon};
use crate::native::{request, started};

/// `SSH_AGENT_FAILURE`, with its length.
const FAILURE: [u8; 5] = [0, 0, 0, 1, 5];

/// A caller that lends an agent.
struct Lender {
    said: mpsc::UnboundedSender<Message>,
    questions: Streaming<wire::ForwardAgentResponse>,
}

impl Lender {
    /// Opens a stream and says nothing.
    async fn silent(server: &Server) -> Self {
        let (said, messages) = mpsc::unbounded_channel();
        let wrap = |message| wire::ForwardAgentRequest {
            message: Some(message),
        };
        let messages = UnboundedReceiverStream::new(messages).map(wrap);
        let mut client = server.native().await;
        let questions = soon(client.forward_agent(messages)).await.unwrap();
        Self {
            said,
            questions: questions.into_inner(),
        }
    }

    async fn of(server: &Server, build_id: &str, agent: &str) -> Self {
        let lender = Self::silent(server).await;
        lender.say(offer(build_id, agent));
        lender
    }

    fn say(&self, message: Message) {
        self.said.send(message).unwrap();
    }

    fn answer(&self, number: u64, data: &[u8]) {
        let data = data.to_vec();
        self.say(Message::Answer(wire::AgentMessage { number, data }));
    }

    async fn next(&mut self) -> Result<Option<wire::AgentMessage>, Status> {
        let question = soon(self.questions.message()).await?;
        Ok(question.map(|question| question.request.unwrap()))
    }

    async fn refused(mut self) -> Status {
        self.next().await.unwrap_err()
    }
}

fn offer(build_id: &str, agent: &str) -> Message {
    Message::Offer(wire::AgentOffer {
        build_id: build_id.to_owned(),
        agent: agent.to_owned(),
    })
}

/// Starts a build with two agents.
async fn build(world: &World, server: &Server) -> (String, Arc<Worker>) {
    let asked = wire::StartBuildRequest {
        ssh_agents: vec!["default".to_owned(), "other".to_owned()],
        ..request()
    };
    let id = started(server, asked).await;
    (id, world.worker().await)
}

/// What a step says to the socket that the worker was told of, and hears.
async fn ask(socket: PathBuf, message: &[u8]) -> Vec<u8> {
    let mut client = UnixStream::connect(socket).await.unwrap();
    say(&mut client, message).await
}

async fn say(client: &mut UnixStream, message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    client
        .write_all(&[&length, message].concat())
        .await
        .unwrap();
    let mut answer = vec![0; 4];
    soon(client.read_exact(&mut answer)).await.unwrap();
    let n = usize::try_from(u32::from_be_bytes(answer[..4].try_into().unwrap())).unwrap();
    answer.resize(4 + n, 0);
    soon(client.read_exact(&mut answer[4..])).await.unwrap();
    answer
}

fn socket(worker: &Worker, agent: &str) -> PathBuf {
    worker.spec.as_ref().unwrap().ssh[agent].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_asks_the_agent_of_the_caller_and_answers_find_their_question() {
    let world = World::new();
    let server = world.serve().await;
    let (id, worker) = build(&world, &server).await;
    let mut lender = Lender::of(&server, &id, "default").await;
    let first = tokio::spawn(ask(socket(&worker, "default"), &[11]));
    let one = lender.next().await.unwrap().unwrap();
    assert_eq!(one.data, [11]);
    let second = tokio::spawn(ask(socket(&worker, "default"), &[13, 7, 7]));
    let two = lender.next().await.unwrap().unwrap();
    assert_eq!(two.data, [13, 7, 7]);
    lender.answer(two.number, &[14, 2]);
    assert_eq!(second.await.unwrap(), [0, 0, 0, 2, 14, 2]);
    lender.answer(one.number, &[12, 1]);
    assert_eq!(first.await.unwrap(), [0, 0, 0, 2, 12, 1]);
    // Twice: nobody waits.
    lender.answer(one.number, &[12, 1]);
    // What would change the agent, and extensions, are answered here.
    let mut client = UnixStream::connect(socket(&worker, "default"))
        .await
        .unwrap();
    for kind in (0..=255).filter(|kind| ![11, 13].contains(kind)) {
        assert_eq!(say(&mut client, &[kind, 1]).await, FAILURE, "{kind}");
    }
    let asked = tokio::spawn(async move { say(&mut client, &[11]).await });
    let three = lender.next().await.unwrap().unwrap();
    assert_eq!(three.data, [11], "nothing else has come this far");
    lender.answer(three.number, &[12]);
    asked.await.unwrap();
    worker.fail(FailureKind::Dockerfile, "line 3");
    assert_eq!(lender.next().await.unwrap(), None, "the build has ended");
    let mut late = Lender::of(&server, &id, "default").await;
    assert_eq!(late.next().await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_lends_at_a_time_and_when_it_goes_the_build_goes_on() {
    let world = World::new();
    let server = world.serve().await;
    let (id, worker) = build(&world, &server).await;
    let mut lender = Lender::of(&server, &id, "default").await;
    let asked = tokio::spawn(ask(socket(&worker, "default"), &[11]));
    lender.next().await.unwrap().unwrap();
    let second = Lender::of(&server, &id, "default").await.refused().await;
    assert_eq!(second.code(), Code::AlreadyExists);
    // Another one of the same build is free.
    let other = Lender::of(&server, &id, "other").await;
    drop(lender);
    assert_eq!(asked.await.unwrap(), FAILURE);
    drop(other);
    // Somebody else may lend it now: as soon as the server has noticed.
    let begun = Instant::now();
    let waiting = tokio::spawn(ask(socket(&worker, "default"), &[11]));
    let mut next = loop {
        let mut next = Lender::of(&server, &id, "default").await;
        match next.next().await {
            Ok(question) => {
                next.answer(question.unwrap().number, &[12]);
                break next;
            }
            Err(status) => assert_eq!(status.code(), Code::AlreadyExists),
        }
        assert!(begun.elapsed() < Duration::from_secs(9));
    };
    assert_eq!(waiting.await.unwrap(), [0, 0, 0, 1, 12]);
    worker.event(Event::Cancelled);
    worker.die();
    assert_eq!(next.next().await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_builds_agents_and_messages_out_of_turn_are_refused() {
    let world = World::new();
    let server = world.serve().await;
    let (id, worker) = build(&world, &server).await;
    for unknown in ["", "x", "../../etc", &"a".repeat(26)] {
        let refused = Lender::of(&server, unknown, "default")
            .await
            .refused()
            .await;
        assert_eq!(refused.code(), Code::NotFound, "{unknown:?}");
        assert_eq!(refused.message(), "build not found");
    }
    let refused = Lender::of(&server, &id, "mine").await.refused().await;
    assert_eq!(refused.code(), Code::NotFound);
    let refused = Lender::of(&server, &id, "\u{1b}").await.refused().await;
    assert_eq!(refused.code(), Code::InvalidArgument);
    let lender = Lender::silent(&server).await;
    lender.answer(0, &[12]);
    assert_eq!(lender.refused().await.code(), Code::InvalidArgument);
    let Lender {
        said,
        mut questions,
    } = Lender::silent(&server).await;
    drop(said);
    let refused = soon(questions.message()).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    // An answer to nothing, to too little, with too much; a second offer.
    let answer = |number, data: Vec<u8>| Message::Answer(wire::AgentMessage { number, data });
    for wrong in [
        answer(7, vec![12]),
        answer(0, Vec::new()),
        answer(0, vec![12; (256 << 10) + 1]),
        offer(&id, "other"),
    ] {
        let mut lender = Lender::of(&server, &id, "default").await;
        let asked = tokio::spawn(ask(socket(&worker, "default"), &[11]));
        lender.next().await.unwrap().unwrap();
        lender.say(wrong);
        assert_eq!(lender.refused().await.code(), Code::InvalidArgument);
        assert_eq!(asked.await.unwrap(), FAILURE, "and the step goes on");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_lends_and_nobody_hangs() {
    let world = World::new();
    let mut server = world.serve().await;
    let (id, worker) = build(&world, &server).await;
    let begun = Instant::now();
    assert_eq!(ask(socket(&worker, "default"), &[11]).await, FAILURE);
    let waited = begun.elapsed().as_secs();
    assert!((9..20).contains(&waited), "{waited} s");
    // Whoever opens a stream and says nothing is not waited for.
    let silent = Lender::silent(&server).await.refused().await;
    assert_eq!(silent.code(), Code::DeadlineExceeded);
    let mut lender = Lender::of(&server, &id, "default").await;
    let asked = tokio::spawn(ask(socket(&worker, "default"), &[11]));
    lender.next().await.unwrap().unwrap();
    server.tell_to_stop();
    assert_eq!(lender.refused().await.code(), Code::Unavailable);
    drop(asked);
    server.stopped().await;
    // The next service finds the build, and no agent of it.
    let server = world.serve().await;
    let refused = Lender::of(&server, &id, "default").await.refused().await;
    assert_eq!(refused.code(), Code::NotFound);
    assert!(
        UnixStream::connect(socket(&worker, "default"))
            .await
            .is_err()
    );
    worker.event(Event::Cancelled);
    worker.die();
}
