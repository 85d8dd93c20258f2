//! Rewriting graphs: they become what a provider's kernels compute faster, or take less memory for. Each file does one thing, and says what
//! it is worth; none of them changes what a graph means.

mod attention_keys;
mod byte_pixels;
mod channel_norm;
mod class_token;
mod feed_forward;
mod pixel_blocks;
mod pointwise;
mod refused;
mod short_attention;
mod stacked_maps;
mod transposed;
mod weights_file;
pub(super) mod weights_in_file;
mod wide_pool;

use std::path::{Path, PathBuf};

use self::attention_keys::with_keys_as_rows;
pub use self::byte_pixels::BYTE_PIXELS;
use self::byte_pixels::with_byte_pixels;
use self::channel_norm::normalized_as_lists;
use self::class_token::at_class_token;
use self::feed_forward::in_blocks;
pub(super) use self::pixel_blocks::PIXEL_BLOCKS;
pub use self::pixel_blocks::PixelBlocks;
use self::pixel_blocks::with_pixel_blocks;
use self::pointwise::as_convolutions;
use self::refused::without_refused;
use self::short_attention::with_short_attention;
use self::stacked_maps::with_stacked_maps;
use self::transposed::with_transposed;
use self::weights_in_file::{Slim, are_linked, with_weights_in_file};
pub(super) use self::wide_pool::without_wide_pools;
use super::{ExecutionProvider, OnnxFile, Precision, RuntimeError, SessionOptions};

/// Weights that fill more than this are read from memory each time they are used, in bytes: the cache (L2) of each core of the Xeons
/// that multiply bf16 fast.
const CORE_CACHE: u64 = 2 << 20;

/// What may be opened in the place of the graph in the file `path`, the best first, and the files that OpenVINO maps for all that.
pub(super) fn substitutes(path: &Path, options: &SessionOptions) -> Result<(Vec<Slim>, Vec<PathBuf>), RuntimeError> {
    let is_openvino = options.provider == ExecutionProvider::OpenVino;
    let external = OnnxFile::read(path)?.external_data;
    // Others make fewer copies, so for them it is done only where pictures shall come as bytes, or where weights would not be found.
    let shall_be_slim = is_openvino || options.pixel_table.is_some() || are_linked(path, &external);
    let slim = if shall_be_slim { with_weights_in_file(path, &external)? } else { None };
    let mut mapped = Vec::new();
    if is_openvino {
        mapped.push(path.to_owned());
        match &slim {
            Some(slim) => mapped.push(slim.file.clone()),
            None => mapped.extend(external.iter().map(|file| path.with_file_name(file))),
        }
    }
    let slim = match slim {
        Some(slim) if is_openvino => Some(normalized_as_lists(without_refused(slim, path)?, path)?),
        slim => slim,
    };
    let slim = slim.map(|slim| at_class_token(slim, path, &options.dimensions)).transpose()?;
    // f32 is the reference, so its sums are not made in other parts.
    let slim = match slim {
        Some(slim) if is_openvino && options.precision == Precision::Bf16 => {
            let slim = if options.pixel_blocks { with_pixel_blocks(slim, path, &options.dimensions)? } else { slim };
            let slim = in_blocks(with_keys_as_rows(slim, path)?, path)?;
            let slim = with_stacked_maps(slim, path, &options.dimensions)?;
            Some(if options.threads == 1 { with_short_attention(slim, path, &options.dimensions)? } else { slim })
        }
        slim => slim,
    };
    // In f32 a graph is served only until tuning has found a half precision, where there is one: that is not worth a file.
    let is_fastest = options.provider.native_precisions().last() == Some(&options.precision);
    let transposed = match &slim {
        Some(slim) if is_openvino && is_fastest => with_transposed(slim, path, &options.cache_dir.join("weights"))?,
        _ => None,
    };
    let transposed = match transposed {
        Some(slim) if options.precision == Precision::Bf16 => Some(as_convolutions(slim, path, &options.dimensions)?),
        transposed => transposed,
    };
    mapped.extend(transposed.iter().map(|slim| slim.file.clone()));
    let slim = match &options.pixel_table {
        Some(table) => Some(with_byte_pixels(slim.map_or_else(|| whole(path), Ok)?, path, table)?),
        None => slim,
    };
    Ok((transposed.into_iter().chain(slim).collect(), mapped))
}

/// The graph in the file `path` as it is.
fn whole(path: &Path) -> Result<Slim, RuntimeError> {
    let bytes = std::fs::read(path).map_err(|error| RuntimeError::Graph(format!("{}: {error}", path.display())))?;
    Ok(Slim { bytes, file: path.to_owned(), blocks: None, fuses_kernels: true })
}
