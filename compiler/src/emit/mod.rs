//! From a kernel's spec to its CUDA: fills the struct of its template.

use anyhow::{Context, Result};
use askama::Template;
use fuse_templates as templates;
use fuse_templates::Float;

use crate::ir::{Activation, NormKind, Scoring};
use crate::plan::spec::{AttentionSpec, ROUTE_WARPS, ROUTER_COPIES, SAMPLE_WARPS, norm_warps};
use crate::plan::{ElementKind, Kernel, KernelSpec, RING, RopeTable, RouteSpec as Route, Splits, Storage, Tiles};

/// The source of a kernel, whole: it includes nothing.
///
/// # Errors
/// Only if a template fails to render, which no spec causes.
pub fn emit(kernel: &Kernel) -> Result<String> {
    let name = kernel.name.clone();
    let rendered = match &kernel.spec {
        KernelSpec::Matvec(spec) => {
            let (heads, head_dim, split) = spec.combine.unwrap_or((1, 1, Splits { max: 1, keys: 1, window: 0 }));
            templates::Matvec {
                name,
                tiles: tiles(&spec.tiles),
                splits: splits(&split),
                batch: spec.batch,
                warps: spec.warps,
                depth: spec.depth,
                unit: spec.unit,
                split: spec.split,
                norm: if spec.paired { 3 } else { norm(spec.norm) },
                eps: Float(spec.norm.map_or(0.0, |(_, eps)| eps)),
                combine: spec.combine.is_some(),
                staged: spec.is_staged(),
                heads,
                head_dim,
                activation: activation(spec.activation),
                argmax: spec.argmax,
                late: spec.late,
                ahead: spec.ahead,
                router: templates::Router { experts: spec.router.unwrap_or(0), copies: ROUTER_COPIES },
            }
            .render()
        }
        KernelSpec::Matmul(spec) => templates::Matmul {
            name,
            tiles: tiles(&spec.tiles),
            row_tiles: spec.row_tiles,
            columns: spec.columns,
            row_warps: spec.row_warps,
            split: spec.split,
            paired: spec.paired,
            activation: activation(spec.activation),
            experts: spec.gather.map_or(0, |gather| gather.experts),
            top_k: spec.gather.map_or(0, |gather| gather.top_k),
            by_pair: spec.gather.is_some_and(|gather| gather.by_pair),
        }
        .render(),
        KernelSpec::Attention(spec) => templates::Attention {
            name,
            splits: splits(&spec.splits),
            rope: spec.rope.as_ref().map_or_else(templates::Rope::none, rope),
            attention: heads(spec),
            out_type: storage(spec.out),
        }
        .render(),
        KernelSpec::AttentionRows(spec) => templates::AttentionRows {
            name,
            heads: spec.heads,
            key_heads: spec.key_heads,
            head_dim: spec.head_dim,
            window: spec.window,
            scale: Float(spec.scale),
            softcap: Float(spec.softcap.unwrap_or(0.0)),
            sinks: spec.sinks,
            row_warps: spec.row_warps,
            parts: spec.parts,
            keys: spec.keys,
            out_type: storage(spec.out),
        }
        .render(),
        KernelSpec::AttentionProjection(spec) => templates::AttentionProjection {
            name,
            splits: splits(&spec.attention.splits),
            rope: spec.attention.rope.as_ref().map_or_else(templates::Rope::none, rope),
            attention: heads(&spec.attention),
            tiles: tiles(&spec.tiles),
            batch: spec.batch,
            cluster: spec.cluster,
            slice: spec.slice,
        }
        .render(),
        KernelSpec::Route(spec) => templates::RouteRows { name, route: route(spec), warps: ROUTE_WARPS }.render(),
        KernelSpec::ExpertsHidden(spec) => templates::ExpertsHidden {
            name,
            tiles: tiles(&spec.products.tiles),
            route: route(&spec.products.route),
            batch: spec.products.batch,
            copies: copies(spec.products.summed),
            warps: spec.products.warps,
            depth: spec.products.depth,
            norm: spec.norm.is_some(),
            eps: Float(spec.norm.unwrap_or(0.0)),
            activation: activation(Some(spec.activation)),
        }
        .render(),
        KernelSpec::ExpertsSum(spec) => templates::ExpertsSum {
            name,
            tiles: tiles(&spec.tiles),
            route: route(&spec.route),
            batch: spec.batch,
            copies: copies(spec.summed),
            warps: spec.warps,
            depth: spec.depth,
            split: spec.split,
            staged: spec.is_staged(),
            late: spec.late,
        }
        .render(),
        KernelSpec::Embedding(spec) => {
            templates::Embedding { name, tiles: tiles(spec), threads: kernel.spec.threads() }.render()
        }
        KernelSpec::Norm(spec) => templates::Norm {
            name,
            size: spec.size,
            layer: spec.kind == NormKind::Layer,
            eps: Float(spec.eps),
            warps: norm_warps(spec.size),
            paired: spec.paired,
            out_type: storage(spec.out),
        }
        .render(),
        KernelSpec::Rope(spec) => templates::RopeKernel {
            name,
            rope: rope(&spec.table),
            heads: spec.heads,
            head_dim: spec.head_dim,
            threads: kernel.spec.threads(),
        }
        .render(),
        KernelSpec::Append(spec) => templates::Append {
            name,
            rope: spec.rope.as_ref().map_or_else(templates::Rope::none, rope),
            heads: spec.heads,
            key_heads: spec.key_heads,
            head_dim: spec.head_dim,
            norm_q: norm(spec.q_norm),
            norm_k: norm(spec.k_norm),
            eps_q: Float(spec.q_norm.map_or(0.0, |(_, eps)| eps)),
            eps_k: Float(spec.k_norm.map_or(0.0, |(_, eps)| eps)),
            warps: kernel.spec.threads() / 32,
        }
        .render(),
        KernelSpec::KvAppend { key_heads, head_dim } => {
            templates::KvAppend { name, key_heads: *key_heads, head_dim: *head_dim, threads: kernel.spec.threads() }
                .render()
        }
        KernelSpec::Elementwise { kind, size, out } => {
            let count = if let ElementKind::Sum(count) = *kind { count } else { 1 };
            let (code, factor, function) = match *kind {
                ElementKind::Add => (0, 0.0, None),
                ElementKind::Mul => (1, 0.0, None),
                ElementKind::Scale(factor) => (2, factor, None),
                ElementKind::Softcap(cap) => (3, cap, None),
                ElementKind::Activate(function) => (4, 0.0, Some(function)),
                ElementKind::Clamp(limit) => (5, limit, None),
                ElementKind::Glu { per_row: false } => (6, 0.0, None),
                ElementKind::Glu { per_row: true } => (7, 0.0, None),
                ElementKind::Sum(_) => (8, 0.0, None),
            };
            templates::Elementwise {
                name,
                kind: code,
                activation: activation(function),
                factor: Float(factor),
                count,
                size: *size,
                threads: kernel.spec.threads(),
                out_type: storage(*out),
            }
            .render()
        }
        KernelSpec::Sample { vocabulary, maxima, cluster } => templates::Sample {
            name,
            vocabulary: *vocabulary,
            maxima: *maxima,
            warps: SAMPLE_WARPS,
            cluster: *cluster,
            ring: RING,
        }
        .render(),
    };
    rendered.with_context(|| format!("the template of {} does not render", kernel.name))
}

