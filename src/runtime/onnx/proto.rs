//! The numbers of those fields of `onnx.proto3` of ONNX that are read or written here, message by message.

/// `ModelProto`.
pub(in crate::runtime) mod model {
    pub(in crate::runtime) const GRAPH: u64 = 7;
    pub(in crate::runtime) const OPSET: u64 = 8;
}

/// `OperatorSetIdProto`.
pub(in crate::runtime) mod opset {
    pub(in crate::runtime) const DOMAIN: u64 = 1;
    pub(in crate::runtime) const VERSION: u64 = 2;
}

/// `GraphProto`.
pub(in crate::runtime) mod graph {
    pub(in crate::runtime) const NODE: u64 = 1;
    pub(in crate::runtime) const INITIALIZER: u64 = 5;
    pub(in crate::runtime) const INPUT: u64 = 11;
    pub(in crate::runtime) const OUTPUT: u64 = 12;
    /// `ValueInfoProto`s of what is neither.
    pub(in crate::runtime) const VALUE_INFO: u64 = 13;
}

/// `ValueInfoProto`.
pub(in crate::runtime) mod value_info {
    pub(in crate::runtime) const NAME: u64 = 1;
    pub(in crate::runtime) const TYPE: u64 = 2;
    /// `ValueInfoProto.type`, `TypeProto.tensor_type`, `Tensor.shape`, `TensorShapeProto.dim`: the way to a tensor's dimensions.
    pub(in crate::runtime) const TO_DIMENSIONS: &[u64] =
        &[TYPE, super::tensor_type::TENSOR, super::tensor_type::SHAPE, super::tensor_type::DIMENSION];
}

/// `TypeProto`, `TypeProto.Tensor` and `TensorShapeProto`.
pub(in crate::runtime) mod tensor_type {
    /// `TypeProto.tensor_type`.
    pub(in crate::runtime) const TENSOR: u64 = 1;
    /// `TypeProto.Tensor.elem_type`.
    pub(in crate::runtime) const ELEMENT_TYPE: u64 = 1;
    /// `TypeProto.Tensor.shape`.
    pub(in crate::runtime) const SHAPE: u64 = 2;
    /// `TensorShapeProto.dim`.
    pub(in crate::runtime) const DIMENSION: u64 = 1;
}

/// `TensorShapeProto.Dimension`.
pub(in crate::runtime) mod dimension {
    pub(in crate::runtime) const SIZE: u64 = 1;
    pub(in crate::runtime) const NAME: u64 = 2;
}

/// `NodeProto`.
pub(in crate::runtime) mod node {
    pub(in crate::runtime) const INPUT: u64 = 1;
    pub(in crate::runtime) const OUTPUT: u64 = 2;
    pub(in crate::runtime) const NAME: u64 = 3;
    pub(in crate::runtime) const OPERATOR: u64 = 4;
    pub(in crate::runtime) const ATTRIBUTE: u64 = 5;
    pub(in crate::runtime) const DOC_STRING: u64 = 6;
    pub(in crate::runtime) const DOMAIN: u64 = 7;
}

/// `AttributeProto`.
pub(in crate::runtime) mod attribute {
    pub(in crate::runtime) const NAME: u64 = 1;
    pub(in crate::runtime) const FLOAT: u64 = 2;
    pub(in crate::runtime) const INTEGER: u64 = 3;
    pub(in crate::runtime) const TEXT: u64 = 4;
    pub(in crate::runtime) const TENSOR: u64 = 5;
    pub(in crate::runtime) const INTEGERS: u64 = 8;
    pub(in crate::runtime) const TYPE: u64 = 20;
    /// `AttributeType.INT`.
    pub(in crate::runtime) const TYPE_INTEGER: u64 = 2;
    /// `AttributeType.INTS`.
    pub(in crate::runtime) const TYPE_INTEGERS: u64 = 7;
}

/// `TensorProto`.
pub(in crate::runtime) mod tensor {
    pub(in crate::runtime) const DIMENSION: u64 = 1;
    pub(in crate::runtime) const DATA_TYPE: u64 = 2;
    pub(in crate::runtime) const INT64_DATA: u64 = 7;
    pub(in crate::runtime) const NAME: u64 = 8;
    pub(in crate::runtime) const RAW_DATA: u64 = 9;
    /// `StringStringEntryProto`s, each of a key and a value.
    pub(in crate::runtime) const EXTERNAL_DATA: u64 = 13;
    pub(in crate::runtime) const DATA_LOCATION: u64 = 14;
    /// `DataType.FLOAT`.
    pub(in crate::runtime) const FLOAT: u64 = 1;
    /// `DataType.UINT8`.
    pub(in crate::runtime) const UINT8: u64 = 2;
    /// `DataType.INT32`.
    pub(in crate::runtime) const INT32: u64 = 6;
    /// `DataType.INT64`.
    pub(in crate::runtime) const INT64: u64 = 7;
    /// `DataType.FLOAT16`.
    pub(in crate::runtime) const FLOAT16: u64 = 10;
    /// `DataLocation.EXTERNAL`.
    pub(in crate::runtime) const EXTERNAL: u64 = 1;
}

/// `StringStringEntryProto`.
pub(in crate::runtime) mod entry {
    pub(in crate::runtime) const KEY: u64 = 1;
    pub(in crate::runtime) const VALUE: u64 = 2;
}
