//! The root filesystem that layers make, as a tree of names: who wins, who is hidden, who is linked to whom.
//!
//! Layers are applied in their order, entry by entry. Content is not looked at: a file is known by the layer and the number of the
//! entry that has it, so that the tree of an image of any size is small. Pure: reads nothing and writes nothing.
//!
//! * A whiteout, and an opaque marker, hide what lower layers have and never what their own layer has, wherever it stands in it.
//! * A hard link is another name of what its target is at that moment; that the target is replaced later changes nothing for it.
//! * Symbolic links in the directories of a path are followed within the root, as a container would see them.
//! * Directories that no layer names are made as 0755, 0:0, time 0.
//! * Device files are left out, and counted: who mounts or unpacks the result must not get devices from an image.

use std::collections::BTreeMap;

use oci::tar::{Entry, Kind};

use crate::rootfs::attributes;

const WHITEOUT_PREFIX: &[u8] = b".wh.";
const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";
/// What old unions kept for themselves; layers of theirs still hold it.
const UNION_PREFIX: &[u8] = b".wh..wh.";
/// Symbolic links that are followed for one path, as the kernel does.
const LINKS_MAX: u32 = 40;
/// Longest path below the root.
const PATH_MAX_BYTES: usize = 4096;
/// Files and directories of one image.
pub(super) const NODES_MAX: usize = 4_000_000;

/// Where the content of a file is: the number of its layer, and of its entry within the layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Origin {
    pub(super) layer: u32,
    pub(super) entry: u32,
}

/// Tells why layers do not make a root filesystem.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum TreeError {
    /// A path that leads out of the root.
    #[error("entry {0:?} leads out of the root")]
    Escapes(String),
    /// The root as something else than a directory.
    #[error("entry {0:?} would replace the root directory")]
    ReplacesRoot(String),
    /// A whiteout that whites out nothing.
    #[error("entry {0:?} is not a valid whiteout")]
    Whiteout(String),
    /// A parent that is no directory.
    #[error("entry {0:?} lies below something that is not a directory")]
    NotADirectory(String),
    /// A loop of links.
    #[error("entry {0:?} lies behind more than {LINKS_MAX} symbolic links")]
    TooManyLinks(String),
    /// A hard link to nothing, or to a directory.
    #[error("entry {path:?} is a hard link to {target:?}, which is no file")]
    HardLink { path: String, target: String },
    /// A path that is longer than any system takes.
    #[error("entry {0:?} is longer than {PATH_MAX_BYTES} bytes")]
    PathTooLong(String),
    /// More names than [`NODES_MAX`].
    #[error("image has more than {NODES_MAX} files")]
    TooManyFiles,
}

/// What a directory is, beside its name and what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Directory {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: i64,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Directory {
    /// One that no layer names.
    fn unnamed() -> Self {
        Self {
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: 0,
            xattrs: BTreeMap::new(),
        }
    }

    fn of(entry: &Entry) -> Self {
        Self {
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            xattrs: permitted(entry),
        }
    }
}

/// Returns those extended attributes of an entry that mean something elsewhere.
pub(super) fn permitted(entry: &Entry) -> BTreeMap<Vec<u8>, Vec<u8>> {
    entry
        .xattrs
        .iter()
        .filter_map(|(name, value)| Some((name.clone(), attributes::permitted(name, value)?)))
        .collect()
}

#[derive(Debug)]
enum What {
    Directory {
        directory: Directory,
        children: BTreeMap<Vec<u8>, Node>,
    },
    File(Origin),
    /// Kept with its target, which paths may lead through.
    Symlink(Origin, Vec<u8>),
}

#[derive(Debug)]
struct Node {
    /// The last layer that has this name, or one below it.
    layer: u32,
    what: What,
}

/// The tree.
#[derive(Debug)]
pub(super) struct Tree {
    root: Node,
    n_nodes: usize,
    /// Device files that were left out.
    pub(super) n_devices: u64,
}

/// What is to be done with one entry of a layer.
struct Step<'a> {
    entry: &'a Entry,
    origin: Origin,
}

impl Step<'_> {
    fn shown(&self) -> String {
        shown(&self.entry.path)
    }
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

