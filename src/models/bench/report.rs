//! What `ocelli bench` is asked for, and what it tells.

use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;

use crate::models::GraphInfo;
use crate::models::plan::Plan;
use crate::models::tuning::timing::mean;
use crate::runtime::{ExecutionProvider, Precision};

/// A figure rests on so many runs at least.
const LEAST_RUNS: usize = 5;

/// What to measure.
pub struct BenchRequest {
    /// Encoded images, which are preprocessed one by one and then fill the batches in turn.
    pub images: Vec<Bytes>,
    /// Ways to run the image's graph.
    pub ways: Ways,
    /// Images per run.
    pub batches: Batches,
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

/// Which batch sizes are measured.
pub enum Batches {
    /// The powers of two up to this, and this.
    UpTo(usize),
    /// These.
    These(Vec<usize>),
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
    pub(in crate::models) fn of(plan: &Plan) -> Self {
        let Plan { provider, precision, instances, threads, .. } = *plan;
        Self { provider, precision, instances, threads }
    }

    pub(in crate::models) fn plan(self, max_batch_size: usize) -> Plan {
        let Self { provider, precision, instances, threads } = self;
        Plan { provider, precision, instances, threads, max_batch_size, small_batch_size: None, solo_threads: None }
    }
}

impl BenchRequest {
    /// In each round. Of three, one may have been stopped for a while: `scripts/bench` has a server take turns with this program.
    pub(in crate::models) fn least_runs(&self) -> usize {
        LEAST_RUNS.div_ceil(self.rounds.max(1)).max(3)
    }
}

impl PreprocessingCost {
    pub(in crate::models) fn mean(costs: &[Self]) -> Self {
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
    pub(in crate::models) fn mean(costs: &[Self]) -> Option<Self> {
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
}
