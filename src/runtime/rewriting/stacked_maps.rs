//! Convolutions of small feature maps with the maps of a batch as one. OpenVINO goes through the weights again for each picture of a batch: where they
//! fill a core's cache, as in the last stage of a ResNet, that is as slow as computing. And it multiplies 16 pixels at once, of which the last
//! ones of a map of 7 × 7 are but one. One below the other, the maps of a batch are a tall one, as which they lie in memory anyway, since channels come
//! last there. It is convolved by kernels of one pixel, and goes through what is done with each value by itself. Larger kernels would reach from one
//! map into the next: for them, maps are copied to lie side by side, with as many columns of zeros between them as a window reaches over an edge. All
//! sums are of the same products.

use std::collections::{HashMap, HashSet};
use std::io;
use std::ops::RangeInclusive;
use std::path::Path;

use super::CORE_CACHE;
use super::weights_in_file::Slim;
use crate::runtime::onnx::graph::{Graph, Model, Node, SPLIT_BY_INPUT};
use crate::runtime::onnx::parts::{floats, node, sizes, transpose, with_integers};
use crate::runtime::onnx::protobuf::put_bytes;
use crate::runtime::onnx::shapes::{Attributes, Shapes, values_of};
use crate::runtime::onnx::window::Window;
use crate::runtime::{RuntimeError, onnx::proto};

/// Sizes along `[batch, channels, height, width]`.
type Shape = [u64; 4];

/// Where these are in a [`Shape`].
const BATCH: u64 = 0;
const HEIGHT: u64 = 2;
const WIDTH: u64 = 3;

/// Maps are copied to lie side by side and back, which costs little where the weights are so many times larger than those of a picture.
const WEIGHTS_TO_MAPS: u64 = 4;

/// Pixels that are multiplied at once.
const PIXELS_AT_ONCE: u64 = 16;

/// Tenths of what is multiplied that are to be pixels.
const WELL_FILLED: u64 = 9;

/// Maps that are stacked.
const SEVERAL: RangeInclusive<u64> = 2..=1024;

/// Operators that make each value of one value and, some of them, of numbers.
const UNARY: [&str; 10] =
    ["Clip", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Relu", "Sigmoid", "Tanh"];

/// Operators that make each value of two values.
const BINARY: [&str; 4] = ["Add", "Sub", "Mul", "Div"];

/// The graph, which is that of the file `path`, with such convolutions on stacked maps if `open`, the sizes of dimensions that its inputs
/// leave open under a name, make it one of batches of a fixed size.
///
/// # Errors
/// [`RuntimeError::Graph`]: it is no whole ONNX model.
pub(super) fn with_stacked_maps(slim: Slim, path: &Path, open: &[(String, usize)]) -> Result<Slim, RuntimeError> {
    slim.rewritten(path, |model| stacked(model, open, CORE_CACHE))
}

/// The model with convolutions on stacked maps, as it is worth it with a core's `cache` of so many bytes; `None` if it has none for which that is so.
fn stacked(model: &[u8], open: &[(String, usize)], cache: u64) -> io::Result<Option<Vec<u8>>> {
    let model = Model::read(model)?;
    let graph = &model.graph;
    if model.opset < SPLIT_BY_INPUT || graph.has_graphs_inside() || graph.names().is_none() {
        return Ok(None);
    }
    let shapes = graph.shapes(open)?;
    let mut stacking = Stacking {
        graph,
        shapes: &shapes,
        producers: graph.producers(),
        cache,
        tall: HashSet::new(),
        only_tall: HashSet::new(),
        convolutions: 0,
        rewritten: graph.without_nodes(|_| None),
    };
    for node in &graph.nodes {
        stacking.put(node)?;
    }
    let Stacking { convolutions, rewritten, .. } = stacking;
    if convolutions == 0 {
        return Ok(None);
    }
    tracing::debug!(convolutions, "maps of a batch are convolved as one");
    Ok(Some(model.with_graph(&rewritten)))
}

/// A graph while it becomes one of stacked maps.
struct Stacking<'g> {
    graph: &'g Graph,
    shapes: &'g Shapes<'g>,
    producers: HashMap<&'g str, usize>,
    /// In bytes.
    cache: u64,
    /// The values that there are as tall maps.
    tall: HashSet<&'g str>,
    /// Those of them that there are not as they were.
    only_tall: HashSet<&'g str>,
    convolutions: usize,
    /// `GraphProto`, as far as it has come.
    rewritten: Vec<u8>,
}

