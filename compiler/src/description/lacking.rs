//! Architectures that no description can serve: what they need that no operation computes, or what they are instead of a decoder of text.

use serde_json::Value;

use super::serving::served;
use super::text_config::{architectures, language_model_config};

/// Why no description can serve an architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lack {
    /// What it computes, and no operation does.
    Operation(&'static str),
    /// What it is.
    Nature(&'static str),
}

use Lack::{Nature, Operation};

const ALIBI: Lack = Operation("ALiBi (scores less the distance)");
const HYPER: Lack = Operation("hyper-connections and a token indexer");
const INDEXER: Lack = Operation("latent attention with a token indexer");
const LIGHTNING: Lack = Operation("linear attention with a decay (lightning attention)");
const LLAMA4: Lack = Operation("chunked attention and experts that are scaled at their input");
const MAMBA1: Lack = Operation("a selective state space (Mamba)");
const PER_LAYER: Lack = Operation("embeddings for each layer and layers that share a cache");
const RG_LRU: Lack = Operation("a gated linear recurrence (RG-LRU)");
const RWKV: Lack = Operation("RWKV's time mixing");

const BOTH: Lack = Nature("is an encoder with a decoder, and only decoders are run");
const DIFFUSION: Lack = Nature("writes text by diffusion, not token after token");
const ENCODER: Lack = Nature("is an encoder, which writes no text");
const NO_TEXT: Lack = Nature("is no language model");
const PROJECTOR: Lack = Nature("is what a model sees or hears with (mmproj): name the file of its language model");

/// By the name of the family: transformers' class without its ending, `model_type`, or GGUF's `general.architecture`, in small letters and digits only.
const FAMILIES: &[(Lack, &[&str])] = &[
    (MAMBA1, &["falconmamba", "jamba", "mamba"]),
    (Operation("a block that several layers share"), &["zamba", "zamba2"]),
    (Operation("learned tokens before the text"), &["hymba"]),
    (Operation("several attentions in a layer"), &["longcatflash"]),
    (INDEXER, &["deepseekv32", "glmdsa", "glmmoedsa"]),
    (HYPER, &["deepseekv4", "qwen4exp"]),
    (LIGHTNING, &["bailinghybrid", "bailingmoelinear", "bailingmoev25", "minimax", "minimaxm1", "minimaxtext01"]),
    (RG_LRU, &["griffin", "recurrentgemma"]),
    (RWKV, &["arwkv7", "rwkv", "rwkv4", "rwkv5", "rwkv6", "rwkv6qwen2", "rwkv7"]),
    (Operation("xLSTM's memories"), &["xlstm"]),
    (Operation("retention"), &["retnet"]),
    (Operation("long convolutions (Hyena)"), &["evo2", "hyena", "stripedhyena"]),
    (ALIBI, &["bloom", "gptrefact", "jais", "mpt", "refact"]),
    (PER_LAYER, &["gemma3n", "gemma3ntext"]),
    (LLAMA4, &["llama4", "llama4text"]),
    (Operation("SparseMixer, by which its experts share"), &["phimoe"]),
    (Operation("the activation xIELU"), &["apertus"]),
    (Operation("a gate for each head and softplus"), &["laguna"]),
    (Operation("RoPE that turns backwards"), &["nanochat"]),
    (Operation("positions by sines"), &["xglm"]),
    (Operation("differential attention"), &["diffllama"]),
    (
        BOTH,
        &[
            "bart",
            "bigbirdpegasus",
            "blenderbot",
            "blenderbotsmall",
            "encoderdecoder",
            "fsmt",
            "led",
            "longt5",
            "m2m100",
            "marian",
            "mbart",
            "moonshine",
            "mt5",
            "mvp",
            "nllbmoe",
            "pegasus",
            "pegasusx",
            "pix2struct",
            "plbart",
            "prophetnet",
            "seamlessm4t",
            "speech2text",
            "speechencoderdecoder",
            "speecht5",
            "switchtransformers",
            "t5",
            "t5gemma",
            "t5gemma2",
            "udop",
            "umt5",
            "visionencoderdecoder",
            "whisper",
            "xlmprophetnet",
        ],
    ),
    (
        ENCODER,
        &[
            "albert",
            "bert",
            "bigbird",
            "camembert",
            "canine",
            "convbert",
            "deberta",
            "debertav2",
            "distilbert",
            "electra",
            "ernie",
            "esm",
            "eurobert",
            "flaubert",
            "fnet",
            "funnel",
            "gemmaembedding",
            "gtenew",
            "ibert",
            "jinabert",
            "jinabertv2",
            "jinabertv3",
            "layoutlm",
            "layoutlmv2",
            "layoutlmv3",
            "lilt",
            "longformer",
            "luke",
            "megatronbert",
            "mobilebert",
            "modernbert",
            "mpnet",
            "mra",
            "neobert",
            "nezha",
            "nomicbert",
            "nomicbertmoe",
            "nystromformer",
            "rembert",
            "roberta",
            "robertaprelayernorm",
            "roformer",
            "splinter",
            "squeezebert",
            "t5encoder",
            "tapas",
            "xlmroberta",
            "xlmrobertaxl",
            "xlnet",
            "yoso",
        ],
    ),
    (DIFFUSION, &["diffucoder", "dream", "llada", "llada2moe", "lladamoe", "rnd1", "sdar"]),
    (PROJECTOR, &["clip", "mmproj"]),
    (
        NO_TEXT,
        &[
            "align",
            "altclip",
            "beit",
            "chineseclip",
            "clap",
            "convnext",
            "convnextv2",
            "deit",
            "detr",
            "dinov2",
            "dinov3vit",
            "encodec",
            "flux",
            "hubert",
            "mimi",
            "resnet",
            "sam",
            "sam2",
            "sd3",
            "sdxl",
            "segformer",
            "siglip",
            "siglip2",
            "swin",
            "swinv2",
            "timmwrapper",
            "vit",
            "vitmae",
            "wav2vec2",
            "wav2vec2bert",
            "wavlm",
            "wavtokenizerdec",
            "yolos",
        ],
    ),
];

/// Ends of classes whose head gives no tokens of a text.
const HEADS: &[(&str, Lack)] = &[
    ("ForMaskedLM", Nature("fills in masked words, and writes no text")),
    ("ForPreTraining", Nature("has the heads of its pre-training, and writes no text")),
    ("ForSequenceClassification", Nature("gives classes or scores of a text, and writes none")),
    ("ForTokenClassification", Nature("gives classes of tokens, and writes no text")),
    ("ForQuestionAnswering", Nature("marks answers in a text, and writes none")),
    ("ForMultipleChoice", Nature("chooses between texts, and writes none")),
    ("ForNextSentencePrediction", Nature("judges pairs of texts, and writes none")),
    ("ForImageClassification", NO_TEXT),
    ("ForRewardModeling", Nature("gives scores of a text, and writes none")),
    ("RewardModel", Nature("gives scores of a text, and writes none")),
    ("EncoderModel", ENCODER),
    ("ForCTC", NO_TEXT),
];

/// Ends of classes that name no family by themselves.
const ENDS: &[&str] = &[
    "ForCausalLM",
    "LMHeadModel",
    "ForConditionalGeneration",
    "ForSpeechSeq2Seq",
    "ForCausalLMMTP",
    "HeadModel",
    "MTModel",
    "Model",
    "LM",
];

/// Keys of a configuration that no operation honours, whatever the description: set to anything but null, false and 0 they ask for it.
const KEYS: &[(&str, Lack)] = &[
    ("alibi", ALIBI),
    ("attention_chunk_size", Operation("chunked attention")),
    ("attn_temperature_tuning", Operation("a scale of attention scores that grows with the position")),
    ("hidden_size_per_layer_input", PER_LAYER),
    ("is_encoder_decoder", BOTH),
    ("num_kv_shared_layers", PER_LAYER),
    ("ssm_cfg", MAMBA1),
    ("use_bidirectional_attention", Operation("attention that is not causal")),
    ("use_logn_attn", Operation("scores that grow with the sequence")),
];

/// Kinds of layers in `layer_types` by what is in their names.
const LAYERS: &[(&str, Lack)] = &[("recurrent", RG_LRU), ("chunked_attention", Operation("chunked attention"))];

impl Lack {
    /// A sentence about something of this name.
    fn of(self, name: &str) -> String {
        match self {
            Operation(what) => format!("{name} needs {what}, which no operation computes"),
            Nature(what) => format!("{name} {what}"),
        }
    }
}

/// Why no description can serve what a config.json is for, in a sentence; none where one may.
///
/// ```
/// let config = serde_json::json!({"architectures": ["BloomForCausalLM"]});
/// let said = fusec::description::lacking(&config);
/// assert_eq!(said.as_deref(), Some("BloomForCausalLM needs ALiBi (scores less the distance), which no operation computes"));
/// ```
pub fn lacking(config: &Value) -> Option<String> {
    let names = architectures(config);
    let shown = || names.first().map_or("it", String::as_str);
    if let Some((name, lack)) = names.iter().find_map(|name| Some((name, by_class(name)?))) {
        return Some(lack.of(name));
    }
    if let (true, Some(class)) = (names.is_empty(), config.get("_class_name").and_then(Value::as_str)) {
        return Some(format!("config.json is a diffusers model's ({class}), which writes no text"));
    }
    let inner = language_model_config(config);
    let config = inner.as_ref().unwrap_or(config);
    let model_type = config.get("model_type").and_then(Value::as_str);
    let lack = model_type.and_then(by_name).filter(|_| names.is_empty());
    let asks = |value: &Value| !matches!(value, Value::Null | Value::Bool(false)) && value.as_f64() != Some(0.0);
    let layers = config.get("layer_types").and_then(Value::as_array);
    let kinds: Vec<&str> = layers.into_iter().flatten().filter_map(Value::as_str).collect();
    let asked = |(key, _): &&(&str, Lack)| config.get(key).is_some_and(asks);
    let by_layers = LAYERS.iter().find(|(part, _)| kinds.iter().any(|kind| kind.contains(part)));
    let by_key = by_layers.or_else(|| KEYS.iter().find(asked)).map(|(_, lack)| *lack);
    Some(lack.or(by_key)?.of(shown()))
}

/// Why no description can serve a GGUF file of this architecture, in a sentence; none where one may.
pub fn lacking_in_gguf(architecture: &str) -> Option<String> {
    by_name(architecture).map(|lack| lack.of(architecture))
}

/// What the value of a key needs, where no operation computes it.
pub(super) fn by_key(key: &str) -> Option<&'static str> {
    KEYS.iter().find(|(other, _)| *other == key).and_then(|(_, lack)| match lack {
        Operation(what) => Some(*what),
        Nature(_) => None,
    })
}

