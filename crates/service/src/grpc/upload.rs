//! `CreateContext`: one conversation, from the header to the id.
//!
//! 1. the header says how much there will be;
//! 2. entries come until there are as many;
//! 3. we name the contents that the tenant lacks;
//! 4. those come, and the caller closes its side: nothing that was sent is left unread;
//! 5. we say the id.
//!
//! Each piece has its time, and so has the whole. Whatever ends the conversation, what came whole is kept for the next try.

use std::time::Duration;

use api::kiln::v1 as wire;
use api::kiln::v1::create_context_request::Message as Asked;
use api::kiln::v1::create_context_response::Message as Said;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use oci::Digest;
use prost::Message as _;
use store::context::{Announced, ContentId, Entry, EntryKind};
use tokio::sync::mpsc;
use tonic::{Code, Status, Streaming};

use super::Calls;
use crate::access::Tenant;
use crate::contexts::{Contexts, Upload};
use crate::failure::{Blame, Failure};

/// Largest message; a client sends a piece of content or some hundred entries in one.
const MESSAGE_MAX_BYTES: usize = 4 << 20;
/// Positions of missing contents in one message.
const MISSING_AT_ONCE: usize = 1 << 14;

type Answers = BoxStream<'static, Result<wire::CreateContextResponse, Status>>;
type Sender = mpsc::Sender<Result<wire::CreateContextResponse, Status>>;

/// Carries the conversation on in the background, and returns what we say in it.
pub(super) fn receive(
    calls: &Calls,
    tenant: Tenant,
    messages: Streaming<wire::CreateContextRequest>,
) -> Answers {
    let (said, answers) = mpsc::channel(1);
    let (contexts, shutdown) = (calls.inner.contexts.clone(), calls.inner.shutdown.clone());
    calls.inner.tasks.spawn(async move {
        let mut upload = None;
        let ended = {
            let talk = talk(&contexts, &tenant, messages, &said, &mut upload);
            let talk = tokio::time::timeout(contexts.upload_timeout(), talk);
            tokio::select! {
                ended = talk => ended.unwrap_or_else(|_| Err(too_slow(contexts.upload_timeout()).status())),
                () = said.closed() => Ok(()),
                () = shutdown.cancelled() => {
                    Err(Failure::new(Blame::Shutdown, "server is shutting down").status())
                }
            }
        };
        if let Some(upload) = upload {
            Upload::end(upload).await;
        }
        if let Err(status) = ended {
            // Nobody listens any more: then nobody needs it.
            let _ = said.send(Err(status)).await;
        }
    });
    stream::unfold(answers, |mut answers| async move {
        answers.recv().await.map(|answer| (answer, answers))
    })
    .boxed()
}

async fn talk(
    contexts: &Contexts,
    tenant: &Tenant,
    messages: Streaming<wire::CreateContextRequest>,
    said: &Sender,
    slot: &mut Option<Upload>,
) -> Result<(), Status> {
    let mut asked = Conversation {
        messages,
        patience: contexts.piece_timeout(),
    };
    let refused = |failure: Failure| failure.status();
    let Some(Asked::Header(header)) = asked.next().await? else {
        return Err(out_of_turn("a header"));
    };
    let announced = Announced {
        n_entries: header.n_entries,
        n_bytes: header.n_bytes,
    };
    let upload = contexts.begin(tenant, announced).await.map_err(refused)?;
    let upload = slot.insert(upload);
    let mut is_listed = announced.n_entries == 0;
    while !is_listed {
        let Some(Asked::Entries(message)) = asked.next().await? else {
            return Err(out_of_turn("entries"));
        };
        if message.entries.is_empty() {
            return Err(request("a message of entries has none").status());
        }
        let entries = message
            .entries
            .into_iter()
            .map(entry)
            .collect::<Result<_, _>>();
        let entries = entries.map_err(refused)?;
        is_listed = upload.entries(entries).await.map_err(refused)?;
    }
    let missing = upload.missing().await.map_err(refused)?;
    for piece in in_pieces(&missing) {
        say(said, Said::Missing(piece)).await?;
    }
    let mut is_complete = missing.is_empty();
    while !is_complete {
        let Some(Asked::Content(content)) = asked.next().await? else {
            return Err(out_of_turn("content"));
        };
        if content.data.is_empty() {
            return Err(request("a message of content has none").status());
        }
        is_complete = upload
            .content(Bytes::from(content.data))
            .await
            .map_err(refused)?;
    }
    if asked.next().await?.is_some() {
        return Err(request("something came that was not asked for").status());
    }
    let (id, expires_at_ms) = upload.commit().await.map_err(refused)?;
    let created = wire::ContextCreated {
        context_id: id.to_string(),
        expires_at_ms: i64::try_from(expires_at_ms).unwrap_or(i64::MAX),
    };
    say(said, Said::Created(created)).await
}

