//! Products of tokens and matrices as convolutions of single pixels, whose channels are what a token has. On a CPU with AMX, oneDNN multiplies
//! a few hundred rows by a matrix at four fifths of the speed at which it convolves as many pixels: it goes through the matrix in
//! another order. For fewer rows there is no difference, and for more, none that is worth it. What is turned for this, so that channels
//! come first, OpenVINO keeps in the order that it has in memory, and turns nothing. Sums are of the same products.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::ops::RangeInclusive;
use std::path::Path;

use super::weights_in_file::Slim;
use crate::runtime::onnx::graph::{Graph, Model, Node, SPLIT_BY_INPUT, Tensor};
use crate::runtime::onnx::parts::{FUSED_PRODUCT, node, sizes, transpose};
use crate::runtime::onnx::protobuf::put_bytes;
use crate::runtime::onnx::shapes::{Shapes, numbers, values_of};
use crate::runtime::{RuntimeError, onnx::proto};

/// For how many rows it was faster with 768 and 1024 columns.
const ROWS: RangeInclusive<u64> = 128..=1024;

/// The graph, which is that of the file `path` with its matrices transposed, with such convolutions if `open`, the sizes of dimensions that
/// its inputs leave open under a name, make it one of batches of a fixed size.
///
/// # Errors
/// [`RuntimeError::Graph`]: it is no whole ONNX model.
pub(super) fn as_convolutions(slim: Slim, path: &Path, open: &[(String, usize)]) -> Result<Slim, RuntimeError> {
    slim.rewritten(path, |model| convolved(model, open, ROWS))
}

/// The model with those of its products as convolutions that are of so many `rows`; `None` if there are none.
fn convolved(model: &[u8], open: &[(String, usize)], rows: RangeInclusive<u64>) -> io::Result<Option<Vec<u8>>> {
    let model = Model::read(model)?;
    let graph = &model.graph;
    if model.opset < SPLIT_BY_INPUT || graph.has_graphs_inside() {
        return Ok(None);
    }
    let shapes = graph.shapes(open)?;
    let mut products = BTreeMap::new();
    for (index, node) in graph.nodes.iter().enumerate() {
        products.extend(graph.pointwise(node, &shapes, &rows)?.map(|product| (index, product)));
    }
    if products.is_empty() {
        return Ok(None);
    }
    tracing::debug!(products = products.len(), "products are computed as convolutions");
    let on_pixels = graph.on_pixels(products);
    let graph = graph.with_reshaped(
        |tensor| on_pixels.is_kernel(tensor).then(|| [&tensor.shape[..], &[1, 1]].concat()),
        |index, node, graph| on_pixels.put(index, node, graph),
    )?;
    Ok(Some(model.with_graph(&graph)))
}

/// A product that can be a convolution.
struct Product<'g> {
    /// The matrix, transposed.
    matrix: &'g Tensor,
    rows: u64,
    /// The shape of the product.
    shape: Vec<u64>,
}

/// What is computed on pixels.
struct OnPixels<'g> {
    /// By their nodes.
    products: BTreeMap<usize, Product<'g>>,
    /// The nodes that go on with what a product makes, value by value, and that product's.
    followers: BTreeMap<usize, usize>,
    /// The vectors that some of these add.
    vectors: BTreeMap<usize, &'g str>,
    /// The values that only such nodes read.
    inside: BTreeSet<&'g str>,
}

