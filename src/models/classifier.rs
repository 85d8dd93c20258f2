//! Image classification: one graph from pixels to logits, and the model's own labels.

use bytes::Bytes;

use super::engine::{EngineSource, GraphInfo};
use super::image_encoder::ImageEncoder;
use super::stored_graph::StoredGraph;
use super::tuning::Stage;
use super::{LoadContext, LoadError, PredictError, Stop, Ticket, Timings};
use crate::batching::Straggler;
use crate::config::ModelSettings;
use crate::cpu_pool::CpuPool;
use crate::postprocess::{FunctionToApply, Prediction, top_k};
use crate::preprocess::ImageProcessor;
use crate::runtime::RuntimeError;
use crate::telemetry::ModelMetrics;

/// A classifier at work.
pub struct Classifier {
    /// Its name.
    pub name: String,
    /// Its labels by index.
    pub labels: Vec<String>,
    /// What turns logits into scores where a request does not say.
    pub function_to_apply: FunctionToApply,
    /// Its metrics.
    pub metrics: ModelMetrics,
    encoder: ImageEncoder,
}

/// What a classifier is made of: the folder's content, read and checked.
pub(super) struct ClassifierParts {
    pub(super) name: String,
    pub(super) labels: Option<Vec<String>>,
    pub(super) function_to_apply: FunctionToApply,
    pub(super) processor: ImageProcessor,
}

impl Classifier {
    /// Opens and warms the graph and starts its workers.
    pub(super) fn start(
        context: &LoadContext,
        parts: ClassifierParts,
        graph: &std::path::Path,
        folder: &std::path::Path,
        settings: &ModelSettings,
    ) -> Result<Self, LoadError> {
        let metrics = context.metrics.model(&parts.name);
        let source = EngineSource {
            model: &parts.name,
            graph: "model",
            file: graph,
            stored: &StoredGraph::read(graph, folder, &context.cache_dir)?,
            judged_with: None,
            folder,
            outputs: &["logits"],
            settings,
        };
        let encoder = ImageEncoder::start(context, &source, parts.processor, metrics.clone())?;
        let width = encoder.engine.output_width;
        let labels = parts.labels.unwrap_or_else(|| (0..width).map(|index| format!("LABEL_{index}")).collect());
        if labels.len() != width {
            let (file, labels) = (graph.display(), labels.len());
            let problem = format!("{file}: gives {width} logits, but id2label in config.json has {labels} labels");
            return Err(RuntimeError::Graph(problem).into());
        }
        Ok(Self { name: parts.name, labels, function_to_apply: parts.function_to_apply, metrics, encoder })
    }

    /// The best `k` labels of one image.
    ///
    /// # Errors
    /// The image, the queue or the run.
    pub async fn classify(
        &self,
        pool: &CpuPool,
        image: Bytes,
        function: Option<FunctionToApply>,
        k: usize,
        ticket: Ticket,
    ) -> Result<(Vec<Prediction>, Timings), PredictError> {
        let (logits, timings) = self.encoder.encode(pool, image, ticket).await?;
        let scores = function.unwrap_or(self.function_to_apply).apply(&logits);
        Ok((top_k(&scores, &self.labels, k), timings))
    }

    /// Measures how the graph is best run, and goes over to that. Blocks for some seconds.
    pub(super) fn tune(&self, stage: Stage) {
        let function = match self.function_to_apply {
            // Logits are no probabilities; their softmax moves with them.
            FunctionToApply::None => FunctionToApply::Softmax,
            function => function,
        };
        self.encoder.tune(stage, &|rows| rows.iter().map(|logits| function.apply(logits)).collect());
    }

    /// The graph with what is before it.
    pub(super) fn image_encoder(&self) -> &ImageEncoder {
        &self.encoder
    }

    /// The graph.
    pub(super) fn graphs(&self) -> Vec<GraphInfo> {
        vec![self.encoder.engine.info()]
    }

    /// Why the model cannot answer at present, if it cannot.
    pub(super) fn broken(&self) -> Option<String> {
        self.encoder.engine.broken()
    }
}

impl Stop for Classifier {
    fn close(&self) {
        self.encoder.engine.close();
    }

    fn stragglers(&self) -> Vec<Straggler> {
        self.encoder.engine.stragglers()
    }
}
