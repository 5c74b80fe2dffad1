//! Whole plans on the host: every launch of every step through the emitted kernels, with the checks of `host_build`, against golden logits.
//! No GPU needed. Buffers begin as NaN where a device has zeros: whatever is read before it is written shows.

mod engine;
mod hybrids;

use anyhow::{Context, Result, ensure};
use fuse_tests::checked::Checked;
use fuse_tests::host_build::HARNESS;
use fuse_tests::{Golden, goldens, nmse, without_layout};
use fusec::passes::Selection;
use fusec::plan::tuning::{AttentionTuning, MatvecTuning};
use fusec::plan::{KernelSpec, Launch, Plan, Replay, StepKind, Tuning};

use engine::{HostEngine, Prepared};

/// With bf16 weights and activations, as on a GPU.
const BOUND: f64 = 1e-4;
/// With routed experts: what rounding does to a logit of the router, it does to a whole expert's share.
const ROUTED_BOUND: f64 = 2e-3;
/// One model and what is done to its plan.
struct Case {
    golden: Golden,
    /// Tokens of the prompt; the rest of its step's rows are idle.
    prompt: usize,
    passes: Selection,
    tuning: Tuning,
    change: fn(&mut Plan),
    /// Its logits are held to the bound of routed experts.
    routed: bool,
    /// Decodes 16 rows at once, most of them idle.
    many: bool,
    /// Planned for sm_90a: clusters, and products by warpgroups.
    hopper: bool,
    /// What tells it from the other cases of its golden.
    variant: &'static str,
    /// In every source.
    mutation: Option<(&'static str, &'static str)>,
}

impl Case {
    fn new(name: &str) -> Case {
        let golden = goldens().into_iter().find(|golden| golden.name == name).expect("the golden is committed");
        let (passes, tuning) = (Selection::all(), Tuning::default());
        let (routed, many, hopper) = (false, false, true);
        Case { golden, prompt: 6, passes, tuning, change: |_| {}, routed, many, hopper, variant: "", mutation: None }
    }
}

/// Prompt and decode steps of one golden; then two sequences, apart and together.
fn run(case: &Case, prepared: Prepared) -> Result<()> {
    let (golden, prompt) = (&case.golden, case.prompt);
    let mut engine = HostEngine::load(prepared)?;
    let vocabulary = golden.vocabulary();
    let expected = |position: usize| &golden.logits[position * vocabulary..(position + 1) * vocabulary];

    let scores = engine.prompt(0, &golden.tokens[..prompt])?;
    let error = nmse(&scores, &golden.logits[..prompt * vocabulary]);
    let bound = if case.routed { ROUTED_BOUND } else { BOUND };
    ensure!(error <= bound, "prompt: NMSE {error:.2e}");
    let mut alone = Vec::new();
    for position in prompt..prompt + 3 {
        let logits = engine.decode(&[(golden.tokens[position], position)])?;
        let error = nmse(&logits, expected(position));
        ensure!(error <= bound, "decode at position {position}: NMSE {error:.2e}");
        alone.push(logits);
    }

    // Another sequence, of other tokens at other positions, beside the first one done again.
    let other = &golden.tokens[20..];
    engine.prompt(0, &other[..prompt - 2])?;
    let other_alone = engine.decode(&[(other[prompt - 2], prompt - 2)])?;
    engine.prompt(0, &golden.tokens[..prompt])?;
    engine.prompt(1, &other[..prompt - 2])?;
    let together = engine.decode(&[(golden.tokens[prompt], prompt), (other[prompt - 2], prompt - 2)])?;
    ensure!(together[..vocabulary] == alone[0], "the first of two sequences has other logits than alone");
    ensure!(together[vocabulary..] == other_alone, "the second of two sequences has other logits than alone");
    let second = engine.decode(&[(golden.tokens[prompt + 1], prompt + 1)])?;
    ensure!(second == alone[1], "a step of two left another cache than a step of one");

    // The form for few keys, if there is one.
    let near = engine.plan.decode_at(1, prompt);
    if matches!(near, StepKind::Near { .. }) {
        engine.prompt(0, &golden.tokens[..prompt])?;
        for position in prompt..prompt + 3 {
            let logits = engine.decode_as(near, &[(golden.tokens[position], position)])?;
            let error = nmse(&logits, expected(position));
            ensure!(error <= bound, "near step at position {position}: NMSE {error:.2e}");
        }
    }
    Ok(())
}

