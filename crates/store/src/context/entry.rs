//! Entries of an uploaded folder, and the order that they have to come in.
//!
//! Entries come in strictly ascending order of their paths, compared component by component as bytes. So one comparison and the
//! chain of open folders tell duplicates, missing parents, and files or links as parents, without a set of all paths. What
//! [`Sequence::admit`] has let through can be made in an empty folder, one entry after the other, without anything leading out of it.

use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};

use super::content::ContentId;

/// Longest path, as the kernel has it.
pub(super) const PATH_MAX_BYTES: usize = 4095;
/// Longest name of one component.
pub(super) const NAME_MAX_BYTES: usize = 255;
/// Folders within folders: as many as are read of a local folder.
pub(super) const DEPTH_MAX: usize = 200;
/// Largest mode: permissions with setuid, setgid and sticky bits.
const MODE_MAX: u32 = 0o7777;
const SECOND_NS: u32 = 1_000_000_000;
/// Extended attributes of one entry: in number, in bytes of a name, and in bytes of all of them.
pub(super) const XATTRS_MAX: usize = 128;
const XATTR_NAME_MAX_BYTES: usize = 255;
/// Bytes of all extended attributes of one entry.
pub(super) const XATTRS_MAX_BYTES: usize = 256 << 10;

/// A file, folder, link or pipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Path below the folder that was uploaded.
    pub path: Vec<u8>,
    /// Permissions with setuid, setgid and sticky bits.
    pub mode: u32,
    /// Time of the last change, in Unix seconds.
    pub modified_s: i64,
    /// Nanoseconds beyond.
    pub modified_ns: u32,
    /// Extended attributes, by name.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// What it is.
    pub kind: EntryKind,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A folder.
    Folder,
    /// A regular file.
    File {
        /// Its size in bytes.
        size: u64,
        /// Its content.
        content: ContentId,
    },
    /// A symbolic link, and where it leads.
    Symlink(Vec<u8>),
    /// Another name of the file or pipe at this earlier path.
    HardLink(Vec<u8>),
    /// A named pipe.
    Pipe,
}

/// Tells what is wrong with an entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// The path is empty, too long, or one that could lead elsewhere.
    #[error("it is no path below a folder: {0}")]
    Path(&'static str),
    /// It is not behind the entry before it.
    #[error("it does not come after the entry before it, {before:?}")]
    Order {
        /// That one's path.
        before: String,
    },
    /// The folder that it is in was not named before it.
    #[error("its folder is not among the entries before it")]
    NoParent,
    /// What it is in is no folder.
    #[error("{parent:?} is no folder")]
    ParentNoFolder {
        /// That path.
        parent: String,
    },
    /// The mode has bits that are no permissions.
    #[error("its mode {0:o} has more than permissions, setuid, setgid and sticky bits")]
    Mode(u32),
    /// The nanoseconds are a second or more.
    #[error("its {0} nanoseconds are a second or more")]
    Time(u32),
    /// Too many, too long, or nameless extended attributes.
    #[error("its extended attributes are refused: {0}")]
    Xattrs(&'static str),
    /// A symbolic link leads to nothing that could be a path.
    #[error("it is a symbolic link to no path")]
    Symlink,
    /// A hard link to what no earlier entry is.
    #[error("it is a hard link to {to:?}, which is no file or pipe before it")]
    HardLink {
        /// That path.
        to: String,
    },
    /// An empty file has the digest of another content, or the other way round.
    #[error("its size of {size} bytes and its digest contradict each other")]
    Size {
        /// The size that it says.
        size: u64,
    },
}

/// Checks entries one after the other.
#[derive(Debug, Default)]
pub struct Sequence {
    last: Vec<u8>,
    last_is_folder: bool,
    /// Path of the folder that was entered last; its parents are open too.
    folder: Vec<u8>,
    /// Hashes of the paths that a hard link may name, by keys that nobody outside knows: sixteen bytes for each.
    linkable: HashSet<u128>,
    keys: (RandomState, RandomState),
}

impl Sequence {
    /// Lets `entry` through if it may come next.
    ///
    /// # Errors
    /// See [`EntryError`]; nothing may be admitted after one.
    pub fn admit(&mut self, entry: &Entry) -> Result<(), EntryError> {
        check_path(&entry.path)?;
        check_values(entry)?;
        if !self.last.is_empty() && !components(&self.last).lt(components(&entry.path)) {
            return Err(EntryError::Order {
                before: shown(&self.last),
            });
        }
        self.check_parent(&entry.path)?;
        match &entry.kind {
            EntryKind::Symlink(to) => {
                if to.is_empty() || to.len() > PATH_MAX_BYTES || to.contains(&0) {
                    return Err(EntryError::Symlink);
                }
            }
            EntryKind::HardLink(to) => {
                if !self.linkable.contains(&self.hash(to)) {
                    return Err(EntryError::HardLink { to: shown(to) });
                }
            }
            EntryKind::File { size, content } => {
                if (*size == 0) != (*content == ContentId::of_nothing()) {
                    return Err(EntryError::Size { size: *size });
                }
                self.linkable.insert(self.hash(&entry.path));
            }
            EntryKind::Pipe => {
                self.linkable.insert(self.hash(&entry.path));
            }
            EntryKind::Folder => {}
        }
        self.last.clone_from(&entry.path);
        self.last_is_folder = entry.kind == EntryKind::Folder;
        self.folder = if self.last_is_folder {
            entry.path.clone()
        } else {
            parent_of(&entry.path).to_vec()
        };
        Ok(())
    }

    fn hash(&self, path: &[u8]) -> u128 {
        let half = |state: &RandomState| u128::from(state.hash_one(path));
        half(&self.keys.0) << 64 | half(&self.keys.1)
    }

    /// The folder of `path` is the one entered last, or one above it: everything else is left behind for ever.
    fn check_parent(&self, path: &[u8]) -> Result<(), EntryError> {
        let parent = parent_of(path);
        if is_within(&self.folder, parent) {
            return Ok(());
        }
        if !self.last.is_empty() && !self.last_is_folder && is_within(parent, &self.last) {
            return Err(EntryError::ParentNoFolder {
                parent: shown(&self.last),
            });
        }
        Err(EntryError::NoParent)
    }
}

/// Returns the components of a path.
pub fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/')
}

