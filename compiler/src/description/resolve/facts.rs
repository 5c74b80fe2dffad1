//! The facts of a model: those keys of its configuration that say something of it as a whole.

use std::collections::BTreeSet;

use super::super::call::{AttrValue, Call};
use super::super::diagnostics::{Code, Diagnostic};
use super::super::expr::{Environment, Failure};
use super::super::facts::{Beyond, Facts};
use super::super::rope::{self, Scaling};
use super::super::signature::OpName;
use super::super::value::{MAX_COUNT, Value, count_of};
use super::Resolver;

impl Resolver<'_> {
    /// The facts, or an error for a vocabulary that is missing or wrong.
    pub(super) fn facts(&mut self, num_layers: usize, architecture: Option<String>, calls: &[Call]) -> Option<Facts> {
        let vocab_size = self.fact("vocab_size")?;
        let Some(vocab_size) = count_of(&vocab_size) else {
            let message = format!("`vocab_size` in {} is not an int from 1 to 2^30: {vocab_size}", self.origin);
            self.diagnostics.push(Diagnostic::new(Code::BadConfig, message));
            return None;
        };
        let tables = calls.iter().filter(|call| call.op == OpName::Embedding);
        let tables: BTreeSet<&String> = tables.filter_map(|call| call.weights.get("weight")).collect();
        let head = calls.iter().filter(|call| call.op == OpName::Linear && call.layer.is_none());
        let tied_head = head.filter_map(|call| call.weights.get("weight")).any(|name| tables.contains(name));
        let context = self.optional_fact("max_position_embeddings").as_ref().and_then(count_of);
        let (reach, beyond) = self.reach(context, calls);
        let token = |value: &Value| match value {
            Value::Int(id) => u32::try_from(*id).ok(),
            _ => None,
        };
        let ends = match self.optional_fact("eos_token_id") {
            Some(Value::List(items)) => items.iter().filter_map(token).collect(),
            one => one.iter().filter_map(token).collect(),
        };
        Some(Facts {
            vocab_size,
            num_layers,
            max_position_embeddings: context,
            context_limit: self.optional_fact("context_limit").as_ref().and_then(count_of).or(reach),
            beyond,
            dtype: self.optional_fact("dtype").and_then(|value| value.text().map(str::to_owned)),
            architecture,
            tied_head,
            further_layers: self.optional_fact("num_nextn_predict_layers").as_ref().and_then(count_of).unwrap_or(0),
            bos_token_id: self.optional_fact("bos_token_id").as_ref().and_then(token),
            eos_token_ids: ends,
        })
    }

    /// How far the model's RoPE reaches, and what holds beyond.
    fn reach(&self, context: Option<usize>, calls: &[Call]) -> (Option<usize>, Beyond) {
        let scalings = || calls.iter().filter_map(|call| call.attributes.get("scaling"));
        if scalings().any(|scaling| matches!(scaling, AttrValue::RopeScaling(Scaling::Dynamic { .. }))) {
            return (context, Beyond::OnePass);
        }
        let (Some(context), true) = (context, scalings().next().is_some()) else { return (context, Beyond::Refused) };
        let tables = ["rope_scaling", "rope_local_scaling"].into_iter().filter_map(|key| self.config.get(key)?.table());
        let least = tables.map(|table| rope::reach(table, context as f64)).reduce(f64::min);
        (Some(least.map_or(context, |reach| reach.min(MAX_COUNT as f64) as usize)), Beyond::Worse)
    }

    /// A key that may be absent; a derived one that cannot be evaluated is an error.
    fn optional_fact(&mut self, key: &str) -> Option<Value> {
        match self.names(None).key(key) {
            Ok(value) => value,
            Err(Failure::Missing { .. }) => None,
            Err(failure) => {
                self.fail(failure, None);
                None
            }
        }
    }

    fn fact(&mut self, key: &str) -> Option<Value> {
        let found = self.optional_fact(key);
        if found.is_none() {
            let span = self.description.count.span.clone();
            self.fail(Failure::Missing { key: key.to_owned(), span }, Some("every model needs it".to_owned()));
        }
        found
    }
}
