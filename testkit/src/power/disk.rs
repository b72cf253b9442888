//! A disk in memory: what a process did to it, and what of that may be on it.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::TOLD;
use super::trace::Call;

/// What a disk writes in one go.
const SECTOR_BYTES: usize = 512;

/// A file or folder, by number; the first one is the folder that everything is in.
type Node = usize;

#[derive(Debug, Clone)]
enum Content {
    File(Vec<u8>),
    Folder(BTreeMap<Vec<u8>, Node>),
}

/// Something that was done, and that may be lost until it was waited for.
#[derive(Debug)]
enum Deed {
    Write {
        file: Node,
        at: usize,
        bytes: Vec<u8>,
    },
    Resize {
        file: Node,
        size: usize,
    },
    /// Names that were given or taken, all of them or none; durable with the folder where they land.
    Name {
        changes: Vec<(Node, Vec<u8>, Option<Node>)>,
        lands: Node,
    },
    Sync(Node),
    SyncAll,
}

/// What becomes of something that was not waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fate {
    /// It is there.
    Kept,
    /// It is not.
    Lost,
    /// Of bytes, some sectors are there and others are zeros, as the number says; of anything else it decides whether it is there.
    Torn(u64),
}

/// What a process did.
#[derive(Debug)]
pub struct Recording {
    first: Vec<Content>,
    deeds: Vec<Deed>,
    told: Option<Node>,
}

/// An open file.
#[derive(Debug, Clone, Copy)]
struct Open {
    node: Node,
    at: usize,
    appends: bool,
}

/// Follows a process.
#[derive(Debug)]
pub(super) struct Recorder {
    path: PathBuf,
    live: Vec<Content>,
    recording: Recording,
    descriptors: HashMap<i64, usize>,
    opened: Vec<Open>,
}

impl Recorder {
    /// Begins with what is in `folder`, all of it durable.
    pub(super) fn of(folder: &Path) -> Self {
        let mut live = Vec::new();
        scan(folder, &mut live, &mut HashMap::new());
        let told = match live.first() {
            Some(Content::Folder(names)) => names.get(TOLD.as_bytes()).copied(),
            _ => None,
        };
        Self {
            path: folder.to_owned(),
            recording: Recording {
                first: live.clone(),
                deeds: Vec::new(),
                told,
            },
            live,
            descriptors: HashMap::new(),
            opened: Vec::new(),
        }
    }

    pub(super) fn finish(mut self) -> Recording {
        // What was made since is nowhere at first.
        for content in self.live.drain(self.recording.first.len()..) {
            self.recording.first.push(match content {
                Content::File(_) => Content::File(Vec::new()),
                Content::Folder(_) => Content::Folder(BTreeMap::new()),
            });
        }
        self.recording
    }

    /// Takes in a call.
    pub(super) fn take(&mut self, call: &Call) {
        match call.name.as_str() {
            "open" | "creat" | "openat" | "openat2" => self.open(call),
            "close" => drop(self.descriptors.remove(&call.number(0))),
            "dup" | "dup2" | "dup3" => self.duplicate(call),
            "fcntl" if call.text(1).starts_with("F_DUPFD") => self.duplicate(call),
            "read" | "readv" => self.seek(call, |at| at + size(call.result)),
            "lseek" => self.seek(call, |_| size(call.result)),
            "write" | "writev" => self.write(call, None),
            "pwrite64" => self.write(call, Some(size(call.number(3)))),
            "ftruncate" => self.resize(call, |_| size(call.number(1))),
            "fallocate" => self.resize(call, |old| {
                assert_eq!(call.text(1), "0", "fallocate with flags");
                old.max(size(call.number(2)) + size(call.number(3)))
            }),
            "mkdir" => self.make_folder(None, &call.bytes(0)),
            "mkdirat" => self.make_folder(Some(call.text(0)), &call.bytes(1)),
            "linkat" => self.link(call),
            "rename" => self.rename((None, &call.bytes(0)), (None, &call.bytes(1))),
            "renameat" | "renameat2" => {
                assert!(!call.text(4).contains("EXCHANGE"), "not thought of");
                let (from, to) = (call.bytes(1), call.bytes(3));
                self.rename((Some(call.text(0)), &from), (Some(call.text(2)), &to));
            }
            "unlink" | "rmdir" => self.remove(None, &call.bytes(0)),
            "unlinkat" => self.remove(Some(call.text(0)), &call.bytes(1)),
            "fsync" | "fdatasync" => {
                if let Some(open) = self.open_at(call.number(0)) {
                    self.recording.deeds.push(Deed::Sync(open.node));
                }
            }
            "syncfs" | "sync" => self.recording.deeds.push(Deed::SyncAll),
            "fcntl" | "chdir" | "fchdir" => {}
            other => panic!("{other} is not thought of"),
        }
    }