impl Tree {
    pub(super) fn new() -> Self {
        let children = BTreeMap::new();
        let directory = Directory::unnamed();
        Self {
            root: Node {
                layer: 0,
                what: What::Directory {
                    directory,
                    children,
                },
            },
            n_nodes: 1,
            n_devices: 0,
        }
    }

    /// Takes in the next entry of a layer.
    pub(super) fn apply(&mut self, entry: &Entry, origin: Origin) -> Result<(), TreeError> {
        let step = Step { entry, origin };
        if entry.path.len() > PATH_MAX_BYTES {
            return Err(TreeError::PathTooLong(step.shown()));
        }
        let parts = components(&entry.path).ok_or_else(|| TreeError::Escapes(step.shown()))?;
        let Some((name, parents)) = parts.split_last() else {
            return self.apply_root(&step);
        };
        if parts.iter().any(|part| part.starts_with(WHITEOUT_PREFIX)) {
            return self.white_out(&step, parents, name);
        }
        let node = match entry.kind {
            Kind::CharDevice | Kind::BlockDevice => {
                self.n_devices += 1;
                // It hides what was there all the same.
                return self.remove(&step, parents, name);
            }
            Kind::Directory => return self.directory(&step, parents, name),
            Kind::HardLink => self.linked(&step)?,
            Kind::Symlink => What::Symlink(origin, entry.link.clone()),
            Kind::File | Kind::Fifo => What::File(origin),
        };
        self.put(&step, parents, name, node)
    }

    fn apply_root(&mut self, step: &Step<'_>) -> Result<(), TreeError> {
        match (&mut self.root.what, step.entry.kind) {
            (What::Directory { directory, .. }, Kind::Directory) => {
                *directory = Directory::of(step.entry);
                Ok(())
            }
            _ => Err(TreeError::ReplacesRoot(step.shown())),
        }
    }

    fn put(
        &mut self,
        step: &Step<'_>,
        parents: &[&[u8]],
        name: &[u8],
        what: What,
    ) -> Result<(), TreeError> {
        let layer = step.origin.layer;
        let children = self.enter(step, parents)?;
        let replaced = children.insert(name.to_vec(), Node { layer, what });
        self.account(replaced.as_ref(), 1)
    }

    fn directory(
        &mut self,
        step: &Step<'_>,
        parents: &[&[u8]],
        name: &[u8],
    ) -> Result<(), TreeError> {
        let layer = step.origin.layer;
        let children = self.enter(step, parents)?;
        if let Some(node) = children.get_mut(name)
            && let What::Directory { directory, .. } = &mut node.what
        {
            node.layer = layer;
            *directory = Directory::of(step.entry);
            return Ok(());
        }
        let what = What::Directory {
            directory: Directory::of(step.entry),
            children: BTreeMap::new(),
        };
        let replaced = children.insert(name.to_vec(), Node { layer, what });
        self.account(replaced.as_ref(), 1)
    }

    fn remove(&mut self, step: &Step<'_>, parents: &[&[u8]], name: &[u8]) -> Result<(), TreeError> {
        let removed = self.enter(step, parents)?.remove(name);
        self.account(removed.as_ref(), 0)
    }

    /// Returns what a hard link is another name of.
    fn linked(&mut self, step: &Step<'_>) -> Result<What, TreeError> {
        let refused = || TreeError::HardLink {
            path: step.shown(),
            target: shown(&step.entry.link),
        };
        let parts = components(&step.entry.link).ok_or_else(refused)?;
        let (name, parents) = parts.split_last().ok_or_else(refused)?;
        let place = self.resolve(parents, step)?.ok_or_else(refused)?;
        let node = find(&self.root, &place).and_then(|node| child(node, name));
        match node.map(|node| &node.what) {
            Some(What::File(origin)) => Ok(What::File(*origin)),
            Some(What::Symlink(origin, target)) => Ok(What::Symlink(*origin, target.clone())),
            Some(What::Directory { .. }) | None => Err(refused()),
        }
    }

