//! What becomes of the image, and which caches travel.

use std::collections::BTreeSet;

use api::kiln::v1 as wire;
use engine::spec::{CacheFrom, CacheTo, CachedSteps, ExportFormat, OnCacheError};

use super::files::{layout_image, upload};
use super::{at_most, name_of, new_name, refused};
use crate::failure::Failure;
use crate::native::Wish;
use crate::outputs;

/// Most outputs, and most caches.
const OUTPUTS_MAX: usize = 32;

/// Returns what becomes of the image, and the caches that become files.
pub(super) fn wishes(
    outputs: Vec<wire::BuildOutput>,
) -> Result<(Vec<Wish>, Vec<CacheTo>), Failure> {
    at_most("outputs", outputs.len(), OUTPUTS_MAX)?;
    let (mut wishes, mut caches) = (Vec::new(), Vec::new());
    for (index, wire::BuildOutput { kind }) in (0..).zip(outputs) {
        match kind.ok_or_else(|| refused("outputs", "one says nothing"))? {
            wire::build_output::Kind::Publish(name) => {
                wishes.push(Wish::Publish(new_name("outputs.publish", &name)?));
            }
            wire::build_output::Kind::Keep(name) => {
                wishes.push(Wish::Keep(new_name("outputs.keep", &name)?));
            }
            wire::build_output::Kind::Export(wire::ExportedFile { format, references }) => {
                at_most("outputs.export.references", references.len(), OUTPUTS_MAX)?;
                let names = references.iter();
                let names = names.map(|name| new_name("outputs.export.references", name));
                wishes.push(Wish::Export {
                    index,
                    format: export_format_of(format)?,
                    references: names.collect::<Result<_, _>>()?,
                });
            }
            wire::build_output::Kind::Cache(wire::ExportedCache { all_stages }) => {
                caches.push(CacheTo::Archive {
                    name: outputs::name(index),
                    steps: if all_stages {
                        CachedSteps::All
                    } else {
                        CachedSteps::OfTheImage
                    },
                });
            }
        }
    }
    Ok((wishes, caches))
}

fn export_format_of(number: i32) -> Result<ExportFormat, Failure> {
    match wire::ExportFormat::try_from(number) {
        Ok(wire::ExportFormat::Oci) => Ok(ExportFormat::Oci),
        Ok(wire::ExportFormat::Docker) => Ok(ExportFormat::Docker),
        Ok(wire::ExportFormat::Tar) => Ok(ExportFormat::Tar),
        Ok(wire::ExportFormat::Unspecified) => Err(refused("outputs.export.format", "missing")),
        Err(_) => Err(refused("outputs.export.format", "unknown")),
    }
}

pub(super) fn caches_from(names: Vec<String>) -> Result<Vec<CacheFrom>, Failure> {
    at_most("cache_from", names.len(), OUTPUTS_MAX)?;
    let read = |name: String| {
        let reference = name_of("cache_from", &name)?;
        Ok(CacheFrom::Registry { reference })
    };
    names.into_iter().map(read).collect()
}

pub(super) fn uploaded_caches(
    layouts: Vec<wire::NamedLayout>,
    uploads: &mut BTreeSet<String>,
) -> Result<Vec<CacheFrom>, Failure> {
    const FIELD: &str = "cache_from_layouts";
    at_most(FIELD, layouts.len(), OUTPUTS_MAX)?;
    let read = |layout: wire::NamedLayout| {
        let wire::NamedLayout { context_id, image } = layout;
        Ok(CacheFrom::Uploaded {
            context: upload(FIELD, context_id, uploads)?,
            image: layout_image(FIELD, image)?,
        })
    };
    layouts.into_iter().map(read).collect()
}

pub(super) fn caches_to(targets: Vec<wire::CacheTarget>) -> Result<Vec<CacheTo>, Failure> {
    at_most("cache_to", targets.len(), OUTPUTS_MAX)?;
    let target = |target: wire::CacheTarget| {
        let wire::CacheTarget { kind } = target;
        match kind.ok_or_else(|| refused("cache_to", "one says nothing"))? {
            wire::cache_target::Kind::Inline(wire::InlineCache {}) => Ok(CacheTo::Inline),
            wire::cache_target::Kind::Registry(wire::RegistryCache {
                reference,
                all_stages,
                ignore_error,
            }) => Ok(CacheTo::Registry {
                reference: new_name("cache_to.registry", &reference)?,
                steps: if all_stages {
                    CachedSteps::All
                } else {
                    CachedSteps::OfTheImage
                },
                on_error: if ignore_error {
                    OnCacheError::Warn
                } else {
                    OnCacheError::Fail
                },
            }),
        }
    };
    targets.into_iter().map(target).collect()
}
