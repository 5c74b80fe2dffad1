//! Weights that are a part of a tensor, or several tensors as one.

use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};
use fusec::ir::{Part, TensorName, WeightRef};

use super::Checkpoint;
use super::stored::Tensor;

impl Checkpoint {
    /// The dimensions of a weight, slowest first: `[out_features, in_features]` of a linear layer.
    ///
    /// # Errors
    /// A tensor that is not there or has another shape than the first, or one that has no such part.
    pub fn shape(&self, weight: &WeightRef) -> Result<Vec<usize>> {
        let names = weight.tensors();
        let first = names.first().with_context(|| format!("{weight} is made of no tensor"))?;
        let shape = &self.tensor(first)?.shape;
        for name in &names[1..] {
            let other = &self.tensor(name)?.shape;
            ensure!(other == shape, "{}: {name} is {other:?} and {first} is {shape:?}", self.origin);
        }
        weight.shape(shape).with_context(|| format!("{}: {first} is {shape:?}: it has no {weight}", self.origin))
    }

    /// Appends some rows of a weight.
    pub(super) fn append_selected(&self, weight: &WeightRef, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        let count = self.shape(weight)?.first().copied().unwrap_or(1);
        ensure!(rows.start <= rows.end && rows.end <= count, "rows {rows:?} of weight {weight}, which has {count}");
        if matches!(weight.tensor, TensorName::Stack { .. }) {
            for row in rows {
                let matrix = weight.matrix(row);
                let inner = self.shape(&matrix)?.first().copied().unwrap_or(1);
                self.append_selected(&matrix, 0..inner, out)?;
            }
            return Ok(());
        }
        let name = &weight.tensors()[0];
        let tensor = self.tensor(name)?;
        if weight.turned || weight.split.is_some() {
            return self.append_turned(name, tensor, weight, rows, out);
        }
        match (weight.matrix, weight.part) {
            (None, None) => self.append_rows(name, tensor, rows, out),
            (None, Some(part)) => self.append_part(name, tensor, part, rows, out),
            (Some(index), part) => {
                // A matrix of several is one row: it is read whole, and the rows taken from it.
                let mut whole = Vec::new();
                self.append_rows(name, tensor, index..index + 1, &mut whole)?;
                let shape = &tensor.shape[1..];
                let part = part.map(|part| Part { axis: part.axis - 1, ..part });
                let selected = part.map_or(whole.clone(), |part| cut(&whole, shape, part));
                let columns = selected.len() / count.max(1);
                out.extend_from_slice(&selected[rows.start * columns..rows.end * columns]);
                Ok(())
            }
        }
    }

    /// Rows of what has the last two axes of a tensor exchanged, or whose rows make several matrices: each matrix is read whole.
    fn append_turned(
        &self,
        name: &str,
        tensor: &Tensor,
        weight: &WeightRef,
        rows: Range<usize>,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let &[.., across, down] = &tensor.shape[..] else {
            bail!("{}: {name} is {:?}, which has no two axes to exchange", self.origin, tensor.shape)
        };
        if weight.matrix.is_none() && tensor.shape.len() + usize::from(weight.split.is_some()) > 2 {
            for row in rows {
                let matrix = weight.matrix(row);
                let inner = self.shape(&matrix)?.first().copied().unwrap_or(1);
                self.append_selected(&matrix, 0..inner, out)?;
            }
            return Ok(());
        }
        let mut whole = Vec::new();
        // A matrix of several tensors is a row; one of several runs of rows has as many as the others.
        let across = weight.split.map_or(across, |count| across / count);
        let each = if weight.split.is_some() { across } else { 1 };
        let from = weight.matrix.map_or(0..across, |index| index * each..(index + 1) * each);
        self.append_rows(name, tensor, from, &mut whole)?;
        let mut shape = [across, down];
        if weight.turned {
            whole = turn(&whole, across, down);
            shape.reverse();
        }
        if let Some(part) = weight.part {
            let axis = part.axis - usize::from(weight.matrix.is_some());
            whole = cut(&whole, &shape, Part { axis, ..part });
        }
        let columns = self.shape(weight)?.last().copied().unwrap_or(1);
        out.extend_from_slice(&whole[rows.start * columns..rows.end * columns]);
        Ok(())
    }

    fn append_part(
        &self,
        name: &str,
        tensor: &Tensor,
        part: Part,
        rows: Range<usize>,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        if part.axis > 0 {
            let mut whole = Vec::new();
            self.append_rows(name, tensor, rows.clone(), &mut whole)?;
            let mut shape = tensor.shape.clone();
            shape[0] = rows.len();
            out.extend(cut(&whole, &shape, part));
            return Ok(());
        }
        // Rows of one run lie side by side.
        let mut row = rows.start;
        while row < rows.end {
            let length = (part.size - row % part.size).min(rows.end - row);
            let place = part.place(row);
            self.append_rows(name, tensor, place..place + length, out)?;
            row += length;
        }
        Ok(())
    }
}

/// `[rows][columns]` into `[columns][rows]`.
pub(super) fn turn(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| (0..rows).map(move |row| values[row * columns + column])).collect()
}

