//! A graph and the session that computes it: opened on a provider, checked, run on batches.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::f16;
use ndarray::{Array2, ArrayViewD, CowArray, IxDyn};
use ort::ep::{self, ArbitrarilyConfigurableExecutionProvider, ExecutionProviderDispatch};
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::session::{Session, SessionInputValue};
use ort::value::{DynValue, Outlet, TensorElementType, TensorRef};

use super::assignment::{RECORD_KEY, nodes_by_provider};
use super::batch_memory::Pinning;
use super::cuda_graph::opening;
use super::mapped_files::{let_go_of_mapped, may_map};
use super::rewriting::weights_in_file::Slim;
use super::rewriting::{PIXEL_BLOCKS, PixelBlocks, substitutes, without_wide_pools};
use super::shared_session::{Capture, Gpu, SharedSession};
use super::{ExecutionProvider, Runtime, RuntimeError, SessionOptions};

/// The session option for a graph that comes as bytes.
const EXTERNAL_DATA_FOLDER_KEY: &str = "session.model_external_initializers_file_folder_path";

/// The session option for what is not to be done to a graph, by names.
const DISABLED_OPTIMIZERS_KEY: &str = "optimization.disable_specified_optimizers";

/// An input or output as the graph declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name.
    pub name: String,
    /// ONNX Runtime's name of the element type, such as `f32`.
    pub element_type: TensorElementType,
    /// Dimensions; `None` where the graph leaves one open.
    pub shape: Vec<Option<usize>>,
    /// How it takes pictures, if as blocks of pixels.
    pub blocks: Option<PixelBlocks>,
}

/// A batch for one input, in standard layout. Converted to the graph's element type at its edge; what needs no conversion is
/// read where it lies.
#[derive(Debug, Clone)]
pub enum Tensor<'a> {
    /// Pixels.
    F32(CowArray<'a, f32, IxDyn>),
    /// Pixels as [`super::BYTE_PIXELS`].
    U8(CowArray<'a, u8, IxDyn>),
    /// Tokens.
    I64(CowArray<'a, i64, IxDyn>),
}

impl Tensor<'_> {
    /// Its dimensions.
    pub fn shape(&self) -> &[usize] {
        match self {
            Self::F32(array) => array.shape(),
            Self::U8(array) => array.shape(),
            Self::I64(array) => array.shape(),
        }
    }

    /// The same values, without a copy.
    pub fn view(&self) -> Tensor<'_> {
        match self {
            Self::F32(array) => Tensor::F32(array.view().into()),
            Self::U8(array) => Tensor::U8(array.view().into()),
            Self::I64(array) => Tensor::I64(array.view().into()),
        }
    }
}

/// A session on a graph. A clone shares it; there are no more runs at once than the session was opened for.
#[derive(Clone)]
pub struct Graph {
    session: Arc<SharedSession>,
    inputs: Vec<TensorSpec>,
    outputs: Vec<TensorSpec>,
    nodes: usize,
    nodes_elsewhere: usize,
    /// Files that the session may map.
    mapped: Arc<[PathBuf]>,
}

impl Graph {
    /// Opens the graph in the file `path`.
    ///
    /// # Errors
    /// [`RuntimeError::Provider`] if the provider cannot be used, [`RuntimeError::Graph`] if the file cannot be loaded.
    pub fn open(runtime: &Runtime, path: &Path, options: &SessionOptions) -> Result<Self, RuntimeError> {
        let provider = options.provider;
        if !runtime.providers.contains(&provider) {
            return Err(RuntimeError::Provider(format!(
                "the execution provider {} is not in {}, which has {}. scripts/setup --help says how to fetch another",
                provider.name(),
                runtime.library.display(),
                runtime.providers.iter().map(|provider| provider.name()).collect::<Vec<_>>().join(", ")
            )));
        }
        if let Some(reason) = provider.refuses(options.precision) {
            let precision = options.precision.name();
            return Err(RuntimeError::Provider(format!("precision {precision} cannot be had: {reason}")));
        }
        // Held until sessions that will not do are closed again, too.
        let _opening = (!provider.is_on_cpu()).then(opening);
        let mapping = may_map();
        let open = |slim: Option<Slim>| {
            let fuses_kernels = slim.as_ref().is_none_or(|slim| slim.fuses_kernels);
            let builder = session_builder(runtime, options, fuses_kernels).map_err(|error| {
                RuntimeError::Provider(format!("the execution provider {} cannot be used: {error}", provider.name()))
            })?;
            let session = commit(builder, path, slim, options.largest_side)?;
            let counts = nodes_by_provider(&session)?;
            Ok::<_, RuntimeError>((session, counts))
        };
        let (substitutes, mapped) = substitutes(path, options)?;
        let why_not =
            |reason: &dyn Display| tracing::debug!(file = %path.display(), %reason, "it is opened more as it is");
        let opened = substitutes.into_iter().filter(Slim::has_distinct_names).find_map(|slim| {
            let blocks = slim.blocks;
            let opened = open(Some(slim)).inspect_err(|error| why_not(error)).ok();
            // The cpu provider, which gets what others leave, would use weights where they lie in the file, at any address.
            let opened = opened.filter(|(_, counts)| {
                let other = counts.keys().find(|name| *name != provider.runtime_name());
                other.inspect(|other| why_not(other)).is_none()
            });
            Some((opened?, blocks))
        });
        let ((session, counts), blocks) = match opened {
            Some(opened) => opened,
            None => (open(None)?, None),
        };
        let nodes: usize = counts.values().sum();
        let own = counts.get(provider.runtime_name()).copied().unwrap_or(0);
        if own == 0 && nodes > 0 {
            return Err(RuntimeError::Provider(format!(
                "the execution provider {} computes none of the {nodes} nodes of {}",
                provider.name(),
                path.display()
            )));
        }
        let capture = options.same_shapes.then(Capture::new).transpose().map_err(run_error)?;
        let gpu = (!provider.is_on_cpu()).then_some(Gpu { device_id: options.device_id, capture });
        let mut inputs = specs(session.inputs(), path)?;
        for input in inputs.iter_mut().filter(|input| input.name == PIXEL_BLOCKS) {
            input.blocks = blocks;
        }
        let graph = Self {
            inputs,
            outputs: specs(session.outputs(), path)?,
            session: Arc::new(SharedSession::new(session, gpu)),
            nodes,
            nodes_elsewhere: nodes - own,
            mapped: mapped.into(),
        };
        drop(mapping);
        graph.let_go_of_files();
        Ok(graph)
    }

