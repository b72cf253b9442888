//! The one place where secrets are serialised: `#[serde(with = "registry::keychain::exposed")]` on a [`Keychain`].
//!
//! For the specification of a build, which goes to its worker over standard input and is never written to disk.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Credential, Keychain, Secret};

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Exposed {
    Basic { username: String, password: String },
    IdentityToken(String),
    RegistryToken(String),
}

/// Serialises a keychain with its secrets.
pub fn serialize<S: Serializer>(keychain: &Keychain, serializer: S) -> Result<S::Ok, S::Error> {
    let exposed = keychain.credentials.iter().map(|(host, credential)| {
        let credential = match credential {
            Credential::Basic { username, password } => Exposed::Basic {
                username: username.clone(),
                password: password.reveal().to_owned(),
            },
            Credential::IdentityToken(token) => Exposed::IdentityToken(token.reveal().to_owned()),
            Credential::RegistryToken(token) => Exposed::RegistryToken(token.reveal().to_owned()),
        };
        (host, credential)
    });
    serializer.collect_map(exposed)
}

/// Deserialises what [`serialize`] wrote.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Keychain, D::Error> {
    let mut keychain = Keychain::empty();
    for (host, credential) in BTreeMap::<String, Exposed>::deserialize(deserializer)? {
        let credential = match credential {
            Exposed::Basic { username, password } => Credential::Basic {
                username,
                password: Secret::new(password),
            },
            Exposed::IdentityToken(token) => Credential::IdentityToken(Secret::new(token)),
            Exposed::RegistryToken(token) => Credential::RegistryToken(Secret::new(token)),
        };
        if !keychain.insert(&host, credential) {
            return Err(serde::de::Error::custom(
                "keychain has a key that is not a host",
            ));
        }
    }
    Ok(keychain)
}