/// The part of a tensor of `shape`.
fn cut(values: &[f32], shape: &[usize], part: Part) -> Vec<f32> {
    let inner: usize = shape[part.axis + 1..].iter().product();
    let runs = values.chunks_exact(part.step * inner);
    runs.flat_map(|run| run[part.first * inner..(part.first + part.size) * inner].iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn parts_and_stacks_are_read() {
        let tensor = |shape: &[usize], first: usize| {
            let count = shape.iter().product::<usize>();
            (shape.to_vec(), (first..first + count).map(|value| value as f32).collect::<Vec<f32>>())
        };
        let tensors = BTreeMap::from([
            ("fused".to_owned(), tensor(&[6, 2], 0)),
            ("e.0.w".to_owned(), tensor(&[2, 3], 100)),
            ("e.1.w".to_owned(), tensor(&[2, 3], 200)),
            ("all".to_owned(), tensor(&[2, 4, 2], 300)),
        ]);
        let checkpoint = Checkpoint::from_memory(serde_json::Value::Null, tensors).expect("shapes fit");
        let read = |name: &str| (checkpoint.shape(&name.into()).unwrap(), checkpoint.read_f32(&name.into()).unwrap());
        assert_eq!(read("fused[1..2 of 3]"), (vec![2, 2], vec![2.0, 3.0, 8.0, 9.0]));
        assert_eq!(read("fused[:, 1..2 of 2]"), (vec![6, 1], vec![1.0, 3.0, 5.0, 7.0, 9.0, 11.0]));
        assert_eq!(read("e.{0..2}.w[1..2 of 2]"), (vec![2, 1, 3], vec![103.0, 104.0, 105.0, 203.0, 204.0, 205.0]));
        assert_eq!(read("all[1]"), (vec![4, 2], (308..316).map(|value| value as f32).collect()));
        assert_eq!(read("all[1, 1..2 of 4]"), (vec![1, 2], vec![310.0, 311.0]));
        assert_eq!(read("all[:, 1..2 of 4]"), (vec![2, 1, 2], vec![302.0, 303.0, 310.0, 311.0]));
        // Its first matrix is 300 301, 302 303, 304 305, 306 307.
        assert_eq!(read("all^T[1]"), (vec![2, 4], vec![308.0, 310.0, 312.0, 314.0, 309.0, 311.0, 313.0, 315.0]));
        assert_eq!(read("all^T[0, 1..2 of 2]"), (vec![1, 4], vec![301.0, 303.0, 305.0, 307.0]));
        assert_eq!(read("all^T[:, :, 1..2 of 2]").1, [302.0, 306.0, 303.0, 307.0, 310.0, 314.0, 311.0, 315.0]);
        assert_eq!(read("e.{0..2}.w^T[2..3 of 3]"), (vec![2, 1, 2], vec![102.0, 105.0, 202.0, 205.0]));
        assert_eq!(read("fused^T").1, [0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 1.0, 3.0, 5.0, 7.0, 9.0, 11.0]);
        // Three matrices of two rows: 0 1, 2 3; 4 5, 6 7; 8 9, 10 11.
        assert_eq!(read("fused^3[2]"), (vec![2, 2], vec![8.0, 9.0, 10.0, 11.0]));
        assert_eq!(read("fused^3T[:, :, 1..2 of 2]"), (vec![3, 2, 1], vec![2.0, 3.0, 6.0, 7.0, 10.0, 11.0]));
        assert_eq!(read("fused^3[:, 0..1 of 2]"), (vec![3, 1, 2], vec![0.0, 1.0, 4.0, 5.0, 8.0, 9.0]));
        let mut rows = Vec::new();
        checkpoint.read_rows_f32(&"fused^T[:, 1..2 of 3]".into(), 1..2, &mut rows).unwrap();
        assert_eq!(rows, [3.0, 9.0]);
        checkpoint.read_rows_f32(&"fused[1..3 of 3]".into(), 1..3, &mut rows).unwrap();
        assert_eq!(rows, [4.0, 5.0, 8.0, 9.0]);
        // A checkpoint that lacks the first component of every name.
        assert_eq!(read("model.e.0.w[0..1 of 2]"), (vec![1, 3], vec![100.0, 101.0, 102.0]));
        for (name, said) in [
            ("fused[0..2 of 4]", "the checkpoint in memory: fused is [6, 2]: it has no fused[0..2 of 4]"),
            ("e.{0..3}.w", "the checkpoint in memory: there is no tensor e.2.w; did you mean e.0.w?"),
        ] {
            assert_eq!(checkpoint.shape(&name.into()).unwrap_err().to_string(), said);
        }
    }

    #[test]
    fn made_up_checkpoints_have_the_tensors_of_real_ones() {
        let required =
            [("e.{0..2}.w", vec![2, 3, 4]), ("qkv[0..2 of 6]", vec![2, 4]), ("all^T[:, 0..2 of 4]", vec![3, 2, 5])];
        let required = required.map(|(name, shape)| (WeightRef::from(name), shape));
        let checkpoint = Checkpoint::dummy(serde_json::Value::Null, &required, 1);
        assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["all", "e.0.w", "e.1.w", "qkv"]);
        for (name, shape) in &required {
            assert_eq!(checkpoint.shape(name).unwrap(), *shape, "{name}");
        }
        let values = checkpoint.read_f32(&"e.{0..2}.w".into()).unwrap();
        assert_eq!(values[12..], checkpoint.read_f32(&"e.1.w".into()).unwrap());
        assert_ne!(values[..12], values[12..]);
    }
}
