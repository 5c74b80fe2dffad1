//! Plans as text: whole, where kernels are known by their numbers alone, and for readers.

use std::fmt::Write;

use fusec::compile::Model;
use fusec::ir::Format;
use fusec::plan::{Arg, Launch, Plan, Recipe, StateLayout, Step, StepKind};
use sha2::{Digest, Sha256};

/// The sources of a model's kernels in the order of the plan, without names and parameters.
pub fn sources(model: &Model) -> String {
    let text = |(index, name): (usize, &String)| format!("==== {index}\n{}\n", anonymous(&model.sources[name], name));
    model.plan.kernels.iter().map(|kernel| &kernel.name).enumerate().map(text).collect()
}

/// `source` with the kernel called `kernel` and no parameters named.
fn anonymous(source: &str, name: &str) -> String {
    let opening = format!(" {name}(");
    let (before, rest) = source.split_once(&opening).unwrap_or_else(|| panic!("{name} is not defined in its source"));
    let (_, body) = rest.split_once(") {").unwrap_or_else(|| panic!("{name} has no body"));
    format!("{before} kernel() {{{body}").replace(name, "kernel")
}

/// The first 12 hexadecimal digits of SHA-256.
pub fn digest(text: &str) -> String {
    Sha256::digest(text).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

/// All that a plan says.
pub fn whole(plan: &Plan) -> String {
    let mut text = buffers(plan);
    let number = |kernel: usize| format!("kernel {kernel}");
    for step in &plan.steps {
        text += &title(step);
        for launch in &step.launches {
            let layer = launch.layer.map_or("outside".to_owned(), |layer| format!("layer {layer}"));
            writeln!(text, "  {layer}: {}", line(plan, launch, &number, [0, 0])).expect("writing to a string");
        }
    }
    text
}

/// The summary, weights and caches by kind, and the steps of one row and of prompts of 128. A layer that is as an earlier one says only that: its weights and
/// caches are counted from its own first ones.
pub fn summary(plan: &Plan) -> String {
    let mut text = format!("{}\n", plan.summary());
    let bytes: usize = plan.weights.iter().map(|weight| weight.bytes).sum();
    writeln!(text, "{} weights, {bytes} bytes; {} caches", plan.weights.len(), plan.states.len())
        .expect("writing to a string");
    let name = |kernel: usize| plan.kernels[kernel].spec.family().stem();
    let near = Some(plan.decode_at(1, 0)).filter(|kind| matches!(kind, StepKind::Near { .. }));
    let decode = StepKind::Decode { batch: 1 };
    for kind in near.into_iter().chain([decode, StepKind::Prompt { rows: 128 }, StepKind::Last { rows: 128 }]) {
        let step = plan.step(kind).expect("the step is planned");
        text += &title(step);
        let mut seen: Vec<(Option<usize>, String)> = Vec::new();
        for part in step.launches.chunk_by(|a, b| a.layer == b.layer) {
            let layer = part[0].layer;
            let lines: String = match layer {
                Some(_) => {
                    part.iter().map(|launch| format!("    {}\n", line(plan, launch, &name, firsts(part)))).collect()
                }
                None => part.iter().map(|launch| format!("    {}\n", line(plan, launch, &name, [0, 0]))).collect(),
            };
            let place = |layer: Option<usize>| layer.map_or("outside".to_owned(), |layer| format!("layer {layer}"));
            match seen.iter().find(|(_, known)| *known == lines) {
                Some((same, _)) => writeln!(text, "  {}: as {}", place(layer), place(*same)),
                None => write!(text, "  {}:\n{lines}", place(layer)),
            }
            .expect("writing to a string");
            seen.push((layer, lines));
        }
    }
    text
}

fn title(step: &Step) -> String {
    let logits = step.logits.map_or(String::new(), |offset| format!(", logits at {offset}"));
    format!("{:?}: {} launches{logits}\n", step.kind, step.launches.len())
}

/// What is packed in another format than most.
fn unless_bf16(format: Format) -> String {
    if format == Format::BF16 { String::new() } else { format!(" as {}", format.name()) }
}

/// Weights by recipe, and caches.
fn buffers(plan: &Plan) -> String {
    let mut text = String::new();
    for (index, weight) in plan.weights.iter().enumerate() {
        let tensors = &weight.name;
        let how = match &weight.recipe {
            Recipe::Tiles { parts, k, gated, transposed, format } => {
                let rows: Vec<usize> = parts.iter().map(|part| part.rows).collect();
                format!("tiles k {k} rows {rows:?} gated {gated} transposed {transposed}{}", unless_bf16(*format))
            }
            Recipe::Experts { parts, k, gated, count, format } => {
                let rows: Vec<usize> = parts.iter().map(|part| part.rows).collect();
                format!("experts {count} k {k} rows {rows:?} gated {gated}{}", unless_bf16(*format))
            }
            Recipe::Biases { parts, gated, experts } => {
                let parts: Vec<(Option<String>, usize)> =
                    parts.iter().map(|(bias, rows)| (bias.as_ref().map(ToString::to_string), *rows)).collect();
                let of = experts.map_or(String::new(), |count| format!(" of {count} experts"));
                format!("biases {parts:?} gated {gated}{of}")
            }
            Recipe::Vector { size, offset_bits, .. } => format!("vector {size} plus {}", f32::from_bits(*offset_bits)),
        };
        writeln!(text, "weight {index}: {tensors}, {how}, {} bytes", weight.bytes).expect("writing to a string");
    }
    for (index, state) in plan.states.iter().enumerate() {
        let layout = match state.layout {
            StateLayout::Positions { heads, padded } => format!("{heads} heads of {padded}"),
            StateLayout::Whole { bytes } => format!("{bytes} bytes"),
        };
        writeln!(text, "cache {index}: {}, {layout}", state.name).expect("writing to a string");
    }
    text
}

/// The first weight and the first cache of these launches.
fn firsts(launches: &[Launch]) -> [usize; 2] {
    let args = || launches.iter().flat_map(|launch| &launch.args);
    let weight = args().filter_map(|arg| if let Arg::Weight(index) = arg { Some(*index) } else { None }).min();
    let cache = args().filter_map(|arg| if let Arg::State(index) = arg { Some(*index) } else { None }).min();
    [weight.unwrap_or(0), cache.unwrap_or(0)]
}

/// `norm_matmul = norm_matvec_f32_k64_n32_b1, 256 threads, 8320 shared, grid 132: w0 a512 - 4`, weights and caches counted from `first`.
fn line(plan: &Plan, launch: &Launch, name: &dyn Fn(usize) -> String, [weight, cache]: [usize; 2]) -> String {
    let kernel = &plan.kernels[launch.kernel];
    let args: Vec<String> = launch
        .args
        .iter()
        .map(|arg| match arg {
            Arg::Null => "-".into(),
            Arg::Number(number) => number.to_string(),
            Arg::Context => "context".into(),
            Arg::Weight(index) => format!("w{}", index - weight),
            Arg::State(index) => format!("c{}", index - cache),
            Arg::Arena(offset) => format!("a{offset}"),
            Arg::Io(io, 0) => format!("{io:?}"),
            Arg::Io(io, row) => format!("{io:?}+{row}"),
        })
        .collect();
    let grid: Vec<String> = launch.grid.iter().map(u32::to_string).collect();
    let shared = if kernel.shared_bytes > 0 { format!(", {} shared", kernel.shared_bytes) } else { String::new() };
    let bytes =
        if launch.reads.weights > 0 { format!(", {} bytes of weights", launch.reads.weights) } else { String::new() };
    format!(
        "{} = {}, {} threads{shared}, grid {}{bytes}: {}",
        launch.node,
        name(launch.kernel),
        kernel.threads,
        grid.join(" ").trim_end_matches(" 1"),
        args.join(" ")
    )
}
