//! GGUF's layout, version 3.

/// A metadata value.
#[derive(Clone, Debug)]
pub enum Meta {
    /// An unsigned integer.
    U32(u32),
    /// A float.
    F32(f32),
    /// A boolean.
    Bool(bool),
    /// Text.
    Text(String),
    /// A list of booleans.
    Bools(Vec<bool>),
    /// A list of texts.
    Texts(Vec<String>),
}

/// A file as it grows.
#[derive(Default)]
pub(super) struct File {
    entries: u64,
    metadata: Vec<u8>,
    tensors: u64,
    listed: Vec<u8>,
    data: Vec<u8>,
}

const ALIGNMENT: usize = 32;

impl File {
    pub(super) fn meta(&mut self, key: &str, value: Meta) {
        self.entries += 1;
        self.metadata.extend(text(key));
        let (kind, bytes) = match value {
            Meta::U32(value) => (4u32, value.to_le_bytes().to_vec()),
            Meta::F32(value) => (6, value.to_le_bytes().to_vec()),
            Meta::Bool(value) => (7, vec![u8::from(value)]),
            Meta::Text(value) => (8, text(&value)),
            Meta::Bools(values) => {
                let mut bytes = [&7u32.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
                bytes.extend(values.into_iter().map(u8::from));
                (9, bytes)
            }
            Meta::Texts(values) => {
                let mut bytes = [&8u32.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
                bytes.extend(values.iter().flat_map(|value| text(value)));
                (9, bytes)
            }
        };
        self.metadata.extend(kind.to_le_bytes());
        self.metadata.extend(bytes);
    }

    /// Adds a tensor of f32, its slowest dimension first.
    pub(super) fn tensor(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        self.stored(name, shape, 0, &values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>());
    }

    /// Adds a tensor of the type of that number.
    pub(super) fn stored(&mut self, name: &str, shape: &[usize], number: u32, bytes: &[u8]) {
        self.tensors += 1;
        self.listed.extend(text(name));
        self.listed.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|dimension| self.listed.extend((*dimension as u64).to_le_bytes()));
        self.listed.extend(number.to_le_bytes());
        self.listed.extend((self.data.len() as u64).to_le_bytes());
        self.data.extend(bytes);
        self.data.resize(self.data.len().next_multiple_of(ALIGNMENT), 0);
    }

    pub(super) fn bytes(self) -> Vec<u8> {
        let mut bytes = [&b"GGUF"[..], &3u32.to_le_bytes()].concat();
        bytes.extend(self.tensors.to_le_bytes());
        bytes.extend(self.entries.to_le_bytes());
        bytes.extend(self.metadata);
        bytes.extend(self.listed);
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        bytes.extend(self.data);
        bytes
    }
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}
