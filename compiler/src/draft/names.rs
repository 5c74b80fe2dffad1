//! A checkpoint's tensor names: which are of the layers, which stand outside, and what modules they make up.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};

/// Tensors by name, with their shapes, slowest dimension first.
pub(super) type Tensors = BTreeMap<String, Vec<usize>>;

/// The names of a checkpoint, with the layers folded into one.
#[derive(Debug)]
pub(super) struct Names {
    /// What stands before the layer's number, with its dot: `model.layers.`.
    pub prefix: String,
    /// Layers that the names count.
    pub layers: usize,
    /// Modules of a layer; names without the layer's prefix.
    pub inside: Modules,
    /// Modules outside the layers.
    pub outside: Modules,
    /// Layers of two kinds, where the names tell them apart: with routed experts and without.
    pub kinds: Option<Kinds>,
    /// Layers of several kinds by the block in the attention's place; empty where all have the same.
    pub mixers: Vec<Mixer>,
    /// Tensors that some layers have and others lack, or have in another shape: name without the prefix, first shape, layers.
    pub uneven: Vec<(String, Vec<usize>, Vec<usize>)>,
}

/// What only layers with routed experts have, and only those without.
#[derive(Debug)]
pub(super) struct Kinds {
    /// The layers without experts.
    pub dense_layers: Vec<usize>,
    pub dense: Modules,
    /// The layers with experts.
    pub routed_layers: Vec<usize>,
    pub routed: Modules,
}

/// A block that some layers have in the attention's place.
#[derive(Debug)]
pub(super) struct Mixer {
    /// Those layers.
    pub layers: Vec<usize>,
    pub modules: Modules,
}

impl Mixer {
    /// Takes the tensors of blocks whose layers are all layers, each once.
    fn take(uneven: &mut Uneven, layers: usize) -> Vec<Mixer> {
        let part = |name: &str| name.split('.').next().unwrap_or_default().to_lowercase();
        let is_block = |name: &str| ["attn", "attention", "conv", "mamba"].iter().any(|word| part(name).contains(word));
        let mut blocks: BTreeMap<String, (Vec<usize>, Tensors)> = BTreeMap::new();
        for (name, shape, of) in uneven.iter().filter(|(name, _, _)| is_block(name) && name.contains('.')) {
            let block = blocks.entry(part(name)).or_insert_with(|| (of.clone(), Tensors::new()));
            if block.0 != *of {
                return Vec::new();
            }
            block.1.insert(name.clone(), shape.clone());
        }
        let mut all: Vec<usize> = blocks.values().flat_map(|(of, _)| of.iter().copied()).collect();
        all.sort_unstable();
        if blocks.len() < 2 || !all.into_iter().eq(0..layers) {
            return Vec::new();
        }
        uneven.retain(|(name, _, _)| !blocks.contains_key(&part(name)));
        blocks.into_values().map(|(layers, tensors)| Mixer { layers, modules: Modules::of(&tensors) }).collect()
    }
}

type Uneven = Vec<(String, Vec<usize>, Vec<usize>)>;

impl Kinds {
    /// Two kinds of layers that have all the uneven tensors between them, one of them with experts.
    fn of(uneven: &Uneven, layers: usize, alike: bool) -> Option<Kinds> {
        let one = uneven.first()?.2.clone();
        let other: Vec<usize> = (0..layers).filter(|layer| !one.contains(layer)).collect();
        let with = |wanted: &Vec<usize>| -> Tensors {
            let of = uneven.iter().filter(|(_, _, layers)| layers == wanted);
            of.map(|(name, shape, _)| (name.clone(), shape.clone())).collect()
        };
        let (first, second) = (with(&one), with(&other));
        let routed = |tensors: &Tensors| tensors.keys().any(|name| expert(name).contains("{expert}"));
        if !alike || first.len() + second.len() != uneven.len() || routed(&first) == routed(&second) {
            return None;
        }
        let [dense, routed] =
            if routed(&first) { [(other, second), (one, first)] } else { [(one, first), (other, second)] };
        let (dense_layers, routed_layers) = (dense.0, routed.0);
        Some(Kinds { dense_layers, dense: Modules::of(&dense.1), routed_layers, routed: Modules::of(&routed.1) })
    }
}

/// A weight with the bias beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Module {
    /// The name without `.weight`.
    pub stem: String,
    /// The weight's name.
    pub weight: String,
    pub shape: Vec<usize>,
    pub bias: bool,
    /// How many there are, where `{expert}` stands for a number in the name.
    pub count: usize,
}

/// Modules that have no role yet, by name.
#[derive(Clone, Debug, Default)]
pub(super) struct Modules {
    list: Vec<Module>,
    /// Tensors that are no module's weight or bias.
    pub odd: Tensors,
}