async fn say(said: &Sender, message: Said) -> Result<(), Status> {
    let message = wire::CreateContextResponse {
        message: Some(message),
    };
    // The conversation is over when nobody listens: the one who waits for that notices.
    let sent = said.send(Ok(message)).await;
    sent.map_err(|_| Status::cancelled("the caller has gone"))
}

/// What the caller says.
struct Conversation {
    messages: Streaming<wire::CreateContextRequest>,
    patience: Duration,
}

impl Conversation {
    /// Returns the next message; `None` once the caller has closed its side.
    async fn next(&mut self) -> Result<Option<Asked>, Status> {
        let next = tokio::time::timeout(self.patience, self.messages.message()).await;
        let next = next.map_err(|_| too_slow(self.patience).status())?;
        let Some(message) = next.map_err(undecodable)? else {
            return Ok(None);
        };
        if message.encoded_len() > MESSAGE_MAX_BYTES {
            let text = format!("a message has more than {MESSAGE_MAX_BYTES} bytes");
            return Err(request(&text).status());
        }
        match message.message {
            Some(message) => Ok(Some(message)),
            None => Err(request("a message is empty, or of a kind that is not known").status()),
        }
    }
}

/// Bytes that are no message are the caller's fault, which the library calls ours.
fn undecodable(status: Status) -> Status {
    let is_callers = status.code() == Code::Internal && status.message().contains("decode");
    if is_callers {
        request("a message cannot be decoded").status()
    } else {
        status
    }
}

fn request(text: &str) -> Failure {
    Failure::new(Blame::Request, text)
}

fn too_slow(patience: Duration) -> Failure {
    let text = format!(
        "nothing, or not everything, has come within {} s",
        patience.as_secs()
    );
    Failure::new(Blame::Slow, text)
}

fn out_of_turn(expected: &str) -> Status {
    request(&format!(
        "the upload goes on with {expected}, and something else came, or nothing more"
    ))
    .status()
}

/// Cuts positions into messages; there is a last one even when nothing is missing.
fn in_pieces(missing: &[u64]) -> Vec<wire::MissingContents> {
    let piece = |entries: &[u64]| wire::MissingContents {
        entries: entries.to_vec(),
        last: false,
    };
    let mut pieces: Vec<_> = missing.chunks(MISSING_AT_ONCE).map(piece).collect();
    if pieces.is_empty() {
        pieces.push(piece(&[]));
    }
    if let Some(last) = pieces.last_mut() {
        last.last = true;
    }
    pieces
}

/// Takes an entry apart; whether it may be, the store decides.
fn entry(entry: wire::ContextEntry) -> Result<Entry, Failure> {
    use wire::context_entry::Kind;
    let wire::ContextEntry {
        path,
        mode,
        modified_s,
        modified_ns,
        xattrs,
        kind,
    } = entry;
    let kind = match kind {
        Some(Kind::Folder(wire::ContextFolder {})) => EntryKind::Folder,
        Some(Kind::File(wire::ContextFile { size, digest })) => EntryKind::File {
            size,
            content: content(&digest)?,
        },
        Some(Kind::Symlink(to)) => EntryKind::Symlink(to),
        Some(Kind::HardLink(to)) => EntryKind::HardLink(to),
        Some(Kind::Pipe(wire::ContextPipe {})) => EntryKind::Pipe,
        None => return Err(request("an entry has no kind, or one that is not known")),
    };
    let xattrs = xattrs
        .into_iter()
        .map(|(name, value)| (name.into_bytes(), value));
    Ok(Entry {
        path,
        mode,
        modified_s,
        modified_ns,
        xattrs: xattrs.collect(),
        kind,
    })
}

fn content(digest: &str) -> Result<ContentId, Failure> {
    let digest: Digest = digest
        .parse()
        .map_err(|error| Failure::field("digest", &error))?;
    ContentId::new(&digest).ok_or_else(|| request("digest: only sha256 is supported"))
}
