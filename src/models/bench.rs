//! What preprocessing and inference cost by themselves, measured through the code that serves: for `ocelli bench`.

use std::cell::RefCell;
use std::rc::Rc;
use std::str::FromStr;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use super::image_encoder::{ImageBinding, ImageEncoder};
use super::opener::{BatchSizes, GraphModel, Plan, Use, Warmed, providers};
use super::timing::{batch_sizes, median, runs_per_second, timed_runs, timed_with_preparation};
use super::tuning::{Latitude, choose};
use super::{GraphInfo, LoadError, LoadedModel, PredictError};
use crate::batching::{Model, Role};
use crate::config::{Objective, usable_cores};
use crate::preprocess::PreparedImage;
use crate::runtime::{ExecutionProvider, Precision};

/// A figure rests on so many runs at least.
const LEAST_RUNS: usize = 5;

/// What to measure.
pub struct BenchRequest {
    /// Encoded images, which are preprocessed one by one and then fill the batches in turn.
    pub images: Vec<Bytes>,
    /// Ways to run the image's graph.
    pub ways: Ways,
    /// Batches are the powers of two up to this.
    pub max_batch_size: usize,
    /// Or these, if there are any.
    pub batch_sizes: Vec<usize>,
    /// Is throughput measured with images being decoded and preprocessed too?
    pub with_preparation: bool,
    /// For each figure, in each round.
    pub time: Duration,
    /// Everything is measured so often, in turns, and means are told: a machine may be slow for seconds, and should be so for all.
    pub rounds: usize,
}

/// Which ways to run the image's graph are measured.
pub enum Ways {
    /// What the server runs, and its arithmetic in one session of all cores and in a session a core.
    Served,
    /// Everything that this library, this machine and the settings allow.
    All,
    /// These.
    These(Vec<Way>),
}

/// A way to run a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Way {
    /// The execution provider.
    pub provider: ExecutionProvider,
    /// The arithmetic.
    pub precision: Precision,
    /// Sessions that run at once.
    pub instances: usize,
    /// Inference threads per session.
    pub threads: usize,
}

/// What was measured.
#[derive(Serialize)]
pub struct BenchReport {
    /// The cores that this process may use.
    pub cores: usize,
    /// The image's graph as the server runs it.
    pub graph: GraphInfo,
    /// For throughput, tuning takes no way whose single image takes more than this many times the shortest; `None` where single
    /// images get a session of their own.
    pub latency_bound: Option<f64>,
    /// What tuning chooses by its own measurements; empty if there are none.
    pub choices: Vec<Choice>,
    /// In the order of the images.
    pub preprocessing: Vec<PreprocessingCost>,
    /// By way and batch size.
    pub inference: Vec<InferenceCost>,
    /// Ways that cannot be run.
    pub failures: Vec<Failure>,
}

/// What tuning chooses.
#[derive(Serialize)]
pub struct Choice {
    /// `throughput` or `latency`.
    pub objective: &'static str,
    /// How the graph would be run.
    #[serde(flatten)]
    pub way: Way,
    /// Most images in a batch.
    pub max_batch_size: usize,
}

/// What decoding and preprocessing an image costs.
#[derive(Debug, Clone, Serialize)]
pub struct PreprocessingCost {
    /// Bytes of the encoded image.
    pub bytes: usize,
    /// Median time on one thread, while the other cores have nothing to do, in milliseconds; of several rounds the mean, as of all.
    pub wall_ms: f64,
    /// CPU time of the same, in milliseconds.
    pub cpu_ms: f64,
    /// CPU time while every core does the same, in milliseconds.
    pub cpu_ms_all_cores: f64,
}

