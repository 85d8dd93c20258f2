//! Sessions of one graph, opened for a plan, warm.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::graph_model::{Binding, GraphModel, Small};
use super::plan::{Plan, first_plan};
use super::{LoadContext, LoadError};
use crate::batching::{Role, session_sizes};
use crate::config::ModelSettings;
use crate::runtime::{
    ExecutionProvider, Graph, Precision, RuntimeError, SessionOptions, TensorSpec, give_back_freed_memory,
};

/// While a session is opened, its weights are in memory several times. Only where they are few are two opened at once: with CLIP B/32 that
/// took 1,267 MiB at most instead of 1,104, with ResNet-50, of 26 million weights, no more than one after the other.
const FEW_WEIGHTS: u64 = 50_000_000;

/// A session that has run the batch sizes that it will be given.
#[derive(Clone)]
pub(super) struct Warmed<B: Binding> {
    pub(super) model: GraphModel<B>,
    pub(super) batch_sizes: Vec<usize>,
    /// Values per answer.
    pub(super) output_width: usize,
}

/// The files that a graph can be run from.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Files {
    /// The graph that was asked for.
    pub(super) graph: PathBuf,
    /// Its int8 variant, where that may be taken instead.
    pub(super) int8: Option<PathBuf>,
    /// SHA-256 of the graph that was asked for, in hexadecimal.
    pub(super) sha256: String,
    /// How many weights that has.
    pub(super) weights: u64,
}

impl Files {
    /// The file that holds the graph in this precision.
    pub(super) fn of(&self, precision: Precision) -> Result<&Path, RuntimeError> {
        match precision {
            Precision::Int8 => self.int8.as_deref().ok_or_else(|| {
                let graph = self.graph.display();
                RuntimeError::Graph(format!(
                    "{graph}: there is no int8 variant beside it, or tune_int8 does not allow it"
                ))
            }),
            _ => Ok(&self.graph),
        }
    }
}

/// Opens sessions of one graph.
#[derive(Clone)]
pub(super) struct Opener<B: Binding> {
    pub(super) context: LoadContext,
    pub(super) binding: B,
    pub(super) files: Files,
    /// The output to read, by its names in falling precedence.
    pub(super) outputs: Vec<String>,
    pub(super) device_id: u32,
    /// Names of open dimensions, as [`crate::runtime::OnnxFile`] has them.
    pub(super) open_inputs: Vec<Vec<Option<String>>>,
}

/// What sessions are opened for.
pub(super) struct Use {
    /// As many as shall run at once.
    pub(super) count: usize,
    /// Inference threads of each.
    pub(super) threads: usize,
    /// The batch sizes that they will be given.
    pub(super) sizes: BatchSizes,
}

/// Batch sizes that a session runs first, so that none is slow the first time.
#[derive(Clone, Copy)]
pub(super) enum BatchSizes {
    /// It is opened for this one alone.
    Only(usize),
    /// All up to this.
    UpTo(usize),
    /// It will be given any, and runs just this one first.
    First(usize),
}

impl BatchSizes {
    fn to_run(self) -> Vec<usize> {
        match self {
            Self::Only(size) | Self::First(size) => vec![size],
            Self::UpTo(largest) => (1..=largest).collect(),
        }
    }
}

impl Use {
    /// That of the workers of a role in `plan`.
    pub(super) fn of(plan: &Plan, role: Role) -> Self {
        match role {
            Role::Instance => {
                let is_full_or_small = plan.small_batch_size.is_some() || plan.max_batch_size == 1;
                let sizes = if is_full_or_small { BatchSizes::Only } else { BatchSizes::UpTo };
                Self { count: plan.instances, threads: plan.threads, sizes: sizes(plan.max_batch_size) }
            }
            Role::Solo => {
                let threads = plan.solo_threads.unwrap_or(plan.threads);
                Self { count: 1, threads, sizes: BatchSizes::Only(1) }
            }
        }
    }
}

impl<B: Binding> Opener<B> {
    /// The plan with the solo session and the small batches that the settings ask for, or else with its own; beside a solo session with small
    /// ones of one. There are none where sessions cannot be opened for one size, nor on a GPU, where a few cost hardly more than one.
    pub(super) fn as_asked(&self, settings: &ModelSettings, plan: Plan) -> Plan {
        let solo_threads = settings.solo_threads.or(plan.solo_threads);
        let asked = settings.small_batch_size.or(plan.small_batch_size).or(solo_threads.map(|_| 1));
        let small = asked.filter(|_| plan.provider.is_on_cpu() && self.can_fix_batch_size());
        Plan { small_batch_size: small.map(|size| size.min(plan.max_batch_size)), solo_threads, ..plan }
    }

