//! What CONTEXT and `-f` mean: a git repository, a folder, or a Dockerfile on standard input.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use oci::layer::Packing;
use source::git::{Depth, GitAuth, GitSource, ParseRemoteUrlError, RemoteUrl, TargetMode};
use source::path::RelPath;
use url::Url;

use crate::failure::{Exit, Failure, OrExit, Outcome};

/// What is read of standard input to see what it is: the first header of a tar.
const TAR_HEADER_BYTES: u64 = 512;
/// Where in it a tar says that it is one, and how.
const TAR_MAGIC_AT: usize = 257;
const TAR_MAGIC: &[u8] = b"ustar";
/// Largest Dockerfile that is read outside a context.
const DOCKERFILE_MAX_BYTES: u64 = 1 << 20;

/// What to build from.
#[derive(Debug)]
pub(crate) enum Input {
    /// A repository.
    Git(Box<GitInput>),
    /// A folder on this machine.
    Folder(FolderInput),
    /// An archive on standard input.
    Archive(ArchiveInput),
}

/// An archive on standard input.
#[derive(Debug)]
pub(crate) struct ArchiveInput {
    /// What was read of it to see that it is one.
    pub(crate) start: Vec<u8>,
    /// Dockerfile within it.
    pub(crate) dockerfile: Option<String>,
}

/// A repository.
#[derive(Debug)]
pub(crate) struct GitInput {
    /// Which one, which commit.
    pub(crate) source: GitSource,
    /// Folder within it that is the context.
    pub(crate) context_path: String,
    /// Dockerfile within it.
    pub(crate) dockerfile_path: String,
}

/// A folder on this machine.
#[derive(Debug)]
pub(crate) struct FolderInput {
    /// The folder, all links resolved; nothing when the context is empty.
    pub(crate) path: Option<PathBuf>,
    /// Where the Dockerfile is.
    pub(crate) dockerfile: Dockerfile,
    /// The folder as the user named it.
    pub(crate) name: String,
}

/// Where a Dockerfile is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Dockerfile {
    /// In the context, at this path within it.
    Inside(PathBuf),
    /// Elsewhere; this is its text, and where it was if it was a file.
    Outside { text: String, path: Option<PathBuf> },
}

