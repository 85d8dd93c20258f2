//! The shapes of a graph's values, as far as its nodes tell them from those of its inputs. Sizes that are not known, such as that of a
//! batch, are told apart from each other, so that one can tell where a size stays what it was.

use std::collections::HashMap;
use std::io;

use super::file::Dimension;
use super::graph::{Graph, MOST_INTEGERS, Node, Tensor};
use super::parts::FUSED_PRODUCT;
use super::window::Window;

/// A size along an axis, or another integer that shapes are computed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::runtime) enum Size {
    Number(i64),
    /// Not known. Those of the same number are the same.
    Open(usize),
}

/// Operators whose output has the shape of their first input.
const PER_VALUE: [&str; 28] = [
    "Abs",
    "BatchNormalization",
    "Cast",
    "Ceil",
    "Clip",
    "DequantizeLinear",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "IsNaN",
    "LayerNormalization",
    "LeakyRelu",
    "LogSoftmax",
    "Neg",
    "Not",
    "QuantizeLinear",
    "Reciprocal",
    "Relu",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Sqrt",
    "Tanh",
];
/// Operators whose inputs are stretched to one shape.
const BROADCASTING: [&str; 17] = [
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Pow",
    "Equal",
    "Where",
    "Mod",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "And",
    "Or",
    "Xor",
    "Max",
    "Min",
];
/// Operators that go over a map by a window.
const WINDOWED: [&str; 3] = ["Conv", "MaxPool", "AveragePool"];

/// No more are seen in models.
const MOST_AXES: usize = 8;

/// The shapes of a graph's values, and the integers that some are.
pub(in crate::runtime) struct Shapes<'g> {
    shapes: HashMap<&'g str, Vec<Size>>,
    /// Of scalars and vectors.
    integers: HashMap<&'g str, Vec<Size>>,
    /// How many sizes that are not known have been met.
    open: usize,
}

impl Graph {
    /// The shape of each value of which it is known. `open` gives sizes for dimensions that the inputs leave open under a name.
    pub(in crate::runtime) fn shapes(&self, open: &[(String, usize)]) -> io::Result<Shapes<'_>> {
        let mut shapes = Shapes { shapes: HashMap::new(), integers: HashMap::new(), open: 0 };
        for tensor in &self.initializers {
            shapes.know(&tensor.name, tensor)?;
        }
        let mut named = HashMap::new();
        // Those without dimensions may be scalars, or of any shape.
        for (name, input) in self.inputs.iter().filter(|(_, input)| !input.dimensions.is_empty()) {
            let sizes = input.dimensions.iter().map(|dimension| {
                let size = match dimension {
                    Dimension::Fixed(size) => Some(*size),
                    Dimension::Named(name) => open.iter().find(|(open, _)| open == name).map(|(_, size)| *size as u64),
                    Dimension::Nameless => None,
                };
                match (size.and_then(|size| i64::try_from(size).ok()), dimension) {
                    (Some(size), _) => Size::Number(size),
                    (None, Dimension::Named(name)) => *named.entry(name).or_insert_with(|| shapes.unknown()),
                    // A negative size is none, too.
                    (None, _) => shapes.unknown(),
                }
            });
            let sizes = sizes.collect();
            shapes.shapes.insert(name, sizes);
        }
        for node in &self.nodes {
            shapes.follow(node)?;
        }
        Ok(shapes)
    }
}

impl<'g> Shapes<'g> {
    /// The shape of `value`, if it is known.
    pub(in crate::runtime) fn of(&self, value: &str) -> Option<&[Size]> {
        self.shapes.get(value).map(Vec::as_slice)
    }

    /// The integers that `value`, a scalar or a vector, always is.
    pub(in crate::runtime) fn integers(&self, value: &str) -> Option<&[Size]> {
        self.integers.get(value).map(Vec::as_slice)
    }

    /// The shape of `value`, if it has `N` axes and all sizes are known.
    pub(in crate::runtime) fn numbers<const N: usize>(&self, value: &str) -> Option<[u64; N]> {
        numbers(self.of(value)?)?.try_into().ok()
    }

    fn unknown(&mut self) -> Size {
        self.open += 1;
        Size::Open(self.open)
    }

    fn know(&mut self, name: &'g str, tensor: &Tensor) -> io::Result<()> {
        self.shapes.insert(name, tensor.shape.iter().map(|&size| Size::Number(size as i64)).collect());
        let integers = tensor.integers()?;
        self.integers.extend(integers.map(|integers| (name, integers.into_iter().map(Size::Number).collect())));
        Ok(())
    }

