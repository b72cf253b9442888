//! Bodies of uploads: the end of a blob from any offset, read as often as need be; and what tells how far it got, also of a blob that grows.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use http_body::{Body, Frame, SizeHint};
use oci::Digest;
use store::Store;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio::sync::watch;
use tokio_util::io::ReaderStream;

use super::call::Payload;
use super::error::Problem;
use super::pull::check_size;

/// Bytes that are read from disk at a time.
pub(super) const READ_BYTES: usize = 256 << 10;

/// Where the bytes of a blob come from; they can be read again when a connection breaks.
#[derive(Debug, Clone)]
pub enum BlobSource {
    /// A blob of the store.
    Store(Store, Digest),
    /// A file that holds exactly the blob.
    File(PathBuf),
    /// Memory.
    Bytes(Bytes),
    /// Not here: the registry has it, or takes it from another of its repositories, or the push fails.
    Elsewhere,
}

/// The end of a blob, from an offset.
pub(crate) struct Rest<'a> {
    source: &'a BlobSource,
    pub(crate) offset: u64,
    pub(crate) end: u64,
    /// The offset up to which bytes were handed to the connection.
    pub(crate) moved: watch::Sender<u64>,
}

impl<'a> Rest<'a> {
    pub(crate) fn new(source: &'a BlobSource, offset: u64, end: u64) -> Self {
        Self {
            source,
            offset,
            end,
            moved: watch::Sender::new(offset),
        }
    }
}

impl Payload for Rest<'_> {
    async fn open(&self) -> Result<reqwest::Body, Problem> {
        let n_bytes = self.end - self.offset;
        if n_bytes == 0 {
            return Ok(Bytes::new().into());
        }
        let pieces = match self.source {
            BlobSource::Bytes(bytes) => {
                check_size("the blob", self.end, bytes.len() as u64)?;
                let start = usize::try_from(self.offset).unwrap_or(usize::MAX);
                let bytes = bytes.slice(start.min(bytes.len())..);
                Box::pin(futures_util::stream::once(async { Ok(bytes) })) as Pieces
            }
            BlobSource::Elsewhere => {
                let missing = io::Error::new(io::ErrorKind::NotFound, "it is not here");
                return Err(Problem::local("open the blob to push", missing));
            }
            BlobSource::File(path) => {
                let file = tokio::fs::File::open(path).await;
                let file = file.map_err(|error| Problem::local("open the blob to push", error))?;
                self.read(file).await?
            }
            BlobSource::Store(store, digest) => {
                let (store, digest) = (store.clone(), digest.clone());
                let opened = tokio::task::spawn_blocking(move || store.open_blob(&digest)).await;
                let local = "open the blob to push";
                let opened = opened.map_err(|error| Problem::local(local, error))?;
                let file = opened.map_err(|error| Problem::local(local, error))?;
                let missing = || io::Error::new(io::ErrorKind::NotFound, "not in the store");
                let file = file.ok_or_else(|| Problem::local(local, missing()))?;
                self.read(tokio::fs::File::from_std(file)).await?
            }
        };
        Ok(reqwest::Body::wrap(Moving {
            pieces,
            offset: self.offset,
            end: Some(self.end),
            moved: self.moved.clone(),
        }))
    }
}

type Pieces = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send + Sync>>;

impl Rest<'_> {
    async fn read(&self, mut file: tokio::fs::File) -> Result<Pieces, Problem> {
        let local = |error| Problem::local("read the blob to push", error);
        let size = file.metadata().await.map_err(local)?.len();
        check_size("the blob to push", self.end, size)?;
        let seek = file.seek(io::SeekFrom::Start(self.offset)).await;
        seek.map_err(local)?;
        let rest = file.take(self.end - self.offset);
        Ok(Box::pin(ReaderStream::with_capacity(rest, READ_BYTES)))
    }
}

/// A body that tells how far it got.
pub(super) struct Moving {
    pub(super) pieces: Pieces,
    pub(super) offset: u64,
    /// Where it ends, if that is known.
    pub(super) end: Option<u64>,
    pub(super) moved: watch::Sender<u64>,
}

impl Body for Moving {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.pieces.as_mut().poll_next(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(Ok(piece))) => {
                self.offset += piece.len() as u64;
                self.moved.send_replace(self.offset);
                Poll::Ready(Some(Ok(Frame::data(piece))))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error))),
            Poll::Ready(None) if self.end.is_some_and(|end| self.offset < end) => {
                let error = io::Error::new(io::ErrorKind::UnexpectedEof, "the blob became shorter");
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(None) => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.end.is_some_and(|end| self.offset >= end)
    }

    fn size_hint(&self) -> SizeHint {
        let n_left = self.end.map(|end| end.saturating_sub(self.offset));
        n_left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
