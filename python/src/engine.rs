//! The model that Python asks.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use fuserun::backend::Device;
use fuserun::hub;
use fuserun::llm::{LlmOptions, start};
use fuserun::model::{ModelName, OpenModel};
use fuserun::serve::{Asked as Request, Local, Question};
use pyo3::prelude::*;
use serde_json::{Map, Value, json};

use crate::convert::{failed, object, refused, wrong};
use crate::job::{ENDED, Job, LogitsJob, ResponseJob};
use crate::mail::{Bell, Mailbox};

/// A model that is loaded, until it is ended.
#[pyclass(frozen)]
pub struct Engine {
    local: RwLock<Option<Arc<Local>>>,
    notes: Vec<String>,
}

/// What is to go on: the tokens of a text, or none for a conversation; and the fields of the HTTP API, in JSON.
type Asking = (Option<Vec<u32>>, String);

/// The job, the prompts that conversations became, and what to warn of.
type Asked = (Job, Vec<Option<Vec<u32>>>, Vec<String>);

impl Engine {
    fn local(&self) -> PyResult<Arc<Local>> {
        let local = self.local.read().unwrap_or_else(PoisonError::into_inner).clone();
        let local = local.ok_or_else(|| failed(ENDED))?;
        match local.failure() {
            Some(message) => Err(failed(message)),
            None => Ok(local),
        }
    }
}

/// The options that Python gives, from JSON.
struct Given {
    name: ModelName,
    options: LlmOptions,
    pull: bool,
}

fn given(json: &str) -> PyResult<Given> {
    let given = object(json)?;
    let text = |key: &str| given.get(key).and_then(Value::as_str);
    let path = |key: &str| text(key).map(PathBuf::from);
    let count = |key: &str| -> PyResult<Option<usize>> {
        match given.get(key).filter(|value| !value.is_null()) {
            None => Ok(None),
            Some(value) => {
                match value.as_u64().and_then(|count| usize::try_from(count).ok()).filter(|count| *count > 0) {
                    Some(count) => Ok(Some(count)),
                    None => Err(wrong(format!("{key} is {value}; give a whole number from 1 on"))),
                }
            }
        }
    };
    let off = ModelName::default();
    let parsed = |error: anyhow::Error| wrong(format!("{error:#}"));
    let name = ModelName {
        model: path("model"),
        checkpoint: path("checkpoint"),
        description: path("description"),
        dummy_weights: given.get("dummy_weights") == Some(&Value::Bool(true)),
        tuning: text("tuning")
            .map(|text| text.parse().unwrap_or_else(|never: Infallible| match never {}))
            .unwrap_or(off.tuning),
        weights: text("weights").map(str::parse).transpose().map_err(wrong)?.unwrap_or(off.weights),
        passes: off.passes,
    };
    let default = LlmOptions::default();
    let device: Device = text("device").unwrap_or("auto").parse().map_err(parsed)?;
    if device == Device::Interpreter {
        return Err(wrong("device is interpreter, which computes logits only; give auto, cpu, gpu or cuda:N"));
    }
    let options = LlmOptions {
        name: text("served_model_name").map(str::to_owned),
        device,
        context: count("max_model_len")?,
        most_context: count("most_model_len")?.unwrap_or(default.most_context),
        slots: count("max_num_seqs")?,
        most_slots: count("most_slots")?.unwrap_or(default.most_slots),
        threads: count("threads")?,
    };
    Ok(Given { name, options, pull: given.get("pull") == Some(&Value::Bool(true)) })
}

/// The model, and what was told of it.
fn load(Given { name, options, pull }: &Given) -> PyResult<(Local, Vec<String>)> {
    if *pull {
        fetch(name).map_err(|error| failed(format!("{error:#}")))?;
    }
    let model = OpenModel::open(name).map_err(|error| wrong(format!("{error:#}")))?;
    let mut notes = Vec::new();
    let local = start(model, options, &mut |note| notes.push(note));
    Ok((local.map_err(|error| failed(format!("{error:#}")))?, notes))
}

/// Gets what is named of the hub and not there.
fn fetch(name: &ModelName) -> anyhow::Result<()> {
    for path in name.model.iter().chain(&name.checkpoint) {
        let Some(name) = hub::Name::of_path(path) else { continue };
        let settings = hub::Settings::from_environment()?;
        if hub::find(&settings, &name)?.is_none() {
            hub::pull(&settings, &name, &|_| {})?;
        }
    }
    Ok(())
}

#[pymethods]
impl Engine {
    /// Loads a model; the options are an object in JSON. A signal ends the wait for it.
    #[new]
    fn new(py: Python<'_>, options: &str) -> PyResult<Engine> {
        let given = given(options)?;
        let mail = Mailbox::new(None);
        let put = mail.clone();
        // Who does not wait for it any more drops what it gives.
        std::thread::Builder::new().name("load".into()).spawn(move || put.put(load(&given)))?;
        let Some(loaded) = mail.wait(py)?.pop() else { return Err(failed("nothing was loaded")) };
        let (local, notes) = loaded?;
        Ok(Engine { local: RwLock::new(Some(Arc::new(local))), notes })
    }