    /// Takes up what can be told of the output of `node`.
    fn follow(&mut self, node: &'g Node) -> io::Result<()> {
        let [output, ..] = &node.outputs[..] else { return Ok(()) };
        if let Some(tensor) = node.constant()? {
            return self.know(output, &tensor);
        }
        if node.is_scalar {
            self.shapes.insert(output, Vec::new());
        }
        let attributes = Attributes(node.integers()?);
        if let Some(integers) = self.integers_from(node, &attributes).filter(|integers| integers.len() <= MOST_INTEGERS)
        {
            self.integers.insert(output, integers);
        }
        if node.operator == "Split" {
            let parts = self.split_from(node, &attributes).unwrap_or_default();
            self.shapes.extend(node.outputs.iter().map(String::as_str).zip(parts));
            return Ok(());
        }
        let window = if WINDOWED.contains(&node.operator.as_str()) { Window::of(node)? } else { None };
        if let Some(shape) = self.shape_from(node, &attributes, window).filter(|shape| shape.len() <= MOST_AXES) {
            self.shapes.insert(output, shape);
        }
        Ok(())
    }

    /// The integers that `node` makes, if it does.
    fn integers_from(&self, node: &Node, attributes: &Attributes) -> Option<Vec<Size>> {
        let input = |index: usize| self.integers(node.inputs.get(index)?);
        Some(match node.operator.as_str() {
            "Shape" => {
                let from = self.of(node.inputs.first()?)?;
                let [start, end] = [("start", 0), ("end", i64::MAX)]
                    .map(|(name, default)| bound(attributes.integer(name, default), from.len()));
                from.get(start..end)?.to_vec()
            }
            "Identity" | "Cast" => input(0)?.to_vec(),
            // What has more axes is no vector.
            "Unsqueeze" if self.of(node.inputs.first()?)?.is_empty() && self.has_one_axis(node, attributes) => {
                input(0)?.to_vec()
            }
            "Squeeze" if self.of(node.inputs.first()?)? == [Size::Number(1)] => input(0)?.to_vec(),
            "Concat" => {
                let parts: Option<Vec<_>> = node.inputs.iter().map(|input| self.integers(input)).collect();
                parts?.concat()
            }
            "Gather" => {
                let (from, which) = (input(0)?, input(1)?);
                let chosen = which.iter().map(|index| from.get(at(index.number()?, from.len())?).copied());
                chosen.collect::<Option<_>>()?
            }
            "Slice" if node.inputs.len() < 5 => {
                let (from, &[Size::Number(start)], &[Size::Number(end)]) = (input(0)?, input(1)?, input(2)?) else {
                    return None;
                };
                from.get(bound(start, from.len())..bound(end, from.len()))?.to_vec()
            }
            _ => return None,
        })
    }

    /// Is it a single axis that `node` is told?
    fn has_one_axis(&self, node: &Node, attributes: &Attributes) -> bool {
        match node.inputs.get(1) {
            Some(axes) => self.integers(axes).is_some_and(|axes| axes.len() == 1),
            None => attributes.0.get("axes").is_some_and(|axes| axes.len() == 1),
        }
    }

