//! What ONNX Runtime's OpenVINO provider refuses, though OpenVINO knows it, told otherwise. What it refuses cuts the graph into parts, which
//! are slow, or cannot be put together ("Output names mismatch").
//!
//! - Some operators on scalars: Swin computes so by how much to fill its feature maps up to whole windows. They are given vectors of one.
//! - `IsNaN`, by which exports of `torch.export` guard each attention: what is none differs from itself.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use super::onnx_graph::{Graph, Model, Node};
use super::onnx_parts::{node, sizes};
use super::protobuf::put_bytes;
use super::weights_in_file::Slim;
use super::{RuntimeError, onnx_proto as proto};

/// Refused of any shape.
const IS_NAN: &str = "IsNaN";

/// Operators that are refused on scalars and stretch their inputs to one shape; found by trying them with OpenVINO in ONNX Runtime 1.24.
const REFUSED: [&str; 5] = ["Mod", "GreaterOrEqual", "LessOrEqual", "Or", "Xor"];

/// Others whose output has as many axes as the input that has most.
const STRETCHING: [&str; 15] = [
    "Abs", "Add", "And", "Cast", "Div", "Equal", "Greater", "Identity", "Less", "Max", "Min", "Mul", "Neg", "Sub",
    "Where",
];

/// The first version of ONNX whose `Unsqueeze` and `Squeeze` are told the axes by an input, as here.
const AXES_BY_INPUT: u64 = 13;

/// The graph, which is that of the file `path`, without what is refused.
///
/// # Errors
/// [`RuntimeError::Graph`]: it is no whole ONNX model.
pub(super) fn without_refused(slim: Slim, path: &Path) -> Result<Slim, RuntimeError> {
    slim.rewritten(path, told_otherwise)
}

fn told_otherwise(model: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let model = Model::read(model)?;
    let graph = &model.graph;
    let ranks = graph.ranks()?;
    let is_scalar = |value: &String| ranks.get(value.as_str()) == Some(&0);
    let has_refused_scalars =
        |node: &Node| REFUSED.contains(&node.operator.as_str()) && node.inputs.iter().any(is_scalar);
    let is_refused = |node: &&Node| node.operator == IS_NAN || has_refused_scalars(node);
    let count = graph.nodes.iter().filter(is_refused).count();
    if model.opset < AXES_BY_INPUT || count == 0 {
        return Ok(None);
    }
    tracing::debug!(nodes = count, "nodes that the OpenVINO provider refuses are told otherwise");
    let mut bytes = graph.without_nodes();
    for node in &graph.nodes {
        if node.operator == IS_NAN {
            put_is_nan(node, &mut bytes);
        } else if has_refused_scalars(node) {
            put_with_vectors(node, is_scalar, &mut bytes)?;
        } else {
            put_bytes(&mut bytes, proto::graph::NODE, &node.bytes);
        }
    }
    Ok(Some(model.with_graph(&bytes)))
}

/// Appends what is as the node `is_nan` to a `GraphProto`.
fn put_is_nan(is_nan: &Node, graph: &mut Vec<u8>) {
    let (of, output) = (is_nan.inputs[0].as_str(), &is_nan.outputs[0]);
    let is_number = format!("{output}/is number");
    put_bytes(graph, proto::graph::NODE, &node("Equal", &[of, of], &[&is_number], None));
    put_bytes(graph, proto::graph::NODE, &node("Not", &[&is_number], &[output], None));
}

/// Appends the node `of_scalars` with vectors in their place to a `GraphProto`.
fn put_with_vectors(of_scalars: &Node, is_scalar: impl Fn(&String) -> bool, graph: &mut Vec<u8>) -> io::Result<()> {
    let output = &of_scalars.outputs[0];
    let (axes, vector) = (format!("{output}/axes"), format!("{output}/vector"));
    put_bytes(graph, proto::graph::INITIALIZER, &sizes(&axes, &[0]));
    let mut vectors = HashMap::new();
    for value in of_scalars.inputs.iter().filter(|value| is_scalar(value)) {
        let vector = format!("{output}/vector of {value}");
        if vectors.insert(value.as_str(), vector.clone()).is_none() {
            put_bytes(graph, proto::graph::NODE, &node("Unsqueeze", &[value, &axes], &[&vector], None));
        }
    }
    let all_scalars = of_scalars.inputs.iter().all(&is_scalar);
    let name = |value: &str| match vectors.get(value) {
        Some(vector) => vector.clone(),
        None if value == output && all_scalars => vector.clone(),
        None => value.to_owned(),
    };
    put_bytes(graph, proto::graph::NODE, &of_scalars.renamed("of vectors", name)?);
    if all_scalars {
        put_bytes(graph, proto::graph::NODE, &node("Squeeze", &[&vector, &axes], &[output], None));
    }
    Ok(())
}

