//! Model descriptions: TOML and config.json to a checked, flat list of operations. Errors carry the file's line and column.
//!
//! A description is read ([`Description::parse`]) and then resolved ([`Description::resolve`]); what comes out has no expressions left.
//! [`SIGNATURES`] is the table of operations. The language:
//!
#![doc = include_str!("../../../docs/description.md")]

mod call;
mod config;
mod diagnostics;
mod document;
mod expr;
mod facts;
mod features;
mod flow;
mod inert;
mod lacking;
mod line;
mod quantised;
mod read;
mod reader;
mod reference;
mod resolve;
mod rope;
mod schema;
mod serving;
mod shipped;
mod signature;
mod text_config;
mod user;
mod value;

pub use call::{AttrValue, Call, Resolved};
pub use config::view as config_view;
pub use diagnostics::{Code, Diagnostic, Diagnostics, Help, Source, Span};
pub use document::Description;
pub use facts::{Beyond, Facts, Spare};
pub use lacking::{also_served, lacking, lacking_in_gguf};
pub use quantised::{Group, QUANTISED_INSTEAD, Quantisation, quantised_tensor};
pub use reference::operations;
pub use resolve::MAX_LAYERS;
pub use rope::Scaling;
pub use schema::json_schema;
pub use serving::find_for;
pub use shipped::shipped;
pub use signature::{Attribute, Default, INPUTS, Kind, OpName, RESULT, Role, SIGNATURES, Signature};
pub use text_config::{architectures, language_model_config, language_model_names};
pub use user::{find_named, find_serving, user_folder};
pub use value::Value;

impl Description {
    /// Reads a description. `file_name` is what messages call it.
    ///
    /// # Errors
    /// Everything that is wrong with the file in itself, as far as it shows without a configuration.
    pub fn parse(text: &str, file_name: &str) -> Result<Description, Diagnostics> {
        read::read(text, file_name)
    }

    /// Evaluates the description for `config`, a checkpoint's config.json; for the file's preset where it is `None`. A checkpoint's configuration
    /// is never completed from the preset.
    ///
    /// # Errors
    /// A key that is missing, an expression without a value, an architecture that the file does not serve, a feature that it does not honour.
    pub fn resolve(&self, config: Option<&serde_json::Value>) -> Result<Resolved, Diagnostics> {
        resolve::resolve(self, config)
    }
}
