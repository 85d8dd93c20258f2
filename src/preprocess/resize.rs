//! Resizing as torchvision does it on a CPU, in two passes with u8 between them, of no more than a crop shows.

use std::ops::Range;

use fast_image_resize as fir;
use fir::images::{Image, ImageRef};

use super::buffer;
use super::kernel::{self, Filter, Kernel, nearest_sources};
use super::simd;
use super::window::Margins;

/// Where our kernel is not vectorised: how much more than the crop shows a pass may compute and still go to a resizer that is, but
/// computes whole axes. Beyond it (a line of a picture, say, enlarged to a crop's height) the plain kernel is the faster.
const WASTE: usize = 4;

/// An RGB8 picture, or the middle of one.
pub(super) struct Picture<'a> {
    /// Row by row, what there is.
    pub(super) pixels: &'a [u8],
    /// Height and width of the whole, in pixels.
    pub(super) size: (usize, usize),
    /// What is missing of it.
    pub(super) cut: Margins,
}

/// What a picture is resized to.
pub(super) struct Target {
    /// Height and width of the whole, in pixels.
    pub(super) size: (usize, usize),
    pub(super) filter: Filter,
    /// The rows of it that are wanted.
    pub(super) rows: Range<usize>,
    /// The columns of it that are wanted.
    pub(super) columns: Range<usize>,
}

/// What of a picture of (height, width) plays no part in what is wanted of `target`: at most so much may be cut from it.
pub(super) fn unseen(source: (usize, usize), target: Target) -> Margins {
    let Target { size, filter, rows, columns } = target;
    let axis = |source: usize, target: usize, window: Range<usize>| {
        let needed = if source == target { window } else { kernel::sources(filter, source, target, window) };
        if needed.is_empty() { (0, 0) } else { (needed.start, source - needed.end) }
    };
    // The other resizer computes whole axes, and nearest takes its pixels from a whole picture.
    if !simd::is_available() || filter == Filter::Nearest {
        return Margins::default();
    }
    let ((top, bottom), (left, right)) = (axis(source.0, size.0, rows), axis(source.1, size.1, columns));
    Margins { sides: left.min(right), top, bottom }
}

/// What is wanted of `target`, to which `source` is resized: RGB8 pixels, row by row.
///
/// Bit-exact to `torchvision.transforms.v2.functional.resize` with `antialias=True` on u8 CPU tensors: first the
/// width, then the height. (One call for both axes goes the other way round, and differs by up to 19 steps.)
pub(super) fn resize(source: &Picture<'_>, target: Target) -> Vec<u8> {
    resize_by(simd::is_available(), source, target)
}

/// `by_window`: with our kernel, of no more than what is wanted.
fn resize_by(by_window: bool, source: &Picture<'_>, target: Target) -> Vec<u8> {
    let Target { size, filter, rows, columns } = target;
    let cut = source.cut;
    let shown = cut.inside(source.size);
    let width = columns.len();
    if filter == Filter::Nearest && source.size != size {
        return nearest(source, size, rows, columns);
    }
    // An axis that keeps its length is not resampled.
    let vertical = (source.size.0 != size.0).then(|| Kernel::of(filter, source.size.0, size.0, rows.clone()));
    let needed = vertical.as_ref().map_or(rows.clone(), |kernel| kernel.sources.clone());
    // The other vectorised resizer wants whole columns to see the same kernel.
    let whole = vertical.is_some() && size.0 <= rows.len() * WASTE && !by_window;
    let needed = if whole { 0..source.size.0 } else { needed };
    let stride = shown.1 * 3;
    let strip = &source.pixels[(needed.start - cut.top) * stride..(needed.end - cut.top) * stride];
    let mut strip = resize_width(by_window, strip, (source.size.1, cut.sides), size.1, filter, columns);
    match vertical {
        // It may lie in memory that was of a larger picture, and will wait in a queue.
        None => {
            strip.shrink_to_fit();
            strip
        }
        Some(kernel) => match whole.then(|| resize_height(&strip, width, size.0, filter)).flatten() {
            Some(mut data) => {
                data.truncate(rows.end * width * 3);
                data.drain(..rows.start * width * 3);
                data
            }
            None => {
                let data = kernel.vertical(&strip, width * 3, needed.start);
                buffer::give_back(strip);
                data
            }
        },
    }
}

/// Resizes rows, of `source` pixels less `cut` at either side, to `target` pixels and returns the given columns.
fn resize_width(
    by_window: bool,
    pixels: &[u8],
    (source, cut): (usize, usize),
    target: usize,
    filter: Filter,
    columns: Range<usize>,
) -> Vec<u8> {
    let shown = source - 2 * cut;
    if source == target {
        return crop_columns(pixels, shown, columns.start - cut..columns.end - cut);
    }
    if target <= columns.len() * WASTE && !by_window {
        let height = pixels.len() / (source * 3);
        if let Some(data) = convolve(pixels, (height, source), (height, target), filter) {
            return if columns.len() == target { data } else { crop_columns(&data, target, columns) };
        }
    }
    Kernel::of(filter, source, target, columns).horizontal(pixels, shown, cut)
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

/// Of a whole picture.
fn nearest(image: &Picture<'_>, size: (usize, usize), rows: Range<usize>, columns: Range<usize>) -> Vec<u8> {
    let source = image.size;
    let columns: Vec<usize> = nearest_sources(source.1, size.1, columns).collect();
    let mut data = Vec::with_capacity(rows.len() * columns.len() * 3);
    for row in nearest_sources(source.0, size.0, rows) {
        let (row, _) = image.pixels[row * source.1 * 3..][..source.1 * 3].as_chunks::<3>();
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

#[cfg(test)]
mod tests {
    use image::imageops::crop_imm;
    use proptest::prelude::*;

    use super::*;
    use crate::preprocess::tests::noise;

    proptest! {
        #[test]
        fn both_resizers_give_the_same_pixels_also_of_the_middle_of_a_picture(
            source in (1_usize..80, 1_usize..80), size in (1_usize..80, 1_usize..80), margins in (0.0..0.5, 0.0..0.5, 0.0..0.5),
            filter in prop::sample::select(vec![Filter::Bilinear, Filter::Bicubic, Filter::Lanczos]),
        ) {
            let image = noise(source.1 as u32, source.0 as u32);
            let margin = |length: usize, share: f64| ((length - 1) as f64 * share) as usize;
            let window = |length: usize, (from, to)| margin(length, from)..length - margin(length, to);
            let rows = window(size.0, (margins.0, margins.1));
            let columns = window(size.1, (margins.2, margins.2));
            let target = || Target { size, filter, rows: rows.clone(), columns: columns.clone() };
            let whole = Picture { pixels: image.as_raw(), size: source, cut: Margins::default() };
            let [own, other] = [true, false].map(|own| resize_by(own, &whole, target()));
            prop_assert_eq!(&own, &other);
            let cut = unseen(source, target());
            let (height, width) = cut.inside(source);
            let middle = crop_imm(&image, cut.sides as u32, cut.top as u32, width as u32, height as u32).to_image();
            let middle = Picture { pixels: middle.as_raw(), size: source, cut };
            prop_assert_eq!(resize(&middle, target()), own);
        }
    }
}