/// Names the architectures of shipped descriptions that begin with the same word, for a message; empty where there are none.
pub fn also_served(architectures: &[String]) -> String {
    match &alike(architectures)[..] {
        [] => String::new(),
        names => format!(" (served are {})", names.join(", ")),
    }
}

fn alike(architectures: &[String]) -> Vec<String> {
    let first = |name: &str| {
        let more = name.chars().skip(1).take_while(|letter| letter.is_lowercase()).count();
        name.get(..more + 1).filter(|word| word.len() > 2).map(str::to_owned)
    };
    let words: Vec<String> = architectures.iter().filter_map(|name| first(name)).collect();
    served().into_iter().filter(|name| first(name).is_some_and(|word| words.contains(&word))).collect()
}

/// By a class of transformers, which may have the `model_type` of its language model after a colon.
fn by_class(name: &str) -> Option<Lack> {
    let (class, model_type) = name.split_once(':').unwrap_or((name, ""));
    let head = HEADS.iter().find(|(end, _)| class.ends_with(end)).map(|(_, lack)| *lack);
    let ends = HEADS.iter().map(|(end, _)| end).chain(ENDS);
    let family = ends.into_iter().find_map(|end| class.strip_suffix(end)).unwrap_or(class);
    by_name(family).or_else(|| by_name(model_type)).or(head)
}

