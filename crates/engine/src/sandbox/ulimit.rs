//! `setrlimit` for the processes of a step, by the names that docker has for them.

use std::str::FromStr;

use rustix::process::{Resource, Rlimit};
use serde::{Deserialize, Serialize};

/// A limit of the processes of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// Of what.
    pub name: UlimitName,
    /// What holds; `u64::MAX` is no limit.
    pub soft: u64,
    /// Up to where a process may raise it.
    pub hard: u64,
}

impl Ulimit {
    /// Tells whether this process, and what it starts, may have that limit; else how high it may be.
    ///
    /// # Errors
    /// The highest hard limit.
    pub fn check(&self) -> Result<(), u64> {
        match rustix::process::getrlimit(self.name.resource()).maximum {
            Some(maximum) if self.hard > maximum => Err(maximum),
            _ => Ok(()),
        }
    }

    /// Returns the limit as the kernel takes it.
    pub(super) fn rlimit(&self) -> Rlimit {
        let or_none = |limit: u64| Some(limit).filter(|limit| *limit != u64::MAX);
        Rlimit {
            current: or_none(self.soft),
            maximum: or_none(self.hard),
        }
    }
}

/// What is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names say it, and getrlimit(2) says more")]
pub enum UlimitName {
    Core,
    Cpu,
    Data,
    Fsize,
    Locks,
    Memlock,
    Msgqueue,
    Nice,
    Nofile,
    Nproc,
    Rss,
    Rtprio,
    Rttime,
    Sigpending,
    Stack,
}

/// Every name, and the kernel's number for it.
const NAMES: [(&str, UlimitName, Resource); 15] = [
    ("core", UlimitName::Core, Resource::Core),
    ("cpu", UlimitName::Cpu, Resource::Cpu),
    ("data", UlimitName::Data, Resource::Data),
    ("fsize", UlimitName::Fsize, Resource::Fsize),
    ("locks", UlimitName::Locks, Resource::Locks),
    ("memlock", UlimitName::Memlock, Resource::Memlock),
    ("msgqueue", UlimitName::Msgqueue, Resource::Msgqueue),
    ("nice", UlimitName::Nice, Resource::Nice),
    ("nofile", UlimitName::Nofile, Resource::Nofile),
    ("nproc", UlimitName::Nproc, Resource::Nproc),
    ("rss", UlimitName::Rss, Resource::Rss),
    ("rtprio", UlimitName::Rtprio, Resource::Rtprio),
    ("rttime", UlimitName::Rttime, Resource::Rttime),
    ("sigpending", UlimitName::Sigpending, Resource::Sigpending),
    ("stack", UlimitName::Stack, Resource::Stack),
];

/// There is no limit of that name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there is no limit of that name")]
pub struct NoSuchLimit;

impl FromStr for UlimitName {
    type Err = NoSuchLimit;

    fn from_str(text: &str) -> Result<Self, NoSuchLimit> {
        let found = NAMES.iter().find(|(name, ..)| *name == text);
        found.map(|(_, this, _)| *this).ok_or(NoSuchLimit)
    }
}

impl UlimitName {
    /// Returns the name.
    pub fn as_str(self) -> &'static str {
        let found = NAMES.iter().find(|(_, this, _)| *this == self);
        found.map_or("", |(name, ..)| name)
    }

    pub(super) fn resource(self) -> Resource {
        let found = NAMES.iter().find(|(_, this, _)| *this == self);
        found.map_or(Resource::Core, |(.., resource)| *resource)
    }
}
