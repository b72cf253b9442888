//! `RetryBuild`: a request that was made is made once more. What is secret in it is taken out before it is kept, and has to come again.
//!
//! What was taken out is told by what is left: the id of a secret without its value, a host without its credential, a repository with a way
//! to log in and no password. So nothing else has to be remembered, and a request that lacks nothing needs nothing.

use std::collections::HashMap;

use api::builder as published;
use api::contentservice as content;
use api::kiln::v1 as wire;
use content::workspace_initializer::Spec;
use engine::id::BuildId;
use prost::Message as _;

use crate::builds::requests::Requests;
use crate::failure::{Blame, Failure};

/// The first byte of a file says what follows.
const NATIVE: u8 = b'n';
const PUBLISHED: u8 = b'b';
/// What is left of an address that said more than where.
const CUT: char = '?';

/// A request that was made.
#[derive(Debug, Clone)]
pub(super) enum Asked {
    Native(Box<wire::StartBuildRequest>),
    Published(Box<published::BuildRequest>),
}

impl Asked {
    /// Returns the request without anything secret.
    pub(super) fn plain(mut self) -> Self {
        match &mut self {
            Self::Native(request) => {
                request.request_id.clear();
                request.secrets.values_mut().for_each(Vec::clear);
                blank(request.auth.as_mut());
                let named = request.contexts.values_mut();
                let named = named.filter_map(|context| match &mut context.what {
                    Some(wire::named_context::What::Files(files)) => files.files.as_mut(),
                    _ => None,
                });
                let all = request.files.iter_mut().chain(named);
                all.filter_map(workspace_mut).for_each(plain);
            }
            Self::Published(request) => {
                blank(request.auth.as_mut());
                if let Some(workspace) = published_workspace_mut(request) {
                    plain(workspace);
                }
            }
        }
        self
    }

    fn encode(&self) -> Vec<u8> {
        let (kind, body) = match self {
            Self::Native(request) => (NATIVE, request.encode_to_vec()),
            Self::Published(request) => (PUBLISHED, request.encode_to_vec()),
        };
        [&[kind], &body[..]].concat()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (kind, body) = bytes.split_first()?;
        match *kind {
            NATIVE => {
                let request = wire::StartBuildRequest::decode(body).ok()?;
                Some(Self::Native(Box::new(request)))
            }
            PUBLISHED => {
                let request = published::BuildRequest::decode(body).ok()?;
                Some(Self::Published(Box::new(request)))
            }
            _ => None,
        }
    }

    /// Returns what has to come again.
    pub(super) fn gone(&mut self) -> wire::KeptRequest {
        let mut kept = wire::KeptRequest::default();
        let hosts = |auth: &Option<published::BuildRegistryAuth>| {
            let additional = auth.iter().flat_map(|auth| &auth.additional);
            let blank = additional.filter(|(_, value)| value.is_empty());
            let mut hosts: Vec<String> = blank.map(|(host, _)| host.clone()).collect();
            hosts.sort();
            hosts
        };
        match self {
            Self::Native(request) => {
                let blank = request.secrets.iter().filter(|(_, value)| value.is_empty());
                kept.secrets = blank.map(|(id, _)| id.clone()).collect();
                kept.secrets.sort();
                kept.credentials = hosts(&request.auth);
                kept.ssh_agents.clone_from(&request.ssh_agents);
                let named = request.contexts.values_mut();
                let named = named.filter_map(|context| match &mut context.what {
                    Some(wire::named_context::What::Files(files)) => files.files.as_mut(),
                    _ => None,
                });
                let mut all = request.files.iter_mut().chain(named);
                kept.files = all.any(|files| workspace_mut(files).is_some_and(lacks));
            }
            Self::Published(request) => {
                kept.credentials = hosts(&request.auth);
                kept.files = published_workspace_mut(request).is_some_and(lacks);
            }
        }
        kept
    }