fn by_name(name: &str) -> Option<Lack> {
    let plain: String = name.to_lowercase().chars().filter(char::is_ascii_alphanumeric).collect();
    FAMILIES.iter().find(|(_, names)| names.contains(&plain.as_str())).map(|(lack, _)| *lack)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_served_lacks_nothing() {
        for name in served() {
            assert_eq!(lacking(&json!({"architectures": [name]})).as_deref(), None, "{name} is served");
        }
    }

    #[test]
    fn names_stand_once_and_plain() {
        let names: Vec<&str> = FAMILIES.iter().flat_map(|(_, names)| names.iter().copied()).collect();
        for (index, name) in names.iter().enumerate() {
            assert!(name.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_lowercase()), "{name}");
            assert_eq!(names.iter().position(|other| other == name), Some(index), "{name}");
        }
    }

    #[test]
    fn the_name_tells() {
        for (name, said) in [
            ("LongcatFlashForCausalLM", "needs several attentions in a layer, which no operation computes"),
            ("MambaForCausalLM", "needs a selective state space (Mamba), which no operation computes"),
            ("Zamba2ForCausalLM", "needs a block that several layers share, which no operation computes"),
            ("Rwkv6ForCausalLM", "needs RWKV's time mixing, which no operation computes"),
            ("ApertusForCausalLM", "needs the activation xIELU, which no operation computes"),
            ("BloomForCausalLM", "needs ALiBi (scores less the distance), which no operation computes"),
            ("T5ForConditionalGeneration", "is an encoder with a decoder, and only decoders are run"),
            ("MarianMTModel", "is an encoder with a decoder, and only decoders are run"),
            ("BertModel", "is an encoder, which writes no text"),
            ("LlamaForSequenceClassification", "gives classes or scores of a text, and writes none"),
        ] {
            assert_eq!(lacking(&json!({"architectures": [name]})), Some(format!("{name} {said}")));
        }
        let parts = json!({"architectures": ["Gemma3nForConditionalGeneration"], "text_config": {"model_type": "gemma3n_text"}});
        let said = lacking(&parts).unwrap_or_default();
        assert!(
            said.starts_with("Gemma3nForConditionalGeneration:gemma3n_text needs embeddings for each layer"),
            "{said}"
        );
        assert_eq!(lacking(&json!({"architectures": ["NewForCausalLM"]})), None);
        assert_eq!(
            lacking_in_gguf("bloom").as_deref(),
            Some("bloom needs ALiBi (scores less the distance), which no operation computes")
        );
    }

    #[test]
    fn else_the_keys_tell() {
        let said = |key: &str, value: Value| lacking(&json!({"architectures": ["NewForCausalLM"], key: value}));
        let sentence = |what: &str| Some(format!("NewForCausalLM needs {what}, which no operation computes"));
        assert_eq!(said("attention_chunk_size", json!(512)), sentence("chunked attention"));
        assert_eq!(said("attention_chunk_size", Value::Null), None);
        assert_eq!(said("hidden_size_per_layer_input", json!(0)), None);
        assert_eq!(
            said("layer_types", json!(["full_attention", "recurrent"])),
            sentence("a gated linear recurrence (RG-LRU)")
        );
        assert_eq!(said("layer_types", json!(["full_attention", "sliding_attention"])), None);
        let unnamed = lacking(&json!({"model_type": "t5"}));
        assert_eq!(unnamed.as_deref(), Some("it is an encoder with a decoder, and only decoders are run"));
    }

    #[test]
    fn names_alike_begin_with_the_same_word() {
        let alike = alike(&["Qwen9ForCausalLM".to_owned()]);
        assert!(
            alike.iter().any(|name| name == "Qwen3ForCausalLM") && alike.iter().all(|name| name.starts_with("Qwen"))
        );
        assert_eq!(super::alike(&["KosmosForCausalLM".to_owned()]), [""; 0]);
    }
}
