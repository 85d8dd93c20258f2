//! The resampling kernel of torchvision's CPU path (that of Pillow, with weights of 15 bits), for part of an axis.
//!
//! Source: `aten/src/ATen/native/cpu/UpSampleKernel.cpp` of PyTorch, `_compute_index_ranges_int16_weights`.
//! `fast_image_resize` computes the same; this one computes no more than a crop shows.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

use super::simd;

/// Resampling filters, by their number in `PIL.Image.Resampling`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filter {
    Nearest,
    Lanczos,
    Bilinear,
    Bicubic,
}

impl Filter {
    /// The filter's number in `PIL.Image.Resampling`.
    pub(super) fn number(self) -> u8 {
        match self {
            Self::Nearest => 0,
            Self::Lanczos => 1,
            Self::Bilinear => 2,
            Self::Bicubic => 3,
        }
    }

    /// Half the filter's width, in pixels of the smaller image.
    fn support(self) -> f64 {
        match self {
            Self::Nearest => 0.5,
            Self::Lanczos => 3.0,
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    /// The filter's value at distance `x`.
    fn weight(self, x: f64) -> f64 {
        let x = x.abs();
        let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * std::f64::consts::PI).sin() / (x * std::f64::consts::PI) };
        match self {
            Self::Nearest => 1.0,
            Self::Lanczos if x < 3.0 => sinc(x) * sinc(x / 3.0),
            Self::Bilinear if x < 1.0 => 1.0 - x,
            // The cubic convolution of Keys with a = -0.5.
            Self::Bicubic if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0,
            _ => 0.0,
        }
    }
}

/// The source pixel of each target pixel in `window` when an axis goes from `source` to `target` pixels by
/// torchvision's `NEAREST_EXACT`, whose arithmetic is all in f32.
pub(super) fn nearest_sources(source: usize, target: usize, window: Range<usize>) -> impl Iterator<Item = usize> {
    let scale = source as f32 / target as f32;
    window.map(move |index| (((index as f32 + 0.5) * scale).floor() as usize).min(source - 1))
}

/// The weights of one axis, quantised, for the target pixels of a window.
pub(super) struct Kernel {
    /// For each target pixel its first source pixel.
    pub(super) starts: Vec<usize>,
    /// For each target pixel [`Self::taps`] weights, those beyond its own 0.
    pub(super) weights: Vec<i16>,
    /// Weights per target pixel, a multiple of [`LANES`].
    pub(super) taps: usize,
    /// Binary places of the weights.
    pub(super) precision: u32,
    /// The source pixels that the window's pixels are made of.
    pub(super) sources: Range<usize>,
}

/// So many weights are taken at a time where they are vectorised.
pub(super) const LANES: usize = 4;

/// So many kernels each thread keeps: pictures often come in one size, and a kernel takes a twentieth of what resizing them does.
const MOST_KEPT: usize = 4;

/// Kernels with more weights are not kept.
const MOST_WEIGHTS_KEPT: usize = 1 << 14;

type Key = (Filter, usize, usize, Range<usize>);

thread_local! {
    /// The last used one last.
    static KEPT: RefCell<Vec<(Key, Rc<Kernel>)>> = const { RefCell::new(Vec::new()) };
}

impl Kernel {
    /// The kernel that takes an axis of `source` pixels to `target` pixels, for the target pixels in `window`: one that this thread has
    /// kept, or a new one.
    pub(super) fn of(filter: Filter, source: usize, target: usize, window: Range<usize>) -> Rc<Self> {
        KEPT.with_borrow_mut(|kept| {
            let wanted = (filter, source, target, window.clone());
            let found = kept.iter().position(|(key, _)| *key == wanted).map(|index| kept.remove(index).1);
            let kernel = found.unwrap_or_else(|| Rc::new(Self::new(filter, source, target, window)));
            if kernel.weights.len() <= MOST_WEIGHTS_KEPT {
                kept.drain(..(kept.len() + 1).saturating_sub(MOST_KEPT));
                kept.push((wanted, Rc::clone(&kernel)));
            }
            kernel
        })
    }

