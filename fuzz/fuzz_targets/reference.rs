//! A reference that was parsed is displayed as itself, and its parts hold nothing that changes a URL.

#![no_main]

use libfuzzer_sys::fuzz_target;
use oci::{Digest, Platform, Reference};

fuzz_target!(|text: &str| {
    if let Ok(reference) = text.parse::<Reference>() {
        assert_eq!(
            reference.to_string().parse::<Reference>().as_ref(),
            Ok(&reference)
        );
        assert!(
            reference
                .familiar()
                .parse::<Reference>()
                .is_ok_and(|again| again == reference),
            "{}",
            reference.familiar()
        );
        for part in [
            reference.host(),
            reference.repository(),
            &reference.manifest_key(),
        ] {
            assert!(
                !part.is_empty()
                    && !part.contains(['\\', '?', '#', '%', ' ', '\n', '\r', '\0'])
                    && part
                        .split('/')
                        .all(|component| component != "." && component != ".."),
                "{part:?}"
            );
        }
    }
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
    }
    if let Ok(platform) = text.parse::<Platform>() {
        assert_eq!(
            platform.to_string().parse::<Platform>().as_ref(),
            Ok(&platform)
        );
    }
});
