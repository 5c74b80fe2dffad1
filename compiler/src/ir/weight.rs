//! What a graph's weight is read from: a tensor of the checkpoint, a part of one, or those of all experts as one.

use std::fmt::{self, Write};

use fuse_kernels::Format;
use serde::{Deserialize, Serialize};

/// What a weight is read from.
///
/// In text, `name` is a tensor. `name[16..24 of 48]` is rows 16 to 23 of every 48, `name[:, 16..24 of 48]` columns, and so on inwards. `name[3]` is
/// one matrix of a tensor of several, and `a.{0..8}.b` the tensors `a.0.b` to `a.7.b`, one after the other, as one with a leading axis more.
/// `name^20` is a matrix whose rows make 20 matrices, one after the other, with a leading axis more; `name^T` has the last two axes of each tensor exchanged, `name^20T` both, before
/// anything is taken of it. A bracket, brace, circumflex or backslash of a tensor's own
/// name has a backslash before it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", from = "String")]
pub struct WeightRef {
    /// The tensor or tensors.
    pub tensor: TensorName,
    /// The rows of each make that many matrices, one after the other.
    pub split: Option<usize>,
    /// The last two axes of each are exchanged; matrix and part are of what that makes.
    pub turned: bool,
    /// The matrix that is taken of a tensor of several.
    pub matrix: Option<usize>,
    /// The part that is taken of each tensor.
    pub part: Option<Part>,
}

/// One tensor of the checkpoint, or several of one shape.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TensorName {
    /// By its whole name.
    One(String),
    /// `head`, a number below `count`, `tail`: in that order, as one with a leading axis more.
    Stack {
        /// Before the number.
        head: String,
        /// How many.
        count: usize,
        /// After the number.
        tail: String,
    },
}

/// `size` of every `step` places along an axis, from `first` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Part {
    /// The axis of each tensor, 0 the slowest.
    pub axis: usize,
    /// Where the first run begins.
    pub first: usize,
    /// Places of a run.
    pub size: usize,
    /// From one run to the next.
    pub step: usize,
}

impl WeightRef {
    /// The tensor of that name, whole.
    pub fn whole(name: &str) -> WeightRef {
        WeightRef { tensor: TensorName::One(name.into()), split: None, turned: false, matrix: None, part: None }
    }

    /// The tensor of that name, or the part of it. `{expert}` in it stands for the indices of `experts` tensors.
    pub fn of(name: &str, experts: Option<usize>, part: Option<Part>) -> WeightRef {
        let tensor = match (name.split_once("{expert}"), experts) {
            (Some((head, tail)), Some(count)) => TensorName::Stack { head: head.into(), count, tail: tail.into() },
            _ => TensorName::One(name.into()),
        };
        WeightRef { tensor, split: None, turned: false, matrix: None, part }
    }

    /// The tensors, in order.
    pub fn tensors(&self) -> Vec<String> {
        match &self.tensor {
            TensorName::One(name) => vec![name.clone()],
            TensorName::Stack { head, count, tail } => {
                (0..*count).map(|index| format!("{head}{index}{tail}")).collect()
            }
        }
    }

    /// Matrix `index` of a weight of several, as a weight of its own.
    pub fn matrix(&self, index: usize) -> WeightRef {
        match &self.tensor {
            TensorName::One(_) => WeightRef { matrix: Some(index), ..self.clone() },
            TensorName::Stack { head, tail, .. } => {
                WeightRef { tensor: TensorName::One(format!("{head}{index}{tail}")), ..self.clone() }
            }
        }
    }

    /// The shape of each tensor where the weight has `shape`; `None` where it cannot have it, or where a tensor of several does not tell how many.
    pub fn tensor_shape(&self, shape: &[usize]) -> Option<Vec<usize>> {
        let mut shape = match &self.tensor {
            TensorName::Stack { count, .. } if shape.first() != Some(count) => return None,
            TensorName::Stack { .. } => shape[1..].to_vec(),
            TensorName::One(_) => shape.to_vec(),
        };
        if let Some(part) = self.part {
            let axis = part.axis.checked_sub(usize::from(self.matrix.is_some()))?;
            let size = shape.get_mut(axis)?;
            if !size.is_multiple_of(part.size) {
                return None;
            }
            *size = *size / part.size * part.step;
        }
        if self.matrix.is_some() {
            return None;
        }
        let mut shape = self.exchanged(shape)?;
        if let Some(count) = self.split {
            if shape.len() < 2 || shape.remove(0) != count {
                return None;
            }
            shape[0] *= count;
        }
        Some(shape)
    }

