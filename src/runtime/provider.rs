//! Execution providers, precisions, and what each provider is told: pure mappings, tested without the hardware.

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::PixelTable;

/// What computes a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ExecutionProvider {
    /// ONNX Runtime's own kernels.
    Cpu,
    /// Intel's OpenVINO, on the CPU; the way to bf16 on recent Xeons and EPYCs.
    OpenVino,
    /// NVIDIA GPUs through CUDA and cuDNN.
    Cuda,
    /// NVIDIA GPUs through engines that TensorRT compiles, minutes at the first start and from its cache later.
    TensorRt,
}

/// The arithmetic inside a graph. Inputs and outputs are floating-point all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// The reference.
    F32,
    /// f32 whose factors are rounded to 11 bits of mantissa before they are multiplied.
    Tf32,
    /// 8 bits of mantissa, f32's range.
    Bf16,
    /// 11 bits of mantissa, small range.
    F16,
    /// 8-bit integers where the graph was quantised, which is a graph of its own, and floating point elsewhere.
    Int8,
}

impl ExecutionProvider {
    /// All, in the order in which a help text names them.
    pub const ALL: [Self; 4] = [Self::Cpu, Self::OpenVino, Self::Cuda, Self::TensorRt];

    /// The name in settings and answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::OpenVino => "openvino",
            Self::Cuda => "cuda",
            Self::TensorRt => "tensorrt",
        }
    }

    /// The provider called `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|provider| provider.name() == name)
    }

    /// Does it compute with the processor's cores, which decoding needs too?
    pub fn is_on_cpu(self) -> bool {
        matches!(self, Self::Cpu | Self::OpenVino)
    }

    /// ONNX Runtime's name for it.
    pub(super) fn runtime_name(self) -> &'static str {
        match self {
            Self::Cpu => "CPUExecutionProvider",
            Self::OpenVino => "OpenVINOExecutionProvider",
            Self::Cuda => "CUDAExecutionProvider",
            Self::TensorRt => "TensorrtExecutionProvider",
        }
    }

    /// The precisions worth measuring when none was asked for: those that the hardware computes natively.
    pub fn native_precisions(self) -> &'static [Precision] {
        match self {
            Self::OpenVino if cpu_computes_bf16() => &[Precision::F32, Precision::Bf16],
            Self::TensorRt => &[Precision::F32, Precision::F16],
            Self::Cuda => &[Precision::F32, Precision::Tf32],
            Self::Cpu | Self::OpenVino => &[Precision::F32],
        }
    }

    /// Why `precision` cannot be had from this provider, if it cannot.
    pub fn refuses(self, precision: Precision) -> Option<&'static str> {
        match (self, precision) {
            (_, Precision::F32) | (Self::OpenVino, Precision::Bf16) | (Self::Cuda, Precision::Tf32) => None,
            (Self::Cpu | Self::OpenVino, Precision::Int8) => None,
            (Self::Cuda | Self::TensorRt, Precision::Int8) => Some("int8 graphs are for CPUs"),
            (_, Precision::Tf32) => Some("only the cuda provider offers tf32"),
            (Self::TensorRt, _) => None,
            (Self::Cpu, _) => Some("the cpu provider computes in f32; openvino offers bf16"),
            (Self::OpenVino, Precision::F16) => Some("openvino on a CPU offers f32 and bf16"),
            (Self::Cuda, _) => {
                Some("the cuda provider computes a graph in its own precision or in tf32; tensorrt offers f16 and bf16")
            }
        }
    }
}

impl Precision {
    /// All, in the order in which a help text names them.
    pub const ALL: [Self; 5] = [Self::F32, Self::Tf32, Self::Bf16, Self::F16, Self::Int8];

    /// Those that any graph can be asked for; int8 takes a graph that was made for it.
    pub const OF_ANY_GRAPH: [Self; 4] = [Self::F32, Self::Tf32, Self::Bf16, Self::F16];

    /// The name in settings and answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Int8 => "int8",
        }
    }

    /// The precision called `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|precision| precision.name() == name)
    }
}

