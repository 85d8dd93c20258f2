//! From embeddings to scores: `logit_scale · cos(image, text) + logit_bias`, and the scale of a graph that keeps it to itself.

use ndarray::Array2;

use super::folder::DualEncoderFolder;
use super::graph_model::Binding;
use super::text_encoder::TokenBinding;
use super::{LoadContext, LoadError};
use crate::postprocess::{FunctionToApply, dot, normalize};
use crate::runtime::{Graph, RuntimeError, SessionOptions};
use crate::text::Embedding;

/// How a dual encoder scores a label.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Scoring {
    pub(super) logit_scale: f32,
    /// SigLIP's; 0 for CLIP.
    pub(super) logit_bias: f32,
    pub(super) function_to_apply: FunctionToApply,
}

/// Prompts for [`measure`]: different enough for their cosines with one image to differ.
const PROBES: [&str; 8] = ["a", "red", "a photo of a dog", "2", "the sea at night", "text", "a car", "music"];

/// How far the logits of a combined graph may lie from those of the fitted line: float error, and no more.
const TOLERANCE: f32 = 1e-2;

impl Scoring {
    /// What the folder says, if it says all, or else what its combined graph does.
    pub(super) fn of(
        context: &LoadContext,
        folder: &DualEncoderFolder,
        binding: &TokenBinding,
    ) -> Result<Self, LoadError> {
        let function_to_apply = folder.function_to_apply;
        // CLIP has none.
        let no_bias = (function_to_apply != FunctionToApply::Sigmoid).then_some(0.0);
        if let (Some(logit_scale), Some(logit_bias)) = (folder.logit_scale, folder.logit_bias.or(no_bias)) {
            return Ok(Self { logit_scale, logit_bias, function_to_apply });
        }
        let missing = || RuntimeError::Graph("config.json: logit_scale is missing".to_owned());
        let graph = folder.combined_graph.as_deref().ok_or_else(missing)?;
        let (logit_scale, logit_bias) = measure(context, graph, folder, binding)?;
        tracing::info!(graph = %graph.display(), logit_scale, logit_bias, "read the scale out of the combined graph");
        Ok(Self { logit_scale, logit_bias, function_to_apply })
    }

    /// The scores of `labels` for an image; all embeddings have length 1.
    pub(super) fn scores(&self, image: &[f32], labels: &[Embedding]) -> Vec<f32> {
        let logit = |label: &Embedding| self.logit_scale * dot(image, label) + self.logit_bias;
        let logits: Vec<f32> = labels.iter().map(logit).collect();
        self.function_to_apply.apply(&logits)
    }
}

/// Runs a combined graph once and fits its logits to the cosines of its own embeddings.
///
/// The graph's initializers would mislead: one exporter keeps the scale's logarithm, another the scale itself.
fn measure(
    context: &LoadContext,
    path: &std::path::Path,
    folder: &DualEncoderFolder,
    binding: &TokenBinding,
) -> Result<(f32, f32), LoadError> {
    let options = SessionOptions::reference(binding.largest_side(), PROBES.len(), context.cache_dir.clone());
    let failed = |problem: String| RuntimeError::Graph(format!("{}: {problem}", path.display()));
    let graph = Graph::open(&context.runtime, path, &options)?;
    let mut binding = binding.bind(graph.inputs()).map_err(failed)?;
    let encoded = PROBES.iter().map(|probe| folder.tokenizer.encode(probe));
    let tokens: Vec<_> = encoded.collect::<Result<_, _>>().map_err(|error| failed(error.to_string()))?;
    let size = binding.fixed_batch_size().unwrap_or(tokens.len());
    let mut pairs = Vec::new();
    for batch in tokens.chunks(size) {
        let mut output = |name| graph.run(&binding.stack(batch), name);
        let (images, texts) = (output("image_embeds")?, output("text_embeds")?);
        let logits = output("logits_per_image")?;
        let image = unit(&images, 0);
        pairs.extend((0..batch.len()).map(|row| (dot(&image, &unit(&texts, row)), logits[[0, row]])));
    }
    let with_bias = folder.function_to_apply == FunctionToApply::Sigmoid;
    let (scale, bias) = fit(&pairs, with_bias);
    let residual = pairs.iter().map(|(cosine, logit)| (scale * cosine + bias - logit).abs()).fold(0.0, f32::max);
    if scale.is_finite() && scale > 0.0 && residual <= TOLERANCE * scale.max(1.0) {
        return Ok((scale, bias));
    }
    let problem =
        "its logits are no multiple of its embeddings' cosines; write logit_scale (and logit_bias) into config.json";
    Err(failed(problem.to_owned()).into())
}

fn unit(rows: &Array2<f32>, row: usize) -> Vec<f32> {
    let mut vector = rows.row(row).to_vec();
    normalize(&mut vector);
    vector
}

/// Least squares of `logit = scale · cosine + bias`, or without a bias.
fn fit(pairs: &[(f32, f32)], with_bias: bool) -> (f32, f32) {
    let count = pairs.len() as f64;
    let mean = |value: fn(&(f32, f32)) -> f32| pairs.iter().map(|pair| f64::from(value(pair))).sum::<f64>() / count;
    let (x, y) = if with_bias { (mean(|pair| pair.0), mean(|pair| pair.1)) } else { (0.0, 0.0) };
    let centred = pairs.iter().map(|pair| (f64::from(pair.0) - x, f64::from(pair.1) - y));
    let (products, squares) =
        centred.fold((0.0, 0.0), |(products, squares), (a, b)| (products + a * b, squares + a * a));
    let scale = products / squares;
    (scale as f32, (y - scale * x) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_found_with_and_without_a_bias() {
        let pairs: Vec<(f32, f32)> = [-0.1, 0.2, 0.25, 0.3].map(|cosine| (cosine, 100.0 * cosine)).to_vec();
        assert!((fit(&pairs, false).0 - 100.0).abs() < 1e-3);
        let shifted: Vec<(f32, f32)> = pairs.iter().map(|(cosine, logit)| (*cosine, logit - 12.5)).collect();
        let (scale, bias) = fit(&shifted, true);
        assert!((scale - 100.0).abs() < 1e-2 && (bias + 12.5).abs() < 1e-2, "{scale} {bias}");
    }

    #[test]
    fn siglip_scores_each_label_by_itself() {
        let scoring = Scoring { logit_scale: 10.0, logit_bias: -5.0, function_to_apply: FunctionToApply::Sigmoid };
        let label = Embedding::from([1.0, 0.0]);
        let scores = scoring.scores(&[1.0, 0.0], &[label.clone(), label]);
        assert_eq!(scores[0], scores[1]);
        assert!((scores[0] - 0.993_307_1).abs() < 1e-6, "{scores:?}");
    }
}
