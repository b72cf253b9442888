//! Reading bodies of answers within limits of size and time.

use std::time::Duration;

use bytes::Bytes;
use reqwest::Response;
use tokio::time::Instant;

use super::Options;
use super::error::Problem;

/// Watches that bytes keep moving. Only time spent waiting for the other side counts.
#[derive(Debug)]
pub(crate) struct Pace {
    window: Duration,
    least_bytes: u64,
    left: Duration,
    moved_bytes: u64,
}

impl Pace {
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            window: options.stall_window,
            least_bytes: options.stall_bytes,
            left: options.stall_window,
            moved_bytes: 0,
        }
    }

    /// Reads the next piece of the body.
    pub(crate) async fn chunk(
        &mut self,
        response: &mut Response,
    ) -> Result<Option<Bytes>, Problem> {
        let started = Instant::now();
        let chunk = tokio::time::timeout(self.left, response.chunk()).await;
        let chunk = match chunk {
            Ok(Ok(chunk)) => chunk,
            Ok(Err(source)) => return Err(Problem::connection("read the answer", source)),
            Err(_) => {
                return Err(Problem::TooSlow {
                    what: "a small part of the answer",
                    limit: self.window,
                });
            }
        };
        self.left = self.left.saturating_sub(started.elapsed());
        if let Some(chunk) = &chunk {
            self.moved_bytes += chunk.len() as u64;
            if self.moved_bytes >= self.least_bytes {
                self.moved_bytes = 0;
                self.left = self.window;
            }
        }
        Ok(chunk)
    }
}

/// Reads a whole body of at most `max_bytes`.
pub(crate) async fn read_bounded(
    response: &mut Response,
    max_bytes: usize,
    what: &'static str,
    options: &Options,
) -> Result<Vec<u8>, Problem> {
    let too_large = || Problem::TooLarge {
        what,
        limit_bytes: max_bytes as u64,
    };
    let promised = response.content_length();
    if promised.is_some_and(|length| length > max_bytes as u64) {
        return Err(too_large());
    }
    let mut pace = Pace::new(options);
    let mut body = Vec::new();
    while let Some(chunk) = pace.chunk(response).await? {
        if body.len() + chunk.len() > max_bytes {
            return Err(too_large());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Reads the beginning of a body, whatever happens later on.
pub(crate) async fn read_prefix(
    response: &mut Response,
    max_bytes: usize,
    options: &Options,
) -> Vec<u8> {
    let mut pace = Pace::new(options);
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = pace.chunk(response).await {
        let room = max_bytes.saturating_sub(body.len());
        body.extend(chunk.iter().take(room));
        if chunk.len() >= room {
            break;
        }
    }
    body
}
