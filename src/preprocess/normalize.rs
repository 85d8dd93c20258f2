//! The last step: u8 pixels to normalised f32 planes, by a table of 256 values per channel.

use std::ops::Range;

use ndarray::Array3;

use super::window::Window;

/// What becomes of each u8 value in each channel.
pub(super) type Table = [[f32; 256]; 3];

/// Scale and shift as the config says them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Normalization {
    /// `rescale_factor`, if `do_rescale`.
    pub(super) factor: Option<f64>,
    /// EfficientNet's `rescale_offset`: subtract 1 after rescaling.
    pub(super) offset: bool,
    /// Mean and standard deviation, if `do_normalize`.
    pub(super) mean_std: Option<([f64; 3], [f64; 3])>,
    /// EfficientNet's `include_top`: divide by these once more.
    pub(super) divide_again: Option<[f64; 3]>,
}

impl Normalization {
    /// The table of all results, each computed in f32 in the reference's order of operations
    /// (`_fuse_mean_std_and_rescale_factor` and `rescale_and_normalize_efficientnet` of transformers).
    pub(super) fn table(&self) -> Box<Table> {
        let mut table = Box::new([[0.0; 256]; 3]);
        for (channel, values) in table.iter_mut().enumerate() {
            for (value, result) in values.iter_mut().enumerate() {
                *result = self.value(value as f32, channel);
            }
        }
        table
    }

    fn value(&self, value: f32, channel: usize) -> f32 {
        let mut value = value;
        match (self.factor, self.mean_std) {
            // Both at once: mean and standard deviation are brought to the scale of the pixels.
            (Some(factor), Some((mean, std))) if !self.offset => {
                let scale = (1.0 / factor) as f32;
                value = (value - mean[channel] as f32 * scale) / (std[channel] as f32 * scale);
            }
            (factor, mean_std) => {
                if let Some(factor) = factor {
                    value = value * factor as f32 - if self.offset { 1.0 } else { 0.0 };
                }
                if let Some((mean, std)) = mean_std {
                    value = (value - mean[channel] as f32) / std[channel] as f32;
                }
            }
        }
        match self.divide_again {
            Some(std) => value / std[channel] as f32,
            None => value,
        }
    }
}

/// Makes planes of `rows.length` x `columns.length` from RGB pixels `width` wide, of which `shown` gives the rows
/// and columns that both windows see. What lies around them is black, that is, 0 **before** normalisation.
pub(super) fn to_planes(
    pixels: &[u8],
    width: usize,
    shown: (Range<usize>, Range<usize>),
    (rows, columns): (&Window, &Window),
    table: &Table,
) -> Array3<f32> {
    let (height, length) = (rows.length, columns.length);
    let mut planes = Array3::zeros((3, height, length));
    let padded = shown.0.len() < height || shown.1.len() < length;
    for (mut plane, values) in planes.outer_iter_mut().zip(table) {
        if padded {
            plane.fill(values[0]);
        }
    }
    let Some(output) = planes.as_slice_mut() else { return planes };
    let (red, rest) = output.split_at_mut(height * length);
    let (green, blue) = rest.split_at_mut(height * length);
    for (target, source) in (rows.offset..).zip(shown.0) {
        let source = &pixels[(source * width + shown.1.start) * 3..(source * width + shown.1.end) * 3];
        let target = target * length + columns.offset..target * length + columns.offset + shown.1.len();
        let targets = red[target.clone()].iter_mut().zip(&mut green[target.clone()]).zip(&mut blue[target]);
        for (pixel, ((red, green), blue)) in source.as_chunks::<3>().0.iter().zip(targets) {
            *red = table[0][usize::from(pixel[0])];
            *green = table[1][usize::from(pixel[1])];
            *blue = table[2][usize::from(pixel[2])];
        }
    }
    planes
}
