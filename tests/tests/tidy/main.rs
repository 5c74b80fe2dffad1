//! The invariants of `docs/architecture.md`, checked in what is committed.

mod arrows;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use arrows::Crate;
use fuse_tests::root;
use fusec::description::{Description, shipped};
use fusec::passes::PIPELINE;

/// A room, which is a folder or a file of sources, and the rooms that it may use.
type Room = (&'static str, &'static [&'static str]);

/// The rooms of the compiler; each stands after those that it uses.
const COMPILER: &[Room] = &[
    ("json", &[]),
    ("output", &[]),
    ("console", &["output"]),
    ("text", &[]),
    ("switches", &["text"]),
    ("threads", &[]),
    ("files", &["json"]),
    ("folder", &["files"]),
    ("description", &["json", "text"]),
    ("draft", &["description"]),
    ("ir", &["threads"]),
    ("lower", &["description", "ir"]),
    ("passes", &["ir", "switches"]),
    ("select", &["ir", "passes", "switches"]),
    ("plan", &["ir", "select"]),
    ("quantised", &["description"]),
    ("build", &["console", "output", "text", "threads"]),
    ("artifact", &["build", "files", "output"]),
    ("tensors", &["description", "ir", "text"]),
    ("classes", &["ir"]),
    ("compile", &["artifact", "build", "classes", "description", "ir", "lower", "passes", "plan", "tensors"]),
    (
        "cli",
        &[
            "artifact",
            "build",
            "classes",
            "compile",
            "console",
            "description",
            "draft",
            "files",
            "folder",
            "ir",
            "output",
            "passes",
            "plan",
            "quantised",
            "select",
            "tensors",
            "text",
            "threads",
        ],
    ),
];

/// The rooms of the runtime, likewise; `fusec::` are rooms of the compiler. None uses its command line.
const RUNTIME: &[Room] = &[
    ("blocks", &["fusec::ir"]),
    ("cache", &[]),
    ("device", &[]),
    ("hub", &["cache", "fusec::files", "fusec::folder", "fusec::output", "fusec::threads"]),
    ("map", &[]),
    ("grammar", &[]),
    ("sampling", &["grammar"]),
    ("slots", &["sampling"]),
    ("cpu", &["blocks", "fusec::classes", "fusec::ir", "fusec::threads"]),
    (
        "weights",
        &[
            "blocks",
            "map",
            "fusec::description",
            "fusec::files",
            "fusec::folder",
            "fusec::ir",
            "fusec::plan",
            "fusec::quantised",
            "fusec::tensors",
            "fusec::text",
            "fusec::threads",
        ],
    ),
    ("generate", &["grammar", "weights", "fusec::files", "fusec::folder", "fusec::json"]),
    (
        "quantise",
        &[
            "blocks",
            "map",
            "weights",
            "fusec::description",
            "fusec::files",
            "fusec::folder",
            "fusec::ir",
            "fusec::threads",
        ],
    ),
    ("serve", &["generate", "grammar", "sampling", "slots"]),
    ("step", &["cache", "device", "sampling", "weights", "fusec::build", "fusec::classes", "fusec::plan"]),
    ("profile", &["step", "fusec::plan", "fusec::text"]),
    (
        "verify",
        &["sampling", "weights", "fusec::compile", "fusec::description", "fusec::files", "fusec::ir", "fusec::lower"],
    ),
    ("demo", &["generate", "weights"]),
    (
        "backend",
        &[
            "cache",
            "cpu",
            "device",
            "grammar",
            "sampling",
            "slots",
            "step",
            "weights",
            "fusec::build",
            "fusec::ir",
            "fusec::plan",
            "fusec::tensors",
        ],
    ),
    (
        "model",
        &[
            "backend",
            "demo",
            "device",
            "generate",
            "hub",
            "weights",
            "fusec::artifact",
            "fusec::build",
            "fusec::classes",
            "fusec::compile",
            "fusec::description",
            "fusec::files",
            "fusec::folder",
            "fusec::ir",
            "fusec::lower",
            "fusec::passes",
            "fusec::plan",
            "fusec::tensors",
        ],
    ),
    ("llm", &["backend", "device", "model", "serve", "slots"]),
    (
        "cli",
        &[
            "backend",
            "cache",
            "cpu",
            "device",
            "generate",
            "grammar",
            "hub",
            "llm",
            "model",
            "profile",
            "quantise",
            "sampling",
            "serve",
            "slots",
            "step",
            "verify",
            "fusec::artifact",
            "fusec::build",
            "fusec::classes",
            "fusec::console",
            "fusec::ir",
            "fusec::output",
            "fusec::passes",
            "fusec::plan",
        ],
    ),
];

/// Where code that the compiler cannot check may stand.
const UNCHECKED: &[&str] = &[
    "runtime/src/device/",
    "runtime/src/cpu/",
    "runtime/src/map.rs",
    "compiler/src/build/",
    "tests/src/host_build.rs",
    "tests/src/host_driver.rs",
];

/// Lines of a source file at most.
const LONGEST: usize = 600;

/// Files that are to be split. One that is short enough must leave this list.
const TOO_LONG: &[&str] = &[];

/// The only hosts that a committed file may name. A package comes from wherever the reader's client is set to look.
const HOSTS: &[&str] = &[
    "github.com",
    // In the first line of every Git LFS pointer.
    "git-lfs.github.com",
    "huggingface.co",
    "docs.nvidia.com",
    "www.apache.org",
    // The name of the SVG format.
    "www.w3.org",
    "opensource.org",
    "keepachangelog.com",
    "semver.org",
    "rustup.rs",
    "json-schema.org",
    "localhost",
    "127.0.0.1",
];

#[test]
fn rooms_use_each_other_in_one_direction() {
    let mut wrong = Vec::new();
    for (folder, rooms) in [("compiler/src/", COMPILER), ("runtime/src/", RUNTIME)] {
        for (index, (room, allowed)) in rooms.iter().enumerate() {
            let before: Vec<&str> = rooms[..index].iter().map(|(room, _)| *room).collect();
            let known = |used: &str| before.contains(&used) || used.starts_with("fusec::");
            wrong.extend(
                allowed.iter().filter(|used| !known(used)).map(|used| format!("{folder}: {room} stands before {used}")),
            );
        }
        let of = crate_in(folder);
        let arrows = of.arrows();
        let mut used = BTreeSet::new();
        for file in of.files() {
            let room = room_of(&file.path);
            let Some((_, allowed)) = rooms.iter().find(|(name, _)| *name == room) else {
                if !["lib", "main"].contains(&room) {
                    wrong.push(format!("{folder}{}: {room} is no room", file.path));
                }
                continue;
            };
            let inside = arrows[file.path.as_str()].iter().map(|(to, name)| (room_of(to).to_owned(), name.clone()));
            let of_compiler = file.paths.iter().filter(|path| path[0] == "fusec");
            let outside = of_compiler.map(|path| (path[..2].join("::"), path.join("::")));
            for (other, name) in inside.chain(outside).filter(|(other, _)| other != room) {
                used.insert((room, other.clone()));
                if !allowed.contains(&other.as_str()) {
                    wrong.push(format!("{folder}{}: {room} uses {other}: {name}", file.path));
                }
            }
        }
        for (room, allowed) in rooms {
            let idle = allowed.iter().filter(|other| !used.contains(&(*room, other.to_string())));
            wrong.extend(idle.map(|other| format!("{folder}: {room} may use {other}, and does not")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_use_each_other_in_no_circle() {
    for folder in ["compiler/src/", "runtime/src/", "templates/src/"] {
        let circles = crate_in(folder).circles();
        assert!(circles.is_empty(), "{folder}: {}", circles.join("\n"));
    }
}

#[test]
fn the_compiler_knows_no_device_and_the_step_no_kernel() {
    let manifest = read("compiler/Cargo.toml");
    for package in ["fuserun", "cudarc"] {
        assert!(!manifest.contains(package), "compiler/Cargo.toml depends on {package}");
    }
    for room in ["runtime/src/step/", "runtime/src/profile/"] {
        for (path, text) in sources(room, &["rs"]) {
            assert!(!text.contains("KernelSpec"), "{path} knows what kernels compute");
        }
    }
}

#[test]
fn unchecked_code_stands_in_its_rooms() {
    let keyword = ["un", "safe"].concat();
    let forms = [" {", " fn", " impl", " extern", " trait", "_code)"].map(|form| format!("{keyword}{form}"));
    let mut inside = 0;
    let mut wrong = Vec::new();
    for (path, text) in sources("", &["rs"]) {
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if !forms.iter().any(|form| code.contains(form)) {
                continue;
            }
            if UNCHECKED.iter().any(|room| path.starts_with(room)) {
                inside += 1;
            } else {
                wrong.push(format!("{path}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    assert!(inside > 10, "the rooms were read");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_are_short() {
    let long: BTreeSet<String> = sources("", &["rs", "cu", "cuh", "py"])
        .into_iter()
        .filter(|(_, text)| text.lines().count() > LONGEST)
        .map(|(path, _)| path)
        .collect();
    let known: BTreeSet<String> = TOO_LONG.iter().map(|path| path.to_string()).collect();
    assert_eq!(long, known, "files of more than {LONGEST} lines, and those that TOO_LONG names");
}

#[test]
fn nothing_of_one_machine_is_committed() {
    let folders = ["work", "root", "home", "Users"].map(|name| format!("/{name}/"));
    let mut wrong = Vec::new();
    for path in tracked() {
        // Tensors and other bytes are no text.
        let Ok(text) = fs::read_to_string(root().join(&path)) else { continue };
        for (number, line) in text.lines().enumerate() {
            let mut tell = |what: &str| wrong.push(format!("{path}:{}: {what}", number + 1));
            let absolute = |folder: &String| {
                line.match_indices(folder.as_str())
                    .any(|(at, _)| !line[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || "._-*}~".contains(c)))
            };
            if folders.iter().any(absolute) {
                tell("a folder of one machine");
            }
            for scheme in ["http://", "https://"] {
                for rest in line.split(scheme).skip(1) {
                    let host: String =
                        rest.chars().take_while(|c| c.is_ascii_alphanumeric() || ".-_".contains(*c)).collect();
                    let host = host.trim_end_matches('.');
                    if !host.is_empty() && !HOSTS.contains(&host) {
                        tell(&format!("the host {host}"));
                    }
                }
            }
            if ["index-url", "index_url", "--registry"].iter().any(|word| line.contains(word)) && path != THIS_FILE {
                tell("where packages come from");
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

const THIS_FILE: &str = "tests/tests/tidy/main.rs";

#[test]
fn every_family_is_shipped_and_listed() {
    let listed = read("docs/models.md");
    let files: Vec<String> =
        tracked().into_iter().filter(|path| path.starts_with("models/") && path.ends_with(".toml")).collect();
    let names: Vec<&str> = files.iter().filter_map(|path| path.strip_prefix("models/")).collect();
    assert_eq!(names, shipped().iter().map(|(name, _)| *name).collect::<Vec<_>>(), "models/ and what is in the binary");
    for (name, text) in shipped() {
        let description = Description::parse(text, name).unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(format!("{}.toml", description.name), *name);
        assert!(listed.contains(name), "docs/models.md does not name {name}");
    }
}

#[test]
fn every_tuning_record_is_shipped() {
    let files = tracked().into_iter().filter_map(|path| path.strip_prefix("tuning/").map(str::to_owned));
    let inside = fusec::plan::tuning::shipped().iter().map(|(name, _)| name.to_string());
    assert_eq!(files.collect::<Vec<_>>(), inside.collect::<Vec<_>>(), "tuning/ and what is in the binary");
}

#[test]
fn every_pass_has_cases_on_both_sides() {
    for name in PIPELINE.iter().map(|pass| pass.name) {
        let folder = root().join("compiler/tests/passes").join(name);
        let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let names = entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
        let names: Vec<String> = names.filter(|name| name.ends_with(".ir")).collect();
        for side in ["fires", "not-"] {
            let is_case = |case: &String| case.starts_with(side);
            assert!(names.iter().any(is_case), "{name} has no case {side}*.ir");
        }
    }
}

#[test]
fn the_architecture_names_every_room() {
    let text = read("docs/architecture.md");
    for (folder, rooms) in [("compiler/src/", COMPILER), ("runtime/src/", RUNTIME)] {
        for (room, _) in rooms {
            let is_folder =
                root().join(folder).join(room).is_dir() && !root().join(format!("{folder}{room}.rs")).exists();
            let name = format!("`{folder}{room}{}`", if is_folder { "/" } else { ".rs" });
            assert!(text.contains(&name), "docs/architecture.md does not name {name}");
        }
    }
}

/// The crate whose sources are in a folder.
fn crate_in(folder: &str) -> Crate {
    let below = |(path, text): (String, String)| (path.strip_prefix(folder).unwrap_or(&path).to_owned(), text);
    Crate::read(sources(folder, &["rs"]).into_iter().map(below))
}

/// The room of a file: its first folder, or its own name.
fn room_of(path: &str) -> &str {
    path.split('/').next().unwrap_or(path).trim_end_matches(".rs")
}

/// Path and text of each committed file below `folder` with one of these extensions.
fn sources(folder: &str, extensions: &[&str]) -> Vec<(String, String)> {
    let wanted = |path: &String| {
        let extension = Path::new(path).extension().and_then(|extension| extension.to_str());
        path.starts_with(folder) && extension.is_some_and(|extension| extensions.contains(&extension))
    };
    let found: Vec<_> = tracked().into_iter().filter(wanted).map(|path| (path.clone(), read(&path))).collect();
    assert!(!found.is_empty(), "{folder} holds sources");
    found
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// What git tracks and is there, sorted; in a tree without git, everything but build folders.
fn tracked() -> Vec<String> {
    let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output();
    let mut paths: Vec<String> = match listed {
        Ok(output) if output.status.success() && !output.stdout.is_empty() => {
            let text = String::from_utf8(output.stdout).expect("paths are text");
            text.split_terminator('\0').map(str::to_owned).collect()
        }
        _ => files_below(Path::new("")),
    };
    paths.retain(|path| root().join(path).is_file());
    paths.sort();
    paths
}

fn files_below(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root().join(folder)).expect("a folder of the tree").flatten() {
        let path = folder.join(entry.file_name());
        let text = path.to_string_lossy().into_owned();
        if [".git", ".cache", "target"].contains(&text.as_str()) || text.contains("__pycache__") {
            continue;
        }
        if entry.path().is_dir() { found.extend(files_below(&path)) } else { found.push(text) }
    }
    found
}
