//! What a tuning record does to plans, sources and artifacts.

use fusec::compile::{CompileOptions, Model, artifact, compile};
use fusec::description::{Description, find_for};
use fusec::plan::kernels::{Combine, Heads, KernelSpec};
use fusec::plan::tuning::{AttentionTuning, MatvecTuning};
use fusec::plan::{Launch, Plan, PlanOptions, StepKind, Tuning};

/// Llama-3.2-1B's gate and up at batch 1.
fn gate_up() -> MatvecTuning {
    let kind = "norm_matvec_gated".to_owned();
    MatvecTuning {
        kind,
        k: 2048,
        tiles: 1024,
        batch: 1,
        warps: 16,
        depth: 4,
        blocks: 1,
        us: 1.0,
        default_us: 2.0,
        ..MatvecTuning::default()
    }
}

/// And its attention.
fn attention() -> AttentionTuning {
    let (heads, key_heads, head_dim, window, batch) = (32, 8, 64, 0, 1);
    AttentionTuning {
        heads,
        key_heads,
        head_dim,
        window,
        batch,
        warps: 4,
        keys: 96,
        us: 1.0,
        default_us: 2.0,
        ..AttentionTuning::default()
    }
}

fn record(matvec: Option<MatvecTuning>, attention: Option<AttentionTuning>) -> Tuning {
    let mut tuning = Tuning { arch: "sm_90a".into(), gpu: "a GPU".into(), ..Tuning::default() };
    matvec.into_iter().for_each(|entry| tuning.set_matvec(entry));
    attention.into_iter().for_each(|entry| tuning.set_attention(entry));
    tuning
}

fn model(tuning: Tuning) -> Model {
    let (file, text) = find_for(&["LlamaForCausalLM"]).expect("it is shipped");
    let description = Description::parse(text, file).expect("a shipped description");
    let plan = PlanOptions { batches: vec![1, 2], prompts: vec![32], tuning, clusters: true, ..PlanOptions::default() };
    compile(&description, None, &CompileOptions { plan, ..CompileOptions::default() }).expect("it compiles")
}

/// Stem, spec and blocks of each launch of a decode step.
fn launches(plan: &Plan, batch: usize) -> Vec<(String, &KernelSpec, u32)> {
    let step = plan.step(StepKind::Decode { batch }).expect("a decode step");
    let spec = |launch: usize| &plan.kernels[launch].spec;
    step.launches
        .iter()
        .map(|launch| (spec(launch.kernel).family().stem(), spec(launch.kernel), launch.grid[0]))
        .collect()
}

#[test]
fn an_entry_shapes_the_products_of_its_key_and_no_others() {
    let (rules, tuned) = (model(Tuning::default()), model(record(Some(gate_up()), None)));
    let mut changed = 0;
    for (before, after) in launches(&rules.plan, 1).into_iter().zip(launches(&tuned.plan, 1)) {
        assert_eq!(before.0, after.0, "stems stay");
        if let (KernelSpec::Matvec(old), KernelSpec::Matvec(new)) = (before.1, after.1)
            && old.kind() == "norm_matvec_gated"
        {
            assert_eq!((new.warps, new.depth, after.2), (16, 4, 128), "1024 row tiles in 8 turns");
            assert_ne!((old.warps, old.depth, before.2), (16, 4, 128));
            changed += 1;
        } else {
            assert_eq!(before, after);
        }
    }
    assert_eq!(changed, 16, "one a layer");
    assert_eq!(launches(&rules.plan, 2), launches(&tuned.plan, 2), "another batch has the heuristics' shape");
    assert_eq!(rules.plan.weights, tuned.plan.weights, "weights are packed alike");
}

#[test]
fn an_entry_shapes_an_attention_and_what_combines_its_splits() {
    let two_clusters = AttentionTuning { splits: Some(8), merged: Some(4), held: Some(2), ..attention() };
    let tuned = model(record(None, Some(two_clusters)));
    let mut seen = (0, 0);
    for (_, spec, _) in launches(&tuned.plan, 1) {
        match spec {
            KernelSpec::Attention(spec) => {
                let Heads { warps, splits, held, .. } = spec.attention;
                assert_eq!((warps, splits.keys, splits.max, splits.merged, held), (4, 96, 8, 4, 2));
                seen.0 += 1;
            }
            KernelSpec::Matvec(spec) => {
                if let Some(Combine { splits, .. }) = spec.combine {
                    assert_eq!((splits.keys, splits.left()), (96, 2));
                    seen.1 += 1;
                }
            }
            _ => {}
        }
    }
    assert_eq!(seen, (16, 16));
    let prompts = |model: &Model| {
        let step = model.plan.step(StepKind::Prompt { rows: 32 }).expect("a prompt step").clone();
        step.launches.iter().map(|launch| model.plan.kernels[launch.kernel].clone()).collect::<Vec<_>>()
    };
    assert_eq!(prompts(&tuned), prompts(&model(Tuning::default())), "prompts are not tuned");
}

