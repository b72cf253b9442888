//! What `strace` says of a process, as calls.

use std::collections::HashMap;

/// The calls that change files, or say which file a later one is about.
pub(super) const CALLS: &[&str] = &[
    "open",
    "openat",
    "openat2",
    "creat",
    "close",
    "dup",
    "dup2",
    "dup3",
    "fcntl",
    "read",
    "readv",
    "lseek",
    "write",
    "writev",
    "pwrite64",
    "pwritev",
    "pwritev2",
    "ftruncate",
    "truncate",
    "fallocate",
    "mkdir",
    "mkdirat",
    "link",
    "linkat",
    "rename",
    "renameat",
    "renameat2",
    "unlink",
    "unlinkat",
    "rmdir",
    "symlink",
    "symlinkat",
    "fsync",
    "fdatasync",
    "syncfs",
    "sync",
    "copy_file_range",
    "sendfile",
    "chdir",
    "fchdir",
];

/// One call that was answered well.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) name: String,
    pub(super) arguments: Vec<String>,
    pub(super) result: i64,
}

impl Call {
    /// Returns an argument as it stands there.
    pub(super) fn text(&self, n: usize) -> &str {
        self.arguments.get(n).map_or("", String::as_str)
    }

    /// Returns an argument that is a number.
    pub(super) fn number(&self, n: usize) -> i64 {
        let text = self.text(n);
        let parsed = text.parse();
        parsed.unwrap_or_else(|_| panic!("{}: {text:?} is no number", self.name))
    }

    /// Returns the bytes of an argument, or of all that are quoted in it.
    pub(super) fn bytes(&self, n: usize) -> Vec<u8> {
        let text = self.text(n);
        assert!(!text.ends_with("..."), "{}: it was cut short", self.name);
        text.split('"')
            .skip(1)
            .step_by(2)
            .flat_map(unquoted)
            .collect()
    }
}

/// Returns the calls in the order in which they were answered; those that failed are left out.
pub(super) fn calls(log: &str) -> Vec<Call> {
    let mut begun: HashMap<&str, &str> = HashMap::new();
    let mut calls = Vec::new();
    for line in log.lines() {
        let Some((pid, rest)) = line.split_once(' ') else {
            continue;
        };
        let rest = rest.trim_start();
        if let Some(head) = rest.strip_suffix(" <unfinished ...>") {
            begun.insert(pid, head);
        } else if let Some(resumed) = rest.strip_prefix("<... ") {
            let (_, tail) = resumed.split_once(" resumed>").unwrap_or_default();
            let head = begun.remove(pid).unwrap_or_default();
            calls.extend(parsed(&format!("{head}{tail}")));
        } else {
            calls.extend(parsed(rest));
        }
    }
    calls
}

fn parsed(line: &str) -> Option<Call> {
    let (name, rest) = line.split_once('(')?;
    let (arguments, result) = rest.rsplit_once(") ")?;
    let result = result.trim_start().strip_prefix("= ")?;
    let result = result.split_whitespace().next()?.parse().ok()?;
    (result >= 0).then(|| Call {
        name: name.to_owned(),
        arguments: split(arguments),
        result,
    })
}

/// Splits arguments at commas that are not within something.
fn split(text: &str) -> Vec<String> {
    let (mut depth, mut is_quoted) = (0_usize, false);
    let mut parts = vec![String::new()];
    for character in text.chars() {
        match character {
            '"' => is_quoted = !is_quoted,
            '{' | '[' if !is_quoted => depth += 1,
            '}' | ']' if !is_quoted => depth = depth.saturating_sub(1),
            ',' if !is_quoted && depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(last) = parts.last_mut()
            && !(last.is_empty() && character == ' ')
        {
            last.push(character);
        }
    }
    parts
}

/// Returns the bytes of `\x61\x62`.
fn unquoted(text: &str) -> Vec<u8> {
    let digits = text.split("\\x").skip(1);
    let byte = |digits: &str| u8::from_str_radix(digits, 16);
    digits
        .map(|digits| byte(digits).unwrap_or_else(|error| panic!("{text:?}: {error}")))
        .collect()
}
