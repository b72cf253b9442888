//! The folders that are built.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};

/// How many small files W2 copies, and how large each is.
const FILES: usize = 40_000;
const FILE_BYTES: usize = 5 << 10;
const FILES_IN_FOLDER: usize = 200;

/// Writes `Dockerfile` into a folder that is made.
pub(crate) fn plain(folder: &Path, dockerfile: &str) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    fs::write(folder.join("Dockerfile"), dockerfile)?;
    Ok(())
}

/// Adds 200 MB in small files that look like source: compressible, and no two alike.
pub(crate) fn many_files(folder: &Path) -> Result<()> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for n in 0..FILES {
        let parent = folder.join(format!("src/module{:03}", n / FILES_IN_FOLDER));
        if n % FILES_IN_FOLDER == 0 {
            fs::create_dir_all(&parent)?;
        }
        fs::write(parent.join(format!("file{n:05}.txt")), text(&mut state))?;
    }
    Ok(())
}

/// Adds one file of a megabyte that does not compress.
pub(crate) fn one_file(folder: &Path) -> Result<()> {
    let mut state = 1;
    let bytes: Vec<u8> = (0..1 << 17)
        .flat_map(|_| next(&mut state).to_le_bytes())
        .collect();
    fs::write(folder.join("program"), bytes)?;
    Ok(())
}

/// Changes one of the many files, each time to something that it never was.
pub(crate) fn change_one(folder: &Path) -> Result<()> {
    let path = folder.join("src/module100/file20000.txt");
    let mut file = fs::OpenOptions::new().append(true).open(path)?;
    file.write_all(b"changed\n")?;
    Ok(())
}

fn text(state: &mut u64) -> String {
    const WORDS: [&str; 16] = [
        "let ", "mut ", "value", " = ", "self", ".", "result", "();\n", "if ", "else ", "return ",
        "{ ", "}\n", "for ", "name", "0x",
    ];
    let mut out = String::with_capacity(FILE_BYTES + 32);
    while out.len() < FILE_BYTES {
        let random = next(state);
        for shift in 0..3 {
            let index = usize::from(random.to_le_bytes().get(shift).copied().unwrap_or(0));
            let word = WORDS.get(index % WORDS.len());
            out.push_str(word.copied().unwrap_or_default());
        }
        if random.is_multiple_of(3) {
            // Writing to a text cannot fail.
            let _infallible = write!(out, "{:x}", random >> 40);
        }
    }
    out
}

/// A generator with a fixed seed (`splitmix64`): the same files on every machine.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