    /// Puts in what has come again; fails with the names of what is still missing.
    pub(super) fn completed(mut self, given: wire::RetryBuildRequest) -> Result<Self, Failure> {
        let wire::RetryBuildRequest {
            build_id: _,
            request_id,
            secrets,
            auth,
            files,
            triggered_by,
        } = given;
        match &mut self {
            Self::Native(request) => {
                request.request_id = request_id;
                for (id, value) in secrets {
                    let Some(blank) = request.secrets.get_mut(&id) else {
                        return Err(unknown("secrets", &id));
                    };
                    *blank = value;
                }
                fill(&mut request.auth, auth)?;
                if files.is_some() {
                    request.files = files;
                }
                if !triggered_by.is_empty() {
                    request.triggered_by = triggered_by;
                }
            }
            Self::Published(request) => {
                if let Some(id) = secrets.keys().next() {
                    return Err(unknown("secrets", id));
                }
                if !request_id.is_empty() || files.is_some() {
                    let text = "request_id, files: a build of the published API has none; send its own request again";
                    return Err(Failure::new(Blame::Request, text));
                }
                fill(&mut request.auth, auth)?;
                if !triggered_by.is_empty() {
                    request.triggered_by = triggered_by;
                }
            }
        }
        let gone = self.gone();
        let mut missing = Vec::new();
        if !gone.secrets.is_empty() {
            missing.push(format!("secrets {}", gone.secrets.join(", ")));
        }
        if !gone.credentials.is_empty() {
            missing.push(format!("credentials for {}", gone.credentials.join(", ")));
        }
        if gone.files {
            missing.push("the files with the credentials that they are fetched with".to_owned());
        }
        if missing.is_empty() {
            return Ok(self);
        }
        let text = format!("not kept, and to be sent again: {}", missing.join("; "));
        Err(Failure::new(Blame::State, text))
    }
}

fn unknown(field: &str, id: &str) -> Failure {
    Failure::new(
        Blame::Request,
        format!("{field}: the request had no {id:?}"),
    )
}

fn workspace_mut(files: &mut wire::BuildFiles) -> Option<&mut content::WorkspaceInitializer> {
    match &mut files.from {
        Some(wire::build_files::From::Workspace(workspace)) => Some(workspace),
        _ => None,
    }
}

fn published_workspace_mut(
    request: &mut published::BuildRequest,
) -> Option<&mut content::WorkspaceInitializer> {
    let source = request.source.as_mut()?;
    match &mut source.from {
        Some(published::build_source::From::File(file)) => file.source.as_mut(),
        _ => None,
    }
}

fn blank(auth: Option<&mut published::BuildRegistryAuth>) {
    if let Some(auth) = auth {
        auth.additional.values_mut().for_each(String::clear);
    }
}

/// Fills in the credentials that have come again.
fn fill(
    auth: &mut Option<published::BuildRegistryAuth>,
    given: Option<published::BuildRegistryAuth>,
) -> Result<(), Failure> {
    let Some(published::BuildRegistryAuth { mode, additional }) = given else {
        return Ok(());
    };
    let auth = auth.get_or_insert_default();
    let known: &mut HashMap<String, String> = &mut auth.additional;
    for (host, value) in additional {
        let Some(blank) = known.get_mut(&host) else {
            return Err(unknown("auth.additional", &host));
        };
        *blank = value;
    }
    if mode.is_some() {
        auth.mode = mode;
    }
    Ok(())
}

/// Takes out what is secret.
fn plain(workspace: &mut content::WorkspaceInitializer) {
    each(workspace, &mut |part| match part {
        Part::Git(git) => {
            if let Some(config) = &mut git.config {
                config.auth_user.clear();
                config.auth_password.clear();
                config.auth_ots.clear();
                config.custom_config.values_mut().for_each(String::clear);
            }
            cut(&mut git.remote_uri);
            cut(&mut git.upstream_remote_uri);
        }
        Part::Address(url) => cut(url),
    });
}

/// Cuts an address where it begins to say more than where: signatures, tokens, names and passwords.
fn cut(url: &mut String) {
    let host_at = url.find("://").map_or(0, |at| at + 3);
    let (scheme, rest) = url.split_at(host_at);
    let host_end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let has_user = rest.get(..host_end).is_some_and(|host| host.contains('@'));
    let has_more = rest.contains(['?', '#']);
    if has_user && !scheme.is_empty() {
        *url = format!("{scheme}{CUT}");
    } else if has_more {
        let end = rest.find(['?', '#']).unwrap_or(rest.len());
        *url = format!("{scheme}{}{CUT}", rest.get(..end).unwrap_or_default());
    }
}

