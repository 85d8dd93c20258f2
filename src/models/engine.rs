//! A graph at work: opened on a provider, warmed, behind its queue, with its workers.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;
use utoipa::ToSchema;

use super::first::First;
use super::graph_files::int8_of;
use super::graph_model::{Binding, GraphModel};
use super::opener::{Files, Opener, Warmed};
use super::plan::Plan;
use super::stored_graph::StoredGraph;
use super::tuning::Found;
use super::tuning::Tuning;
use super::tuning::TuningCache;
use super::{LoadContext, LoadError, Stop, Ticket};
use crate::batching::{Announcement, Answer, BatchQueue, InferenceError, Job, Role, Straggler, Worker};
use crate::config::ModelSettings;
use crate::runtime::{ExecutionProvider, Precision, give_back_freed_memory};

/// How often a thread that waits for an answer looks for it.
const POLL: Duration = Duration::from_millis(1);

/// What `GET /v1/models` tells of one graph.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct GraphInfo {
    /// Where it is stored.
    #[serde(flatten)]
    pub stored: StoredGraph,
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
    /// Batches that are run at once, each by a worker thread, in sessions that share their weights where the provider lets them.
    pub instances: usize,
    /// Inference threads per instance.
    pub threads: usize,
    /// Images in an instance's smallest batches, if it has a session of its own for those.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub small_batch_size: Option<usize>,
    /// Threads of a further session, which runs lone images while no instance runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub solo_threads: Option<usize>,
    /// What was measured to choose all this, where it was left open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tuning: Option<Tuning>,
    /// Every batch size that was run before the model was called ready, and no other will be.
    pub batch_sizes_warmed: Vec<usize>,
}

impl GraphInfo {
    /// Of a graph that is run by `plan`, before anything is known of its tuning or has been run. `node_counts` are as of
    /// [`crate::runtime::Graph::node_counts`].
    fn of(stored: StoredGraph, plan: &Plan, provider_reason: String, (nodes, nodes_on_cpu): (usize, usize)) -> Self {
        let Plan { provider, precision, instances, threads, small_batch_size, solo_threads, .. } = *plan;
        Self {
            stored,
            provider,
            provider_reason,
            nodes,
            nodes_on_cpu,
            precision,
            instances,
            threads,
            small_batch_size,
            solo_threads,
            tuning: None,
            batch_sizes_warmed: Vec::new(),
        }
    }
}

