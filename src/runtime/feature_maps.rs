//! The shapes of feature maps in a convolutional graph, as far as its nodes tell them from those of its inputs.

use std::collections::HashMap;
use std::io;

use super::onnx_file::Dimension;
use super::onnx_graph::{Graph, Input, Node};

/// Sizes along `[batch, channels, height, width]`.
pub(super) type Shape = [u64; 4];

/// Operators whose output has the shape of their first input.
const PER_VALUE: [&str; 8] =
    ["Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Identity", "BatchNormalization"];
/// Operators whose inputs are stretched to one shape.
const BROADCASTING: [&str; 4] = ["Add", "Sub", "Mul", "Div"];
/// Operators that go over a map by a window of their own.
const POOLS: [&str; 2] = ["MaxPool", "AveragePool"];

impl Graph {
    /// The shape of each value that is known to be a feature map. `open` gives sizes for dimensions that the inputs leave open under
    /// a name.
    pub(super) fn feature_maps(&self, open: &[(String, usize)]) -> io::Result<HashMap<&str, Shape>> {
        let size = |dimension: &Dimension| match dimension {
            Dimension::Fixed(size) => Some(*size),
            Dimension::Named(name) => open.iter().find(|(open, _)| open == name).map(|(_, size)| *size as u64),
            Dimension::Nameless => None,
        };
        let mut maps = HashMap::new();
        for (name, Input { dimensions, .. }) in &self.inputs {
            let shape: Option<Vec<_>> = dimensions.iter().map(size).collect();
            maps.extend(shape.and_then(|shape| Shape::try_from(shape).ok()).map(|shape| (name.as_str(), shape)));
        }
        for node in &self.nodes {
            let shape = self.output_of(node, &maps)?;
            maps.extend(node.outputs.first().map(String::as_str).zip(shape));
        }
        Ok(maps)
    }

    /// The shape of what `node` makes of `maps`, if it is a feature map.
    fn output_of(&self, node: &Node, maps: &HashMap<&str, Shape>) -> io::Result<Option<Shape>> {
        let map = |value: &String| maps.get(value.as_str()).copied();
        let first = node.inputs.first().and_then(map);
        Ok(match (node.operator.as_str(), first) {
            ("Conv", Some(input)) => {
                let weights = node.inputs.get(1).and_then(|weights| self.initializer(weights));
                let window = Window::of(node)?.zip(weights);
                window.and_then(|(window, weights)| window.output(input, *weights.shape.first()?))
            }
            (operator, Some(input)) if POOLS.contains(&operator) => {
                Window::of(node)?.and_then(|window| window.output(input, input[1]))
            }
            ("GlobalAveragePool", Some([batch, channels, ..])) => Some([batch, channels, 1, 1]),
            (operator, first) if PER_VALUE.contains(&operator) => first,
            (operator, _) if BROADCASTING.contains(&operator) => {
                let maps = node.inputs.iter().filter(|input| !self.is_scalar(input)).map(map);
                maps.reduce(|one, other| one.zip(other).and_then(|(one, other)| stretched(one, other))).flatten()
            }
            _ => None,
        })
    }
}

/// The shape that both are stretched to, if they fit.
fn stretched(one: Shape, other: Shape) -> Option<Shape> {
    let fits = one.iter().zip(other).all(|(&one, other)| one == other || one == 1 || other == 1);
    fits.then(|| std::array::from_fn(|axis| one[axis].max(other[axis])))
}

/// The window of a convolution or pool: sizes along `[height, width]`.
pub(super) struct Window {
    pub(super) kernel: [u64; 2],
    pub(super) strides: [u64; 2],
    dilations: [u64; 2],
    /// Zeros before the map.
    pub(super) before: [u64; 2],
    /// Zeros after the map.
    pub(super) after: [u64; 2],
    /// Parts of the channels, each of which is convolved by itself.
    pub(super) groups: u64,
}

impl Window {
    /// That of `node`, if all about it is told in numbers.
    pub(super) fn of(node: &Node) -> io::Result<Option<Self>> {
        let attributes = node.integers()?;
        let pair = |name: &str, default| match attributes.get(name).map(Vec::as_slice) {
            Some(&[height, width]) => Some([height, width]),
            Some(_) => None,
            None => default,
        };
        let pads = match attributes.get("pads").map(Vec::as_slice) {
            Some(&[top, left, bottom, right]) => Some(([top, left], [bottom, right])),
            Some(_) => None,
            None => Some(([0; 2], [0; 2])),
        };
        let is_plain = !attributes.contains_key("auto_pad")
            && attributes.get("ceil_mode").is_none_or(|mode| mode.iter().all(|&mode| mode == 0));
        let groups = attributes.get("group").and_then(|group| group.first()).copied().unwrap_or(1);
        let window = || {
            let (before, after) = pads?;
            let (kernel, strides) = (pair("kernel_shape", None)?, pair("strides", Some([1; 2]))?);
            let dilations = pair("dilations", Some([1; 2]))?;
            (!strides.contains(&0)).then_some(Self { kernel, strides, dilations, before, after, groups })
        };
        Ok(window().filter(|_| is_plain))
    }