    fn new(filter: Filter, source: usize, target: usize, window: Range<usize>) -> Self {
        let sources = sources(filter, source, target, window.clone());
        let reach = |index| source_range(filter, source, target, index).len();
        let taps = window.clone().map(reach).max().unwrap_or(0).next_multiple_of(LANES);
        let mut exact = vec![0.0; taps * window.len()];
        let places = window.clone().zip(exact.chunks_exact_mut(taps.max(1)));
        let starts = places.map(|(index, places)| weights(filter, source, target, index, places)).collect();
        // The precision depends on the largest weight of the whole axis. When enlarging, the first weight of the
        // first pixel is 1 or a little more (what lies beyond the edge is left out and the rest scaled up), and
        // none comes near 2: looking at one pixel spares a walk along an axis that may be enlarged to millions.
        let whole_axis = if target > source { 0..1 } else { 0..target };
        let mut own = Vec::new();
        let largest = whole_axis.filter(|index| !window.contains(index)).fold(0.0, |largest, index| {
            own.resize(reach(index), 0.0);
            weights(filter, source, target, index, &mut own);
            own.iter().copied().fold(largest, f64::max)
        });
        let largest = exact.iter().copied().fold(largest, f64::max);
        let fits = |precision: u32| 0.5 + largest * f64::from(1_u32 << (precision + 1)) < 32_768.0;
        let precision = (0..22).find(|&precision| !fits(precision)).unwrap_or(22);
        let scale = f64::from(1_u32 << precision);
        let quantised = exact.iter().map(|weight| (weight * scale + 0.5_f64.copysign(*weight)) as i16);
        Self { starts, weights: quantised.collect(), taps, precision, sources }
    }

    /// Resamples rows of RGB pixels along their length; each has `width` pixels and begins at source pixel `first`.
    pub(super) fn horizontal(&self, pixels: &[u8], width: usize, first: usize) -> Vec<u8> {
        simd::horizontal(self, pixels, width * 3, first).unwrap_or_else(|| self.plain_horizontal(pixels, width, first))
    }

    fn plain_horizontal(&self, pixels: &[u8], width: usize, first: usize) -> Vec<u8> {
        let mut output = Vec::with_capacity(pixels.len() / width * self.starts.len());
        for row in pixels.chunks_exact(width * 3) {
            for (start, weights) in self.each() {
                let mut sums = [self.half(); 3];
                for (pixel, &weight) in row[(start - first) * 3..].as_chunks::<3>().0.iter().zip(weights) {
                    for (sum, &value) in sums.iter_mut().zip(pixel) {
                        *sum += i32::from(value) * i32::from(weight);
                    }
                }
                output.extend(sums.map(|sum| self.round(sum)));
            }
        }
        output
    }

    /// Resamples columns; `pixels` has rows of `stride` bytes and begins at source row `first`.
    pub(super) fn vertical(&self, pixels: &[u8], stride: usize, first: usize) -> Vec<u8> {
        let mut output = vec![0; self.starts.len() * stride];
        let done = simd::vertical(self, pixels, stride, first, &mut output);
        self.plain_vertical(pixels, (stride, done), first, &mut output);
        output
    }

    /// Of each row what comes after the first `done` bytes.
    fn plain_vertical(&self, pixels: &[u8], (stride, done): (usize, usize), first: usize, output: &mut [u8]) {
        let mut sums = vec![0; stride - done];
        for ((start, weights), target) in self.each().zip(output.chunks_exact_mut(stride.max(1))) {
            sums.fill(self.half());
            for (row, &weight) in pixels[(start - first) * stride..].chunks_exact(stride).zip(weights) {
                for (sum, &value) in sums.iter_mut().zip(&row[done..]) {
                    *sum += i32::from(value) * i32::from(weight);
                }
            }
            target[done..].iter_mut().zip(&sums).for_each(|(place, &sum)| *place = self.round(sum));
        }
    }

    /// The first source pixel and the weights of each target pixel.
    pub(super) fn each(&self) -> impl Iterator<Item = (usize, &[i16])> {
        self.starts.iter().copied().zip(self.weights.chunks_exact(self.taps.max(1)))
    }

    /// What sums begin with, so that they are rounded.
    pub(super) fn half(&self) -> i32 {
        1 << self.precision >> 1
    }

    fn round(&self, sum: i32) -> u8 {
        (sum >> self.precision).clamp(0, 255) as u8
    }
}

/// The source pixels that target pixel `index` is made of.
fn source_range(filter: Filter, source: usize, target: usize, index: usize) -> Range<usize> {
    let (support, center) = support_and_center(filter, source, target, index);
    // Casts from f64 truncate, and take what is negative for 0.
    (center - support + 0.5) as usize..((center + support + 0.5) as usize).min(source)
}

/// The source pixels that the target pixels of a window are made of.
pub(super) fn sources(filter: Filter, source: usize, target: usize, window: Range<usize>) -> Range<usize> {
    if window.is_empty() {
        return 0..0;
    }
    let range = |index| source_range(filter, source, target, index);
    range(window.start).start..range(window.end - 1).end
}

