//! `WWW-Authenticate` challenges (RFC 9110, 11.6.1), read from whatever a server sends.
//!
//! The reader never fails and never panics: what it cannot read it skips. Limits: [`HEADER_MAX_BYTES`] over all headers,
//! [`CHALLENGES_MAX`] challenges, [`PARAMETERS_MAX`] parameters each.

use std::collections::BTreeMap;

/// Most bytes that are read of all challenge headers together.
pub const HEADER_MAX_BYTES: usize = 16 << 10;
/// Most challenges that are kept.
pub const CHALLENGES_MAX: usize = 16;
/// Most parameters that are kept of one challenge.
pub const PARAMETERS_MAX: usize = 32;

/// One way in which a server is willing to be convinced.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Challenge {
    /// The scheme in lower case: `basic`, `bearer`.
    pub scheme: String,
    /// Parameters by lower-case name; the first of several with one name counts.
    pub parameters: BTreeMap<String, String>,
}

/// Reads the challenges out of the values of all `WWW-Authenticate` headers.
pub fn parse<'a>(values: impl IntoIterator<Item = &'a str>) -> Vec<Challenge> {
    let mut challenges = Vec::new();
    let mut budget = HEADER_MAX_BYTES;
    for value in values {
        let Some(rest) = budget.checked_sub(value.len()) else {
            break;
        };
        budget = rest;
        parse_value(value, &mut challenges);
        if challenges.len() >= CHALLENGES_MAX {
            challenges.truncate(CHALLENGES_MAX);
            break;
        }
    }
    challenges
}

fn parse_value(value: &str, challenges: &mut Vec<Challenge>) {
    let mut rest = value;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let (word, after) = split_token(rest);
        if word.is_empty() {
            // Not the start of anything: skip one character, so that the loop ends.
            let mut chars = rest.chars();
            if chars.next().is_none() {
                return;
            }
            rest = chars.as_str();
            continue;
        }
        let spaceless = after.trim_start_matches([' ', '\t']);
        if let Some(value) = spaceless.strip_prefix('=') {
            let (value, after) = split_value(value.trim_start_matches([' ', '\t']));
            rest = after;
            let Some(challenge) = challenges.last_mut() else {
                continue;
            };
            if challenge.parameters.len() < PARAMETERS_MAX {
                let name = word.to_ascii_lowercase();
                challenge.parameters.entry(name).or_insert(value);
            }
        } else {
            if challenges.len() >= CHALLENGES_MAX {
                return;
            }
            challenges.push(Challenge {
                scheme: word.to_ascii_lowercase(),
                parameters: BTreeMap::new(),
            });
            rest = after;
        }
    }
}

fn split_token(text: &str) -> (&str, &str) {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    let end = text.find(|c| !is_token(c)).unwrap_or(text.len());
    text.split_at(end)
}

/// Splits a quoted string, or everything up to a comma, off `text`.
fn split_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        let (value, rest) = text.split_at(end);
        return (value.to_owned(), rest);
    };
    let mut value = String::new();
    let mut chars = quoted.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => break,
            '\\' => value.extend(chars.next()),
            c => value.push(c),
        }
    }
    (value, chars.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Vec<(String, Vec<(String, String)>)> {
        parse([text])
            .into_iter()
            .map(|c| (c.scheme, c.parameters.into_iter().collect()))
            .collect()
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn usual_challenges_are_read() {
        assert_eq!(
            one(
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#
            ),
            [(
                "bearer".to_owned(),
                pairs(&[
                    ("realm", "https://auth.docker.io/token"),
                    ("scope", "repository:a/b:pull,push"),
                    ("service", "registry.docker.io")
                ])
            )]
        );
        assert_eq!(
            one(r#"BASIC Realm = "a\"b" , charset=UTF-8, Bearer realm=x"#),
            [
                (
                    "basic".to_owned(),
                    pairs(&[("charset", "UTF-8"), ("realm", "a\"b")])
                ),
                ("bearer".to_owned(), pairs(&[("realm", "x")])),
            ]
        );
    }

    #[test]
    fn broken_challenges_end_in_something_harmless() {
        for text in [
            "",
            ",,,",
            "=",
            "realm=x",
            "\"",
            "Bearer realm=\"",
            "Bearer realm=\"\\",
            "Bearer =x",
            "Bearer ä=ö",
            "Bearer\u{0}realm=x",
            "Negotiate YWJj==",
        ] {
            let challenges = one(text);
            assert!(challenges.len() <= 2, "{text}: {challenges:?}");
        }
        assert_eq!(
            one("Bearer realm=a,realm=b"),
            [("bearer".to_owned(), pairs(&[("realm", "a")]))]
        );
    }

    #[test]
    fn floods_are_cut() {
        let many = "Bearer realm=x, ".repeat(1000);
        assert_eq!(parse([many.as_str()]).len(), CHALLENGES_MAX);
        let long = format!("Bearer realm=\"{}\"", "a".repeat(1 << 20));
        assert!(parse([long.as_str()]).is_empty());
        let parameters: Vec<String> = (0..1000).map(|i| format!("p{i}=x")).collect();
        let challenges = parse([format!("Bearer {}", parameters.join(",")).as_str()]);
        assert_eq!(challenges[0].parameters.len(), PARAMETERS_MAX);
    }
}
