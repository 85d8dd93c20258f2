//! A graph at work: opened on a provider, warmed, behind its queue, with its workers.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use ndarray::{Array2, Axis};
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;
use utoipa::ToSchema;

use super::{LoadContext, LoadError, Stop, Ticket};
use crate::batching::{Answer, BatchQueue, InferenceError, Job, Model, Straggler, Worker};
use crate::config::ModelSettings;
use crate::runtime::{ExecutionProvider, Graph, OnnxFile, Precision, RuntimeError, SessionOptions, Tensor, TensorSpec};

/// How a graph takes a batch of one kind of item. Made once a graph's inputs are known.
pub(super) trait Binding: Clone + Send + Sync + 'static {
    /// What the queue holds.
    type Item: Clone + Send + 'static;

    /// Finds the inputs that such items go to, and what fills those of the other encoder in a combined graph.
    fn bind(&self, inputs: &[TensorSpec]) -> Result<Self, String>;
    /// The batch size that the graph insists on, if it does.
    fn fixed_batch_size(&self) -> Option<usize>;
    /// `(smallest, largest)` shape of `input` without the batch dimension.
    fn shape_range(&self, input: &TensorSpec) -> (Vec<usize>, Vec<usize>);
    /// Puts a batch together.
    fn stack<'a>(&'a self, batch: &[Self::Item]) -> Vec<(&'a str, Tensor)>;
    /// Items to warm up with: the shapes that the graph will meet.
    fn samples(&self) -> Vec<Self::Item>;
}

/// One session of an engine.
pub(super) struct GraphModel<B: Binding> {
    graph: Graph,
    binding: B,
    output: String,
}

impl<B: Binding> Model for GraphModel<B> {
    type Input = B::Item;
    type Output = Vec<f32>;

    fn run(&mut self, batch: &[B::Item]) -> Result<Vec<Vec<f32>>, String> {
        let rows = self.rows(batch).map_err(|error| error.to_string())?;
        Ok(rows.axis_iter(Axis(0)).take(batch.len()).map(|row| row.to_vec()).collect())
    }
}

impl<B: Binding> GraphModel<B> {
    fn rows(&mut self, batch: &[B::Item]) -> Result<Array2<f32>, RuntimeError> {
        self.graph.run(self.binding.stack(batch), &self.output)
    }
}

/// What `GET /v1/models` tells of one graph.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct GraphInfo {
    /// The graph's file, relative to the model's folder.
    #[schema(example = "model.onnx")]
    pub file: String,
    /// The execution provider really in use.
    pub provider: ExecutionProvider,
    /// Why this provider was chosen.
    #[schema(example = "auto: first of cuda, openvino and cpu in this library")]
    pub provider_reason: String,
    /// Nodes of the graph as it runs.
    pub nodes: usize,
    /// Those of them that the provider left to the CPU provider.
    pub nodes_on_cpu: usize,
    /// The arithmetic.
    pub precision: Precision,
    /// How many weights are stored in each element type, by ONNX's names.
    pub parameters: BTreeMap<&'static str, u64>,
    /// Sessions, each with a worker thread.
    pub instances: usize,
    /// Inference threads per session.
    pub threads: usize,
    /// Every batch size that was run before the model was called ready, and no other will be.
    pub batch_sizes_warmed: Vec<usize>,
    /// SHA-256 of the graph's file and its external data, in hexadecimal.
    pub sha256: String,
}

/// A queue and its workers.
pub(super) struct Engine<B: Binding> {
    queue: Arc<BatchQueue<GraphModel<B>>>,
    workers: Vec<Worker>,
    pub(super) info: GraphInfo,
    /// Values per answer.
    pub(super) output_width: usize,
}

/// Which graph of which model, and what is wanted of it.
pub(super) struct EngineSource<'a> {
    /// The model's name.
    pub(super) model: &'a str,
    /// `model`, `vision_model` or `text_model`: its name in logs and metrics.
    pub(super) graph: &'static str,
    /// The file.
    pub(super) file: &'a Path,
    /// The model's folder.
    pub(super) folder: &'a Path,
    /// The output to read, by its names in falling precedence.
    pub(super) outputs: &'static [&'static str],
    /// How to run it.
    pub(super) settings: &'a ModelSettings,
}

