//! Content digests: `sha256:<64 lower-case hex digits>` (and `sha512:`), made only by hashing or by parsing.
//!
//! Follows the "Digests" section of the OCI image specification. Other algorithms are refused: we could not verify them.

use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::Arc;

use aws_lc_rs::digest as lc;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A hash function that a [`Digest`] may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// SHA-256, the algorithm everybody uses.
    Sha256,
    /// SHA-512, allowed by the specification.
    Sha512,
}

impl Algorithm {
    /// Every one of them.
    pub const ALL: [Self; 2] = [Self::Sha256, Self::Sha512];

    /// Returns the registered name, as it stands before the colon.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    fn n_hex(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

/// The digest of some content. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest {
    algorithm: Algorithm,
    hex: Arc<str>,
}

/// Tells why a text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// No colon between algorithm and hash.
    #[error("digest has no algorithm")]
    MissingAlgorithm,
    /// An algorithm that we cannot verify.
    #[error("digest algorithm is not supported (sha256 and sha512 are)")]
    UnsupportedAlgorithm,
    /// Wrong length, upper case, or other characters.
    #[error("digest is not made of the right number of lower-case hex digits")]
    NotHex,
}

impl Digest {
    /// Returns the SHA-256 digest of `content`.
    pub fn sha256(content: &[u8]) -> Self {
        let mut hasher = Hasher::sha256();
        hasher.update(content);
        hasher.finish()
    }

    /// Returns the SHA-256 hash of `content`, as bytes.
    pub fn sha256_hash(content: &[u8]) -> [u8; 32] {
        let hash = lc::digest(&lc::SHA256, content);
        hash.as_ref().first_chunk().copied().unwrap_or_default()
    }

    /// Returns the digest that a SHA-256 hash is.
    pub fn of_sha256(hash: &[u8; 32]) -> Self {
        Self {
            algorithm: Algorithm::Sha256,
            hex: hex(hash).into(),
        }
    }

    /// Returns the hash as bytes; `None` for other algorithms than SHA-256.
    pub fn to_sha256(&self) -> Option<[u8; 32]> {
        let value = |digit: u8| match digit {
            b'0'..=b'9' => digit - b'0',
            _ => digit - b'a' + 10,
        };
        let mut hash = [0; 32];
        let digits = self.hex.as_bytes().as_chunks::<2>().0;
        if self.algorithm != Algorithm::Sha256 || digits.len() != hash.len() {
            return None;
        }
        for (byte, [high, low]) in hash.iter_mut().zip(digits) {
            *byte = value(*high) << 4 | value(*low);
        }
        Some(hash)
    }

    /// Returns the hash function.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Returns the hash in hex. It is made of `[0-9a-f]` only, hence safe as a file name.
    pub fn hex(&self) -> &str {
        &self.hex
    }

    /// Returns a hasher of this digest's algorithm, to verify content with.
    pub fn hasher(&self) -> Hasher {
        Hasher::new(self.algorithm)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let (name, hex) = text.split_once(':').ok_or(DigestError::MissingAlgorithm)?;
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ => return Err(DigestError::UnsupportedAlgorithm),
        };
        let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if hex.len() != algorithm.n_hex() || !hex.bytes().all(is_hex) {
            return Err(DigestError::NotHex);
        }
        Ok(Self {
            algorithm,
            hex: hex.into(),
        })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Hashes a stream of bytes into a [`Digest`].
#[derive(Clone)]
pub struct Hasher {
    algorithm: Algorithm,
    context: lc::Context,
    size_bytes: u64,
}

impl Hasher {
    /// Returns an empty hasher.
    pub fn new(algorithm: Algorithm) -> Self {
        let context = lc::Context::new(match algorithm {
            Algorithm::Sha256 => &lc::SHA256,
            Algorithm::Sha512 => &lc::SHA512,
        });
        Self {
            algorithm,
            context,
            size_bytes: 0,
        }
    }

    /// Returns an empty SHA-256 hasher.
    pub fn sha256() -> Self {
        Self::new(Algorithm::Sha256)
    }

    /// Adds `bytes` to what is hashed.
    pub fn update(&mut self, bytes: &[u8]) {
        self.context.update(bytes);
        self.size_bytes += bytes.len() as u64;
    }

    /// Returns how many bytes were hashed so far.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Returns the digest of everything that was added.
    pub fn finish(self) -> Digest {
        let hex = hex(self.context.finish().as_ref());
        Digest {
            algorithm: self.algorithm,
            hex: hex.into(),
        }
    }
}

/// Returns bytes as lower-case hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| DIGITS.get(usize::from(nibble)).copied().unwrap_or(b'0');
    let mut hex = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        hex.push(digit(byte >> 4).into());
        hex.push(digit(byte & 15).into());
    }
    hex
}

/// Hashes what is read through it.
#[derive(Debug)]
pub struct Hashed<R> {
    inner: R,
    hasher: Hasher,
}

impl<R> Hashed<R> {
    /// Adds what will be read of `inner` to `hasher`.
    pub fn new(inner: R, hasher: Hasher) -> Self {
        Self { inner, hasher }
    }

    /// Returns the hasher, which has seen what was read and nothing else.
    pub fn into_hasher(self) -> Hasher {
        self.hasher
    }
}

impl<R: io::Read> io::Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hasher.update(buffer.get(..n).unwrap_or_default());
        Ok(n)
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hasher")
            .field("algorithm", &self.algorithm)
            .field("size_bytes", &self.size_bytes)
            .finish_non_exhaustive()
    }
}

impl io::Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashing_gives_the_known_digest_of_nothing() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::sha256(b"").to_string(), empty);
        assert_eq!(empty.parse::<Digest>().unwrap(), Digest::sha256(b""));
    }

    #[test]
    fn what_is_read_through_a_hasher_is_hashed_and_no_more() {
        use std::io::Read;
        let mut reader = Hashed::new(&b"read, not read"[..], Hasher::sha256());
        let mut head = [0; 4];
        reader.read_exact(&mut head).unwrap();
        assert_eq!(&head, b"read");
        assert_eq!(reader.into_hasher().finish(), Digest::sha256(b"read"));
    }

    #[test]
    fn anything_but_a_well_formed_digest_is_refused() {
        let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        for bad in [
            String::new(),
            hex.to_owned(),
            format!("md5:{hex}"),
            format!("sha256:{}", hex.to_uppercase()),
            format!("sha256:{}", &hex[..63]),
            format!("sha256:{hex}0"),
            format!("sha512:{hex}"),
            "sha256:../../../../etc/passwd".to_owned(),
            format!("sha256:{}\0", &hex[..63]),
        ] {
            assert!(bad.parse::<Digest>().is_err(), "{bad} was accepted");
        }
    }
}
