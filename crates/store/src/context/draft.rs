//! An upload on its way: entries, then the contents that are missing, then a context.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufWriter, Write as _};

use oci::Hasher;
use rustix::fs::{FileType, Mode};

use super::content::ContentId;
use super::entry::{Entry, EntryKind, Sequence, shown};
use super::manifest::{self, ManifestWriter};
use super::room::{Allowance, Claim, Known, Need, lock, share};
use super::sweep::renew;
use super::{CONTEXTS_MAX, ContextError, ContextId, Home, Keeping, failed, new_id};
use crate::Store;
use crate::dir::Dir;

/// Contents up to this size are written in one piece once they have come whole.
const SMALL_MAX_BYTES: u64 = 1 << 20;
/// Names within a tray that are no contents.
const MANIFEST: &str = "manifest";
const PART: &str = "part";

/// What an upload says of itself before it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announced {
    /// How many entries there will be.
    pub n_entries: u64,
    /// How many bytes the files have together.
    pub n_bytes: u64,
}

/// A context that has been made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    /// Its id.
    pub id: ContextId,
    /// When, in Unix milliseconds.
    pub created_ms: u64,
}

/// A context that is being uploaded. Dropped without [`ContextDraft::commit`] it leaves nothing.
#[derive(Debug)]
pub struct ContextDraft {
    store: Store,
    home: Home,
    tray: Tray,
    keeping: Keeping,
    announced: Announced,
    manifest: Option<ManifestWriter<BufWriter<File>>>,
    sequence: Sequence,
    n_entries: u64,
    n_bytes: u64,
    /// Every content that was named, and its size.
    known: Known,
    claim: Claim,
    /// What a file counts at least.
    share: u64,
    /// What the list of entries takes.
    list_bytes: u64,
    missing: Vec<Missing>,
    /// Whether room was promised to what is missing.
    is_promised: bool,
    /// How many of the missing ones have come whole.
    n_received: usize,
    incoming: Option<Incoming>,
    received_bytes: u64,
}

#[derive(Debug, Clone, Copy)]
struct Missing {
    entry: u64,
    content: ContentId,
    size: u64,
}

/// A content of which the beginning has come.
#[derive(Debug)]
enum Incoming {
    Small(Vec<u8>),
    Large { file: File, hasher: Hasher },
}

/// The folder of one upload. Its name is where others may write, its content is not.
#[derive(Debug)]
struct Tray {
    store: Store,
    name: String,
    dir: Dir,
}

impl Tray {
    fn new(store: &Store) -> io::Result<Self> {
        let name = store.session().new_name();
        let dir = store.session().dir().ours()?.make_for_now(&name)?;
        Ok(Self {
            store: store.clone(),
            name,
            dir,
        })
    }

    fn create(&self, name: &str) -> io::Result<File> {
        let file = self.dir.create_new(name, 0o444)?;
        // Whatever the process leaves out of modes: the data plane reads it.
        rustix::fs::fchmod(&file, Mode::from_raw_mode(0o444))?;
        Ok(file)
    }
}

impl Drop for Tray {
    fn drop(&mut self) {
        // What cannot be removed now goes with everything else unfinished.
        let _ = self.store.session().remove(&self.name);
    }
}

impl Store {
    /// Begins a context of `tenant`.
    ///
    /// # Errors
    /// When the tenant has too many, or the system refuses.
    pub fn begin_context(
        &self,
        tenant: &str,
        announced: Announced,
        keeping: Keeping,
        allowance: Allowance,
    ) -> Result<ContextDraft, ContextError> {
        let begin = failed("begin a context");
        let home = Home::make(self, tenant).map_err(&begin)?;
        if home.manifests.names().map_err(&begin)?.len() >= CONTEXTS_MAX {
            return Err(ContextError::TooMany);
        }
        let tray = Tray::new(self).map_err(&begin)?;
        let file = tray.create(MANIFEST).map_err(&begin)?;
        let manifest = ManifestWriter::begin(BufWriter::with_capacity(1 << 18, file));
        let known = Known::default();
        Ok(ContextDraft {
            store: self.clone(),
            claim: Claim::new(self, &home, (keeping, allowance), &known),
            share: share(&home.contents).map_err(&begin)?,
            list_bytes: 0,
            known,
            is_promised: false,
            home,
            tray,
            keeping,
            announced,
            manifest: Some(manifest.map_err(&begin)?),
            sequence: Sequence::default(),
            n_entries: 0,
            n_bytes: 0,
            missing: Vec::new(),
            n_received: 0,
            incoming: None,
            received_bytes: 0,
        })
    }
}

