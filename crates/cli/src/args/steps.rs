//! Options of `kiln build` about what commands get: secrets, agents, names of hosts, limits.

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use engine::spec::{Ulimit, UlimitName};

/// What RUN steps get.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct StepArgs {
    /// Secret for `RUN --mount=type=secret`: of a file, or of a variable of the environment
    #[arg(long = "secret", value_name = "id=ID[,src=FILE|,env=NAME]")]
    pub(crate) secrets: Vec<SecretArg>,
    /// SSH agent for `RUN --mount=type=ssh` [default socket: `$SSH_AUTH_SOCK`]
    #[arg(long = "ssh", value_name = "default|ID[=SOCKET]")]
    pub(crate) ssh: Vec<SshArg>,
    /// Let steps do what is not for everybody: `network.host`, `security.insecure`
    #[arg(long = "allow", value_name = "WHAT")]
    pub(crate) allowed: Vec<Entitlement>,
    /// Name that steps find in /etc/hosts; may be given several times
    #[arg(long = "add-host", value_name = "NAME:ADDRESS")]
    pub(crate) hosts: Vec<HostArg>,
    /// Limit of the processes of a step, as for setrlimit
    #[arg(long = "ulimit", value_name = "NAME=SOFT[:HARD]")]
    pub(crate) ulimits: Vec<UlimitArg>,
    /// Size of /dev/shm in steps [default: 64m]
    #[arg(long = "shm-size", value_name = "SIZE")]
    pub(crate) shm_size: Option<SizeArg>,
    /// Refused: each build has a cgroup of its own
    #[arg(long = "cgroup-parent", value_name = "CGROUP", hide = true)]
    pub(crate) cgroup_parent: Option<NoCgroupParent>,
}

/// Tells why an option about steps is not one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StepArgError {
    #[error("{0:?} is not of the form KEY=VALUE")]
    NotAPair(String),
    #[error("there is no {0:?}; there are {1}")]
    UnknownKey(String, &'static str),
    #[error("{0} is given twice")]
    Twice(&'static str),
    #[error("the id is missing")]
    NoId,
    #[error("a type is file or env, not {0:?}")]
    SecretType(String),
    #[error("both a file and a variable are given")]
    FileAndVariable,
    #[error("{0:?} is not of the form NAME:ADDRESS")]
    Host(String),
    #[error("steps cannot reach this machine: there is no host-gateway (see `--network host`)")]
    HostGateway,
    #[error("{0:?} is not of the form NAME=SOFT[:HARD]")]
    Ulimit(String),
    #[error("the soft limit {0} is above the hard limit {1}")]
    SoftAboveHard(u64, u64),
    #[error("{0:?} is not a size: a number of bytes, or one with k, m or g")]
    Size(String),
    #[error("each build has a cgroup of its own, below the one of kiln itself")]
    CgroupParent,
    #[error("commands are given no devices here")]
    Device,
    #[error("{0:?} is not something to be allowed: network.host and security.insecure are")]
    Entitlement(String),
}

/// A `--secret`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SecretArg {
    pub(crate) id: String,
    pub(crate) from: SecretFrom,
}

/// Where the value of a secret is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SecretFrom {
    File(PathBuf),
    Variable(String),
    /// The variable of the secret's name if there is one, else the file.
    Either,
}

impl FromStr for SecretArg {
    type Err = StepArgError;

    fn from_str(text: &str) -> Result<Self, StepArgError> {
        let (mut id, mut kind, mut file, mut variable) = (None, None, None, None);
        for field in text.split(',') {
            let pair = field.split_once('=');
            let (key, value) = pair.ok_or_else(|| StepArgError::NotAPair(field.to_owned()))?;
            let (slot, name) = match key.to_ascii_lowercase().as_str() {
                "id" => (&mut id, "id"),
                "type" => (&mut kind, "type"),
                "src" | "source" => (&mut file, "src"),
                "env" => (&mut variable, "env"),
                _ => {
                    let keys = "id, type, src and env";
                    return Err(StepArgError::UnknownKey(key.to_owned(), keys));
                }
            };
            if slot.replace(value.to_owned()).is_some() {
                return Err(StepArgError::Twice(name));
            }
        }
        let id = id.filter(|id| !id.is_empty()).ok_or(StepArgError::NoId)?;
        let from = match (kind.as_deref(), file, variable) {
            (Some(kind), ..) if kind != "file" && kind != "env" => {
                return Err(StepArgError::SecretType(kind.to_owned()));
            }
            (_, Some(_), Some(_)) | (Some("file"), _, Some(_)) => {
                return Err(StepArgError::FileAndVariable);
            }
            // As with docker, the source of this type is the name of the variable.
            (Some("env"), Some(name), None) | (_, None, Some(name)) => SecretFrom::Variable(name),
            (_, Some(file), None) => SecretFrom::File(file.into()),
            (Some("env"), None, None) => SecretFrom::Variable(id.clone()),
            (Some(_), None, None) => SecretFrom::File((&id).into()),
            (None, None, None) => SecretFrom::Either,
        };
        Ok(Self { id, from })
    }
}

/// A `--ssh`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SshArg {
    pub(crate) id: String,
    /// The agent's socket; the environment's without it.
    pub(crate) socket: Option<PathBuf>,
}

impl FromStr for SshArg {
    type Err = StepArgError;

    fn from_str(text: &str) -> Result<Self, StepArgError> {
        let (id, socket) = match text.split_once('=') {
            Some((id, socket)) => (id, Some(PathBuf::from(socket))),
            None => (text, None),
        };
        if id.is_empty() {
            return Err(StepArgError::NoId);
        }
        Ok(Self {
            id: id.to_owned(),
            socket: socket.filter(|path| !path.as_os_str().is_empty()),
        })
    }
}