    /// The plan for `provider` until tuning has found better. Opened for one image at a time where that can be, a session is ready
    /// sooner and takes a good deal less memory, which is when the most is needed.
    pub(super) fn lone_plan(&self, settings: &ModelSettings, provider: ExecutionProvider) -> Plan {
        let plan = self.as_asked(settings, first_plan(settings, provider));
        if !provider.is_on_cpu() || !self.can_fix_batch_size() {
            return plan;
        }
        Plan { max_batch_size: 1, small_batch_size: None, ..plan }
    }

    /// The precision that was named, or those that are worth measuring on `provider`.
    pub(super) fn precisions(&self, settings: &ModelSettings, provider: ExecutionProvider) -> Vec<Precision> {
        if let Some(named) = settings.precision {
            return vec![named];
        }
        let int8 = self.files.int8.as_ref().map(|_| Precision::Int8);
        let int8 = int8.filter(|&int8| provider.refuses(int8).is_none());
        provider.native_precisions().iter().copied().chain(int8).collect()
    }

    /// Opens sessions of the plan's arithmetic and runs every batch size that they will be given, or the one that the graph
    /// insists on, so that none is slow the first time. They share one where the provider lets them.
    pub(super) fn open(&self, plan: &Plan, wanted: &Use) -> Result<Vec<Warmed<B>>, LoadError> {
        let failed = |cause: &str| LoadError::System(format!("a thread that opens sessions {cause}"));
        std::thread::scope(|scope| {
            // The threads that sessions start have the name of the one that opens them.
            let opening = std::thread::Builder::new().name("inference".to_owned());
            let opening = opening.spawn_scoped(scope, || self.open_here(plan, wanted));
            let opening = opening.map_err(|error| failed(&format!("could not be started: {error}")))?;
            opening.join().unwrap_or_else(|_| Err(failed("panicked")))
        })
    }

    /// Opens the sessions of a plan's instances: for full batches, and where smaller ones would take as long, others beside them for those.
    /// Each is opened for the one size that it will be given (ViT-B/16 and CLIP take 3 to 9 % longer where the size is open).
    pub(super) fn open_instances(&self, plan: &Plan) -> Result<Vec<Warmed<B>>, LoadError> {
        let smallest = self.open_smallest(plan)?;
        self.with_larger(plan, smallest)
    }

    /// Opens the sessions of all of a plan's workers, the solo one's last.
    pub(super) fn open_crew(&self, plan: &Plan) -> Result<Vec<Warmed<B>>, LoadError> {
        if plan.solo_threads.is_none() {
            return self.open_instances(plan);
        }
        if plan.small_batch_size.is_none() || self.files.weights > FEW_WEIGHTS {
            let mut sessions = self.open_instances(plan)?;
            give_back_freed_memory();
            sessions.push(self.open_solo(plan)?);
            return Ok(sessions);
        }
        // A session is opened by one thread, so another one opens the solo worker's meanwhile: not beside that for the largest batches, when the
        // most memory is taken, nor on a GPU, where there are no small ones.
        let (smallest, solo) = std::thread::scope(|scope| {
            let solo = scope.spawn(|| self.open_solo(plan));
            (self.open_smallest(plan), solo.join())
        });
        let panicked = |_| Err(LoadError::System("a thread that opens sessions panicked".to_owned()));
        let mut sessions = self.with_larger(plan, smallest?)?;
        sessions.push(solo.unwrap_or_else(panicked)?);
        Ok(sessions)
    }

    /// Opens the sessions of a plan's instances for its small batches, or for all if it has none.
    fn open_smallest(&self, plan: &Plan) -> Result<Vec<Warmed<B>>, LoadError> {
        let full = Use::of(plan, Role::Instance);
        self.open(plan, &Use { sizes: plan.small_batch_size.map_or(full.sizes, BatchSizes::Only), ..full })
    }

    /// Opens the sessions of a plan's instances for larger batches, where it has `sessions` for small ones.
    fn with_larger(&self, plan: &Plan, mut sessions: Vec<Warmed<B>>) -> Result<Vec<Warmed<B>>, LoadError> {
        let Some(small) = plan.small_batch_size else { return Ok(sessions) };
        let mut batch_size = small;
        for larger in session_sizes(small, plan.max_batch_size).filter(|&size| size > small) {
            // What opening needed is not kept while the next one is opened.
            give_back_freed_memory();
            let wanted = Use { sizes: BatchSizes::Only(larger), ..Use::of(plan, Role::Instance) };
            let smaller = std::mem::replace(&mut sessions, self.open(plan, &wanted)?);
            for (session, small) in sessions.iter_mut().zip(smaller) {
                session.model.small = Some(Small { batch_size, model: Box::new(small.model) });
                session.batch_sizes.splice(..0, small.batch_sizes);
            }
            batch_size = larger;
        }
        Ok(sessions)
    }

