//! A model folder in the Hugging Face layout: which graphs, which task, labels, image processor, tokenizer.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::Padding;
use super::graph_files::GraphFiles;
use crate::config::ModelSettings;
use crate::postprocess::FunctionToApply;
use crate::preprocess::ImageProcessor;
use crate::text::Tokenizer;

/// What a model is for; the names are the Hub's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// An image in, labels of the model's own out.
    ImageClassification,
    /// An image and labels in, scores of these labels out.
    ZeroShotImageClassification,
}

impl Task {
    /// The Hub's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::ImageClassification => "image-classification",
            Self::ZeroShotImageClassification => "zero-shot-image-classification",
        }
    }
}

/// What a folder lacks or contradicts.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{file}: {problem}")]
pub struct FolderError {
    /// The file, relative to the folder.
    pub file: String,
    /// The problem, with the key where there is one.
    pub problem: String,
}

impl FolderError {
    pub(super) fn new(file: &str, problem: impl Into<String>) -> Self {
        Self { file: file.to_owned(), problem: problem.into() }
    }
}

/// A folder, read and checked; no graph is opened yet.
pub struct ModelFolder {
    /// The folder's name, by which requests call the model.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// `architectures[0]` of config.json, else its `model_type`.
    pub architecture: String,
    /// How images become tensors.
    pub processor: ImageProcessor,
    /// The graphs, and what their task needs beside them.
    pub content: FolderContent,
}

/// What differs between tasks.
pub enum FolderContent {
    /// One graph, `pixel_values` to `logits`.
    Classifier {
        /// The graph's file.
        graph: PathBuf,
        /// Labels by index; `None` if config.json has none, and the graph tells how many there are.
        labels: Option<Vec<String>>,
        /// What turns logits into scores by default.
        function_to_apply: FunctionToApply,
    },
    /// `pixel_values` to `image_embeds` and `input_ids` to `text_embeds`.
    DualEncoder(Box<DualEncoderFolder>),
}

/// A dual encoder's folder: CLIP, SigLIP and what has their interface.
pub struct DualEncoderFolder {
    /// The image encoder's file.
    pub vision_graph: PathBuf,
    /// The text encoder's file; the same one if both are in one graph.
    pub text_graph: PathBuf,
    /// A graph that holds both encoders and their scale.
    pub combined_graph: Option<PathBuf>,
    /// Of the text encoder.
    pub tokenizer: Tokenizer,
    /// Most tokens of a prompt, special ones included.
    pub max_text_length: usize,
    /// How short prompts are filled up.
    pub padding: Padding,
    /// The factor between cosines and logits itself (CLIP: 100), not its logarithm; `None`: the combined graph has it.
    pub logit_scale: Option<f32>,
    /// What is added to logits (SigLIP); `None`: nothing, or the combined graph has it.
    pub logit_bias: Option<f32>,
    /// What turns logits into scores: softmax over the labels, or SigLIP's sigmoid of each.
    pub function_to_apply: FunctionToApply,
}

impl ModelFolder {
    /// Reads the folder at `path`; `settings` say which of several graphs to take.
    ///
    /// # Errors
    /// The first thing that is missing or wrong, with its file and key.
    pub fn open(path: &Path, settings: &ModelSettings) -> Result<Self, FolderError> {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let config = read_json(path, "config.json")?.ok_or_else(|| {
            FolderError::new("config.json", "is missing; `optimum-cli export onnx` writes it beside the graph")
        })?;
        let model_type = config.get("model_type").and_then(Value::as_str);
        Ok(Self {
            name,
            path: path.to_path_buf(),
            architecture: architecture(&config).or(model_type).unwrap_or("unknown").to_owned(),
            processor: read_processor(path, model_type)?,
            content: read_content(path, &config, model_type, settings)?,
        })
    }

    /// What the folder's model is for.
    pub fn task(&self) -> Task {
        match self.content {
            FolderContent::Classifier { .. } => Task::ImageClassification,
            FolderContent::DualEncoder(_) => Task::ZeroShotImageClassification,
        }
    }
}

fn architecture(config: &Value) -> Option<&str> {
    config.pointer("/architectures/0").and_then(Value::as_str)
}