/// An `--allow`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entitlement {
    HostNetwork,
    Insecure,
}

impl FromStr for Entitlement {
    type Err = StepArgError;

    fn from_str(text: &str) -> Result<Self, StepArgError> {
        match text {
            "network.host" => Ok(Self::HostNetwork),
            "security.insecure" => Ok(Self::Insecure),
            "device" => Err(StepArgError::Device),
            text if text.starts_with("device=") => Err(StepArgError::Device),
            text => Err(StepArgError::Entitlement(text.to_owned())),
        }
    }
}

/// An `--add-host`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostArg {
    pub(crate) name: String,
    pub(crate) address: IpAddr,
}

impl FromStr for HostArg {
    type Err = StepArgError;

    fn from_str(text: &str) -> Result<Self, StepArgError> {
        let invalid = || StepArgError::Host(text.to_owned());
        let pair = text.split_once(['=', ':']);
        let (name, address) = pair.ok_or_else(invalid)?;
        let is_name = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
        if name.is_empty() || !name.bytes().all(is_name) {
            return Err(invalid());
        }
        if address == "host-gateway" {
            return Err(StepArgError::HostGateway);
        }
        let bare = address
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        Ok(Self {
            name: name.to_owned(),
            address: bare.unwrap_or(address).parse().map_err(|_| invalid())?,
        })
    }
}

/// A `--ulimit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UlimitArg(pub(crate) Ulimit);

impl FromStr for UlimitArg {
    type Err = StepArgError;

    fn from_str(text: &str) -> Result<Self, StepArgError> {
        let invalid = || StepArgError::Ulimit(text.to_owned());
        let (name, value) = text.split_once('=').ok_or_else(invalid)?;
        let name: UlimitName = name.parse().map_err(|_| invalid())?;
        let (soft, hard) = value.split_once(':').unwrap_or((value, value));
        // -1 is no limit.
        let number = |text: &str| match text {
            "-1" => Ok(u64::MAX),
            text => text.parse().map_err(|_| invalid()),
        };
        let (soft, hard) = (number(soft)?, number(hard)?);
        if soft > hard {
            return Err(StepArgError::SoftAboveHard(soft, hard));
        }
        Ok(Self(Ulimit { name, soft, hard }))
    }
}

/// A size in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SizeArg(pub(crate) u64);

impl FromStr for SizeArg {
    type Err = StepArgError;

    fn from_str(text: &str) -> Result<Self, StepArgError> {
        let size = dockerfile::size_in_bytes(text).filter(|size| *size > 0);
        size.map(Self)
            .ok_or_else(|| StepArgError::Size(text.to_owned()))
    }
}

/// A `--cgroup-parent`, of which there is none.
#[derive(Debug, Clone, Copy)]
pub(crate) enum NoCgroupParent {}

impl FromStr for NoCgroupParent {
    type Err = StepArgError;

    fn from_str(_: &str) -> Result<Self, StepArgError> {
        Err(StepArgError::CgroupParent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_named_as_docker_names_them() {
        let file = |path: &str| SecretFrom::File(path.into());
        let variable = |name: &str| SecretFrom::Variable(name.to_owned());
        for (text, from) in [
            ("id=a", SecretFrom::Either),
            ("id=a,src=b", file("b")),
            ("type=file,id=a", file("a")),
            ("ID=a,type=env", variable("a")),
            ("id=a,env=B", variable("B")),
            ("id=a,type=env,source=B", variable("B")),
        ] {
            let id = "a".to_owned();
            assert_eq!(text.parse::<SecretArg>().unwrap(), SecretArg { id, from });
        }
        for text in [
            "",
            "a",
            "src=b",
            "id=",
            "id=a,id=b",
            "id=a,type=x",
            "id=a,src=b,env=C",
            "id=a,mode=1",
        ] {
            assert!(text.parse::<SecretArg>().is_err(), "{text}");
        }
    }

    #[test]
    fn hosts_limits_and_sizes_are_checked() {
        for (text, address) in [
            ("a:192.0.2.1", "192.0.2.1"),
            ("a=192.0.2.1", "192.0.2.1"),
            ("a:::1", "::1"),
            ("a=[2001:db8::1]", "2001:db8::1"),
        ] {
            assert_eq!(
                text.parse::<HostArg>().unwrap().address.to_string(),
                address
            );
        }
        for text in ["a", ":1.2.3.4", "a b:1.2.3.4", "a:1.2.3", "a:host-gateway"] {
            assert!(text.parse::<HostArg>().is_err(), "{text}");
        }
        let limit = |text: &str| {
            text.parse::<UlimitArg>()
                .map(|arg| (arg.0.soft, arg.0.hard))
        };
        assert_eq!(limit("nofile=1024:2048").unwrap(), (1024, 2048));
        assert_eq!(limit("core=-1").unwrap(), (u64::MAX, u64::MAX));
        for text in ["nofile", "files=1", "nofile=x", "nofile=2:1", "nofile=-2"] {
            assert!(limit(text).is_err(), "{text}");
        }
        assert_eq!("128m".parse::<SizeArg>().unwrap(), SizeArg(128 << 20));
        assert!("0".parse::<SizeArg>().is_err());
        assert!("x".parse::<NoCgroupParent>().is_err());
        assert!("security.insecure".parse::<Entitlement>().is_ok());
        for text in ["device", "device=/dev/fuse", "security", ""] {
            assert!(text.parse::<Entitlement>().is_err(), "{text}");
        }
        assert!("network.host".parse::<Entitlement>().is_ok());
    }
}
