//! Rules of single files.

use super::code::strip;

/// Most lines of code in a file, tests apart.
const MAX_CODE_LINES: usize = 500;

/// Endings of the files that are looked at; data of tests keep their white space.
const TEXT: &[&str] = &[
    ".rs", ".toml", ".md", ".sh", ".proto", ".yml", ".yaml", "Makefile", ".ci/run",
];

/// Where `unsafe` may be written.
const UNSAFE: &[&str] = &[
    "crates/engine/src/rootfs/",
    "crates/engine/src/sandbox/",
    "crates/worker/",
];

/// Crates that hold such a place and so cannot forbid it as a whole.
const UNSAFE_CRATES: &[&str] = &["crates/engine/", "crates/worker/"];

/// What must not stay in code. Written apart, or this file would find itself.
const FORBIDDEN: &[(&str, &str)] = &[
    ("todo!(", "is a stub"),
    ("unimplemented!(", "is a stub"),
    ("dbg!(", "is for the moment of writing"),
    ("#[ignore", "is a test that nobody runs"),
    (
        "fn test_",
        "is a name with a prefix; tests are named as sentences",
    ),
];

/// Returns whether the file is looked at.
pub(super) fn is_text(path: &str) -> bool {
    TEXT.iter().any(|end| path.ends_with(end)) && !path.contains("/corpus/")
}

/// Returns what is wrong in a file.
pub(super) fn check(path: &str, text: &str) -> Vec<String> {
    let mut findings = white_space(path, text);
    if path.strip_suffix(".rs").is_some() {
        findings.extend(rust(path, text));
    }
    findings
}

/// Returns lines that end in blanks, and files that end in none or many.
fn white_space(path: &str, text: &str) -> Vec<String> {
    let lines = text
        .lines()
        .enumerate()
        .filter(|(_, line)| line.ends_with([' ', '\t', '\r']));
    let mut findings: Vec<String> = lines
        .map(|(index, _)| format!("{path}:{}: trailing white space", index + 1))
        .collect();
    if !text.is_empty() && (!text.ends_with('\n') || text.ends_with("\n\n")) {
        findings.push(format!("{path}: does not end with exactly one new line"));
    }
    findings
}

/// Returns what is wrong in a file of Rust.
fn rust(path: &str, text: &str) -> Vec<String> {
    let mut findings = Vec::new();
    if !text.starts_with("//!") && !path.ends_with("/tests.rs") {
        findings.push(format!("{path}: does not begin with `//!`"));
    }
    let code = strip(text);
    let n_lines = code_lines(&code);
    if n_lines > MAX_CODE_LINES && !is_test(path) {
        findings.push(format!(
            "{path}: {n_lines} lines of code; at most {MAX_CODE_LINES}"
        ));
    }
    let root = path.ends_with("/src/lib.rs") || path.ends_with("/src/main.rs");
    if root
        && !UNSAFE_CRATES.iter().any(|folder| path.starts_with(folder))
        && !code.contains("#![forbid(unsafe_code)]")
    {
        findings.push(format!("{path}: does not forbid unsafe code"));
    }
    for (index, line) in code.lines().enumerate() {
        let number = index + 1;
        if is_unsafe(line) && !UNSAFE.iter().any(|place| path.starts_with(place)) {
            findings.push(format!(
                "{path}:{number}: unsafe code outside {}",
                UNSAFE.join(", ")
            ));
        }
        let found = FORBIDDEN.iter().filter(|(word, _)| line.contains(word));
        findings.extend(found.map(|(word, why)| format!("{path}:{number}: `{word}` {why}")));
    }
    findings
}

/// Returns the number of lines of stripped code that hold something, up to a module of tests at the end.
fn code_lines(code: &str) -> usize {
    let tests = code.find("#[cfg(test)]\nmod tests {").unwrap_or(code.len());
    code.get(..tests)
        .unwrap_or(code)
        .lines()
        .filter(|line| !line.trim().is_empty())
        .count()
}

/// Returns whether a file holds nothing but tests.
fn is_test(path: &str) -> bool {
    path.contains("/tests/") || path.starts_with("tests/") || path.ends_with("/tests.rs")
}

/// Returns whether a line of stripped code opens something unsafe.
fn is_unsafe(line: &str) -> bool {
    let words: Vec<&str> = line
        .split(|c: char| !c.is_alphanumeric() && c != '_' && c != '{')
        .collect();
    words.iter().enumerate().any(|(index, word)| {
        let next = words.get(index + 1).copied().unwrap_or_default();
        *word == "unsafe"
            && (next.starts_with('{') || ["fn", "impl", "extern", "trait"].contains(&next))
            || word.starts_with("unsafe{")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "//! What it is for.\n\n#![forbid(unsafe_code)]\n";

    fn findings(path: &str, text: &str) -> usize {
        check(path, &format!("{HEAD}{text}")).len()
    }

    #[test]
    fn a_tidy_file_has_no_findings() {
        assert_eq!(findings("crates/x/src/lib.rs", "fn a() {}\n"), 0);
        assert_eq!(check("README.md", "a\n"), [] as [String; 0]);
    }

    #[test]
    fn white_space_is_found_by_line() {
        assert_eq!(check("a.md", "a \nb\n"), ["a.md:1: trailing white space"]);
        assert_eq!(check("a.md", "a").len(), 1);
        assert_eq!(check("a.md", "a\n\n").len(), 1);
    }

    #[test]
    fn a_module_says_what_it_is_for() {
        assert_eq!(check("crates/x/src/a.rs", "fn a() {}\n").len(), 1);
        assert_eq!(check("crates/x/src/lib.rs", "//! A.\n").len(), 1);
    }

    #[test]
    fn only_code_counts_for_the_size() {
        let lines = "let x = 1;\n".repeat(MAX_CODE_LINES);
        let comments = "// why\n\n".repeat(MAX_CODE_LINES);
        let tests = format!("#[cfg(test)]\nmod tests {{\n{lines}}}\n");
        assert_eq!(
            findings("crates/x/src/a.rs", &format!("{comments}{tests}")),
            0
        );
        assert_eq!(
            findings("crates/x/src/a.rs", &format!("{lines}fn b() {{}}\n")),
            1
        );
        assert_eq!(
            findings("crates/x/src/tests.rs", &format!("{lines}{lines}")),
            0
        );
    }

    #[test]
    fn unsafe_code_has_its_places() {
        for text in [
            "unsafe { x() }\n",
            "unsafe{x()}\n",
            "pub unsafe fn x() {}\n",
            "unsafe impl X {}\n",
            "unsafe extern \"C\" {}\n",
        ] {
            assert_eq!(findings("crates/store/src/a.rs", text), 1, "{text}");
            assert_eq!(findings("crates/engine/src/a.rs", text), 1, "{text}");
            assert_eq!(
                findings("crates/engine/src/sandbox/a.rs", text),
                0,
                "{text}"
            );
        }
        assert_eq!(
            findings(
                "crates/store/src/a.rs",
                "// unsafe { x() }\n#[expect(unsafe_code)]\n"
            ),
            0
        );
    }

    #[test]
    fn what_must_not_stay_is_found_in_code_only() {
        for word in ["todo!()", "#[ignore]", "fn test_x() {}", "dbg!(x)"] {
            assert_eq!(
                findings("crates/x/src/a.rs", &format!("{word}\n")),
                1,
                "{word}"
            );
            assert_eq!(
                findings("crates/x/src/a.rs", &format!("// {word}\n")),
                0,
                "{word}"
            );
        }
    }
}
