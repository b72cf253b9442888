//! Reading, storing and removing manifests.
//!
//! A manifest is accepted when it can be read in one way only, is sent under the media type that its bytes say, and everything
//! that it names is in its repository with the size that it says. What it is served under follows from its bytes alone.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderName, LOCATION};
use http::{Method, StatusCode};
use oci::{Descriptor, Digest, Document, Hasher, media_type};
use store::Store;

use super::failure::Failure;
use super::route::Key;
use super::uploads::BodyReader;
use super::{CONTENT_DIGEST, Call, Registry, empty, with_headers};

const SUBJECT: HeaderName = HeaderName::from_static("oci-subject");

pub(super) async fn handle(
    registry: &Arc<Registry>,
    call: &Call,
    body: Body,
    (repository, key): (String, Key),
) -> Result<Response, Failure> {
    match call.method {
        Method::GET | Method::HEAD => read(registry, call, repository, key).await,
        Method::PUT => write(registry, call, body, (repository, key)).await,
        Method::DELETE => remove(registry, repository, key).await,
        _ => Err(Failure::method()),
    }
}

async fn read(
    registry: &Arc<Registry>,
    call: &Call,
    repository: String,
    key: Key,
) -> Result<Response, Failure> {
    let read = move |store: &Store| store.manifest(&repository, &key.to_string());
    let found = registry.blocking(read).await?;
    let (digest, bytes) = found.ok_or_else(Failure::manifest_unknown)?;
    let document = Document::parse(None, &bytes).map_err(|error| Failure::internal(&error))?;
    let headers = [
        (CONTENT_TYPE, document.media_type().to_owned()),
        (CONTENT_DIGEST, digest.to_string()),
        (CONTENT_LENGTH, bytes.len().to_string()),
        (ETAG, format!("\"{digest}\"")),
    ];
    let body = match call.method {
        Method::HEAD => Body::empty(),
        _ => Body::from(bytes),
    };
    Ok(with_headers(Response::new(body), &headers))
}

async fn write(
    registry: &Arc<Registry>,
    call: &Call,
    body: Body,
    (repository, key): (String, Key),
) -> Result<Response, Failure> {
    let options = &registry.options;
    let max_bytes = options.manifest_max_bytes as u64;
    if call
        .content_length()
        .is_some_and(|length| length > max_bytes)
    {
        return Err(Failure::too_large(max_bytes));
    }
    let _place = registry.admit(&repository)?;
    let mut reader = BodyReader::new(body, max_bytes, options);
    let mut bytes = Vec::new();
    loop {
        let pieces = reader.batch().await?;
        if pieces.is_empty() {
            break;
        }
        for piece in pieces {
            bytes.extend_from_slice(&piece);
        }
    }
    let (digest, tag) = match key {
        Key::Tag(tag) => (Digest::sha256(&bytes), Some(tag)),
        Key::Digest(digest) => {
            let mut hasher = Hasher::new(digest.algorithm());
            hasher.update(&bytes);
            if hasher.finish() != digest {
                return Err(Failure::digest_mismatch());
            }
            (digest, None)
        }
    };
    let document = parse(call.header(&CONTENT_TYPE), &bytes)?;
    let subject = subject(&document).map(|subject| subject.digest.clone());
    let mut headers = vec![
        (LOCATION, format!("/v2/{repository}/manifests/{digest}")),
        (CONTENT_DIGEST, digest.to_string()),
        (CONTENT_LENGTH, "0".to_owned()),
    ];
    headers.extend(subject.iter().map(|digest| (SUBJECT, digest.to_string())));
    let put = move |store: &Store| -> Result<(), Failure> {
        check_content(store, &repository, &document)?;
        // Before the manifest: a link to a manifest that is not there is not listed.
        if let Some(subject) = &subject {
            store.link_referrer(&repository, subject, &digest)?;
        }
        store.put_manifest_as(&repository, &bytes, &digest, tag.as_deref())?;
        Ok(())
    };
    registry.blocking(put).await?;
    Ok(empty(StatusCode::CREATED, &headers))
}

fn parse(content_type: Option<&str>, bytes: &[u8]) -> Result<Document, Failure> {
    let content_type = content_type
        .and_then(|text| text.split(';').next())
        .map(str::trim);
    let document = Document::parse(content_type, bytes).map_err(|error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
        Failure::manifest_invalid(format!("{error}{}", cause.unwrap_or_default()))
    })?;
    match content_type {
        Some(stated) if stated != document.media_type() => {
            let message = format!(
                "the manifest is sent as {stated:?} and says it is {:?}",
                document.media_type()
            );
            Err(Failure::manifest_invalid(message))
        }
        _ => Ok(document),
    }
}

fn subject(document: &Document) -> Option<&Descriptor> {
    match document {
        Document::Manifest(manifest) => manifest.subject.as_ref(),
        Document::Index(index) => index.subject.as_ref(),
    }
}

/// Checks that a repository has everything that a manifest names, its subject aside, which may come later.
fn check_content(store: &Store, repository: &str, document: &Document) -> Result<(), Failure> {
    match document {
        Document::Manifest(manifest) => {
            let ours = |layer: &&Descriptor| !media_type::is_foreign(&layer.media_type);
            let layers = manifest.layers.iter().filter(ours);
            for descriptor in std::iter::once(&manifest.config).chain(layers) {
                if !store.has_blob(repository, &descriptor.digest)? {
                    return Err(Failure::manifest_blob_unknown(&descriptor.digest));
                }
                check_size(store, descriptor)?;
            }
        }
        Document::Index(index) => {
            for descriptor in &index.manifests {
                let key = descriptor.digest.to_string();
                if store.manifest_digest(repository, &key)?.is_none() {
                    return Err(Failure::manifest_blob_unknown(&descriptor.digest));
                }
                check_size(store, descriptor)?;
            }
        }
    }
    Ok(())
}

/// Checks that the store has something that its repository has a link to, with the right size.
fn check_size(store: &Store, descriptor: &Descriptor) -> Result<(), Failure> {
    let digest = &descriptor.digest;
    match store.size_of(digest)? {
        Some(size_bytes) if size_bytes == descriptor.size => Ok(()),
        Some(size_bytes) => Err(Failure::manifest_invalid(format!(
            "the manifest says that {digest} has {} bytes, it has {size_bytes}",
            descriptor.size
        ))),
        None => Err(Failure::manifest_blob_unknown(digest)),
    }
}

async fn remove(
    registry: &Arc<Registry>,
    repository: String,
    key: Key,
) -> Result<Response, Failure> {
    let remove = move |store: &Store| -> Result<bool, Failure> {
        let digest = match &key {
            Key::Tag(tag) => return Ok(store.delete_tag(&repository, tag)?),
            Key::Digest(digest) => digest,
        };
        let found = store.manifest(&repository, &key.to_string())?;
        let was_there = store.delete_manifest(&repository, digest)?;
        let document = found.and_then(|(_, bytes)| Document::parse(None, &bytes).ok());
        if let Some(subject) = document.as_ref().and_then(subject) {
            store.unlink_referrer(&repository, &subject.digest, digest)?;
        }
        Ok(was_there)
    };
    if registry.blocking(remove).await? {
        Ok(empty(
            StatusCode::ACCEPTED,
            &[(CONTENT_LENGTH, "0".to_owned())],
        ))
    } else {
        Err(Failure::manifest_unknown())
    }
}
