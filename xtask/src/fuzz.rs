//! Runs each fuzz target for a little while.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

/// Runs each target of `fuzz/` for `seconds`; a finding is an error, and its input is in `fuzz/artifacts`.
pub(crate) fn smoke(root: &Path, seconds: u32) -> anyhow::Result<()> {
    for target in targets(root)? {
        // What is found on the way goes to the first folder, which is not kept; the seeds stay as they are.
        let corpus = format!("fuzz/corpus/{target}");
        std::fs::create_dir_all(root.join(&corpus)).context("create the corpus")?;
        let kept = root.join(format!("fuzz/kept/{target}.tar.gz"));
        if kept.exists() {
            let mut unpack = Command::new("tar");
            unpack
                .arg("-xzf")
                .arg(&kept)
                .arg("-C")
                .arg(root.join(&corpus));
            let status = unpack.status().context("run tar")?;
            anyhow::ensure!(status.success(), "tar ended with {status}");
        }
        for (name, content) in from_cases(root, &target)? {
            std::fs::write(root.join(&corpus).join(name), content).context("write a seed")?;
        }
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

/// Returns what a target begins with beside its own seeds: the Dockerfiles and ignore files of the corpus of cases.
fn from_cases(root: &Path, target: &str) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let mut seeds = Vec::new();
    for folder in cases(root)? {
        let name: Vec<_> = folder
            .iter()
            .rev()
            .take(2)
            .map(|part| part.to_string_lossy())
            .collect();
        let name = format!("case-{}", name.join("-"));
        let read = |file: &str| {
            let inside = std::fs::read(folder.join("input").join(file));
            inside.or_else(|_| std::fs::read(folder.join(file)))
        };
        match target {
            "dockerfile_parse" => seeds.extend(read("Dockerfile").map(|text| (name, text))),
            // Each line is a word with everything that words can hold; the byte before it chooses how it is read.
            "dockerfile_expand" => {
                let text = read("Dockerfile").unwrap_or_default();
                let lines = text
                    .split(|byte| *byte == b'\n')
                    .filter(|line| line.contains(&b'$'));
                seeds.extend(
                    lines
                        .enumerate()
                        .map(|(index, line)| (format!("{name}-{index}"), [&[0], line].concat())),
                );
            }
            "dockerignore_match" => {
                let text = read(".dockerignore").unwrap_or_default();
                let paths: &[&[u8]] = if text.is_empty() {
                    &[]
                } else {
                    &[b"a", b"sub/deep/file", b"d/keep", b"a.log"]
                };
                seeds.extend(paths.iter().enumerate().map(|(index, path)| {
                    (format!("{name}-{index}"), [&text, &[0][..], path].concat())
                }));
            }
            _ => {}
        }
    }
    Ok(seeds)
}

/// Returns the folders of all cases.
fn cases(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut folders = vec![root.join("tests/corpus")];
    for _area_then_case in 0..2 {
        let mut below = Vec::new();
        for folder in folders {
            for entry in std::fs::read_dir(&folder).context("read tests/corpus")? {
                let path = entry.context("read tests/corpus")?.path();
                below.extend(path.is_dir().then_some(path));
            }
        }
        folders = below;
    }
    Ok(folders)
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
