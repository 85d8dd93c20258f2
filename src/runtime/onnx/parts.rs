//! Parts of an ONNX graph that rewriting adds: tensors and where they lie, inputs and nodes.

use std::io::{self, Cursor};

use half::f16;

use super::file::Dimension;
use super::proto;
use super::protobuf::{Message, Value, put_bytes, put_number};

/// ONNX Runtime's product of matrices, of which either may be transposed.
pub(in crate::runtime) const DOMAIN: &str = "com.microsoft";
pub(in crate::runtime) const PRODUCT: &str = "FusedMatMul";
/// As a node tells it.
pub(in crate::runtime) const FUSED_PRODUCT: &str = "com.microsoft.FusedMatMul";

/// `TensorProto`, without its values.
pub(in crate::runtime) fn tensor(name: &str, shape: &[u64], data_type: u64) -> Vec<u8> {
    let mut tensor = Vec::new();
    for &dimension in shape {
        put_number(&mut tensor, proto::tensor::DIMENSION, dimension);
    }
    put_number(&mut tensor, proto::tensor::DATA_TYPE, data_type);
    put_bytes(&mut tensor, proto::tensor::NAME, name.as_bytes());
    tensor
}

/// `TensorProto` of `values`, each as the bytes that `little_endian` tells.
fn with_values<T, const N: usize>(
    (name, shape, data_type): (&str, &[u64], u64),
    values: impl Iterator<Item = T>,
    little_endian: impl Fn(T) -> [u8; N],
) -> Vec<u8> {
    let mut tensor = tensor(name, shape, data_type);
    put_bytes(&mut tensor, proto::tensor::RAW_DATA, &values.flat_map(little_endian).collect::<Vec<_>>());
    tensor
}

/// `TensorProto`: a list of sizes.
pub(in crate::runtime) fn sizes(name: &str, sizes: &[u64]) -> Vec<u8> {
    let shape = [sizes.len() as u64];
    with_values((name, &shape, proto::tensor::INT64), sizes.iter().copied(), u64::to_le_bytes)
}

/// `TensorProto`: floats.
pub(in crate::runtime) fn floats(name: &str, shape: &[u64], values: impl Iterator<Item = f32>) -> Vec<u8> {
    with_values((name, shape, proto::tensor::FLOAT), values, f32::to_le_bytes)
}

/// `TensorProto`: floats, each as the nearest one of 16 bits.
pub(in crate::runtime) fn half_floats(name: &str, shape: &[u64], values: impl Iterator<Item = f32>) -> Vec<u8> {
    with_values((name, shape, proto::tensor::FLOAT16), values.map(f16::from_f32), f16::to_le_bytes)
}

/// `TensorProto`: integers of 32 bits.
pub(in crate::runtime) fn integers(name: &str, shape: &[u64], values: impl Iterator<Item = i32>) -> Vec<u8> {
    with_values((name, shape, proto::tensor::INT32), values, i32::to_le_bytes)
}

/// Where a tensor's values are: a part of a file.
pub(in crate::runtime) struct Place {
    /// The file's name.
    pub(in crate::runtime) file: String,
    /// In bytes.
    pub(in crate::runtime) offset: u64,
    /// In bytes; 0 if that is not told.
    pub(in crate::runtime) length: u64,
}

impl Place {
    /// That which the `TensorProto` in `tensor` tells, if it does.
    pub(in crate::runtime) fn read(tensor: &[u8]) -> io::Result<Option<Self>> {
        let (mut file, mut offset, mut size) = (None, 0, 0);
        Message { reader: &mut Cursor::new(tensor), left: tensor.len() as u64 }.fields(|message, number, value| {
            let Value::Bytes(length) = *value else { return Ok(false) };
            if number != proto::tensor::EXTERNAL_DATA {
                return Ok(false);
            }
            let (key, value) = message.nested(length, |entry| entry.key_and_value())?;
            let number = || value.parse().map_err(|_| io::ErrorKind::InvalidData);
            match key.as_str() {
                "offset" => offset = number()?,
                "length" => size = number()?,
                "location" => file = Some(value),
                _ => {}
            }
            Ok(true)
        })?;
        Ok(file.map(|file| Self { file, offset, length: size }))
    }

