//! An ONNX graph in memory, as far as rewriting it needs: nodes, initializers, and who reads what.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, Cursor};

use super::file::Dimension;
use super::parts::{Place, tensor};
use super::proto;
use super::protobuf::{Message, Value, put_bytes, put_number};

/// The first version of ONNX whose `Split` is told the sizes by an input, as here.
pub(in crate::runtime) const SPLIT_BY_INPUT: u64 = 13;

/// Operators with graphs inside, which may use any value of the graph around them.
const NESTING: [&str; 4] = ["If", "Loop", "Scan", "SequenceMap"];

/// No shape has more.
pub(in crate::runtime) const MOST_INTEGERS: usize = 16;

/// `ModelProto`, of a graph whose large weights are in a file.
pub(in crate::runtime) struct Model {
    pub(in crate::runtime) graph: Graph,
    /// Of ONNX's own operators.
    pub(in crate::runtime) opset: u64,
    /// Of others.
    domains: BTreeSet<String>,
    /// All else, as it is.
    rest: Vec<u8>,
}

impl Model {
    pub(in crate::runtime) fn read(bytes: &[u8]) -> io::Result<Self> {
        let (mut rest, mut graph, mut opset, mut domains) = (Vec::new(), None, 0, BTreeSet::new());
        fields_of(bytes, |message, number, value| match (number, value) {
            (proto::model::GRAPH, Value::Bytes(length)) => {
                graph = Some(Graph::read(&bytes_of(message, length)?)?);
                Ok(true)
            }
            (proto::model::OPSET, Value::Bytes(length)) => {
                let imported = bytes_of(message, length)?;
                match domain_and_version(&imported)? {
                    (domain, version) if is_default(&domain) => opset = opset.max(version),
                    (domain, _) => drop(domains.insert(domain)),
                }
                put_bytes(&mut rest, number, &imported);
                Ok(true)
            }
            _ => message.copy_field(number, value, &mut rest),
        })?;
        Ok(Self { graph: graph.ok_or(io::ErrorKind::InvalidData)?, opset, domains, rest })
    }

    /// Lets it have operators of the first version of `domain`.
    pub(in crate::runtime) fn import(&mut self, domain: &str) {
        if self.domains.insert(domain.to_owned()) {
            let mut imported = Vec::new();
            put_bytes(&mut imported, proto::opset::DOMAIN, domain.as_bytes());
            put_number(&mut imported, proto::opset::VERSION, 1);
            put_bytes(&mut self.rest, proto::model::OPSET, &imported);
        }
    }

    /// The model with another `GraphProto`.
    pub(in crate::runtime) fn with_graph(mut self, graph: &[u8]) -> Vec<u8> {
        put_bytes(&mut self.rest, proto::model::GRAPH, graph);
        self.rest
    }
}

/// `GraphProto`.
pub(in crate::runtime) struct Graph {
    pub(in crate::runtime) nodes: Vec<Node>,
    pub(in crate::runtime) initializers: Vec<Tensor>,
    /// By their names.
    pub(in crate::runtime) inputs: BTreeMap<String, Input>,
    pub(in crate::runtime) outputs: BTreeSet<String>,
    /// The nodes that read each value, once for each time they do.
    readers: HashMap<String, Vec<usize>>,
    /// All else, as it is.
    pub(in crate::runtime) rest: Vec<u8>,
}

impl Graph {
    pub(in crate::runtime) fn read(bytes: &[u8]) -> io::Result<Self> {
        let (mut nodes, mut initializers, mut rest) = (Vec::new(), Vec::new(), Vec::new());
        let (mut inputs, mut outputs) = (BTreeMap::new(), BTreeSet::new());
        fields_of(bytes, |message, number, value| match (number, value) {
            (proto::graph::NODE, Value::Bytes(length)) => {
                nodes.push(Node::read(bytes_of(message, length)?)?);
                Ok(true)
            }
            (proto::graph::INITIALIZER, Value::Bytes(length)) => {
                initializers.push(Tensor::read(bytes_of(message, length)?)?);
                Ok(true)
            }
            (proto::graph::INPUT, Value::Bytes(length)) => {
                let input = bytes_of(message, length)?;
                inputs.insert(name_of(&input)?, Input::read(&input)?);
                put_bytes(&mut rest, number, &input);
                Ok(true)
            }
            (proto::graph::OUTPUT, Value::Bytes(length)) => {
                let output = bytes_of(message, length)?;
                outputs.insert(name_of(&output)?);
                put_bytes(&mut rest, number, &output);
                Ok(true)
            }
            // What is told of values in between follows from the nodes, and rewriting may change it.
            (proto::graph::VALUE_INFO, _) => Ok(false),
            _ => message.copy_field(number, value, &mut rest),
        })?;
        let mut readers: HashMap<String, Vec<usize>> = HashMap::new();
        for (index, node) in nodes.iter().enumerate() {
            for input in &node.inputs {
                readers.entry(input.clone()).or_default().push(index);
            }
        }
        Ok(Self { nodes, initializers, inputs, outputs, readers, rest })
    }

