//! Brings a folder of this machine to where the worker can read it.
//!
//! A worker that root starts runs as somebody else and may not be able to read the user's files; they are lent to it then
//! ([`super::lend`]), or else copied into the build's scratch folder, without what `.dockerignore` names. A worker that anybody else starts
//! reads them where they are.

use std::cell::RefCell;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use dockerfile::ignore::{FILE_NAME as IGNORE_FILE, IgnoreError, IgnoreFile};
use engine::spec::{Context, Limits};
use worker::userns::UserNsOptions;

use super::context::{Dockerfile, FolderInput};
use super::lend::{self, Lent, Reach};
use crate::failure::{Exit, OrExit, Outcome};
use crate::terminal;
use crate::tree::{self, CopyError, EntryKind, Keep, Listing, Rules, Special};

/// Name of an archive within a build's scratch folder.
const ARCHIVE: &str = "context.tar";
/// Largest `.dockerignore` that is read.
const IGNORE_MAX_BYTES: u64 = 1 << 20;

/// A context that the worker can read, and where the Dockerfile is in it.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) context: Context,
    pub(crate) dockerfile: Option<String>,
}

/// Who may have to be able to read the files.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Reader {
    /// Somebody else: user and group.
    Other(u32, u32),
    /// The caller itself.
    Caller,
}

/// Makes `input` readable for the worker. Copies go to `into`, which is made if it is needed.
pub(crate) fn prepare(
    input: &FolderInput,
    into: &Path,
    reader: Reader,
    limits: &Limits,
) -> Outcome<Prepared> {
    let ignore = Ignore::find(input).or_exit(Exit::Usage)?;
    // An ignore file that lies elsewhere is not found by the worker: its work is done here.
    let must_copy = matches!(reader, Reader::Other(..)) || ignore.is_elsewhere;
    let path = match &input.path {
        Some(path) if !must_copy => path.clone(),
        from => {
            copy(from.as_deref(), into, &ignore, reader, limits).or_exit(Exit::Usage)?;
            into.to_owned()
        }
    };
    Ok(prepared(input, path))
}

/// Returns `input` with its files at `path`, where the worker can read them.
pub(crate) fn prepared(input: &FolderInput, path: PathBuf) -> Prepared {
    let (dockerfile, dockerfile_text) = match &input.dockerfile {
        Dockerfile::Inside(path) => (Some(path.to_string_lossy().into_owned()), None),
        Dockerfile::Outside { text, .. } => (None, Some(text.clone())),
    };
    Prepared {
        context: Context::Directory {
            path,
            dockerfile_text,
            name: input.name.clone(),
        },
        dockerfile,
    }
}

/// Lends the folder of `input` to a worker that is somebody else, if that can be done.
pub(crate) fn lend(input: &FolderInput, options: &UserNsOptions) -> Outcome<Option<Lent>> {
    if !can_be_lent(input, Reach::Top)? {
        return Ok(None);
    }
    let path = input.path.as_deref();
    Ok(path.and_then(|path| Lent::try_new(path, options)))
}

/// Tells whether a worker that is somebody else could read what it may want of the folder of `input`, as far as `reach`.
pub(crate) fn can_be_lent(input: &FolderInput, reach: Reach) -> Outcome<bool> {
    let ignore = Ignore::find(input).or_exit(Exit::Usage)?;
    let Some(path) = input.path.as_deref().filter(|_| !ignore.is_elsewhere) else {
        return Ok(false);
    };
    let keep = |path: &Path, kind: EntryKind| ignore.keep(path, kind);
    let is_lendable = lend::is_lendable(path, &keep, reach);
    // What is wrong with the ignore file is told by the copying.
    Ok(is_lendable && ignore.broken.borrow().is_none())
}

/// Writes the archive on standard input, of which `start` was read, to where the worker can read it.
pub(crate) fn archive(
    start: &[u8],
    scratch: &Path,
    reader: Reader,
    limits: &Limits,
) -> Outcome<PathBuf> {
    let path = scratch.join(ARCHIVE);
    let max_bytes = limits.context_bytes;
    let write = || -> anyhow::Result<()> {
        let failed = || format!("write {}", path.display());
        let mut file = fs::File::create_new(&path).with_context(failed)?;
        let mut input = start.chain(std::io::stdin().lock()).take(max_bytes + 1);
        let n_bytes = std::io::copy(&mut input, &mut file).context("read standard input")?;
        anyhow::ensure!(
            n_bytes <= max_bytes,
            "the context is larger than {max_bytes} bytes"
        );
        if let Reader::Other(uid, gid) = reader {
            std::os::unix::fs::chown(&path, Some(uid), Some(gid)).with_context(failed)?;
        }
        Ok(())
    };
    write().or_exit(Exit::Usage)?;
    Ok(path)
}

