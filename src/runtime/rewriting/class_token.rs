//! Transformers whose answer is that of a class token. Their last layer computes all tokens, of which only the first is read: nearly a
//! twelfth of a ViT-B's work is for nothing. Here what is read only at the first tokens is computed only there. The sums are the same.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use super::weights_in_file::Slim;
use crate::runtime::onnx::graph::{Graph, Model, Node};
use crate::runtime::onnx::parts::{node, sizes};
use crate::runtime::onnx::protobuf::put_bytes;
use crate::runtime::onnx::shapes::{Attributes, Shapes, Size, at};
use crate::runtime::{RuntimeError, onnx::proto};

/// The first version of ONNX whose `Slice` is told the bounds by inputs, as here.
const SLICE_BY_INPUT: u64 = 10;
/// The first version of ONNX whose `Softmax` goes along the last axis if it is told none.
const SOFTMAX_OF_LAST: u64 = 13;

/// At most so many tokens are read: one for the class, and DeiT's one for the teacher's answer.
const TOKENS: i64 = 2;

/// Operators each of whose values comes from those in its place.
const ELEMENTWISE: [&str; 19] = [
    "Add", "Cast", "Clip", "Div", "Equal", "Erf", "Gelu", "Identity", "IsNaN", "Mul", "Neg", "Not", "Pow", "Relu",
    "Sigmoid", "Sqrt", "Sub", "Tanh", "Where",
];
/// The same, where all inputs but the first are scalars.
const QUANTIZING: [&str; 2] = ["QuantizeLinear", "DequantizeLinear"];

/// The graph, which is that of the file `path`, with what is read only at the first tokens computed only there. `open` gives sizes for
/// dimensions that its inputs leave open under a name.
///
/// # Errors
/// [`RuntimeError::Graph`]: it is no whole ONNX model.
pub(super) fn at_class_token(slim: Slim, path: &Path, open: &[(String, usize)]) -> Result<Slim, RuntimeError> {
    slim.rewritten(path, |model| narrowed(model, open))
}

/// The model with what is read only at the first tokens computed only there; `None` if that is no product of matrices.
fn narrowed(model: &[u8], open: &[(String, usize)]) -> io::Result<Option<Vec<u8>>> {
    let model = Model::read(model)?;
    let graph = &model.graph;
    if model.opset < SLICE_BY_INPUT || graph.has_graphs_inside() || graph.names().is_none() {
        return Ok(None);
    }
    let shapes = graph.shapes(open)?;
    let Some(narrow) = Narrow::of(graph, &shapes, model.opset)? else { return Ok(None) };
    tracing::debug!(
        nodes = narrow.nodes.len(),
        tokens = narrow.tokens,
        "the last layer is computed at the tokens that are read"
    );
    let graph = narrow.graph(&shapes)?;
    Ok(Some(model.with_graph(&graph)))
}

/// What a node reads of an input.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Read {
    All,
    /// The first tokens, which lie along this axis.
    First(usize),
    /// Nothing any more: it told how many tokens there are.
    Nothing,
}

/// What of a graph is read only at the first tokens.
struct Narrow<'g> {
    graph: &'g Graph,
    tokens: i64,
    /// Of each input of each node.
    reads: Vec<Vec<Read>>,
    /// The nodes that are computed only there.
    nodes: BTreeSet<usize>,
    /// The nodes that are not computed.
    gone: BTreeSet<usize>,
}

impl<'g> Narrow<'g> {
    /// `None` if no product of matrices is.
    fn of(graph: &'g Graph, shapes: &Shapes<'_>, opset: u64) -> io::Result<Option<Self>> {
        let mut reads: Vec<_> = graph.nodes.iter().map(|node| vec![Read::All; node.inputs.len()]).collect();
        let (mut tokens, mut nodes, mut gone) = (0, BTreeSet::new(), BTreeSet::new());
        for (index, node) in graph.nodes.iter().enumerate() {
            if let Some((axis, token)) = tokens_read(node, shapes)? {
                reads[index][0] = Read::First(axis);
                tokens = tokens.max(token + 1);
            }
        }
        for (index, node) in graph.nodes.iter().enumerate().rev() {
            match graph.read_of(node, &reads) {
                Read::All => {}
                Read::Nothing => {
                    reads[index].fill(Read::Nothing);
                    gone.insert(index);
                }
                Read::First(axis) => {
                    if let Some(of_inputs) = reads_of(node, axis, shapes, opset)? {
                        reads[index] = of_inputs;
                        nodes.insert(index);
                    }
                }
            }
        }
        let is_worth_it = nodes.iter().any(|&index| graph.nodes[index].operator == "MatMul");
        Ok(is_worth_it.then_some(Self { graph, tokens, reads, nodes, gone }))
    }

