//! Writes small GGUF files for tests.

/// Collects the parts of a file; `build` lays them out with the default alignment.
#[derive(Clone)]
pub(crate) struct Builder {
    version: u32,
    metadata: Vec<Vec<u8>>,
    listed: Vec<Vec<u8>>,
    data: Vec<u8>,
}

impl Builder {
    pub(crate) fn new(version: u32) -> Builder {
        Builder { version, metadata: Vec::new(), listed: Vec::new(), data: Vec::new() }
    }

    /// Adds a metadata entry of a raw type number and its encoded value.
    pub(crate) fn metadata(mut self, key: &str, kind: u32, value: &[u8]) -> Builder {
        self.metadata.push([&text(key)[..], &kind.to_le_bytes(), value].concat());
        self
    }

    /// Adds a tensor with its dimensions fastest first.
    pub(crate) fn tensor(mut self, name: &str, dims: &[u64], kind: u32, bytes: &[u8]) -> Builder {
        let mut listed = text(name);
        listed.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|dim| listed.extend(dim.to_le_bytes()));
        listed.extend(kind.to_le_bytes());
        listed.extend((self.data.len() as u64).to_le_bytes());
        self.listed.push(listed);
        self.data.extend(bytes);
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        self
    }

    pub(crate) fn build(self) -> Vec<u8> {
        let mut file = [&b"GGUF"[..], &self.version.to_le_bytes()].concat();
        file.extend((self.listed.len() as u64).to_le_bytes());
        file.extend((self.metadata.len() as u64).to_le_bytes());
        file.extend(self.metadata.concat());
        file.extend(self.listed.concat());
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(self.data);
        file
    }
}

/// A string in GGUF's encoding.
pub(crate) fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}
