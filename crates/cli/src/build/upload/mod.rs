//! Uploads what is built from to a server: the other side of `CreateContext`.
//!
//! 1. list the folder, in one walk: what is ignored is not read, and never leaves this machine;
//! 2. say how much there is, and all entries;
//! 3. hear which contents the server lacks, and send those, each hashed once more: a file that has changed is an error that names it;
//! 4. close our side, and hear the id.

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{Read, Seek as _, Write as _};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use api::kiln::v1 as wire;
use api::kiln::v1::context_entry::Kind;
use api::kiln::v1::create_context_request::Message as Ask;
use api::kiln::v1::create_context_response::Message as Said;
use engine::spec::Limits;
use futures_util::stream;
use oci::Hasher;
use tokio::sync::mpsc;
use tonic::Streaming;

use crate::build::context::FolderInput;
use crate::build::import;
use crate::client::{self, Wire};
use crate::failure::{Exit, Failure, OrExit, Outcome};
use crate::tree::{Content, Listed, Listing};

/// A server's `kiln.v1`.
pub(crate) type Client = wire::kiln_client::KilnClient<Wire>;

/// Name of an archive in the context that is uploaded for it.
pub(crate) const ARCHIVE: &str = "context.tar";
/// Content in one message.
const PIECE_BYTES: usize = 512 << 10;
/// Entries in one message, in number and in bytes.
const ENTRIES_AT_ONCE: usize = 2000;
const ENTRIES_AT_ONCE_BYTES: usize = 512 << 10;
/// Messages that wait to be sent.
const WAITING_MAX: usize = 4;

/// A context on a server.
#[derive(Debug)]
pub(crate) struct Uploaded {
    /// Its id.
    pub(crate) context_id: String,
    /// How many bytes of content the server did not know.
    pub(crate) sent_bytes: u64,
}

/// Uploads a folder, without what is ignored.
pub(crate) async fn folder(
    client: &mut Client,
    input: &FolderInput,
    limits: &Limits,
) -> Outcome<Uploaded> {
    // Reading and hashing: nothing else of this program waits for anything meanwhile.
    let listing = tokio::task::block_in_place(|| import::list(input, limits))?;
    upload(client, listing).await
}

/// Uploads an OCI layout.
pub(crate) async fn layout(client: &mut Client, path: &Path, limits: &Limits) -> Outcome<Uploaded> {
    let listing = tokio::task::block_in_place(|| import::list_layout(path, limits))?;
    upload(client, listing).await
}

/// Uploads the archive on standard input, of which `start` was read, as the file [`ARCHIVE`] of a context.
pub(crate) async fn archive(
    client: &mut Client,
    start: Vec<u8>,
    limits: &Limits,
) -> Outcome<Uploaded> {
    let max_bytes = limits.context_bytes;
    let spool = move || spool(start.chain(std::io::stdin().lock()), max_bytes);
    let listing = tokio::task::block_in_place(spool).or_exit(Exit::Usage)?;
    upload(client, listing).await
}

/// Keeps what has to be known to its end before it is sent, in a file that nobody else has a name for.
fn spool(input: impl Read, max_bytes: u64) -> anyhow::Result<Listing> {
    let mut file = nameless().context("make a temporary file")?;
    let mut hasher = Hasher::sha256();
    let mut input = input.take(max_bytes.saturating_add(1));
    let mut buffer = vec![0; PIECE_BYTES];
    loop {
        let n = input.read(&mut buffer).context("read standard input")?;
        let piece = buffer.get(..n).unwrap_or_default();
        if piece.is_empty() {
            break;
        }
        hasher.update(piece);
        file.write_all(piece).context("write a temporary file")?;
    }
    let size = hasher.size_bytes();
    anyhow::ensure!(
        size <= max_bytes,
        "the context is larger than {max_bytes} bytes"
    );
    file.rewind().context("read a temporary file")?;
    Ok(Listing::of_file(ARCHIVE, file, size, hasher.finish()))
}