    /// `GraphProto`.
    fn graph(&self, shapes: &Shapes<'_>) -> io::Result<Vec<u8>> {
        let mut graph = self.graph.without_nodes(|_| None);
        let narrow: BTreeSet<_> = self.nodes.iter().map(|&index| self.graph.nodes[index].outputs[0].as_str()).collect();
        let mut sliced = BTreeSet::new();
        for (index, whole) in self.graph.nodes.iter().enumerate() {
            if self.gone.contains(&index) {
                continue;
            }
            if !self.nodes.contains(&index) {
                put_bytes(&mut graph, proto::graph::NODE, &whole.bytes);
                continue;
            }
            let mut renamed = Vec::new();
            for (input, read) in whole.inputs.iter().zip(&self.reads[index]) {
                let &Read::First(along) = read else { continue };
                if narrow.contains(input.as_str()) {
                    continue;
                }
                let first = format!("{input}/first/{along}");
                if sliced.insert(first.clone()) {
                    let bounds = [("start", 0), ("end", self.tokens as u64), ("axis", along as u64)];
                    let bounds = bounds.map(|(what, bound)| (format!("{first}/{what}"), bound));
                    for (name, bound) in &bounds {
                        put_bytes(&mut graph, proto::graph::INITIALIZER, &sizes(name, &[*bound]));
                    }
                    let [start, end, axis] = bounds.each_ref().map(|(name, _)| name.as_str());
                    let slice = node("Slice", &[input, start, end, axis], &[&first], None);
                    put_bytes(&mut graph, proto::graph::NODE, &slice);
                }
                renamed.push((input, first));
            }
            if let Some((axis, to)) = self.reshapes(index, shapes) {
                let name = format!("{}/shape", whole.outputs[0]);
                let kept = std::iter::repeat_n(0, axis + 1);
                let to: Vec<_> = kept.chain(to.iter().map(|&size| size as u64)).collect();
                put_bytes(&mut graph, proto::graph::INITIALIZER, &sizes(&name, &to));
                let input = renamed.first().map_or(&whole.inputs[0], |(_, narrow)| narrow);
                // Without attributes, by which 0 could be a size instead of the one before.
                put_bytes(&mut graph, proto::graph::NODE, &node("Reshape", &[input, &name], &whole.outputs, None));
                continue;
            }
            let other = |value: &str| renamed.iter().find(|(old, _)| *old == value).map(|(_, new)| new.clone());
            let narrow = whole.renamed("first", |value| other(value).unwrap_or_else(|| value.to_owned()))?;
            put_bytes(&mut graph, proto::graph::NODE, &narrow);
        }
        Ok(graph)
    }

    /// Of a node that reshapes, the axis of the tokens, and what the sizes after it become.
    fn reshapes(&self, index: usize, shapes: &Shapes<'_>) -> Option<(usize, Vec<i64>)> {
        let node = &self.graph.nodes[index];
        let (Read::First(axis), "Reshape") = (self.reads[index][0], node.operator.as_str()) else { return None };
        Some((axis, sizes_after(axis, node, shapes)?))
    }
}

impl Graph {
    /// What others read of what `node` makes.
    fn read_of(&self, node: &Node, reads: &[Vec<Read>]) -> Read {
        let output = match &node.outputs[..] {
            [output] if !self.outputs.contains(output) => output,
            _ => return Read::All,
        };
        let of_readers = self.readers(output).iter().flat_map(|&reader| {
            let of_inputs = self.nodes[reader].inputs.iter().zip(&reads[reader]);
            of_inputs.filter(|(input, _)| *input == output).map(|(_, read)| *read)
        });
        let both = |one, other| match (one, other) {
            (Read::Nothing, read) | (read, Read::Nothing) => read,
            (one, other) if one == other => one,
            _ => Read::All,
        };
        of_readers.fold(Read::Nothing, both)
    }
}

/// The axis of the tokens of which `node` reads one, and which that is; `None` if it does something else.
fn tokens_read(node: &Node, shapes: &Shapes<'_>) -> io::Result<Option<(usize, i64)>> {
    if node.operator != "Gather" {
        return Ok(None);
    }
    let attributes = Attributes(node.integers()?);
    let read = || {
        let (from, which) = (shapes.of(node.inputs.first()?)?, shapes.integers(node.inputs.get(1)?)?);
        let &[Size::Number(token)] = which else { return None };
        let axis = at(attributes.integer("axis", 0), from.len())?;
        // [batch, tokens, features]
        (from.len() == 3 && axis == 1 && (0..TOKENS).contains(&token)).then_some((axis, token))
    };
    Ok(read())
}

