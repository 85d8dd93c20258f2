//! A graph without its weights, which stay in its file: what is given to OpenVINO, and what is rewritten. A graph in a single file is otherwise copied
//! whole several times while a session is opened, which takes as long as compiling it, and memory for most of the copies at once.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Seek};
use std::path::{Path, PathBuf};

use super::protobuf::{Message, Value, put_bytes, put_number};
use super::{OnnxFile, RuntimeError, onnx_proto as proto};

/// Smaller weights stay in the graph, in bytes. Some of them are parameters of nodes, which providers expect there.
const SMALLEST: u64 = 1024;

/// A graph whose large weights are told by their place in a file.
pub(super) struct Slim {
    /// The graph, in ONNX's format.
    pub(super) bytes: Vec<u8>,
    /// The file.
    pub(super) file: PathBuf,
}

impl Slim {
    /// What `rewrite` makes of it, if anything; the errors are told of the file `path`.
    pub(super) fn rewritten(
        self,
        path: &Path,
        rewrite: impl FnOnce(&[u8]) -> io::Result<Option<Vec<u8>>>,
    ) -> Result<Self, RuntimeError> {
        match rewrite(&self.bytes) {
            Ok(Some(bytes)) => Ok(Self { bytes, ..self }),
            Ok(None) => Ok(self),
            Err(error) => Err(RuntimeError::Graph(format!("{}: {error}", path.display()))),
        }
    }
}

/// The graph at `path` without its large weights, which are in its own file or in one beside it; `None` if they are in several, or if the
/// file's name is no text.
///
/// # Errors
/// [`RuntimeError::Graph`]: the file cannot be read.
pub(super) fn with_weights_in_file(path: &Path) -> Result<Option<Slim>, RuntimeError> {
    let external = OnnxFile::read(path)?.external_data;
    let slim = || {
        if let Some(name) = external.first() {
            let is_alone = external.len() == 1 && name.components().count() == 1;
            let slim =
                || Ok(Slim { bytes: std::fs::read(path)?, file: std::path::absolute(path)?.with_file_name(name) });
            return is_alone.then(slim).transpose();
        }
        // A link may lead out of the folder, which ONNX Runtime does not allow weights to do.
        let path = path.canonicalize()?;
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(name) = name.filter(|_| path.to_str().is_some()) else { return Ok(None) };
        let file = File::open(&path)?;
        let left = file.metadata()?.len();
        let model = Message { reader: &mut BufReader::new(file), left };
        let bytes = model.with_slim(proto::model::GRAPH, |graph| {
            graph.with_slim(proto::graph::INITIALIZER, |tensor| tensor.slim_tensor(name))
        })?;
        Ok(Some(Slim { bytes, file: path.clone() }))
    };
    slim().map_err(|error: io::Error| RuntimeError::Graph(format!("{}: {error}", path.display())))
}

impl<R: BufRead + Seek> Message<'_, R> {
    /// The message, of whose fields `wanted` has become what `slim` makes of it where it is large enough to hold such weights.
    fn with_slim(mut self, wanted: u64, slim: impl Fn(Message<'_, R>) -> io::Result<Vec<u8>>) -> io::Result<Vec<u8>> {
        let mut target = Vec::new();
        self.fields(|message, number, value| match *value {
            Value::Bytes(length) if number == wanted && length >= SMALLEST => {
                put_bytes(&mut target, number, &message.nested(length, &slim)?);
                Ok(true)
            }
            value => message.copy_field(number, value, &mut target),
        })?;
        Ok(target)
    }

    /// `TensorProto`, whose weights are in the file `name`, which this is read from.
    fn slim_tensor(mut self, name: &str) -> io::Result<Vec<u8>> {
        let (mut slim, mut place) = (Vec::new(), None);
        self.fields(|message, number, value| match (number, *value) {
            (proto::tensor::RAW_DATA, Value::Bytes(length)) if length >= SMALLEST => {
                place = Some((message.reader.stream_position()?, length));
                Ok(false)
            }
            _ => message.copy_field(number, *value, &mut slim),
        })?;
        if let Some((offset, length)) = place {
            Place { file: name.to_owned(), offset, length }.put(&mut slim);
        }
        Ok(slim)
    }
}

/// Where a tensor's values are: a part of a file.
pub(super) struct Place {
    /// The file's name.
    pub(super) file: String,
    /// In bytes.
    pub(super) offset: u64,
    /// In bytes.
    pub(super) length: u64,
}

