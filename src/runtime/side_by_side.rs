//! Convolutions of small feature maps with the maps of a batch side by side, as one wide map. OpenVINO goes through the weights again
//! for each picture of a batch: where they fill a core's cache, as in the last stage of a ResNet, that is as slow as computing. It also
//! computes 16 pixels of a row at once, of which a map of 7 × 7 has less than half. Between two maps are as many columns of zeros as a
//! window reaches over an edge, so all sums are of the same products.

use std::io;
use std::path::Path;

use super::onnx_graph::{Graph, Model, Node, SPLIT_BY_INPUT};
use super::onnx_parts::{floats, node, sizes};
use super::protobuf::put_bytes;
use super::shapes::Shapes;
use super::weights_in_file::Slim;
use super::window::Window;
use super::{CORE_CACHE, RuntimeError, onnx_proto as proto};

/// Sizes along `[batch, channels, height, width]`.
type Shape = [u64; 4];

/// Maps are copied to lie side by side and back, which costs little where the weights are so many times larger than they.
const WEIGHTS_TO_MAPS: u64 = 4;

/// The graph, which is that of the file `path`, with such convolutions on wide maps if `open`, the sizes of dimensions that its inputs
/// leave open under a name, make it one of batches of a fixed size.
///
/// # Errors
/// [`RuntimeError::Graph`]: it is no whole ONNX model.
pub(super) fn side_by_side(slim: Slim, path: &Path, open: &[(String, usize)]) -> Result<Slim, RuntimeError> {
    slim.rewritten(path, |model| widened(model, open, CORE_CACHE))
}

/// The model with its convolutions whose weights fill at least `cache` bytes of bf16 on wide maps; `None` if there are none.
fn widened(model: &[u8], open: &[(String, usize)], cache: u64) -> io::Result<Option<Vec<u8>>> {
    let model = Model::read(model)?;
    if model.opset < SPLIT_BY_INPUT {
        return Ok(None);
    }
    let graph = &model.graph;
    let shapes = graph.shapes(open)?;
    let mut convolutions = Vec::new();
    for node in &graph.nodes {
        convolutions.push(graph.convolution(node, &shapes, cache)?);
    }
    let count = convolutions.iter().flatten().count();
    if count == 0 {
        return Ok(None);
    }
    tracing::debug!(convolutions = count, "maps of a batch are convolved side by side");
    let graph = graph.with_replaced(|index, _, graph| {
        Ok(convolutions[index].as_ref().map(|convolution| convolution.put(graph)).transpose()?.is_some())
    })?;
    Ok(Some(model.with_graph(&graph)))
}

/// A convolution that is to be done on a wide map.
struct Convolution<'g> {
    node: &'g Node,
    input: Shape,
    output: Shape,
    /// Columns of zeros between two maps.
    gap: u64,
    /// Columns from one map of the output to the next.
    period: u64,
}

impl Graph {
    fn convolution<'g>(
        &'g self,
        node: &'g Node,
        shapes: &Shapes<'_>,
        cache: u64,
    ) -> io::Result<Option<Convolution<'g>>> {
        let convolution = |window: Window| {
            let weights = self.weights(node)?.values();
            let (input, output) = (shapes.numbers(&node.inputs[0])?, shapes.numbers(&node.outputs[0])?);
            let values = |[_, channels, height, width]: Shape| channels.saturating_mul(height).saturating_mul(width);
            // Those whose windows lie beside each other, as patches do, read a large map once, and were slower.
            let overlaps = window.kernel == [1; 2] || window.kernel[1] > window.strides[1];
            let is_worth_it = input[0] > 1
                && window.groups == 1
                && overlaps
                && weights.saturating_mul(2) >= cache
                && weights / WEIGHTS_TO_MAPS >= values(input).saturating_add(values(output));
            let stride = window.strides[1];
            let period = (input[3] + window.before[1].max(window.after[1])).div_ceil(stride);
            let gap = period * stride - input[3];
            (is_worth_it && period >= output[3]).then_some(Convolution { node, input, output, gap, period })
        };
        Ok(if node.operator == "Conv" { Window::of(node)?.and_then(convolution) } else { None })
    }
}