/// Threads a block of [`read_kernel`], and 16-byte loads a thread has in flight.
pub const READ_SHAPE: (usize, usize) = (512, 8);

/// The source of a kernel `read` that reads memory and nothing else.
pub fn read_kernel() -> Result<String> {
    let (threads, unroll) = READ_SHAPE;
    templates::Read { name: "read".into(), threads, unroll }.render().context("the template of read does not render")
}

fn tiles(spec: &Tiles) -> templates::Tiles {
    let row = |output: usize| spec.rows.get(output).copied().unwrap_or(0);
    templates::Tiles {
        k: spec.k,
        outputs: spec.rows.len(),
        rows: [row(0), row(1), row(2)],
        gated: spec.gated,
        out_type: storage(spec.out),
    }
}

fn route(spec: &Route) -> templates::Route {
    templates::Route {
        experts: spec.experts,
        top_k: spec.top_k,
        scoring: match spec.scoring {
            Scoring::Softmax => 0,
            Scoring::Sigmoid => 1,
        },
        biased: spec.biased,
        normalise: spec.normalise,
        scale: Float(spec.scale),
    }
}

fn copies(summed: bool) -> usize {
    if summed { ROUTER_COPIES } else { 0 }
}

fn splits(spec: &Splits) -> templates::Splits {
    templates::Splits { max: spec.max, keys: spec.keys, window: spec.window }
}

fn heads(spec: &AttentionSpec) -> templates::Heads {
    templates::Heads {
        heads: spec.heads,
        key_heads: spec.key_heads,
        head_dim: spec.head_dim,
        group: spec.group,
        warps: spec.warps,
        chains: spec.chains,
        late: spec.late,
        scale: Float(spec.scale),
        softcap: Float(spec.softcap.unwrap_or(0.0)),
        append: spec.append,
        norm: spec.norm.is_some(),
        eps_q: Float(spec.norm.map_or(0.0, |(eps, _)| eps)),
        eps_k: Float(spec.norm.map_or(0.0, |(_, eps_k)| eps_k)),
        sinks: spec.sinks,
    }
}

fn rope(table: &RopeTable) -> templates::Rope {
    templates::Rope::new(&table.frequencies, table.dim, table.interleaved, table.magnitude)
}

fn storage(storage: Storage) -> templates::Storage {
    match storage {
        Storage::F32 => templates::Storage::F32,
        Storage::BF16 => templates::Storage::BF16,
    }
}

/// The number by which templates know a norm.
fn norm(norm: Option<(NormKind, f32)>) -> usize {
    match norm {
        None => 0,
        Some((NormKind::Rms, _)) => 1,
        Some((NormKind::Layer, _)) => 2,
    }
}

/// The number by which `device.cuh` knows an activation.
fn activation(activation: Option<Activation>) -> usize {
    match activation {
        Some(Activation::Silu) => 0,
        Some(Activation::Gelu) => 1,
        Some(Activation::GeluTanh) => 2,
        Some(Activation::Relu) => 3,
        Some(Activation::Relu2) => 4,
        None => 5,
    }
}
