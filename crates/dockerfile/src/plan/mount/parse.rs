//! `type=cache,target=/x,…` → [`Mount`].
//!
//! As in `BuildKit`: fields are cut as in CSV, variables are expanded in every value but that of `from`, a relative target is seen
//! from WORKDIR. Unlike there, a key that is given twice or has no meaning for its type is an error: nothing is ignored.

use std::collections::BTreeMap;

use super::super::origin::{Origin, named_origin};
use super::super::stage::Stage;
use super::super::types::CopyFrom;
use super::{
    BindMount, CacheMount, Mount, MountAccess, MountOwner, SecretMount, Sharing, SshMount,
    TmpfsMount,
};
use crate::ast::{Flag, Instruction, Word};
use crate::diagnostic::{Diagnostic, Span};
use crate::limits::MOUNTS_MAX;
use crate::path;
use crate::suggest::did_you_mean;

const TYPES: [&str; 5] = ["bind", "cache", "tmpfs", "secret", "ssh"];
const SHARING: [&str; 3] = ["shared", "private", "locked"];
/// Every key, with the types that it has a meaning for.
const KEYS: [(&str, &[&str]); 14] = [
    ("type", &TYPES),
    ("from", &["bind", "cache"]),
    ("source", &["bind", "cache", "secret"]),
    ("target", &TYPES),
    ("readonly", &TYPES),
    ("readwrite", &["bind", "cache", "tmpfs"]),
    ("id", &["cache", "secret", "ssh"]),
    ("sharing", &["cache"]),
    ("required", &["secret", "ssh"]),
    ("size", &["tmpfs"]),
    ("mode", &["cache", "secret", "ssh"]),
    ("uid", &["cache", "secret", "ssh"]),
    ("gid", &["cache", "secret", "ssh"]),
    ("env", &["secret"]),
];
const ALIASES: [(&str, &str); 5] = [
    ("src", "source"),
    ("dst", "target"),
    ("destination", "target"),
    ("ro", "readonly"),
    ("rw", "readwrite"),
];
/// Keys that are true without a value.
const SWITCHES: [&str; 3] = ["readonly", "readwrite", "required"];
/// Where secrets are without a target.
const SECRETS: &str = "/run/secrets";
/// Filesystems of the kernel's: nothing is mounted over them or within.
const KERNEL: [&str; 3] = ["/proc", "/sys", "/dev"];
/// The one place in them that is a directory like others.
const SHARED_MEMORY: &str = "/dev/shm";
/// Nobody is asked for more bits than these.
const MODE_MAX: u32 = 0o7777;

/// Returns the mounts of a RUN.
pub(crate) fn parse(
    stage: &Stage<'_>,
    instruction: &Instruction,
) -> Result<Vec<Mount>, Diagnostic> {
    let mut mounts: Vec<Mount> = Vec::new();
    for flag in mount_flags(instruction) {
        if mounts.len() >= MOUNTS_MAX {
            let message = format!("more than {MOUNTS_MAX} mounts for one command");
            return Err(Diagnostic::error(flag.span, message));
        }
        let mount = one(stage, flag)?;
        let taken = |other: &Mount| other.target().is_some() && other.target() == mount.target();
        if mounts.iter().any(taken) {
            let target = mount.target().unwrap_or_default();
            let message = format!("two mounts of this command have the target {target}");
            return Err(Diagnostic::error(flag.span, message));
        }
        mounts.push(mount);
    }
    Ok(mounts)
}

/// Returns the names that the mounts of a RUN take files from, and where they stand.
pub(crate) fn froms(instruction: &Instruction) -> Result<Vec<(String, Span)>, Diagnostic> {
    let mut names = Vec::new();
    for flag in mount_flags(instruction) {
        for (key, value) in split(flag)? {
            if let ("from", Some(value)) = (canonical(&key), value) {
                names.push((value, flag.span));
            }
        }
    }
    Ok(names)
}

fn mount_flags(instruction: &Instruction) -> impl Iterator<Item = &Flag> {
    let flags = instruction.flags.iter();
    flags.filter(|flag| flag.name == "mount" && instruction.body.keyword() == "RUN")
}

