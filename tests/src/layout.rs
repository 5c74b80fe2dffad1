//! Sources of kernels without their layout.

/// A source without white space, but where it parts words, and where the end of a line ends a comment or a directive of the preprocessor.
pub fn without_layout(source: &str) -> String {
    significant(source).into_iter().map(|(_, letter)| letter).collect()
}

/// The characters that count, each with its place in bytes.
pub fn significant(source: &str) -> Vec<(usize, char)> {
    let is_word = |letter: char| letter.is_alphanumeric() || letter == '_';
    let (mut letters, mut start): (Vec<(usize, char)>, usize) = (Vec::new(), 0);
    for line in source.split_inclusive('\n') {
        for (at, letter) in line.char_indices().filter(|(_, letter)| !letter.is_whitespace()) {
            let place = start + at;
            let apart = letters.last().filter(|&&(last, before)| is_word(before) && last + before.len_utf8() < place);
            if let Some(&(last, before)) = apart
                && is_word(letter)
            {
                letters.push((last + before.len_utf8(), ' '));
            }
            letters.push((place, letter));
        }
        let ends = line.contains("//") || line.trim_start().starts_with('#');
        if ends && line.ends_with('\n') {
            letters.push((start + line.len() - 1, '\n'));
        }
        start += line.len();
    }
    letters
}
