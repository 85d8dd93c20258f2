//! The patches that a transformer cuts a picture into as rows, which are multiplied by a matrix. Graphs convolve them, with kernels as large as
//! the steps between them; OpenVINO's kernels go through a picture of three channels pixel by pixel for that, and take twice as long as
//! putting the patches one after the other and multiplying. Sums are of the same products.

use std::io;
use std::path::Path;

use super::onnx_graph::{Graph, Model, Node, Tensor};
use super::onnx_parts::{node, sizes, transpose};
use super::protobuf::put_bytes;
use super::shapes::{Shapes, numbers};
use super::transposed::{DOMAIN, transposed_product};
use super::weights_in_file::Slim;
use super::window::Window;
use super::{RuntimeError, onnx_proto as proto};

/// The first version of ONNX whose `Add` stretches vectors.
const BROADCASTING: u64 = 7;

/// Patches of smaller sides are many, and short as rows.
const LEAST_SIDE: u64 = 8;

/// The graph, which is that of the file `path`, with its patches as rows. `open` are the sizes of dimensions that its inputs leave open under a
/// name.
///
/// # Errors
/// [`RuntimeError::Graph`]: it is no whole ONNX model.
pub(super) fn with_patches_as_rows(slim: Slim, path: &Path, open: &[(String, usize)]) -> Result<Slim, RuntimeError> {
    slim.rewritten(path, |model| as_rows(model, open))
}

fn as_rows(model: &[u8], open: &[(String, usize)]) -> io::Result<Option<Vec<u8>>> {
    let mut model = Model::read(model)?;
    let graph = &model.graph;
    if model.opset < BROADCASTING || graph.has_graphs_inside() {
        return Ok(None);
    }
    let shapes = graph.shapes(open)?;
    // The first is the only one that reads a picture.
    let found = graph.nodes.iter().enumerate().find_map(|(index, node)| {
        let patches = graph.patches(node, &shapes).transpose()?;
        Some(patches.map(|patches| (index, patches)))
    });
    let Some((index, patches)) = found.transpose()? else { return Ok(None) };
    tracing::debug!("patches are multiplied as rows");
    let graph = graph.with_reshaped(
        |tensor| (tensor.name == patches.kernels.name).then(|| vec![patches.channels, patches.width]),
        |other, node, graph| {
            let is_found = other == index;
            if is_found {
                patches.put(node, graph);
            }
            Ok(is_found)
        },
    )?;
    model.import(DOMAIN);
    Ok(Some(model.with_graph(&graph)))
}

/// A convolution of patches.
struct Patches<'g> {
    kernels: &'g Tensor,
    /// Of what is made of a patch.
    channels: u64,
    /// Values in a patch.
    width: u64,
    /// A picture as colours, rows of patches, and of pixels in each, and the same of columns.
    cut: [u64; 5],
}

