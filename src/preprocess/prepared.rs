//! An image on its way from decoding to inference.

use std::sync::Arc;

use ndarray::{Array3, ArrayView1, ArrayViewMut3, Zip, s};

use super::normalize::Table;
use super::window::Window;

/// An image that has been resized and cropped, but not yet rescaled and normalised: a quarter of its tensor's bytes, and the
/// tensor is written only once, straight to its place in a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct PreparedImage {
    /// RGB8, row by row, of the rows and columns that both windows see.
    pixels: Vec<u8>,
    rows: Window,
    columns: Window,
    table: Arc<Table>,
}

impl PreparedImage {
    pub(super) fn new(pixels: Vec<u8>, (rows, columns): (Window, Window), table: &Arc<Table>) -> Self {
        debug_assert_eq!(pixels.len(), rows.seen.len() * columns.seen.len() * 3);
        Self { pixels, rows, columns, table: Arc::clone(table) }
    }

    /// An image whose tensor is `value` throughout.
    pub fn uniform(height: usize, width: usize, value: f32) -> Self {
        let windows = (Window::all(height), Window::all(width));
        Self::new(vec![0; height * width * 3], windows, &Arc::new([[value; 256]; 3]))
    }

    /// This image and below it the rows of `lower`, which [`ImageProcessor::read_rows`] has read of the same picture.
    ///
    /// [`ImageProcessor::read_rows`]: super::ImageProcessor::read_rows
    pub fn above(mut self, lower: &Self) -> Self {
        self.rows = self.rows.followed_by(&lower.rows);
        self.pixels.extend_from_slice(&lower.pixels);
        self
    }

    /// Height and width of the tensor, in pixels.
    pub fn size(&self) -> (usize, usize) {
        (self.rows.length, self.columns.length)
    }

    /// The model's input for this image alone: `[3, height, width]`, channels in the order red, green, blue.
    pub fn tensor(&self) -> Array3<f32> {
        let (height, width) = self.size();
        let mut tensor = Array3::zeros((3, height, width));
        self.write_tensor(tensor.view_mut());
        tensor
    }

    /// Writes the tensor to `target`, which has its shape. What lies around the pixels is black, that is, 0 **before**
    /// normalisation.
    ///
    /// # Panics
    /// `target` has another shape.
    pub fn write_tensor(&self, mut target: ArrayViewMut3<'_, f32>) {
        let Self { pixels, rows, columns, table } = self;
        assert_eq!(target.dim(), (3, rows.length, columns.length), "the place for a tensor has another shape");
        let shown = (rows.seen.len(), columns.seen.len());
        let window = s![rows.offset..rows.offset + shown.0, columns.offset..columns.offset + shown.1];
        for (channel, (mut plane, values)) in target.outer_iter_mut().zip(table.iter()).enumerate() {
            if shown.0 < rows.length || shown.1 < columns.length {
                plane.fill(values[0]);
            }
            let seen = pixels.chunks_exact((shown.1 * 3).max(1));
            for (row, source) in plane.slice_mut(window).outer_iter_mut().zip(seen) {
                let source = ArrayView1::from(source.as_chunks::<3>().0);
                Zip::from(row).and(source).for_each(|place, pixel| *place = values[usize::from(pixel[channel])]);
            }
        }
    }
}
