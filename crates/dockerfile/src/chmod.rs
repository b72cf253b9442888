//! The mode of `--chmod`: a number in octal, or changes as chmod(1) has them (`u=rwX,go=rX`).
//!
//! Changes are applied in their order to the mode of what is copied, as if no bit were masked. They never depend on who builds.

use std::fmt;

/// Every bit of a mode.
const ALL: u32 = 0o7777;
/// What `a` stands for: permissions and set-id bits, without the sticky bit.
const STANDARD: u32 = 0o6777;
const EXECUTE: u32 = 0o111;
const SET_ID: u32 = 0o6000;
const STICKY: u32 = 0o1000;
const OTHERS: u32 = 0o007;
/// Longest text that is read.
const TEXT_MAX_BYTES: usize = 256;

/// A parsed mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chmod {
    text: String,
    rule: Rule,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Rule {
    Octal(u32),
    Changes(Vec<Change>),
}

/// One change of a mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Set(u32),
    Clear(u32),
    /// Sets bits of directories, and of what could be executed before all changes.
    SetIfExecutable(u32),
    /// Copies the permissions of one class to others.
    Copy {
        /// How far the class is from the lowest bits.
        from_shift: u32,
        /// The classes that it goes to, as a mask.
        to: u32,
        how: Operator,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Add,
    Remove,
    Assign,
}

/// What a mode is changed of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    /// A directory.
    Directory,
    /// Anything else.
    Other,
}

/// Tells why a text is not a mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChmodError {
    /// Begins with a digit, and is not an octal number up to 7777.
    #[error("it is not an octal number up to 7777")]
    Octal,
    /// Anything else.
    #[error("it is neither an octal number nor changes as chmod has them")]
    Changes,
}

impl Chmod {
    /// Parses a mode.
    pub fn parse(text: &str) -> Result<Self, ChmodError> {
        let rule = if text.starts_with(|c: char| c.is_ascii_digit()) {
            let is_octal = text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
            let mode = u32::from_str_radix(text, 8).ok();
            let mode = mode.filter(|mode| is_octal && *mode <= ALL);
            Rule::Octal(mode.ok_or(ChmodError::Octal)?)
        } else if text.len() > TEXT_MAX_BYTES {
            return Err(ChmodError::Changes);
        } else {
            Rule::Changes(parse_changes(text).ok_or(ChmodError::Changes)?)
        };
        Ok(Self {
            text: text.to_owned(),
            rule,
        })
    }

    /// Returns the mode when it is a number, hence the same for everything.
    pub fn fixed(&self) -> Option<u32> {
        match self.rule {
            Rule::Octal(mode) => Some(mode),
            Rule::Changes(_) => None,
        }
    }

    /// Returns what `mode` becomes.
    pub fn apply(&self, mode: u32, node: Node) -> u32 {
        let changes = match &self.rule {
            Rule::Octal(mode) => return *mode,
            Rule::Changes(changes) => changes,
        };
        let before = mode & ALL;
        let is_executable = before & EXECUTE != 0 || node == Node::Directory;
        let skips =
            |change: &&Change| !matches!(change, Change::SetIfExecutable(_)) || is_executable;
        let changes = changes.iter().filter(skips);
        changes.fold(before, |mode, change| change.apply(mode))
    }
}

impl fmt::Display for Chmod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Change {
    fn apply(self, mode: u32) -> u32 {
        match self {
            Self::Set(bits) | Self::SetIfExecutable(bits) => mode | bits,
            Self::Clear(bits) => mode & !bits,
            Self::Copy {
                from_shift,
                to,
                how,
            } => {
                let class = (mode >> from_shift) & OTHERS;
                let bits = (class << 6 | class << 3 | class) & to;
                match how {
                    Operator::Add => mode | bits,
                    Operator::Remove => mode & !bits,
                    Operator::Assign => mode & !(to & 0o777) | bits,
                }
            }
        }
    }
}

/// Parses `clause,clause,…`; a clause is whom it is about, and one or more operators with permissions.
fn parse_changes(text: &str) -> Option<Vec<Change>> {
    let mut changes = Vec::new();
    for clause in text.split(',') {
        let rest = clause.trim_start_matches(['a', 'u', 'g', 'o']);
        let (whom, mut rest) = (clause.strip_suffix(rest)?, rest);
        if rest.is_empty() {
            return None;
        }
        let who = whom.chars().fold(0, |who, c| {
            who | match c {
                'a' => STANDARD,
                'u' => 0o4700,
                'g' => 0o2070,
                _ => OTHERS,
            }
        });
        while let Some(operator) = rest.chars().next() {
            let operator = match operator {
                '+' => Operator::Add,
                '-' => Operator::Remove,
                '=' => Operator::Assign,
                _ => return None,
            };
            let after = rest.get(1..)?;
            rest = after.trim_start_matches(['r', 'w', 'x', 'X', 's', 't', 'u', 'g', 'o']);
            add_action(&mut changes, who, operator, after.strip_suffix(rest)?);
        }
    }
    Some(changes)
}

