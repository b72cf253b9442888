//! Lists: the tags of a repository, the repositories, the manifests that name another as their subject. All in pages.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::response::Response;
use http::header::{CONTENT_TYPE, HeaderName, LINK};
use http::{Method, StatusCode};
use oci::{Digest, Document, media_type};
use serde::Serialize;
use serde_json::{Value, json};
use store::Store;

use super::failure::Failure;
use super::route::Route;
use super::{Call, Registry, json as answer, with_headers};

const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

/// Answers `/v2/_catalog`.
pub(super) async fn catalog(registry: &Arc<Registry>, call: &Call) -> Result<Response, Failure> {
    let page = Page::parse(registry, call)?;
    let mut all = registry.blocking(Store::repositories).await?;
    all.retain(|repository| registry.may_pull(call, repository));
    let (names, link) = page.cut(all, "/v2/_catalog");
    Ok(linked(&json!({ "repositories": names }), link))
}

/// Answers what is asked about something that the caller must not see: as if it were not there.
pub(super) fn hidden(route: &Route) -> Result<Response, Failure> {
    match route {
        Route::Referrers { .. } => {
            let index = index_of(&[]);
            let headers = [(CONTENT_TYPE, media_type::OCI_INDEX.to_owned())];
            Ok(with_headers(answer(StatusCode::OK, &index), &headers))
        }
        Route::Manifest { .. } => Err(Failure::manifest_unknown()),
        Route::Blob { .. } => Err(Failure::blob_unknown()),
        Route::Upload { .. } => Err(Failure::upload_unknown()),
        Route::Base | Route::Catalog | Route::Tags { .. } | Route::Uploads { .. } => {
            Err(Failure::name_unknown())
        }
    }
}

fn index_of(manifests: &[Referrer]) -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_INDEX,
        "manifests": manifests,
    })
}

/// Answers `/v2/<name>/tags/list`.
pub(super) async fn tags(
    registry: &Arc<Registry>,
    call: &Call,
    repository: String,
) -> Result<Response, Failure> {
    let page = Page::parse(registry, call)?;
    let wanted = repository.clone();
    let all = registry
        .blocking(move |store| store.tags(&wanted))
        .await?
        .ok_or_else(Failure::name_unknown)?;
    let (tags, link) = page.cut(all, &format!("/v2/{repository}/tags/list"));
    Ok(linked(&json!({ "name": repository, "tags": tags }), link))
}

/// Answers `/v2/<name>/referrers/<digest>`.
pub(super) async fn referrers(
    registry: &Arc<Registry>,
    call: &Call,
    repository: String,
    subject: Digest,
) -> Result<Response, Failure> {
    let page = Page::parse(registry, call)?;
    let wanted_type = call.query("artifactType").map(str::to_owned);
    let is_filtered = wanted_type.is_some();
    let path = format!("/v2/{repository}/referrers/{subject}");
    let list = move |store: &Store| -> Result<_, Failure> {
        let all = store.referrers(&repository, &subject)?;
        let (digests, link) = page.cut(all.iter().map(ToString::to_string).collect(), &path);
        let mut found = Vec::new();
        for key in digests {
            let Some((digest, bytes)) = store.manifest(&repository, &key)? else {
                continue;
            };
            let referrer = Referrer::describe(digest, &bytes);
            if wanted_type.is_none() || referrer.artifact_type == wanted_type {
                found.push(referrer);
            }
        }
        Ok((found, link))
    };
    let (manifests, link) = registry.blocking(list).await?;
    let index = index_of(&manifests);
    let mut headers = vec![(CONTENT_TYPE, media_type::OCI_INDEX.to_owned())];
    if is_filtered {
        headers.push((FILTERS_APPLIED, "artifactType".to_owned()));
    }
    Ok(with_headers(linked(&index, link), &headers))
}

/// A manifest that names another as its subject, in the list of those.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Referrer {
    media_type: String,
    digest: Digest,
    size: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    artifact_type: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

impl Referrer {
    fn describe(digest: Digest, bytes: &[u8]) -> Self {
        let document = Document::parse(None, bytes).ok();
        let media_type = document.as_ref().map(Document::media_type);
        let media_type = media_type.unwrap_or_default().to_owned();
        let (artifact_type, annotations) = match document {
            // What says nothing of its own kind is of the kind of its configuration.
            Some(Document::Manifest(manifest)) => (
                manifest.artifact_type.or(Some(manifest.config.media_type)),
                manifest.annotations,
            ),
            Some(Document::Index(index)) => (index.artifact_type, index.annotations),
            None => (None, BTreeMap::new()),
        };
        Self {
            media_type,
            digest,
            size: bytes.len(),
            artifact_type,
            annotations,
        }
    }
}

fn linked(value: &Value, link: Option<String>) -> Response {
    let headers: Vec<_> = link.into_iter().map(|link| (LINK, link)).collect();
    with_headers(answer(StatusCode::OK, value), &headers)
}

/// Which part of a list is wanted: at most `n` entries after `last`.
struct Page {
    n: usize,
    last: Option<String>,
    /// What else a link to the next page has to repeat.
    filter: Option<String>,
}

impl Page {
    fn parse(registry: &Registry, call: &Call) -> Result<Self, Failure> {
        if call.method != Method::GET && call.method != Method::HEAD {
            return Err(Failure::method());
        }
        let page_max = registry.options.page_max;
        let n = match call.query("n") {
            None => page_max,
            Some(text) => text.parse::<usize>().map_err(|_| Failure::page())?,
        };
        Ok(Self {
            n: n.min(page_max),
            last: call.query("last").map(str::to_owned),
            filter: call.query("artifactType").map(str::to_owned),
        })
    }

    /// Returns the entries of this page of a sorted list, and the link to the next if there is more.
    fn cut(&self, all: Vec<String>, path: &str) -> (Vec<String>, Option<String>) {
        let is_after = |entry: &String| self.last.as_ref().is_none_or(|last| entry > last);
        let mut rest = all.into_iter().filter(is_after);
        let entries: Vec<_> = rest.by_ref().take(self.n).collect();
        let more = rest.next().is_some();
        let link = entries.last().filter(|_| more).map(|last| {
            let mut query = url::form_urlencoded::Serializer::new(String::new());
            query
                .append_pair("last", last)
                .append_pair("n", &self.n.to_string());
            if let Some(filter) = &self.filter {
                query.append_pair("artifactType", filter);
            }
            format!("<{path}?{}>; rel=\"next\"", query.finish())
        });
        (entries, link)
    }
}
