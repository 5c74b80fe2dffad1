//! Quantised checkpoints: what their configuration says of how weights are stored, and what of it nothing here reads.

use super::diagnostics::{Code, Diagnostic};
use super::text_config::language_model_config;
use super::value::{Value, count_of};

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

/// What to do about a quantised checkpoint that is not read.
pub const QUANTISED_INSTEAD: &str = "get the model in bf16, or as a GGUF file";

/// How a checkpoint's weights are quantised, where that is read. Which of them are shows in its tensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Quantisation {
    /// `fp8`: floats of 8 bits (e4m3).
    Fp8 {
        /// Rows and columns that share a scale.
        block: Option<[usize; 2]>,
    },
}

impl Quantisation {
    /// What a config.json says; `None` where nothing is quantised.
    ///
    /// # Errors
    /// The method or option that is not read, as in "the weights are quantised by hqq": resolving a description refuses it in the same words.
    pub fn of(config: &serde_json::Value) -> Result<Option<Quantisation>, String> {
        let inner = language_model_config(config);
        let config = inner.as_ref().unwrap_or(config);
        let given = KEYS.iter().filter_map(|key| Some((*key, Value::from(config.get(key)?))));
        // One of them says it; the first in order is transformers'.
        given.map(|(key, value)| read(key, &value)).find(|read| *read != Ok(None)).unwrap_or(Ok(None))
    }
}

/// What wrote a tensor of this name, where only quantised checkpoints have one.
pub fn quantised_tensor(name: &str) -> Option<&'static str> {
    TENSORS.iter().find(|(end, _)| name.ends_with(end)).map(|(_, what)| *what)
}

/// The refusal of what `key` in `origin` asks for; `None` where it is read. Second, whether anything is quantised.
pub(super) fn refusal(key: &str, value: &Value, origin: &str) -> (Option<Diagnostic>, bool) {
    match read(key, value) {
        Ok(quantisation) => (None, quantisation.is_some()),
        Err(what) => {
            let message = format!("`{key}` in {origin}: {what}, which nothing here reads");
            (Some(Diagnostic::new(Code::UnsupportedFeature, message).help(QUANTISED_INSTEAD)), true)
        }
    }
}

/// A table of options.
struct Options<'a> {
    table: &'a Value,
    /// What messages say before they name an option.
    what: String,
}

type Read<T> = Result<T, String>;

fn read(key: &str, value: &Value) -> Read<Option<Quantisation>> {
    if [Value::Null, Value::Bool(false)].contains(value) {
        return Ok(None);
    }
    let mut options = Options { table: value, what: "the weights are quantised".to_owned() };
    let mlx = (key == "quantization").then_some("MLX");
    let method = options.text("quant_method").or(mlx).filter(|_| key != "compression_config");
    if let Some(method) = method {
        options.what += &format!(" by {method}");
    }
    let bits = options.get("bits").or(options.get("w_bit")).and_then(Value::number);
    let with_bits = |what: &str| bits.map_or(what.to_owned(), |bits| format!("{what} to {bits} bits"));
    match method {
        Some("fp8" | "fbgemm_fp8") => fp8(&options).map(Some),
        _ => Err(with_bits(&options.what)),
    }
}

fn fp8(options: &Options<'_>) -> Read<Quantisation> {
    options.only("fmt", &["e4m3"])?;
    Ok(Quantisation::Fp8 { block: options.pair("weight_block_size")? })
}

impl<'a> Options<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.table.table()?.get(key).filter(|value| **value != Value::Null)
    }

    fn text(&self, key: &str) -> Option<&'a str> {
        self.get(key).and_then(Value::text)
    }

    /// The refusal of an option.
    fn not(&self, key: &str) -> String {
        let value = self.get(key).unwrap_or(&Value::Null);
        format!("{} with `{key}` {value}", self.what)
    }

    /// Refuses a text other than these, in whatever case.
    fn only(&self, key: &str, texts: &[&str]) -> Read<()> {
        let known = |value: &Value| value.text().is_some_and(|text| texts.iter().any(|t| t.eq_ignore_ascii_case(text)));
        if self.get(key).is_none_or(known) { Ok(()) } else { Err(self.not(key)) }
    }

    /// Two sizes; `None` where there are none.
    fn pair(&self, key: &str) -> Read<Option<[usize; 2]>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::List(items)) => match &items[..] {
                [a, b] => count_of(a).zip(count_of(b)).map(|(a, b)| Some([a, b])).ok_or_else(|| self.not(key)),
                _ => Err(self.not(key)),
            },
            Some(_) => Err(self.not(key)),
        }
    }
}