/// The fields of one mount, each key once and known.
struct Fields<'a> {
    flag: &'a Flag,
    kind: String,
    values: BTreeMap<&'static str, Option<String>>,
}

fn one(stage: &Stage<'_>, flag: &Flag) -> Result<Mount, Diagnostic> {
    let fields = Fields::read(stage, flag)?;
    Ok(match fields.kind.as_str() {
        "cache" => Mount::Cache(cache(stage, &fields)?),
        "tmpfs" => Mount::Tmpfs(TmpfsMount {
            target: fields.directory(stage)?,
            size_bytes: fields.size()?,
            access: fields.access(MountAccess::ReadWrite)?,
        }),
        "secret" => Mount::Secret(secret(stage, &fields)?),
        "ssh" => Mount::Ssh(ssh(stage, &fields)?),
        _ => Mount::Bind(BindMount {
            from: match fields.value("from") {
                Some(name) => from(stage, name, flag.span)?,
                None => Some(CopyFrom::Context),
            },
            source: fields.source(),
            target: fields.directory(stage)?,
            access: fields.access(MountAccess::ReadOnly)?,
        }),
    })
}

fn cache(stage: &Stage<'_>, fields: &Fields<'_>) -> Result<CacheMount, Diagnostic> {
    let target = fields.directory(stage)?;
    let sharing = fields.value("sharing").map(str::to_ascii_lowercase);
    let from = match fields.value("from") {
        Some(name) => from(stage, name, fields.flag.span)?,
        None => None,
    };
    Ok(CacheMount {
        // As it is written, not where it leads: with another WORKDIR it is still the same.
        id: match fields.value("id").filter(|id| !id.is_empty()) {
            Some(id) => id.to_owned(),
            None => path::clean(fields.value("target").unwrap_or_default()),
        },
        sharing: match sharing.as_deref() {
            None | Some("shared") => Sharing::Shared,
            Some("private") => Sharing::Private,
            Some("locked") => Sharing::Locked,
            Some(other) => {
                let message = format!("unknown sharing {other:?}");
                let hint = did_you_mean(other, SHARING);
                let hint = hint.unwrap_or_else(|| "shared, private or locked".to_owned());
                return Err(fields.error(message).with_hint(hint));
            }
        },
        from,
        source: fields.source(),
        target,
        access: fields.access(MountAccess::ReadWrite)?,
        owner: fields
            .has_owner()
            .then(|| fields.owner(0o755))
            .transpose()?,
    })
}

fn secret(stage: &Stage<'_>, fields: &Fields<'_>) -> Result<SecretMount, Diagnostic> {
    let named = |key| fields.value(key).filter(|value| !value.is_empty());
    if named("id").is_some() && named("source").is_some() {
        return Err(fields
            .error("both id and source name the secret")
            .with_hint("use id alone"));
    }
    let written = named("target");
    let id = match (named("id").or(named("source")), written) {
        (Some(id), _) => id.to_owned(),
        (None, Some(target)) => base_name(target).to_owned(),
        (None, None) => {
            let error = fields.error("a secret needs an id, or a target that ends in it");
            return Err(error.with_hint("--mount=type=secret,id=token"));
        }
    };
    let env = fields.value("env");
    if let Some(name) = env
        && (name.is_empty() || name.contains(['=', '\0']))
    {
        let message = format!("{name:?} cannot be the name of a variable");
        return Err(fields.error(message));
    }
    let target = match (written, env) {
        (None, Some(_)) => None,
        (None, None) => Some(format!("{SECRETS}/{}", base_name(&id))),
        (Some(target), _) => Some(target.to_owned()),
    };
    fields.access(MountAccess::ReadOnly)?;
    Ok(SecretMount {
        target: target
            .map(|target| fields.checked_target(stage, &target))
            .transpose()?,
        env: env.map(str::to_owned),
        required: fields.switch("required")?.unwrap_or(false),
        owner: fields.owner(0o400)?,
        id,
    })
}

