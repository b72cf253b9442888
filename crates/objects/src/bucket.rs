//! Where a bucket is, and what opens it.
//!
//! A [`Bucket`] can be written down, with its keys, for one purpose: the specification that a worker reads from its standard input.

use std::fmt;
use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::{BackoffConfig, ClientOptions, RetryConfig};
use serde::{Deserialize, Serialize};

use crate::Name;
use crate::objects::{CONNECT_TIMEOUT, REQUEST_TIMEOUT, TRIES_TIMEOUT};

/// What proves to a bucket who we are. Shown by nothing.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keys {
    id: String,
    secret: String,
    session: Option<String>,
}

impl Keys {
    /// Returns an access key with its secret and, for one that expires, its session token.
    pub fn new(id: String, secret: String, session: Option<String>) -> Self {
        Self {
            id,
            secret,
            session,
        }
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(…)")
    }
}

/// A bucket of a store that speaks the protocol of S3.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    /// Its name.
    pub name: String,
    /// What the names of all our objects begin with.
    pub prefix: Option<Name>,
    /// `https://host` of the store; Amazon's of the region when not given.
    pub endpoint: Option<String>,
    /// Where the store says it is.
    pub region: String,
    /// Who we are.
    pub keys: Keys,
}

impl Bucket {
    /// Returns the client; nothing is asked yet.
    pub(crate) fn client(&self) -> Result<AmazonS3, object_store::Error> {
        let is_plain = self
            .endpoint
            .as_ref()
            .is_some_and(|endpoint| endpoint.starts_with("http://"));
        let options = ClientOptions::new()
            .with_allow_http(is_plain)
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_timeout(REQUEST_TIMEOUT);
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(&self.name)
            .with_region(&self.region)
            .with_access_key_id(&self.keys.id)
            .with_secret_access_key(&self.keys.secret)
            .with_client_options(options)
            .with_retry(RetryConfig {
                backoff: BackoffConfig {
                    max_backoff: Duration::from_secs(5),
                    ..BackoffConfig::default()
                },
                max_retries: 5,
                retry_timeout: TRIES_TIMEOUT,
            });
        if let Some(session) = &self.keys.session {
            builder = builder.with_token(session);
        }
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint.trim_end_matches('/'));
        }
        builder.build()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_never_shown() {
        let bucket = Bucket {
            name: "b".to_owned(),
            prefix: None,
            endpoint: None,
            region: "us-east-1".to_owned(),
            keys: Keys::new(
                "hidden-id".to_owned(),
                "hidden-secret".to_owned(),
                Some("hidden-session".to_owned()),
            ),
        };
        let client = bucket.client().unwrap();
        let shown = format!("{bucket:?} {client}");
        assert!(!shown.contains("hidden"), "{shown}");
    }
}
