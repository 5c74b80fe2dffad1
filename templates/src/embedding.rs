//! `embedding.cu`: rows of a table that is packed as a product's weight.

use askama::Template;
use serde::{Deserialize, Serialize};

use crate::family::{Family, Param, Reads, text_of};
use crate::values::{ROW_THREADS, Tiles};

/// The row of each token; zeros for a negative one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Template)]
#[template(path = "embedding.cu")]
pub struct Embedding {
    /// The packed table.
    pub tiles: Tiles,
}

impl Family for Embedding {
    fn params(&self) -> Vec<Param> {
        vec![Param::weight("weights", "const Vec4*"), Param::io("tokens", "const int*"), Param::write("out", "Out*")]
    }

    fn stem(&self) -> String {
        format!("embedding_{}", self.tiles.suffix())
    }

    fn text(&self) -> String {
        text_of(self)
    }

    fn source(&self) -> Result<String, askama::Error> {
        self.render()
    }

    fn threads(&self) -> usize {
        ROW_THREADS
    }

    fn grid(&self, rows: usize) -> [usize; 3] {
        [rows, self.tiles.k.div_ceil(ROW_THREADS), 1]
    }

    fn reads(&self, rows: usize) -> Reads {
        Reads::of_weights(rows * self.tiles.row_bytes())
    }
}
