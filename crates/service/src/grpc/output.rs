//! `DownloadOutput`: an exported file, pulled by its client piece by piece, and gone once somebody fetched it who may build.

use std::io::{self, Read as _};

use api::kiln::v1 as wire;
use futures_util::stream::{BoxStream, StreamExt as _, try_unfold};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::stream::shutting_down;
use crate::builds::build::Build;
use crate::failure::{Blame, Failure};
use crate::outputs::{self, Exported};

/// How much is sent in one message.
const PIECE_BYTES: u64 = 256 << 10;

/// What becomes of a file that was fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fetched {
    /// It is gone.
    Removed,
    /// It stays for others.
    Kept,
}

struct Sending {
    then: Fetched,
    exported: Exported,
    left: u64,
    is_first: bool,
}

/// Returns the pieces of output `index` of a build.
pub(super) async fn send(
    build: &Build,
    (index, then): (u32, Fetched),
    shutdown: CancellationToken,
) -> Result<BoxStream<'static, Result<wire::DownloadOutputResponse, Status>>, Failure> {
    let progress = build.progress();
    let missing = || {
        let text = "there is no such output, or not any more: it is kept for an hour, and until it was fetched";
        Failure::new(Blame::Missing, text)
    };
    let is_done = matches!(progress.state, engine::state::BuildState::Succeeded { .. });
    let folder = progress.folder.filter(|_| is_done).ok_or_else(missing)?;
    let opened = blocking(move || outputs::open(&folder, index)).await?;
    let exported = opened.ok_or_else(missing)?;
    let sending = Sending {
        then,
        left: exported.size,
        exported,
        is_first: true,
    };
    let pieces = try_unfold(sending, move |sending| {
        let shutdown = shutdown.clone();
        async move {
            if shutdown.is_cancelled() {
                return Err(shutting_down());
            }
            let next = blocking(move || next(sending)).await;
            next.map_err(|failure| failure.status())
        }
    });
    Ok(pieces.boxed())
}

/// Returns the next piece; removes the file when it was asked for more than all.
fn next(mut sending: Sending) -> io::Result<Option<(wire::DownloadOutputResponse, Sending)>> {
    if sending.left == 0 && !sending.is_first {
        if sending.then == Fetched::Removed {
            sending.exported.remove()?;
        }
        return Ok(None);
    }
    let wanted = sending.left.min(PIECE_BYTES);
    let mut data = Vec::new();
    (&sending.exported.file)
        .take(wanted)
        .read_to_end(&mut data)?;
    if data.len() as u64 != wanted {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let size = if sending.is_first {
        sending.exported.size
    } else {
        0
    };
    sending.left -= wanted;
    sending.is_first = false;
    Ok(Some((wire::DownloadOutputResponse { size, data }, sending)))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Failure> {
    const TEXT: &str = "the output cannot be read";
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Failure::platform(TEXT, error))?
        .map_err(|error| Failure::platform(TEXT, error))
}