/// Decode steps of many rows: two sequences of one text, one of them ahead, together and apart.
fn run_many(case: &Case, prepared: Prepared) -> Result<()> {
    let (golden, vocabulary) = (&case.golden, case.golden.vocabulary());
    let mut engine = HostEngine::load(prepared)?;
    let kind = StepKind::Decode { batch: 16 };
    let places = [(3, case.prompt), (11, case.prompt - 2)];
    for (row, prompt) in places {
        engine.prompt(row, &golden.tokens[..prompt])?;
    }
    let bound = if case.routed { ROUTED_BOUND } else { BOUND };
    for step in 0..3 {
        let rows = places.map(|(row, prompt)| (row, golden.tokens[prompt + step], prompt + step));
        let together = engine.decode_rows(kind, &rows)?;
        for (row, _, position) in rows {
            let error = nmse(
                &together[row * vocabulary..][..vocabulary],
                &golden.logits[position * vocabulary..][..vocabulary],
            );
            ensure!(error <= bound, "row {row} at position {position}: NMSE {error:.2e}");
        }
        if engine.plan.states.iter().any(|state| state.replay == Replay::Once) {
            continue;
        }
        for row in rows {
            let at = row.0 * vocabulary;
            let alone = engine.decode_rows(kind, &[row])?;
            ensure!(alone[at..][..vocabulary] == together[at..][..vocabulary], "row {} has other logits alone", row.0);
        }
    }
    Ok(())
}

/// The goldens whose plans run each time: one dense, one with experts.
const ALWAYS: [&str; 2] = ["llama-tied", "qwen3_moe"];

/// Runs a case, unless it is recorded with the same plan, sources, weights and golden.
fn check(case: &Case) -> Result<()> {
    let (golden, prepared) = (&case.golden, Prepared::of(case)?);
    if case.variant.is_empty() && ALWAYS.contains(&golden.name.as_str()) {
        return run(case, prepared);
    }
    let texts = [include_str!("main.rs"), include_str!("engine.rs")];
    let plan = serde_json::to_string(&prepared.plan)?;
    let mut parts: Vec<&[u8]> = HARNESS.into_iter().chain(texts).chain([plan.as_str()]).map(str::as_bytes).collect();
    let sources: Vec<String> = prepared.sources.iter().map(|(source, _)| without_layout(source)).collect();
    let weights = prepared.weights.clone();
    parts.extend(sources.iter().map(|source| source.as_bytes()));
    parts.extend(weights.iter().map(|bytes| bytes.as_slice()));
    parts.extend([bytemuck::cast_slice(&golden.tokens), bytemuck::cast_slice(&golden.logits)]);
    let name = format!("{}{}", golden.name, case.variant);
    let run = if case.many { run_many } else { run };
    Checked::of("host_plan").run(&name, &parts, || run(case, prepared)).map(|_| ())
}

#[test]
fn llama_tied() -> Result<()> {
    check(&Case::new("llama-tied"))
}

#[test]
fn llama_tied_unfused() -> Result<()> {
    check(&Case { passes: Selection::none(), variant: " unfused", ..Case::new("llama-tied") })
}

/// With clusters and without, products with whole weights and with blocks, experts, states that are no caches, heads of each width.
#[test]
fn many_rows() -> Result<()> {
    let many = |name| Case { many: true, variant: " in 16 rows", ..Case::new(name) };
    check(&many("llama-tied"))?;
    check(&Case { hopper: false, variant: " in 16 rows without clusters", ..many("llama-tied") })?;
    check(&Case { passes: Selection::none(), variant: " in 16 rows unfused", ..many("llama-tied") })?;
    for name in ["gpt_oss-mxfp4", "qwen3_moe"] {
        check(&Case { routed: true, ..many(name) }).context(name)?;
    }
    for name in ["gemma4", "qwen3", "qwen3_next", "lfm2", "gpt2"] {
        check(&many(name)).context(name)?;
    }
    check(&Case { routed: true, prompt: 13, ..many("deepseek_v2") })
}

