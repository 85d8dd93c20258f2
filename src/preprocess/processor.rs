//! The image processor: resize, centre crop, rescale and normalise, as a model folder's config says.

use std::ops::Range;
use std::sync::Arc;

use image::RgbImage;
use serde::Serialize;
use serde_json::Value;

use super::buffer;
use super::config::{ProcessorError, Settings, Size};
use super::decode::{DecodeError, DecodeLimits, DecodeMode, Demand, decode_demanded, is_divisible};
use super::kernel::Filter;
use super::normalize::{Normalization, Table};
use super::prepared::PreparedImage;
use super::resize::{Picture, Target, resize, unseen};
use super::window::{Margins, Window};

/// Of two threads that read parts of one picture, the first gets this many tenths of the rows: the other has to go through those
/// too, as a JPEG's codes follow one another, which takes about 0.3 of what decoding and resizing them takes.
const UPPER_TENTHS: usize = 6;

/// RGB8 pixels to a normalised tensor, with the results of the `transformers` processor of the same config
/// (its torchvision backend, bit for bit).
///
/// Serializes as the effective settings, by the names of `preprocessor_config.json`.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub struct ImageProcessor {
    settings: Settings,
    #[serde(skip)]
    defaults: Vec<String>,
    #[serde(skip)]
    plan: Plan,
}

/// What the settings amount to.
#[derive(Debug, Clone)]
struct Plan {
    resize: Option<(Size, Filter)>,
    /// Height and width of each crop, in order.
    crops: Vec<(usize, usize)>,
    output: (usize, usize),
    table: Arc<Table>,
}

impl ImageProcessor {
    /// Reads the content of `preprocessor_config.json`, or of the key `image_processor` of `processor_config.json`.
    /// `model_type`, from config.json, tells the class where the file does not.
    ///
    /// # Errors
    /// The first key that is wrong, unknown in a way that could change pixels, or asks for what is not implemented.
    pub fn from_json(config: &Value, model_type: Option<&str>) -> Result<Self, ProcessorError> {
        let (settings, defaults) = Settings::from_json(config, model_type)?;
        let plan = Plan::new(&settings)?;
        Ok(Self { settings, defaults, plan })
    }

    /// The keys that the file lacks and the class defaults taken for them, as `key = value`. Defaults have changed
    /// between versions of transformers, so they belong into the log.
    pub fn defaults_taken(&self) -> &[String] {
        &self.defaults
    }

    /// Height and width of the tensors, in pixels.
    pub fn output_size(&self) -> (usize, usize) {
        self.plan.output
    }

    /// Decodes an upload, resizes and crops it.
    ///
    /// # Errors
    /// See [`DecodeError`].
    pub fn read(&self, bytes: &[u8], limits: &DecodeLimits, mode: DecodeMode) -> Result<PreparedImage, DecodeError> {
        self.read_rows(bytes, limits, mode, 0..self.plan.output.0)
    }

    /// The tensor's `rows` of what [`Self::read`] gives: the parts of a picture can be read side by side.
    ///
    /// # Errors
    /// See [`DecodeError`]. What is wrong with the picture may be seen in another part only.
    pub fn read_rows(
        &self,
        bytes: &[u8],
        limits: &DecodeLimits,
        mode: DecodeMode,
        rows: Range<usize>,
    ) -> Result<PreparedImage, DecodeError> {
        let image = decode_demanded(bytes, limits, &Look { plan: &self.plan, mode, rows: rows.clone() })?;
        let prepared = self.plan.prepare(&image.pixels, image.cut, image.size, rows);
        buffer::give_back(image.pixels.into_raw());
        Ok(prepared)
    }

    /// The row at which the tensor is best divided for two threads that call [`Self::read_rows`] side by side; `None` where that would
    /// take them no less time than one.
    pub fn division(&self, bytes: &[u8], limits: &DecodeLimits, mode: DecodeMode) -> Option<usize> {
        let row = self.plan.output.0 * UPPER_TENTHS / 10;
        is_divisible(bytes, limits, &Look { plan: &self.plan, mode, rows: 0..row }).then_some(row)
    }

    /// What [`PreparedImage::tensor`] makes of each byte of each channel.
    pub fn pixel_table(&self) -> Arc<Table> {
        Arc::clone(&self.plan.table)
    }

    /// Resizes and crops an image.
    ///
    /// Memory stays in proportion to the image's longer side and the output, however narrow the image is.
    pub fn prepare(&self, image: &RgbImage) -> PreparedImage {
        self.plan.prepare(image, Margins::default(), image.dimensions(), 0..self.plan.output.0)
    }
}

/// What an image processor looks at in a picture.
struct Look<'a> {
    plan: &'a Plan,
    mode: DecodeMode,
    /// Of the output.
    rows: Range<usize>,
}

impl Demand for Look<'_> {
    /// Twice what a picture is resized to leaves the resizing enough to average. Without resizing and for nearest, which takes pixels
    /// as they are, all.
    fn size(&self, (width, height): (u32, u32)) -> (u32, u32) {
        let twice = |length: usize| u32::try_from(length * 2).unwrap_or(u32::MAX);
        match (self.mode, self.plan.resize) {
            (DecodeMode::Exact, _) | (_, None | Some((_, Filter::Nearest))) => (width, height),
            (DecodeMode::Fast, Some((size, _))) => {
                let target = target_size(size, (height as usize, width as usize));
                (twice(target.1), twice(target.0))
            }
        }
    }

    fn margins(&self, full: (u32, u32), decoded: (u32, u32)) -> Margins {
        let source = (decoded.1 as usize, decoded.0 as usize);
        let (target, _) = self.plan.target(source, full, self.rows.clone());
        unseen(source, target)
    }
}

