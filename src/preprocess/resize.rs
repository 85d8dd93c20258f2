//! Resizing as torchvision does it on a CPU, in two passes with u8 between them, of no more than a crop shows.

use std::ops::Range;

use fast_image_resize as fir;
use fir::images::{Image, ImageRef};
use image::RgbImage;

use super::kernel::{Filter, Kernel, nearest_sources};

/// How much more than the crop shows a pass may compute and still go to the vectorised resizer, which computes
/// whole axes. Beyond it (a line of a picture, say, enlarged to a crop's height) the plain kernel is the faster.
const WASTE: usize = 4;

/// Resizes `image` to `size` (height, width) and returns the given rows and columns of the result: RGB8 pixels, row by row.
///
/// Bit-exact to `torchvision.transforms.v2.functional.resize` with `antialias=True` on u8 CPU tensors: first the
/// width, then the height. (One call for both axes goes the other way round, and differs by up to 19 steps.)
pub(super) fn resize(
    image: &RgbImage,
    size: (usize, usize),
    filter: Filter,
    rows: Range<usize>,
    columns: Range<usize>,
) -> Vec<u8> {
    let source = (image.height() as usize, image.width() as usize);
    let width = columns.len();
    if filter == Filter::Nearest && source != size {
        return nearest(image, size, rows, columns);
    }
    // An axis that keeps its length is not resampled.
    let vertical = (source.0 != size.0).then(|| Kernel::new(filter, source.0, size.0, rows.clone()));
    let needed = vertical.as_ref().map_or(rows.clone(), Kernel::sources);
    let whole = (source.0 == size.0 || size.0 <= rows.len() * WASTE, 0..source.0);
    // The vectorised resizer wants whole columns to see the same kernel.
    let (vectorised, needed) = if whole.0 && vertical.is_some() { whole } else { (false, needed) };
    let stride = source.1 * 3;
    let strip = &image.as_raw()[needed.start * stride..needed.end * stride];
    let strip = resize_width(strip, source.1, size.1, filter, columns);
    match vertical {
        None => strip,
        Some(kernel) => match vectorised.then(|| resize_height(&strip, width, size.0, filter)).flatten() {
            Some(mut data) => {
                data.truncate(rows.end * width * 3);
                data.drain(..rows.start * width * 3);
                data
            }
            None => kernel.vertical(&strip, width * 3, needed.start),
        },
    }
}

/// Resizes rows of `source` RGB pixels to `target` pixels and returns the given columns.
fn resize_width(pixels: &[u8], source: usize, target: usize, filter: Filter, columns: Range<usize>) -> Vec<u8> {
    if source == target {
        return crop_columns(pixels, source, columns);
    }
    if target <= columns.len() * WASTE {
        let height = pixels.len() / (source * 3);
        if let Some(data) = convolve(pixels, (height, source), (height, target), filter) {
            return if columns.len() == target { data } else { crop_columns(&data, target, columns) };
        }
    }
    Kernel::new(filter, source, target, columns).horizontal(pixels, source)
}

/// Resizes columns of RGB pixels to `target` pixels.
fn resize_height(pixels: &[u8], width: usize, target: usize, filter: Filter) -> Option<Vec<u8>> {
    convolve(pixels, (pixels.len() / (width * 3), width), (target, width), filter)
}

/// One pass of the vectorised resizer; sizes are (height, width). `None` if it refuses, which the plain kernel makes
/// up for.
fn convolve(pixels: &[u8], source: (usize, usize), target: (usize, usize), filter: Filter) -> Option<Vec<u8>> {
    let side = |length: usize| u32::try_from(length).ok();
    let filter = match filter {
        Filter::Lanczos => fir::FilterType::Lanczos3,
        Filter::Bilinear => fir::FilterType::Bilinear,
        // Keys' cubic with a = -0.5.
        Filter::Bicubic => fir::FilterType::CatmullRom,
        Filter::Nearest => return None,
    };
    let source = ImageRef::new(side(source.1)?, side(source.0)?, pixels, fir::PixelType::U8x3).ok()?;
    let mut target = Image::new(side(target.1)?, side(target.0)?, fir::PixelType::U8x3);
    let options = fir::ResizeOptions::new().resize_alg(fir::ResizeAlg::Convolution(filter)).use_alpha(false);
    fir::Resizer::new().resize(&source, &mut target, &options).ok()?;
    Some(target.into_vec())
}

fn nearest(image: &RgbImage, size: (usize, usize), rows: Range<usize>, columns: Range<usize>) -> Vec<u8> {
    let source = (image.height() as usize, image.width() as usize);
    let columns: Vec<usize> = nearest_sources(source.1, size.1, columns).collect();
    let mut data = Vec::with_capacity(rows.len() * columns.len() * 3);
    for row in nearest_sources(source.0, size.0, rows) {
        let (row, _) = image.as_raw()[row * source.1 * 3..][..source.1 * 3].as_chunks::<3>();
        data.extend(columns.iter().flat_map(|&column| row[column]));
    }
    data
}

fn crop_columns(pixels: &[u8], width: usize, columns: Range<usize>) -> Vec<u8> {
    let mut data = Vec::with_capacity(pixels.len() / width * columns.len());
    for row in pixels.chunks_exact(width * 3) {
        data.extend_from_slice(&row[columns.start * 3..columns.end * 3]);
    }
    data
}