/// A queue and its workers.
pub(super) struct Engine<B: Binding> {
    /// The model's name and the graph's, for the log.
    pub(super) name: (String, &'static str),
    pub(super) opener: Opener<B>,
    pub(super) settings: ModelSettings,
    /// Where is kept what tuning measures.
    pub(super) cache: TuningCache,
    /// Values per answer.
    pub(super) output_width: usize,
    /// The graph that was asked for, and its int8 variant if that may be taken.
    stored: (StoredGraph, Option<StoredGraph>),
    queue: Arc<BatchQueue<GraphModel<B>>>,
    running: RwLock<Running>,
    /// Between the stages of tuning.
    pub(super) found: Mutex<Option<Found<B>>>,
}

/// The present crew of workers.
struct Running {
    workers: Vec<Worker>,
    /// Of crews before, until they have ended.
    relieved: Vec<Worker>,
    plan: Plan,
    /// How often its provider or precision has changed.
    arithmetic: u64,
    info: GraphInfo,
}

/// Which graph of which model, and what is wanted of it.
pub(super) struct EngineSource<'a> {
    /// The model's name.
    pub(super) model: &'a str,
    /// `model`, `vision_model` or `text_model`: its name in logs and metrics.
    pub(super) graph: &'static str,
    /// The file.
    pub(super) file: &'a Path,
    /// What is in it.
    pub(super) stored: &'a StoredGraph,
    /// The graph together with whose answers this one's are judged, if there is one.
    pub(super) judged_with: Option<&'a StoredGraph>,
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
        let settings = source.settings;
        let int8 = int8_of(source.file).filter(|_| settings.tuning.int8).and_then(|path| {
            // Tuning would only have tried it.
            let left_out =
                |error: &LoadError| tracing::warn!(model = source.model, %error, "the int8 graph is left out");
            let stored = StoredGraph::read(&path, source.folder, &context.cache_dir).inspect_err(left_out).ok()?;
            Some((path, stored))
        });
        let (int8_file, int8) = int8.unzip();
        let sha256 = source.stored.sha256.clone();
        let weights = source.stored.parameters.values().sum();
        let files = Files { graph: source.file.to_path_buf(), int8: int8_file, sha256, weights };
        let cache = TuningCache::new(&context.cache_dir, source, int8.as_ref(), &context.runtime.library);
        let stored = (source.stored.clone(), int8);
        let opener = Opener {
            context: context.clone(),
            binding: binding.clone(),
            files,
            outputs: source.outputs.iter().map(|&name| name.to_owned()).collect(),
            device_id: settings.device_id,
            open_inputs: stored.0.open_inputs.clone(),
        };
        let First { plan, sessions, reason, tuning } = First::open(&opener, source, &cache)?;
        let Some(warmed) = sessions.first() else {
            return Err(LoadError::System("no session was opened".to_owned()));
        };
        let metrics = context.metrics.queue(source.model, source.graph);
        let queue = BatchQueue::new(settings.max_queue_size, metrics, Arc::clone(&context.gate));
        let info = GraphInfo::of(stored.0.clone(), &plan, reason.clone(), warmed.model.graph.node_counts());
        let engine = Self {
            name: (source.model.to_owned(), source.graph),
            opener,
            settings: settings.clone(),
            cache,
            output_width: warmed.output_width,
            stored,
            queue: Arc::new(queue),
            running: RwLock::new(Running { workers: Vec::new(), relieved: Vec::new(), plan, arithmetic: 0, info }),
            found: Mutex::new(None),
        };
        engine.run(plan, sessions, reason, tuning)?;
        Ok(engine)
    }

    /// Starts the workers of `plan` on `sessions`, which [`Opener::open_crew`] opened for it; they relieve those that there are.
    pub(super) fn run(
        &self,
        plan: Plan,
        sessions: Vec<Warmed<B>>,
        reason: String,
        tuning: Option<Tuning>,
    ) -> Result<(), LoadError> {
        let Some(first) = sessions.first() else { return Ok(()) };
        let node_counts = first.model.graph.node_counts();
        let mut policy = self.settings.batch_policy;
        policy.max_batch_size = first.batch_sizes.last().copied().unwrap_or(1);
        policy.small_batch_size = plan.small_batch_size;
        policy.has_solo = plan.solo_threads.is_some();
        let mut batch_sizes_warmed: Vec<usize> =
            sessions.iter().flat_map(|session| session.batch_sizes.iter().copied()).collect();
        batch_sizes_warmed.sort_unstable();
        batch_sizes_warmed.dedup();
        let mut workers = Vec::with_capacity(sessions.len());
        for (instance, Warmed { model, .. }) in sessions.into_iter().enumerate() {
            let (role, name) = match plan.solo_threads {
                Some(_) if instance == plan.instances => (Role::Solo, "solo".to_owned()),
                _ => (Role::Instance, instance.to_string()),
            };
            let opener = self.opener.clone();
            let rebuild = move || {
                let reopened = match role {
                    Role::Solo => opener.open_solo(&plan).map(|session| vec![session]),
                    Role::Instance => opener.open_instances(&Plan { instances: 1, ..plan }),
                };
                let session = reopened.map_err(|error| error.to_string())?.pop();
                session.map(|session| session.model).ok_or_else(|| "no session was opened".to_owned())
            };
            let name = format!("{}/{}/{name}", self.name.0, self.name.1);
            let worker = Worker::spawn(name, Arc::clone(&self.queue), role, model, rebuild)
                .map_err(|error| LoadError::System(format!("no worker thread could be started: {error}")))?;
            workers.push(worker);
        }
        // Not before all are there: if one cannot be started, those that there were go on.
        let crew = self.queue.relieve(policy, plan.instances);
        workers.iter().for_each(|worker| worker.begin(crew));
        tracing::info!(
            model = self.name.0,
            graph = self.name.1,
            provider = plan.provider.name(),
            reason,
            precision = plan.precision.name(),
            instances = plan.instances,
            threads = plan.threads,
            max_batch_size = policy.max_batch_size,
            small_batch_size = policy.small_batch_size,
            solo_threads = plan.solo_threads,
            nodes_on_cpu = node_counts.1,
            "graph is warm"
        );
        let mut running = self.running.write().unwrap_or_else(PoisonError::into_inner);
        let relieved = std::mem::replace(&mut running.workers, workers);
        running.relieved.extend(relieved);
        running.relieved.retain(|worker| !worker.is_finished());
        give_back_freed_memory();
        let changes = (running.plan.provider, running.plan.precision) != (plan.provider, plan.precision);
        running.arithmetic += u64::from(changes);
        running.plan = plan;
        let int8 = self.stored.1.as_ref().filter(|_| plan.precision == Precision::Int8);
        let stored = int8.unwrap_or(&self.stored.0).clone();
        let info = GraphInfo::of(stored, &plan, reason, node_counts);
        running.info = GraphInfo { tuning, batch_sizes_warmed, ..info };
        Ok(())
    }

    /// Blocks until the workers of earlier crews have ended and their memory is free, or for `limit`.
    pub(super) fn await_relieved(&self, limit: Duration) {
        let started = Instant::now();
        let ended = || {
            let running = self.running.read().unwrap_or_else(PoisonError::into_inner);
            running.relieved.iter().all(Worker::is_finished)
        };
        while !ended() && started.elapsed() < limit {
            std::thread::sleep(Duration::from_millis(1));
        }
        give_back_freed_memory();
    }

    /// Notes what tuning found where it changed nothing.
    pub(super) fn note(&self, reason: String, tuning: Tuning) {
        let info = &mut self.running.write().unwrap_or_else(PoisonError::into_inner).info;
        (info.provider_reason, info.tuning) = (reason, Some(tuning));
    }

    /// How the graph is run at present.
    pub(super) fn plan(&self) -> Plan {
        self.running.read().unwrap_or_else(PoisonError::into_inner).plan
    }

    /// The number of the present arithmetic: answers of an earlier one, which had a lower number, may differ from its own.
    pub(super) fn arithmetic(&self) -> u64 {
        self.running.read().unwrap_or_else(PoisonError::into_inner).arithmetic
    }

    /// What there is to tell of the graph.
    pub(super) fn info(&self) -> GraphInfo {
        self.running.read().unwrap_or_else(PoisonError::into_inner).info.clone()
    }

    /// Tells that an item is being prepared, which the workers' choice of cores takes into account.
    pub(super) fn announce(&self) -> Announcement<GraphModel<B>> {
        self.queue.announce()
    }

    /// Puts an item into the queue. Once it is there, `reply` closes unanswered only if the worker is lost.
    pub(super) fn submit(&self, item: B::Item, ticket: Ticket, reply: Reply) -> Result<(), InferenceError> {
        self.queue.push(job(item, ticket, reply))
    }

    /// The same for one that has been announced.
    pub(super) fn submit_announced(
        &self,
        announcement: Announcement<GraphModel<B>>,
        item: B::Item,
        ticket: Ticket,
        reply: Reply,
    ) -> Result<(), InferenceError> {
        announcement.come(job(item, ticket, reply))
    }

    /// Puts an item of the engine's own before those that wait, however many they are.
    pub(super) fn submit_ahead(&self, item: B::Item, deadline: Instant) -> Result<Pending, InferenceError> {
        let (reply, pending) = Pending::new();
        self.queue.push_ahead(Job { input: item, deadline, reply, permit: None })?;
        Ok(pending)
    }

    /// Why the engine cannot answer at present, if it cannot.
    pub(super) fn broken(&self) -> Option<String> {
        let running = self.running.read().unwrap_or_else(PoisonError::into_inner);
        // While one worker is whole, it takes what would have been for the others.
        let broken: Option<Vec<String>> = running.workers.iter().map(Worker::broken).collect();
        broken.and_then(|causes| causes.into_iter().next())
    }

    /// Has the engine been told to stop?
    pub(super) fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }
}