    fn open_at(&self, descriptor: i64) -> Option<Open> {
        let opened = self.descriptors.get(&descriptor)?;
        self.opened.get(*opened).copied()
    }

    fn folder(&self, node: Node) -> &BTreeMap<Vec<u8>, Node> {
        match self.live.get(node) {
            Some(Content::Folder(names)) => names,
            other => panic!("{other:?} is no folder"),
        }
    }

    /// Returns the folder that a path names something in, and the name; an empty one for the folder itself. `None` when it is elsewhere.
    fn place(&self, at: Option<&str>, path: &[u8]) -> Option<(Node, Vec<u8>)> {
        let (mut node, rest) = if path.starts_with(b"/") {
            let rest = path.strip_prefix(self.path.as_os_str().as_bytes())?;
            (0, rest)
        } else {
            let descriptor = at?.parse().ok()?;
            (self.open_at(descriptor)?.node, path)
        };
        let mut names: Vec<&[u8]> = rest.split(|byte| *byte == b'/').collect();
        names.retain(|name| !matches!(*name, b"" | b"."));
        let last = match names.pop() {
            Some(b"..") => {
                names.push(b"..");
                b""
            }
            last => last.unwrap_or_default(),
        };
        for name in names {
            node = match name {
                b".." => self.above(node),
                name => *self.folder(node).get(name)?,
            };
        }
        Some((node, last.to_vec()))
    }

    fn above(&self, node: Node) -> Node {
        let holds = |content: &Content| match content {
            Content::Folder(names) => names.values().any(|child| *child == node),
            Content::File(_) => false,
        };
        let above = self.live.iter().position(holds);
        above.unwrap_or_else(|| panic!("nothing is above {node}"))
    }

    fn find(&self, place: &(Node, Vec<u8>)) -> Option<Node> {
        if place.1.is_empty() {
            return Some(place.0);
        }
        self.folder(place.0).get(&place.1).copied()
    }

    fn new_node(&mut self, content: Content) -> Node {
        self.live.push(content);
        self.live.len() - 1
    }

    fn name(&mut self, changes: Vec<(Node, Vec<u8>, Option<Node>)>, lands: Node) {
        for (folder, name, node) in &changes {
            let Some(Content::Folder(names)) = self.live.get_mut(*folder) else {
                panic!("{folder} is no folder");
            };
            match node {
                Some(node) => names.insert(name.clone(), *node),
                None => names.remove(name),
            };
        }
        self.recording.deeds.push(Deed::Name { changes, lands });
    }

