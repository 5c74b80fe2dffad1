//! How the next token is chosen, and what must hold of prompts and logits first. Every device follows it, and it knows none.

mod choose;
mod limits;
mod marks;
mod scores;

pub use choose::{MOST_BIASES, SamplingParameters, sample};
pub use limits::{check_logits, check_prompt, none_left, not_finite};
pub use marks::Marks;
pub use scores::{MOST_SCORES, Scores};
