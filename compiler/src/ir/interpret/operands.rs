//! The operands of one op.

use anyhow::{Result, ensure};

use super::Tensor;
use crate::ir::{Op, Role};

/// Operands by role.
pub(super) struct Operands<'a> {
    roles: Vec<Role>,
    tensors: &'a [&'a Tensor],
}

impl<'a> Operands<'a> {
    pub(super) fn new(op: &Op, tensors: &'a [&'a Tensor]) -> Result<Operands<'a>> {
        let roles = op.roles();
        ensure!(roles.len() == tensors.len(), "{op} takes {} operands, not {}", roles.len(), tensors.len());
        Ok(Operands { roles, tensors })
    }

    pub(super) fn find(&self, role: Role) -> Option<&'a Tensor> {
        self.roles.iter().position(|known| *known == role).map(|index| self.tensors[index])
    }

    /// The operand of a role that the op has.
    pub(super) fn get(&self, role: Role) -> &'a Tensor {
        self.find(role).expect("the op's roles hold this one")
    }
}