impl Graph {
    /// How many axes values have, of those that shapes are computed with.
    fn ranks(&self) -> io::Result<HashMap<&str, usize>> {
        let tensors = self.initializers.iter().map(|tensor| (tensor.name.as_str(), tensor.shape.len()));
        let mut ranks: HashMap<_, _> = tensors.collect();
        for node in &self.nodes {
            let [output, ..] = &node.outputs[..] else { continue };
            let of = |input: &String| ranks.get(input.as_str()).copied();
            let rank = match node.operator.as_str() {
                "Constant" => node.constant()?.map(|tensor| tensor.shape.len()),
                "Shape" | "Range" => Some(1),
                "Gather" => match node.inputs.iter().map(of).collect::<Option<Vec<_>>>().as_deref() {
                    Some(&[from, which]) => (from + which).checked_sub(1),
                    _ => None,
                },
                operator if REFUSED.contains(&operator) || STRETCHING.contains(&operator) => {
                    node.inputs.iter().map(of).collect::<Option<Vec<_>>>().and_then(|ranks| ranks.into_iter().max())
                }
                _ => None,
            };
            ranks.extend(rank.map(|rank| (output.as_str(), rank)));
        }
        Ok(ranks)
    }
}

#[cfg(test)]
mod tests {
    use super::super::onnx_parts::with_integer;
    use super::super::test_graphs::{count, differing_floats, differing_values, same_answers, value, write_model};
    use super::*;

    const SIZES: [u64; 2] = [2, 7];

    /// `x` with as many columns of what it begins with as make its width a multiple of 3.
    fn filled_up() -> Vec<Vec<u8>> {
        vec![
            node("Shape", &["x"], &["shape"], None),
            node("Gather", &["shape", "one"], &["width"], None),
            node("Mod", &["width", "three"], &["over"], None),
            node("Sub", &["three", "over"], &["missing"], None),
            node("Mod", &["missing", "three"], &["columns"], None),
            node("Range", &["zero", "columns", "one"], &["which"], None),
            node("GreaterOrEqual", &["which", "one"], &["is later"], None),
            with_integer(node("Cast", &["is later"], &["is later, as float"], None), "to", proto::tensor::FLOAT),
            with_integer(node("Gather", &["x", "which"], &["first"], None), "axis", 1),
            node("Add", &["first", "is later, as float"], &["more"], None),
            node("Concat", &["x", "more"], &["filled"], Some(("axis", 1))),
            node("MatMul", &["filled", "matrix"], &["out"], None),
        ]
    }

    fn model(folder: &Path, nodes: &[Vec<u8>], opset: u64) -> Slim {
        let scalar = |name, integer: u64| {
            let mut tensor = super::super::onnx_parts::tensor(name, &[], proto::tensor::INT64);
            put_bytes(&mut tensor, proto::tensor::RAW_DATA, &integer.to_le_bytes());
            tensor
        };
        let tensors = [scalar("zero", 0), scalar("one", 1), scalar("three", 3), differing_floats("matrix", &[9, 4])];
        write_model(folder, nodes, &tensors, &[value("x", &SIZES)], &[value("out", &[2, 4])], opset)
    }

    #[test]
    fn shapes_are_computed_with_vectors_as_with_scalars() {
        let folder = tempfile::tempdir().unwrap();
        let bytes = told_otherwise(&model(folder.path(), &filled_up(), 17).bytes).unwrap().unwrap();
        let graph = same_answers(folder.path(), &bytes, ("x", differing_values(&[2, 7])), "out");
        assert_eq!((count(&graph, "Unsqueeze"), count(&graph, "Squeeze")), (5, 2));
    }

    #[test]
    fn what_is_not_refused_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let is_rewritten =
            |nodes: &[Vec<u8>], opset| told_otherwise(&model(folder.path(), nodes, opset).bytes).unwrap().is_some();
        assert!(is_rewritten(&filled_up(), 17));
        assert!(!is_rewritten(&filled_up(), 12), "Unsqueeze has its axes as an attribute");
        let vectors = [node("Shape", &["x"], &["shape"], None), node("Mod", &["shape", "shape"], &["rest"], None)];
        assert!(!is_rewritten(&vectors, 17));
    }

    #[test]
    fn what_is_no_number_is_found_by_comparing_it_with_itself() {
        let folder = tempfile::tempdir().unwrap();
        let nodes = [
            node("Sqrt", &["x"], &["root"], None),
            node("IsNaN", &["root"], &["is none"], None),
            node("Where", &["is none", "x", "root"], &["known"], None),
            node("Concat", &["known", "known"], &["out"], Some(("axis", 1))),
        ];
        let bytes = told_otherwise(&model(folder.path(), &nodes, 17).bytes).unwrap().unwrap();
        let graph = same_answers(folder.path(), &bytes, ("x", differing_values(&[2, 7])), "out");
        assert_eq!(["IsNaN", "Equal", "Not"].map(|operator| count(&graph, operator)), [0, 1, 1]);
    }
}
