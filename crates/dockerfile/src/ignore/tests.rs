use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> IgnoreFile {
    IgnoreFile::parse(text.as_bytes()).unwrap()
}

#[test]
fn single_patterns_match_as_moby_does() {
    for (pattern, path, expected) in [
        ("**", "file", true),
        ("**", "dir/file", true),
        ("**/", "file", true),
        ("**/**", "dir/file", true),
        ("dir/**", "dir/file", true),
        ("dir/**", "dir/dir2/file", true),
        ("dir/**", "dir", false),
        ("dir/**", "other/file", false),
        ("**/dir", "dir", true),
        ("**/dir", "dir/file", true),
        ("**/dir2/*", "dir/dir2/file", true),
        ("**/dir2/*", "dir/dir2/dir2/file", true),
        ("**/dir2/**", "dir/dir2/dir2/file", true),
        ("**file", "file", true),
        ("**file", "dir/file", true),
        ("**file", "dir/afile", true),
        ("**/file", "dir/afile", false),
        ("**file", "dir/dir/file.txt", false),
        ("**/file*txt", "dir/dir/file.txt", true),
        ("**/**/*.txt", "dir/dir/file.txt", true),
        ("**/**/*.txt2", "dir/dir/file.txt", false),
        ("a**", "a", true),
        ("a**", "ab/c", true),
        ("a**/b", "a/b", true),
        ("a**/b", "axx/y/b", true),
        ("a**/b", "ab", true),
        ("a[b-d]e", "ace", true),
        ("a[b-d]e", "aze", false),
        ("a[^b-d]e", "aze", true),
        ("a[^b-d]e", "ace", false),
        ("a\\*b", "a*b", true),
        ("a\\*b", "axb", false),
        ("a.|)$(}+{bc", "a.|)$(}+{bc", true),
        ("dist/*.whl", "dist/proxy.py-2.4.0.whl", true),
        ("dist/*.whl", "dist/a/b.whl", false),
        ("a/b", "a/b/c/d", true),
        ("a/b", "a/bc", false),
        ("*", "a/b", true),
        ("*.md", "README.md", true),
        ("*.md", "docs/README.md", false),
        ("foo", "a/foo", false),
        ("/foo", "foo", true),
        ("//foo/", "foo", true),
        ("./foo", "foo", true),
        ("foo/../bar", "bar", true),
        ("../foo", "foo", false),
        (".", "foo", false),
        (".", ".", false),
        ("/", "foo", false),
        ("foo/./bar/", "foo/bar/x", true),
        ("日本*", "日本語", true),
        ("日?語", "日本語", true),
        ("# no comment", "# no comment", false),
        (" # a name", "# a name", true),
        ("\\#x", "#x", true),
        ("a b ", "a b", true),
    ] {
        let file = parse(pattern);
        assert_eq!(file.matches(path), Ok(expected), "{pattern:?} {path:?}");
        assert_eq!(walked(&file, path), expected, "walk: {pattern:?} {path:?}");
    }
}

#[test]
fn the_last_match_decides() {
    for (text, path, expected) in [
        ("*\n!foo", "foo", false),
        ("*\n!foo", "foo/bar", false),
        ("foo\n!foo/bar", "foo/bar", false),
        ("foo\n!foo/bar", "foo/baz", true),
        ("foo\n!foo/bar\nfoo/bar/secret", "foo/bar/secret", true),
        ("!foo\nfoo", "foo", true),
        ("**/*.md\n!README.md", "README.md", false),
        ("**/*.md\n!README.md", "docs/README.md", true),
        ("*\n!src/**\nsrc/**/*.key", "src/a/b.key", true),
        ("*\n!src/**\nsrc/**/*.key", "src/a/b.c", false),
        // What was ignored already when a pattern came by was not matched by it.
        ("*\n!a/b\na", "a/b", false),
        // Nor is what was not ignored matched by a pattern that takes back.
        ("**/f\n!a/b", "a/b/f", true),
        ("a\n**/f\n!a/b", "a/b/f", false),
        ("**/b\n**/f\n!a/b", "a/b/f", false),
        ("a\n!a\na/b\n!a/b", "a/b/c", false),
        ("a\n! b \n!a", "a", false),
        ("\u{feff}a\r\n\r\n!a/b\r\n", "a/b", false),
        ("\u{feff}a\r\n\r\n!a/b\r\n", "a/c", true),
    ] {
        let file = parse(text);
        assert_eq!(file.matches(path), Ok(expected), "{text:?} {path:?}");
        assert_eq!(walked(&file, path), expected, "walk: {text:?} {path:?}");
    }
}

#[test]
fn directories_that_hold_nothing_of_interest_are_not_entered() {
    let file = parse("*\n!src/keep\n!**/LICENSE");
    let only_src = parse("*\n!src/keep");
    assert!(file.walk().enter("vendor").unwrap().may_include_below());
    assert!(!only_src.walk().enter("vendor").unwrap().may_include_below());
    let src = only_src.walk().enter("src").unwrap();
    assert!(src.is_ignored() && src.may_include_below());
    assert!(!src.enter("keep").unwrap().is_ignored());
    assert!(!src.enter("other").unwrap().may_include_below());
    assert!(
        IgnoreFile::empty()
            .walk()
            .enter("x")
            .unwrap()
            .may_include_below()
    );
}