impl<B: Binding> Engine<B> {
    /// Opens and warms the sessions one after the other and starts their workers.
    pub(super) fn start(context: &LoadContext, source: &EngineSource<'_>, binding: &B) -> Result<Self, LoadError> {
        let started = Instant::now();
        let file = OnnxFile::read(source.file)?;
        let sha256 = content_hash(source.file, &file)
            .map_err(|error| LoadError::System(format!("{}: {error}", source.file.display())))?;
        let (opener, first) = Opener::choose(context, source, binding)?;
        let (nodes, nodes_on_cpu) = first.model.graph.node_counts();
        let settings = source.settings;
        let mut policy = settings.batch_policy;
        policy.max_batch_size = first.batch_sizes.last().copied().unwrap_or(1);
        let metrics = context.metrics.queue(source.model, source.graph);
        let queue = Arc::new(BatchQueue::new(settings.max_queue_size, metrics));
        let crew = queue.relieve(policy, settings.instances);
        let info = GraphInfo {
            file: source.file.strip_prefix(source.folder).unwrap_or(source.file).display().to_string(),
            provider: opener.options.provider,
            provider_reason: opener.reason.clone(),
            nodes,
            nodes_on_cpu,
            precision: opener.options.precision,
            parameters: file.parameters,
            instances: settings.instances,
            threads: settings.threads,
            batch_sizes_warmed: first.batch_sizes.clone(),
            sha256,
        };
        let output_width = first.output_width;
        let mut first = Some(first.model);
        let mut workers = Vec::with_capacity(settings.instances);
        for instance in 0..settings.instances {
            let model = match first.take() {
                Some(model) => model,
                None => opener.open()?.model,
            };
            let opener = opener.clone();
            let rebuild = move || opener.open().map(|warmed| warmed.model).map_err(|error| error.to_string());
            let name = format!("{}/{}/{instance}", source.model, source.graph);
            let worker = Worker::spawn(name, Arc::clone(&queue), crew, model, rebuild)
                .map_err(|error| LoadError::System(format!("no worker thread could be started: {error}")))?;
            workers.push(worker);
        }
        tracing::info!(
            model = source.model,
            graph = source.graph,
            provider = info.provider.name(),
            reason = info.provider_reason,
            precision = info.precision.name(),
            instances = info.instances,
            threads = info.threads,
            nodes_on_cpu,
            seconds = started.elapsed().as_secs_f32(),
            "graph is warm"
        );
        Ok(Self { queue, workers, info, output_width })
    }

    /// Puts an item into the queue. The answer comes through the channel, which closes unanswered only if the worker is lost.
    pub(super) fn submit(&self, item: B::Item, ticket: Ticket) -> Result<Pending, InferenceError> {
        let (reply, answer) = oneshot::channel();
        self.queue.push(Job { input: item, deadline: ticket.deadline, reply, permit: ticket.permit })?;
        Ok(Pending(answer))
    }

    /// Why the engine cannot answer at present, if it cannot.
    pub(super) fn broken(&self) -> Option<String> {
        self.workers.iter().find_map(Worker::broken)
    }
}

impl<B: Binding> Stop for Engine<B> {
    fn close(&self) {
        self.queue.close();
    }

    fn stragglers(&self) -> Vec<Straggler> {
        self.workers.iter().filter(|worker| !worker.is_finished()).map(Worker::straggler).collect()
    }
}

impl<B: Binding> Drop for Engine<B> {
    /// A half-started or replaced engine must not leave its workers waiting for ever.
    fn drop(&mut self) {
        self.queue.close();
    }
}

/// An answer that is on its way.
pub(super) struct Pending(oneshot::Receiver<Result<Answer<Vec<f32>>, InferenceError>>);

impl Pending {
    /// Waits for the answer.
    pub(super) async fn answer(self) -> Result<Answer<Vec<f32>>, InferenceError> {
        let answer = self.0.await.unwrap_or(Err(InferenceError::Closed))?;
        if answer.output.iter().any(|value| value.is_nan()) {
            return Err(InferenceError::Failed("the graph's output is not a number (NaN)".to_owned()));
        }
        Ok(answer)
    }
}

/// Opens sessions of one graph, always with the same options.
#[derive(Clone)]
struct Opener<B: Binding> {
    context: LoadContext,
    binding: B,
    file: std::path::PathBuf,
    outputs: &'static [&'static str],
    options: SessionOptions,
    reason: String,
}

/// A session that has run every batch size it will be given.
struct Warmed<B: Binding> {
    model: GraphModel<B>,
    batch_sizes: Vec<usize>,
    output_width: usize,
}

impl<B: Binding> Opener<B> {
    /// Takes the provider that the settings name, or the first that works.
    fn choose(context: &LoadContext, source: &EngineSource<'_>, binding: &B) -> Result<(Self, Warmed<B>), LoadError> {
        let settings = source.settings;
        let mut failures = Vec::new();
        for provider in candidates(context, settings) {
            let opener = Self {
                context: context.clone(),
                binding: binding.clone(),
                file: source.file.to_path_buf(),
                outputs: source.outputs,
                options: SessionOptions {
                    provider,
                    precision: settings.precision.unwrap_or_else(|| provider.default_precision()),
                    threads: settings.threads,
                    device_id: settings.device_id,
                    max_batch_size: settings.batch_policy.max_batch_size,
                    input_shapes: Vec::new(),
                    cache_dir: context.cache_dir.clone(),
                },
                reason: reason(settings, &failures),
            };
            match opener.with_input_shapes().and_then(|opener| opener.open().map(|warmed| (opener, warmed))) {
                Ok(opened) => return Ok(opened),
                Err(error) if settings.device.is_some() => return Err(error),
                Err(error) => {
                    let provider = provider.name();
                    tracing::warn!(model = source.model, graph = source.graph, provider, %error, "auto passes over a provider");
                    failures.push((provider, error));
                }
            }
        }
        Err(failures.pop().map_or_else(
            || {
                let precision = settings.precision.map_or("auto", Precision::name);
                let problem = format!("precision {precision} cannot be had from any provider of this library");
                LoadError::Runtime(RuntimeError::Provider(problem))
            },
            |(_, error)| error,
        ))
    }