impl Convolution<'_> {
    /// Appends its nodes and initializers to a `GraphProto`.
    fn put(&self, graph: &mut Vec<u8>) -> io::Result<()> {
        let [batch, channels, height, _] = self.input;
        let end = &self.node.outputs[0];
        let (ones, zeros, widths) = (format!("{end}/ones"), format!("{end}/zeros"), format!("{end}/widths"));
        let (wide, convolved) = (format!("{end}/wide"), format!("{end}/convolved"));
        let names = |what: &str| (0..batch).map(|index| format!("{end}/{what}/{index}")).collect::<Vec<_>>();
        let (before, after, between) = (names("before"), names("after"), names("between"));

        put_bytes(graph, proto::graph::INITIALIZER, &sizes(&ones, &vec![1; batch as usize]));
        put_bytes(
            graph,
            proto::graph::NODE,
            &node("Split", &[&self.node.inputs[0], &ones], &before, Some(("axis", 0))),
        );
        let mut row = vec![before[0].as_str()];
        if self.gap > 0 {
            let shape = [1, channels, height, self.gap];
            let values = std::iter::repeat_n(0.0, shape.iter().product::<u64>() as usize);
            put_bytes(graph, proto::graph::INITIALIZER, &floats(&zeros, &shape, values));
        }
        for map in &before[1..] {
            row.extend((self.gap > 0).then_some(zeros.as_str()));
            row.push(map);
        }
        put_bytes(graph, proto::graph::NODE, &node("Concat", &row, &[&wide], Some(("axis", 3))));

        let input = &self.node.inputs[0];
        let name = |value: &str| match value {
            value if value == input => wide.clone(),
            value if value == end => convolved.clone(),
            value => value.to_owned(),
        };
        put_bytes(graph, proto::graph::NODE, &self.node.renamed("convolved", name)?);

        let (mut parts, mut columns) = (vec![after[0].as_str()], vec![self.output[3]]);
        for (between, map) in between.iter().zip(&after[1..]) {
            if self.period > self.output[3] {
                parts.push(between);
                columns.push(self.period - self.output[3]);
            }
            parts.push(map);
            columns.push(self.output[3]);
        }
        put_bytes(graph, proto::graph::INITIALIZER, &sizes(&widths, &columns));
        put_bytes(graph, proto::graph::NODE, &node("Split", &[&convolved, &widths], &parts, Some(("axis", 3))));
        let maps: Vec<_> = after.iter().map(String::as_str).collect();
        put_bytes(graph, proto::graph::NODE, &node("Concat", &maps, &[end], Some(("axis", 0))));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::onnx_parts::with_integers;
    use super::super::test_graphs::{count, differing_floats, differing_values, same_answers, value, write_model};
    use super::*;

    const BATCH: u64 = 3;
    const CHANNELS: u64 = 128;
    const SIDE: u64 = 4;
    /// Filled by the weights of a kernel of one pixel.
    const SMALL_CACHE: u64 = CHANNELS * CHANNELS * 2;

    /// A convolution of `x` by weights named like their output and kernel.
    fn convolution(x: &str, out: &str, [kernel, stride, before, after]: [u64; 4]) -> Vec<u8> {
        let conv = node("Conv", &[x, &format!("{kernel}x{kernel}"), "bias"], &[out], None);
        let conv = with_integers(conv, "kernel_shape", &[kernel; 2]);
        let conv = with_integers(conv, "strides", &[stride; 2]);
        with_integers(conv, "pads", &[before, before, after, after])
    }

    /// The end of a ResNet, from maps of `SIDE` to rows of values of maps of half of it.
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

    /// Writes a model of these nodes into `folder`, and reads it without its weights.
    fn model(folder: &Path, nodes: &[Vec<u8>], batch: u64, opset: u64) -> Slim {
        let tensors = [
            differing_floats("1x1", &[CHANNELS, CHANNELS, 1, 1]),
            differing_floats("3x3", &[CHANNELS, CHANNELS, 3, 3]),
            differing_floats("bias", &[CHANNELS]),
        ];
        let out = value("out", &[batch, CHANNELS * SIDE * SIDE / 4]);
        write_model(folder, nodes, &tensors, &[value("x", &[batch, CHANNELS, SIDE, SIDE])], &[out], opset)
    }

    #[test]
    fn maps_side_by_side_are_convolved_to_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let slim = model(folder.path(), &stage(), BATCH, 17);
        let bytes = widened(&slim.bytes, &[], SMALL_CACHE).unwrap().unwrap();
        let x = differing_values(&[BATCH, CHANNELS, SIDE, SIDE].map(|size| size as usize));
        let graph = same_answers(folder.path(), &bytes, ("x", x), "out");
        assert_eq!(["Conv", "Concat", "Split"].map(|operator| count(&graph, operator)), [4, 8, 8]);
    }

    #[test]
    fn what_would_gain_nothing_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let count_of = |nodes: &[Vec<u8>], batch, opset, cache| {
            let slim = model(folder.path(), nodes, batch, opset);
            let bytes = widened(&slim.bytes, &[], cache).unwrap()?;
            Some(count(&Model::read(&bytes).unwrap().graph, "Split") / 2)
        };
        assert_eq!(count_of(&stage(), BATCH, 17, SMALL_CACHE), Some(4));
        assert_eq!(count_of(&stage(), BATCH, 17, SMALL_CACHE + 1), Some(2), "the small kernels fit in the cache");
        assert_eq!(count_of(&stage(), BATCH, 17, CORE_CACHE), None);
        assert_eq!(count_of(&stage(), 1, 17, SMALL_CACHE), None, "there is but one map");
        assert_eq!(count_of(&stage(), BATCH, 12, SMALL_CACHE), None, "Split has its sizes as an attribute");
        let alone =
            |conv: Vec<u8>| count_of(&[conv, node("Flatten", &["conv"], &["out"], None)], BATCH, 17, SMALL_CACHE);
        assert_eq!(alone(convolution("x", "conv", [3, 2, 1, 1])), Some(1));
        assert_eq!(alone(convolution("x", "conv", [3, 3, 1, 1])), None, "patches");
        let grouped = with_integers(convolution("x", "conv", [3, 2, 1, 1]), "group", &[2]);
        assert_eq!(alone(grouped), None, "each group has its own weights");
        let unknown = [node("Unheard", &["x"], &["y"], None), convolution("y", "out", [3, 2, 1, 1])];
        assert_eq!(count_of(&unknown, BATCH, 17, SMALL_CACHE), None, "the map's shape is not known");
        let with_pads = |pads| convolution("x", "conv", [1, 1, pads, pads]);
        assert_eq!(alone(with_pads(0)), Some(1));
        assert_eq!(alone(with_pads(4)), None, "the maps are large beside the weights");
    }
}
