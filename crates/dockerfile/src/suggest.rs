//! "Did you mean …?": the nearest of some known words.

/// Words longer than this are not compared.
const LENGTH_MAX: usize = 40;

/// Returns `did you mean X?` for the word of `known` that is closest to `word`, ignoring case, if one is close.
pub(crate) fn did_you_mean<'a>(
    word: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    let lower = word.to_lowercase();
    if lower.len() > LENGTH_MAX {
        return None;
    }
    let allowed = (lower.len() / 3).clamp(1, 3);
    known
        .into_iter()
        .filter(|candidate| candidate.len() <= LENGTH_MAX && *candidate != word)
        .map(|candidate| (distance(&lower, &candidate.to_lowercase()), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map(|(_, candidate)| format!("did you mean {candidate}?"))
}

/// Returns the edit distance (insert, delete, replace; a swap of neighbours counts as one).
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut previous: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.iter().enumerate() {
        let mut row = Vec::with_capacity(b.len() + 1);
        row.push(i + 1);
        for (j, cb) in b.iter().enumerate() {
            let at =
                |row: &[usize], index: usize| row.get(index).copied().unwrap_or(usize::MAX / 2);
            let replaced = at(&previous, j) + usize::from(ca != cb);
            let mut best = replaced.min(at(&previous, j + 1) + 1).min(at(&row, j) + 1);
            let swapped = i > 0 && j > 0 && a.get(i - 1) == Some(cb) && b.get(j - 1) == Some(ca);
            if swapped {
                best = best.min(at(&before, j - 1) + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut previous, row);
    }
    previous.last().copied().unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::did_you_mean;

    #[test]
    fn near_words_are_suggested_and_far_ones_are_not() {
        let known = ["RUN", "ENV", "COPY", "ENTRYPOINT"];
        assert_eq!(
            did_you_mean("RUM", known).as_deref(),
            Some("did you mean RUN?")
        );
        assert_eq!(
            did_you_mean("cpoy", known).as_deref(),
            Some("did you mean COPY?")
        );
        assert_eq!(
            did_you_mean("entrypont", known).as_deref(),
            Some("did you mean ENTRYPOINT?")
        );
        assert_eq!(did_you_mean("zzzz", known), None);
        assert_eq!(did_you_mean("", known), None);
        assert_eq!(did_you_mean(&"x".repeat(5000), known), None);
    }
}