/// Returns what the context's ignore file says.
pub(crate) fn ignore_file(input: &FolderInput) -> Outcome<IgnoreFile> {
    Ok(Ignore::find(input).or_exit(Exit::Usage)?.file)
}

/// Makes an OCI layout readable for the worker; returns where it is.
pub(crate) fn layout(
    path: &Path,
    into: &Path,
    reader: Reader,
    limits: &Limits,
) -> Outcome<PathBuf> {
    if matches!(reader, Reader::Caller) {
        return Ok(path.to_owned());
    }
    let everything = Ignore::new(IgnoreFile::empty(), Vec::new());
    copy(Some(path), into, &everything, reader, limits).or_exit(Exit::Usage)?;
    Ok(into.to_owned())
}

/// Lists the files of `input` for a server, without what is ignored.
pub(crate) fn list(input: &FolderInput, limits: &Limits) -> Outcome<Listing> {
    let ignore = Ignore::find(input).or_exit(Exit::Usage)?;
    list_with(input.path.as_deref(), &ignore, limits).or_exit(Exit::Usage)
}

/// Lists all files of an OCI layout for a server.
pub(crate) fn list_layout(path: &Path, limits: &Limits) -> Outcome<Listing> {
    let everything = Ignore::new(IgnoreFile::empty(), Vec::new());
    list_with(Some(path), &everything, limits).or_exit(Exit::Usage)
}

fn list_with(from: Option<&Path>, ignore: &Ignore, limits: &Limits) -> anyhow::Result<Listing> {
    let Some(from) = from else {
        return Ok(Listing::empty());
    };
    let listing = ignore.walk(None, limits, |rules| tree::list(from, rules))?;
    tell_skipped(listing.copied.n_skipped);
    Ok(listing)
}

fn tell_skipped(n: u64) {
    if n > 0 {
        terminal::say(&format!(
            "warning: {n} sockets or devices of the context were left out."
        ));
    }
}

/// What is left out of the copy.
struct Ignore {
    file: IgnoreFile,
    /// Paths in the context that are copied whatever is ignored: the worker has to read them.
    always: Vec<PathBuf>,
    is_elsewhere: bool,
    broken: RefCell<Option<IgnoreError>>,
}

impl Ignore {
    /// Finds the file that says what is ignored: the Dockerfile's own goes before the context's.
    fn find(input: &FolderInput) -> anyhow::Result<Self> {
        let root = input.path.as_deref();
        let (dockerfile, is_elsewhere) = match (&input.dockerfile, root) {
            (Dockerfile::Inside(path), Some(root)) => (Some(root.join(path)), false),
            (Dockerfile::Outside { path, .. }, _) => (path.clone(), true),
            (Dockerfile::Inside(_), None) => (None, false),
        };
        let own = dockerfile.map(|path| with_suffix(&path));
        let mut always = Vec::new();
        if let Dockerfile::Inside(path) = &input.dockerfile {
            always = vec![path.clone(), with_suffix(path), IGNORE_FILE.into()];
        }
        let candidates = [
            (own, is_elsewhere),
            (root.map(|root| root.join(IGNORE_FILE)), false),
        ];
        for (path, is_elsewhere) in candidates {
            if let Some(path) = path
                && let Some(text) = read(&path)?
            {
                let file = IgnoreFile::parse(text.as_bytes())
                    .with_context(|| format!("read {}", path.display()))?;
                return Ok(Self {
                    is_elsewhere,
                    ..Self::new(file, always)
                });
            }
        }
        Ok(Self::new(IgnoreFile::empty(), always))
    }

    fn new(file: IgnoreFile, always: Vec<PathBuf>) -> Self {
        Self {
            file,
            always,
            is_elsewhere: false,
            broken: RefCell::new(None),
        }
    }

    /// Decides about an entry. What goes wrong is kept for the end: the walk has no use for it.
    fn keep(&self, path: &Path, kind: EntryKind) -> Keep {
        if self.always.iter().any(|always| always == path) {
            return Keep::Yes;
        }
        let leads_there = self.always.iter().any(|always| always.starts_with(path));
        let decided = self.decide(&path.to_string_lossy(), kind);
        match decided {
            Ok(Keep::No) if leads_there => Keep::PartsOnly,
            Ok(keep) => keep,
            Err(error) => {
                self.broken.borrow_mut().get_or_insert(error);
                Keep::No
            }
        }
    }

