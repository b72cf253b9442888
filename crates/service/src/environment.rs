//! Time and randomness, given from outside so that tests decide them.

use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use engine::id::BuildId;

/// Where time and ids come from.
#[derive(Debug, Clone, Copy)]
pub struct Environment {
    /// Returns the time in Unix milliseconds.
    pub now_ms: fn() -> u64,
    /// Returns an id that nobody can guess.
    pub new_id: fn() -> io::Result<BuildId>,
}

impl Environment {
    /// Returns the real one.
    pub fn real() -> Self {
        Self {
            now_ms: || {
                let since = SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .unwrap_or_default();
                u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
            },
            new_id: || {
                let mut random = [0; 16];
                getrandom::fill(&mut random)
                    .map_err(|error| io::Error::other(error.to_string()))?;
                Ok(BuildId::from_random(random))
            },
        }
    }
}
