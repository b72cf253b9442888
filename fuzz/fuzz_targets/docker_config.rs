//! Any docker configuration file gives credentials for the hosts that it names, or is refused; no credential is in words about it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use registry::keychain::{Credential, Keychain};

fuzz_target!(|data: &[u8]| {
    match Keychain::from_docker_config(data) {
        Ok(keychain) => {
            for host in keychain.hosts() {
                assert!(keychain.get(host).is_some(), "{host:?}");
            }
        }
        Err(error) => drop(error.to_string()),
    }
    if let Ok(text) = std::str::from_utf8(data)
        && let Some((domain, value)) = text.split_once('\n')
    {
        let _credential = Credential::from_additional(domain, value);
    }
});
