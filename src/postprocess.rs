//! From raw model outputs to scores: softmax, sigmoid, top-k and cosine similarity, as pure functions.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What turns logits into scores; the names are those of the `transformers` pipelines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum FunctionToApply {
    /// Scores sum to 1: one label per image.
    Softmax,
    /// Each label is scored by itself, between 0 and 1.
    Sigmoid,
    /// The logits as they are.
    None,
}

impl FunctionToApply {
    /// The names a request may use.
    pub const NAMES: &str = "softmax, sigmoid, none";

    /// Reads a name as `transformers` does, whatever its case.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Softmax, Self::Sigmoid, Self::None]
            .into_iter()
            .find(|function| name.eq_ignore_ascii_case(function.name()))
    }

    /// The name, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Softmax => "softmax",
            Self::Sigmoid => "sigmoid",
            Self::None => "none",
        }
    }

    /// Scores for `logits`, in their order.
    pub fn apply(self, logits: &[f32]) -> Vec<f32> {
        match self {
            Self::Softmax => softmax(logits),
            Self::Sigmoid => logits.iter().copied().map(sigmoid).collect(),
            Self::None => logits.to_vec(),
        }
    }
}

/// One label of an answer.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Prediction {
    /// The label's text. Not a key: ImageNet has two classes named "crane".
    #[schema(example = "espresso")]
    pub label: String,
    /// The label's position in the model's list (classify) or in the request (zero-shot).
    #[schema(example = 967)]
    pub index: usize,
    /// The score; a probability unless `function_to_apply` is `none`.
    #[schema(example = 0.951)]
    pub score: f32,
}

/// `exp(x) / Σ exp(x)`, with the maximum subtracted first so that no finite logit overflows.
pub fn softmax(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut scores: Vec<f32> = logits.iter().map(|logit| (logit - max).exp()).collect();
    let sum: f32 = scores.iter().sum();
    for score in &mut scores {
        *score /= sum;
    }
    scores
}

/// `1 / (1 + exp(-x))`.
pub fn sigmoid(logit: f32) -> f32 {
    1.0 / (1.0 + (-logit).exp())
}

/// The `k` largest scores, largest first; equal scores keep the order of their labels.
pub fn top_k(scores: &[f32], labels: &[String], k: usize) -> Vec<Prediction> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    let by_score = |&a: &usize, &b: &usize| scores[b].total_cmp(&scores[a]).then(a.cmp(&b));
    let k = k.min(order.len());
    if k < order.len() && k > 0 {
        order.select_nth_unstable_by(k - 1, by_score);
    }
    order.truncate(k);
    order.sort_unstable_by(by_score);
    order.into_iter().map(|index| Prediction { label: labels[index].clone(), index, score: scores[index] }).collect()
}

/// Scales `vector` to length 1. A vector of zeros stays as it is, so that no NaN is born here.
pub fn normalize(vector: &mut [f32]) {
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    if length > 0.0 {
        for x in vector {
            *x /= length;
        }
    }
}

/// The dot product; the cosine when both vectors have length 1.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    // One sum would wait for itself at each step.
    let mut sums = [0.0; 16];
    let ((a, last_of_a), (b, last_of_b)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    for (a, b) in a.iter().zip(b) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (x, y))| *sum += x * y);
    }
    sums.iter().sum::<f32>() + last_of_a.iter().zip(last_of_b).map(|(x, y)| x * y).sum::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn softmax_subtracts_the_maximum() {
        let scores = softmax(&[1000.0, 999.0]);
        assert!((scores[0] - 0.731_058_6).abs() < 1e-6 && (scores[1] - 0.268_941_4).abs() < 1e-6);
        let scores = softmax(&[-1000.0, -999.0]);
        assert!((scores[1] - 0.731_058_6).abs() < 1e-6);
    }

    #[test]
    fn sigmoid_of_zero_is_one_half() {
        assert_eq!(FunctionToApply::Sigmoid.apply(&[0.0]), [0.5]);
        assert_eq!(sigmoid(-200.0), 0.0);
    }

    #[test]
    fn function_names_ignore_case_and_refuse_the_unknown() {
        assert_eq!(FunctionToApply::from_name("SoftMax"), Some(FunctionToApply::Softmax));
        assert_eq!(FunctionToApply::from_name("default"), None);
    }

    #[test]
    fn ties_keep_the_order_of_labels() {
        let best = top_k(&[0.2, 0.4, 0.4, 0.0], &labels(&["a", "b", "b", "c"]), 3);
        assert_eq!(best.iter().map(|p| p.index).collect::<Vec<_>>(), [1, 2, 0]);
        assert_eq!(best[1].label, "b", "two classes of one name give two predictions");
    }

    #[test]
    fn top_k_is_clamped_to_the_number_of_labels() {
        assert_eq!(top_k(&[0.1, 0.9], &labels(&["a", "b"]), 5).len(), 2);
        assert!(top_k(&[0.1, 0.9], &labels(&["a", "b"]), 0).is_empty());
    }

    #[test]
    fn normalize_gives_length_one_and_leaves_zeros() {
        let mut vector = [3.0, 4.0];
        normalize(&mut vector);
        assert_eq!(vector, [0.6, 0.8]);
        let mut zeros = [0.0, 0.0];
        normalize(&mut zeros);
        assert_eq!(zeros, [0.0, 0.0]);
    }
}