/// Tells whether something was taken out.
fn lacks(workspace: &mut content::WorkspaceInitializer) -> bool {
    let mut is_lacking = false;
    each(workspace, &mut |part| {
        is_lacking |= match part {
            Part::Git(git) => {
                let lacks_login = git.config.as_ref().is_some_and(|config| {
                    let has_way = config.authentication != content::GitAuthMethod::NoAuth as i32;
                    let has_login = !config.auth_password.is_empty() || !config.auth_ots.is_empty();
                    let has_blank = config.custom_config.values().any(String::is_empty);
                    (has_way && !has_login) || has_blank
                });
                lacks_login
                    || git.remote_uri.ends_with(CUT)
                    || git.upstream_remote_uri.ends_with(CUT)
            }
            Part::Address(url) => url.ends_with(CUT),
        };
    });
    is_lacking
}

/// What may hold a secret.
enum Part<'a> {
    Git(&'a mut content::GitInitializer),
    Address(&'a mut String),
}

fn each(workspace: &mut content::WorkspaceInitializer, see: &mut impl FnMut(Part<'_>)) {
    let mut open = vec![workspace];
    while let Some(workspace) = open.pop() {
        match &mut workspace.spec {
            Some(Spec::Git(git)) => see(Part::Git(git)),
            Some(Spec::Prebuild(prebuild)) => {
                prebuild.git.iter_mut().for_each(|git| see(Part::Git(git)));
            }
            Some(Spec::Composite(composite)) => open.extend(&mut composite.initializer),
            Some(Spec::Download(download)) => {
                let files = download.files.iter_mut();
                files.for_each(|file| see(Part::Address(&mut file.url)));
            }
            Some(Spec::Empty(_) | Spec::Snapshot(_) | Spec::Backup(_)) | None => {}
        }
    }
}

/// Keeps what was asked, without anything secret. A request that cannot be kept cannot be made once more, and the build goes on.
pub(super) async fn keep(requests: &Requests, id: &BuildId, asked: Asked) {
    let (requests, known) = (requests.clone(), id.clone());
    let kept = tokio::task::spawn_blocking(move || requests.keep(&known, &asked.plain().encode()));
    match kept.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, build = %id, "a request is not kept"),
        Err(error) => tracing::warn!(%error, build = %id, "a request is not kept"),
    }
}

