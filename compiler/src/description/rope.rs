//! The `rope_scaling` table, typed.

use std::collections::BTreeMap;

use fuse_kernels::RopeScaling;

use super::value::Value;

/// A `rope_scaling` table, read. What hangs on the length of the text is left open.
#[derive(Clone, Debug, PartialEq)]
pub enum Scaling {
    /// The same for every text.
    Fixed(RopeScaling),
    /// A divisor for each frequency, of one list within the trained context and of another beyond, and a magnitude on cosine and sine.
    LongRope {
        /// Divisors for sequences within the trained context.
        short: Vec<f64>,
        /// Divisors for longer ones.
        long: Vec<f64>,
        /// The trained context, in tokens.
        original: f64,
        /// Multiplies cosine and sine.
        attention_factor: f64,
    },
    /// A base that grows with the sequence beyond the trained context.
    Dynamic {
        /// The stretch.
        factor: f64,
        /// The trained context, in tokens.
        original: f64,
    },
}

/// What is wrong with a table: unsupported features are kept apart from plain mistakes.
#[derive(Debug)]
pub(super) enum Refusal {
    Unsupported(String),
    Missing(String),
    WrongType(String),
}

impl Scaling {
    /// Reads a `rope_scaling` table. `context` is `max_position_embeddings`, which stands in for an original context that is not given.
    pub(super) fn read(table: &BTreeMap<String, Value>, context: Option<f64>) -> Result<Scaling, Refusal> {
        let mut fields = Fields { table, read: vec!["rope_type"] };
        let kind = match table.get("rope_type") {
            Some(Value::Str(kind)) => kind.clone(),
            Some(other) => return Err(Refusal::WrongType(format!("`rope_scaling.rope_type` is {}", other.kind()))),
            None => return Err(Refusal::Missing("rope_scaling.rope_type".to_owned())),
        };
        fields.read.extend(fields.harmless(&kind));
        let scaling = match &*kind {
            "linear" => Scaling::Fixed(RopeScaling::Linear { factor: fields.positive("factor")? }),
            "llama3" => Scaling::Fixed(RopeScaling::Llama3 {
                factor: fields.positive("factor")?,
                low_freq_factor: fields.positive("low_freq_factor")?,
                high_freq_factor: fields.positive("high_freq_factor")?,
                original: fields.positive("original_max_position_embeddings")?,
            }),
            "proportional" => Scaling::Fixed(RopeScaling::Proportional {
                factor: fields.optional("factor")?.unwrap_or(1.0),
                part: fields.optional("partial_rotary_factor")?.unwrap_or(1.0),
            }),
            "yarn" => fields.yarn(context)?,
            "longrope" => fields.longrope(context)?,
            "dynamic" => Scaling::Dynamic {
                factor: fields.positive("factor")?,
                original: context.ok_or_else(|| Refusal::Missing("max_position_embeddings".to_owned()))?,
            },
            other => return Err(Refusal::Unsupported(format!("`rope_scaling` of type {other:?}"))),
        };
        match table.keys().find(|key| !fields.read.contains(&key.as_str())) {
            Some(key) => Err(Refusal::Unsupported(format!("`rope_scaling.{key}` of a scaling of type {kind:?}"))),
            None => Ok(scaling),
        }
    }
}

/// The positions that a scaling is made for, where `context` is `max_position_embeddings`: the trained ones times the factor. Where `context` counts
/// the factor already, that.
pub(super) fn reach(table: &BTreeMap<String, Value>, context: f64) -> f64 {
    let number = |key: &str| table.get(key).and_then(Value::number).filter(|number| number.is_finite());
    let original = number("original_max_position_embeddings").unwrap_or(context);
    context.max(original * number("factor").unwrap_or(1.0))
}

/// Keys that change nothing where they have one of these values; any value, where there is none.
const HARMLESS: &[(&str, &[f64])] = &[
    ("attn_factor", &[1.0]),
    ("extrapolation_factor", &[1.0]),
    ("finetuned", &[]),
    ("mrope_interleaved", &[]),
    ("mrope_section", &[]),
];

/// As [`HARMLESS`], where the type has no use for them.
const HARMLESS_UNUSED: &[(&str, &[f64])] = &[
    ("attention_factor", &[1.0]),
    ("beta_fast", &[32.0]),
    ("beta_slow", &[1.0]),
    ("mscale", &[0.0, 1.0]),
    ("mscale_all_dim", &[0.0, 1.0]),
    ("original_max_position_embeddings", &[]),
    ("truncate", &[]),
];

