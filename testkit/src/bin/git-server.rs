//! Serves a folder as a git repository on loopback until it is told to stop; prints the address. For the demo.

#![forbid(unsafe_code)]

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Context;
use testkit::git_server::{File, GitServer};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let folder = std::env::args_os()
        .nth(1)
        .context("usage: git-server FOLDER")?;
    let folder = Path::new(&folder);
    let name = folder.file_name().and_then(|name| name.to_str());
    let name = name.context("the folder has no name")?;
    let mut files = Vec::new();
    collect(folder, "", &mut files)?;
    let server = GitServer::start();
    server.repository(name).commit("main", &files);
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{}", server.url(name)).and_then(|()| stdout.flush())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

fn collect(folder: &Path, prefix: &str, files: &mut Vec<File>) -> anyhow::Result<()> {
    let failed = || format!("read {}", folder.display());
    for entry in std::fs::read_dir(folder).with_context(failed)? {
        let entry = entry.with_context(failed)?;
        let name = entry.file_name();
        let name = name.to_str().context("a file name is not text")?;
        let path = format!("{prefix}{name}");
        let kind = entry.file_type().with_context(failed)?;
        if kind.is_dir() {
            collect(&entry.path(), &format!("{path}/"), files)?;
        } else if kind.is_file() {
            let content = std::fs::read(entry.path()).with_context(failed)?;
            let mode = entry.metadata().with_context(failed)?.permissions().mode();
            files.push(match mode & 0o100 {
                0 => File::new(&path, content),
                _ => File::executable(&path, content),
            });
        }
    }
    Ok(())
}