    /// The shape of a map of `channels` that it makes of one of the shape `input`.
    fn output(&self, [batch, _, height, width]: Shape, channels: u64) -> Option<Shape> {
        let along = |axis: usize, size: u64| {
            let reach = (self.kernel[axis].checked_sub(1)?).checked_mul(self.dilations[axis])?.checked_add(1)?;
            let padded = size.checked_add(self.before[axis])?.checked_add(self.after[axis])?;
            Some(padded.checked_sub(reach)? / self.strides[axis] + 1)
        };
        Some([batch, channels, along(0, height)?, along(1, width)?])
    }
}

#[cfg(test)]
mod tests {
    use super::super::onnx_graph::Model;
    use super::super::onnx_parts::{node, with_integers};
    use super::super::test_graphs::{differing_floats, value, write_model};

    #[test]
    fn shapes_follow_from_that_of_the_picture() {
        let window = |operator: &str, inputs: &[&str], out: &str, numbers: &[(&str, &[u64])]| {
            numbers.iter().fold(node(operator, inputs, &[out], None), |node, (name, integers)| {
                with_integers(node, name, integers)
            })
        };
        let nodes = [
            window(
                "Conv",
                &["x", "7x7"],
                "stem",
                &[("kernel_shape", &[7, 7]), ("strides", &[2, 2]), ("pads", &[3; 4])],
            ),
            window(
                "MaxPool",
                &["stem"],
                "pooled",
                &[("kernel_shape", &[3, 3]), ("strides", &[2, 2]), ("pads", &[1; 4])],
            ),
            window("Conv", &["pooled", "3x3"], "dilated", &[("kernel_shape", &[3, 3]), ("dilations", &[2, 2])]),
            node("GlobalAveragePool", &["dilated"], &["squeezed"], None),
            node("Mul", &["dilated", "squeezed"], &["scaled"], None),
            node("Add", &["scaled", "one"], &["shifted"], None),
            node("Clip", &["shifted", "one", "one"], &["bounded"], None),
            window("MaxPool", &["bounded"], "beyond", &[("kernel_shape", &[2, 2]), ("ceil_mode", &[1])]),
            window("Conv", &["bounded", "3x3"], "automatic", &[("kernel_shape", &[3, 3]), ("auto_pad", &[])]),
            node("Add", &["bounded", "pooled"], &["unfit"], None),
            node("Transpose", &["bounded"], &["turned"], None),
            node("Add", &["bounded", "turned"], &["unknown"], None),
        ];
        let tensors = [("7x7", vec![8, 3, 7, 7]), ("3x3", vec![4, 8, 3, 3]), ("one", vec![])];
        let tensors = tensors.map(|(name, shape)| differing_floats(name, &shape));
        let folder = tempfile::tempdir().unwrap();
        let (x, out) = (value("x", &[2, 3, 32, 48]), value("bounded", &[2, 4, 4, 8]));
        let slim = write_model(folder.path(), &nodes, &tensors, &[x], &[out], 17);
        let graph = Model::read(&slim.bytes).unwrap().graph;
        let maps = graph.feature_maps(&[]).unwrap();
        assert_eq!((maps["stem"], maps["pooled"]), ([2, 8, 16, 24], [2, 8, 8, 12]));
        assert_eq!((maps["dilated"], maps["squeezed"]), ([2, 4, 4, 8], [2, 4, 1, 1]));
        assert_eq!((maps["scaled"], maps["bounded"]), ([2, 4, 4, 8], [2, 4, 4, 8]));
        let unknown = ["beyond", "automatic", "unfit", "turned", "unknown"].map(|value| maps.get(value));
        assert_eq!(unknown, [None; 5]);
    }

    #[test]
    fn open_dimensions_have_the_sizes_that_they_are_given() {
        let path =
            std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/tiny-classifier/model.onnx");
        let graph = Model::read(&std::fs::read(path).unwrap()).unwrap().graph;
        let sizes = [("batch", 4), ("height", 32), ("width", 48)].map(|(name, size)| (name.to_owned(), size));
        assert_eq!(graph.feature_maps(&sizes).unwrap()["pixel_values"], [4, 3, 32, 48]);
        assert!(graph.feature_maps(&sizes[..2]).unwrap().is_empty());
    }
}