    /// With the last two axes exchanged where the weight is turned; `None` where there are none.
    fn exchanged(&self, mut shape: Vec<usize>) -> Option<Vec<usize>> {
        if self.turned {
            let last = shape.len().checked_sub(2)?;
            shape.swap(last, last + 1);
        }
        Some(shape)
    }

    /// Whether rows of the weight, whose shape that is, are whole blocks of the tensors' rows.
    pub fn has_whole_blocks(&self, shape: &[usize], format: Format) -> bool {
        if self.turned || self.split.is_some() {
            return false;
        }
        let whole = |values: usize| format.bytes(values).is_some();
        let stacked = usize::from(matches!(self.tensor, TensorName::Stack { .. }));
        let axes = shape.len() - stacked + usize::from(self.matrix.is_some());
        let cut = self.part.filter(|part| part.axis + 1 == axes);
        shape.last().is_none_or(|&last| whole(last))
            && cut.is_none_or(|part| [part.first, part.size, part.step].into_iter().all(whole))
    }

    /// The weight's shape where each tensor has `shape`; `None` where that has no such part or matrix.
    pub fn shape(&self, shape: &[usize]) -> Option<Vec<usize>> {
        let mut shape = shape.to_vec();
        if let Some(count) = self.split {
            let rows = shape.first_mut().filter(|rows| rows.is_multiple_of(count))?;
            *rows /= count;
            shape.insert(0, count);
        }
        shape = self.exchanged(shape)?;
        if let Some(part) = self.part {
            let size = shape.get_mut(part.axis)?;
            if !size.is_multiple_of(part.step) {
                return None;
            }
            *size = *size / part.step * part.size;
        }
        if let Some(index) = self.matrix {
            if index >= *shape.first()? {
                return None;
            }
            shape.remove(0);
        }
        if let TensorName::Stack { count, .. } = self.tensor {
            shape.insert(0, count);
        }
        Some(shape)
    }
}

impl Part {
    /// Where place `at` of the part lies along the axis.
    pub fn place(&self, at: usize) -> usize {
        at / self.size * self.step + self.first + at % self.size
    }
}

impl From<&str> for WeightRef {
    /// Reads what [`Display`](fmt::Display) writes. A text of none of its forms is the name of a whole tensor.
    fn from(text: &str) -> WeightRef {
        let (name, (matrix, part)) = match text.strip_suffix(']').and_then(|text| text.rsplit_once('[')) {
            Some((name, inside)) if !ends_in_escape(name) => match selection(inside) {
                Some(selected) => (name, selected),
                None => (text, (None, None)),
            },
            _ => (text, (None, None)),
        };
        let (name, split, turned) = match name.rsplit_once('^') {
            Some((before, how)) if !ends_in_escape(before) => match exchange(how) {
                Some((split, turned)) => (before, split, turned),
                None => (name, None, false),
            },
            _ => (name, None, false),
        };
        let stack = name.split_once("{0..").filter(|(head, _)| !ends_in_escape(head)).and_then(|(head, rest)| {
            let (count, tail) = rest.split_once('}')?;
            Some((head, count.parse::<usize>().ok()?, tail))
        });
        let tensor = match stack {
            Some((head, count, tail)) => TensorName::Stack { head: plain(head), count, tail: plain(tail) },
            None => TensorName::One(plain(name)),
        };
        WeightRef { tensor, split, turned, matrix, part }
    }
}

impl From<String> for WeightRef {
    fn from(text: String) -> WeightRef {
        text.as_str().into()
    }
}

impl From<WeightRef> for String {
    fn from(weight: WeightRef) -> String {
        weight.to_string()
    }
}

