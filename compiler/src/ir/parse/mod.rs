//! The text form, read.

mod error;
mod op;
mod scan;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};

pub use self::error::ParseError;

use self::scan::Scan;
use super::{Dim, Format, Graph, NodeId, Results, Type, Value};

impl Graph {
    /// Reads the text form. Values may have any names; each is defined once, before its uses. The `graph` line may be
    /// left out, `return` comes last. Types are read, not checked: that is [`verify`](super::verify)'s.
    ///
    /// # Errors
    /// Text that is no graph.
    pub fn parse(text: &str) -> Result<Graph, ParseError> {
        Graph::parse_with_lines(text).map(|(graph, _)| graph)
    }

    /// Reads the text form, and returns the line that each node stands on.
    ///
    /// # Errors
    /// Text that is no graph.
    pub fn parse_with_lines(text: &str) -> Result<(Graph, BTreeMap<NodeId, usize>), ParseError> {
        let mut reader = Reader::default();
        let mut last = 1;
        for (number, line) in (1..).zip(text.lines()) {
            let mut scan = Scan::new(number, line);
            if !scan.at_end() {
                reader.statement(&mut scan, number)?;
            }
            last = number;
        }
        match reader.state {
            State::Returned => Ok((reader.graph, reader.lines)),
            _ => Err(ParseError { line: last, column: 1, message: "the graph has no `return` line".into() }),
        }
    }
}

#[derive(Default)]
struct Reader {
    graph: Graph,
    values: HashMap<String, Value>,
    lines: BTreeMap<NodeId, usize>,
    state: State,
}

#[derive(Default, PartialEq)]
enum State {
    #[default]
    Start,
    Nodes,
    Returned,
}

impl Reader {
    fn statement(&mut self, scan: &mut Scan, line: usize) -> Result<(), ParseError> {
        let column = scan.column();
        if self.state == State::Returned {
            return Err(scan.error_at(column, "nothing may follow `return`"));
        }
        if scan.peek() == Some('%') {
            self.state = State::Nodes;
            self.node(scan, line)?;
        } else {
            match scan.word("`%name = …`, `graph` or `return`")?.as_str() {
                "graph" if self.state == State::Start => {
                    self.graph.name = scan.quoted()?;
                    self.state = State::Nodes;
                }
                "graph" => return Err(scan.error_at(column, "`graph` belongs on the first line")),
                "return" => {
                    self.graph.outputs = self.returned(scan)?;
                    self.state = State::Returned;
                }
                word => {
                    let message = format!("expected `%name = …`, `graph` or `return`, found `{word}`");
                    return Err(scan.error_at(column, message));
                }
            }
        }
        if scan.at_end() { Ok(()) } else { Err(scan.expected("the end of the line")) }
    }

    /// `%a, %b = op "name" %x %y {attributes} : type, type @layer`
    fn node(&mut self, scan: &mut Scan, line: usize) -> Result<(), ParseError> {
        let mut names: Vec<String> = Vec::new();
        loop {
            let column = scan.column();
            let name = scan.value_name()?;
            if self.values.contains_key(&name) || names.contains(&name) {
                return Err(scan.error_at(column, format!("%{name} is defined already")));
            }
            names.push(name);
            if !scan.eat(',') {
                break;
            }
        }
        scan.expect('=')?;
        let op_column = scan.column();
        let op_name = scan.word("an op")?;
        let leaf = if scan.peek() == Some('"') { Some(scan.quoted()?) } else { None };
        let mut operands = Vec::new();
        while scan.peek() == Some('%') {
            operands.push(self.used(scan)?);
        }
        let attributes = if scan.eat('{') { scan.attributes('}')? } else { Vec::new() };
        scan.expect(':').map_err(|_| scan.expected("a value, `{` or `:` and the type"))?;
        let types_column = scan.column();
        let mut types = vec![read_type(scan)?];
        while scan.eat(',') {
            types.push(read_type(scan)?);
        }
        if types.len() != names.len() {
            let message = format!("{} named, but {}", counted(names.len(), "value"), counted(types.len(), "type"));
            return Err(scan.error_at(types_column, message));
        }
        let layer = if scan.eat('@') { Some(scan.count("the layer's number")?) } else { None };
        let op = op::build(scan, op_column, &op_name, leaf, attributes, types.len())?;
        let node = self.graph.add(op, &operands, types, layer);
        self.values.extend(names.into_iter().enumerate().map(|(result, name)| (name, node.result(result))));
        self.lines.insert(node, line);
        Ok(())
    }

    fn returned(&self, scan: &mut Scan) -> Result<Vec<Value>, ParseError> {
        let mut outputs = Vec::new();
        while !scan.at_end() {
            if !outputs.is_empty() {
                scan.expect(',')?;
            }
            outputs.push(self.used(scan)?);
        }
        Ok(outputs)
    }

    fn used(&self, scan: &mut Scan) -> Result<Value, ParseError> {
        let column = scan.column();
        let name = scan.value_name()?;
        let unknown = || scan.error_at(column, format!("%{name} is not defined above"));
        self.values.get(&name).copied().ok_or_else(unknown)
    }
}

fn read_type(scan: &mut Scan) -> Result<Type, ParseError> {
    let column = scan.column();
    let name = scan.word("a type such as `f32[T, 64]`")?;
    let all = || Format::ALL.map(Format::name).join(", ");
    let unknown = || scan.error_at(column, format!("unknown element type `{name}`; there are {}", all()));
    let format = Format::of_name(&name).ok_or_else(unknown)?;
    scan.expect('[')?;
    let mut shape = Vec::new();
    while !scan.eat(']') {
        if !shape.is_empty() {
            scan.expect(',').map_err(|_| scan.expected("`,` or `]`"))?;
        }
        shape.push(match scan.peek() {
            Some('T') if scan.eat('T') => Dim::Tokens,
            Some('C') if scan.eat('C') => Dim::Context,
            _ => Dim::Fixed(scan.count("a size, `T` or `C`")?),
        });
    }
    Ok(Type { format, shape })
}

/// `1 value`, `2 values`.
pub(super) fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}
