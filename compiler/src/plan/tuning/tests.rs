use super::*;

const RECORD: &str = r#"
arch = "sm_90a"
gpu = "NVIDIA H200"
driver = "13.0"
compiler = "NVRTC 13.0, fusec 0.1.0"

[[matvec]]
kind = "norm_matvec_gated"
k = 2048
tiles = 1024
batch = 1
warps = 16
depth = 4
blocks = 1
us = 750.5
default_us = 766.0

[[attention]]
heads = 32
key_heads = 8
head_dim = 64
window = 0
batch = 1
warps = 4
keys = 64
us = 760.0
default_us = 766.0
"#;

#[test]
fn a_record_is_read_and_written() {
    let tuning = Tuning::parse(RECORD, "r.toml").expect("a sound record");
    assert_eq!((tuning.matvecs.len(), tuning.attentions.len()), (1, 1));
    assert_eq!((tuning.matvecs[0].warps, tuning.matvecs[0].us), (16, 750.5));
    assert!(!tuning.is_empty() && Tuning::default().is_empty());
    let again = Tuning::parse(&tuning.to_string(), "again").expect("what is written can be read");
    assert_eq!(again, tuning);
    assert_eq!(again.digest(), tuning.digest());
    let mut other = tuning.clone();
    other.attentions[0].keys = 128;
    assert_ne!(other.digest(), tuning.digest());
    let odd = Tuning { gpu: "a \"name\"\nof two lines".into(), ..tuning };
    assert_eq!(Tuning::parse(&odd.to_string(), "odd").expect("quoted"), odd);
}

#[test]
fn what_is_no_record_is_refused_with_its_place() {
    let refused = |from: &str, to: &str, parts: &[&str]| {
        assert!(RECORD.contains(from), "{from}");
        let error = format!("{:#}", Tuning::parse(&RECORD.replacen(from, to, 1), "r.toml").expect_err(to));
        for part in ["r.toml"].iter().chain(parts) {
            assert!(error.contains(part), "no `{part}` in: {error}");
        }
    };
    refused("arch = \"sm_90a\"", "", &["missing field `arch`"]);
    refused("warps = 16", "warp = 16", &["line 12", "unknown field `warp`", "`warps`"]);
    refused("warps = 16", "warps = \"many\"", &["line 12", "warps"]);
    refused(
        "warps = 16",
        "warps = 12",
        &["norm_matvec_gated, k 2048, 1024 row tiles, batch 1", "12 warps are not one of"],
    );
    refused("depth = 4", "depth = 0", &["a depth of 0"]);
    refused("blocks = 1", "blocks = 9", &["9 blocks per multiprocessor"]);
    refused("batch = 1", "batch = 3", &["batch 3 is not one of"]);
    refused("k = 2048", "k = -1", &["r.toml"]);
    refused("keys = 64", "keys = 0", &["heads 32 by 8 of 64, window 0, batch 1", "a split of no keys"]);
    refused("[[matvec]]", "[[matmul]]", &["unknown field `matmul`"]);
    let eight = RECORD.replacen("batch = 1\nwarps = 16", "batch = 8\nwarps = 2", 1);
    let error = format!("{:#}", Tuning::parse(&eight, "r.toml").expect_err("too few threads"));
    assert!(error.contains("2 warps for batch 8"), "{error}");
    let entry = &RECORD[RECORD.find("[[attention]]").expect("an entry")..];
    let error = format!("{:#}", Tuning::parse(&format!("{RECORD}{entry}"), "r.toml").expect_err("twice"));
    assert!(error.contains("it is there twice"), "{error}");
}

#[test]
fn an_entry_replaces_the_one_of_its_key() {
    let mut tuning = Tuning::parse(RECORD, "r.toml").expect("a sound record");
    let entry = tuning.matvecs[0].clone();
    tuning.set_matvec(MatvecTuning { warps: 8, ..entry.clone() });
    assert_eq!(tuning.matvecs, [MatvecTuning { warps: 8, ..entry.clone() }]);
    tuning.set_matvec(MatvecTuning { k: 1024, ..entry.clone() });
    assert_eq!(tuning.matvecs.iter().map(|entry| entry.k).collect::<Vec<_>>(), [1024, 2048], "sorted by key");
    let attention = AttentionTuning { batch: 2, ..tuning.attentions[0].clone() };
    tuning.set_attention(attention);
    assert_eq!(tuning.attentions.len(), 2);
    Tuning::parse(&tuning.to_string(), "again").expect("a sound record");
}

#[test]
fn the_record_of_an_architecture_is_found() {
    let named: Vec<TuningSource> =
        ["auto", "none", "a.toml"].iter().map(|text| text.parse().expect("any text is one")).collect();
    assert_eq!(named, [TuningSource::Shipped, TuningSource::None, TuningSource::File("a.toml".into())]);
    assert_eq!(TuningSource::None.record("sm_90a").expect("none"), Tuning::default());
    assert_eq!(TuningSource::Shipped.record("sm_80").expect("none is shipped"), Tuning::default());
    let [old, new] = &TuningSource::Shipped.records(&["sm_80", "sm_90a"]).expect("each its own")[..] else { panic!() };
    assert_eq!((old, new.arch.as_str()), (&Tuning::default(), "sm_90a"));
    for (file, text) in shipped() {
        let tuning = Tuning::parse(text, file).expect("a shipped record");
        assert_eq!(format!("{}.toml", tuning.arch), *file);
        assert_eq!(tuning.to_string(), *text, "it is as it would be written");
        assert!(
            tuning.is_empty() || [&tuning.gpu, &tuning.driver, &tuning.compiler].iter().all(|text| !text.is_empty())
        );
    }
    let absent = TuningSource::File("no/such.toml".into()).record("sm_90a").expect_err("it is not there");
    assert!(absent.to_string().contains("cannot read the tuning record no/such.toml"));
}
