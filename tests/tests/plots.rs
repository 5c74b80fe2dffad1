//! The plots of docs/performance.md are what their script makes of the figures that stand there.

use std::path::Path;
use std::process::Command;

use fuse_tests::{TempFolder, root};
use serde_json::Value;

const PLOTS: [&str; 2] = ["step-by-depth.svg", "ceiling-by-model.svg"];

fn folder() -> std::path::PathBuf {
    root().join("docs/plots")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn the_plots_are_what_the_script_makes() {
    let made = TempFolder::new();
    let done =
        Command::new("python3").arg(folder().join("plot.py")).arg(made.path()).output().expect("there is a python3");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    for name in PLOTS {
        let same = read(&folder().join(name)) == read(&made.path().join(name));
        assert!(same, "docs/plots/{name} is not what the script makes: run docs/plots/plot.py");
    }
}

#[test]
fn the_plots_show_every_model_and_are_shown() {
    let measured: Value = serde_json::from_str(&read(&folder().join("measured.json"))).unwrap();
    let document = read(&root().join("docs/performance.md"));
    for plot in PLOTS {
        let text = read(&folder().join(plot));
        for model in measured["models"].as_array().unwrap() {
            assert!(text.contains(&format!(">{}</text>", model["name"].as_str().unwrap())), "{plot}");
        }
        assert!(document.contains(&format!("](plots/{plot})")), "docs/performance.md does not show {plot}");
    }
}

/// A figure that was measured again is changed in both places.
#[test]
fn the_plotted_figures_are_those_of_the_tables() {
    let measured: Value = serde_json::from_str(&read(&folder().join("measured.json"))).unwrap();
    let document = read(&root().join("docs/performance.md"));
    let mut rows = 0;
    for model in measured["models"].as_array().unwrap() {
        let name = model["name"].as_str().unwrap();
        let start =
            document.find(&format!("### {name}\n")).unwrap_or_else(|| panic!("docs/performance.md has no {name}"));
        let section = document[start + 4..].split("\n## ").next().unwrap().split("\n### ").next().unwrap();
        let number = |value: &Value| value.as_f64().unwrap();
        let floor = format!("floor {:.1} us", number(&model["floor_us"]));
        assert!(section.contains(&floor), "docs/performance.md, {name}: no `{floor}`");
        for step in model["steps"].as_array().unwrap() {
            let (start, end) = (
                format!("| {} | {} | {:.1} | ", step["batch"], step["depth"], number(&step["us"])),
                format!(" | {:.1} |", number(&step["ceiling_percent"])),
            );
            let found = section.lines().any(|line| line.starts_with(&start) && line.ends_with(&end));
            assert!(found, "docs/performance.md, {name}: no row `{start}…{end}`");
            rows += 1;
        }
    }
    assert!(rows > 10, "{rows} rows were compared");
}
