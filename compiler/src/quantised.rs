//! Quantised safetensors: which tensors of a checkpoint are the codes, scales and zero points of which weight. Names and shapes, no values.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};
use safetensors::Dtype;

use crate::description::Quantisation;
use crate::ir::Format;

/// What belongs to a quantised module and that no weight is made of: what activations and caches are rounded with elsewhere.
const UNUSED: &[&str] = &[
    ".input_scale",
    ".input_zero_point",
    ".input_global_scale",
    ".output_scale",
    ".output_zero_point",
    ".k_scale",
    ".v_scale",
    ".k_zero_point",
    ".v_zero_point",
];

/// A tensor as a file's header has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Slowest dimension first.
    pub shape: Vec<usize>,
    /// Its type.
    pub dtype: Dtype,
}

/// A weight that is made of several tensors: `scale · code` with codes that stand for floats, `scale · (code − zero point)` with integers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weight {
    /// Slowest dimension first; rows are all dimensions but the last.
    pub shape: Vec<usize>,
    /// How its rows are given: in blocks that keep each code and scale, or as f32 where there are none such.
    pub format: Format,
    /// The tensor of codes.
    pub codes: String,
    /// What a code is.
    pub kind: Kind,
    /// What it is multiplied by.
    pub scales: Scales,
}

/// What a code stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A float of 8 bits.
    E4m3,
}

/// Where the scales of a weight are: row `r` and column `c` have the one at `r / rows · of_rows + c / columns · of_columns`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scales {
    /// The tensor of them.
    pub tensor: String,
    /// Rows that share one.
    pub rows: usize,
    /// Columns that share one.
    pub columns: usize,
    /// From one run of rows to the next.
    pub of_rows: usize,
    /// From one run of columns to the next.
    pub of_columns: usize,
}

/// What a quantised checkpoint holds.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The quantised weights by the names that they have where they are not quantised.
    pub weights: BTreeMap<String, Weight>,
    /// The tensors that they are made of, and those that belong to them and are not used.
    pub parts: BTreeSet<String>,
}

/// Finds the quantised weights among the tensors of a checkpoint. What is not quantised is left as it is.
///
/// # Errors
/// A tensor that is missing, or of another shape or type than the method gives it.
pub fn find(quantisation: &Quantisation, tensors: &BTreeMap<String, Header>) -> Result<Found> {
    let mut found = Found::default();
    for (name, header) in tensors {
        if UNUSED.iter().any(|end| name.ends_with(end)) {
            found.parts.insert(name.clone());
            continue;
        }
        let mut module = Module { tensors, name: "", parts: vec![name.clone()] };
        let Quantisation::Fp8 { block } = quantisation;
        let made = match name.strip_suffix(".weight") {
            Some(own) if header.dtype == Dtype::F8_E4M3 => {
                module.name = own;
                module.fp8(name, *block)
            }
            _ => continue,
        };
        let weight = made.with_context(|| format!("{name} is quantised"))?;
        found.parts.extend(module.parts);
        found.weights.insert(format!("{}.weight", module.name), weight);
    }
    Ok(found)
}

/// A module with a quantised weight.
struct Module<'a> {
    tensors: &'a BTreeMap<String, Header>,
    name: &'a str,
    /// The tensors that were used.
    parts: Vec<String>,
}

impl<'a> Module<'a> {
    /// A tensor of the module, by the first of these ends that it has.
    fn part(&mut self, ends: &[&str]) -> Option<(String, &'a Header)> {
        let (name, header) = ends.iter().find_map(|end| self.tensors.get_key_value(&format!("{}.{end}", self.name)))?;
        self.parts.push(name.clone());
        Some((name.clone(), header))
    }

    fn fp8(&mut self, codes: &str, block: Option<[usize; 2]>) -> Result<Weight> {
        let shape = self.tensors[codes].shape.clone();
        let scales = self.scales(&["weight_scale_inv", "weight_scale"], &shape, block, None)?;
        let format = if blocks_of(32, &shape, &scales) { Format::Fp8 } else { Format::F32 };
        Ok(Weight { shape, format, codes: codes.to_owned(), kind: Kind::E4m3, scales })
    }

    /// The scales of a matrix, in the first of these tensors: one for all, one per row, one per block of rows and columns, or one per `group` columns of a row.
    fn scales(
        &mut self,
        ends: &[&str],
        shape: &[usize],
        block: Option<[usize; 2]>,
        group: Option<usize>,
    ) -> Result<Scales> {
        let &[rows, columns] = shape else { bail!("it has the shape {shape:?}, and only matrices are read") };
        let (tensor, header) = self.part(ends).with_context(|| {
            let names: Vec<String> = ends.iter().map(|end| format!("{}.{end}", self.name)).collect();
            format!("there is no {}: download the checkpoint again", names.join(" or "))
        })?;
        let of = |rows: usize, columns: usize, of_rows: usize| {
            Ok(Scales { tensor: tensor.clone(), rows, columns, of_rows, of_columns: 1 })
        };
        ensure!(is_scale(header.dtype), "its {tensor} is of {:?}, which no scale is", header.dtype);
        let in_group = |columns: usize, size: usize| columns.div_ceil(size.max(1));
        match (&header.shape[..], block) {
            ([] | [1] | [1, 1], _) => of(rows, columns, 0),
            (&[count] | &[count, 1], _) if count == rows => of(1, columns, 1),
            (&[down, across], Some([height, width]))
                if [down, across] == [in_group(rows, height), in_group(columns, width)] =>
            {
                of(height, width, across)
            }
            (&[count, across], None) if count == rows => {
                let size = group.filter(|size| in_group(columns, *size) == across);
                let size = size.or(columns.is_multiple_of(across).then(|| columns / across));
                let size = size.with_context(|| format!("its {tensor} has {across} scales for {columns} columns"))?;
                of(1, size, across)
            }
            (other, _) => bail!("its {tensor} is {other:?}, which does not fit {shape:?}"),
        }
    }
}

/// Whether scales are header in such a type.
fn is_scale(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F8_E8M0)
}

/// Whether rows of such a weight are blocks of so many values, each with one scale.
fn blocks_of(values: usize, shape: &[usize], scales: &Scales) -> bool {
    let columns = shape.last().copied().unwrap_or(0);
    columns.is_multiple_of(values) && (scales.columns >= columns || scales.columns.is_multiple_of(values))
}
