//! Rescaling and normalising, as a table of 256 values per channel.

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
    pub(super) fn table(&self) -> Table {
        let mut table = [[0.0; 256]; 3];
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
