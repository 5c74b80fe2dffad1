//! Text to tokens and back: the tokenizer, the chat template, what a checkpoint says of sampling and when to stop.

pub mod chat;
pub mod defaults;
pub mod stops;
pub mod to_gguf;
pub mod tokenizer;