    /// The shape of what `node` makes, if it can be told. `window` is that of the operators that have one.
    fn shape_from(&mut self, node: &Node, attributes: &Attributes, window: Option<Window>) -> Option<Vec<Size>> {
        let shape = |shapes: &Self, index: usize| shapes.of(node.inputs.get(index)?).map(<[_]>::to_vec);
        let shapes =
            |shapes: &Self| (0..node.inputs.len()).map(|index| shape(shapes, index)).collect::<Option<Vec<_>>>();
        let first = shape(self, 0);
        let axis = |rank| at(attributes.integer("axis", 0), rank);
        Some(match node.operator.as_str() {
            operator if PER_VALUE.contains(&operator) => first?,
            operator if BROADCASTING.contains(&operator) => {
                shapes(self)?.into_iter().map(Some).reduce(|one, other| self.stretched(&one?, &other?))??
            }
            "ConstantOfShape" => self.integers(node.inputs.first()?)?.to_vec(),
            "Squeeze" if self.integers(&node.outputs[0]).is_some() => Vec::new(),
            "Shape" | "Unsqueeze" | "Slice" if let Some(integers) = self.integers(&node.outputs[0]) => {
                vec![Size::Number(integers.len() as i64)]
            }
            "Shape" | "Range" => vec![self.unknown()],
            "Size" => Vec::new(),
            "Concat" => self.joined(&shapes(self)?, axis(first?.len())?)?,
            "Gather" => {
                let (from, which) = (first?, shape(self, 1)?);
                let along = axis(from.len())?;
                [&from[..along], &which, &from[along + 1..]].concat()
            }
            "Expand" => {
                let (from, [rank]) = (first?, self.numbers(node.inputs.get(1)?)?);
                let rank = from.len().max(usize::try_from(rank).ok().filter(|&rank| rank <= MOST_AXES)?);
                let size = |axis: usize| (axis + from.len()).checked_sub(rank).map(|axis| from[axis]);
                let is_kept = |size: &Size| size.number().is_some_and(|number| number != 1);
                (0..rank).map(|axis| size(axis).filter(is_kept).unwrap_or_else(|| self.unknown())).collect()
            }
            "Transpose" => {
                let from = first?;
                let reversed = || (0..from.len() as u64).rev().collect();
                let order = attributes.0.get("perm").cloned().unwrap_or_else(reversed);
                order.iter().map(|&axis| from.get(axis as usize).copied()).collect::<Option<_>>()?
            }
            "Reshape" => {
                let to = self.integers(node.inputs.get(1)?)?.to_vec();
                let keeps_sizes = attributes.integer("allowzero", 0) == 0 || !to.contains(&Size::Number(0));
                keeps_sizes.then(|| self.reshaped(&first?, &to)).flatten()?
            }
            operator @ ("MatMul" | FUSED_PRODUCT) => {
                let (one, mut other) = (first?, shape(self, 1)?);
                let is_fused = operator == FUSED_PRODUCT;
                if is_fused && attributes.0.keys().any(|name| name != "transB") {
                    return None;
                }
                if let [.., one, other] = &mut other[..]
                    && is_fused
                    && attributes.integer("transB", 0) != 0
                {
                    std::mem::swap(one, other);
                }
                let ([before @ .., rows, _], [other_before @ .., _, columns]) = (&one[..], &other[..]) else {
                    return None;
                };
                let mut product = self.stretched(before, other_before)?;
                product.extend([rows, columns]);
                product
            }
            "ReduceMean" if attributes.integer("keepdims", 1) == 1 => {
                let (mut means, axes) = (first?, self.reduced_axes(node, attributes)?);
                axes.into_iter().for_each(|axis| means[axis] = Size::Number(1));
                means
            }
            "GlobalAveragePool" => {
                let [batch, channels, _, _] = first?[..] else { return None };
                vec![batch, channels, Size::Number(1), Size::Number(1)]
            }
            operator => {
                let window = window?;
                let [batch, channels, height, width] = first?[..] else { return None };
                let weights = node.inputs.get(1).filter(|_| operator == "Conv");
                let channels = weights.map_or(Some(channels), |weights| self.of(weights)?.first().copied())?;
                let mut map = vec![batch, channels];
                for (axis, size) in [height, width].into_iter().enumerate() {
                    map.push(match size {
                        Size::Number(size) => {
                            Size::Number(window.output(axis, size.try_into().ok()?)?.try_into().ok()?)
                        }
                        Size::Open(_) => self.unknown(),
                    });
                }
                map
            }
        })
    }

    /// The shapes of the parts that `node` splits its first input into, if it is told their sizes.
    fn split_from(&self, node: &Node, attributes: &Attributes) -> Option<Vec<Vec<Size>>> {
        let [from, sizes] = &node.inputs[..] else { return None };
        let (from, sizes) = (self.of(from)?, self.integers(sizes)?);
        let along = at(attributes.integer("axis", 0), from.len())?;
        let part = |&size: &Size| [&from[..along], &[size], &from[along + 1..]].concat();
        Some(sizes.iter().map(part).collect())
    }

    /// The axes that `node`, which reduces its first input, goes along.
    pub(in crate::runtime) fn reduced_axes(&self, node: &Node, attributes: &Attributes) -> Option<Vec<usize>> {
        let rank = self.of(node.inputs.first()?)?.len();
        // None at all may mean all of them.
        let axes = match (attributes.0.get("axes"), node.inputs.get(1)) {
            (Some(axes), _) => axes.iter().map(|&axis| at(axis as i64, rank)).collect::<Option<Vec<_>>>(),
            (None, Some(axes)) => self.integers(axes)?.iter().map(|axis| at(axis.number()?, rank)).collect(),
            (None, None) => None,
        };
        axes.filter(|axes| !axes.is_empty())
    }

