//! What each weight of a graph is for, and the format that its class is quantised to.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};
use serde::Serialize;

use crate::ir::{Epilogue, Format, Graph, NodeId, Op, Results, Role, Value, WeightRef};

/// What a weight is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// A table of which each token reads a row.
    Embedding,
    /// Projections into and out of attention, a memory or a convolution.
    Attention,
    /// Every other product of a layer.
    Mlp,
    /// The experts' projections.
    Experts,
    /// What makes a router's logits.
    Router,
    /// What makes the model's logits.
    Head,
    /// Norms, biases, convolutions, decays.
    Vectors,
}

impl Class {
    /// Every class, in the order of a step.
    pub const ALL: [Class; 7] =
        [Class::Embedding, Class::Attention, Class::Mlp, Class::Experts, Class::Router, Class::Head, Class::Vectors];

    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Class::Embedding => "embedding",
            Class::Attention => "attention",
            Class::Mlp => "MLP",
            Class::Experts => "experts",
            Class::Router => "router",
            Class::Head => "head",
            Class::Vectors => "norms, biases",
        }
    }
}

/// A use of a weight.
struct Use {
    class: Class,
    /// Its rows are what is summed over.
    transposed: bool,
}

/// Formats that weights can be quantised to.
pub const MADE: [Format; 13] = [
    Format::Q8_0,
    Format::Q6K,
    Format::Q5K,
    Format::Q5_1,
    Format::Q5_0,
    Format::Q4K,
    Format::Q4_1,
    Format::Q4_0,
    Format::Mxfp4,
    Format::Fp8x128,
    Format::Fp8,
    Format::Int8x128,
    Format::Int4x128,
];

/// Rows below which a tensor stays as it is: it takes no memory to speak of.
const FEW_ROWS: usize = 16;

/// The classes of each weight: several where it is used several times, as a tied head is.
pub fn classes(graph: &Graph) -> BTreeMap<WeightRef, BTreeSet<Class>> {
    let uses = uses(graph).into_iter();
    uses.map(|(weight, (_, uses))| (weight, uses.iter().map(|of| of.class).collect())).collect()
}

/// The formats of the tensors that are quantised where weights are taken in `target`; of `graph`, the model as described. What is not named stays as it is: norms,
/// biases, routers, what is stored as its transpose, tables of positions, tensors of few rows, and those whose rows are not whole blocks.
///
/// # Errors
/// A format that nothing quantises to.
pub fn quantised(graph: &Graph, target: Format) -> Result<BTreeMap<String, Format>> {
    if !is_made(target) {
        let names: Vec<&str> = MADE.into_iter().map(Format::name).collect();
        bail!("nothing quantises weights to {}: give one of {}, f16 or bf16", target.name(), names.join(", "));
    }
    let mut tensors: BTreeMap<String, Option<Vec<Format>>> = BTreeMap::new();
    for (weight, (shape, uses)) in uses(graph) {
        let choices = choices(&weight, &shape, &uses, target);
        for tensor in weight.tensors() {
            let both = match (tensors.remove(&tensor), &choices) {
                (None, choices) => choices.clone(),
                (Some(Some(before)), Some(choices)) => {
                    Some(before.into_iter().filter(|format| choices.contains(format)).collect())
                }
                (Some(_), _) => None,
            };
            tensors.insert(tensor, both);
        }
    }
    let chosen = tensors.into_iter().filter_map(|(tensor, choices)| Some((tensor, *choices?.first()?)));
    Ok(chosen.collect())
}

fn is_made(format: Format) -> bool {
    MADE.contains(&format) || format == Format::Int8 || format == Format::Int4x32
}

/// The formats that a weight may have, the best first; none where it stays as it is.
fn choices(weight: &WeightRef, shape: &[usize], uses: &[Use], target: Format) -> Option<Vec<Format>> {
    let stays = |of: &Use| of.transposed || matches!(of.class, Class::Router | Class::Vectors);
    let tensor = weight.tensor_shape(shape).unwrap_or_else(|| shape.to_vec());
    let (_, rows) = tensor.split_last()?;
    if uses.iter().any(stays) || rows.is_empty() || rows.iter().product::<usize>() < FEW_ROWS {
        return None;
    }
    let at_the_ends = uses.iter().any(|of| matches!(of.class, Class::Embedding | Class::Head));
    let formats = formats_for(target, at_the_ends);
    let whole = |format: &Format| weight.has_whole_blocks(shape, *format);
    Some(formats.iter().copied().filter(whole).collect())
}

