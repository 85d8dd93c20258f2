//! The feed-forward layers of transformers in blocks. Their two matrices are larger than a core's cache, and OpenVINO reads all of
//! them from memory again for every few rows: it multiplies at two thirds of the speed that it has with matrices that stay there.
//! `act(x·A + a)·B` is the sum of `act(x·Aᵢ + aᵢ)·Bᵢ` over blocks of the layer's width, with matrices as small as one likes. What is
//! rounded is the sum after each block instead of once.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use super::CORE_CACHE;
use super::weights_in_file::Slim;
use crate::runtime::onnx::graph::{Graph, Model, Node, SPLIT_BY_INPUT, Tensor};
use crate::runtime::onnx::parts::{node, sizes};
use crate::runtime::onnx::protobuf::put_bytes;
use crate::runtime::{RuntimeError, onnx::proto};

/// Widths of blocks are multiples of it: kernels compute so many columns at once.
const COLUMNS: u64 = 64;

/// What may stand between the two matrices: each value comes from the one in its place.
const ELEMENTWISE: [&str; 10] = ["Add", "Sub", "Mul", "Div", "Pow", "Erf", "Tanh", "Sigmoid", "Relu", "Gelu"];

/// The graph, which is that of the file `path`, with those of its feed-forward layers in blocks that are too large for a core's cache.
///
/// # Errors
/// [`RuntimeError::Graph`]: it is no whole ONNX model.
pub(super) fn in_blocks(slim: Slim, path: &Path) -> Result<Slim, RuntimeError> {
    slim.rewritten(path, |model| cut(model, CORE_CACHE))
}

/// The model with its feed-forward layers in blocks; `None` if none of their matrices fills more than `cache` bytes.
fn cut(model: &[u8], cache: u64) -> io::Result<Option<Vec<u8>>> {
    let model = Model::read(model)?;
    let graph = &model.graph;
    if model.opset < SPLIT_BY_INPUT || graph.has_graphs_inside() {
        return Ok(None);
    }
    let mut layers: Vec<Layer<'_>> = Vec::new();
    for first in 0..graph.nodes.len() {
        // What ends one layer does not begin another.
        let is_free = layers.iter().all(|layer| layer.products[1] != first);
        layers.extend(is_free.then(|| graph.layer(first, cache)).flatten());
    }
    if layers.is_empty() {
        return Ok(None);
    }
    tracing::debug!(layers = layers.len(), blocks = layers[0].blocks, "feed-forward layers are computed in blocks");
    let graph = graph.with_blocks(&layers)?;
    Ok(Some(model.with_graph(&graph)))
}

/// A feed-forward layer: indices of nodes and names of values.
struct Layer<'g> {
    first: &'g Tensor,
    /// The node that adds a bias to the first product, and that bias, where there is one.
    bias: Option<(usize, &'g str)>,
    /// The nodes between the two products, in their order.
    activation: BTreeSet<usize>,
    second: &'g Tensor,
    /// The two products.
    products: [usize; 2],
    blocks: u64,
}

impl Layer<'_> {
    /// Its nodes, in their order.
    fn nodes(&self) -> impl Iterator<Item = usize> {
        let [first, last] = self.products;
        [first].into_iter().chain(self.bias.map(|(sum, _)| sum)).chain(self.activation.iter().copied()).chain([last])
    }
}

impl Graph {
    /// The matrix that `node` multiplies what it is given with, if its values are floats in a file.
    fn matrix(&self, node: &Node) -> Option<&Tensor> {
        self.weights(node).filter(|weights| node.operator == "MatMul" && weights.shape.len() == 2)
    }

