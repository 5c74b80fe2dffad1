//! The rules of matrix products and attention, with all that is fused around them.

use super::terms::{
    Check, Checked, activation, appended, cache, heads, logits, matrix, must, norm_numbers, norm_over, positive,
    result_count,
};
use super::terms::{role_words, rope, same, vector};
use crate::ir::parse::counted;
use crate::ir::{Attention, Epilogue, Matmul, Norm, Role, Type};

pub(super) fn matmul(fused: &Matmul, node: &Checked<'_>) -> Check {
    let weights = fused.biases.len();
    if weights == 0 {
        return Err("a matmul needs a weight".into());
    }
    let products = match fused.epilogue {
        Epilogue::Gate(_) if weights != 2 => {
            return Err(format!("a gate needs two weights, but there {}", are(weights)));
        }
        Epilogue::Gate(_) => 1,
        Epilogue::None | Epilogue::Activate(_) => weights,
    };
    if products > 1 && (fused.residual || fused.sample) {
        let what = if fused.residual { "a residual" } else { "a sample" };
        return Err(format!("{what} goes with one product, but there are {products}"));
    }
    result_count(node, fused.result_count())?;
    let x = node.get(Role::X);
    activation("x", x)?;
    if let Some(norm) = &fused.norm {
        norm_over("x", norm, x, node.find(Role::NormWeight), node.find(Role::NormBias))?;
    }
    if let Epilogue::Gate(_) = fused.epilogue {
        let (gate, up) = (node.get(Role::Weight(0)), node.get(Role::Weight(1)));
        if gate.shape != up.shape {
            return Err(format!("weight 0 is {gate}, but weight 1 is {up}; a gate needs two of one shape"));
        }
    }
    for i in 0..weights {
        let result = &node.results[i.min(products - 1)];
        let result_name = if products == 1 { "the result".into() } else { format!("result {i}") };
        let part = Part { weight: Role::Weight(i), bias: Role::Bias(i), transposed: fused.transposed };
        product(node, &part, ("x", x), (&result_name, result))?;
    }
    if fused.residual {
        residual(node)?;
    }
    if fused.sample {
        logits("the result", &node.results[0])?;
        same("the sampled token", &node.results[1], &Type::tokens())?;
    }
    Ok(())
}

pub(super) fn attention(fused: &Attention, node: &Checked<'_>) -> Check {
    if !fused.append {
        let parts = [
            ("a norm of q", fused.q_norm.is_some()),
            ("a norm of k", fused.k_norm.is_some()),
            ("rope", fused.rope.is_some()),
        ];
        if let Some((part, _)) = parts.into_iter().find(|(_, present)| *present) {
            return Err(format!("{part} is fused, but the step's keys are not appended here"));
        }
    }
    result_count(node, if fused.append { 3 } else { 1 })?;
    let q = node.get(Role::Q);
    let [q_heads, head_dim] = heads("q", q)?;
    let keys = node.get(Role::KeyCache);
    let values = node.find(Role::ValueCache).unwrap_or(keys);
    cache("key cache", keys)?;
    if keys != values {
        return Err(format!("key cache is {keys}, but value cache is {values}; they must be equal"));
    }
    let sizes: Vec<usize> = keys.fixed_sizes().collect();
    let [kv_heads, cache_dim] = [sizes[0], sizes[1]];
    if cache_dim != head_dim {
        return Err(format!("q is {q}, but the caches are {keys}: heads of {head_dim} and of {cache_dim} values"));
    }
    if !q_heads.is_multiple_of(kv_heads) {
        return Err(format!("q is {q}, but the caches are {keys}: {q_heads} heads cannot share {kv_heads} evenly"));
    }
    same("positions", node.get(Role::Positions), &Type::tokens())?;
    if let Some(latent) = fused.latent {
        if fused.append {
            return Err("what has no cache of values is not appended here".into());
        }
        if latent == 0 || latent > head_dim {
            return Err(format!("latent is {latent}, but a key has {head_dim} values"));
        }
    }
    if fused.append {
        appended("k", node.get(Role::K), keys)?;
        appended("v", node.get(Role::V), values)?;
        same("the key cache's result", &node.results[1], keys)?;
        same("the value cache's result", &node.results[2], values)?;
    }
    head_norm(node, &fused.q_norm, Role::QNormWeight, head_dim)?;
    head_norm(node, &fused.k_norm, Role::KNormWeight, head_dim)?;
    if let Some(turn) = &fused.rope {
        rope(turn, head_dim)?;
    }
    if let Some(sinks) = node.find(Role::Sinks) {
        vector("sinks", sinks, q_heads, || format!("q is {q}"))?;
    }
    numbers(fused)?;
    let result = &node.results[0];
    let attended = fused.latent.map_or_else(|| q.clone(), |values| Type::activation(&[q_heads, values]));
    let Some(proj) = fused.proj else {
        return must(result, &attended, || "q".into());
    };
    let part = Part { weight: Role::ProjWeight, bias: Role::ProjBias, transposed: proj.transposed };
    let name = if fused.latent.is_some() { "what q attends to" } else { "q" };
    product(node, &part, (name, &attended), ("the result", result))?;
    if proj.residual { residual(node) } else { Ok(()) }
}

/// One weight with its bias.
struct Part {
    weight: Role,
    bias: Role,
    transposed: bool,
}

/// `result = weight · x + bias`, by sizes.
fn product(node: &Checked<'_>, part: &Part, x: (&str, &Type), result: (&str, &Type)) -> Check {
    let ((x_name, x), (result_name, result)) = (x, result);
    let (name, weight) = (role_words(part.weight), node.get(part.weight));
    let [first, second] = matrix(&name, weight)?;
    let (rows, columns) = if part.transposed { (second, first) } else { (first, second) };
    let [rows_word, columns_word] = if part.transposed { ["columns", "rows"] } else { ["rows", "columns"] };
    if x.row_size() != columns {
        let size = x.row_size();
        return Err(format!(
            "{x_name} is {x}, {size} values per token, but {name} is {weight}, {columns} {columns_word}"
        ));
    }
    activation(result_name, result)?;
    if result.row_size() != rows {
        let size = result.row_size();
        return Err(format!(
            "{result_name} is {result}, {size} values per token, but {name} is {weight}, {rows} {rows_word}"
        ));
    }
    match node.find(part.bias) {
        Some(bias) => vector(&role_words(part.bias), bias, rows, || format!("{name} is {weight}")),
        None => Ok(()),
    }
}

fn residual(node: &Checked<'_>) -> Check {
    let (residual, result) = (node.get(Role::Residual), &node.results[0]);
    if residual == result {
        return Ok(());
    }
    Err(format!("residual is {residual}, but the result is {result}; they must be equal"))
}

fn head_norm(node: &Checked<'_>, norm: &Option<Norm>, role: Role, head_dim: usize) -> Check {
    let Some(norm) = norm else {
        return Ok(());
    };
    if norm.bias {
        return Err("a fused norm of q or k has no bias".into());
    }
    if let Some(weight) = node.find(role) {
        vector(&role_words(role), weight, head_dim, || format!("a head has {head_dim} values"))?;
    }
    norm_numbers(norm)
}

fn numbers(fused: &Attention) -> Check {
    if !fused.scale.is_finite() {
        return Err(format!("the scale is {}", fused.scale));
    }
    if fused.window == Some(0) {
        return Err("a window of 0 sees nothing".into());
    }
    fused.softcap.map_or(Ok(()), |cap| positive("softcap", cap))
}

fn are(weights: usize) -> String {
    format!("{} {}", if weights == 1 { "is" } else { "are" }, counted(weights, "weight"))
}
