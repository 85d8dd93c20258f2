//! From an image's bytes to a graph's answer: decoding and preprocessing on the CPU pool, then the queue.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use ndarray::{Array4, ArrayViewMut3, Axis, CowArray, IxDyn, s};

use super::engine::{Engine, EngineSource, Pending};
use super::graph_model::Binding;
use super::text_encoder::{TokenBinding, constant_shape};
use super::tuning::probe::{self, Probe};
use super::tuning::{Judgement, Probabilities, Stage};
use super::{LoadContext, LoadError, PredictError, Ticket, Timings};
use crate::batching::InferenceError;
use crate::cpu_pool::{self, CpuPool};
use crate::preprocess::{DecodeLimits, DecodeMode, ImageProcessor, PreparedImage};
use crate::runtime::{BYTE_PIXELS, BatchMemory, Element, Pinning, PixelBlocks, PixelTable, Tensor, TensorSpec};
use crate::telemetry::ModelMetrics;

/// The image side of a classifier or of a dual encoder.
pub(super) struct ImageEncoder {
    pub(super) engine: Arc<Engine<ImageBinding>>,
    processor: Arc<ImageProcessor>,
    decode_limits: DecodeLimits,
    decode_mode: DecodeMode,
    metrics: ModelMetrics,
}

impl ImageEncoder {
    /// Opens the graph and starts its workers.
    pub(super) fn start(
        context: &LoadContext,
        source: &EngineSource<'_>,
        processor: ImageProcessor,
        metrics: ModelMetrics,
    ) -> Result<Self, LoadError> {
        let binding = ImageBinding::for_processor(&processor);
        Ok(Self {
            engine: Arc::new(Engine::start(context, source, &binding)?),
            processor: Arc::new(processor),
            decode_limits: context.decode_limits,
            decode_mode: source.settings.decode_mode(),
            metrics,
        })
    }

    /// Measures how the graph is best run; `probabilities` judges its answers to the built-in photos.
    pub(super) fn tune(&self, stage: Stage, probabilities: &Probabilities<'_>) {
        if self.engine.wants_tuning() {
            let image_processor = serde_json::to_value(self.processor.as_ref()).unwrap_or_default();
            let items = probe::photos(&self.processor);
            self.engine.tune(stage, &Judgement { probe: Probe::Photos { image_processor }, items, probabilities });
        }
    }

    /// What [`Self::encode`] makes of an image before it goes to the queue, on this thread.
    pub(super) fn prepare(&self, image: &[u8]) -> Result<PreparedImage, PredictError> {
        Ok(self.processor.read(image, &self.decode_limits, self.decode_mode)?)
    }

    /// The graph's present answers to the built-in photos. Blocks.
    pub(super) fn probe_answers(&self) -> Result<Vec<Vec<f32>>, PredictError> {
        Ok(self.engine.answers(&probe::photos(&self.processor))?)
    }

    /// The graph's answer to one image.
    pub(super) async fn encode(
        &self,
        pool: &CpuPool,
        image: Bytes,
        ticket: Ticket,
    ) -> Result<(Vec<f32>, Timings), PredictError> {
        let engine = Arc::clone(&self.engine);
        let processor = Arc::clone(&self.processor);
        let (limits, mode) = (self.decode_limits, self.decode_mode);
        let decode_duration = self.metrics.decode_duration.clone();
        let announcement = engine.announce();
        let (reply, pending) = Pending::new();
        let prepare = move || {
            if ticket.deadline <= Instant::now() {
                return Err(InferenceError::DeadlineExceeded.into());
            }
            let started = Instant::now();
            let may_divide = ticket.threads > 1;
            let division = may_divide.then(|| processor.division(&image, &limits, mode)).flatten();
            let prepared = match division {
                Some(row) => read_divided(&processor, &image, &limits, mode, row)?,
                None => processor.read(&image, &limits, mode)?,
            };
            let decode = started.elapsed();
            decode_duration.observe(decode.as_secs_f64());
            // The body's memory is given back before the wait in the queue.
            drop(image);
            engine.submit_announced(announcement, prepared, ticket, reply)?;
            Ok::<_, PredictError>(decode)
        };
        let preparing = pool.run(prepare);
        // To be woken when the image is ready would take a core from the run that has just begun.
        let answer = pending.answer().await;
        // What went wrong before the queue is told first: then there is no answer.
        let decode = preparing.await??;
        let answer = answer?;
        let timings = Timings { decode, queue: answer.queue, inference: answer.inference };
        Ok((answer.output, timings))
    }
}