    /// The feed-forward layer that begins with the node `first`, if there is one that is too large for the cache.
    fn layer(&self, first: usize, cache: u64) -> Option<Layer<'_>> {
        let node = &self.nodes[first];
        let matrix = self.matrix(node)?;
        let width = matrix.shape[1];
        let product = node.outputs[0].as_str();
        if self.outputs.contains(product) {
            return None;
        }
        let bias = self.bias(product, width);
        let start = bias.map_or(product, |(sum, _)| &self.nodes[sum].outputs[0]);
        let (activation, last) = self.activation(start, |index| self.matrix(&self.nodes[index]).is_some())?;
        let second = self.matrix(&self.nodes[last]).filter(|second| second.shape[0] == width)?;
        let blocks = blocks(width, matrix.shape[0].max(second.shape[1]), cache)?;
        Some(Layer { first: matrix, bias, activation, second, products: [first, last], blocks })
    }

    /// The nodes that `start` goes through value by value before the only product that reads what they make of it, and that product.
    pub(super) fn activation(
        &self,
        start: &str,
        is_product: impl Fn(usize) -> bool,
    ) -> Option<(BTreeSet<usize>, usize)> {
        let (mut activation, mut values, mut last) = (BTreeSet::new(), vec![start], None);
        while let Some(value) = values.pop() {
            if self.outputs.contains(value) {
                return None;
            }
            for &reader in self.readers(value) {
                let node = &self.nodes[reader];
                if is_product(reader) && node.inputs[0] == value {
                    if last.replace(reader).is_some() {
                        return None;
                    }
                } else if !ELEMENTWISE.contains(&node.operator.as_str()) {
                    return None;
                } else if activation.insert(reader) {
                    values.extend(node.outputs.iter().map(String::as_str));
                }
            }
        }
        let within = |value: &String| {
            value == start
                || activation.iter().any(|&node| self.nodes[node].outputs.contains(value))
                || self.is_scalar(value)
        };
        let is_whole = activation.iter().all(|&node| self.nodes[node].inputs.iter().all(within));
        last.filter(|_| is_whole).map(|last| (activation, last))
    }

    /// The node that adds a bias of `width` values to `product`, and that bias.
    fn bias(&self, product: &str, width: u64) -> Option<(usize, &str)> {
        let (sum, bias) = self.added(product)?;
        self.vector(bias).filter(|vector| vector.shape == [width]).map(|_| (sum, bias.as_str()))
    }

    /// The graph with `layers` in blocks.
    fn with_blocks(&self, layers: &[Layer<'_>]) -> io::Result<Vec<u8>> {
        let mut graph = self.rest.clone();
        for tensor in &self.initializers {
            let is_cut = layers.iter().any(|layer| layer.second.name == tensor.name);
            if !is_cut || self.readers(&tensor.name).len() > 1 || self.inputs.contains_key(&tensor.name) {
                put_bytes(&mut graph, proto::graph::INITIALIZER, &tensor.bytes);
            }
        }
        let gone: BTreeSet<_> = layers.iter().flat_map(Layer::nodes).collect();
        for (index, node) in self.nodes.iter().enumerate() {
            if let Some(layer) = layers.iter().find(|layer| layer.products[1] == index) {
                self.put_layer(layer, &mut graph)?;
            } else if !gone.contains(&index) {
                put_bytes(&mut graph, proto::graph::NODE, &node.bytes);
            }
        }
        Ok(graph)
    }

    /// Appends the nodes and initializers of `layer` in blocks.
    fn put_layer(&self, layer: &Layer<'_>, graph: &mut Vec<u8>) -> io::Result<()> {
        let end = &self.nodes[layer.products[1]].outputs[0];
        let of_block = |block: u64, value: &str| format!("{value}/{end}/{block}");
        // Columns lie apart in the file, so this matrix is cut when the graph is opened; the rows of the other are told by their places.
        let widths = format!("{end}/widths");
        let width = layer.first.shape[1] / layer.blocks;
        put_bytes(graph, proto::graph::INITIALIZER, &sizes(&widths, &vec![width; layer.blocks as usize]));
        for (value, axis) in
            [Some((layer.first.name.as_str(), 1)), layer.bias.map(|(_, bias)| (bias, 0))].into_iter().flatten()
        {
            let parts: Vec<_> = (0..layer.blocks).map(|block| of_block(block, value)).collect();
            put_bytes(graph, proto::graph::NODE, &node("Split", &[value, &widths], &parts, Some(("axis", axis))));
        }
        let nodes: Vec<_> = layer.nodes().map(|node| &self.nodes[node]).collect();
        let mut own: BTreeSet<_> = nodes.iter().flat_map(|node| &node.outputs).map(String::as_str).collect();
        own.extend([layer.first.name.as_str(), layer.second.name.as_str()]);
        own.extend(layer.bias.map(|(_, bias)| bias));
        let mut sum = of_block(0, end);
        for block in 0..layer.blocks {
            if let Some(rows) = layer.second.rows(block, layer.blocks, &of_block(block, &layer.second.name)) {
                put_bytes(graph, proto::graph::INITIALIZER, &rows);
            }
            let name = |value: &str| if own.contains(value) { of_block(block, value) } else { value.to_owned() };
            for node in &nodes {
                put_bytes(graph, proto::graph::NODE, &node.renamed(&block.to_string(), name)?);
            }
            if block > 0 {
                let next =
                    if block + 1 == layer.blocks { end.clone() } else { format!("{}/sum", of_block(block, end)) };
                put_bytes(graph, proto::graph::NODE, &node("Add", &[&sum, &of_block(block, end)], &[&next], None));
                sum = next;
            }
        }
        Ok(())
    }
}

