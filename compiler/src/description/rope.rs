//! The `rope_scaling` table, typed.

use std::collections::BTreeMap;

use super::value::Value;

/// How RoPE's frequencies are stretched beyond the trained context, under the names of `rope_scaling.rope_type`.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Every frequency divided by `factor`.
    Linear {
        /// The stretch.
        factor: f64,
    },
    /// Low frequencies divided by `factor`, high ones kept, a smooth passage between.
    Llama3 {
        /// The stretch of low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are stretched whole.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// The trained context, in tokens.
        original: f64,
    },
    /// Interpolation by wavelength, and a magnitude on cosine and sine.
    Yarn {
        /// The stretch.
        factor: f64,
        /// Rotations above which a frequency is kept.
        beta_fast: f64,
        /// Rotations below which it is stretched whole.
        beta_slow: f64,
        /// The trained context, in tokens.
        original: f64,
        /// Multiplies cosine and sine.
        attention_factor: f64,
        /// Round the ends of the passage to whole dimensions.
        truncate: bool,
    },
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

/// What is wrong with a table: unsupported features are told from plain mistakes.
#[derive(Debug)]
pub(super) enum Refusal {
    Unsupported(String),
    Missing(String),
    WrongType(String),
}

impl RopeScaling {
    /// Reads a `rope_scaling` table. `context` is `max_position_embeddings`, which stands in for an original context that is not given.
    pub(super) fn read(table: &BTreeMap<String, Value>, context: Option<f64>) -> Result<RopeScaling, Refusal> {
        let mut fields = Fields { table, read: vec!["rope_type"] };
        let kind = match table.get("rope_type") {
            Some(Value::Str(kind)) => kind.clone(),
            Some(other) => return Err(Refusal::WrongType(format!("`rope_scaling.rope_type` is {}", other.kind()))),
            None => return Err(Refusal::Missing("rope_scaling.rope_type".to_owned())),
        };
        let scaling = match &*kind {
            "linear" => RopeScaling::Linear { factor: fields.positive("factor")? },
            "llama3" => RopeScaling::Llama3 {
                factor: fields.positive("factor")?,
                low_freq_factor: fields.positive("low_freq_factor")?,
                high_freq_factor: fields.positive("high_freq_factor")?,
                original: fields.positive("original_max_position_embeddings")?,
            },
            "yarn" => fields.yarn(context)?,
            "longrope" => fields.longrope(context)?,
            "dynamic" => RopeScaling::Dynamic {
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

struct Fields<'a> {
    table: &'a BTreeMap<String, Value>,
    read: Vec<&'static str>,
}

impl Fields<'_> {
    fn yarn(&mut self, context: Option<f64>) -> Result<RopeScaling, Refusal> {
        let factor = self.positive("factor")?;
        let original = match (self.optional("original_max_position_embeddings")?, context) {
            (Some(original), _) | (None, Some(original)) => original,
            (None, None) => return Err(Refusal::Missing("rope_scaling.original_max_position_embeddings".to_owned())),
        };
        let magnitude = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
        let given = self.optional("attention_factor")?;
        let (mscale, mscale_all) = (self.optional("mscale")?, self.optional("mscale_all_dim")?);
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
        Ok(RopeScaling::Yarn {
            factor,
            beta_fast: self.optional("beta_fast")?.unwrap_or(32.0),
            beta_slow: self.optional("beta_slow")?.unwrap_or(1.0),
            original,
            attention_factor,
            truncate,
        })
    }

    fn longrope(&mut self, context: Option<f64>) -> Result<RopeScaling, Refusal> {
        let given = self.optional("original_max_position_embeddings")?;
        let Some(original) = given.or(context) else {
            return Err(Refusal::Missing("rope_scaling.original_max_position_embeddings".to_owned()));
        };
        let stretch = self.optional("factor")?.or(context.map(|context| context / original)).unwrap_or(1.0);
        let told = if stretch <= 1.0 { 1.0 } else { (1.0 + stretch.ln() / original.ln()).sqrt() };
        Ok(RopeScaling::LongRope {
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

    fn read(json: serde_json::Value) -> Result<RopeScaling, String> {
        let value = Value::from(&json);
        RopeScaling::read(value.table().expect("a table"), Some(4096.0)).map_err(|refusal| format!("{refusal:?}"))
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
        assert_eq!(scaling, Ok(expected));
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