    /// The shape that both are stretched to, if they fit.
    fn stretched(&mut self, one: &[Size], other: &[Size]) -> Option<Vec<Size>> {
        let rank = one.len().max(other.len());
        let size = |shape: &[Size], axis: usize| match (axis + shape.len()).checked_sub(rank) {
            Some(axis) => shape[axis],
            None => Size::Number(1),
        };
        let both = (0..rank).map(|axis| {
            Some(match (size(one, axis), size(other, axis)) {
                (one, other) if one == other => one,
                (Size::Number(1), size) | (size, Size::Number(1)) => size,
                (Size::Number(_), Size::Number(_)) => return None,
                (number @ Size::Number(_), Size::Open(_)) | (Size::Open(_), number @ Size::Number(_)) => number,
                // One of them may be 1.
                (Size::Open(_), Size::Open(_)) => self.unknown(),
            })
        });
        both.collect()
    }

    /// The shape of `parts` one after the other along `axis`, if they fit.
    fn joined(&mut self, parts: &[Vec<Size>], axis: usize) -> Option<Vec<Size>> {
        let mut shape = parts.first()?.clone();
        if parts.iter().any(|part| part.len() != shape.len()) {
            return None;
        }
        for (index, size) in shape.iter_mut().enumerate() {
            let mut sizes = parts.iter().map(|part| part[index]);
            if index == axis {
                let sum = sizes.try_fold(0_i64, |sum, size| sum.checked_add(size.number()?));
                *size = sum.map_or_else(|| self.unknown(), Size::Number);
            } else if let Some(number) = sizes.find(|size| matches!(size, Size::Number(_))) {
                *size = number;
            }
        }
        Some(shape)
    }

    /// What a value of the shape `from` is reshaped to by the integers `to`: 0 keeps a size, and -1 leaves one to the others.
    fn reshaped(&mut self, from: &[Size], to: &[Size]) -> Option<Vec<Size>> {
        let mut shape = to.to_vec();
        for (axis, size) in shape.iter_mut().enumerate().filter(|(_, size)| **size == Size::Number(0)) {
            *size = *from.get(axis)?;
        }
        let mut left = shape.iter().enumerate().filter(|(_, size)| **size == Size::Number(-1)).map(|(axis, _)| axis);
        if let (Some(axis), None) = (left.next(), left.next()) {
            shape[axis] = self.rest(from, &shape, axis);
        }
        Some(shape)
    }

    /// The size along `axis` of `shape` that makes it as many values as `from` has.
    fn rest(&mut self, from: &[Size], shape: &[Size], axis: usize) -> Size {
        let (mut open, mut values) = (Vec::new(), 1_i64);
        for size in from {
            match size {
                Size::Number(number) => values = number.saturating_mul(values),
                size => open.push(*size),
            }
        }
        let mut divisor = 1_i64;
        for size in shape.iter().enumerate().filter(|(index, _)| *index != axis).map(|(_, size)| size) {
            match size {
                Size::Number(number) => divisor = number.saturating_mul(divisor),
                size => match open.iter().position(|open| open == size) {
                    Some(found) => drop(open.swap_remove(found)),
                    None => return self.unknown(),
                },
            }
        }
        match open[..] {
            [] if divisor > 0 && values % divisor == 0 => Size::Number(values / divisor),
            [size] if values == divisor => size,
            _ => self.unknown(),
        }
    }
}

/// The integers of each of a node's attributes.
pub(in crate::runtime) struct Attributes(pub(in crate::runtime) HashMap<String, Vec<u64>>);

impl Attributes {
    /// The attribute called `name`, or what it is without being told.
    pub(in crate::runtime) fn integer(&self, name: &str, default: i64) -> i64 {
        self.0.get(name).and_then(|integers| integers.first()).map_or(default, |&integer| integer as i64)
    }
}

impl Size {
    pub(in crate::runtime) fn number(self) -> Option<i64> {
        match self {
            Self::Number(number) => Some(number),
            Self::Open(_) => None,
        }
    }
}

