use fusec::compile::{CompileOptions, compile};
use fusec::description::{Description, find_for};
use fusec::plan::{Reads, StepKind};

use super::*;

/// Llama-3.2-1B's step at depth 511, batch 2, each launch 4 us by itself and 3 us in the step, but the second, which ends with the first.
fn profile() -> Profile {
    let (file, text) = find_for(&["LlamaForCausalLM"]).expect("it is shipped");
    let description = Description::parse(text, file).expect("a shipped description");
    let plan = compile(&description, None, &CompileOptions::default()).expect("it compiles").plan;
    let step = plan.step(StepKind::Decode { batch: 2 }).expect("a step of two");
    let count = step.launches.len();
    let mut ends: Vec<f64> = (1..=count).map(|launch| 3.0 * launch as f64).collect();
    ends[1] = 2.5;
    let times = LaunchTimes { alone: vec![4.0; count], ends, queued: true };
    let mut profile = Profile::new(&plan, step, &times, 2, 511, 4e12);
    (profile.model, profile.device, profile.versions) = ("llama".into(), "a GPU".into(), "driver 1".into());
    profile.check = "passed".into();
    profile.ncu = command(kernel_named(&profile, None).expect("there are kernels"), "fuserun", &["profile".into()]);
    profile
}

#[test]
fn the_times_add_up_to_the_step() {
    let profile = profile();
    let count = profile.launches.len();
    assert!((profile.step_us - 3.0 * count as f64).abs() < 1e-9);
    assert!((profile.alone_us - 4.0 * count as f64).abs() < 1e-9);
    assert_eq!(profile.edges, count - 1);
    let sum = |value: fn(&KernelTime) -> f64| profile.kernels.iter().map(value).sum::<f64>();
    assert!((sum(|row| row.step_us_total) - profile.step_us).abs() < 1e-9);
    assert!((sum(|row| row.step_percent) - 100.0).abs() < 1e-9);
    assert_eq!(profile.kernels.iter().map(|row| row.launches).sum::<usize>(), count);
    assert!((profile.exposed_us + count as f64).abs() < 1e-9 && profile.exposed_us_per_edge < 0.0);
    assert!(profile.kernels.is_sorted_by(|a, b| a.step_us_total >= b.step_us_total));
    assert_eq!(
        (profile.launches[1].step_us, profile.launches[2].step_us),
        (0.0, 6.0),
        "no launch ends before it starts"
    );
}

#[test]
fn bytes_are_weights_and_the_caches_seen() {
    let profile = profile();
    let attention = profile.kernels.iter().find(|row| row.kernel.contains("append_attention")).expect("attention");
    // Keys and values, two sequences of 512 positions, eight heads of 64 values of two bytes.
    assert!(attention.bytes >= 2 * 2 * 512 * 8 * 64 * 2, "{attention:?}");
    let layers: usize = profile.launches.iter().map(|launch| launch.bytes).sum();
    assert!(layers > 2_471_000_000, "{layers}");
    assert!((profile.floor_us - layers as f64 / 4e6).abs() < 1e-6);
    let row = &profile.kernels[0];
    assert!((row.gigabytes_per_second - row.bytes as f64 / 4e3).abs() < 1e-6);
    assert!((row.ceiling_percent - row.gigabytes_per_second / 40.0).abs() < 1e-6);
    let reads = |window| Reads { weights: 7, per_position: 4 * 8 * 64, window };
    assert_eq!(reads(0).at(99), 7 + 4 * 100 * 8 * 64);
    assert_eq!(reads(16).at(99), 7 + 4 * 16 * 8 * 64, "a window's keys and no more");
    assert_eq!(reads(16).at(7), 7 + 4 * 8 * 8 * 64);
}