struct Fields<'a> {
    table: &'a BTreeMap<String, Value>,
    read: Vec<&'static str>,
}

impl Fields<'_> {
    /// The keys of the table that change nothing.
    fn harmless(&self, kind: &str) -> Vec<&'static str> {
        let unused = if kind == "yarn" { &[] } else { HARMLESS_UNUSED };
        let changes_nothing = |key: &str, values: &[f64]| {
            let Some(value) = self.table.get(key) else { return false };
            values.is_empty() || value.number().is_some_and(|number| values.contains(&number))
        };
        let all = HARMLESS.iter().chain(unused).filter(|(key, values)| changes_nothing(key, values));
        all.map(|(key, _)| *key).collect()
    }

    fn yarn(&mut self, context: Option<f64>) -> Result<Scaling, Refusal> {
        let original = match (self.optional("original_max_position_embeddings")?, context) {
            (Some(original), _) | (None, Some(original)) => original,
            (None, None) => return Err(Refusal::Missing("rope_scaling.original_max_position_embeddings".to_owned())),
        };
        let factor = match (self.optional("factor")?, context) {
            (Some(factor), _) => factor,
            (None, Some(context)) if context > original => context / original,
            (None, _) => return Err(Refusal::Missing("rope_scaling.factor".to_owned())),
        };
        let magnitude = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
        let given = self.optional("attention_factor")?;
        let (mscale, mscale_all) = (self.unless_zero("mscale")?, self.unless_zero("mscale_all_dim")?);
        let attention_factor = match (given, mscale, mscale_all) {
            (Some(given), _, _) => given,
            (None, Some(mscale), Some(all)) => magnitude(mscale) / magnitude(all),
            _ => magnitude(1.0),
        };
        self.read.push("truncate");
        let truncate = match self.table.get("truncate") {
            None => true,
            Some(Value::Bool(truncate)) => *truncate,
            Some(other) => return Err(Refusal::WrongType(format!("`rope_scaling.truncate` is {}", other.kind()))),
        };
        Ok(Scaling::Fixed(RopeScaling::Yarn {
            factor,
            beta_fast: self.unless_zero("beta_fast")?.unwrap_or(32.0),
            beta_slow: self.unless_zero("beta_slow")?.unwrap_or(1.0),
            original,
            attention_factor,
            truncate,
        }))
    }

    fn longrope(&mut self, context: Option<f64>) -> Result<Scaling, Refusal> {
        let given = self.optional("original_max_position_embeddings")?;
        let Some(original) = given.or(context) else {
            return Err(Refusal::Missing("rope_scaling.original_max_position_embeddings".to_owned()));
        };
        let stretch = self.optional("factor")?.or(context.map(|context| context / original)).unwrap_or(1.0);
        let told = if stretch <= 1.0 { 1.0 } else { (1.0 + stretch.ln() / original.ln()).sqrt() };
        Ok(Scaling::LongRope {
            short: self.positives("short_factor")?,
            long: self.positives("long_factor")?,
            original,
            attention_factor: self.optional("attention_factor")?.unwrap_or(told),
        })
    }

    fn positives(&mut self, key: &'static str) -> Result<Vec<f64>, Refusal> {
        self.read.push(key);
        let wrong =
            |value: &Value| Refusal::WrongType(format!("`rope_scaling.{key}` must be positive numbers, not {value}"));
        match self.table.get(key) {
            None => Err(Refusal::Missing(format!("rope_scaling.{key}"))),
            Some(Value::List(items)) => {
                let number = |item: &Value| item.number().filter(|number| number.is_finite() && *number > 0.0);
                items.iter().map(|item| number(item).ok_or_else(|| wrong(item))).collect()
            }
            Some(other) => Err(wrong(other)),
        }
    }

    fn positive(&mut self, key: &'static str) -> Result<f64, Refusal> {
        self.optional(key)?.ok_or_else(|| Refusal::Missing(format!("rope_scaling.{key}")))
    }

    /// A positive number; a zero is nothing, as in Python.
    fn unless_zero(&mut self, key: &'static str) -> Result<Option<f64>, Refusal> {
        let zero = self.table.get(key).and_then(Value::number) == Some(0.0);
        if zero {
            self.read.push(key);
            return Ok(None);
        }
        self.optional(key)
    }

    /// A positive number or nothing.
    fn optional(&mut self, key: &'static str) -> Result<Option<f64>, Refusal> {
        self.read.push(key);
        let Some(value) = self.table.get(key) else { return Ok(None) };
        match value.number().filter(|number| number.is_finite() && *number > 0.0) {
            Some(number) => Ok(Some(number)),
            None => Err(Refusal::WrongType(format!("`rope_scaling.{key}` must be a positive number, not {value}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(json: serde_json::Value) -> Result<Scaling, String> {
        let value = Value::from(&json);
        Scaling::read(value.table().expect("a table"), Some(4096.0)).map_err(|refusal| format!("{refusal:?}"))
    }

    #[test]
    fn yarn_has_transformers_defaults() {
        let scaling = read(json!({"rope_type": "yarn", "factor": 4.0}));
        let attention_factor = 0.1 * 4f64.ln() + 1.0;
        let expected = RopeScaling::Yarn {
            factor: 4.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original: 4096.0,
            attention_factor,
            truncate: true,
        };
        assert_eq!(scaling, Ok(Scaling::Fixed(expected)));
    }

    #[test]
    fn keys_that_change_nothing_are_passed_over() {
        let linear = json!({"rope_type": "linear", "factor": 2.0});
        let yarn = json!({"rope_type": "yarn", "factor": 4.0});
        let dynamic = json!({"rope_type": "dynamic", "factor": 2.0});
        let more = |table: &serde_json::Value, more: serde_json::Value| {
            let mut table = table.as_object().expect("a table").clone();
            table.extend(more.as_object().expect("a table").clone());
            read(serde_json::Value::Object(table))
        };
        for harmless in [
            json!({"finetuned": true}),
            json!({"finetuned": false, "attn_factor": 1}),
            json!({"mscale_all_dim": 0}),
            json!({"mscale": 0.0, "mscale_all_dim": 0.0}),
            json!({"extrapolation_factor": 1.0, "beta_fast": 32, "beta_slow": 1}),
            json!({"mrope_section": [16, 24, 24], "mrope_interleaved": true}),
        ] {
            for table in [&linear, &yarn, &dynamic] {
                assert_eq!(more(table, harmless.clone()), read(table.clone()), "{harmless}");
            }
        }
        assert_eq!(more(&linear, json!({"original_max_position_embeddings": 64})), read(linear.clone()));
        for table in [&linear, &yarn, &dynamic] {
            for asking in [json!({"attn_factor": 2.0}), json!({"extrapolation_factor": 0.5}), json!({"alpha": 2.0})] {
                assert!(more(table, asking.clone()).is_err_and(|said| said.contains("Unsupported")), "{asking}");
            }
        }
        assert!(more(&linear, json!({"mscale": 0.7})).is_err(), "a magnitude that nothing applies");
    }

    #[test]
    fn a_scaling_reaches_the_trained_positions_times_its_factor() {
        let reaches =
            |json: serde_json::Value, context: f64| reach(Value::from(&json).table().expect("a table"), context);
        assert_eq!(reaches(json!({"rope_type": "linear", "factor": 4.0}), 64.0), 256.0);
        let yarn = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64});
        assert_eq!([reaches(yarn.clone(), 64.0), reaches(yarn, 256.0)], [256.0, 256.0]);
        let longrope = json!({"rope_type": "longrope", "original_max_position_embeddings": 64});
        assert_eq!(reaches(longrope, 512.0), 512.0);
    }

    #[test]
    fn a_yarn_without_a_factor_has_the_ratio_of_the_contexts() {
        let table = json!({"rope_type": "yarn", "original_max_position_embeddings": 1024});
        assert!(matches!(read(table), Ok(Scaling::Fixed(RopeScaling::Yarn { factor: 4.0, .. }))));
        assert!(read(json!({"rope_type": "yarn"})).is_err_and(|said| said.contains("rope_scaling.factor")));
    }

    #[test]
    fn what_is_not_honoured_is_refused() {
        for (table, expected) in [
            (json!({"rope_type": "mrope", "factor": 2.0}), "Unsupported(\"`rope_scaling` of type \\\"mrope\\\"\")"),
            (json!({"rope_type": "linear"}), "Missing(\"rope_scaling.factor\")"),
            (
                json!({"rope_type": "linear", "factor": 2.0, "beta_fast": 1}),
                "Unsupported(\"`rope_scaling.beta_fast` of a scaling of type \\\"linear\\\"\")",
            ),
            (
                json!({"rope_type": "linear", "factor": -2.0}),
                "WrongType(\"`rope_scaling.factor` must be a positive number, not -2.0\")",
            ),
        ] {
            assert_eq!(read(table), Err(expected.to_owned()));
        }
    }
}
