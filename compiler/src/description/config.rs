//! A configuration with one spelling for what transformers 4 and 5 write in two.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::diagnostics::{Code, Diagnostic, Diagnostics, Source};
use super::text_config::{keys_outside, language_model_config};
use super::value::Value;

/// Keys and values of a config.json or of a preset; of a model of several parts, those of its language model. Null is kept apart, but for that of
/// `rope_scaling`, which is always there.
///
/// RoPE has both views whichever the file has: `rope_theta` and `rope_scaling` (null where nothing is scaled, its type under `rope_type`), and
/// `rope_parameters`. Where `rope_parameters` is nested by layer type, the first view is that of `full_attention`, and `rope_local_base_freq` is
/// the base of `sliding_attention`. `dtype` stands for `torch_dtype`, too.
#[derive(Clone, Debug)]
pub(super) struct Config {
    values: BTreeMap<String, Value>,
    /// Keys that are there, and null.
    nulls: BTreeSet<String>,
    /// Keys that stand beside the language model's, in the configuration of a model of several parts.
    outside: BTreeSet<String>,
    /// Whether it is of a part of a model.
    part: bool,
}

/// The keys of a config.json as expressions see them: one spelling for what transformers 4 and 5 write in two.
///
/// # Errors
/// JSON that is no object.
pub fn view(json: &serde_json::Value) -> Result<BTreeMap<String, Value>, Diagnostics> {
    match Config::from_json(json) {
        Ok(config) => Ok(config.values),
        Err(diagnostic) => {
            let source = Source { name: "config.json".to_owned(), text: String::new() };
            let mut diagnostics = Diagnostics::new(Arc::new(source));
            diagnostics.push(diagnostic);
            Err(diagnostics)
        }
    }
}

impl Config {
    /// Reads a config.json, of a model of several parts what it says of its language model.
    pub(super) fn from_json(json: &serde_json::Value) -> Result<Config, Diagnostic> {
        let own = language_model_config(json);
        let Value::Table(values) = Value::from(own.as_ref().unwrap_or(json)) else {
            return Err(Diagnostic::new(Code::BadConfig, "config.json is not a JSON object"));
        };
        let older = scaling_of(values.get("rope_scaling").and_then(Value::table));
        let mut config = Config::new((*values).clone());
        config.part = own.is_some();
        if config.part {
            config.outside = keys_outside(json).map(str::to_owned).collect();
        }
        // transformers takes the older form where there is one, in silence.
        if values.get("rope_parameters").and_then(Value::table).is_some()
            && older != Value::Null
            && config.get("rope_scaling") != Some(&older)
        {
            let message =
                "config.json has `rope_scaling` and `rope_parameters`, which ask for different scalings of RoPE";
            return Err(Diagnostic::new(Code::BadConfig, message).help("remove the one that is not meant"));
        }
        Ok(config)
    }

    /// Takes values as a file has them.
    pub(super) fn new(mut values: BTreeMap<String, Value>) -> Config {
        unify_dtype(&mut values);
        unify_rope(&mut values);
        trained_context(&mut values);
        let mut nulls = BTreeSet::new();
        values.retain(|key, value| {
            let kept = *value != Value::Null || key == "rope_scaling";
            if !kept {
                nulls.insert(key.clone());
            }
            kept
        });
        Config { values, nulls, outside: BTreeSet::new(), part: false }
    }

