//! Documents that say which test shows what, against the tests: every row names a test, and every test that is named is there.
//!
//! Whether the test shows what the row says is for readers. That it exists is for this file, so that no row outlives its test.

use super::code::strip;

/// The documents that are looked at.
pub(super) const DOCUMENTS: [&str; 2] = ["docs/seed-coverage.md", "docs/hostile-inputs.md"];

/// What runs the checks that are no tests of a language.
const RUNNER: &str = ".ci/run";

/// Returns every row that names no test, and every test that a row names and that is not there.
pub(super) fn check(
    name: &str,
    document: &str,
    read: impl Fn(&str) -> Option<String>,
) -> Vec<String> {
    let mut findings = Vec::new();
    let mut n_rows = 0_usize;
    for (index, line) in document.lines().enumerate() {
        if !is_row(line) {
            continue;
        }
        n_rows += 1;
        let at = format!("{name}:{}", index + 1);
        let tests: Vec<(&str, &str)> = tests(line).collect();
        if tests.is_empty() {
            findings.push(format!("{at}: names no test, as `path::name`"));
        }
        let gone = tests
            .iter()
            .filter(|(path, name)| !is_there(path, name, &read));
        findings.extend(gone.map(|(path, name)| format!("{at}: there is no test {path}::{name}")));
    }
    if n_rows == 0 {
        findings.push(format!("{name}: has no rows"));
    }
    findings
}

/// Returns whether a line is a row of a table, and neither its head nor the line below.
fn is_row(line: &str) -> bool {
    let Some(first) = line.strip_prefix("| ") else {
        return false;
    };
    !first.starts_with("What is said") && !first.starts_with("Row")
}

/// Returns the tests that a line names in back quotes.
fn tests(line: &str) -> impl Iterator<Item = (&str, &str)> {
    let quoted = line.split('`').skip(1).step_by(2);
    quoted.filter_map(|word| word.split_once("::"))
}

/// Returns whether a file has a test of that name.
fn is_there(path: &str, name: &str, read: &impl Fn(&str) -> Option<String>) -> bool {
    let Some(text) = read(path) else {
        return false;
    };
    match path.rsplit(['/', '.']).next() {
        Some("rs") => in_rust(&strip(&text), name),
        Some("go") => text.contains(&format!("\nfunc {name}(t *testing.T)")),
        Some("ts") => ["test", "it"]
            .iter()
            .any(|call| text.contains(&format!("{call}(\"{name}\","))),
        // A check that has no test of its own language: a target that is really run.
        Some("Makefile") => {
            let defined = text
                .lines()
                .any(|line| line.starts_with(&format!("{name}:")));
            let run = |runner: String| {
                let mut lines = runner.lines().filter(|line| !line.starts_with('#'));
                lines.any(|line| line.ends_with(&format!(" make {name}")))
            };
            defined && read(RUNNER).is_some_and(run)
        }
        _ => false,
    }
}

/// Returns whether stripped Rust has a function of that name with the attribute of a test.
fn in_rust(code: &str, name: &str) -> bool {
    let mut is_test = false;
    for line in code.lines().map(str::trim) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_test = true;
        }
        let Some((_, signature)) = line.split_once("fn ") else {
            continue;
        };
        if is_test && signature.split('(').next() == Some(name) {
            return true;
        }
        is_test = false;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUST: &str = "#[test]\nfn a() {}\nfn helper() {}\n// #[test]\n// fn told() {}\n\
        #[tokio::test(flavor = \"multi_thread\")]\n#[expect(\n    x,\n    reason = \"y\"\n)]\nasync fn waits() {}\n";

    fn read(path: &str) -> Option<String> {
        let text = match path {
            "a/x.rs" => RUST,
            "a/x_test.go" => "package x\n\nfunc TestA(t *testing.T) {\n}\n\nfunc helper() {}\n",
            "a/x.test.ts" => "test(\"a log is read\", async () => {});\n",
            "Makefile" => "proto:\n\tx\n\nelse:\n\tx\n",
            ".ci/run" => "# step nothing make else\nstep proto make proto\n",
            _ => return None,
        };
        Some(text.to_owned())
    }

    fn findings(row: &str) -> Vec<String> {
        let head = "# Title\n\n| What is said | shown by |\n|---|---|\n";
        check(DOCUMENTS[0], &format!("{head}| It works | {row} |\n"), read)
    }

    #[test]
    fn tests_of_every_language_are_found() {
        for test in [
            "a/x.rs::a",
            "a/x.rs::waits",
            "a/x_test.go::TestA",
            "a/x.test.ts::a log is read",
            "Makefile::proto",
        ] {
            assert_eq!(findings(&format!("`{test}`")), [] as [String; 0], "{test}");
        }
    }

    #[test]
    fn what_is_no_test_is_told_with_its_line() {
        for test in [
            "a/x.rs::helper",
            "a/x.rs::told",
            "a/x.rs::wait",
            "a/gone.rs::a",
            "a/x_test.go::helper",
            "a/x.test.ts::a log",
            "Makefile::else",
            "Makefile::x",
            "README.md::a",
        ] {
            let told = [format!("{}:5: there is no test {test}", DOCUMENTS[0])];
            assert_eq!(findings(&format!("`a/x.rs::a`, `{test}`")), told);
        }
    }

    #[test]
    fn a_row_without_a_test_is_told_and_so_is_a_document_without_rows() {
        assert_eq!(findings("`words`").len(), 1);
        assert_eq!(check(DOCUMENTS[1], "# Title\n", read).len(), 1);
    }
}
