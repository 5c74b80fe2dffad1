//! Which values a description defines, reads and forgets, by the file only.
//!
//! Values of `[embed]` are seen by every layer and by `[head]`, and a layer that assigns one of them carries it on; other values of a layer are its own.

use std::collections::BTreeSet;

use super::diagnostics::{Code, Diagnostic, Diagnostics};
use super::document::{Line, Place, Section};
use super::signature::{INPUTS, RESULT};

/// Reports reads of undefined values and values that are never read. `sections` are `[embed]`, `[layer]` and `[head]`, in this order.
pub(super) fn check(sections: &[Section], diagnostics: &mut Diagnostics) {
    let inputs: BTreeSet<&str> = INPUTS.iter().copied().collect();
    let carried: BTreeSet<&str> = sections[0].lines.iter().map(|line| line.out.0.as_str()).collect();
    let mut sound = true;
    for section in sections {
        let mut defined = inputs.clone();
        if section.place != Place::Embed {
            defined.extend(&carried);
        }
        for line in &section.lines {
            for (_, name, span) in &line.values {
                if !defined.contains(name.as_str()) {
                    sound = false;
                    diagnostics.push(undefined(name, section, sections, &defined).at(span.clone(), "read here"));
                }
            }
            defined.insert(&line.out.0);
        }
        if section.place == Place::Head && !defined.contains(RESULT) {
            sound = false;
            let message = format!("[head] does not define `{RESULT}`");
            diagnostics.push(
                Diagnostic::new(Code::UndefinedValue, message)
                    .at(section.span.clone(), "")
                    .help(format!("the last operation of [head] has `out = \"{RESULT}\"`")),
            );
        }
    }
    // A slip in one name makes another value unused: one error is enough.
    if sound {
        unused(sections, &carried, diagnostics);
    }
}

fn undefined(name: &str, section: &Section, sections: &[Section], defined: &BTreeSet<&str>) -> Diagnostic {
    let message = format!("nothing before this line defines `{name}`");
    let mut diagnostic = Diagnostic::new(Code::UndefinedValue, message).suggest(name, defined.iter().copied());
    for other in sections {
        let defines = other.lines.iter().find(|line| line.out.0 == name);
        diagnostic = match defines {
            Some(_) if other.place == section.place => diagnostic.note("it is defined further down"),
            Some(_) if other.place == Place::Layer => {
                diagnostic.note("a value of [layer] ends with its layer, unless [embed] defines it first")
            }
            _ => diagnostic,
        };
    }
    let known: Vec<_> = defined.iter().map(|name| format!("`{name}`")).collect();
    diagnostic.help(format!("defined here: {}", known.join(", ")))
}

fn unused(sections: &[Section], carried: &BTreeSet<&str>, diagnostics: &mut Diagnostics) {
    let [embed, layer, head] = sections else { return };
    let mut dead: Vec<&Line> = Vec::new();
    let after_layers = live_before(&head.lines, BTreeSet::from([RESULT]), &mut dead);
    // What a layer reads, the layer before it must leave: go round until nothing more is wanted.
    let mut after_layer = after_layers;
    loop {
        let before = live_before(&layer.lines, after_layer.clone(), &mut Vec::new());
        let wanted: BTreeSet<&str> =
            after_layer.union(&before).copied().filter(|name| carried.contains(name)).collect();
        if wanted == after_layer {
            break;
        }
        after_layer = wanted;
    }
    let mut before_layers = live_before(&layer.lines, after_layer.clone(), &mut dead);
    before_layers.extend(&after_layer);
    live_before(&embed.lines, before_layers, &mut dead);
    dead.sort_by_key(|line| line.span.start);
    for line in dead {
        let (name, span) = &line.out;
        // The next line of the section that assigns the name: what is read after it is another value.
        let lines =
            sections.iter().map(|section| &section.lines).find(|lines| lines.iter().any(|it| std::ptr::eq(it, line)));
        let later = lines.into_iter().flatten().filter(|other| other.span.start > line.span.start);
        if let Some(again) = later.into_iter().find(|other| other.out.0 == *name) {
            diagnostics.push(
                Diagnostic::new(Code::ShadowedValue, format!("`{name}` is assigned again before anything reads it"))
                    .at(span.clone(), "this value is lost")
                    .at(again.out.1.clone(), "assigned again here")
                    .help("give one of the two another name, or read the first"),
            );
            continue;
        }
        diagnostics.push(
            Diagnostic::new(Code::UnusedValue, format!("nothing reads `{name}`"))
                .at(span.clone(), "assigned here")
                .help("remove the operation, or read its result"),
        );
    }
}

/// The values wanted before `lines`, given those wanted after; lines whose value nobody wants go to `dead`.
fn live_before<'a>(lines: &'a [Line], mut live: BTreeSet<&'a str>, dead: &mut Vec<&'a Line>) -> BTreeSet<&'a str> {
    for line in lines.iter().rev() {
        let out = line.out.0.as_str();
        if !live.contains(out) {
            dead.push(line);
        }
        if line.when.is_none() {
            live.remove(out);
        }
        live.extend(line.values.iter().map(|(_, name, _)| name.as_str()));
    }
    live
}
