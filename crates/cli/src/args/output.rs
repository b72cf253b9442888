//! `--output`: the comma-separated `key=value` list that docker buildx uses.

use std::path::PathBuf;
use std::str::FromStr;

use engine::spec::{Compression, ExportFormat, MediaTypes};
use oci::Reference;

/// One `--output`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OutputOption {
    /// What is made.
    pub(crate) kind: OutputKind,
    /// How new layers are compressed, if it is said.
    pub(crate) compression: Option<Compression>,
    /// Which media types are written, if it is said.
    pub(crate) media_types: Option<MediaTypes>,
}

/// What is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum OutputKind {
    /// An image in the local store, or in a registry.
    Image {
        /// Names beside those of `--tag`.
        names: Vec<Reference>,
        /// Where it goes.
        place: ImagePlace,
    },
    /// A file or folder.
    File {
        /// In which form.
        format: ExportFormat,
        /// Where to.
        dest: Dest,
    },
}

/// Where an image goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ImagePlace {
    /// Into the local store.
    Store,
    /// To the registries that its names are on.
    Registry,
}

/// Where an export goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Dest {
    /// Standard output.
    Stdout,
    /// A file, or for [`ExportFormat::Local`] a folder.
    Path(PathBuf),
}

/// Tells why an `--output` is not one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutputOptionError {
    #[error("quotes do not match")]
    Quotes,
    #[error("{0:?} is not of the form key=value")]
    NotAPair(String),
    #[error("the key {0:?} is given twice")]
    Twice(String),
    #[error("the type is missing: type=oci|docker|tar|local|image")]
    NoType,
    #[error("the type {0:?} is not one of oci, docker, tar, local, image, registry")]
    Type(String),
    #[error("type={0} needs dest=PATH")]
    NoDest(String),
    #[error("type=docker needs dest=PATH: loading into a docker daemon is not supported")]
    DockerDaemon,
    #[error("type=local writes a folder, not standard output")]
    LocalToStdout,
    #[error("the key {key:?} is not supported for type={kind}")]
    Key { key: String, kind: String },
    #[error("the level of compression cannot be chosen: layers are the same whoever makes them")]
    Level,
    #[error("{key}={value} is not supported")]
    Value { key: String, value: String },
    #[error("the image name {0:?} is invalid")]
    Name(String, #[source] oci::reference::ReferenceError),
}

impl FromStr for OutputOption {
    type Err = OutputOptionError;

    fn from_str(text: &str) -> Result<Self, OutputOptionError> {
        if !text.contains('=') {
            return Ok(Self::shorthand(text));
        }
        let mut pairs = pairs(text)?;
        let kind = take(&mut pairs, "type").ok_or(OutputOptionError::NoType)?;
        let made = match kind.as_str() {
            "image" => OutputKind::image(&mut pairs, ImagePlace::Store)?,
            "registry" => OutputKind::image(&mut pairs, ImagePlace::Registry)?,
            "oci" => OutputKind::file(&mut pairs, ExportFormat::Oci, &kind)?,
            "docker" => OutputKind::file(&mut pairs, ExportFormat::Docker, &kind)?,
            "tar" => OutputKind::file(&mut pairs, ExportFormat::Tar, &kind)?,
            "local" => OutputKind::file(&mut pairs, ExportFormat::Local, &kind)?,
            _ => return Err(OutputOptionError::Type(kind)),
        };
        let has_layers = !matches!(
            made,
            OutputKind::File {
                format: ExportFormat::Tar | ExportFormat::Local,
                ..
            }
        );
        let (mut compression, mut media_types) = (None, None);
        if has_layers {
            // Layers are always dated with the build's date, where it has one.
            if flag(&mut pairs, "rewrite-timestamp")? == Some(false) {
                return Err(unsupported("rewrite-timestamp", "false"));
            }
            compression = take(&mut pairs, "compression")
                .map(|value| match value.as_str() {
                    "gzip" => Ok(Compression::Gzip),
                    "zstd" => Ok(Compression::Zstd),
                    _ => Err(unsupported("compression", &value)),
                })
                .transpose()?;
            media_types = flag(&mut pairs, "oci-mediatypes")?.map(|oci| {
                if oci {
                    MediaTypes::Oci
                } else {
                    MediaTypes::Docker
                }
            });
        }
        match pairs.into_iter().next() {
            Some((key, _)) if key == "compression-level" => Err(OutputOptionError::Level),
            Some((key, _)) => Err(OutputOptionError::Key { key, kind }),
            None => Ok(Self {
                kind: made,
                compression,
                media_types,
            }),
        }
    }
}

impl OutputOption {
    /// `-o DIR` is a folder, `-o -` a tar on standard output.
    fn shorthand(text: &str) -> Self {
        let (format, dest) = match text {
            "-" => (ExportFormat::Tar, Dest::Stdout),
            path => (ExportFormat::Local, Dest::Path(path.into())),
        };
        Self {
            kind: OutputKind::File { format, dest },
            compression: None,
            media_types: None,
        }
    }
}