/// Does this CPU multiply bf16 natively? Elsewhere bf16 is emulated and slower than f32.
fn cpu_computes_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// How to open a session on a graph.
#[derive(Debug, Clone, PartialEq)]
pub struct SessionOptions {
    /// What computes.
    pub provider: ExecutionProvider,
    /// In which arithmetic.
    pub precision: Precision,
    /// Inference threads of each run.
    pub threads: usize,
    /// Runs that go on at once, in threads of their own. More than 1 only where [`Self::shares_sessions`] says so.
    pub parallel_runs: usize,
    /// Sizes for dimensions that the graph leaves open under a name. A graph without open dimensions is compiled better and
    /// takes less memory.
    pub dimensions: Vec<(String, usize)>,
    /// Will every run have inputs of the same shapes? CUDA then captures what it launches, and repeats it as a whole from then on.
    /// Refused for graphs of which other providers compute a part.
    pub same_shapes: bool,
    /// What becomes of each byte of a picture, where the graph is to be given bytes: as [`super::BYTE_PIXELS`] instead of as floats, if
    /// it can be.
    pub pixel_table: Option<Arc<PixelTable>>,
    /// Is the graph to be given pictures as [`super::PixelBlocks`], if it can be? OpenVINO in bf16 alone.
    pub pixel_blocks: bool,
    /// The longest side of the pictures that the graph is given, in pixels: no feature map is larger.
    pub largest_side: usize,
    /// Which GPU.
    pub device_id: u32,
    /// Largest first dimension of any input; with [`Self::input_shapes`] it bounds TensorRT's shape profile.
    pub max_batch_size: usize,
    /// `(input, smallest, largest)` shapes without the batch dimension, for TensorRT's shape profile.
    pub input_shapes: Vec<(String, Vec<usize>, Vec<usize>)>,
    /// The cache: weights that are stored another way for OpenVINO, and TensorRT's engines and timings.
    pub cache_dir: PathBuf,
    /// The graph's hash. TensorRT keeps its engines by it: their own names tell graphs apart by what is named in them, and not by weights.
    pub graph_hash: String,
}

impl SessionOptions {
    /// The reference: f32 on the CPU, one run at a time in one thread.
    pub fn reference(largest_side: usize, max_batch_size: usize, cache_dir: PathBuf) -> Self {
        Self {
            provider: ExecutionProvider::Cpu,
            precision: Precision::F32,
            threads: 1,
            parallel_runs: 1,
            dimensions: Vec::new(),
            same_shapes: false,
            pixel_table: None,
            pixel_blocks: false,
            largest_side,
            device_id: 0,
            max_batch_size,
            input_shapes: Vec::new(),
            cache_dir,
            graph_hash: String::new(),
        }
    }

    /// Where TensorRT keeps the graph's engines.
    pub(super) fn engines(&self) -> PathBuf {
        self.cache_dir.join("tensorrt").join(&self.graph_hash)
    }

    /// May several threads run one session at once, so that its weights are there but once? ONNX Runtime allows it throughout,
    /// but only providers on the CPU have been seen to keep to that.
    pub fn shares_sessions(provider: ExecutionProvider, threads: usize) -> bool {
        match provider {
            ExecutionProvider::OpenVino => true,
            // With one thread, a run stays in the thread that asks for it; several would be shared by all runs.
            ExecutionProvider::Cpu => threads == 1,
            ExecutionProvider::Cuda | ExecutionProvider::TensorRt => false,
        }
    }

    /// The provider's own options, by its own keys, for a graph of whose nodes OpenVINO may fuse several to one kernel, or shall not.
    pub(super) fn provider_options(&self, fuses_kernels: bool) -> Vec<(&'static str, String)> {
        match self.provider {
            ExecutionProvider::Cpu => Vec::new(),
            ExecutionProvider::OpenVino => {
                // By this name the provider knows how many requests to keep; threads are told by the configuration.
                let requests = ("num_of_threads", self.parallel_runs.to_string());
                vec![("device_type", "CPU".to_owned()), requests, ("load_config", self.openvino_config(fuses_kernels))]
            }
            ExecutionProvider::Cuda => vec![
                ("device_id", self.device_id.to_string()),
                ("use_tf32", flag(self.precision == Precision::Tf32)),
                ("cudnn_conv_algo_search", "HEURISTIC".to_owned()),
                ("arena_extend_strategy", "kSameAsRequested".to_owned()),
                ("enable_cuda_graph", flag(self.same_shapes)),
            ],
            ExecutionProvider::TensorRt => self.tensorrt_options(),
        }
    }