/// Returns what was asked; `None` when it is not kept.
pub(super) async fn asked(requests: &Requests, id: &BuildId) -> Result<Option<Asked>, Failure> {
    const TEXT: &str = "the request of the build cannot be read";
    let (requests, id) = (requests.clone(), id.clone());
    let read = tokio::task::spawn_blocking(move || requests.read(&id)).await;
    let read = read
        .map_err(|error| Failure::platform(TEXT, error))?
        .map_err(|error| Failure::platform(TEXT, error))?;
    Ok(read.and_then(|bytes| Asked::decode(&bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "hunter2";

    fn git(remote: &str) -> content::GitInitializer {
        content::GitInitializer {
            remote_uri: remote.to_owned(),
            config: Some(content::GitConfig {
                authentication: content::GitAuthMethod::BasicAuth.into(),
                auth_user: SECRET.to_owned(),
                auth_password: SECRET.to_owned(),
                custom_config: HashMap::from([("http.extraHeader".to_owned(), SECRET.to_owned())]),
                ..content::GitConfig::default()
            }),
            ..content::GitInitializer::default()
        }
    }

    fn workspace(spec: Spec) -> content::WorkspaceInitializer {
        content::WorkspaceInitializer { spec: Some(spec) }
    }

    fn hostile() -> wire::StartBuildRequest {
        let download = content::FileDownloadInitializer {
            files: vec![content::file_download_initializer::FileInfo {
                url: format!("https://a.example/file?signature={SECRET}"),
                ..Default::default()
            }],
            ..content::FileDownloadInitializer::default()
        };
        let prebuild = content::PrebuildInitializer {
            git: vec![git("https://a.example/b.git")],
            ..content::PrebuildInitializer::default()
        };
        let inner = content::CompositeInitializer {
            initializer: vec![
                workspace(Spec::Download(download)),
                workspace(Spec::Prebuild(prebuild)),
                workspace(Spec::Git(git(&format!(
                    "https://me:{SECRET}@a.example/b.git"
                )))),
            ],
        };
        let outer = content::CompositeInitializer {
            initializer: vec![workspace(Spec::Composite(inner))],
        };
        let files = |spec| wire::BuildFiles {
            from: Some(wire::build_files::From::Workspace(workspace(spec))),
        };
        let named = wire::NamedContext {
            what: Some(wire::named_context::What::Files(wire::NamedFiles {
                files: Some(files(Spec::Git(git("https://a.example/named.git")))),
                folder: String::new(),
            })),
        };
        wire::StartBuildRequest {
            files: Some(files(Spec::Composite(outer))),
            secrets: HashMap::from([("npm".to_owned(), SECRET.as_bytes().to_vec())]),
            auth: Some(published::BuildRegistryAuth {
                additional: HashMap::from([("r.example".to_owned(), SECRET.to_owned())]),
                ..published::BuildRegistryAuth::default()
            }),
            contexts: HashMap::from([("named".to_owned(), named)]),
            target: "run".to_owned(),
            ..wire::StartBuildRequest::default()
        }
    }

    #[test]
    fn nothing_secret_is_kept_wherever_it_was() {
        let plain = Asked::Native(Box::new(hostile())).plain();
        let bytes = plain.encode();
        assert!(
            !bytes
                .windows(SECRET.len())
                .any(|part| part == SECRET.as_bytes())
        );
        let mut again = Asked::decode(&bytes).unwrap();
        let gone = again.gone();
        assert_eq!(gone.secrets, ["npm"]);
        assert_eq!(gone.credentials, ["r.example"]);
        assert!(gone.files);
        let Asked::Native(request) = again else {
            panic!("{again:?}");
        };
        assert_eq!(request.target, "run");
    }

    #[test]
    fn an_address_that_says_where_stays_whole() {
        for (url, kept) in [
            ("https://a.example/b.git", "https://a.example/b.git"),
            ("https://a.example/b?x=1", "https://a.example/b?"),
            ("https://a.example?x=1", "https://a.example?"),
            ("https://a.example/b#x", "https://a.example/b?"),
            ("https://me@a.example/b", "https://?"),
            ("https://a.example/@scope/b", "https://a.example/@scope/b"),
            ("", ""),
        ] {
            let mut text = url.to_owned();
            cut(&mut text);
            assert_eq!(text, kept, "{url}");
        }
    }

    #[test]
    fn what_is_gone_is_named_until_it_has_come_again() {
        let mut request = hostile();
        request.files = Some(wire::BuildFiles::default());
        request.contexts.clear();
        let plain = || Asked::Native(Box::new(request.clone())).plain();
        let refused = plain()
            .completed(wire::RetryBuildRequest::default())
            .unwrap_err();
        assert_eq!(refused.blame(), Blame::State);
        let said = refused.to_string();
        assert!(
            said.contains("secrets npm") && said.contains("r.example"),
            "{said}"
        );
        let given = wire::RetryBuildRequest {
            secrets: HashMap::from([("npm".to_owned(), b"new".to_vec())]),
            auth: Some(published::BuildRegistryAuth {
                additional: HashMap::from([("r.example".to_owned(), "new".to_owned())]),
                ..published::BuildRegistryAuth::default()
            }),
            ..wire::RetryBuildRequest::default()
        };
        assert!(plain().completed(given.clone()).is_ok());
        for other in [
            wire::RetryBuildRequest {
                secrets: HashMap::from([("other".to_owned(), b"x".to_vec())]),
                ..given.clone()
            },
            wire::RetryBuildRequest {
                auth: Some(published::BuildRegistryAuth {
                    additional: HashMap::from([("other".to_owned(), "x".to_owned())]),
                    ..published::BuildRegistryAuth::default()
                }),
                ..given
            },
        ] {
            let refused = plain().completed(other).unwrap_err();
            assert_eq!(refused.blame(), Blame::Request);
        }
    }
}
