//! What a tensor of an expected file is called, and the operation of the description that computes it.

use std::collections::BTreeMap;

use fusec::description::{Call, OpName, Resolved};

/// The operations of a model and how names find them.
pub(super) struct Index<'a> {
    calls: &'a [Call],
    /// For each call, the call that defines what it reads, by role; none for tokens and positions.
    producers: Vec<BTreeMap<&'static str, Option<usize>>>,
    layers: usize,
    /// The value that the layers hand on.
    carried: Option<&'a str>,
    /// What the weights of each layer begin with, without the last dot.
    prefixes: Vec<String>,
}

/// A value: what a call computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub call: usize,
    /// `[first, size, step]`: it is these of the features that the other implementation has.
    pub part: Option<[usize; 3]>,
    /// The call whose value may stand under the same name: an embedding module may scale what it returns, or leave that to what follows.
    pub or: Option<usize>,
}

impl<'a> Index<'a> {
    pub fn of(resolved: &'a Resolved) -> Index<'a> {
        let calls = &resolved.calls;
        let mut defined: BTreeMap<&str, usize> = BTreeMap::new();
        let mut producers = Vec::with_capacity(calls.len());
        for (index, call) in calls.iter().enumerate() {
            let reads = call.values.iter().map(|(role, name)| (*role, defined.get(name.as_str()).copied()));
            producers.push(reads.collect());
            defined.extend(call.outs.iter().map(|out| (out.as_str(), index)));
        }
        let first_layer = calls.iter().position(|call| call.layer.is_some()).unwrap_or(calls.len());
        let outs = |calls: &'a [Call]| calls.iter().flat_map(|call| call.outs.iter().map(String::as_str));
        let inside: Vec<&str> = outs(&calls[first_layer..]).collect();
        let mut carried: Vec<&str> = outs(&calls[..first_layer]).filter(|name| inside.contains(name)).collect();
        carried.dedup();
        let layers = resolved.facts.num_layers;
        let carried = if let [one] = carried[..] { Some(one) } else { None };
        let prefixes = (0..layers).map(|layer| prefix(calls, layer)).collect();
        Index { calls, producers, layers, carried, prefixes }
    }

    /// What a name stands for; nothing for a name that the description has nothing for. Several where several operations read parts of one weight.
    pub fn targets(&self, name: &str) -> Vec<Target> {
        let whole = |call: Option<usize>| call.map(|call| Target { call, part: None, or: None }).into_iter().collect();
        if let Some(number) = name.strip_prefix("hidden_states.").and_then(|number| number.parse().ok()) {
            return whole(self.hidden_state(number));
        }
        if let Some(layer) = self.prefixes.iter().position(|prefix| prefix == name) {
            return whole(self.last_of(Some(layer), self.carried));
        }
        if let Some((layer, role)) = numbered(name, "attention.") {
            return whole(self.attention(layer, role));
        }
        if let Some((layer, value)) = numbered(name, "layers.")
            && let Some(call) = self.last_of(Some(layer), Some(value))
        {
            return whole(Some(call));
        }
        for (section, after) in [("embed.", false), ("head.", true)] {
            if let Some(value) = name.strip_prefix(section)
                && let Some(call) = self.outside(after, value)
            {
                return whole(Some(call));
            }
        }
        match name.strip_suffix(".input") {
            Some(module) => {
                let reader = self.module(module).first().copied();
                whole(reader.and_then(|target| self.producers[target.call].get("x").copied().flatten()))
            }
            None => self.module(name.strip_suffix(".output").unwrap_or(name)),
        }
    }

    /// The calls that a call depends on directly.
    pub fn producers(&self, call: usize) -> impl Iterator<Item = usize> {
        self.producers[call].values().copied().flatten()
    }

    /// transformers' hidden state: the input of a layer, and the last one after the norm of the head.
    fn hidden_state(&self, number: usize) -> Option<usize> {
        let carried = self.carried?;
        match number {
            0 => self.outside(false, carried),
            _ if number < self.layers => self.last_of(Some(number - 1), Some(carried)),
            _ if number == self.layers => {
                let norm = |call: &Call| matches!(call.op, OpName::RmsNorm | OpName::LayerNorm);
                let head = self.head();
                let normed = self.calls[head..].iter().position(norm).map(|at| head + at);
                normed.or_else(|| self.last_of(Some(number - 1), Some(carried)))
            }
            _ => None,
        }
    }

    fn attention(&self, layer: usize, role: &str) -> Option<usize> {
        let is = |call: &Call| call.layer == Some(layer) && call.op == OpName::Attention;
        let call = self.calls.iter().position(is)?;
        match role {
            "output" => Some(call),
            _ => self.producers[call].get(role).copied().flatten(),
        }
    }

    /// The operations of a module: those that read its weight.
    fn module(&self, module: &str) -> Vec<Target> {
        let weight = format!("{module}.weight");
        let reads = |call: &Call| call.weights.get("weight") == Some(&weight);
        let mut found: Vec<Target> = self
            .calls
            .iter()
            .enumerate()
            .filter(|(_, call)| reads(call))
            .map(|(call, it)| Target { call, part: it.part("part"), or: self.scaled(call) })
            .collect();
        // A tied head reads the embedding's weight; the module of that name is the embedding.
        if found.len() > 1 && found.iter().any(|target| target.part.is_none()) {
            found.retain(|target| self.calls[target.call].op == OpName::Embedding);
            found.truncate(1);
        }
        found
    }

    /// The scale after an embedding.
    fn scaled(&self, call: usize) -> Option<usize> {
        let after = |next: &usize| {
            self.calls[*next].op == OpName::Scale && self.producers[*next].get("x").copied().flatten() == Some(call)
        };
        (self.calls[call].op == OpName::Embedding).then(|| (call + 1..self.calls.len()).find(after)).flatten()
    }

    /// The last call of a layer, or of anywhere where `layer` is none, that defines a value.
    fn last_of(&self, layer: Option<usize>, value: Option<&str>) -> Option<usize> {
        let value = value?;
        self.calls.iter().rposition(|call| call.layer == layer && call.outs.iter().any(|out| out == value))
    }

    /// The last call before the layers, or after them, that defines a value.
    fn outside(&self, after: bool, value: &str) -> Option<usize> {
        let head = self.head();
        let range = if after { head..self.calls.len() } else { 0..head };
        let start = range.start;
        let defines = |call: &Call| call.layer.is_none() && call.outs.iter().any(|out| out == value);
        self.calls[range].iter().rposition(defines).map(|at| start + at)
    }

    /// Where the calls after the layers begin.
    fn head(&self) -> usize {
        self.calls.iter().rposition(|call| call.layer.is_some()).map_or(0, |last| last + 1)
    }
}

/// `layers.3.q` as 3 and `q`.
fn numbered<'n>(name: &'n str, start: &str) -> Option<(usize, &'n str)> {
    let (number, rest) = name.strip_prefix(start)?.split_once('.')?;
    Some((number.parse().ok()?, rest))
}

/// What all weights of a layer begin with, up to a dot that is left out.
fn prefix(calls: &[Call], layer: usize) -> String {
    let mut names = calls.iter().filter(|call| call.layer == Some(layer)).flat_map(|call| call.weights.values());
    let Some(first) = names.next() else { return String::new() };
    let shared = names.fold(first.as_str(), |shared, name| {
        let alike = shared.bytes().zip(name.bytes()).take_while(|(a, b)| a == b).count();
        &shared[..alike]
    });
    shared.rsplit_once('.').map_or(String::new(), |(prefix, _)| prefix.to_owned())
}