impl Graph {
    fn patches(&self, node: &Node, shapes: &Shapes<'_>) -> io::Result<Option<Patches<'_>>> {
        if node.operator != "Conv" {
            return Ok(None);
        }
        let Some(window) = Window::of(node)? else { return Ok(None) };
        let patches = || {
            let kernels = self.own_weights(node)?;
            let &[channels, colours, height, width] = &kernels.shape[..] else { return None };
            let picture = shapes.of(&node.inputs[0])?;
            let [pixel, rows, columns] = numbers(picture.get(1..)?)?.try_into().ok()?;
            let is_whole = window.is_of_patches()
                && window.kernel == [height, width]
                && pixel == colours
                && [height, width].iter().all(|&side| side >= LEAST_SIDE)
                && [(rows, height), (columns, width)]
                    .iter()
                    .all(|&(size, side)| size >= side && size.is_multiple_of(side));
            is_whole.then(|| Patches {
                kernels,
                channels,
                width: colours * height * width,
                cut: [colours, rows / height, height, columns / width, width],
            })
        };
        Ok(patches())
    }
}

impl Patches<'_> {
    /// Appends what becomes of the convolution to a `GraphProto`.
    fn put(&self, convolution: &Node, graph: &mut Vec<u8>) {
        let end = &convolution.outputs[0];
        let [_, rows, _, columns, _] = self.cut;
        let name = |what: &str| format!("{end}/{what}");
        let shape_name = |what: &str| format!("{end}/{what} shape");
        // 0: as many pictures as there are.
        let cut = [&[0], &self.cut[..]].concat();
        let list = vec![0, rows * columns, self.width];
        for (what, shape) in [("grid", cut), ("list", list), ("map", vec![0, self.channels, rows, columns])] {
            put_bytes(graph, proto::graph::INITIALIZER, &sizes(&shape_name(what), &shape));
        }
        let reshape = |from: &str, what: &str, to: &str| node("Reshape", &[from, &shape_name(what)], &[to], None);
        let mut nodes = vec![
            reshape(&convolution.inputs[0], "grid", &name("grid")),
            transpose(&name("grid"), &name("patches"), &[0, 2, 4, 1, 3, 5]),
            reshape(&name("patches"), "list", &name("rows")),
            transposed_product(&name("rows"), &self.kernels.name, &name("product")),
        ];
        let mut product = name("product");
        if let Some(bias) = convolution.inputs.get(2).filter(|bias| !bias.is_empty()) {
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
}

#[cfg(test)]
mod tests {
    use super::super::onnx_file::Dimension;
    use super::super::onnx_parts::{value_info, with_integers};
    use super::super::test_graphs::{count, differing_floats, differing_values, same_answers, value, write_model};
    use super::super::transposed::FUSED_PRODUCT;
    use super::*;

    const CHANNELS: u64 = 20;
    /// Patches of 8 × 10 pixels, three below each other and two beside.
    const KERNEL: [u64; 2] = [8, 10];
    const PICTURE: [u64; 2] = [24, 20];

    fn convolution(inputs: &[&str], strides: [u64; 2]) -> Vec<u8> {
        let conv = with_integers(node("Conv", inputs, &["map"], None), "kernel_shape", &KERNEL);
        with_integers(conv, "strides", &strides)
    }

    fn rewritten(folder: &Path, convolution: Vec<u8>, picture: [u64; 2]) -> Option<Vec<u8>> {
        written(folder, &[convolution, node("Flatten", &["map"], &["out"], None)], picture, 17)
    }

    fn written(folder: &Path, nodes: &[Vec<u8>], [height, width]: [u64; 2], opset: u64) -> Option<Vec<u8>> {
        let tensors =
            [differing_floats("kernels", &[CHANNELS, 3, KERNEL[0], KERNEL[1]]), differing_floats("bias", &[CHANNELS])];
        let fixed = [3, height, width].map(Dimension::Fixed);
        let dimensions = [vec![Dimension::Named("batch".to_owned())], fixed.to_vec()].concat();
        let x = value_info("x", proto::tensor::FLOAT, &dimensions);
        let slim = write_model(folder, nodes, &tensors, &[x], &[value("out", &[2, CHANNELS * 6])], opset);
        as_rows(&slim.bytes, &[]).unwrap()
    }

    #[test]
    fn patches_as_rows_are_the_same_for_any_number_of_pictures() {
        let folder = tempfile::tempdir().unwrap();
        for (inputs, sums) in [(&["x", "kernels", "bias"][..], 1), (&["x", "kernels"], 0), (&["x", "kernels", ""], 0)] {
            let model = rewritten(folder.path(), convolution(inputs, KERNEL), PICTURE).unwrap();
            let x = differing_values(&[2, 3, PICTURE[0] as usize, PICTURE[1] as usize]);
            let graph = same_answers(folder.path(), &model, ("x", x), "out");
            let counts = ["Conv", FUSED_PRODUCT, "Add"].map(|operator| count(&graph, operator));
            assert_eq!(counts, [0, 1, sums]);
        }
    }

    #[test]
    fn windows_that_overlap_leave_some_out_or_are_padded_stay() {
        let folder = tempfile::tempdir().unwrap();
        let inputs = ["x", "kernels", "bias"];
        let is_rewritten = |convolution, picture| rewritten(folder.path(), convolution, picture).is_some();
        assert!(is_rewritten(convolution(&inputs, KERNEL), PICTURE));
        assert!(!is_rewritten(convolution(&inputs, [8, 5]), PICTURE), "they overlap");
        assert!(!is_rewritten(convolution(&inputs, [16, 10]), PICTURE), "there are gaps");
        assert!(!is_rewritten(convolution(&inputs, KERNEL), [25, 20]), "a row is left over");
        let padded = with_integers(convolution(&inputs, KERNEL), "pads", &[0, 0, 8, 0]);
        assert!(!is_rewritten(padded, PICTURE));
        let spread = with_integers(convolution(&inputs, KERNEL), "dilations", &[1, 2]);
        assert!(!is_rewritten(spread, PICTURE));
        let grouped = with_integers(convolution(&inputs, KERNEL), "group", &[2]);
        assert!(!is_rewritten(grouped, PICTURE));
    }

    #[test]
    fn kernels_that_others_read_or_that_are_none_stay_and_old_graphs() {
        let folder = tempfile::tempdir().unwrap();
        let nodes = [convolution(&["x", "kernels"], KERNEL), node("Flatten", &["map"], &["out"], None)];
        let is_rewritten = |nodes: &[Vec<u8>], picture, opset| written(folder.path(), nodes, picture, opset).is_some();
        assert!(is_rewritten(&nodes, PICTURE, 17) && !is_rewritten(&nodes, PICTURE, 6));
        assert!(!is_rewritten(&nodes, [0, 0], 17));
        let read_again = node("Relu", &["kernels"], &["again"], None);
        assert!(!is_rewritten(&[&nodes[..], &[read_again]].concat(), PICTURE, 17));
        let nothing = with_integers(node("Conv", &["x", "kernels"], &["map"], None), "kernel_shape", &[0, 0]);
        assert!(!is_rewritten(&[with_integers(nothing, "strides", &[1, 1])], PICTURE, 17));
        let flat = with_integers(node("Conv", &["x", "bias"], &["map"], None), "kernel_shape", &KERNEL);
        assert!(!is_rewritten(&[with_integers(flat, "strides", &KERNEL)], PICTURE, 17));
    }
}