/// The formats that a weight may have where weights are taken in `target`, the best first: the first whose blocks its rows are. `at_the_ends`: of an embedding or a
/// head, an error of which is in every logit. None: it stays as it is.
pub fn formats_for(target: Format, at_the_ends: bool) -> &'static [Format] {
    match target {
        Format::Q8_0 => &[Format::Q8_0],
        _ if at_the_ends && target.is_of_gguf() && target != Format::Mxfp4 => &[Format::Q6K, Format::Q8_0],
        _ if at_the_ends => &[],
        Format::Q6K => &[Format::Q6K, Format::Q8_0],
        Format::Q5K => &[Format::Q5K, Format::Q5_1],
        Format::Q5_1 => &[Format::Q5_1],
        Format::Q5_0 => &[Format::Q5_0],
        Format::Q4K => &[Format::Q4K, Format::Q5_0],
        Format::Q4_1 => &[Format::Q4_1],
        Format::Q4_0 => &[Format::Q4_0],
        Format::Mxfp4 => &[Format::Mxfp4],
        Format::Fp8 | Format::Fp8x128 => &[Format::Fp8x128, Format::Fp8],
        Format::Int8 | Format::Int8x128 => &[Format::Int8x128, Format::Int8],
        Format::Int4x128 => &[Format::Int4x128, Format::Int4x32],
        Format::Int4x32 => &[Format::Int4x32],
        _ => &[],
    }
}

/// Weights of some classes in one format.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Tally {
    /// The classes, as in `embedding and head`.
    pub class: String,
    /// The format that they are held in.
    pub format: String,
    /// Bytes that they take.
    pub bytes: usize,
    /// Bytes of them that a decode step reads.
    pub bytes_per_step: usize,
}

/// What weights take together, by class and format, in the order of a step. Of each item: what it is made of, its format, its bytes, and those that a step reads.
pub fn tally<'a>(
    classes: &BTreeMap<WeightRef, BTreeSet<Class>>,
    items: impl Iterator<Item = (Vec<&'a WeightRef>, Format, usize, usize)>,
) -> Vec<Tally> {
    // One matrix of several is of the class of all of them.
    let mut of_tensors: BTreeMap<String, BTreeSet<Class>> = BTreeMap::new();
    for (weight, classes) in classes {
        weight.tensors().into_iter().for_each(|tensor| of_tensors.entry(tensor).or_default().extend(classes));
    }
    let of_tensor = |weight: &WeightRef| of_tensors.get(weight.tensors().first()?);
    let mut sums: BTreeMap<(BTreeSet<Class>, Format), (usize, usize)> = BTreeMap::new();
    for (weights, format, bytes, read) in items {
        let class = |weight: &WeightRef| classes.get(weight).or_else(|| of_tensor(weight));
        let class: BTreeSet<Class> = weights.into_iter().filter_map(class).flatten().copied().collect();
        let sum = sums.entry((class, format)).or_default();
        (sum.0, sum.1) = (sum.0.saturating_add(bytes), sum.1.saturating_add(read));
    }
    let words = |classes: &BTreeSet<Class>| {
        let names: Vec<&str> = classes.iter().map(|class| class.name()).collect();
        if names.is_empty() { "others".to_owned() } else { names.join(" and ") }
    };
    let tallied = |((class, format), (bytes, read)): (&(BTreeSet<Class>, Format), &(usize, usize))| Tally {
        class: words(class),
        format: format.name().to_owned(),
        bytes: *bytes,
        bytes_per_step: *read,
    };
    sums.iter().map(tallied).collect()
}

/// Each weight with its shape and its uses.
fn uses(graph: &Graph) -> BTreeMap<WeightRef, (Vec<usize>, Vec<Use>)> {
    let order = graph.ordered();
    let products = products(graph, &order);
    let mut all: BTreeMap<WeightRef, (Vec<usize>, Vec<Use>)> = BTreeMap::new();
    for &node in &order {
        for (role, value) in graph.op(node).roles().into_iter().zip(graph.operands(node)) {
            let Op::Weight(name) = graph.op(value.node) else { continue };
            let (class, transposed) = match (graph.op(node), role) {
                (Op::Matmul(matmul), Role::Weight(index)) => {
                    // A gate and what it multiplies have one result.
                    let of = |result| products.get(&Value { node, result }).copied();
                    let result = if matches!(matmul.epilogue, Epilogue::Gate(_)) { 0 } else { index };
                    (of(result).unwrap_or(Class::Mlp), matmul.transposed)
                }
                (Op::Attention(_), Role::ProjWeight) => (Class::Attention, false),
                (Op::Experts(_), Role::Gate | Role::Up | Role::Down) => (Class::Experts, false),
                (Op::Embedding, Role::Table) if reads_tokens(graph, node) => (Class::Embedding, false),
                _ => (Class::Vectors, false),
            };
            let shape = || graph.type_of(value).fixed_sizes().collect();
            all.entry(name.clone()).or_insert_with(|| (shape(), Vec::new())).1.push(Use { class, transposed });
        }
    }
    all
}

