//! Who is at the other end of a connection: a certificate or a token becomes a [`Caller`].
//!
//! What always holds:
//!
//! * Where callers are configured, a request without a token or certificate of one of them has no caller, whatever else it says.
//! * A token that is shown counts, also beside a certificate: one that is wrong is nobody's, whoever's the certificate is.
//! * Tokens are kept as hashes, compared in a time that does not depend on where they differ, and never shown or logged.
//! * A file of tokens that cannot be read any more lets nobody in.
//! * A configuration that was changed and cannot be used changes nothing. Where callers are configured, there are always some.
//!
//! What a caller may do is decided where it wants to ([`crate::access`]).

mod certificate;
mod configuration;
mod files;

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::certificate::PeerNames;
use self::configuration::ConfigFile;
use self::files::TokenFile;
pub use self::files::TokenFileError;
use crate::access::Caller;
use crate::config::{Caller as Configured, CertificateName, TokenHash};

/// How often files of tokens are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Longest `Authorization` header that is looked at.
const HEADER_MAX_BYTES: usize = 8 << 10;

/// Everybody who may call. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Callers {
    known: Arc<RwLock<Arc<Known>>>,
}

/// Tells why callers stay as they are.
#[derive(Debug, thiserror::Error)]
pub enum ReplaceError {
    /// There were callers and would be none, or the other way round: then the server would be open to others than it was started for.
    #[error("have callers from now on, or none: that needs a restart")]
    Openness,
    /// Their tokens cannot be used.
    #[error("know the callers by their tokens")]
    Tokens(#[source] TokenFileError),
}

#[derive(Debug)]
enum Known {
    /// Nobody is configured: whoever reaches the port is trusted.
    Anybody(Arc<Caller>),
    /// These and no others.
    Listed {
        certificates: Vec<(CertificateName, Arc<Caller>)>,
        hashes: Vec<(TokenHash, Arc<Caller>)>,
        files: Vec<(TokenFile, Arc<Caller>)>,
        /// What is in the files now.
        current: RwLock<Vec<(TokenHash, Arc<Caller>)>>,
    },
}

impl Callers {
    /// Returns those that are configured; reads their files.
    ///
    /// # Errors
    /// When a file cannot be read, or holds what is no token.
    pub fn open(configured: &[Configured]) -> Result<Self, TokenFileError> {
        let known = Known::open(configured)?;
        Ok(Self {
            known: Arc::new(RwLock::new(Arc::new(known))),
        })
    }

    fn known(&self) -> Arc<Known> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&known)
    }

    /// Lets those in who are configured now, and nobody else.
    ///
    /// # Errors
    /// When that cannot be done while the service runs; it stays as it was then.
    pub fn replace(&self, configured: &[Configured]) -> Result<(), ReplaceError> {
        if configured.is_empty() == self.are_listed() {
            return Err(ReplaceError::Openness);
        }
        let known = Known::open(configured).map_err(ReplaceError::Tokens)?;
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(known);
        Ok(())
    }

    /// Tells whether only those who are known may call.
    pub fn are_listed(&self) -> bool {
        matches!(*self.known(), Known::Listed { .. })
    }

    /// Looks at the files from time to time, and at the configuration's, until the service stops.
    pub fn keep_read(&self, file: Option<&Path>, tasks: &TaskTracker, stop: &CancellationToken) {
        if !self.are_listed() {
            return;
        }
        let (callers, stop) = (self.clone(), stop.clone());
        let mut file = file.map(ConfigFile::new);
        tasks.spawn(async move {
            let mut ticks = tokio::time::interval(LOOK_INTERVAL);
            while stop.run_until_cancelled(ticks.tick()).await.is_some() {
                let callers = callers.clone();
                let looked = tokio::task::spawn_blocking(move || {
                    if let Some(file) = &mut file {
                        file.look(&callers);
                    }
                    callers.known().look();
                    file
                });
                match looked.await {
                    Ok(looked) => file = looked,
                    Err(error) => {
                        tracing::error!(%error, "files of tokens cannot be looked at");
                        return;
                    }
                }
            }
        });
    }

    /// Returns who sent a request with these headers over a connection of this peer; `None` when nobody knows.
    pub fn identify(&self, headers: &HeaderMap, peer: Option<&PeerNames>) -> Option<Arc<Caller>> {
        self.known().identify(headers, peer)
    }
}

impl Known {
    fn open(configured: &[Configured]) -> Result<Self, TokenFileError> {
        if configured.is_empty() {
            return Ok(Self::Anybody(Arc::new(Caller::trusted())));
        }
        let (mut certificates, mut hashes, mut files, mut current) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for one in configured {
            let caller = Arc::new(Caller {
                name: one.name.clone(),
                tenant: one.tenant.clone(),
                rights: one.rights.clone(),
            });
            let with = |caller: &Arc<Caller>| Arc::clone(caller);
            certificates.extend(
                one.certificates
                    .iter()
                    .cloned()
                    .map(|name| (name, with(&caller))),
            );
            hashes.extend(one.token_sha256.iter().map(|hash| (*hash, with(&caller))));
            if let Some(path) = &one.token_file {
                let file = TokenFile::open(path)?;
                current.extend(file.hashes().iter().map(|hash| (*hash, with(&caller))));
                files.push((file, caller));
            }
        }
        Ok(Self::Listed {
            certificates,
            hashes,
            files,
            current: RwLock::new(current),
        })
    }

