//! Chores of this repository: `cargo xtask tidy`, `cargo xtask fuzz-smoke SECONDS`.
//!
//! What a lint can hold is in `Cargo.toml` and `clippy.toml`; what needs the whole tree is here.

#![forbid(unsafe_code)]

mod fuzz;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Does what the arguments say.
fn run() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["tidy"] => {
            let findings = tidy::check(&root()?)?;
            for finding in &findings {
                complain(finding);
            }
            if !findings.is_empty() {
                bail!("{} findings", findings.len());
            }
            Ok(())
        }
        ["fuzz-smoke", seconds] => fuzz::smoke(
            &root()?,
            seconds.parse().context("seconds is not a number")?,
        ),
        _ => bail!("usage: cargo xtask tidy | fuzz-smoke SECONDS"),
    }
}

/// Returns the root of the repository.
fn root() -> anyhow::Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    Ok(root
        .context("xtask is at the root of the file system")?
        .to_path_buf())
}

#[expect(clippy::print_stderr, reason = "what it is for")]
fn complain(text: &str) {
    eprintln!("{text}");
}