    /// [`Self::rest`] without the input called `name`.
    pub(in crate::runtime) fn without_input(&self, name: &str) -> io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        fields_of(&self.rest, |message, number, value| match (number, value) {
            (proto::graph::INPUT, Value::Bytes(length)) => {
                let input = bytes_of(message, length)?;
                if name_of(&input)? != name {
                    put_bytes(&mut rest, number, &input);
                }
                Ok(true)
            }
            _ => message.copy_field(number, value, &mut rest),
        })?;
        Ok(rest)
    }

    /// Does one of its nodes have a graph inside, which may read any value?
    pub(in crate::runtime) fn has_graphs_inside(&self) -> bool {
        self.nodes.iter().any(|node| NESTING.contains(&node.operator.as_str()))
    }

    /// `GraphProto` of all but the nodes, in which initializers in a file have the `shape` that is told of them.
    pub(in crate::runtime) fn without_nodes(&self, shape: impl Fn(&Tensor) -> Option<Vec<u64>>) -> Vec<u8> {
        let mut graph = self.rest.clone();
        for tensor in &self.initializers {
            let reshaped = shape(tensor).and_then(|shape| tensor.reshaped(&shape));
            put_bytes(&mut graph, proto::graph::INITIALIZER, reshaped.as_ref().unwrap_or(&tensor.bytes));
        }
        graph
    }

    /// `GraphProto`, with what `put` appends to it in the place of the nodes, by their indices, for which it says that it did.
    pub(in crate::runtime) fn with_replaced(
        &self,
        put: impl Fn(usize, &Node, &mut Vec<u8>) -> io::Result<bool>,
    ) -> io::Result<Vec<u8>> {
        self.with_reshaped(|_| None, put)
    }

    /// The same, with [`Self::without_nodes`] of `shape`.
    pub(in crate::runtime) fn with_reshaped(
        &self,
        shape: impl Fn(&Tensor) -> Option<Vec<u64>>,
        put: impl Fn(usize, &Node, &mut Vec<u8>) -> io::Result<bool>,
    ) -> io::Result<Vec<u8>> {
        let mut graph = self.without_nodes(shape);
        for (index, node) in self.nodes.iter().enumerate() {
            if !put(index, node, &mut graph)? {
                put_bytes(&mut graph, proto::graph::NODE, &node.bytes);
            }
        }
        Ok(graph)
    }

    /// The names of all its values; `None` if some have the same.
    pub(in crate::runtime) fn names(&self) -> Option<BTreeSet<&str>> {
        let mut names = BTreeSet::new();
        if !self.initializers.iter().all(|tensor| names.insert(tensor.name.as_str())) {
            return None;
        }
        // In old versions, initializers are inputs too.
        names.extend(self.inputs.keys().map(String::as_str));
        let mut outputs = self.nodes.iter().flat_map(|node| &node.outputs).filter(|name| !name.is_empty());
        outputs.all(|name| names.insert(name)).then_some(names)
    }

    /// The index of the node that makes each value.
    pub(in crate::runtime) fn producers(&self) -> HashMap<&str, usize> {
        let nodes = self.nodes.iter().enumerate();
        nodes.flat_map(|(index, node)| node.outputs.iter().map(move |output| (output.as_str(), index))).collect()
    }

    pub(in crate::runtime) fn readers(&self, value: &str) -> &[usize] {
        self.readers.get(value).map_or(&[], Vec::as_slice)
    }

    /// What the only reader of `product` adds to it, and that reader.
    pub(in crate::runtime) fn added(&self, product: &str) -> Option<(usize, &String)> {
        let &[sum] = self.readers(product) else { return None };
        let node = &self.nodes[sum];
        let added = node.inputs.iter().find(|input| *input != product).filter(|_| node.operator == "Add")?;
        Some((sum, added))
    }

    pub(in crate::runtime) fn initializer(&self, name: &str) -> Option<&Tensor> {
        self.initializers.iter().find(|tensor| tensor.name == name)
    }

    /// What `node` multiplies its first input with, if that is floats in a file, as many as it shall have.
    pub(in crate::runtime) fn weights(&self, node: &Node) -> Option<&Tensor> {
        self.initializer(node.inputs.get(1)?).filter(|weights| weights.place_of_floats().is_some())
    }

    /// [`Self::weights`], if nobody else reads them or may give others.
    pub(in crate::runtime) fn own_weights(&self, node: &Node) -> Option<&Tensor> {
        let is_own = |name: &str| self.readers(name).len() == 1 && !self.outputs.contains(name);
        self.weights(node).filter(|weights| is_own(&weights.name) && !self.inputs.contains_key(&weights.name))
    }

    pub(in crate::runtime) fn is_scalar(&self, value: &str) -> bool {
        self.initializer(value).is_some_and(|tensor| tensor.values() == 1)
            || self.nodes.iter().any(|node| node.is_scalar && node.outputs[0] == value)
    }

    /// The vector that `value` always is: an initializer, or another name of one.
    pub(in crate::runtime) fn vector(&self, value: &str) -> Option<&Tensor> {
        let other_name = || {
            let node = self.nodes.iter().find(|node| node.outputs.iter().any(|output| output == value))?;
            self.initializer(node.inputs.first().filter(|_| node.operator == "Identity")?)
        };
        self.initializer(value).or_else(other_name).filter(|tensor| tensor.shape.len() == 1)
    }
}

