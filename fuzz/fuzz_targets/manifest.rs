//! Any bytes are an index, a manifest or refused; and image configurations keep what they do not know.

#![no_main]

use libfuzzer_sys::fuzz_target;
use oci::{Document, ImageConfig, Platform};

fuzz_target!(|data: &[u8]| {
    for content_type in [
        None,
        Some(oci::media_type::OCI_MANIFEST),
        Some(oci::media_type::OCI_INDEX),
    ] {
        if let Ok(document) = Document::parse(content_type, data) {
            assert!(!document.media_type().is_empty());
            if let Document::Index(index) = document {
                let _chosen =
                    index.for_platform(&"linux/amd64".parse::<Platform>().expect("a platform"));
            }
        }
    }
    if let Ok(config) = serde_json::from_slice::<ImageConfig>(data) {
        let text = serde_json::to_vec(&config).expect("a configuration is JSON");
        let again: ImageConfig =
            serde_json::from_slice(&text).expect("what was written can be read");
        assert_eq!(
            serde_json::to_vec(&again).expect("a configuration is JSON"),
            text
        );
    }
});
