//! Settings: as typed (`sources`) to as checked ([`Config`]), every mistake reported at once with its key.

mod keys;
mod sources;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

pub use keys::{KEYS, Key};
pub use sources::{Sources, arguments};

use crate::batching::BatchPolicy;
use crate::preprocess::DecodeMode;
use crate::runtime::{ExecutionProvider, Precision};
use sources::{Table, Typed};

/// Every setting, checked. No half-valid value travels past this type.
#[derive(Debug, Clone)]
pub struct Config {
    /// Folder whose sub-folders are the models.
    pub models_dir: PathBuf,
    /// Where to accept connections.
    pub listen: SocketAddr,
    /// Model of a classify request that names none; `None`: the first by name.
    pub default_classifier: Option<String>,
    /// Model of a zero-shot request that names none; `None`: the first by name.
    pub default_zero_shot: Option<String>,
    /// Settings of models that have no table of their own.
    pub model_defaults: ModelSettings,
    /// Settings of the models named in the file.
    pub models: BTreeMap<String, ModelSettings>,
    /// Bounds of what a request may bring.
    pub limits: Limits,
    /// Prompts whose embeddings are kept, per model.
    pub text_cache_size: usize,
    /// How the server stops.
    pub shutdown: ShutdownSettings,
    /// Threads that decode and resize.
    pub preprocess_threads: usize,
    /// The ONNX Runtime library or its folder, if it was named.
    pub onnxruntime: Option<PathBuf>,
    /// Root of the cache: what tuning measured, transposed weights, and TensorRT's engines.
    pub cache_dir: PathBuf,
    /// The program that measures, in processes of its own: `ocelli`. Not a setting of the user's.
    pub program: Option<PathBuf>,
    /// A `tracing` filter.
    pub log_level: String,
    /// How log lines look.
    pub log_format: LogFormat,
}

/// How one model is run.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSettings {
    /// `None`: the server chooses.
    pub device: Option<ExecutionProvider>,
    /// Which GPU.
    pub device_id: u32,
    /// `None`: the server chooses.
    pub precision: Option<Precision>,
    /// Suffix of the graph's file, as in `model_fp16.onnx`; `None`: the plain graph, or what the precision asks for.
    pub variant: Option<String>,
    /// How exactly large JPEGs are decoded; `None`: see [`Self::decode_mode`].
    pub decode: Option<DecodeMode>,
    /// When a batch is due.
    pub batch_policy: BatchPolicy,
    /// Most jobs that may wait.
    pub max_queue_size: usize,
    /// Batches of a graph that are run at once; `None`: the server chooses.
    pub instances: Option<usize>,
    /// Inference threads per instance; `None`: the usable cores divided by the instances.
    pub threads: Option<usize>,
    /// Threads of a further session for single items; `None`: the server chooses whether there is one.
    pub solo_threads: Option<usize>,
    /// Items in an instance's smallest batches, see [`crate::batching::session_sizes`]; `None`: the server chooses.
    pub small_batch_size: Option<usize>,
    /// What tuning optimises where a setting is left open, and within which bounds.
    pub tuning: TuningSettings,
}

/// What `auto` may choose by measuring, and what it may not pay for speed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TuningSettings {
    /// `None`: nothing is measured, and the first choice stays.
    pub objective: Option<Objective>,
    /// For throughput: how many times the lowest latency of a single image a choice may have.
    pub latency_bound: f64,
    /// How far a probability may move from that of f32.
    pub max_shift: f64,
    /// The best label must stay where f32 has it ahead by more than this.
    pub margin: f64,
    /// May the folder's int8 graph be taken?
    pub int8: bool,
}

/// What a choice is judged by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Objective {
    /// Images per second.
    Throughput,
    /// The time of a single image.
    Latency,
}

