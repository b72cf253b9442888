//! Digests of what COPY and ADD would copy, for cache keys.
//!
//! Names, kinds, modes, owners, link targets, attributes and contents count; times do not, and neither do inode numbers or where
//! the tree lies on this machine. Every file has a digest of its own, so that a miss of the cache can name what changed.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;

use oci::{Digest, Hasher};
use rustix::fs::{FileType, Stat};
use tokio_util::sync::CancellationToken;

use super::attributes;
use super::copy::Owner;
use super::filter::Source;
use super::memory::{Identity, Memory, Recall};
use super::root::Root;
use super::select::{self, Ignore, Role, SelectError, Selected, Visit};
use super::tree::{self, join};

/// Content is read in pieces of this size.
const READ_BYTES: usize = 256 << 10;
/// Says what a digest is made of; to be changed with it.
pub(crate) const FORMAT: &[u8] = b"kiln.copy.v2\0";

/// What counts besides the files themselves.
#[derive(Clone, Copy)]
pub struct ContentOptions<'a> {
    /// Whom copies will belong to: of the source's own owners nothing counts under [`Owner::Fixed`].
    pub owner: Owner,
    /// Permissions that copies will have, instead of the source's.
    pub mode: Option<u32>,
    /// What is left out.
    pub ignore: Option<&'a Ignore<'a>>,
    /// Threads that hash (at least one).
    pub n_threads: usize,
}

impl std::fmt::Debug for ContentOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ContentOptions")
            .field("owner", &self.owner)
            .field("mode", &self.mode)
            .field("n_threads", &self.n_threads)
            .finish_non_exhaustive()
    }
}

/// The digest of some sources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContentDigest {
    /// Digest of everything.
    pub digest: Digest,
    /// Each file, link and directory by its path in the root it is taken from, with a digest of its own. In a fixed order.
    pub files: Vec<(PathBuf, Digest)>,
    /// Bytes that were hashed.
    pub content_bytes: u64,
    /// What may be recalled the next time, when that is something else than what was recalled.
    pub memory: Option<Memory>,
}

/// One file, seen but not yet hashed.
struct Seen {
    path: Vec<u8>,
    /// Everything about it but its content.
    header: Vec<u8>,
    has_content: bool,
    /// Of a file: what it is recalled by.
    identity: Option<Identity>,
}

/// Returns the digest of what `sources` mean in `root`.
///
/// # Errors
/// See [`SelectError`].
pub fn digest_sources(
    root: &Root,
    sources: &[Source],
    options: &ContentOptions<'_>,
    cancel: &CancellationToken,
) -> Result<ContentDigest, SelectError> {
    digest_recalled(root, sources, options, None, cancel)
}

/// The same, without reading files that are recalled.
///
/// # Errors
/// See [`SelectError`].
pub fn digest_recalled(
    root: &Root,
    sources: &[Source],
    options: &ContentOptions<'_>,
    recall: Option<Recall<'_>>,
    cancel: &CancellationToken,
) -> Result<ContentDigest, SelectError> {
    let mut seen = Vec::new();
    for (index, source) in sources.iter().enumerate() {
        for selected in select::select(root, source, options.ignore)? {
            let of = (index, source);
            look_at(root, of, &selected, options, cancel, &mut seen)?;
        }
    }
    let hashed = hash_all(root, &seen, (options.n_threads, recall), cancel)?;
    let mut all = Hasher::sha256();
    all.update(FORMAT);
    let mut files = Vec::with_capacity(seen.len());
    let mut content_bytes = 0;
    let mut learnt = recall
        .filter(|recall| !is_all_recalled(recall.memory, &seen, &hashed))
        .map(|recall| (Memory::default(), (recall.now_ms, recall.settling)));
    for (seen, (digest, n, _)) in seen.into_iter().zip(hashed) {
        all.update(digest.to_string().as_bytes());
        all.update(b"\n");
        content_bytes += n;
        if let (Some((memory, settled)), Some(identity)) = (&mut learnt, &seen.identity) {
            memory.keep(&seen.header, identity, &digest, *settled);
        }
        files.push((OsStr::from_bytes(&seen.path).into(), digest));
    }
    Ok(ContentDigest {
        digest: all.finish(),
        files,
        content_bytes,
        memory: learnt.map(|(memory, _)| memory),
    })
}

fn look_at(
    root: &Root,
    (index, source): (usize, &Source),
    selected: &Selected,
    options: &ContentOptions<'_>,
    cancel: &CancellationToken,
    seen: &mut Vec<Seen>,
) -> Result<(), SelectError> {
    let failed = |attempt| {
        let path = selected.path.clone();
        move |error: io::Error| SelectError::from_io(attempt, &path, error)
    };
    let (parent, name) = select::split(&selected.path);
    let flags = tree::directory_flags();
    let dir = tree::open_below(root.as_fd(), parent, flags).map_err(failed("open"))?;
    let name = match name {
        b"" => c".".to_owned(),
        name => tree::c_name(name).map_err(failed("open"))?,
    };
    let stat = tree::look(&dir, &name).map_err(failed("look at"))?;
    let stat = stat.ok_or_else(|| SelectError::NotFound(tree::shown(&selected.path)))?;
    if !selected.is_dir {
        let file = Visit {
            dir: &dir,
            name: &name,
            relative: &selected.name,
            stat: &stat,
            role: Role::Part,
        };
        let prefix = format!("{index} file");
        seen.push(describe(&file, &prefix, selected.path.clone(), options)?);
        return Ok(());
    }
    // A directory gives what it holds, and nothing of itself.
    let prefix = format!("{index} contents");
    seen.push(Seen {
        path: selected.path.clone(),
        header: prefix.clone().into_bytes(),
        has_content: false,
        identity: None,
    });
    let each = &mut |visit: &Visit<'_>| -> Result<(), SelectError> {
        let path = join(&selected.path, visit.relative);
        seen.push(describe(visit, &prefix, path, options)?);
        Ok(())
    };
    select::walk(root, &selected.path, (source, options.ignore), cancel, each)
}

