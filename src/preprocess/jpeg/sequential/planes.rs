//! A picture's components as they are stored, with the samples that are needed of each.

use std::ops::Range;

use super::color::{Upsampled, to_rgb};
use super::frame::Frame;
use super::huffman::{Bits, unstuff};
use super::idct::transform;
use crate::preprocess::buffer;
use crate::preprocess::jpeg::END_OF_IMAGE;

/// The first of the eight markers behind which decoding can start anew.
const RESTART: u8 = 0xd0;

/// How a picture is laid out when it is decoded at some eighths of its size. Pairs are across and down.
pub(super) struct Layout {
    /// Of the picture, in pixels.
    pub(super) size: (usize, usize),
    /// Samples at the side of a block of luma.
    luma_block: usize,
    /// And of chroma.
    chroma_block: usize,
    /// Blocks of luma for one of chroma: together they are a minimum coded unit.
    sampling: (usize, usize),
    /// Pixels for each sample of chroma.
    upsampling: (usize, usize),
    /// Minimum coded units.
    units: (usize, usize),
}

/// Of a picture, in pixels.
pub(super) struct Part {
    pub(super) rows: Range<usize>,
    pub(super) columns: Range<usize>,
}

impl Layout {
    /// Of a picture of this width and height. `None` for what libjpeg-turbo does in yet another way.
    pub(super) fn new(frame: &Frame<'_>, (width, height): (u32, u32), eighths: usize) -> Option<Self> {
        let (width, height) = (width as usize, height as usize);
        let sampling = frame.sampling;
        // Where chroma has fewer samples, it is rather reduced by less than upsampled.
        let (chroma_block, upsampling) = match (eighths, sampling) {
            (8, _) => (8, sampling),
            (_, (1, 1)) => (eighths, (1, 1)),
            (_, (2, 2)) => (eighths * 2, (1, 1)),
            _ => return None,
        };
        // It upsamples two columns and fewer by repeating them.
        if upsampling.0 > 1 && width <= 4 {
            return None;
        }
        let size = ((width * eighths).div_ceil(8), (height * eighths).div_ceil(8));
        let units = (width.div_ceil(8 * sampling.0), height.div_ceil(8 * sampling.1));
        Some(Self { size, luma_block: eighths, chroma_block, sampling, upsampling, units })
    }

    /// The rows and columns of minimum coded units that are needed for a part: upsampled ones are made of their neighbours, too.
    fn units_of(&self, part: &Part) -> (Range<usize>, Range<usize>) {
        let units_of = |pixels: &Range<usize>, sampling: usize, upsampling: usize, units: usize| {
            let unit = self.luma_block * sampling;
            let beyond = if upsampling > 1 { upsampling } else { 0 };
            pixels.start.saturating_sub(beyond) / unit..(pixels.end + beyond).div_ceil(unit).min(units)
        };
        let rows = units_of(&part.rows, self.sampling.1, self.upsampling.1, self.units.1);
        (rows, units_of(&part.columns, self.sampling.0, self.upsampling.0, self.units.0))
    }
}

/// The samples that are needed for a part of a picture: luma, blue and red.
pub(super) struct Planes {
    samples: Vec<u8>,
    /// Where each begins, and the length of its rows.
    places: [(usize, usize); 3],
    /// The picture's first row of minimum coded units that is there.
    first: usize,
}

