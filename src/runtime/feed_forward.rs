//! The feed-forward layers of transformers in blocks. Their two matrices are larger than a core's cache, and OpenVINO reads all of
//! them from memory again for every few rows: it multiplies at two thirds of the speed that it has with matrices that stay there.
//! `act(x·A + a)·B` is the sum of `act(x·Aᵢ + aᵢ)·Bᵢ` over blocks of the layer's width, with matrices as small as one likes. What is
//! rounded is the sum after each block instead of once.

use std::collections::{BTreeSet, HashMap};
use std::io::{self, Cursor};
use std::path::Path;

use super::RuntimeError;
use super::protobuf::{Message, Value, put_bytes, put_number};
use super::weights_in_file::{Place, Slim, field as model_field};

/// Layers whose matrices fill more than this, in bytes of bf16, are cut: the cache (L2) of each core of the Xeons with AMX. Each
/// block's matrix fills at most half of it: the other half is for what is multiplied with it.
const CACHE: u64 = 2 << 20;
/// Widths of blocks are multiples of it: kernels compute so many columns at once.
const COLUMNS: u64 = 64;
/// The first version of ONNX whose `Split` is told the sizes by an input.
const SPLIT_BY_INPUT: u64 = 13;

/// What may stand between the two matrices: each value comes from the one in its place.
const ELEMENTWISE: [&str; 10] = ["Add", "Sub", "Mul", "Div", "Pow", "Erf", "Tanh", "Sigmoid", "Relu", "Gelu"];
/// Operators with graphs inside, which may use any value of the graph around them.
const NESTING: [&str; 3] = ["If", "Loop", "Scan"];

/// Fields of `onnx.proto3` of ONNX.
mod field {
    /// `ModelProto.opset_import`, of a domain and a version.
    pub(super) const OPSET: u64 = 8;
    pub(super) const OPSET_DOMAIN: u64 = 1;
    pub(super) const OPSET_VERSION: u64 = 2;
    /// `GraphProto`.
    pub(super) const NODE: u64 = 1;
    pub(super) const GRAPH_OUTPUT: u64 = 12;
    /// `ValueInfoProto.name`.
    pub(super) const VALUE_NAME: u64 = 1;
    /// `NodeProto`.
    pub(super) const INPUT: u64 = 1;
    pub(super) const OUTPUT: u64 = 2;
    pub(super) const NODE_NAME: u64 = 3;
    pub(super) const OPERATOR: u64 = 4;
    pub(super) const ATTRIBUTE: u64 = 5;
    pub(super) const DOMAIN: u64 = 7;
    /// `AttributeProto`; of its types 2 is `INT`.
    pub(super) const ATTRIBUTE_NAME: u64 = 1;
    pub(super) const FLOAT: u64 = 2;
    pub(super) const INTEGER: u64 = 3;
    pub(super) const TENSOR: u64 = 5;
    pub(super) const TYPE: u64 = 20;
    pub(super) const TYPE_INTEGER: u64 = 2;
    /// `TensorProto`; of its types 1 is `FLOAT` and 7 is `INT64`.
    pub(super) const DIMENSION: u64 = 1;
    pub(super) const DATA_TYPE: u64 = 2;
    pub(super) const DATA_FLOAT: u64 = 1;
    pub(super) const DATA_INT64: u64 = 7;
    pub(super) const TENSOR_NAME: u64 = 8;
}

type Bytes<'b> = Message<'b, Cursor<&'b [u8]>>;

/// The graph, which is that of the file `path`, with those of its feed-forward layers in blocks that are too large for a core's cache.
///
/// # Errors
/// [`RuntimeError::Graph`]: it is no whole ONNX model.
pub(super) fn in_blocks(slim: Slim, path: &Path) -> Result<Slim, RuntimeError> {
    match cut(&slim.bytes, CACHE) {
        Ok(Some(bytes)) => Ok(Slim { bytes, ..slim }),
        Ok(None) => Ok(slim),
        Err(error) => Err(RuntimeError::Graph(format!("{}: {error}", path.display()))),
    }
}

