//! What an ONNX file says of its weights, inputs and pooling, read without loading it: element types, where they lie, names of
//! dimensions, windows.
//!
//! The format is `onnx.proto3` of ONNX; only the fields on the way to these are read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use super::proto;
use super::protobuf::{Message, Value};
use crate::runtime::RuntimeError;

/// The weights and the open dimensions of a graph.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OnnxFile {
    /// How many values are stored in each element type, by ONNX's name of it in lower case (`float`, `float16`, `int8`, …).
    pub parameters: BTreeMap<&'static str, u64>,
    /// Files beside the graph that hold weights, relative to its folder.
    pub external_data: BTreeSet<PathBuf>,
    /// The inputs that leave a dimension open under a name: for each of its dimensions that name, or `None`.
    pub open_inputs: Vec<Vec<Option<String>>>,
    /// Its nodes that average over a window and may go beyond the edge (`AveragePool` with `ceil_mode`), without padding.
    pub(in crate::runtime) unpadded_pools: Vec<UnpaddedPool>,
}

/// Such a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::runtime) struct UnpaddedPool {
    /// Where the file has its `NodeProto`.
    pub(in crate::runtime) node: Range<u64>,
    /// The shortest side of the window.
    pub(in crate::runtime) window: u64,
}

impl OnnxFile {
    /// Reads the file `path` and checks that the external data that it names is there.
    ///
    /// # Errors
    /// [`RuntimeError::Graph`]: it is no ONNX file, or its external data is missing or lies outside its folder.
    pub fn read(path: &Path) -> Result<Self, RuntimeError> {
        let failed = |problem: String| RuntimeError::Graph(format!("{}: {problem}", path.display()));
        let read = || {
            let file = File::open(path)?;
            let length = file.metadata()?.len();
            Self::parse(&mut BufReader::new(file), length)
        };
        let found = read().map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => {
                failed("is no whole ONNX file; fetch or export it again".to_owned())
            }
            _ => failed(error.to_string()),
        })?;
        for file in &found.external_data {
            let name = file.display();
            if !file.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
                return Err(failed(format!("names external data outside its folder, '{name}', which is not read")));
            }
            if !path.parent().unwrap_or(Path::new("")).join(file).is_file() {
                return Err(failed(format!("its external data '{name}' is missing; it belongs beside the graph")));
            }
        }
        Ok(found)
    }

    /// Reads the `length` bytes of a file.
    pub(in crate::runtime) fn parse(reader: &mut (impl BufRead + Seek), length: u64) -> io::Result<Self> {
        let mut found = Self::default();
        Message { reader, left: length }.model(&mut found)?;
        Ok(found)
    }
}

/// What exporters by `torch.export` write as "auto_pad" where there is none.
const NOT_SET: &[u8] = b"NOTSET";

/// ONNX's element types by their numbers: names, and bytes of a value if it takes whole ones.
pub(in crate::runtime) fn element_type(number: u64) -> (&'static str, Option<u64>) {
    match number {
        1 => ("float", Some(4)),
        2 => ("uint8", Some(1)),
        3 => ("int8", Some(1)),
        4 | 5 => ("other", Some(2)),
        6 => ("int32", Some(4)),
        7 => ("int64", Some(8)),
        9 => ("bool", Some(1)),
        10 => ("float16", Some(2)),
        11 => ("double", Some(8)),
        12 => ("other", Some(4)),
        13 => ("other", Some(8)),
        16 => ("bfloat16", Some(2)),
        21 => ("uint4", None),
        22 => ("int4", None),
        _ => ("other", None),
    }
}

/// A dimension as a graph tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::runtime) enum Dimension {
    Fixed(u64),
    /// Open, under this name.
    Named(String),
    /// Open.
    Nameless,
}