/// [`ImageProcessor::read`] on this thread of the pool, and from `row` on on another.
fn read_divided(
    processor: &Arc<ImageProcessor>,
    image: &Bytes,
    limits: &DecodeLimits,
    mode: DecodeMode,
    row: usize,
) -> Result<PreparedImage, PredictError> {
    let lower = {
        let (processor, image, limits) = (Arc::clone(processor), image.clone(), *limits);
        move || processor.read_rows(&image, &limits, mode, row..processor.output_size().0)
    };
    let (upper, lower) = cpu_pool::join(|| processor.read_rows(image, limits, mode, 0..row), lower)?;
    Ok(upper?.above(&lower?))
}

/// Images into `pixel_values [batch, 3, height, width]`, or into what takes its place.
#[derive(Clone)]
pub(super) struct ImageBinding {
    height: usize,
    width: usize,
    input: String,
    /// The size of every batch, if it has to be the same.
    batch_size: Option<usize>,
    /// Constant inputs of the text encoder, where one graph holds both.
    text: Vec<(String, Tensor<'static>)>,
    /// What becomes of each byte, if the graph can be given bytes.
    table: Option<Arc<PixelTable>>,
    pixels: Pixels,
}

/// What the graph is given of a picture, and where a batch of that is put together.
#[derive(Clone)]
enum Pixels {
    Tensors(BatchMemory<f32>),
    Blocks(BatchMemory<f32>, Grid),
    /// [`BYTE_PIXELS`].
    Bytes(BatchMemory<u8>),
}

/// Blocks of pixels as an input takes them.
#[derive(Clone)]
struct Grid {
    /// Rows, blocks in each, and values of a block, with those around a picture.
    shape: [usize; 3],
    /// Those of a picture.
    rows: Range<usize>,
    columns: Range<usize>,
}

impl ImageBinding {
    /// For the tensors that `processor` makes.
    pub(super) fn for_processor(processor: &ImageProcessor) -> Self {
        let (height, width) = processor.output_size();
        Self { table: Some(processor.pixel_table()), ..Self::new(height, width) }
    }

    fn new(height: usize, width: usize) -> Self {
        let pixels = Pixels::Tensors(BatchMemory::default());
        Self { height, width, input: String::new(), batch_size: None, text: Vec::new(), table: None, pixels }
    }

    /// The pictures as `input` takes them.
    fn grid(&self, input: &TensorSpec, blocks: PixelBlocks) -> Result<Grid, String> {
        let PixelBlocks { rows, columns, .. } = blocks;
        let (height, width) = (rows * blocks.height, columns * blocks.width);
        let grid = match input.shape[..] {
            [_, Some(all_rows), Some(all_columns), Some(values)] => Some(Grid {
                shape: [all_rows, all_columns, values],
                rows: blocks.above..blocks.above + rows,
                columns: blocks.before..blocks.before + columns,
            }),
            _ => None,
        };
        let fits = |grid: &Grid| {
            let [all_rows, all_columns, values] = grid.shape;
            let is_within = grid.rows.end <= all_rows && grid.columns.end <= all_columns;
            (height, width) == (self.height, self.width) && values == 3 * blocks.height * blocks.width && is_within
        };
        grid.filter(fits).ok_or_else(|| {
            format!(
                "input '{}' takes blocks of another shape: of pictures of {height} × {width} pixels, but the image processor gives {} × {}",
                input.name, self.height, self.width
            )
        })
    }

