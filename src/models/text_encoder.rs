//! From prompts to text embeddings: the cache first, then the tokenizer and the text encoder's queue.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use ndarray::Array2;
use serde::{Deserialize, Serialize};

use super::engine::{Engine, EngineSource, Pending};
use super::graph_model::Binding;
use super::image_encoder::ImageBinding;
use super::tuning::probe::{self, Probe};
use super::tuning::{Judgement, Stage};
use super::{LoadContext, LoadError, PredictError, Ticket};
use crate::cpu_pool::CpuPool;
use crate::postprocess::normalize;
use crate::runtime::{Pinning, PixelTable, Tensor, TensorSpec};
use crate::telemetry::ModelMetrics;
use crate::text::{Embedding, EmbeddingCache, Tokenizer};

/// Prompts that one request may queue at once, and no more than half of what the queue holds: so others' come in between, and what was
/// computed is kept even if the request runs out of time.
const MOST_AT_ONCE: usize = 256;

/// The text side of a dual encoder.
pub(super) struct TextEncoder {
    pub(super) engine: Arc<Engine<TokenBinding>>,
    tokenizer: Arc<Tokenizer>,
    cache: EmbeddingCache,
    metrics: ModelMetrics,
}

impl TextEncoder {
    /// Opens the graph and starts its workers.
    pub(super) fn start(
        context: &LoadContext,
        source: &EngineSource<'_>,
        tokenizer: Tokenizer,
        binding: &TokenBinding,
        metrics: ModelMetrics,
    ) -> Result<Self, LoadError> {
        Ok(Self {
            engine: Arc::new(Engine::start(context, source, binding)?),
            tokenizer: Arc::new(tokenizer),
            cache: EmbeddingCache::new(context.text_cache_size),
            metrics,
        })
    }

    /// Embeddings of length 1 of the built-in labels, as computed at present. Blocks.
    pub(super) fn probe_embeddings(&self) -> Result<Vec<Embedding>, PredictError> {
        Ok(self.engine.answers(&self.probe_items()?)?.into_iter().map(unit).collect())
    }

    fn probe_items(&self) -> Result<Vec<Vec<i64>>, PredictError> {
        Ok(probe::LABELS.iter().map(|label| self.tokenizer.encode(label)).collect::<Result<_, _>>()?)
    }

    /// Measures how the graph is best run; `scores` makes a row of probabilities an image of the built-in labels' embeddings.
    pub(super) fn tune(
        &self,
        stage: Stage,
        scores: &dyn Fn(&[Embedding]) -> Vec<Vec<f32>>,
    ) -> Result<(), PredictError> {
        let items = self.probe_items()?;
        let probabilities = |rows: &[Vec<f32>]| scores(&rows.iter().cloned().map(unit).collect::<Vec<_>>());
        let TokenBinding { max_length, padding, image_size, .. } = self.engine.opener.binding;
        let probe = Probe::Prompts { tokens: items.clone(), max_length, padding, image_size };
        self.engine.tune(stage, &Judgement { probe, items, probabilities: &probabilities });
        Ok(())
    }

    /// The embeddings of `prompts`, each of length 1, in their order.
    pub(super) async fn embed(
        &self,
        pool: &CpuPool,
        prompts: &[String],
        ticket: &Ticket,
    ) -> Result<Vec<Embedding>, PredictError> {
        let arithmetic = self.engine.arithmetic();
        let cached = self.cache.get_all(arithmetic, prompts);
        let hits = cached.iter().flatten().count();
        self.metrics.cache_hits.inc_by(hits as u64);
        self.metrics.cache_misses.inc_by((prompts.len() - hits) as u64);
        let mut missing: Vec<String> = Vec::new();
        for (prompt, embedding) in prompts.iter().zip(&cached) {
            if embedding.is_none() {
                missing.push(prompt.clone());
            }
        }
        missing.sort_unstable();
        missing.dedup();
        let computed = self.compute(pool, missing, ticket, arithmetic).await?;
        let embedding = |(prompt, cached): (&String, Option<Embedding>)| {
            // Every prompt without a cached embedding was just computed.
            cached.or_else(|| computed.get(prompt).cloned()).unwrap_or_default()
        };
        Ok(prompts.iter().zip(cached).map(embedding).collect())
    }

    async fn compute(
        &self,
        pool: &CpuPool,
        prompts: Vec<String>,
        ticket: &Ticket,
        arithmetic: u64,
    ) -> Result<HashMap<String, Embedding>, PredictError> {
        if prompts.is_empty() {
            return Ok(HashMap::new());
        }
        let tokenizer = Arc::clone(&self.tokenizer);
        // All prompts are checked before the first is computed.
        let encode = move || {
            let encode = |prompt: String| tokenizer.encode(&prompt).map(|tokens| (prompt, tokens));
            prompts.into_iter().map(encode).collect::<Result<Vec<_>, _>>()
        };
        let encoded = pool.run(encode).await??;
        let most = (self.engine.settings.max_queue_size / 2).clamp(1, MOST_AT_ONCE);
        let embed = |(prompt, tokens): (String, Vec<i64>)| async move {
            // Another request may have had it computed while this one's turn came.
            if let Some(embedding) = self.cache.get_all(arithmetic, std::slice::from_ref(&prompt)).pop().flatten() {
                return Ok((prompt, embedding));
            }
            let (reply, pending) = Pending::new();
            self.engine.submit(tokens, ticket.clone(), reply)?;
            let embedding = unit(pending.answer().await?.output);
            self.cache.insert(arithmetic, prompt.clone(), Arc::clone(&embedding));
            Ok((prompt, embedding))
        };
        stream::iter(encoded).map(embed).buffer_unordered(most).try_collect().await
    }
}