    fn white_out(
        &mut self,
        step: &Step<'_>,
        parents: &[&[u8]],
        name: &[u8],
    ) -> Result<(), TreeError> {
        let invalid = || TreeError::Whiteout(step.shown());
        if parents.iter().any(|part| part.starts_with(UNION_PREFIX)) {
            return Ok(());
        }
        if parents.iter().any(|part| part.starts_with(WHITEOUT_PREFIX)) {
            return Err(invalid());
        }
        let layer = step.origin.layer;
        let Some(place) = self.resolve(parents, step)? else {
            // Nothing is there that could be hidden.
            return Ok(());
        };
        let Some(What::Directory { children, .. }) =
            find_mut(&mut self.root, &place).map(|node| &mut node.what)
        else {
            return Ok(());
        };
        let n_hidden = if name == OPAQUE_MARKER {
            hide(children, layer)
        } else if name.starts_with(UNION_PREFIX) {
            0
        } else {
            let hidden = match name.strip_prefix(WHITEOUT_PREFIX) {
                None | Some(b"" | b"." | b"..") => return Err(invalid()),
                Some(hidden) => hidden,
            };
            hide_one(children, hidden, layer)
        };
        self.n_nodes -= n_hidden.min(self.n_nodes);
        Ok(())
    }

    /// Returns what the directory that `parents` lead to holds; makes what is missing, and notes that this layer was there.
    fn enter(
        &mut self,
        step: &Step<'_>,
        parents: &[&[u8]],
    ) -> Result<&mut BTreeMap<Vec<u8>, Node>, TreeError> {
        let place = match self.resolve(parents, step)? {
            Some(place) => place,
            None => self.make(step, parents)?,
        };
        let layer = step.origin.layer;
        let mut node = &mut self.root;
        for name in &place {
            let What::Directory { children, .. } = &mut node.what else {
                return Err(TreeError::NotADirectory(step.shown()));
            };
            node = children
                .get_mut(name)
                .ok_or_else(|| TreeError::NotADirectory(step.shown()))?;
            node.layer = layer;
        }
        match &mut node.what {
            What::Directory { children, .. } => Ok(children),
            _ => Err(TreeError::NotADirectory(step.shown())),
        }
    }

    /// Makes the directories of a path of which the beginning may be there; returns where the last one is.
    fn make(&mut self, step: &Step<'_>, parents: &[&[u8]]) -> Result<Vec<Vec<u8>>, TreeError> {
        let layer = step.origin.layer;
        let mut at: Vec<Vec<u8>> = Vec::new();
        for n in 1..=parents.len() {
            let known = parents.get(..n).unwrap_or_default();
            if let Some(place) = self.resolve(known, step)? {
                at = place;
                continue;
            }
            let name = known.last().map(|name| name.to_vec()).unwrap_or_default();
            let Some(What::Directory { children, .. }) =
                find_mut(&mut self.root, &at).map(|node| &mut node.what)
            else {
                return Err(TreeError::NotADirectory(step.shown()));
            };
            if children.contains_key(&name) {
                // A link that leads nowhere.
                return Err(TreeError::NotADirectory(step.shown()));
            }
            let what = What::Directory {
                directory: Directory::unnamed(),
                children: BTreeMap::new(),
            };
            children.insert(name.clone(), Node { layer, what });
            self.account(None, 1)?;
            at.push(name);
        }
        Ok(at)
    }

    /// Follows `parents` from the root, links included; `None` when something on the way is not there.
    fn resolve(
        &self,
        parents: &[&[u8]],
        step: &Step<'_>,
    ) -> Result<Option<Vec<Vec<u8>>>, TreeError> {
        let mut place: Vec<Vec<u8>> = Vec::with_capacity(parents.len());
        let mut ahead: Vec<Vec<u8>> = parents.iter().rev().map(|part| part.to_vec()).collect();
        let mut n_links = 0;
        while let Some(name) = ahead.pop() {
            match name.as_slice() {
                b"" | b"." => continue,
                // Above the root is the root.
                b".." => {
                    place.pop();
                    continue;
                }
                _ => {}
            }
            let Some(node) = find(&self.root, &place).and_then(|node| child(node, &name)) else {
                return Ok(None);
            };
            match &node.what {
                What::Directory { .. } => place.push(name),
                What::File(_) => return Err(TreeError::NotADirectory(step.shown())),
                What::Symlink(_, target) => {
                    n_links += 1;
                    if n_links > LINKS_MAX {
                        return Err(TreeError::TooManyLinks(step.shown()));
                    }
                    if target.starts_with(b"/") {
                        place.clear();
                    }
                    ahead.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
                }
            }
        }
        Ok(Some(place))
    }