/// What `node` reads if only the first sizes along `axis` of what it makes are read; `None` if it has to be computed whole.
fn reads_of(node: &Node, axis: usize, shapes: &Shapes<'_>, opset: u64) -> io::Result<Option<Vec<Read>>> {
    let attributes = Attributes(node.integers()?);
    let reads = || {
        let rank = shapes.of(&node.outputs[0])?.len();
        let is_last = |default| at(attributes.integer("axis", default), rank) == Some(rank - 1);
        let first_only = |axis| {
            let mut reads = vec![Read::All; node.inputs.len()];
            *reads.first_mut()? = Read::First(axis);
            Some(reads)
        };
        match node.operator.as_str() {
            operator if ELEMENTWISE.contains(&operator) => {
                let read = |input: &String| {
                    let shape = shapes.of(input)?;
                    let axis = (axis + shape.len()).checked_sub(rank);
                    Some(axis.filter(|&axis| shape[axis] != Size::Number(1)).map_or(Read::All, Read::First))
                };
                node.inputs.iter().map(read).collect()
            }
            operator if QUANTIZING.contains(&operator) => {
                let are_scalars = node.inputs[1..].iter().all(|input| shapes.of(input).is_some_and(<[_]>::is_empty));
                first_only(axis).filter(|_| are_scalars)
            }
            "LayerNormalization" => {
                let are_vectors =
                    node.inputs[1..].iter().all(|input| shapes.of(input).is_some_and(|shape| shape.len() < 2));
                first_only(axis).filter(|_| axis + 1 < rank && is_last(-1) && are_vectors)
            }
            "Softmax" => {
                let default = if opset < SOFTMAX_OF_LAST { 1 } else { -1 };
                first_only(axis).filter(|_| axis + 1 < rank && is_last(default))
            }
            "ReduceMean" => {
                let is_apart = shapes.reduced_axes(node, &attributes)?.iter().all(|&reduced| reduced != axis);
                first_only(axis).filter(|_| is_apart)
            }
            "MatMul" => {
                let has_rows = shapes.of(&node.inputs[0])?.len() == rank && axis + 2 == rank;
                first_only(axis).filter(|_| has_rows)
            }
            "Transpose" => first_only(*attributes.0.get("perm")?.get(axis)? as usize),
            "Reshape" => {
                sizes_after(axis, node, shapes)?;
                Some(vec![Read::First(axis), Read::Nothing])
            }
            _ => None,
        }
    };
    // A value that is read in two ways by one node has one name.
    let is_plain = |reads: &Vec<Read>| {
        let inputs = || node.inputs.iter().zip(reads);
        inputs().all(|(input, read)| inputs().all(|(other, other_read)| input != other || read == other_read))
    };
    Ok(reads().filter(is_plain))
}

