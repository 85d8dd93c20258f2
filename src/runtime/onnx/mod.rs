//! ONNX's format, as far as rewriting a graph needs it: what a file tells, its nodes and weights, and the shapes that follow.

pub(super) mod file;
pub(super) mod graph;
pub(super) mod parts;
pub(super) mod proto;
pub(super) mod protobuf;
pub(super) mod shapes;
pub(super) mod window;