/// Whether the rows of a table are those of tokens, not of positions.
fn reads_tokens(graph: &Graph, node: NodeId) -> bool {
    let ids = graph.operand(node, Role::Ids);
    ids.is_some_and(|ids| matches!(graph.op(ids.node), Op::Input(name) if name == "tokens"))
}

/// The class of each result of a product.
fn products(graph: &Graph, order: &[NodeId]) -> BTreeMap<Value, Class> {
    let results = |node: NodeId| (0..graph.node(node).results.len()).map(move |result| Value { node, result });
    let products = order.iter().copied().filter(|&node| matches!(graph.op(node), Op::Matmul(_)));
    let mut classes: BTreeMap<Value, Class> = products.flat_map(results).map(|value| (value, Class::Mlp)).collect();
    // Operands stand before users, so that what a product of attention is made of is marked after it.
    for &node in order.iter().rev() {
        let (class, from) = match graph.op(node) {
            Op::Attention(_) | Op::Recall(_) | Op::Conv(_) => (Class::Attention, mixed(graph, node)),
            Op::Route(_) => (Class::Router, graph.operand(node, Role::X).into_iter().collect()),
            Op::Matmul(_) => {
                let x: Vec<Value> = graph.operand(node, Role::X).into_iter().collect();
                if behind(graph, &x).1 {
                    classes.extend(results(node).map(|value| (value, Class::Attention)));
                }
                if results(node).all(|value| classes[&value] != Class::Attention) {
                    continue;
                }
                (Class::Attention, x)
            }
            _ => continue,
        };
        classes.extend(behind(graph, &from).0.into_iter().map(|value| (value, class)));
    }
    let logits: Vec<Value> = graph.outputs.first().copied().into_iter().collect();
    classes.extend(behind(graph, &logits).0.into_iter().map(|value| (value, Class::Head)));
    classes
}

/// The results of products that values are made of with no other product, and no sum with a residual, between; and whether there is attention or a memory on the way.
fn behind(graph: &Graph, from: &[Value]) -> (BTreeSet<Value>, bool) {
    let (mut products, mut attends) = (BTreeSet::new(), false);
    let mut seen = BTreeSet::new();
    let mut left = from.to_vec();
    while let Some(value) = left.pop() {
        if !seen.insert(value) {
            continue;
        }
        let node = value.node;
        match graph.op(node) {
            Op::Matmul(matmul) if !matmul.residual || matmul.sample => drop(products.insert(value)),
            // One with its projection is as a product.
            Op::Attention(attention) if attention.proj.is_some() => {}
            Op::Attention(_) | Op::Recall(_) | Op::Conv(_) => {
                attends = true;
                left.extend(mixed(graph, node));
            }
            Op::Add if adds_a_residual(graph, node) => {}
            Op::Matmul(_) | Op::Experts(_) | Op::Embedding | Op::Input(_) | Op::Weight(_) | Op::State(_) => {}
            _ => left.extend(graph.operands(node)),
        }
    }
    (products, attends)
}

/// The operands that attention, a memory or a convolution mixes between tokens, and what it does so by.
fn mixed(graph: &Graph, node: NodeId) -> Vec<Value> {
    let of_role = graph.op(node).roles().into_iter().zip(graph.operands(node));
    of_role.filter(|(role, _)| *role != Role::Residual).map(|(_, value)| value).collect()
}

