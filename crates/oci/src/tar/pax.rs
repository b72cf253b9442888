//! PAX records: `LENGTH KEY=VALUE\n`, strictly.

use std::collections::BTreeMap;

const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";
const SPARSE_PREFIX: &[u8] = b"GNU.sparse.";

/// What the `x` header in front of an entry says about it.
#[derive(Debug, Default, Clone)]
pub(super) struct Records {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<i64>,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(super) is_sparse: bool,
}

impl Records {
    /// Parses the content of an `x` header.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        let mut records = Self::default();
        let mut rest = bytes;
        while !rest.is_empty() {
            let (key, value, after) = record(rest)?;
            records.apply(key, value)?;
            rest = after;
        }
        Ok(records)
    }

    /// Tells whether this says anything about an entry, beyond comments and fields that we do not use.
    pub(super) fn is_empty(&self) -> bool {
        let Self {
            path,
            link,
            size,
            uid,
            gid,
            mtime,
            xattrs,
            is_sparse,
        } = self;
        path.is_none()
            && link.is_none()
            && size.is_none()
            && uid.is_none()
            && gid.is_none()
            && mtime.is_none()
            && xattrs.is_empty()
            && !is_sparse
    }

    fn apply(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        match key {
            b"path" => once(&mut self.path, text(value)?),
            b"linkpath" => once(&mut self.link, text(value)?),
            b"size" => once(&mut self.size, decimal(value)?),
            b"uid" => once(&mut self.uid, decimal(value)?),
            b"gid" => once(&mut self.gid, decimal(value)?),
            b"mtime" => once(&mut self.mtime, seconds(value)?),
            _ if key.starts_with(SPARSE_PREFIX) => {
                self.is_sparse = true;
                Ok(())
            }
            _ => match key.strip_prefix(XATTR_PREFIX) {
                Some([]) => Err("an extended attribute has no name"),
                Some(name) if self.xattrs.insert(name.into(), value.into()).is_some() => {
                    Err("an extended attribute is set twice")
                }
                // Everything else (atime, ctime, names of owners, comments) changes nothing about what is unpacked.
                _ => Ok(()),
            },
        }
    }
}

fn once<T>(field: &mut Option<T>, value: T) -> Result<(), &'static str> {
    match field.replace(value) {
        None => Ok(()),
        Some(_) => Err("a PAX record is set twice"),
    }
}

/// Key and value of a record, and what follows it.
type Record<'a> = (&'a [u8], &'a [u8], &'a [u8]);

/// Splits the first record off.
fn record(bytes: &[u8]) -> Result<Record<'_>, &'static str> {
    const BAD: &str = "a PAX record is malformed";
    let space = bytes
        .iter()
        .take(20)
        .position(|byte| *byte == b' ')
        .ok_or(BAD)?;
    let (digits, _) = bytes.split_at_checked(space).ok_or(BAD)?;
    let len = usize::try_from(decimal(digits)?).map_err(|_| BAD)?;
    let (whole, after) = bytes.split_at_checked(len).ok_or(BAD)?;
    let body = whole.get(space + 1..).ok_or(BAD)?;
    let body = body.strip_suffix(b"\n").ok_or(BAD)?;
    let equals = body.iter().position(|byte| *byte == b'=').ok_or(BAD)?;
    let key = body.get(..equals).ok_or(BAD)?;
    let value = body.get(equals + 1..).ok_or(BAD)?;
    if key.is_empty() || key.contains(&0) {
        return Err(BAD);
    }
    Ok((key, value, after))
}

fn text(value: &[u8]) -> Result<Vec<u8>, &'static str> {
    if value.is_empty() {
        return Err("a PAX path is empty");
    }
    if value.contains(&0) {
        return Err("a PAX path contains NUL");
    }
    Ok(value.into())
}

fn decimal(digits: &[u8]) -> Result<u64, &'static str> {
    const BAD: &str = "a PAX record holds a malformed number";
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(BAD);
    }
    let text = std::str::from_utf8(digits).map_err(|_| BAD)?;
    text.parse().map_err(|_| BAD)
}

/// Parses `[-]seconds[.fraction]`, rounding down.
fn seconds(value: &[u8]) -> Result<i64, &'static str> {
    const BAD: &str = "a PAX record holds a malformed time";
    let (is_negative, digits) = match value.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, value),
    };
    let mut parts = digits.splitn(2, |byte| *byte == b'.');
    let whole = decimal(parts.next().unwrap_or_default()).map_err(|_| BAD)?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(BAD);
    }
    let has_fraction = fraction.iter().any(|digit| *digit != b'0');
    let floor = if is_negative {
        -i128::from(whole) - i128::from(has_fraction)
    } else {
        i128::from(whole)
    };
    i64::try_from(floor).map_err(|_| BAD)
}

/// Adds one record to `out`.
pub(super) fn push_record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let body = key.len() + value.len() + 3;
    let mut len = body;
    // The length counts its own digits, so that it may grow once more.
    while len != body + digits(len) {
        len = body + digits(len);
    }
    out.extend_from_slice(len.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// Adds the record of an extended attribute to `out`.
pub(super) fn push_xattr(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    let key = [XATTR_PREFIX, name].concat();
    push_record(out, &key, value);
}

fn digits(number: usize) -> usize {
    number.to_string().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_that_are_written_are_read_again() {
        for len in (0..120).chain(980..1000) {
            let mut bytes = Vec::new();
            let path = vec![b'p'; len + 1];
            push_record(&mut bytes, b"path", &path);
            push_xattr(&mut bytes, b"user.k", b"a=b\n\0");
            let records = Records::parse(&bytes).unwrap();
            assert_eq!(records.path.as_deref(), Some(&path[..]));
            assert_eq!(records.xattrs[&b"user.k"[..]], b"a=b\n\0");
        }
    }

    #[test]
    fn malformed_records_are_refused() {
        for bad in [
            &b"5 a=b\n"[..],
            b"7 a=b\n",
            b"06 a=b",
            b" 6 a=b\n",
            b"6 =ab\n",
            b"6 aab\n",
            b"99999999999999999999 a=b\n",
            b"11 path=\0x\n",
            b"8 path=\n",
            b"10 size=-1\n",
            b"11 size=1.5\n",
            b"9 size=1\n9 size=1\n",
            b"18 SCHILY.xattr.=\n",
            b"0 \n",
        ] {
            assert!(
                Records::parse(bad).is_err(),
                "{:?}",
                String::from_utf8_lossy(bad)
            );
        }
    }

    #[test]
    fn times_are_rounded_down() {
        for (text, expected) in [
            ("1.9", 1),
            ("-1.5", -2),
            ("-1.0", -1),
            ("-0.1", -1),
            ("7", 7),
        ] {
            assert_eq!(seconds(text.as_bytes()), Ok(expected), "{text}");
        }
        for bad in ["", "+1", "1e3", ".", "9223372036854775808", "--1", "nan"] {
            assert!(seconds(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
