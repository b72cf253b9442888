//! What is not as expected, line by line.

use serde_json::Value;

/// Lines shown around what is different.
const CONTEXT: usize = 2;

/// Returns the differences between two documents: `-` is expected, `+` was seen. Empty if there is none.
pub(super) fn between(expected: &Value, seen: &Value) -> String {
    if expected == seen {
        return String::new();
    }
    let text = |value: &Value| serde_json::to_string_pretty(value).unwrap();
    let (expected, seen) = (text(expected), text(seen));
    let (expected, seen): (Vec<_>, Vec<_>) = (expected.lines().collect(), seen.lines().collect());
    let marked = mark(&expected, &seen);
    let is_near = |index: usize| {
        let from = index.saturating_sub(CONTEXT);
        let to = (index + CONTEXT).min(marked.len() - 1);
        marked[from..=to].iter().any(|(sign, _)| *sign != ' ')
    };
    let lines = marked
        .iter()
        .enumerate()
        .filter(|(index, _)| is_near(*index));
    lines.fold(String::new(), |text, (_, (sign, line))| {
        format!("{text}  {sign} {line}\n")
    })
}

/// Marks lines as removed, added or kept, by the longest common subsequence.
fn mark<'a>(old: &[&'a str], new: &[&'a str]) -> Vec<(char, &'a str)> {
    let mut longest = vec![vec![0_usize; new.len() + 1]; old.len() + 1];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            longest[i][j] = if old[i] == new[j] {
                longest[i + 1][j + 1] + 1
            } else {
                longest[i + 1][j].max(longest[i][j + 1])
            };
        }
    }
    let (mut i, mut j, mut marked) = (0, 0, Vec::new());
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            marked.push((' ', old[i]));
            (i, j) = (i + 1, j + 1);
        } else if j == new.len() || (i < old.len() && longest[i + 1][j] >= longest[i][j + 1]) {
            marked.push(('-', old[i]));
            i += 1;
        } else {
            marked.push(('+', new[j]));
            j += 1;
        }
    }
    marked
}

#[test]
fn what_is_different_is_marked() {
    let difference = between(&serde_json::json!([1, 2]), &serde_json::json!([1, 3]));
    assert!(
        difference.contains("-   2")
            && difference.contains("+   3")
            && difference.contains("    1"),
        "{difference}"
    );
    assert_eq!(between(&Value::Null, &Value::Null), "");
}