/// Returns the path of the folder that `path` is in; nothing for what is at the top.
pub fn parent_of(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
    path.get(..end).unwrap_or_default()
}

/// Tells whether `path` is `folder` or below it.
fn is_within(path: &[u8], folder: &[u8]) -> bool {
    folder.is_empty()
        || path
            .strip_prefix(folder)
            .is_some_and(|rest| rest.is_empty() || rest.first() == Some(&b'/'))
}

fn check_path(path: &[u8]) -> Result<(), EntryError> {
    if path.len() > PATH_MAX_BYTES {
        return Err(EntryError::Path("it is too long"));
    }
    if path.contains(&0) {
        return Err(EntryError::Path("it has a NUL byte"));
    }
    if path.first() == Some(&b'/') {
        return Err(EntryError::Path("it is absolute"));
    }
    for (depth, component) in components(path).enumerate() {
        match component {
            b"" => return Err(EntryError::Path("one of its components is empty")),
            b"." | b".." => return Err(EntryError::Path("it has a component `.` or `..`")),
            name if name.len() > NAME_MAX_BYTES => {
                return Err(EntryError::Path("one of its components is too long"));
            }
            _ if depth > DEPTH_MAX => return Err(EntryError::Path("it is too deep")),
            _ => {}
        }
    }
    Ok(())
}

fn check_values(entry: &Entry) -> Result<(), EntryError> {
    if entry.mode > MODE_MAX {
        return Err(EntryError::Mode(entry.mode));
    }
    if entry.modified_ns >= SECOND_NS {
        return Err(EntryError::Time(entry.modified_ns));
    }
    if entry.xattrs.len() > XATTRS_MAX {
        return Err(EntryError::Xattrs("there are too many"));
    }
    let may_have_some = matches!(entry.kind, EntryKind::Folder | EntryKind::File { .. });
    if !may_have_some && !entry.xattrs.is_empty() {
        return Err(EntryError::Xattrs("only files and folders have some"));
    }
    let mut n_bytes = 0_usize;
    for (name, value) in &entry.xattrs {
        if name.len() > XATTR_NAME_MAX_BYTES || name.contains(&0) {
            return Err(EntryError::Xattrs("a name is too long, or has a NUL"));
        }
        if !may_be_kept(name) {
            let problem = "only user.* and security.capability are kept";
            return Err(EntryError::Xattrs(problem));
        }
        n_bytes = n_bytes.saturating_add(name.len() + value.len());
    }
    if n_bytes > XATTRS_MAX_BYTES {
        return Err(EntryError::Xattrs("they are too large"));
    }
    Ok(())
}

/// Tells whether COPY keeps an attribute of this name; by `user.overlay.*`, overlayfs would be told what to show.
fn may_be_kept(name: &[u8]) -> bool {
    let is_users = name.starts_with(b"user.") && !name.starts_with(b"user.overlay.");
    is_users || name == b"security.capability"
}

