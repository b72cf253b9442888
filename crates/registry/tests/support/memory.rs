//! A well-behaved registry in memory, to be put behind an [`super::evil::Evil`] that spoils single answers.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;

use oci::Digest;

use super::evil::{Asked, Reply};

#[derive(Default)]
pub(crate) struct Memory {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    blobs: HashMap<(String, String), Vec<u8>>,
    manifests: HashMap<(String, String), (String, Vec<u8>)>,
    sessions: HashMap<String, Vec<u8>>,
    n_sessions: usize,
    closed: HashSet<String>,
}

impl Memory {
    pub(crate) fn put_blob(&self, repository: &str, bytes: &[u8]) {
        let key = (repository.to_owned(), Digest::sha256(bytes).to_string());
        self.state.lock().unwrap().blobs.insert(key, bytes.to_vec());
    }

    pub(crate) fn blob(&self, repository: &str, digest: &Digest) -> Option<Vec<u8>> {
        let key = (repository.to_owned(), digest.to_string());
        self.state.lock().unwrap().blobs.get(&key).cloned()
    }

    pub(crate) fn forget_blob(&self, repository: &str, digest: &Digest) {
        let key = (repository.to_owned(), digest.to_string());
        self.state.lock().unwrap().blobs.remove(&key);
    }

    pub(crate) fn put_manifest(&self, repository: &str, tag: &str, media_type: &str, bytes: &[u8]) {
        let mut state = self.state.lock().unwrap();
        for key in [tag.to_owned(), Digest::sha256(bytes).to_string()] {
            let value = (media_type.to_owned(), bytes.to_vec());
            state.manifests.insert((repository.to_owned(), key), value);
        }
    }

    /// Appends to a session behind the client's back: what arrived before a connection broke.
    pub(crate) fn receive(&self, asked: &Asked, n_bytes: usize) {
        let mut state = self.state.lock().unwrap();
        let session = asked.path().rsplit('/').next().unwrap().to_owned();
        let part = &asked.body[..n_bytes];
        state
            .sessions
            .get_mut(&session)
            .unwrap()
            .extend_from_slice(part);
    }

    pub(crate) fn answer(&self, asked: &Asked) -> Reply {
        let path = asked.path().strip_prefix("/v2/").unwrap().to_owned();
        let query = asked.target.split_once('?').map_or("", |(_, query)| query);
        let query: HashMap<String, String> = url::form_urlencoded::parse(query.as_bytes())
            .into_owned()
            .collect();
        if let Some((repository, key)) = path.split_once("/manifests/") {
            return self.manifest(asked, repository, key);
        }
        let (repository, rest) = path.split_once("/blobs/").unwrap();
        match rest.strip_prefix("uploads/") {
            Some("") => self.begin(repository, &query),
            Some(session) => self.upload(asked, repository, session, &query),
            None => self.blob_answer(asked, repository, rest),
        }
    }

    fn manifest(&self, asked: &Asked, repository: &str, key: &str) -> Reply {
        if asked.method == "PUT" {
            let media_type = asked.header("content-type").unwrap();
            self.put_manifest(repository, key, media_type, &asked.body);
            return Reply::new(201).with("Docker-Content-Digest", Digest::sha256(&asked.body));
        }
        let state = self.state.lock().unwrap();
        match state
            .manifests
            .get(&(repository.to_owned(), key.to_owned()))
        {
            Some((media_type, bytes)) => Reply::ok(bytes.clone())
                .with("Content-Type", media_type)
                .with("Docker-Content-Digest", Digest::sha256(bytes)),
            None => unknown("MANIFEST_UNKNOWN"),
        }
    }

    fn blob_answer(&self, asked: &Asked, repository: &str, digest: &str) -> Reply {
        let state = self.state.lock().unwrap();
        let Some(bytes) = state.blobs.get(&(repository.to_owned(), digest.to_owned())) else {
            return unknown("BLOB_UNKNOWN");
        };
        match asked.range() {
            None => Reply::ok(bytes.clone()).with("ETag", format!("\"{digest}\"")),
            Some(n) => Reply::new(206)
                .body(&bytes[n..])
                .with("ETag", format!("\"{digest}\""))
                .with(
                    "Content-Range",
                    format!("bytes {n}-{}/{}", bytes.len() - 1, bytes.len()),
                ),
        }
    }

    fn begin(&self, repository: &str, query: &HashMap<String, String>) -> Reply {
        let mut state = self.state.lock().unwrap();
        if let (Some(digest), Some(from)) = (query.get("mount"), query.get("from")) {
            let found = state.blobs.get(&(from.clone(), digest.clone())).cloned();
            if let Some(bytes) = found {
                state
                    .blobs
                    .insert((repository.to_owned(), digest.clone()), bytes);
                return Reply::new(201);
            }
        }
        state.n_sessions += 1;
        let session = format!("s{}", state.n_sessions);
        state.sessions.insert(session.clone(), Vec::new());
        Reply::new(202).with(
            "Location",
            format!("/v2/{repository}/blobs/uploads/{session}"),
        )
    }

    fn upload(
        &self,
        asked: &Asked,
        repository: &str,
        session: &str,
        query: &HashMap<String, String>,
    ) -> Reply {
        let mut state = self.state.lock().unwrap();
        let Some(bytes) = state.sessions.get_mut(session) else {
            return unknown("BLOB_UPLOAD_UNKNOWN");
        };
        let range = |bytes: &Vec<u8>| format!("0-{}", bytes.len().saturating_sub(1));
        match asked.method.as_str() {
            "GET" => Reply::new(204).with("Range", range(bytes)),
            "DELETE" => {
                state.closed.insert(session.to_owned());
                state.sessions.remove(session);
                Reply::new(204)
            }
            "PATCH" => {
                let first = asked.header("content-range").map_or(bytes.len(), |range| {
                    range.split('-').next().unwrap().parse().unwrap()
                });
                if first != bytes.len() {
                    return Reply::new(416);
                }
                bytes.extend_from_slice(&asked.body);
                let range = range(bytes);
                Reply::new(202)
                    .with("Location", asked.path())
                    .with("Range", range)
            }
            "PUT" => {
                bytes.extend_from_slice(&asked.body);
                let bytes = state.sessions.remove(session).unwrap();
                let digest = Digest::sha256(&bytes).to_string();
                if query.get("digest") != Some(&digest) {
                    return Reply::new(400).body(r#"{"errors":[{"code":"DIGEST_INVALID"}]}"#);
                }
                state.blobs.insert((repository.to_owned(), digest), bytes);
                Reply::new(201)
            }
            other => panic!("unexpected method {other}"),
        }
    }
}

fn unknown(code: &str) -> Reply {
    Reply::new(404).body(format!(
        r#"{{"errors":[{{"code":"{code}","message":"unknown"}}]}}"#
    ))
}