/// Attention over several blocks per key head, which such short sequences do not get otherwise.
#[test]
fn llama_tied_in_splits() -> Result<()> {
    let mut tuning = Tuning::default();
    for batch in [1, 2] {
        let (heads, key_heads, head_dim) = (4, 2, 32);
        let (warps, keys) = (8, 2);
        // Two clusters of two, whose results the projection combines.
        let (splits, merged, held) = (Some(4), Some(2), Some(2));
        let entry = AttentionTuning { splits, merged, held, ..AttentionTuning::default() };
        tuning.set_attention(AttentionTuning { heads, key_heads, head_dim, batch, warps, keys, ..entry });
    }
    let change = |plan: &mut Plan| {
        let splits = plan.kernels.iter().filter_map(|kernel| match &kernel.spec {
            KernelSpec::Attention(spec) if spec.attention.splits.max > 1 => Some(spec.attention.splits.keys),
            KernelSpec::Matvec(spec) => spec.combine.map(|combine| combine.splits.keys),
            _ => None,
        });
        assert_eq!(splits.collect::<Vec<usize>>(), [2; 3], "an attention, and its projection of one row and of two");
    };
    check(&Case { tuning, change, variant: " in splits", ..Case::new("llama-tied") })
}

/// Every product and attention of a decode step in a shape of its own.
#[test]
fn llama_tied_tuned() -> Result<()> {
    let mut tuning = Tuning::default();
    for batch in [1, 2] {
        for (kind, k, tiles, warps, depth) in [
            ("norm_matvec", 128, 16, 4, 3),
            ("attention_proj_add", 128, 8, 2, 6),
            ("norm_matvec_gated", 128, 12, 2, 1),
            ("matvec_add", 96, 8, 16, 2),
            ("norm_matvec_sample", 128, 19, 4, 12),
        ] {
            let kind = kind.to_string();
            tuning.set_matvec(MatvecTuning {
                kind,
                k,
                tiles,
                batch,
                warps,
                depth,
                blocks: 1,
                late: k == 128,
                ahead: Some(batch == 2),
                ..MatvecTuning::default()
            });
        }
        let (heads, key_heads, head_dim, window) = (4, 2, 32, 0);
        let (warps, keys) = (2, 3);
        tuning.set_attention(AttentionTuning {
            heads,
            key_heads,
            head_dim,
            window,
            batch,
            warps,
            keys,
            splits: Some(4),
            merged: Some(2),
            near_warps: Some(4),
            near_group: Some(1),
            chains: Some(1),
            late: batch == 2,
            ..AttentionTuning::default()
        });
    }
    let change = |plan: &mut Plan| {
        let decodes = plan.steps.iter().filter(|step| matches!(step.kind, StepKind::Decode { .. }));
        let mut warps =
            decodes.flat_map(|step| &step.launches).filter_map(|launch| match &plan.kernels[launch.kernel].spec {
                KernelSpec::Matvec(spec) => Some(spec.warps),
                KernelSpec::Attention(spec) => Some(spec.attention.warps),
                _ => None,
            });
        assert!(warps.all(|warps| warps != 8), "every entry finds its kernel");
    };
    check(&Case { tuning, change, variant: " tuned", ..Case::new("llama-tied") })
}

/// Latent attention: keys of few values and of more than most kernels hold.
#[test]
fn latent_attention() -> Result<()> {
    check(&Case { routed: true, prompt: 13, ..Case::new("deepseek_v2") })?;
    check(&Case { routed: true, ..Case::new("deepseek_v3") })?;
    check(&Case { routed: true, ..Case::new("glm4_moe_lite") })
}

/// Heads of more values than most kernels hold.
#[test]
fn gemma4() -> Result<()> {
    check(&Case::new("gemma4"))?;
    check(&Case { routed: true, ..Case::new("gemma4-moe") })
}

/// Experts with biases and bounds, in bf16 and in blocks.
#[test]
fn gpt_oss() -> Result<()> {
    check(&Case { routed: true, prompt: 13, ..Case::new("gpt_oss") })?;
    check(&Case { routed: true, ..Case::new("gpt_oss-mxfp4") })
}