    fn account(&mut self, removed: Option<&Node>, n_added: usize) -> Result<(), TreeError> {
        self.n_nodes += n_added;
        self.n_nodes -= removed.map_or(0, count).min(self.n_nodes);
        if self.n_nodes > NODES_MAX {
            return Err(TreeError::TooManyFiles);
        }
        Ok(())
    }

    /// Visits every directory, parents first and by name, the root as the empty path.
    pub(super) fn directories(&self, mut visit: impl FnMut(&[u8], &Directory)) {
        // Depth is bounded by the length of paths, the stack is not.
        let mut pending = vec![(Vec::new(), &self.root)];
        while let Some((path, node)) = pending.pop() {
            let What::Directory {
                directory,
                children,
            } = &node.what
            else {
                continue;
            };
            visit(&path, directory);
            let below = children.iter().rev();
            pending.extend(below.map(|(name, node)| (join(&path, name), node)));
        }
    }

    /// Returns the names of every file that is not a directory, by where its content is; names in their order.
    pub(super) fn files(&self) -> BTreeMap<Origin, Vec<Vec<u8>>> {
        let mut files: BTreeMap<Origin, Vec<Vec<u8>>> = BTreeMap::new();
        let mut pending = vec![(Vec::new(), &self.root)];
        while let Some((path, node)) = pending.pop() {
            match &node.what {
                What::Directory { children, .. } => {
                    let below = children.iter().rev();
                    pending.extend(below.map(|(name, node)| (join(&path, name), node)));
                }
                What::File(origin) | What::Symlink(origin, _) => {
                    files.entry(*origin).or_default().push(path);
                }
            }
        }
        files
    }
}

fn find<'a>(root: &'a Node, place: &[Vec<u8>]) -> Option<&'a Node> {
    place.iter().try_fold(root, |node, name| child(node, name))
}

fn find_mut<'a>(root: &'a mut Node, place: &[Vec<u8>]) -> Option<&'a mut Node> {
    place
        .iter()
        .try_fold(root, |node, name| match &mut node.what {
            What::Directory { children, .. } => children.get_mut(name),
            _ => None,
        })
}

fn child<'a>(node: &'a Node, name: &[u8]) -> Option<&'a Node> {
    match &node.what {
        What::Directory { children, .. } => children.get(name),
        _ => None,
    }
}

/// Removes what lower layers have below a directory; returns how much it was.
fn hide(children: &mut BTreeMap<Vec<u8>, Node>, layer: u32) -> usize {
    let names: Vec<Vec<u8>> = children.keys().cloned().collect();
    names
        .iter()
        .map(|name| hide_one(children, name, layer))
        .sum()
}

/// Removes what lower layers have under a name.
fn hide_one(children: &mut BTreeMap<Vec<u8>, Node>, name: &[u8], layer: u32) -> usize {
    match children.get_mut(name) {
        None => 0,
        Some(node) if node.layer < layer => children.remove(name).as_ref().map_or(0, count),
        Some(node) => match &mut node.what {
            What::Directory { children, .. } => hide(children, layer),
            _ => 0,
        },
    }
}

fn count(node: &Node) -> usize {
    let (mut n, mut pending) = (0, vec![node]);
    while let Some(node) = pending.pop() {
        n += 1;
        if let What::Directory { children, .. } = &node.what {
            pending.extend(children.values());
        }
    }
    n
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() {
        return name.to_vec();
    }
    [dir, b"/", name].concat()
}

/// Returns the names of a path without empty ones and `.`; `None` when it has `..`.
fn components(path: &[u8]) -> Option<Vec<&[u8]>> {
    let parts = path.split(|byte| *byte == b'/');
    let parts: Vec<&[u8]> = parts
        .filter(|part| !part.is_empty() && *part != b".")
        .collect();
    (!parts.contains(&&b".."[..])).then_some(parts)
}

#[cfg(test)]
mod tests;
