//! The resampling kernel of torchvision's CPU path (that of Pillow, with weights of 15 bits), for part of an axis.
//!
//! Source: `aten/src/ATen/native/cpu/UpSampleKernel.cpp` of PyTorch, `_compute_index_ranges_int16_weights`.
//! `fast_image_resize` computes the same; this one computes no more than a crop shows.

use std::ops::Range;

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
    /// For each target pixel its first source pixel, and its weights.
    taps: Vec<(usize, Vec<i16>)>,
    /// Binary places of the weights.
    precision: u32,
}

impl Kernel {
    /// The kernel that takes an axis of `source` pixels to `target` pixels, for the target pixels in `window`.
    pub(super) fn new(filter: Filter, source: usize, target: usize, window: Range<usize>) -> Self {
        // The precision depends on the largest weight of the whole axis. When enlarging, the first weight of the
        // first pixel is 1 or a little more (what lies beyond the edge is left out and the rest scaled up), and
        // none comes near 2: looking at one pixel spares a walk along an axis that may be enlarged to millions.
        let whole_axis = if target > source { 0..1 } else { 0..target };
        let largest = whole_axis.flat_map(|index| weights(filter, source, target, index).1).fold(0.0, f64::max);
        let fits = |precision: u32| 0.5 + largest * f64::from(1_u32 << (precision + 1)) < 32_768.0;
        let precision = (0..22).find(|&precision| !fits(precision)).unwrap_or(22);
        let quantise = |weight: f64| (weight * f64::from(1_u32 << precision)).round() as i16;
        let taps = window.map(|index| {
            let (start, weights) = weights(filter, source, target, index);
            (start, weights.into_iter().map(quantise).collect())
        });
        Self { taps: taps.collect(), precision }
    }

    /// The source pixels that the window's pixels are made of.
    pub(super) fn sources(&self) -> Range<usize> {
        let start = self.taps.first().map_or(0, |(start, _)| *start);
        let end = self.taps.last().map_or(0, |(start, weights)| start + weights.len());
        start..end
    }

    /// Resamples rows of RGB pixels along their length.
    pub(super) fn horizontal(&self, pixels: &[u8], width: usize) -> Vec<u8> {
        let mut output = Vec::with_capacity(pixels.len() / width * self.taps.len());
        for row in pixels.chunks_exact(width * 3) {
            for (start, weights) in &self.taps {
                let mut sums = [self.half(); 3];
                for (pixel, &weight) in row[start * 3..].as_chunks::<3>().0.iter().zip(weights) {
                    for (sum, &value) in sums.iter_mut().zip(pixel) {
                        *sum += i32::from(value) * i32::from(weight);
                    }
                }
                output.extend(sums.map(|sum| self.round(sum)));
            }
        }
        output
    }

    /// Resamples columns; `pixels` has rows of `stride` bytes and begins at source row `first_row`.
    pub(super) fn vertical(&self, pixels: &[u8], stride: usize, first_row: usize) -> Vec<u8> {
        let mut output = Vec::with_capacity(self.taps.len() * stride);
        let mut sums = vec![0; stride];
        for (start, weights) in &self.taps {
            sums.fill(self.half());
            for (row, &weight) in pixels[(start - first_row) * stride..].chunks_exact(stride).zip(weights) {
                for (sum, &value) in sums.iter_mut().zip(row) {
                    *sum += i32::from(value) * i32::from(weight);
                }
            }
            output.extend(sums.iter().map(|&sum| self.round(sum)));
        }
        output
    }

    fn half(&self) -> i32 {
        1 << self.precision >> 1
    }

    fn round(&self, sum: i32) -> u8 {
        (sum >> self.precision).clamp(0, 255) as u8
    }
}

/// The weights of target pixel `index`, and the source pixel that the first belongs to.
fn weights(filter: Filter, source: usize, target: usize, index: usize) -> (usize, Vec<f64>) {
    let scale = source as f64 / target as f64;
    // Enlarging interpolates; shrinking widens the filter, which is what antialiasing is.
    let filter_scale = scale.max(1.0);
    let support = filter.support() * filter_scale;
    let center = (index as f64 + 0.5) * scale;
    // Casts from f64 truncate, and take what is negative for 0.
    let start = (center - support + 0.5) as usize;
    let end = ((center + support + 0.5) as usize).min(source);
    let weight = |position: usize| filter.weight((position as f64 - center + 0.5) * (1.0 / filter_scale));
    let mut weights: Vec<f64> = (start..end).map(weight).collect();
    let sum: f64 = weights.iter().sum();
    for weight in &mut weights {
        *weight /= sum;
    }
    (start, weights)
}
