//! Files of subassemblies over HTTP, to whoever has an address that we signed and that has not expired.
//!
//! An address is an authentication code over the file's digest and the time until which it is good: nothing has to be stored for each,
//! and it stays good over restarts. Whoever has no such address learns nothing, not even whether there is a file.
//!
//! One range of bytes is served (RFC 9110, section 14); a request for several gets the whole.

use std::fs::File;
use std::io::{Seek as _, SeekFrom};
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE,
    ETAG, IF_RANGE, RANGE,
};
use http::{HeaderMap, StatusCode};
use oci::Digest;
use serde::Deserialize;
use store::Store;
use tokio::io::AsyncReadExt as _;
use tokio_util::io::ReaderStream;

use super::tokens::LogTokens;

/// The file is read in pieces of this size.
const PIECE_BYTES: usize = 128 << 10;

/// Makes and checks addresses.
#[derive(Debug, Clone)]
pub struct Downloads {
    /// Signs.
    pub tokens: LogTokens,
    /// How long an address is good.
    pub lifetime: Duration,
    /// The time, in Unix milliseconds.
    pub now_ms: fn() -> u64,
}

/// What follows the `?` of an address.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Signed {
    expires: u64,
    signature: String,
}

impl Downloads {
    /// Returns an address of the file.
    pub fn url(&self, base_url: &str, digest: &Digest) -> String {
        let expires = (self.now_ms)() / 1000 + self.lifetime.as_secs();
        let signature = self.tokens.sign(&message(digest, expires));
        format!("{base_url}/subassemblies/{digest}?expires={expires}&signature={signature}")
    }

    fn opens(&self, digest: &Digest, signed: &Signed) -> bool {
        let is_good = (self.now_ms)() / 1000 < signed.expires;
        self.tokens.is_signed(
            &message(digest, signed.expires),
            signed.signature.as_bytes(),
        ) && is_good
    }
}

/// Returns what is signed: says what it is for, as the key signs other things too.
fn message(digest: &Digest, expires: u64) -> String {
    format!("subassembly {digest} {expires}")
}

/// Answers a request for a file.
pub(super) async fn answer(
    store: &Store,
    downloads: &Downloads,
    digest: &str,
    signed: &Signed,
    headers: &HeaderMap,
) -> Response {
    // One answer for what is not there and what is not to be had.
    let refused = || {
        (
            StatusCode::NOT_FOUND,
            "no such file, or the address has expired\n",
        )
            .into_response()
    };
    let Ok(digest) = digest.parse::<Digest>() else {
        return refused();
    };
    if !downloads.opens(&digest, signed) {
        return refused();
    }
    let (store, wanted) = (store.clone(), digest.clone());
    let opened = tokio::task::spawn_blocking(move || store.open_blob(&wanted)).await;
    let file = match opened {
        Ok(Ok(Some(file))) => file,
        Ok(Ok(None)) => return refused(),
        Ok(Err(error)) => {
            tracing::error!(%error, %digest, "a subassembly cannot be read");
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        }
        Err(error) => {
            tracing::error!(%error, %digest, "a subassembly cannot be read");
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        }
    };
    send(file, &digest, headers)
}

fn send(mut file: File, digest: &Digest, headers: &HeaderMap) -> Response {
    let Ok(size) = file.metadata().map(|metadata| metadata.len()) else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let etag = format!("\"{digest}\"");
    let mut response = Response::builder()
        .header(ACCEPT_RANGES, "bytes")
        .header(ETAG, &etag)
        .header(CONTENT_TYPE, "application/octet-stream")
        .header(
            CONTENT_DISPOSITION,
            format!("attachment; filename=\"{}\"", digest.hex()),
        )
        // The address is the right to the file: it is nobody else's to keep.
        .header(CACHE_CONTROL, "private, no-transform");
    let part = match part(headers, &etag, size) {
        Part::Whole => 0..size,
        Part::Of(range) => {
            let shown = format!("bytes {}-{}/{size}", range.start, range.end - 1);
            response = response
                .status(StatusCode::PARTIAL_CONTENT)
                .header(CONTENT_RANGE, shown);
            range
        }
        Part::Unsatisfiable => {
            let answer = response
                .status(StatusCode::RANGE_NOT_SATISFIABLE)
                .header(CONTENT_RANGE, format!("bytes */{size}"));
            return answer.body(Body::empty()).unwrap_or_default();
        }
    };
    if file.seek(SeekFrom::Start(part.start)).is_err() {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    let length = part.end - part.start;
    let bytes = tokio::fs::File::from_std(file).take(length);
    let body = Body::from_stream(ReaderStream::with_capacity(bytes, PIECE_BYTES));
    response
        .header(CONTENT_LENGTH, length)
        .body(body)
        .unwrap_or_default()
}

/// Which part of a file is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Whole,
    /// Not empty, and within the file.
    Of(std::ops::Range<u64>),
    Unsatisfiable,
}