impl Planes {
    /// Decodes what is needed for the part, in memory of [`buffer`]; `None` if the data is damaged, as far as it is read.
    #[target_feature(enable = "avx2")]
    pub(super) fn decode(layout: &Layout, frame: &Frame<'_>, part: &Part) -> Option<Self> {
        let Layout { luma_block, chroma_block, sampling, units, .. } = *layout;
        let (rows, columns) = layout.units_of(part);
        let codes = frame.codes()?;
        let [luma, blue, red] = &frame.components;
        let codes = [codes.of(luma)?, codes.of(blue)?, codes.of(red)?];
        let strides = (units.0 * sampling.0 * luma_block, units.0 * chroma_block);
        let of_luma = strides.0 * sampling.1 * luma_block * rows.len();
        let of_chroma = strides.1 * chroma_block * rows.len();
        let places = [(0, strides.0), (of_luma, strides.1), (of_luma + of_chroma, strides.1)];
        let mut samples = buffer::take(of_luma + 2 * of_chroma);
        let mut data = frame.data;
        let mut interval = buffer::take(data.len());
        let mut marker = unstuff(&mut data, &mut interval)?;
        let mut bits = Bits::new(&interval);
        let (mut dc, mut coefficients) = ([0; 3], [0; 64]);
        let mut restarts = 0;
        for unit in 0..units.0 * rows.end {
            if frame.restart_interval > 0 && unit > 0 && unit % frame.restart_interval == 0 {
                // Whole bytes that are left are damage.
                if bits.left()? >= 8 || marker != RESTART + restarts {
                    return None;
                }
                marker = unstuff(&mut data, &mut interval)?;
                bits = Bits::new(&interval);
                (dc, restarts) = ([0; 3], (restarts + 1) % 8);
            }
            let (row, column) = (unit / units.0, unit % units.0);
            if column == 0 {
                // What is missing is not made up for the rest of the picture.
                bits.left()?;
            }
            let is_needed = rows.contains(&row) && columns.contains(&column);
            for (component, &(start, stride)) in places.iter().enumerate() {
                let (side, (across, down)) =
                    if component == 0 { (luma_block, sampling) } else { (chroma_block, (1, 1)) };
                for index in 0..across * down {
                    let extent = bits.block(codes[component], &mut dc[component], &mut coefficients)?;
                    if is_needed {
                        let top = ((row - rows.start) * down + index / across) * side;
                        let left = (column * across + index % across) * side;
                        let place = &mut samples[start + top * stride + left..];
                        transform(&coefficients, &frame.components[component].steps, extent, side, place, stride);
                    }
                    if extent > 1 {
                        coefficients.fill(0);
                    }
                }
            }
        }
        if bits.left().is_none() || rows.end == units.1 && marker != END_OF_IMAGE {
            return None;
        }
        buffer::give_back(interval);
        Some(Self { samples, places, first: rows.start })
    }

    /// The part's pixels, row by row, in memory of [`buffer`].
    #[target_feature(enable = "avx2")]
    pub(super) fn into_rgb(self, layout: &Layout, Part { rows, columns }: &Part) -> Vec<u8> {
        let Layout { luma_block, chroma_block, sampling, upsampling, .. } = *layout;
        let chroma_size = (layout.size.0.div_ceil(upsampling.0), layout.size.1.div_ceil(upsampling.1));
        let first = [luma_block * sampling.1, chroma_block, chroma_block].map(|rows| rows * self.first);
        let row_of = |plane: usize, row: usize| {
            let (start, stride) = self.places[plane];
            &self.samples[start + (row - first[plane]) * stride..][..stride]
        };
        let mut pixels = buffer::take(rows.len() * columns.len() * 3);
        let (mut blue, mut red) = (Upsampled::default(), Upsampled::default());
        for (row, target) in rows.clone().zip(pixels.chunks_exact_mut(columns.len() * 3)) {
            let luma = &row_of(0, row)[columns.clone()];
            if upsampling == (1, 1) {
                to_rgb(luma, &row_of(1, row)[columns.clone()], &row_of(2, row)[columns.clone()], target);
                continue;
            }
            let near = row / upsampling.1;
            let far = if row % 2 == 0 { near.saturating_sub(1) } else { (near + 1).min(chroma_size.1 - 1) };
            let chroma = |plane: usize, row: usize| &row_of(plane, row)[..chroma_size.0];
            let neighbour = |plane: usize| (upsampling.1 > 1).then(|| chroma(plane, far));
            blue.fill(chroma(1, near), neighbour(1), columns);
            red.fill(chroma(2, near), neighbour(2), columns);
            to_rgb(luma, blue.samples(columns), red.samples(columns), target);
        }
        buffer::give_back(self.samples);
        pixels
    }
}
