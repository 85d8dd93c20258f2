//! The one table of settings: flags, environment variables, file keys and the README's table all come from it.

/// One setting: `max_batch_size` in the file, `--max-batch-size`, `OCELLI_MAX_BATCH_SIZE`.
#[derive(Debug)]
pub struct Key {
    /// Name in the configuration file.
    pub name: &'static str,
    /// What the value looks like, for `--help`.
    pub value: &'static str,
    /// Value where nothing is set. Empty: there is none, and the help says what happens then.
    pub default: &'static str,
    /// May also stand in a `[models.NAME]` table.
    pub per_model: bool,
    /// One sentence for `--help` and the README.
    pub help: &'static str,
}

impl Key {
    /// The flag without its dashes.
    pub fn flag(&self) -> String {
        self.name.replace('_', "-")
    }

    /// The environment variable.
    pub fn variable(&self) -> String {
        format!("OCELLI_{}", self.name.to_uppercase())
    }
}

const fn key(name: &'static str, value: &'static str, default: &'static str, help: &'static str) -> Key {
    Key { name, value, default, per_model: false, help }
}

const fn model_key(name: &'static str, value: &'static str, default: &'static str, help: &'static str) -> Key {
    Key { per_model: true, ..key(name, value, default, help) }
}

/// Every setting, in the order in which the help shows them.
pub const KEYS: &[Key] = &[
    key("models_dir", "DIR", "models", "Folder whose sub-folders are the models, each in the Hugging Face layout."),
    key("listen", "ADDRESS:PORT", "127.0.0.1:8080", "Where to accept connections; port 0 takes a free one."),
    key(
        "default_classifier",
        "NAME",
        "",
        "Model of a /v1/classify request that names none; by default the first by name.",
    ),
    key(
        "default_zero_shot",
        "NAME",
        "",
        "Model of a /v1/zero-shot request that names none; by default the first by name.",
    ),
    model_key(
        "device",
        "NAME",
        "auto",
        "Execution provider: auto, cpu, openvino, cuda or tensorrt. One that is named and cannot be used stops the start.",
    ),
    model_key("device_id", "N", "0", "Which GPU, for cuda and tensorrt."),
    model_key(
        "precision",
        "NAME",
        "auto",
        "Arithmetic: f32 (the reference's answers), tf32 (cuda), bf16, f16, or auto: f32 until tuning finds a faster one that is as good.",
    ),
    model_key(
        "variant",
        "NAME",
        "",
        "Which graph of a folder with several: fp16, int8, quantized, …; by default the plain one, or fp16 for precision f16.",
    ),
    model_key(
        "decode",
        "NAME",
        "auto",
        "JPEGs much larger than a model's input: exact decodes them in full, as the reference does, fast at 1/2, 1/4 or 1/8, auto fast unless precision is set to f32.",
    ),
    model_key(
        "max_batch_size",
        "N",
        "8",
        "Most images (or prompts) that one inference run takes; tuning may find fewer to be faster.",
    ),
    model_key(
        "max_queue_delay_ms",
        "MS",
        "0",
        "How long the oldest waiting image may wait for its batch to fill while a worker is idle.",
    ),
    model_key(
        "instances",
        "N",
        "",
        "Batches of a graph that are run at once, each by a worker of its own; by default 1, or what tuning finds better.",
    ),
    model_key(
        "threads",
        "N",
        "",
        "Inference threads per instance; by default the usable cores divided by the instances.",
    ),
    model_key(
        "small_batch_size",
        "N",
        "",
        "Images that an instance runs at a time where they are too few for max_batch_size, in a session for just so many, beside one for a size between where those are far apart (not on a GPU); by default any number in one session, with solo_threads 1, or what tuning finds better.",
    ),
    model_key(
        "solo_threads",
        "N",
        "",
        "Threads of the solo session, a further one for single images while no instance runs; by default none, or what tuning finds better.",
    ),
    model_key(
        "tune",
        "NAME",
        "throughput",
        "What tuning optimises where device, precision or instances are left open: throughput, latency, or off.",
    ),
    model_key(
        "tune_latency_bound",
        "N",
        "1.5",
        "Without a solo session, tuning for throughput accepts single items this many times slower than the fastest way runs them.",
    ),
    model_key(
        "tune_max_shift",
        "N",
        "0.05",
        "Tuning takes a precision below f32 only if no probability moves by more than this on the built-in photos.",
    ),
    model_key("tune_margin", "N", "0.05", "Nor if the best label changes where f32 has it ahead by more than this."),
    model_key(
        "tune_int8",
        "BOOL",
        "false",
        "Tuning tries the folder's int8 graph too (scripts/quantize makes one), under the same two conditions.",
    ),
    key(
        "max_in_flight",
        "N",
        "1024",
        "Images admitted at a time, from the first byte of the body to the answer; more get 429.",
    ),
    key("max_queue_size", "N", "16384", "Images or prompts that may wait in one model's queue; more get 429."),
    key("max_connections", "N", "4096", "Open connections; more wait to be accepted."),
    key("max_buffered_mb", "MB", "1024", "Request bodies held in memory, all together; more get 429."),
    key("max_body_mb", "MB", "20", "Largest request body; a larger one gets 413."),
    key(
        "max_pixels",
        "N",
        "64000000",
        "Most pixels (width times height) of an image; more get 413 before any is decoded.",
    ),
    key("max_images", "N", "64", "Most images in one request, and no more than max_in_flight."),
    key("max_labels", "N", "1000", "Most labels in one zero-shot request."),
    key("max_templates", "N", "100", "Most hypothesis templates in one zero-shot request."),
    key(
        "text_cache_size",
        "N",
        "16384",
        "Prompts whose text embeddings are kept, per model; the least recently used goes first.",
    ),
    key("request_timeout_ms", "MS", "30000", "Deadline of a request, its body included; past it the answer is 504."),
    key("body_timeout_ms", "MS", "10000", "Time for a request's body to arrive; past it the answer is 408."),
    key(
        "idle_timeout_ms",
        "MS",
        "75000",
        "How long a connection may stay silent between requests or in the middle of a header, or, if it is more than 5 s, take nothing of an answer.",
    ),
    key(
        "shutdown_grace_ms",
        "MS",
        "5000",
        "After SIGTERM: how long to go on serving, unready, so that load balancers notice. Ctrl-C skips it.",
    ),
    key("shutdown_timeout_ms", "MS", "20000", "After the grace: how long requests in flight may take to finish."),
    key("preprocess_threads", "N", "", "Threads that decode and resize; by default one for each usable core."),
    key(
        "onnxruntime",
        "PATH",
        "",
        "The ONNX Runtime library or its folder; else ORT_DYLIB_PATH, beside the binary, or what scripts/setup fetched.",
    ),
    key(
        "cache_dir",
        "DIR",
        "",
        "Where what tuning measured, hashes, transposed weights and compiled engines are kept between starts; by default ocelli under the user's cache folder.",
    ),
    key(
        "log_level",
        "FILTER",
        "info",
        "What is logged: error, warn, info, debug, trace, or a filter such as ocelli=debug,ort=warn.",
    ),
    key("log_format", "NAME", "auto", "human, json, or auto: human on a terminal, json otherwise."),
];

/// The setting called `name` in the file.
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}