/// A convolution that is to be done on stacked maps.
struct Convolution<'g> {
    node: &'g Node,
    strides: [u64; 2],
    input: Shape,
    output: Shape,
    /// How maps lie side by side; one below the other if not told.
    spacing: Option<Spacing>,
}

/// Columns of maps side by side.
struct Spacing {
    /// Of zeros between two maps.
    gap: u64,
    /// From one map of the output to the next.
    period: u64,
}

impl Spacing {
    /// For `window` to go over maps of this `width` as over each by itself.
    fn of(window: &Window, width: u64) -> Option<Self> {
        let stride = window.strides[1];
        let period = width.checked_add(window.before[1].max(window.after[1]))?.div_ceil(stride);
        Some(Self { gap: period.checked_mul(stride)? - width, period })
    }
}

impl<'g> Stacking<'g> {
    /// Appends what becomes of `node`.
    fn put(&mut self, node: &'g Node) -> io::Result<()> {
        let end = node.outputs[0].as_str();
        if let Some(convolution) = self.convolution(node)? {
            self.convolutions += 1;
            match &convolution.spacing {
                Some(spacing) => self.put_side_by_side(&convolution, spacing)?,
                None => self.put_pointwise(&convolution)?,
            }
            self.is_tall_now(end);
        } else if self.is_per_value(node) {
            let renamed = node.renamed("tall", |value| match value {
                value if value == end || self.tall.contains(value) => tall(value),
                value => value.to_owned(),
            })?;
            self.put_node(&renamed);
            self.is_tall_now(end);
        } else if let Some(map) = self.mean_of(node)? {
            self.put_mean(map, end);
        } else {
            for input in &node.inputs {
                self.unstack(input);
            }
            self.put_node(&node.bytes);
        }
        if self.graph.outputs.contains(end) {
            self.unstack(end);
        }
        Ok(())
    }

    fn is_tall_now(&mut self, value: &'g str) {
        self.tall.insert(value);
        self.only_tall.insert(value);
    }