    /// Opens the solo worker's session.
    pub(super) fn open_solo(&self, plan: &Plan) -> Result<Warmed<B>, LoadError> {
        let session = self.open(plan, &Use::of(plan, Role::Solo))?.pop();
        session.ok_or_else(|| LoadError::System("no session was opened".to_owned()))
    }

    fn open_here(&self, plan: &Plan, wanted: &Use) -> Result<Vec<Warmed<B>>, LoadError> {
        let wanted = &Use { sizes: self.met(wanted.sizes), ..*wanted };
        // Convolutions are planned anew whenever the batch's size is another than before, which takes many times as long as running
        // them: two sessions of one size each do better than one of all.
        let filled = match wanted.sizes {
            BatchSizes::UpTo(size) if self.are_all_alike(plan) => Some(size),
            _ => None,
        };
        let are_shares = wanted.count > 1 && SessionOptions::shares_sessions(plan.provider, wanted.threads);
        let (sessions, runs) = if are_shares { (1, wanted.count) } else { (wanted.count, 1) };
        let mut warmed = Vec::with_capacity(wanted.count);
        for _ in 0..sessions {
            let mut model = self.open_for(plan, wanted, runs, filled.map_or(wanted.sizes, BatchSizes::Only))?;
            if let Some(size) = filled
                && (self.can_fix_batch_size() || model.binding.fixed_batch_size().is_none())
            {
                model.binding = model.binding.filled_up_to(size);
                let lone = self.open_for(plan, wanted, runs, BatchSizes::Only(1))?;
                model.small = Some(Small { batch_size: 1, model: Box::new(lone) });
            }
            warmed.append(&mut self.warm(&mut vec![model; runs], wanted)?);
        }
        Ok(warmed)
    }

    /// The sizes that a session meets which cannot be opened for one alone.
    fn met(&self, sizes: BatchSizes) -> BatchSizes {
        match sizes {
            BatchSizes::Only(size) if size > 1 && !self.can_fix_batch_size() => BatchSizes::UpTo(size),
            sizes => sizes,
        }
    }

    /// A session for batches of these sizes, which leaves open as little as there can be; or, where CUDA can capture it, what the graph
    /// does: of a ViT more is fused then (ViT-B/16 did 2,724 images/s on an H100 instead of 2,334).
    fn open_for(
        &self,
        plan: &Plan,
        wanted: &Use,
        parallel_runs: usize,
        sizes: BatchSizes,
    ) -> Result<GraphModel<B>, LoadError> {
        let (only, all_alike) = match sizes {
            BatchSizes::Only(size) => (Some(size), self.are_all_alike(plan)),
            BatchSizes::UpTo(_) | BatchSizes::First(_) => (None, false),
        };
        let mut ways = Vec::new();
        let dimensions = self.dimensions(only);
        if all_alike {
            ways.push((true, Vec::new()));
        }
        if (plan.provider.is_on_cpu() || all_alike) && !dimensions.is_empty() {
            ways.push((all_alike, dimensions));
        }
        let options = SessionOptions { threads: wanted.threads, parallel_runs, ..self.options(plan)? };
        let file = self.files.of(plan.precision)?;
        for (same_shapes, dimensions) in ways {
            match self.open_one(file, &SessionOptions { same_shapes, dimensions, ..options.clone() }) {
                Err(error) if !matches!(error, LoadError::Runtime(RuntimeError::Provider(_))) => {
                    tracing::debug!(file = %file.display(), %error, "a session has to be opened in another way")
                }
                outcome => return outcome,
            }
        }
        self.open_one(file, &options)
    }

    /// Are all batches of one size of the same shape, and is that worth something to the plan's provider?
    fn are_all_alike(&self, plan: &Plan) -> bool {
        plan.provider == ExecutionProvider::Cuda && self.binding.item_shape().is_some()
    }

    fn open_one(&self, file: &Path, options: &SessionOptions) -> Result<GraphModel<B>, LoadError> {
        let graph = Graph::open(&self.context.runtime, file, options)?;
        let binding = self.bind(graph.inputs(), file)?.pinned(graph.pinning());
        let output = self.find_output(&graph, file)?;
        Ok(GraphModel { graph, binding, output, small: None })
    }