fn unit(mut vector: Vec<f32>) -> Embedding {
    normalize(&mut vector);
    Embedding::from(vector)
}

/// Token ids into `input_ids`, `attention_mask` and `token_type_ids [batch, sequence]`, as far as the graph takes them.
#[derive(Clone)]
pub(super) struct TokenBinding {
    max_length: usize,
    padding: Padding,
    inputs: Vec<TokenInput>,
    batch_size: Option<usize>,
    sequence_length: Option<usize>,
    /// Constant inputs of the image encoder, where one graph holds both.
    image: Vec<(String, Tensor<'static>)>,
    /// Height and width of such an image.
    image_size: (usize, usize),
}

/// How short prompts are filled up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Padding {
    /// The token.
    pub token_id: i64,
    /// The length of every prompt; `None`: that of the longest in its batch.
    pub to: Option<usize>,
}

#[derive(Clone, Copy)]
enum TokenInput {
    Ids,
    Mask,
    TypeIds,
}

impl TokenInput {
    fn find(name: &str) -> Option<Self> {
        [Self::Ids, Self::Mask, Self::TypeIds].into_iter().find(|input| input.name() == name)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Ids => "input_ids",
            Self::Mask => "attention_mask",
            Self::TypeIds => "token_type_ids",
        }
    }
}

impl TokenBinding {
    /// For prompts of at most `max_length` tokens; `image_size` is for graphs that hold an image encoder too.
    pub(super) fn new(max_length: usize, padding: Padding, image_size: (usize, usize)) -> Self {
        let (batch_size, sequence_length) = (None, None);
        Self { max_length, padding, inputs: Vec::new(), batch_size, sequence_length, image: Vec::new(), image_size }
    }

    /// A short text for `input`, to run the other encoder of a combined graph.
    pub(super) fn constant(input: &TensorSpec) -> Result<Tensor<'static>, String> {
        let kind = TokenInput::find(&input.name);
        let kind = kind.ok_or_else(|| format!("has an input '{}', which neither image nor text fills", input.name))?;
        let (batch_size, sequence_length) = batch_and_sequence(input)?;
        let shape = (batch_size.unwrap_or(1), sequence_length.unwrap_or(2));
        let value = if matches!(kind, TokenInput::Mask) { 1 } else { 0 };
        Ok(Tensor::I64(Array2::from_elem(shape, value).into_dyn().into()))
    }
}

fn batch_and_sequence(input: &TensorSpec) -> Result<(Option<usize>, Option<usize>), String> {
    match input.shape[..] {
        [batch_size, sequence_length] => Ok((batch_size, sequence_length)),
        _ => Err(format!("input '{}' has {} dimensions, not [batch, sequence]", input.name, input.shape.len())),
    }
}

impl Binding for TokenBinding {
    type Item = Vec<i64>;

    fn bind(&self, inputs: &[TensorSpec]) -> Result<Self, String> {
        let mut bound = Self::new(self.max_length, self.padding, self.image_size);
        for spec in inputs {
            if spec.name == "pixel_values" {
                bound.image.push((spec.name.clone(), ImageBinding::constant(spec, self.image_size)?));
                continue;
            }
            let input = TokenInput::find(&spec.name);
            bound.inputs.push(input.ok_or_else(|| format!("has an input '{}', which text does not fill", spec.name))?);
            (bound.batch_size, bound.sequence_length) = batch_and_sequence(spec)?;
        }
        if bound.inputs.is_empty() {
            return Err("has no input 'input_ids'".to_owned());
        }
        if let Some(length) = bound.sequence_length {
            bound.max_length = bound.max_length.min(length);
            if bound.max_length < self.max_length {
                return Err(format!("takes {length} tokens, but the tokenizer allows {}", self.max_length));
            }
        }
        Ok(bound)
    }

    fn fixed_batch_size(&self) -> Option<usize> {
        self.batch_size
    }

    fn shape_range(&self, input: &TensorSpec) -> (Vec<usize>, Vec<usize>) {
        match constant_shape(&self.image, input) {
            Some(shape) => (shape.clone(), shape),
            None => (vec![self.padding.to.unwrap_or(1)], vec![self.max_length]),
        }
    }

    fn item_shape(&self) -> Option<Vec<usize>> {
        None
    }

    fn largest_side(&self) -> usize {
        // Of a combined graph's other encoder; texts are not pooled over windows.
        self.image_size.0.max(self.image_size.1)
    }

    fn pixel_table(&self) -> Option<Arc<PixelTable>> {
        None
    }

