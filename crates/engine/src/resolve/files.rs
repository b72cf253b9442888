//! The files that COPY, ADD and mounts see: those of a folder, without what its ignore file leaves out.
//!
//! Of an uploaded folder they are made when somebody needs them; what they are is known from its list before. So it is with a commit that
//! was fetched before.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use dockerfile::chmod::Node;
use dockerfile::ignore::{IgnoreError, IgnoreFile};
use oci::Digest;

use super::commits::Later;
use super::uploaded::Deferred;
use crate::event::{Failure, FailureKind};
use crate::failure::{chain, failure};
use crate::rootfs::filter::{self, Source};
use crate::rootfs::root::Root;
use crate::rootfs::select::Ignored;
use crate::spec::Context;

/// Files that are known without being there.
#[derive(Debug)]
pub(crate) enum Rest {
    /// Of an uploaded folder.
    Uploaded(Deferred),
    /// Of a commit, which may be there.
    Commit(Box<Later>),
}

/// Files that COPY and ADD see.
#[derive(Debug)]
pub(crate) struct BuildContext {
    /// Where they are, unless [`Self::rest`] makes them.
    root: Root,
    rest: Option<Rest>,
    pub(crate) ignore: Arc<IgnoreFile>,
    /// What the ignore file says, for keys.
    ignore_digest: Digest,
    /// Of a folder that stays where it is from build to build: device and inode.
    pub(crate) identity: Option<(u64, u64)>,
    /// Why the ignore file could not be applied, once it could not.
    broken: OnceLock<String>,
}

impl BuildContext {
    /// Returns the files in `root` but for those that `ignore` leaves out.
    pub(crate) fn new(root: Root, (ignore, ignore_digest): (IgnoreFile, Digest)) -> Self {
        Self {
            root,
            rest: None,
            ignore: Arc::new(ignore),
            ignore_digest,
            identity: None,
            broken: OnceLock::new(),
        }
    }

    /// Has `rest` make the files when they are needed.
    pub(crate) fn with_rest(mut self, rest: Option<Rest>) -> Self {
        self.rest = rest;
        self
    }

    /// Has it remember what its files were, if `from` is a folder that later builds may find again.
    pub(crate) fn remembering(mut self, from: &Context) -> Self {
        if let Context::Directory { .. } = from {
            let stat = rustix::fs::fstat(self.root.as_fd());
            self.identity = stat.ok().map(|stat| (stat.st_dev, stat.st_ino));
        }
        self
    }

    /// Returns the files, which are made now if they are not there yet. Blocks.
    pub(crate) fn root(&self) -> Result<&Root, Failure> {
        match &self.rest {
            Some(Rest::Uploaded(rest)) => rest.root(),
            Some(Rest::Commit(rest)) => rest.root(&self.root),
            None => Ok(&self.root),
        }
    }

    /// Returns the key of what decides the content of `sources`, if that is known without files. What is left out of `sources`
    /// by filters of their own is for the caller to add. Blocks.
    pub(crate) fn listed(&self, sources: &[Source]) -> Result<Option<(Digest, &Digest)>, Failure> {
        let key = match &self.rest {
            None => return Ok(None),
            Some(Rest::Uploaded(rest)) => rest.key(sources)?,
            Some(Rest::Commit(rest)) => rest.key().clone(),
        };
        Ok(Some((key, &self.ignore_digest)))
    }

    /// Tells whether `path`, from the context's root, is to be seen.
    #[expect(
        clippy::fn_params_excessive_bools,
        reason = "the shape of `rootfs::select::Ignore`"
    )]
    pub(crate) fn is_ignored(&self, path: &Path, is_dir: bool) -> Ignored {
        let decided = self.decide(&path.to_string_lossy(), is_dir);
        decided.unwrap_or_else(|error| {
            // Whoever asked goes through [`Self::check`] before it uses what it found.
            let _first_counts = self.broken.set(chain(&error));
            Ignored::Skip
        })
    }

    #[expect(
        clippy::fn_params_excessive_bools,
        reason = "the shape of `rootfs::select::Ignore`"
    )]
    fn decide(&self, path: &str, is_dir: bool) -> Result<Ignored, IgnoreError> {
        let node = if is_dir { Node::Directory } else { Node::Other };
        filter::ask(&self.ignore, path, node)
    }

    /// Fails when the ignore file could not be applied to something that was asked for.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        match self.broken.get() {
            Some(error) => Err(failure(
                FailureKind::Dockerfile,
                format!(".dockerignore: {error}"),
            )),
            None => Ok(()),
        }
    }
}
