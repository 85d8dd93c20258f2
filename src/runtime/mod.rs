//! ONNX Runtime: finding the library, choosing execution providers, running graphs. The only part that knows `ort`.

mod assignment;
mod attention_keys;
mod batch_memory;
mod byte_pixels;
mod channel_norm;
mod class_token;
mod cuda_graph;
mod feed_forward;
mod graph;
mod huge_pages;
mod library;
mod mapped_files;
#[cfg(target_os = "linux")]
mod mappings;
mod memory;
mod onnx_file;
mod onnx_graph;
mod onnx_parts;
mod onnx_proto;
mod pixel_blocks;
mod pointwise;
mod protobuf;
mod provider;
mod refused;
mod shapes;
mod shared_session;
mod stacked_maps;
#[cfg(test)]
mod test_graphs;
mod transposed;
mod weights_file;
mod weights_in_file;
mod wide_pool;
mod window;

pub use batch_memory::{BatchMemory, Element, Pinning};
pub use byte_pixels::BYTE_PIXELS;
pub use graph::{Graph, Tensor, TensorSpec};
pub use huge_pages::use_huge_pages;
pub use library::Runtime;
pub use memory::{give_back_freed_memory, set_up_allocator};
pub use onnx_file::OnnxFile;
pub use pixel_blocks::PixelBlocks;
pub use provider::{ExecutionProvider, Precision, SessionOptions};

/// Weights that fill more than this are read from memory each time they are used, in bytes: the cache (L2) of each core of the Xeons
/// that multiply bf16 fast.
const CORE_CACHE: u64 = 2 << 20;

/// What becomes of each byte of each channel of a picture.
pub type PixelTable = [[f32; 256]; 3];

/// Why a graph could not be opened or run.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RuntimeError {
    /// The library is missing, too old or broken. Says what to run.
    #[error("{0}")]
    Library(String),
    /// An execution provider or precision that was asked for by name cannot be used.
    #[error("{0}")]
    Provider(String),
    /// The graph cannot be loaded.
    #[error("{0}")]
    Graph(String),
    /// A run failed.
    #[error("{0}")]
    Run(String),
}
