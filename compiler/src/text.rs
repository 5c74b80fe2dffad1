//! What messages need of words.

/// The known name closest to `given`, where one is close enough to be what was meant: a third of it edited at most, case aside. Ties go to the first.
pub fn closest<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (given.len() / 3).max(1);
    known
        .into_iter()
        .filter(|name| *name != given && name.len().abs_diff(given.len()) <= limit)
        .map(|name| (strsim::damerau_levenshtein(&given.to_lowercase(), &name.to_lowercase()), name))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closest_finds_a_slip_and_no_more() {
        assert_eq!(closest("rms_nrom", ["layer_norm", "rms_norm"]), Some("rms_norm"));
        assert_eq!(closest("conv", ["rope", "linear"]), None);
        assert_eq!(closest("True", ["false", "true"]), Some("true"));
        assert_eq!(closest("model.norm.weigth", ["lm_head.weight", "model.norm.weight"]), Some("model.norm.weight"));
        assert_eq!(closest("model.norm.weight", ["visual.patch"]), None);
    }
}
