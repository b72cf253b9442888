//! One folder of the corpus, as it is written down.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// A case.
#[derive(Debug)]
pub(super) struct Case {
    /// `AREA/CASE`.
    pub(super) name: String,
    /// Where it is.
    pub(super) folder: PathBuf,
    /// What `case.toml` says.
    pub(super) options: Options,
}

/// What `case.toml` says. `{registry}`, `{http}`, `{git}` and `{commit}` in values are the addresses of the peers and the repository's last commit.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Options {
    /// One sentence: what the case shows.
    pub(super) shows: String,
    /// Why Kiln does something else than `BuildKit`.
    pub(super) differs: Option<String>,
    /// What Kiln's output holds, most often the words of its error.
    pub(super) says: Vec<String>,
    /// `--file`.
    pub(super) file: Option<String>,
    /// `--target`.
    pub(super) target: Option<String>,
    /// `--build-arg`.
    pub(super) args: BTreeMap<String, String>,
    /// `--label`.
    pub(super) labels: BTreeMap<String, String>,
    /// `--build-context`; a value without a scheme is a folder of `input/`'s sibling `contexts/`.
    pub(super) contexts: BTreeMap<String, String>,
    /// `--secret id=KEY`, as files.
    pub(super) secrets: BTreeMap<String, String>,
    /// Whether there is an agent for ssh; nobody answers in it.
    pub(super) ssh: bool,
    /// `--platform`.
    pub(super) platform: Option<String>,
    /// `--network`; none unless it is said.
    pub(super) network: Option<String>,
    /// `--allow`.
    pub(super) allow: Vec<String>,
    /// `--add-host`, as `NAME:IP`.
    pub(super) add_hosts: Vec<String>,
    /// `--ulimit`.
    pub(super) ulimits: Vec<String>,
    /// `--shm-size` in bytes.
    pub(super) shm_size: Option<u64>,
    /// Whether times of files are compared.
    pub(super) times: bool,
    /// Files that git cannot hold, or not well.
    pub(super) make: Vec<Make>,
    /// What the web server gives below `{http}`.
    pub(super) http: Vec<Served>,
    /// Commits of the repository at `{git}`, oldest first.
    pub(super) git: Vec<Commit>,
}

/// A file to make in the context, or an entry of an archive. Later ones may name earlier ones.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Make {
    /// Path; `\xHH` is a byte, `{x*200}` is a repetition.
    pub(super) path: String,
    /// Whether it is a folder.
    pub(super) dir: bool,
    /// Content of a file.
    pub(super) text: Option<String>,
    /// Size of a file that is a hole, with `text` at its end.
    pub(super) sparse: Option<u64>,
    /// Target of a symbolic link.
    pub(super) symlink: Option<String>,
    /// Another file that this is a hard link to.
    pub(super) hardlink: Option<String>,
    /// Whether it is a fifo.
    pub(super) fifo: bool,
    /// Whether it is a socket.
    pub(super) socket: bool,
    /// Major and minor number of a character device; in archives only.
    pub(super) device: Option<(u32, u32)>,
    /// Mode, octal.
    pub(super) mode: Option<String>,
    /// Owner; in archives only.
    pub(super) uid: u64,
    /// Group; in archives only.
    pub(super) gid: u64,
    /// Time, in seconds since 1970.
    pub(super) mtime: Option<u64>,
    /// Extended attributes; values with `\xHH`.
    pub(super) xattrs: BTreeMap<String, String>,
    /// Entries, when it is an archive.
    pub(super) tar: Option<Vec<Make>>,
    /// Size that the file is cut to.
    pub(super) cut: Option<u64>,
    /// Program that packs the file: gzip, bzip2, xz or zstd.
    pub(super) packed: Option<String>,
}

/// An answer of the web server.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Served {
    /// Path below `{http}`, with a slash before.
    pub(super) path: String,
    /// What is sent.
    pub(super) text: Option<String>,
    /// A file of the made context that is sent.
    pub(super) file: Option<String>,
    /// Status, if it is not 200.
    pub(super) status: Option<u16>,
    /// Headers.
    pub(super) headers: BTreeMap<String, String>,
}

/// A commit.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Commit {
    /// Branch, `main` unless it is said.
    pub(super) branch: Option<String>,
    /// Tag that it gets.
    pub(super) tag: Option<String>,
    /// All its files; a value that begins with `-> ` is a symbolic link, with `+x ` a program.
    pub(super) files: BTreeMap<String, String>,
}

impl Case {
    /// Reads a folder.
    pub(super) fn read(folder: &Path) -> Self {
        let names: Vec<_> = folder
            .iter()
            .rev()
            .take(2)
            .map(|part| part.to_str().unwrap())
            .collect();
        let name = format!("{}/{}", names[1], names[0]);
        let text = std::fs::read_to_string(folder.join("case.toml"))
            .unwrap_or_else(|error| panic!("{name}: read case.toml: {error}"));
        let options: Options =
            toml::from_str(&text).unwrap_or_else(|error| panic!("{name}: case.toml: {error}"));
        assert!(!options.shows.is_empty(), "{name}: what does it show?");
        Self {
            name,
            folder: folder.to_path_buf(),
            options,
        }
    }
}
