//! Zero-shot classification with a dual encoder: an image and the request's labels meet in one embedding space.

use std::sync::OnceLock;

use bytes::Bytes;
use futures_util::future::try_join_all;

use super::engine::{EngineSource, GraphInfo};
use super::image_encoder::ImageEncoder;
use super::scoring::Scoring;
use super::stored_graph::StoredGraph;
use super::text_encoder::{TextEncoder, TokenBinding};
use super::tuning::Stage;
use super::{LoadContext, LoadError, PredictError, Stop, Ticket, Timings};
use crate::batching::Straggler;
use crate::config::ModelSettings;
use crate::cpu_pool::CpuPool;
use crate::models::folder::{FolderContent, ModelFolder};
use crate::postprocess::{Prediction, normalize, top_k};
use crate::runtime::RuntimeError;
use crate::telemetry::ModelMetrics;
use crate::text::{Embedding, Templates};

/// A dual encoder at work.
pub struct ZeroShotClassifier {
    /// Its name.
    pub name: String,
    /// Its metrics.
    pub metrics: ModelMetrics,
    /// How embeddings become scores.
    pub(super) scoring: Scoring,
    vision: ImageEncoder,
    text: TextEncoder,
    /// Once tuning has begun.
    references: OnceLock<References>,
}

/// What f32 makes of the built-in photos and labels.
struct References {
    images: Vec<Vec<f32>>,
    labels: Vec<Embedding>,
}

/// What is asked of every image of a request.
pub struct ZeroShotQuestion {
    /// The candidate labels, in the request's order.
    pub labels: Vec<String>,
    /// How labels become prompts.
    pub templates: Templates,
    /// Labels wanted.
    pub top_k: usize,
}

/// An image's index in its request and what was wrong with it; without an index it was the text.
pub type PlacedError = (Option<usize>, PredictError);

impl ZeroShotClassifier {
    /// Opens and warms both graphs and starts their workers. `Err` also if the folder is no dual encoder's.
    pub(super) fn start(
        context: &LoadContext,
        folder: ModelFolder,
        settings: &ModelSettings,
    ) -> Result<Self, LoadError> {
        let FolderContent::DualEncoder(dual) = folder.content else {
            return Err(LoadError::System(format!("{} is not a dual encoder", folder.name)));
        };
        let metrics = context.metrics.model(&folder.name);
        let vision_graph = StoredGraph::read(&dual.vision_graph, &folder.path, &context.cache_dir)?;
        let text_graph = StoredGraph::read(&dual.text_graph, &folder.path, &context.cache_dir)?;
        let vision_source = EngineSource {
            model: &folder.name,
            graph: "vision_model",
            file: &dual.vision_graph,
            stored: &vision_graph,
            judged_with: Some(&text_graph),
            folder: &folder.path,
            outputs: &["image_embeds", "pooler_output"],
            settings,
        };
        let text_source = EngineSource {
            graph: "text_model",
            file: &dual.text_graph,
            stored: &text_graph,
            judged_with: Some(&vision_graph),
            outputs: &["text_embeds", "pooler_output"],
            ..vision_source
        };
        let binding = TokenBinding::new(dual.max_text_length, dual.padding, folder.processor.output_size());
        let scoring = Scoring::of(context, &dual, &binding)?;
        let vision = ImageEncoder::start(context, &vision_source, folder.processor, metrics.clone())?;
        let text = TextEncoder::start(context, &text_source, dual.tokenizer, &binding, metrics.clone())?;
        let (image_width, text_width) = (vision.engine.output_width, text.engine.output_width);
        if image_width != text_width {
            let folder = folder.path.display();
            let problem = format!("{folder}: image embeddings have {image_width} values, text embeddings {text_width}");
            return Err(RuntimeError::Graph(problem).into());
        }
        Ok(Self { name: folder.name, metrics, vision, text, scoring, references: OnceLock::new() })
    }