    /// Runs each batch size in all of `models` at once: where they share a session, each run then meets another thread of it.
    fn warm(&self, models: &mut [GraphModel<B>], wanted: &Use) -> Result<Vec<Warmed<B>>, LoadError> {
        let warm = |model: &mut GraphModel<B>| {
            let batch_sizes = model.batch_sizes(wanted.sizes.to_run());
            let mut output_width = 0;
            let reading = model.graph.may_read_files();
            for &size in &batch_sizes {
                output_width = model.run_samples(size)?;
            }
            drop(reading);
            model.graph.let_go_of_files();
            Ok(Warmed { model: model.clone(), batch_sizes, output_width })
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = models.iter_mut().map(|model| scope.spawn(|| warm(model))).collect();
            let joined = threads.into_iter().map(|thread| match thread.join() {
                Ok(warmed) => warmed.map_err(|error: RuntimeError| in_file(&self.files.graph, &error).into()),
                Err(_) => Err(LoadError::System("a first run panicked".to_owned())),
            });
            joined.collect()
        })
    }

    /// Sizes for the dimensions that the graph leaves open: those of the items, and `batch_size` if there is to be but one. None
    /// where the names do not tell them apart.
    fn dimensions(&self, batch_size: Option<usize>) -> Vec<(String, usize)> {
        let (Some(shape), [open]) = (self.binding.item_shape(), &self.open_inputs[..]) else { return Vec::new() };
        if open.len() != shape.len() + 1 {
            return Vec::new();
        }
        let sizes = std::iter::once(batch_size).chain(shape.into_iter().map(Some));
        let mut named = BTreeMap::new();
        for (name, size) in open.iter().zip(sizes) {
            let Some(name) = name else { continue };
            if named.insert(name, size).is_some_and(|before| before != size) {
                return Vec::new();
            }
        }
        named.into_iter().filter_map(|(name, size)| Some((name.clone(), size?))).collect()
    }

    /// Can a session be opened for one batch size alone?
    pub(super) fn can_fix_batch_size(&self) -> bool {
        self.dimensions(Some(0)).iter().any(|(_, size)| *size == 0)
    }

    fn options(&self, plan: &Plan) -> Result<SessionOptions, LoadError> {
        let mut options = SessionOptions {
            provider: plan.provider,
            precision: plan.precision,
            threads: plan.threads,
            parallel_runs: 1,
            dimensions: Vec::new(),
            same_shapes: false,
            // With TensorRT this has not been tried.
            pixel_table: self.binding.pixel_table().filter(|_| plan.provider == ExecutionProvider::Cuda),
            pixel_blocks: self.binding.pixel_table().is_some(),
            largest_side: self.binding.largest_side(),
            device_id: self.device_id,
            max_batch_size: plan.max_batch_size,
            input_shapes: Vec::new(),
            cache_dir: self.context.cache_dir.clone(),
            graph_hash: self.files.sha256.clone(),
        };
        // TensorRT must be told every shape before it compiles.
        if plan.provider == ExecutionProvider::TensorRt {
            let file = self.files.of(plan.precision)?;
            let inputs = Graph::inspect(&self.context.runtime, file)?;
            let binding = self.bind(&inputs, file)?;
            let shapes = inputs.iter().map(|input| {
                let (min, max) = binding.shape_range(input);
                (input.name.clone(), min, max)
            });
            options.input_shapes = shapes.collect();
        }
        Ok(options)
    }

    fn bind(&self, inputs: &[TensorSpec], file: &Path) -> Result<B, LoadError> {
        Ok(self.binding.bind(inputs).map_err(|problem| in_file(file, &problem))?)
    }

    /// The output by its name; a graph with one output may call it what it likes.
    fn find_output(&self, graph: &Graph, file: &Path) -> Result<String, LoadError> {
        let outputs = graph.outputs();
        let named = |name: &&String| outputs.iter().any(|output| output.name == **name);
        if let Some(name) = self.outputs.iter().find(named) {
            return Ok(name.clone());
        }
        let expected = self.outputs.join("' or '");
        if let [only] = outputs {
            tracing::info!(file = %file.display(), output = only.name, expected, "took the only output");
            return Ok(only.name.clone());
        }
        let names: Vec<_> = outputs.iter().map(|output| output.name.as_str()).collect();
        Err(in_file(file, &format!("has no output '{expected}', but {}", names.join(", "))).into())
    }
}

fn in_file(file: &Path, problem: &dyn std::fmt::Display) -> RuntimeError {
    RuntimeError::Graph(format!("{}: {problem}", file.display()))
}