    /// Reads files that have changed.
    fn look(&self) {
        let Self::Listed { files, current, .. } = self else {
            return;
        };
        let mut has_changed = false;
        for (file, caller) in files {
            has_changed |= file.look(&caller.name);
        }
        if has_changed {
            let hashes = files.iter().flat_map(|(file, caller)| {
                let hashes = file.hashes().into_iter();
                hashes.map(|hash| (hash, Arc::clone(caller)))
            });
            let hashes = hashes.collect();
            *current.write().unwrap_or_else(PoisonError::into_inner) = hashes;
        }
    }

    fn identify(&self, headers: &HeaderMap, peer: Option<&PeerNames>) -> Option<Arc<Caller>> {
        let (certificates, hashes, current) = match self {
            Self::Anybody(caller) => return Some(Arc::clone(caller)),
            Self::Listed {
                certificates,
                hashes,
                current,
                ..
            } => (certificates, hashes, current),
        };
        let mut shown = headers.get_all(AUTHORIZATION).iter();
        let Some(authorization) = shown.next() else {
            let peer = peer?;
            // The first one, in the order of the configuration.
            let found = certificates.iter().find(|(name, _)| peer.has(name));
            return found.map(|(_, caller)| Arc::clone(caller));
        };
        if shown.next().is_some() {
            return None;
        }
        let token = token_in(authorization)?;
        let hash = TokenHash::of(&token);
        let current = current.read().unwrap_or_else(PoisonError::into_inner);
        // All of them, also after one was found: how long it takes says nothing.
        let all = hashes.iter().chain(current.iter());
        all.fold(None, |found, (known, caller)| {
            if known.is(&hash) {
                Some(Arc::clone(caller))
            } else {
                found
            }
        })
    }
}

