use super::*;
use crate::build::testing::scratch;
use std::process::Command;

/// All that this room reads of a plan.
const PLAN: &str = r#"{"kernels": [{"name": "norm"}, {"name": "matmul_k64"}]}"#;

fn sample() -> Artifact {
    let text = |text: &str| text.to_owned();
    let report = ResourceReport::default();
    Artifact {
        manifest: Manifest {
            name: text("llama"),
            nvrtc_version: Some(text("13.0")),
            archs: vec![text("sm_90a"), text("sm_80")],
            extra: BTreeMap::from([(text("max_context"), serde_json::json!(4096))]),
            ..Manifest::default()
        },
        graph_text: text("%0 = input : bf16[T, 64]\n"),
        plans: ["sm_90a", "sm_80"].map(|arch| (text(arch), text(PLAN))).into(),
        description_toml: text("schema = 1\n"),
        config_json: text("{\"hidden_size\": 64}"),
        sources: BTreeMap::from([(text("norm"), text("// norm\n")), (text("matmul_k64"), text("// matmul\n"))]),
        cubins: ["sm_90a", "sm_80"]
            .into_iter()
            .flat_map(|arch| {
                ["norm", "matmul_k64"]
                    .map(|name| ((arch.to_owned(), name.to_owned()), format!("{arch} {name}").into_bytes()))
            })
            .collect(),
        reports: BTreeMap::from([(text("sm_90a"), BTreeMap::from([(text("norm"), report)]))]),
    }
}

#[test]
fn what_was_written_is_read() {
    let path = scratch("artifact-round-trip").join("llama.fuse");
    sample().write(&path).unwrap();
    assert_eq!(Artifact::read(&path).unwrap(), sample());
    let files: Vec<_> = path.parent().unwrap().read_dir().unwrap().collect();
    assert_eq!(files.len(), 1, "no partial file is left");
}

#[test]
fn a_pipe_is_written_to_and_stays_a_pipe() {
    let path = scratch("artifact-pipe").join("pipe");
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    let reader = std::thread::spawn({
        let path = path.clone();
        move || std::fs::read(path).unwrap()
    });
    sample().write(&path).unwrap();
    assert_eq!(reader.join().unwrap(), sample().to_bytes().unwrap());
    assert!(!std::fs::metadata(&path).unwrap().is_file());
}

#[test]
fn the_same_contents_give_the_same_bytes_in_sorted_entries() {
    let bytes = sample().to_bytes().unwrap();
    assert_eq!(bytes, sample().to_bytes().unwrap());
    let entries: Vec<String> = zip::ZipArchive::new(std::io::Cursor::new(&bytes))
        .map(|mut zip| (0..zip.len()).map(|i| zip.by_index(i).unwrap().name().unwrap().to_string()).collect())
        .unwrap();
    assert_eq!(
        entries,
        [
            "config.json",
            "cubin/sm_80/matmul_k64.cubin",
            "cubin/sm_80/norm.cubin",
            "cubin/sm_90a/matmul_k64.cubin",
            "cubin/sm_90a/norm.cubin",
            "description.toml",
            "graph.txt",
            "manifest.json",
            "plan/sm_80.json",
            "plan/sm_90a.json",
            "reports/sm_90a.json",
            "src/matmul_k64.cu",
            "src/norm.cu"
        ]
    );
}

