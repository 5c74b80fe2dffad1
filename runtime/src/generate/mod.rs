//! Text to tokens and back: the tokenizer and the chat template.
pub mod chat;
pub mod sampling;
pub mod stops;
pub mod tokenizer;
