//! What the tests of the client share.

pub(crate) mod evil;
pub(crate) mod memory;
pub(crate) mod program;

use std::time::Duration;

use registry::client::{Client, Options};
use registry::hosts::Hosts;
use registry::keychain::{Credential, Keychain, Secret};

/// Options with short waits.
pub(crate) fn options() -> Options {
    Options {
        backoff_base: Duration::from_millis(1),
        backoff_max: Duration::from_millis(4),
        retry_after_max: Duration::from_millis(20),
        header_timeout: Duration::from_millis(400),
        connect_timeout: Duration::from_millis(400),
        finish_timeout: Duration::from_secs(5),
        stall_window: Duration::from_millis(300),
        monolithic_max_bytes: 1000,
        ..Options::default()
    }
}

pub(crate) fn client() -> Client {
    Client::new(Hosts::default(), Keychain::empty(), options()).unwrap()
}

pub(crate) fn client_with(hosts: &[(&str, &str)]) -> Client {
    let mut keychain = Keychain::empty();
    for (host, password) in hosts {
        assert!(keychain.insert(host, basic(password)));
    }
    Client::new(Hosts::default(), keychain, options()).unwrap()
}

pub(crate) fn basic(password: &str) -> Credential {
    Credential::Basic {
        username: "user".to_owned(),
        password: Secret::new(password),
    }
}