/// What a batch costs, all sessions running such batches at once.
#[derive(Debug, Clone, Serialize)]
pub struct InferenceCost {
    /// How the graph was run.
    #[serde(flatten)]
    pub way: Way,
    /// Images per run.
    pub batch_size: usize,
    /// Runs that the figures rest on.
    pub runs: usize,
    /// CPU time of the process per image, in milliseconds.
    pub cpu_ms: f64,
    /// Median time of a run, in milliseconds; of several rounds the mean.
    pub run_ms: f64,
    /// The shortest run, in milliseconds.
    pub fastest_ms: f64,
    /// Images per second of all sessions together.
    pub per_second: f64,
    /// The same while as many images are being decoded and preprocessed, if that was asked for.
    pub served_per_second: Option<f64>,
}

/// Why a way cannot be run.
#[derive(Serialize)]
pub struct Failure {
    /// The way.
    #[serde(flatten)]
    pub way: Way,
    /// What the library says.
    pub reason: String,
}

impl FromStr for Way {
    type Err = String;

    /// Reads `PROVIDER,PRECISION,INSTANCES,THREADS`.
    fn from_str(text: &str) -> Result<Self, String> {
        let read = || {
            let [provider, precision, instances, threads] = text.split(',').collect::<Vec<_>>()[..] else {
                return None;
            };
            let number = |text: &str| text.parse().ok().filter(|number| (1..=1024).contains(number));
            Some(Self {
                provider: ExecutionProvider::from_name(provider)?,
                precision: Precision::from_name(precision)?,
                instances: number(instances)?,
                threads: number(threads)?,
            })
        };
        read().ok_or_else(|| format!("'{text}' is no way to run a graph; one is openvino,bf16,1,2"))
    }
}

impl Way {
    fn of(plan: &Plan) -> Self {
        let Plan { provider, precision, instances, threads, .. } = *plan;
        Self { provider, precision, instances, threads }
    }

    fn plan(self, max_batch_size: usize) -> Plan {
        let Self { provider, precision, instances, threads } = self;
        Plan { provider, precision, instances, threads, max_batch_size, solo_threads: None }
    }
}

impl LoadedModel {
    /// Measures preprocessing and the image's graph, one figure after the other, while nothing else runs. Blocks.
    ///
    /// # Errors
    /// An image that cannot be decoded. A way that cannot be run is noted in the report instead.
    pub fn bench(&self, request: &BenchRequest) -> Result<BenchReport, PredictError> {
        let encoder = self.image_encoder();
        let engine = &encoder.engine;
        let prepare = |image: &Bytes| encoder.prepare(image);
        let images: Vec<PreparedImage> = request.images.iter().map(prepare).collect::<Result<_, _>>()?;
        let ways = ways(encoder, &request.ways);
        // What takes turns with each other is in memory at once, so not all there can be.
        let together = if matches!(request.ways, Ways::All) { 1 } else { ways.len().max(1) };
        let mut preprocessing = vec![Vec::new(); images.len()];
        let (mut inference, mut failures) = (Vec::new(), Vec::new());
        for (index, ways) in ways.chunks(together).enumerate() {
            let mut points: Vec<Point> = Vec::new();
            for &way in ways {
                match Point::all_of(encoder, way, request) {
                    Ok(opened) => points.extend(opened),
                    Err(error) => failures.push(Failure { way, reason: error.to_string() }),
                }
            }
            tracing::info!(points = points.len(), rounds = request.rounds, "measuring");
            for _ in 0..request.rounds {
                if index == 0 {
                    for (image, costs) in request.images.iter().zip(&mut preprocessing) {
                        costs.push(preprocessing_cost(encoder, image, request)?);
                    }
                }
                for point in &mut points {
                    point.measure(encoder, &images, request);
                }
            }
            for Point { way, costs, .. } in points {
                match costs {
                    Ok(costs) => inference.extend(InferenceCost::mean(&costs)),
                    Err(_) if failures.iter().any(|failure: &Failure| failure.way == way) => {}
                    Err(error) => failures.push(Failure { way, reason: error.to_string() }),
                }
            }
        }
        let preprocessing = preprocessing.iter().map(|costs| PreprocessingCost::mean(costs)).collect();
        let graph = engine.info();
        let latitude = engine.opener.latitude(&engine.settings);
        let choices = choices(&graph, latitude);
        let latency_bound = match latitude {
            Latitude::SoloSession => None,
            Latitude::Bound(bound) => Some(bound),
        };
        Ok(BenchReport { cores: usable_cores(), graph, latency_bound, choices, preprocessing, inference, failures })
    }

