//! What stands before the layers and after them.

use anyhow::{Context, Result};

use super::keys::changes;
use super::names::{Module, Names};
use super::write::Writer;

/// The embedding. Returns the hidden size, and the embedding's module for a head that shares it.
pub(super) fn embed(writer: &mut Writer, names: &mut Names) -> Result<(usize, Module)> {
    let vocabulary = writer.keys.count("vocab_size");
    let position = |module: &Module| {
        let name = module.stem.to_lowercase();
        name.contains("pos") || name.contains("wpe")
    };
    let table = |module: &Module| module.shape.len() == 2 && !position(module);
    let called = |module: &Module| {
        let name = module.stem.to_lowercase();
        ["embed", "wte", "tok", "word"].iter().any(|word| name.contains(word)) && !name.contains("out")
    };
    let exact = |module: &Module| vocabulary.is_none_or(|rows| module.shape[0] == rows);
    let outside = &mut names.outside;
    let embedding = outside
        .take(|module| table(module) && called(module) && exact(module))
        .or_else(|| outside.take(|module| table(module) && called(module)))
        .or_else(|| outside.take(|module| table(module) && exact(module)))
        .context("no tensor outside the layers is an embedding: write the description by hand, docs/description.md has the language")?;
    let (rows, hidden) = (embedding.shape[0], embedding.shape[1]);
    match writer.keys.count("hidden_size") {
        Some(size) if size == hidden => {}
        Some(size) => writer.todo(format!("config.json's hidden_size is {size}, the embedding has rows of {hidden}")),
        None => {
            writer.keys.derive("hidden_size", &hidden.to_string());
            writer.todo("no key of config.json is the hidden size");
        }
    }
    writer.section(0);
    let mut more = format!("ids = \"tokens\", weight = \"{}\"", embedding.weight);
    match vocabulary {
        Some(size) if size == rows => {}
        Some(_) => more += &format!(", rows = {rows}"),
        None => {
            writer.keys.derive("vocab_size", &rows.to_string());
            writer.todo("no key of config.json is the size of the vocabulary");
        }
    }
    writer.line("x", "embedding", &more);
    let factor = ["embedding_multiplier", "scale_emb", "emb_scale"].iter().find(|key| writer.keys.get(key).is_some());
    if let Some(key) = factor {
        writer.line("x", "scale", &format!("x = \"x\", factor = \"{key}\""));
    } else if writer.keys.get("scale_embedding").is_none() && writer.keys.text("model_type") == Some("biogpt") {
        writer.note("TODO known only from `model_type`: embeddings are scaled");
        writer.expect("scale_embedding", "true");
        writer.line("x", "scale", "x = \"x\", factor = \"sqrt(hidden_size)\"");
    } else if writer.keys.flag("scale_embedding") == Some(true) {
        writer.expect("scale_embedding", "true");
        writer.line("x", "scale", "x = \"x\", factor = \"sqrt(hidden_size)\"");
    } else if writer.is_gemma() {
        writer.note("TODO known only from `model_type`: Gemma scales its embeddings, and stores norms less one");
        writer.line("x", "scale", "x = \"x\", factor = \"sqrt(hidden_size)\"");
    }
    if let Some(table) =
        names.outside.take(|module| module.shape.len() == 2 && position(module) && module.shape[1] == hidden)
    {
        let rows = table.shape[0];
        let limit = writer.keys.count("max_position_embeddings");
        let size = match limit {
            Some(limit) if limit == rows => "rows = \"max_position_embeddings\"".to_owned(),
            Some(limit) if limit < rows => {
                let more = rows - limit;
                writer.note(&format!(
                    "TODO {more} rows beyond the longest context: positions are taken to begin after them"
                ));
                format!("rows = \"max_position_embeddings\", offset = {more}")
            }
            Some(limit) => {
                writer.todo(format!("config.json has a context of {limit}, the table of positions {rows} rows"));
                format!("rows = {rows}")
            }
            None => format!("rows = {rows}"),
        };
        writer.line("p", "embedding", &format!("ids = \"positions\", weight = \"{}\", {size}", table.weight));
        writer.line("x", "add", "a = \"x\", b = \"p\"");
        writer.learned_positions = true;
    }
    // The only norm outside the layers is the last one, whatever it is called.
    let only = names.outside.iter().filter(|module| module.shape == [hidden]).count() == 1;
    let norm =
        names.outside.take(|module| module.shape == [hidden] && module.stem.to_lowercase().contains("emb") && !only);
    if norm.is_some() {
        writer.norm("x", "x", norm.as_ref(), false);
    }
    writer.section(1);
    Ok((hidden, embedding))
}

/// The last norm and the head.
pub(super) fn head(writer: &mut Writer, names: &mut Names, hidden: usize, embedding: Module) {
    writer.section(2);
    let own = names.outside.take(|module| module.shape == embedding.shape);
    let norm = names.outside.take(|module| module.shape == [hidden]);
    // A checkpoint without any norm's weight has norms without weights.
    let bare = norm.is_none() && writer.bare_norms;
    let mut x = writer.norm("h", "x", norm.as_ref(), bare);
    let tied = writer.keys.flag("tie_word_embeddings");
    if writer.keys.get("dim_model_base").is_some() {
        writer.line("h", "scale", &format!("x = \"{x}\", factor = \"1.0 * dim_model_base / hidden_size\""));
        x = "h".to_owned();
    }
    let weight = match (&own, tied) {
        (Some(own), None) => format!("\"{}\"", own.weight),
        (own, Some(_)) if own.is_some() || tied == Some(true) => {
            let other = own.as_ref().map_or("lm_head.weight", |own| &own.weight);
            writer.keys.derive("tie_word_embeddings", "false");
            format!("{{ if = \"tie_word_embeddings\", then = \"{}\", else = \"{other}\" }}", embedding.weight)
        }
        _ => {
            if tied == Some(false) {
                writer.note("TODO config.json says that the head is not tied, and the checkpoint has no weight of its own for it");
                writer.expect("tie_word_embeddings", "false");
            }
            format!("\"{}\"", embedding.weight)
        }
    };
    let bias = own.as_ref().filter(|own| own.bias && tied != Some(true));
    let bias = bias.map_or(String::new(), |own| format!(", bias = \"{}.bias\"", own.stem));
    let size = match writer.keys.count("vocab_size") {
        Some(size) if size != embedding.shape[0] => {
            writer.todo(format!("the vocabulary has {size} tokens and the head {} rows", embedding.shape[0]));
            embedding.shape[0].to_string()
        }
        _ => "\"vocab_size\"".to_owned(),
    };
    let mut last: Vec<(&str, String)> =
        vec![("linear", format!("x = \"{x}\", weight = {weight}{bias}, features = {size}"))];
    if changes(writer.keys.get("logits_scaling")) {
        let factor = if writer.keys.text("model_type") == Some("hyperclovax") {
            writer.note("TODO known only from `model_type`: logits_scaling multiplies the logits");
            "logits_scaling"
        } else {
            "1.0 / logits_scaling"
        };
        last.push(("scale", format!("x = \"logits\", factor = \"{factor}\"")));
    }
    if changes(writer.keys.get("logit_scale")) {
        last.push(("scale", "x = \"logits\", factor = \"logit_scale\"".into()));
    }
    if writer.keys.get("final_logit_softcapping").is_some() {
        last.push(("softcap", "x = \"logits\", cap = \"final_logit_softcapping\"".into()));
    }
    for (op, rest) in last {
        writer.line("logits", op, &rest);
    }
}
