//! One 512-byte header block: fields by offset, numbers in octal or base 256, the checksum.

use super::BLOCK_BYTES;

/// A header block.
#[derive(Clone)]
pub(super) struct Block(pub(super) [u8; BLOCK_BYTES]);

/// A field: offset and length.
pub(super) type Field = (usize, usize);

pub(super) const NAME: Field = (0, 100);
pub(super) const MODE: Field = (100, 8);
pub(super) const UID: Field = (108, 8);
pub(super) const GID: Field = (116, 8);
pub(super) const SIZE: Field = (124, 12);
pub(super) const MTIME: Field = (136, 12);
pub(super) const CHECKSUM: Field = (148, 8);
pub(super) const TYPE: usize = 156;
pub(super) const LINK: Field = (157, 100);
pub(super) const MAGIC: Field = (257, 8);
pub(super) const MAJOR: Field = (329, 8);
pub(super) const MINOR: Field = (337, 8);
pub(super) const PREFIX: Field = (345, 155);
/// Where the `star` dialect says that it is used; its prefix is shorter than that of ustar.
pub(super) const STAR_TRAILER: Field = (508, 4);

/// Which dialect a header is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// No magic.
    V7,
    /// POSIX.
    Ustar,
    /// GNU's own.
    Gnu,
}

impl Block {
    pub(super) fn empty() -> Self {
        Self([0; BLOCK_BYTES])
    }

    pub(super) fn field(&self, (start, len): Field) -> &[u8] {
        self.0.get(start..start + len).unwrap_or_default()
    }

    pub(super) fn put(&mut self, (start, len): Field, value: &[u8]) {
        if let Some(field) = self.0.get_mut(start..start + len) {
            for (to, from) in field.iter_mut().zip(value) {
                *to = *from;
            }
        }
    }

    /// Writes `value` as octal digits with a closing NUL. False when it does not fit.
    pub(super) fn put_octal(&mut self, field: Field, value: u64) -> bool {
        let width = field.1 - 1;
        let digits = format!("{value:0width$o}");
        if digits.len() > width {
            return false;
        }
        self.put(field, digits.as_bytes());
        true
    }

    pub(super) fn type_flag(&self) -> u8 {
        self.0.get(TYPE).copied().unwrap_or_default()
    }

    pub(super) fn is_zero(&self) -> bool {
        self.0.iter().all(|byte| *byte == 0)
    }

    pub(super) fn dialect(&self) -> Dialect {
        match self.field(MAGIC) {
            b"ustar\x0000" => Dialect::Ustar,
            b"ustar  \0" => Dialect::Gnu,
            _ => Dialect::V7,
        }
    }

    /// Returns the sums of all bytes, the checksum field read as blanks: as unsigned and as signed bytes, for old
    /// programs summed signed ones.
    pub(super) fn checksums(&self) -> (i64, i64) {
        let (start, len) = CHECKSUM;
        let mut unsigned = 0;
        let mut signed = 0;
        for (at, byte) in self.0.iter().enumerate() {
            let byte = if (start..start + len).contains(&at) {
                b' '
            } else {
                *byte
            };
            unsigned += i64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        (unsigned, signed)
    }

    /// Writes the checksum, as the last field to be written.
    pub(super) fn seal(&mut self) {
        let (sum, _) = self.checksums();
        self.put(CHECKSUM, format!("{sum:06o}\0 ").as_bytes());
    }

    /// Returns a text field up to its first NUL.
    pub(super) fn text(&self, field: Field) -> &[u8] {
        until_nul(self.field(field))
    }

    /// Parses a numeric field; `None` when it is no number or does not fit. An empty field is 0.
    pub(super) fn number(&self, field: Field) -> Option<i64> {
        let bytes = self.field(field);
        match bytes.first()? {
            0x80..=0xff => base_256(bytes),
            _ => octal(bytes),
        }
    }
}

/// Returns `bytes` up to the first NUL.
pub(super) fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn octal(bytes: &[u8]) -> Option<i64> {
    let is_pad = |byte: &u8| matches!(byte, b' ' | 0);
    let start = bytes
        .iter()
        .position(|byte| !is_pad(byte))
        .unwrap_or(bytes.len());
    let end = bytes
        .iter()
        .rposition(|byte| !is_pad(byte))
        .map_or(start, |last| last + 1);
    let mut value: i64 = 0;
    for byte in bytes.get(start..end)? {
        match byte {
            b'0'..=b'7' => value = value.checked_mul(8)?.checked_add(i64::from(byte - b'0'))?,
            _ => return None,
        }
    }
    Some(value)
}

/// Two's complement, big endian, in the field without its highest bit.
fn base_256(bytes: &[u8]) -> Option<i64> {
    let (first, rest) = bytes.split_first()?;
    let is_negative = first & 0x40 != 0;
    let mut value = i128::from(first & 0x3f) - if is_negative { 0x40 } else { 0 };
    for byte in rest {
        value = value.checked_mul(256)?.checked_add(i128::from(*byte))?;
    }
    i64::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of(value: &[u8]) -> Option<i64> {
        let mut block = Block::empty();
        block.put(SIZE, value);
        block.number(SIZE)
    }

    #[test]
    fn numbers_are_read_in_every_spelling_in_use() {
        assert_eq!(size_of(b"00000000010\0"), Some(8));
        assert_eq!(size_of(b"         10 "), Some(8));
        assert_eq!(size_of(b""), Some(0));
        assert_eq!(
            size_of(b"\x80\0\0\0\0\0\0\x02\0\0\0\x01"),
            Some(0x2_0000_0001)
        );
        assert_eq!(
            size_of(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe"),
            Some(-2)
        );
        for bad in [
            &b"8"[..],
            b"1 1",
            b"-1",
            b"0x1",
            b"1\x001",
            b"\x80\xff\0\0\0\0\0\0\0\0\0\0",
        ] {
            assert_eq!(size_of(bad), None, "{bad:?}");
        }
    }
}