impl<R: BufRead + Seek> Message<'_, R> {
    /// `ModelProto`: its graph.
    fn model(mut self, found: &mut OnnxFile) -> io::Result<()> {
        let mut has_graph = false;
        self.fields(|message, number, value| match (number, value) {
            (proto::model::GRAPH, &Value::Bytes(length)) => {
                has_graph = true;
                message.nested(length, |graph| graph.graph(found)).map(|()| true)
            }
            _ => Ok(false),
        })?;
        if has_graph { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
    }

    /// `GraphProto`: its nodes, initializers and inputs. Weights inside nodes (`Constant`) are few and small in exports.
    fn graph(mut self, found: &mut OnnxFile) -> io::Result<()> {
        self.fields(|message, number, value| match (number, value) {
            (proto::graph::NODE, &Value::Bytes(length)) => {
                let start = message.reader.stream_position()?;
                if let Some(window) = message.nested(length, |node| node.unpadded_window())? {
                    found.unpadded_pools.push(UnpaddedPool { node: start..start + length, window });
                }
                Ok(true)
            }
            (proto::graph::INITIALIZER, &Value::Bytes(length)) => {
                message.nested(length, |tensor| tensor.tensor(found)).map(|()| true)
            }
            (proto::graph::INPUT, &Value::Bytes(length)) => {
                let names = |dimension| match dimension {
                    Dimension::Named(name) => Some(name),
                    Dimension::Fixed(_) | Dimension::Nameless => None,
                };
                let dimensions = message.nested(length, |input| input.dimensions())?;
                let dimensions: Vec<_> = dimensions.into_iter().map(names).collect();
                if dimensions.iter().any(Option::is_some) {
                    found.open_inputs.push(dimensions);
                }
                Ok(true)
            }
            _ => Ok(false),
        })
    }

    /// `NodeProto`: the shortest side of its window, if it is a pool as [`OnnxFile::unpadded_pools`] has them. Attributes come after
    /// the operator's name.
    fn unpadded_window(mut self) -> io::Result<Option<u64>> {
        let (mut is_pool, mut window, mut is_plain, mut goes_beyond) = (false, None, true, false);
        self.fields(|message, number, value| match (number, value) {
            (proto::node::OPERATOR, &Value::Bytes(length)) => {
                is_pool = message.text(length)? == "AveragePool";
                Ok(true)
            }
            (proto::node::ATTRIBUTE, &Value::Bytes(length)) if is_pool => {
                let attribute = message.nested(length, |attribute| attribute.attribute())?;
                let Some((name, numbers)) = attribute else { return Ok(true) };
                match name.as_str() {
                    // A window over a sequence may be as long as a picture's side, and shorter than the sequence.
                    "kernel_shape" if numbers.len() == 2 => window = numbers.into_iter().min(),
                    "kernel_shape" => is_plain = false,
                    "ceil_mode" => goes_beyond = numbers == [1],
                    "pads" => is_plain &= numbers.iter().all(|&pad| pad == 0),
                    "dilations" => is_plain &= numbers.iter().all(|&step| step == 1),
                    "strides" | "count_include_pad" => {}
                    // "auto_pad", and whatever is to come.
                    _ => is_plain = false,
                }
                Ok(true)
            }
            _ => Ok(false),
        })?;
        Ok(window.filter(|_| is_plain && goes_beyond))
    }

    /// `AttributeProto`: its name and its integers; `None` for one that says no more than if it were absent.
    pub(in crate::runtime) fn attribute(mut self) -> io::Result<Option<(String, Vec<u64>)>> {
        let (mut name, mut numbers, mut is_set) = (String::new(), Vec::new(), true);
        self.fields(|message, number, value| match (number, value) {
            (proto::attribute::NAME, &Value::Bytes(length)) => {
                name = message.text(length)?;
                Ok(true)
            }
            (proto::attribute::INTEGER | proto::attribute::INTEGERS, &Value::Number(integer)) => {
                numbers.push(integer);
                Ok(false)
            }
            (proto::attribute::INTEGERS, &Value::Bytes(length)) => {
                numbers.extend(message.numbers(length)?);
                Ok(true)
            }
            // Others need be no text.
            (proto::attribute::TEXT, &Value::Bytes(length)) if length == NOT_SET.len() as u64 => {
                let mut text = Vec::new();
                message.nested(length, |nested| nested.copy(&mut text))?;
                is_set = text != NOT_SET;
                Ok(true)
            }
            _ => Ok(false),
        })?;
        Ok(is_set.then_some((name, numbers)))
    }

    /// `ValueInfoProto`: its dimensions.
    pub(in crate::runtime) fn dimensions(self) -> io::Result<Vec<Dimension>> {
        let mut found = Vec::new();
        self.dimensions_at(proto::value_info::TO_DIMENSIONS, &mut found)?;
        Ok(found)
    }

    /// Follows the nested fields `path` to dimensions.
    fn dimensions_at(mut self, path: &[u64], found: &mut Vec<Dimension>) -> io::Result<()> {
        let Some((field, rest)) = path.split_first() else {
            let mut dimension = Dimension::Nameless;
            self.fields(|message, number, value| match (number, value) {
                (proto::dimension::SIZE, &Value::Number(size)) => {
                    dimension = Dimension::Fixed(size);
                    Ok(false)
                }
                (proto::dimension::NAME, &Value::Bytes(length)) => {
                    let name = message.text(length)?;
                    dimension = if name.is_empty() { Dimension::Nameless } else { Dimension::Named(name) };
                    Ok(true)
                }
                _ => Ok(false),
            })?;
            found.push(dimension);
            return Ok(());
        };
        self.fields(|message, number, value| match value {
            &Value::Bytes(length) if number == *field => {
                message.nested(length, |inner| inner.dimensions_at(rest, found)).map(|()| true)
            }
            _ => Ok(false),
        })
    }

    /// `TensorProto`: dimensions, element type, and where external data lies.
    fn tensor(mut self, found: &mut OnnxFile) -> io::Result<()> {
        let (mut values, mut kind) = (1_u64, 0);
        self.fields(|message, number, value| match (number, value) {
            (proto::tensor::DIMENSION, &Value::Number(dimension)) => {
                values = values.saturating_mul(dimension);
                Ok(false)
            }
            (proto::tensor::DIMENSION, &Value::Bytes(length)) => {
                values = message.numbers(length)?.into_iter().fold(values, u64::saturating_mul);
                Ok(true)
            }
            (proto::tensor::DATA_TYPE, &Value::Number(number)) => {
                kind = number;
                Ok(false)
            }
            (proto::tensor::EXTERNAL_DATA, &Value::Bytes(length)) => {
                let (key, text) = message.nested(length, |entry| entry.key_and_value())?;
                if key == "location" {
                    found.external_data.insert(PathBuf::from(text));
                }
                Ok(true)
            }
            _ => Ok(false),
        })?;
        let stored = found.parameters.entry(element_type(kind).0).or_default();
        *stored = stored.saturating_add(values);
        Ok(())
    }

    /// `StringStringEntryProto`: a key and its value.
    pub(in crate::runtime) fn key_and_value(mut self) -> io::Result<(String, String)> {
        let (mut key, mut text) = (String::new(), String::new());
        self.fields(|message, number, value| match (number, value) {
            (proto::entry::KEY | proto::entry::VALUE, &Value::Bytes(length)) => {
                *(if number == proto::entry::KEY { &mut key } else { &mut text }) = message.text(length)?;
                Ok(true)
            }
            _ => Ok(false),
        })?;
        Ok((key, text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::test_graphs::fixture;

    #[test]
    fn element_types_are_those_of_the_stored_weights() {
        let plain = OnnxFile::read(&fixture("tiny-classifier").join("model.onnx")).unwrap();
        assert!(plain.parameters["float"] > 0 && plain.external_data.is_empty(), "{plain:?}");
        let half = OnnxFile::read(&fixture("tiny-fp16").join("model.onnx")).unwrap();
        assert!(half.parameters["float16"] > 0 && !half.parameters.contains_key("float"), "{half:?}");
    }

    #[test]
    fn open_dimensions_are_told_by_their_names() {
        let open = |model: &str| OnnxFile::read(&fixture(model).join("model.onnx")).unwrap().open_inputs;
        let names = [Some("batch"), None, Some("height"), Some("width")].map(|name| name.map(str::to_owned));
        assert_eq!(open("tiny-classifier"), [names]);
        assert!(open("tiny-fixed-batch").is_empty());
    }

    #[test]
    fn external_data_is_found_and_missed_by_name() {
        let graph = fixture("tiny-external").join("model.onnx");
        let found = OnnxFile::read(&graph).unwrap();
        assert_eq!(found.external_data.iter().collect::<Vec<_>>(), [Path::new("model.onnx_data")]);
        let folder = tempfile::tempdir().unwrap();
        let alone = folder.path().join("model.onnx");
        let bytes = std::fs::read(&graph).unwrap();
        std::fs::write(&alone, &bytes).unwrap();
        let error = OnnxFile::read(&alone).unwrap_err().to_string();
        assert!(error.contains("its external data 'model.onnx_data' is missing"), "{error}");
        // As long as the right name, so that the lengths around it stay true.
        let at = bytes.windows(15).position(|window| window == b"model.onnx_data").unwrap();
        let outside = [&bytes[..at], b"../../etc/passw", &bytes[at + 15..]].concat();
        std::fs::write(&alone, outside).unwrap();
        let error = OnnxFile::read(&alone).unwrap_err().to_string();
        assert!(error.contains("outside its folder, '../../etc/passw'"), "{error}");
    }

    #[test]
    fn what_is_no_onnx_file_is_told_so() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("model.onnx");
        let whole = std::fs::read(fixture("tiny-classifier").join("model.onnx")).unwrap();
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n";
        for bytes in [&b""[..], b"text", pointer, &whole[..whole.len() / 2], &[0xff; 64]] {
            std::fs::write(&file, bytes).unwrap();
            let error = OnnxFile::read(&file).unwrap_err().to_string();
            assert!(error.contains("is no whole ONNX file"), "{error}");
        }
    }
}
