//! Fetches what a build on a server has exported, and brings it to where it belongs.
//!
//! The server is not trusted with this machine's files: a file is whole in its place or not there, and a root filesystem is unpacked by
//! [`unpack`], which follows no link and makes nothing outside of its folder.

mod unpack;

use std::fs::File;
use std::io::{self, Read, Write as _};

use anyhow::Context as _;
use api::kiln::v1 as wire;
use engine::spec::ExportFormat;
use tokio::sync::mpsc;
use tonic::Streaming;

use crate::args::output::Dest;
use crate::build::outputs::write_file;
use crate::build::upload::Client;
use crate::client;
use crate::failure::{Exit, Failure, OrExit, Outcome};

/// Pieces that wait to be written.
const WAITING_MAX: usize = 8;

/// Fetches output number `output` of a build, which is of `format`, to `dest`.
pub(crate) async fn deliver(
    client: &mut Client,
    build_id: &str,
    output: u32,
    format: ExportFormat,
    dest: &Dest,
) -> Outcome {
    let request = wire::DownloadOutputRequest {
        build_id: build_id.to_owned(),
        output,
    };
    let answer = client.download_output(request).await;
    let answers = answer.map_err(client::failure)?.into_inner();
    let (pieces, received) = mpsc::channel(WAITING_MAX);
    let dest = dest.clone();
    let writing = tokio::task::spawn_blocking(move || write(Pieces::new(received), format, &dest));
    let fetched = fetch(answers, &pieces).await;
    if fetched.is_err() {
        // What was written is not taken for all of it.
        let _ = pieces.send(None).await;
    }
    drop(pieces);
    let written = writing.await.or_exit(Exit::Internal)?;
    fetched?;
    written.or_exit(Exit::Machine)
}

/// Passes on what the server sends, if it is as much as it says.
async fn fetch(
    mut answers: Streaming<wire::DownloadOutputResponse>,
    pieces: &mpsc::Sender<Option<Vec<u8>>>,
) -> Outcome {
    let (mut size, mut n_bytes) = (None, 0_u64);
    while let Some(piece) = answers.message().await.map_err(client::failure)? {
        let size = *size.get_or_insert(piece.size);
        n_bytes = n_bytes.saturating_add(piece.data.len() as u64);
        if n_bytes > size {
            return Err(wrong("more"));
        }
        if pieces.send(Some(piece.data)).await.is_err() {
            // Whoever writes has stopped, and says why.
            return Ok(());
        }
    }
    match size {
        Some(size) if size == n_bytes => Ok(()),
        _ => Err(wrong("less")),
    }
}

fn wrong(what: &str) -> Failure {
    let text = format!("the server has sent {what} of an exported file than it said");
    Failure::text(Exit::Unreachable, text)
}

fn write(mut pieces: Pieces, format: ExportFormat, dest: &Dest) -> anyhow::Result<()> {
    match (dest, format) {
        (Dest::Stdout, _) => {
            let mut stdout = io::stdout().lock();
            io::copy(&mut pieces, &mut stdout)
                .and_then(|_| stdout.flush())
                .context("write to standard output")
        }
        (Dest::Path(dest), ExportFormat::Local) => {
            std::fs::create_dir_all(dest).with_context(|| format!("create {}", dest.display()))?;
            unpack::unpack(&mut pieces, dest)
                .with_context(|| format!("write the root filesystem to {}", dest.display()))
        }
        (Dest::Path(dest), _) => write_file(dest, |file: &mut File| {
            io::copy(&mut pieces, file).map(drop)
        }),
    }
}

/// What comes, as a reader.
struct Pieces {
    received: mpsc::Receiver<Option<Vec<u8>>>,
    piece: io::Cursor<Vec<u8>>,
}

impl Pieces {
    fn new(received: mpsc::Receiver<Option<Vec<u8>>>) -> Self {
        Self {
            received,
            piece: io::Cursor::default(),
        }
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.piece.read(buffer)? {
                0 if !buffer.is_empty() => match self.received.blocking_recv() {
                    Some(Some(piece)) => self.piece = io::Cursor::new(piece),
                    Some(None) => return Err(io::ErrorKind::ConnectionAborted.into()),
                    None => return Ok(0),
                },
                n => return Ok(n),
            }
        }
    }
}