/// What an input is given.
pub(in crate::runtime) struct Input {
    /// ONNX's number.
    pub(in crate::runtime) element_type: u64,
    pub(in crate::runtime) dimensions: Vec<Dimension>,
}

impl Input {
    /// That of the `ValueInfoProto` in `bytes`.
    fn read(bytes: &[u8]) -> io::Result<Self> {
        let mut element_type = 0;
        fields_of(bytes, |message, number, value| match (number, value) {
            (proto::value_info::TYPE, Value::Bytes(length)) => {
                fields_of(&bytes_of(message, length)?, |message, number, value| match (number, value) {
                    (proto::tensor_type::TENSOR, Value::Bytes(length)) => {
                        fields_of(&bytes_of(message, length)?, |_, number, value| {
                            if let (proto::tensor_type::ELEMENT_TYPE, Value::Number(number)) = (number, value) {
                                element_type = number;
                            }
                            Ok(false)
                        })?;
                        Ok(true)
                    }
                    _ => Ok(false),
                })?;
                Ok(true)
            }
            _ => Ok(false),
        })?;
        Ok(Self { element_type, dimensions: message_of(&mut Cursor::new(bytes)).dimensions()? })
    }
}

/// `NodeProto`.
pub(in crate::runtime) struct Node {
    pub(in crate::runtime) bytes: Vec<u8>,
    /// With its domain before it where that is not ONNX's own.
    pub(in crate::runtime) operator: String,
    pub(in crate::runtime) inputs: Vec<String>,
    /// One at least.
    pub(in crate::runtime) outputs: Vec<String>,
    /// A `Constant` of one value.
    pub(in crate::runtime) is_scalar: bool,
}

