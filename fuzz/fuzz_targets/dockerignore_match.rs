//! Walking down to a path and matching it at once give the same verdict.

#![no_main]

use dockerfile::ignore::IgnoreFile;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some(at) = data.iter().position(|byte| *byte == 0) else {
        return;
    };
    let (patterns, path) = data.split_at(at);
    let Ok(path) = std::str::from_utf8(&path[1..]) else {
        return;
    };
    let components: Vec<&str> = path.split('/').collect();
    // What a walk over a real directory can meet.
    if components
        .iter()
        .any(|name| name.is_empty() || *name == "." || *name == ".." || name.contains('\0'))
    {
        return;
    }
    let Ok(file) = IgnoreFile::parse(patterns) else {
        return;
    };
    let Ok(at_once) = file.matches(path) else {
        return;
    };
    let mut walk = file.walk();
    let (name, folders) = components.split_last().expect("split gives one at least");
    for folder in folders {
        match walk.enter(folder) {
            Ok(below) => walk = below,
            Err(_) => return,
        }
    }
    if let Ok(walked) = walk.ignores(name) {
        assert_eq!(
            walked,
            at_once,
            "{:?} {path:?}",
            String::from_utf8_lossy(patterns)
        );
        assert!(
            walked || walk.may_include_below(),
            "a directory would not be read that holds {path:?}"
        );
    }
});
