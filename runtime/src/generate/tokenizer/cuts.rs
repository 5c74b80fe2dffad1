//! Places where a text may be cut: the ids of the whole are those of the two parts, one after the other.
//!
//! A place is known by the few characters around it, whatever else is in the text. There are two kinds. Before a special token: the text is split there before
//! any other rule sees it. Between a letter and a space, where every rule that splits the text before its merges ends a piece there.

use tokenizers::models::ModelWrapper;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

/// Alternatives of a pattern of which no match goes from an ASCII letter to a space, and whose matches before that place are the same at the end of a text.
const ALTERNATIVES: &[&str] = &[
    "'s",
    "'t",
    "'re",
    "'ve",
    "'m",
    "'ll",
    "'d",
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    r"\p{N}",
    r"\p{N}+",
    r"\p{N}{1,3}",
    r" ?\p{N}+",
    "[0-9][0-9][0-9]",
    r"[\p{P}\$\+<=>\^~\|]+",
    r" ?[^\s\p{L}\p{N}]+",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
];

/// Those that match any ASCII letter besides.
const WORDS: &[&str] = &[r" ?\p{L}+", r"[^\r\n\p{L}\p{N}]?\p{L}+", r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+"];

/// The same of two: small letters match the first, capitals one of the two.
const CASED_WORDS: &[[&str; 2]] = &[
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    ],
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    ],
];

/// Where the texts of a tokenizer may be cut.
pub(super) struct Cuts {
    /// Between a letter and a space.
    words: bool,
    /// Before these special tokens.
    pub tokens: Vec<String>,
    /// The bytes that they begin with.
    first: [bool; 256],
}

impl Cuts {
    pub fn of(inner: &tokenizers::Tokenizer) -> Cuts {
        let added: Vec<AddedToken> = inner.get_added_tokens_decoder().into_values().collect();
        let tokens = separate(&added);
        let mut first = [false; 256];
        for token in &tokens {
            first[usize::from(token.as_bytes()[0])] = true;
        }
        Cuts { words: added.iter().all(keeps_words) && cuts_words(inner), tokens, first }
    }

    /// Whether a text may be cut before its byte `at`.
    pub fn is_cut(&self, text: &str, at: usize) -> bool {
        let bytes = text.as_bytes();
        let (Some(before), Some(after)) = (at.checked_sub(1).and_then(|before| bytes.get(before)), bytes.get(at))
        else {
            return false;
        };
        let begins = || self.tokens.iter().any(|token| bytes[at..].starts_with(token.as_bytes()));
        self.words && before.is_ascii_alphabetic() && *after == b' ' || self.first[usize::from(*after)] && begins()
    }

    /// The first such place from a byte on.
    pub fn next(&self, text: &str, from: usize) -> Option<usize> {
        (from..text.len()).find(|&at| self.is_cut(text, at))
    }
}

/// Whether a text has the same ids each time.
pub(super) fn is_settled(inner: &tokenizers::Tokenizer) -> bool {
    let draws = |chance: f64| chance != 0.0;
    match inner.get_model() {
        ModelWrapper::BPE(model) => !model.dropout.map(f64::from).is_some_and(draws),
        ModelWrapper::Unigram(model) => !model.alpha.is_some_and(draws),
        ModelWrapper::WordPiece(_) | ModelWrapper::WordLevel(_) => true,
    }
}

/// The special tokens that are found wherever they stand: no other token overlaps them, and none takes the space before them.
fn separate(added: &[AddedToken]) -> Vec<String> {
    let mut raw: Vec<&str> =
        added.iter().filter(|token| !token.normalized).map(|token| token.content.as_str()).collect();
    raw.sort_unstable();
    let is_mark = |byte: u8| byte.is_ascii_punctuation() && byte != b'_';
    // What of a token may be the beginning of another one.
    let inner: Vec<&str> = raw
        .iter()
        .flat_map(|token| token.char_indices().skip(1).map(|(at, _)| &token[at..]))
        .filter(|rest| is_mark(rest.as_bytes()[0]))
        .collect();
    let is_separate = |token: &&AddedToken| {
        let text = token.content.as_str();
        let longer = raw.partition_point(|other| *other <= text);
        token.special
            && !(token.normalized || token.lstrip || token.single_word)
            && text.bytes().next().is_some_and(is_mark)
            && !raw.get(longer).is_some_and(|other| other.starts_with(text))
            && !inner.iter().any(|rest| rest.starts_with(text) || text.starts_with(rest))
    };
    added.iter().filter(is_separate).map(|token| token.content.clone()).collect()
}

/// Whether an added token leaves the places between a letter and a space as they are.
fn keeps_words(token: &AddedToken) -> bool {
    let text = token.content.as_str();
    // What is not ASCII may become a letter where it is composed.
    let is_letter = |c: char| c.is_ascii_alphabetic() || !c.is_ascii();
    let crosses = text.chars().zip(text.chars().skip(1)).any(|(before, after)| is_letter(before) && after == ' ');
    let takes = token.rstrip && text.chars().next_back().is_some_and(is_letter);
    let looks_back = token.single_word && text.starts_with(' ');
    !(crosses || takes || looks_back)
}

/// Whether every rule that changes or splits a text cuts it between a letter and a space.
fn cuts_words(inner: &tokenizers::Tokenizer) -> bool {
    // A space composes with nothing before it.
    if !matches!(inner.get_normalizer(), None | Some(NormalizerWrapper::NFC(_))) {
        return false;
    }
    let steps = match inner.get_pre_tokenizer() {
        Some(PreTokenizerWrapper::Sequence(sequence)) => sequence.as_ref(),
        Some(one) => std::slice::from_ref(one),
        None => return false,
    };
    let Some((last, steps)) = steps.split_last() else { return false };
    // The last writes spaces in another way; the others see the text.
    let PreTokenizerWrapper::ByteLevel(bytes) = last else { return false };
    let cut = |step: &PreTokenizerWrapper| match step {
        PreTokenizerWrapper::Split(split) => kind(split),
        PreTokenizerWrapper::Digits(_) => Some(false),
        _ => None,
    };
    let Some(found) = steps.iter().map(cut).collect::<Option<Vec<bool>>>() else { return false };
    !bytes.add_prefix_space && (bytes.use_regex || found.contains(&true))
}

/// Whether a pattern cuts there, or only leaves the place alone; none where it is not known.
fn kind(split: &Split) -> Option<bool> {
    let SplitPattern::Regex(pattern) = &split.pattern else { return None };
    if split.behavior != SplitDelimiterBehavior::Isolated || split.invert {
        return None;
    }
    let found = alternatives(pattern);
    let cased = |pair: &&[&str; 2]| pair.iter().all(|half| found.contains(half));
    let pairs: Vec<&str> = CASED_WORDS.iter().filter(cased).flatten().copied().collect();
    let is_word = |one: &&str| WORDS.contains(one) || pairs.contains(one);
    found.iter().all(|one| ALTERNATIVES.contains(one) || is_word(one)).then(|| found.iter().any(is_word))
}

/// The alternatives of a pattern, split where no bracket is open.
fn alternatives(pattern: &str) -> Vec<&str> {
    let (mut found, mut begin, mut depth, mut escaped) = (Vec::new(), 0, 0, false);
    for (at, c) in pattern.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '(' | '[' => depth += 1,
            ')' | ']' => depth -= 1,
            '|' if depth == 0 => {
                found.push(&pattern[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    found.push(&pattern[begin..]);
    found
}