/// Whether a sum is of two rows without heads; that of heads, or of a bias, is within a block.
fn adds_a_residual(graph: &Graph, node: NodeId) -> bool {
    let is_weight = |value: &Value| matches!(graph.op(value.node), Op::Weight(_));
    let has_heads = graph.type_of(node.result(0)).fixed_sizes().count() > 1;
    !has_heads && !graph.operands(node).iter().any(is_weight)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::description::{Description, shipped};
    use crate::lower::lower;
    use crate::passes::{self, Selection};

    fn described(family: &str) -> Graph {
        let (file, text) = shipped().iter().find(|(file, _)| *file == format!("{family}.toml")).expect("it is shipped");
        let description = Description::parse(text, file).expect("it parses");
        let resolved = description.resolve(None).expect("its preset resolves");
        lower(&resolved, &|_| Format::BF16, None).expect("it lowers")
    }

    /// Families whose fused graphs differ in kind, and are small.
    const FUSED: [&str; 6] = ["llama", "lfm2", "bamba", "qwen2_moe", "gemma3", "phi"];

    /// The classes of a layer's tensors, `{}` for its number, and of those of no layer.
    fn told(graph: &Graph) -> BTreeMap<String, String> {
        let name = |weight: &WeightRef| {
            let text = weight.tensors()[0].clone();
            let digits = |part: &str| if part.parse::<usize>().is_ok() { "{}".to_owned() } else { part.to_owned() };
            text.split('.').map(digits).collect::<Vec<_>>().join(".")
        };
        let words =
            |classes: &BTreeSet<Class>| classes.iter().map(|class| class.name()).collect::<Vec<_>>().join(" and ");
        classes(graph).iter().map(|(weight, classes)| (name(weight), words(classes))).collect()
    }

    #[test]
    fn weights_are_of_the_class_that_their_names_say() {
        for (file, _) in shipped() {
            let family = file.trim_end_matches(".toml");
            let graph = described(family);
            let of_graph = told(&graph);
            if FUSED.contains(&family) {
                let mut fused = graph.clone();
                passes::run(&mut fused, &Selection::all(), &mut |_, _, _| {}).expect("the passes run");
                assert_eq!(told(&fused), of_graph, "{family}: fused and not");
            }
            for (name, class) in of_graph {
                let has = |parts: &[&str]| parts.iter().any(|part| name.contains(part));
                let is = |class_name: &str| class.contains(class_name);
                if has(&[
                    "q_proj.weight",
                    "k_proj.weight",
                    "v_proj.weight",
                    "query_key_value.weight",
                    "qkv_proj.weight",
                ]) {
                    assert!(is("attention"), "{family}: {name} is {class}");
                }
                if has(&["self_attn.o_proj.weight", "self_attn.out_proj.weight", "out_proj.weight", "in_proj_qkv"]) {
                    assert!(is("attention"), "{family}: {name} is {class}");
                }
                if has(&["down_proj", "up_proj", "mlp.fc2.weight"]) && !has(&["experts", "bias"]) {
                    assert!(is("MLP"), "{family}: {name} is {class}");
                }
                if has(&["norm", ".bias", "A_log", "dt_bias", "conv1d"]) {
                    assert!(is("norms"), "{family}: {name} is {class}");
                }
                if has(&["lm_head.weight"]) {
                    assert!(is("head"), "{family}: {name} is {class}");
                }
                if has(&["mlp.gate.weight", "block_sparse_moe.gate.weight", "router.weight", "router.layer.weight"]) {
                    assert!(is("router"), "{family}: {name} is {class}");
                }
            }
        }
    }

    #[test]
    fn a_format_falls_back_where_rows_are_not_its_blocks() {
        let graph = described("llama");
        let formats = |target| quantised(&graph, target).expect("it is made");
        let q4_k = formats(Format::Q4K);
        assert_eq!(q4_k["model.embed_tokens.weight"], Format::Q6K);
        assert_eq!(q4_k["model.layers.3.mlp.down_proj.weight"], Format::Q4K);
        assert!(!q4_k.contains_key("model.norm.weight"));
        assert_eq!(formats(Format::Q8_0)["model.embed_tokens.weight"], Format::Q8_0);
        let int4 = formats(Format::Int4x128);
        assert!(!int4.contains_key("model.embed_tokens.weight"));
        assert_eq!(int4["model.layers.3.mlp.down_proj.weight"], Format::Int4x128);
        let weight = WeightRef::whole("w");
        let product = || [Use { class: Class::Mlp, transposed: false }];
        let first =
            |shape: &[usize], target| choices(&weight, shape, &product(), target).and_then(|all| all.first().copied());
        assert_eq!(first(&[64, 576], Format::Q4K), Some(Format::Q5_0));
        assert_eq!(first(&[64, 576], Format::Fp8), Some(Format::Fp8));
        assert_eq!(first(&[64, 512], Format::Fp8), Some(Format::Fp8x128));
        assert_eq!(first(&[64, 40], Format::Q4_0), None);
        assert_eq!(first(&[15, 64], Format::Q4_0), None);
        let turned = [Use { class: Class::Mlp, transposed: true }];
        assert_eq!(choices(&weight, &[64, 64], &turned, Format::Q4_0), None);
    }

    #[test]
    fn routers_and_tables_of_positions_stay() {
        let mixture = quantised(&described("qwen3_moe"), Format::Q4_0).expect("it is made");
        assert!(!mixture.contains_key("model.layers.0.mlp.gate.weight"));
        assert_eq!(mixture["model.layers.0.mlp.experts.7.down_proj.weight"], Format::Q4_0);
        let gpt2 = quantised(&described("gpt2"), Format::Q4_0).expect("it is made");
        assert_eq!(gpt2.keys().collect::<Vec<_>>(), ["transformer.wte.weight"]);
        let said = quantised(&described("llama"), Format::Iq4Xs).unwrap_err().to_string();
        assert_eq!(
            said,
            "nothing quantises weights to iq4_xs: give one of q8_0, q6_k, q5_k, q5_1, q5_0, q4_k, q4_1, q4_0, mxfp4, fp8_128, fp8, int8_128, int4_128, f16 or bf16"
        );
    }
}