/// Tells why an address is not a repository.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RepositoryError {
    #[error("the repository's address is invalid")]
    Url(#[source] url::ParseError),
    #[error("the repository's address is invalid")]
    Remote(#[source] ParseRemoteUrlError),
    #[error("the folder {0:?} is not one within a repository")]
    Subfolder(String),
    #[error("the Dockerfile {0:?} is not a path within the repository")]
    Dockerfile(String),
}

/// Returns what CONTEXT and `-f` mean.
pub(crate) fn read(context: &str, file: Option<&str>) -> Outcome<Input> {
    if context.starts_with("https://") || context.starts_with("http://") {
        return remote(context, file).map(|input| Input::Git(Box::new(input)));
    }
    if is_unsupported_remote(context) {
        let text = format!("{context:?}: only repositories over http and https are supported");
        return Err(Failure::text(Exit::Usage, text));
    }
    if context == "-" {
        return from_stdin(io::stdin().lock(), file);
    }
    folder(context, file).map(Input::Folder)
}

/// A tar, packed or not, is a context; anything else a Dockerfile without one.
fn from_stdin(mut stdin: impl Read, file: Option<&str>) -> Outcome<Input> {
    let mut start = Vec::new();
    let mut head = stdin.by_ref().take(TAR_HEADER_BYTES);
    head.read_to_end(&mut start).or_exit(Exit::Usage)?;
    let is_tar = start
        .get(TAR_MAGIC_AT..)
        .is_some_and(|rest| rest.starts_with(TAR_MAGIC));
    if is_tar || Packing::of_magic(&start) != Packing::None {
        if file == Some("-") {
            let text = "standard input is the context already: -f names a Dockerfile within it";
            return Err(Failure::text(Exit::Usage, text));
        }
        return Ok(Input::Archive(ArchiveInput {
            start,
            dockerfile: file.map(str::to_owned),
        }));
    }
    if file.is_some() {
        let text = "CONTEXT `-` is a Dockerfile on standard input and takes no -f";
        return Err(Failure::text(Exit::Usage, text)
            .hint("a tar of a context on standard input would take one"));
    }
    let text = limited(start.chain(stdin))?;
    if text.trim().is_empty() {
        let text = "the Dockerfile on standard input is empty";
        return Err(Failure::text(Exit::Usage, text));
    }
    Ok(Input::Folder(FolderInput {
        path: None,
        dockerfile: Dockerfile::Outside { text, path: None },
        name: "-".to_owned(),
    }))
}

fn is_unsupported_remote(context: &str) -> bool {
    let has_scheme = ["ssh://", "git://", "oci-layout://", "docker-image://"]
        .iter()
        .any(|scheme| context.starts_with(scheme));
    has_scheme || (context.starts_with("git@") && context.contains(':'))
}

/// Returns the repository at an address.
pub(crate) fn repository_at(address: &str) -> Outcome<GitInput> {
    remote(address, None)
}

fn remote(context: &str, file: Option<&str>) -> Outcome<GitInput> {
    let is_repository = context.contains('#')
        || context
            .split(['#', '?'])
            .next()
            .is_some_and(|address| address.strip_suffix(".git").is_some());
    if !is_repository {
        let text = format!("{context:?} is not the address of a git repository");
        return Err(Failure::text(Exit::Usage, text)
            .hint("an address that does not end with .git needs a fragment: https://host/repository#branch"));
    }
    if file == Some("-") {
        let text = "a Dockerfile on standard input cannot be combined with a repository yet";
        return Err(Failure::text(Exit::Usage, text));
    }
    repository(context, file).or_exit(Exit::Usage)
}

/// Parses `https://[user[:password]@]host/path#ref:folder`.
fn repository(context: &str, file: Option<&str>) -> Result<GitInput, RepositoryError> {
    let (address, fragment) = context.split_once('#').unwrap_or((context, ""));
    let (target, subfolder) = fragment.split_once(':').unwrap_or((fragment, ""));
    let mut url = Url::parse(address).map_err(RepositoryError::Url)?;
    let auth = take_credentials(&mut url);
    let remote = RemoteUrl::parse(url.as_str()).map_err(RepositoryError::Remote)?;
    let within = |path: &str| RelPath::parse(path).ok();
    let context_path =
        within(subfolder).ok_or_else(|| RepositoryError::Subfolder(subfolder.to_owned()))?;
    let file = file.unwrap_or("Dockerfile");
    let dockerfile_path =
        within(file).ok_or_else(|| RepositoryError::Dockerfile(file.to_owned()))?;
    let dockerfile_path = context_path.join(&dockerfile_path);
    Ok(GitInput {
        source: GitSource {
            remote,
            upstream: None,
            target_mode: match target {
                "" => TargetMode::RemoteHead,
                _ => TargetMode::RemoteCommit,
            },
            target: target.to_owned(),
            depth: Depth::default(),
            checkout_location: RelPath::default(),
            custom_config: std::collections::BTreeMap::new(),
            auth,
        },
        context_path: context_path.as_str().to_owned(),
        dockerfile_path: dockerfile_path.as_str().to_owned(),
    })
}

/// Moves user and password out of an address: into git they go another way, and into logs not at all.
fn take_credentials(url: &mut Url) -> GitAuth {
    let decoded = |text: &str| {
        let pairs = format!("x={}", text.replace('+', "%2B"));
        url::form_urlencoded::parse(pairs.as_bytes())
            .next()
            .map(|(_, value)| value.into_owned())
            .unwrap_or_default()
    };
    let user = decoded(url.username());
    let password = url.password().map(decoded);
    if user.is_empty() && password.is_none() {
        return GitAuth::None;
    }
    // Neither can fail: only addresses without a host have no place for them, and this one had.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    GitAuth::Basic {
        user,
        password: password.unwrap_or_default(),
    }
}

fn folder(context: &str, file: Option<&str>) -> Outcome<FolderInput> {
    let path = fs::canonicalize(context)
        .map_err(|e| anyhow::Error::new(e).context(format!("open the context {context:?}")))
        .or_exit(Exit::Usage)?;
    if !path.is_dir() {
        let text = format!("the context {context:?} is not a folder");
        return Err(Failure::text(Exit::Usage, text));
    }
    let dockerfile = match file {
        Some("-") => stdin()?,
        Some(file) => dockerfile(&path, Path::new(file))?,
        None if path.join("Dockerfile").exists() => dockerfile(&path, &path.join("Dockerfile"))?,
        None if path.join("dockerfile").exists() => dockerfile(&path, &path.join("dockerfile"))?,
        None => {
            let text = format!("there is no Dockerfile in {context:?}");
            return Err(Failure::text(Exit::Usage, text).hint("name it with -f PATH"));
        }
    };
    Ok(FolderInput {
        path: Some(path),
        dockerfile,
        name: context.to_owned(),
    })
}

fn dockerfile(context: &Path, file: &Path) -> Outcome<Dockerfile> {
    if file.to_str().is_some_and(|file| file.contains("://")) {
        let text = "-f names a file on this machine: Dockerfiles are not downloaded";
        return Err(Failure::text(Exit::Usage, text));
    }
    let failed = |e: io::Error| {
        let context = format!("open the Dockerfile {:?}", file.display().to_string());
        Failure::new(Exit::Usage, anyhow::Error::new(e).context(context))
    };
    let path = fs::canonicalize(file).map_err(failed)?;
    if let Ok(inside) = path.strip_prefix(context) {
        return Ok(Dockerfile::Inside(inside.to_owned()));
    }
    let text = limited(fs::File::open(&path).map_err(failed)?)?;
    let path = Some(path);
    Ok(Dockerfile::Outside { text, path })
}

