//! Runs each fuzz target for a little while.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};

/// Runs each target of `fuzz/` for `seconds`; a finding is an error, and its input is in `fuzz/artifacts`.
pub(crate) fn smoke(root: &Path, seconds: u32) -> anyhow::Result<()> {
    for target in targets(root)? {
        // What is found on the way goes to the first folder, which is not kept; the seeds stay as they are.
        let corpus = format!("fuzz/corpus/{target}");
        std::fs::create_dir_all(root.join(&corpus)).context("create the corpus")?;
        // Sanitizers want nightly.
        let status = Command::new("cargo")
            .args(["+nightly", "fuzz", "run", "--fuzz-dir", "fuzz", &target])
            .args([&corpus, &format!("fuzz/seeds/{target}"), "--"])
            .args([
                &format!("-max_total_time={seconds}"),
                "-print_final_stats=1",
            ])
            .current_dir(root)
            .status()
            .context("run cargo fuzz; `cargo install cargo-fuzz` installs it")?;
        if !status.success() {
            bail!("fuzz target {target} ended with {status}");
        }
    }
    Ok(())
}

/// Returns the names of all targets.
fn targets(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut targets = Vec::new();
    for entry in
        std::fs::read_dir(root.join("fuzz/fuzz_targets")).context("read fuzz/fuzz_targets")?
    {
        let path = entry.context("read fuzz/fuzz_targets")?.path();
        targets.extend(
            path.file_stem()
                .map(|stem| stem.to_string_lossy().into_owned()),
        );
    }
    targets.sort();
    Ok(targets)
}
