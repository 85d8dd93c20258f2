//! Pictures that a graph is given as blocks of pixels: all values of a block side by side, as one pixel of many channels. The first convolution of a
//! graph goes over its pictures in steps of 2 to 32 pixels, and reads three channels, of which OpenVINO's kernels multiply 16 or 32 at once. Where blocks
//! are as large as its steps, it is one of steps of one over blocks, whose channels fill these. Patches that neither overlap nor leave
//! some out, as a transformer cuts a picture, are one block each, and a row that is multiplied by a matrix. Channels come last, as OpenVINO has them in
//! memory. Sums are of the same products, and of some zeros.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::slice;

use ndarray::{ArrayD, indices};

use super::byte_pixels::Pictures;
use super::weights_in_file::Slim;
use crate::runtime::onnx::file::Dimension;
use crate::runtime::onnx::graph::{Graph, Model, Node, Tensor};
use crate::runtime::onnx::parts::{
    DOMAIN, floats, node, sizes, transpose, transposed_product, value_info, with_integers,
};
use crate::runtime::onnx::protobuf::put_bytes;
use crate::runtime::onnx::shapes::{Shapes, numbers};
use crate::runtime::onnx::window::Window;
use crate::runtime::{RuntimeError, onnx::proto};

/// How a graph takes pictures as blocks of pixels: as floats, `[batch, rows of blocks, blocks in a row, values of a block]`. The values of a
/// block are all its reds, row by row, then all its greens and blues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PixelBlocks {
    /// Of a block, in pixels.
    pub height: usize,
    /// Of a block, in pixels.
    pub width: usize,
    /// Rows of blocks of a picture.
    pub rows: usize,
    /// Blocks in each.
    pub columns: usize,
    /// Rows of zeros before those of a picture. After them come as many as the input has more.
    pub above: usize,
    /// Blocks of zeros before those of a row. After them come as many as the input has more.
    pub before: usize,
}

/// The input of such a graph.
pub(in crate::runtime) const PIXEL_BLOCKS: &str = "pixel_blocks";

/// The first version of ONNX whose `Add` stretches vectors.
const BROADCASTING: u64 = 7;

/// Patches of smaller sides are many, and short as rows.
const LEAST_SIDE: u64 = 8;

/// A kernel that covers some blocks in part is filled up with zeros. There are at most so many values for each that was there before.
const MOST_VALUES: u64 = 2;

/// Values of a pixel.
const COLORS: u64 = 3;

/// The graph, which is that of the file `path`, with its pictures as blocks of pixels, if a convolution in steps is all that reads them. `open` are the
/// sizes of dimensions that its inputs leave open under a name.
///
/// # Errors
/// [`RuntimeError::Graph`]: it is no whole ONNX model, or the file cannot be read.
pub(super) fn with_pixel_blocks(slim: Slim, path: &Path, open: &[(String, usize)]) -> Result<Slim, RuntimeError> {
    let (weights, mut blocks) = (slim.file.clone(), None);
    let slim = slim.rewritten(path, |model| {
        let (model, found) = on_blocks(model, &weights, open)?.unzip();
        blocks = found;
        Ok(model)
    })?;
    Ok(Slim { blocks, ..slim })
}

/// The model, whose weights are in the file `weights`, and how it takes pictures.
fn on_blocks(model: &[u8], weights: &Path, open: &[(String, usize)]) -> io::Result<Option<(Vec<u8>, PixelBlocks)>> {
    let mut model = Model::read(model)?;
    let graph = &model.graph;
    let is_taken = graph.initializer(PIXEL_BLOCKS).is_some() || graph.inputs.contains_key(PIXEL_BLOCKS);
    if model.opset < BROADCASTING || graph.has_graphs_inside() || is_taken {
        return Ok(None);
    }
    let Some(stem) = graph.stem(&graph.shapes(open)?)? else { return Ok(None) };
    let blocks = stem.blocks();
    tracing::debug!(height = blocks.height, width = blocks.width, "pictures are given as blocks of pixels");
    let (rewritten, has_product) = (stem.put_into(graph, weights)?, stem.is_of_rows());
    if has_product {
        model.import(DOMAIN);
    }
    Ok(Some((model.with_graph(&rewritten), blocks)))
}

