//! What a request is built from: the files, and what stands for stages and images.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use api::contentservice as content;
use api::kiln::v1 as wire;
use engine::spec::{Context, LayoutImage, NamedContext};
use source::git::FetchOptions;
use source::initializer::Initializer;

use super::super::{initializer, path, short};
use super::{ENTRIES_MAX, REQUEST_ID_MAX_BYTES, at_most, given, name_of, refused};
use crate::failure::Failure;

/// Largest Dockerfile beside the files.
const DOCKERFILE_MAX_BYTES: usize = 1 << 20;
/// The image that is none.
const SCRATCH: &str = "scratch";

/// What is said of files beside which they are.
#[derive(Default)]
pub(super) struct Beside {
    pub(super) dockerfile_text: String,
    pub(super) project: String,
}

/// How workspaces are fetched, and which uploaded contexts a request names.
pub(super) type World<'a> = (&'a FetchOptions, &'a mut BTreeSet<String>);

pub(super) fn context(
    field: &str,
    files: wire::BuildFiles,
    beside: Beside,
    (fetch, uploads): World<'_>,
) -> Result<Context, Failure> {
    let wire::BuildFiles { from } = files;
    match from.ok_or_else(|| refused(field, "missing"))? {
        wire::build_files::From::Workspace(content::WorkspaceInitializer { spec }) => {
            if !beside.dockerfile_text.is_empty() {
                let why = "a workspace has its own Dockerfile: name it with dockerfile_path";
                return Err(refused("dockerfile_text", why));
            }
            if !beside.project.is_empty() {
                let why = "a workspace is named by where it comes from";
                return Err(refused("project", why));
            }
            let spec = spec.ok_or_else(|| refused(field, "the workspace has no initializer"))?;
            Ok(match initializer::of(spec, fetch)? {
                Initializer::Git(git) => Context::Git(*git),
                initializer => Context::Filled { initializer },
            })
        }
        wire::build_files::From::Uploaded(files) => {
            let wire::UploadedFiles {
                context_id,
                archive,
            } = files;
            let context = upload(field, context_id, uploads)?;
            let text = beside.dockerfile_text;
            at_most(
                "dockerfile_text, in bytes",
                text.len(),
                DOCKERFILE_MAX_BYTES,
            )?;
            if !text.is_empty() && !archive.is_empty() {
                let why = "an archive has its own Dockerfile: name it with dockerfile_path";
                return Err(refused("dockerfile_text", why));
            }
            Ok(Context::Uploaded {
                name: project_name(&context, &beside.project),
                context,
                archive: path(field, &short(field, archive)?)?,
                dockerfile_text: given(text),
            })
        }
    }
}

/// Returns what the caches of uploaded files are kept under, cache mounts among them. It is never what a repository is called, and who
/// names nothing shares with nobody: no two folders are one project because nobody named them.
fn project_name(context_id: &str, project: &str) -> String {
    if project.is_empty() {
        format!("upload:{context_id}")
    } else {
        format!("project:{project}")
    }
}

/// Notes that the request names an uploaded context.
pub(super) fn upload(
    field: &str,
    context_id: String,
    uploads: &mut BTreeSet<String>,
) -> Result<String, Failure> {
    if context_id.is_empty() || context_id.len() > REQUEST_ID_MAX_BYTES {
        return Err(refused(field, "context_id is missing or too long"));
    }
    uploads.insert(context_id.clone());
    Ok(context_id)
}

pub(super) fn named_contexts(
    contexts: HashMap<String, wire::NamedContext>,
    (fetch, uploads): World<'_>,
) -> Result<BTreeMap<String, NamedContext>, Failure> {
    at_most("contexts", contexts.len(), ENTRIES_MAX)?;
    let mut named = BTreeMap::new();
    for (name, wire::NamedContext { what }) in contexts {
        let field = format!("contexts[{:?}]", crate::failure::truncate(&name, 64));
        let name = dockerfile::context_name(&name).map_err(|e| Failure::field(&field, &e))?;
        let what = match what.ok_or_else(|| refused(&field, "missing"))? {
            wire::named_context::What::Image(image) if image == SCRATCH => NamedContext::Scratch,
            wire::named_context::What::Image(image) => NamedContext::Image {
                reference: name_of(&field, &image)?,
            },
            wire::named_context::What::Layout(wire::NamedLayout { context_id, image }) => {
                NamedContext::UploadedLayout {
                    context: upload(&field, context_id, uploads)?,
                    image: layout_image(&field, image)?,
                }
            }
            wire::named_context::What::Files(wire::NamedFiles { files, folder }) => {
                let files = files.ok_or_else(|| refused(&field, "missing"))?;
                let folder = path(&field, &short(&field, folder)?)?;
                let world = (fetch, &mut *uploads);
                NamedContext::Files {
                    context: context(&field, files, Beside::default(), world)?,
                    folder: folder.unwrap_or_default(),
                }
            }
        };
        if named.insert(name, what).is_some() {
            return Err(refused(&field, "two contexts have this name"));
        }
    }
    Ok(named)
}

pub(super) fn layout_image(
    field: &str,
    image: Option<wire::named_layout::Image>,
) -> Result<LayoutImage, Failure> {
    match image {
        None => Ok(LayoutImage::Default),
        Some(wire::named_layout::Image::Tag(tag)) if oci::reference::is_tag(&tag) => {
            Ok(LayoutImage::Tag(tag))
        }
        Some(wire::named_layout::Image::Tag(_)) => Err(refused(field, "the tag is none")),
        Some(wire::named_layout::Image::Digest(digest)) => {
            let digest: Result<oci::Digest, oci::digest::DigestError> = digest.parse();
            let digest = digest.map_err(|error| Failure::field(field, &error))?;
            Ok(LayoutImage::Digest(digest))
        }
    }
}
