//! ONNX Runtime: finding the library, choosing execution providers, running graphs. The only part that knows `ort`.

mod assignment;
mod batch_memory;
mod cuda_graph;
mod graph;
mod huge_pages;
mod library;
mod mapped_files;
#[cfg(target_os = "linux")]
mod mappings;
mod memory;
mod onnx;
mod provider;
mod rewriting;
mod shared_session;
#[cfg(test)]
mod test_graphs;

pub use batch_memory::{BatchMemory, Element, Pinning};
pub use graph::{Graph, Tensor, TensorSpec};
pub use huge_pages::use_huge_pages;
pub use library::Runtime;
pub use memory::{give_back_freed_memory, set_up_allocator};
pub use onnx::file::OnnxFile;
pub use provider::{ExecutionProvider, Precision, SessionOptions};
pub use rewriting::{BYTE_PIXELS, PixelBlocks};

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
