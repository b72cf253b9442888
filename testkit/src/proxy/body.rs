//! Bodies that are not what was promised.

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _, stream};
use http::{HeaderValue, Response, header};

/// Returns an answer that breaks off before its first byte.
pub(super) fn disconnected() -> Response<Body> {
    let broken = stream::once(async {
        Err::<Bytes, _>(std::io::Error::from(std::io::ErrorKind::ConnectionReset))
    });
    let mut response = Response::new(Body::from_stream(broken));
    response
        .headers_mut()
        .insert(header::CONTENT_LENGTH, HeaderValue::from_static("1048576"));
    response
}

/// Returns the first `left` bytes of `bytes`, then an error, which closes the connection.
pub(super) fn truncated(
    bytes: impl Stream<Item = reqwest::Result<Bytes>> + Send + 'static,
    left: usize,
) -> Body {
    let mut left = Some(left);
    Body::from_stream(bytes.map(move |chunk| {
        let chunk = chunk.map_err(std::io::Error::other)?;
        let Some(remaining) = left else {
            return Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset));
        };
        if chunk.len() <= remaining {
            left = Some(remaining - chunk.len());
            return Ok(chunk);
        }
        left = None;
        if remaining == 0 {
            return Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset));
        }
        Ok(chunk.slice(..remaining))
    }))
}

/// Returns `bytes` with one bit of the byte at `place` turned.
pub(super) fn flipped(
    bytes: impl Stream<Item = reqwest::Result<Bytes>> + Send + 'static,
    place: usize,
) -> Body {
    let mut offset = 0;
    Body::from_stream(bytes.map(move |chunk| {
        let chunk = chunk.map_err(std::io::Error::other)?;
        let start = offset;
        offset += chunk.len();
        if !(start..offset).contains(&place) {
            return Ok(chunk);
        }
        let mut changed = BytesMut::from(&chunk[..]);
        if let Some(byte) = changed.get_mut(place - start) {
            *byte ^= 1;
        }
        Ok::<_, std::io::Error>(changed.freeze())
    }))
}
