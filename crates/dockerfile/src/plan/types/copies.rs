//! What a COPY or an ADD is planned as.

use super::{BaseKey, StageIndex};
use crate::chmod::Chmod;

/// Files to copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyOp {
    /// Where sources that are paths are.
    pub from: CopyFrom,
    /// What is copied, one after the other.
    pub sources: Vec<CopySource>,
    /// Files whose content is in the Dockerfile; they come after the sources.
    pub inline: Vec<InlineFile>,
    /// Patterns of an ignore file: what they match below a source is left out.
    pub exclude: Vec<String>,
    /// Where to, absolute and clean.
    pub destination: String,
    /// True when the destination was written as a directory (`/x/`, `/x/.`, `.`).
    pub destination_is_directory: bool,
    /// `user[:group]` of what is copied; root without it.
    pub chown: Option<String>,
    /// Mode of what is copied; the source's without it.
    pub chmod: Option<Chmod>,
    /// Which tar archives are unpacked.
    pub unpack: Unpack,
    /// Whether it sees what the steps before have left.
    pub link: Link,
}

/// Something to copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopySource {
    /// Files where the instruction copies from.
    Path(PathSource),
    /// A file to be downloaded (ADD).
    File(RemoteFile),
    /// A folder of a git repository (ADD).
    Git(GitFolder),
}

/// Files by their path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathSource {
    /// Path or pattern ([`crate::glob`]), cleaned, without leading slash; `.` for all of it.
    pub path: String,
    /// With `--parents`, the pattern of an ignore file for what is copied below `path`, each with the directories that it is in.
    pub below: Option<String>,
}

/// A file to be downloaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteFile {
    /// Its address, http or https.
    pub url: String,
    /// What it is called in a directory.
    pub name: String,
    /// What its content has to be.
    pub checksum: Option<Checksum>,
}

/// The digest that a download must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checksum {
    /// How it is computed.
    pub algorithm: ChecksumAlgorithm,
    /// In lower case.
    pub hex: String,
}

/// How the digest of a download is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChecksumAlgorithm {
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

/// A folder of a git repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitFolder {
    /// The repository, without what is taken of it.
    pub remote: String,
    /// Branch, tag or commit; the remote's HEAD when empty.
    pub reference: String,
    /// Folder within; all of it when empty. Clean and relative.
    pub folder: String,
    /// What the commit has to begin with.
    pub commit: Option<String>,
    /// True when `.git` is copied too; it is not without a word about it.
    pub git_directory: Option<bool>,
    /// Whether submodules are part of it; the operator's choice without a word about them.
    pub submodules: Option<bool>,
}

/// Which tar archives among the sources are unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unpack {
    /// None (COPY, and `ADD --unpack=false`).
    None,
    /// Those that are not downloaded (ADD).
    Local,
    /// All of them (`ADD --unpack`).
    All,
}

/// Whether a copy stands on the steps before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// It does.
    No,
    /// It is a layer of its own (`--link`): made in an empty root, whatever is below. Only a name in `chown` is looked up there.
    Yes,
}

impl CopyOp {
    /// Tells whether its result is the same whatever it stands on.
    pub fn is_independent(&self) -> bool {
        let is_number = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        let has_names = |owner: &String| !owner.split(':').all(is_number);
        self.link == Link::Yes && !self.chown.as_ref().is_some_and(has_names)
    }

    /// Returns the copy of everything in `from` to the root.
    pub fn everything(from: CopyFrom) -> Self {
        Self {
            from,
            sources: vec![CopySource::Path(PathSource {
                path: ".".to_owned(),
                below: None,
            })],
            inline: Vec::new(),
            exclude: Vec::new(),
            destination: "/".to_owned(),
            destination_is_directory: true,
            chown: None,
            chmod: None,
            unpack: Unpack::None,
            link: Link::No,
        }
    }
}

/// Where copied files come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyFrom {
    /// The build context.
    Context,
    /// A stage of the plan.
    Stage(StageIndex),
    /// An image.
    Image(BaseKey),
    /// The files of a named context.
    Named(String),
}

/// A file whose content is in the Dockerfile; mode 0644.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InlineFile {
    /// Its name.
    pub name: String,
    /// What it says.
    pub content: String,
}