impl Graph {
    /// The product that `node` is, if it is one with a matrix that is transposed in a file, and of so many `rows`.
    fn pointwise(
        &self,
        node: &Node,
        shapes: &Shapes<'_>,
        rows: &RangeInclusive<u64>,
    ) -> io::Result<Option<Product<'_>>> {
        if node.operator != FUSED_PRODUCT || node.integers()? != HashMap::from([("transB".to_owned(), vec![1])]) {
            return Ok(None);
        }
        let product = || {
            let matrix = self.own_weights(node)?;
            let &[columns, _] = &matrix.shape[..] else { return None };
            let mut shape = numbers(shapes.of(&node.inputs[0])?)?;
            *shape.last_mut()? = columns;
            let count = values_of(&shape[..shape.len() - 1])?;
            rows.contains(&count).then_some(Product { matrix, rows: count, shape })
        };
        Ok(product())
    }

    /// What is computed on pixels if these `products` are: what follows them until another, or a vector that is added.
    fn on_pixels<'g>(&'g self, products: BTreeMap<usize, Product<'g>>) -> OnPixels<'g> {
        let producers = self.producers();
        let (mut followers, mut vectors, mut inside) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        for (&product, Product { matrix, .. }) in &products {
            let mut end = self.nodes[product].outputs[0].as_str();
            if let Some((sum, vector)) = self.vector_added(end, matrix.shape[0], &producers) {
                inside.insert(end);
                followers.insert(sum, product);
                vectors.insert(sum, vector);
                end = &self.nodes[sum].outputs[0];
            }
            if let Some((activation, _)) = self.activation(end, |node| products.contains_key(&node)) {
                inside.insert(end);
                inside.extend(activation.iter().map(|&node| self.nodes[node].outputs[0].as_str()));
                followers.extend(activation.into_iter().map(|node| (node, product)));
            }
        }
        OnPixels { products, followers, vectors, inside }
    }

    /// The vector of `columns` values that the only reader of `product` adds to it, and that reader.
    fn vector_added(&self, product: &str, columns: u64, producers: &HashMap<&str, usize>) -> Option<(usize, &str)> {
        let (sum, vector) = self.added(product)?;
        // Or a part of one, or one under another name.
        let (mut whole, mut is_part, mut reader) = (vector, false, sum);
        while let Some(&producer) = producers.get(whole.as_str()) {
            let node = &self.nodes[producer];
            let follows = matches!(node.operator.as_str(), "Split" | "Identity") && producer < reader;
            (whole, reader) = (node.inputs.first().filter(|_| follows)?, producer);
            is_part |= node.operator == "Split";
        }
        let whole = self.initializer(whole).filter(|whole| !self.inputs.contains_key(&whole.name))?;
        let is_vector = match whole.shape[..] {
            // A part that is added to so many is one of as many, or of one.
            [length] => length == columns || is_part && columns > 1,
            _ => false,
        };
        (is_vector && !self.outputs.contains(product)).then_some((sum, vector))
    }
}

impl OnPixels<'_> {
    /// Is it the matrix of one of its products?
    fn is_kernel(&self, tensor: &Tensor) -> bool {
        self.products.values().any(|product| product.matrix.name == tensor.name)
    }

    /// Appends what becomes of the node `index`, if it is one of these, to a `GraphProto`: it, what turns its input to pixels where it does not come
    /// so, and what turns its output back where others read that.
    fn put(&self, index: usize, token_node: &Node, graph: &mut Vec<u8>) -> io::Result<bool> {
        let Some(product) = self.products.get(self.followers.get(&index).unwrap_or(&index)) else { return Ok(false) };
        let end = &token_node.outputs[0];
        let mut put = |field, bytes: &[u8]| put_bytes(graph, field, bytes);
        if self.products.contains_key(&index) {
            let tokens = &token_node.inputs[0];
            let own = if self.inside.contains(tokens.as_str()) { pixels(tokens) } else { format!("{end}/input") };
            if !self.inside.contains(tokens.as_str()) {
                // Each has its own, which OpenVINO takes as it lies. What several shared, it would turn in memory.
                let (shape, list) = (format!("{end}/list shape"), format!("{end}/list"));
                let channels = product.matrix.shape[1];
                put(proto::graph::INITIALIZER, &sizes(&shape, &[1, 1, product.rows, channels]));
                put(proto::graph::NODE, &node("Reshape", &[tokens, &shape], &[&list], None));
                put(proto::graph::NODE, &transpose(&list, &own, &[0, 3, 1, 2]));
            }
            put(proto::graph::NODE, &node("Conv", &[&own, &product.matrix.name], &[pixels(end)], None));
        } else {
            let (vector, channels) = (self.vectors.get(&index), format!("{end}/vector"));
            if let Some(vector) = vector {
                let axes = format!("{end}/axes");
                put(proto::graph::INITIALIZER, &sizes(&axes, &[1, 2]));
                put(proto::graph::NODE, &node("Unsqueeze", &[vector, &axes], &[&channels], None));
            }
            let name = |value: &str| match value {
                value if vector.is_some_and(|vector| *vector == value) => channels.clone(),
                value if value == end || self.inside.contains(value) => pixels(value),
                value => value.to_owned(),
            };
            put(proto::graph::NODE, &token_node.renamed("pixels", name)?);
        }
        if !self.inside.contains(end.as_str()) {
            let (shape, list) = (format!("{end}/shape"), format!("{end}/tokens"));
            put(proto::graph::INITIALIZER, &sizes(&shape, &product.shape));
            put(proto::graph::NODE, &transpose(&pixels(end), &list, &[0, 2, 3, 1]));
            put(proto::graph::NODE, &node("Reshape", &[&list, &shape], &[end], None));
        }
        Ok(true)
    }
}