fn part(headers: &HeaderMap, etag: &str, size: u64) -> Part {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let Some(range) = text(RANGE) else {
        return Part::Whole;
    };
    // A range of another file than the one we have is not wanted.
    if headers.contains_key(IF_RANGE) && text(IF_RANGE) != Some(etag) {
        return Part::Whole;
    }
    let Some((first, last)) = range
        .strip_prefix("bytes=")
        .filter(|ranges| !ranges.contains(','))
        .and_then(|range| range.trim().split_once('-'))
    else {
        return Part::Whole;
    };
    let number = |text: &str| {
        text.bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| text.parse::<u64>().unwrap_or(u64::MAX))
    };
    let wanted = match (first, last) {
        ("", "") => return Part::Whole,
        ("", last) => number(last).map(|n| (size.saturating_sub(n), size)),
        (first, "") => number(first).map(|first| (first, size)),
        (first, last) => match (number(first), number(last)) {
            (Some(first), Some(last)) if last >= first => {
                Some((first, last.saturating_add(1).min(size)))
            }
            _ => None,
        },
    };
    match wanted {
        None => Part::Whole,
        Some((start, end)) if start < end && end <= size => Part::Of(start..end),
        Some(_) => Part::Unsatisfiable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part_of(range: &str, if_range: Option<&str>) -> Part {
        let mut headers = HeaderMap::new();
        headers.insert(RANGE, range.parse().unwrap());
        if let Some(tag) = if_range {
            headers.insert(IF_RANGE, tag.parse().unwrap());
        }
        part(&headers, "\"tag\"", 100)
    }

    #[test]
    fn ranges_mean_what_the_standard_says() {
        for (range, expected) in [
            ("bytes=0-0", Part::Of(0..1)),
            ("bytes=10-19", Part::Of(10..20)),
            ("bytes=10-", Part::Of(10..100)),
            ("bytes=-10", Part::Of(90..100)),
            ("bytes=-1000", Part::Of(0..100)),
            ("bytes=99-1000", Part::Of(99..100)),
            ("bytes=0-18446744073709551616", Part::Of(0..100)),
            ("bytes=100-", Part::Unsatisfiable),
            ("bytes=-0", Part::Unsatisfiable),
            ("bytes=500-600", Part::Unsatisfiable),
            ("bytes=9-3", Part::Whole),
            ("bytes=-", Part::Whole),
            ("bytes=a-b", Part::Whole),
            ("bytes=+1-2", Part::Whole),
            ("bytes=0-1,5-6", Part::Whole),
            ("lines=0-1", Part::Whole),
            ("", Part::Whole),
        ] {
            assert_eq!(part_of(range, None), expected, "{range}");
        }
        assert_eq!(part_of("bytes=0-0", Some("\"tag\"")), Part::Of(0..1));
        assert_eq!(part_of("bytes=0-0", Some("\"other\"")), Part::Whole);
        assert_eq!(part_of("bytes=0-0", Some("W/\"tag\"")), Part::Whole);
    }

    #[test]
    fn an_empty_file_has_no_range() {
        let mut headers = HeaderMap::new();
        headers.insert(RANGE, "bytes=0-".parse().unwrap());
        assert_eq!(part(&headers, "\"tag\"", 0), Part::Unsatisfiable);
    }

    #[test]
    fn an_address_opens_one_file_until_it_expires() {
        let folder = tempfile::tempdir().unwrap();
        let tokens = LogTokens::open(folder.path()).unwrap();
        let at = |now_ms: fn() -> u64| Downloads {
            tokens: tokens.clone(),
            lifetime: Duration::from_secs(60),
            now_ms,
        };
        let digest = Digest::sha256(b"file");
        let url = at(|| 1_000_000).url("http://host:1", &digest);
        let query = url.split_once('?').unwrap().1;
        let (expires, signature) = query.split_once('&').unwrap();
        let signed = Signed {
            expires: expires.strip_prefix("expires=").unwrap().parse().unwrap(),
            signature: signature.strip_prefix("signature=").unwrap().to_owned(),
        };
        assert_eq!(signed.expires, 1060);
        assert!(at(|| 1_059_999).opens(&digest, &signed));
        assert!(!at(|| 1_060_000).opens(&digest, &signed));
        assert!(!at(|| 1_000_000).opens(&Digest::sha256(b"other"), &signed));
        let later = Signed {
            expires: 2000,
            ..signed.clone()
        };
        assert!(!at(|| 1_000_000).opens(&digest, &later));
        let forged = Signed {
            signature: format!("{}A", signed.signature),
            ..signed
        };
        assert!(!at(|| 1_000_000).opens(&digest, &forged));
    }
}
