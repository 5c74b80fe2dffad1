//! Quantised checkpoints: what their configuration says of how weights are stored, and what of it nothing here reads.

use std::collections::BTreeMap;

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
    /// `compressed-tensors`: each of these for some weights.
    CompressedTensors(Vec<Group>),
    /// `awq`: integers of 4 bits.
    Awq {
        /// Columns that share a scale; `None`: all.
        group: Option<usize>,
    },
    /// `gptq`: integers.
    Gptq {
        /// Bits of each: 4 or 8.
        bits: usize,
        /// Columns that share a scale; `None`: all.
        group: Option<usize>,
        /// All zero points are in the middle.
        symmetric: bool,
        /// A tensor tells the group of each column.
        reordered: bool,
        /// Zero points are stored less one.
        less_one: bool,
    },
    /// `mxfp4`, as gpt-oss has its experts.
    Mxfp4,
    /// `modelopt`: floats of 8 or 4 bits.
    ModelOpt,
}

/// One way in which compressed-tensors stores weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Bits of a value: 4 or 8.
    pub bits: usize,
    /// Whether values are floats; else they are integers.
    pub float: bool,
    /// Columns that share a scale, where rows have several.
    pub group: Option<usize>,
    /// Rows and columns that share a scale.
    pub block: Option<[usize; 2]>,
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
    match method {
        Some("fp8" | "fbgemm_fp8") => fp8(&options).map(Some),
        Some("compressed-tensors") => compressed_tensors(&options).map(Some),
        Some("awq") => awq(&options).map(Some),
        Some("gptq") => gptq(&options).map(Some),
        Some("mxfp4") => Ok(Some(Quantisation::Mxfp4)),
        Some("modelopt" | "modelopt_fp4") => {
            options.only("quant_algo", &["FP8", "NVFP4"])?;
            Ok(Some(Quantisation::ModelOpt))
        }
        _ => Err(options.bits()),
    }
}

fn fp8(options: &Options<'_>) -> Read<Quantisation> {
    options.only("fmt", &["e4m3"])?;
    Ok(Quantisation::Fp8 { block: options.pair("weight_block_size")? })
}

/// The ways of compressed-tensors to store a tensor that are read.
const STORED: &[&str] = &[
    "float-quantized",
    "int-quantized",
    "mixed-precision",
    "mxfp4-pack-quantized",
    "mxfp8-quantized",
    "naive-quantized",
    "nvfp4-pack-quantized",
    "pack-quantized",
];

fn compressed_tensors(options: &Options<'_>) -> Read<Quantisation> {
    options.only("format", STORED)?;
    options.only("quantization_status", &["compressed"])?;
    let dense = |table: &BTreeMap<String, Value>| table.get("format").is_none_or(|format| *format == "dense".into());
    options.only_table("sparsity_config", dense)?;
    options.only_table("transform_config", BTreeMap::is_empty)?;
    let groups = options.get("config_groups").and_then(Value::table).ok_or_else(|| options.not("config_groups"))?;
    let mut list = Vec::new();
    for group in groups.values() {
        let group = Options { table: group, what: options.what.clone() };
        group.only("format", STORED)?;
        // A group without weights is of activations.
        let Some(weights) = group.get("weights") else { continue };
        let weights = Options { table: weights, what: options.what.clone() };
        weights.only("type", &["int", "float"])?;
        weights.only("strategy", &["tensor", "channel", "group", "block", "tensor_group"])?;
        let bits = weights.get("num_bits").and_then(count_of).unwrap_or(8);
        let float = weights.text("type") == Some("float");
        if ![4, 8].contains(&bits) {
            return Err(format!("{} to {bits} bits", options.what));
        }
        let in_blocks = weights.text("strategy") == Some("block");
        let block = if in_blocks { weights.pair("block_structure")? } else { None };
        if in_blocks && block.is_none() {
            return Err(weights.not("block_structure"));
        }
        list.push(Group { bits, float, group: weights.group()?, block });
    }
    Ok(Quantisation::CompressedTensors(list))
}

fn awq(options: &Options<'_>) -> Read<Quantisation> {
    if ["bits", "w_bit"].iter().any(|key| options.get(key).is_some_and(|bits| !bits.same(&Value::Int(4)))) {
        return Err(options.bits());
    }
    options.only("version", &["gemm"])?;
    if options.text("backend") == Some("llm-awq") {
        return Err(options.not("backend"));
    }
    let key = if options.get("q_group_size").is_some() { "q_group_size" } else { "group_size" };
    Ok(Quantisation::Awq { group: options.group_in(key)? })
}

fn gptq(options: &Options<'_>) -> Read<Quantisation> {
    let bits = options.get("bits").and_then(count_of).filter(|bits| [4, 8].contains(bits));
    let bits = bits.ok_or_else(|| options.bits())?;
    let form = if options.get("checkpoint_format").is_some() { "checkpoint_format" } else { "format" };
    options.only(form, &["gptq", "gptq_v2"])?;
    if options.flag("is_marlin_format") {
        return Err(options.not("is_marlin_format"));
    }
    // Modules that are left out begin with a minus; others have options of their own.
    options.only_table("dynamic", |table| table.keys().all(|key| key.starts_with('-')))?;
    Ok(Quantisation::Gptq {
        bits,
        group: options.group()?,
        symmetric: options.flag("sym"),
        reordered: options.flag("desc_act"),
        less_one: options.text(form) != Some("gptq_v2"),
    })
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

    /// The refusal of the method, or of its bits.
    fn bits(&self) -> String {
        let bits = self.get("bits").or(self.get("w_bit")).and_then(Value::number);
        bits.map_or(self.what.clone(), |bits| format!("{} to {bits} bits", self.what))
    }

    /// Refuses a text other than these, in whatever case.
    fn only(&self, key: &str, texts: &[&str]) -> Read<()> {
        let known = |value: &Value| value.text().is_some_and(|text| texts.iter().any(|t| t.eq_ignore_ascii_case(text)));
        if self.get(key).is_none_or(known) { Ok(()) } else { Err(self.not(key)) }
    }

    /// Refuses a table that is not such; there may be none.
    fn only_table(&self, key: &str, such: impl Fn(&BTreeMap<String, Value>) -> bool) -> Read<()> {
        let read = self.get(key).is_none_or(|value| value.table().is_some_and(such));
        if read { Ok(()) } else { Err(self.not(key)) }
    }

    fn flag(&self, key: &str) -> bool {
        self.get(key) == Some(&Value::Bool(true))
    }

    /// `group_size`.
    fn group(&self) -> Read<Option<usize>> {
        self.group_in("group_size")
    }

    /// A number of columns; `None` for -1, which is all of them, or where there is none.
    fn group_in(&self, key: &str) -> Read<Option<usize>> {
        match self.get(key) {
            None | Some(Value::Int(-1)) => Ok(None),
            Some(value) => count_of(value).map(Some).ok_or_else(|| self.not(key)),
        }
    }

    /// Two sizes, as `[128, 128]` or `"128x128"`; `None` where there are none.
    fn pair(&self, key: &str) -> Read<Option<[usize; 2]>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let sizes: Vec<Option<usize>> = match value {
            Value::List(items) => items.iter().map(count_of).collect(),
            Value::Str(text) => text.split('x').map(|size| size.parse().ok().filter(|size| *size > 0)).collect(),
            _ => Vec::new(),
        };
        match sizes[..] {
            [Some(rows), Some(columns)] => Ok(Some([rows, columns])),
            _ => Err(self.not(key)),
        }
    }
}