/// Attention and projection in one kernel, each row with clusters of its own.
#[test]
fn llama_tied_with_clusters_for_each_row() -> Result<()> {
    let mut tuning = Tuning::default();
    tuning.set_attention(AttentionTuning {
        heads: 4,
        key_heads: 2,
        head_dim: 32,
        batch: 2,
        warps: 4,
        keys: 64,
        slice: Some(3),
        near_rows: Some(1),
        late: true,
        ..AttentionTuning::default()
    });
    let change = |plan: &mut Plan| {
        let step = plan.step(plan.decode_at(2, 0)).expect("a near step");
        let projects =
            |launch: &&Launch| matches!(plan.kernels[launch.kernel].spec, KernelSpec::AttentionProjection(_));
        let grids: Vec<[u32; 3]> = step.launches.iter().filter(projects).map(|launch| launch.grid).collect();
        assert_eq!(grids, [[2, 3, 2]; 2]);
    };
    check(&Case { tuning, change, variant: " with clusters for each row", ..Case::new("llama-tied") })
}

/// Sizes that fill neither pairs nor tiles.
#[test]
fn llama_odd() -> Result<()> {
    check(&Case::new("llama-odd"))
}

/// The prompt and the steps after it reach beyond the window.
#[test]
fn mistral() -> Result<()> {
    check(&Case { prompt: 15, ..Case::new("mistral") })
}

#[test]
fn qwen2() -> Result<()> {
    check(&Case::new("qwen2"))
}

#[test]
fn qwen3() -> Result<()> {
    check(&Case::new("qwen3"))
}

#[test]
fn gemma() -> Result<()> {
    check(&Case::new("gemma"))
}

#[test]
fn gemma2() -> Result<()> {
    check(&Case { prompt: 12, ..Case::new("gemma2") })
}

#[test]
fn gemma3() -> Result<()> {
    check(&Case { prompt: 12, ..Case::new("gemma3") })
}

#[test]
fn gpt2() -> Result<()> {
    check(&Case::new("gpt2"))
}

#[test]
fn gpt_neox() -> Result<()> {
    check(&Case::new("gpt_neox"))
}

#[test]
fn gpt_neox_serial() -> Result<()> {
    check(&Case::new("gpt_neox-serial"))
}

#[test]
fn granite() -> Result<()> {
    check(&Case::new("granite"))
}

#[test]
fn olmo() -> Result<()> {
    check(&Case::new("olmo"))
}

#[test]
fn olmo_clip() -> Result<()> {
    check(&Case::new("olmo-clip"))
}

#[test]
fn olmo2() -> Result<()> {
    check(&Case::new("olmo2"))
}

/// Attention and MLP side by side, of one norm.
#[test]
fn phi() -> Result<()> {
    check(&Case::new("phi"))
}

#[test]
fn phi3() -> Result<()> {
    check(&Case { prompt: 15, ..Case::new("phi3") })
}

#[test]
fn phi3_long() -> Result<()> {
    check(&Case::new("phi3-long"))
}

#[test]
fn smollm3() -> Result<()> {
    check(&Case::new("smollm3"))
}

#[test]
fn stablelm() -> Result<()> {
    check(&Case::new("stablelm"))
}

#[test]
fn stablelm_parallel() -> Result<()> {
    check(&Case::new("stablelm-parallel"))
}

#[test]
fn starcoder2() -> Result<()> {
    check(&Case { prompt: 13, ..Case::new("starcoder2") })
}

#[test]
fn mixtral() -> Result<()> {
    check(&Case { routed: true, ..Case::new("mixtral") })
}

/// A shared expert beside the routed ones, a dense layer between, and shares that are not normalised.
#[test]
fn qwen2_moe() -> Result<()> {
    check(&Case { routed: true, ..Case::new("qwen2_moe") })
}

#[test]
fn qwen3_moe() -> Result<()> {
    check(&Case { routed: true, ..Case::new("qwen3_moe") })
}

/// Experts chosen by sigmoids and a bias, windows on some layers.
#[test]
fn dots1() -> Result<()> {
    check(&Case { routed: true, prompt: 13, ..Case::new("dots1") })
}

