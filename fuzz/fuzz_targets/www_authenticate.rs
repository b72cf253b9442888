//! Any header of a registry is read as challenges, and any error document as printable words.

#![no_main]

use libfuzzer_sys::fuzz_target;
use registry::wire;

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        let _challenges = wire::challenge::parse(text.lines());
        let printable = wire::errors::printable(text, 100);
        assert!(!printable.chars().any(char::is_control), "{printable:?}");
    }
    let _entry = wire::errors::first_error(data);
});