#[test]
fn an_entry_says_whether_attention_and_projection_are_one_kernel_near_the_beginning() {
    let slices = |tuning: Tuning, batch: usize| -> Vec<(usize, usize)> {
        let plan = model(tuning).plan;
        let near = plan.decode_at(batch, 255);
        assert_eq!(plan.decode_at(batch, 256), StepKind::Decode { batch }, "far from the beginning keys are split");
        let step = plan.step(near).expect("a decode step");
        let spec = |kernel: usize| match &plan.kernels[kernel].spec {
            KernelSpec::AttentionProjection(spec) => Some((spec.cluster, spec.slice)),
            _ => None,
        };
        step.launches.iter().filter_map(|launch| spec(launch.kernel)).collect()
    };
    let entry = |batch, slice| record(None, Some(AttentionTuning { batch, slice, ..attention() }));
    assert_eq!(slices(Tuning::default(), 1), [(8, 9); 16], "128 row tiles over 15 clusters");
    assert!(slices(Tuning::default(), 2).is_empty());
    assert!(slices(entry(1, Some(0)), 1).is_empty());
    assert_eq!(slices(entry(1, Some(5)), 1), [(8, 5); 16]);
    assert_eq!(slices(entry(1, None), 1), [(8, 9); 16]);
    assert_eq!(slices(entry(2, Some(8)), 2), [(8, 8); 16]);
    assert!(slices(entry(1, Some(16)), 1).is_empty(), "a slice that no block has room for");
}

#[test]
fn an_entry_says_how_many_rows_a_cluster_takes() {
    let clusters = |near_rows| -> Vec<(usize, [u32; 3])> {
        let entry = AttentionTuning { batch: 2, slice: Some(9), near_rows, ..attention() };
        let plan = model(record(None, Some(entry))).plan;
        let step = plan.step(plan.decode_at(2, 0)).expect("a decode step");
        let of = |launch: &Launch| match &plan.kernels[launch.kernel].spec {
            KernelSpec::AttentionProjection(spec) => Some((spec.batch, launch.grid)),
            _ => None,
        };
        step.launches.iter().filter_map(of).collect()
    };
    assert_eq!(clusters(None), [(2, [8, 15, 1]); 16]);
    assert_eq!(clusters(Some(1)), [(1, [8, 15, 2]); 16]);
    assert_eq!(clusters(Some(3)), clusters(None), "two rows make no clusters of three");
}

#[test]
fn an_entry_says_how_few_keys_are_attended_to() {
    let near = |entry: AttentionTuning| -> Vec<(usize, usize, usize, bool)> {
        let plan = model(record(None, Some(entry))).plan;
        let step = plan.step(plan.decode_at(1, 0)).expect("a decode step");
        let of = |kernel: usize| match &plan.kernels[kernel].spec {
            KernelSpec::Attention(spec) => {
                Some((spec.attention.warps, spec.attention.group, spec.attention.chains, spec.attention.late))
            }
            _ => None,
        };
        step.launches.iter().filter_map(|launch| of(launch.kernel)).collect()
    };
    let two_kernels = AttentionTuning { slice: Some(0), ..attention() };
    assert_eq!(near(two_kernels.clone()), [(8, 1, 2, false); 16]);
    let said = AttentionTuning { near_warps: Some(4), near_group: Some(2), chains: Some(1), late: true, ..two_kernels };
    assert_eq!(near(said.clone()), [(4, 2, 1, true); 16]);
    let unfit = AttentionTuning { near_group: Some(3), ..said };
    assert_eq!(near(unfit), [(4, 1, 1, true); 16], "four query heads share a key head");
}

#[test]
fn an_entry_says_when_addends_are_loaded() {
    let down = |ahead| MatvecTuning { kind: "matvec_add".into(), k: 8192, tiles: 128, ahead, ..gate_up() };
    let ahead = |tuning| {
        let plan = model(tuning).plan;
        let all = launches(&plan, 1).into_iter().filter_map(|(_, spec, _)| match spec {
            KernelSpec::Matvec(spec) if spec.kind() == "matvec_add" && spec.tiles.k == 8192 => Some(spec.ahead),
            _ => None,
        });
        all.collect::<Vec<_>>()
    };
    assert_eq!(ahead(record(Some(down(Some(false))), None)), [false; 16]);
    assert_eq!(ahead(record(Some(down(Some(true))), None)), [true; 16]);
    assert_eq!(ahead(record(Some(down(None)), None)), [true; 16], "the rule at batch 1");
}

