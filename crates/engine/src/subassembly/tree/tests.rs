use super::*;

fn entry(path: &str, kind: Kind) -> Entry {
    let mut entry = Entry::new(path.as_bytes(), kind);
    entry.mode = 0o644;
    entry
}

fn link(path: &str, kind: Kind, target: &str) -> Entry {
    Entry {
        link: target.as_bytes().to_vec(),
        ..entry(path, kind)
    }
}

fn dir(path: &str) -> Entry {
    entry(path, Kind::Directory)
}

fn file(path: &str) -> Entry {
    entry(path, Kind::File)
}

fn try_tree(layers: &[&[Entry]]) -> Result<Tree, TreeError> {
    let mut tree = Tree::new();
    for (layer, entries) in (0..).zip(layers) {
        for (entry, said) in (0..).zip(*entries) {
            tree.apply(said, Origin { layer, entry })?;
        }
    }
    Ok(tree)
}

/// Returns what is in the tree: directories with a slash, files with layer and entry.
fn listing(layers: &[&[Entry]]) -> Vec<String> {
    let tree = try_tree(layers).unwrap();
    let mut lines = Vec::new();
    tree.directories(|path, _| lines.push(format!("{}/", shown(path))));
    for (origin, names) in tree.files() {
        let names: Vec<String> = names.iter().map(|name| shown(name)).collect();
        lines.push(format!(
            "{} {}.{}",
            names.join("="),
            origin.layer,
            origin.entry
        ));
    }
    assert_eq!(
        tree.n_nodes,
        count(&tree.root),
        "the count of nodes is right"
    );
    lines.sort();
    lines
}

#[test]
fn the_upper_layer_wins() {
    let lines = listing(&[
        &[dir("a"), file("a/x"), file("a/y")],
        &[file("a/x"), file("z")],
    ]);
    assert_eq!(lines, ["/", "a/", "a/x 1.0", "a/y 0.2", "z 1.1"]);
}

#[test]
fn a_whiteout_hides_lower_layers_and_never_its_own() {
    let base: &[Entry] = &[dir("a"), file("a/x"), dir("a/d"), file("a/d/deep")];
    assert_eq!(
        listing(&[base, &[file("a/.wh.x")]]),
        ["/", "a/", "a/d/", "a/d/deep 0.3"]
    );
    for order in [
        [file("a/.wh.d"), file("a/d/new")],
        [file("a/d/new"), file("a/.wh.d")],
    ] {
        let lines = listing(&[base, &order]);
        assert!(
            lines.iter().any(|line| line.starts_with("a/d/new 1.")),
            "{lines:?}"
        );
        assert!(!lines.iter().any(|line| line.contains("deep")), "{lines:?}");
    }
}

#[test]
fn an_opaque_marker_hides_all_that_lower_layers_have_wherever_it_stands() {
    let base: &[Entry] = &[dir("a"), file("a/x"), dir("a/d"), file("a/d/deep")];
    for order in [
        [file("a/.wh..wh..opq"), file("a/new")],
        [file("a/new"), file("a/.wh..wh..opq")],
    ] {
        let lines = listing(&[base, &order]);
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(
            lines.iter().any(|line| line.starts_with("a/new 1.")),
            "{lines:?}"
        );
    }
}

#[test]
fn a_directory_that_is_named_again_keeps_what_it_holds_and_takes_the_new_metadata() {
    let mut named = dir("a");
    named.mode = 0o700;
    named.uid = 7;
    let tree = try_tree(&[&[dir("a"), file("a/x")], &[named]]).unwrap();
    let mut seen = Vec::new();
    tree.directories(|path, directory| seen.push((shown(path), directory.mode, directory.uid)));
    assert_eq!(
        seen,
        [(String::new(), 0o755, 0), ("a".to_owned(), 0o700, 7)]
    );
    assert_eq!(tree.files().len(), 1);
}

#[test]
fn files_replace_directories_and_directories_files() {
    let lines = listing(&[
        &[dir("a"), file("a/x"), file("b")],
        &[file("a"), dir("b"), file("b/y")],
    ]);
    assert_eq!(lines, ["/", "a 1.0", "b/", "b/y 1.2"]);
}