    /// Appends the fields of a `TensorProto` that tell it.
    pub(in crate::runtime) fn put(&self, tensor: &mut Vec<u8>) {
        let entries =
            [("location", self.file.clone()), ("offset", self.offset.to_string()), ("length", self.length.to_string())];
        for (key, value) in entries {
            let mut entry = Vec::new();
            put_bytes(&mut entry, proto::entry::KEY, key.as_bytes());
            put_bytes(&mut entry, proto::entry::VALUE, value.as_bytes());
            put_bytes(tensor, proto::tensor::EXTERNAL_DATA, &entry);
        }
        put_number(tensor, proto::tensor::DATA_LOCATION, proto::tensor::EXTERNAL);
    }
}

/// `ValueInfoProto` of a tensor.
pub(in crate::runtime) fn value_info(name: &str, element_type: u64, dimensions: &[Dimension]) -> Vec<u8> {
    let (mut shape, mut tensor, mut of_type, mut info) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for dimension in dimensions {
        let mut told = Vec::new();
        match dimension {
            Dimension::Fixed(size) => put_number(&mut told, proto::dimension::SIZE, *size),
            Dimension::Named(name) => put_bytes(&mut told, proto::dimension::NAME, name.as_bytes()),
            Dimension::Nameless => {}
        }
        put_bytes(&mut shape, proto::tensor_type::DIMENSION, &told);
    }
    put_number(&mut tensor, proto::tensor_type::ELEMENT_TYPE, element_type);
    put_bytes(&mut tensor, proto::tensor_type::SHAPE, &shape);
    put_bytes(&mut of_type, proto::tensor_type::TENSOR, &tensor);
    put_bytes(&mut info, proto::value_info::NAME, name.as_bytes());
    put_bytes(&mut info, proto::value_info::TYPE, &of_type);
    info
}

/// The `NodeProto` with one more attribute.
pub(in crate::runtime) fn with_integers(node: Vec<u8>, name: &str, integers: &[u64]) -> Vec<u8> {
    with_attribute(node, name, (proto::attribute::INTEGERS, integers), proto::attribute::TYPE_INTEGERS)
}

/// The `NodeProto` with one more attribute.
pub(in crate::runtime) fn with_integer(node: Vec<u8>, name: &str, integer: u64) -> Vec<u8> {
    with_attribute(node, name, (proto::attribute::INTEGER, &[integer]), proto::attribute::TYPE_INTEGER)
}

/// The `NodeProto` with an attribute of this type, which has the integers in this field.
fn with_attribute(mut node: Vec<u8>, name: &str, (field, integers): (u64, &[u64]), of_type: u64) -> Vec<u8> {
    let mut attribute = Vec::new();
    put_bytes(&mut attribute, proto::attribute::NAME, name.as_bytes());
    for &integer in integers {
        put_number(&mut attribute, field, integer);
    }
    put_number(&mut attribute, proto::attribute::TYPE, of_type);
    put_bytes(&mut node, proto::node::ATTRIBUTE, &attribute);
    node
}

/// `NodeProto`, called like its first output.
pub(in crate::runtime) fn node(
    operator: &str,
    inputs: &[&str],
    outputs: &[impl AsRef<str>],
    attribute: Option<(&str, u64)>,
) -> Vec<u8> {
    let mut node = Vec::new();
    for input in inputs {
        put_bytes(&mut node, proto::node::INPUT, input.as_bytes());
    }
    for output in outputs {
        put_bytes(&mut node, proto::node::OUTPUT, output.as_ref().as_bytes());
    }
    put_bytes(&mut node, proto::node::NAME, outputs[0].as_ref().as_bytes());
    put_bytes(&mut node, proto::node::OPERATOR, operator.as_bytes());
    match attribute {
        Some((name, integer)) => with_integer(node, name, integer),
        None => node,
    }
}

/// `NodeProto` that turns `from`, so that its axes come in this order.
pub(in crate::runtime) fn transpose(from: &str, to: &str, axes: &[u64]) -> Vec<u8> {
    with_integers(node("Transpose", &[from], &[to], None), "perm", axes)
}

/// The product of `rows` and what is transposed in `matrix`.
pub(in crate::runtime) fn transposed_product(rows: &str, matrix: &str, product: &str) -> Vec<u8> {
    let mut node = with_integer(node(PRODUCT, &[rows, matrix], &[product], None), "transB", 1);
    put_bytes(&mut node, proto::node::DOMAIN, DOMAIN.as_bytes());
    node
}