#[test]
fn entries_shape_what_experts_have_inside_and_their_sum() {
    let (file, text) = find_for(&["Qwen3MoeForCausalLM"]).expect("it is shipped");
    let description = Description::parse(text, file).expect("a shipped description");
    let shapes = |tuning: Tuning| -> Vec<([usize; 3], u32)> {
        let plan =
            PlanOptions { batches: vec![1], prompts: Vec::new(), tuning, clusters: true, ..PlanOptions::default() };
        let model = compile(&description, None, &CompileOptions { plan, ..CompileOptions::default() });
        let plan = model.expect("it compiles").plan;
        let of = |spec: &KernelSpec| match spec {
            KernelSpec::ExpertsHidden(spec) => Some([spec.warps, spec.depth, 1]),
            KernelSpec::ExpertsSum(spec) => Some([spec.warps, spec.depth, spec.split]),
            _ => None,
        };
        launches(&plan, 1).into_iter().filter_map(|(_, spec, blocks)| Some((of(spec)?, blocks))).take(2).collect()
    };
    assert_eq!(shapes(Tuning::default()), [([8, 8, 1], 256), ([6, 8, 2], 256)]);
    // Of eight experts of 96 row tiles of 64 pairs, and of 128 row tiles of 24 pairs per expert.
    let inside = MatvecTuning { kind: "norm_experts_gated".into(), tiles: 8 * 96, ..gate_up() };
    let sum = MatvecTuning { kind: "experts_sum".into(), k: 8 * 768, tiles: 128, depth: 3, warps: 8, ..gate_up() };
    let mut both = record(Some(inside), None);
    both.set_matvec(sum);
    assert_eq!(shapes(both), [([16, 4, 1], 128), ([8, 3, 1], 128)], "one block per multiprocessor");
}

#[test]
fn the_head_keeps_a_maximum_a_block() {
    let head =
        MatvecTuning { kind: "norm_matvec_sample".into(), tiles: 8016, blocks: 3, depth: 4, warps: 8, ..gate_up() };
    let tuned = model(record(Some(head), None));
    let blocks = launches(&tuned.plan, 1).into_iter().find(|launch| launch.0.contains("sample_f32")).expect("a head").2;
    let maxima = launches(&tuned.plan, 1).into_iter().find_map(|(_, spec, _)| match spec {
        KernelSpec::Sample(spec) => Some(spec.maxima),
        _ => None,
    });
    assert_eq!(maxima, Some(blocks as usize));
    let rules = model(Tuning::default());
    let before = launches(&rules.plan, 1).into_iter().find(|launch| launch.0.contains("sample_f32"));
    assert_ne!(before.expect("a head").2, blocks);
}

#[test]
fn the_record_reaches_the_sources_and_the_artifact() {
    let written = |model: &Model| {
        let arch = "sm_90a".parse().expect("it is supported");
        let artifact = artifact(&[(arch, model)], "", None, None, &Default::default()).expect("sources need nothing");
        (artifact.to_bytes().expect("it can be written"), artifact)
    };
    let rules = model(Tuning::default());
    let unfit = model(record(Some(MatvecTuning { k: 2049, ..gate_up() }), None));
    assert_eq!((&unfit.plan, &unfit.sources), (&rules.plan, &rules.sources), "no product has this key");
    let tuned = model(record(Some(gate_up()), Some(attention())));
    let differ = tuned.sources.iter().filter(|(name, source)| rules.sources.get(*name) != Some(*source)).count();
    // Kernels are kept by their source: the gated product and the attention are made again, the others are not.
    assert_eq!(differ, 2);
    let (bytes, with) = written(&tuned);
    assert_eq!(with.manifest.extra["tuning"]["sm_90a"]["sha256"], tuned.tuning.digest());
    assert_eq!(with.manifest.extra["tuning"]["sm_90a"]["gpu"], "a GPU");
    let (plain, without) = written(&rules);
    assert!(!without.manifest.extra.contains_key("tuning"));
    // Blocks are in no source; the plan and the manifest tell them apart.
    let (other, _) = written(&model(record(Some(MatvecTuning { blocks: 2, ..gate_up() }), Some(attention()))));
    assert!(bytes != plain && bytes != other);
    assert_eq!(written(&tuned).0, bytes, "the same record gives the same file");
}
