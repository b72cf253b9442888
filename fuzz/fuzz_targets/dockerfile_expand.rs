//! Expanding any word ends, stays within its budget, and words joined hold no more than the text.

#![no_main]

use std::collections::BTreeMap;

use dockerfile::expand::{Budget, Escapes, Lexer, Quotes, Unset};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&choice, text)) = data.split_first() else {
        return;
    };
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    let lexer = Lexer {
        escape: if choice & 1 == 0 { '\\' } else { '`' },
        quotes: [Quotes::Remove, Quotes::Keep, Quotes::Ordinary][usize::from(choice >> 1) % 3],
        escapes: if choice & 8 == 0 {
            Escapes::Remove
        } else {
            Escapes::Keep
        },
        unset: if choice & 16 == 0 {
            Unset::Empty
        } else {
            Unset::Keep
        },
    };
    let variables = BTreeMap::from(
        [
            ("a", "1"),
            ("b", "x y z"),
            ("c", ""),
            ("d", "${a}"),
            ("e", "/usr/lib/*.so"),
        ]
        .map(|(k, v)| (k.to_owned(), v.to_owned())),
    );
    let Ok(expanded) = lexer.expand(text, &variables, &Budget::default()) else {
        return;
    };
    let again = lexer.expand(text, &variables, &Budget::default());
    assert_eq!(again.as_ref(), Ok(&expanded));
    assert!(
        expanded
            .used
            .iter()
            .all(|name| variables.contains_key(name))
    );
    assert!(
        expanded
            .unset
            .iter()
            .all(|name| !variables.contains_key(name))
    );
});
