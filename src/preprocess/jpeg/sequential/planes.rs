//! A picture's components, decoded and turned into pixels a row of minimum coded units after the other.

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

    /// Of a plane of luma (0) or chroma, the samples at the side of a block, and its blocks in a minimum coded unit.
    fn blocks(&self, plane: usize) -> (usize, (usize, usize)) {
        if plane == 0 { (self.luma_block, self.sampling) } else { (self.chroma_block, (1, 1)) }
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

/// The newest two rows of minimum coded units of luma, blue and red, which take turns in one place.
struct Planes {
    samples: Vec<u8>,
    planes: [Plane; 3],
}

/// One of them.
struct Plane {
    /// Where it begins.
    start: usize,
    /// The length of a row.
    stride: usize,
    /// One less than the rows that are there, a power of two: `row & mask` is where a row of the picture lies.
    mask: usize,
}

impl Planes {
    fn new(layout: &Layout) -> Self {
        let mut length = 0;
        let planes = [0, 1, 2].map(|plane| {
            let (side, (across, down)) = layout.blocks(plane);
            let (start, stride, rows) = (length, layout.units.0 * across * side, 2 * down * side);
            length += stride * rows;
            Plane { start, stride, mask: rows - 1 }
        });
        Self { samples: buffer::take(length), planes }
    }

    /// Where one of the picture's rows begins, and its length.
    fn place(&self, plane: usize, row: usize) -> (usize, usize) {
        let Plane { start, stride, mask } = self.planes[plane];
        (start + (row & mask) * stride, stride)
    }

    fn row(&self, plane: usize, row: usize) -> &[u8] {
        let (start, stride) = self.place(plane, row);
        &self.samples[start..][..stride]
    }

    /// The pixels of a row of the picture, of which the samples and those of its neighbours are there; `upsampled` takes its chroma.
    #[target_feature(enable = "avx2")]
    fn convert(
        &self,
        layout: &Layout,
        row: usize,
        columns: &Range<usize>,
        upsampled: &mut [Upsampled; 2],
        pixels: &mut [u8],
    ) {
        let Layout { size, upsampling, .. } = *layout;
        let part = |plane: usize| &self.row(plane, row)[columns.clone()];
        if upsampling == (1, 1) {
            return to_rgb(part(0), part(1), part(2), pixels);
        }
        // The row of chroma that it lies in, and the one that is next to it where there are half as many.
        let near = row / upsampling.1;
        let last = size.1.div_ceil(upsampling.1) - 1;
        let far = if row.is_multiple_of(2) { near.saturating_sub(1) } else { (near + 1).min(last) };
        let chroma = |plane: usize, row: usize| &self.row(plane, row)[..size.0.div_ceil(upsampling.0)];
        for (plane, upsampled) in (1..).zip(&mut *upsampled) {
            upsampled.fill(chroma(plane, near), (upsampling.1 > 1).then(|| chroma(plane, far)), columns);
        }
        let [blue, red] = upsampled;
        to_rgb(part(0), blue.samples(columns), red.samples(columns), pixels);
    }
}

/// The part's pixels, row by row, in memory of [`buffer`]; `None` if the data is damaged, as far as it is read.
#[target_feature(enable = "avx2,bmi2")]
pub(super) fn decode(layout: &Layout, frame: &Frame<'_>, part: &Part) -> Option<Vec<u8>> {
    let Layout { luma_block, sampling, upsampling, units, .. } = *layout;
    let (rows, columns) = layout.units_of(part);
    let codes = frame.codes()?;
    let [luma, blue, red] = &frame.components;
    let codes = [codes.of(luma)?, codes.of(blue)?, codes.of(red)?];
    let (mut planes, mut upsampled) = (Planes::new(layout), Default::default());
    let mut pixels = buffer::take(part.rows.len() * part.columns.len() * 3);
    let mut targets = part.rows.clone().zip(pixels.chunks_exact_mut(part.columns.len() * 3)).peekable();
    let mut data = frame.data;
    let mut interval = buffer::take(data.len());
    let mut marker = unstuff(&mut data, &mut interval)?;
    let mut bits = Bits::new(&interval);
    let (mut dc, mut coefficients, mut restarts) = ([0; 3], [0; 64], 0);
    for row in 0..rows.end {
        for column in 0..units.0 {
            let unit = row * units.0 + column;
            if frame.restart_interval > 0 && unit > 0 && unit % frame.restart_interval == 0 {
                // Whole bytes that are left are damage.
                if bits.left()? >= 8 || marker != RESTART + restarts {
                    return None;
                }
                marker = unstuff(&mut data, &mut interval)?;
                bits = Bits::new(&interval);
                (dc, restarts) = ([0; 3], (restarts + 1) % 8);
            }
            let is_needed = rows.contains(&row) && columns.contains(&column);
            for (plane, component) in frame.components.iter().enumerate() {
                let (side, (across, down)) = layout.blocks(plane);
                for index in 0..across * down {
                    if !is_needed {
                        bits.skip_block(codes[plane], &mut dc[plane])?;
                        continue;
                    }
                    let extent = bits.block(codes[plane], &mut dc[plane], &mut coefficients)?;
                    let (top, left) = (row * down + index / across, column * across + index % across);
                    let (start, stride) = planes.place(plane, top * side);
                    let place = &mut planes.samples[start + left * side..];
                    transform(&coefficients, &component.steps, extent, side, place, stride);
                    if extent > 1 {
                        coefficients.fill(0);
                    }
                }
            }
        }
        // What is missing is not made up for the rest of the picture.
        bits.left()?;
        // The last of them is made of chroma of the next units, too.
        let complete = (row + 1) * sampling.1 * luma_block - usize::from(upsampling.1 > 1 && row + 1 < units.1);
        while let Some((pixel_row, target)) = targets.next_if(|&(pixel_row, _)| pixel_row < complete) {
            planes.convert(layout, pixel_row, &part.columns, &mut upsampled, target);
        }
    }
    // What was not written to is of another picture.
    if targets.next().is_some() {
        return None;
    }
    if rows.end == units.1 && marker != END_OF_IMAGE {
        return None;
    }
    buffer::give_back(interval);
    buffer::give_back(planes.samples);
    Some(pixels)
}