    /// The labels of each image, best first. Images and prompts are computed side by side.
    ///
    /// # Errors
    /// The first failure, with the image's position.
    pub async fn classify(
        &self,
        pool: &CpuPool,
        images: Vec<Bytes>,
        question: &ZeroShotQuestion,
        ticket: &Ticket,
    ) -> Result<(Vec<Vec<Prediction>>, Timings), PlacedError> {
        let images = images.into_iter().enumerate().map(async |(index, image)| {
            let encoded = self.vision.encode(pool, image, ticket.clone()).await;
            encoded.map_err(|error| (Some(index), error))
        });
        let labels = async { self.label_embeddings(pool, question, ticket).await.map_err(|error| (None, error)) };
        // Labels first: what is new in them is read by the threads that decode, and should not wait for all images.
        let (labels, images) = futures_util::future::try_join(labels, try_join_all(images)).await?;
        let timings = images.iter().fold(Timings::default(), |longest, (_, timings)| longest.max(*timings));
        let results = images.into_iter().map(|(mut image, _)| {
            normalize(&mut image);
            top_k(&self.scoring.scores(&image, &labels), &question.labels, question.top_k)
        });
        Ok((results.collect(), timings))
    }

    /// One embedding of length 1 per label: with several templates the mean of theirs, as in CLIP's prompt ensembling
    /// (Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021, section 3.1.4).
    async fn label_embeddings(
        &self,
        pool: &CpuPool,
        question: &ZeroShotQuestion,
        ticket: &Ticket,
    ) -> Result<Vec<Embedding>, PredictError> {
        let prompts = question.templates.prompts(&question.labels)?;
        let embeddings = self.text.embed(pool, &prompts, ticket).await?;
        if question.templates.count() == 1 {
            return Ok(embeddings);
        }
        Ok(embeddings.chunks(question.templates.count()).map(mean_direction).collect())
    }

    /// Measures how the graphs are best run, and goes over to that. Blocks for some seconds.
    pub(super) fn tune(&self, stage: Stage) -> Result<(), PredictError> {
        if !(self.vision.engine.wants_tuning() || self.text.engine.wants_tuning()) {
            return Ok(());
        }
        if stage == Stage::Arithmetic {
            let images = self.vision.probe_answers()?;
            let _ = self.references.set(References { images, labels: self.text.probe_embeddings()? });
        }
        let Some(References { images, labels }) = self.references.get() else { return Ok(()) };
        let scores = |images: &[Vec<f32>], labels: &[Embedding]| {
            let score = |image: &Vec<f32>| {
                let mut image = image.clone();
                normalize(&mut image);
                self.scoring.scores(&image, labels)
            };
            images.iter().map(score).collect::<Vec<_>>()
        };
        self.vision.tune(stage, &|rows| scores(rows, labels));
        self.text.tune(stage, &|labels| scores(images, labels))
    }

    /// The image's side.
    pub(super) fn image_encoder(&self) -> &ImageEncoder {
        &self.vision
    }

    /// Both graphs.
    pub(super) fn graphs(&self) -> Vec<GraphInfo> {
        vec![self.vision.engine.info(), self.text.engine.info()]
    }

    /// Why the model cannot answer at present, if it cannot.
    pub(super) fn broken(&self) -> Option<String> {
        self.vision.engine.broken().or_else(|| self.text.engine.broken())
    }
}

fn mean_direction(embeddings: &[Embedding]) -> Embedding {
    let width = embeddings.first().map_or(0, |embedding| embedding.len());
    let mut sum = vec![0.0; width];
    for embedding in embeddings {
        for (sum, value) in sum.iter_mut().zip(embedding.iter()) {
            *sum += value;
        }
    }
    // The length is normalised away, so the sum serves as the mean.
    normalize(&mut sum);
    Embedding::from(sum)
}

impl Stop for ZeroShotClassifier {
    fn close(&self) {
        self.vision.engine.close();
        self.text.engine.close();
    }

    fn stragglers(&self) -> Vec<Straggler> {
        [self.vision.engine.stragglers(), self.text.engine.stragglers()].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_templates_are_averaged_and_renormalised() {
        let mean = mean_direction(&[Embedding::from([1.0, 0.0]), Embedding::from([0.0, 1.0])]);
        let half = std::f32::consts::FRAC_1_SQRT_2;
        assert!((mean[0] - half).abs() < 1e-6 && (mean[1] - half).abs() < 1e-6);
    }
}
