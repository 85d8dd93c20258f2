//! What `GET /v1/models` tells: a model's state, what its folder says, and how its graphs are run.

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::folder::{FolderContent, ModelFolder};
use super::{GraphInfo, Task};
use crate::config::ModelSettings;
use crate::postprocess::FunctionToApply;
use crate::preprocess::{DecodeMode, JPEG_DECODER};

/// Where a model is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ModelState {
    /// Being opened and warmed.
    Loading,
    /// Answers.
    Ready,
    /// Could not be loaded, or broke; `reason` says why.
    Failed,
    /// Answers what it has taken, and takes no more.
    Unloading,
}

impl ModelState {
    /// The name in answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Ready => "ready",
            Self::Failed => "failed",
            Self::Unloading => "unloading",
        }
    }
}

/// What `GET /v1/models` tells of a model.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ModelInfo {
    /// The folder's name, by which requests call the model.
    #[schema(example = "efficientnet-lite0")]
    pub name: String,
    /// Where it is in its life.
    pub state: ModelState,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What was read from its folder; absent if that failed.
    #[serde(flatten)]
    pub description: Option<Description>,
    /// Its graphs; empty until it is ready.
    pub graphs: Vec<GraphInfo>,
}

/// What a model's folder says.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Description {
    /// What it is for.
    pub task: Task,
    /// The checkpoint's class.
    #[schema(example = "EfficientNetForImageClassification")]
    pub architecture: String,
    /// Height and width of the tensor that the graph gets, in pixels.
    pub input_size: InputSize,
    /// The effective image processor settings.
    #[schema(value_type = Object)]
    pub image_processor: Value,
    /// How JPEGs become pixels.
    pub jpeg: JpegDecoding,
    /// Labels by index; absent for zero-shot models and where config.json has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<String>>,
    /// What turns logits into scores by default.
    pub function_to_apply: FunctionToApply,
    /// Most tokens of a prompt; for zero-shot models.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_text_length: Option<usize>,
    /// The factor between cosines and logits; for zero-shot models, once it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logit_scale: Option<f32>,
    /// What is added to logits; for SigLIP, once it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logit_bias: Option<f32>,
}

/// Height and width in pixels.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct InputSize {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

/// How JPEGs become pixels.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct JpegDecoding {
    /// The library that the server was built with. On processors with AVX2, JPEGs as cameras write them (baseline; 4:2:0, 4:2:2 or 4:4:4)
    /// are decoded without it, to the pixels of libjpeg-turbo.
    #[schema(example = "libjpeg-turbo")]
    pub decoder: &'static str,
    /// How exactly large ones are decoded; always `exact` where the server offers nothing else.
    pub decode: DecodeMode,
}

impl Description {
    pub(super) fn of(folder: &ModelFolder, settings: &ModelSettings) -> Self {
        let (height, width) = folder.processor.output_size();
        let description = Self {
            task: folder.task(),
            architecture: folder.architecture.clone(),
            input_size: InputSize { height, width },
            image_processor: serde_json::to_value(&folder.processor).unwrap_or_default(),
            jpeg: JpegDecoding { decoder: JPEG_DECODER.name, decode: settings.decode_mode().in_effect() },
            labels: None,
            function_to_apply: FunctionToApply::Softmax,
            max_text_length: None,
            logit_scale: None,
            logit_bias: None,
        };
        match &folder.content {
            FolderContent::Classifier { labels, function_to_apply, .. } => {
                Self { labels: labels.clone(), function_to_apply: *function_to_apply, ..description }
            }
            FolderContent::DualEncoder(dual) => Self {
                function_to_apply: dual.function_to_apply,
                max_text_length: Some(dual.max_text_length),
                logit_scale: dual.logit_scale,
                logit_bias: dual.logit_bias,
                ..description
            },
        }
    }
}
