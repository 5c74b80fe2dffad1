//! Which of the descriptions inside the binary serves a model.

use super::document::Description;
use super::shipped::shipped;

/// The `architectures` that shipped descriptions serve.
pub fn served() -> Vec<String> {
    let parse = |(file, text): &(&str, &str)| Description::parse(text, file).ok();
    shipped().iter().filter_map(parse).flat_map(|description| description.serves).collect()
}

/// Name and text of the shipped description that serves one of these architectures (`architectures` of a config.json).
pub fn find_for<S: AsRef<str>>(architectures: &[S]) -> Option<(&'static str, &'static str)> {
    let serves = |file: &str, text: &str| {
        let description = Description::parse(text, file).expect("shipped descriptions are read by the tests");
        architectures.iter().any(|name| description.serves.iter().any(|served| served == name.as_ref()))
    };
    shipped().iter().copied().find(|(file, text)| serves(file, text))
}