impl Node {
    pub(in crate::runtime) fn read(bytes: Vec<u8>) -> io::Result<Self> {
        let (mut operator, mut domain, mut inputs, mut outputs) =
            (String::new(), String::new(), Vec::new(), Vec::new());
        let mut is_scalar = false;
        fields_of(&bytes, |message, number, value| {
            let Value::Bytes(length) = value else { return Ok(false) };
            match number {
                proto::node::INPUT => inputs.push(message.text(length)?),
                proto::node::OUTPUT => outputs.push(message.text(length)?),
                proto::node::OPERATOR => operator = message.text(length)?,
                proto::node::DOMAIN => domain = message.text(length)?,
                proto::node::ATTRIBUTE => is_scalar |= is_scalar_attribute(&bytes_of(message, length)?)?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        if outputs.is_empty() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        is_scalar &= operator == "Constant";
        if !is_default(&domain) {
            operator = format!("{domain}.{operator}");
        }
        Ok(Self { bytes, operator, inputs, outputs, is_scalar })
    }

    /// The integers of each of its attributes; none for those of other types.
    pub(in crate::runtime) fn integers(&self) -> io::Result<HashMap<String, Vec<u64>>> {
        let mut attributes = HashMap::new();
        fields_of(&self.bytes, |message, number, value| match (number, value) {
            (proto::node::ATTRIBUTE, Value::Bytes(length)) => {
                attributes.extend(message.nested(length, |attribute| attribute.attribute())?);
                Ok(true)
            }
            _ => Ok(false),
        })?;
        Ok(attributes)
    }

    /// The tensor that a `Constant` is, where it is told as one.
    pub(in crate::runtime) fn constant(&self) -> io::Result<Option<Tensor>> {
        let mut constant = None;
        if self.operator == "Constant" {
            fields_of(&self.bytes, |message, number, value| match (number, value) {
                (proto::node::ATTRIBUTE, Value::Bytes(length)) => {
                    constant = tensor_of(&bytes_of(message, length)?)?;
                    Ok(true)
                }
                _ => Ok(false),
            })?;
        }
        Ok(constant)
    }

    /// The node as another operator, with other names for what it reads.
    pub(in crate::runtime) fn replaced(
        &self,
        domain: &str,
        operator: &str,
        name: impl Fn(&str) -> String,
    ) -> io::Result<Vec<u8>> {
        let mut replaced = self.with_texts(|field, text| match field {
            proto::node::INPUT => Some(name(&text)),
            proto::node::OPERATOR | proto::node::DOMAIN => None,
            _ => Some(text),
        })?;
        put_bytes(&mut replaced, proto::node::OPERATOR, operator.as_bytes());
        put_bytes(&mut replaced, proto::node::DOMAIN, domain.as_bytes());
        Ok(replaced)
    }

    /// The node under another name, which ends with `end`, with other names for what it reads and writes.
    pub(in crate::runtime) fn renamed(&self, end: &str, name: impl Fn(&str) -> String) -> io::Result<Vec<u8>> {
        self.with_texts(|field, text| match field {
            proto::node::INPUT | proto::node::OUTPUT => Some(name(&text)),
            // Nodes may have no names, but not the same.
            proto::node::NAME => (!text.is_empty()).then(|| format!("{text}/{end}")),
            _ => Some(text),
        })
    }

    /// The node with what `text` makes of each of its names, by their fields, or without those of which that makes nothing.
    fn with_texts(&self, text: impl Fn(u64, String) -> Option<String>) -> io::Result<Vec<u8>> {
        use proto::node::{DOMAIN, INPUT, NAME, OPERATOR, OUTPUT};
        let mut node = Vec::new();
        fields_of(&self.bytes, |message, number, value| match (number, value) {
            (INPUT | OUTPUT | NAME | OPERATOR | DOMAIN, Value::Bytes(length)) => {
                if let Some(text) = text(number, message.text(length)?) {
                    put_bytes(&mut node, number, text.as_bytes());
                }
                Ok(true)
            }
            _ => message.copy_field(number, value, &mut node),
        })?;
        Ok(node)
    }
}

/// `AttributeProto`: a number, or a tensor of one value.
fn is_scalar_attribute(attribute: &[u8]) -> io::Result<bool> {
    let mut is_scalar = tensor_of(attribute)?.is_some_and(|tensor| tensor.values() == 1);
    fields_of(attribute, |_, number, _| {
        is_scalar |= number == proto::attribute::FLOAT;
        Ok(false)
    })?;
    Ok(is_scalar)
}

/// `AttributeProto`: its tensor.
fn tensor_of(attribute: &[u8]) -> io::Result<Option<Tensor>> {
    let mut tensor = None;
    fields_of(attribute, |message, number, value| match (number, value) {
        (proto::attribute::TENSOR, Value::Bytes(length)) => {
            tensor = Some(Tensor::read(bytes_of(message, length)?)?);
            Ok(true)
        }
        _ => Ok(false),
    })?;
    Ok(tensor)
}

/// `TensorProto`.
pub(in crate::runtime) struct Tensor {
    pub(in crate::runtime) bytes: Vec<u8>,
    pub(in crate::runtime) name: String,
    pub(in crate::runtime) shape: Vec<u64>,
    pub(in crate::runtime) data_type: u64,
    /// Where its values are, if in a file.
    pub(in crate::runtime) place: Option<Place>,
}

impl Tensor {
    pub(in crate::runtime) fn read(bytes: Vec<u8>) -> io::Result<Self> {
        let (mut name, mut shape, mut data_type) = (String::new(), Vec::new(), 0);
        fields_of(&bytes, |message, number, value| match (number, value) {
            (proto::tensor::DIMENSION, Value::Number(dimension)) => {
                shape.push(dimension);
                Ok(false)
            }
            (proto::tensor::DIMENSION, Value::Bytes(length)) => {
                shape.extend(message.numbers(length)?);
                Ok(true)
            }
            (proto::tensor::DATA_TYPE, Value::Number(number)) => {
                data_type = number;
                Ok(false)
            }
            (proto::tensor::NAME, Value::Bytes(length)) => {
                name = message.text(length)?;
                Ok(true)
            }
            _ => Ok(false),
        })?;
        let place = Place::read(&bytes)?;
        Ok(Self { bytes, name, shape, data_type, place })
    }

    pub(in crate::runtime) fn values(&self) -> u64 {
        self.shape.iter().fold(1, |values: u64, &size| values.saturating_mul(size))
    }

    /// Where its values are, if they are floats in a file, as many as its shape tells.
    pub(in crate::runtime) fn place_of_floats(&self) -> Option<&Place> {
        let length = self.values().checked_mul(size_of::<f32>() as u64)?;
        self.place.as_ref().filter(|place| self.data_type == proto::tensor::FLOAT && place.length == length)
    }

    /// The integers of a scalar or a short vector of them.
    pub(in crate::runtime) fn integers(&self) -> io::Result<Option<Vec<i64>>> {
        if self.data_type != proto::tensor::INT64 || self.shape.len() > 1 || self.values() > MOST_INTEGERS as u64 {
            return Ok(None);
        }
        let mut integers = Vec::new();
        fields_of(&self.bytes, |message, number, value| match (number, value) {
            (proto::tensor::RAW_DATA, Value::Bytes(length)) => {
                let bytes = bytes_of(message, length)?;
                integers.extend(bytes.as_chunks().0.iter().map(|&bytes| i64::from_le_bytes(bytes)));
                Ok(true)
            }
            (proto::tensor::INT64_DATA, Value::Number(integer)) => {
                integers.push(integer as i64);
                Ok(false)
            }
            (proto::tensor::INT64_DATA, Value::Bytes(length)) => {
                integers.extend(message.numbers(length)?.into_iter().map(|integer| integer as i64));
                Ok(true)
            }
            _ => Ok(false),
        })?;
        Ok((integers.len() as u64 == self.values()).then_some(integers))
    }

    /// The same values in a file as a tensor of another shape.
    pub(in crate::runtime) fn reshaped(&self, shape: &[u64]) -> Option<Vec<u8>> {
        let mut reshaped = tensor(&self.name, shape, self.data_type);
        self.place.as_ref()?.put(&mut reshaped);
        Some(reshaped)
    }

    /// One of `blocks` equal parts of the rows of a matrix in a file.
    pub(in crate::runtime) fn rows(&self, block: u64, blocks: u64, name: &str) -> Option<Vec<u8>> {
        let place = self.place.as_ref()?;
        let length = place.length / blocks;
        let mut rows = tensor(name, &[self.shape[0] / blocks, self.shape[1]], self.data_type);
        Place { file: place.file.clone(), offset: place.offset + block * length, length }.put(&mut rows);
        Some(rows)
    }
}

type Bytes<'m, 'b> = Message<'m, Cursor<&'b [u8]>>;

fn message_of<'m, 'b>(bytes: &'m mut Cursor<&'b [u8]>) -> Bytes<'m, 'b> {
    let left = bytes.get_ref().len() as u64;
    Message { reader: bytes, left }
}

/// Goes through the fields of the message that `bytes` are.
fn fields_of(
    bytes: &[u8],
    mut inside: impl FnMut(&mut Bytes<'_, '_>, u64, Value) -> io::Result<bool>,
) -> io::Result<()> {
    message_of(&mut Cursor::new(bytes)).fields(|message, number, value| inside(message, number, *value))
}

fn bytes_of(message: &mut Bytes<'_, '_>, length: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    message.nested(length, |nested| nested.copy(&mut bytes))?;
    Ok(bytes)
}

/// `ValueInfoProto`: its name.
fn name_of(value: &[u8]) -> io::Result<String> {
    let mut name = String::new();
    fields_of(value, |message, number, value| match (number, value) {
        (proto::value_info::NAME, Value::Bytes(length)) => {
            name = message.text(length)?;
            Ok(true)
        }
        _ => Ok(false),
    })?;
    Ok(name)
}

/// Is it ONNX's own?
fn is_default(domain: &str) -> bool {
    matches!(domain, "" | "ai.onnx")
}

/// `OperatorSetIdProto`.
fn domain_and_version(opset: &[u8]) -> io::Result<(String, u64)> {
    let (mut domain, mut version) = (String::new(), 0);
    fields_of(opset, |message, number, value| match (number, value) {
        (proto::opset::DOMAIN, Value::Bytes(length)) => {
            domain = message.text(length)?;
            Ok(true)
        }
        (proto::opset::VERSION, Value::Number(number)) => {
            version = number;
            Ok(false)
        }
        _ => Ok(false),
    })?;
    Ok((domain, version))
}
