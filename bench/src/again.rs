//! W4g and W4s: what a service takes to say that what is asked has been built from before, of 40 000 files in a repository and in a folder of
//! its caller.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use api::builder::BuildRequest;
use testkit::git_server::{File, GitServer};
use testkit::{process, requests};

use crate::{context, service, workspace};

/// How often each is done, of which the middle one counts.
const TIMES: usize = 5;
const DOCKERFILE: &str = "COPY . /app/\nRUN ls /app/src > /listed\n";

/// What came of it.
#[derive(Debug)]
pub(crate) struct Again {
    /// The first build of a commit.
    pub(crate) first: Duration,
    /// The commit once more: its image is there.
    pub(crate) exists: Duration,
    /// The commit once more, with the wish that it be built anew, from no cache.
    pub(crate) forced: Duration,
    /// The commit once more, through `kiln build --server`, which builds always: every step is in the cache.
    pub(crate) cached: Duration,
    /// `kiln build --server` of a folder, for the first time and once more.
    pub(crate) folder_first: Duration,
    pub(crate) folder: Duration,
}

/// Measures the service of `kiln` with builds on `base`.
pub(crate) fn measure(kiln: &Path, scratch: &Path, base: &str) -> Result<Again> {
    let (_server, address) = service::start(kiln, scratch, "")?;
    let folder = scratch.join("again");
    context::plain(&folder, &format!("FROM {base}\n{DOCKERFILE}"))?;
    context::many_files(&folder)?;
    let git = GitServer::start();
    let commit = git.repository("app").commit("main", &files(&folder)?);
    let usual = requests::of_commit(&git.url("app"), &commit);
    let forced = BuildRequest {
        force_rebuild: true,
        ..usual.clone()
    };
    let runtime = tokio::runtime::Runtime::new()?;
    let build = |request| runtime.block_on(workspace::build(&address, request));
    let first = build(usual.clone())?;
    let exists = median(|| build(usual.clone()))?;
    let forced = median(|| build(forced.clone()))?;
    let url = format!("{}#{commit}", git.url("app"));
    let ask = || timed(&mut server_build(kiln, scratch, (&address, &url)));
    // Another kind of request: what it is kept under is known after the first one.
    ask()?;
    let cached = median(ask)?;
    let send = || {
        let folder = folder.display().to_string();
        timed(&mut server_build(kiln, scratch, (&address, &folder)))
    };
    let folder_first = send()?;
    let folder = median(send)?;
    Ok(Again {
        first,
        exists,
        forced,
        cached,
        folder_first,
        folder,
    })
}

fn server_build(kiln: &Path, scratch: &Path, (address, what): (&str, &str)) -> Command {
    let mut command = process::clean_command(kiln);
    command.args([
        "build",
        "--quiet",
        "--server",
        &format!("http://{address}"),
        what,
    ]);
    command.env("HOME", scratch);
    command
}

fn median(mut measure: impl FnMut() -> Result<Duration>) -> Result<Duration> {
    let mut all = (0..TIMES).map(|_| measure()).collect::<Result<Vec<_>>>()?;
    all.sort_unstable();
    Ok(all.get(TIMES / 2).copied().unwrap_or_default())
}

fn timed(command: &mut Command) -> Result<Duration> {
    let began = Instant::now();
    let output = process::finish(command);
    let took = began.elapsed();
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(took)
}

/// Returns what is in a folder, with paths as a repository has them.
fn files(folder: &Path) -> Result<Vec<File>> {
    let mut found = Vec::new();
    let mut folders = vec![String::new()];
    while let Some(below) = folders.pop() {
        for entry in std::fs::read_dir(folder.join(&below))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = match &*below {
                "" => name,
                below => format!("{below}/{name}"),
            };
            if entry.file_type()?.is_dir() {
                folders.push(path);
            } else {
                found.push(File::new(&path, std::fs::read(entry.path())?));
            }
        }
    }
    Ok(found)
}