impl ContextDraft {
    /// Takes the next entries.
    ///
    /// # Errors
    /// When there is no room for them, and then it is as if they had not come. When one of them is refused; the draft is of no use then
    /// but for [`ContextDraft::abandon`].
    pub fn entries(&mut self, entries: &[Entry]) -> Result<(), ContextError> {
        let list_bytes = entries.iter().map(manifest::size).sum();
        self.claim.extend(&self.home, Need::of_list(list_bytes))?;
        self.list_bytes += list_bytes;
        entries.iter().try_for_each(|entry| self.entry(entry))?;
        self.claim.wrote(list_bytes, 0);
        Ok(())
    }

    fn entry(&mut self, entry: &Entry) -> Result<(), ContextError> {
        if self.n_entries >= self.announced.n_entries {
            return Err(ContextError::NumberOfEntries {
                announced: self.announced.n_entries,
                found: self.n_entries + 1,
            });
        }
        let admitted = self.sequence.admit(entry);
        admitted.map_err(|source| ContextError::Entry {
            path: shown(&entry.path),
            source,
        })?;
        if let EntryKind::File { size, content } = entry.kind {
            self.n_bytes = self.n_bytes.saturating_add(size);
            if self.n_bytes > self.announced.n_bytes {
                return Err(self.wrong_bytes());
            }
            self.file(&entry.path, size, content)?;
        }
        self.n_entries += 1;
        let manifest = self.manifest.as_mut();
        let written = manifest.map_or(Ok(()), |manifest| manifest.entry(entry));
        written.map_err(failed("write the list of entries"))
    }

    fn wrong_bytes(&self) -> ContextError {
        ContextError::NumberOfBytes {
            announced: self.announced.n_bytes,
            found: self.n_bytes,
        }
    }

    /// Finds out whether a content is missing, once for each.
    fn file(&mut self, path: &[u8], size: u64, content: ContentId) -> Result<(), ContextError> {
        let mut known = lock(&self.known);
        let actual = match known.get(&content) {
            Some(size) => Some(*size),
            None if size == 0 => return Ok(()),
            None => {
                let there = self.there(content).map_err(failed("look for a content"))?;
                if there.is_none() {
                    self.missing.push(Missing {
                        entry: self.n_entries,
                        content,
                        size,
                    });
                }
                known.insert(content, size);
                there
            }
        };
        match actual {
            Some(actual) if actual != size => Err(ContextError::Size {
                path: shown(path),
                size,
                actual,
            }),
            _ => Ok(()),
        }
    }

    /// Returns the size of a content that the tenant has, and sees to it that it stays for as long as a context.
    fn there(&self, content: ContentId) -> io::Result<Option<u64>> {
        let contents = &self.home.contents;
        let place = content.place();
        let Some(stat) = contents.stat(&place)? else {
            return Ok(None);
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(None);
        }
        if self.keeping.is_to_be_renewed(stat.st_mtime)
            && !renew(contents, &place, self.keeping.now_ms)?
        {
            return Ok(None);
        }
        Ok(u64::try_from(stat.st_size).ok())
    }

    /// Tells whether all entries have come that were announced.
    pub fn is_listed(&self) -> bool {
        self.n_entries >= self.announced.n_entries
    }