    /// A black picture for `input`, to run the other encoder of a combined graph.
    pub(super) fn constant(input: &TensorSpec, size: (usize, usize)) -> Result<Tensor<'static>, String> {
        let binding = Self::new(size.0, size.1).bind(std::slice::from_ref(input))?;
        let shape = (binding.batch_size.unwrap_or(1), 3, binding.height, binding.width);
        Ok(Tensor::F32(Array4::zeros(shape).into_dyn().into()))
    }
}

impl Binding for ImageBinding {
    type Item = PreparedImage;

    fn bind(&self, inputs: &[TensorSpec]) -> Result<Self, String> {
        let named = |name| inputs.iter().find(|input| input.name == name);
        let blocks = inputs.iter().find_map(|input| Some((input, input.blocks?)));
        let named = named(BYTE_PIXELS).or_else(|| blocks.map(|(input, _)| input)).or_else(|| named("pixel_values"));
        let input = named.or(match inputs {
            [only] => Some(only),
            _ => None,
        });
        let input = input.ok_or_else(|| {
            let names: Vec<_> = inputs.iter().map(|input| input.name.as_str()).collect();
            format!("has no input 'pixel_values', but {}", names.join(", "))
        })?;
        let (pixels, wanted) = if let Some((input, blocks)) = blocks {
            let grid = self.grid(input, blocks)?;
            (Pixels::Blocks(BatchMemory::default(), grid.clone()), grid.shape)
        } else if input.name == BYTE_PIXELS {
            (Pixels::Bytes(BatchMemory::default()), [self.height, self.width, 3])
        } else {
            (Pixels::Tensors(BatchMemory::default()), [3, self.height, self.width])
        };
        let fits = input.shape.len() == 4
            && input.shape[1..]
                .iter()
                .zip(wanted)
                .all(|(declared, size)| declared.is_none_or(|declared| declared == size));
        if !fits {
            let declared: Vec<_> =
                input.shape.iter().map(|size| size.map_or("?".to_owned(), |size| size.to_string())).collect();
            return Err(format!(
                "input '{}' has shape [{}], but the image processor gives [batch, {}]",
                input.name,
                declared.join(", "),
                wanted.map(|size| size.to_string()).join(", ")
            ));
        }
        let others = inputs.iter().filter(|other| other.name != input.name);
        let text = others.map(|other| Ok((other.name.clone(), TokenBinding::constant(other)?)));
        let text = text.collect::<Result<_, String>>()?;
        Ok(Self { input: input.name.clone(), batch_size: input.shape[0], text, pixels, ..self.clone() })
    }

    fn fixed_batch_size(&self) -> Option<usize> {
        self.batch_size
    }

    fn shape_range(&self, input: &TensorSpec) -> (Vec<usize>, Vec<usize>) {
        let shape = constant_shape(&self.text, input).unwrap_or_else(|| vec![3, self.height, self.width]);
        (shape.clone(), shape)
    }

    fn item_shape(&self) -> Option<Vec<usize>> {
        Some(vec![3, self.height, self.width])
    }

    fn largest_side(&self) -> usize {
        self.height.max(self.width)
    }

    fn pixel_table(&self) -> Option<Arc<PixelTable>> {
        self.table.clone()
    }

    fn pinned(self, pinning: Pinning) -> Self {
        let pixels = match self.pixels {
            Pixels::Tensors(_) => Pixels::Tensors(BatchMemory::new(pinning)),
            Pixels::Blocks(_, grid) => Pixels::Blocks(BatchMemory::new(pinning), grid),
            Pixels::Bytes(_) => Pixels::Bytes(BatchMemory::new(pinning)),
        };
        Self { pixels, ..self }
    }

    fn filled_up_to(self, size: usize) -> Self {
        Self { batch_size: Some(size), ..self }
    }

