//! Nodes that ONNX Runtime's OpenVINO provider refuses, though OpenVINO knows them, expressed by others. What it refuses cuts the graph
//! into parts, which are slow, or cannot be put together ("Output names mismatch").
//!
//! - Some operators on scalars: Swin computes so by how much to fill its feature maps up to whole windows. They are given vectors of one.
//! - `IsNaN`, by which PyTorch's present exporter guards each attention: only NaN differs from itself.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use super::weights_in_file::Slim;
use crate::runtime::onnx::graph::{Model, Node};
use crate::runtime::onnx::parts::{node, sizes, with_integers};
use crate::runtime::onnx::protobuf::put_bytes;
use crate::runtime::{RuntimeError, onnx::proto};

/// Refused of any shape.
const IS_NAN: &str = "IsNaN";

/// Operators that are refused on scalars and stretch their inputs to one shape; found by trying them with OpenVINO in ONNX Runtime 1.24.
const REFUSED: [&str; 5] = ["Mod", "GreaterOrEqual", "LessOrEqual", "Or", "Xor"];

/// The first version of ONNX whose `Unsqueeze` and `Squeeze` are told the axes by an input.
const AXES_BY_INPUT: u64 = 13;
/// The first version of ONNX that compares floats.
const COMPARES_FLOATS: u64 = 11;

/// The graph, which is that of the file `path`, without what is refused.
///
/// # Errors
/// [`RuntimeError::Graph`]: it is no whole ONNX model.
pub(super) fn without_refused(slim: Slim, path: &Path) -> Result<Slim, RuntimeError> {
    slim.rewritten(path, expressed_by_others)
}

fn expressed_by_others(model: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let model = Model::read(model)?;
    let graph = &model.graph;
    let shapes = graph.shapes(&[])?;
    let rank = |value: &str| shapes.of(value).map(<[_]>::len);
    let has_refused_scalars = |node: &Node| {
        let of_inputs: Vec<_> = node.inputs.iter().map(|input| rank(input)).collect();
        // What may be a scalar or not makes something of which that is not known either, but for a vector beside it.
        let is_clear = of_inputs.iter().all(|rank| *rank == Some(0)) || of_inputs.iter().any(|rank| *rank > Some(0));
        REFUSED.contains(&node.operator.as_str()) && of_inputs.contains(&Some(0)) && is_clear && node.outputs.len() == 1
    };
    let is_nan = |node: &Node| {
        node.operator == IS_NAN
            && model.opset >= COMPARES_FLOATS
            && matches!((&node.inputs[..], &node.outputs[..]), ([_], [_]))
    };
    let count = graph.nodes.iter().filter(|node| is_nan(node) || has_refused_scalars(node)).count();
    if count == 0 {
        return Ok(None);
    }
    tracing::debug!(nodes = count, "nodes that the OpenVINO provider refuses are expressed by others");
    let graph = graph.with_replaced(|_, node, graph| {
        if is_nan(node) {
            put_is_nan(node, graph);
        } else if has_refused_scalars(node) {
            put_with_vectors(node, |value| rank(value) == Some(0), model.opset, graph)?;
        } else {
            return Ok(false);
        }
        Ok(true)
    })?;
    Ok(Some(model.with_graph(&graph)))
}

/// Appends what is as the node `is_nan` to a `GraphProto`.
fn put_is_nan(is_nan: &Node, graph: &mut Vec<u8>) {
    let (of, output) = (is_nan.inputs[0].as_str(), &is_nan.outputs[0]);
    let is_number = format!("{output}/is number");
    put_bytes(graph, proto::graph::NODE, &node("Equal", &[of, of], &[&is_number], None));
    put_bytes(graph, proto::graph::NODE, &node("Not", &[&is_number], &[output], None));
}