impl Plan {
    fn new(settings: &Settings) -> Result<Self, ProcessorError> {
        let mut size = settings.size;
        let mut crops = Vec::new();
        if let (Some(crop_pct), true) = (settings.crop_pct, settings.do_resize) {
            // ConvNext: small sizes are cut from a larger picture, sizes from 384 on are squashed.
            let Size::ShortestEdge { shortest_edge: edge } = size else {
                return Err(ProcessorError::new("size", "must have shortest_edge for a ConvNextImageProcessor"));
            };
            if edge < 384 {
                let enlarged = (edge as f64 / crop_pct) as usize;
                if enlarged == 0 || enlarged > 1 << 16 {
                    return Err(ProcessorError::new(
                        "crop_pct",
                        format!("{crop_pct} gives a side of {enlarged} pixels"),
                    ));
                }
                size = Size::ShortestEdge { shortest_edge: enlarged };
                crops.push((edge, edge));
            } else {
                size = Size::Exact { height: edge, width: edge };
            }
        }
        crops.extend(settings.crop_size.map(|crop| (crop.height, crop.width)));
        let output = match (crops.last(), settings.do_resize, size) {
            (Some(&crop), _, _) => crop,
            (None, true, Size::Exact { height, width }) => (height, width),
            (None, true, Size::ShortestEdge { .. }) => {
                let problem = "has a shortest_edge, and without do_center_crop every image would get a size of its own";
                return Err(ProcessorError::new("size", problem));
            }
            (None, false, _) => {
                let problem = "is false, and without do_center_crop every image would keep a size of its own";
                return Err(ProcessorError::new("do_resize", problem));
            }
        };
        let normalization = Normalization {
            factor: settings.do_rescale.then_some(settings.rescale_factor),
            offset: settings.do_rescale && settings.rescale_offset.unwrap_or(false),
            mean_std: settings.do_normalize.then_some((settings.image_mean, settings.image_std)),
            divide_again: settings.include_top.unwrap_or(false).then_some(settings.image_std),
        };
        Ok(Self {
            resize: settings.do_resize.then_some((size, settings.resample)),
            crops,
            output,
            table: Arc::new(normalization.table()),
        })
    }

    /// What an image of `source` (height, width), that is `full` (width, height) in full, is resized to for the given rows of the output,
    /// and where rows and columns of that lie in these. The size follows from the full one, or a crop would shift.
    fn target(
        &self,
        source: (usize, usize),
        full: (u32, u32),
        output_rows: Range<usize>,
    ) -> (Target, (Window, Window)) {
        let (size, filter) = match self.resize {
            Some((size, filter)) => (target_size(size, (full.1 as usize, full.0 as usize)), filter),
            None => (source, Filter::Nearest),
        };
        let (mut rows, mut columns) = (Window::all(size.0), Window::all(size.1));
        for &(height, width) in &self.crops {
            rows = rows.center(height);
            columns = columns.center(width);
        }
        let rows = rows.part(output_rows);
        let target = Target { size, filter, rows: rows.seen.clone(), columns: columns.seen.clone() };
        (target, (rows, columns))
    }

    /// Resizes and crops an image of which `cut` is missing, and that is `full` (width, height) in full, for the given rows of the
    /// output.
    fn prepare(&self, image: &RgbImage, cut: Margins, full: (u32, u32), rows: Range<usize>) -> PreparedImage {
        let source = cut.outside((image.height() as usize, image.width() as usize));
        let (target, windows) = self.target(source, full, rows);
        let picture = Picture { pixels: image.as_raw(), size: source, cut };
        PreparedImage::new(resize(&picture, target), windows, &self.table)
    }
}

/// The (height, width) that an image of (height, width) is resized to.
fn target_size(size: Size, (height, width): (usize, usize)) -> (usize, usize) {
    match size {
        Size::Exact { height, width } => (height, width),
        // The longer side is truncated, not rounded.
        Size::ShortestEdge { shortest_edge } if width <= height => (shortest_edge * height / width, shortest_edge),
        Size::ShortestEdge { shortest_edge } => (shortest_edge, shortest_edge * width / height),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn needed(config: &Value, size: (u32, u32)) -> (u32, u32) {
        let processor = ImageProcessor::from_json(config, None).unwrap();
        Look { plan: &processor.plan, mode: DecodeMode::Fast, rows: 0..1 }.size(size)
    }

    #[test]
    fn twice_what_an_image_is_resized_to_is_needed_of_it() {
        let squash = json!({"image_processor_type": "ViTImageProcessor", "size": {"height": 200, "width": 100}});
        assert_eq!(needed(&squash, (4000, 3000)), (200, 400));
        let clip = json!({"image_processor_type": "CLIPImageProcessor"});
        assert_eq!(needed(&clip, (4000, 3000)), (2 * 298, 2 * 224));
        assert_eq!(needed(&clip, (3000, 4000)), (2 * 224, 2 * 298));
        let conv_next = json!({"image_processor_type": "ConvNextImageProcessor", "size": 224, "crop_pct": 0.875});
        assert_eq!(needed(&conv_next, (4000, 4000)), (2 * 256, 2 * 256), "what the crop is taken from counts");
    }

    #[test]
    fn all_of_an_image_is_needed_where_pixels_are_taken_as_they_are() {
        let nearest = json!({"image_processor_type": "ViTImageProcessor", "resample": 0});
        let crop = json!({"image_processor_type": "CLIPImageProcessor", "do_resize": false});
        for config in [nearest, crop] {
            assert_eq!(needed(&config, (4000, 3000)), (4000, 3000), "{config}");
        }
    }
}