    fn image_encoder(&self) -> &ImageEncoder {
        match self {
            Self::Classifier(model) => model.image_encoder(),
            Self::ZeroShot(model) => model.image_encoder(),
        }
    }
}

fn choices(graph: &GraphInfo, latitude: Latitude) -> Vec<Choice> {
    let candidates = graph.tuning.as_ref().map(|tuning| tuning.candidates.as_slice()).unwrap_or_default();
    let objectives = [("throughput", Objective::Throughput), ("latency", Objective::Latency)];
    let choice = |(name, objective)| {
        let plan = choose(candidates, objective, latitude)?;
        Some(Choice { objective: name, way: Way::of(&plan), max_batch_size: plan.max_batch_size })
    };
    objectives.into_iter().filter_map(choice).collect()
}

/// Without doubles.
fn ways(encoder: &ImageEncoder, wanted: &Ways) -> Vec<Way> {
    let cores = usable_cores();
    let served = Way::of(&encoder.engine.plan());
    let all = match wanted {
        Ways::These(ways) => ways.clone(),
        Ways::Served => {
            vec![served, Way { instances: 1, threads: cores, ..served }, Way { instances: cores, threads: 1, ..served }]
        }
        Ways::All => {
            let settings = &encoder.engine.settings;
            let arithmetic = providers(&encoder.engine.opener.context, settings).into_iter().flat_map(|provider| {
                let precisions = encoder.engine.opener.precisions(settings, provider);
                precisions.into_iter().map(move |precision| (provider, precision))
            });
            let splits = splits(cores);
            let ways = arithmetic.flat_map(|(provider, precision)| {
                splits.iter().map(move |&(instances, threads)| Way { provider, precision, instances, threads })
            });
            ways.collect()
        }
    };
    let mut ways = Vec::new();
    for way in all {
        if !ways.contains(&way) {
            ways.push(way);
        }
    }
    ways
}

/// Numbers of sessions and of threads in each: powers of two and all cores, with at most twice as many threads as cores.
fn splits(cores: usize) -> Vec<(usize, usize)> {
    let instances = batch_sizes(cores * 2);
    let threads = batch_sizes(cores);
    let pairs = instances.iter().flat_map(|&instances| threads.iter().map(move |&threads| (instances, threads)));
    pairs.filter(|(instances, threads)| instances * threads <= cores * 2).collect()
}

fn preprocessing_cost(
    encoder: &ImageEncoder,
    image: &[u8],
    request: &BenchRequest,
) -> Result<PreprocessingCost, PredictError> {
    let (mut alone, cpu_alone) = prepare_repeatedly(encoder, image, request)?;
    let cores = usable_cores();
    let start = Barrier::new(cores);
    let together: Vec<_> = std::thread::scope(|scope| {
        let work = || {
            start.wait();
            prepare_repeatedly(encoder, image, request)
        };
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        // A thread that panicked has no figures to give.
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect::<Result<_, _>>()
    })?;
    let runs: usize = together.iter().map(|(runs, _)| runs.len()).sum();
    let cpu_together: Duration = together.iter().map(|(_, cpu)| *cpu).sum();
    Ok(PreprocessingCost {
        bytes: image.len(),
        cpu_ms: ms(cpu_alone) / alone.len() as f64,
        wall_ms: ms(median(&mut alone)),
        cpu_ms_all_cores: ms(cpu_together) / runs as f64,
    })
}

