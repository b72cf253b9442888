//! What a build is asked to do. Made once by the control plane, read once by the worker.
//!
//! It holds credentials and is therefore never written to disk: it travels over the worker's standard input, as JSON. What may be
//! stored of a build is its [`Record`].

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use objects::Bucket;
use oci::{Digest, Platform, Reference};
use registry::client::ProxyOptions;
use registry::hosts::Hosts;
use registry::keychain::Keychain;
use serde::{Deserialize, Serialize};
use source::git::{FetchOptions, GitSource};
use source::initializer::Initializer;

use crate::id::BuildId;
pub use crate::readable::{Readable, is_below};
use crate::sandbox::SecretBytes;
pub use crate::sandbox::{Ulimit, UlimitName};
pub use crate::share::{CacheFrom, CacheTo, CachedSteps, OnCacheError};
use crate::subassembly::Format;

mod limits;
mod record;

pub use limits::Limits;
pub use record::{Purpose, Record};

/// Shortest line of a secret of several lines that is looked for alone.
const SECRET_LINE_MIN_BYTES: usize = 16;
/// Everything a worker needs to know.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BuildSpec {
    /// Which build this is.
    pub id: BuildId,
    /// Whose cache is used: nothing is shared between tenants.
    pub tenant: String,
    /// What to build from.
    pub source: Source,
    /// How to build it.
    pub options: BuildOptions,
    /// What stands for stages and images of these names ([`dockerfile::context_name`]).
    #[serde(default)]
    pub contexts: BTreeMap<String, NamedContext>,
    /// Secrets that steps may ask for, by id.
    #[serde(default)]
    pub secrets: BTreeMap<String, SecretBytes>,
    /// Sockets of SSH agents that steps may ask for, by id. The worker can open them.
    #[serde(default)]
    pub ssh: BTreeMap<String, PathBuf>,
    /// Caches of others that are read.
    #[serde(default)]
    pub cache_from: Vec<CacheFrom>,
    /// Caches that are written for others.
    #[serde(default)]
    pub cache_to: Vec<CacheTo>,
    /// What to do with the image.
    pub outputs: Vec<Output>,
    /// How registries are reached.
    pub registries: Registries,
    /// How git and one-time secrets are fetched.
    pub fetch: FetchOptions,
    /// What it may use up.
    pub limits: Limits,
}

impl BuildSpec {
    /// Returns every secret that this spec holds, for the redactor.
    pub fn secrets(&self) -> Vec<String> {
        let keychains = [&self.registries.pull, &self.registries.publish];
        let mut secrets: Vec<String> = keychains
            .iter()
            .flat_map(|keychain| keychain.secrets())
            .map(|secret| secret.reveal().to_owned())
            .collect();
        secrets.extend(self.secrets.values().flat_map(spelled));
        let main = match &self.source {
            Source::Dockerfile { context, .. } => Some(context),
            Source::Image { .. } => None,
        };
        let named = self.contexts.values().filter_map(|named| match named {
            NamedContext::Files { context, .. } => Some(context),
            _ => None,
        });
        for context in main.into_iter().chain(named) {
            match context {
                Context::Git(git) => secrets.extend(git.secret()),
                Context::Filled { initializer } => secrets.extend(initializer.secrets()),
                Context::Directory { .. } | Context::Archive { .. } | Context::Uploaded { .. } => {}
            }
        }
        secrets
    }
}

impl BuildSpec {
    /// Returns every path on this machine that the worker is to read.
    pub fn local_paths_mut(&mut self) -> Vec<&mut PathBuf> {
        let main = match &mut self.source {
            Source::Dockerfile { context, .. } => Some(context),
            Source::Image { .. } => None,
        };
        let mut paths: Vec<&mut PathBuf> = main.and_then(Context::path_mut).into_iter().collect();
        for named in self.contexts.values_mut() {
            match named {
                NamedContext::Layout { path, .. } => paths.push(path),
                NamedContext::Files { context, .. } => paths.extend(context.path_mut()),
                NamedContext::Scratch
                | NamedContext::Image { .. }
                | NamedContext::UploadedLayout { .. } => {}
            }
        }
        paths.extend(self.ssh.values_mut());
        paths.extend(self.cache_from.iter_mut().filter_map(|from| match from {
            CacheFrom::Folder { path, .. } => Some(path),
            CacheFrom::Registry { .. } | CacheFrom::Uploaded { .. } => None,
        }));
        paths
    }
}