    /// To be held while a run may read the graph's files: nobody lets go of files meanwhile.
    pub fn may_read_files(&self) -> impl Sized + use<> {
        may_map()
    }

    /// Lets go of the pages of the graph's files that have been read, which is done when it is opened, and by the first run of each
    /// batch size where that is left open.
    pub fn let_go_of_files(&self) {
        let_go_of_mapped(self.mapped.iter().cloned());
    }

    /// The inputs of the graph in the file `path`, without preparing it for a provider.
    ///
    /// # Errors
    /// [`RuntimeError::Graph`] if the file cannot be loaded.
    pub fn inspect(runtime: &Runtime, path: &Path) -> Result<Vec<TensorSpec>, RuntimeError> {
        let unreadable = |error: ort::Error| RuntimeError::Graph(format!("{}: {error}", path.display()));
        let mut builder = Session::builder(&runtime.environment)
            .and_then(|builder| {
                Ok(builder.with_optimization_level(GraphOptimizationLevel::Disable)?.with_intra_threads(1)?)
            })
            .map_err(unreadable)?;
        specs(builder.commit_from_file(path).map_err(unreadable)?.inputs(), path)
    }

    /// The graph's inputs.
    pub fn inputs(&self) -> &[TensorSpec] {
        &self.inputs
    }

    /// The graph's outputs.
    pub fn outputs(&self) -> &[TensorSpec] {
        &self.outputs
    }

    /// All nodes, and those that the provider left to the CPU provider.
    pub fn node_counts(&self) -> (usize, usize) {
        (self.nodes, self.nodes_elsewhere)
    }

    /// How memory is had in which batches for this graph are best put together.
    pub fn pinning(&self) -> Pinning {
        self.session.pinning()
    }

    /// Is a thread's first run slow, as it is on a GPU?
    pub fn prepares_for_each_thread(&self) -> bool {
        self.session.is_on_gpu()
    }