#[test]
fn the_table_has_a_row_a_kernel() {
    let profile = profile();
    let text = profile.to_string();
    for row in &profile.kernels {
        let start = format!("\n| {} | {} | 4.00 | ", row.kernel, row.launches);
        assert_eq!(text.matches(&start).count(), 1, "{text}");
    }
    let header = text.lines().find(|line| line.starts_with("| kernel")).expect("a header");
    let columns = header.matches('|').count();
    let rows: Vec<&str> = text.lines().filter(|line| line.starts_with('|')).collect();
    assert_eq!(rows.len(), profile.kernels.len() + 2);
    assert!(rows.iter().all(|row| row.matches('|').count() == columns));
    let count = profile.launches.len();
    let line =
        format!("kernels one by one {}.0 us, the step {}.0 us: overlap hides {count}.0 us, ", 4 * count, 3 * count);
    assert!(text.contains(&line), "{text}");
    assert!(text.ends_with("$' --launch-count 1 fuserun profile\n"), "{text}");
    assert!(!text.contains("were not queued"));
    let unready = Profile { queued: false, exposed_us: 5.0, exposed_us_per_edge: 0.5, ..profile };
    assert!(unready.to_string().contains("were not queued"));
    assert!(unready.to_string().contains("between them show 5.0 us, 0.50 us for each"));
}

#[test]
fn the_timeline_has_one_event_a_launch_and_nests() {
    let profile = profile();
    let trace = profile.trace();
    let events = trace["traceEvents"].as_array().expect("events");
    let of = |category: &str| events.iter().filter(|event| event["cat"] == category).collect::<Vec<_>>();
    let launches = of("kernel");
    assert_eq!(launches.len(), profile.launches.len());
    let mut end = 0.0;
    for (event, launch) in launches.iter().zip(&profile.launches) {
        assert_eq!((event["ph"].as_str(), event["pid"].as_u64()), (Some("X"), Some(1)));
        let (start, duration) = (event["ts"].as_f64().expect("a time"), event["dur"].as_f64().expect("a duration"));
        assert!(start >= end - 1e-9 && duration >= 0.0, "launches of one track do not overlap");
        end = start + duration;
        assert_eq!(event["args"]["kernel"], launch.kernel.as_str());
        assert_eq!(event["args"]["bytes"], launch.bytes);
        assert_eq!(event["args"]["layer"], serde_json::json!(launch.layer));
        assert!(event["args"]["GB/s"].is_number());
    }
    assert!((end - profile.step_us).abs() < 1e-6);
    let layers = of("layer");
    assert_eq!(layers.len(), 16);
    assert_eq!((&layers[3]["name"], &layers[3]["args"]["launches"]), (&"layer 3".into(), &5.into()));
    let text = trace.to_string();
    assert_eq!(serde_json::from_str::<serde_json::Value>(&text).expect("JSON"), trace);
}

#[test]
fn the_ncu_line_runs_the_same_profile_without_its_outputs() {
    let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<String>>();
    let arguments = words(
        "profile -m my_model.toml --dummy-weights --trace=a.json --depth 32 --json --kernel k --trace b.json --batch 2",
    );
    let line = command("matvec_k8", "/opt/fuserun", &arguments);
    assert_eq!(
        line,
        "ncu --set full --clock-control none --kernel-name 'regex:^matvec_k8$' --launch-count 1 \
         /opt/fuserun profile -m my_model.toml --dummy-weights --depth 32 --batch 2"
    );
    let line = command("k", "fuse run", &["-m".into(), "it's".into(), String::new()]);
    assert!(line.ends_with(r"'fuse run' -m 'it'\''s' ''"), "{line}");
}

#[test]
fn a_kernel_that_the_step_does_not_launch_is_refused() {
    let profile = profile();
    let largest = profile.kernels[0].kernel.as_str();
    assert_eq!(kernel_named(&profile, None).expect("the largest"), largest);
    assert_eq!(kernel_named(&profile, Some(largest)).expect("by name"), largest);
    let wrong = format!("{largest}x");
    let error = kernel_named(&profile, Some(&wrong)).expect_err("no such kernel").to_string();
    assert!(error.starts_with(&format!("the step has no kernel `{wrong}`; did you mean `")), "{error}");
}
