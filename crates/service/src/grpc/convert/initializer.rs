//! What a workspace is filled with: from the wire's words to ours.

use api::contentservice as content;
use content::workspace_initializer::Spec;
use source::git::{Depth, FetchOptions, GitAuth, GitSource, RemoteUrl, TargetMode};
use source::initializer::{DEPTH_MAX, Download, DownloadUrl, Initializer, SnapshotKey};
use source::path::RelPath;

use crate::failure::{Blame, Failure};

/// Returns what `spec` asks for, all of it checked.
pub(super) fn of(spec: Spec, fetch: &FetchOptions) -> Result<Initializer, Failure> {
    let initializer = convert(spec, 0)?;
    let checked = initializer.check(fetch);
    let name = format!("{} initializer", initializer.name());
    checked.map_err(|error| match (&initializer, error) {
        // It says already what it is.
        (Initializer::Git(_), source::initializer::InitializerError::Git(error)) => {
            Failure::field(&name, &error)
        }
        (_, error) => Failure::field(&name, &error),
    })?;
    Ok(initializer)
}

fn convert(spec: Spec, depth: usize) -> Result<Initializer, Failure> {
    if depth > DEPTH_MAX {
        let text = format!("composite initializer: nested deeper than {DEPTH_MAX}");
        return Err(Failure::new(Blame::Request, text));
    }
    Ok(match spec {
        Spec::Empty(_) => Initializer::Empty,
        Spec::Git(git) => Initializer::Git(Box::new(git_source(git)?)),
        Spec::Composite(composite) => Initializer::Composite {
            parts: composite
                .initializer
                .into_iter()
                .map(|part| {
                    let missing = || {
                        Failure::new(Blame::Request, "composite initializer: a part says nothing")
                    };
                    convert(part.spec.ok_or_else(missing)?, depth + 1)
                })
                .collect::<Result<_, _>>()?,
        },
        Spec::Download(download) => Initializer::Download {
            target: location("target_location", &download.target_location)?,
            files: download.files.iter().map(file).collect::<Result<_, _>>()?,
        },
        Spec::Snapshot(snapshot) => Initializer::Snapshot {
            key: key(&snapshot)?,
        },
        Spec::Prebuild(prebuild) => {
            let missing =
                || Failure::new(Blame::Request, "prebuild initializer: prebuild is missing");
            Initializer::Prebuild {
                snapshot: key(&prebuild.prebuild.ok_or_else(missing)?)?,
                git: prebuild
                    .git
                    .into_iter()
                    .map(git_source)
                    .collect::<Result<_, _>>()?,
            }
        }
        Spec::Backup(backup) => {
            no_volume(backup.from_volume_snapshot.into())?;
            Initializer::Backup {
                location: location("checkout_location", &backup.checkout_location)?,
            }
        }
    })
}

fn location(name: &str, text: &str) -> Result<RelPath, Failure> {
    RelPath::parse_in_workspace(text).map_err(|error| Failure::field(name, &error))
}

fn file(file: &content::file_download_initializer::FileInfo) -> Result<Download, Failure> {
    let url = DownloadUrl::parse(&file.url).map_err(|error| Failure::field("url", &error))?;
    if file.digest.is_empty() {
        let text = format!(
            "digest: missing for {url:?}; a file is downloaded only if it is known what it has to be"
        );
        return Err(Failure::new(Blame::Request, text));
    }
    let digest = file.digest.parse();
    Ok(Download {
        path: location("file_path", &file.file_path)?,
        digest: digest
            .map_err(|error: oci::digest::DigestError| Failure::field("digest", &error))?,
        url,
    })
}

fn key(snapshot: &content::SnapshotInitializer) -> Result<SnapshotKey, Failure> {
    no_volume(snapshot.from_volume_snapshot.into())?;
    let key = snapshot.snapshot.parse();
    key.map_err(|error: source::initializer::SnapshotKeyError| Failure::field("snapshot", &error))
}

/// Whether the content is to come from a volume.
enum Volume {
    No,
    Yes,
}

impl From<bool> for Volume {
    fn from(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "a word, made on the spot")]
fn no_volume(volume: Volume) -> Result<(), Failure> {
    match volume {
        Volume::No => Ok(()),
        Volume::Yes => {
            let text = "from_volume_snapshot: volumes are not supported; archives of the store of snapshots are";
            Err(Failure::new(Blame::Request, text))
        }
    }
}

fn git_source(git: content::GitInitializer) -> Result<GitSource, Failure> {
    let target_mode = match git.target_mode() {
        _ if content::CloneTargetMode::try_from(git.target_mode).is_err() => {
            let text = format!("target_mode: {} is not known", git.target_mode);
            return Err(Failure::new(Blame::Request, text));
        }
        content::CloneTargetMode::RemoteHead => TargetMode::RemoteHead,
        content::CloneTargetMode::RemoteCommit => TargetMode::RemoteCommit,
        content::CloneTargetMode::RemoteBranch => TargetMode::RemoteBranch,
        content::CloneTargetMode::LocalBranch => TargetMode::LocalBranch,
    };
    let url =
        |name, text: &str| RemoteUrl::parse(text).map_err(|error| Failure::field(name, &error));
    let upstream = match git.upstream_remote_uri.as_str() {
        "" => None,
        text => Some(url("upstream_Remote_uri", text)?),
    };
    let config = git.config.unwrap_or_default();
    Ok(GitSource {
        remote: url("remote_uri", &git.remote_uri)?,
        upstream,
        target_mode,
        target: git.clone_taget,
        depth: if git.full_clone {
            Depth::Full
        } else {
            Depth::Shallow
        },
        checkout_location: RelPath::parse_in_workspace(&git.checkout_location)
            .map_err(|error| Failure::field("checkout_location", &error))?,
        auth: git_auth(&config)?,
        custom_config: config.custom_config.into_iter().collect(),
    })
}

pub(super) fn git_auth(config: &content::GitConfig) -> Result<GitAuth, Failure> {
    match content::GitAuthMethod::try_from(config.authentication) {
        Ok(content::GitAuthMethod::NoAuth) => Ok(GitAuth::None),
        Ok(content::GitAuthMethod::BasicAuth) => Ok(GitAuth::Basic {
            user: config.auth_user.clone(),
            password: config.auth_password.clone(),
        }),
        Ok(content::GitAuthMethod::BasicAuthOts) => Ok(GitAuth::OneTimeSecret {
            url: config.auth_ots.clone(),
        }),
        Err(_) => {
            let text = format!("authentication: {} is not known", config.authentication);
            Err(Failure::new(Blame::Request, text))
        }
    }
}
