//! Quantised safetensors: which tensors of a checkpoint are the codes, scales and zero points of which weight. Names and shapes, no values.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};
use safetensors::Dtype;

use crate::description::{Group, Quantisation};
use crate::ir::Format;

/// What belongs to a quantised module and that no weight is made of: what activations and caches are rounded with elsewhere.
const UNUSED: &[&str] = &[
    ".activation_scale",
    ".input_scale",
    ".input_scale_ub",
    ".input_zero_point",
    ".input_global_scale",
    ".output_scale",
    ".output_zero_point",
    ".q_scale",
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
    /// Where in it they are.
    pub layout: Layout,
    /// What a code is.
    pub kind: Kind,
    /// What it is multiplied by.
    pub scales: Scales,
    /// What is taken from an integer before.
    pub zeros: Zeros,
    /// Which columns share a scale, where a tensor tells it.
    pub order: Option<Order>,
    /// A tensor that has the shape.
    pub told: Option<String>,
}

/// Where the codes of a weight are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Row after row, of so many bits each, the lowest of a byte first.
    Rows(usize),
    /// GPTQ: in words of 32 bits a row's next columns, the lowest first; words of all rows side by side.
    Columns(usize),
    /// AWQ: in words of 32 bits one column of eight rows, in the order 0, 2, 4, 6, 1, 3, 5, 7.
    Awq,
}

/// What a code stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A float of 8 bits.
    E4m3,
    /// A float of 4 bits.
    E2m1,
    /// An integer of so many bits, from 0 on.
    Integer(usize),
    /// An integer of 8 bits with its sign.
    Signed,
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
    /// A tensor of one number that all are multiplied by, or divided.
    pub factor: Option<(String, bool)>,
}

/// The zero points of a weight, as unsigned integers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Zeros {
    /// One for all.
    All(i32),
    /// Bytes with signs, where the scales are, less this.
    Signed(String, i32),
    /// In words of 32 bits: of each run of columns those of the next rows.
    Packed {
        /// The tensor of them.
        tensor: String,
        /// Bits of each.
        bits: usize,
        /// Words from those of some rows to those of the next.
        of_rows: usize,
        /// Words from one run of columns to the next.
        of_columns: usize,
        /// In AWQ's order; else the lowest first.
        awq: bool,
        /// To be added.
        plus: i32,
    },
}

/// The tensor that tells the run of each column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// Its name.
    pub tensor: String,
    /// Whether it may be any; else columns are in order, and it says the same.
    pub any: bool,
}

/// What a quantised checkpoint holds.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The quantised weights by the names that they have where they are not quantised.
    pub weights: BTreeMap<String, Weight>,
    /// The tensors that they are made of, and those that belong to them and are not used.
    pub parts: BTreeSet<String>,
    /// Biases that may be left over where they are zeros: tools for GPTQ write them for modules that have none.
    pub biases: BTreeSet<String>,
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
        let Some((own, end)) = name.rsplit_once('.') else { continue };
        let mut module = Module { tensors, name: own, codes: name, parts: vec![name.clone()] };
        let mut weight = format!("{own}.weight");
        let made = match (quantisation, end, header.dtype) {
            (Quantisation::Fp8 { block }, "weight", Dtype::F8_E4M3) => module.fp8(*block, None),
            (Quantisation::ModelOpt, "weight", Dtype::F8_E4M3) => module.fp8(None, None),
            (Quantisation::ModelOpt, "weight", Dtype::U8) => module.fp4(),
            (Quantisation::CompressedTensors(groups), "weight", Dtype::F8_E4M3) => module.of(
                groups,
                |group| group.float && group.bits == 8,
                |module, group| module.fp8(group.block, group.group),
            ),
            (Quantisation::CompressedTensors(groups), "weight", Dtype::I8) => {
                module.of(groups, |group| !group.float && group.bits == 8, Module::int8)
            }
            (Quantisation::CompressedTensors(groups), "weight_packed", Dtype::I32) => {
                module.of(groups, |group| !group.float, Module::packed)
            }
            (Quantisation::CompressedTensors(_), "weight_packed", Dtype::U8) => module.fp4(),
            (Quantisation::Awq { group }, "qweight", Dtype::I32) => module.awq(*group),
            (&Quantisation::Gptq { bits, group, symmetric, reordered, less_one }, "qweight", Dtype::I32) => {
                let plus = i32::from(less_one);
                module.gptq(bits, group, symmetric, plus, reordered)
            }
            (Quantisation::Mxfp4, _, Dtype::U8) if name.ends_with("_blocks") => {
                weight = name.trim_end_matches("_blocks").to_owned();
                module.mxfp4()
            }
            _ => continue,
        };
        let made = made.with_context(|| format!("{name} is quantised"))?;
        found.parts.extend(module.parts);
        found.weights.insert(weight, made);
        if let (Quantisation::Gptq { .. }, Some((bias, _))) =
            (quantisation, tensors.get_key_value(&format!("{own}.bias")))
        {
            found.biases.insert(bias.clone());
        }
    }
    Ok(found)
}