fn nameless() -> anyhow::Result<File> {
    use rustix::fs::{CWD, Mode, OFlags};
    let folder = std::env::temp_dir();
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    if let Ok(file) = rustix::fs::openat(CWD, &folder, flags, Mode::RUSR | Mode::WUSR) {
        return Ok(file.into());
    }
    // Not every file system can: a name that is gone at once.
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(|error| anyhow::anyhow!("get random bytes: {error}"))?;
    let path = folder.join(format!("kiln-{:032x}", u128::from_ne_bytes(random)));
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = rustix::fs::openat(CWD, &path, flags, Mode::RUSR | Mode::WUSR)?;
    std::fs::remove_file(&path)?;
    Ok(file.into())
}

async fn upload(client: &mut Client, listing: Listing) -> Outcome<Uploaded> {
    let listing = Arc::new(listing);
    let (asks, asked) = mpsc::channel(WAITING_MAX);
    let requests = stream::unfold(asked, |mut asked| async move {
        asked.recv().await.map(|message| (message, asked))
    });
    let answers = client.create_context(requests).await;
    let mut answers = answers.map_err(client::failure)?.into_inner();
    // Whether the server hears everything, its answer tells.
    let (all, to) = (Arc::clone(&listing), asks.clone());
    let telling = tokio::spawn(async move { tell(&all, &to).await });
    let missing = missing(&mut answers, listing.entries.len()).await;
    telling.abort();
    let missing = missing?;
    let all = Arc::clone(&listing);
    let sending = tokio::task::spawn_blocking(move || send(&all, &missing, &asks));
    let created = created(&mut answers).await;
    // The call ends, and with it whoever waits to say more in it.
    drop(answers);
    let sent_bytes = sending.await.or_exit(Exit::Internal)?;
    match (created, sent_bytes) {
        // What went wrong here is why the server got no further.
        (_, Err(failure)) | (Err(failure), Ok(_)) => Err(failure),
        (Ok(context_id), Ok(sent_bytes)) => Ok(Uploaded {
            context_id,
            sent_bytes,
        }),
    }
}

/// Says how much there is, and all entries.
async fn tell(listing: &Listing, to: &mpsc::Sender<wire::CreateContextRequest>) {
    let header = wire::ContextHeader {
        n_entries: listing.entries.len() as u64,
        n_bytes: listing.n_bytes(),
    };
    let mut message = ask(Ask::Header(header));
    let mut entries = listing.entries.iter().map(entry).peekable();
    loop {
        if to.send(message).await.is_err() || entries.peek().is_none() {
            return;
        }
        let (mut piece, mut n_bytes) = (Vec::new(), 0_usize);
        while piece.len() < ENTRIES_AT_ONCE
            && n_bytes < ENTRIES_AT_ONCE_BYTES
            && let Some(next) = entries.next()
        {
            n_bytes += n_bytes_of(&next);
            piece.push(next);
        }
        message = ask(Ask::Entries(wire::ContextEntries { entries: piece }));
    }
}

fn ask(message: Ask) -> wire::CreateContextRequest {
    let message = Some(message);
    wire::CreateContextRequest { message }
}

fn entry(listed: &Listed) -> wire::ContextEntry {
    let kind = match &listed.content {
        Content::Folder => Kind::Folder(wire::ContextFolder {}),
        Content::File { size, digest } => Kind::File(wire::ContextFile {
            size: *size,
            digest: digest.to_string(),
        }),
        Content::Symlink(to) => Kind::Symlink(to.clone()),
        Content::HardLink(to) => Kind::HardLink(to.clone()),
        Content::Pipe => Kind::Pipe(wire::ContextPipe {}),
    };
    let attributes = listed.attributes.iter();
    let attributes =
        attributes.map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), value.clone()));
    wire::ContextEntry {
        path: listed.path.clone(),
        mode: listed.mode,
        modified_s: listed.modified_s,
        modified_ns: listed.modified_ns,
        xattrs: attributes.collect(),
        kind: Some(kind),
    }
}

