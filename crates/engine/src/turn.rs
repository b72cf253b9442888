//! Whose turn it is: what a worker that waits is told by whoever keeps the line.
//!
//! A build that has to wait does so in its worker, which has everything that it needs in its memory: nothing secret is stored, and who
//! keeps the line may go away and come back. It is told through a file in the build's folder, written as a whole ([`TURN_FILE`]); once
//! that says `now`, nothing is said any more.

use std::fmt;
use std::str::FromStr;

/// Name of the file, in the build's folder. Builds that never had to wait have none.
pub const TURN_FILE: &str = "turn";

/// Where a build stands in the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It is its turn.
    Now,
    /// So many builds come before it.
    After(u32),
}

/// A text that says nobody's turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a place in the line of builds")]
pub struct TurnError;

impl fmt::Display for Turn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Now => f.write_str("now"),
            Self::After(n) => write!(f, "after {n}"),
        }
    }
}

impl FromStr for Turn {
    type Err = TurnError;

    fn from_str(text: &str) -> Result<Self, TurnError> {
        let text = text.trim_end();
        if text == "now" {
            return Ok(Self::Now);
        }
        let n = text.strip_prefix("after ").ok_or(TurnError)?;
        n.parse().map(Self::After).map_err(|_| TurnError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_nothing_else() {
        for turn in [Turn::Now, Turn::After(0), Turn::After(u32::MAX)] {
            assert_eq!(format!("{turn}\n").parse(), Ok(turn));
        }
        for bad in [
            "",
            "Now",
            "after",
            "after x",
            "after -1",
            "now now",
            "after 4294967296",
        ] {
            assert_eq!(bad.parse::<Turn>(), Err(TurnError), "{bad}");
        }
    }
}