fn stdin() -> Outcome<Dockerfile> {
    let text = limited(io::stdin().lock())?;
    let looks_like_tar = text.as_bytes().get(257..262) == Some(b"ustar");
    if looks_like_tar {
        let text = "a context as a tar on standard input is not supported yet, only a Dockerfile";
        return Err(Failure::text(Exit::Usage, text));
    }
    Ok(Dockerfile::Outside { text, path: None })
}

fn limited(reader: impl Read) -> Outcome<String> {
    let mut bytes = Vec::new();
    let mut reader = reader.take(DOCKERFILE_MAX_BYTES + 1);
    reader.read_to_end(&mut bytes).or_exit(Exit::Usage)?;
    if bytes.len() as u64 > DOCKERFILE_MAX_BYTES {
        let text = format!("the Dockerfile is larger than {DOCKERFILE_MAX_BYTES} bytes");
        return Err(Failure::text(Exit::Usage, text));
    }
    let failed = |_| Failure::text(Exit::Usage, "the Dockerfile is not UTF-8 text");
    String::from_utf8(bytes).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_fragment_names_commit_and_folder() {
        for (address, target, folder, dockerfile) in [
            ("https://a.b/c.git", "", "", "Dockerfile"),
            ("https://a.b/c.git#v1.0", "v1.0", "", "Dockerfile"),
            (
                "https://a.b/c#main:sub/dir",
                "main",
                "sub/dir",
                "sub/dir/Dockerfile",
            ),
            ("https://a.b/c.git#:sub", "", "sub", "sub/Dockerfile"),
        ] {
            let input = repository(address, None).unwrap();
            assert_eq!(input.source.target, target, "{address}");
            assert_eq!(input.context_path, folder, "{address}");
            assert_eq!(input.dockerfile_path, dockerfile, "{address}");
        }
        let input = repository("https://a.b/c.git#:sub", Some("docker/Dockerfile"));
        assert_eq!(input.unwrap().dockerfile_path, "sub/docker/Dockerfile");
    }

    #[test]
    fn a_password_leaves_the_address() {
        let input = repository("https://me:p%40ss+word@a.b/c.git", None).unwrap();
        assert_eq!(input.source.remote.as_str(), "https://a.b/c.git");
        let expected = GitAuth::Basic {
            user: "me".to_owned(),
            password: "p@ss+word".to_owned(),
        };
        assert!(input.source.auth == expected);
    }

    #[test]
    fn what_leads_out_of_a_repository_is_refused() {
        assert!(repository("https://a.b/c.git#x:../y", None).is_err());
        assert!(repository("https://a.b/c.git", Some("../Dockerfile")).is_err());
        for context in ["ssh://a.b/c.git", "git@a.b:c.git", "https://a.b/c.tar.gz"] {
            assert_eq!(read(context, None).unwrap_err().exit(), Exit::Usage);
        }
    }

    #[test]
    fn standard_input_is_a_dockerfile_or_the_tar_of_a_context() {
        let mut tar = vec![0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        for (bytes, file, expected) in [
            (b"FROM a\n".as_slice(), None, "folder"),
            (b"FROM a\n", Some("x"), "error"),
            (b"", None, "error"),
            (b"\xff\xfe", None, "error"),
            (&tar, None, "archive"),
            (&tar, Some("sub/Dockerfile"), "archive"),
            (&tar, Some("-"), "error"),
            (b"\x1f\x8b\x08rest", None, "archive"),
            (b"\x28\xb5\x2f\xfdrest", None, "archive"),
            (b"BZh9rest", None, "archive"),
            (b"\xfd7zXZ\x00rest", None, "archive"),
        ] {
            let kind = match from_stdin(bytes, file) {
                Ok(Input::Folder(_)) => "folder",
                Ok(Input::Archive(input)) => {
                    assert_eq!(input.dockerfile.as_deref(), file);
                    "archive"
                }
                Ok(Input::Git(_)) => "git",
                Err(_) => "error",
            };
            assert_eq!(kind, expected, "{bytes:?} {file:?}");
        }
    }

    #[test]
    fn a_dockerfile_is_found_where_it_really_is() {
        let context = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let root = context.path().canonicalize().unwrap();
        fs::write(root.join("other"), "FROM a").unwrap();
        fs::write(elsewhere.path().join("outside"), "FROM b").unwrap();
        symlink("other", root.join("Dockerfile")).unwrap();
        let named = root.to_str().unwrap();
        let found = |file: Option<&str>| folder(named, file).unwrap().dockerfile;
        assert_eq!(found(None), Dockerfile::Inside("other".into()));
        let outside = elsewhere.path().join("outside");
        let Dockerfile::Outside { text, .. } = found(outside.to_str()) else {
            panic!("was found inside");
        };
        assert_eq!(text, "FROM b");
        assert_eq!(
            folder(named, Some("missing")).unwrap_err().exit(),
            Exit::Usage
        );
    }
}
