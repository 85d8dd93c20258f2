//! Logs and metrics: the tracing set-up, and the one place that holds metric names.

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

/// Lines that may wait to be written. More are dropped: who does not read the log should not stop the server.
const LINES_WAITING: usize = 1 << 14;

/// Starts logging to standard error: one JSON object a line, or lines for people. A thread of its own writes them, what is left when
/// the guard is dropped.
pub fn start_logging(filter: &str, json: bool) -> WorkerGuard {
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    // ONNX Runtime tells of each optimiser step at "info"; only its warnings concern an operator.
    let filter = match "ort=warn".parse() {
        Ok(directive) if !filter.to_string().contains("ort=") => filter.add_directive(directive),
        _ => filter,
    };
    let writer = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(LINES_WAITING).thread_name("log");
    let (writer, guard) = writer.finish(std::io::stderr());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    // A second start in one process (tests) keeps the first one's settings.
    let _ = if json {
        builder.json().flatten_event(true).with_current_span(true).with_span_list(false).try_init()
    } else {
        builder.with_target(false).with_ansi(std::io::stderr().is_terminal()).try_init()
    };
    guard
}

/// Seconds, from half a millisecond to half a minute: 1, 2, 5 steps.
const SECONDS: &[f64] = &[0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0];
const BATCH_SIZES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    endpoint: &'static str,
    model: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelLabels {
    model: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GraphLabels {
    model: String,
    graph: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DropLabels {
    model: String,
    graph: &'static str,
    reason: DropReason,
}

/// Why a queued job was never run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DropReason {
    /// Nobody waited for the answer any more.
    ClientGone,
    /// Its deadline passed in the queue.
    Deadline,
}

impl EncodeLabelValue for DropReason {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        encoder.write_str(match self {
            Self::ClientGone => "client_gone",
            Self::Deadline => "deadline",
        })
    }
}

#[derive(Clone, Copy)]
struct Buckets(&'static [f64]);

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

type Histograms<L> = Family<L, Histogram, Buckets>;

/// Every metric of the server.
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    request_duration: Histograms<ModelLabels>,
    decode_duration: Histograms<ModelLabels>,
    queue_duration: Histograms<GraphLabels>,
    inference_duration: Histograms<GraphLabels>,
    batch_size: Histograms<GraphLabels>,
    queue_depth: Family<GraphLabels, Gauge>,
    dropped: Family<DropLabels, Counter>,
    model_ready: Family<ModelLabels, Gauge>,
    cache_hits: Family<ModelLabels, Counter>,
    cache_misses: Family<ModelLabels, Counter>,
    /// Images admitted and not yet answered.
    pub in_flight: Gauge,
    /// Bytes of request bodies held at present.
    pub buffered_bytes: Gauge,
    /// Open connections.
    pub connections: Gauge,
}

/// The metrics of one graph's queue and workers.
#[derive(Clone)]
pub struct QueueMetrics {
    pub(crate) queue: Histogram,
    pub(crate) inference: Histogram,
    pub(crate) batch_size: Histogram,
    pub(crate) depth: Gauge,
    client_gone: Counter,
    deadline: Counter,
}

impl QueueMetrics {
    /// The counter of jobs dropped for `reason`.
    pub(crate) fn dropped(&self, reason: DropReason) -> &Counter<u64, AtomicU64> {
        match reason {
            DropReason::ClientGone => &self.client_gone,
            DropReason::Deadline => &self.deadline,
        }
    }
}

impl Default for QueueMetrics {
    /// Metrics that nobody reads: for the command line and for tests.
    fn default() -> Self {
        Metrics::new().queue("", "model")
    }
}

/// The metrics of one model, apart from its queues.
#[derive(Clone)]
pub struct ModelMetrics {
    pub(crate) request_duration: Histogram,
    pub(crate) decode_duration: Histogram,
    pub(crate) cache_hits: Counter,
    pub(crate) cache_misses: Counter,
    ready: Gauge,
}