impl Names {
    /// Finds the layers: the prefix before a number under which most tensors stand.
    pub fn of(tensors: &Tensors) -> Result<Names> {
        let mut groups: BTreeMap<&str, usize> = BTreeMap::new();
        for name in tensors.keys() {
            if let Some((prefix, _, _)) = split(name) {
                *groups.entry(prefix).or_default() += 1;
            }
        }
        let Some(prefix) = groups.iter().max_by_key(|(prefix, count)| (**count, std::cmp::Reverse(*prefix))) else {
            bail!(
                "no tensor is named like one of a layer (`model.layers.0.…`): write the description by hand, docs/description.md has the language"
            );
        };
        let prefix = prefix.0.to_string();
        let (mut inside, mut outside): (BTreeMap<String, BTreeMap<usize, Vec<usize>>>, Tensors) = Default::default();
        for (name, shape) in tensors {
            match split(name).filter(|(before, _, _)| *before == prefix) {
                Some((_, layer, rest)) => {
                    inside.entry(rest.to_owned()).or_default().insert(layer, shape.clone());
                }
                None => {
                    outside.insert(name.clone(), shape.clone());
                }
            }
        }
        let layers = inside.values().filter_map(|layers| layers.keys().max()).max().map_or(0, |last| last + 1);
        let (mut even, mut uneven, mut alike) = (Tensors::new(), Uneven::new(), true);
        for (name, of) in inside {
            let shapes: BTreeSet<&Vec<usize>> = of.values().collect();
            let first = of.values().next().expect("a name stands in a layer").clone();
            if of.len() == layers && shapes.len() == 1 {
                even.insert(name, first);
            } else {
                alike &= shapes.len() == 1;
                uneven.push((name, first, of.into_keys().collect()));
            }
        }
        let mixers = if alike { Mixer::take(&mut uneven, layers) } else { Vec::new() };
        let kinds = Kinds::of(&uneven, layers, alike);
        if kinds.is_some() {
            uneven.clear();
        }
        Ok(Names { prefix, layers, inside: Modules::of(&even), outside: Modules::of(&outside), kinds, mixers, uneven })
    }
}

/// What stands before the first number of a name, the number, and what follows.
fn split(name: &str) -> Option<(&str, usize, &str)> {
    let mut start = 0;
    for part in name.split('.') {
        let end = start + part.len();
        if let (Ok(number), true) = (part.parse::<usize>(), end < name.len()) {
            return Some((&name[..start], number, &name[end + 1..]));
        }
        start = end + 1;
    }
    None
}

impl Modules {
    fn of(tensors: &Tensors) -> Modules {
        let mut folded: BTreeMap<String, (Vec<usize>, usize)> = BTreeMap::new();
        for (name, shape) in tensors {
            folded.entry(expert(name)).or_insert_with(|| (shape.clone(), 0)).1 += 1;
        }
        let mut modules = Modules::default();
        for (name, (shape, count)) in &folded {
            let (stem, kind) = name.rsplit_once('.').unwrap_or((name, ""));
            match kind {
                "weight" => modules.list.push(Module {
                    stem: stem.to_owned(),
                    weight: name.clone(),
                    shape: shape.clone(),
                    bias: folded.contains_key(&format!("{stem}.bias")),
                    count: *count,
                }),
                "bias" if folded.contains_key(&format!("{stem}.weight")) => {}
                _ => drop(modules.odd.insert(name.clone(), shape.clone())),
            }
        }
        modules
    }

    /// Takes the first module that `wanted` wants.
    pub fn take(&mut self, wanted: impl Fn(&Module) -> bool) -> Option<Module> {
        let at = self.list.iter().position(wanted)?;
        Some(self.list.remove(at))
    }

    /// Takes the first tensor that `wanted` wants, of those that are no module's weight or bias.
    pub fn take_odd(&mut self, wanted: impl Fn(&str, &[usize]) -> bool) -> Option<(String, Vec<usize>)> {
        let name = self.odd.iter().find(|(name, shape)| wanted(name, shape))?.0.clone();
        self.odd.remove_entry(&name)
    }

    /// Takes all that `wanted` wants, by name.
    pub fn take_all(&mut self, wanted: impl Fn(&Module) -> bool) -> Vec<Module> {
        let (taken, left) = std::mem::take(&mut self.list).into_iter().partition(wanted);
        self.list = left;
        taken
    }

    /// Gives back what was taken and has no role.
    pub fn put_back(&mut self, modules: Vec<Module>) {
        self.list.extend(modules);
        self.list.sort_by(|a, b| a.weight.cmp(&b.weight));
    }

    /// Those that are left.
    pub fn iter(&self) -> impl Iterator<Item = &Module> {
        self.list.iter()
    }

    /// Names and shapes of the tensors that are left.
    pub fn left(&self) -> Vec<(String, Vec<usize>)> {
        let mut left: Vec<_> = self.odd.iter().map(|(name, shape)| (name.clone(), shape.clone())).collect();
        for module in &self.list {
            left.push((module.weight.clone(), module.shape.clone()));
            if module.bias {
                left.push((format!("{}.bias", module.stem), Vec::new()));
            }
        }
        left.sort();
        left
    }
}

/// A name with the number after `experts.` as `{expert}`.
fn expert(name: &str) -> String {
    let Some((before, rest)) = name.split_once("experts.") else { return name.to_owned() };
    match rest.split_once('.') {
        Some((number, rest)) if number.parse::<usize>().is_ok() => format!("{before}experts.{{expert}}.{rest}"),
        _ => name.to_owned(),
    }
}

impl Module {
    /// The last word of the name: `q_proj`.
    pub fn last(&self) -> &str {
        self.stem.rsplit('.').next().unwrap_or(&self.stem)
    }

    /// Whether the last word is one of these, case aside.
    pub fn is(&self, words: &[&str]) -> bool {
        words.iter().any(|word| self.last().eq_ignore_ascii_case(word))
    }

    /// Whether some word of the name before the last holds one of these.
    pub fn below(&self, words: &[&str]) -> bool {
        let parent = self.stem.rsplit_once('.').map_or("", |(parent, _)| parent).to_lowercase();
        words.iter().any(|word| parent.contains(word))
    }

    /// Whether it is a matrix with these two sizes, in either order.
    pub fn joins(&self, a: usize, b: usize) -> bool {
        self.shape == [a, b] || self.shape == [b, a]
    }
}
