use super::rules::{ALL, RuleKind};
use super::*;
use crate::diagnostic::Span;
use std::collections::BTreeMap;

#[test]
fn rules_have_names_of_their_own_and_links_that_follow_from_them() {
    let names: BTreeSet<&str> = ALL.iter().map(|rule| rule.name).collect();
    assert_eq!(names.len(), ALL.len());
    for rule in ALL {
        let mut slug = String::new();
        for c in rule.name.replace("JSONArgs", "JsonArgs").chars() {
            if c.is_ascii_uppercase() && !slug.is_empty() {
                slug.push('-');
            }
            slug.push(c.to_ascii_lowercase());
        }
        let known = rule.url.is_empty() || rule.url.ends_with(&format!("/rule/{slug}/"));
        assert!(known, "{} {slug}", rule.name);
        assert!(!rule.description.is_empty());
    }
    assert_eq!(
        ALL.iter()
            .filter(|rule| rule.kind == RuleKind::Experimental)
            .count(),
        1
    );
}

#[test]
fn settings_decide_which_findings_count() {
    let decide = |settings: &str, rule: &'static rules::Rule| {
        let (file, _) = crate::parse(b"FROM a\n");
        let argument = (CHECK_ARGUMENT.to_owned(), settings.to_owned());
        let (settings, _) = Settings::of(&file, &BTreeMap::from([argument])).unwrap();
        let finding = Diagnostic::lint(rule, Span::default(), "x");
        (settings.keeps(&file, &finding), settings.is_error)
    };
    let usual = &rules::STAGE_NAME_CASING;
    let experimental = &rules::INVALID_DEFINITION_DESCRIPTION;
    for (settings, rule, expected) in [
        ("", usual, (true, false)),
        ("", experimental, (false, false)),
        ("skip=all", usual, (false, false)),
        (
            "skip= StageNameCasing , UndefinedVar",
            usual,
            (false, false),
        ),
        ("skip=UndefinedVar;error=true", usual, (true, true)),
        ("experimental=all;error=1", experimental, (true, true)),
        (
            "experimental=InvalidDefinitionDescription;skip=all",
            experimental,
            (true, false),
        ),
    ] {
        assert_eq!(decide(settings, rule), expected, "{settings}");
    }
}