    fn open(&mut self, call: &Call) {
        let (at, path, flags) = match call.name.as_str() {
            "open" => (None, call.bytes(0), call.text(1).to_owned()),
            "creat" => (None, call.bytes(0), "O_CREAT|O_TRUNC".to_owned()),
            _ => (Some(call.text(0)), call.bytes(1), call.text(2).to_owned()),
        };
        self.descriptors.remove(&call.result);
        let Some(place) = self.place(at, &path) else {
            return;
        };
        let node = if flags.contains("TMPFILE") {
            self.new_node(Content::File(Vec::new()))
        } else if let Some(node) = self.find(&place) {
            let is_longer =
                matches!(self.live.get(node), Some(Content::File(bytes)) if !bytes.is_empty());
            if flags.contains("O_TRUNC") && is_longer {
                self.set_size(node, 0);
            }
            node
        } else {
            assert!(
                flags.contains("O_CREAT"),
                "{call:?} found what is not there"
            );
            let node = self.new_node(Content::File(Vec::new()));
            self.name(vec![(place.0, place.1, Some(node))], place.0);
            node
        };
        self.opened.push(Open {
            node,
            at: 0,
            appends: flags.contains("O_APPEND"),
        });
        self.descriptors.insert(call.result, self.opened.len() - 1);
    }

    fn duplicate(&mut self, call: &Call) {
        match self.descriptors.get(&call.number(0)).copied() {
            Some(opened) => self.descriptors.insert(call.result, opened),
            None => self.descriptors.remove(&call.result),
        };
    }

    fn seek(&mut self, call: &Call, to: impl FnOnce(usize) -> usize) {
        let opened = self.descriptors.get(&call.number(0));
        if let Some(open) = opened.and_then(|opened| self.opened.get_mut(*opened)) {
            open.at = to(open.at);
        }
    }

    fn write(&mut self, call: &Call, at: Option<usize>) {
        let Some(open) = self.open_at(call.number(0)) else {
            return;
        };
        let mut bytes = call.bytes(1);
        bytes.truncate(size(call.result));
        assert_eq!(bytes.len(), size(call.result), "{call:?}");
        let Some(Content::File(content)) = self.live.get_mut(open.node) else {
            panic!("{call:?} writes to a folder");
        };
        let begin = at.unwrap_or(if open.appends { content.len() } else { open.at });
        put(content, begin, &bytes);
        let end = begin + bytes.len();
        let file = open.node;
        self.recording.deeds.push(Deed::Write {
            file,
            at: begin,
            bytes,
        });
        if at.is_none() {
            self.seek(call, |_| end);
        }
    }

    fn resize(&mut self, call: &Call, size: impl FnOnce(usize) -> usize) {
        if let Some(open) = self.open_at(call.number(0)) {
            let old = match self.live.get(open.node) {
                Some(Content::File(bytes)) => bytes.len(),
                other => panic!("{call:?} of {other:?}"),
            };
            self.set_size(open.node, size(old));
        }
    }

    fn set_size(&mut self, file: Node, size: usize) {
        if let Some(Content::File(bytes)) = self.live.get_mut(file)
            && bytes.len() != size
        {
            bytes.resize(size, 0);
            self.recording.deeds.push(Deed::Resize { file, size });
        }
    }

    fn make_folder(&mut self, at: Option<&str>, path: &[u8]) {
        if let Some((folder, name)) = self.place(at, path) {
            let node = self.new_node(Content::Folder(BTreeMap::new()));
            self.name(vec![(folder, name, Some(node))], folder);
        }
    }

    fn link(&mut self, call: &Call) {
        let path = call.bytes(1);
        let node = if let Some(number) = path.strip_prefix(b"/proc/self/fd/") {
            let number = String::from_utf8_lossy(number).parse().unwrap_or(-1);
            self.open_at(number).map(|open| open.node)
        } else {
            let place = self.place(Some(call.text(0)), &path);
            place.and_then(|place| self.find(&place))
        };
        let place = self.place(Some(call.text(2)), &call.bytes(3));
        if let (Some(node), Some((folder, name))) = (node, place) {
            self.name(vec![(folder, name, Some(node))], folder);
        }
    }

    fn rename(&mut self, from: (Option<&str>, &[u8]), to: (Option<&str>, &[u8])) {
        let (Some(from), Some(to)) = (self.place(from.0, from.1), self.place(to.0, to.1)) else {
            return;
        };
        let node = self.find(&from);
        let changes = vec![(from.0, from.1, None), (to.0, to.1, node)];
        self.name(changes, to.0);
    }