    /// What is doubtful about the model, and what was chosen where something else was not possible.
    #[getter]
    fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }

    /// What is loaded, in JSON.
    fn about(&self) -> PyResult<String> {
        let local = self.local()?;
        let (tokenizer, defaults) = (local.tokenizer(), local.defaults());
        let end: Vec<u32> = tokenizer.eos().collect();
        let about = json!({
            "name": local.name(), "device": local.device(), "max_model_len": local.context(), "max_num_seqs": local.slots(),
            "chats": local.chats(), "vocab_size": tokenizer.vocabulary_size(), "bos": tokenizer.bos(), "eos": end,
            "defaults": {
                "temperature": if defaults.samples { defaults.temperature.map_or(1.0, decimal) } else { 0.0 },
                "top_p": defaults.top_p.map(decimal), "top_k": defaults.top_k, "min_p": defaults.min_p.map(decimal),
                "repetition_penalty": defaults.repetition_penalty.map(decimal), "max_tokens": defaults.max_new_tokens,
            },
        });
        Ok(about.to_string())
    }

    /// The tokens of a text. `special`: with those that the model expects around one; `prompt`: but none that ends it.
    fn encode(&self, py: Python<'_>, text: &str, special: bool, prompt: bool) -> PyResult<Vec<u32>> {
        let local = self.local()?;
        let tokenizer = local.tokenizer();
        py.detach(|| if prompt { tokenizer.encode_prompt(text) } else { tokenizer.encode(text, special) })
            .map_err(|error| wrong(format!("{error:#}")))
    }

    /// The text of tokens.
    fn decode(&self, py: Python<'_>, tokens: Vec<u32>, skip_special: bool) -> PyResult<String> {
        let local = self.local()?;
        py.detach(|| local.tokenizer().decode(&tokens, skip_special)).map_err(|error| wrong(format!("{error:#}")))
    }

    /// The id of a token as the vocabulary spells it.
    fn token_to_id(&self, token: &str) -> PyResult<Option<u32>> {
        Ok(self.local()?.tokenizer().token_to_id(token))
    }

    /// The vocabulary's spelling of an id.
    fn id_to_token(&self, id: u32) -> PyResult<Option<String>> {
        Ok(self.local()?.tokenizer().id_to_token(id))
    }

    /// The text and the tokens of a conversation: `messages`, `tools`, `variables` and `begins` of an object in JSON.
    fn render(&self, py: Python<'_>, conversation: &str) -> PyResult<(String, Vec<u32>)> {
        let (local, mut given) = (self.local()?, object(conversation)?);
        let list = |value: Option<Value>| match value {
            Some(Value::Array(list)) => list,
            _ => Vec::new(),
        };
        let (messages, tools) = (list(given.remove("messages")), list(given.remove("tools")));
        let variables = match given.remove("variables") {
            Some(Value::Object(map)) => map,
            _ => Map::new(),
        };
        let begins = given.get("begins") != Some(&Value::Bool(false));
        py.detach(|| local.rendered(messages, tools, variables, begins)).map_err(|refusal| refused(&refusal))
    }

    /// Asks questions, all or none; gives the prompts of conversations too, and what to warn of. `whole`: nothing is told of an answer before it has ended.
    #[pyo3(signature = (asking, whole, bell=None))]
    fn ask(&self, py: Python<'_>, asking: Vec<Asking>, whole: bool, bell: Option<&Bell>) -> PyResult<Asked> {
        let local = self.local()?;
        py.detach(|| {
            let question = |(index, (prompt, fields)): (usize, Asking)| -> PyResult<(Question, Option<Vec<u32>>)> {
                let chats = prompt.is_none();
                let question = match prompt {
                    Some(prompt) => local.completion(prompt, object(&fields)?),
                    None => local.chat(object(&fields)?),
                };
                let question = question.map_err(|refusal| match index {
                    0 => refused(&refusal),
                    _ => refused(&refusal.of(&format!("prompt {index}"))),
                })?;
                let prompt = chats.then(|| question.prompt().to_vec());
                Ok((question, prompt))
            };
            let questions = asking.into_iter().enumerate().map(question).collect::<PyResult<Vec<_>>>()?;
            let (questions, prompts): (Vec<Question>, _) = questions.into_iter().unzip();
            let mut warnings: Vec<String> = questions.iter().flat_map(Question::warnings).cloned().collect();
            warnings.dedup();
            Ok((Job::start(&local, questions, whole, bell), prompts, warnings))
        })
    }

    /// The logits after each of these tokens.
    fn logits(&self, tokens: Vec<u32>) -> PyResult<LogitsJob> {
        let local = self.local()?;
        local.check_prompt(&tokens).map_err(|refusal| refused(&refusal))?;
        Ok(LogitsJob::start(&local, tokens))
    }

    /// Answers a request of HTTP.
    #[pyo3(signature = (method, path, headers, body, bell=None))]
    fn request(
        &self,
        method: String,
        path: String,
        headers: Vec<(Vec<u8>, Vec<u8>)>,
        body: Vec<u8>,
        bell: Option<&Bell>,
    ) -> PyResult<ResponseJob> {
        ResponseJob::start(&*self.local()?, Request { method, path, headers, body }, bell)
    }

    /// Ends the model: what is being answered is cut off, and its memory is given back.
    fn exit(&self, py: Python<'_>) -> PyResult<()> {
        let local = self.local.write().unwrap_or_else(PoisonError::into_inner).take();
        let Some(local) = local else { return Ok(()) };
        py.detach(|| match Arc::try_unwrap(local) {
            Ok(local) => local.stop().map_err(|error| failed(format!("{error:#}"))),
            // Another thread is about to ask: it finds that the model is not running.
            Err(local) => {
                local.end();
                Ok(())
            }
        })
    }
}

/// A number as a user would write it.
fn decimal(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}
