//! Reading and removing blobs of a repository.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use http::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_RANGE, RANGE,
    X_CONTENT_TYPE_OPTIONS,
};
use http::{Method, StatusCode};
use oci::{Digest, Hasher};

use super::failure::Failure;
use super::{CONTENT_DIGEST, Call, Registry, empty, with_headers};

/// How much of a blob is read at a time.
const PIECE_BYTES: u64 = 512 << 10;

pub(super) async fn handle(
    registry: &Arc<Registry>,
    call: &Call,
    repository: String,
    digest: Digest,
) -> Result<Response, Failure> {
    match call.method {
        Method::GET | Method::HEAD => read(registry, call, repository, digest).await,
        Method::DELETE => {
            let unlink = move |store: &store::Store| store.unlink_blob(&repository, &digest);
            if !registry.blocking(unlink).await? {
                return Err(Failure::blob_unknown());
            }
            let headers = [(CONTENT_LENGTH, "0".to_owned())];
            Ok(empty(StatusCode::ACCEPTED, &headers))
        }
        _ => Err(Failure::method()),
    }
}

async fn read(
    registry: &Arc<Registry>,
    call: &Call,
    repository: String,
    digest: Digest,
) -> Result<Response, Failure> {
    let wanted = digest.clone();
    let open = move |store: &store::Store| -> Result<_, Failure> {
        if !store.has_blob(&repository, &wanted)? {
            return Ok(None);
        }
        let Some(file) = store.open_blob(&wanted)? else {
            return Ok(None);
        };
        let metadata = file.metadata();
        let size_bytes = metadata.map_err(|error| Failure::internal(&error))?.len();
        Ok(Some((file, size_bytes)))
    };
    let found = registry.blocking(open).await?;
    let (file, size_bytes) = found.ok_or_else(Failure::blob_unknown)?;
    let etag = format!("\"{digest}\"");
    let mut headers = vec![
        (CONTENT_DIGEST, digest.to_string()),
        (ACCEPT_RANGES, "bytes".to_owned()),
        (CONTENT_TYPE, "application/octet-stream".to_owned()),
        (X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (ETAG, etag.clone()),
    ];
    let is_same = call.header(&IF_RANGE).is_none_or(|known| known == etag);
    let range = call.header(&RANGE).filter(|_| is_same);
    let part = range.map_or(Part::Whole, |text| Part::parse(text, size_bytes));
    let (status, begin, end) = match part {
        Part::Whole => (StatusCode::OK, 0, size_bytes),
        Part::Some { begin, end } => {
            let last = end.saturating_sub(1);
            headers.push((CONTENT_RANGE, format!("bytes {begin}-{last}/{size_bytes}")));
            (StatusCode::PARTIAL_CONTENT, begin, end)
        }
        Part::Nothing => {
            let status = StatusCode::RANGE_NOT_SATISFIABLE;
            let message = "the blob has no such bytes";
            return Err(Failure::new(status, "SIZE_INVALID", message)
                .header(CONTENT_RANGE, &format!("bytes */{size_bytes}")));
        }
    };
    headers.push((CONTENT_LENGTH, (end - begin).to_string()));
    if call.method == Method::HEAD {
        return Ok(empty(status, &headers));
    }
    let reader = Reader {
        registry: Arc::clone(registry),
        file: Arc::new(file),
        position: begin,
        end,
        hasher: (begin == 0 && end == size_bytes).then(|| digest.hasher()),
        digest,
    };
    let body = Body::from_stream(stream::try_unfold(reader, Reader::next));
    let mut response = Response::new(body);
    *response.status_mut() = status;
    Ok(with_headers(response, &headers))
}

/// What a `Range` header asks for.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    /// Everything: also for what we do not understand, as RFC 9110 wants it.
    Whole,
    /// From `begin` up to before `end`.
    Some { begin: u64, end: u64 },
    /// Bytes that are not there.
    Nothing,
}

impl Part {
    fn parse(text: &str, size_bytes: u64) -> Self {
        let Some((first, last)) = text
            .strip_prefix("bytes=")
            .and_then(|range| range.trim().split_once('-'))
        else {
            return Self::Whole;
        };
        let range = match (first.parse::<u64>(), last.parse::<u64>()) {
            (Ok(begin), Ok(last)) if begin <= last => (begin, last.saturating_add(1)),
            (Ok(begin), Err(_)) if last.is_empty() => (begin, size_bytes),
            (Err(_), Ok(0)) if first.is_empty() => return Self::Nothing,
            (Err(_), Ok(n_bytes)) if first.is_empty() => {
                (size_bytes.saturating_sub(n_bytes), size_bytes)
            }
            _ => return Self::Whole,
        };
        let (begin, end) = (range.0, range.1.min(size_bytes));
        if begin < end {
            Self::Some { begin, end }
        } else {
            Self::Nothing
        }
    }
}

/// Sends a blob piece by piece.
struct Reader {
    registry: Arc<Registry>,
    file: Arc<File>,
    position: u64,
    end: u64,
    /// Set when the whole blob is sent: then it is verified on the way.
    hasher: Option<Hasher>,
    digest: Digest,
}

impl Reader {
    async fn next(mut self) -> io::Result<Option<(Bytes, Self)>> {
        if self.position >= self.end {
            return Ok(None);
        }
        let size = (self.end - self.position).min(PIECE_BYTES);
        let (file, position) = (Arc::clone(&self.file), self.position);
        let is_last = position + size == self.end;
        let (mut hasher, digest) = (self.hasher.take(), self.digest.clone());
        let read = move |store: &store::Store| -> Result<_, Failure> {
            let mut piece = vec![0; usize::try_from(size).unwrap_or(usize::MAX)];
            let filled = file.read_exact_at(&mut piece, position);
            filled.map_err(|error| Failure::internal(&error))?;
            if let Some(hasher) = &mut hasher {
                hasher.update(&piece);
            }
            let is_good = |hasher: Hasher| hasher.finish() == digest;
            if is_last && !hasher.clone().is_none_or(is_good) {
                // Says so in the log, and puts it where nobody finds it again.
                store.verify_blob(&digest)?;
                return Err(Failure::blob_unknown());
            }
            Ok((Bytes::from(piece), hasher))
        };
        let registry = Arc::clone(&self.registry);
        let (piece, hasher) = registry
            .blocking(read)
            .await
            .map_err(|_logged| io::Error::other("the blob could not be read"))?;
        self.hasher = hasher;
        self.position += size;
        Ok(Some((piece, self)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_rfc_says() {
        let some = |begin, end| Part::Some { begin, end };
        for (text, expected) in [
            ("bytes=0-0", some(0, 1)),
            ("bytes=2-5", some(2, 6)),
            ("bytes=2-", some(2, 10)),
            ("bytes=-3", some(7, 10)),
            ("bytes=-30", some(0, 10)),
            ("bytes=5-99", some(5, 10)),
            ("bytes=0-18446744073709551615", some(0, 10)),
            ("bytes=10-", Part::Nothing),
            ("bytes=10-20", Part::Nothing),
            ("bytes=-0", Part::Nothing),
            ("bytes=5-2", Part::Whole),
            ("bytes=-", Part::Whole),
            ("bytes=a-b", Part::Whole),
            ("bytes=0-1,3-4", Part::Whole),
            ("lines=0-1", Part::Whole),
            ("bytes=0-99999999999999999999999", Part::Whole),
        ] {
            assert_eq!(Part::parse(text, 10), expected, "{text}");
        }
        assert_eq!(Part::parse("bytes=0-", 0), Part::Nothing);
    }
}