    fn remove(&mut self, at: Option<&str>, path: &[u8]) {
        if let Some((folder, name)) = self.place(at, path) {
            self.name(vec![(folder, name, None)], folder);
        }
    }
}

impl Recording {
    /// Returns at how many moments the power can go: before everything, and after each deed.
    #[must_use]
    pub fn n_moments(&self) -> usize {
        self.deeds.len() + 1
    }

    /// Returns, of everything that is on its way to the disk at a moment, whether it is a name.
    #[must_use]
    pub fn pending(&self, moment: usize) -> Vec<bool> {
        let is_name = |n: &usize| matches!(self.deeds.get(*n), Some(Deed::Name { .. }));
        self.pending_deeds(moment).iter().map(is_name).collect()
    }

    /// Returns what came last before a moment.
    #[must_use]
    pub fn describe(&self, moment: usize) -> String {
        let Some(last) = moment.checked_sub(1) else {
            return "nothing".to_owned();
        };
        let what = match self.deeds.get(last) {
            Some(Deed::Write { file, bytes, .. }) => {
                format!("writing {} bytes to {file}", bytes.len())
            }
            Some(Deed::Name { changes, .. }) => {
                let (folder, name, node) = changes.last().cloned().unwrap_or_default();
                let name = String::from_utf8_lossy(&name).into_owned();
                format!("naming {node:?} {name} in {folder}")
            }
            other => format!("{other:?}"),
        };
        format!("deed {last}: {what}")
    }

    fn pending_deeds(&self, moment: usize) -> Vec<usize> {
        let mut pending: Vec<usize> = Vec::new();
        for (n, deed) in self.deeds.iter().enumerate().take(moment) {
            match deed {
                Deed::Sync(node) => pending.retain(|n| match self.deeds.get(*n) {
                    Some(Deed::Write { file, .. } | Deed::Resize { file, .. }) => file != node,
                    Some(Deed::Name { lands, .. }) => lands != node,
                    _ => true,
                }),
                Deed::SyncAll => pending.clear(),
                Deed::Name { lands, .. } if Some(*lands) == self.told => {}
                _ => pending.push(n),
            }
        }
        pending
    }

    /// Returns a number that is the same for states that are the same.
    #[must_use]
    pub fn signature(&self, moment: usize, fates: &[Fate]) -> u64 {
        let mut hasher = DefaultHasher::new();
        let pending = self.pending_deeds(moment);
        for (n, deed) in self.deeds.iter().enumerate().take(moment) {
            if matches!(deed, Deed::Sync(_) | Deed::SyncAll) {
                continue;
            }
            let fate = pending.binary_search(&n).ok().and_then(|at| fates.get(at));
            match fate {
                None | Some(Fate::Kept) => n.hash(&mut hasher),
                Some(Fate::Lost) => {}
                Some(torn) => (n, torn).hash(&mut hasher),
            }
        }
        hasher.finish()
    }

    /// Puts a state on the disk, into a new folder: what is durable at a moment, and of what is pending what `fates` say.
    pub fn lay_out(&self, moment: usize, fates: &[Fate], folder: &Path) {
        let pending = self.pending_deeds(moment);
        let mut nodes = self.first.clone();
        for (n, deed) in self.deeds.iter().enumerate().take(moment) {
            let fate = pending.binary_search(&n).ok().and_then(|at| fates.get(at));
            apply(&mut nodes, deed, fate.copied().unwrap_or(Fate::Kept));
        }
        write_out(&nodes, 0, folder, &mut HashMap::new());
    }
}