fn describe(
    visit: &Visit<'_>,
    prefix: &str,
    path: Vec<u8>,
    options: &ContentOptions<'_>,
) -> Result<Seen, SelectError> {
    let kind = tree::kind(visit.stat);
    let mut header = Vec::new();
    let mut put = |field: &[u8]| {
        header.extend_from_slice(&(field.len() as u64).to_le_bytes());
        header.extend_from_slice(field);
    };
    put(prefix.as_bytes());
    put(visit.relative);
    put(&[u8::from(visit.role == Role::Way)]);
    put(&[match kind {
        FileType::RegularFile => b'f',
        FileType::Directory => b'd',
        FileType::Symlink => b'l',
        FileType::Fifo => b'p',
        FileType::Socket => b's',
        _ => b'?',
    }]);
    let (uid, gid) = owner(visit.stat, options.owner);
    put(&uid.to_le_bytes());
    put(&gid.to_le_bytes());
    if kind == FileType::Symlink {
        let target = rustix::fs::readlinkat(visit.dir, visit.name, Vec::new())
            .map_err(|error| SelectError::from_io("read the link", &path, error.into()))?;
        put(target.to_bytes());
    } else {
        let mode = options.mode.unwrap_or(visit.stat.st_mode & 0o7777);
        put(&mode.to_le_bytes());
    }
    Ok(Seen {
        path,
        header,
        has_content: matches!(kind, FileType::RegularFile | FileType::Directory),
        identity: (kind == FileType::RegularFile).then(|| Identity::of(visit.stat)),
    })
}

fn owner(stat: &Stat, owner: Owner) -> (u32, u32) {
    match owner {
        Owner::FromSource => (stat.st_uid, stat.st_gid),
        Owner::Fixed(uid, gid) => (uid, gid),
    }
}

/// Digest, bytes that were read for it, and whether it was recalled.
type Hashed = (Digest, u64, bool);

/// Tells whether everything that can be recalled was, and nothing else is remembered.
fn is_all_recalled(memory: &Memory, seen: &[Seen], hashed: &[Hashed]) -> bool {
    let files = seen
        .iter()
        .zip(hashed)
        .filter(|(seen, _)| seen.identity.is_some());
    let (mut n, mut all) = (0, true);
    for (_, (_, _, is_recalled)) in files {
        n += 1;
        all &= is_recalled;
    }
    all && n == memory.len()
}

/// Hashes everything, each file by whichever thread is free.
fn hash_all(
    root: &Root,
    seen: &[Seen],
    (n_threads, recall): (usize, Option<Recall<'_>>),
    cancel: &CancellationToken,
) -> Result<Vec<Hashed>, SelectError> {
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<(usize, Hashed)>> = Mutex::new(Vec::with_capacity(seen.len()));
    let work = || -> Result<(), SelectError> {
        let mut buffer = vec![0; READ_BYTES];
        let mut own = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(seen) = seen.get(index) else { break };
            if cancel.is_cancelled() {
                return Err(SelectError::Cancelled);
            }
            let recalled = recall.zip(seen.identity.as_ref());
            let recalled =
                recalled.and_then(|(known, identity)| known.memory.recall(&seen.header, identity));
            if let Some(digest) = recalled {
                own.push((index, (digest, 0, true)));
                continue;
            }
            let hashed = hash(root, seen, &mut buffer, cancel).map_err(|error| {
                // Ends the other threads early.
                next.store(usize::MAX / 2, Ordering::Relaxed);
                SelectError::from_io("read", &seen.path, error)
            })?;
            own.push((index, hashed));
        }
        let mut results = results
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        results.extend(own);
        Ok(())
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..n_threads.min(64)).map(|_| scope.spawn(work)).collect();
        let mut outcome = work();
        for other in others {
            let died = || Err(SelectError::from_io("read", b"", io::Error::other("died")));
            outcome = outcome.and(other.join().unwrap_or_else(|_| died()));
        }
        outcome
    })?;
    let mut results = results.into_inner().unwrap_or_default();
    results.sort_unstable_by_key(|(index, _)| *index);
    Ok(results.into_iter().map(|(_, hashed)| hashed).collect())
}

fn hash(
    root: &Root,
    seen: &Seen,
    buffer: &mut [u8],
    cancel: &CancellationToken,
) -> io::Result<Hashed> {
    let mut hasher = Hasher::sha256();
    hasher.update(&seen.header);
    let mut n_content = 0;
    if seen.has_content {
        let flags = rustix::fs::OFlags::RDONLY
            | rustix::fs::OFlags::NOFOLLOW
            | rustix::fs::OFlags::NONBLOCK
            | rustix::fs::OFlags::NOCTTY;
        let file: OwnedFd = tree::open_below(root.as_fd(), &seen.path, flags)?;
        for (name, value) in attributes::read(&file)? {
            for field in [name, value] {
                hasher.update(&(field.len() as u64).to_le_bytes());
                hasher.update(&field);
            }
        }
        hasher.update(b"\0content\0");
        let mut file = File::from(file);
        loop {
            match file.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::IsADirectory => break,
                Ok(0) => break,
                Ok(n) => {
                    hasher.update(buffer.get(..n).unwrap_or_default());
                    n_content += n as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if cancel.is_cancelled() {
                return Err(io::Error::other("cancelled"));
            }
        }
    }
    Ok((hasher.finish(), n_content, false))
}