/// Appends the node `of_scalars` with vectors in their place to a `GraphProto`.
fn put_with_vectors(
    of_scalars: &Node,
    is_scalar: impl Fn(&str) -> bool,
    opset: u64,
    graph: &mut Vec<u8>,
) -> io::Result<()> {
    let output = &of_scalars.outputs[0];
    let (axes, vector) = (format!("{output}/axes"), format!("{output}/vector"));
    let vector_of = |value: &str| format!("{output}/vector of {value}");
    if opset >= AXES_BY_INPUT {
        put_bytes(graph, proto::graph::INITIALIZER, &sizes(&axes, &[0]));
    }
    let along_first_axis = |operator, value: &str, made: &str| match opset {
        AXES_BY_INPUT.. => node(operator, &[value, &axes], &[made], None),
        _ => with_integers(node(operator, &[value], &[made], None), "axes", &[0]),
    };
    let inputs = || of_scalars.inputs.iter().map(String::as_str);
    for value in inputs().filter(|value| is_scalar(value)).collect::<BTreeSet<_>>() {
        put_bytes(graph, proto::graph::NODE, &along_first_axis("Unsqueeze", value, &vector_of(value)));
    }
    let all_scalars = inputs().all(&is_scalar);
    let name = |value: &str| match value {
        value if value == output && all_scalars => vector.clone(),
        value if value != output && is_scalar(value) => vector_of(value),
        value => value.to_owned(),
    };
    put_bytes(graph, proto::graph::NODE, &of_scalars.renamed("of vectors", name)?);
    if all_scalars {
        put_bytes(graph, proto::graph::NODE, &along_first_axis("Squeeze", &vector, output));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ndarray::CowArray;

    use super::*;
    use crate::runtime::onnx::parts::with_integer;
    use crate::runtime::test_graphs::{count, differing_floats, differing_values, same_answers, value, write_model};
    use crate::runtime::{ExecutionProvider, Graph as OpenGraph, Runtime, SessionOptions, Tensor};

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
        model_with(&[], folder, nodes, opset)
    }

    fn model_with(more: &[Vec<u8>], folder: &Path, nodes: &[Vec<u8>], opset: u64) -> Slim {
        let scalar = |name, integer: u64| {
            let mut tensor = crate::runtime::onnx::parts::tensor(name, &[], proto::tensor::INT64);
            put_bytes(&mut tensor, proto::tensor::RAW_DATA, &integer.to_le_bytes());
            tensor
        };
        let tensors = [scalar("zero", 0), scalar("one", 1), scalar("three", 3), differing_floats("matrix", &[9, 4])];
        write_model(
            folder,
            nodes,
            &[&tensors[..], more].concat(),
            &[value("x", &SIZES)],
            &[value("out", &[2, 4])],
            opset,
        )
    }

    #[test]
    fn shapes_are_computed_with_vectors_as_with_scalars() {
        let folder = tempfile::tempdir().unwrap();
        for opset in [12, 17] {
            let bytes = expressed_by_others(&model(folder.path(), &filled_up(), opset).bytes).unwrap().unwrap();
            let graph = same_answers(folder.path(), &bytes, ("x", differing_values(&[2, 7])), "out");
            assert_eq!((count(&graph, "Unsqueeze"), count(&graph, "Squeeze")), (5, 2));
        }
    }

    #[test]
    fn a_name_that_is_given_again_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        for (name, is_distinct) in [("over/axes", false), ("others", true)] {
            let whole = model_with(&[sizes(name, &[7])], folder.path(), &filled_up(), 17);
            assert!(whole.has_distinct_names());
            let rewritten = without_refused(whole, folder.path()).unwrap();
            assert_eq!(rewritten.has_distinct_names(), is_distinct, "{name}");
        }
    }

    #[test]
    fn what_is_not_refused_or_may_be_no_scalar_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let is_rewritten =
            |nodes: &[Vec<u8>]| expressed_by_others(&model(folder.path(), nodes, 12).bytes).unwrap().is_some();
        let shape = || node("Shape", &["x"], &["shape"], None);
        let reduced = |keepdims| {
            let product = node("ReduceProd", &["shape"], &["size"], Some(("keepdims", keepdims)));
            [shape(), product, node("Mod", &["size", "three"], &["rest"], None)]
        };
        assert!(is_rewritten(&filled_up()));
        assert!(!is_rewritten(&[shape(), node("Mod", &["shape", "shape"], &["rest"], None)]), "vectors");
        assert!(!is_rewritten(&reduced(0)) && !is_rewritten(&reduced(1)), "a scalar or a vector");
        let squeezed = with_integers(node("Squeeze", &["first"], &["size"], None), "axes", &[0]);
        let first = with_integers(node("Unsqueeze", &["one"], &["first"], None), "axes", &[0]);
        assert!(is_rewritten(&[first, squeezed, node("Mod", &["size", "three"], &["rest"], None)]));
    }

    /// What `x` is where that has no root, and the root elsewhere.
    fn guarded() -> [Vec<u8>; 4] {
        [
            node("Sqrt", &["x"], &["root"], None),
            node("IsNaN", &["root"], &["is none"], None),
            node("Where", &["is none", "x", "root"], &["known"], None),
            node("Concat", &["known", "known"], &["out"], Some(("axis", 1))),
        ]
    }

    #[test]
    fn nan_is_found_by_comparing_it_with_itself() {
        let folder = tempfile::tempdir().unwrap();
        let bytes = expressed_by_others(&model(folder.path(), &guarded(), 17).bytes).unwrap().unwrap();
        let graph = same_answers(folder.path(), &bytes, ("x", differing_values(&[2, 7])), "out");
        assert_eq!(["IsNaN", "Equal", "Not"].map(|operator| count(&graph, operator)), [0, 1, 1]);
    }

    #[test]
    fn openvino_finds_nan_so() {
        let runtime = Runtime::load(None).unwrap();
        if !runtime.providers.contains(&ExecutionProvider::OpenVino) {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        model(folder.path(), &guarded(), 17);
        for &precision in ExecutionProvider::OpenVino.native_precisions() {
            let options = SessionOptions::reference(8, 2, folder.path().to_owned());
            let options = SessionOptions { provider: ExecutionProvider::OpenVino, precision, ..options };
            let graph = OpenGraph::open(&runtime, &folder.path().join("model.onnx"), &options).unwrap();
            assert_eq!(graph.node_counts().1, 0, "OpenVINO computes all");
            let x = differing_values(&[2, 7]);
            let out = graph.run(&[("x", Tensor::F32(CowArray::from(x.view())))], "out").unwrap();
            for (x, out) in x.iter().zip(out.slice(ndarray::s![.., ..7])) {
                let wanted = if *x < 0.0 { *x } else { x.sqrt() };
                assert!((out - wanted).abs() < 1e-2, "{precision:?}: {x} {out}");
            }
        }
    }
}