/// Is this the name of a class such as `ViTForImageClassification` or `DeiTForImageClassificationWithTeacher`?
fn is_classifier(architecture: &str) -> bool {
    architecture.contains("ForImageClassification")
}

fn read_content(
    path: &Path,
    config: &Value,
    model_type: Option<&str>,
    settings: &ModelSettings,
) -> Result<FolderContent, FolderError> {
    // A classifier on the image encoder of CLIP or SigLIP keeps the text encoder's configuration, but not the encoder.
    let is_dual = config.get("text_config").is_some() && !architecture(config).is_some_and(is_classifier);
    let (vision, text, combined) = match GraphFiles::find(path, settings)? {
        GraphFiles::Split { vision, text, combined } => (vision, text, combined),
        GraphFiles::Single(graph) if is_dual => (graph.clone(), graph.clone(), Some(graph)),
        GraphFiles::Single(graph) => {
            let labels = read_labels(config)?;
            let function_to_apply = default_function(config, labels.as_ref().map(Vec::len));
            return Ok(FolderContent::Classifier { graph, labels, function_to_apply });
        }
    };
    read_dual_encoder(path, config, model_type, (vision, text, combined))
}

fn read_dual_encoder(
    path: &Path,
    config: &Value,
    model_type: Option<&str>,
    (vision_graph, text_graph, combined_graph): (PathBuf, PathBuf, Option<PathBuf>),
) -> Result<FolderContent, FolderError> {
    let siglip = model_type.is_some_and(|name| name.starts_with("siglip"));
    let number = |key: &str| match config.get(key).filter(|value| !value.is_null()) {
        None => Ok(None),
        Some(value) => match value.as_f64().map(|number| number as f32).filter(|number| number.is_finite()) {
            Some(number) => Ok(Some(number)),
            None => Err(FolderError::new("config.json", format!("{key} must be a number, not {value}"))),
        },
    };
    let (logit_scale, logit_bias) = (number("logit_scale")?, number("logit_bias")?);
    if logit_scale.is_some_and(|scale| scale <= 0.0) {
        return Err(FolderError::new(
            "config.json",
            "logit_scale must be above 0: the factor itself, not its logarithm",
        ));
    }
    if combined_graph.is_none() {
        if logit_scale.is_none() {
            let problem = "logit_scale is missing: the factor between cosines and logits, which split graphs do not hold (100 \
                           for OpenAI's CLIP; the exponential of the checkpoint's parameter). scripts/export writes it";
            return Err(FolderError::new("config.json", problem));
        }
        if siglip && logit_bias.is_none() {
            let problem = "logit_bias is missing: what SigLIP adds to its logits, which split graphs do not hold";
            return Err(FolderError::new("config.json", problem));
        }
    }
    let tokenizer_config = read_json(path, "tokenizer_config.json")?.unwrap_or(Value::Null);
    let max_text_length = max_text_length(&tokenizer_config, config, siglip)?;
    let json = std::fs::read(locate(path, "tokenizer.json"))
        .map_err(|error| FolderError::new("tokenizer.json", format!("cannot be read: {error}")))?;
    let tokenizer = Tokenizer::from_bytes(&json, max_text_length)
        .map_err(|error| FolderError::new("tokenizer.json", format!("is no tokenizer: {error}")))?;
    // The reference pads with the tokenizer's token; SigLIP 2 has another than its configuration's default.
    let pad_token_id = pad_token(&tokenizer_config, &tokenizer)
        .or_else(|| config.pointer("/text_config/pad_token_id").and_then(Value::as_i64));
    Ok(FolderContent::DualEncoder(Box::new(DualEncoderFolder {
        vision_graph,
        text_graph,
        combined_graph,
        tokenizer,
        max_text_length,
        padding: Padding {
            token_id: pad_token_id.unwrap_or(if siglip { 1 } else { 0 }),
            // SigLIP pools the last position, so every prompt has to have as many.
            to: if siglip { Some(max_text_length) } else { None },
        },
        logit_scale,
        logit_bias,
        function_to_apply: if siglip { FunctionToApply::Sigmoid } else { FunctionToApply::Softmax },
    })))
}

