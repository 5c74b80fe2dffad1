//! Quantised checkpoints, which are not read: how they are recognised, and what to do.

use super::diagnostics::{Code, Diagnostic};
use super::value::Value;

/// The keys that tell it: of transformers, of MLX, and of older files of compressed-tensors.
pub(super) const KEYS: &[&str] = &["quantization_config", "quantization", "compression_config"];

/// Ends of the names that tensors have in such a checkpoint, and what wrote them.
const TENSORS: &[(&str, &str)] = &[
    (".qweight", "GPTQ or AWQ"),
    (".qzeros", "GPTQ or AWQ"),
    (".g_idx", "GPTQ"),
    (".weight_packed", "compressed-tensors"),
    (".weight_scale_inv", "FP8"),
    (".weight_scale", "FP8 or NVFP4"),
    (".weight_scale_2", "NVFP4"),
    (".input_scale", "FP8"),
    ("_proj_blocks", "MXFP4"),
    (".weight.absmax", "bitsandbytes"),
    (".weight.quant_map", "bitsandbytes"),
    (".SCB", "bitsandbytes"),
    (".codebooks", "AQLM"),
    (".Qidxs", "QuIP#"),
    (".trellis", "EXL3"),
    (".q_weight", "EXL2"),
    (".W_q", "HQQ"),
    (".scales", "MLX"),
];

/// What to do about a quantised checkpoint.
pub const QUANTISED_INSTEAD: &str = "get the model in bf16, or as a GGUF file";

/// What wrote a tensor of this name, where only quantised checkpoints have one.
pub fn quantised_tensor(name: &str) -> Option<&'static str> {
    TENSORS.iter().find(|(end, _)| name.ends_with(end)).map(|(_, what)| *what)
}

/// The refusal of what `key` in `origin` asks for.
pub(super) fn refusal(key: &str, value: &Value, origin: &str) -> Diagnostic {
    let table = value.table();
    let given = |name: &str| table.and_then(|table| table.get(name));
    let method = given("quant_method").and_then(Value::text);
    let method = method.or((key == "quantization").then_some("MLX")).map_or(String::new(), |how| format!(" by {how}"));
    let bits = given("bits").or(given("w_bit")).and_then(Value::number);
    let bits = bits.map_or(String::new(), |bits| format!(" to {bits} bits"));
    let message = format!("`{key}` in {origin}: the weights are quantised{method}{bits}, which nothing here reads");
    Diagnostic::new(Code::UnsupportedFeature, message).help(QUANTISED_INSTEAD)
}