impl BuildSpec {
    /// Returns the ids of everything uploaded that the build needs.
    pub fn uploads(&self) -> Vec<&str> {
        let main = match &self.source {
            Source::Dockerfile { context, .. } => Some(context),
            Source::Image { .. } => None,
        };
        let mut ids: Vec<&str> = main.and_then(Context::upload).into_iter().collect();
        ids.extend(self.contexts.values().filter_map(|named| match named {
            NamedContext::UploadedLayout { context, .. } => Some(context.as_str()),
            NamedContext::Files { context, .. } => context.upload(),
            NamedContext::Scratch | NamedContext::Image { .. } | NamedContext::Layout { .. } => {
                None
            }
        }));
        ids.extend(self.cache_from.iter().filter_map(|from| match from {
            CacheFrom::Uploaded { context, .. } => Some(context.as_str()),
            CacheFrom::Registry { .. } | CacheFrom::Folder { .. } => None,
        }));
        ids
    }
}

impl Context {
    fn upload(&self) -> Option<&str> {
        match self {
            Self::Uploaded { context, .. } => Some(context),
            Self::Archive { .. } | Self::Directory { .. } | Self::Git(_) | Self::Filled { .. } => {
                None
            }
        }
    }

    fn path_mut(&mut self) -> Option<&mut PathBuf> {
        match self {
            Self::Archive { path } | Self::Directory { path, .. } => Some(path),
            Self::Git(_) | Self::Filled { .. } | Self::Uploaded { .. } => None,
        }
    }
}

/// Returns what of a secret may be met: all of it, without its last line end, and each of its longer lines.
fn spelled(secret: &SecretBytes) -> Vec<String> {
    let text = String::from_utf8_lossy(secret.reveal());
    let lines = text
        .lines()
        .filter(|line| line.len() >= SECRET_LINE_MIN_BYTES);
    let mut forms: Vec<String> = lines.map(str::to_owned).collect();
    forms.push(text.trim_end().to_owned());
    forms.push(text.into_owned());
    forms
}

/// What to build from.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[expect(
    clippy::large_enum_variant,
    reason = "a process has one or two of these"
)]
pub enum Source {
    /// An image as it is; nothing is built, it is published under other names.
    Image {
        /// Which one; with a digest.
        reference: Reference,
    },
    /// A Dockerfile in a context.
    Dockerfile {
        /// The files.
        context: Context,
        /// Path of the Dockerfile within the workspace; `Dockerfile` in the context folder when not given.
        dockerfile: Option<String>,
        /// Folder within the workspace that COPY sees; the Dockerfile's folder when not given.
        context_path: Option<String>,
    },
}

/// What stands for a stage or an image.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[expect(
    clippy::large_enum_variant,
    reason = "a process has one or two of these"
)]
pub enum NamedContext {
    /// Nothing.
    Scratch,
    /// An image.
    Image {
        /// Which one.
        reference: Reference,
    },
    /// An image in an OCI layout.
    Layout {
        /// The layout: a folder that the worker can read.
        path: PathBuf,
        /// Which of its images.
        image: LayoutImage,
    },
    /// An image in an OCI layout that a client has uploaded.
    UploadedLayout {
        /// Id of the context that is the layout; this tenant's.
        context: String,
        /// Which of its images.
        image: LayoutImage,
    },
    /// Files, seen through their own `.dockerignore`.
    Files {
        /// Where they come from.
        context: Context,
        /// Folder within.
        folder: String,
    },
}

/// An image of an OCI layout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayoutImage {
    /// The one with the tag `latest`, else the only one.
    Default,
    /// The one with this tag.
    Tag(String),
    /// The one with this digest.
    Digest(Digest),
}

/// Where the workspace comes from.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[expect(
    clippy::large_enum_variant,
    reason = "a process has one or two of these"
)]
pub enum Context {
    /// A git repository, fetched by the worker.
    Git(GitSource),
    /// Anything else that a workspace can be filled with.
    Filled {
        /// With what.
        initializer: Initializer,
    },
    /// An archive that the worker can read: tar, plain or packed.
    Archive {
        /// Absolute path.
        path: PathBuf,
    },
    /// A folder that a client has uploaded ([`store::context`]).
    Uploaded {
        /// Id of the context; this tenant's.
        context: String,
        /// Path in it of an archive whose content is meant: tar, plain or packed.
        archive: Option<String>,
        /// Content of the Dockerfile when it is not in the folder.
        dockerfile_text: Option<String>,
        /// What the cache's explanations are kept under.
        name: String,
    },
    /// A folder that the worker can read.
    Directory {
        /// Absolute path.
        path: PathBuf,
        /// Content of the Dockerfile when it is not in the folder (`-f` elsewhere, or standard input).
        dockerfile_text: Option<String>,
        /// What the cache's explanations are kept under: the folder as the user named it.
        name: String,
    },
}

