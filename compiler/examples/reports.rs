//! Prints what the assembler says of each kernel of a description, for one architecture.
use fusec::{build::*, compile::*, description::*};
fn main() -> anyhow::Result<()> {
    let path = std::env::args().nth(1).expect("MODEL.toml");
    let arch: Arch = std::env::args().nth(2).unwrap_or("sm_90a".into()).parse()?;
    let text = std::fs::read_to_string(&path)?;
    let description = Description::parse(&text, &path).map_err(|d| anyhow::anyhow!("{d}"))?;
    let model = compile(&description, None, &CompileOptions::default())?;
    println!("{}", model.plan.summary());
    let nvrtc = Nvrtc::find()?;
    let t = std::time::Instant::now();
    for (name, kernel) in compile_all(nvrtc, &model.sources, arch, &Options::default())? {
        let r = kernel.report.kernel(&name);
        println!("{name}: {r:?}");
    }
    println!("{:?}", t.elapsed());
    for step in &model.plan.steps {
        println!("{:?} {}", step.kind, step.launches.len());
    }
    Ok(())
}
