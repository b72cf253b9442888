//! A file over HTTP: gone on with where an earlier try broke off, and nothing under its name before its digest is right.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use futures_util::StreamExt as _;
use oci::{Digest, Hasher};
use reqwest::StatusCode;
use reqwest::header::{CONTENT_RANGE, RANGE};

use crate::failure::{Exit, Failure, OrExit, Outcome};

/// How often a download that breaks off is gone on with.
const TRIES_MAX: u32 = 5;
/// How long a server may be silent.
const SILENCE: Duration = Duration::from_secs(60);

/// Downloads `url` into `path`.
pub(super) async fn fetch(url: &str, digest: &str, path: &Path) -> Outcome {
    let digest: Digest = digest.parse().or_exit(Exit::Unreachable)?;
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let client = reqwest::Client::builder()
        .read_timeout(SILENCE)
        .build()
        .or_exit(Exit::Internal)?;
    let mut tries = 0;
    loop {
        tries += 1;
        match go_on(&client, url, &part).await {
            Ok(()) => break,
            // What has come stays, for the next try or the next command.
            Err(Broken::ForNow(error)) if tries < TRIES_MAX => {
                crate::terminal::say(&format!("warning: {error:#}; going on"));
            }
            Err(Broken::ForNow(error) | Broken::ForGood(error)) => {
                return Err(Failure::new(Exit::Unreachable, error));
            }
        }
    }
    let actual = hash(&part).or_exit(Exit::Machine)?;
    if actual != digest {
        // It would be gone on with for ever.
        let _gone = fs::remove_file(&part);
        let text = format!("the file that came is {actual}, not {digest}");
        return Err(Failure::text(Exit::Unreachable, text));
    }
    let renamed = fs::rename(&part, path).with_context(|| format!("write {}", path.display()));
    renamed.or_exit(Exit::Machine)
}

enum Broken {
    ForNow(anyhow::Error),
    ForGood(anyhow::Error),
}

async fn go_on(client: &reqwest::Client, url: &str, part: &Path) -> Result<(), Broken> {
    let for_good = |error: anyhow::Error| Broken::ForGood(error);
    let have = fs::metadata(part).map_or(0, |found| found.len());
    let mut request = client.get(url);
    if have > 0 {
        request = request.header(RANGE, format!("bytes={have}-"));
    }
    let response = request
        .send()
        .await
        .context("ask for the file")
        .map_err(Broken::ForNow)?;
    let status = response.status();
    let is_rest = status == StatusCode::PARTIAL_CONTENT
        && response
            .headers()
            .get(CONTENT_RANGE)
            .and_then(|value| value.to_str().ok())
            .is_some_and(|range| range.starts_with(&format!("bytes {have}-")));
    // All of it is here already.
    if status == StatusCode::RANGE_NOT_SATISFIABLE {
        return Ok(());
    }
    if status.is_server_error() {
        return Err(Broken::ForNow(anyhow::anyhow!(
            "the server answered {status}"
        )));
    }
    if !status.is_success() {
        return Err(for_good(anyhow::anyhow!("the server answered {status}")));
    }
    let mut file = OpenOptions::new()
        .create(true)
        .write(true)
        .append(is_rest)
        .truncate(!is_rest)
        .open(part)
        .with_context(|| format!("write {}", part.display()))
        .map_err(for_good)?;
    let mut stream = response.bytes_stream();
    while let Some(piece) = stream.next().await {
        let piece = piece
            .context("the download broke off")
            .map_err(Broken::ForNow)?;
        let written = file.write_all(&piece);
        written
            .with_context(|| format!("write {}", part.display()))
            .map_err(for_good)?;
    }
    Ok(())
}

fn hash(path: &Path) -> std::io::Result<Digest> {
    let mut file = File::open(path)?;
    let mut hasher = Hasher::sha256();
    let mut piece = vec![0; 256 << 10];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(hasher.finish()),
            n => hasher.update(piece.get(..n).unwrap_or_default()),
        }
    }
}
