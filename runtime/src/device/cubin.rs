//! What a cubin says of itself, read before the driver sees it: whether it is whole, and how wide the parameters of its kernels are together.

use std::collections::BTreeMap;

/// Bytes of parameters by kernel; a kernel that is not in it takes none. `None` for what is no whole cubin.
///
/// The driver can be asked for one parameter after the other, but only beyond the last does it fail, and tools that watch its calls report that.
pub(super) fn parameter_bytes(bytes: &[u8]) -> Option<BTreeMap<String, usize>> {
    let sections = sections(bytes)?;
    let names = sections.get(number(bytes, 0x3e, 2)?).and_then(|section| section.contents);
    let mut kernels = BTreeMap::new();
    for section in &sections {
        let name = names.and_then(|names| text_at(names, section.name));
        if let (Some(kernel), Some(contents)) = (name.and_then(|name| name.strip_prefix(".nv.info.")), section.contents)
            && let Some(width) = parameter_area(contents)
        {
            kernels.insert(kernel.to_owned(), width);
        }
    }
    Some(kernels)
}

struct Section<'a> {
    /// Where its name is in the table of names.
    name: usize,
    /// `None` where it takes no room in the file.
    contents: Option<&'a [u8]>,
}

/// The sections of a 64-bit ELF file, if its section and program tables, and every section, lie inside it.
fn sections(bytes: &[u8]) -> Option<Vec<Section<'_>>> {
    const NO_BITS: usize = 8;
    bytes.starts_with(b"\x7fELF\x02\x01").then_some(())?;
    let slice = |start: usize, len: usize| bytes.get(start..start.checked_add(len)?);
    let (programs, program_size, program_count) =
        (number(bytes, 0x20, 8)?, number(bytes, 0x36, 2)?, number(bytes, 0x38, 2)?);
    slice(programs, program_size * program_count)?;
    let (table, size, count) = (number(bytes, 0x28, 8)?, number(bytes, 0x3a, 2)?, number(bytes, 0x3c, 2)?);
    slice(table, size * count)?;
    (0..count)
        .map(|index| {
            let at = table + index * size;
            let contents = match number(bytes, at + 0x04, 4)? {
                NO_BITS => None,
                _ => Some(slice(number(bytes, at + 0x18, 8)?, number(bytes, at + 0x20, 8)?)?),
            };
            Some(Section { name: number(bytes, at, 4)?, contents })
        })
        .collect()
}

/// The width of the parameters together, from the records that the assembler leaves a kernel: a form, an attribute, and two bytes that are a value
/// or, in the form of its own size, how many bytes follow.
fn parameter_area(records: &[u8]) -> Option<usize> {
    const SIZED: u8 = 4;
    const PARAMETER_AREA: u8 = 0x19;
    let mut at = 0;
    while let [form, attribute, ..] = records.get(at..)? {
        let value = number(records, at + 2, 2)?;
        if *attribute == PARAMETER_AREA {
            return Some(value);
        }
        at += 4 + if *form == SIZED { value } else { 0 };
    }
    None
}

fn number(bytes: &[u8], at: usize, width: usize) -> Option<usize> {
    let field = bytes.get(at..at.checked_add(width)?)?;
    usize::try_from(field.iter().rev().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte))).ok()
}

fn text_at(names: &[u8], at: usize) -> Option<&str> {
    let rest = names.get(at..)?;
    std::str::from_utf8(&rest[..rest.iter().position(|&byte| byte == 0)?]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file of these sections, the table of their names last.
    fn elf(sections: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let mut names = Vec::new();
        let mut entries = Vec::new();
        let mut bytes = vec![0; 64];
        for (name, contents) in sections {
            entries.push((names.len(), bytes.len(), contents.len()));
            names.extend([name.as_bytes(), b"\0"].concat());
            bytes.extend(contents);
        }
        entries.push((names.len(), bytes.len(), names.len() + 1));
        names.push(0);
        bytes.extend(&names);
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let table = bytes.len() as u64;
        bytes[0x28..0x30].copy_from_slice(&table.to_le_bytes());
        for (at, value) in [(0x3a, 64), (0x3c, entries.len()), (0x3e, entries.len() - 1)] {
            bytes[at..at + 2].copy_from_slice(&(value as u16).to_le_bytes());
        }
        for (name, offset, len) in entries {
            let mut entry = [0; 64];
            entry[..4].copy_from_slice(&(name as u32).to_le_bytes());
            entry[4] = 1;
            entry[0x18..0x20].copy_from_slice(&(offset as u64).to_le_bytes());
            entry[0x20..0x28].copy_from_slice(&(len as u64).to_le_bytes());
            bytes.extend(entry);
        }
        bytes
    }

    #[test]
    fn only_a_whole_elf_file_is_read() {
        let whole = elf(&[(".text", vec![0; 100])]);
        assert_eq!(parameter_bytes(&whole), Some(BTreeMap::new()));
        assert!((0..whole.len()).all(|len| parameter_bytes(&whole[..len]).is_none()));

        let mut beyond = whole.clone();
        let entry = whole.len() - 2 * 64;
        beyond[entry + 0x20] = 255;
        assert_eq!(parameter_bytes(&beyond), None, "a section that ends beyond the file");
    }

    #[test]
    fn the_parameters_of_each_kernel_are_found_after_records_of_any_form() {
        let three = [&[4, 0x17, 4, 0, 1, 2, 3, 4][..], &[1, 0x35, 0, 0], &[3, 0x19, 24, 0], &[3, 0x1b, 0, 1]].concat();
        let wide = vec![3, 0x19, 0x00, 0x01];
        let none = vec![3, 0x1b, 0xff, 0];
        let cut = vec![4, 0x17, 200, 0, 3, 0x19, 8, 0];
        let file = elf(&[
            (".nv.info", vec![3, 0x19, 8, 0]),
            (".nv.info.three", three),
            (".nv.info.wide", wide),
            (".nv.info.none", none),
            (".nv.info.cut", cut),
        ]);
        let expected = [("three", 24), ("wide", 256)].map(|(name, bytes)| (name.to_owned(), bytes));
        assert_eq!(parameter_bytes(&file), Some(BTreeMap::from(expected)));
    }
}
