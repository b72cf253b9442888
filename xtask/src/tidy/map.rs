//! ARCHITECTURE.md against the tree.

/// Folders at the root; a word in back quotes that begins with one is a path.
const FOLDERS: &[&str] = &[
    "crates/",
    "docs/",
    "proto/",
    "testkit/",
    "tests/",
    "xtask/",
    "fuzz/",
    "scripts/",
    "examples/",
    "deploy/",
    "sdk/",
    "bench/",
    ".ci/",
];

/// Returns every path in the map that is not there, and every crate that is not in the map.
pub(super) fn check(map: &str, crates: &[String], exists: impl Fn(&str) -> bool) -> Vec<String> {
    let missing = paths(map)
        .into_iter()
        .filter(|path| !exists(path))
        .map(|path| format!("ARCHITECTURE.md: {path} does not exist"));
    let unmentioned = crates.iter().filter(|folder| !mentions(map, folder));
    missing
        .chain(unmentioned.map(|folder| format!("ARCHITECTURE.md: {folder} is not mentioned")))
        .collect()
}

/// Returns every path of the repository that the map names, in back quotes or as the target of a link.
fn paths(map: &str) -> Vec<&str> {
    let quoted = map.split('`').skip(1).step_by(2);
    let linked = map
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split([')', '#']).next());
    let is_path = |word: &&str| {
        let plain = !word.is_empty()
            && word
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-/".contains(&b));
        plain && FOLDERS.iter().any(|folder| word.starts_with(folder))
    };
    quoted.chain(linked).filter(is_path).collect()
}

/// Returns whether the map names a crate: by its folder, or in a tree drawing by the folder's own name with a slash.
fn mentions(map: &str, folder: &str) -> bool {
    let name = folder.rsplit('/').next().unwrap_or(folder);
    let words = map.split(|c: char| !c.is_ascii_alphanumeric() && !"_-/".contains(c));
    words.into_iter().any(|word| {
        word == folder
            || word
                .strip_prefix(folder)
                .is_some_and(|rest| rest.starts_with('/'))
            || word.strip_suffix('/') == Some(name)
            || word == name
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_are_gone_are_found() {
        let map = "See `crates/store/src/lib.rs`, [style](docs/style.md#rules), `not a path`, `cargo doc` and [out](https://example.com/docs/x).";
        assert_eq!(paths(map), ["crates/store/src/lib.rs", "docs/style.md"]);
        assert_eq!(
            check(map, &[], |path| path != "docs/style.md"),
            ["ARCHITECTURE.md: docs/style.md does not exist"]
        );
    }

    #[test]
    fn every_crate_is_on_the_map() {
        let crates = [
            "crates/store".to_owned(),
            "crates/oci".to_owned(),
            "crates/api".to_owned(),
        ];
        let map = "`crates/store` and\n├── oci/   the nouns\n";
        assert_eq!(
            check(map, &crates, |_| true),
            ["ARCHITECTURE.md: crates/api is not mentioned"]
        );
    }
}