impl<B: Binding> Stop for Engine<B> {
    fn close(&self) {
        self.queue.close();
    }

    fn stragglers(&self) -> Vec<Straggler> {
        let running = self.running.read().unwrap_or_else(PoisonError::into_inner);
        let workers = running.workers.iter().chain(&running.relieved);
        workers.filter(|worker| !worker.is_finished()).map(Worker::straggler).collect()
    }
}

impl<B: Binding> Drop for Engine<B> {
    /// A half-started or replaced engine must not leave its workers waiting for ever.
    fn drop(&mut self) {
        self.queue.close();
    }
}

/// Where an answer goes.
pub(super) type Reply = oneshot::Sender<Result<Answer<Vec<f32>>, InferenceError>>;

/// An answer that is on its way.
pub(super) struct Pending(oneshot::Receiver<Result<Answer<Vec<f32>>, InferenceError>>);

impl Pending {
    /// An answer, and where it is to go. One that cannot come any more is [`InferenceError::Closed`].
    pub(super) fn new() -> (Reply, Self) {
        let (reply, answer) = oneshot::channel();
        (reply, Self(answer))
    }

    /// Waits for the answer.
    pub(super) async fn answer(self) -> Result<Answer<Vec<f32>>, InferenceError> {
        Self::check(self.0.await.unwrap_or(Err(InferenceError::Closed))?)
    }

    /// Waits for the answer until `deadline`, off the async runtime.
    pub(super) fn blocking_answer(mut self, deadline: Instant) -> Result<Answer<Vec<f32>>, InferenceError> {
        loop {
            match self.0.try_recv() {
                Ok(answer) => return Self::check(answer?),
                Err(TryRecvError::Closed) => return Err(InferenceError::Closed),
                // Nobody takes jobs from the queue, whose deadline has passed too, while a model cannot be rebuilt.
                Err(TryRecvError::Empty) if deadline <= Instant::now() => return Err(InferenceError::DeadlineExceeded),
                Err(TryRecvError::Empty) => std::thread::sleep(POLL),
            }
        }
    }

    fn check(answer: Answer<Vec<f32>>) -> Result<Answer<Vec<f32>>, InferenceError> {
        // Below everything a logit may be: a class that is ruled out.
        if answer.output.iter().any(|value| value.is_nan() || *value == f32::INFINITY) {
            return Err(InferenceError::Failed("the graph's output is no finite number (NaN or infinite)".to_owned()));
        }
        Ok(answer)
    }
}

fn job<B: Binding>(item: B::Item, ticket: Ticket, reply: Reply) -> Job<GraphModel<B>> {
    Job { input: item, deadline: ticket.deadline, reply, permit: ticket.permit }
}