/// The time of each run, and the CPU time of all.
fn prepare_repeatedly(
    encoder: &ImageEncoder,
    image: &[u8],
    request: &BenchRequest,
) -> Result<(Vec<Duration>, Duration), PredictError> {
    // The first run pays for what all others find: pages, caches.
    encoder.prepare(image)?;
    let (begin, cpu) = (Instant::now(), cpu_time(ClockId::ThreadCPUTime));
    let mut runs = Vec::new();
    while runs.len() < request.least_runs() || begin.elapsed() < request.time {
        let one = Instant::now();
        encoder.prepare(image)?;
        runs.push(one.elapsed());
    }
    Ok((runs, cpu_time(ClockId::ThreadCPUTime).saturating_sub(cpu)))
}

impl BenchRequest {
    /// In each round. Of three, one may have been stopped for a while: `scripts/bench` has a server take turns with this program.
    fn least_runs(&self) -> usize {
        LEAST_RUNS.div_ceil(self.rounds.max(1)).max(3)
    }
}

impl PreprocessingCost {
    fn mean(costs: &[Self]) -> Self {
        let mean = |of: fn(&Self) -> f64| mean(costs.iter().map(of));
        Self {
            bytes: costs.first().map_or(0, |cost| cost.bytes),
            wall_ms: mean(|cost| cost.wall_ms),
            cpu_ms: mean(|cost| cost.cpu_ms),
            cpu_ms_all_cores: mean(|cost| cost.cpu_ms_all_cores),
        }
    }
}

impl InferenceCost {
    /// `None` of none.
    fn mean(costs: &[Self]) -> Option<Self> {
        let first = costs.first()?;
        let mean = |of: fn(&Self) -> f64| mean(costs.iter().map(of));
        Some(Self {
            way: first.way,
            batch_size: first.batch_size,
            runs: costs.iter().map(|cost| cost.runs).sum(),
            cpu_ms: mean(|cost| cost.cpu_ms),
            run_ms: mean(|cost| cost.run_ms),
            fastest_ms: costs.iter().map(|cost| cost.fastest_ms).fold(f64::INFINITY, f64::min),
            per_second: mean(|cost| cost.per_second),
            served_per_second: first.served_per_second.map(|_| mean(|cost| cost.served_per_second.unwrap_or_default())),
        })
    }
}

/// 0 of none.
fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len().max(1) as f64;
    values.sum::<f64>() / count
}

/// A way to run the graph and a batch size, with what was measured of it in each round.
struct Point {
    way: Way,
    batch_size: usize,
    /// The way's, which its points share.
    sessions: Rc<RefCell<Vec<Warmed<ImageBinding>>>>,
    costs: Result<Vec<InferenceCost>, LoadError>,
}

impl Point {
    /// Opens the sessions of `way`.
    fn all_of(encoder: &ImageEncoder, way: Way, request: &BenchRequest) -> Result<Vec<Self>, LoadError> {
        let plan = way.plan(request.max_batch_size);
        let sizes = BatchSizes::First(1);
        let sessions = encoder.engine.opener.open(&plan, &Use { sizes, ..Use::of(&plan, Role::Any) })?;
        let wanted = if request.batch_sizes.is_empty() {
            batch_sizes(request.max_batch_size)
        } else {
            request.batch_sizes.clone()
        };
        let sizes = sessions.first().map(|session| session.model.batch_sizes(wanted)).unwrap_or_default();
        let sessions = Rc::new(RefCell::new(sessions));
        let point = |batch_size| Self { way, batch_size, sessions: Rc::clone(&sessions), costs: Ok(Vec::new()) };
        Ok(sizes.into_iter().map(point).collect())
    }

    fn measure(&mut self, encoder: &ImageEncoder, images: &[PreparedImage], request: &BenchRequest) {
        let Ok(costs) = &mut self.costs else { return };
        match inference_cost(encoder, self.way, self.batch_size, &mut self.sessions.borrow_mut(), images, request) {
            Ok(cost) => costs.push(cost),
            Err(error) => self.costs = Err(error),
        }
    }
}