/// A module with a quantised weight.
struct Module<'a> {
    tensors: &'a BTreeMap<String, Header>,
    name: &'a str,
    /// The tensor of codes.
    codes: &'a str,
    /// The tensors that were used.
    parts: Vec<String>,
}

impl<'a> Module<'a> {
    /// What the first of these groups makes of it that fits.
    fn of(
        &mut self,
        groups: &[Group],
        such: impl Fn(&Group) -> bool,
        make: impl Fn(&mut Self, &Group) -> Result<Weight>,
    ) -> Result<Weight> {
        let mut made = Err(anyhow::anyhow!("no group of the configuration has such weights"));
        for group in groups.iter().filter(|group| such(group)) {
            if made.is_err() {
                made = make(self, group);
            }
        }
        made
    }

    fn fp8(&mut self, block: Option<[usize; 2]>, group: Option<usize>) -> Result<Weight> {
        let shape = self.matrix()?;
        let scales = self.scales(&["weight_scale_inv", "weight_scale"], shape, block, group)?;
        let fits = |values: usize| blocks_of(values, shape, &scales);
        let format = match (fits(128), fits(32)) {
            (true, _) => Format::Fp8x128,
            (_, true) => Format::Fp8,
            _ => Format::F32,
        };
        Ok(self.weight(shape, format, Layout::Rows(8), Kind::E4m3, scales))
    }

    fn int8(&mut self, group: &Group) -> Result<Weight> {
        let shape = self.matrix()?;
        let scales = self.scales(&["weight_scale"], shape, group.block, group.group)?;
        let weight = self.weight(shape, Format::F32, Layout::Rows(8), Kind::Signed, scales);
        self.with_zeros(weight, 8)
    }

    /// Integers in words, as compressed-tensors has them.
    fn packed(&mut self, group: &Group) -> Result<Weight> {
        let [rows, words] = self.matrix()?;
        let shape = [rows, words * 32 / group.bits];
        let scales = self.scales(&["weight_scale"], shape, None, group.group)?;
        let layout = Layout::Rows(group.bits);
        let mut weight = self.weight(shape, Format::F32, layout, Kind::Integer(group.bits), scales);
        weight.told = self.integers_of("weight_shape", 2)?;
        weight.order = self.integers_of("weight_g_idx", shape[1])?.map(|tensor| Order { tensor, any: true });
        self.with_zeros(weight, group.bits)
    }

    /// A weight of integers with the zero points that compressed-tensors has.
    fn with_zeros(&mut self, mut weight: Weight, bits: usize) -> Result<Weight> {
        let middle = 1 << (bits - 1);
        weight.zeros = match self.part(&["weight_zero_point"]) {
            None => Zeros::All(middle),
            Some((tensor, header)) => match (header.dtype, &header.shape[..]) {
                (Dtype::I8, shape) => {
                    let scales = &self.tensors[&weight.scales.tensor].shape;
                    ensure!(shape == scales, "its {tensor} is {shape:?}, and the scales are {scales:?}");
                    Zeros::Signed(tensor, -middle)
                }
                (Dtype::I32, &[words, across]) if words == (weight.shape[0] * bits).div_ceil(32) => {
                    let (of_rows, of_columns) = (across, 1);
                    Zeros::Packed { tensor, bits, of_rows, of_columns, awq: false, plus: 0 }
                }
                (dtype, shape) => {
                    bail!("its {tensor} is {shape:?} of {dtype:?}, which fits no weight {:?}", weight.shape)
                }
            },
        };
        let symmetric = weight.zeros == Zeros::All(middle);
        weight.format = self.integers(&weight, symmetric);
        Ok(weight)
    }

    fn awq(&mut self, group: Option<usize>) -> Result<Weight> {
        let [columns, words] = self.matrix()?;
        self.turned([8 * words, columns], 4, group, Layout::Awq, 0)
    }

    fn gptq(
        &mut self,
        bits: usize,
        group: Option<usize>,
        symmetric: bool,
        plus: i32,
        reordered: bool,
    ) -> Result<Weight> {
        let [words, rows] = self.matrix()?;
        let shape = [rows, words * 32 / bits];
        let mut weight = self.turned(shape, bits, group, Layout::Columns(bits), plus)?;
        let any = reordered && weight.scales.columns < weight.shape[1];
        weight.order = self.integers_of("g_idx", weight.shape[1])?.map(|tensor| Order { tensor, any });
        weight.format = self.integers(&weight, symmetric);
        Ok(weight)
    }

