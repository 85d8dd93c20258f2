//! Sessions of one graph: which plans there are to run it, and opening one, warm.

use std::path::PathBuf;

use ndarray::{Array2, Axis};
use serde::{Deserialize, Serialize};

use super::{LoadContext, LoadError};
use crate::batching::Model;
use crate::config::ModelSettings;
use crate::runtime::{ExecutionProvider, Graph, Precision, RuntimeError, SessionOptions, Tensor, TensorSpec};

/// How a graph takes a batch of one kind of item. Made once a graph's inputs are known.
pub(super) trait Binding: Clone + Send + Sync + 'static {
    /// What the queue holds.
    type Item: Clone + Send + Sync + 'static;

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

/// How a graph is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Plan {
    pub(super) provider: ExecutionProvider,
    pub(super) precision: Precision,
    /// Sessions, each with a worker thread.
    pub(super) instances: usize,
    /// Inference threads per session.
    pub(super) threads: usize,
    pub(super) max_batch_size: usize,
}

/// One session of a graph, ready to run.
pub(super) struct GraphModel<B: Binding> {
    pub(super) graph: Graph,
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
    pub(super) fn rows(&mut self, batch: &[B::Item]) -> Result<Array2<f32>, RuntimeError> {
        self.graph.run(self.binding.stack(batch), &self.output)
    }

    /// Runs a batch of `size` samples, and checks that it gives as many answers. Returns the length of one.
    pub(super) fn run_samples(&mut self, size: usize) -> Result<usize, RuntimeError> {
        let mut width = 0;
        for sample in self.binding.samples() {
            let rows = self.rows(&vec![sample; size])?;
            if rows.nrows() != size {
                return Err(RuntimeError::Graph(format!("a batch of {size} gave {} answers", rows.nrows())));
            }
            width = rows.ncols();
        }
        Ok(width)
    }
}

/// A session that has run the batch sizes that it will be given.
pub(super) struct Warmed<B: Binding> {
    pub(super) model: GraphModel<B>,
    pub(super) batch_sizes: Vec<usize>,
    /// Values per answer.
    pub(super) output_width: usize,
}

/// Opens sessions of one graph.
#[derive(Clone)]
pub(super) struct Opener<B: Binding> {
    pub(super) context: LoadContext,
    pub(super) binding: B,
    pub(super) file: PathBuf,
    /// The output to read, by its names in falling precedence.
    pub(super) outputs: Vec<String>,
    pub(super) device_id: u32,
}

impl<B: Binding> Opener<B> {
    /// Opens a session and runs every batch size that it may be given, so that none is slow the first time.
    pub(super) fn open(&self, plan: &Plan) -> Result<Warmed<B>, LoadError> {
        let sizes: Vec<usize> = (1..=plan.max_batch_size).collect();
        self.open_for(plan, &sizes)
    }

    /// Opens a session and runs the batch sizes `sizes`, or the one that the graph insists on.
    pub(super) fn open_for(&self, plan: &Plan, sizes: &[usize]) -> Result<Warmed<B>, LoadError> {
        let graph = Graph::open(&self.context.runtime, &self.file, &self.options(plan)?)?;
        let binding = self.bind(graph.inputs())?;
        let output = self.find_output(&graph)?;
        let batch_sizes = binding.fixed_batch_size().map_or_else(|| sizes.to_vec(), |size| vec![size]);
        let mut model = GraphModel { graph, binding, output };
        let mut output_width = 0;
        for &size in &batch_sizes {
            output_width = model.run_samples(size).map_err(|error| self.in_file(&error))?;
        }
        Ok(Warmed { model, batch_sizes, output_width })
    }

    fn in_file(&self, error: &RuntimeError) -> RuntimeError {
        RuntimeError::Graph(format!("{}: {error}", self.file.display()))
    }

    fn options(&self, plan: &Plan) -> Result<SessionOptions, LoadError> {
        let mut options = SessionOptions {
            provider: plan.provider,
            precision: plan.precision,
            threads: plan.threads,
            device_id: self.device_id,
            max_batch_size: plan.max_batch_size,
            input_shapes: Vec::new(),
            cache_dir: self.context.cache_dir.clone(),
        };
        // TensorRT must be told every shape before it compiles.
        if plan.provider == ExecutionProvider::TensorRt {
            let inputs = Graph::inspect(&self.context.runtime, &self.file)?;
            let binding = self.bind(&inputs)?;
            let shapes = inputs.iter().map(|input| {
                let (min, max) = binding.shape_range(input);
                (input.name.clone(), min, max)
            });
            options.input_shapes = shapes.collect();
        }
        Ok(options)
    }

    fn bind(&self, inputs: &[TensorSpec]) -> Result<B, LoadError> {
        let binding = self.binding.bind(inputs);
        binding.map_err(|problem| RuntimeError::Graph(format!("{}: {problem}", self.file.display())).into())
    }

    /// The output by its name; a graph with one output may call it what it likes.
    fn find_output(&self, graph: &Graph) -> Result<String, LoadError> {
        let outputs = graph.outputs();
        let named = |name: &&String| outputs.iter().any(|output| output.name == **name);
        if let Some(name) = self.outputs.iter().find(named) {
            return Ok(name.clone());
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

/// The plan that is served before anything has been measured, on `provider`: the reference's arithmetic where a request for
/// another does not say otherwise, and one session with all threads.
pub(super) fn first_plan(settings: &ModelSettings, provider: ExecutionProvider) -> Plan {
    let instances = settings.instances.unwrap_or(1);
    Plan {
        provider,
        precision: settings.precision.unwrap_or(Precision::F32),
        instances,
        threads: settings.threads_for(instances),
        max_batch_size: settings.batch_policy.max_batch_size,
    }
}

/// The provider that was named, or those that `auto` tries, in the order in which they usually turn out. TensorRT is not
/// among them: it compiles for minutes, which nobody should meet without having asked for it.
pub(super) fn providers(context: &LoadContext, settings: &ModelSettings) -> Vec<ExecutionProvider> {
    if let Some(named) = settings.device {
        return vec![named];
    }
    [ExecutionProvider::Cuda, ExecutionProvider::OpenVino, ExecutionProvider::Cpu]
        .into_iter()
        .filter(|provider| context.runtime.providers.contains(provider))
        .filter(|provider| settings.precision.is_none_or(|precision| provider.refuses(precision).is_none()))
        .collect()
}