    /// Runs a batch and returns the rows of the output called `output`, one for each item of the batch.
    ///
    /// # Errors
    /// [`RuntimeError::Run`].
    pub fn run(&self, inputs: &[(&str, Tensor<'_>)], output: &str) -> Result<Array2<f32>, RuntimeError> {
        let values = inputs
            .iter()
            .map(|(name, tensor)| {
                let declared = self.inputs.iter().find(|spec| spec.name == *name);
                let element_type = declared.map_or(TensorElementType::Float32, |spec| spec.element_type);
                Ok((*name, to_value(tensor, element_type)?))
            })
            .collect::<Result<Vec<_>, ort::Error>>()
            .map_err(run_error)?;
        let value = self.session.run(&values, output).map_err(run_error)?;
        rows(&value, output)
    }
}

fn run_error(error: ort::Error) -> RuntimeError {
    RuntimeError::Run(error.to_string())
}

fn session_builder(
    runtime: &Runtime,
    options: &SessionOptions,
    fuses_kernels: bool,
) -> Result<SessionBuilder, ort::Error> {
    if options.provider == ExecutionProvider::TensorRt {
        // TensorRT writes its caches there and does not create the folder.
        let _ = std::fs::create_dir_all(options.engines());
    }
    let mut builder = Session::builder(&runtime.environment)?
        .with_optimization_level(GraphOptimizationLevel::Level3)?
        // Always set: ONNX Runtime's own choice pins threads to cores it may not use.
        .with_intra_threads(options.threads)?
        .with_inter_threads(1)?
        // Idle threads that spin take the cores that decoding needs.
        .with_intra_op_spinning(false)?
        .with_config_entry(RECORD_KEY, "1")?;
    if options.provider == ExecutionProvider::OpenVino {
        // OpenVINO merges what it can use by itself. What stands before each of several convolutions has to stay there: shared, it would be
        // turned in memory. Of two shapes one after the other, ONNX Runtime 1.24 fails to make one where the second is computed.
        builder = builder.with_config_entry(DISABLED_OPTIMIZERS_KEY, "CommonSubexpressionElimination;ReshapeFusion")?;
    }
    for (name, size) in &options.dimensions {
        builder = builder.with_dimension_override(name, i64::try_from(*size).unwrap_or(i64::MAX))?;
    }
    Ok(builder.with_execution_providers(dispatch(options, fuses_kernels))?)
}

/// Opens the graph in the file `path`, or `slim` in its place, with what its wide pools mean.
fn commit(
    mut builder: SessionBuilder,
    path: &Path,
    slim: Option<Slim>,
    largest_side: usize,
) -> Result<Session, RuntimeError> {
    let failed = |error: ort::Error| RuntimeError::Graph(format!("{}: {error}", path.display()));
    let (bytes, weights) = slim.map_or_else(|| (None, path.to_owned()), |slim| (Some(slim.bytes), slim.file));
    let Some(bytes) = without_wide_pools(path, bytes, largest_side)? else {
        return builder.commit_from_file(path).map_err(failed);
    };
    if let Some(folder) = weights.parent().unwrap_or(Path::new("")).to_str() {
        builder = builder.with_config_entry(EXTERNAL_DATA_FOLDER_KEY, folder).map_err(|error| failed(error.into()))?;
    }
    builder.commit_from_memory(&bytes).map_err(failed)
}

fn dispatch(options: &SessionOptions, fuses_kernels: bool) -> Vec<ExecutionProviderDispatch> {
    fn configured<E: ArbitrarilyConfigurableExecutionProvider>(provider: E, options: Vec<(&'static str, String)>) -> E {
        options.into_iter().fold(provider, |provider, (key, value)| provider.with_arbitrary_config(key, value))
    }
    let given = options.provider_options(fuses_kernels);
    let cuda = |given| configured(ep::CUDA::default(), given).build().error_on_failure();
    match options.provider {
        ExecutionProvider::Cpu => Vec::new(),
        ExecutionProvider::OpenVino => vec![configured(ep::OpenVINO::default(), given).build().error_on_failure()],
        ExecutionProvider::Cuda => vec![cuda(given)],
        // What TensorRT cannot compile goes to CUDA, not to the CPU.
        ExecutionProvider::TensorRt => {
            let fallback = SessionOptions { provider: ExecutionProvider::Cuda, ..options.clone() };
            let tensorrt = configured(ep::TensorRT::default(), given).build().error_on_failure();
            vec![tensorrt, cuda(fallback.provider_options(fuses_kernels))]
        }
    }
}

fn specs(outlets: &[Outlet], path: &Path) -> Result<Vec<TensorSpec>, RuntimeError> {
    let spec = |outlet: &Outlet| {
        let (Some(shape), Some(element_type)) = (outlet.dtype().tensor_shape(), outlet.dtype().tensor_type()) else {
            let (path, name) = (path.display(), outlet.name());
            return Err(RuntimeError::Graph(format!("{path}: '{name}' is not a tensor")));
        };
        Ok(TensorSpec {
            name: outlet.name().to_owned(),
            element_type,
            shape: shape.iter().map(|&size| usize::try_from(size).ok()).collect(),
            blocks: None,
        })
    };
    outlets.iter().map(spec).collect()
}

fn to_value<'a>(tensor: &'a Tensor<'_>, element_type: TensorElementType) -> Result<SessionInputValue<'a>, ort::Error> {
    use ort::value::Tensor as OrtTensor;
    Ok(match (tensor, element_type) {
        (Tensor::F32(array), TensorElementType::Float16) => OrtTensor::from_array(array.mapv(f16::from_f32))?.into(),
        (Tensor::F32(array), _) => TensorRef::from_array_view(array)?.into(),
        (Tensor::U8(array), _) => TensorRef::from_array_view(array)?.into(),
        // Token ids are far below 2³¹.
        (Tensor::I64(array), TensorElementType::Int32) => OrtTensor::from_array(array.mapv(|id| id as i32))?.into(),
        (Tensor::I64(array), _) => TensorRef::from_array_view(array)?.into(),
    })
}

/// The output called `name` as one row of f32 per item.
fn rows(value: &DynValue, name: &str) -> Result<Array2<f32>, RuntimeError> {
    let array = match value.try_extract_array::<f32>() {
        Ok(array) => array.to_owned(),
        Err(_) => {
            let array: ArrayViewD<'_, f16> = value.try_extract_array().map_err(run_error)?;
            array.mapv(f16::to_f32)
        }
    };
    let shape = array.shape().to_vec();
    array
        .into_dimensionality()
        .map_err(|_| RuntimeError::Run(format!("output '{name}' has shape {shape:?}, not [batch, values]")))
}