/// Into how many blocks a layer of `width` is cut whose matrices have `height` values for each column; `None` if it is small enough,
/// or if no number fits.
fn blocks(width: u64, height: u64, cache: u64) -> Option<u64> {
    let bytes = |columns: u64| columns.saturating_mul(height).saturating_mul(2);
    if bytes(width) <= cache {
        return None;
    }
    // What is multiplied by them needs the rest of the cache.
    let fits = |blocks| bytes(width / blocks) <= cache / 8 * 5;
    (2..=width / COLUMNS).find(|&blocks| width.is_multiple_of(blocks * COLUMNS) && fits(blocks))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::test_graphs::{count, differing_floats, differing_values, same_answers, value, write_model};

    const HEIGHT: u64 = 32;
    const WIDTH: u64 = 192;
    /// A third of the matrices fits in half of it.
    const SMALL_CACHE: u64 = HEIGHT * 64 * 2 * 2;

    /// A feed-forward layer as CLIP has them: `out = x + silu(x·A + a)·B`.
    fn layer() -> Vec<Vec<u8>> {
        vec![
            node("Identity", &["bias"], &["a"], None),
            node("MatMul", &["x", "A"], &["product"], None),
            node("Add", &["a", "product"], &["sum"], None),
            node("Mul", &["sum", "scale"], &["scaled"], None),
            node("Sigmoid", &["scaled"], &["gate"], None),
            node("Mul", &["sum", "gate"], &["hidden"], None),
            node("MatMul", &["hidden", "B"], &["second"], None),
            node("Add", &["x", "second"], &["out"], None),
        ]
    }

    /// Writes a model of these nodes into `folder`, and reads it without its weights.
    fn model(folder: &Path, nodes: &[Vec<u8>], outputs: &[(&str, u64)], opset: u64) -> Slim {
        let tensors: [(&str, &[u64]); 5] = [
            ("A", &[HEIGHT, WIDTH]),
            ("bias", &[WIDTH]),
            ("scale", &[]),
            ("B", &[WIDTH, HEIGHT]),
            ("C", &[WIDTH, WIDTH]),
        ];
        let tensors = tensors.map(|(name, shape)| differing_floats(name, shape));
        let outputs: Vec<_> = outputs.iter().map(|&(name, columns)| value(name, &[2, columns])).collect();
        write_model(folder, nodes, &tensors, &[value("x", &[2, HEIGHT])], &outputs, opset)
    }

    /// Cuts the model in `folder` and runs it whole and cut; returns the cut one.
    fn cut_and_compare(folder: &Path, slim: &Slim, cache: u64) -> Graph {
        let bytes = cut(&slim.bytes, cache).unwrap().unwrap();
        same_answers(folder, &bytes, ("x", differing_values(&[2, HEIGHT as usize])), "out")
    }

    #[test]
    fn a_layer_in_blocks_computes_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let slim = model(folder.path(), &layer(), &[("out", HEIGHT)], 17);
        let graph = cut_and_compare(folder.path(), &slim, SMALL_CACHE);
        let counts = ["Split", "MatMul", "Sigmoid", "Add"].map(|operator| count(&graph, operator));
        assert_eq!(counts, [2, 6, 3, 6]);
        assert!(graph.initializer("B").is_none() && graph.initializer("A").is_some());
    }

    #[test]
    fn what_ends_a_layer_does_not_begin_another() {
        let folder = tempfile::tempdir().unwrap();
        let chain = [
            node("MatMul", &["x", "A"], &["first"], None),
            node("Relu", &["first"], &["hidden"], None),
            node("MatMul", &["hidden", "C"], &["second"], None),
            node("Tanh", &["second"], &["bounded"], None),
            node("MatMul", &["bounded", "C"], &["out"], None),
        ];
        let slim = model(folder.path(), &chain, &[("out", WIDTH)], 17);
        let graph = cut_and_compare(folder.path(), &slim, WIDTH * 64 * 2 * 2);
        assert_eq!((count(&graph, "Relu"), count(&graph, "Tanh"), count(&graph, "MatMul")), (3, 1, 7));
    }

    #[test]
    fn what_is_no_such_layer_or_small_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let is_cut = |nodes: &[Vec<u8>], outputs: &[(&str, u64)], opset, cache| {
            cut(&model(folder.path(), nodes, outputs, opset).bytes, cache).unwrap().is_some()
        };
        let out: &[(&str, u64)] = &[("out", HEIGHT)];
        let with = |index: usize, node: Vec<u8>| {
            let mut nodes = layer();
            nodes[index] = node;
            nodes
        };
        assert!(is_cut(&layer(), out, 17, SMALL_CACHE));
        assert!(!is_cut(&layer(), out, 17, CORE_CACHE), "fits the cache");
        assert!(!is_cut(&layer(), out, 12, SMALL_CACHE), "Split has its sizes as an attribute");
        assert!(!is_cut(&layer(), &[("out", HEIGHT), ("gate", WIDTH)], 17, SMALL_CACHE), "the middle is an output");
        assert!(!is_cut(&layer(), &[("out", HEIGHT), ("product", WIDTH)], 17, SMALL_CACHE), "a product is one");
        let softmax = with(4, node("Softmax", &["scaled"], &["gate"], None));
        assert!(!is_cut(&softmax, out, 17, SMALL_CACHE), "not elementwise");
        let normalised = with(3, node("Mul", &["sum", "bias"], &["scaled"], None));
        assert!(!is_cut(&normalised, out, 17, SMALL_CACHE), "each column has a factor of its own");
        let nesting = [layer(), vec![node("Loop", &["", "condition", "x"], &["again"], None)]].concat();
        assert!(!is_cut(&nesting, out, 17, SMALL_CACHE), "the graph in the loop may read the second matrix");
    }

    #[test]
    fn blocks_are_as_few_as_fit_and_of_whole_columns() {
        assert_eq!(blocks(3072, 768, CORE_CACHE), Some(4), "ViT-B and CLIP");
        assert_eq!(blocks(1536, 384, CORE_CACHE), None, "ViT-S fits");
        assert_eq!(blocks(4096, 1024, CORE_CACHE), Some(8), "ViT-L");
        assert_eq!(blocks(3071, 768, CORE_CACHE), None, "no number fits");
    }
}
