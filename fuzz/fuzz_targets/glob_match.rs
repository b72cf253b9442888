//! A pattern of COPY matches what Go's rules, followed step by step, match; and a walk enters every folder above what it matches.

#![no_main]

use dockerfile::glob::Pattern;
use libfuzzer_sys::fuzz_target;

/// Following rules step by step takes exponential time: neither is longer, and no pattern has more stars.
const MAX_CHARS: usize = 24;
const MAX_STARS: usize = 6;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Some((pattern, path)) = text.split_once('\0') else {
        return;
    };
    let Ok(parsed) = Pattern::parse(pattern) else {
        return;
    };
    let is_match = parsed.matches(path);
    if let Some(literal) = parsed.literal() {
        assert_eq!(is_match, literal == path, "{pattern:?} {path:?}");
    }
    if is_match {
        for (at, _) in path.match_indices('/').filter(|(at, _)| *at > 0) {
            assert!(parsed.matches_below(&path[..at]), "{pattern:?} {path:?}");
        }
    }
    let (pattern, path): (Vec<char>, Vec<char>) = (pattern.chars().collect(), path.chars().collect());
    let n_stars = pattern.iter().filter(|c| **c == '*').count();
    if pattern.len() <= MAX_CHARS && path.len() <= MAX_CHARS && n_stars <= MAX_STARS {
        assert_eq!(is_match, follow(&pattern, &path), "{text:?}");
    }
});

/// Matches by trying everything; the pattern is one that was parsed.
fn follow(pattern: &[char], path: &[char]) -> bool {
    match (pattern, path) {
        ([], _) => path.is_empty(),
        (['*', rest @ ..], _) => {
            let reach = path.iter().take_while(|c| **c != '/').count();
            (0..=reach).any(|n| follow(rest, &path[n..]))
        }
        (['?', rest @ ..], [c, tail @ ..]) => *c != '/' && follow(rest, tail),
        (['[', class @ ..], [c, tail @ ..]) => {
            let (accepted, rest) = class_accepts(class, *c);
            accepted && follow(rest, tail)
        }
        (['\\', literal, rest @ ..], [c, tail @ ..]) => literal == c && follow(rest, tail),
        ([literal, rest @ ..], [c, tail @ ..]) => literal == c && follow(rest, tail),
        (_, []) => false,
    }
}

/// Tells whether a class accepts a character, and returns what follows the class.
fn class_accepts(mut class: &[char], c: char) -> (bool, &[char]) {
    let mut is_negated = false;
    if let ['^', rest @ ..] = class {
        (is_negated, class) = (true, rest);
    }
    let (mut accepted, mut n_ranges) = (false, 0);
    loop {
        if let [']', rest @ ..] = class
            && n_ranges > 0
        {
            return (accepted != is_negated, rest);
        }
        let low = bound(&mut class);
        let mut high = low;
        if let ['-', rest @ ..] = class {
            class = rest;
            high = bound(&mut class);
        }
        accepted |= (low..=high).contains(&c);
        n_ranges += 1;
    }
}

/// Takes one end of a range.
fn bound(class: &mut &[char]) -> char {
    match *class {
        ['\\', c, rest @ ..] | [c, rest @ ..] => {
            *class = rest;
            *c
        }
        [] => unreachable!("the class was parsed"),
    }
}