    /// OpenVINO's properties as JSON. Pinning is off because it leaves cores idle when several sessions pin to the same
    /// ones, and fails under cpusets.
    fn openvino_config(&self, fuses_kernels: bool) -> String {
        let floating_point = match self.precision {
            Precision::Int8 if cpu_computes_bf16() => Precision::Bf16,
            Precision::Int8 => Precision::F32,
            precision => precision,
        };
        let mut properties = serde_json::json!({
            "INFERENCE_PRECISION_HINT": floating_point.name(),
            "NUM_STREAMS": self.parallel_runs.to_string(),
            "INFERENCE_NUM_THREADS": (self.threads * self.parallel_runs).to_string(),
            "ENABLE_CPU_PINNING": "NO",
        });
        if !fuses_kernels {
            properties["SNIPPETS_MODE"] = "DISABLE".into();
        }
        serde_json::json!({"CPU": properties}).to_string()
    }

    fn tensorrt_options(&self) -> Vec<(&'static str, String)> {
        let engines = self.engines().display().to_string();
        let profile = |batch: usize, largest: bool| {
            let shape = |(name, min, max): &(String, Vec<usize>, Vec<usize>)| {
                let rest = if largest { max } else { min };
                let dimensions: Vec<_> = std::iter::once(&batch).chain(rest).map(usize::to_string).collect();
                format!("{name}:{}", dimensions.join("x"))
            };
            self.input_shapes.iter().map(shape).collect::<Vec<_>>().join(",")
        };
        vec![
            ("device_id", self.device_id.to_string()),
            ("trt_fp16_enable", flag(self.precision == Precision::F16)),
            ("trt_bf16_enable", flag(self.precision == Precision::Bf16)),
            ("trt_engine_cache_enable", flag(true)),
            ("trt_engine_cache_path", engines.clone()),
            ("trt_timing_cache_enable", flag(true)),
            ("trt_timing_cache_path", engines),
            ("trt_profile_min_shapes", profile(1, false)),
            ("trt_profile_opt_shapes", profile(self.max_batch_size, true)),
            ("trt_profile_max_shapes", profile(self.max_batch_size, true)),
        ]
    }
}