/// The name of `value` as pixels.
fn pixels(value: &str) -> String {
    format!("{value}/pixels")
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, CowArray};

    use super::super::transposed::with_transposed;
    use super::*;
    use crate::runtime::onnx::file::Dimension;
    use crate::runtime::onnx::parts::{floats, value_info, with_integer};
    use crate::runtime::test_graphs::{count, differing_floats, differing_values, same_answers, value, write_model};
    use crate::runtime::{ExecutionProvider, Graph as OpenGraph, Runtime, SessionOptions, Tensor as InputTensor};

    /// Of a picture.
    const TOKENS: u64 = 3;
    const WIDTH: u64 = 24;
    const INNER: u64 = 40;
    /// Of two pictures.
    const FEW_ROWS: RangeInclusive<u64> = 6..=6;

    /// Keys and values, which are added, and a feed-forward layer as CLIP has them, of whose bias a part is taken.
    fn layers() -> Vec<Vec<u8>> {
        vec![
            node("MatMul", &["x", "K"], &["keys"], None),
            node("MatMul", &["x", "V"], &["values"], None),
            node("Add", &["value bias", "values"], &["biased"], None),
            node("Mul", &["keys", "biased"], &["attended"], None),
            node("Identity", &["bias"], &["same bias"], None),
            node("Split", &["same bias", "widths"], &["a", "other part"], Some(("axis", 0))),
            node("MatMul", &["attended", "A"], &["product"], None),
            node("Add", &["product", "a"], &["sum"], None),
            node("Mul", &["sum", "scale"], &["scaled"], None),
            node("Sigmoid", &["scaled"], &["gate"], None),
            node("Mul", &["sum", "gate"], &["hidden"], None),
            node("MatMul", &["hidden", "B"], &["second"], None),
            node("Add", &["second", "x"], &["y"], None),
            node("Flatten", &["y"], &["out"], Some(("axis", 1))),
        ]
    }

    /// Writes a model of these nodes into `folder`, and reads it without its weights.
    fn write(folder: &Path, nodes: &[Vec<u8>], opset: u64) -> Slim {
        let tensors: [(&str, &[u64]); 6] = [
            ("K", &[WIDTH, WIDTH]),
            ("V", &[WIDTH, WIDTH]),
            ("value bias", &[WIDTH]),
            ("A", &[WIDTH, INNER]),
            ("B", &[INNER, WIDTH]),
            ("bias", &[INNER + 8]),
        ];
        let mut tensors = tensors.map(|(name, shape)| differing_floats(name, shape)).to_vec();
        tensors.push(floats("scale", &[], [1.7].into_iter()));
        tensors.push(floats("one value", &[1], [0.3].into_iter()));
        tensors.push(sizes("widths", &[INNER, 8]));
        let dimensions = [Dimension::Named("batch".to_owned()), Dimension::Fixed(TOKENS), Dimension::Fixed(WIDTH)];
        let x = value_info("x", proto::tensor::FLOAT, &dimensions);
        write_model(folder, nodes, &tensors, &[x], &[value("out", &[2, TOKENS * WIDTH])], opset)
    }

    /// The same with its matrices transposed.
    fn model(folder: &Path, nodes: &[Vec<u8>]) -> Slim {
        let slim = write(folder, nodes, 17);
        with_transposed(&slim, &slim.file, folder).unwrap().unwrap()
    }

    fn rewritten(folder: &Path, nodes: &[Vec<u8>]) -> Option<Vec<u8>> {
        convolved(&model(folder, nodes).bytes, &[("batch".to_owned(), 2)], FEW_ROWS).unwrap()
    }

    fn compare(folder: &Path, nodes: &[Vec<u8>]) -> Graph {
        let model = rewritten(folder, nodes).unwrap();
        assert!(convolved(&model, &[("batch".to_owned(), 2)], FEW_ROWS).unwrap().is_none(), "once is enough");
        let x = differing_values(&[2, TOKENS as usize, WIDTH as usize]);
        same_answers(folder, &model, ("x", x), "out")
    }

    #[test]
    fn products_as_convolutions_are_the_same_and_nothing_is_turned_in_between() {
        let folder = tempfile::tempdir().unwrap();
        let graph = compare(folder.path(), &layers());
        let counts = ["Conv", FUSED_PRODUCT, "Transpose"].map(|operator| count(&graph, operator));
        assert_eq!(counts, [4, 0, 6], "three of keys, values and the layer on each side");
        let reads = |operator: &str, end: &str| {
            let node = graph.nodes.iter().find(|node| node.outputs[0] == end).unwrap();
            assert_eq!(node.operator, operator);
            node.inputs.clone()
        };
        assert_ne!(reads("Conv", "keys/pixels")[0], reads("Conv", "values/pixels")[0], "each its own");
        assert_eq!(reads("Sigmoid", "gate/pixels"), ["scaled/pixels"]);
        assert_eq!(reads("Conv", "second/pixels")[0], "hidden/pixels");
    }

    #[test]
    fn what_others_read_is_turned_back() {
        let folder = tempfile::tempdir().unwrap();
        let with = |change: &dyn Fn(&mut Vec<Vec<u8>>)| {
            let mut nodes = layers();
            change(&mut nodes);
            let graph = compare(folder.path(), &nodes);
            ["Conv", "Transpose"].map(|operator| count(&graph, operator))
        };
        let read_again = node("Softmax", &["sum"], &["again"], None);
        assert_eq!(with(&|nodes| nodes.push(read_again.clone())), [4, 8], "the activation is of tokens");
        let gated = node("Mul", &["sum", "product"], &["scaled"], None);
        assert_eq!(with(&|nodes| nodes[8] = gated.clone()), [4, 8], "and so is the sum");
        for other in ["x", "one value"] {
            let sum = node("Add", &[other, "values"], &["biased"], None);
            assert_eq!(with(&|nodes| nodes[2] = sum.clone()), [4, 6], "no vector of as many is added");
        }
    }

    #[test]
    fn other_numbers_of_rows_and_open_ones_stay() {
        let folder = tempfile::tempdir().unwrap();
        let model = model(folder.path(), &layers()).bytes;
        let is_convolved = |open: &[(String, usize)]| convolved(&model, open, FEW_ROWS).unwrap().is_some();
        assert!(is_convolved(&[("batch".to_owned(), 2)]));
        assert!(!is_convolved(&[("batch".to_owned(), 3)]));
        assert!(!is_convolved(&[]));
    }

    #[test]
    fn odd_graphs_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let transposed = |nodes: &[Vec<u8>], opset| {
            let slim = write(folder.path(), nodes, opset);
            with_transposed(&slim, &slim.file, folder.path()).unwrap().unwrap().bytes
        };
        let count_of = |model: &[u8]| {
            let model = convolved(model, &[("batch".to_owned(), 2)], FEW_ROWS).unwrap()?;
            Some(count(&Model::read(&model).unwrap().graph, "Conv"))
        };
        assert_eq!(count_of(&transposed(&layers(), 17)), Some(4));
        assert_eq!(count_of(&transposed(&layers(), 12)), None, "Unsqueeze has its axes as an attribute");
        // A bias that comes from itself.
        let mut nodes = layers();
        nodes[4] = node("Identity", &["a"], &["same bias"], None);
        assert_eq!(count_of(&transposed(&nodes, 17)), Some(3), "of what it is added to, the shape is not known");
        let model = Model::read(&transposed(&layers(), 17)).unwrap();
        let scaled = model.graph.with_replaced(|_, node, graph| {
            let is_first = node.outputs[0] == "keys";
            if is_first {
                put_bytes(graph, proto::graph::NODE, &with_integer(node.bytes.clone(), "transA", 1));
            }
            Ok(is_first)
        });
        assert_eq!(
            count_of(&model.with_graph(&scaled.unwrap())),
            Some(1),
            "the values; another product has no known shape"
        );
    }

    #[test]
    fn openvino_answers_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let transposed = model(folder.path(), &layers());
        let rewritten = rewritten(folder.path(), &layers()).unwrap();
        let runtime = Runtime::load(None).unwrap();
        if !runtime.providers.contains(&ExecutionProvider::OpenVino) {
            return;
        }
        let x = differing_values(&[2, TOKENS as usize, WIDTH as usize]);
        let dimensions = vec![("batch".to_owned(), 2)];
        let options = SessionOptions { dimensions, ..SessionOptions::reference(1, 2, folder.path().to_owned()) };
        let options = SessionOptions { provider: ExecutionProvider::OpenVino, ..options };
        let [before, after]: [Array2<f32>; 2] = [&transposed.bytes, &rewritten].map(|bytes| {
            std::fs::write(folder.path().join("one.onnx"), bytes).unwrap();
            let graph = OpenGraph::open(&runtime, &folder.path().join("one.onnx"), &options).unwrap();
            assert_eq!(graph.node_counts().1, 0, "OpenVINO computes it all");
            graph.run(&[("x", InputTensor::F32(CowArray::from(x.view())))], "out").unwrap()
        });
        let apart = (&before - &after).iter().fold(0_f32, |largest, value| largest.max(value.abs()));
        assert!(apart < 1e-4, "{apart}: {before} {after}");
    }
}