    /// Goes through a context by the rules that all contexts have.
    fn walk<T>(
        &self,
        owner: Option<(u32, u32)>,
        limits: &Limits,
        walk: impl FnOnce(&Rules<'_>) -> Result<T, CopyError>,
    ) -> anyhow::Result<T> {
        let keep = |path: &Path, kind: EntryKind| self.keep(path, kind);
        let rules = Rules {
            keep: &keep,
            owner,
            special: Special::Keep,
            files_max: limits.context_files,
            bytes_max: limits.context_bytes,
        };
        let walked = walk(&rules).context("copy the context")?;
        match self.broken.take() {
            Some(error) => Err(anyhow::Error::new(error).context("apply .dockerignore")),
            None => Ok(walked),
        }
    }

    fn decide(&self, path: &str, kind: EntryKind) -> Result<Keep, IgnoreError> {
        if !self.file.matches(path)? {
            return Ok(Keep::Yes);
        }
        if kind == EntryKind::Other {
            return Ok(Keep::No);
        }
        Ok(if self.file.may_include_below(path)? {
            Keep::PartsOnly
        } else {
            Keep::No
        })
    }
}

fn with_suffix(path: &Path) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(IGNORE_FILE);
    path.into()
}

fn read(path: &Path) -> anyhow::Result<Option<String>> {
    let failed = || format!("read {}", path.display());
    match fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        found => {
            let size_bytes = found.with_context(failed)?.len();
            anyhow::ensure!(
                size_bytes <= IGNORE_MAX_BYTES,
                "{} is larger than {IGNORE_MAX_BYTES} bytes",
                path.display()
            );
            fs::read_to_string(path).map(Some).with_context(failed)
        }
    }
}

fn copy(
    from: Option<&Path>,
    into: &Path,
    ignore: &Ignore,
    reader: Reader,
    limits: &Limits,
) -> anyhow::Result<()> {
    let owner = match reader {
        Reader::Other(uid, gid) => Some((uid, gid)),
        Reader::Caller => None,
    };
    fs::create_dir(into).with_context(|| format!("create {}", into.display()))?;
    if let Some(from) = from {
        let copied = ignore.walk(owner, limits, |rules| tree::copy(from, into, rules))?;
        tell_skipped(copied.n_skipped);
    }
    if let Some((uid, gid)) = owner {
        std::os::unix::fs::chown(into, Some(uid), Some(gid))
            .with_context(|| format!("give {} to the worker", into.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(root: &Path, dockerfile: Dockerfile) -> FolderInput {
        FolderInput {
            path: Some(root.to_owned()),
            dockerfile,
            name: ".".to_owned(),
        }
    }

    fn me() -> Reader {
        let uid = rustix::process::geteuid().as_raw();
        Reader::Other(uid, rustix::process::getegid().as_raw())
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let name = |e: std::io::Result<fs::DirEntry>| e.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<_> = entries.map(name).collect();
        names.sort();
        names
    }

    #[test]
    fn what_is_ignored_is_not_copied_but_for_what_the_worker_reads() {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("Dockerfile", "FROM scratch"),
            (".dockerignore", "Dockerfile\nsecret*\nlogs\n!logs/kept\n"),
            ("secret.key", "x"),
            ("main.c", "x"),
        ] {
            fs::write(root.path().join(name), text).unwrap();
        }
        fs::create_dir(root.path().join("logs")).unwrap();
        fs::write(root.path().join("logs/kept"), "").unwrap();
        fs::write(root.path().join("logs/gone"), "").unwrap();
        let scratch = tempfile::tempdir().unwrap();
        let into = scratch.path().join("context");
        let input = input(root.path(), Dockerfile::Inside("Dockerfile".into()));
        let prepared = prepare(&input, &into, me(), &Limits::default()).unwrap();
        assert_eq!(prepared.dockerfile.as_deref(), Some("Dockerfile"));
        assert_eq!(
            names(&into),
            [".dockerignore", "Dockerfile", "logs", "main.c"]
        );
        assert_eq!(names(&into.join("logs")), ["kept"]);
    }

    #[test]
    fn the_caller_reads_its_own_files_where_they_are() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("Dockerfile"), "FROM scratch").unwrap();
        let into = root.path().join("never");
        let input = input(root.path(), Dockerfile::Inside("Dockerfile".into()));
        let prepared = prepare(&input, &into, Reader::Caller, &Limits::default()).unwrap();
        let Context::Directory { path, .. } = prepared.context else {
            panic!("not a folder");
        };
        assert_eq!(path, root.path());
        assert!(!into.exists());
    }

    #[test]
    fn a_dockerfile_elsewhere_brings_its_own_ignore_file() {
        let root = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        fs::write(root.path().join("a"), "").unwrap();
        fs::write(root.path().join("b"), "").unwrap();
        let path = elsewhere.path().join("x.Dockerfile");
        fs::write(elsewhere.path().join("x.Dockerfile.dockerignore"), "b\n").unwrap();
        let (text, path) = ("FROM scratch".to_owned(), Some(path));
        let into = elsewhere.path().join("context");
        let input = input(root.path(), Dockerfile::Outside { text, path });
        prepare(&input, &into, Reader::Caller, &Limits::default()).unwrap();
        assert_eq!(names(&into), ["a"]);
    }
}