#[test]
fn a_hard_link_stays_when_its_target_is_replaced() {
    let lines = listing(&[&[file("a"), link("b", Kind::HardLink, "a")], &[file("a")]]);
    assert_eq!(lines, ["/", "a 1.0", "b 0.0"]);
    let lines = listing(&[&[file("z"), link("b", Kind::HardLink, "/z")]]);
    assert_eq!(lines, ["/", "b=z 0.0"]);
}

#[test]
fn a_hard_link_may_name_a_file_of_a_lower_layer() {
    assert_eq!(
        listing(&[&[file("a")], &[link("b", Kind::HardLink, "a")]]),
        ["/", "a=b 0.0"]
    );
}

#[test]
fn links_in_parents_are_followed_within_the_root() {
    let base: &[Entry] = &[
        dir("usr"),
        dir("usr/lib"),
        link("lib", Kind::Symlink, "usr/lib"),
        link("up", Kind::Symlink, "../../usr"),
    ];
    let lines = listing(&[base, &[file("lib/x"), file("up/lib/y")]]);
    assert!(lines.contains(&"usr/lib/x 1.0".to_owned()), "{lines:?}");
    assert!(lines.contains(&"usr/lib/y 1.1".to_owned()), "{lines:?}");
    assert!(lines.contains(&"lib 0.2".to_owned()), "{lines:?}");
}

#[test]
fn parents_that_no_layer_names_are_made() {
    assert_eq!(
        listing(&[&[file("a/b/c")]]),
        ["/", "a/", "a/b/", "a/b/c 0.0"]
    );
}

#[test]
fn devices_are_left_out_and_hide_what_they_replace() {
    let layers: &[&[Entry]] = &[
        &[file("null"), file("x")],
        &[
            entry("null", Kind::CharDevice),
            entry("dev/sda", Kind::BlockDevice),
        ],
    ];
    let tree = try_tree(layers).unwrap();
    assert_eq!(tree.n_devices, 2);
    assert!(!listing(layers).iter().any(|line| line.starts_with("null")));
}

#[test]
fn what_is_hostile_is_refused() {
    let refused = |layers: &[&[Entry]]| try_tree(layers).unwrap_err();
    for path in ["../x", "a/../../x"] {
        assert!(
            matches!(refused(&[&[file(path)]]), TreeError::Escapes(_)),
            "{path}"
        );
    }
    for path in ["", "/", ".", "./"] {
        assert!(
            matches!(refused(&[&[file(path)]]), TreeError::ReplacesRoot(_)),
            "{path}"
        );
    }
    for path in [".wh.", ".wh..", ".wh...", ".wh.a/b"] {
        assert!(
            matches!(refused(&[&[file(path)]]), TreeError::Whiteout(_)),
            "{path}"
        );
    }
    assert!(matches!(
        refused(&[&[file("a"), file("a/b")]]),
        TreeError::NotADirectory(_)
    ));
    let looped: &[Entry] = &[
        link("a", Kind::Symlink, "b"),
        link("b", Kind::Symlink, "a"),
        file("a/x"),
    ];
    assert!(matches!(refused(&[looped]), TreeError::TooManyLinks(_)));
    for target in ["nothing", "d", "../x", "/"] {
        let layer: &[Entry] = &[dir("d"), link("l", Kind::HardLink, target)];
        assert!(
            matches!(refused(&[layer]), TreeError::HardLink { .. }),
            "{target}"
        );
    }
    assert!(matches!(
        refused(&[&[file(&"x/".repeat(3000))]]),
        TreeError::PathTooLong(_)
    ));
}

#[test]
fn old_unions_leave_things_that_mean_nothing() {
    assert_eq!(
        listing(&[&[file("a"), file(".wh..wh.plnk/1.2"), file(".wh..wh.aufs")]]),
        ["/", "a 0.0"]
    );
}

#[test]
fn only_attributes_that_mean_something_elsewhere_pass() {
    let mut named = file("x");
    named.xattrs.insert(b"user.note".to_vec(), b"v".to_vec());
    named
        .xattrs
        .insert(b"trusted.overlay.opaque".to_vec(), b"y".to_vec());
    assert_eq!(permitted(&named).len(), 1);
}