/// The model with its feed-forward layers in blocks; `None` if none of their matrices fills more than `cache` bytes.
fn cut(model: &[u8], cache: u64) -> io::Result<Option<Vec<u8>>> {
    let (mut rest, mut graph, mut version) = (Vec::new(), None, 0);
    fields_of(model, |message, number, value| match (number, value) {
        (model_field::GRAPH, Value::Bytes(length)) => {
            graph = Some(bytes_of(message, length)?);
            Ok(true)
        }
        (field::OPSET, Value::Bytes(length)) => {
            let opset = bytes_of(message, length)?;
            version = version.max(default_version(&opset)?);
            put_bytes(&mut rest, number, &opset);
            Ok(true)
        }
        _ => message.copy_field(number, value, &mut rest),
    })?;
    let Some(graph) = graph.filter(|_| version >= SPLIT_BY_INPUT) else { return Ok(None) };
    let graph = Graph::read(&graph)?;
    let layers: Vec<_> = (0..graph.nodes.len()).filter_map(|node| graph.layer(node, cache)).collect();
    if layers.is_empty() {
        return Ok(None);
    }
    tracing::debug!(layers = layers.len(), blocks = layers[0].blocks, "feed-forward layers are computed in blocks");
    put_bytes(&mut rest, model_field::GRAPH, &graph.with_blocks(&layers)?);
    Ok(Some(rest))
}