/// Returns the token of `Bearer TOKEN`, or the password of `Basic BASE64(user:password)`.
fn token_in(authorization: &HeaderValue) -> Option<Vec<u8>> {
    let text = authorization.to_str().ok()?;
    if text.len() > HEADER_MAX_BYTES {
        return None;
    }
    let (scheme, rest) = text.split_once(' ')?;
    let rest = rest.trim();
    let token = if scheme.eq_ignore_ascii_case("bearer") {
        rest.as_bytes().to_vec()
    } else if scheme.eq_ignore_ascii_case("basic") {
        let pair = STANDARD.decode(rest).ok()?;
        let at = pair.iter().position(|byte| *byte == b':')?;
        pair.get(at + 1..)?.to_vec()
    } else {
        return None;
    };
    (!token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::access::{Right, Tenant};

    const TOKEN: &str = "0123456789abcdef0123456789abcdef";

    fn configured(name: &str) -> Configured {
        Configured {
            name: name.to_owned(),
            tenant: Tenant::new(name).unwrap(),
            rights: BTreeSet::from([Right::Build]),
            token_file: None,
            token_sha256: Vec::new(),
            certificates: Vec::new(),
        }
    }

    fn headers(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, value.parse().unwrap());
        }
        headers
    }

    fn who(callers: &Callers, values: &[&str], peer: Option<&PeerNames>) -> Option<String> {
        let found = callers.identify(&headers(values), peer);
        found.map(|caller| caller.name.clone())
    }

    #[test]
    fn a_token_is_one_callers_in_every_way_that_it_can_be_shown() {
        let mut one = configured("one");
        one.token_sha256 = vec![TokenHash::of(TOKEN.as_bytes())];
        let callers = Callers::open(&[configured_by_hash("two"), one]).unwrap();
        let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
        for good in [
            format!("Bearer {TOKEN}"),
            format!("bearer  {TOKEN}"),
            basic(&format!("anybody:{TOKEN}")),
            basic(&format!(":{TOKEN}")),
        ] {
            assert_eq!(
                who(&callers, &[&good], None).as_deref(),
                Some("one"),
                "{good}"
            );
        }
        for bad in [
            "",
            "Bearer",
            "Bearer ",
            TOKEN,
            &format!("Bearer {}", &TOKEN[1..]),
            &format!("Bearer {TOKEN}0"),
            &format!("Bearer {}", TOKEN.to_uppercase()),
            &format!("Digest {TOKEN}"),
            &basic(TOKEN),
            &basic("user:"),
            "Basic !!!",
            &format!("Bearer {}", "x".repeat(HEADER_MAX_BYTES)),
        ] {
            assert_eq!(who(&callers, &[bad], None), None, "{bad}");
        }
        let good = format!("Bearer {TOKEN}");
        assert_eq!(who(&callers, &[&good, &good], None), None);
        assert_eq!(who(&callers, &[], None), None);
    }

    fn configured_by_hash(name: &str) -> Configured {
        Configured {
            token_sha256: vec![TokenHash::of(name.as_bytes())],
            ..configured(name)
        }
    }

    #[test]
    fn a_wrong_token_is_nobodys_also_beside_a_certificate() {
        let mut one = configured("one");
        one.certificates = vec!["cn:one".parse().unwrap()];
        let callers = Callers::open(&[one, configured_by_hash("two")]).unwrap();
        let peer = PeerNames::of_names(vec!["cn:one".parse().unwrap()]);
        assert_eq!(who(&callers, &[], Some(&peer)).as_deref(), Some("one"));
        assert_eq!(
            who(&callers, &["Bearer two"], Some(&peer)).as_deref(),
            Some("two")
        );
        assert_eq!(who(&callers, &["Bearer three"], Some(&peer)), None);
        let other = PeerNames::of_names(vec!["dns:one".parse().unwrap()]);
        assert_eq!(who(&callers, &[], Some(&other)), None);
    }

    #[test]
    fn a_file_of_tokens_is_read_again_and_lets_nobody_in_once_it_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        let (old, new) = ("a".repeat(32), "b".repeat(40));
        std::fs::write(&path, format!("# of the ci\n{old}\n\n")).unwrap();
        let mut one = configured("one");
        one.token_file = Some(path.clone());
        let callers = Callers::open(&[one]).unwrap();
        let may = |token: &str| who(&callers, &[&format!("Bearer {token}")], None).is_some();
        assert!(may(&old) && !may(&new) && !may("# of the ci"));
        std::fs::write(&path, format!("{new}\n{old}\n")).unwrap();
        callers.known().look();
        assert!(may(&old) && may(&new));
        std::fs::write(&path, &new).unwrap();
        callers.known().look();
        assert!(!may(&old) && may(&new));
        // What is no token takes the place of none that was.
        std::fs::write(&path, "short").unwrap();
        callers.known().look();
        assert!(!may(&old) && !may(&new) && !may("short"));
        std::fs::remove_file(&path).unwrap();
        callers.known().look();
        assert!(!may(&new));
        std::fs::write(&path, &new).unwrap();
        callers.known().look();
        assert!(may(&new));
    }

    #[test]
    fn callers_of_a_configuration_that_changes_come_and_go_and_a_broken_one_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kiln.toml");
        let hash = |token: &str| {
            let digest = oci::Digest::sha256(token.as_bytes());
            digest.hex().to_owned()
        };
        let with = |callers: &[(&str, &str)]| {
            let table = |(name, token): &(&str, &str)| {
                let hash = hash(token);
                format!(
                    "[[callers]]\nname = \"{name}\"\nrights = [\"build\"]\ntoken_sha256 = [\"{hash}\"]\n"
                )
            };
            callers.iter().map(table).collect::<String>()
        };
        std::fs::write(&path, with(&[("one", "first")])).unwrap();
        let parsed = crate::config::parse(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let callers = Callers::open(&parsed.config.callers).unwrap();
        let mut file = ConfigFile::new(&path);
        let may = |token: &str| who(&callers, &[&format!("Bearer {token}")], None);
        file.look(&callers);
        assert_eq!(may("first").as_deref(), Some("one"));
        std::fs::write(&path, with(&[("one", "first"), ("two", "second")])).unwrap();
        file.look(&callers);
        assert_eq!(may("second").as_deref(), Some("two"));
        std::fs::write(&path, with(&[("two", "second")])).unwrap();
        file.look(&callers);
        assert_eq!(
            (may("first"), may("second").as_deref()),
            (None, Some("two"))
        );
        // Neither a mistake nor an empty file lets anybody in, or out.
        for broken in [
            "[[callers",
            "",
            "listen = 7",
            "[[callers]]\nname = \"x\"\nrights = [\"build\"]\ntoken_file = \"/nowhere\"",
        ] {
            std::fs::write(&path, broken).unwrap();
            file.look(&callers);
            assert_eq!(may("second").as_deref(), Some("two"), "{broken}");
            assert_eq!(who(&callers, &[], None), None);
        }
        std::fs::remove_file(&path).unwrap();
        file.look(&callers);
        assert_eq!(may("second").as_deref(), Some("two"));
        std::fs::write(&path, with(&[("three", "third")])).unwrap();
        file.look(&callers);
        assert_eq!(
            (may("second"), may("third").as_deref()),
            (None, Some("three"))
        );
    }

    #[test]
    fn no_token_is_shown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        std::fs::write(&path, TOKEN).unwrap();
        let mut one = configured("one");
        one.token_file = Some(path.clone());
        let shown = format!("{:?}", Callers::open(std::slice::from_ref(&one)).unwrap());
        assert!(shown.contains("one") && !shown.contains(TOKEN), "{shown}");
        std::fs::write(&path, format!("{TOKEN} and more")).unwrap();
        let error = Callers::open(&[one]).unwrap_err();
        let shown = format!("{error:?} {}", crate::failure::chain(&error));
        assert!(
            shown.contains("line 1") && !shown.contains(TOKEN),
            "{shown}"
        );
    }
}