impl Place {
    /// That which the `TensorProto` in `tensor` tells, if it tells all of it.
    pub(super) fn read(tensor: &[u8]) -> io::Result<Option<Self>> {
        let (mut file, mut offset, mut size) = (None, None, None);
        Message { reader: &mut Cursor::new(tensor), left: tensor.len() as u64 }.fields(|message, number, value| {
            let Value::Bytes(length) = *value else { return Ok(false) };
            if number != proto::tensor::EXTERNAL_DATA {
                return Ok(false);
            }
            match message.nested(length, |entry| entry.key_and_value())? {
                (key, value) if key == "location" => file = Some(value),
                (key, value) if key == "offset" => offset = value.parse().ok(),
                (key, value) if key == "length" => size = value.parse().ok(),
                _ => {}
            }
            Ok(true)
        })?;
        Ok(file.zip(offset.zip(size)).map(|(file, (offset, length))| Self { file, offset, length }))
    }

    /// Appends the fields of a `TensorProto` that tell it.
    pub(super) fn put(&self, tensor: &mut Vec<u8>) {
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

#[cfg(test)]
mod tests {
    use super::super::test_graphs::fixture;
    use super::*;

    fn graph(model: &str) -> PathBuf {
        fixture(model).join("model.onnx")
    }

    fn parsed(bytes: &[u8]) -> OnnxFile {
        OnnxFile::parse(&mut Cursor::new(bytes), bytes.len() as u64).unwrap()
    }

    #[test]
    fn a_graph_is_the_same_but_for_where_its_large_weights_are() {
        let path = graph("tiny-wide-pool");
        let slim = with_weights_in_file(&path).unwrap().unwrap();
        let (before, after) = (OnnxFile::read(&path).unwrap(), parsed(&slim.bytes));
        assert_eq!((&before.parameters, &before.open_inputs), (&after.parameters, &after.open_inputs));
        assert_eq!(before.unpadded_pools.len(), after.unpadded_pools.len());
        assert_eq!(slim.file, path.canonicalize().unwrap());
    }

    #[test]
    fn large_weights_are_told_by_their_place_and_small_ones_stay() {
        let (large, small) = (vec![7; SMALLEST as usize], vec![5; 20]);
        let mut graph = Vec::new();
        for weights in [&large, &small] {
            let mut tensor = Vec::new();
            put_number(&mut tensor, 1, 3);
            put_bytes(&mut tensor, proto::tensor::RAW_DATA, weights);
            put_bytes(&mut graph, proto::graph::INITIALIZER, &tensor);
        }
        // A number of fixed size, as attributes have them.
        graph.extend([20 << 3 & 0x7f | 0x80 | 5, 1, 1, 2, 3, 4]);
        let mut model = Vec::new();
        put_bytes(&mut model, proto::model::GRAPH, &graph);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.onnx");
        std::fs::write(&path, &model).unwrap();
        let slim = with_weights_in_file(&path).unwrap().unwrap();
        let contains = |bytes: &[u8], part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
        assert!(!contains(&slim.bytes, &large) && contains(&slim.bytes, &small));
        assert!(contains(&slim.bytes, &[1, 2, 3, 4]));
        let place = model.windows(large.len()).position(|window| window == large).unwrap();
        for text in ["location", "model.onnx", "offset", &place.to_string(), "length", &large.len().to_string()] {
            assert!(contains(&slim.bytes, text.as_bytes()), "{text}");
        }
        assert!(parsed(&slim.bytes).external_data.contains(Path::new("model.onnx")));
    }

    #[test]
    fn weights_in_a_file_beside_the_graph_stay_there() {
        let path = graph("tiny-external");
        let slim = with_weights_in_file(&path).unwrap().unwrap();
        assert_eq!(slim.file, path.with_file_name("model.onnx_data"));
        assert_eq!(slim.bytes, std::fs::read(path).unwrap());
    }

    #[test]
    fn a_graph_whose_weights_are_in_several_files_or_in_a_folder_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.onnx");
        std::fs::create_dir(folder.path().join("in")).unwrap();
        let is_slim = |files: &[&str]| {
            let mut graph = Vec::new();
            for file in files {
                std::fs::write(folder.path().join(file), [0; 4]).unwrap();
                let mut tensor = Vec::new();
                Place { file: (*file).to_owned(), offset: 0, length: 4 }.put(&mut tensor);
                put_bytes(&mut graph, proto::graph::INITIALIZER, &tensor);
            }
            let mut model = Vec::new();
            put_bytes(&mut model, proto::model::GRAPH, &graph);
            std::fs::write(&path, &model).unwrap();
            with_weights_in_file(&path).unwrap().is_some()
        };
        assert!(is_slim(&["weights", "weights"]));
        assert!(!is_slim(&["weights", "others"]));
        assert!(!is_slim(&["in/weights"]));
    }
}