/// Bounds of what requests may bring, one by one and all together.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Images admitted at a time.
    pub max_in_flight: usize,
    /// Open connections.
    pub max_connections: usize,
    /// Bytes of request bodies held at a time.
    pub max_buffered_bytes: usize,
    /// Bytes of one request's body.
    pub max_body_bytes: usize,
    /// Width times height of one image.
    pub max_pixels: u64,
    /// Images of one request.
    pub max_images: usize,
    /// Labels of one zero-shot request.
    pub max_labels: usize,
    /// Hypothesis templates of one zero-shot request.
    pub max_templates: usize,
    /// Deadline of one request.
    pub request_timeout: Duration,
    /// Time for one request's body to arrive.
    pub body_timeout: Duration,
    /// Silence allowed on a connection.
    pub idle_timeout: Duration,
}

/// How the server stops.
#[derive(Debug, Clone, Copy)]
pub struct ShutdownSettings {
    /// How long to go on serving, unready.
    pub grace: Duration,
    /// How long requests in flight may take after that.
    pub timeout: Duration,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Human on a terminal, JSON otherwise.
    #[default]
    Auto,
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

impl Config {
    /// Checks what was typed.
    ///
    /// # Errors
    /// All mistakes, a line each, with the key and the place it was typed at.
    pub fn check(sources: &Sources, mut mistakes: Vec<String>) -> Result<Self, Vec<String>> {
        let cores = usable_cores();
        let tables = [&sources.command_line, &sources.file];
        let mut top = Reader::new(&tables, None, &mut mistakes);
        let mega = 1_000_000;
        let max_in_flight = top.at_least_one("max_in_flight");
        let config = Self {
            models_dir: top.optional("models_dir").unwrap_or_default(),
            listen: top.optional("listen").unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0))),
            default_classifier: top.optional("default_classifier"),
            default_zero_shot: top.optional("default_zero_shot"),
            limits: Limits {
                max_in_flight,
                max_connections: top.at_least_one("max_connections"),
                max_buffered_bytes: top.at_least_one("max_buffered_mb").saturating_mul(mega),
                max_body_bytes: top.at_least_one("max_body_mb").saturating_mul(mega),
                max_pixels: top.at_least_one("max_pixels") as u64,
                // There would never be room for more, however often they were sent.
                max_images: top.at_least_one("max_images").min(max_in_flight),
                max_labels: top.at_least_one("max_labels"),
                max_templates: top.at_least_one("max_templates"),
                request_timeout: top.at_least_one_ms("request_timeout_ms"),
                body_timeout: top.at_least_one_ms("body_timeout_ms"),
                idle_timeout: top.at_least_one_ms("idle_timeout_ms"),
            },
            text_cache_size: top.at_least_one("text_cache_size"),
            shutdown: ShutdownSettings {
                grace: top.milliseconds("shutdown_grace_ms"),
                timeout: top.milliseconds("shutdown_timeout_ms"),
            },
            preprocess_threads: top.optional_at_least_one("preprocess_threads").unwrap_or(cores),
            onnxruntime: top.optional("onnxruntime"),
            cache_dir: top.optional("cache_dir").unwrap_or_else(default_cache_dir),
            program: None,
            log_level: top.parsed("log_level", |text| {
                EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
            }),
            log_format: top.parsed("log_format", |text| match text {
                "auto" => Ok(LogFormat::Auto),
                "human" => Ok(LogFormat::Human),
                "json" => Ok(LogFormat::Json),
                _ => Err("must be auto, human or json".to_owned()),
            }),
            model_defaults: ModelSettings::read(&mut top),
            models: sources
                .models
                .iter()
                .map(|(model, table)| {
                    let tables = [&sources.command_line, table, &sources.file];
                    let mut reader = Reader::new(&tables, Some(model), &mut mistakes);
                    (model.clone(), ModelSettings::read(&mut reader))
                })
                .collect(),
        };
        if config.limits.max_buffered_bytes < config.limits.max_body_bytes {
            mistakes.push("max_buffered_mb: must be at least max_body_mb, or no body of that size gets in".to_owned());
        }
        // A wrong top-level value is read again for each model; say it once.
        mistakes.sort();
        mistakes.dedup();
        if mistakes.is_empty() { Ok(config) } else { Err(mistakes) }
    }

    /// The settings of the model called `name`.
    pub fn model(&self, name: &str) -> &ModelSettings {
        self.models.get(name).unwrap_or(&self.model_defaults)
    }
}

