//! Pieces of sources, found in any layout.

use crate::layout::{significant, without_layout};

/// The source with every `from`, whatever its layout there, replaced by `to`; `None` where it has none.
pub fn replaced(source: &str, from: &str, to: &str) -> Option<String> {
    let (letters, piece) = (significant(source), without_layout(from));
    let text: String = letters.iter().map(|&(_, letter)| letter).collect();
    // Where each byte of `text` stands in the source.
    let places: Vec<usize> =
        letters.iter().flat_map(|&(place, letter)| std::iter::repeat_n(place, letter.len_utf8())).collect();
    let (mut result, mut copied) = (String::new(), 0);
    for (at, _) in text.match_indices(&piece) {
        result += &source[copied..places[at]];
        result += to;
        let last = text[..at + piece.len()].chars().next_back()?;
        copied = places[at + piece.len() - 1] + last.len_utf8();
    }
    (copied > 0).then(|| result + &source[copied..])
}

#[test]
fn layout_does_not_count() {
    let one = "int  f(u32 a) {\n  return a ;  // twice\n}\n#if A\n  g( );\n#endif\n";
    let other = "int f(u32 a)\n{ return a;// twice\n}\n\n  #if A\ng();\n#endif\n";
    assert_eq!(without_layout(one), without_layout(other));
    for different in ["intf(", "returna", "// twice }", "#if A g"] {
        assert!(!without_layout(one).contains(&without_layout(different)), "{different}");
    }
}

#[test]
fn a_piece_is_found_in_any_layout() {
    let source = "  a ( b,\n     c );  // é\n  d();\n";
    assert_eq!(replaced(source, "a(b, c)", "e()").unwrap(), "  e();  // é\n  d();\n");
    assert_eq!(replaced(source, "  d();\n", "").unwrap(), "  a ( b,\n     c );  // é\n  \n");
    assert_eq!(replaced(source, "// é\nd", "f").unwrap(), "  a ( b,\n     c );  f();\n");
    assert_eq!(replaced(source, "bc", ""), None);
    assert_eq!(replaced("x x\nx", "x", "y").unwrap(), "y y\ny");
}
