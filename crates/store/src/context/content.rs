//! What a content is called: the SHA-256 of its bytes, in 32 bytes, because there are millions of them.

use oci::Digest;
use oci::digest::Algorithm;

/// The SHA-256 of a content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContentId([u8; 32]);

/// SHA-256 of no bytes.
const NOTHING: [u8; 32] = [
    0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24,
    0x27, 0xae, 0x41, 0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55,
];

impl ContentId {
    /// Returns what `bytes` are called.
    pub fn of(bytes: &[u8]) -> Self {
        Self::new(&Digest::sha256(bytes)).unwrap_or(Self([0; 32]))
    }

    /// Returns what no bytes are called.
    pub fn of_nothing() -> Self {
        Self(NOTHING)
    }

    /// Returns the content of this digest; `None` for another algorithm than SHA-256.
    pub fn new(digest: &Digest) -> Option<Self> {
        if digest.algorithm() != Algorithm::Sha256 {
            return None;
        }
        Self::from_hex(digest.hex())
    }

    pub(super) fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub(super) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns the content whose file has the name `hex`.
    pub(crate) fn from_hex(hex: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if hex.len() != 64 || !hex.bytes().all(is_digit) {
            return None;
        }
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Self(bytes))
    }

    /// Returns the name of its file.
    pub(super) fn hex(&self) -> String {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let digit = |half: u8| DIGITS.get(usize::from(half & 15)).copied().map(char::from);
        let pairs = self
            .0
            .iter()
            .flat_map(|byte| [digit(byte >> 4), digit(*byte)]);
        pairs.flatten().collect()
    }

    /// Returns where its file is below the folder of contents.
    pub(crate) fn place(&self) -> String {
        let hex = self.hex();
        format!("{}/{hex}", hex.get(..2).unwrap_or_default())
    }
}

impl std::fmt::Display for ContentId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_is_called_by_its_sha256() {
        assert_eq!(ContentId::of(b""), ContentId::of_nothing());
        let digest = Digest::sha256(b"x");
        let content = ContentId::new(&digest).unwrap();
        assert_eq!(content, ContentId::of(b"x"));
        assert_eq!(content.to_string(), digest.to_string());
        assert_eq!(ContentId::from_hex(&content.hex()), Some(content));
        assert_eq!(content.place().len(), 67);
        let other: Digest = format!("sha512:{}", "a".repeat(128)).parse().unwrap();
        assert_eq!(ContentId::new(&other), None);
        assert_eq!(ContentId::from_hex(&"+1".repeat(32)), None);
    }
}