    fn stack<'a>(&'a mut self, batch: &'a [PreparedImage]) -> Vec<(&'a str, Tensor<'a>)> {
        // A batch that is filled up gets black images for the places nobody takes.
        let size = self.batch_size.unwrap_or(batch.len());
        let (height, width) = (self.height, self.width);
        let pixels = match &mut self.pixels {
            Pixels::Tensors(memory) => {
                Tensor::F32(stacked(memory, [size, 3, height, width], batch, PreparedImage::write_tensor))
            }
            Pixels::Blocks(memory, Grid { shape: [all_rows, all_columns, values], rows, columns }) => {
                // What lies around stays as it is: zeros.
                Tensor::F32(stacked(memory, [size, *all_rows, *all_columns, *values], batch, |image, mut place| {
                    image.write_blocks(place.slice_mut(s![rows.clone(), columns.clone(), ..]));
                }))
            }
            Pixels::Bytes(memory) => {
                Tensor::U8(stacked(memory, [size, height, width, 3], batch, PreparedImage::write_bytes))
            }
        };
        let text = self.text.iter().map(|(name, tensor)| (name.as_str(), tensor.view()));
        std::iter::once((self.input.as_str(), pixels)).chain(text).collect()
    }

    fn samples(&self) -> Vec<PreparedImage> {
        vec![PreparedImage::uniform(self.height, self.width, 0.0)]
    }
}

