//! The name of a graph's weight: a tensor of the checkpoint, a part of one, or those of all experts as one.

use std::fmt;

/// What a weight is read from.
///
/// `name` is a tensor. `name[16..24 of 48]` is rows 16 to 23 of every 48, `name[:, 16..24 of 48]` columns, and so on inwards. `name[3]` is one
/// matrix of a tensor of several, and `a.{0..8}.b` the tensors `a.0.b` to `a.7.b`, one behind the other, as one with an axis more in front.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightName {
    head: String,
    /// How many tensors, and what follows the number in their names.
    stack: Option<(usize, String)>,
    index: Option<usize>,
    part: Option<Part>,
}

/// `size` of every `step` places along an axis, from `first` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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

impl WeightName {
    /// The tensor of that name, whole. `{expert}` in it stands for the indices of `experts` tensors.
    pub fn of(name: &str, experts: Option<usize>, part: Option<Part>) -> WeightName {
        match (name.split_once("{expert}"), experts) {
            (Some((head, tail)), Some(count)) => {
                WeightName { head: head.into(), stack: Some((count, tail.into())), index: None, part }
            }
            _ => WeightName { head: name.into(), stack: None, index: None, part },
        }
    }

    /// Reads a name; anything that is not of the forms above is the name of a whole tensor.
    pub fn parse(text: &str) -> WeightName {
        let plain = || WeightName { head: text.into(), stack: None, index: None, part: None };
        let (name, (index, part)) = match text.strip_suffix(']').and_then(|text| text.rsplit_once('[')) {
            None => (text, (None, None)),
            Some((name, inside)) => match selection(inside) {
                Some(selected) => (name, selected),
                None => return plain(),
            },
        };
        let stack = name.split_once("{0..").and_then(|(head, rest)| {
            let (count, tail) = rest.split_once('}')?;
            Some((head, count.parse::<usize>().ok()?, tail))
        });
        match stack {
            Some((head, count, tail)) => {
                WeightName { head: head.into(), stack: Some((count, tail.into())), index, part }
            }
            None => WeightName { head: name.into(), stack: None, index, part },
        }
    }

    /// Whether it is one tensor, whole.
    pub fn is_plain(&self) -> bool {
        self.stack.is_none() && self.index.is_none() && self.part.is_none()
    }

    /// The tensors, in order.
    pub fn tensors(&self) -> Vec<String> {
        match &self.stack {
            None => vec![self.head.clone()],
            Some((count, tail)) => (0..*count).map(|index| format!("{}{index}{tail}", self.head)).collect(),
        }
    }

    /// Matrix `index` of a weight of several, as a name of its own.
    pub fn matrix(&self, index: usize) -> WeightName {
        match &self.stack {
            None => WeightName { index: Some(index), ..self.clone() },
            Some((_, tail)) => {
                WeightName { head: format!("{}{index}{tail}", self.head), stack: None, index: None, part: self.part }
            }
        }
    }

    /// The tensors that are one behind the other, if it is several as one.
    pub fn stacked(&self) -> Option<usize> {
        self.stack.as_ref().map(|(count, _)| *count)
    }

    /// The matrix that is taken of a tensor of several.
    pub fn index(&self) -> Option<usize> {
        self.index
    }

    /// The part that is taken of each tensor.
    pub fn part(&self) -> Option<Part> {
        self.part
    }

    /// The shape of each tensor where the weight has `shape`; `None` where it cannot have it, or where a tensor of several does not tell how many.
    pub fn tensor_shape(&self, shape: &[usize]) -> Option<Vec<usize>> {
        let mut shape = match &self.stack {
            Some((count, _)) if shape.first() != Some(count) => return None,
            Some(_) => shape[1..].to_vec(),
            None => shape.to_vec(),
        };
        if let Some(part) = self.part {
            let axis = part.axis.checked_sub(usize::from(self.index.is_some()))?;
            let size = shape.get_mut(axis)?;
            if !size.is_multiple_of(part.size) {
                return None;
            }
            *size = *size / part.size * part.step;
        }
        if self.index.is_some() { None } else { Some(shape) }
    }