/// The first convolution of a graph, which alone reads the pictures.
struct Stem<'g> {
    pictures: Pictures,
    /// The index of its node.
    node: usize,
    kernels: &'g Tensor,
    /// Of height and width.
    sides: [Side; 2],
    /// The nodes between the pictures and the convolution, which it does without.
    casts: Vec<usize>,
    /// The nodes that ask for the shape of the pictures.
    shapes: Vec<(usize, Asked)>,
}

/// What a node asks for of the shape of pictures.
enum Asked {
    Whole,
    /// How many they are, as a list of one number.
    Number,
}

impl Asked {
    /// What `node` asks for, if nothing else.
    fn by(node: &Node) -> io::Result<Option<Self>> {
        if node.operator != "Shape" {
            return Ok(None);
        }
        let mut part = node.integers()?;
        let (start, end) = (part.remove("start"), part.remove("end"));
        let is_from_first = start.is_none_or(|start| start == [0]) && part.is_empty();
        Ok(match end.as_deref() {
            None => Some(Self::Whole),
            Some([1]) => Some(Self::Number),
            Some(_) => None,
        }
        .filter(|_| is_from_first))
    }
}

/// One side of pictures, and of the kernels that go over them.
struct Side {
    /// Of a picture, in pixels.
    length: u64,
    /// Pixels from one kernel to the next, which is the side of a block.
    step: u64,
    /// Of a kernel, in pixels.
    kernel: u64,
    /// Pixels in the first block that lie before the kernel.
    skipped: u64,
    /// Blocks that a kernel covers, if only in part.
    covered: u64,
    /// Blocks of zeros before and after a picture.
    around: [u64; 2],
}

impl Side {
    /// Of pictures of `length` pixels under `window`, if it can be told in blocks.
    fn of(window: &Window, axis: usize, length: u64) -> Option<Self> {
        let (step, kernel, pixels_before) = (window.strides[axis], window.kernel[axis], window.before[axis]);
        if length == 0 || !length.is_multiple_of(step) {
            return None;
        }
        let steps = window.output(axis, length)?;
        let before = pixels_before.div_ceil(step);
        let skipped = before * step - pixels_before;
        let covered = (skipped + kernel).div_ceil(step);
        let after = (steps + covered).checked_sub(1 + before + length / step)?;
        Some(Self { length, step, kernel, skipped, covered, around: [before, after] })
    }

    fn blocks(&self) -> u64 {
        self.length / self.step
    }

    /// The block, and the place in it, of a pixel of a kernel.
    fn within(&self, pixel: usize) -> (usize, usize) {
        let (at, step) = (self.skipped as usize + pixel, self.step as usize);
        (at / step, at % step)
    }

    /// Is each of its kernels one whole block?
    fn is_of_patches(&self) -> bool {
        self.kernel == self.step && self.skipped == 0 && self.around == [0, 0]
    }
}