    /// Returns the positions of the entries whose contents are to come, ascending, once all entries have.
    ///
    /// # Errors
    /// When the entries are not as announced, or there is no room for what is missing; there may be, later.
    pub fn missing(&mut self) -> Result<Vec<u64>, ContextError> {
        if !self.is_listed() {
            return Err(ContextError::NumberOfEntries {
                announced: self.announced.n_entries,
                found: self.n_entries,
            });
        }
        if self.n_bytes != self.announced.n_bytes {
            return Err(self.wrong_bytes());
        }
        if !self.is_promised {
            let need = self.need(&self.missing);
            self.claim.extend(&self.home, need)?;
            self.is_promised = true;
        }
        Ok(self.missing.iter().map(|missing| missing.entry).collect())
    }

    fn need(&self, missing: &[Missing]) -> Need {
        let mut all = Need::default();
        for missing in missing {
            all += Need::of_content(missing.size, self.share);
        }
        all
    }

    /// Takes the next bytes of the missing contents, which come in order, one right after the other.
    ///
    /// # Errors
    /// When a content is not what its entry says, or nothing more is missing.
    pub fn content(&mut self, mut bytes: &[u8]) -> Result<(), ContextError> {
        self.received_bytes = self.received_bytes.saturating_add(bytes.len() as u64);
        while !bytes.is_empty() {
            let Some(missing) = self.missing.get(self.n_received).copied() else {
                return Err(ContextError::Unwanted);
            };
            let got = self.incoming.as_ref().map_or(0, Incoming::size);
            let wanted = usize::try_from(missing.size.saturating_sub(got)).unwrap_or(usize::MAX);
            let (piece, rest) = bytes.split_at_checked(wanted).unwrap_or((bytes, &[]));
            self.piece(missing, piece, piece.len() == wanted)?;
            bytes = rest;
        }
        Ok(())
    }