fn ssh(stage: &Stage<'_>, fields: &Fields<'_>) -> Result<SshMount, Diagnostic> {
    let named = |key| fields.value(key).filter(|value| !value.is_empty());
    fields.access(MountAccess::ReadOnly)?;
    Ok(SshMount {
        id: named("id").unwrap_or("default").to_owned(),
        required: fields.switch("required")?.unwrap_or(false),
        target: named("target")
            .map(|target| fields.checked_target(stage, target))
            .transpose()?,
        owner: fields.owner(0o600)?,
    })
}

fn from(stage: &Stage<'_>, name: &str, span: Span) -> Result<Option<CopyFrom>, Diagnostic> {
    Ok(match named_origin(name, span, &stage.known())? {
        Origin::Context => Some(CopyFrom::Context),
        Origin::Nothing => None,
        Origin::Stage(index) => {
            let planned = stage.indices.get(&index).copied();
            Some(CopyFrom::Stage(planned.ok_or_else(|| {
                Diagnostic::error(span, "this stage is not part of the plan")
            })?))
        }
        Origin::Image(key) => Some(CopyFrom::Image(key)),
        Origin::Named(name) => Some(CopyFrom::Named(name)),
    })
}

impl<'a> Fields<'a> {
    fn read(stage: &Stage<'_>, flag: &'a Flag) -> Result<Self, Diagnostic> {
        let error = |message: String| Diagnostic::error(flag.span, message);
        let mut values = BTreeMap::new();
        for (key, value) in split(flag)? {
            let known = KEYS.into_iter().map(|(key, _)| key);
            let Some(name) = known.clone().find(|known| *known == canonical(&key)) else {
                let message = format!("a mount has no key {key:?}");
                let aliases = ALIASES.iter().map(|(alias, _)| *alias);
                let hint = did_you_mean(&key, known.chain(aliases));
                return Err(error(message).with_hint_if(hint));
            };
            let value = match value {
                None if SWITCHES.contains(&name) => None,
                None => {
                    let message = format!("{key} needs a value");
                    return Err(error(message).with_hint(format!("write {key}=VALUE")));
                }
                Some(text) if name == "from" => Some(text),
                Some(text) => {
                    let span = flag.span;
                    Some(stage.expand(&Word { text, span })?.text)
                }
            };
            if value.as_ref().is_some_and(|value| value.contains('\0')) {
                return Err(error(format!("{key} cannot hold NUL")));
            }
            if values.insert(name, value).is_some() {
                return Err(error(format!("{name} is given twice")));
            }
        }
        let kind = match values.get("type") {
            Some(Some(kind)) => kind.to_ascii_lowercase(),
            _ => "bind".to_owned(),
        };
        if !TYPES.contains(&kind.as_str()) {
            let hint = did_you_mean(&kind, TYPES).unwrap_or_else(|| TYPES.join(", "));
            return Err(error(format!("unknown type of mount {kind:?}")).with_hint(hint));
        }
        for (key, kinds) in KEYS {
            if values.contains_key(key) && !kinds.contains(&kind.as_str()) {
                let message = format!("{key} has no meaning for a mount of type {kind}");
                let hint = format!("it is for {}", kinds.join(", "));
                return Err(error(message).with_hint(hint));
            }
        }
        Ok(Self { flag, kind, values })
    }

    fn error(&self, message: impl Into<String>) -> Diagnostic {
        Diagnostic::error(self.flag.span, message.into())
    }

    fn value(&self, key: &str) -> Option<&str> {
        self.values.get(key)?.as_deref()
    }

    fn switch(&self, key: &str) -> Result<Option<bool>, Diagnostic> {
        // What Go's `strconv.ParseBool` takes.
        match self.values.get(key).map(Option::as_deref) {
            None => Ok(None),
            Some(None | Some("1" | "t" | "T" | "true" | "TRUE" | "True")) => Ok(Some(true)),
            Some(Some("0" | "f" | "F" | "false" | "FALSE" | "False")) => Ok(Some(false)),
            Some(Some(other)) => Err(self.error(format!("{key} is true or false, not {other:?}"))),
        }
    }