fn inference_cost(
    encoder: &ImageEncoder,
    way: Way,
    batch_size: usize,
    sessions: &mut [Warmed<ImageBinding>],
    images: &[PreparedImage],
    request: &BenchRequest,
) -> Result<InferenceCost, LoadError> {
    let (time, least) = (request.time, request.least_runs());
    let batch: Vec<PreparedImage> = images.iter().cycle().take(batch_size).cloned().collect();
    let run = |model: &mut GraphModel<ImageBinding>| model.run(&batch).map(drop).map_err(LoadError::System);
    // The first of a size is slow.
    timed_runs(sessions, Duration::ZERO, 1, run)?;
    let cpu = cpu_time(ClockId::ProcessCPUTime);
    let timed = timed_runs(sessions, time, least, run)?;
    let cpu = cpu_time(ClockId::ProcessCPUTime).saturating_sub(cpu);
    let measured = runs_per_second(&timed) * batch_size as f64;
    let served_per_second = if request.with_preparation {
        let turn = AtomicUsize::new(0);
        let prepare = || {
            let turn = turn.fetch_add(1, Ordering::Relaxed);
            // It has been prepared before, so it can be.
            drop(encoder.prepare(&request.images[turn % request.images.len()]));
        };
        let timed = timed_with_preparation(sessions, time, least, batch_size, &prepare, run)?;
        Some(runs_per_second(&timed) * batch_size as f64)
    } else {
        None
    };
    let mut runs: Vec<Duration> = timed.into_iter().flat_map(|session| session.runs).collect();
    let fastest = runs.iter().min().copied().unwrap_or_default();
    let cpu_ms = ms(cpu) / (runs.len() * batch_size) as f64;
    // Where sessions are more than the cores, a few long runs that end beside fewer others look faster than the cores are.
    let possible = if way.provider.is_on_cpu() { usable_cores() as f64 * 1e3 / cpu_ms } else { f64::INFINITY };
    Ok(InferenceCost {
        way,
        batch_size,
        runs: runs.len(),
        cpu_ms,
        run_ms: ms(median(&mut runs)),
        fastest_ms: ms(fastest),
        per_second: measured.min(possible),
        served_per_second,
    })
}

/// CPU time used so far.
fn cpu_time(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or_default(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_is_read_as_it_is_written_in_the_help() {
        let way: Way = "openvino,bf16,1,2".parse().unwrap();
        let (provider, precision) = (ExecutionProvider::OpenVino, Precision::Bf16);
        assert_eq!(way, Way { provider, precision, instances: 1, threads: 2 });
        for wrong in ["", "openvino,bf16,1", "openvino,bf16,0,2", "openvino,f64,1,2", "npu,f32,1,2", "cpu,f32,1,2,3"] {
            assert!(wrong.parse::<Way>().is_err_and(|error| error.contains("openvino,bf16,1,2")), "{wrong}");
        }
    }

    #[test]
    fn splits_use_all_cores_and_at_most_twice_as_many_threads() {
        assert_eq!(splits(1), [(1, 1), (2, 1)]);
        assert_eq!(splits(2), [(1, 1), (1, 2), (2, 1), (2, 2), (4, 1)]);
        let six = splits(6);
        assert!(six.contains(&(1, 6)) && six.contains(&(2, 4)) && six.contains(&(12, 1)) && !six.contains(&(4, 4)));
    }

    #[test]
    fn cpu_time_counts_work_and_not_sleep() {
        let start = cpu_time(ClockId::ThreadCPUTime);
        std::thread::sleep(Duration::from_millis(50));
        let slept = cpu_time(ClockId::ThreadCPUTime).saturating_sub(start);
        assert!(slept < Duration::from_millis(25), "{slept:?}");
        while cpu_time(ClockId::ThreadCPUTime).saturating_sub(start) < slept + Duration::from_millis(5) {
            std::hint::spin_loop();
        }
    }
}