impl ModelMetrics {
    /// Notes whether the model answers.
    pub fn set_ready(&self, ready: bool) {
        self.ready.set(i64::from(ready));
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Registers every metric under its name.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("ocelli");
        fn seconds<L: Clone + std::hash::Hash + Eq>() -> Histograms<L> {
            Family::new_with_constructor(Buckets(SECONDS))
        }
        let build = vec![("version".to_owned(), env!("CARGO_PKG_VERSION").to_owned())];
        registry.register("build", "The server's version", prometheus_client::metrics::info::Info::new(build));
        Self {
            requests: register(
                &mut registry,
                "requests",
                "Answered requests by endpoint, model and status",
                Family::default(),
            ),
            request_duration: in_seconds(
                &mut registry,
                "request_duration",
                "From the head of an inference request to its answer",
                seconds(),
            ),
            decode_duration: in_seconds(
                &mut registry,
                "decode_duration",
                "Decoding and preprocessing of one image",
                seconds(),
            ),
            queue_duration: in_seconds(&mut registry, "queue_duration", "Wait of one job in its queue", seconds()),
            inference_duration: in_seconds(&mut registry, "inference_duration", "One run of a batch", seconds()),
            batch_size: register(
                &mut registry,
                "batch_size",
                "Jobs in a batch",
                Family::new_with_constructor(Buckets(BATCH_SIZES)),
            ),
            queue_depth: register(&mut registry, "queue_depth", "Jobs waiting in a queue", Family::default()),
            dropped: register(&mut registry, "jobs_dropped", "Queued jobs that were never run", Family::default()),
            model_ready: register(
                &mut registry,
                "model_ready",
                "1 if the model answers, 0 otherwise",
                Family::default(),
            ),
            cache_hits: register(
                &mut registry,
                "text_cache_hits",
                "Prompts whose embedding was cached",
                Family::default(),
            ),
            cache_misses: register(
                &mut registry,
                "text_cache_misses",
                "Prompts whose embedding was computed",
                Family::default(),
            ),
            in_flight: register(
                &mut registry,
                "in_flight_images",
                "Images admitted and not yet answered",
                Gauge::default(),
            ),
            buffered_bytes: register(
                &mut registry,
                "buffered_body_bytes",
                "Request bodies held in memory",
                Gauge::default(),
            ),
            connections: register(&mut registry, "open_connections", "Open connections", Gauge::default()),
            registry,
        }
    }

    /// The metrics of the queue in front of `graph` of `model`.
    pub fn queue(&self, model: &str, graph: &'static str) -> QueueMetrics {
        let labels = GraphLabels { model: model.to_owned(), graph };
        let dropped = |reason| {
            let GraphLabels { model, graph } = labels.clone();
            self.dropped.get_or_create_owned(&DropLabels { model, graph, reason })
        };
        QueueMetrics {
            queue: self.queue_duration.get_or_create_owned(&labels),
            inference: self.inference_duration.get_or_create_owned(&labels),
            batch_size: self.batch_size.get_or_create_owned(&labels),
            depth: self.queue_depth.get_or_create_owned(&labels),
            client_gone: dropped(DropReason::ClientGone),
            deadline: dropped(DropReason::Deadline),
        }
    }

    /// The metrics of `model`, apart from its queues.
    pub fn model(&self, model: &str) -> ModelMetrics {
        let labels = ModelLabels { model: model.to_owned() };
        ModelMetrics {
            request_duration: self.request_duration.get_or_create_owned(&labels),
            decode_duration: self.decode_duration.get_or_create_owned(&labels),
            cache_hits: self.cache_hits.get_or_create_owned(&labels),
            cache_misses: self.cache_misses.get_or_create_owned(&labels),
            ready: self.model_ready.get_or_create_owned(&labels),
        }
    }

    /// Counts an answered request. `model` must be one the server has, or empty: the label must not grow without bound.
    pub fn count_request(&self, endpoint: &'static str, model: &str, status: u16) {
        let model = model.to_owned();
        let labels = RequestLabels { endpoint, model, status };
        self.requests.get_or_create(&labels).inc();
    }

    /// All metrics, in the OpenMetrics text format that Prometheus reads.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        if prometheus_client::encoding::text::encode(&mut text, &self.registry).is_err() {
            let _ = writeln!(text, "# the metrics could not be written");
        }
        text
    }
}

/// What [`Metrics::encode`] writes.
pub const METRICS_CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

fn register<M>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M
where
    M: prometheus_client::registry::Metric + Clone,
{
    registry.register(name, help, metric.clone());
    metric
}

fn in_seconds<M>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M
where
    M: prometheus_client::registry::Metric + Clone,
{
    registry.register_with_unit(name, help, Unit::Seconds, metric.clone());
    metric
}

/// Shared by everything that counts.
pub type SharedMetrics = Arc<Metrics>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_have_conventional_names_and_the_readme_lists_them() {
        let metrics = Metrics::new();
        metrics.queue("m", "model").depth.set(3);
        metrics.model("m").set_ready(true);
        metrics.count_request("/v1/classify", "m", 200);
        let text = metrics.encode();
        for line in [
            "ocelli_queue_depth{model=\"m\",graph=\"model\"} 3",
            "ocelli_model_ready{model=\"m\"} 1",
            "ocelli_requests_total{endpoint=\"/v1/classify\",model=\"m\",status=\"200\"} 1",
            "# UNIT ocelli_decode_duration_seconds seconds",
        ] {
            assert!(text.contains(line), "'{line}' is missing in:\n{text}");
        }
        let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
        for name in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()) {
            assert!(readme.contains(&format!("| `{name}")), "the README's table lacks {name}");
        }
    }
}