/// The sizes as numbers, if all are known.
pub(in crate::runtime) fn numbers(sizes: &[Size]) -> Option<Vec<u64>> {
    sizes.iter().map(|size| size.number()?.try_into().ok()).collect()
}

/// How many values a shape of these `sizes` has, if they can be counted.
pub(in crate::runtime) fn values_of(sizes: &[u64]) -> Option<u64> {
    sizes.iter().try_fold(1_u64, |values, &size| values.checked_mul(size))
}

/// The place of `index`, which counts from the end if it is negative, in something of this length.
pub(in crate::runtime) fn at(index: i64, length: usize) -> Option<usize> {
    let index = if index < 0 { index.checked_add_unsigned(length as u64)? } else { index };
    usize::try_from(index).ok().filter(|&index| index < length)
}

/// A bound of a part of something of this length.
fn bound(index: i64, length: usize) -> usize {
    let index = if index < 0 { index.saturating_add_unsigned(length as u64) } else { index };
    usize::try_from(index).unwrap_or(0).min(length)
}

#[cfg(test)]
mod tests {
    use super::super::graph::Model;
    use super::super::parts::transposed_product;
    use super::super::parts::{node, sizes, transpose, with_integer, with_integers};
    use super::*;
    use crate::runtime::test_graphs::{differing_floats, fixture, value, with_text, write_model};