/// The token that tokenizer_config.json names to fill prompts up with.
fn pad_token(tokenizer_config: &Value, tokenizer: &Tokenizer) -> Option<i64> {
    let token = tokenizer_config.get("pad_token")?;
    tokenizer.token_id(token.get("content").unwrap_or(token).as_str()?)
}

/// The smaller of what the tokenizer and the text encoder take, special tokens included.
fn max_text_length(tokenizer_config: &Value, config: &Value, siglip: bool) -> Result<usize, FolderError> {
    let of_tokenizer = match siglip {
        // The reference takes so many, whatever the tokenizer says; it attends to what they are filled up with.
        true => Some(64.0),
        // "No limit" is written as 1e30 there.
        false => tokenizer_config.get("model_max_length").and_then(Value::as_f64).filter(|&length| length < 1e6),
    };
    // Configs leave out what equals the default of transformers' CLIPTextConfig.
    let is_clip = config.get("model_type").and_then(Value::as_str) == Some("clip");
    let default = is_clip.then_some(77.0);
    let lengths =
        [of_tokenizer, config.pointer("/text_config/max_position_embeddings").and_then(Value::as_f64).or(default)];
    let length = lengths.into_iter().flatten().fold(f64::INFINITY, f64::min);
    if (1.0..1e6).contains(&length) {
        return Ok(length as usize);
    }
    let problem = "model_max_length is missing, and text_config.max_position_embeddings in config.json too";
    Err(FolderError::new("tokenizer_config.json", problem))
}

/// `processor_config.json["image_processor"]` if there, else `preprocessor_config.json`.
fn read_processor(path: &Path, model_type: Option<&str>) -> Result<ImageProcessor, FolderError> {
    let (combined, plain) = ("processor_config.json", "preprocessor_config.json");
    let nested = read_json(path, combined)?.and_then(|config| config.get("image_processor").cloned());
    let nested = nested.filter(|config| !config.is_null());
    let found = match nested {
        Some(config) => Some((combined, config)),
        None => read_json(path, plain)?.map(|config| (plain, config)),
    };
    let (file, config) =
        found.ok_or_else(|| FolderError::new(plain, "is missing; it says how images become tensors"))?;
    ImageProcessor::from_json(&config, model_type).map_err(|error| FolderError::new(file, error.to_string()))
}

/// `id2label`, in the order of its keys **as numbers**.
fn read_labels(config: &Value) -> Result<Option<Vec<String>>, FolderError> {
    let wrong = |problem: String| FolderError::new("config.json", format!("id2label {problem}"));
    let Some(id2label) = config.get("id2label").filter(|value| !value.is_null()) else {
        return Ok(None);
    };
    let id2label = id2label.as_object().ok_or_else(|| wrong("must map indices to labels".to_owned()))?;
    let mut labels = vec![None; id2label.len()];
    for (key, label) in id2label {
        let label = label.as_str().ok_or_else(|| wrong(format!("has a label that is no text, under '{key}'")))?;
        let slot = key.parse::<usize>().ok().and_then(|index| labels.get_mut(index));
        let slot = slot.ok_or_else(|| wrong(format!("has {} labels, and the key '{key}'", id2label.len())))?;
        *slot = Some(label.to_owned());
    }
    let labels: Option<Vec<String>> = labels.into_iter().collect();
    let labels = labels.ok_or_else(|| wrong("names an index twice".to_owned()))?;
    if labels.is_empty() { Err(wrong("is empty".to_owned())) } else { Ok(Some(labels)) }
}

/// The rule of the `image-classification` pipeline.
fn default_function(config: &Value, labels: Option<usize>) -> FunctionToApply {
    match config.get("problem_type").and_then(Value::as_str) {
        Some("regression") => FunctionToApply::None,
        Some("multi_label_classification") => FunctionToApply::Sigmoid,
        _ if labels == Some(1) || config.get("num_labels").and_then(Value::as_u64) == Some(1) => {
            FunctionToApply::Sigmoid
        }
        _ => FunctionToApply::Softmax,
    }
}

