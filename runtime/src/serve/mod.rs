//! The server: HTTP in front of the slots, with the APIs that clients of OpenAI, Anthropic, Ollama and llama.cpp speak.
//!
//! One thread owns the slots ([`Inbox::serve`]); requests reach it over a channel, and what comes of each comes over one of its own. Text, stops and the
//! parts of answers are the business of each request's task. Which device runs is not known here.

mod access;
mod answer;
mod anthropic;
mod app;
mod ask;
mod body;
mod calls;
mod connections;
mod conversation;
mod engine;
mod fields;
mod forms;
mod local;
mod metrics;
mod native;
mod ollama;
mod openai;
mod page;
mod problem;
mod question;
mod requested;
mod routes;
mod run;
mod served;
mod stream;
mod warnings;

pub use answer::{Finish, Part, TokenScores};
pub use engine::{Inbox, LogitsWanted};
pub use local::{Local, Outcome, Said};
pub use question::{Answering, Came, Piece, Question, Refusal, Taken};
pub use requested::{Asked, Sent};
pub use run::{Options, Subject, run};
