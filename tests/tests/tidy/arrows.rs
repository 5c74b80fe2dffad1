//! The files of a crate, and the arrows between them: from each file to every other whose items it names outside its tests.
//!
//! A path that begins with `crate`, `super`, `self`, a module of the file or a name that it imports leads to the file that defines the item: what other files
//! re-export on the way is followed. So a file that only declares and re-exports its children has no arrow to them, and one that names an item of theirs in its
//! code has. Two things are not seen: a method, which belongs to its type wherever it is written, and a path that a macro puts together.

use std::collections::{BTreeMap, BTreeSet};

/// Where a module is: its names from the crate's root.
type Module = Vec<String>;

/// One file of a crate.
#[derive(Default)]
pub struct File {
    /// Its path below the folder of sources.
    pub path: String,
    /// Paths in its code and its imports, as they are written: `fusec::plan::Plan`.
    pub paths: Vec<Vec<String>>,
    imports: Vec<Import>,
    globs: Vec<Vec<String>>,
    words: BTreeSet<String>,
    children: BTreeSet<String>,
}

struct Import {
    name: String,
    path: Vec<String>,
    exported: bool,
}

/// The files of a crate by their modules.
pub struct Crate(BTreeMap<Module, File>);

impl Crate {
    /// Reads a crate of files: paths below its folder of sources, and texts. Files of tests are left out.
    pub fn read(files: impl IntoIterator<Item = (String, String)>) -> Crate {
        let is_test = |path: &String| {
            let name = path.rsplit('/').next().unwrap_or_default();
            ["tests.rs", "test_file.rs", "testing.rs", "main.rs"].contains(&name)
        };
        let files = files.into_iter().filter(|(path, _)| !is_test(path));
        Crate(files.map(|(path, text)| (module_of(&path), File::read(path, &text))).collect())
    }

    /// The files.
    pub fn files(&self) -> impl Iterator<Item = &File> {
        self.0.values()
    }

    /// For each file, the files that it names and the first name of each, by path.
    pub fn arrows(&self) -> BTreeMap<&str, BTreeMap<&str, String>> {
        let mut arrows: BTreeMap<&str, BTreeMap<&str, String>> = BTreeMap::new();
        for (module, file) in &self.0 {
            let to = arrows.entry(&file.path).or_default();
            for path in file.named() {
                let Some((found, whole)) = self.resolve(module, path, &mut BTreeSet::new()) else { continue };
                // What is used of a whole module, the code says.
                let other = if whole { None } else { self.0.get(&found) };
                if let Some(other) = other.filter(|other| other.path != file.path) {
                    to.entry(&other.path).or_insert_with(|| path.join("::"));
                }
            }
        }
        arrows
    }

    /// The circles: files each of which leads to all others, with the arrows between them.
    pub fn circles(&self) -> Vec<String> {
        let arrows = self.arrows();
        let reached: BTreeMap<&str, BTreeSet<&str>> =
            arrows.keys().map(|path| (*path, reached(&arrows, path))).collect();
        let mut told = BTreeSet::new();
        let mut circles = Vec::new();
        for (file, to) in &reached {
            let circle: Vec<&str> = to.iter().copied().filter(|other| reached[other].contains(file)).collect();
            if circle.is_empty() || !told.insert(circle.clone()) {
                continue;
            }
            let inside = |path: &&str| circle.contains(path);
            let mut lines = vec![format!("a circle of {} files:", circle.len())];
            for from in circle.iter().copied() {
                let of = arrows[from].iter().filter(|(to, _)| inside(to));
                lines.extend(of.map(|(to, name)| format!("  {from} names {name} of {to}")));
            }
            circles.push(lines.join("\n"));
        }
        circles
    }

    /// The module that a path of `module` ends in, and whether the path names it as a whole; none for what is of another crate, or of the file's own scopes.
    fn resolve(
        &self,
        module: &Module,
        path: &[String],
        seen: &mut BTreeSet<(Module, String)>,
    ) -> Option<(Module, bool)> {
        let mut at = module.clone();
        let mut rest = path;
        let mut anchored = false;
        while let Some(anchor) = rest.first().filter(|name| ["crate", "self", "super"].contains(&name.as_str())) {
            match anchor.as_str() {
                "crate" => at.clear(),
                "super" => drop(at.pop()),
                _ => {}
            }
            anchored = true;
            rest = &rest[1..];
        }
        while let Some(name) = rest.first() {
            let file = self.0.get(&at)?;
            if file.children.contains(name) {
                at.push(name.clone());
            } else if let Some(import) = file.imports.iter().find(|import| import.name == *name) {
                if !seen.insert((at.clone(), name.clone())) {
                    return None;
                }
                let (found, whole) = self.resolve(&at, &import.path, seen)?;
                if !whole {
                    return Some((found, false));
                }
                at = found;
            } else {
                return anchored.then_some((at, false));
            }
            anchored = true;
            rest = &rest[1..];
        }
        Some((at, true))
    }
}