/// Returns `path` for people: no longer than a message may be.
pub(super) fn shown(path: &[u8]) -> String {
    const SHOWN_MAX: usize = 200;
    let text = String::from_utf8_lossy(path);
    let mut shown: String = text.chars().take(SHOWN_MAX).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, kind: EntryKind) -> Entry {
        Entry {
            path: path.into(),
            mode: 0o644,
            modified_s: -1,
            modified_ns: 999_999_999,
            xattrs: BTreeMap::new(),
            kind,
        }
    }

    fn folder(path: &str) -> Entry {
        entry(path, EntryKind::Folder)
    }

    fn file(path: &str) -> Entry {
        let content = ContentId::of(b"x");
        entry(path, EntryKind::File { size: 1, content })
    }

    fn link(path: &str, to: &str) -> Entry {
        entry(path, EntryKind::HardLink(to.into()))
    }

    fn admitted(entries: &[Entry]) -> Result<(), EntryError> {
        let mut sequence = Sequence::default();
        entries.iter().try_for_each(|entry| sequence.admit(entry))
    }

    #[test]
    fn a_tree_in_order_is_let_through() {
        let entries = [
            folder("a"),
            file("a/b"),
            folder("a/c"),
            folder("a/c/d"),
            entry("a/c/d/pipe", EntryKind::Pipe),
            link("a/e", "a/b"),
            link("a/f", "a/c/d/pipe"),
            // A slash sorts before everything: what is in `a` comes before `a-b`.
            file("a-b"),
            entry("z", EntryKind::Symlink(b"../../etc".to_vec())),
        ];
        assert_eq!(admitted(&entries), Ok(()));
    }

    #[test]
    fn paths_that_could_lead_elsewhere_are_refused() {
        let long = "x".repeat(256);
        let longer = "y/".repeat(2100);
        let deep = ["y"; DEPTH_MAX + 2].join("/");
        for path in [
            "", "/", "/etc", "..", "../x", "a/..", "a/../b", ".", "./a", "a/./b", "a//b", "a/",
            "a\0b", &long, &longer, &deep,
        ] {
            let found = admitted(&[folder("a"), file(path)]);
            assert!(
                matches!(found, Err(EntryError::Path(_))),
                "{path:?}: {found:?}"
            );
        }
    }

    #[test]
    fn what_is_out_of_order_twice_or_in_no_folder_is_refused() {
        let order = |entries: &[Entry]| {
            assert!(
                matches!(admitted(entries), Err(EntryError::Order { .. })),
                "{entries:?}"
            );
        };
        order(&[file("a"), file("a")]);
        order(&[file("b"), file("a")]);
        order(&[folder("a"), file("a/b"), folder("a")]);
        order(&[folder("a-b"), folder("a"), file("a/x")]);
        for entries in [
            vec![file("a/b")],
            vec![folder("a"), folder("b"), file("b/c/d")],
            vec![folder("a"), file("a/x"), file("b/x")],
        ] {
            assert_eq!(admitted(&entries), Err(EntryError::NoParent), "{entries:?}");
        }
        for kind in [
            EntryKind::Symlink(b"/etc".to_vec()),
            EntryKind::Pipe,
            file("x").kind,
        ] {
            let found = admitted(&[entry("a", kind), file("a/passwd")]);
            assert!(
                matches!(found, Err(EntryError::ParentNoFolder { .. })),
                "{found:?}"
            );
        }
    }

    #[test]
    fn hard_links_lead_to_earlier_files_only() {
        for entries in [
            vec![link("a", "a")],
            vec![link("a", "b"), file("b")],
            vec![folder("a"), link("b", "a")],
            vec![
                entry("a", EntryKind::Symlink(b"x".to_vec())),
                link("b", "a"),
            ],
            vec![file("a"), link("b", "a"), link("c", "b")],
            vec![file("a"), link("b", "../a")],
            vec![file("a"), link("b", "/etc/passwd")],
        ] {
            let found = admitted(&entries);
            assert!(
                matches!(found, Err(EntryError::HardLink { .. })),
                "{entries:?}: {found:?}"
            );
        }
    }

    #[test]
    fn values_out_of_range_are_refused() {
        let with = |change: &dyn Fn(&mut Entry)| {
            let mut entry = file("a");
            change(&mut entry);
            admitted(&[entry])
        };
        assert_eq!(with(&|e| e.mode = 0o10000), Err(EntryError::Mode(0o10000)));
        assert_eq!(with(&|e| e.mode = 0o7777), Ok(()));
        assert_eq!(
            with(&|e| e.modified_ns = SECOND_NS),
            Err(EntryError::Time(SECOND_NS))
        );
        let xattrs = |n: usize, name: &str, size: usize| {
            let named = |i| {
                (
                    [name.as_bytes(), format!("{i}").as_bytes()].concat(),
                    vec![0; size],
                )
            };
            with(&|e| e.xattrs = (0..n).map(named).collect())
        };
        assert_eq!(xattrs(XATTRS_MAX, "user.", 1), Ok(()));
        for found in [
            xattrs(XATTRS_MAX + 1, "user.", 1),
            xattrs(2, "user.", XATTRS_MAX_BYTES / 2),
            xattrs(1, "user.\0", 1),
            xattrs(1, "trusted.overlay.opaque", 1),
            xattrs(1, "user.overlay.opaque", 1),
        ] {
            assert!(matches!(found, Err(EntryError::Xattrs(_))));
        }
        for to in [vec![], vec![b'x'; PATH_MAX_BYTES + 1], b"a\0".to_vec()] {
            assert_eq!(
                admitted(&[entry("a", EntryKind::Symlink(to))]),
                Err(EntryError::Symlink)
            );
        }
        let (nothing, something) = (ContentId::of_nothing(), ContentId::of(b"x"));
        for (size, content) in [(1, nothing), (0, something)] {
            let found = admitted(&[entry("a", EntryKind::File { size, content })]);
            assert_eq!(found, Err(EntryError::Size { size }));
        }
    }
}