/// Goes through the fields of the message that `bytes` are.
fn fields_of(bytes: &[u8], mut inside: impl FnMut(&mut Bytes<'_>, u64, Value) -> io::Result<bool>) -> io::Result<()> {
    let mut message = Message { reader: &mut Cursor::new(bytes), left: bytes.len() as u64 };
    message.fields(|message, number, value| inside(message, number, *value))
}

fn bytes_of(message: &mut Bytes<'_>, length: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    message.nested(length, |nested| nested.copy(&mut bytes))?;
    Ok(bytes)
}

/// `OperatorSetIdProto`: the version of ONNX's own operators; 0 for those of others.
fn default_version(opset: &[u8]) -> io::Result<u64> {
    let (mut domain, mut version) = (String::new(), 0);
    fields_of(opset, |message, number, value| match (number, value) {
        (field::OPSET_DOMAIN, Value::Bytes(length)) => {
            domain = message.text(length)?;
            Ok(true)
        }
        (field::OPSET_VERSION, Value::Number(number)) => {
            version = number;
            Ok(false)
        }
        _ => Ok(false),
    })?;
    Ok(if domain.is_empty() { version } else { 0 })
}

/// `NodeProto`.
struct Node {
    bytes: Vec<u8>,
    /// With its domain before it where that is not ONNX's own.
    operator: String,
    inputs: Vec<String>,
    outputs: Vec<String>,
    /// A `Constant` of one value.
    is_scalar: bool,
}

impl Node {
    fn read(bytes: Vec<u8>) -> io::Result<Self> {
        let (mut operator, mut domain, mut inputs, mut outputs) =
            (String::new(), String::new(), Vec::new(), Vec::new());
        let mut is_scalar = false;
        fields_of(&bytes, |message, number, value| {
            let Value::Bytes(length) = value else { return Ok(false) };
            match number {
                field::INPUT => inputs.push(message.text(length)?),
                field::OUTPUT => outputs.push(message.text(length)?),
                field::OPERATOR => operator = message.text(length)?,
                field::DOMAIN => domain = message.text(length)?,
                field::ATTRIBUTE => is_scalar |= is_scalar_attribute(&bytes_of(message, length)?)?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        is_scalar &= operator == "Constant";
        if !matches!(domain.as_str(), "" | "ai.onnx") {
            operator = format!("{domain}.{operator}");
        }
        Ok(Self { bytes, operator, inputs, outputs, is_scalar })
    }

    /// The node of a block, with the names that this block has for what it reads and writes.
    fn renamed(&self, block: u64, name: impl Fn(&str) -> String) -> io::Result<Vec<u8>> {
        let mut renamed = Vec::new();
        fields_of(&self.bytes, |message, number, value| match (number, value) {
            (field::INPUT | field::OUTPUT, Value::Bytes(length)) => {
                put_bytes(&mut renamed, number, name(&message.text(length)?).as_bytes());
                Ok(true)
            }
            (field::NODE_NAME, Value::Bytes(length)) => {
                put_bytes(&mut renamed, number, format!("{}/{block}", message.text(length)?).as_bytes());
                Ok(true)
            }
            _ => message.copy_field(number, value, &mut renamed),
        })?;
        Ok(renamed)
    }
}

/// `AttributeProto`: a number, or a tensor of one value.
fn is_scalar_attribute(attribute: &[u8]) -> io::Result<bool> {
    let mut is_scalar = false;
    fields_of(attribute, |message, number, value| match (number, value) {
        (field::TENSOR, Value::Bytes(length)) => {
            is_scalar = Tensor::read(bytes_of(message, length)?)?.values() == 1;
            Ok(true)
        }
        (field::FLOAT, _) => {
            is_scalar = true;
            Ok(false)
        }
        _ => Ok(false),
    })?;
    Ok(is_scalar)
}

/// `TensorProto`.
struct Tensor {
    bytes: Vec<u8>,
    name: String,
    shape: Vec<u64>,
    data_type: u64,
    /// Where its values are, if in a file.
    place: Option<Place>,
}

impl Tensor {
    fn read(bytes: Vec<u8>) -> io::Result<Self> {
        let (mut name, mut shape, mut data_type) = (String::new(), Vec::new(), 0);
        fields_of(&bytes, |message, number, value| match (number, value) {
            (field::DIMENSION, Value::Number(dimension)) => {
                shape.push(dimension);
                Ok(false)
            }
            (field::DIMENSION, Value::Bytes(length)) => {
                shape.extend(message.numbers(length)?);
                Ok(true)
            }
            (field::DATA_TYPE, Value::Number(number)) => {
                data_type = number;
                Ok(false)
            }
            (field::TENSOR_NAME, Value::Bytes(length)) => {
                name = message.text(length)?;
                Ok(true)
            }
            _ => Ok(false),
        })?;
        let place = Place::read(&bytes)?;
        Ok(Self { bytes, name, shape, data_type, place })
    }

    fn values(&self) -> u64 {
        self.shape.iter().product()
    }

    /// One of `blocks` equal parts of the rows of a matrix in a file.
    fn rows(&self, block: u64, blocks: u64, name: &str) -> Option<Vec<u8>> {
        let place = self.place.as_ref()?;
        let length = place.length / blocks;
        let mut rows = Vec::new();
        put_number(&mut rows, field::DIMENSION, self.shape[0] / blocks);
        put_number(&mut rows, field::DIMENSION, self.shape[1]);
        put_number(&mut rows, field::DATA_TYPE, self.data_type);
        put_bytes(&mut rows, field::TENSOR_NAME, name.as_bytes());
        Place { file: place.file.clone(), offset: place.offset + block * length, length }.put(&mut rows);
        Some(rows)
    }
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

/// `GraphProto`.
struct Graph {
    nodes: Vec<Node>,
    initializers: Vec<Tensor>,
    outputs: BTreeSet<String>,
    /// The nodes that read each value, once for each time they do.
    readers: HashMap<String, Vec<usize>>,
    /// All else, as it is.
    rest: Vec<u8>,
}

impl Graph {
    fn read(bytes: &[u8]) -> io::Result<Self> {
        let (mut nodes, mut initializers, mut outputs, mut rest) =
            (Vec::new(), Vec::new(), BTreeSet::new(), Vec::new());
        fields_of(bytes, |message, number, value| match (number, value) {
            (field::NODE, Value::Bytes(length)) => {
                nodes.push(Node::read(bytes_of(message, length)?)?);
                Ok(true)
            }
            (model_field::INITIALIZER, Value::Bytes(length)) => {
                initializers.push(Tensor::read(bytes_of(message, length)?)?);
                Ok(true)
            }
            (field::GRAPH_OUTPUT, Value::Bytes(length)) => {
                let output = bytes_of(message, length)?;
                fields_of(&output, |message, number, value| match (number, value) {
                    (field::VALUE_NAME, Value::Bytes(length)) => Ok(outputs.insert(message.text(length)?)),
                    _ => Ok(false),
                })?;
                put_bytes(&mut rest, number, &output);
                Ok(true)
            }
            _ => message.copy_field(number, value, &mut rest),
        })?;
        let mut readers: HashMap<String, Vec<usize>> = HashMap::new();
        for (index, node) in nodes.iter().enumerate() {
            for input in &node.inputs {
                readers.entry(input.clone()).or_default().push(index);
            }
        }
        Ok(Self { nodes, initializers, outputs, readers, rest })
    }

    fn readers(&self, value: &str) -> &[usize] {
        self.readers.get(value).map_or(&[], Vec::as_slice)
    }

    fn initializer(&self, name: &str) -> Option<&Tensor> {
        self.initializers.iter().find(|tensor| tensor.name == name)
    }

    /// The matrix that `node` multiplies what it is given with, if its values are floats in a file.
    fn matrix(&self, node: &Node) -> Option<&Tensor> {
        let name = node.inputs.get(1).filter(|_| node.operator == "MatMul")?;
        let is_matrix = |tensor: &&Tensor| tensor.shape.len() == 2 && tensor.data_type == field::DATA_FLOAT;
        self.initializer(name).filter(is_matrix).filter(|tensor| tensor.place.is_some())
    }

    fn is_scalar(&self, value: &str) -> bool {
        self.initializer(value).is_some_and(|tensor| tensor.values() == 1)
            || self.nodes.iter().any(|node| node.is_scalar && node.outputs[0] == value)
    }

    /// The vector of `width` values that `value` always is: an initializer, or another name of one.
    fn is_vector(&self, value: &str, width: u64) -> bool {
        let other_name = || {
            let node = self.nodes.iter().find(|node| node.outputs.iter().any(|output| output == value))?;
            self.initializer(node.inputs.first().filter(|_| node.operator == "Identity")?)
        };
        self.initializer(value).or_else(other_name).is_some_and(|tensor| tensor.shape == [width])
    }

    /// The feed-forward layer that begins with the node `first`, if there is one that is too large for the cache.
    fn layer(&self, first: usize, cache: u64) -> Option<Layer<'_>> {
        let node = &self.nodes[first];
        let matrix = self.matrix(node)?;
        let width = matrix.shape[1];
        let product = node.outputs[0].as_str();
        let bias = self.bias(product, width);
        let start = bias.map_or(product, |(sum, _)| &self.nodes[sum].outputs[0]);
        let (mut activation, mut values, mut last) = (BTreeSet::new(), vec![start], None);
        while let Some(value) = values.pop() {
            if self.outputs.contains(value) {
                return None;
            }
            for &reader in self.readers(value) {
                let node = &self.nodes[reader];
                if self.matrix(node).is_some() && node.inputs[0] == value {
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
        let last = last?;
        let within = |value: &String| {
            value == start
                || activation.iter().any(|&node| self.nodes[node].outputs.contains(value))
                || self.is_scalar(value)
        };
        if !activation.iter().all(|&node| self.nodes[node].inputs.iter().all(within)) {
            return None;
        }
        let second = self.matrix(&self.nodes[last]).filter(|second| second.shape[0] == width)?;
        // Graphs inside nodes may read what is about to go.
        if self.nodes.iter().any(|node| NESTING.contains(&node.operator.as_str())) {
            return None;
        }
        let blocks = blocks(width, matrix.shape[0].max(second.shape[1]), cache)?;
        Some(Layer { first: matrix, bias, activation, second, products: [first, last], blocks })
    }

    /// The node that adds a bias of `width` values to `product`, and that bias.
    fn bias(&self, product: &str, width: u64) -> Option<(usize, &str)> {
        let &[sum] = self.readers(product) else { return None };
        let node = &self.nodes[sum];
        let bias = node.inputs.iter().find(|input| *input != product).filter(|_| node.operator == "Add")?;
        self.is_vector(bias, width).then_some((sum, bias.as_str()))
    }

    /// The graph with `layers` in blocks.
    fn with_blocks(&self, layers: &[Layer<'_>]) -> io::Result<Vec<u8>> {
        let mut graph = self.rest.clone();
        for tensor in &self.initializers {
            let is_cut = layers.iter().any(|layer| layer.second.name == tensor.name);
            if !is_cut || self.readers(&tensor.name).len() > 1 {
                put_bytes(&mut graph, model_field::INITIALIZER, &tensor.bytes);
            }
        }
        let gone: BTreeSet<_> = layers.iter().flat_map(Layer::nodes).collect();
        for (index, node) in self.nodes.iter().enumerate() {
            if let Some(layer) = layers.iter().find(|layer| layer.products[1] == index) {
                self.put_layer(layer, &mut graph)?;
            } else if !gone.contains(&index) {
                put_bytes(&mut graph, field::NODE, &node.bytes);
            }
        }
        Ok(graph)
    }

    /// Appends the nodes and initializers of `layer` in blocks.
    fn put_layer(&self, layer: &Layer<'_>, graph: &mut Vec<u8>) -> io::Result<()> {
        let end = &self.nodes[layer.products[1]].outputs[0];
        let of_block = |block: u64, value: &str| format!("{value}/{end}/{block}");
        // Columns lie apart in the file, so this matrix is cut when the graph is opened; the rows of the other are told by their places.
        let sizes = format!("{end}/sizes");
        put_bytes(
            graph,
            model_field::INITIALIZER,
            &equal_sizes(&sizes, layer.blocks, layer.first.shape[1] / layer.blocks),
        );
        for (value, axis) in
            [Some((layer.first.name.as_str(), 1)), layer.bias.map(|(_, bias)| (bias, 0))].into_iter().flatten()
        {
            let parts: Vec<_> = (0..layer.blocks).map(|block| of_block(block, value)).collect();
            put_bytes(graph, field::NODE, &node("Split", &[value, &sizes], &parts, Some(("axis", axis))));
        }
        let nodes: Vec<_> = layer.nodes().map(|node| &self.nodes[node]).collect();
        let mut own: BTreeSet<_> = nodes.iter().flat_map(|node| &node.outputs).map(String::as_str).collect();
        own.extend([layer.first.name.as_str(), layer.second.name.as_str()]);
        own.extend(layer.bias.map(|(_, bias)| bias));
        let mut sum = of_block(0, end);
        for block in 0..layer.blocks {
            if let Some(rows) = layer.second.rows(block, layer.blocks, &of_block(block, &layer.second.name)) {
                put_bytes(graph, model_field::INITIALIZER, &rows);
            }
            let name = |value: &str| if own.contains(value) { of_block(block, value) } else { value.to_owned() };
            for node in &nodes {
                put_bytes(graph, field::NODE, &node.renamed(block, name)?);
            }
            if block > 0 {
                let next =
                    if block + 1 == layer.blocks { end.clone() } else { format!("{}/sum", of_block(block, end)) };
                put_bytes(graph, field::NODE, &node("Add", &[&sum, &of_block(block, end)], &[&next], None));
                sum = next;
            }
        }
        Ok(())
    }
}

/// `TensorProto`: `size`, `count` times.
fn equal_sizes(name: &str, count: u64, size: u64) -> Vec<u8> {
    let mut tensor = Vec::new();
    put_number(&mut tensor, field::DIMENSION, count);
    put_number(&mut tensor, field::DATA_TYPE, field::DATA_INT64);
    put_bytes(&mut tensor, field::TENSOR_NAME, name.as_bytes());
    put_bytes(&mut tensor, model_field::RAW_DATA, &size.to_le_bytes().repeat(count as usize));
    tensor
}

/// `NodeProto`, called like its first output.
fn node(operator: &str, inputs: &[&str], outputs: &[impl AsRef<str>], attribute: Option<(&str, u64)>) -> Vec<u8> {
    let mut node = Vec::new();
    for input in inputs {
        put_bytes(&mut node, field::INPUT, input.as_bytes());
    }
    for output in outputs {
        put_bytes(&mut node, field::OUTPUT, output.as_ref().as_bytes());
    }
    put_bytes(&mut node, field::NODE_NAME, outputs[0].as_ref().as_bytes());
    put_bytes(&mut node, field::OPERATOR, operator.as_bytes());
    if let Some((name, integer)) = attribute {
        let mut attribute = Vec::new();
        put_bytes(&mut attribute, field::ATTRIBUTE_NAME, name.as_bytes());
        put_number(&mut attribute, field::INTEGER, integer);
        put_number(&mut attribute, field::TYPE, field::TYPE_INTEGER);
        put_bytes(&mut node, field::ATTRIBUTE, &attribute);
    }
    node
}

/// Into how many blocks a layer of `width` is cut whose matrices have `height` values for each column; `None` if it is small enough,
/// or if no number fits.
fn blocks(width: u64, height: u64, cache: u64) -> Option<u64> {
    let bytes = |columns: u64| columns.saturating_mul(height).saturating_mul(2);
    if bytes(width) <= cache {
        return None;
    }
    (2..=width / COLUMNS).find(|blocks| width.is_multiple_of(blocks * COLUMNS) && bytes(width / blocks) <= cache / 2)
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, CowArray};

    use super::super::weights_in_file::with_weights_in_file;
    use super::super::{ExecutionProvider, Graph as OpenGraph, Precision, Runtime, SessionOptions, Tensor as Batch};
    use super::*;

    const HEIGHT: usize = 32;
    const WIDTH: usize = 192;
    /// A third of the matrices fits in half of it.
    const SMALL_CACHE: u64 = (HEIGHT * 64 * 2 * 2) as u64;

    /// `TensorProto` of floats that differ.
    fn tensor(name: &str, shape: &[usize]) -> Vec<u8> {
        let values = (0..shape.iter().product()).map(|index: usize| ((index * 37 % 101) as f32 - 50.0) / 200.0);
        let mut tensor = Vec::new();
        for &dimension in shape {
            put_number(&mut tensor, field::DIMENSION, dimension as u64);
        }
        put_number(&mut tensor, field::DATA_TYPE, field::DATA_FLOAT);
        put_bytes(&mut tensor, field::TENSOR_NAME, name.as_bytes());
        put_bytes(&mut tensor, model_field::RAW_DATA, &values.flat_map(f32::to_le_bytes).collect::<Vec<_>>());
        tensor
    }

    /// `ValueInfoProto` of a matrix of two rows.
    fn value(name: &str, columns: usize) -> Vec<u8> {
        let (mut shape, mut tensor, mut of_type, mut info) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for size in [2, columns] {
            let mut dimension = Vec::new();
            put_number(&mut dimension, 1, size as u64);
            put_bytes(&mut shape, 1, &dimension);
        }
        put_number(&mut tensor, 1, field::DATA_FLOAT);
        put_bytes(&mut tensor, 2, &shape);
        put_bytes(&mut of_type, 1, &tensor);
        put_bytes(&mut info, field::VALUE_NAME, name.as_bytes());
        put_bytes(&mut info, 2, &of_type);
        info
    }

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
    fn model(folder: &Path, nodes: &[Vec<u8>], outputs: &[(&str, usize)], opset: u64) -> Slim {
        let (mut graph, mut model, mut version) = (Vec::new(), Vec::new(), Vec::new());
        for node in nodes {
            put_bytes(&mut graph, field::NODE, node);
        }
        put_bytes(&mut graph, 2, b"graph");
        let tensors: [(&str, &[usize]); 4] =
            [("A", &[HEIGHT, WIDTH]), ("bias", &[WIDTH]), ("scale", &[]), ("B", &[WIDTH, HEIGHT])];
        for (name, shape) in tensors {
            put_bytes(&mut graph, model_field::INITIALIZER, &tensor(name, shape));
        }
        put_bytes(&mut graph, 11, &value("x", HEIGHT));
        for (name, columns) in outputs {
            put_bytes(&mut graph, field::GRAPH_OUTPUT, &value(name, *columns));
        }
        put_number(&mut model, 1, 8);
        put_bytes(&mut model, model_field::GRAPH, &graph);
        put_number(&mut version, field::OPSET_VERSION, opset);
        put_bytes(&mut model, field::OPSET, &version);
        let path = folder.join("model.onnx");
        std::fs::write(&path, model).unwrap();
        with_weights_in_file(&path).unwrap().unwrap()
    }

    #[test]
    fn a_layer_in_blocks_computes_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let slim = model(folder.path(), &layer(), &[("out", HEIGHT)], 17);
        let bytes = cut(&slim.bytes, SMALL_CACHE).unwrap().unwrap();
        std::fs::write(folder.path().join("cut.onnx"), &bytes).unwrap();
        let mut graph = Vec::new();
        fields_of(&bytes, |message, number, value| match (number, value) {
            (model_field::GRAPH, Value::Bytes(length)) => {
                bytes_of(message, length).map(|bytes| graph = bytes).map(|()| true)
            }
            _ => Ok(false),
        })
        .unwrap();
        let graph = Graph::read(&graph).unwrap();
        let count = |operator: &str| graph.nodes.iter().filter(|node| node.operator == operator).count();
        assert_eq!((count("Split"), count("MatMul"), count("Sigmoid"), count("Add")), (2, 6, 3, 6));
        assert!(graph.initializer("B").is_none() && graph.initializer("A").is_some());

        let options = SessionOptions {
            provider: ExecutionProvider::Cpu,
            precision: Precision::F32,
            threads: 1,
            parallel_runs: 1,
            dimensions: Vec::new(),
            largest_side: 8,
            device_id: 0,
            max_batch_size: 2,
            input_shapes: Vec::new(),
            cache_dir: folder.path().to_owned(),
        };
        let runtime = Runtime::load(None).unwrap();
        let x = Array2::from_shape_fn((2, HEIGHT), |(row, column)| ((row * 7 + column * 3) % 11) as f32 / 5.0 - 1.0);
        let [whole, blocks] = ["model.onnx", "cut.onnx"].map(|name| {
            let graph = OpenGraph::open(&runtime, &folder.path().join(name), &options).unwrap();
            graph.run(&[("x", Batch::F32(CowArray::from(x.view().into_dyn())))], "out").unwrap()
        });
        let apart = (&whole - &blocks).iter().fold(0_f32, |largest, difference| largest.max(difference.abs()));
        assert!(apart < 1e-5 && whole.iter().any(|value| value.abs() > 0.1), "{apart} apart: {whole} {blocks}");
    }

    #[test]
    fn what_is_no_such_layer_or_small_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let is_cut = |nodes: &[Vec<u8>], outputs: &[(&str, usize)], opset, cache| {
            cut(&model(folder.path(), nodes, outputs, opset).bytes, cache).unwrap().is_some()
        };
        let out: &[(&str, usize)] = &[("out", HEIGHT)];
        let with = |index: usize, node: Vec<u8>| {
            let mut nodes = layer();
            nodes[index] = node;
            nodes
        };
        assert!(is_cut(&layer(), out, 17, SMALL_CACHE));
        assert!(!is_cut(&layer(), out, 17, CACHE), "fits the cache");
        assert!(!is_cut(&layer(), out, 12, SMALL_CACHE), "Split has its sizes as an attribute");
        assert!(!is_cut(&layer(), &[("out", HEIGHT), ("gate", WIDTH)], 17, SMALL_CACHE), "the middle is an output");
        let softmax = with(4, node("Softmax", &["scaled"], &["gate"], None));
        assert!(!is_cut(&softmax, out, 17, SMALL_CACHE), "not elementwise");
        let normalised = with(3, node("Mul", &["sum", "bias"], &["scaled"], None));
        assert!(!is_cut(&normalised, out, 17, SMALL_CACHE), "each column has a factor of its own");
        let nesting = [layer(), vec![node("Loop", &["", "condition", "x"], &["again"], None)]].concat();
        assert!(!is_cut(&nesting, out, 17, SMALL_CACHE), "the graph in the loop may read the second matrix");
    }

    #[test]
    fn blocks_are_as_few_as_fit_and_of_whole_columns() {
        assert_eq!(blocks(3072, 768, CACHE), Some(6), "ViT-B and CLIP");
        assert_eq!(blocks(1536, 384, CACHE), None, "ViT-S fits");
        assert_eq!(blocks(4096, 1024, CACHE), Some(8), "ViT-L");
        assert_eq!(blocks(3071, 768, CACHE), None, "no number fits");
    }
}