impl fmt::Display for WeightRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.tensor {
            TensorName::One(name) => escaped(f, name)?,
            TensorName::Stack { head, count, tail } => {
                escaped(f, head)?;
                write!(f, "{{0..{count}}}")?;
                escaped(f, tail)?;
            }
        }
        if self.turned || self.split.is_some() {
            let turned = if self.turned { "T" } else { "" };
            write!(f, "^{}{turned}", self.split.map_or(String::new(), |count| count.to_string()))?;
        }
        let Some(Part { axis, first, size, step }) = self.part else {
            return self.matrix.map_or(Ok(()), |index| write!(f, "[{index}]"));
        };
        f.write_str("[")?;
        for axis in 0..axis {
            match self.matrix {
                Some(index) if axis == 0 => write!(f, "{index}, ")?,
                _ => f.write_str(":, ")?,
            }
        }
        write!(f, "{first}..{} of {step}]", first + size)
    }
}

/// A tensor's own name, with a backslash before what would read as something else.
fn escaped(f: &mut fmt::Formatter<'_>, name: &str) -> fmt::Result {
    for c in name.chars() {
        if matches!(c, '[' | '{' | '^' | '\\') {
            f.write_char('\\')?;
        }
        f.write_char(c)?;
    }
    Ok(())
}

/// Whether what follows is a part of the tensor's own name.
fn ends_in_escape(text: &str) -> bool {
    (text.len() - text.trim_end_matches('\\').len()) % 2 == 1
}

/// What [`escaped`] was given.
fn plain(text: &str) -> String {
    let mut chars = text.chars();
    let mut name = String::with_capacity(text.len());
    while let Some(c) = chars.next() {
        name.push(if c == '\\' { chars.next().unwrap_or(c) } else { c });
    }
    name
}

/// `T`, `20`, `20T`: how many matrices the rows make, and whether axes are exchanged.
fn exchange(text: &str) -> Option<(Option<usize>, bool)> {
    let (count, turned) = text.strip_suffix('T').map_or((text, false), |count| (count, true));
    match count {
        "" => turned.then_some((None, true)),
        count => count.parse().ok().filter(|count| *count > 0).map(|count| (Some(count), turned)),
    }
}

