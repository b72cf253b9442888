//! `user[:group]` as USER and `--chown` write it, by the image's own `/etc/passwd` and `/etc/group`.
//!
//! The files are somebody else's: they are read only if regular and not larger than [`ACCOUNTS_MAX_BYTES`], lines that are
//! too long or malformed are passed over. What is not found is an error, never user 0.

use std::path::Path;

use super::root::{Root, RootError};

/// Largest `/etc/passwd` or `/etc/group` that is read.
pub const ACCOUNTS_MAX_BYTES: u64 = 10 << 20;
/// Longest line of these files that is looked at.
const LINE_MAX_BYTES: usize = 64 << 10;
/// Highest id: a build's user namespace holds this many and no more.
pub const ID_MAX: u32 = 65_535;
/// Most supplementary groups of a process, as the kernel has it.
const GROUPS_MAX: usize = 65_536;

/// Who a step runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserIds {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Further groups; empty when the group was given.
    pub supplementary: Vec<u32>,
    /// Home directory, if the user is in `/etc/passwd`.
    pub home: Option<String>,
    /// Name, if the user is in `/etc/passwd`.
    pub name: Option<String>,
}

/// Tells why a user could not be found.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// Not `user[:group]`.
    #[error("{0:?} is not a user or user:group")]
    Malformed(String),
    /// No user of that name.
    #[error("user {0:?} is not in the image's /etc/passwd")]
    UnknownUser(String),
    /// No group of that name.
    #[error("group {0:?} is not in the image's /etc/group")]
    UnknownGroup(String),
    /// A number that no user of a build can have.
    #[error("id {0:?} is out of range (0 to {ID_MAX})")]
    OutOfRange(String),
    /// The files could not be read.
    #[error("failed to read the image's accounts")]
    Read(#[source] RootError),
}

struct Account {
    name: String,
    uid: String,
    gid: String,
    home: String,
}

/// Returns who `spec` means for a process (USER): `user`, `uid`, `user:group`, in any mixture; empty is root.
///
/// # Errors
/// See [`UserError`].
pub fn lookup_user(root: &Root, spec: &str) -> Result<UserIds, UserError> {
    let spec = if spec.is_empty() { "0" } else { spec };
    let (user, group) = split(spec)?;
    let account = account(root, user)?;
    let uid = match &account {
        Some(account) => id(&account.uid)?,
        None => number(user)?.ok_or_else(|| UserError::UnknownUser(user.to_owned()))?,
    };
    let (gid, supplementary) = match (group, &account) {
        (Some(group), _) => (group_id(root, group)?, Vec::new()),
        (None, Some(account)) => (id(&account.gid)?, groups_of(root, &account.name)?),
        (None, None) => (0, Vec::new()),
    };
    Ok(UserIds {
        uid,
        gid,
        supplementary,
        home: account.as_ref().map(|account| account.home.clone()),
        name: account.map(|account| account.name),
    })
}

/// Returns whom `spec` makes files belong to (`--chown`): a number alone is also the group, a name brings its group along.
///
/// # Errors
/// See [`UserError`].
pub fn lookup_owner(root: &Root, spec: &str) -> Result<(u32, u32), UserError> {
    let (user, group) = split(spec)?;
    let (uid, own_gid) = match number(user)? {
        Some(uid) => (uid, uid),
        None => match account(root, user)? {
            Some(account) => (id(&account.uid)?, id(&account.gid)?),
            None => return Err(UserError::UnknownUser(user.to_owned())),
        },
    };
    match group {
        Some(group) => Ok((uid, group_id(root, group)?)),
        None => Ok((uid, own_gid)),
    }
}

fn split(spec: &str) -> Result<(&str, Option<&str>), UserError> {
    let malformed = || UserError::Malformed(spec.to_owned());
    let (user, group) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (spec, None),
    };
    let is_word = |word: &str| {
        let is_odd = |c: char| c.is_whitespace() || c.is_control() || matches!(c, ':' | '/');
        !word.is_empty() && word.len() <= 256 && !word.contains(is_odd) && !word.starts_with('-')
    };
    if is_word(user) && group.is_none_or(is_word) {
        Ok((user, group))
    } else {
        Err(malformed())
    }
}

/// Returns the number that `word` is; `None` when it is a name.
fn number(word: &str) -> Result<Option<u32>, UserError> {
    if word.bytes().all(|byte| byte.is_ascii_digit()) {
        id(word).map(Some)
    } else {
        Ok(None)
    }
}

fn id(digits: &str) -> Result<u32, UserError> {
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let id = digits.parse().ok().filter(|id| is_number && *id <= ID_MAX);
    id.ok_or_else(|| UserError::OutOfRange(digits.to_owned()))
}

/// Calls `each` with the fields of every line until it returns something.
fn find<T>(
    root: &Root,
    path: &str,
    mut each: impl FnMut(&[&str]) -> Option<T>,
) -> Result<Option<T>, UserError> {
    let content = match root.read_file(Path::new(path), ACCOUNTS_MAX_BYTES) {
        Ok(content) => content,
        // An image without accounts is an honest image; numbers work there.
        Err(RootError::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(UserError::Read(error)),
    };
    for line in content.split(|byte| *byte == b'\n') {
        if line.len() > LINE_MAX_BYTES {
            continue;
        }
        let Ok(line) = std::str::from_utf8(line) else {
            continue;
        };
        let fields: Vec<_> = line.trim().split(':').collect();
        if let Some(found) = each(&fields) {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn account(root: &Root, user: &str) -> Result<Option<Account>, UserError> {
    find(root, "etc/passwd", |fields| match fields {
        [name, _, uid, gid, _, home, ..] if *name == user || *uid == user => Some(Account {
            name: (*name).to_owned(),
            uid: (*uid).to_owned(),
            gid: (*gid).to_owned(),
            home: (*home).to_owned(),
        }),
        _ => None,
    })
}

fn group_id(root: &Root, group: &str) -> Result<u32, UserError> {
    if let Some(gid) = number(group)? {
        return Ok(gid);
    }
    let gid = find(root, "etc/group", |fields| match fields {
        [name, _, gid, ..] if *name == group => Some((*gid).to_owned()),
        _ => None,
    })?;
    id(&gid.ok_or_else(|| UserError::UnknownGroup(group.to_owned()))?)
}

fn groups_of(root: &Root, user: &str) -> Result<Vec<u32>, UserError> {
    let mut groups = Vec::new();
    find(root, "etc/group", |fields| -> Option<()> {
        if let [_, _, gid, members] = fields
            && members.split(',').any(|member| member == user)
            && let Ok(gid) = id(gid)
            && groups.len() < GROUPS_MAX
        {
            groups.push(gid);
        }
        None
    })?;
    groups.sort_unstable();
    groups.dedup();
    Ok(groups)
}