/// The sizes after `axis` that `node` reshapes to, if they are told in numbers, and if it keeps those up to `axis`.
fn sizes_after(axis: usize, node: &Node, shapes: &Shapes<'_>) -> Option<Vec<i64>> {
    let [from, to] = [&node.inputs[0], &node.outputs[0]].map(|value| shapes.of(value));
    let keeps = from?.get(..=axis)? == to?.get(..=axis)?;
    let after = shapes.integers(node.inputs.get(1)?)?.get(axis + 1..)?;
    after.iter().map(|size| size.number()).collect::<Option<_>>().filter(|_| keeps)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::onnx::parts::with_integers;
    use crate::runtime::test_graphs::{
        count, differing_floats, differing_values, fixture, same_answers, slim, value, write_model,
    };

    const TOKENS_IN_ALL: u64 = 5;
    const FEATURES: u64 = 8;

    /// How many products of matrices of the model are computed only at the first tokens, and at how many tokens.
    fn narrow_products(model: &[u8]) -> (usize, i64) {
        let model = Model::read(model).unwrap();
        let shapes = model.graph.shapes(&[]).unwrap();
        let Some(narrow) = Narrow::of(&model.graph, &shapes, model.opset).unwrap() else { return (0, 0) };
        let is_product = |index: &&usize| model.graph.nodes[**index].operator == "MatMul";
        (narrow.nodes.iter().filter(is_product).count(), narrow.tokens)
    }

    #[test]
    fn the_last_layer_of_each_family_answers_the_same() {
        // Queries, scores, values, projection, and two of the feed-forward layer. This DeiT has its last layer twice.
        for (file, side, output, layers, tokens) in [
            ("families/models/vit/model.onnx", 32, "logits", 1, 1),
            ("families/models/deit/model.onnx", 32, "logits", 2, 2),
            ("families/models/clip/vision_model.onnx", 32, "image_embeds", 1, 1),
            ("partitioned/tiny-vit/model.onnx", 16, "logits", 1, 1),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let copy = folder.path().join("model.onnx");
            let file = fixture("..").join(file);
            std::fs::copy(&file, &copy).unwrap();
            let weights = "model.onnx.data";
            if file.with_file_name(weights).exists() {
                std::fs::copy(file.with_file_name(weights), copy.with_file_name(weights)).unwrap();
            }
            let file = file.display();
            let slim = slim(&copy).unwrap();
            assert_eq!(narrow_products(&slim.bytes), (6 * layers, tokens), "{file}");
            let bytes = narrowed(&slim.bytes, &[]).unwrap().unwrap();
            let pictures = differing_values(&[3, 3, side, side]);
            let graph = same_answers(folder.path(), &bytes, ("pixel_values", pictures), output);
            let slices = graph.nodes.iter().filter(|node| node.outputs[0].ends_with("/first/1")).count();
            assert_eq!(slices, 2 * layers, "of what queries are made of, and of what the layer is added to: {file}");
            assert!(narrowed(&bytes, &[]).unwrap().is_none(), "there is nothing left to do: {file}");
        }
    }

    #[test]
    fn families_that_read_all_tokens_are_left_alone() {
        for file in [
            "dinov2/model.onnx",
            "beit/model.onnx",
            "swin/model.onnx",
            "siglip/vision_model.onnx",
            "clip/text_model.onnx",
        ] {
            let path = fixture("../families/models").join(file);
            assert!(narrowed(&std::fs::read(path).unwrap(), &[]).unwrap().is_none(), "{file}");
        }
    }

    /// A feed-forward layer, normalised as graphs of old versions are, whose first token is read.
    fn layer() -> Vec<Vec<u8>> {
        let mean = |of: &str, out: &str| with_integers(node("ReduceMean", &[of], &[out], None), "axes", &[u64::MAX]);
        vec![
            node("Add", &["x", "positions"], &["placed"], None),
            mean("placed", "mean"),
            node("Sub", &["placed", "mean"], &["centred"], None),
            node("Mul", &["centred", "centred"], &["squares"], None),
            mean("squares", "variance"),
            node("Add", &["variance", "one"], &["more"], None),
            node("Sqrt", &["more"], &["deviation"], None),
            node("Div", &["centred", "deviation"], &["normalised"], None),
            node("MatMul", &["normalised", "W"], &["product"], None),
            node("Add", &["placed", "product"], &["sum"], None),
            node("Gather", &["sum", "first"], &["out"], Some(("axis", 1))),
        ]
    }

    fn model(folder: &Path, nodes: &[Vec<u8>], outputs: &[(&str, &[u64])], opset: u64) -> Slim {
        let tensors = [
            differing_floats("positions", &[1, TOKENS_IN_ALL, FEATURES]),
            differing_floats("W", &[FEATURES, FEATURES]),
            differing_floats("one", &[]),
            sizes("first", &[0]),
            sizes("third", &[2]),
        ];
        let outputs: Vec<_> = outputs.iter().map(|(name, shape)| value(name, shape)).collect();
        let input = value("x", &[2, TOKENS_IN_ALL, FEATURES]);
        write_model(folder, nodes, &tensors, &[input], &outputs, opset)
    }

    #[test]
    fn a_layer_is_computed_where_it_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let slim = model(folder.path(), &layer(), &[("out", &[2, 1, FEATURES])], 13);
        let bytes = narrowed(&slim.bytes, &[]).unwrap().unwrap();
        let sizes = [2, TOKENS_IN_ALL, FEATURES].map(|size| size as usize);
        let rewritten = Model::read(&bytes).unwrap().graph;
        assert_eq!(count(&rewritten, "Slice"), 2, "of pictures and of positions");
        let flat = [layer(), vec![node("Flatten", &["out"], &["row"], None)]].concat();
        let slim = model(folder.path(), &flat, &[("row", &[2, FEATURES])], 13);
        let bytes = narrowed(&slim.bytes, &[]).unwrap().unwrap();
        same_answers(folder.path(), &bytes, ("x", differing_values(&sizes)), "row");
    }

    #[test]
    fn nodes_without_inputs_or_with_odd_ones_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let operators =
            ["Gather", "ConstantOfShape", "Reshape", "MatMul", "Conv", "Expand", "Concat", "Slice", "Shape"];
        let operators =
            operators.into_iter().chain(["Transpose", "ReduceMean", "Softmax"]).chain(ELEMENTWISE).chain(QUANTIZING);
        for operator in operators {
            for inputs in [&[][..], &["first"], &["x"], &["first", "first"], &["x", "x", "x"], &["", "x"]] {
                let odd = node(operator, inputs, &["odd"], Some(("axis", 7)));
                let nodes = [layer(), vec![odd, node("Add", &["out", "odd"], &["end"], None)]].concat();
                let slim = model(folder.path(), &nodes, &[("end", &[2, 1, FEATURES])], 13);
                let graph = Model::read(&narrowed(&slim.bytes, &[]).unwrap().unwrap()).unwrap().graph;
                assert_eq!(count(&graph, "Slice"), 2 + usize::from(operator == "Slice"), "{operator} {inputs:?}");
            }
        }
    }

    #[test]
    fn what_is_read_elsewhere_is_computed_whole() {
        let folder = tempfile::tempdir().unwrap();
        let products = |nodes: &[Vec<u8>], outputs: &[(&str, &[u64])], opset| {
            narrow_products(&model(folder.path(), nodes, outputs, opset).bytes).0
        };
        let with = |index: usize, node: Vec<u8>| {
            let mut nodes = layer();
            nodes[index] = node;
            nodes
        };
        let out: (&str, &[u64]) = ("out", &[2, 1, FEATURES]);
        let all: &[u64] = &[2, TOKENS_IN_ALL, FEATURES];
        assert_eq!(products(&layer(), &[out], 13), 1);
        assert_eq!(products(&layer(), &[out, ("sum", all)], 13), 0, "an output");
        assert_eq!(products(&layer(), &[out, ("product", all)], 13), 0, "another output");
        let third = with(10, node("Gather", &["sum", "third"], &["out"], Some(("axis", 1))));
        assert_eq!(products(&third, &[out], 13), 0, "no class token");
        let first_feature = with(10, node("Gather", &["sum", "first"], &["out"], Some(("axis", 2))));
        assert_eq!(products(&first_feature, &[out], 13), 0, "a feature of all tokens");
        let unheard = with(9, node("Exp", &["product"], &["sum"], None));
        assert_eq!(products(&unheard, &[out], 13), 0, "what an operator reads is not known");
        let over_tokens = with_integers(node("ReduceMean", &["product"], &["sum"], None), "axes", &[1]);
        assert_eq!(products(&with(9, over_tokens), &[out], 13), 0, "the mean of all tokens");
        let over_all = with_integers(node("ReduceMean", &["product"], &["sum"], None), "axes", &[]);
        assert_eq!(products(&with(9, over_all), &[out], 13), 0, "the mean of all there is");
        let mean = with_integers(node("ReduceMean", &["product"], &["mean of all"], None), "axes", &[1]);
        let pooled = [layer(), vec![mean, node("Mul", &["out", "mean of all"], &["pooled"], None)]].concat();
        assert_eq!(products(&pooled, &[("pooled", out.1)], 13), 0, "all tokens are read, too");
        let nesting = [layer(), vec![node("Loop", &["", "condition", "x"], &["again"], None)]].concat();
        let slim = model(folder.path(), &nesting, &[out], 13);
        assert!(narrowed(&slim.bytes, &[]).unwrap().is_none(), "the graph in the loop may read any token");
        let axis = "positions/first/1/axis";
        let taken = [layer(), vec![node("Identity", &["x"], &[axis], None)]].concat();
        let slim = model(folder.path(), &taken, &[out, (axis, all)], 13);
        assert!(slim.has_distinct_names());
        let slim = at_class_token(slim, folder.path(), &[]).unwrap();
        assert!(!slim.has_distinct_names(), "a name that it would give is taken");
        let twice = [layer(), vec![node("Identity", &["x"], &["sum"], None)]].concat();
        let slim = model(folder.path(), &twice, &[out], 13);
        assert!(narrowed(&slim.bytes, &[]).unwrap().is_none(), "two values have one name");
        let slim = model(folder.path(), &layer(), &[out], 9);
        assert!(narrowed(&slim.bytes, &[]).unwrap().is_none(), "Slice has its bounds as attributes");
    }
}
