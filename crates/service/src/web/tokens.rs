//! Tokens that open one build's log over HTTP, and nothing else.
//!
//! A token is an authentication code of the build's id under a key of this state directory: nothing has to be stored for each
//! build, and tokens stay good over restarts. Compared in constant time.

use std::fmt;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use engine::id::BuildId;

use crate::whole;

/// Header that carries the token.
pub const HEADER: &str = "x-kiln-log-token";

const KEY_FILE: &str = "log-key";
const KEY_BYTES: usize = 32;

/// Where one log can be read, and with what.
#[derive(Clone)]
pub struct LogGrant {
    /// The address.
    pub url: String,
    /// The header to send.
    pub header: &'static str,
    /// Its value.
    pub token: String,
}

impl fmt::Debug for LogGrant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogGrant")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

/// Makes and checks tokens.
#[derive(Debug, Clone)]
pub struct LogTokens {
    key: hmac::Key,
}

impl LogTokens {
    /// Reads the key in `folder`, or makes one.
    pub fn open(folder: &Path) -> io::Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)?;
        let path = folder.join(KEY_FILE);
        let secret = match fs::read(&path) {
            Ok(secret) => secret,
            Err(error) if error.kind() == io::ErrorKind::NotFound => make_key(&path)?,
            Err(error) => return Err(error),
        };
        if secret.len() != KEY_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, &secret),
        })
    }

    /// Returns where a build's log can be read, and with what.
    pub fn grant(&self, base_url: &str, id: &BuildId) -> LogGrant {
        LogGrant {
            url: format!("{base_url}/logs/{id}"),
            header: HEADER,
            token: self.sign(&message(id)),
        }
    }

    /// Tells whether `token` opens this build's log.
    pub fn opens(&self, id: &BuildId, token: &[u8]) -> bool {
        self.is_signed(&message(id), token)
    }

    /// Returns the authentication code of a message that begins with what it is for.
    pub(super) fn sign(&self, message: &str) -> String {
        let tag = hmac::sign(&self.key, message.as_bytes());
        URL_SAFE_NO_PAD.encode(tag.as_ref())
    }

    /// Tells whether `signature` is this message's.
    pub(super) fn is_signed(&self, message: &str, signature: &[u8]) -> bool {
        let Ok(tag) = URL_SAFE_NO_PAD.decode(signature) else {
            return false;
        };
        hmac::verify(&self.key, message.as_bytes(), &tag).is_ok()
    }
}

/// Returns what is signed: says what it is for, as the key signs other things too.
fn message(id: &BuildId) -> String {
    format!("log {id}")
}

fn make_key(path: &Path) -> io::Result<Vec<u8>> {
    let mut secret = vec![0; KEY_BYTES];
    getrandom::fill(&mut secret).map_err(|error| io::Error::other(error.to_string()))?;
    whole::replace(path, &secret)?;
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_opens_one_log_also_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (BuildId::from_random([1; 16]), BuildId::from_random([2; 16]));
        let tokens = LogTokens::open(folder.path()).unwrap();
        let grant = tokens.grant("http://host:1", &one);
        assert_eq!(grant.url, format!("http://host:1/logs/{one}"));
        let token = grant.token.as_bytes();
        assert!(tokens.opens(&one, token));
        assert!(!tokens.opens(&two, token));
        assert!(!tokens.opens(&one, b""));
        assert!(!tokens.opens(&one, &token[1..]));
        assert!(LogTokens::open(folder.path()).unwrap().opens(&one, token));
        let elsewhere = tempfile::tempdir().unwrap();
        assert!(
            !LogTokens::open(elsewhere.path())
                .unwrap()
                .opens(&one, token)
        );
    }
}