fn reached<'a>(arrows: &BTreeMap<&'a str, BTreeMap<&'a str, String>>, from: &str) -> BTreeSet<&'a str> {
    let mut found = BTreeSet::new();
    let mut queue: Vec<&'a str> = arrows[from].keys().copied().collect();
    while let Some(path) = queue.pop() {
        if found.insert(path) {
            queue.extend(arrows[path].keys());
        }
    }
    found
}

fn module_of(path: &str) -> Module {
    let mut names: Module = path.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
    names.pop_if(|name| ["mod", "lib"].contains(&name.as_str()));
    names
}

impl File {
    fn read(path: String, text: &str) -> File {
        let mut file = File { path, ..File::default() };
        let tokens = tokens(text);
        // Where each module that is written out in the file ends.
        let mut inner: Vec<usize> = Vec::new();
        let mut exported = false;
        let mut at = 0;
        while at < tokens.len() {
            inner.retain(|end| at < *end);
            let is = |offset: usize, token: &str| tokens.get(at + offset).is_some_and(|found| found == token);
            if ["#", "[", "cfg", "(", "test", ")", "]"].iter().enumerate().all(|(offset, token)| is(offset, token)) {
                at = end_of_item(&tokens, at + 7);
            } else if is(0, "pub") {
                exported = true;
                at = if is(1, "(") { closed(&tokens, at + 1) } else { at + 1 };
                continue;
            } else if is(0, "mod") && is(2, ";") {
                file.children.insert(tokens[at + 1].clone());
                at += 3;
            } else if is(0, "mod") && is(2, "{") {
                inner.push(closed(&tokens, at + 2));
                at += 3;
            } else if is(0, "use") {
                let end = end_of_item(&tokens, at);
                file.take_imports(&tokens[at + 1..end - 1], &[], exported, inner.len());
                at = end;
            } else if is_name(&tokens[at]) {
                let mut path = vec![tokens[at].clone()];
                while tokens.get(at + 1).is_some_and(|token| token == "::")
                    && let Some(name) = tokens.get(at + 2).filter(|token| is_name(token))
                {
                    path.push(name.clone());
                    at += 2;
                }
                file.words.insert(path[0].clone());
                if path.len() > 1 {
                    file.paths.push(outward(path, inner.len()));
                }
                at += 1;
            } else {
                at += 1;
            }
            exported = false;
        }
        file
    }

    /// Takes the names of a `use`, whose tokens stand after `before`.
    fn take_imports(&mut self, tokens: &[String], before: &[String], exported: bool, depth: usize) {
        let mut path = before.to_vec();
        let mut at = 0;
        while at < tokens.len() {
            match tokens[at].as_str() {
                "::" => {}
                "{" => {
                    let end = closed(tokens, at);
                    let mut start = at + 1;
                    let mut open = 0;
                    for next in at + 1..end {
                        match tokens[next].as_str() {
                            "{" => open += 1,
                            "}" if next + 1 < end => open -= 1,
                            "," if open == 0 => {
                                self.take_imports(&tokens[start..next], &path, exported, depth);
                                start = next + 1;
                            }
                            _ => {}
                        }
                    }
                    self.take_imports(&tokens[start..end - 1], &path, exported, depth);
                    return;
                }
                "*" => return self.globs.push(outward(path, depth)),
                "as" => break,
                name => path.push(name.to_owned()),
            }
            at += 1;
        }
        // An empty place after the last comma of a list.
        if tokens.is_empty() {
            return;
        }
        if path.len() > 1 && path.last().is_some_and(|name| name == "self") {
            path.pop();
        }
        let name = tokens.get(at + 1).or(path.last()).cloned().unwrap_or_default();
        let path = outward(path, depth);
        self.paths.push(path.clone());
        // A module that is written out in the file takes a name from the file around it.
        if path != ["self", name.as_str()] {
            self.imports.push(Import { name, path, exported });
        }
    }

    /// The paths that count: all but those that are re-exported and not used.
    fn named(&self) -> impl Iterator<Item = &Vec<String>> {
        let only_exported = |path: &Vec<String>| {
            let mut same = self.imports.iter().filter(|import| import.path == *path).peekable();
            same.peek().is_some() && same.all(|import| import.exported && !self.words.contains(&import.name))
        };
        self.paths.iter().filter(move |path| !only_exported(path)).chain(&self.globs)
    }
}