impl OutputKind {
    fn image(
        pairs: &mut Vec<(String, String)>,
        usual: ImagePlace,
    ) -> Result<Self, OutputOptionError> {
        let names = take(pairs, "name").unwrap_or_default();
        let names = names.split(',').filter(|name| !name.is_empty());
        let names = names.map(|name| {
            name.parse()
                .map_err(|source| OutputOptionError::Name(name.to_owned(), source))
        });
        let names = names.collect::<Result<_, _>>()?;
        let place = match flag(pairs, "push")? {
            Some(true) => ImagePlace::Registry,
            Some(false) => ImagePlace::Store,
            None => usual,
        };
        Ok(Self::Image { names, place })
    }

    fn file(
        pairs: &mut Vec<(String, String)>,
        format: ExportFormat,
        kind: &str,
    ) -> Result<Self, OutputOptionError> {
        let dest = match take(pairs, "dest").as_deref() {
            None | Some("") if format == ExportFormat::Docker => {
                return Err(OutputOptionError::DockerDaemon);
            }
            None | Some("") => return Err(OutputOptionError::NoDest(kind.to_owned())),
            Some("-") if format == ExportFormat::Local => {
                return Err(OutputOptionError::LocalToStdout);
            }
            Some("-") => Dest::Stdout,
            Some(path) => Dest::Path(path.into()),
        };
        if flag(pairs, "tar")? == Some(false) {
            return Err(unsupported("tar", "false"));
        }
        Ok(Self::File { format, dest })
    }
}

fn unsupported(key: &str, value: &str) -> OutputOptionError {
    OutputOptionError::Value {
        key: key.to_owned(),
        value: value.to_owned(),
    }
}

fn take(pairs: &mut Vec<(String, String)>, key: &str) -> Option<String> {
    let at = pairs.iter().position(|(k, _)| k == key)?;
    Some(pairs.remove(at).1)
}

fn flag(pairs: &mut Vec<(String, String)>, key: &str) -> Result<Option<bool>, OutputOptionError> {
    match take(pairs, key).as_deref() {
        None => Ok(None),
        Some("true" | "1") => Ok(Some(true)),
        Some("false" | "0") => Ok(Some(false)),
        Some(other) => Err(unsupported(key, other)),
    }
}

/// Splits at commas outside double quotes: a field with commas is written `"name=a,b"`, a quote within it doubled.
fn fields(text: &str) -> Result<Vec<String>, OutputOptionError> {
    let mut fields = vec![String::new()];
    let mut is_quoted = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if is_quoted && chars.peek() == Some(&'"') => {
                chars.next();
                push(&mut fields, '"');
            }
            '"' => is_quoted = !is_quoted,
            ',' if !is_quoted => fields.push(String::new()),
            c => push(&mut fields, c),
        }
    }
    if is_quoted {
        return Err(OutputOptionError::Quotes);
    }
    Ok(fields)
}

fn push(fields: &mut [String], c: char) {
    if let Some(field) = fields.last_mut() {
        field.push(c);
    }
}

fn pairs(text: &str) -> Result<Vec<(String, String)>, OutputOptionError> {
    let mut pairs: Vec<(String, String)> = Vec::new();
    for field in fields(text)? {
        let Some((key, value)) = field.split_once('=') else {
            return Err(OutputOptionError::NotAPair(field));
        };
        let key = key.trim().to_ascii_lowercase();
        if pairs.iter().any(|(k, _)| *k == key) {
            return Err(OutputOptionError::Twice(key));
        }
        pairs.push((key, value.to_owned()));
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> OutputOption {
        text.parse().unwrap()
    }

    #[test]
    fn every_form_of_docker_buildx_is_understood() {
        let file = |format, dest: &str| OutputKind::File {
            format,
            dest: match dest {
                "-" => Dest::Stdout,
                path => Dest::Path(path.into()),
            },
        };
        for (text, kind) in [
            ("out", file(ExportFormat::Local, "out")),
            ("-", file(ExportFormat::Tar, "-")),
            ("type=oci,dest=a.tar", file(ExportFormat::Oci, "a.tar")),
            ("type=docker,dest=-", file(ExportFormat::Docker, "-")),
            ("type=tar,dest=-", file(ExportFormat::Tar, "-")),
            ("\"dest=a,b\",type=local", file(ExportFormat::Local, "a,b")),
        ] {
            assert_eq!(parsed(text).kind, kind, "{text}");
        }
        let image = parsed(
            "type=image,\"name=a.b/c:1,a.b/c:2\",push=true,compression=zstd,oci-mediatypes=false",
        );
        assert_eq!(image.compression, Some(Compression::Zstd));
        assert_eq!(image.media_types, Some(MediaTypes::Docker));
        assert!(
            matches!(image.kind, OutputKind::Image { names, place: ImagePlace::Registry } if names.len() == 2)
        );
        let registry = parsed("type=registry").kind;
        assert!(matches!(
            registry,
            OutputKind::Image {
                place: ImagePlace::Registry,
                ..
            }
        ));
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        for text in [
            "type=",
            "dest=x",
            "type=oci",
            "type=docker",
            "type=local,dest=-",
            "type=oci,dest=x,tar=false",
            "type=oci,dest=x,compression=estargz",
            "type=oci,dest=x,compression-level=9",
            "type=image,rewrite-timestamp=false",
            "type=local,dest=x,compression=gzip",
            "type=oci,dest=x,dest=y",
            "type=oci,dest=x,unknown=y",
            "type=oci,dest",
            "type=oci,\"dest=x",
            "type=image,name=UPPER",
            "type=image,push=maybe",
        ] {
            assert!(text.parse::<OutputOption>().is_err(), "{text}");
        }
    }
}