    fn access(&self, default: MountAccess) -> Result<MountAccess, Diagnostic> {
        let read_only = match (self.switch("readonly")?, self.switch("readwrite")?) {
            (Some(_), Some(_)) => {
                return Err(self.error("both readonly and readwrite are given"));
            }
            (Some(read_only), None) => read_only,
            (None, Some(read_write)) => !read_write,
            (None, None) => default == MountAccess::ReadOnly,
        };
        match self.kind.as_str() {
            "secret" | "ssh" if !read_only => {
                Err(self.error(format!("a mount of type {} cannot be written", self.kind)))
            }
            _ if read_only => Ok(MountAccess::ReadOnly),
            _ => Ok(MountAccess::ReadWrite),
        }
    }

    fn source(&self) -> String {
        let cleaned = path::clean(&format!("/{}", self.value("source").unwrap_or_default()));
        let cleaned = cleaned.trim_start_matches('/');
        if cleaned.is_empty() { "." } else { cleaned }.to_owned()
    }

    /// Returns the target of a directory; WORKDIR when it has none, as in `BuildKit`.
    fn directory(&self, stage: &Stage<'_>) -> Result<String, Diagnostic> {
        self.checked_target(stage, self.value("target").unwrap_or_default())
    }

    fn checked_target(&self, stage: &Stage<'_>, target: &str) -> Result<String, Diagnostic> {
        let target = path::join(stage.directory(), target);
        if target == "/" {
            let error = self.error("a mount cannot be the root of the file system");
            return Err(error.with_hint("give it a target: target=/some/directory"));
        }
        let is_in = |place: &str| {
            target
                .strip_prefix(place)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        if KERNEL.into_iter().any(is_in) && !is_in(SHARED_MEMORY) {
            let message = format!("nothing can be mounted at {target}");
            let hint =
                "/proc, /sys and /dev are the kernel's; of them only /dev/shm may be a target";
            return Err(self.error(message).with_hint(hint));
        }
        Ok(target)
    }

    fn has_owner(&self) -> bool {
        ["mode", "uid", "gid"]
            .iter()
            .any(|key| self.values.contains_key(key))
    }

    fn owner(&self, mode: u32) -> Result<MountOwner, Diagnostic> {
        let number = |key: &str, radix: u32| {
            let text = self.value(key);
            let parse = |text: &str| {
                let digits = text.bytes().all(|b| b.is_ascii_digit());
                let number = u32::from_str_radix(text, radix).ok();
                // The highest id means "leave it as it is" to the kernel.
                number.filter(|number| digits && *number != u32::MAX)
            };
            let invalid = || {
                let what = if radix == 8 {
                    "an octal number"
                } else {
                    "a number"
                };
                self.error(format!(
                    "{key} is {what}, not {:?}",
                    text.unwrap_or_default()
                ))
            };
            text.map(|text| parse(text).ok_or_else(invalid)).transpose()
        };
        let mode = number("mode", 8)?.unwrap_or(mode);
        if mode > MODE_MAX {
            return Err(self.error(format!("{mode:o} is not a mode")));
        }
        Ok(MountOwner {
            uid: number("uid", 10)?.unwrap_or(0),
            gid: number("gid", 10)?.unwrap_or(0),
            mode,
        })
    }

    fn size(&self) -> Result<Option<u64>, Diagnostic> {
        let Some(text) = self.value("size") else {
            return Ok(None);
        };
        let size = size_in_bytes(text).ok_or_else(|| {
            let error = self.error(format!("{text:?} is not a size"));
            error.with_hint("a number of bytes, or one with k, m or g: size=64m")
        })?;
        // No limit at all, as in `BuildKit`.
        Ok((size > 0).then_some(size))
    }
}

/// Reads `64m`, `1.5 GiB`, `4096`: powers of 1024 whatever the letters say, as docker does.
pub fn size_in_bytes(text: &str) -> Option<u64> {
    let unit = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, unit) = text.split_at(unit.unwrap_or(text.len()));
    let unit = unit.strip_prefix(' ').unwrap_or(unit).to_ascii_lowercase();
    let exponent = match unit.strip_suffix('b').unwrap_or(&unit) {
        "" => 0,
        "k" | "ki" => 1,
        "m" | "mi" => 2,
        "g" | "gi" => 3,
        "t" | "ti" => 4,
        "p" | "pi" => 5,
        _ => return None,
    };
    let scale = 1_u64 << (10 * exponent);
    match number.split_once('.') {
        None => number.parse::<u64>().ok()?.checked_mul(scale),
        Some((whole, fraction)) => {
            let whole = whole.parse::<u64>().ok()?.checked_mul(scale)?;
            let digits = u32::try_from(fraction.len()).ok().filter(|n| *n <= 9)?;
            let part = u128::from(fraction.parse::<u64>().ok()?) * u128::from(scale);
            let part = u64::try_from(part / u128::from(10_u64.pow(digits))).ok()?;
            whole.checked_add(part)
        }
    }
}