    #[test]
    fn shapes_of_maps_follow_from_that_of_the_picture() {
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
            with_text(window("Conv", &["dilated", "1x1"], "plain", &[("kernel_shape", &[1, 1])]), "auto_pad", "NOTSET"),
            with_text(
                window("Conv", &["dilated", "1x1"], "automatic", &[("kernel_shape", &[1, 1])]),
                "auto_pad",
                "VALID",
            ),
            node("Add", &["bounded", "pooled"], &["unfit"], None),
            node("Unheard", &["bounded"], &["unknown"], None),
            node("Add", &["bounded", "unknown"], &["unknown, too"], None),
        ];
        let tensors =
            [("7x7", vec![8, 3, 7, 7]), ("3x3", vec![4, 8, 3, 3]), ("1x1", vec![5, 4, 1, 1]), ("one", vec![])];
        let tensors = tensors.map(|(name, shape)| differing_floats(name, &shape));
        let folder = tempfile::tempdir().unwrap();
        let (x, out) = (value("x", &[2, 3, 32, 48]), value("bounded", &[2, 4, 4, 8]));
        let slim = write_model(folder.path(), &nodes, &tensors, &[x], &[out], 17);
        let graph = Model::read(&slim.bytes).unwrap().graph;
        let shapes = graph.shapes(&[]).unwrap();
        let map = |value: &str| shapes.numbers::<4>(value).unwrap();
        assert_eq!((map("stem"), map("pooled")), ([2, 8, 16, 24], [2, 8, 8, 12]));
        assert_eq!((map("dilated"), map("squeezed")), ([2, 4, 4, 8], [2, 4, 1, 1]));
        assert_eq!((map("scaled"), map("bounded")), ([2, 4, 4, 8], [2, 4, 4, 8]));
        assert_eq!(map("plain"), [2, 5, 4, 8]);
        let unknown = ["beyond", "automatic", "unfit", "unknown", "unknown, too"].map(|value| shapes.of(value));
        assert_eq!(unknown, [None; 5]);
    }

    #[test]
    fn open_dimensions_have_the_sizes_that_they_are_given() {
        let graph = Model::read(&std::fs::read(fixture("tiny-classifier/model.onnx")).unwrap()).unwrap().graph;
        let sizes = [("batch", 4), ("height", 32), ("width", 48)].map(|(name, size)| (name.to_owned(), size));
        assert_eq!(graph.shapes(&sizes).unwrap().numbers("pixel_values"), Some([4, 3, 32, 48]));
        let shapes = graph.shapes(&sizes[..2]).unwrap();
        assert_eq!(shapes.numbers::<4>("pixel_values"), None);
        assert_eq!(shapes.of("pixel_values").unwrap()[..3], [4, 3, 32].map(Size::Number));
    }

    #[test]
    fn sizes_that_are_not_known_are_told_apart() {
        let tensors = [("W", vec![6, 8]), ("U", vec![7, 8]), ("positions", vec![1, 5, 6])];
        let tensors = tensors.map(|(name, shape)| differing_floats(name, &shape)).into_iter();
        let integers = [("0", &[][..], 0), ("2", &[1], 2), ("-1", &[1], u64::MAX), ("4", &[1], 4), ("copy", &[1], 0)];
        let integers = integers.map(|(name, _, integer)| sizes(name, &[integer]));
        let nodes = [
            node("Add", &["x", "positions"], &["placed"], None),
            node("MatMul", &["placed", "W"], &["product"], None),
            node("Shape", &["placed"], &["shape"], None),
            node("Slice", &["shape", "copy", "2"], &["leading"], None),
            node("Concat", &["leading", "2", "4"], &["to heads"], Some(("axis", 0))),
            node("Reshape", &["product", "to heads"], &["heads"], None),
            transpose("heads", "turned", &[0, 2, 1, 3]),
            node("Concat", &["copy", "-1", "4"], &["to rows"], Some(("axis", 0))),
            node("Reshape", &["heads", "to rows"], &["rows"], None),
            node("Concat", &["-1", "2", "4"], &["to all"], Some(("axis", 0))),
            node("Reshape", &["heads", "to all"], &["all"], None),
            node("Concat", &["placed", "x"], &["twice"], Some(("axis", 1))),
            node("Gather", &["placed", "copy"], &["first"], Some(("axis", 1))),
            node("Softmax", &["all"], &["out"], None),
            node("Split", &["product", "parts"], &["left", "right"], Some(("axis", 2))),
            transposed_product("product", "U", "fused"),
            with_integer(transposed_product("product", "U", "of both"), "transA", 1),
            with_integer(node("MatMul", &["product", "copy"], &["odd"], None), "transB", 1),
            node("Split", &["product"], &["half", "other half"], Some(("axis", 2))),
            with_integers(with_integers(node("Shape", &["heads"], &["of rows"], None), "start", &[1]), "end", &[3]),
            with_integers(node("Reshape", &["heads", "to all"], &["exact"], None), "allowzero", &[1]),
            with_integers(node("Reshape", &["heads", "copy"], &["nothing"], None), "allowzero", &[1]),
        ];
        let x = super::super::parts::value_info(
            "x",
            super::super::proto::tensor::FLOAT,
            &[Dimension::Named("batch".to_owned()), Dimension::Nameless, Dimension::Fixed(6)],
        );
        let folder = tempfile::tempdir().unwrap();
        let tensors: Vec<_> = tensors.chain(integers).chain([sizes("parts", &[3, 5])]).collect();
        let slim = write_model(folder.path(), &nodes, &tensors, &[x], &[value("out", &[1, 2, 4])], 17);
        let graph = Model::read(&slim.bytes).unwrap().graph;
        let shapes = graph.shapes(&[]).unwrap();
        let &[batch, length, Size::Number(6)] = shapes.of("x").unwrap() else { panic!("{:?}", shapes.of("x")) };
        assert!(batch != length && batch.number().or(length.number()).is_none());
        let shape = |value: &str| shapes.of(value).unwrap().to_vec();
        let number = Size::Number;
        assert_eq!(shape("placed"), [batch, number(5), number(6)], "5 positions are added to as many or to one");
        assert_eq!(shape("product"), [batch, number(5), number(8)]);
        assert_eq!(
            (shape("left"), shape("right")),
            (vec![batch, number(5), number(3)], vec![batch, number(5), number(5)])
        );
        assert_eq!(shape("fused"), [batch, number(5), number(7)]);
        assert_eq!((shapes.of("of both"), shapes.of("odd")), (None, None), "no such products");
        assert_eq!((shapes.of("half"), shapes.of("other half")), (None, None), "not told");
        assert_eq!(shapes.integers("to heads").unwrap(), [batch, number(5), number(2), number(4)]);
        assert_eq!(shape("turned"), [batch, number(2), number(5), number(4)]);
        assert_eq!(shape("rows"), [batch, number(10), number(4)], "the batch is the same on both sides");
        assert_eq!(shapes.integers("of rows").unwrap(), [5, 2].map(number));
        assert_eq!((shape("exact").len(), shapes.of("nothing")), (3, None), "0 may be a size");
        assert_eq!(shape("first"), [batch, number(1), number(6)]);
        let [rows, ..] = shape("all")[..] else { panic!("it has axes") };
        assert!(rows.number().is_none() && rows != batch && rows != length, "the batch times five");
        let &[same, both, _] = shapes.of("twice").unwrap() else { panic!("it has axes") };
        assert!(same == batch && both.number().is_none() && both != length);
    }
}