/// Half the filter's width and its middle, in source pixels.
fn support_and_center(filter: Filter, source: usize, target: usize, index: usize) -> (f64, f64) {
    let scale = source as f64 / target as f64;
    // Enlarging interpolates; shrinking widens the filter, which is what antialiasing is.
    (filter.support() * scale.max(1.0), (index as f64 + 0.5) * scale)
}

/// Writes the weights of target pixel `index` to the first of `weights`, and returns the source pixel that the first belongs to.
fn weights(filter: Filter, source: usize, target: usize, index: usize, weights: &mut [f64]) -> usize {
    let filter_scale = (source as f64 / target as f64).max(1.0);
    let (_, center) = support_and_center(filter, source, target, index);
    let range = source_range(filter, source, target, index);
    let weights = &mut weights[..range.len()];
    for (position, weight) in range.clone().zip(&mut *weights) {
        *weight = filter.weight((position as f64 - center + 0.5) * (1.0 / filter_scale));
    }
    let sum: f64 = weights.iter().sum();
    for weight in weights {
        *weight /= sum;
    }
    range.start
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::preprocess::tests::noise;

    /// What [`Kernel::horizontal`] and [`Kernel::vertical`] do, spelled out.
    fn resample(kernel: &Kernel, value: impl Fn(usize) -> u8) -> Vec<u8> {
        let sum = |(start, weights): (usize, &[i16])| {
            let values = (start..kernel.sources.end).map(&value);
            let products = values.zip(weights).map(|(value, &weight)| i32::from(value) * i32::from(weight));
            kernel.round(kernel.half() + products.sum::<i32>())
        };
        kernel.each().map(sum).collect()
    }

    #[test]
    fn kernels_of_the_last_sizes_are_kept() {
        let of = |source: usize| Kernel::of(Filter::Bilinear, source, 10, 0..10);
        let first = of(20);
        assert!(Rc::ptr_eq(&first, &of(20)) && !Rc::ptr_eq(&first, &Kernel::of(Filter::Bicubic, 20, 10, 0..10)));
        (30..30 + MOST_KEPT).for_each(|source| drop(of(source)));
        assert!(!Rc::ptr_eq(&first, &of(20)));
        let large = of(10 * MOST_WEIGHTS_KEPT);
        assert!(!Rc::ptr_eq(&large, &of(10 * MOST_WEIGHTS_KEPT)) && KEPT.with_borrow(Vec::len) == MOST_KEPT);
    }

    proptest! {
        #[test]
        fn every_pixel_is_the_weighted_sum_of_its_sources(
            source in 1_usize..90, target in 1_usize..90, other in 1_usize..40, window in (0.0..1.0, 0.0..1.0),
            filter in prop::sample::select(vec![Filter::Bilinear, Filter::Bicubic, Filter::Lanczos]),
        ) {
            let start = (window.0 * target as f64) as usize;
            let end = (start + 1 + (window.1 * (target - start) as f64) as usize).min(target);
            let kernel = Kernel::new(filter, source, target, start..end);
            let image = noise(source as u32, other as u32);
            let (first, width) = (kernel.sources.start, kernel.sources.len());
            let middle = image::imageops::crop_imm(&image, first as u32, 0, width as u32, other as u32).to_image();
            let rows = kernel.horizontal(middle.as_raw(), width, first);
            prop_assert_eq!(&rows, &kernel.plain_horizontal(middle.as_raw(), width, first));
            for (y, row) in rows.chunks_exact((end - start) * 3).enumerate() {
                for channel in 0..3 {
                    let wanted = resample(&kernel, |x| image.get_pixel(x as u32, y as u32)[channel]);
                    let row: Vec<u8> = row.iter().skip(channel).step_by(3).copied().collect();
                    prop_assert_eq!(row, wanted);
                }
            }
            let turned = image::imageops::rotate90(&middle);
            let columns = kernel.vertical(turned.as_raw(), other * 3, first);
            let mut plain = vec![0; columns.len()];
            kernel.plain_vertical(turned.as_raw(), (other * 3, 0), first, &mut plain);
            prop_assert_eq!(&columns, &plain);
            for x in 0..other * 3 {
                let wanted = resample(&kernel, |y| turned.as_raw()[(y - first) * other * 3 + x]);
                let column: Vec<u8> = columns.iter().skip(x).step_by(other * 3).copied().collect();
                prop_assert_eq!(column, wanted);
            }
        }
    }
}
