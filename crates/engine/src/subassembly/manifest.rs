//! The manifest of a subassembly: what its file holds, what it was made of, how it is mounted and started.
//!
//! A JSON document, described by `docs/subassembly-manifest.schema.json`. It says the same for the same image and format. Fields may be
//! added; whoever reads it ignores those that it does not know.

use std::collections::BTreeMap;

use oci::{Digest, ImageConfig, Platform};
use serde::{Deserialize, Serialize};

use super::Format;

/// Version of the document.
const SCHEMA_VERSION: u32 = 1;

/// What a subassembly is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Version of this document: 1.
    pub schema_version: u32,
    /// Digest of the image's manifest.
    pub source_digest: Digest,
    /// What the image runs on.
    pub platform: Platform,
    /// How the image is started: `null` where it does not say.
    pub entrypoint: Option<Vec<String>>,
    /// What the entrypoint is given, or what is started when there is none.
    pub cmd: Option<Vec<String>>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// `user[:group]`; empty means root.
    pub user: String,
    /// Directory that commands start in; empty means `/`.
    pub workdir: String,
    /// The image's labels.
    pub labels: BTreeMap<String, String>,
    /// What the file is: `squashfs` or `tar+zstd`.
    pub format: Format,
    /// Media type of the file.
    pub media_type: String,
    /// Digest of the file.
    pub digest: Digest,
    /// Size of the file, in bytes.
    pub size: u64,
    /// Bytes of all files in it, hard links counted once.
    pub uncompressed_size: u64,
    /// Files and directories in it.
    pub entries: u64,
    /// Device files of the image that are not in it.
    pub devices_left_out: u64,
    /// What it takes to use it.
    pub mount: Mount,
}

/// What it takes to use the file as a root filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mount {
    /// Type of the filesystem, as `mount -t` takes it; `null` for an archive, which is unpacked.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Options for `mount -o`.
    pub options: Vec<String>,
    /// What the kernel has to be built with.
    pub kernel: Vec<String>,
}

/// What is known of the file when it is there.
#[derive(Debug)]
pub(super) struct File {
    pub(super) source: Digest,
    pub(super) format: Format,
    pub(super) digest: Digest,
    pub(super) size_bytes: u64,
    pub(super) uncompressed_bytes: u64,
    pub(super) n_entries: u64,
    pub(super) n_devices: u64,
}

impl Manifest {
    pub(super) fn new(image: &ImageConfig, file: File) -> Self {
        let config = &image.config;
        Self {
            schema_version: SCHEMA_VERSION,
            source_digest: file.source,
            platform: image.platform(),
            entrypoint: config.entrypoint.clone(),
            cmd: config.cmd.clone(),
            env: config.env.clone(),
            user: config.user.clone(),
            workdir: config.working_dir.clone(),
            labels: config.labels.clone(),
            format: file.format,
            media_type: file.format.media_type().to_owned(),
            digest: file.digest,
            size: file.size_bytes,
            uncompressed_size: file.uncompressed_bytes,
            entries: file.n_entries,
            devices_left_out: file.n_devices,
            mount: Mount::of(file.format),
        }
    }
}

impl Mount {
    fn of(format: Format) -> Self {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        match format {
            Format::Squashfs => Self {
                kind: Some("squashfs".to_owned()),
                // It holds set-user-id programs of an image that nobody vouches for.
                options: words(&["ro", "nosuid", "nodev"]),
                kernel: words(&[
                    "CONFIG_SQUASHFS",
                    "CONFIG_SQUASHFS_XATTR",
                    "CONFIG_SQUASHFS_ZSTD",
                    "CONFIG_BLK_DEV_LOOP",
                ]),
            },
            Format::TarZstd => Self {
                kind: None,
                options: Vec::new(),
                kernel: Vec::new(),
            },
        }
    }
}