    /// Integers whose scales and zero points are stored group after group.
    fn turned(
        &mut self,
        shape: [usize; 2],
        bits: usize,
        group: Option<usize>,
        layout: Layout,
        plus: i32,
    ) -> Result<Weight> {
        let [rows, columns] = shape;
        let (tensor, header) = self.needed(&["scales"])?;
        let across = groups_of(columns, group.unwrap_or(columns));
        self.expect(&tensor, header, &[across, rows], &[Dtype::F16, Dtype::BF16, Dtype::F32])?;
        let columns = group.unwrap_or(columns);
        let scales = Scales { tensor, rows: 1, columns, of_rows: 1, of_columns: rows, factor: None };
        let (tensor, header) = self.needed(&["qzeros"])?;
        let words = rows * bits / 32;
        self.expect(&tensor, header, &[across, words], &[Dtype::I32])?;
        let awq = layout == Layout::Awq;
        let mut weight = self.weight(shape, Format::F32, layout, Kind::Integer(bits), scales);
        weight.zeros = Zeros::Packed { tensor, bits, of_rows: 1, of_columns: words, awq, plus };
        weight.format = self.integers(&weight, false);
        Ok(weight)
    }

    /// Floats of 4 bits with two to a byte: 32 with a power of two, or 16 with a float of 8 bits and a factor for all.
    fn fp4(&mut self) -> Result<Weight> {
        let [rows, bytes] = self.matrix()?;
        let shape = [rows, 2 * bytes];
        let over = self.part(&["weight_global_scale"]).map(|(name, header)| (name, header, true));
        let factor = over.or_else(|| self.part(&["weight_scale_2"]).map(|(name, header)| (name, header, false)));
        let (tensor, header) = self.needed(&["weight_scale"])?;
        let (size, format) = match (header.dtype, &factor) {
            (Dtype::F8_E4M3, Some((name, factor, _))) => {
                ensure!(
                    factor.dtype == Dtype::F32 && factor.shape.iter().product::<usize>() == 1,
                    "its {name} is {:?} of {:?}, and not one number of F32",
                    factor.shape,
                    factor.dtype
                );
                (16, Format::Nvfp4)
            }
            (Dtype::U8 | Dtype::F8_E8M0, None) => (32, Format::Mxfp4),
            (dtype, _) => bail!("its {tensor} is of {dtype:?}, and there is no scale for all that goes with it"),
        };
        self.expect(&tensor, header, &[rows, shape[1].div_ceil(size)], &[header.dtype])?;
        let factor = factor.map(|(name, _, over)| (name, over));
        let of_rows = header.shape[1];
        let scales = Scales { tensor, rows: 1, columns: size, of_rows, of_columns: 1, factor };
        let format = if shape[1].is_multiple_of(32) { format } else { Format::F32 };
        Ok(self.weight(shape, format, Layout::Rows(4), Kind::E2m1, scales))
    }

    /// The blocks of gpt-oss: matrices of several experts, 32 columns in 16 bytes.
    fn mxfp4(&mut self) -> Result<Weight> {
        let shape = &self.tensors[self.codes].shape;
        let &[count, rows, blocks, 16] = &shape[..] else { bail!("it is {shape:?}, and no blocks of 16 bytes") };
        let tensor = format!("{}_scales", self.codes.trim_end_matches("_blocks"));
        let header = self.tensors.get(&tensor).with_context(|| format!("there is no {tensor}: {AGAIN}"))?;
        self.expect(&tensor, header, &[count, rows, blocks], &[Dtype::U8])?;
        self.parts.push(tensor.clone());
        let scales = Scales { tensor, rows: 1, columns: 32, of_rows: blocks, of_columns: 1, factor: None };
        let mut weight = self.weight([rows, 32 * blocks], Format::Mxfp4, Layout::Rows(4), Kind::E2m1, scales);
        weight.shape.insert(0, count);
        Ok(weight)
    }

    fn weight(&self, shape: [usize; 2], format: Format, layout: Layout, kind: Kind, scales: Scales) -> Weight {
        let (shape, codes) = (shape.to_vec(), self.codes.to_owned());
        Weight { shape, format, codes, layout, kind, scales, zeros: Zeros::All(0), order: None, told: None }
    }

    /// The shape of the codes.
    fn matrix(&self) -> Result<[usize; 2]> {
        let shape = &self.tensors[self.codes].shape;
        <[usize; 2]>::try_from(&shape[..]).ok().with_context(|| format!("it is {shape:?}, and only matrices are read"))
    }

