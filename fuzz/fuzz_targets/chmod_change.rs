//! A mode of `--chmod` is refused or changes any mode to one that files can have; the same every time.

#![no_main]

use dockerfile::chmod::{Chmod, Node};
use libfuzzer_sys::fuzz_target;

/// All that a mode can hold.
const ALL: u32 = 0o7777;

fuzz_target!(|data: &[u8]| {
    let Some((mode, text)) = data.split_at_checked(2) else {
        return;
    };
    let mode = u32::from(mode[0]) << 8 | u32::from(mode[1]);
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    let Ok(chmod) = Chmod::parse(text) else {
        return;
    };
    assert_eq!(chmod.to_string(), text);
    for node in [Node::Directory, Node::Other] {
        let changed = chmod.apply(mode, node);
        assert_eq!(changed & !ALL, 0, "{text:?} makes {changed:o} of {mode:o}");
        assert_eq!(changed, chmod.apply(mode & ALL, node));
        if let Some(fixed) = chmod.fixed() {
            assert_eq!(changed, fixed);
        }
    }
});
