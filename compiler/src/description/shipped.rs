//! The descriptions inside the binary.

/// Name and text of each shipped description, by name.
pub fn shipped() -> &'static [(&'static str, &'static str)] {
    &[
        ("arcee.toml", include_str!("../../../models/arcee.toml")),
        ("cohere.toml", include_str!("../../../models/cohere.toml")),
        ("dots1.toml", include_str!("../../../models/dots1.toml")),
        ("ernie4_5.toml", include_str!("../../../models/ernie4_5.toml")),
        ("exaone4.toml", include_str!("../../../models/exaone4.toml")),
        ("falcon.toml", include_str!("../../../models/falcon.toml")),
        ("gemma.toml", include_str!("../../../models/gemma.toml")),
        ("gemma2.toml", include_str!("../../../models/gemma2.toml")),
        ("gemma3.toml", include_str!("../../../models/gemma3.toml")),
        ("glm4.toml", include_str!("../../../models/glm4.toml")),
        ("glm4_moe.toml", include_str!("../../../models/glm4_moe.toml")),
        ("gpt2.toml", include_str!("../../../models/gpt2.toml")),
        ("gpt_neox.toml", include_str!("../../../models/gpt_neox.toml")),
        ("granite.toml", include_str!("../../../models/granite.toml")),
        ("granitemoe.toml", include_str!("../../../models/granitemoe.toml")),
        ("hunyuan.toml", include_str!("../../../models/hunyuan.toml")),
        ("llama.toml", include_str!("../../../models/llama.toml")),
        ("mixtral.toml", include_str!("../../../models/mixtral.toml")),
        ("nemotron.toml", include_str!("../../../models/nemotron.toml")),
        ("olmo.toml", include_str!("../../../models/olmo.toml")),
        ("olmo2.toml", include_str!("../../../models/olmo2.toml")),
        ("olmo3.toml", include_str!("../../../models/olmo3.toml")),
        ("olmoe.toml", include_str!("../../../models/olmoe.toml")),
        ("opt.toml", include_str!("../../../models/opt.toml")),
        ("phi.toml", include_str!("../../../models/phi.toml")),
        ("phi3.toml", include_str!("../../../models/phi3.toml")),
        ("qwen2.toml", include_str!("../../../models/qwen2.toml")),
        ("qwen2_moe.toml", include_str!("../../../models/qwen2_moe.toml")),
        ("qwen3.toml", include_str!("../../../models/qwen3.toml")),
        ("qwen3_moe.toml", include_str!("../../../models/qwen3_moe.toml")),
        ("seed_oss.toml", include_str!("../../../models/seed_oss.toml")),
        ("smollm3.toml", include_str!("../../../models/smollm3.toml")),
        ("stablelm.toml", include_str!("../../../models/stablelm.toml")),
        ("starcoder2.toml", include_str!("../../../models/starcoder2.toml")),
    ]
}

/// The `architectures` that shipped descriptions serve.
pub fn served() -> Vec<String> {
    let parse = |(file, text): &(&str, &str)| super::Description::parse(text, file).ok();
    shipped().iter().filter_map(parse).flat_map(|description| description.serves).collect()
}

/// Name and text of the shipped description that serves one of these architectures (`architectures` of a config.json).
pub fn find_for<S: AsRef<str>>(architectures: &[S]) -> Option<(&'static str, &'static str)> {
    let serves = |file: &str, text: &str| {
        let description = super::Description::parse(text, file).expect("shipped descriptions are read by the tests");
        architectures.iter().any(|name| description.serves.iter().any(|served| served == name.as_ref()))
    };
    shipped().iter().copied().find(|(file, text)| serves(file, text))
}
