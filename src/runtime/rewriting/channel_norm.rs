//! Layer normalisation over the channels of pictures, as ConvNeXt has it before its feed-forward layers. OpenVINO moves the
//! transposition that brings the channels to the end behind it, and then no longer knows it for one: it computes means, differences,
//! powers and quotients one after the other, a fifth to a third of ConvNeXt's time. Where `[batch, height, width, channels]` are
//! `[batch, pixels, channels]` meanwhile, a list, the transposition stays, and normalising is one kernel.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use super::weights_in_file::Slim;
use crate::runtime::onnx::graph::{Graph, Model, Node, Tensor};
use crate::runtime::onnx::parts::{node, sizes};
use crate::runtime::onnx::protobuf::put_bytes;
use crate::runtime::{RuntimeError, onnx::proto};

/// From `[batch, channels, height, width]` to `[batch, height, width, channels]`.
const TO_CHANNELS_LAST: [u64; 4] = [0, 2, 3, 1];

/// As axes are told from the end.
const LAST_AXIS: u64 = -1_i64 as u64;

/// In a `Reshape`: as it was, and what is left.
const AS_BEFORE: u64 = 0;
const THE_REST: u64 = -1_i64 as u64;

/// What normalising is made of where it is not one node.
const MEAN: &str = "ReduceMean";
const ELEMENTWISE: [&str; 6] = ["Add", "Sub", "Mul", "Div", "Pow", "Sqrt"];

/// The graph, which is that of the file `path`, with pictures whose channels are normalised as lists of pixels meanwhile.
///
/// # Errors
/// [`RuntimeError::Graph`]: it is no whole ONNX model.
pub(super) fn normalized_as_lists(slim: Slim, path: &Path) -> Result<Slim, RuntimeError> {
    slim.rewritten(path, with_lists)
}

fn with_lists(model: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let model = Model::read(model)?;
    let graph = &model.graph;
    if graph.has_graphs_inside() {
        return Ok(None);
    }
    let mut norms = Vec::new();
    for index in 0..graph.nodes.len() {
        norms.extend(graph.norm_behind(index)?);
    }
    if norms.is_empty() {
        return Ok(None);
    }
    tracing::debug!(norms = norms.len(), "pictures whose channels are normalised are lists of pixels meanwhile");
    let graph = graph.with_replaced(|index, node, graph| {
        let norm = norms.iter().find(|norm| norm.nodes.contains(&index));
        Ok(norm.map(|norm| norm.put(index, node, graph)).transpose()?.is_some())
    })?;
    Ok(Some(model.with_graph(&graph)))
}

/// A normalisation of the channels of a picture.
struct Norm<'g> {
    /// Indices.
    nodes: BTreeSet<usize>,
    input: &'g str,
    output: &'g str,
    channels: u64,
}

impl Graph {
    /// The normalisation of what the node `transposes`, if it is that.
    fn norm_behind(&self, transposes: usize) -> io::Result<Option<Norm<'_>>> {
        let transposed = &self.nodes[transposes];
        let is_channels_last = transposed.operator == "Transpose"
            && transposed.integers()?.get("perm").is_some_and(|axes| *axes == TO_CHANNELS_LAST);
        if !is_channels_last {
            return Ok(None);
        }
        let input = transposed.outputs[0].as_str();
        let (mut nodes, mut normalizes, mut widths) = (BTreeSet::new(), false, BTreeSet::new());
        // All that is of the picture, and what of it has a value for each channel.
        let (mut values, mut whole) = (BTreeSet::from([input]), BTreeSet::from([input]));
        for (index, node) in self.nodes.iter().enumerate().skip(transposes + 1) {
            let is_of = |values: &BTreeSet<&str>, value: &String| values.contains(value.as_str());
            if !node.inputs.iter().any(|value| is_of(&values, value)) {
                continue;
            }
            let is_norm = node.normalizes_last_axis()?;
            let others = || node.inputs.iter().filter(|value| !is_of(&values, value) && !value.is_empty());
            let of_others: Option<Vec<_>> =
                others().map(|value| self.vector_or_scalar(value)).collect::<io::Result<_>>()?;
            let Some(of_others) = of_others.filter(|_| is_norm || ELEMENTWISE.contains(&node.operator.as_str())) else {
                continue;
            };
            let made = node.outputs.iter().map(String::as_str);
            if node.inputs.iter().any(|value| is_of(&whole, value)) {
                widths.extend(of_others.into_iter().filter(|&width| width > 1));
                whole.extend(made.clone().filter(|_| node.operator != MEAN));
            } else if of_others.into_iter().any(|width| width > 1) {
                // What is made of means and vectors has channels that the picture need not have.
                continue;
            }
            normalizes |= is_norm;
            nodes.insert(index);
            values.extend(made);
        }
        let is_read_outside = |value: &&String| {
            self.outputs.contains(*value) || self.readers(value).iter().any(|reader| !nodes.contains(reader))
        };
        let mut read_outside = nodes.iter().flat_map(|&node| &self.nodes[node].outputs).filter(is_read_outside);
        let only = read_outside.next().filter(|_| read_outside.next().is_none());
        let norm = only.filter(|only| normalizes && whole.contains(only.as_str()) && widths.len() == 1);
        Ok(norm.zip(widths.pop_first()).map(|(output, channels)| Norm { nodes, input, output, channels }))
    }

    /// How many values `value` always has, if it is a vector or a scalar.
    fn vector_or_scalar(&self, value: &str) -> io::Result<Option<u64>> {
        let width = |tensor: &Tensor| (tensor.shape.len() < 2).then(|| tensor.values());
        if let Some(tensor) = self.vector(value).or_else(|| self.initializer(value)) {
            return Ok(width(tensor));
        }
        let constant = self.nodes.iter().find(|node| node.is_scalar && node.outputs.iter().any(|made| made == value));
        // One that is not told as a tensor is a float.
        Ok(constant
            .map(|node| node.constant().map(|tensor| tensor.as_ref().map_or(Some(1), width)))
            .transpose()?
            .flatten())
    }
}

