//! The bytes of each token, as grammars need them.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Tokenizer;
use crate::grammar::{Grammars, Words};

/// What stands for a space in SentencePiece's vocabularies.
const SPACE: char = '\u{2581}';

/// How a vocabulary spells bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spelling {
    /// Each byte as a letter of GPT-2's alphabet.
    Letters,
    /// As text, spaces as U+2581, and single bytes as `<0x41>`.
    Pieces,
}

impl Tokenizer {
    /// What compiles grammars for this model.
    pub fn grammars(self: &Arc<Tokenizer>) -> Grammars {
        let tokenizer = self.clone();
        Grammars::new(move || tokenizer.words())
    }

    fn words(&self) -> Result<Words> {
        let decoder = serde_json::to_value(self.inner.get_decoder()).context("the tokenizer's decoder")?;
        let spelling = match &decoder {
            decoder if has(decoder, "ByteLevel") => Spelling::Letters,
            decoder if has(decoder, "ByteFallback") || has(decoder, "Metaspace") => Spelling::Pieces,
            _ => bail!("grammars need the bytes of tokens, which this tokenizer's decoder does not tell"),
        };
        let added = self.inner.get_added_tokens_decoder();
        let vocabulary = self.inner.get_vocab(true);
        let count = vocabulary.values().max().map_or(0, |&last| last as usize + 1);
        let mut words = Words { words: vec![Vec::new(); count], special: Vec::new(), ends: self.eos().collect() };
        for (token, id) in vocabulary {
            let word = match (added.get(&id), spelling) {
                // These stand as they are.
                (Some(added), _) => {
                    if added.special {
                        words.special.push(id);
                    }
                    added.content.clone().into_bytes()
                }
                (None, Spelling::Letters) => token.chars().filter_map(byte_of_letter).collect(),
                (None, Spelling::Pieces) => match byte_of_piece(&token) {
                    Some(byte) => vec![byte],
                    None => token.replace(SPACE, " ").into_bytes(),
                },
            };
            words.words[id as usize] = word;
        }
        // A model may end with tokens that its tokenizer takes for text.
        words.special.extend(words.ends.iter().filter(|end| added.get(end).is_none_or(|added| !added.special)));
        Ok(words)
    }
}

/// Whether a decoder is of a type, or has one that is.
fn has(decoder: &Value, of_type: &str) -> bool {
    decoder["type"] == of_type
        || decoder["decoders"].as_array().is_some_and(|parts| parts.iter().any(|part| has(part, of_type)))
}

/// The byte that a letter of GPT-2's alphabet stands for: itself where it is printed, else the next of those that are not.
fn byte_of_letter(letter: char) -> Option<u8> {
    let printed = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let code = u32::from(letter);
    match u8::try_from(code) {
        Ok(byte) => Some(byte).filter(printed),
        Err(_) => (0..=255u8).filter(|byte| !printed(byte)).nth(code as usize - 256),
    }
}

fn byte_of_piece(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>').filter(|digits| digits.len() == 2)?;
    u8::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo;

    #[test]
    fn letters_stand_for_bytes() {
        let of = |letter| byte_of_letter(letter);
        assert_eq!(
            [of('a'), of('\u{120}'), of('\u{10A}'), of('\u{143}')],
            [Some(b'a'), Some(b' '), Some(b'\n'), Some(0xAD)]
        );
        assert_eq!([of(' '), of('\u{144}')], [None, None]);
        assert_eq!([byte_of_piece("<0x0A>"), byte_of_piece("<0x0AB>"), byte_of_piece("a")], [Some(10), None, None]);
    }

    #[test]
    fn the_bytes_of_tokens_are_those_of_their_text() {
        let tokenizer = demo::tokenizer().unwrap();
        let words = tokenizer.words().unwrap();
        assert_eq!((words.words.len(), &words.special), (tokenizer.vocabulary_size(), &vec![0]));
        let text = "Call me \u{e9}t\u{e9}.\n\nThe whale";
        let bytes: Vec<u8> = tokenizer
            .encode(text, false)
            .unwrap()
            .into_iter()
            .flat_map(|id| words.words[id as usize].clone())
            .collect();
        assert_eq!(bytes, text.as_bytes());
    }
}