    /// A tensor of the module, by the first of these ends that it has.
    fn part(&mut self, ends: &[&str]) -> Option<(String, &'a Header)> {
        let (name, header) = ends.iter().find_map(|end| self.tensors.get_key_value(&format!("{}.{end}", self.name)))?;
        self.parts.push(name.clone());
        Some((name.clone(), header))
    }

    /// The same where there must be one.
    fn needed(&mut self, ends: &[&str]) -> Result<(String, &'a Header)> {
        let names: Vec<String> = ends.iter().map(|end| format!("{}.{end}", self.name)).collect();
        self.part(ends).with_context(|| format!("there is no {}: {AGAIN}", names.join(" or ")))
    }

    /// A tensor of so many integers, where there is one.
    fn integers_of(&mut self, end: &str, count: usize) -> Result<Option<String>> {
        let Some((tensor, header)) = self.part(&[end]) else { return Ok(None) };
        self.expect(&tensor, header, &[count], &[Dtype::I32, Dtype::I64])?;
        Ok(Some(tensor))
    }

    fn expect(&self, tensor: &str, header: &Header, shape: &[usize], dtypes: &[Dtype]) -> Result<()> {
        let Header { shape: found, dtype } = header;
        ensure!(found == shape, "its {tensor} is {found:?}, and should be {shape:?}");
        ensure!(dtypes.contains(dtype), "its {tensor} is of {dtype:?}, which it never is");
        Ok(())
    }

    /// The scales of a matrix, in the first of these tensors: one for all, one per row, one per block of rows and columns, or one per `group` columns of a row.
    fn scales(
        &mut self,
        ends: &[&str],
        shape: [usize; 2],
        block: Option<[usize; 2]>,
        group: Option<usize>,
    ) -> Result<Scales> {
        let [rows, columns] = shape;
        let (tensor, header) = self.needed(ends)?;
        ensure!(is_scale(header.dtype), "its {tensor} is of {:?}, which no scale is", header.dtype);
        let of = |rows: usize, columns: usize, of_rows: usize| {
            Ok(Scales { tensor: tensor.clone(), rows, columns, of_rows, of_columns: 1, factor: None })
        };
        match (&header.shape[..], block, group) {
            ([] | [1] | [1, 1], _, _) => of(rows, columns, 0),
            (&[count] | &[count, 1], _, _) if count == rows => of(1, columns, 1),
            (&[down, across], Some([height, width]), _)
                if [down, across] == [groups_of(rows, height), groups_of(columns, width)] =>
            {
                of(height, width, across)
            }
            (&[count, across], None, Some(size)) if count == rows && across == groups_of(columns, size) => {
                of(1, size, across)
            }
            (other, _, _) => bail!("its {tensor} is {other:?}, which does not fit {shape:?}"),
        }
    }

    /// The format of a weight of integers. `symmetric`: all zero points are in the middle, which is checked where rows are read.
    fn integers(&self, weight: &Weight, symmetric: bool) -> Format {
        let Weight { kind, scales, order, .. } = weight;
        let fits = |values: usize| blocks_of(values, [weight.shape[0], weight.shape[1]], scales);
        let scale = self.tensors[&scales.tensor].dtype;
        let bits = if let Kind::Integer(bits) = kind { *bits } else { 8 };
        match (bits, scale) {
            _ if !fits(32) || order.as_ref().is_some_and(|order| order.any) => Format::F32,
            // GGUF's blocks have scales in half precision.
            (4, Dtype::F16) if symmetric => Format::Q4_0,
            (4, Dtype::F16 | Dtype::BF16) if fits(128) => Format::Int4x128,
            (4, Dtype::F16 | Dtype::BF16) => Format::Int4x32,
            (8, Dtype::F16) if symmetric => Format::Q8_0,
            (8, _) if symmetric && fits(128) => Format::Int8x128,
            (8, _) if symmetric => Format::Int8,
            _ => Format::F32,
        }
    }
}

const AGAIN: &str = "download the checkpoint again";

/// Groups of so many columns, the last one of which may have fewer.
fn groups_of(columns: usize, size: usize) -> usize {
    columns.div_ceil(size.max(1))
}

/// Whether scales of floats are stored in such a type.
fn is_scale(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F8_E8M0 | Dtype::U8)
}

/// Whether rows of such a weight are blocks of so many values, each with one scale.
fn blocks_of(values: usize, [_, columns]: [usize; 2], scales: &Scales) -> bool {
    columns.is_multiple_of(values) && (scales.columns >= columns || scales.columns.is_multiple_of(values))
}