impl Node {
    /// Does it, or a part of it, make means over the last axis?
    fn normalizes_last_axis(&self) -> io::Result<bool> {
        Ok(match self.operator.as_str() {
            "LayerNormalization" => {
                let axis = self.integers()?.remove("axis");
                self.outputs.len() == 1 && axis.is_none_or(|axis| axis == [LAST_AXIS])
            }
            MEAN => {
                let mut integers = self.integers()?;
                let keeps = integers.remove("keepdims").is_none_or(|keeps| keeps == [1]);
                keeps && integers.remove("axes").is_some_and(|axes| axes == [LAST_AXIS])
            }
            _ => false,
        })
    }
}

impl Norm<'_> {
    /// Appends its node `index` to a `GraphProto`, with what makes a list of the picture before the first, and a picture of the list
    /// behind the one that is read.
    fn put(&self, index: usize, member: &Node, graph: &mut Vec<u8>) -> io::Result<()> {
        let named = |what: &str| format!("{}/{what}", self.output);
        let (list, shape, list_shape, normalized) =
            (named("list"), named("shape"), named("list shape"), named("normalized"));
        if self.nodes.first() == Some(&index) {
            let list_sizes = [AS_BEFORE, THE_REST, self.channels];
            put_bytes(graph, proto::graph::INITIALIZER, &sizes(&list_shape, &list_sizes));
            put_bytes(graph, proto::graph::NODE, &node("Shape", &[self.input], &[&shape], None));
            put_bytes(graph, proto::graph::NODE, &node("Reshape", &[self.input, &list_shape], &[&list], None));
        }
        let name = |value: &str| match value {
            value if value == self.input => list.clone(),
            value if value == self.output => normalized.clone(),
            value => value.to_owned(),
        };
        put_bytes(graph, proto::graph::NODE, &member.renamed("of list", name)?);
        if member.outputs.iter().any(|value| value == self.output) {
            put_bytes(graph, proto::graph::NODE, &node("Reshape", &[&normalized, &shape], &[self.output], None));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::onnx::parts::{floats, transpose, with_integers};
    use crate::runtime::test_graphs::{count, differing_floats, differing_values, same_answers, value, write_model};

    const CHANNELS: u64 = 16;
    const SIDE: u64 = 3;
    const PICTURES: [u64; 4] = [2, CHANNELS, SIDE, SIDE];

    /// What is between the transposition and the product, as one node.
    fn one_node() -> Vec<Vec<u8>> {
        vec![node("LayerNormalization", &["last", "factor", "b"], &["normal"], Some(("axis", LAST_AXIS)))]
    }

    fn mean(of: &str, out: &str) -> Vec<u8> {
        with_integers(node(MEAN, &[of], &[out], None), "axes", &[LAST_AXIS])
    }

    /// The same in parts, as exporters write it for versions before 17.
    fn parts() -> Vec<Vec<u8>> {
        vec![
            mean("last", "mean"),
            node("Sub", &["last", "mean"], &["apart"], None),
            node("Pow", &["apart", "two"], &["squares"], None),
            mean("squares", "variance"),
            node("Add", &["variance", "epsilon"], &["above zero"], None),
            node("Sqrt", &["above zero"], &["deviation"], None),
            node("Div", &["apart", "deviation"], &["quotient"], None),
            node("Mul", &["quotient", "factor"], &["product"], None),
            node("Add", &["product", "b"], &["normal"], None),
        ]
    }

    /// A block of a ConvNeXt that normalises by these nodes.
    fn block(norm: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        let before = [node("Identity", &["bias"], &["b"], None), transpose("x", "last", &TO_CHANNELS_LAST)];
        let after = [
            node("MatMul", &["normal", "matrix"], &["multiplied"], None),
            node("Add", &["multiplied", "last"], &["sum"], None),
            transpose("sum", "first", &[0, 3, 1, 2]),
            node("Flatten", &["first"], &["out"], None),
        ];
        before.into_iter().chain(norm).chain(after).collect()
    }

    fn model(folder: &Path, nodes: &[Vec<u8>], outputs: &[(&str, &[u64])]) -> Slim {
        let tensors: [(&str, &[u64]); 6] = [
            ("by four", &[4]),
            ("factor", &[CHANNELS]),
            ("bias", &[CHANNELS]),
            ("two", &[]),
            ("epsilon", &[1]),
            ("matrix", &[CHANNELS; 2]),
        ];
        let tensors = tensors.map(|(name, shape)| match name {
            "two" => floats(name, shape, [2.0].into_iter()),
            "epsilon" => floats(name, shape, [1e-6].into_iter()),
            _ => differing_floats(name, shape),
        });
        let outputs: Vec<_> = outputs.iter().map(|(name, shape)| value(name, shape)).collect();
        write_model(folder, nodes, &tensors, &[value("x", &PICTURES)], &outputs, 17)
    }

    const OUT: (&str, &[u64]) = ("out", &[2, CHANNELS * SIDE * SIDE]);

    #[test]
    fn pictures_that_are_normalised_as_lists_are_the_same() {
        let folder = tempfile::tempdir().unwrap();
        for norm in [one_node(), parts()] {
            let slim = model(folder.path(), &block(norm), &[OUT]);
            let bytes = with_lists(&slim.bytes).unwrap().unwrap();
            let x = differing_values(&PICTURES.map(|size| size as usize));
            let graph = same_answers(folder.path(), &bytes, ("x", x), "out");
            assert_eq!((count(&graph, "Reshape"), count(&graph, "Shape")), (2, 1));
        }
    }

    #[test]
    fn what_is_no_such_normalisation_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let is_rewritten = |nodes: &[Vec<u8>], outputs: &[(&str, &[u64])]| {
            with_lists(&model(folder.path(), nodes, outputs).bytes).unwrap().is_some()
        };
        assert!(is_rewritten(&block(one_node()), &[OUT]));
        let with = |index: usize, node: Vec<u8>| {
            let mut nodes = block(parts());
            nodes[index] = node;
            nodes
        };
        assert!(
            !is_rewritten(&with(1, transpose("x", "last", &[0, 3, 2, 1])), &[OUT]),
            "rows and columns change places"
        );
        let over_columns = with_integers(node("ReduceMean", &["last"], &["mean"], None), "axes", &[2]);
        assert!(!is_rewritten(&with(2, over_columns), &[OUT]), "means of rows");
        let shape: &[u64] = &[2, SIDE, SIDE, CHANNELS];
        assert!(!is_rewritten(&block(parts()), &[OUT, ("apart", shape)]), "what is in between is read");
        let scaled_by = |of: &str, by: &str, out: &str| node("Mul", &[of, by], &[out], None);
        let means =
            vec![scaled_by("last", "factor", "scaled"), mean("scaled", "mean"), scaled_by("mean", "two", "normal")];
        assert!(!is_rewritten(&block(means), &[OUT]), "a mean for each pixel is read");
        let other_width =
            vec![scaled_by("last", "factor", "scaled"), mean("scaled", "mean"), scaled_by("mean", "by four", "normal")];
        assert!(!is_rewritten(&block(other_width), &[OUT]), "what is made of a mean is as wide as the vector");
        let scaled = vec![scaled_by("last", "factor", "normal")];
        assert!(!is_rewritten(&block(scaled), &[OUT]), "nothing is normalised");
        let nesting = [block(one_node()), vec![node("Loop", &["", "condition", "x"], &["again"], None)]].concat();
        assert!(!is_rewritten(&nesting, &[OUT]), "the graph in the loop may read anything");
    }
}
