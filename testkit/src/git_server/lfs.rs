//! An LFS service beside the repositories: what it keeps, and how it answers for it.

use std::collections::BTreeMap;

use axum::body::Body;
use http::request::Parts;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::status;

/// The header without which no object is handed out.
const TOKEN: (&str, &str) = ("x-object-token", "one-object");

/// How an object is answered for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LfsObject {
    /// With this content, whatever its name says.
    Content(Vec<u8>),
    /// With another address.
    At(String),
    /// By sending on to another address.
    Redirect(String),
}

/// Returns the answer to what is asked of the service; none when something else was asked.
pub(super) fn answer(
    objects: &BTreeMap<String, LfsObject>,
    parts: &Parts,
    body: &[u8],
) -> Option<Response<Body>> {
    if parts.uri.path().ends_with("/info/lfs/objects/batch") {
        return Some(
            batch(objects, parts, body).unwrap_or_else(|| status(StatusCode::BAD_REQUEST)),
        );
    }
    let oid = parts.uri.path().strip_prefix("/lfs-objects/")?;
    let has_token = parts
        .headers
        .get(TOKEN.0)
        .is_some_and(|value| value == TOKEN.1);
    Some(match objects.get(oid) {
        Some(LfsObject::Content(content)) if has_token => {
            Response::new(Body::from(content.clone()))
        }
        Some(LfsObject::Redirect(to)) if has_token => {
            let mut response = status(StatusCode::FOUND);
            if let Ok(to) = to.parse() {
                response.headers_mut().insert("location", to);
            }
            response
        }
        Some(_) => status(StatusCode::FORBIDDEN),
        None => status(StatusCode::NOT_FOUND),
    })
}

/// Says where the objects are that a request names.
fn batch(
    objects: &BTreeMap<String, LfsObject>,
    parts: &Parts,
    body: &[u8],
) -> Option<Response<Body>> {
    let asked: Value = serde_json::from_slice(body).ok()?;
    let host = parts.headers.get("host")?.to_str().ok()?;
    let answered = asked.get("objects")?.as_array()?.iter().map(|object| {
        let oid = object
            .get("oid")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let href = match objects.get(oid) {
            Some(LfsObject::At(url)) => url.clone(),
            Some(_) => format!("http://{host}/lfs-objects/{oid}"),
            None => return json!({"oid": oid, "error": {"code": 404, "message": "no object"}}),
        };
        let download = json!({"href": href, "header": {TOKEN.0: TOKEN.1}});
        json!({"oid": oid, "size": object.get("size"), "actions": {"download": download}})
    });
    let answer = json!({"transfer": "basic", "objects": answered.collect::<Vec<_>>()});
    Some(Response::new(Body::from(answer.to_string())))
}