/// The file at the folder's top, or in its `onnx/`, where some exports have everything.
fn locate(folder: &Path, file: &str) -> PathBuf {
    let inner = folder.join("onnx").join(file);
    if !folder.join(file).exists() && inner.is_file() { inner } else { folder.join(file) }
}

fn read_json(folder: &Path, file: &str) -> Result<Option<Value>, FolderError> {
    let text = match std::fs::read_to_string(locate(folder, file)) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(FolderError::new(file, format!("cannot be read: {error}"))),
    };
    let value: Value =
        serde_json::from_str(&text).map_err(|error| FolderError::new(file, format!("is not JSON: {error}")))?;
    if value.is_object() { Ok(Some(value)) } else { Err(FolderError::new(file, "must hold a JSON object")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> ModelSettings {
        crate::config::Config::default().model_defaults
    }

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models").join(name)
    }

    /// A copy of some files of the fixture `name`.
    fn copied(name: &str, wanted: impl Fn(&str) -> bool) -> tempfile::TempDir {
        let copy = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(fixture(name)).unwrap() {
            let file = entry.unwrap().file_name().into_string().unwrap();
            if wanted(&file) {
                std::fs::copy(fixture(name).join(&file), copy.path().join(&file)).unwrap();
            }
        }
        copy
    }

    /// Why a copy of the fixture `name` is refused in which `file` holds `content`, or is missing.
    fn damaged(name: &str, file: &str, content: Option<&str>) -> String {
        assert!(fixture(name).join(file).exists(), "{file}");
        let copy = copied(name, |other| other != file);
        if let Some(content) = content {
            std::fs::write(copy.path().join(file), content).unwrap();
        }
        match ModelFolder::open(copy.path(), &settings()) {
            Ok(_) => panic!("{name} with {file} = {content:?} was taken"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn the_task_follows_from_the_files() {
        let classifier = ModelFolder::open(&fixture("tiny-classifier"), &settings()).unwrap();
        assert_eq!(classifier.task(), Task::ImageClassification);
        assert_eq!(classifier.architecture, "ViTForImageClassification");
        let dual = ModelFolder::open(&fixture("tiny-clip"), &settings()).unwrap();
        assert_eq!(dual.task(), Task::ZeroShotImageClassification);
        let FolderContent::DualEncoder(dual) = dual.content else { panic!("tiny-clip is a dual encoder") };
        assert_eq!((dual.max_text_length, dual.logit_scale, dual.logit_bias), (16, Some(20.0), None));
        let combined = ModelFolder::open(&fixture("tiny-combined-clip"), &settings()).unwrap();
        let FolderContent::DualEncoder(combined) = combined.content else { panic!("tiny-combined-clip is one too") };
        assert!(combined.combined_graph.as_ref() == Some(&combined.text_graph) && combined.logit_scale.is_none());
    }

    #[test]
    fn a_classifier_on_the_image_encoder_of_a_dual_encoder_is_a_classifier() {
        let task = |architecture: &str| {
            let folder = copied("tiny-combined-clip", |_| true);
            let config = serde_json::json!({
                "architectures": [architecture],
                "model_type": "siglip",
                "text_config": {"max_position_embeddings": 16},
            });
            std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
            ModelFolder::open(folder.path(), &settings()).unwrap().task()
        };
        assert_eq!(task("SiglipForImageClassification"), Task::ImageClassification);
        assert_eq!(task("SiglipModel"), Task::ZeroShotImageClassification);
    }

    #[test]
    fn prompts_are_filled_up_with_the_tokenizers_own_token() {
        let padding = |tokenizer_config: &str| {
            let folder = copied("tiny-siglip", |_| true);
            std::fs::write(folder.path().join("tokenizer_config.json"), tokenizer_config).unwrap();
            let content = ModelFolder::open(folder.path(), &settings()).unwrap().content;
            let FolderContent::DualEncoder(dual) = content else { panic!("tiny-siglip is a dual encoder") };
            (dual.padding.token_id, dual.tokenizer.token_id("<unk>").unwrap())
        };
        let (named, unknown) = padding(r#"{"pad_token": "<unk>"}"#);
        assert_eq!(named, unknown);
        assert_eq!(padding(r#"{"pad_token": {"content": "<unk>", "lstrip": false}}"#).0, unknown);
        let (configured, _) = padding("{}");
        assert_ne!(configured, unknown);
        assert_eq!(padding(r#"{"pad_token": "no such token"}"#).0, configured);
        assert_eq!(padding(r#"{"pad_token": null}"#).0, configured);
    }

    #[test]
    fn everything_may_lie_in_onnx() {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(fixture("tiny-clip"), folder.path().join("onnx")).unwrap();
        assert_eq!(ModelFolder::open(folder.path(), &settings()).unwrap().task(), Task::ZeroShotImageClassification);
    }

    #[test]
    fn what_is_missing_or_wrong_is_named_with_file_and_key() {
        for (model, file, content, expected) in [
            ("tiny-classifier", "config.json", None, "config.json: is missing"),
            ("tiny-classifier", "config.json", Some("{"), "config.json: is not JSON"),
            ("tiny-classifier", "config.json", Some("[]"), "config.json: must hold a JSON object"),
            (
                "tiny-classifier",
                "config.json",
                Some(r#"{"id2label": {"0": "a", "2": "b"}}"#),
                "config.json: id2label has 2 labels, and the key '2'",
            ),
            ("tiny-classifier", "config.json", Some(r#"{"id2label": {"0": 7}}"#), "under '0'"),
            ("tiny-classifier", "config.json", Some(r#"{"id2label": {}}"#), "id2label is empty"),
            (
                "tiny-classifier",
                "config.json",
                Some(r#"{"text_config": {}}"#),
                "tokenizer_config.json: model_max_length is missing",
            ),
            ("tiny-classifier", "model.onnx", None, "model.onnx: is missing"),
            ("tiny-classifier", "preprocessor_config.json", None, "preprocessor_config.json: is missing"),
            ("tiny-clip", "text_model.onnx", None, "text_model.onnx: is missing"),
            ("tiny-clip", "vision_model.onnx", None, "vision_model.onnx: is missing"),
            ("tiny-clip", "tokenizer.json", None, "tokenizer.json: cannot be read"),
            ("tiny-clip", "tokenizer.json", Some("{}"), "tokenizer.json: is no tokenizer"),
            ("tiny-clip", "config.json", Some(r#"{"model_type": "clip"}"#), "config.json: logit_scale is missing"),
            (
                "tiny-clip",
                "config.json",
                Some(r#"{"model_type": "siglip", "logit_scale": 9}"#),
                "config.json: logit_bias is missing",
            ),
            (
                "tiny-clip",
                "config.json",
                Some(r#"{"logit_scale": "100"}"#),
                "logit_scale must be a number, not \"100\"",
            ),
            ("tiny-clip", "config.json", Some(r#"{"logit_scale": -1.0}"#), "logit_scale must be above 0"),
        ] {
            let error = damaged(model, file, content);
            assert!(error.contains(expected), "'{expected}' is not in '{error}'");
        }
    }

    #[test]
    fn labels_are_ordered_as_numbers() {
        let entries: Vec<String> = (0..11).rev().map(|index| format!(r#""{index}": "label {index}""#)).collect();
        let config: Value = serde_json::from_str(&format!(r#"{{"id2label": {{{}}}}}"#, entries.join(","))).unwrap();
        let labels = read_labels(&config).unwrap().unwrap();
        assert_eq!((labels[2].as_str(), labels[10].as_str()), ("label 2", "label 10"));
    }

    #[test]
    fn the_default_function_follows_the_problem_type() {
        let config = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        let regression = config(r#"{"problem_type": "regression"}"#);
        assert_eq!(default_function(&regression, Some(3)), FunctionToApply::None);
        let multi_label = config(r#"{"problem_type": "multi_label_classification"}"#);
        assert_eq!(default_function(&multi_label, Some(3)), FunctionToApply::Sigmoid);
        assert_eq!(default_function(&config("{}"), Some(1)), FunctionToApply::Sigmoid);
        assert_eq!(default_function(&config(r#"{"num_labels": 1}"#), None), FunctionToApply::Sigmoid);
        assert_eq!(default_function(&config("{}"), Some(2)), FunctionToApply::Softmax);
    }
}