impl Default for Config {
    /// What a start without flags, variables and file uses.
    #[expect(clippy::expect_used, reason = "the defaults are constants, and a test checks them")]
    fn default() -> Self {
        Self::check(&Sources::default(), Vec::new()).expect("the defaults are valid")
    }
}

impl ModelSettings {
    fn read(reader: &mut Reader<'_>) -> Self {
        Self {
            device: reader.parsed("device", |text| {
                auto_or(text, ExecutionProvider::from_name, &ExecutionProvider::ALL.map(ExecutionProvider::name))
            }),
            device_id: reader.optional("device_id").unwrap_or_default(),
            precision: reader.parsed("precision", |text| match text {
                "int8" => {
                    Err("is the graph's own: set variant to int8, or let tuning decide with tune_int8".to_owned())
                }
                _ => auto_or(text, Precision::from_name, &Precision::OF_ANY_GRAPH.map(Precision::name)),
            }),
            variant: reader.optional("variant"),
            decode: reader
                .parsed("decode", |text| auto_or(text, DecodeMode::from_name, &DecodeMode::ALL.map(DecodeMode::name))),
            batch_policy: BatchPolicy {
                max_queue_delay: reader.milliseconds("max_queue_delay_ms"),
                ..BatchPolicy::up_to(reader.at_least_one("max_batch_size"))
            },
            max_queue_size: reader.at_least_one("max_queue_size"),
            instances: reader.optional_at_least_one("instances"),
            threads: reader.optional_at_least_one("threads"),
            solo_threads: reader.optional_at_least_one("solo_threads"),
            small_batch_size: reader.optional_at_least_one("small_batch_size"),
            tuning: TuningSettings {
                objective: reader.parsed("tune", |text| match text {
                    "off" => Ok(None),
                    "throughput" => Ok(Some(Objective::Throughput)),
                    "latency" => Ok(Some(Objective::Latency)),
                    _ => Err("must be throughput, latency or off".to_owned()),
                }),
                latency_bound: reader.number("tune_latency_bound", 1.0, 1000.0),
                max_shift: reader.number("tune_max_shift", 0.0, 1.0),
                margin: reader.number("tune_margin", 0.0, 1.0),
                int8: reader.optional("tune_int8").unwrap_or_default(),
            },
        }
    }

    /// Is anything left open for tuning to decide?
    pub fn leaves_open(&self) -> bool {
        let open = self.device.is_none() || self.precision.is_none() || self.instances.is_none();
        self.tuning.objective.is_some() && open
    }

    /// How exactly large JPEGs are decoded. Who asks for f32 wants the reference's answers; who leaves the precision open, or names a
    /// lower one, allows more than what fast decoding changes.
    pub fn decode_mode(&self) -> DecodeMode {
        let is_reference = self.precision == Some(Precision::F32);
        self.decode.unwrap_or(if is_reference { DecodeMode::Exact } else { DecodeMode::Fast })
    }

    /// Inference threads of each of `instances` sessions.
    pub fn threads_for(&self, instances: usize) -> usize {
        self.threads.unwrap_or((usable_cores() / instances).max(1))
    }
}

/// What is called `text`, one of `names`; `None` for `auto`.
fn auto_or<T>(text: &str, from_name: fn(&str) -> Option<T>, names: &[&str]) -> Result<Option<T>, String> {
    match text {
        "auto" => Ok(None),
        name => from_name(name).map(Some).ok_or_else(|| format!("must be auto, {}", names.join(", "))),
    }
}