    /// Gives each key that is absent its default. A null is not absent; and the file of a whole model that lacks one of `needed` is broken, where that of
    /// a part may leave out whatever its class has.
    pub(super) fn complete(&mut self, defaults: &BTreeMap<String, Value>, needed: &BTreeSet<&str>) {
        let left_out = |key: &str| self.part || !needed.contains(key);
        let missing = defaults.iter().filter(|(key, _)| !self.nulls.contains(*key) && left_out(key));
        for (key, value) in missing {
            self.values.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }

    /// Takes the one value of a list that has it for each of the model's `layers`.
    pub(super) fn flatten(&mut self, key: &str, layers: usize) {
        let Some(Value::List(items)) = self.values.get(key) else { return };
        let Some(first) = items.first().filter(|first| !matches!(first, Value::List(_) | Value::Table(_))) else {
            return;
        };
        if items.len() != layers || items.iter().any(|item| !item.same(first)) {
            return;
        }
        let first = first.clone();
        if first == Value::Null {
            self.values.remove(key);
            self.nulls.insert(key.to_owned());
        } else {
            self.values.insert(key.to_owned(), first);
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// Whether the key is there, and null.
    pub(super) fn is_null(&self, key: &str) -> bool {
        self.nulls.contains(key)
    }

    /// Keys that are there, and null.
    pub(super) fn nulls(&self) -> impl Iterator<Item = &str> {
        self.nulls.iter().map(String::as_str)
    }

    /// Keys that stand beside the language model's, in the configuration of a model of several parts.
    pub(super) fn outside(&self) -> impl Iterator<Item = &str> {
        self.outside.iter().map(String::as_str)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.values.iter().map(|(key, value)| (key.as_str(), value))
    }
}

fn unify_dtype(values: &mut BTreeMap<String, Value>) {
    let old = values.remove("torch_dtype");
    let dtype = values.remove("dtype").filter(|value| *value != Value::Null).or(old);
    if let Some(dtype) = dtype {
        let dtype = dtype.text().map(|text| Value::from(text.trim_start_matches("torch."))).unwrap_or(dtype);
        values.insert("dtype".to_owned(), dtype);
    }
}

fn unify_rope(values: &mut BTreeMap<String, Value>) {
    let given = values.get("rope_parameters").and_then(Value::table).cloned();
    let Some(given) = given else {
        let scaling = scaling_of(values.get("rope_scaling").and_then(Value::table));
        let mut parameters = scaling.table().cloned().unwrap_or_default();
        parameters.entry("rope_type".to_owned()).or_insert_with(|| "default".into());
        for key in ["rope_theta", "partial_rotary_factor"] {
            if let Some(value) = values.get(key) {
                parameters.insert(key.to_owned(), value.clone());
            }
        }
        // A rope_scaling that is no table is kept, so that it is an error where it is read.
        if values.get("rope_scaling").is_none_or(|value| matches!(value, Value::Null | Value::Table(_))) {
            values.insert("rope_scaling".to_owned(), scaling);
        }
        if values.contains_key("rope_theta") {
            values.insert("rope_parameters".to_owned(), Value::Table(Arc::new(parameters)));
        }
        return;
    };
    let of_type = |layer_type: &str| given.get(layer_type).and_then(Value::table);
    let nested = given.values().any(|value| value.table().is_some());
    let main = if nested { of_type("full_attention") } else { Some(&given) };
    let local = of_type("sliding_attention");
    if let Some(base) = local.and_then(|sliding| sliding.get("rope_theta")) {
        values.insert("rope_local_base_freq".to_owned(), base.clone());
    }
    let local_scaling = scaling_of(local);
    if local_scaling != Value::Null {
        values.insert("rope_local_scaling".to_owned(), local_scaling);
    }
    values.insert("rope_scaling".to_owned(), scaling_of(main));
    for key in ["rope_theta", "partial_rotary_factor"] {
        if let Some(value) =
            main.and_then(|main| main.get(key)).filter(|_| key == "rope_theta" || !is_proportional(main))
        {
            values.insert(key.to_owned(), value.clone());
        }
    }
}

/// Whether the part of a head that turns belongs to the scaling: pairs span the whole head all the same.
fn is_proportional(table: Option<&BTreeMap<String, Value>>) -> bool {
    table.and_then(|table| table.get("rope_type")).and_then(Value::text) == Some("proportional")
}

/// Where the trained context stands beside `rope_scaling`, not in it, a scaling that needs it takes it from there.
fn trained_context(values: &mut BTreeMap<String, Value>) {
    let Some(original) = values.get("original_max_position_embeddings").cloned() else { return };
    let Some(Value::Table(scaling)) = values.get("rope_scaling") else { return };
    let takes = |kind: &str| ["llama3", "yarn", "longrope"].contains(&kind);
    if original != Value::Null && scaling.get("rope_type").and_then(Value::text).is_some_and(takes) {
        let mut scaling = (**scaling).clone();
        scaling.insert("original_max_position_embeddings".to_owned(), original);
        values.insert("rope_scaling".to_owned(), Value::Table(Arc::new(scaling)));
    }
}

/// The scaling in a `rope_scaling` or `rope_parameters` table, null where it asks for none.
fn scaling_of(table: Option<&BTreeMap<String, Value>>) -> Value {
    let Some(table) = table else { return Value::Null };
    let mut scaling = table.clone();
    scaling.remove("rope_theta");
    if !is_proportional(Some(table)) {
        scaling.remove("partial_rotary_factor");
    }
    scaling.retain(|_, value| *value != Value::Null);
    let old = scaling.remove("type");
    let Some(kind) = scaling.remove("rope_type").or(old) else {
        // Only what says nothing about scaling may lack a type.
        return if scaling.is_empty() { Value::Null } else { Value::Table(Arc::new(scaling)) };
    };
    match kind.text() {
        Some("default") => return Value::Null,
        // Of text the positions along each axis are the same: it turns as without axes.
        Some("mrope") if scaling.keys().all(|key| key.starts_with("mrope_")) => return Value::Null,
        Some("su") => scaling.insert("rope_type".to_owned(), "longrope".into()),
        _ => scaling.insert("rope_type".to_owned(), kind),
    };
    Value::Table(Arc::new(scaling))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn view(json: serde_json::Value, keys: &[&str]) -> Vec<String> {
        let config = Config::from_json(&json).expect("an object");
        keys.iter().map(|key| config.get(key).map_or("absent".to_owned(), Value::to_string)).collect()
    }

    #[test]
    fn both_forms_of_rope_are_read_as_one() {
        let old = json!({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}});
        let new = json!({"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}});
        let keys = ["rope_theta", "rope_scaling", "rope_parameters"];
        assert_eq!(view(old, &keys), view(new, &keys));
        let old = json!({"rope_theta": 1e4, "rope_scaling": null, "partial_rotary_factor": 0.5});
        let new = json!({"rope_parameters": {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.5}});
        let keys = ["rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor"];
        assert_eq!(view(old, &keys), view(new, &keys));
    }

    #[test]
    fn axes_of_pictures_are_nothing_to_text() {
        let scaling =
            |table: serde_json::Value| view(json!({"rope_theta": 1e6, "rope_scaling": table}), &["rope_scaling"]);
        assert_eq!(scaling(json!({"type": "mrope", "mrope_section": [16, 24, 24]})), ["null"]);
        let more = scaling(json!({"type": "mrope", "mrope_section": [16, 24, 24], "factor": 2.0}));
        assert!(more[0].contains("factor"), "{more:?}");
    }

    #[test]
    fn nested_rope_parameters_have_two_bases() {
        let config = json!({"rope_parameters": {
            "full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0},
            "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
        }});
        assert_eq!(
            view(config, &["rope_theta", "rope_local_base_freq", "rope_scaling"]),
            ["1000000.0", "10000.0", "{factor: 8.0, rope_type: \"linear\"}"]
        );
    }

    #[test]
    fn what_turns_of_a_whole_head_belongs_to_the_scaling() {
        let full = json!({"rope_theta": 1e6, "rope_type": "proportional", "partial_rotary_factor": 0.25});
        let config = json!({"rope_parameters": {
            "full_attention": full, "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
        }});
        assert_eq!(
            view(config, &["rope_theta", "partial_rotary_factor", "rope_scaling", "rope_local_base_freq"]),
            ["1000000.0", "absent", "{partial_rotary_factor: 0.25, rope_type: \"proportional\"}", "10000.0"]
        );
    }

    #[test]
    fn each_kind_of_layer_has_its_scaling_and_two_scalings_are_refused() {
        let keys = ["rope_scaling", "rope_local_scaling"];
        let linear = |factor: f64| json!({"rope_theta": 1e4, "rope_type": "linear", "factor": factor});
        let nested =
            json!({"rope_parameters": {"full_attention": {"rope_type": "default"}, "sliding_attention": linear(4.0)}});
        assert_eq!(view(nested, &keys), ["null", "{factor: 4.0, rope_type: \"linear\"}"]);
        let both =
            |older: f64| json!({"rope_parameters": linear(2.0), "rope_scaling": {"type": "linear", "factor": older}});
        assert_eq!(view(both(2.0), &keys), ["{factor: 2.0, rope_type: \"linear\"}", "absent"]);
        assert!(Config::from_json(&both(3.0)).is_err(), "which one is meant?");
    }

    #[test]
    fn dtype_has_one_spelling_and_null_is_absent() {
        let keys = ["dtype", "torch_dtype", "sliding_window"];
        let expected = ["\"bfloat16\"", "absent", "absent"];
        assert_eq!(view(json!({"torch_dtype": "bfloat16", "sliding_window": null}), &keys), expected);
        assert_eq!(view(json!({"dtype": "torch.bfloat16"}), &keys), expected);
    }
}
