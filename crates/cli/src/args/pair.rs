//! `NAME=VALUE` options.

use std::str::FromStr;

/// A `--build-arg`: without a value, the environment's is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BuildArg {
    pub(crate) name: String,
    pub(crate) value: Option<String>,
}

/// A `--label`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Label {
    pub(crate) name: String,
    pub(crate) value: String,
}

/// An `--annotation`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Annotation {
    pub(crate) name: String,
    pub(crate) value: String,
}

/// Tells why an `--annotation` is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AnnotationError {
    #[error("it is not of the form NAME=VALUE")]
    NotAPair,
    #[error("only manifests are annotated, not {0:?}")]
    Place(String),
}

impl FromStr for Annotation {
    type Err = AnnotationError;

    /// Parses `NAME=VALUE` and `manifest:NAME=VALUE`.
    fn from_str(text: &str) -> Result<Self, AnnotationError> {
        const OTHERS: [&str; 3] = ["index", "manifest-descriptor", "index-descriptor"];
        let (name, value) = text.split_once('=').ok_or(AnnotationError::NotAPair)?;
        let name = match name.split_once(':') {
            Some(("manifest", name)) => name,
            Some((places, _))
                if places
                    .split(',')
                    .any(|place| OTHERS.contains(&place) || place.contains('[')) =>
            {
                return Err(AnnotationError::Place(places.to_owned()));
            }
            _ => name,
        };
        if name.is_empty() {
            return Err(AnnotationError::NotAPair);
        }
        Ok(Self {
            name: name.to_owned(),
            value: value.to_owned(),
        })
    }
}

/// A pair without a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PairError {
    /// `=value`, or nothing.
    #[error("the name is missing")]
    NoName,
}

impl FromStr for BuildArg {
    type Err = PairError;

    fn from_str(text: &str) -> Result<Self, PairError> {
        let (name, value) = split(text)?;
        Ok(Self { name, value })
    }
}

impl FromStr for Label {
    type Err = PairError;

    fn from_str(text: &str) -> Result<Self, PairError> {
        let (name, value) = split(text)?;
        let value = value.unwrap_or_default();
        Ok(Self { name, value })
    }
}

fn split(text: &str) -> Result<(String, Option<String>), PairError> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, None),
    };
    if name.is_empty() {
        return Err(PairError::NoName);
    }
    Ok((name.to_owned(), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_are_of_manifests() {
        let parsed = |text: &str| text.parse::<Annotation>().map(|one| (one.name, one.value));
        let pair = |name: &str, value: &str| Ok((name.to_owned(), value.to_owned()));
        assert_eq!(parsed("a.b=c=d"), pair("a.b", "c=d"));
        assert_eq!(parsed("manifest:a=b"), pair("a", "b"));
        assert_eq!(parsed("a"), Err(AnnotationError::NotAPair));
        for place in ["index", "manifest[linux/amd64]", "index,manifest"] {
            let error = Err(AnnotationError::Place(place.to_owned()));
            assert_eq!(parsed(&format!("{place}:a=b")), error);
        }
    }

    #[test]
    fn only_the_first_equals_sign_counts() {
        let arg: BuildArg = "A=b=c".parse().unwrap();
        assert_eq!(
            (arg.name.as_str(), arg.value.as_deref()),
            ("A", Some("b=c"))
        );
        assert_eq!("A".parse::<BuildArg>().unwrap().value, None);
        assert_eq!("A".parse::<Label>().unwrap().value, "");
        assert_eq!("=x".parse::<Label>(), Err(PairError::NoName));
    }
}
