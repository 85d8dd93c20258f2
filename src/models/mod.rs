//! A model folder becomes something that answers: graphs behind queues, and what a task computes around them.

mod bench;
mod cache_file;
mod classifier;
mod engine;
mod entry;
mod first;
mod folder;
mod graph_files;
mod graph_model;
mod image_encoder;
mod info;
mod opener;
mod plan;
mod registry;
mod scoring;
mod stored_graph;
mod text_encoder;
mod tuning;
mod zero_shot;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use bench::report::{
    Batches, BenchReport, BenchRequest, Choice, Failure, InferenceCost, PreprocessingCost, Way, Ways,
};
pub use classifier::Classifier;
pub use engine::GraphInfo;
pub use entry::LoadedModel;
pub use folder::{DualEncoderFolder, FolderContent, FolderError, ModelFolder, Task};
pub use info::{ModelInfo, ModelState};
pub use registry::{LookupError, Registry};
pub use stored_graph::StoredGraph;
pub use text_encoder::Padding;
pub use tuning::{Candidate, Speed, Tuning, measure_for_server};
pub use zero_shot::{ZeroShotClassifier, ZeroShotQuestion};

use crate::batching::{InferenceError, Permit, RunGate, Straggler};
use crate::cpu_pool::Panicked;
use crate::preprocess::{DecodeError, DecodeLimits};
use crate::runtime::{Runtime, RuntimeError};
use crate::telemetry::SharedMetrics;
use crate::text::TextError;

/// What every model needs to load.
#[derive(Clone)]
pub struct LoadContext {
    /// The loaded ONNX Runtime.
    pub runtime: Arc<Runtime>,
    /// Where queues and models report.
    pub metrics: SharedMetrics,
    /// Bounds on images.
    pub decode_limits: DecodeLimits,
    /// Root of the cache: what tuning measured, transposed weights, and TensorRT's engines.
    pub cache_dir: PathBuf,
    /// Prompts whose embeddings are kept, per model.
    pub text_cache_size: usize,
    /// The program that measures, in processes of its own; `None`: measuring is done in this process.
    pub program: Option<PathBuf>,
    /// What the runs of all models go through, so that tuning can measure without them.
    pub gate: Arc<RunGate>,
}

/// Why a model could not be loaded.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LoadError {
    /// The folder's files.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The graph or the provider.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The machine.
    #[error("{0}")]
    System(String),
}

/// What a piece of work carries along: how long it is of use, and its share of what the server admits.
#[derive(Clone)]
pub struct Ticket {
    /// When the answer is of no more use.
    pub deadline: Instant,
    /// Held until the work is done, even if the client has left.
    pub permit: Option<Permit>,
    /// Threads that may prepare each image: the cores, divided among the images in work.
    pub threads: usize,
}

/// Where the time of one image went.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timings {
    /// Decoding and preprocessing.
    pub decode: Duration,
    /// Waiting for a worker.
    pub queue: Duration,
    /// The batch's run.
    pub inference: Duration,
}

impl Timings {
    /// The longer of each, for work that was done side by side.
    pub fn max(self, other: Self) -> Self {
        Self {
            decode: self.decode.max(other.decode),
            queue: self.queue.max(other.queue),
            inference: self.inference.max(other.inference),
        }
    }
}

/// Why a prediction failed.
#[derive(Debug, thiserror::Error)]
pub enum PredictError {
    /// The image.
    #[error(transparent)]
    Image(#[from] DecodeError),
    /// The labels or templates.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The queue or the run.
    #[error(transparent)]
    Inference(#[from] InferenceError),
    /// A fault in preprocessing.
    #[error("preprocessing {0}")]
    Panicked(#[from] Panicked),
}

/// A model whose workers can be told to stop.
pub(crate) trait Stop {
    /// Takes no more work; what waits is still answered.
    fn close(&self);
    /// Workers that have not ended yet.
    fn stragglers(&self) -> Vec<Straggler>;
}