fn base_name(path: &str) -> &str {
    let path = path.trim_end_matches('/');
    path.rsplit('/').next().unwrap_or(path)
}

fn canonical(key: &str) -> &str {
    let alias = ALIASES.iter().find(|(alias, _)| *alias == key);
    alias.map_or(key, |(_, key)| *key)
}

/// Cuts the value of a flag into its fields, as in CSV: `"a,b"` is one, `""` within it a quote.
fn split(flag: &Flag) -> Result<Vec<(String, Option<String>)>, Diagnostic> {
    let text = flag.value.as_deref().unwrap_or_default();
    let error = |message: &str| Diagnostic::error(flag.span, message);
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        let (field, after) = if let Some(quoted) = rest.strip_prefix('"') {
            take_quoted(quoted).ok_or_else(|| error("a quote is not closed"))?
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            let (field, after) = rest.split_at(end);
            if field.contains('"') {
                return Err(error("a quote stands in the middle of a field")
                    .with_hint("quote the whole field: \"source=a,b\""));
            }
            (field.to_owned(), after)
        };
        if field.is_empty() {
            return Err(error("a mount has an empty field").with_hint("type=cache,target=/path"));
        }
        fields.push(match field.split_once('=') {
            Some((key, value)) => (key.to_ascii_lowercase(), Some(value.to_owned())),
            None => (field.to_ascii_lowercase(), None),
        });
        rest = match after.strip_prefix(',') {
            Some(rest) => rest,
            None if after.is_empty() => return Ok(fields),
            None => return Err(error("something follows a closing quote")),
        };
    }
}

/// Returns what is within the quotes that `text` closes, and what follows.
fn take_quoted(text: &str) -> Option<(String, &str)> {
    let mut field = String::new();
    let mut rest = text;
    loop {
        let (before, after) = rest.split_once('"')?;
        field.push_str(before);
        match after.strip_prefix('"') {
            Some(after) => {
                field.push('"');
                rest = after;
            }
            None => return Some((field, after)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        for (text, bytes) in [
            ("4096", 4096),
            ("64m", 64 << 20),
            ("64MB", 64 << 20),
            ("1.5k", 1536),
            ("2 GiB", 2 << 30),
            ("0", 0),
        ] {
            assert_eq!(size_in_bytes(text), Some(bytes), "{text}");
        }
        for text in [
            "",
            "m",
            "-1",
            "1x",
            "1e3",
            "99999999999999999999",
            "99999999p",
            "1.",
            "1.0000000000k",
        ] {
            assert_eq!(size_in_bytes(text), None, "{text}");
        }
    }

    #[test]
    fn fields_are_cut_as_in_csv() {
        let fields = |text: &str| {
            split(&Flag {
                name: "mount".to_owned(),
                value: Some(text.to_owned()),
                span: Span::default(),
            })
        };
        let pair = |key: &str, value: &str| (key.to_owned(), Some(value.to_owned()));
        assert_eq!(
            fields("TYPE=bind,\"src=a,\"\"b\",ro").unwrap(),
            [
                pair("type", "bind"),
                pair("src", "a,\"b"),
                ("ro".to_owned(), None)
            ]
        );
        for broken in ["", "a=1,,b=2", "\"a", "\"a\"b", "a=\"1\"", "a=1,"] {
            assert!(fields(broken).is_err(), "{broken}");
        }
    }
}
