//! "Did you mean": the known word that a misspelt one is near to.

/// The known word at an edit distance of at most two, if one is near.
pub(super) fn closest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let word: String = word.chars().take(64).collect();
    let plain = word.replace('-', "_").to_ascii_lowercase();
    known
        .iter()
        .map(|candidate| (distance(&plain, candidate), *candidate))
        .filter(|(distance, candidate)| *distance <= 2 && *distance * 2 < candidate.len())
        .min()
        .map(|(_, candidate)| candidate)
}

/// Like [`closest`] for capability names: case does not matter and `CAP_` may be missing.
pub(super) fn closest_capability<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let upper = word.to_ascii_uppercase();
    let full = if upper.starts_with("CAP_") {
        upper
    } else {
        format!("CAP_{upper}")
    };
    let full: String = full.chars().take(64).collect();
    known
        .iter()
        .map(|candidate| (distance(&full, candidate), *candidate))
        .filter(|(distance, _)| *distance <= 2)
        .min()
        .map(|(_, candidate)| candidate)
}

fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let cost = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_found_and_far_ones_are_not() {
        let known = ["port", "run_as", "rate_limit_volume", "bind"];
        assert_eq!(closest("run-as", &known), Some("run_as"));
        assert_eq!(closest("prot", &known), None);
        assert_eq!(closest("ports", &known), Some("port"));
        assert_eq!(
            closest("rate_limt_volume", &known),
            Some("rate_limit_volume")
        );
        assert_eq!(closest("sandbox", &known), None);
        let caps = ["CAP_KILL", "CAP_NET_RAW"];
        assert_eq!(closest_capability("net_raw", &caps), Some("CAP_NET_RAW"));
        assert_eq!(closest_capability("CAP_KIL", &caps), Some("CAP_KILL"));
        assert_eq!(closest_capability("#", &caps), None);
    }
}