    /// TensorRT must be told every shape before it compiles.
    fn with_input_shapes(mut self) -> Result<Self, LoadError> {
        if self.options.provider == ExecutionProvider::TensorRt {
            let inputs = Graph::inspect(&self.context.runtime, &self.file)?;
            let binding = self.bind(&inputs)?;
            let shapes = inputs.iter().map(|input| {
                let (min, max) = binding.shape_range(input);
                (input.name.clone(), min, max)
            });
            self.options.input_shapes = shapes.collect();
        }
        Ok(self)
    }

    fn bind(&self, inputs: &[TensorSpec]) -> Result<B, LoadError> {
        let binding = self.binding.bind(inputs);
        binding.map_err(|problem| RuntimeError::Graph(format!("{}: {problem}", self.file.display())).into())
    }

    /// Opens a session and runs every batch size that it will be given.
    fn open(&self) -> Result<Warmed<B>, LoadError> {
        let graph = Graph::open(&self.context.runtime, &self.file, &self.options)?;
        let binding = self.bind(graph.inputs())?;
        let output = self.find_output(&graph)?;
        let batch_sizes = match binding.fixed_batch_size() {
            Some(size) => vec![size],
            None => (1..=self.options.max_batch_size).collect(),
        };
        let mut model = GraphModel { graph, binding, output };
        let mut output_width = 0;
        for &size in &batch_sizes {
            for sample in model.binding.samples() {
                let rows = model.rows(&vec![sample; size])?;
                if rows.nrows() != size {
                    let (file, rows) = (self.file.display(), rows.nrows());
                    let problem = format!("{file}: a batch of {size} gave {rows} answers");
                    return Err(RuntimeError::Graph(problem).into());
                }
                output_width = rows.ncols();
            }
        }
        Ok(Warmed { model, batch_sizes, output_width })
    }

    /// The output by its name; a graph with one output may call it what it likes.
    fn find_output(&self, graph: &Graph) -> Result<String, LoadError> {
        let outputs = graph.outputs();
        let named = |name: &&&str| outputs.iter().any(|output| output.name == **name);
        if let Some(name) = self.outputs.iter().find(named) {
            return Ok((*name).to_owned());
        }
        let expected = self.outputs.join("' or '");
        if let [only] = outputs {
            tracing::info!(file = %self.file.display(), output = only.name, expected, "took the only output");
            return Ok(only.name.clone());
        }
        let names: Vec<_> = outputs.iter().map(|output| output.name.as_str()).collect();
        let file = self.file.display();
        Err(RuntimeError::Graph(format!("{file}: has no output '{expected}', but {}", names.join(", "))).into())
    }
}

/// The provider that was named, or those that `auto` tries, fastest first. TensorRT is not among them: it compiles for
/// minutes, which nobody should meet without having asked for it.
fn candidates(context: &LoadContext, settings: &ModelSettings) -> Vec<ExecutionProvider> {
    if let Some(named) = settings.device {
        return vec![named];
    }
    [ExecutionProvider::Cuda, ExecutionProvider::OpenVino, ExecutionProvider::Cpu]
        .into_iter()
        .filter(|provider| context.runtime.providers.contains(provider))
        .filter(|provider| settings.precision.is_none_or(|precision| provider.refuses(precision).is_none()))
        .collect()
}

fn reason(settings: &ModelSettings, failures: &[(&str, LoadError)]) -> String {
    if settings.device.is_some() {
        return "asked for".to_owned();
    }
    match failures {
        [] => "auto: first of cuda, openvino and cpu in this library".to_owned(),
        _ => {
            let failed: Vec<_> =
                failures.iter().map(|(provider, error)| format!("{provider} failed ({error})")).collect();
            format!("auto: {}", failed.join("; "))
        }
    }
}

/// SHA-256 over a graph's file and its external data, in the order of their names.
fn content_hash(graph: &Path, file: &OnnxFile) -> std::io::Result<String> {
    let external = file.external_data.iter().map(|name| graph.parent().unwrap_or(Path::new("")).join(name));
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    for path in std::iter::once(graph.to_path_buf()).chain(external) {
        let mut reader = std::fs::File::open(path)?;
        loop {
            let length = reader.read(&mut buffer)?;
            if length == 0 {
                break;
            }
            hasher.update(&buffer[..length]);
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_covers_external_data() {
        let folder = tempfile::tempdir().unwrap();
        let graph = folder.path().join("model.onnx");
        std::fs::write(&graph, "graph").unwrap();
        let mut file = OnnxFile::default();
        let alone = content_hash(&graph, &file).unwrap();
        assert_eq!(alone.len(), 64);
        std::fs::write(folder.path().join("weights"), "weights").unwrap();
        file.external_data.insert("weights".into());
        assert_ne!(content_hash(&graph, &file).unwrap(), alone);
    }
}