impl Graph {
    fn stem(&self, shapes: &Shapes<'_>) -> io::Result<Option<Stem<'_>>> {
        let pictures = self.pictures().filter(|pictures| pictures.element_type == proto::tensor::FLOAT);
        let Some(pictures) = pictures else { return Ok(None) };
        let (mut value, mut casts, mut asking) = (&pictures.name, Vec::new(), Vec::new());
        loop {
            if self.outputs.contains(value) {
                return Ok(None);
            }
            let mut others = Vec::new();
            for &reader in self.readers(value) {
                match Asked::by(&self.nodes[reader])? {
                    Some(asked) => asking.push((reader, asked)),
                    None => others.push(reader),
                }
            }
            let &[reader] = &others[..] else { return Ok(None) };
            let node = &self.nodes[reader];
            match node.operator.as_str() {
                "Conv" if node.inputs[0] == *value => {
                    let Some(window) = Window::of(node)? else { return Ok(None) };
                    let picture = shapes.of(&pictures.name).and_then(|shape| numbers(shape.get(1..)?)?.try_into().ok());
                    let found = picture.and_then(|picture| self.kernels_and_sides(node, &window, picture));
                    let stem =
                        |(kernels, sides)| Stem { pictures, node: reader, kernels, sides, casts, shapes: asking };
                    return Ok(found.map(stem));
                }
                // To floats, which they are.
                "Cast"
                    if node.integers()?.get("to").is_some_and(|to| to[..] == [proto::tensor::FLOAT])
                        && !casts.contains(&reader) =>
                {
                    casts.push(reader);
                    value = &node.outputs[0];
                }
                _ => return Ok(None),
            }
        }
    }

    /// The kernels of `convolution`, and its sides, where the picture that it reads has such a shape.
    fn kernels_and_sides(
        &self,
        convolution: &Node,
        window: &Window,
        [colors, height, width]: [u64; 3],
    ) -> Option<(&Tensor, [Side; 2])> {
        let kernels = self.own_weights(convolution)?;
        let is_told = kernels.shape.get(1..) == Some(&[colors, window.kernel[0], window.kernel[1]]);
        if !is_told || !window.is_dense() {
            return None;
        }
        let sides = [Side::of(window, 0, height)?, Side::of(window, 1, width)?];
        let [before, after] = [|side: &Side| side.kernel, |side: &Side| side.covered * side.step]
            .map(|length| sides.iter().map(length).product::<u64>());
        let is_worth_it = sides.iter().any(|side| side.step > 1) && after <= before * MOST_VALUES;
        is_worth_it.then_some((kernels, sides))
    }
}

impl Stem<'_> {
    /// `GraphProto` of `graph`, whose weights are in the file `weights`, with blocks.
    fn put_into(&self, graph: &Graph, weights: &Path) -> io::Result<Vec<u8>> {
        let [rows, columns] = self.sides.each_ref().map(|side| side.blocks() + side.around.iter().sum::<u64>());
        let mut rewritten = graph.without_input(&self.pictures.name)?;
        let blocks = [rows, columns, self.values()].map(Dimension::Fixed);
        let blocks = [slice::from_ref(&self.pictures.batch), &blocks].concat();
        let input = value_info(PIXEL_BLOCKS, proto::tensor::FLOAT, &blocks);
        put_bytes(&mut rewritten, proto::graph::INPUT, &input);
        for tensor in &graph.initializers {
            let kernels = if tensor.name == self.kernels.name { Some(self.kernels_on_blocks(weights)?) } else { None };
            put_bytes(&mut rewritten, proto::graph::INITIALIZER, kernels.as_ref().unwrap_or(&tensor.bytes));
        }
        for (index, node) in graph.nodes.iter().enumerate() {
            if index == self.node {
                self.put(node, &mut rewritten);
            } else if let Some((_, asked)) = self.shapes.iter().find(|(asking, _)| *asking == index) {
                self.put_shape(&node.outputs[0], asked, &mut rewritten);
            } else if !self.casts.contains(&index) {
                put_bytes(&mut rewritten, proto::graph::NODE, &node.bytes);
            }
        }
        Ok(rewritten)
    }

    fn blocks(&self) -> PixelBlocks {
        let [height, width] = &self.sides;
        PixelBlocks {
            height: height.step as usize,
            width: width.step as usize,
            rows: height.blocks() as usize,
            columns: width.blocks() as usize,
            above: height.around[0] as usize,
            before: width.around[0] as usize,
        }
    }

    /// Is each block a patch of its own, and long enough as a row?
    fn is_of_rows(&self) -> bool {
        self.is_of_patches() && self.sides.iter().all(|side| side.step >= LEAST_SIDE)
    }

    fn is_of_patches(&self) -> bool {
        self.sides.iter().all(Side::is_of_patches)
    }

    /// Values of a block.
    fn values(&self) -> u64 {
        COLORS * self.sides.iter().map(|side| side.step).product::<u64>()
    }

