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
