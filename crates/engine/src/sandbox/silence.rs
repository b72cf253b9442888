//! How long a step has written nothing. Knows the time and nothing of processes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::OutputSink;

/// How long a step has written nothing.
pub(super) struct Silence {
    allowed: Duration,
    began: Instant,
    /// When it wrote last, in milliseconds since it began.
    spoke_ms: Arc<AtomicU64>,
}

impl Silence {
    /// Returns a sink that takes note of when it is written to, when silence is limited.
    pub(super) fn of(output: OutputSink, allowed: Option<Duration>) -> (OutputSink, Option<Self>) {
        let Some(allowed) = allowed else {
            return (output, None);
        };
        let (began, spoke_ms) = (Instant::now(), Arc::new(AtomicU64::new(0)));
        let spoke = Arc::clone(&spoke_ms);
        let noting: OutputSink = Arc::new(move |stream, bytes: &[u8]| {
            output(stream, bytes);
            let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            spoke.store(ms, Ordering::Relaxed);
        });
        let silence = Self {
            allowed,
            began,
            spoke_ms,
        };
        (noting, Some(silence))
    }

    /// Resolves once the step has been silent for too long; never when it may be.
    pub(super) async fn too_long(this: Option<&Self>) {
        let Some(this) = this else {
            return std::future::pending().await;
        };
        loop {
            let spoke = Duration::from_millis(this.spoke_ms.load(Ordering::Relaxed));
            let end = this.began + spoke + this.allowed;
            if Instant::now() >= end {
                return;
            }
            tokio::time::sleep_until(end).await;
        }
    }
}