    #[expect(
        clippy::fn_params_excessive_bools,
        reason = "one, that the caller has just found out"
    )]
    fn piece(&mut self, missing: Missing, piece: &[u8], is_last: bool) -> Result<(), ContextError> {
        let write = failed("write a content");
        let wrong = || ContextError::Digest {
            entry: missing.entry,
            expected: missing.content,
        };
        let name = missing.content.hex();
        let is_large = missing.size > SMALL_MAX_BYTES;
        if is_large {
            self.claim.wrote(piece.len() as u64, 0);
        }
        if is_last && self.incoming.is_none() {
            // All of a small file in one message: the usual case.
            if ContentId::of(piece) != missing.content {
                return Err(wrong());
            }
            self.whole(&name, piece).map_err(write)?;
        } else {
            let incoming = match self.incoming.take() {
                Some(incoming) => incoming,
                None => Incoming::begin(&self.tray, missing.size).map_err(&write)?,
            };
            let incoming = incoming.with(piece).map_err(&write)?;
            if !is_last {
                self.incoming = Some(incoming);
                return Ok(());
            }
            match incoming {
                Incoming::Small(content) if ContentId::of(&content) == missing.content => {
                    self.whole(&name, &content).map_err(write)?;
                }
                Incoming::Large { hasher, .. }
                    if ContentId::new(&hasher.clone().finish()) == Some(missing.content) =>
                {
                    self.tray
                        .dir
                        .replace(PART, &self.tray.dir, &name)
                        .map_err(write)?;
                }
                _ => return Err(wrong()),
            }
        }
        self.n_received += 1;
        let on_disk = Need::of_content(missing.size, self.share).bytes();
        let noted = if is_large { missing.size } else { 0 };
        self.claim.wrote(on_disk.saturating_sub(noted), 1);
        Ok(())
    }

    fn whole(&self, name: &str, content: &[u8]) -> io::Result<()> {
        self.tray.create(name)?.write_all(content)
    }

    /// Tells whether everything has come.
    pub fn is_complete(&self) -> bool {
        self.is_listed() && self.n_received == self.missing.len()
    }

    /// Returns how many bytes of content have come.
    pub fn received_bytes(&self) -> u64 {
        self.received_bytes
    }

    /// Makes it a context, durable when this returns.
    ///
    /// # Errors
    /// When something is missing, or the system refuses. There is no context then.
    pub fn commit(mut self, now_ms: u64) -> Result<Created, ContextError> {
        if !self.is_complete() {
            return Err(ContextError::Incomplete);
        }
        let manifest = self.manifest.take().ok_or(ContextError::Incomplete)?;
        let write = failed("write the list of entries");
        let file = manifest.finish(now_ms).map_err(&write)?;
        file.get_ref().sync_all().map_err(&write)?;
        self.sync_contents()?;
        let _lock = self.home.lock(&self.store)?;
        self.shelve()?;
        for (content, size) in lock(&self.known).iter() {
            let there = self.there(*content).map_err(failed("look for a content"))?;
            if there != Some(*size) {
                return Err(ContextError::Vanished);
            }
        }
        let publish = failed("name a context");
        let id = new_id().map_err(&publish)?;
        let manifests = &self.home.manifests;
        let named = self.tray.dir.rename_new(MANIFEST, manifests, &id.0);
        if !named.map_err(&publish)? {
            return Err(publish(io::ErrorKind::AlreadyExists.into()));
        }
        self.claim.keep(self.list_bytes + manifest::FRAME_BYTES);
        manifests.sync().map_err(&publish)?;
        Ok(Created {
            id,
            created_ms: now_ms,
        })
    }

    /// Ends an upload that will not get to its end. Contents that have come whole stay, so that a second try need not send them again.
    ///
    /// # Errors
    /// When the system refuses; nothing is left then.
    pub fn abandon(mut self) -> Result<(), ContextError> {
        if self.n_received == 0 {
            return Ok(());
        }
        self.sync_contents()?;
        let _lock = self.home.lock(&self.store)?;
        self.shelve()
    }

    /// Makes what has come durable, under whichever name: all of it at once, because one after the other would take longer than sending it.
    fn sync_contents(&self) -> Result<(), ContextError> {
        if self.n_received == 0 {
            return Ok(());
        }
        let synced = rustix::fs::syncfs(&self.tray.dir).map_err(io::Error::from);
        synced.map_err(failed("make contents durable"))
    }

    /// Moves what has come, and is durable, to the contents, durably.
    fn shelve(&mut self) -> Result<(), ContextError> {
        let received = self.missing.get(..self.n_received).unwrap_or_default();
        let counts = self.need(received).counts();
        self.claim.keep(counts);
        let shelve = || {
            let mut shards = BTreeSet::new();
            for missing in received {
                let (name, place) = (missing.content.hex(), missing.content.place());
                let shard = name.get(..2).unwrap_or_default().to_owned();
                if !shards.contains(&shard) {
                    self.home.contents.make_unsynced(&shard)?;
                    shards.insert(shard);
                }
                self.tray.dir.replace(&name, &self.home.contents, &place)?;
            }
            Ok(())
        };
        shelve().map_err(failed("keep contents"))?;
        // Under the lock: nobody relies on a name that is not durable.
        self.sync_contents()
    }
}

impl Incoming {
    fn begin(tray: &Tray, size: u64) -> io::Result<Self> {
        if size <= SMALL_MAX_BYTES {
            return Ok(Self::Small(Vec::new()));
        }
        let (file, hasher) = (tray.create(PART)?, Hasher::sha256());
        Ok(Self::Large { file, hasher })
    }

    fn with(mut self, piece: &[u8]) -> io::Result<Self> {
        match &mut self {
            Self::Small(content) => content.extend(piece),
            Self::Large { file, hasher } => {
                file.write_all(piece)?;
                hasher.update(piece);
            }
        }
        Ok(self)
    }

    fn size(&self) -> u64 {
        match self {
            Self::Small(content) => content.len() as u64,
            Self::Large { hasher, .. } => hasher.size_bytes(),
        }
    }
}
