//! Models with layers that keep a state.

use anyhow::Result;
use fusec::passes::Selection;

use crate::{Case, check};

#[test]
fn lfm2() -> Result<()> {
    check(&Case::new("lfm2"))
}

#[test]
fn lfm2_with_biases() -> Result<()> {
    check(&Case::new("lfm2-bias"))
}

#[test]
fn lfm2_unfused() -> Result<()> {
    check(&Case { passes: Selection::none(), variant: " unfused", ..Case::new("lfm2") })
}

#[test]
fn qwen3_5() -> Result<()> {
    check(&Case::new("qwen3_5"))
}

#[test]
fn qwen3_5_text() -> Result<()> {
    check(&Case::new("qwen3_5-text"))
}

#[test]
fn qwen3_5_moe() -> Result<()> {
    check(&Case { routed: true, ..Case::new("qwen3_5_moe") })
}

#[test]
fn qwen3_next() -> Result<()> {
    check(&Case { routed: true, ..Case::new("qwen3_next") })
}

#[test]
fn qwen3_next_unfused() -> Result<()> {
    check(&Case { passes: Selection::none(), routed: true, variant: " unfused", ..Case::new("qwen3_next") })
}

#[test]
fn bamba() -> Result<()> {
    check(&Case::new("bamba"))
}

#[test]
fn falcon_h1() -> Result<()> {
    check(&Case::new("falcon_h1"))
}

#[test]
fn granitemoehybrid() -> Result<()> {
    check(&Case { routed: true, ..Case::new("granitemoehybrid") })
}

#[test]
fn granitemoehybrid_dense() -> Result<()> {
    check(&Case::new("granitemoehybrid-dense"))
}

#[test]
fn nemotron_h() -> Result<()> {
    check(&Case { routed: true, ..Case::new("nemotron_h") })
}

#[test]
fn nemotron_h_unfused() -> Result<()> {
    check(&Case { passes: Selection::none(), routed: true, variant: " unfused", ..Case::new("nemotron_h") })
}
