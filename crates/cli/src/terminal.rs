//! The one door to the terminal. Data goes to standard output, everything else to standard error.
//!
//! Nothing is buffered behind the user's back, and a reader that went away (`kiln logs x | head`) is no error.

use std::io::{self, IsTerminal, Write};

use crate::environment;

/// Writes one line of data to standard output.
pub(crate) fn data(line: &str) -> io::Result<()> {
    data_bytes(format!("{line}\n").as_bytes())
}

/// Writes bytes to standard output.
pub(crate) fn data_bytes(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush())
}

/// Writes one line to the user. There is nobody to tell when that fails.
pub(crate) fn say(line: &str) {
    say_bytes(format!("{line}\n").as_bytes());
}

/// Writes text to the user. There is nobody to tell when that fails.
pub(crate) fn say_bytes(bytes: &[u8]) {
    let _ = io::stderr().lock().write_all(bytes);
}

/// Tells whether the user sits in front of standard error.
pub(crate) fn is_interactive() -> bool {
    io::stderr().is_terminal() && environment::variable("TERM").as_deref() != Some("dumb")
}

/// Tells whether what we say may be coloured.
pub(crate) fn is_coloured() -> bool {
    is_interactive() && environment::variable("NO_COLOR").is_none_or(|value| value.is_empty())
}