/// A batch of this shape in `memory`: `write` puts each image in its place.
fn stacked<'a, T: Element>(
    memory: &'a mut BatchMemory<T>,
    shape: [usize; 4],
    batch: &[PreparedImage],
    write: impl Fn(&PreparedImage, ArrayViewMut3<'_, T>),
) -> CowArray<'a, T, IxDyn> {
    let pixels = memory.put_together(shape, |mut pixels| {
        for (place, image) in pixels.axis_iter_mut(Axis(0)).zip(batch) {
            write(image, place);
        }
        pixels.slice_mut(s![batch.len().., .., .., ..]).fill(T::default());
    });
    pixels.into_dyn().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ort::value::TensorElementType;

    fn binding() -> ImageBinding {
        ImageBinding::new(4, 6)
    }

    fn input(name: &str, shape: &[i64]) -> TensorSpec {
        TensorSpec {
            name: name.to_owned(),
            element_type: TensorElementType::Float32,
            shape: shape.iter().map(|&size| usize::try_from(size).ok()).collect(),
            blocks: None,
        }
    }

    #[test]
    fn inputs_are_bound_by_name_and_a_lone_one_by_any_name() {
        let two = [input("input_ids", &[-1, -1]), input("pixel_values", &[-1, 3, -1, -1])];
        let mut bound = binding().bind(&two).unwrap();
        assert_eq!(bound.input, "pixel_values");
        let batch = [PreparedImage::uniform(4, 6, 1.0), PreparedImage::uniform(4, 6, 1.0)];
        let stacked = bound.stack(&batch);
        let [("pixel_values", _), ("input_ids", Tensor::I64(ids))] = &stacked[..] else { panic!("wrong inputs") };
        assert_eq!(ids.shape(), [1, 2], "the text encoder of a combined graph gets one short text");
        let unknown = [input("pixel_values", &[-1, 3, -1, -1]), input("mask", &[-1])];
        assert!(binding().bind(&unknown).is_err_and(|error| error.contains("'mask'")));
        assert_eq!(binding().bind(&[input("x", &[1, 3, 4, 6])]).unwrap().batch_size, Some(1));
        assert!(binding().bind(&[input("x", &[-1]), input("y", &[-1])]).is_err_and(|error| error.contains("but x, y")));
    }

    #[test]
    fn a_size_that_contradicts_the_image_processor_is_an_error() {
        let error = binding().bind(&[input("pixel_values", &[-1, 3, 5, 6])]).err().unwrap();
        assert!(error.contains("[?, 3, 5, 6]") && error.contains("[batch, 3, 4, 6]"), "{error}");
    }

    #[test]
    fn what_takes_bytes_is_given_bytes() {
        let bytes = |shape: &[i64]| TensorSpec { element_type: TensorElementType::Uint8, ..input(BYTE_PIXELS, shape) };
        let two = [input("input_ids", &[-1, -1]), bytes(&[-1, 4, 6, 3])];
        let mut bound = binding().bind(&two).unwrap().pinned(Pinning::default()).filled_up_to(2);
        let batch = [PreparedImage::uniform(4, 6, 1.0)];
        let stacked = bound.stack(&batch);
        let [(BYTE_PIXELS, Tensor::U8(pixels)), ("input_ids", _)] = &stacked[..] else { panic!("wrong inputs") };
        assert_eq!(pixels.shape(), [2, 4, 6, 3]);
        assert!(binding().bind(&[bytes(&[-1, 3, 4, 6])]).is_err());
    }

    #[test]
    fn what_takes_blocks_is_given_blocks_with_zeros_around() {
        let blocks = |shape: &[i64], [height, width, rows, columns, above, before]: [usize; 6]| TensorSpec {
            blocks: Some(PixelBlocks { height, width, rows, columns, above, before }),
            ..input("blocks", shape)
        };
        let two = [input("input_ids", &[-1, -1]), blocks(&[-1, 4, 3, 12], [2, 2, 2, 3, 1, 0])];
        let mut bound = binding().bind(&two).unwrap().pinned(Pinning::default());
        // The second time, over what the first one left behind.
        for value in [2.0, 1.0] {
            let batch = [PreparedImage::uniform(4, 6, value)];
            let stacked = bound.stack(&batch);
            let [("blocks", Tensor::F32(pixels)), ("input_ids", _)] = &stacked[..] else { panic!("wrong inputs") };
            assert_eq!(pixels.shape(), [1, 4, 3, 12]);
            let sums = [0, 1, 2, 3].map(|row| pixels.slice(s![0, row, .., ..]).sum());
            assert_eq!(sums, [0.0, 36.0 * value, 36.0 * value, 0.0]);
        }
        for (shape, numbers) in [
            (&[-1, 2, 3, 12][..], [2, 2, 2, 3, 1, 0]),
            (&[-1, 2, 2, 12], [2, 2, 2, 3, 0, 0]),
            (&[-1, 3, 4, 12], [2, 2, 3, 4, 0, 0]),
            (&[-1, 2, 3, 27], [3, 3, 2, 3, 0, 0]),
            (&[-1, 2, 3, 3], [2, 2, 2, 3, 0, 0]),
            (&[-1, -1, 3, 12], [2, 2, 2, 3, 0, 0]),
            (&[-1, 6, 12], [2, 2, 2, 3, 0, 0]),
        ] {
            let error = binding().bind(&[blocks(shape, numbers)]).err().unwrap();
            assert!(error.contains("blocks of another shape"), "{shape:?}: {error}");
        }
        let error = binding().bind(&[blocks(&[-1, 3, 4, 12], [2, 2, 3, 4, 0, 0])]).err().unwrap();
        assert!(error.ends_with("of 6 × 8 pixels, but the image processor gives 4 × 6"), "{error}");
    }

    #[test]
    fn a_fixed_batch_is_filled_up() {
        let insists = binding().bind(&[input("pixel_values", &[2, 3, 4, 6])]).unwrap();
        let takes_any = binding().bind(&[input("pixel_values", &[-1, 3, 4, 6])]).unwrap();
        let batch = [PreparedImage::uniform(4, 6, 1.0), PreparedImage::uniform(4, 6, 1.0)];
        for mut bound in [insists, takes_any.filled_up_to(2)] {
            // The second time, of what the first one left behind.
            for (size, sum) in [(2, 144.0), (1, 72.0)] {
                let stacked = bound.stack(&batch[..size]);
                let ("pixel_values", Tensor::F32(pixels)) = &stacked[0] else {
                    panic!("wrong input");
                };
                assert_eq!((pixels.shape(), pixels.sum()), (&[2, 3, 4, 6][..], sum));
            }
        }
    }
}
