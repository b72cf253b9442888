//! Which ids of the host containers use.

use std::io;
use std::path::{Path, PathBuf};

use super::{CONTAINER_IDS, DEFAULT_BASE, UserNsOptions};

/// The name whose subordinate ids root prefers to its own.
const SERVICE_NAME: &str = "kiln";
/// The longest table of subordinate ids that is read.
const MAX_TABLE_BYTES: u64 = 1024 * 1024;

/// The host's ids of the container's root: who owns what a worker writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The user id.
    pub uid: u32,
    /// The group id.
    pub gid: u32,
}

/// Why no ids were found.
#[derive(Debug, thiserror::Error)]
pub enum IdError {
    /// A table of subordinate ids could not be read.
    #[error("read {}; an ordinary user needs 65536 subordinate ids there (package uidmap)", path.display())]
    Read {
        /// Which table.
        path: PathBuf,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// The user has too few subordinate ids.
    #[error("user {user} has no 65536 subordinate ids in {}; an administrator adds them, e.g. with `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}`", path.display())]
    Missing {
        /// Which table.
        path: PathBuf,
        /// Whose ids.
        user: String,
    },
    /// A program that maps ids is missing.
    #[error("find {}: install the package uidmap", path.display())]
    NoProgram {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The configured range does not fit.
    #[error(
        "use {base} as the first id of containers: it must leave room for 65536 ids and not be an ordinary id"
    )]
    Base {
        /// What was configured.
        base: u32,
    },
    /// Only root chooses ids freely.
    #[error(
        "use the configured first id {base}: only root may choose ids, others use their subordinate ids"
    )]
    NotRoot {
        /// What was configured.
        base: u32,
    },
}

/// One line of an id map: `count` ids from `inside` on are `outside` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) inside: u32,
    pub(super) outside: u32,
    pub(super) count: u32,
}

/// Both maps and how they are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ids {
    pub(super) uids: Vec<Extent>,
    pub(super) gids: Vec<Extent>,
    pub(super) writer: Writer,
}

/// Who writes the maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Writer {
    /// We are root and write them ourselves.
    Ourselves,
    /// `newuidmap` and `newgidmap` do.
    Programs,
}

impl Ids {
    pub(super) fn owner(&self) -> Owner {
        let first = |extents: &[Extent]| extents.first().map_or(0, |extent| extent.outside);
        Owner {
            uid: first(&self.uids),
            gid: first(&self.gids),
        }
    }
}

/// Returns who owns what a worker started by this process writes, so that directories can be made for it.
///
/// Call it before [`super::enter`].
pub fn data_plane_owner(options: &UserNsOptions) -> Result<Owner, IdError> {
    find(options).map(|ids| ids.owner())
}

pub(super) fn find(options: &UserNsOptions) -> Result<Ids, IdError> {
    let uid = rustix::process::getuid().as_raw();
    if uid == 0 {
        of_root(options)
    } else {
        of_user(uid, rustix::process::getgid().as_raw(), options)
    }
}

fn of_root(options: &UserNsOptions) -> Result<Ids, IdError> {
    let range = |base: u32| {
        vec![Extent {
            inside: 0,
            outside: base,
            count: CONTAINER_IDS,
        }]
    };
    let direct = |uid_base: u32, gid_base: u32| Ids {
        uids: range(uid_base),
        gids: range(gid_base),
        writer: Writer::Ourselves,
    };
    if let Some(base) = options.base {
        if base < CONTAINER_IDS || base.checked_add(CONTAINER_IDS).is_none() {
            return Err(IdError::Base { base });
        }
        return Ok(direct(base, base));
    }
    // Root needs no entry, so a missing table is no error.
    let uids = read(&options.subuid_file).unwrap_or_default();
    let gids = read(&options.subgid_file).unwrap_or_default();
    for name in [SERVICE_NAME, "root", "0"] {
        if let (Some(uid_base), Some(gid_base)) =
            (range_of(&uids, &[name]), range_of(&gids, &[name]))
        {
            return Ok(direct(uid_base, gid_base));
        }
    }
    Ok(direct(DEFAULT_BASE, DEFAULT_BASE))
}

fn of_user(uid: u32, gid: u32, options: &UserNsOptions) -> Result<Ids, IdError> {
    if let Some(base) = options.base {
        return Err(IdError::NotRoot { base });
    }
    for path in [&options.newuidmap, &options.newgidmap] {
        if !path.is_file() {
            return Err(IdError::NoProgram { path: path.clone() });
        }
    }
    let name = user_name(uid);
    let number = uid.to_string();
    let map = |path: &Path, own: u32| {
        let table = read(path).map_err(|source| IdError::Read {
            path: path.to_owned(),
            source,
        })?;
        let names: Vec<&str> = name
            .iter()
            .map(String::as_str)
            .chain([number.as_str()])
            .collect();
        let base = range_of(&table, &names).ok_or_else(|| IdError::Missing {
            path: path.to_owned(),
            user: name.clone().unwrap_or_else(|| number.clone()),
        })?;
        Ok(vec![
            Extent {
                inside: 0,
                outside: own,
                count: 1,
            },
            Extent {
                inside: 1,
                outside: base,
                count: CONTAINER_IDS - 1,
            },
        ])
    };
    Ok(Ids {
        uids: map(&options.subuid_file, uid)?,
        gids: map(&options.subgid_file, gid)?,
        writer: Writer::Programs,
    })
}

fn read(path: &Path) -> io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path)?
        .take(MAX_TABLE_BYTES)
        .read_to_string(&mut text)?;
    Ok(text)
}

/// The first range of one of `names` that is large enough.
fn range_of(table: &str, names: &[&str]) -> Option<u32> {
    table.lines().find_map(|line| {
        let mut words = line.trim().split(':');
        let (name, base, count) = (words.next()?, words.next()?, words.next()?);
        let (base, count) = (base.parse::<u32>().ok()?, count.parse::<u32>().ok()?);
        let fits = names.contains(&name)
            && base > 0
            && count >= CONTAINER_IDS
            && base.checked_add(count).is_some();
        fits.then_some(base)
    })
}

/// The name of a local user. Users of a directory service are found by number only.
fn user_name(uid: u32) -> Option<String> {
    let table = read(Path::new("/etc/passwd")).ok()?;
    table.lines().find_map(|line| {
        let mut words = line.split(':');
        let (name, number) = (words.next()?, words.nth(1)?);
        (number.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_large_enough_range_of_a_name_is_taken() {
        let table = "a:1000:65536\nkiln:5:10\nkiln:200000:65536\nkiln:900000:65536\n";
        assert_eq!(range_of(table, &["kiln"]), Some(200_000));
        assert_eq!(range_of(table, &["b"]), None);
    }

    #[test]
    fn a_range_that_wraps_around_is_not_taken() {
        assert_eq!(range_of("kiln:4294967290:65536", &["kiln"]), None);
        assert_eq!(range_of("kiln:0:65536", &["kiln"]), None);
        assert_eq!(range_of("kiln:x:65536\nkiln\n:", &["kiln"]), None);
    }
}
