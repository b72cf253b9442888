use std::time::Instant;

use proptest::prelude::*;

use super::*;

fn variables() -> BTreeMap<String, String> {
    let pairs = [
        ("x", "value"),
        ("empty", ""),
        ("path", "/usr/lib/libfoo.so.1"),
        ("two", "a b"),
        ("file", "foobarbaz"),
        ("star", "a*b"),
    ];
    pairs
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

fn expand(lexer: Lexer, text: &str) -> Result<Expanded, ExpandError> {
    lexer.expand(text, &variables(), &Budget::default())
}

fn check(table: &[(&str, &str)]) {
    for (text, expected) in table {
        let seen = expand(Lexer::new('\\'), text).map(|expanded| expanded.text);
        assert_eq!(seen.as_deref(), Ok(*expected), "{text}");
    }
}

#[test]
fn words_become_what_buildkit_makes_of_them() {
    check(&[
        ("", ""),
        ("plain", "plain"),
        ("$x", "value"),
        ("${x}y", "valuey"),
        ("$x$x", "valuevalue"),
        ("$xy", ""),
        ("$unset.", "."),
        ("$", "$"),
        ("$ x", "$ x"),
        ("a$", "a$"),
        ("$/x", "$/x"),
        ("$1x", "x"),
        ("$12.", "."),
        ("$@$*$#$?$-$$$!", ""),
        ("\\$x", "$x"),
        ("\\\\$x", "\\value"),
        ("a\\b", "ab"),
        ("a\\", "a"),
        ("'$x'", "$x"),
        ("\"$x\"", "value"),
        ("'a\\b'", "a\\b"),
        ("\"a\\b\"", "a\\b"),
        ("\"a\\\"b\\$x\\\\\"", "a\"b$x\\"),
        ("\"it's\"", "it's"),
        ("'say \"hi\"'", "say \"hi\""),
        ("a'b'\"c\"d", "abcd"),
        ("日${x}語", "日value語"),
    ]);
}

#[test]
fn modifiers_become_what_buildkit_makes_of_them() {
    check(&[
        ("${x:-w}", "value"),
        ("${empty:-w}", "w"),
        ("${empty-w}", ""),
        ("${unset:-w}", "w"),
        ("${unset-w}", "w"),
        ("${unset:-$x}", "value"),
        ("${unset:-${empty:-${x}}}", "value"),
        ("${unset:-'}'}", "}"),
        ("${unset:-\"a b\"}", "a b"),
        ("${unset:-a\\}b}", "a}b"),
        ("${x:+w}", "w"),
        ("${empty:+w}", ""),
        ("${empty+w}", "w"),
        ("${unset+w}", ""),
        ("${x:?w}", "value"),
        ("${empty?w}", ""),
        ("${path#*/}", "usr/lib/libfoo.so.1"),
        ("${path##*/}", "libfoo.so.1"),
        ("${path%.*}", "/usr/lib/libfoo.so"),
        ("${path%%.*}", "/usr/lib/libfoo"),
        ("${path#nope}", "/usr/lib/libfoo.so.1"),
        ("${path%/}", "/usr/lib/libfoo.so.1"),
        ("${path#/???/}", "lib/libfoo.so.1"),
        ("${x#}", "value"),
        ("${x#*}", "value"),
        ("${x##*}", ""),
        ("${x%*}", "value"),
        ("${x%%*}", ""),
        ("${unset#*}", ""),
        ("${star#a\\*}", "b"),
        ("${star%\\**}", "a"),
        ("${path/lib/x}", "/usr/x/libfoo.so.1"),
        ("${path//lib/x}", "/usr/x/xfoo.so.1"),
        ("${path//\\//_}", "_usr_lib_libfoo.so.1"),
        ("${path/\\/usr/}", "/lib/libfoo.so.1"),
        ("${file/b*b/X}", "fooXaz"),
        ("${file//?/x}", "xxxxxxxxx"),
        ("${file//o/}", "fbarbaz"),
        ("${file//*/x}", "x"),
        ("${file//$unset/-}", "-f-o-o-b-a-r-b-a-z-"),
        ("${file/bar/$x}", "foovaluebaz"),
    ]);
}

#[test]
fn broken_words_are_refused() {
    for (text, expected) in [
        ("${x", "${ is not closed"),
        ("${", "${ is not closed"),
        ("${x:", "${ is not closed"),
        ("${x:-a", "${ is not closed"),
        (
            "${}",
            "bad substitution: a variable name is expected after ${",
        ),
        (
            "${:x}",
            "bad substitution: a variable name is expected after ${",
        ),
        (
            "${{x}}",
            "bad substitution: a variable name is expected after ${",
        ),
        ("${x!y}", "unsupported modifier \"!\" in a substitution"),
        ("${x:=y}", "unsupported modifier \":=\" in a substitution"),
        (
            "${x/y}",
            "a / is missing after the pattern of a substitution",
        ),
        ("${x/y/z", "${ is not closed"),
        ("${unset:?}", "unset: is not allowed to be unset"),
        ("${empty:?}", "empty: is not allowed to be empty"),
        ("${unset?no $x}", "unset: no value"),
        ("${x#\\a}", "invalid escape \"\\\\a\" in a pattern"),
        ("'a", "a single quote is not closed"),
        ("\"a", "a double quote is not closed"),
    ] {
        let error = expand(Lexer::new('\\'), text).unwrap_err();
        assert_eq!(error.to_string(), expected, "{text}");
    }
}

#[test]
fn words_are_split_at_blanks_outside_quotes() {
    for (text, expected) in [
        ("a b", vec!["a", "b"]),
        ("  a\tb  ", vec!["a", "b"]),
        ("'a b' c", vec!["a b", "c"]),
        ("\"a b\"c", vec!["a bc"]),
        ("a\\ b", vec!["a b"]),
        ("$two", vec!["a", "b"]),
        ("\"$two\"", vec!["a b"]),
        ("x$two.y", vec!["xa", "b.y"]),
        ("$empty a", vec!["a"]),
        ("", vec![]),
    ] {
        assert_eq!(
            expand(Lexer::new('\\'), text).unwrap().words,
            expected,
            "{text}"
        );
    }
}

#[test]
fn the_escape_character_is_the_dockerfiles() {
    let lexer = Lexer::new('`');
    assert_eq!(expand(lexer, "`$x C:\\dir").unwrap().text, "$x C:\\dir");
    assert_eq!(expand(lexer, "\"`\"\"").unwrap().text, "\"");
}

#[test]
fn quotes_escapes_and_unset_variables_can_be_kept() {
    let raw = Lexer {
        quotes: Quotes::Keep,
        escapes: Escapes::Keep,
        unset: Unset::Keep,
        ..Lexer::new('\\')
    };
    for text in ["'a' \"b\" \\c", "$unset ${unset} ${unset:-w} ${unset/a/b}"] {
        assert_eq!(expand(raw, text).unwrap().text, text);
    }
    let plain = Lexer {
        quotes: Quotes::Ordinary,
        ..Lexer::new('\\')
    };
    assert_eq!(expand(plain, "it's \"$x\"").unwrap().text, "it's \"value\"");
}

#[test]
fn it_is_told_which_variables_were_asked_for() {
    let expanded = expand(Lexer::new('\\'), "$x ${unset:-$empty}").unwrap();
    assert!(expanded.used.iter().eq(["empty", "x"]));
    assert!(expanded.unset.iter().eq(["unset"]));
}

/// D-06.
#[test]
fn expansion_bombs_are_refused_in_time() {
    let started = Instant::now();
    let lexer = Lexer::new('\\');
    let deep = "${a:-".repeat(10_000) + &"}".repeat(10_000);
    assert_eq!(expand(lexer, &deep), Err(ExpandError::TooDeep));
    let big = BTreeMap::from([("A".to_owned(), "x".repeat(64 << 10))]);
    let budget = Budget::default();
    let doubled = lexer.expand("$A$A$A", &big, &budget);
    assert_eq!(doubled, Err(ExpandError::TooLong));
    let quoted = lexer.expand("\"$A$A$A\"", &big, &budget);
    assert_eq!(quoted, Err(ExpandError::TooLong));
    let grown = lexer.expand("${A//x/yyyy}", &big, &Budget::default());
    assert_eq!(grown, Err(ExpandError::TooLong));
    let small = || Budget {
        pattern_steps: Cell::new(1_000_000),
        ..Budget::default()
    };
    let many = "${A##*?*?*?*?*?*}".repeat(400);
    let refused = Err(ExpandError::TooExpensive);
    assert_eq!(lexer.expand(&many, &big, &small()), refused);
    assert_eq!(lexer.expand("${A//x*y/z}", &big, &small()), refused);
    assert!(
        started.elapsed().as_secs() < 60,
        "took {:?}",
        started.elapsed()
    );
}

proptest! {
    #[test]
    fn no_word_makes_it_panic(text in "[$x{}:#%/?*+'\"\\\\ a-]{0,30}", other in "\\PC{0,30}") {
        for text in [text, other] {
            for escape in ['\\', '`'] {
                let _ = expand(Lexer::new(escape), &text);
            }
        }
    }
}

/// Values that `ENV R=…` was seen to have with `BuildKit` 0.30; `None` where it failed.
#[test]
fn values_of_env_are_those_that_buildkit_gave() {
    let variables = [("S", "a/b/b/c"), ("E", "")];
    let variables: BTreeMap<String, String> = variables
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    let table: &[(&str, Option<&str>)] = &[
        ("${X:-d}", Some("d")),
        ("${X-d}", Some("d")),
        ("${X:+d}", Some("")),
        ("${X+d}", Some("")),
        ("${E:-d}", Some("d")),
        ("${E-d}", Some("")),
        ("${E:+d}", Some("")),
        ("${E+d}", Some("d")),
        ("${S:?m}", Some("a/b/b/c")),
        ("${S?m}", Some("a/b/b/c")),
        ("${X?m}", None),
        ("${X:?}", None),
        ("${E:?e}", None),
        ("${E?e}", Some("")),
        ("${S#*/}", Some("b/b/c")),
        ("${S##*/}", Some("c")),
        ("${S%/*}", Some("a/b/b")),
        ("${S%%/*}", Some("a")),
        ("${S/b/X}", Some("a/X/b/c")),
        ("${S//b/X}", Some("a/X/X/c")),
        ("${S/\\//-}", Some("a-b/b/c")),
        ("${S//[ab]/X}", Some("a/b/b/c")),
        ("${S/?/X}", Some("X/b/b/c")),
        ("${S//?/X}", Some("XXXXXXX")),
        ("${S#?}", Some("/b/b/c")),
        ("${S:#a}", None),
        ("${S:%a}", None),
        ("${S/b}", None),
        ("${S^}", None),
        ("${S,,}", None),
        ("${#S}", None),
        ("${S:1:2}", None),
        ("${}", None),
        ("${S", None),
        ("$S$", Some("a/b/b/c$")),
        ("${S:-${X:-${E:-deep}}}", Some("a/b/b/c")),
        ("${X:-\"a b\"}", Some("a b")),
        ("${X:-'a b'}", Some("a b")),
        ("${X:-a}b}", Some("ab}")),
        ("\"${X:-a b}\"", Some("a b")),
        ("${S//\\*/x}", Some("a/b/b/c")),
        ("${S%\\}}", Some("a/b/b/c")),
        ("${S/a*b/X}", Some("X/c")),
        ("${S##*b}", Some("/c")),
        ("${S%%b*}", Some("a/")),
        ("${X:-$S}", Some("a/b/b/c")),
        ("${S//b/$S}", Some("a/a/b/b/c/a/b/b/c/c")),
        ("$S-$X.$E", Some("a/b/b/c-.")),
        ("${S}x", Some("a/b/b/cx")),
        ("$Sx", Some("")),
        ("'$S'", Some("$S")),
        ("\"$S'q'\"", Some("a/b/b/c'q'")),
        ("\\${S}", Some("${S}")),
        ("\\\\$S", Some("\\a/b/b/c")),
        ("\"\\\\$S\"", Some("\\a/b/b/c")),
        ("${!S}", None),
        ("${S/*/}", Some("")),
        ("${S//}", None),
        ("${S///}", Some("a/b/b/c")),
        ("$@", Some("")),
        ("$*", Some("")),
        ("$?", Some("")),
        ("$#", Some("")),
        ("${@}", Some("")),
        ("${1}", Some("")),
        ("${X:-}", Some("")),
        ("${S/$S/y}", Some("y")),
    ];
    for (text, expected) in table {
        let seen = Lexer::new('\\').expand(text, &variables, &Budget::default());
        let seen = seen.map(|expanded| expanded.text).ok();
        assert_eq!(seen.as_deref(), *expected, "{text}");
    }
}
