//! Small ONNX models for the tests of what rewrites graphs.

use std::path::{Path, PathBuf};

use ndarray::{Array2, ArrayD, CowArray};

use super::onnx::file::Dimension;
use super::onnx::graph::{Graph, Model};
use super::onnx::parts::{floats, value_info};
use super::onnx::proto;
use super::onnx::protobuf::{put_bytes, put_number};
use super::rewriting::weights_in_file::{Slim, with_weights_in_file};
use super::{Graph as OpenGraph, OnnxFile, Runtime, SessionOptions, Tensor};

/// A file of the models in `tests/fixtures`.
pub(in crate::runtime) fn fixture(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models").join(file)
}

/// `TensorProto` of floats that differ.
pub(in crate::runtime) fn differing_floats(name: &str, shape: &[u64]) -> Vec<u8> {
    floats(name, shape, (0..shape.iter().product()).map(|index: u64| ((index * 37 % 101) as f32 - 50.0) / 200.0))
}

/// `ValueInfoProto` of floats.
pub(in crate::runtime) fn value(name: &str, sizes: &[u64]) -> Vec<u8> {
    let dimensions: Vec<_> = sizes.iter().map(|&size| Dimension::Fixed(size)).collect();
    value_info(name, proto::tensor::FLOAT, &dimensions)
}

/// The `NodeProto` with one more attribute.
pub(in crate::runtime) fn with_text(mut node: Vec<u8>, name: &str, text: &str) -> Vec<u8> {
    let mut attribute = Vec::new();
    put_bytes(&mut attribute, proto::attribute::NAME, name.as_bytes());
    put_bytes(&mut attribute, proto::attribute::TEXT, text.as_bytes());
    put_number(&mut attribute, proto::attribute::TYPE, 3);
    put_bytes(&mut node, proto::node::ATTRIBUTE, &attribute);
    node
}

/// The model in a file without its weights.
pub(in crate::runtime) fn slim(path: &Path) -> Option<Slim> {
    with_weights_in_file(path, &OnnxFile::read(path).unwrap().external_data).unwrap()
}

/// Writes a model into `folder`, and reads it without its weights. `inputs` and `outputs` are [`value`]s.
pub(in crate::runtime) fn write_model(
    folder: &Path,
    nodes: &[Vec<u8>],
    initializers: &[Vec<u8>],
    inputs: &[Vec<u8>],
    outputs: &[Vec<u8>],
    opset: u64,
) -> Slim {
    let (mut graph, mut model, mut version) = (Vec::new(), Vec::new(), Vec::new());
    put_bytes(&mut graph, 2, b"graph");
    let parts = [
        (proto::graph::NODE, nodes),
        (proto::graph::INITIALIZER, initializers),
        (proto::graph::INPUT, inputs),
        (proto::graph::OUTPUT, outputs),
    ];
    for (field, part) in parts.into_iter().flat_map(|(field, parts)| parts.iter().map(move |part| (field, part))) {
        put_bytes(&mut graph, field, part);
    }
    put_number(&mut model, 1, 8);
    put_bytes(&mut model, proto::model::GRAPH, &graph);
    put_number(&mut version, proto::opset::VERSION, opset);
    put_bytes(&mut model, proto::model::OPSET, &version);
    let path = folder.join("model.onnx");
    std::fs::write(&path, model).unwrap();
    slim(&path).unwrap()
}

/// Runs the model in `folder` and what it was rewritten to, whose outputs are to be the same; returns the graph of the latter.
pub(in crate::runtime) fn same_answers(
    folder: &Path,
    rewritten: &[u8],
    input: (&str, ArrayD<f32>),
    output: &str,
) -> Graph {
    std::fs::write(folder.join("rewritten.onnx"), rewritten).unwrap();
    let options = SessionOptions::reference(8, input.1.shape()[0], folder.to_owned());
    let runtime = Runtime::load(None).unwrap();
    let [before, after]: [Array2<f32>; 2] = ["model.onnx", "rewritten.onnx"].map(|name| {
        let graph = OpenGraph::open(&runtime, &folder.join(name), &options).unwrap();
        graph.run(&[(input.0, Tensor::F32(CowArray::from(input.1.view())))], output).unwrap()
    });
    let largest = |values: &Array2<f32>| values.iter().fold(0_f32, |largest, value| largest.max(value.abs()));
    let (apart, range) = (largest(&(&before - &after)), largest(&before));
    assert!(before.iter().chain(&after).all(|value| value.is_finite()), "{before} {after}");
    assert!(apart < 1e-5 * range && range > 0.1, "{apart} apart: {before} {after}");
    Model::read(rewritten).unwrap().graph
}

/// Values between -1 and 1 that differ.
pub(in crate::runtime) fn differing_values(shape: &[usize]) -> ArrayD<f32> {
    let mut next = 0;
    ArrayD::from_shape_simple_fn(shape, || {
        next += 1;
        (next * 7 % 11) as f32 / 5.0 - 1.0
    })
}

pub(in crate::runtime) fn count(graph: &Graph, operator: &str) -> usize {
    graph.nodes.iter().filter(|node| node.operator == operator).count()
}