/// The same where all experts of a layer are one tensor, and a factor follows them.
#[test]
fn granitemoe() -> Result<()> {
    check(&Case { routed: true, ..Case::new("granitemoe") })
}

#[test]
fn experts_unfused() -> Result<()> {
    for name in ["glm4_moe", "mixtral", "qwen2_moe", "qwen3_moe"] {
        let unfused = Case { routed: true, passes: Selection::none(), variant: " unfused", ..Case::new(name) };
        check(&unfused).context(name)?;
    }
    Ok(())
}

#[test]
fn cohere_windows() -> Result<()> {
    check(&Case { prompt: 13, ..Case::new("cohere-windows") })
}

#[test]
fn falcon() -> Result<()> {
    check(&Case::new("falcon"))
}

/// LayerNorms whose weights are stored less one, a squared ReLU, biases everywhere.
#[test]
fn nemotron() -> Result<()> {
    check(&Case::new("nemotron"))
}

/// Norms of q and k after RoPE.
#[test]
fn hunyuan() -> Result<()> {
    check(&Case::new("hunyuan"))
}

/// Norms after the blocks; RoPE where there is a window.
#[test]
fn exaone4() -> Result<()> {
    check(&Case { prompt: 13, ..Case::new("exaone4") })
}

#[test]
fn glm4() -> Result<()> {
    check(&Case::new("glm4"))
}

#[test]
fn opt() -> Result<()> {
    check(&Case::new("opt"))
}

/// What is said of the first decode step of a case.
fn said(case: Case) -> String {
    let golden = &case.golden;
    let mut engine = HostEngine::load(Prepared::of(&case).expect("it is planned")).expect("the kernels compile");
    match engine.decode(&[(golden.tokens[0], 0)]) {
        Ok(logits) => match nmse(&logits, &golden.logits[..golden.vocabulary()]) {
            error if error <= BOUND => "nothing".into(),
            error => format!("NMSE {error:.2e}"),
        },
        Err(error) => format!("{error:#}"),
    }
}

/// Mistakes that single launches do not show.
#[test]
fn mistakes_among_launches_are_caught() {
    let case = || Case::new("llama-tied");
    assert_eq!(said(case()), "nothing");
    // x, which the launch before makes, by the load that is for weights.
    let mutation = Some(("load_floats<false>(v[r],", "load_floats<true>(v[r],"));
    let streamed = said(Case { mutation, ..case() });
    assert!(streamed.contains("what a kernel of this step writes"), "{streamed}");
    // A result in the place of what other blocks of its launch still read.
    let change = |plan: &mut Plan| {
        for launch in plan.steps.iter_mut().flat_map(|step| &mut step.launches) {
            let spec = &plan.kernels[launch.kernel].spec;
            if matches!(spec, KernelSpec::Matvec(spec) if spec.norm.is_some()) && launch.grid[0] > 1 {
                let params = spec.family().params();
                let [x, out] =
                    ["x", "out0"].map(|name| params.iter().position(|param| param.name == name).expect(name));
                launch.args[out] = launch.args[x];
            }
        }
    };
    let shared = said(Case { change, ..case() });
    assert!(shared.contains("another block of the launch"), "{shared}");
    // A launch that is left out: its reader finds what the layer before left there.
    let change = |plan: &mut Plan| {
        for step in &mut plan.steps {
            let attention = |kernel: usize| matches!(&plan.kernels[kernel].spec, KernelSpec::Attention(_));
            step.launches.retain(|launch| launch.layer != Some(1) || !attention(launch.kernel));
        }
    };
    let missing = said(Case { change, ..case() });
    assert!(missing.contains("NMSE"), "{missing}");
    // Dependents that may begin before the logits by which they choose are there.
    let late = "wait_for_dependencies();\n  // After the wait: the logits are there before a dependent starts.\n  launch_dependents();";
    let mutation = Some((late, "launch_dependents(), wait_for_dependencies();"));
    let early = said(Case { mutation, ..Case::new("qwen3_moe") });
    assert!(early.contains("by load_settled what may not be written yet"), "{early}");
}