fn apply(nodes: &mut [Content], deed: &Deed, fate: Fate) {
    let is_there = match fate {
        Fate::Kept => true,
        Fate::Lost => false,
        Fate::Torn(number) => number.is_multiple_of(2),
    };
    match (deed, fate) {
        (Deed::Write { file, at, bytes }, Fate::Torn(number)) => {
            if let Some(Content::File(content)) = nodes.get_mut(*file) {
                put(content, *at, &torn(*at, bytes, number));
            }
        }
        (Deed::Write { file, at, bytes }, _) if is_there => {
            if let Some(Content::File(content)) = nodes.get_mut(*file) {
                put(content, *at, bytes);
            }
        }
        (Deed::Resize { file, size }, _) if is_there => {
            if let Some(Content::File(content)) = nodes.get_mut(*file) {
                content.resize(*size, 0);
            }
        }
        (Deed::Name { changes, .. }, _) if is_there => {
            for (folder, name, node) in changes {
                if let Some(Content::Folder(names)) = nodes.get_mut(*folder) {
                    match node {
                        Some(node) => names.insert(name.clone(), *node),
                        None => names.remove(name),
                    };
                }
            }
        }
        _ => {}
    }
}

/// Returns what is there of bytes whose sectors came to the disk one by one; the others are zeros, or beyond the end.
fn torn(at: usize, bytes: &[u8], number: u64) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let sector = |n: usize| (at + n) / SECTOR_BYTES - at / SECTOR_BYTES;
    let is_short = number.is_multiple_of(3);
    let kept = |n: usize| {
        let n = sector(n);
        if is_short {
            u64::try_from(n).unwrap_or(u64::MAX) < (number >> 2) % 8
        } else {
            (number >> (2 + n % 30)).is_multiple_of(2)
        }
    };
    let end = (0..bytes.len()).take_while(|n| kept(*n)).count();
    if is_short {
        bytes.truncate(end);
        return bytes;
    }
    for (n, byte) in bytes.iter_mut().enumerate() {
        if !kept(n) {
            *byte = 0;
        }
    }
    bytes
}

fn put(content: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    let end = at + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    if let Some(room) = content.get_mut(at..end) {
        room.copy_from_slice(bytes);
    }
}

fn size(number: i64) -> usize {
    usize::try_from(number).unwrap_or_else(|error| panic!("{number}: {error}"))
}

fn scan(path: &Path, nodes: &mut Vec<Content>, known: &mut HashMap<(u64, u64), Node>) -> Node {
    let failed = |error| panic!("{}: {error}", path.display());
    let metadata = std::fs::symlink_metadata(path).unwrap_or_else(failed);
    let identity = (metadata.dev(), metadata.ino());
    if let Some(node) = known.get(&identity) {
        return *node;
    }
    let node = nodes.len();
    known.insert(identity, node);
    if metadata.is_file() {
        nodes.push(Content::File(
            std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())),
        ));
        return node;
    }
    assert!(metadata.is_dir(), "{} is not thought of", path.display());
    nodes.push(Content::Folder(BTreeMap::new()));
    let mut names = BTreeMap::new();
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        let child = scan(&entry.path(), nodes, known);
        names.insert(entry.file_name().into_vec(), child);
    }
    if let Some(content) = nodes.get_mut(node) {
        *content = Content::Folder(names);
    }
    node
}

fn write_out(nodes: &[Content], node: Node, path: &Path, known: &mut HashMap<Node, PathBuf>) {
    let done = match (nodes.get(node), known.get(&node)) {
        (Some(Content::File(_)), Some(other)) => std::fs::hard_link(other, path),
        (Some(Content::File(bytes)), None) => {
            known.insert(node, path.to_owned());
            std::fs::write(path, bytes)
        }
        (Some(Content::Folder(names)), None) => {
            known.insert(node, path.to_owned());
            let made = std::fs::create_dir(path);
            for (name, child) in names {
                let name = std::ffi::OsStr::from_bytes(name);
                write_out(nodes, *child, &path.join(name), known);
            }
            made
        }
        // It was moved more than once, and not all of that is there: it has one of its names.
        (Some(Content::Folder(_)), Some(_)) => Ok(()),
        (None, _) => panic!("{} cannot be", path.display()),
    };
    done.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}
