//! The graph as Graphviz reads it.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::text::{Names, attributes, quoted};
use super::verify::role_words;
use super::{Graph, NodeId, Op, Results};

impl Graph {
    /// The graph in DOT: a box a node, a frame a layer, an arrow from each result to its users, named by what the operand is.
    pub fn to_dot(&self) -> String {
        let names = Names::of(self);
        let mut layers: BTreeMap<Option<usize>, String> = BTreeMap::new();
        let mut arrows = String::new();
        for &node in names.live() {
            let layer = self.node(node).layer;
            let indent = if layer.is_some() { "    " } else { "  " };
            let style = match self.op(node) {
                Op::Weight(_) => ", style=filled, fillcolor=\"#eeeeee\"",
                Op::Input(_) | Op::State(_) => ", style=filled, fillcolor=\"#ddeeff\"",
                _ => "",
            };
            let boxes = layers.entry(layer).or_default();
            put(
                boxes,
                format_args!("{indent}n{} [label={}{style}];", node.index(), quoted(&label(self, &names, node))),
            );
            for (value, role) in self.operands(node).into_iter().zip(self.op(node).roles()) {
                let (from, to) = (value.node.index(), node.index());
                put(&mut arrows, format_args!("  n{from} -> n{to} [label={}];", quoted(&role_words(role))));
            }
        }
        for (i, output) in self.outputs.iter().enumerate() {
            put(layers.entry(None).or_default(), format_args!("  out{i} [label=\"output {i}\", shape=ellipse];"));
            put(
                &mut arrows,
                format_args!("  n{} -> out{i} [label={}];", output.node.index(), quoted(&names.name(*output))),
            );
        }
        let mut dot = format!("digraph {} {{\n  node [shape=box, fontname=monospace];\n", quoted(&self.name));
        for (layer, boxes) in &layers {
            match layer {
                Some(layer) => put(
                    &mut dot,
                    format_args!("  subgraph cluster_{layer} {{\n    label=\"layer {layer}\";\n{boxes}  }}"),
                ),
                None => dot.push_str(boxes),
            }
        }
        dot + &arrows + "}\n"
    }
}

/// What stands in a box: the op, its name in the checkpoint, its attributes, its results with their types.
fn label(graph: &Graph, names: &Names, id: NodeId) -> String {
    let node = graph.node(id);
    let mut lines = vec![node.op.name()];
    if let Some(name) = node.op.leaf() {
        lines.push(name.clone());
    }
    let attributes = attributes(&node.op, node.results.len());
    if !attributes.is_empty() {
        lines.push(attributes);
    }
    for (result, ty) in node.results.iter().enumerate() {
        lines.push(format!("{} : {ty}", names.name(id.result(result))));
    }
    lines.join("\n")
}

fn put(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("writing to a string");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_frames_and_arrows() {
        let graph = Graph::parse(
            r#"graph "one"
%0 = input "x" : f32[T, 4]
%1 = weight "n" : bf16[4] @0
%2 = rms_norm %0 %1 {eps=1e-5} : f32[T, 4] @0
return %2"#,
        )
        .expect("it is a graph");
        assert_eq!(
            graph.to_dot(),
            r##"digraph "one" {
  node [shape=box, fontname=monospace];
  n0 [label="input\nx\n%0 : f32[T, 4]", style=filled, fillcolor="#ddeeff"];
  out0 [label="output 0", shape=ellipse];
  subgraph cluster_0 {
    label="layer 0";
    n1 [label="weight\nn\n%1 : bf16[4]", style=filled, fillcolor="#eeeeee"];
    n2 [label="rms_norm\neps=1e-5\n%2 : f32[T, 4]"];
  }
  n0 -> n2 [label="x"];
  n1 -> n2 [label="norm weight"];
  n2 -> out0 [label="%2"];
}
"##
        );
    }
}