    fn convolution(&self, node: &'g Node) -> io::Result<Option<Convolution<'g>>> {
        let convolution = |window: Window| {
            let kernels = self.graph.weights(node)?;
            let [from, weights @ ..] = &node.inputs[..] else { return None };
            let is_plain =
                window.groups == 1 && kernels.shape.get(2..) == Some(&window.kernel) && !weights.contains(from);
            let (input, output) = (self.shapes.numbers(from)?, self.shapes.numbers(&node.outputs[0])?);
            let is_batch = SEVERAL.contains(&output[0]) && input[0] == output[0];
            // Of a picture.
            let values = |shape: Shape| values_of(&shape)?.checked_div(shape[0]);
            let maps = values(input)?.saturating_add(values(output)?);
            // In bf16.
            let fills_cache = kernels.values().saturating_mul(2) >= self.cache;
            let spacing = if window.is_of_one_pixel() { None } else { Some(Spacing::of(&window, input[3])?) };
            let is_worth_it = match &spacing {
                None => {
                    // What is left out in steps is a copy that nobody else reads.
                    let is_in_steps = window.strides != [1; 2];
                    let is_at_hand = self.tall.contains(from.as_str()) || is_in_steps || self.lies_well(from);
                    fills_cache || is_at_hand && !is_well_filled(output[2] * output[3])
                }
                Some(Spacing { gap, period }) => {
                    // Those whose windows lie beside each other, as patches do, read a large map once, and were slower.
                    let overlaps = window.kernel[1] > window.strides[1];
                    let fits = *period >= output[3] && *gap <= input[3];
                    overlaps && fits && fills_cache && kernels.values() / WEIGHTS_TO_MAPS >= maps
                }
            };
            let strides = window.strides;
            (is_worth_it && is_plain && is_batch).then_some(Convolution { node, strides, input, output, spacing })
        };
        Ok(if node.operator == "Conv" { Window::of(node)?.and_then(convolution) } else { None })
    }

    /// Does `node` go over each value of tall maps by itself?
    fn is_per_value(&self, node: &Node) -> bool {
        let is_tall = |value: &String| self.tall.contains(value.as_str());
        let keeps_shape = || self.shapes.of(&node.inputs[0]) == self.shapes.of(&node.outputs[0]);
        match (node.operator.as_str(), &node.inputs[..]) {
            (operator, [map, numbers @ ..]) if UNARY.contains(&operator) => {
                is_tall(map) && !numbers.iter().any(is_tall) && keeps_shape()
            }
            (operator, [one, other]) if BINARY.contains(&operator) => {
                is_tall(one)
                    && (is_tall(other) && self.shapes.of(one) == self.shapes.of(other) || self.graph.is_scalar(other))
                    && keeps_shape()
            }
            _ => false,
        }
    }

    /// The tall map whose mean over all pixels `node` makes.
    fn mean_of(&self, node: &'g Node) -> io::Result<Option<&'g str>> {
        let Some(map) = node.inputs.first().map(String::as_str).filter(|map| self.tall.contains(map)) else {
            return Ok(None);
        };
        let is_mean = match node.operator.as_str() {
            "GlobalAveragePool" => true,
            "ReduceMean" => {
                let attributes = Attributes(node.integers()?);
                let mut axes = self.shapes.reduced_axes(node, &attributes).unwrap_or_default();
                axes.sort_unstable();
                attributes.integer("keepdims", 1) == 1 && axes == [HEIGHT as usize, WIDTH as usize]
            }
            _ => false,
        };
        Ok(is_mean.then_some(map))
    }

    /// May `value` be taken for another order of axes as it lies in memory? OpenVINO turns what several nodes read, and sums, also after an activation.
    fn lies_well(&self, value: &str) -> bool {
        let producer = |value: &str| self.producers.get(value).map(|&index| &self.graph.nodes[index]);
        let mut from = producer(value);
        if let Some(node) = from.filter(|node| UNARY.contains(&node.operator.as_str())) {
            from = node.inputs.first().and_then(|input| producer(input));
        }
        self.graph.readers(value).len() == 1 && from.is_some_and(|node| node.operator != "Add")
    }

    /// Makes the maps of `value` a tall one, if they are not yet.
    fn stack(&mut self, value: &'g str, shape: Shape) {
        let [batch, channels, height, width] = shape;
        if self.tall.contains(value) {
            return;
        }
        let to = tall(value);
        if self.lies_well(value) {
            self.put_view(value, &to, [1, batch * height, width, channels]);
        } else {
            let maps = self.put_maps(value, shape, &to);
            self.put_joined(maps, HEIGHT, &to);
        }
        self.tall.insert(value);
    }

    /// Makes `value` what it was, if there is but a tall map of it.
    fn unstack(&mut self, value: &str) {
        if !self.only_tall.remove(value) {
            return;
        }
        // It has a shape, or it would not have become tall.
        let Some(shape) = self.shapes.numbers(value) else { return };
        let [batch, channels, height, width] = shape;
        if self.lies_well(value) {
            self.put_view(&tall(value), value, [batch, height, width, channels]);
        } else {
            let maps = self.put_maps(value, shape, value);
            self.put_joined(maps, BATCH, value);
        }
    }

    /// Appends a convolution by kernels of one pixel.
    fn put_pointwise(&mut self, convolution: &Convolution<'g>) -> io::Result<()> {
        let Convolution { node: conv, strides, input, output, .. } = convolution;
        let (from, end) = (conv.inputs[0].as_str(), conv.outputs[0].as_str());
        if *strides == [1; 2] {
            self.stack(from, *input);
            return self.put_renamed(conv, &tall(from), &tall(end));
        }
        // What it steps over is left out before.
        self.unstack(from);
        let (met, met_tall) = (format!("{end}/met"), format!("{end}/met/tall"));
        let pool = with_integers(node("MaxPool", &[from], &[&met], None), "kernel_shape", &[1; 2]);
        self.put_node(&with_integers(pool, "strides", strides));
        let [batch, _, height, width] = *output;
        self.put_view(&met, &met_tall, [1, batch * height, width, input[1]]);
        let inputs: Vec<_> =
            [met_tall.as_str()].into_iter().chain(conv.inputs[1..].iter().map(String::as_str)).collect();
        let conv = node("Conv", &inputs, &[tall(end)], None);
        self.put_node(&with_integers(conv, "kernel_shape", &[1; 2]));
        Ok(())
    }

    /// Appends a convolution by larger kernels.
    fn put_side_by_side(&mut self, convolution: &Convolution<'g>, spacing: &Spacing) -> io::Result<()> {
        let Convolution { node: conv, input, output, .. } = convolution;
        let (from, end) = (conv.inputs[0].as_str(), conv.outputs[0].as_str());
        let [batch, channels, height, _] = *input;
        let (wide, convolved) = (format!("{end}/wide"), format!("{end}/convolved"));
        let Spacing { gap, period } = *spacing;
        let mut row = self.put_maps(from, *input, &wide);
        if gap > 0 {
            let (zeros, shape) = (format!("{end}/zeros"), [1, channels, height, gap]);
            let values = std::iter::repeat_n(0.0, values_of(&shape).unwrap_or(0) as usize);
            self.put_initializer(&floats(&zeros, &shape, values));
            row = row.into_iter().flat_map(|map| [map, zeros.clone()]).collect();
            row.pop();
        }
        self.put_joined(row, WIDTH, &wide);
        self.put_renamed(conv, &wide, &convolved)?;

        let between = period - output[3];
        let mut columns = [output[3], between].repeat(batch as usize);
        columns.pop();
        columns.retain(|&columns| columns > 0);
        let parts = self.put_parts(&convolved, WIDTH, &columns, &format!("{end}/after"));
        let step = if between > 0 { 2 } else { 1 };
        self.put_joined(parts.into_iter().step_by(step).collect(), HEIGHT, &tall(end));
        Ok(())
    }

    /// Appends what makes `end` the means of all pixels of each of the maps of `value`.
    fn put_mean(&mut self, value: &str, end: &str) {
        // It has a shape, or it would not have become tall.
        let Some([_, _, height, width]) = self.shapes.numbers(value) else { return };
        let column = format!("{end}/column");
        let pool =
            with_integers(node("AveragePool", &[&tall(value)], &[&column], None), "kernel_shape", &[height, width]);
        self.put_node(&with_integers(pool, "strides", &[height, width]));
        self.put_node(&transpose(&column, end, &[2, 1, 0, 3]));
    }

    /// Appends what takes `from` for another order of axes: `to`, of which this is the shape with channels last.
    fn put_view(&mut self, from: &str, to: &str, shape: Shape) {
        let [channels_last, size, list] = ["channels last", "size", "list"].map(|what| format!("{to}/{what}"));
        self.put_initializer(&sizes(&size, &shape));
        self.put_node(&transpose(from, &channels_last, &[0, 2, 3, 1]));
        self.put_node(&node("Reshape", &[&channels_last, &size], &[&list], None));
        self.put_node(&transpose(&list, to, &[0, 3, 1, 2]));
    }

    /// Appends what cuts `value`, as a tall map if it is one, into its maps, which are called after `whole`.
    fn put_maps(&mut self, value: &str, [batch, _, height, _]: Shape, whole: &str) -> Vec<String> {
        let (from, axis, length) =
            if self.tall.contains(value) { (tall(value), HEIGHT, height) } else { (value.to_owned(), BATCH, 1) };
        self.put_parts(&from, axis, &vec![length; batch as usize], whole)
    }

    /// Appends what cuts `from` into parts of these `lengths` along `axis`, which are called after `whole`.
    fn put_parts(&mut self, from: &str, axis: u64, lengths: &[u64], whole: &str) -> Vec<String> {
        let parts: Vec<_> = (0..lengths.len()).map(|index| format!("{whole}/{index}")).collect();
        let told = format!("{whole}/lengths");
        self.put_initializer(&sizes(&told, lengths));
        self.put_node(&node("Split", &[from, &told], &parts, Some(("axis", axis))));
        parts
    }

    fn put_joined(&mut self, parts: Vec<String>, axis: u64, to: &str) {
        let parts: Vec<_> = parts.iter().map(String::as_str).collect();
        self.put_node(&node("Concat", &parts, &[to], Some(("axis", axis))));
    }

    /// Appends `convolution` of a map called `from`, which makes one called `to`.
    fn put_renamed(&mut self, convolution: &Node, from: &str, to: &str) -> io::Result<()> {
        let (input, output) = (&convolution.inputs[0], &convolution.outputs[0]);
        let renamed = convolution.renamed("stacked", |value| match value {
            value if value == input => from.to_owned(),
            value if value == output => to.to_owned(),
            value => value.to_owned(),
        })?;
        self.put_node(&renamed);
        Ok(())
    }

    fn put_node(&mut self, node: &[u8]) {
        put_bytes(&mut self.rewritten, proto::graph::NODE, node);
    }

    fn put_initializer(&mut self, tensor: &[u8]) {
        put_bytes(&mut self.rewritten, proto::graph::INITIALIZER, tensor);
    }
}

/// Are nearly all pixels that are multiplied for a map of this many its own?
fn is_well_filled(pixels: u64) -> bool {
    pixels.saturating_mul(10) >= pixels.div_ceil(PIXELS_AT_ONCE).saturating_mul(PIXELS_AT_ONCE * WELL_FILLED)
}

/// The name of the tall map of `value`.
fn tall(value: &str) -> String {
    format!("{value}/tall")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::onnx::file::Dimension;
    use crate::runtime::onnx::parts::{value_info, with_integer};
    use crate::runtime::test_graphs::{count, differing_floats, differing_values, same_answers, value, write_model};

    const PICTURES: u64 = 3;
    const CHANNELS: u64 = 128;
    /// Filled by the weights of a kernel of one pixel.
    const SMALL_CACHE: u64 = CHANNELS * CHANNELS * 2;
    const ROOMY: u64 = 1 << 40;

    /// A convolution of `x` by weights named like their output and kernel.
    fn convolution(x: &str, out: &str, [kernel, stride, before, after]: [u64; 4]) -> Vec<u8> {
        let conv = node("Conv", &[x, &format!("{kernel}x{kernel}"), "bias"], &[out], None);
        let conv = with_integers(conv, "kernel_shape", &[kernel; 2]);
        let conv = with_integers(conv, "strides", &[stride; 2]);
        with_integers(conv, "pads", &[before, before, after, after])
    }

    /// A convolution of each channel of `x` by itself.
    fn of_channels(x: &str, out: &str) -> Vec<u8> {
        let conv = node("Conv", &[x, "of channels"], &[out], None);
        let conv = with_integers(conv, "kernel_shape", &[3; 2]);
        let conv = with_integer(conv, "group", CHANNELS);
        with_integers(conv, "pads", &[1; 4])
    }

    /// The end of a ResNet, from maps of 4 × 4 to rows of values of maps of 2 × 2.
    fn stage() -> Vec<Vec<u8>> {
        vec![
            convolution("x", "first", [1, 1, 0, 0]),
            node("Relu", &["first"], &["activated"], None),
            convolution("activated", "halved", [3, 2, 1, 1]),
            node("Relu", &["halved"], &["activated again"], None),
            convolution("activated again", "asymmetric", [3, 1, 0, 2]),
            convolution("x", "shortcut", [1, 2, 0, 0]),
            node("Add", &["asymmetric", "shortcut"], &["sum"], None),
            node("Flatten", &["sum"], &["out"], None),
        ]
    }

    /// The end of an EfficientNet.
    fn blocks() -> Vec<Vec<u8>> {
        vec![
            of_channels("x", "convolved"),
            node("Relu", &["convolved"], &["activated"], None),
            convolution("activated", "projected", [1, 1, 0, 0]),
            convolution("projected", "expanded", [1, 1, 0, 0]),
            node("Sigmoid", &["expanded"], &["gate"], None),
            node("Mul", &["expanded", "gate"], &["gated"], None),
            of_channels("gated", "convolved again"),
            node("Clip", &["convolved again", "zero"], &["clipped"], None),
            convolution("clipped", "projected again", [1, 1, 0, 0]),
            node("Add", &["projected again", "projected"], &["sum"], None),
            node("Mul", &["sum", "scale"], &["scaled"], None),
            node("GlobalAveragePool", &["scaled"], &["means"], None),
            node("Flatten", &["means"], &["out"], None),
        ]
    }

    /// Writes a model of these nodes, for maps of so many pixels a side, into `folder`, and reads it without its weights.
    fn model(folder: &Path, nodes: &[Vec<u8>], [batch, side]: [u64; 2], opset: u64) -> Slim {
        let tensors = [
            differing_floats("1x1", &[CHANNELS, CHANNELS, 1, 1]),
            differing_floats("3x3", &[CHANNELS, CHANNELS, 3, 3]),
            differing_floats("of channels", &[CHANNELS, 1, 3, 3]),
            differing_floats("bias", &[CHANNELS]),
            floats("zero", &[], [0.0].into_iter()),
            floats("scale", &[], [0.3].into_iter()),
            differing_floats("factors", &[CHANNELS, 1, 1]),
        ];
        let out = value_info("out", proto::tensor::FLOAT, &[]);
        let x = value("x", &[batch, CHANNELS, side, side]);
        write_model(folder, nodes, &tensors, &[x], &[out], opset)
    }

    /// The numbers of these operators in what the model becomes, which answers the same.
    fn counts<const N: usize>(nodes: &[Vec<u8>], side: u64, cache: u64, operators: [&str; N]) -> [usize; N] {
        let folder = tempfile::tempdir().unwrap();
        let slim = model(folder.path(), nodes, [PICTURES, side], 17);
        let bytes = stacked(&slim.bytes, &[], cache).unwrap().unwrap();
        let x = differing_values(&[PICTURES, CHANNELS, side, side].map(|size| size as usize));
        let graph = same_answers(folder.path(), &bytes, ("x", x), "out");
        operators.map(|operator| count(&graph, operator))
    }

    #[test]
    fn maps_side_by_side_are_convolved_to_the_same() {
        let operators = ["Conv", "Concat", "Split", "Reshape", "MaxPool"];
        // The pictures and the sum are copied, as OpenVINO would turn them.
        assert_eq!(counts(&stage(), 4, SMALL_CACHE, operators), [4, 6, 6, 1, 1]);
        let mut nodes = stage();
        nodes.truncate(5);
        nodes.push(node("Flatten", &["asymmetric"], &["out"], None));
        assert_eq!(counts(&nodes, 4, SMALL_CACHE, operators), [3, 5, 5, 1, 0]);
    }

    #[test]
    fn small_maps_go_through_kernels_of_one_pixel_as_they_lie() {
        let operators = ["Conv", "Concat", "Reshape", "AveragePool", "GlobalAveragePool"];
        assert_eq!(counts(&blocks(), 7, ROOMY, operators), [5, 0, 3, 1, 0], "in, out and in again");
        let with = |from: usize, others: &[Vec<u8>]| {
            let mut nodes = blocks();
            nodes.splice(from..from + others.len(), others.iter().cloned());
            counts(&nodes, 7, ROOMY, operators)
        };
        let mean = |axes: &[u64]| with_integers(node("ReduceMean", &["scaled"], &["means"], None), "axes", axes);
        assert_eq!(with(11, &[mean(&[2, 3])]), [5, 0, 3, 1, 0]);
        assert_eq!(with(11, &[mean(&[3])]), [5, 0, 4, 0, 0], "another mean is of the maps as they were");
        let factors = node("Mul", &["sum", "factors"], &["scaled"], None);
        assert_eq!(with(10, &[factors]), [5, 1, 3, 0, 1], "other factors than one number");
    }

    #[test]
    fn an_answer_is_what_it_was() {
        let nodes = [
            of_channels("x", "convolved"),
            convolution("convolved", "projected", [1, 1, 0, 0]),
            node("Flatten", &["projected"], &["out"], None),
        ];
        let folder = tempfile::tempdir().unwrap();
        let tensors = [
            differing_floats("1x1", &[CHANNELS, CHANNELS, 1, 1]),
            differing_floats("of channels", &[CHANNELS, 1, 3, 3]),
            differing_floats("bias", &[CHANNELS]),
        ];
        let [x, map] = ["x", "projected"].map(|name| value(name, &[PICTURES, CHANNELS, 7, 7]));
        let out = value_info("out", proto::tensor::FLOAT, &[Dimension::Nameless, Dimension::Nameless]);
        let slim = write_model(folder.path(), &nodes, &tensors, &[x], &[map, out], 17);
        let bytes = stacked(&slim.bytes, &[], ROOMY).unwrap().unwrap();
        let x = differing_values(&[PICTURES, CHANNELS, 7, 7].map(|size| size as usize));
        let graph = same_answers(folder.path(), &bytes, ("x", x), "out");
        assert_eq!(graph.readers("projected").len(), 1);
    }

    #[test]
    fn what_would_gain_nothing_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let count_of = |nodes: &[Vec<u8>], maps: [u64; 2], opset, cache| {
            let slim = model(folder.path(), nodes, maps, opset);
            let bytes = stacked(&slim.bytes, &[], cache).unwrap()?;
            let graph = Model::read(&bytes).unwrap().graph;
            let is_stacked = |end: &str| graph.producers().keys().any(|value| value.starts_with(&format!("{end}/")));
            let ends =
                ["first", "halved", "asymmetric", "shortcut", "conv", "projected", "expanded", "projected again"];
            Some(ends.into_iter().filter(|end| is_stacked(end)).count())
        };
        assert_eq!(count_of(&stage(), [PICTURES, 4], 17, SMALL_CACHE), Some(4));
        assert_eq!(
            count_of(&stage(), [PICTURES, 4], 17, SMALL_CACHE + 1),
            Some(3),
            "that of well filled maps fits in the cache"
        );
        assert_eq!(count_of(&stage()[..1], [PICTURES, 4], 17, CORE_CACHE), None);
        assert_eq!(count_of(&stage(), [1, 4], 17, SMALL_CACHE), None, "there is but one map");
        assert_eq!(count_of(&stage(), [PICTURES, 4], 12, SMALL_CACHE), None, "Split has its sizes as an attribute");
        assert_eq!(count_of(&blocks(), [PICTURES, 7], 17, ROOMY), Some(3));
        assert_eq!(count_of(&blocks(), [PICTURES, 4], 17, ROOMY), None, "16 pixels are well filled");
        let alone = |conv: Vec<u8>| {
            count_of(&[conv, node("Flatten", &["conv"], &["out"], None)], [PICTURES, 4], 17, SMALL_CACHE)
        };
        assert_eq!(alone(convolution("x", "conv", [3, 2, 1, 1])), Some(1));
        assert_eq!(alone(convolution("x", "conv", [3, 3, 1, 1])), None, "patches");
        let grouped = with_integer(convolution("x", "conv", [3, 2, 1, 1]), "group", 2);
        assert_eq!(alone(grouped), None, "each group has its own weights");
        let unknown = [node("Unheard", &["x"], &["y"], None), convolution("y", "out", [3, 2, 1, 1])];
        assert_eq!(count_of(&unknown, [PICTURES, 4], 17, SMALL_CACHE), None, "the map's shape is not known");
        let with_pads = |pads| convolution("x", "conv", [1, 1, pads, pads]);
        assert_eq!(alone(with_pads(0)), Some(1));
        assert_eq!(alone(with_pads(1)), None, "there are zeros around each map");
        let dilated = |by| with_integers(convolution("x", "conv", [3, 1, by, by]), "dilations", &[by; 2]);
        assert_eq!(alone(dilated(4)), Some(1));
        assert_eq!(alone(dilated(5)), None, "more zeros than pixels");
        let other = with_integers(node("Conv", &["x", "3x3"], &["conv"], None), "kernel_shape", &[3, 4]);
        assert_eq!(alone(other), None, "other kernels than it tells");
    }
}
