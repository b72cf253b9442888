//! Addresses and paths that were parsed are what they promise to be, also to other parsers.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use source::git::RemoteUrl;
use source::path::RelPath;

fuzz_target!(|text: &str| {
    if let Ok(url) = RemoteUrl::parse(text) {
        let shown = url.as_str();
        assert!(shown.starts_with("https://") || shown.starts_with("http://"));
        assert!(
            !shown.contains(['@', '?', '#', ' ', '\\', '\n', '\r', '\0'])
                || !shown
                    .split('/')
                    .nth(2)
                    .is_some_and(|host| host.contains('@'))
        );
        assert!(shown.starts_with(&url.origin()), "{shown:?}");
        assert!(!url.origin().contains(['*', '@']), "{shown:?}");
        assert_eq!(RemoteUrl::parse(shown).as_ref(), Ok(&url));
    }
    for path in [RelPath::parse(text), RelPath::parse_in_workspace(text)]
        .into_iter()
        .flatten()
    {
        let under = path.under(Path::new("/w"));
        assert!(under.starts_with("/w") && under.components().all(|part| part.as_os_str() != ".."));
        assert_eq!(RelPath::parse(path.as_str()).as_ref(), Ok(&path));
        assert_eq!(path.components().count(), under.components().count() - 2);
    }
});
