//! From the flattened archive to the file: compressed as it is, or as a filesystem that the kernel mounts.
//!
//! `tar+zstd` needs nothing but us. `squashfs` and `erofs` are made by the programs of their projects, which keep hard links and
//! extended attributes where libraries do not; they read an archive that we have written, never the image's own bytes, and run with
//! limits on memory, file size and time.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use oci::layer::{Compression, LayerWriter};
use rustix::process::{Pid, Resource, Rlimit};
use store::Ingest;
use tokio_util::sync::CancellationToken;

use super::Format;
use super::flatten::{FlattenError, Flattened};

/// Threads that compress. The result does not depend on their number.
const THREADS: usize = 2;
/// Level of zstd, in both formats.
const ZSTD_LEVEL: i32 = 3;
/// Memory that a program may use.
const PROGRAM_MEMORY_BYTES: u64 = 2 << 30;
/// What a program said is repeated up to here.
const SAID_MAX_BYTES: u64 = 4 << 10;
/// How often it is looked whether a program that got everything has ended.
const WAIT_PAUSE: Duration = Duration::from_millis(10);
/// Where programs are looked for; never in the image.
const FOLDERS: [&str; 5] = ["/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"];

/// Tells why the file could not be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum PackError {
    /// The image could not be flattened.
    #[error("flatten the image")]
    Flatten(#[source] FlattenError),
    /// The program for this format is not on this machine.
    #[error("make a {format} file: program {program} is not installed (Debian package {package})")]
    NoProgram {
        format: &'static str,
        program: &'static str,
        package: &'static str,
    },
    /// The program could not be run.
    #[error("run {program}")]
    Run {
        program: &'static str,
        #[source]
        source: io::Error,
    },
    /// The program gave up.
    #[error("{program} failed with {status}: {said}")]
    Program {
        program: &'static str,
        status: std::process::ExitStatus,
        said: String,
    },
    /// The file could not be written.
    #[error("write the file")]
    Write(#[source] io::Error),
    /// The caller wanted no more of it.
    #[error("making the file was cancelled")]
    Cancelled,
}

/// Something that writes the flattened archive to where it is told.
pub(super) type Archive<'a> = dyn FnMut(&mut dyn Write) -> Result<Flattened, FlattenError> + 'a;

/// Writes the file into `out`; `scratch` is a folder for what comes between.
pub(super) fn pack(
    format: Format,
    archive: &mut Archive<'_>,
    mut out: Ingest,
    scratch: &Path,
    cancel: &CancellationToken,
) -> Result<(Flattened, Ingest), PackError> {
    match format {
        Format::TarZstd => {
            let level = Compression::Zstd { level: ZSTD_LEVEL };
            let mut writer = LayerWriter::new(out, level, THREADS).map_err(PackError::Write)?;
            let report = archive(&mut writer).map_err(PackError::Flatten)?;
            let (_, out) = writer.finish().map_err(PackError::Write)?;
            Ok((report, out))
        }
        Format::Squashfs => {
            let path = scratch.join("image.squashfs");
            let report = squashfs(archive, &path, cancel)?;
            let copied = File::open(&path).and_then(|mut file| io::copy(&mut file, &mut out));
            copied.map_err(PackError::Write)?;
            // Not needed any more; the scratch folder goes with the build in any case.
            let _gone = std::fs::remove_file(&path);
            Ok((report, out))
        }
    }
}

const TAR2SQFS: &str = "tar2sqfs";

fn squashfs(
    archive: &mut Archive<'_>,
    path: &Path,
    cancel: &CancellationToken,
) -> Result<Flattened, PackError> {
    let program = find(TAR2SQFS).ok_or(PackError::NoProgram {
        format: "squashfs",
        program: TAR2SQFS,
        package: "squashfs-tools-ng",
    })?;
    let mut command = Command::new(program);
    command
        .args(["--quiet", "--force", "--no-skip", "--num-jobs"])
        .arg(THREADS.to_string())
        .args(["--compressor", "zstd", "--comp-extra"])
        .arg(format!("level={ZSTD_LEVEL}"))
        .arg(path)
        .env_clear()
        // The time in the superblock: the file is the same whenever it is made.
        .env("SOURCE_DATE_EPOCH", "0");
    feed(TAR2SQFS, &mut command, archive, cancel)
}

/// Runs a program and writes the archive to its standard input.
fn feed(
    program: &'static str,
    command: &mut Command,
    archive: &mut Archive<'_>,
    cancel: &CancellationToken,
) -> Result<Flattened, PackError> {
    let run = |source| PackError::Run { program, source };
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = Ended(command.spawn().map_err(run)?);
    limit(&child.0).map_err(run)?;
    let stderr = child.0.stderr.take();
    let listening = std::thread::spawn(move || {
        let mut said = Vec::new();
        if let Some(mut stderr) = stderr {
            // What cannot be read is not repeated. All of it is read, so that the program never waits for us.
            let _unread = (&mut stderr).take(SAID_MAX_BYTES).read_to_end(&mut said);
            let _unread = io::copy(&mut stderr, &mut io::sink());
        }
        String::from_utf8_lossy(&said).trim().to_owned()
    });
    let fed = match child.0.stdin.take() {
        Some(stdin) => {
            let mut stdin = BufWriter::with_capacity(256 << 10, stdin);
            let fed = archive(&mut stdin).map_err(PackError::Flatten);
            fed.and_then(|report| stdin.flush().map(|()| report).map_err(run))
        }
        None => Err(run(io::ErrorKind::BrokenPipe.into())),
    };
    let status = if fed.is_ok() {
        wait(&mut child.0, cancel, run)?
    } else {
        // It may have ended first, and then what it said is the reason; else it is of no use any more.
        let _gone = child.0.kill();
        child.0.wait().map_err(run)?
    };
    let said = listening.join().unwrap_or_default();
    match fed {
        Ok(report) if status.success() => Ok(report),
        Err(error) if said.is_empty() || cancel.is_cancelled() => Err(error),
        Ok(_) | Err(_) => Err(PackError::Program {
            program,
            status,
            said,
        }),
    }
}

fn wait(
    child: &mut Child,
    cancel: &CancellationToken,
    run: impl Fn(io::Error) -> PackError,
) -> Result<std::process::ExitStatus, PackError> {
    loop {
        if let Some(status) = child.try_wait().map_err(&run)? {
            return Ok(status);
        }
        if cancel.is_cancelled() {
            return Err(PackError::Cancelled);
        }
        std::thread::sleep(WAIT_PAUSE);
    }
}

/// Limits what a program may use.
fn limit(child: &Child) -> io::Result<()> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let memory = Rlimit {
        current: Some(PROGRAM_MEMORY_BYTES),
        maximum: Some(PROGRAM_MEMORY_BYTES),
    };
    rustix::process::prlimit(pid, Resource::As, memory)?;
    Ok(())
}

fn find(program: &str) -> Option<PathBuf> {
    FOLDERS
        .iter()
        .map(|folder| Path::new(folder).join(program))
        .find(|path| path.is_file())
}

/// A program that does not outlive its purpose.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // Both fail only when it has ended and was waited for.
        let _gone = self.0.kill();
        let _status = self.0.wait();
    }
}