/// Another reader of zip files agrees: python's, since `unzip` is not everywhere.
#[test]
fn another_program_opens_it() {
    let path = scratch("artifact-other-reader").join("llama.fuse");
    sample().write(&path).unwrap();
    let program = "import sys, zipfile; z = zipfile.ZipFile(sys.argv[1]); assert z.testzip() is None; print(z.read('graph.txt').decode(), end='')";
    let output = Command::new("python3").args(["-c", program]).arg(&path).output().unwrap();
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        sample().graph_text,
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn sources_only_is_an_artifact() {
    let mut artifact = sample();
    artifact.manifest.archs.clear();
    artifact.cubins.clear();
    let read = Artifact::from_bytes(&artifact.to_bytes().unwrap()).unwrap();
    let (arch, plan) = read.plan_for(9, 0).unwrap();
    assert_eq!((arch.to_string().as_str(), plan, read.cubins_for(arch).len()), ("sm_90a", PLAN, 0));
}

#[test]
fn a_device_gets_the_best_code_that_runs_on_it() {
    let artifact = sample();
    let (arch, _) = artifact.plan_for(9, 0).unwrap();
    assert_eq!((arch.to_string().as_str(), artifact.cubins_for(arch)["norm"]), ("sm_90a", &b"sm_90a norm"[..]));
    let (arch, _) = artifact.plan_for(8, 6).unwrap();
    assert_eq!((arch.to_string().as_str(), artifact.cubins_for(arch).len()), ("sm_80", 2));
    let error = artifact.plan_for(10, 0).unwrap_err().to_string();
    assert_eq!(
        error,
        "`llama` is compiled for sm_80, sm_90a, and this GPU is sm_100: compile it with `--arch sm_100a`"
    );
}

fn error_of(bytes: &[u8]) -> String {
    format!("{:#}", Artifact::from_bytes(bytes).unwrap_err())
}

/// The sample with some of its entries changed or, where the value is none, left out.
fn changed(changes: &[(&str, Option<&str>)]) -> Vec<u8> {
    let mut entries = archive::unpack(&sample().to_bytes().unwrap()).unwrap();
    for (name, contents) in changes {
        match contents {
            Some(contents) => entries.insert((*name).into(), contents.as_bytes().to_owned()),
            None => entries.remove(*name),
        };
    }
    archive::pack(&entries).unwrap()
}

#[test]
fn a_file_that_is_no_artifact_is_one_clear_error() {
    assert!(error_of(b"model weights").starts_with("it is no .fuse file (not a zip), or was cut"));
    assert_eq!(
        error_of(&archive::pack(&BTreeMap::new()).unwrap()),
        "it lacks manifest.json: it is no .fuse file, or was cut"
    );
    for entry in ["graph.txt", "description.toml", "config.json"] {
        assert_eq!(error_of(&changed(&[(entry, None)])), format!("it lacks {entry}: it is no .fuse file, or was cut"));
    }
    for entry in ["cubin/sm_80/norm.cubin", "plan/sm_80.json", "src/norm.cu"] {
        assert_eq!(error_of(&changed(&[(entry, None)])), format!("it lacks {entry}"));
    }
    let none = [("plan/sm_80.json", None), ("plan/sm_90a.json", None)];
    assert!(error_of(&changed(&none)).starts_with("it lacks plan/ARCH.json"));
    assert!(
        error_of(&changed(&[("cubin/sm_75/norm.cubin", Some(""))]))
            .starts_with("cubin/sm_75/norm.cubin is of no kernel")
    );
    assert!(
        error_of(&changed(&[("plan/sm_80.json", Some("?"))])).starts_with("its plan/sm_80.json is not as expected")
    );
    assert!(
        error_of(&changed(&[("reports/sm_80.json", Some("?"))]))
            .starts_with("its reports/sm_80.json is not as expected")
    );
    assert!(
        error_of(&changed(&[("manifest.json", Some("{}"))])).starts_with("its manifest.json has no format_version")
    );
}

#[test]
fn another_format_is_refused_and_a_note_beside_is_not() {
    let version = FORMAT_VERSION + 1;
    let later =
        changed(&[("manifest.json", Some(&format!("{{\"format_version\": {version}, \"shape\": \"unknown\"}}")))]);
    let expected = format!(
        "its format is version {version}, and this program reads version {FORMAT_VERSION}: compile the model again"
    );
    assert_eq!(error_of(&later), expected);
    assert_eq!(Artifact::from_bytes(&changed(&[("notes.txt", Some("mine"))])).unwrap(), sample());
}

#[test]
fn every_cut_and_every_flipped_byte_is_an_error_or_harmless() {
    let bytes = sample().to_bytes().unwrap();
    for len in 0..bytes.len() {
        assert!(Artifact::from_bytes(&bytes[..len]).is_err(), "cut to {len} bytes");
    }
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x55;
        // Flags and times are not covered by a checksum; contents are.
        if let Ok(read) = Artifact::from_bytes(&flipped) {
            assert_eq!(read.graph_text, sample().graph_text, "byte {at}");
        }
    }
}

#[test]
fn a_name_that_leaves_the_folder_is_refused() {
    let mut artifact = sample();
    artifact.manifest.archs.clear();
    artifact.cubins.clear();
    artifact.sources.insert("../up".into(), String::new());
    assert!(artifact.to_bytes().unwrap_err().to_string().starts_with("`../up` cannot name a file"));
}