/// `3`, `:, 0..8 of 24`, `3, :, 0..8 of 24`: an index and a part, at least one of them.
fn selection(text: &str) -> Option<(Option<usize>, Option<Part>)> {
    let mut axes = text.split(", ").enumerate().peekable();
    let index = axes.peek().and_then(|(_, axis)| axis.parse().ok());
    if index.is_some() {
        axes.next();
    }
    let Some((axis, last)) = axes.find(|(_, axis)| *axis != ":") else {
        return index.filter(|_| text.parse::<usize>().is_ok()).map(|index| (Some(index), None));
    };
    let (run, step) = last.split_once(" of ")?;
    let (first, end) = run.split_once("..")?;
    let (first, end, step): (usize, usize, usize) = (first.parse().ok()?, end.parse().ok()?, step.parse().ok()?);
    let fits = first < end && end <= step && axes.next().is_none();
    fits.then(|| (index, Some(Part { axis, first, size: end - first, step })))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weight(text: &str) -> WeightRef {
        text.into()
    }

    #[test]
    fn a_name_reads_back() {
        for text in [
            "w",
            "w\\[3]",
            "a.\\{0..4}.b",
            "a\\\\[2]",
            "w[0..8 of 24]",
            "w[:, 8..16 of 24]",
            "a.{0..4}.b",
            "a.{0..4}.b[2..4 of 4]",
            "w[3]",
            "w[3, 0..2 of 4]",
            "w^T",
            "w\\^T",
            "w^20",
            "w^20T[:, :, 0..2 of 4]",
            "w^20[3]",
            "w^T[3, 0..2 of 4]",
            "a.{0..4}.b^T[:, 0..2 of 4]",
        ] {
            assert_eq!(weight(text).to_string(), text);
        }
        assert_eq!(weight("w\\[3]"), WeightRef::whole("w[3]"));
        assert_eq!(weight("w"), WeightRef::whole("w"));
        assert_eq!(weight("w\\^T"), WeightRef::whole("w^T"));
        for odd in ["w[]", "w[8..4 of 9]", "w[0..8 of 4]", "w[:]", "w[0..1 of 2, 3]", "w[x]"] {
            assert_eq!(weight(odd), WeightRef::whole(odd));
            assert_eq!(weight(&weight(odd).to_string()), WeightRef::whole(odd));
        }
    }

    #[test]
    fn shapes_follow_both_ways() {
        for (text, sizes, tensor) in [
            ("w[8..16 of 24]", vec![16, 5], vec![48, 5]),
            ("w[:, 8..16 of 24]", vec![5, 8], vec![5, 24]),
            ("a.{0..4}.b[:, 0..2 of 4]", vec![4, 5, 6], vec![5, 12]),
            ("w^T", vec![3, 4, 5], vec![3, 5, 4]),
            ("w^3[:, 2..4 of 5]", vec![3, 4, 7], vec![30, 7]),
            ("w^3T[:, :, 0..2 of 5]", vec![3, 7, 4], vec![30, 7]),
            ("w^T[:, 1..2 of 2]", vec![3, 4, 5], vec![3, 5, 8]),
            ("a.{0..4}.b^T[0..2 of 4]", vec![4, 6, 5], vec![5, 12]),
        ] {
            let name = weight(text);
            assert_eq!(name.tensor_shape(&sizes), Some(tensor.clone()), "{text}");
            assert_eq!(name.shape(&tensor), Some(sizes), "{text}");
        }
        assert_eq!(weight("w[1, 0..2 of 4]").shape(&[3, 8, 5]), Some(vec![4, 5]));
        assert_eq!(weight("w[1, :, 0..2 of 5]").shape(&[3, 8, 5]), Some(vec![8, 2]));
        assert_eq!(weight("w[1, 0..2 of 4]").matrix, Some(1));
        assert_eq!(weight("w^T[1, 0..2 of 4]").shape(&[3, 5, 8]), Some(vec![4, 5]));
        assert_eq!(weight("w^T").shape(&[3]), None);
        assert_eq!(weight("w^3[1, 2..4 of 5]").shape(&[30, 7]), Some(vec![4, 7]));
        assert_eq!(weight("w^3").shape(&[31, 7]), None);
        assert_eq!(weight("w[3]").shape(&[3, 8]), None);
        assert_eq!(weight("w[0..8 of 24]").shape(&[25, 5]), None);
    }

    #[test]
    fn parts_that_cut_blocks_have_no_rows_of_them() {
        for (text, shape, format, whole) in [
            ("w", vec![4, 64], Format::Q8_0, true),
            ("w", vec![4, 64], Format::Q4K, false),
            ("w", vec![4, 40], Format::Q8_0, false),
            ("w", vec![4, 40], Format::F16, true),
            ("w[0..5 of 9]", vec![5, 64], Format::Q8_0, true),
            ("w[:, 32..64 of 96]", vec![4, 32], Format::Q8_0, true),
            ("w[:, 16..48 of 96]", vec![4, 32], Format::Q8_0, false),
            ("w[3, 1..2 of 4]", vec![1, 64], Format::Q8_0, true),
            ("w[3, :, 16..48 of 64]", vec![4, 32], Format::Q8_0, false),
            ("a.{0..2}.b[:, 16..48 of 64]", vec![2, 4, 32], Format::Q8_0, false),
            ("a.{0..2}.b[1..2 of 4]", vec![2, 1, 32], Format::Q8_0, true),
            ("w^T", vec![32, 32], Format::Q8_0, false),
        ] {
            assert_eq!(weight(text).has_whole_blocks(&shape, format), whole, "{text} of {}", format.name());
        }
    }

    #[test]
    fn a_matrix_of_several_has_a_name_of_its_own() {
        let tensors = weight("a.{0..4}.b[0..2 of 4]");
        assert_eq!(tensors.matrix(2).to_string(), "a.2.b[0..2 of 4]");
        assert_eq!(tensors.tensors(), ["a.0.b", "a.1.b", "a.2.b", "a.3.b"]);
        assert_eq!(weight("w[:, 0..2 of 4]").matrix(2).to_string(), "w[2, 0..2 of 4]");
        let part = Part { axis: 0, first: 8, size: 8, step: 24 };
        assert_eq!([0, 7, 8].map(|at| part.place(at)), [8, 15, 32]);
    }
}
