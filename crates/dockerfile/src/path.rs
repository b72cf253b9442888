//! Slash-separated paths as text: cleaning and joining with the rules of Go's `path` package.
//!
//! Nothing here looks at a file system, and nothing follows symlinks.

/// Returns the shortest path that means the same as `path`, lexically: no `.`, no empty component, no `..` except leading ones of
/// a relative path. The empty path becomes `.`.
pub fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => match parts.last() {
                Some(&last) if last != ".." => {
                    parts.pop();
                }
                _ if rooted => {}
                _ => parts.push(".."),
            },
            part => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

/// Returns `path` seen from the absolute directory `dir`, cleaned and absolute.
pub fn join(dir: &str, path: &str) -> String {
    if path.starts_with('/') {
        clean(path)
    } else {
        clean(&format!("/{dir}/{path}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_lexically() {
        for (path, cleaned) in [
            ("", "."),
            ("/", "/"),
            ("//a//b/", "/a/b"),
            ("a/./b/../c", "a/c"),
            ("../../a", "../../a"),
            ("/../../a", "/a"),
            ("a/..", "."),
            ("a/../..", ".."),
            ("./", "."),
            ("...", "..."),
        ] {
            assert_eq!(clean(path), cleaned, "{path:?}");
        }
        assert_eq!(join("/app", "x/"), "/app/x");
        assert_eq!(join("/app", "../../x"), "/x");
        assert_eq!(join("", "x"), "/x");
        assert_eq!(join("/app", "/y"), "/y");
    }
}