/// The cores this process may really use: the smaller of its affinity mask and its cgroup's CPU quota.
pub fn usable_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn default_cache_dir() -> PathBuf {
    // Relative ones are to be ignored, by the XDG Base Directory Specification; one that is empty is as good as none.
    let user_cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let user_cache = user_cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    user_cache.unwrap_or_else(std::env::temp_dir).join("ocelli")
}

/// Reads one value after the other from tables in falling precedence, and notes each mistake.
struct Reader<'a> {
    tables: &'a [&'a Table],
    model: Option<&'a str>,
    mistakes: &'a mut Vec<String>,
}

impl<'a> Reader<'a> {
    fn new(tables: &'a [&'a Table], model: Option<&'a str>, mistakes: &'a mut Vec<String>) -> Self {
        Self { tables, model, mistakes }
    }

    fn typed(&self, key: &str) -> Option<Typed> {
        let typed = self.tables.iter().find_map(|table| table.get(key).cloned());
        let default = || keys::find(key).filter(|key| !key.default.is_empty());
        typed.or_else(|| default().map(|key| Typed { text: key.default.to_owned(), origin: "the default".to_owned() }))
    }

    /// The value of `key` if there is one and it is right; a wrong one is noted.
    fn checked<T>(&mut self, key: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let typed = self.typed(key)?;
        let text = typed.text.trim();
        let result = if text.is_empty() {
            Err("must not be empty".to_owned())
        } else {
            parse(text).map_err(|problem| format!("{problem}, not '{text}'"))
        };
        result
            .map_err(|problem| {
                let in_model_table = self.model.filter(|_| typed.origin == self.origin_of_model_table(key));
                let path = in_model_table.map_or_else(|| key.to_owned(), |model| format!("models.{model}.{key}"));
                self.mistakes.push(format!("{path}: {problem} (from {})", typed.origin));
            })
            .ok()
    }

    fn origin_of_model_table(&self, key: &str) -> String {
        let own_table = self.tables.get(1).filter(|_| self.tables.len() == 3);
        own_table.and_then(|table| table.get(key)).map_or_else(String::new, |typed| typed.origin.clone())
    }

    /// Like [`Self::checked`] for a key that has a default; `T::default()` stands for a wrong value, and is never used.
    fn parsed<T: Default>(&mut self, key: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> T {
        self.checked(key, parse).unwrap_or_default()
    }

    fn optional<T: FromStr<Err: std::fmt::Display>>(&mut self, key: &str) -> Option<T> {
        self.checked(key, |text| text.parse().map_err(|error: T::Err| error.to_string()))
    }

    fn at_least_one(&mut self, key: &str) -> usize {
        self.optional_at_least_one(key).unwrap_or(1)
    }

    fn optional_at_least_one(&mut self, key: &str) -> Option<usize> {
        self.checked(key, |text| match text.parse() {
            Ok(number @ 1..=1_000_000_000) => Ok(number),
            _ => Err("must be a whole number from 1 to 1000000000".to_owned()),
        })
    }

    fn number(&mut self, key: &str, least: f64, most: f64) -> f64 {
        self.parsed(key, |text| match text.parse::<f64>() {
            Ok(number) if (least..=most).contains(&number) => Ok(number),
            _ => Err(format!("must be a number from {least} to {most}")),
        })
    }

    fn milliseconds(&mut self, key: &str) -> Duration {
        self.parsed(key, |text| match text.parse::<f64>() {
            Ok(number @ 0.0..=86_400_000.0) => Ok(Duration::from_secs_f64(number / 1000.0)),
            _ => Err("must be a number of milliseconds from 0 to 86400000".to_owned()),
        })
    }

    fn at_least_one_ms(&mut self, key: &str) -> Duration {
        let time = self.milliseconds(key);
        if time < Duration::from_millis(1) && !self.mistakes.iter().any(|mistake| mistake.starts_with(key)) {
            self.mistakes.push(format!("{key}: must be at least 1"));
        }
        time
    }
}

#[cfg(test)]
mod tests;
