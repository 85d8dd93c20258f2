//! Keys of attention as they come, to be multiplied by their rows. Graphs turn `[batch, tokens, heads, width]` to `[batch, heads, width,
//! tokens]` for that, value by value, which on a CPU takes longer than the product: a twentieth of the time of a ViT in bf16. As
//! `[batch, heads, tokens, width]` they are what OpenVINO's kernel for attention reads by itself. Sums are of the same products.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::Path;

use super::weights_in_file::Slim;
use crate::runtime::onnx::graph::{Graph, Model, Node};
use crate::runtime::onnx::parts::{DOMAIN, transpose};
use crate::runtime::onnx::protobuf::put_bytes;
use crate::runtime::{RuntimeError, onnx::proto};

/// The graph, which is that of the file `path`, with products by rows instead of by what they were turned to.
///
/// # Errors
/// [`RuntimeError::Graph`]: it is no whole ONNX model.
pub(super) fn with_keys_as_rows(slim: Slim, path: &Path) -> Result<Slim, RuntimeError> {
    slim.rewritten(path, by_rows)
}

fn by_rows(model: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let mut model = Model::read(model)?;
    let graph = &model.graph;
    if graph.has_graphs_inside() {
        return Ok(None);
    }
    let producers = graph.producers();
    let (mut products, mut turns) = (Vec::new(), BTreeMap::new());
    for (index, node) in graph.nodes.iter().enumerate() {
        if let Some((turn, axes)) = graph.turn_before(node, &producers)? {
            products.push(index);
            turns.insert(turn, axes);
        }
    }
    if products.is_empty() {
        return Ok(None);
    }
    tracing::debug!(products = products.len(), "keys are multiplied by rows");
    let graph = graph.with_replaced(|index, replaced, graph| {
        let bytes = match turns.get(&index) {
            Some(axes) => transpose(&replaced.inputs[0], &replaced.outputs[0], axes),
            None if products.contains(&index) => replaced.by_transposed(str::to_owned)?,
            None => return Ok(false),
        };
        put_bytes(graph, proto::graph::NODE, &bytes);
        Ok(true)
    })?;
    model.import(DOMAIN);
    Ok(Some(model.with_graph(&graph)))
}

impl Graph {
    /// The `Transpose` of what `product` multiplies by, if that brings the last axis before the last one for nobody else, and the axes as
    /// they are without that. What it turns may be scaled meanwhile.
    fn turn_before(&self, product: &Node, producers: &HashMap<&str, usize>) -> io::Result<Option<(usize, Vec<u64>)>> {
        let [_, by] = &product.inputs[..] else { return Ok(None) };
        if product.operator != "MatMul" {
            return Ok(None);
        }
        let mut value = by;
        loop {
            let producer = producers.get(value.as_str()).filter(|_| self.readers(value).len() == 1);
            let Some(&index) = producer.filter(|_| !self.outputs.contains(value)) else { return Ok(None) };
            let node = &self.nodes[index];
            match (node.operator.as_str(), &node.inputs[..]) {
                ("Mul" | "Div", [scaled, by]) if self.is_scalar(by) => value = scaled,
                ("Mul", [by, scaled]) if self.is_scalar(by) => value = scaled,
                ("Transpose", _) => {
                    let axes = node.integers()?.remove("perm");
                    return Ok(axes.and_then(|axes| Some((index, without_last_turn(axes)?))));
                }
                _ => return Ok(None),
            }
        }
    }
}

/// With the last two axes the other way round, if the last of what is turned is then the last.
fn without_last_turn(mut axes: Vec<u64>) -> Option<Vec<u64>> {
    let last = axes.len().checked_sub(1).filter(|&last| last >= 2)?;
    axes.swap(last - 1, last);
    (axes[last] == last as u64).then_some(axes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::onnx::parts::{FUSED_PRODUCT, floats, node};
    use crate::runtime::test_graphs::{count, differing_floats, differing_values, same_answers, value, write_model};

    /// Tokens, heads and their width.
    const SIZES: [u64; 3] = [5, 2, 4];

    /// Scores of attention, whose keys are scaled.
    fn attention() -> Vec<Vec<u8>> {
        vec![
            transpose("x", "queries", &[0, 2, 1, 3]),
            node("Mul", &["x", "other"], &["y"], None),
            transpose("y", "turned", &[0, 2, 3, 1]),
            node("Mul", &["scale", "turned"], &["keys"], None),
            node("MatMul", &["queries", "keys"], &["scores"], None),
            node("Flatten", &["scores"], &["out"], Some(("axis", 1))),
        ]
    }

    fn rewritten(folder: &Path, nodes: &[Vec<u8>]) -> Option<Vec<u8>> {
        let [tokens, heads, width] = SIZES;
        let initializers = [differing_floats("other", &SIZES), floats("scale", &[], [0.5].into_iter())];
        let inputs = [value("x", &[2, tokens, heads, width])];
        let slim =
            write_model(folder, nodes, &initializers, &inputs, &[value("out", &[2, heads * tokens * tokens])], 17);
        by_rows(&slim.bytes).unwrap()
    }

    #[test]
    fn products_by_rows_are_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let model = rewritten(folder.path(), &attention()).unwrap();
        let x = differing_values(&[2, 5, 2, 4]);
        let graph = same_answers(folder.path(), &model, ("x", x), "out");
        let counts = [FUSED_PRODUCT, "MatMul", "Transpose"].map(|operator| count(&graph, operator));
        assert_eq!(counts, [1, 0, 2]);
        let turn = graph.nodes.iter().find(|node| node.outputs[0] == "turned").unwrap();
        assert_eq!(turn.integers().unwrap()["perm"], [0, 2, 1, 3]);
        assert!(by_rows(&model).unwrap().is_none(), "once is enough");
    }

    #[test]
    fn what_others_read_or_what_is_turned_otherwise_stays() {
        let folder = tempfile::tempdir().unwrap();
        let with = |change: &dyn Fn(&mut Vec<Vec<u8>>)| {
            let mut nodes = attention();
            change(&mut nodes);
            rewritten(folder.path(), &nodes)
        };
        assert!(with(&|_| {}).is_some());
        let read_again = node("Relu", &["turned"], &["again"], None);
        assert_eq!(with(&|nodes| nodes.push(read_again.clone())), None);
        assert_eq!(with(&|nodes| nodes[4] = node("MatMul", &["keys", "queries"], &["scores"], None)), None);
        assert_eq!(with(&|nodes| nodes[2] = transpose("y", "turned", &[0, 2, 1, 3])), None);
        assert_eq!(with(&|nodes| nodes[3] = node("Add", &["turned", "scale"], &["keys"], None)), None);
    }
}
