//! `--build-context NAME=WHAT`: what stands for a stage or an image of that name.

use std::path::PathBuf;
use std::str::FromStr;

use engine::spec::LayoutImage;
use oci::Reference;

/// The image that is none.
const SCRATCH: &str = "scratch";

/// A `--build-context`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NamedArg {
    /// As it is looked up.
    pub(crate) name: String,
    /// What stands for it.
    pub(crate) what: NamedWhat,
}

/// What stands for a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NamedWhat {
    /// `docker-image://scratch`.
    Scratch,
    /// `docker-image://REF`.
    Image(Reference),
    /// `oci-layout://PATH[:TAG|@DIGEST]`.
    Layout(PathBuf, LayoutImage),
    /// The address of a git repository.
    Repository(String),
    /// A folder.
    Folder(PathBuf),
}

/// Tells why a `--build-context` is not one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NamedArgError {
    #[error("it is not of the form NAME=WHAT")]
    NotAPair,
    #[error(transparent)]
    Name(dockerfile::ContextNameError),
    #[error("{0:?} is not the name of an image")]
    Image(String, #[source] oci::reference::ReferenceError),
    #[error("{0:?} is not a digest")]
    Digest(String, #[source] oci::digest::DigestError),
    #[error(
        "{0:?} is not supported: it is a folder, docker-image://, oci-layout://, or a git repository over https"
    )]
    Kind(String),
}

impl FromStr for NamedArg {
    type Err = NamedArgError;

    fn from_str(text: &str) -> Result<Self, NamedArgError> {
        let (name, what) = text.split_once('=').ok_or(NamedArgError::NotAPair)?;
        if what.is_empty() {
            return Err(NamedArgError::NotAPair);
        }
        Ok(Self {
            name: dockerfile::context_name(name).map_err(NamedArgError::Name)?,
            what: what.parse()?,
        })
    }
}

impl FromStr for NamedWhat {
    type Err = NamedArgError;

    fn from_str(text: &str) -> Result<Self, NamedArgError> {
        let scheme = text.split_once("://").map(|(scheme, rest)| {
            let scheme = scheme.to_ascii_lowercase();
            (scheme, rest)
        });
        match scheme {
            Some((scheme, SCRATCH)) if scheme == "docker-image" => Ok(Self::Scratch),
            Some((scheme, name)) if scheme == "docker-image" => {
                let invalid = |error| NamedArgError::Image(name.to_owned(), error);
                name.parse().map(Self::Image).map_err(invalid)
            }
            Some((scheme, path)) if scheme == "oci-layout" => layout(path),
            Some((scheme, _)) if scheme == "https" || scheme == "http" => {
                Ok(Self::Repository(text.to_owned()))
            }
            Some((scheme, _)) => Err(NamedArgError::Kind(format!("{scheme}://"))),
            None if text.starts_with("git@") || text.starts_with("target:") => {
                Err(NamedArgError::Kind(text.to_owned()))
            }
            None => Ok(Self::Folder(text.into())),
        }
    }
}

/// Reads `PATH`, `PATH:TAG` or `PATH@DIGEST`.
fn layout(text: &str) -> Result<NamedWhat, NamedArgError> {
    if let Some((path, digest)) = text.rsplit_once('@')
        && digest.contains(':')
    {
        let invalid = |error| NamedArgError::Digest(digest.to_owned(), error);
        let digest = digest.parse().map_err(invalid)?;
        // A tag beside a digest says nothing more.
        let path = without_tag(path).0;
        return Ok(NamedWhat::Layout(path.into(), LayoutImage::Digest(digest)));
    }
    Ok(match without_tag(text) {
        (path, Some(tag)) => NamedWhat::Layout(path.into(), LayoutImage::Tag(tag.to_owned())),
        (path, None) => NamedWhat::Layout(path.into(), LayoutImage::Default),
    })
}

fn without_tag(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(':') {
        Some((path, tag)) if oci::reference::is_tag(tag) => (path, Some(tag)),
        _ => (text, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_docker_buildx_is_understood() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let by_digest = format!("oci-layout:///a/b:v1@{digest}");
        let tag = |tag: &str| LayoutImage::Tag(tag.to_owned());
        for (text, what) in [
            ("docker-image://scratch", NamedWhat::Scratch),
            (
                "docker-image://alpine:3",
                NamedWhat::Image("alpine:3".parse().unwrap()),
            ),
            (
                "oci-layout:///a/b",
                NamedWhat::Layout("/a/b".into(), LayoutImage::Default),
            ),
            (
                "oci-layout://a:b/c:v1",
                NamedWhat::Layout("a:b/c".into(), tag("v1")),
            ),
            (
                "oci-layout://a:b/c",
                NamedWhat::Layout("a:b/c".into(), LayoutImage::Default),
            ),
            (
                &by_digest,
                NamedWhat::Layout("/a/b".into(), LayoutImage::Digest(digest.parse().unwrap())),
            ),
            (
                "https://a.b/c.git#v1:d",
                NamedWhat::Repository("https://a.b/c.git#v1:d".to_owned()),
            ),
            ("../x", NamedWhat::Folder("../x".into())),
        ] {
            let arg: NamedArg = format!("docker.io/library/n:latest={text}")
                .parse()
                .unwrap();
            assert_eq!((arg.name.as_str(), arg.what), ("n", what), "{text}");
        }
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        for text in [
            "n",
            "n=",
            "=x",
            "scratch=x",
            "UPPER=x",
            "n=docker-image://UPPER",
            "n=oci-layout://a@sha256:1",
            "n=ssh://a.b/c.git",
            "n=git@a.b:c.git",
            "n=target:other",
        ] {
            assert!(text.parse::<NamedArg>().is_err(), "{text}");
        }
    }
}