    fn pinned(self, _pinning: Pinning) -> Self {
        // Tokens are few.
        self
    }

    fn filled_up_to(self, _size: usize) -> Self {
        self
    }

    fn stack<'a>(&'a mut self, batch: &'a [Vec<i64>]) -> Vec<(&'a str, Tensor<'a>)> {
        let rows = self.batch_size.unwrap_or(batch.len());
        let longest = batch.iter().map(Vec::len).max().unwrap_or(1);
        let columns = self.sequence_length.or(self.padding.to).unwrap_or(longest);
        let mut ids = Array2::from_elem((rows, columns), self.padding.token_id);
        let mut mask = Array2::zeros((rows, columns));
        for (row, tokens) in batch.iter().enumerate() {
            for (column, &token) in tokens.iter().enumerate() {
                ids[[row, column]] = token;
                mask[[row, column]] = 1;
            }
        }
        let tensor = |input: &TokenInput| match input {
            TokenInput::Ids => ids.clone(),
            TokenInput::Mask => mask.clone(),
            TokenInput::TypeIds => Array2::zeros((rows, columns)),
        };
        let text = self.inputs.iter().map(|input| (input.name(), Tensor::I64(tensor(input).into_dyn().into())));
        let image = self.image.iter().map(|(name, tensor)| (name.as_str(), tensor.view()));
        text.chain(image).collect()
    }

    fn samples(&self) -> Vec<Vec<i64>> {
        // A usual label, in the shortest form that every vocabulary has.
        vec![vec![self.padding.token_id; self.max_length.min(8)]]
    }
}

/// The shape, without the batch dimension, of the constant that fills `input`.
pub(super) fn constant_shape(constants: &[(String, Tensor<'_>)], input: &TensorSpec) -> Option<Vec<usize>> {
    let (_, tensor) = constants.iter().find(|(name, _)| *name == input.name)?;
    Some(tensor.shape()[1..].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ort::value::TensorElementType;

    fn input(name: &str, shape: &[i64]) -> TensorSpec {
        TensorSpec {
            name: name.to_owned(),
            element_type: TensorElementType::Int64,
            shape: shape.iter().map(|&size| usize::try_from(size).ok()).collect(),
            blocks: None,
        }
    }

    const NINE: Padding = Padding { token_id: 9, to: None };

    fn binding(max_length: usize, padding: Padding) -> TokenBinding {
        TokenBinding::new(max_length, padding, (4, 6))
    }

    #[test]
    fn short_prompts_are_padded_and_masked() {
        let inputs = [input("attention_mask", &[-1, -1]), input("input_ids", &[-1, -1])];
        let mut binding = binding(16, NINE).bind(&inputs).unwrap();
        let batch = [vec![1, 2, 3], vec![4]];
        let stacked = binding.stack(&batch);
        let [("attention_mask", Tensor::I64(mask)), ("input_ids", Tensor::I64(ids))] = &stacked[..] else {
            panic!("inputs are in the graph's order");
        };
        assert_eq!(ids.iter().copied().collect::<Vec<_>>(), [1, 2, 3, 4, 9, 9]);
        assert_eq!(mask.iter().copied().collect::<Vec<_>>(), [1, 1, 1, 1, 0, 0]);
    }

    #[test]
    fn prompts_are_padded_to_a_length_where_the_last_position_counts() {
        let mut binding =
            binding(6, Padding { token_id: 1, to: Some(6) }).bind(&[input("input_ids", &[-1, -1])]).unwrap();
        let batch = [vec![7, 8]];
        let stacked = binding.stack(&batch);
        let [("input_ids", Tensor::I64(ids))] = &stacked[..] else { panic!("wrong inputs") };
        assert_eq!(ids.iter().copied().collect::<Vec<_>>(), [7, 8, 1, 1, 1, 1]);
    }

    #[test]
    fn the_image_encoder_of_a_combined_graph_gets_one_black_picture() {
        let inputs = [input("input_ids", &[-1, -1]), input("pixel_values", &[-1, 3, -1, -1])];
        let mut binding = binding(16, NINE).bind(&inputs).unwrap();
        let batch = [vec![1], vec![2], vec![3]];
        let stacked = binding.stack(&batch);
        let [("input_ids", Tensor::I64(ids)), ("pixel_values", Tensor::F32(pixels))] = &stacked[..] else {
            panic!("wrong inputs");
        };
        assert_eq!((ids.shape(), pixels.shape()), (&[3, 1][..], &[1, 3, 4, 6][..]));
    }

    #[test]
    fn an_input_that_nothing_fills_is_an_error() {
        let error = binding(16, NINE).bind(&[input("input_ids", &[-1, -1]), input("bbox", &[-1, -1])]).err().unwrap();
        assert!(error.contains("bbox"), "{error}");
    }

    #[test]
    fn a_graph_that_takes_fewer_tokens_than_the_tokenizer_allows_is_an_error() {
        let error = binding(77, NINE).bind(&[input("input_ids", &[-1, 32])]).err().unwrap();
        assert!(error.contains("32") && error.contains("77"), "{error}");
    }
}