fn flag(on: bool) -> String {
    if on { "1" } else { "0" }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(provider: ExecutionProvider, precision: Precision) -> SessionOptions {
        SessionOptions {
            provider,
            precision,
            threads: 2,
            parallel_runs: 1,
            dimensions: Vec::new(),
            same_shapes: false,
            pixel_table: None,
            pixel_blocks: false,
            largest_side: 224,
            device_id: 1,
            max_batch_size: 8,
            input_shapes: vec![("pixel_values".to_owned(), vec![3, 224, 224], vec![3, 224, 224])],
            cache_dir: PathBuf::from("/cache"),
            graph_hash: "0a".to_owned(),
        }
    }

    fn value(options: &SessionOptions, key: &str) -> String {
        let found = options.provider_options(true).into_iter().find(|(name, _)| *name == key);
        found.unwrap_or_else(|| panic!("{key} is not set")).1
    }

    #[test]
    fn openvino_is_told_precision_threads_and_not_to_pin() {
        let options = options(ExecutionProvider::OpenVino, Precision::Bf16);
        assert_eq!(value(&options, "device_type"), "CPU");
        let config: serde_json::Value = serde_json::from_str(&value(&options, "load_config")).unwrap();
        assert_eq!(config["CPU"]["INFERENCE_PRECISION_HINT"], "bf16");
        assert_eq!(config["CPU"]["INFERENCE_NUM_THREADS"], "2");
        assert_eq!(config["CPU"]["ENABLE_CPU_PINNING"], "NO");
    }

    #[test]
    fn openvino_is_told_what_not_to_fuse() {
        let options = options(ExecutionProvider::OpenVino, Precision::Bf16);
        assert!(!value(&options, "load_config").contains("SNIPPETS"), "others than the one tested may not know it");
        assert!(options.openvino_config(false).contains(r#""SNIPPETS_MODE":"DISABLE""#));
    }

    #[test]
    fn openvino_is_told_how_many_runs_go_on_at_once() {
        let options = SessionOptions { parallel_runs: 3, ..options(ExecutionProvider::OpenVino, Precision::Int8) };
        assert_eq!(value(&options, "num_of_threads"), "3");
        let config: serde_json::Value = serde_json::from_str(&value(&options, "load_config")).unwrap();
        assert_eq!(
            (&config["CPU"]["NUM_STREAMS"], &config["CPU"]["INFERENCE_NUM_THREADS"]),
            (&"3".into(), &"6".into())
        );
        let floating_point = config["CPU"]["INFERENCE_PRECISION_HINT"].as_str().unwrap();
        assert!(["bf16", "f32"].contains(&floating_point), "what was not quantised is not int8: {floating_point}");
    }

    #[test]
    fn tensorrt_is_told_precision_caches_and_shape_profiles() {
        let options = options(ExecutionProvider::TensorRt, Precision::F16);
        assert_eq!(value(&options, "device_id"), "1");
        assert_eq!(value(&options, "trt_fp16_enable"), "1");
        assert_eq!(value(&options, "trt_bf16_enable"), "0");
        assert_eq!(value(&options, "trt_engine_cache_path"), "/cache/tensorrt/0a");
        assert_eq!(value(&options, "trt_timing_cache_path"), "/cache/tensorrt/0a");
        assert_eq!(value(&options, "trt_profile_min_shapes"), "pixel_values:1x3x224x224");
        assert_eq!(value(&options, "trt_profile_opt_shapes"), "pixel_values:8x3x224x224");
        assert_eq!(value(&options, "trt_profile_max_shapes"), "pixel_values:8x3x224x224");
    }

    #[test]
    fn tensorrt_profiles_cover_every_input_and_length() {
        let mut options = options(ExecutionProvider::TensorRt, Precision::F32);
        let tokens = |name: &str| (name.to_owned(), vec![1], vec![77]);
        options.input_shapes = vec![tokens("input_ids"), tokens("attention_mask")];
        assert_eq!(value(&options, "trt_profile_min_shapes"), "input_ids:1x1,attention_mask:1x1");
        assert_eq!(value(&options, "trt_profile_max_shapes"), "input_ids:8x77,attention_mask:8x77");
    }

    #[test]
    fn cuda_computes_true_f32_on_the_device_that_was_named() {
        let f32 = options(ExecutionProvider::Cuda, Precision::F32);
        assert_eq!((value(&f32, "device_id"), value(&f32, "use_tf32")), ("1".to_owned(), "0".to_owned()));
        assert_eq!(value(&options(ExecutionProvider::Cuda, Precision::Tf32), "use_tf32"), "1");
    }

    #[test]
    fn cuda_captures_runs_that_are_all_alike() {
        let any = options(ExecutionProvider::Cuda, Precision::F32);
        assert_eq!(value(&any, "enable_cuda_graph"), "0");
        assert_eq!(value(&SessionOptions { same_shapes: true, ..any }, "enable_cuda_graph"), "1");
    }

    #[test]
    fn precisions_that_a_provider_lacks_are_refused_with_a_reason() {
        assert!(ExecutionProvider::Cpu.refuses(Precision::Bf16).unwrap().contains("openvino"));
        assert!(ExecutionProvider::Cuda.refuses(Precision::F16).unwrap().contains("tensorrt"));
        assert_eq!(ExecutionProvider::TensorRt.refuses(Precision::Bf16), None);
        assert!(ExecutionProvider::OpenVino.refuses(Precision::Tf32).unwrap().contains("cuda"));
        for provider in ExecutionProvider::ALL {
            assert_eq!(provider.refuses(Precision::F32), None);
            let refused = provider.native_precisions().iter().find(|&&precision| provider.refuses(precision).is_some());
            assert_eq!(refused, None);
            assert_eq!(ExecutionProvider::from_name(provider.name()), Some(provider));
        }
    }
}
