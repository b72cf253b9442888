//! Who is at the other end of a connection: a certificate or a token becomes a [`Caller`].
//!
//! What always holds:
//!
//! * Where callers are configured, a request without a token or certificate of one of them has no caller, whatever else it says.
//! * A token that is shown counts, also beside a certificate: one that is wrong is nobody's, whoever's the certificate is.
//! * Tokens are kept as hashes, compared in a time that does not depend on where they differ, and never shown or logged.
//! * A file of tokens that cannot be read any more lets nobody in.
//!
//! What a caller may do is decided where it wants to ([`crate::access`]).

mod certificate;
mod files;

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::certificate::PeerNames;
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
    known: Arc<Known>,
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
        if configured.is_empty() {
            let anybody = Known::Anybody(Arc::new(Caller::trusted()));
            return Ok(Self {
                known: Arc::new(anybody),
            });
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
        Ok(Self {
            known: Arc::new(Known::Listed {
                certificates,
                hashes,
                files,
                current: RwLock::new(current),
            }),
        })
    }

    /// Tells whether only those who are known may call.
    pub fn are_listed(&self) -> bool {
        matches!(*self.known, Known::Listed { .. })
    }

    /// Looks at the files from time to time, until the service stops.
    pub fn keep_read(&self, tasks: &TaskTracker, stop: &CancellationToken) {
        if matches!(&*self.known, Known::Listed { files, .. } if !files.is_empty()) {
            let (callers, stop) = (self.clone(), stop.clone());
            tasks.spawn(async move {
                let mut ticks = tokio::time::interval(LOOK_INTERVAL);
                while stop.run_until_cancelled(ticks.tick()).await.is_some() {
                    let callers = callers.clone();
                    let looked = tokio::task::spawn_blocking(move || callers.look()).await;
                    if let Err(error) = looked {
                        tracing::error!(%error, "files of tokens cannot be looked at");
                    }
                }
            });
        }
    }

    /// Reads files that have changed.
    fn look(&self) {
        let Known::Listed { files, current, .. } = &*self.known else {
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

    /// Returns who sent a request with these headers over a connection of this peer; `None` when nobody knows.
    pub fn identify(&self, headers: &HeaderMap, peer: Option<&PeerNames>) -> Option<Arc<Caller>> {
        let (certificates, hashes, current) = match &*self.known {
            Known::Anybody(caller) => return Some(Arc::clone(caller)),
            Known::Listed {
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
        callers.look();
        assert!(may(&old) && may(&new));
        std::fs::write(&path, &new).unwrap();
        callers.look();
        assert!(!may(&old) && may(&new));
        // What is no token takes the place of none that was.
        std::fs::write(&path, "short").unwrap();
        callers.look();
        assert!(!may(&old) && !may(&new) && !may("short"));
        std::fs::remove_file(&path).unwrap();
        callers.look();
        assert!(!may(&new));
        std::fs::write(&path, &new).unwrap();
        callers.look();
        assert!(may(&new));
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
