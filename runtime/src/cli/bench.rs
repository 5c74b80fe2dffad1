//! `fuserun bench`.
use anyhow::Result;
#[derive(clap::Args, Debug)]
pub struct BenchArgs {
    #[command(flatten)]
    model: super::ModelArgs,
}
pub fn run(_: &BenchArgs) -> Result<()> {
    Ok(())
}