/// Adds what one operator does. Permissions before a class that is copied take effect before it, as in BSD's setmode.
fn add_action(changes: &mut Vec<Change>, who: u32, operator: Operator, permissions: &str) {
    let mut who = who;
    let (mut bits, mut if_executable) = (0, 0);
    let mut is_assigned = false;
    // Only "others" have neither set-id bits nor the sticky bit.
    let has_special = who == 0 || who & !OTHERS != 0;
    for permission in permissions.chars() {
        match permission {
            'r' => bits |= 0o444,
            'w' => bits |= 0o222,
            'x' => bits |= EXECUTE,
            'X' if operator == Operator::Remove => bits |= EXECUTE,
            'X' => if_executable = EXECUTE,
            's' if has_special => bits |= SET_ID,
            't' if has_special => {
                who |= STICKY;
                bits |= STICKY;
            }
            's' | 't' => {}
            class => {
                if bits != 0 {
                    add_bits(changes, who, operator, bits);
                    bits = 0;
                }
                is_assigned |= operator == Operator::Assign;
                add_if_executable(changes, who, &mut if_executable);
                changes.push(Change::Copy {
                    from_shift: match class {
                        'u' => 6,
                        'g' => 3,
                        _ => 0,
                    },
                    to: if who == 0 { 0o777 } else { who & 0o777 },
                    how: operator,
                });
            }
        }
    }
    if bits != 0 || operator == Operator::Assign && !is_assigned {
        add_bits(changes, who, operator, bits);
    }
    add_if_executable(changes, who, &mut if_executable);
}

fn add_bits(changes: &mut Vec<Change>, who: u32, operator: Operator, bits: u32) {
    // A sticky bit that is asked for without a class is meant.
    let is_everybody = who & !STICKY == 0;
    let bits_of_who = if is_everybody { bits } else { bits & who };
    match operator {
        Operator::Add => changes.push(Change::Set(bits_of_who)),
        Operator::Remove => changes.push(Change::Clear(bits_of_who)),
        Operator::Assign => {
            let cleared = if who == 0 { STANDARD } else { who };
            changes.extend([Change::Clear(cleared), Change::Set(bits_of_who)]);
        }
    }
}

fn add_if_executable(changes: &mut Vec<Change>, who: u32, bits: &mut u32) {
    if *bits != 0 {
        let of_who = if who & !STICKY == 0 {
            *bits
        } else {
            *bits & who
        };
        changes.push(Change::SetIfExecutable(of_who));
        *bits = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(text: &str, mode: u32, node: Node) -> String {
        format!("{:o}", Chmod::parse(text).unwrap().apply(mode, node))
    }

    #[test]
    fn changes_are_those_of_chmod() {
        for (text, mode, file, directory) in [
            ("755", 0o644, "755", "755"),
            ("0", 0o644, "0", "0"),
            ("07777", 0o644, "7777", "7777"),
            ("+x", 0o644, "755", "755"),
            ("a+x", 0o640, "751", "751"),
            ("go-w", 0o666, "644", "644"),
            ("u=rw,g=r,o=r", 0o777, "644", "644"),
            ("u=rwX,go=rX", 0o644, "644", "755"),
            ("u=rwX,go=rX", 0o700, "755", "755"),
            ("a+X", 0o666, "666", "777"),
            ("a+X", 0o124, "135", "135"),
            ("a-X", 0o777, "666", "666"),
            ("g=u", 0o640, "660", "660"),
            ("go=u-w", 0o700, "755", "755"),
            ("go=", 0o777, "700", "700"),
            ("=", 0o6777, "0", "0"),
            ("u+s", 0o755, "4755", "4755"),
            ("g+s", 0o755, "2755", "2755"),
            ("+s", 0o755, "6755", "6755"),
            ("o+s", 0o755, "755", "755"),
            ("+t", 0o755, "1755", "1755"),
            ("o+t", 0o755, "755", "755"),
            ("a=rx", 0o7777, "1555", "1555"),
            ("u=", 0o4755, "55", "55"),
            ("g=u", 0o2750, "2770", "2770"),
            ("o+u", 0o750, "757", "757"),
            ("o-u", 0o757, "750", "750"),
            ("u=rwx,go=rx", 0, "755", "755"),
            ("ugo+rw", 0o100, "766", "766"),
            ("u+rw,g+r,o-x,o+w", 0o124, "766", "766"),
            ("u+r-x", 0o100, "400", "400"),
        ] {
            assert_eq!(applied(text, mode, Node::Other), file, "{text} {mode:o}");
            let of_directory = applied(text, mode, Node::Directory);
            assert_eq!(of_directory, directory, "{text} {mode:o} of a directory");
        }
        assert_eq!(Chmod::parse("755").unwrap().fixed(), Some(0o755));
        assert_eq!(Chmod::parse("+x").unwrap().fixed(), None);
        assert_eq!(Chmod::parse("g=u").unwrap().to_string(), "g=u");
    }

    #[test]
    fn odd_modes_are_refused() {
        for text in [
            "10000",
            "8",
            "7x",
            "0o755",
            "0x1ed",
            "7_5",
            " 755",
            "99999999999999",
        ] {
            assert!(Chmod::parse(text).is_err(), "{text:?} was accepted");
        }
        for text in [
            "", "u", "x", "u+q", "-1", "+755", "u+x,", ",u+x", "u+x,,g+x", "rw", "u +x", "a+x;b",
            "é",
        ] {
            let error = Chmod::parse(text).unwrap_err();
            assert_eq!(error, ChmodError::Changes, "{text:?}");
        }
        assert!(Chmod::parse(&"u+x,".repeat(1000)).is_err());
    }
}