#[test]
fn paths_can_be_asked_about_in_any_order() {
    let file = parse("a\n!a/b\n**/c\n!x/c");
    let paths = [
        "a", "a/b", "a/b/c", "x/c", "x", "ab/c", "a/d", "a/b/d/e", "x/c/y", "ab",
    ];
    let alone: Vec<bool> = paths
        .iter()
        .map(|path| parse("a\n!a/b\n**/c\n!x/c").matches(path).unwrap())
        .collect();
    for start in 0..paths.len() {
        for step in [1, 3, 7] {
            for n in 0..paths.len() {
                let at = (start + n * step) % paths.len();
                assert_eq!(file.matches(paths[at]), Ok(alone[at]), "{}", paths[at]);
            }
        }
    }
    assert_eq!(file.may_include_below("a"), Ok(true));
    assert_eq!(file.may_include_below("a/d"), Ok(false));
    assert_eq!(file.may_include_below("."), Ok(true));
}

#[test]
fn broken_files_are_refused_with_their_line() {
    assert_eq!(
        IgnoreFile::parse(b"a\n!\n").unwrap_err(),
        IgnoreError::Empty { line: 2 }
    );
    assert!(matches!(
        IgnoreFile::parse(b"a\n\n[").unwrap_err(),
        IgnoreError::Pattern { line: 3, .. }
    ));
    assert!(matches!(
        IgnoreFile::parse(b"a\\").unwrap_err(),
        IgnoreError::Pattern { line: 1, .. }
    ));
    assert!(IgnoreFile::parse(b"\xff\xfe*").is_ok());
}

/// D-03.
#[test]
fn hostile_files_are_refused_or_matched_in_time() {
    let started = std::time::Instant::now();
    assert_eq!(
        IgnoreFile::parse(&vec![b'a'; IGNORE_FILE_MAX_BYTES + 1]).unwrap_err(),
        IgnoreError::TooLarge
    );
    assert_eq!(
        IgnoreFile::parse("a\n".repeat(IGNORE_PATTERNS_MAX + 1).as_bytes()).unwrap_err(),
        IgnoreError::TooManyPatterns
    );
    assert!(IgnoreFile::parse("[".repeat(100_000).as_bytes()).is_err());
    let stars = parse(&format!("{}x", "**/a*".repeat(100)));
    let deep = "a/".repeat(300) + "b";
    assert_eq!(stars.matches(&deep), Ok(false));
    let backtracking = parse(&format!("{}b", "*a".repeat(500)));
    assert_eq!(backtracking.matches(&"a".repeat(1000)), Ok(false));
    let bombs = parse(&"!**/a*b*c*d*e\n*x*\n".repeat(IGNORE_PATTERNS_MAX / 2));
    let walk = bombs.walk();
    let directory = walk.enter("aaaaaaaa").unwrap();
    for number in 0..5 {
        directory.ignores(&format!("aaaa{number}")).unwrap();
    }
    assert!(
        started.elapsed().as_secs() < 20,
        "took {:?}",
        started.elapsed()
    );
}

#[test]
fn endless_work_ends_in_an_error() {
    let file = parse(&"*a*a*a*a*a*a*a*b\n".repeat(1000));
    file.steps_left.store(1_000_000, Ordering::Relaxed);
    let name = "a".repeat(200);
    let walk = file.walk();
    let outcome = (0..1000).try_for_each(|_| walk.ignores(&name).map(drop));
    assert_eq!(outcome, Err(IgnoreError::TooExpensive));
    assert_eq!(file.matches("x"), Err(IgnoreError::TooExpensive));
}

#[test]
fn the_ignore_file_beside_the_dockerfile_comes_first() {
    let names = file_names("docker/Dockerfile.ci");
    assert_eq!(
        names,
        ["docker/Dockerfile.ci.dockerignore", ".dockerignore"]
    );
}

/// Asks for `path` by walking down to it.
fn walked(file: &IgnoreFile, path: &str) -> bool {
    let path = path::clean(path);
    if path == "." {
        return false;
    }
    let mut walk = file.walk();
    let (directories, name) = path.rsplit_once('/').unwrap_or(("", &path));
    for directory in directories.split('/').filter(|part| !part.is_empty()) {
        walk = walk.enter(directory).unwrap();
    }
    let ignored = walk.ignores(name).unwrap();
    assert!(
        ignored || walk.may_include_below(),
        "{path} would have been skipped"
    );
    ignored
}

proptest! {
    #[test]
    fn walking_and_asking_agree(
        lines in prop::collection::vec("!?[ab*?/\\[\\]^.-]{0,8}", 0..6),
        path in "[ab.]{1,3}(/[ab.]{1,3}){0,3}",
    ) {
        if let Ok(file) = IgnoreFile::parse(lines.join("\n").as_bytes()) {
            let path = path::clean(&path);
            if !path.starts_with("..") {
                prop_assert_eq!(file.matches(&path).unwrap(), walked(&file, &path));
            }
        }
    }

    #[test]
    fn no_file_makes_it_panic(text in prop::collection::vec(any::<u8>(), 0..200), path in ".{0,40}") {
        if let Ok(file) = IgnoreFile::parse(&text) {
            let _ = file.matches(&path);
            let _ = file.walk().enter(&path).and_then(|walk| walk.ignores(&path));
        }
    }
}