    /// The weight's shape where each tensor has `shape`; `None` where that has no such part or matrix.
    pub fn shape(&self, shape: &[usize]) -> Option<Vec<usize>> {
        let mut shape = shape.to_vec();
        if let Some(part) = self.part {
            let size = shape.get_mut(part.axis)?;
            if !size.is_multiple_of(part.step) {
                return None;
            }
            *size = *size / part.step * part.size;
        }
        if let Some(index) = self.index {
            if index >= *shape.first()? {
                return None;
            }
            shape.remove(0);
        }
        if let Some((count, _)) = &self.stack {
            shape.insert(0, *count);
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

impl fmt::Display for WeightName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.head)?;
        if let Some((count, tail)) = &self.stack {
            write!(f, "{{0..{count}}}{tail}")?;
        }
        let Some(Part { axis, first, size, step }) = self.part else {
            return self.index.map_or(Ok(()), |index| write!(f, "[{index}]"));
        };
        f.write_str("[")?;
        for axis in 0..axis {
            match self.index {
                Some(index) if axis == 0 => write!(f, "{index}, ")?,
                _ => f.write_str(":, ")?,
            }
        }
        write!(f, "{first}..{} of {step}]", first + size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_reads_back() {
        for text in [
            "w",
            "w[0..8 of 24]",
            "w[:, 8..16 of 24]",
            "a.{0..4}.b",
            "a.{0..4}.b[2..4 of 4]",
            "w[3]",
            "w[3, 0..2 of 4]",
        ] {
            let name = WeightName::parse(text);
            assert_eq!(name.to_string(), text);
            assert_eq!(name.is_plain(), text == "w");
        }
        for odd in ["w[]", "w[8..4 of 9]", "w[0..8 of 4]", "w[:]", "w[0..1 of 2, 3]", "w[x]"] {
            assert!(WeightName::parse(odd).is_plain(), "{odd}");
        }
    }

    #[test]
    fn shapes_follow_both_ways() {
        for (text, weight, tensor) in [
            ("w[8..16 of 24]", vec![16, 5], vec![48, 5]),
            ("w[:, 8..16 of 24]", vec![5, 8], vec![5, 24]),
            ("a.{0..4}.b[:, 0..2 of 4]", vec![4, 5, 6], vec![5, 12]),
        ] {
            let name = WeightName::parse(text);
            assert_eq!(name.tensor_shape(&weight), Some(tensor.clone()), "{text}");
            assert_eq!(name.shape(&tensor), Some(weight), "{text}");
        }
        assert_eq!(WeightName::parse("w[1, 0..2 of 4]").shape(&[3, 8, 5]), Some(vec![4, 5]));
        assert_eq!(WeightName::parse("w[1, :, 0..2 of 5]").shape(&[3, 8, 5]), Some(vec![8, 2]));
        assert_eq!(WeightName::parse("w[1, 0..2 of 4]").index(), Some(1));
        assert_eq!(WeightName::parse("w[3]").shape(&[3, 8]), None);
        assert_eq!(WeightName::parse("w[0..8 of 24]").shape(&[25, 5]), None);
    }

    #[test]
    fn a_matrix_of_several_has_a_name_of_its_own() {
        let tensors = WeightName::parse("a.{0..4}.b[0..2 of 4]");
        assert_eq!(tensors.matrix(2).to_string(), "a.2.b[0..2 of 4]");
        assert_eq!(tensors.tensors(), ["a.0.b", "a.1.b", "a.2.b", "a.3.b"]);
        assert_eq!(WeightName::parse("w[:, 0..2 of 4]").matrix(2).to_string(), "w[2, 0..2 of 4]");
        let part = Part { axis: 0, first: 8, size: 8, step: 24 };
        assert_eq!([0, 7, 8].map(|at| part.place(at)), [8, 15, 32]);
    }
}
