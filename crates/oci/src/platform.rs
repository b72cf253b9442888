//! Platforms: what an image runs on, in the words of the OCI image index.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An operating system and a processor, `linux/amd64` or `linux/arm64/v8`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// GOARCH's word: `amd64`, `arm64`, …
    pub architecture: String,
    /// GOOS's word: `linux`.
    pub os: String,
    /// Kernel version of a Windows image; kept when an index carries it.
    #[serde(
        rename = "os.version",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub os_version: Option<String>,
    /// Variant of the processor: `v7`, `v8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// A text that is not `os/architecture[/variant]`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", words(text))]
pub struct PlatformError {
    text: String,
}

fn words(text: &str) -> String {
    if text.contains(',') {
        format!("{text:?} is more than one platform: an image is built for one at a time")
    } else {
        format!("platform {text:?} is not of the form os/architecture[/variant]")
    }
}

impl Platform {
    /// Returns linux/amd64, what the published API resolves for.
    pub fn linux_amd64() -> Self {
        Self::linux("amd64", None)
    }

    /// Returns the platform of this machine.
    pub fn host() -> Self {
        match std::env::consts::ARCH {
            "x86_64" => Self::linux("amd64", None),
            "aarch64" => Self::linux("arm64", None),
            "x86" => Self::linux("386", None),
            "arm" => Self::linux("arm", Some("v7")),
            "powerpc64" => Self::linux("ppc64le", None),
            other => Self::linux(other, None),
        }
    }

    fn linux(architecture: &str, variant: Option<&str>) -> Self {
        Self {
            architecture: architecture.to_owned(),
            os: "linux".to_owned(),
            os_version: None,
            variant: variant.map(str::to_owned),
        }
    }

    /// Tells whether an image for `self` serves a request for `wanted`. `arm64` and `arm64/v8` are the same thing.
    pub fn satisfies(&self, wanted: &Self) -> bool {
        fn variant(platform: &Platform) -> Option<&str> {
            match (platform.architecture.as_str(), platform.variant.as_deref()) {
                ("arm64", Some("v8")) | ("amd64", Some("v1")) | (_, Some("")) => None,
                (_, variant) => variant,
            }
        }
        self.os == wanted.os
            && self.architecture == wanted.architecture
            && variant(self) == variant(wanted)
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    /// Parses `os/architecture[/variant]`, or one word of it: the other is this machine's. The aliases `x86_64` and `aarch64` are understood.
    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let error = || PlatformError {
            text: text.to_owned(),
        };
        let lower = text.trim().to_ascii_lowercase();
        let is_word = |part: &str| {
            part.starts_with(|c: char| c.is_ascii_alphanumeric())
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
        };
        let parts: Vec<&str> = lower.split('/').collect();
        if !parts.iter().all(|part| is_word(part)) {
            return Err(error());
        }
        let (os, architecture, variant) = match parts.as_slice() {
            [word] if is_os(word) => (*word, std::env::consts::ARCH, None),
            [word] if is_architecture(word) => ("linux", *word, None),
            [os, architecture] => (*os, *architecture, None),
            [os, architecture, variant] => (*os, *architecture, Some((*variant).to_owned())),
            _ => return Err(error()),
        };
        let architecture = match architecture {
            "x86_64" | "x86-64" => "amd64",
            "aarch64" => "arm64",
            "i386" | "i686" | "x86" => "386",
            "armhf" => "arm",
            other => other,
        };
        let variant = match (architecture, variant) {
            ("arm64", Some(v)) if v == "v8" || v == "8" => None,
            (_, variant) => variant,
        };
        Ok(Self {
            architecture: architecture.to_owned(),
            os: os.to_owned(),
            os_version: None,
            variant,
        })
    }
}

fn is_os(word: &str) -> bool {
    matches!(word, "linux" | "windows" | "darwin" | "freebsd")
}

fn is_architecture(word: &str) -> bool {
    let known = [
        "amd64", "x86_64", "x86-64", "arm64", "aarch64", "386", "i386", "i686", "arm", "armhf",
        "ppc64le", "riscv64", "s390x", "loong64", "mips64le",
    ];
    known.contains(&word)
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_parsed_and_normalised() {
        assert_eq!(
            "linux/x86_64".parse::<Platform>().unwrap().to_string(),
            "linux/amd64"
        );
        assert_eq!(
            "Linux/arm64/v8".parse::<Platform>().unwrap().to_string(),
            "linux/arm64"
        );
        assert_eq!(
            "linux/arm/v7".parse::<Platform>().unwrap().to_string(),
            "linux/arm/v7"
        );
        let host = Platform::host();
        assert_eq!("linux".parse::<Platform>().unwrap(), host);
        assert_eq!(
            "arm64".parse::<Platform>().unwrap().to_string(),
            "linux/arm64"
        );
        for bad in [
            "",
            "word",
            "linux/",
            "/amd64",
            "a/b/c/d",
            "linux/amd 64",
            "linux/../x",
        ] {
            assert!(bad.parse::<Platform>().is_err(), "{bad} was accepted");
        }
    }
}