/// A path of a module that stands `depth` modules deep in its file, as the file itself would write it.
fn outward(mut path: Vec<String>, depth: usize) -> Vec<String> {
    let supers = path.iter().take_while(|name| *name == "super").count().min(depth);
    path.drain(..supers);
    if supers > 0 && path.first().is_none_or(|name| name != "super") {
        path.insert(0, "self".to_owned());
    }
    path
}

/// After the item that begins at `at`: its `;`, or the end of its braces.
fn end_of_item(tokens: &[String], at: usize) -> usize {
    let is_use = tokens.get(at).is_some_and(|token| token == "use");
    let ends = |token: &String| token == ";" || token == "{" && !is_use;
    match tokens[at..].iter().position(ends) {
        Some(offset) if tokens[at + offset] == "{" => closed(tokens, at + offset),
        Some(offset) => at + offset + 1,
        None => tokens.len(),
    }
}

/// After the bracket that closes the one at `at`.
fn closed(tokens: &[String], at: usize) -> usize {
    let mut open = 0;
    for (offset, token) in tokens[at..].iter().enumerate() {
        match token.as_str() {
            "{" | "(" | "[" => open += 1,
            "}" | ")" | "]" => open -= 1,
            _ => {}
        }
        if open == 0 {
            return at + offset + 1;
        }
    }
    tokens.len()
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
}

/// Names, `::` and single marks; no comments, and nothing of texts.
fn tokens(text: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let is_part = |c: char| c.is_alphanumeric() || c == '_';
        let word = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
        let hashes = rest[word..].len() - rest[word..].trim_start_matches('#').len();
        let taken = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if ["r", "br", "cr"].contains(&&rest[..word]) && rest[word + hashes..].starts_with('"') {
            let inside = word + hashes + 1;
            let end = format!("\"{}", "#".repeat(hashes));
            rest[inside..].find(&end).map_or(rest.len(), |at| inside + at + end.len())
        } else if ["", "b", "c"].contains(&&rest[..word]) && rest[word..].starts_with('"') {
            word + 1 + quoted(&rest[word + 1..], '"')
        } else if c == '\'' && is_letter(rest) {
            1 + quoted(&rest[1..], '\'')
        } else if word > 0 {
            tokens.push(rest[..word].to_owned());
            word
        } else if rest.starts_with("::") {
            tokens.push("::".to_owned());
            2
        } else {
            tokens.extend((!c.is_whitespace()).then(|| c.to_string()));
            c.len_utf8()
        };
        rest = &rest[taken..];
    }
    tokens
}

/// Whether a letter in quotes begins here, and no lifetime.
fn is_letter(text: &str) -> bool {
    let mut letters = text.chars().skip(1);
    letters.next() == Some('\\') || letters.next() == Some('\'')
}

/// The length of a text up to and with the quote that ends it.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        if c == quote && !escaped {
            return at + c.len_utf8();
        }
        escaped = c == '\\' && !escaped;
    }
    text.len()
}

#[test]
fn circles_are_found_and_what_is_none_is_not() {
    let of = |files: &[(&str, &str)]| {
        Crate::read(files.iter().map(|(path, text)| (path.to_string(), text.to_string()))).circles()
    };
    // A parent that re-exports, and children that use each other in one direction.
    let sound = [
        ("lib.rs", "mod a;\n"),
        ("a/mod.rs", "//! [`b::B`]\nmod b;\nmod c;\npub use b::B;\npub struct A(char);\nconst Q: char = '\"';\n"),
        (
            "a/b.rs",
            "use super::{A, c::{C, d as e}};\npub struct B(A, C);\n#[cfg(test)]\nmod tests { use crate::a::c; }\n",
        ),
        (
            "a/c.rs",
            "pub struct C; pub fn d() { let s = \"super::b::B\"; }\nmod inner { use super::C; fn f(_: &'static C) {} }\n",
        ),
    ];
    assert_eq!(of(&sound), Vec::<String>::new());
    // The same parent makes what it re-exports.
    let mut uses = sound;
    uses[1].1 = "mod b;\nmod c;\npub use b::B;\npub struct A;\nfn make() -> B { todo() }\n";
    assert_eq!(
        of(&uses),
        ["a circle of 2 files:\n  a/b.rs names super::A of a/mod.rs\n  a/mod.rs names b::B of a/b.rs"]
    );
    // Siblings, one of them through a re-export and only in its code.
    let mut siblings = sound;
    siblings[3].1 = "pub struct C; pub(in crate::a) fn d() { crate::a::B::new(); }\n";
    assert_eq!(
        of(&siblings),
        ["a circle of 2 files:\n  a/b.rs names super::c::C of a/c.rs\n  a/c.rs names crate::a::B::new of a/b.rs"]
    );
}
