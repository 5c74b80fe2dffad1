//! Every kernel family on the host, on tiny odd shapes, against plain Rust and against the interpreter. No GPU needed.

mod append;
mod attention;
mod attention_projection;
mod attention_rows;
mod attention_wide;
mod caught;
mod experts;
mod formats;
mod interpreter;
mod matmul;
mod matmul_wgmma;
mod matvec;
mod mutations;
mod mutations_of_attention;
mod mutations_of_experts;
mod mutations_of_formats;
mod mutations_of_prompts;
mod recurrent;
mod router;
mod sample;
mod sample_rules;
mod small;
mod support;
mod texts;