fn n_bytes_of(entry: &wire::ContextEntry) -> usize {
    let attributes = entry.xattrs.iter();
    let attributes: usize = attributes
        .map(|(name, value)| name.len() + value.len())
        .sum();
    let link = match &entry.kind {
        Some(Kind::Symlink(to) | Kind::HardLink(to)) => to.len(),
        _ => 0,
    };
    entry.path.len() + attributes + link
}

/// Hears which contents the server lacks: positions of entries.
async fn missing(
    answers: &mut Streaming<wire::CreateContextResponse>,
    n_entries: usize,
) -> Outcome<Vec<usize>> {
    let mut missing = Vec::new();
    loop {
        let Some(Said::Missing(piece)) = answer(answers).await? else {
            return Err(nonsense("something else than what it lacks"));
        };
        for position in piece.entries {
            let position = usize::try_from(position).unwrap_or(usize::MAX);
            if position >= n_entries || missing.last().is_some_and(|last| *last >= position) {
                return Err(nonsense("an entry that there is not, or one twice"));
            }
            missing.push(position);
        }
        if piece.last {
            return Ok(missing);
        }
    }
}

async fn created(answers: &mut Streaming<wire::CreateContextResponse>) -> Outcome<String> {
    match answer(answers).await? {
        Some(Said::Created(created)) if !created.context_id.is_empty() => Ok(created.context_id),
        _ => Err(nonsense("no context")),
    }
}

async fn answer(answers: &mut Streaming<wire::CreateContextResponse>) -> Outcome<Option<Said>> {
    let answer = answers.message().await.map_err(client::failure)?;
    Ok(answer.and_then(|answer| answer.message))
}

fn nonsense(what: &str) -> Failure {
    let text = format!("the server answered an upload with {what}");
    Failure::text(Exit::Unreachable, text)
}

/// Sends the missing contents one right after the other; returns how many bytes those are. Ends early when nobody listens.
fn send(
    listing: &Listing,
    missing: &[usize],
    to: &mpsc::Sender<wire::CreateContextRequest>,
) -> Outcome<u64> {
    let (mut n_bytes, mut piece) = (0, Vec::with_capacity(PIECE_BYTES));
    for listed in missing.iter().filter_map(|at| listing.entries.get(*at)) {
        let Content::File { size, digest } = &listed.content else {
            return Err(nonsense("the wish for the content of what is no file"));
        };
        let path = String::from_utf8_lossy(&listed.path);
        let failed = || format!("read {path} again");
        let file = listing.open(listed).with_context(failed);
        let mut file = file.or_exit(Exit::Usage)?.take(*size);
        let mut hasher = Hasher::sha256();
        loop {
            let room = PIECE_BYTES.saturating_sub(piece.len()) as u64;
            let start = piece.len();
            let read = (&mut file).take(room).read_to_end(&mut piece);
            let n = read.with_context(failed).or_exit(Exit::Usage)?;
            hasher.update(piece.get(start..).unwrap_or_default());
            n_bytes += n as u64;
            if n == 0 && room > 0 {
                break;
            }
            if piece.len() >= PIECE_BYTES {
                let data = std::mem::replace(&mut piece, Vec::with_capacity(PIECE_BYTES));
                if to
                    .blocking_send(ask(Ask::Content(wire::ContextContent { data })))
                    .is_err()
                {
                    return Ok(n_bytes);
                }
            }
        }
        if hasher.finish() != *digest {
            let text = format!("{path} has changed while it was uploaded");
            return Err(Failure::text(Exit::Usage, text).hint("nothing was built: try again"));
        }
    }
    if !piece.is_empty() {
        let data = piece;
        // Whether it was heard, the answer tells.
        let _ = to.blocking_send(ask(Ask::Content(wire::ContextContent { data })));
    }
    Ok(n_bytes)
}
