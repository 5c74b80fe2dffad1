//! What an answer warns of: requests run in spite of it.

use super::fields::Fields;
use super::problem::Problem;
use super::served::Served;

/// A warning for each field that nobody took.
pub fn unknown(fields: &Fields) -> Vec<String> {
    fields.left().into_iter().map(|name| format!("`{name}` is not known here and has no effect")).collect()
}

/// A warning where another model was asked for.
pub fn model_warning(fields: &mut Fields, served: &Served) -> Result<Option<String>, Problem> {
    let asked = fields.text("model")?.filter(|asked| *asked != served.name);
    Ok(asked.map(|asked| format!("this server runs {}, not {asked}", served.name)))
}