    /// `TensorProto` of the kernels, for blocks. Those of patches are the same values.
    fn kernels_on_blocks(&self, weights: &Path) -> io::Result<Vec<u8>> {
        let [height, width] = &self.sides;
        let (kernels, values) = (self.kernels, self.values());
        let channels = kernels.shape[0];
        if self.is_of_patches() {
            let shape = [channels, values, 1, 1];
            let shape = if self.is_of_rows() { &shape[..2] } else { &shape };
            return kernels.reshaped(shape).ok_or(io::ErrorKind::InvalidData.into());
        }
        let place = kernels.place.as_ref().ok_or(io::ErrorKind::InvalidData)?;
        let mut bytes = vec![0; usize::try_from(kernels.values() * 4).map_err(|_| io::ErrorKind::InvalidData)?];
        File::open(weights)?.read_exact_at(&mut bytes, place.offset)?;
        let shape = [channels, values, height.covered, width.covered];
        let mut on_blocks = ArrayD::<f32>::zeros(shape.map(|size| size as usize).to_vec());
        let kernel = [channels, COLORS, height.kernel, width.kernel].map(|size| size as usize);
        let floats_before = bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes));
        for ((channel, color, row, column), value) in indices(kernel).into_iter().zip(floats_before) {
            let [(block_row, row), (block_column, column)] = [height.within(row), width.within(column)];
            let value_of_block = (color * height.step as usize + row) * width.step as usize + column;
            on_blocks[[channel, value_of_block, block_row, block_column]] = value;
        }
        Ok(floats(&kernels.name, &shape, on_blocks.into_iter()))
    }

    /// Appends what becomes of the convolution to a `GraphProto`.
    fn put(&self, convolution: &Node, graph: &mut Vec<u8>) {
        let end = convolution.outputs[0].as_str();
        let bias = convolution.inputs.get(2).filter(|bias| !bias.is_empty());
        if self.is_of_rows() {
            self.put_rows(end, bias, graph);
            return;
        }
        let planes = format!("{PIXEL_BLOCKS}/planes");
        put_bytes(graph, proto::graph::NODE, &transpose(PIXEL_BLOCKS, &planes, &[0, 3, 1, 2]));
        let inputs: Vec<&str> = [&planes, &self.kernels.name].into_iter().chain(bias).map(String::as_str).collect();
        let kernel = self.sides.each_ref().map(|side| side.covered);
        // Zeros around a picture are in it, which OpenVINO's kernels are faster with than with adding them.
        let conv = with_integers(node("Conv", &inputs, &[end], None), "kernel_shape", &kernel);
        put_bytes(graph, proto::graph::NODE, &conv);
    }

    /// Appends the product of the blocks as rows, which has the name `end` as a map.
    fn put_rows(&self, end: &str, bias: Option<&String>, graph: &mut Vec<u8>) {
        let [rows, columns] = self.sides.each_ref().map(Side::blocks);
        let name = |what: &str| format!("{end}/{what}");
        let shape_name = |what: &str| format!("{end}/{what} shape");
        // 0: as many pictures as there are.
        let list = [0, rows * columns, self.values()];
        for (what, shape) in [("list", &list[..]), ("map", &[0, self.kernels.shape[0], rows, columns])] {
            put_bytes(graph, proto::graph::INITIALIZER, &sizes(&shape_name(what), shape));
        }
        let reshape = |from: &str, what: &str, to: &str| node("Reshape", &[from, &shape_name(what)], &[to], None);
        let mut nodes = vec![
            reshape(PIXEL_BLOCKS, "list", &name("rows")),
            transposed_product(&name("rows"), &self.kernels.name, &name("product")),
        ];
        let mut product = name("product");
        if let Some(bias) = bias {
            let sum = name("sum");
            nodes.push(node("Add", &[&product, bias], &[&sum], None));
            product = sum;
        }
        nodes.push(transpose(&product, &name("channels"), &[0, 2, 1]));
        nodes.push(reshape(&name("channels"), "map", end));
        for bytes in nodes {
            put_bytes(graph, proto::graph::NODE, &bytes);
        }
    }

    /// Appends what makes `shape`, what is asked for of that of the pictures, to a `GraphProto`.
    fn put_shape(&self, shape: &str, asked: &Asked, graph: &mut Vec<u8>) {
        let [blocks, first, batch, picture] =
            ["blocks", "first", "batch", "picture"].map(|what| format!("{shape}/{what}"));
        let number = if let Asked::Number = asked { shape } else { &batch };
        put_bytes(graph, proto::graph::INITIALIZER, &sizes(&first, &[0]));
        let mut nodes = vec![
            node("Shape", &[PIXEL_BLOCKS], &[&blocks], None),
            node("Gather", &[&blocks, &first], &[number], Some(("axis", 0))),
        ];
        if let Asked::Whole = asked {
            let [height, width] = &self.sides;
            let sizes = sizes(&picture, &[COLORS, height.length, width.length]);
            put_bytes(graph, proto::graph::INITIALIZER, &sizes);
            nodes.push(node("Concat", &[&batch, &picture], &[shape], Some(("axis", 0))));
        }
        for bytes in nodes {
            put_bytes(graph, proto::graph::NODE, &bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, Array4, Ix4};

    use super::*;
    use crate::runtime::onnx::parts::{FUSED_PRODUCT, with_integer};
    use crate::runtime::test_graphs::{count, differing_floats, differing_values, write_model};
    use crate::runtime::{Graph as OpenGraph, Runtime, SessionOptions, Tensor as InputTensor};

    const CHANNELS: u64 = 20;
    const HEIGHT: u64 = 24;
    const WIDTH: u64 = 20;

    /// A convolution with `kernel`, `strides` and `pads`, of `inputs`.
    fn convolution(inputs: &[&str], kernel: [u64; 2], strides: [u64; 2], pads: [u64; 4]) -> Vec<u8> {
        let conv = with_integers(node("Conv", inputs, &["map"], None), "kernel_shape", &kernel);
        with_integers(with_integers(conv, "strides", &strides), "pads", &pads)
    }

    fn flat() -> Vec<u8> {
        node("Flatten", &["map"], &["out"], None)
    }

    /// A model of these nodes and such kernels, on blocks.
    fn on_blocks_of(folder: &Path, nodes: &[Vec<u8>], kernel: [u64; 2]) -> Option<(Vec<u8>, PixelBlocks)> {
        written(folder, nodes, kernel, [HEIGHT, WIDTH], 17)
    }

    fn written(
        folder: &Path,
        nodes: &[Vec<u8>],
        kernel: [u64; 2],
        [height, width]: [u64; 2],
        opset: u64,
    ) -> Option<(Vec<u8>, PixelBlocks)> {
        let kernels = [CHANNELS, 3, kernel[0], kernel[1]];
        let tensors = [differing_floats("kernels", &kernels), differing_floats("bias", &[CHANNELS])];
        let fixed = [3, height, width].map(Dimension::Fixed);
        let dimensions = [vec![Dimension::Named("batch".to_owned())], fixed.to_vec()].concat();
        let x = value_info("x", proto::tensor::FLOAT, &dimensions);
        let out = value_info("out", proto::tensor::FLOAT, &[]);
        let slim = write_model(folder, nodes, &tensors, &[x], &[out], opset);
        on_blocks(&slim.bytes, &slim.file, &[]).unwrap()
    }

    /// The pictures `x` as an input of this shape takes them.
    fn as_blocks(x: &ArrayD<f32>, shape: &[Option<usize>], blocks: PixelBlocks) -> ArrayD<f32> {
        let shape: Vec<usize> = [Some(x.shape()[0])].iter().chain(&shape[1..]).map(|size| size.unwrap()).collect();
        let mut all = Array4::zeros([shape[0], shape[1], shape[2], shape[3]]);
        for ((picture, color, row, column), &value) in x.view().into_dimensionality::<Ix4>().unwrap().indexed_iter() {
            let value_of_block = (color * blocks.height + row % blocks.height) * blocks.width + column % blocks.width;
            let (block_row, block) = (blocks.above + row / blocks.height, blocks.before + column / blocks.width);
            all[[picture, block_row, block, value_of_block]] = value;
        }
        all.into_dyn()
    }

    /// Runs the model in `folder` on pictures, and what it was rewritten to on blocks of them, whose answers are to be the same; returns the graph
    /// of the latter.
    fn same_answers(folder: &Path, (model, blocks): &(Vec<u8>, PixelBlocks)) -> Graph {
        std::fs::write(folder.join("blocks.onnx"), model).unwrap();
        let options = SessionOptions::reference(8, 2, folder.to_owned());
        let runtime = Runtime::load(None).unwrap();
        let open = |name: &str| OpenGraph::open(&runtime, &folder.join(name), &options).unwrap();
        let x = differing_values(&[2, 3, HEIGHT as usize, WIDTH as usize]);
        let graph = open("blocks.onnx");
        let [input] = graph.inputs() else { panic!("other inputs") };
        let on_blocks = as_blocks(&x, &input.shape, *blocks);
        let after = graph.run(&[(PIXEL_BLOCKS, InputTensor::F32(on_blocks.into()))], "out").unwrap();
        let before = open("model.onnx").run(&[("x", InputTensor::F32(x.into()))], "out").unwrap();
        let largest = |values: &Array2<f32>| values.iter().fold(0_f32, |largest, value| largest.max(value.abs()));
        assert!(largest(&(&before - &after)) < 1e-5 * largest(&before) && largest(&before) > 0.1, "{before} {after}");
        Model::read(model).unwrap().graph
    }

    #[test]
    fn convolutions_in_steps_are_the_same_on_blocks() {
        let folder = tempfile::tempdir().unwrap();
        for (kernel, strides, pads, around) in [
            ([3, 3], [2, 2], [0, 0, 1, 1], [0, 0]),
            ([3, 3], [2, 2], [1, 1, 1, 1], [1, 1]),
            ([7, 7], [2, 2], [3, 3, 3, 3], [2, 2]),
            ([8, 3], [4, 2], [2, 0, 2, 1], [1, 0]),
            ([4, 4], [4, 4], [0, 0, 0, 0], [0, 0]),
            ([3, 3], [1, 2], [1, 1, 1, 1], [1, 1]),
        ] {
            for inputs in [&["x", "kernels", "bias"][..], &["x", "kernels"], &["x", "kernels", ""]] {
                let nodes = [convolution(inputs, kernel, strides, pads), flat()];
                let model = on_blocks_of(folder.path(), &nodes, kernel).unwrap();
                let [height, width] = strides.map(|step| step as usize);
                let (rows, columns) = (HEIGHT as usize / height, WIDTH as usize / width);
                let [above, before] = around;
                assert_eq!(model.1, PixelBlocks { height, width, rows, columns, above, before });
                let graph = same_answers(folder.path(), &model);
                assert_eq!(["Conv", FUSED_PRODUCT].map(|operator| count(&graph, operator)), [1, 0]);
            }
        }
    }

    #[test]
    fn patches_are_rows() {
        let folder = tempfile::tempdir().unwrap();
        for (inputs, sums) in [(&["x", "kernels", "bias"][..], 1), (&["x", "kernels"], 0), (&["x", "kernels", ""], 0)] {
            let nodes = [convolution(inputs, [8, 10], [8, 10], [0; 4]), flat()];
            let model = on_blocks_of(folder.path(), &nodes, [8, 10]).unwrap();
            let graph = same_answers(folder.path(), &model);
            let counts = ["Conv", FUSED_PRODUCT, "Add"].map(|operator| count(&graph, operator));
            assert_eq!(counts, [0, 1, sums]);
        }
    }

    #[test]
    fn casts_are_passed_over_and_who_asks_for_the_shape_is_told_that_of_pictures() {
        let folder = tempfile::tempdir().unwrap();
        let nodes = [
            with_integer(node("Cast", &["x"], &["floats"], None), "to", proto::tensor::FLOAT),
            convolution(&["floats", "kernels"], [3, 3], [2, 2], [0, 0, 1, 1]),
            node("Shape", &["x"], &["shape"], None),
            node("Shape", &["floats"], &["same shape"], None),
            with_integer(node("Shape", &["x"], &["number"], None), "end", 1),
            node("Mul", &["shape", "same shape"], &["squares"], None),
            node("Mul", &["squares", "number"], &["sizes"], None),
            with_integer(node("Cast", &["sizes"], &["numbers"], None), "to", proto::tensor::FLOAT),
            node("ReduceSum", &["numbers"], &["sum"], None),
            node("Mul", &["map", "sum"], &["times"], None),
            node("Flatten", &["times"], &["out"], None),
        ];
        let model = on_blocks_of(folder.path(), &nodes, [3, 3]).unwrap();
        let graph = same_answers(folder.path(), &model);
        assert_eq!(count(&graph, "Cast"), 1);
    }

    #[test]
    fn what_blocks_would_not_pay_for_or_cannot_express_stays() {
        let folder = tempfile::tempdir().unwrap();
        let inputs = ["x", "kernels"];
        let conv = |kernel, strides, pads| convolution(&inputs, kernel, strides, pads);
        let stays = |first: Vec<u8>, kernel| on_blocks_of(folder.path(), &[first, flat()], kernel).is_none();
        let usual = || conv([3, 3], [2, 2], [0, 0, 1, 1]);
        assert!(!stays(usual(), [3, 3]));
        assert!(stays(conv([3, 3], [1, 1], [1; 4]), [3, 3]), "its steps are of one pixel");
        assert!(stays(conv([2, 3], [4, 4], [0; 4]), [2, 3]), "more zeros than kernels");
        assert!(stays(conv([7, 7], [5, 5], [0; 4]), [7, 7]), "a block is not whole");
        assert!(stays(conv([2, 2], [2, 2], [0, 0, 0, 0]), [3, 3]), "other kernels than it tells");
        assert!(stays(with_integers(usual(), "dilations", &[1, 2]), [3, 3]));
        assert!(stays(with_integers(usual(), "group", &[2]), [3, 3]));
        assert!(stays(convolution(&["kernels", "x"], [3, 3], [2, 2], [0; 4]), [3, 3]), "pictures as kernels");
    }

    #[test]
    fn pictures_that_others_read_stay_and_kernels_that_others_read_and_old_graphs() {
        let folder = tempfile::tempdir().unwrap();
        let usual = [convolution(&["x", "kernels"], [3, 3], [2, 2], [0, 0, 1, 1]), flat()];
        let stays = |nodes: &[Vec<u8>], sides, opset| written(folder.path(), nodes, [3, 3], sides, opset).is_none();
        let with = |node: Vec<u8>| [&usual[..], &[node]].concat();
        assert!(!stays(&usual, [HEIGHT, WIDTH], 17) && stays(&usual, [HEIGHT, WIDTH], 6));
        assert!(stays(&usual, [0, 0], 17));
        assert!(stays(&usual, [HEIGHT + 1, WIDTH], 17));
        assert!(stays(&with(node("Relu", &["x"], &["again"], None)), [HEIGHT, WIDTH], 17));
        assert!(stays(&with(node("Relu", &["kernels"], &["again"], None)), [HEIGHT, WIDTH], 17));
        let part = with_integer(node("Shape", &["x"], &["part"], None), "start", 2);
        assert!(stays(&with(part), [HEIGHT, WIDTH], 17));
        let halves = with_integer(node("Cast", &["x"], &["halves"], None), "to", proto::tensor::FLOAT16);
        assert!(stays(&[halves, convolution(&["halves", "kernels"], [3, 3], [2, 2], [0; 4])], [HEIGHT, WIDTH], 17));
        let answer = with_integer(node("Cast", &["x"], &["out"], None), "to", proto::tensor::FLOAT);
        let conv = convolution(&["out", "kernels"], [3, 3], [2, 2], [0, 0, 1, 1]);
        assert!(stays(&[answer, conv], [HEIGHT, WIDTH], 17), "the pictures are an output");
        let circle = with_integer(node("Cast", &["x"], &["x"], None), "to", proto::tensor::FLOAT);
        assert!(stays(&[circle], [HEIGHT, WIDTH], 17));
    }
}
