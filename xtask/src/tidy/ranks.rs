//! Who may name whom.

use serde_json::Value;

/// Each crate of the product with its rank; an edge goes from a higher rank to a lower one and never to an equal one.
const RANKS: &[(&str, u8)] = &[
    ("oci", 0),
    ("api", 0),
    ("dockerfile", 1),
    ("store", 1),
    ("egress", 1),
    ("objects", 1),
    ("registry", 2),
    ("source", 2),
    ("engine", 3),
    ("worker", 4),
    ("service", 4),
    ("kiln", 5),
];

/// What is for us: it may name anything, and the product names it in tests only.
const OURS: &[&str] = &["testkit", "tests", "bench", "xtask"];

/// The only crates of the product that may name the wire types.
const NAME_API: &[&str] = &["service", "kiln"];

/// Crates that stay plain: nothing in them waits.
const WITHOUT_TOKIO: &[&str] = &["oci", "api", "dockerfile", "store"];

/// The licence of everything here.
const LICENCE: &str = "Apache-2.0";

/// Returns every forbidden edge, and every package that is not as all are.
pub(super) fn check(metadata: &Value) -> Vec<String> {
    let packages = metadata
        .get("packages")
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default();
    if packages.is_empty() {
        return vec!["cargo metadata: no packages".to_owned()];
    }
    packages.iter().flat_map(check_package).collect()
}

/// Returns what is wrong with one package.
fn check_package(package: &Value) -> Vec<String> {
    let text = |key: &str| package.get(key).and_then(Value::as_str).unwrap_or_default();
    let name = text("name");
    let mut findings = Vec::new();
    if text("license") != LICENCE {
        findings.push(format!("{name}: the licence is not {LICENCE}"));
    }
    if package
        .get("publish")
        .and_then(Value::as_array)
        .is_none_or(|registries| !registries.is_empty())
    {
        findings.push(format!("{name}: publish is not false"));
    }
    if rank(name).is_none() && !OURS.contains(&name) {
        findings.push(format!(
            "{name}: has no rank; add it to xtask/src/tidy/ranks.rs with the reason in the commit"
        ));
        return findings;
    }
    for dependency in package
        .get("dependencies")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let to = dependency
            .get("name")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let in_tests = dependency.get("kind").and_then(Value::as_str) == Some("dev");
        findings.extend(check_edge(
            name,
            to,
            if in_tests { Edge::Tests } else { Edge::Product },
        ));
    }
    findings
}

/// What an edge is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Edge {
    Product,
    Tests,
}

/// Returns what is wrong with an edge.
fn check_edge(from: &str, to: &str, edge: Edge) -> Option<String> {
    if OURS.contains(&from) {
        return None;
    }
    if edge == Edge::Product && WITHOUT_TOKIO.contains(&from) && to == "tokio" {
        return Some(format!("{from}: must build without tokio"));
    }
    if OURS.contains(&to) {
        return (edge == Edge::Product).then(|| format!("{from} -> {to}: only tests may name it"));
    }
    let (above, below) = (rank(from)?, rank(to)?);
    if above <= below {
        return Some(format!(
            "{from} -> {to}: rank {above} must not name rank {below}"
        ));
    }
    if to == "api" && !NAME_API.contains(&from) {
        return Some(format!(
            "{from} -> {to}: only {} may name the wire types",
            NAME_API.join(" and ")
        ));
    }
    None
}

fn rank(name: &str) -> Option<u8> {
    RANKS
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, rank)| *rank)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn package(name: &str, dependencies: &Value) -> Value {
        json!({ "packages": [{ "name": name, "license": LICENCE, "publish": [], "dependencies": dependencies }] })
    }

    #[test]
    fn edges_go_down() {
        let edge = |from, to| check(&package(from, &json!([{ "name": to, "kind": null }])));
        assert!(edge("engine", "registry").is_empty());
        assert!(edge("kiln", "api").is_empty());
        for (from, to) in [
            ("oci", "store"),
            ("store", "dockerfile"),
            ("worker", "service"),
            ("engine", "api"),
            ("worker", "api"),
            ("store", "testkit"),
            ("dockerfile", "tokio"),
        ] {
            assert_eq!(edge(from, to).len(), 1, "{from} -> {to}");
        }
    }

    #[test]
    fn tests_may_name_the_harness_but_no_crate_above() {
        let edge = |from, to| check(&package(from, &json!([{ "name": to, "kind": "dev" }])));
        assert!(edge("store", "testkit").is_empty());
        assert!(edge("dockerfile", "tokio").is_empty());
        assert_eq!(edge("store", "engine").len(), 1);
    }

    #[test]
    fn a_new_crate_needs_a_rank_and_the_licence() {
        let findings =
            check(&json!({ "packages": [{ "name": "new", "publish": null, "dependencies": [] }] }));
        assert_eq!(findings.len(), 3, "{findings:?}");
        assert_eq!(check(&json!({})).len(), 1);
    }
}