/// How to build.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BuildOptions {
    /// Stage to build; the last one when not given.
    pub target: Option<String>,
    /// Values of ARGs.
    pub build_args: BTreeMap<String, String>,
    /// Labels added to the image.
    pub labels: BTreeMap<String, String>,
    /// What the image runs on; this machine's.
    pub platform: Platform,
    /// Whether results of earlier builds are used.
    pub cache: CacheMode,
    /// Stages for which they are not, by name.
    #[serde(default)]
    pub no_cache_stages: Vec<String>,
    /// Annotations of the manifest; for OCI media types only.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// Network of the steps that do not say.
    pub network: NetworkMode,
    /// What steps get beside their files.
    #[serde(default)]
    pub steps: StepOptions,
    /// Who else sees what this build's cache mounts hold.
    #[serde(default)]
    pub cache_mounts: CacheMountScope,
    /// Unix seconds that the image and its newer files are dated with; else the commit's date.
    pub source_date_epoch: Option<i64>,
    /// How new layers are compressed.
    pub compression: Compression,
    /// Which family of media types is written.
    pub media_types: MediaTypes,
}

impl Default for BuildOptions {
    fn default() -> Self {
        Self {
            target: None,
            build_args: BTreeMap::new(),
            labels: BTreeMap::new(),
            platform: Platform::host(),
            cache: CacheMode::Use,
            no_cache_stages: Vec::new(),
            annotations: BTreeMap::new(),
            network: NetworkMode::Default,
            steps: StepOptions::default(),
            cache_mounts: CacheMountScope::Project,
            source_date_epoch: None,
            compression: Compression::Gzip,
            media_types: MediaTypes::Oci,
        }
    }
}

/// Whether results of earlier builds are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CacheMode {
    /// They are.
    Use,
    /// Every step runs; its result is kept for later.
    Ignore,
}

/// What steps get beside their files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StepOptions {
    /// Names in `/etc/hosts`, with their addresses.
    pub extra_hosts: Vec<(String, IpAddr)>,
    /// Limits of processes.
    pub ulimits: Vec<Ulimit>,
    /// Size of `/dev/shm`.
    pub shm_bytes: Option<u64>,
}

/// Who shares cache mounts of one id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CacheMountScope {
    /// Builds of the same Dockerfile of the same repository or folder: what one leaves there runs in the other.
    #[default]
    Project,
    /// All builds of the tenant.
    Tenant,
}

/// What network a step has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkMode {
    /// Its own, with a way out but not to this machine.
    Default,
    /// Its own, with nothing in it but loopback.
    None,
    /// This machine's. Only where the operator allows it.
    Host,
}

/// How new layers are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// Understood by everything.
    Gzip,
    /// Smaller and faster; understood by newer tools.
    Zstd,
}

/// Which family of media types is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MediaTypes {
    /// `application/vnd.oci.image.*`
    Oci,
    /// `application/vnd.docker.*`
    Docker,
}

/// What to do with the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Output {
    /// Publish it under a name: in the embedded registry when the host is one of [`Registries::embedded`], else by pushing it.
    Publish {
        /// The name, with a tag.
        reference: Reference,
    },
    /// Keep it in the local store under a name, pushed nowhere.
    Keep {
        /// The name, with a tag.
        reference: Reference,
    },
    /// Write it to a file, or folder, below the build's output folder.
    Export {
        /// In which form.
        format: ExportFormat,
        /// Name below the output folder; one path component.
        name: String,
        /// Names recorded inside, for formats that have them.
        references: Vec<Reference>,
    },
    /// Make one file of its root filesystem, in the store.
    Subassembly {
        /// What the file is.
        format: Format,
        /// Whose it is.
        tenant: String,
        /// Where the file goes too.
        #[serde(default)]
        bucket: Option<Box<Bucket>>,
    },
}

/// Form of an exported image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExportFormat {
    /// A tar of an OCI image layout.
    Oci,
    /// A tar as `docker save` writes it.
    Docker,
    /// A tar of the root filesystem.
    Tar,
    /// The root filesystem as a folder.
    Local,
}

/// How registries are reached, and as whom.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Registries {
    /// Mirrors, plain http, certificates.
    pub hosts: Hosts,
    /// What base images may be pulled with: what the caller is allowed to use.
    #[serde(with = "registry::keychain::exposed")]
    pub pull: Keychain,
    /// What results are published with: the service's own.
    #[serde(with = "registry::keychain::exposed")]
    pub publish: Keychain,
    /// Proxies on the way; `None` connects directly.
    #[serde(default)]
    pub proxy: Option<ProxyOptions>,
    /// Where connections may lead.
    #[serde(default)]
    pub egress: egress::Policy,
    /// Hosts that mean the embedded registry.
    pub embedded: Vec<String>,
    /// Which of its repositories the build may read.
    #[serde(default)]
    pub readable: Readable,
    /// Whether a base may be an image that was kept here under its name ([`Output::Keep`]). For one user's own builds only.
    pub use_kept: bool,
}
