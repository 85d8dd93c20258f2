//! A graph without its weights, which stay in its file: what is given to OpenVINO, and what is rewritten. A graph in a single file is otherwise copied
//! whole several times while a session is opened, which takes as long as compiling it, and memory for most of the copies at once.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek};
use std::path::{Path, PathBuf};

use super::pixel_blocks::PixelBlocks;
use crate::runtime::onnx::file::element_type;
use crate::runtime::onnx::graph::{Model, Tensor};
use crate::runtime::onnx::parts::{Place, tensor};
use crate::runtime::onnx::protobuf::{Message, Value, put_bytes};
use crate::runtime::{RuntimeError, onnx::proto};

/// Smaller weights stay in the graph, in bytes. Some of them are parameters of nodes, which providers expect there.
const SMALLEST: u64 = 1024;

/// A graph whose large weights are told by their place in a file.
pub(in crate::runtime) struct Slim {
    /// The graph, in ONNX's format.
    pub(in crate::runtime) bytes: Vec<u8>,
    /// The file.
    pub(in crate::runtime) file: PathBuf,
    /// How its pictures are given, if as blocks of pixels.
    pub(in crate::runtime) blocks: Option<PixelBlocks>,
    /// May OpenVINO make one kernel of several nodes?
    pub(in crate::runtime) fuses_kernels: bool,
}

impl Slim {
    /// What `rewrite` makes of it, if anything; what cannot be read as a graph stays as it is. Other errors are told of the file `path`.
    pub(super) fn rewritten(
        self,
        path: &Path,
        rewrite: impl FnOnce(&[u8]) -> io::Result<Option<Vec<u8>>>,
    ) -> Result<Self, RuntimeError> {
        match if_valid(rewrite(&self.bytes)) {
            Ok(Some(bytes)) => Ok(Self { bytes, ..self }),
            Ok(None) => Ok(self),
            Err(error) => Err(RuntimeError::Graph(format!("{}: {error}", path.display()))),
        }
    }

    /// Has no value the name of another? Of two initializers ONNX Runtime takes the latter, so a name that was there before it was
    /// rewritten would be a wrong answer.
    pub(in crate::runtime) fn has_distinct_names(&self) -> bool {
        Model::read(&self.bytes).is_ok_and(|model| model.graph.names().is_some())
    }
}

/// What was made of a graph; nothing, if it is none that is read here.
pub(super) fn if_valid<T>(made: io::Result<Option<T>>) -> io::Result<Option<T>> {
    match made {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(None),
        made => made,
    }
}

/// The graph at `path` without its large weights, which are in its own file or in one beside it, if it is the only `external` one; `None` if
/// they are in several or elsewhere, if what is told of them is not true, or if the file's name is no text.
///
/// # Errors
/// [`RuntimeError::Graph`]: the file cannot be read.
pub(in crate::runtime) fn with_weights_in_file(
    path: &Path,
    external: &BTreeSet<PathBuf>,
) -> Result<Option<Slim>, RuntimeError> {
    let slim = || {
        let beside = match external.iter().collect::<Vec<_>>()[..] {
            [] => None,
            [name] if name.file_name() == Some(name.as_os_str()) => Some(path.with_file_name(name)),
            _ => return Ok(None),
        };
        // A link may lead out of the folder, which ONNX Runtime does not allow weights to do.
        let file = beside.as_deref().unwrap_or(path).canonicalize()?;
        let name = file.file_name().and_then(|name| name.to_str());
        let Some(name) = name.filter(|_| file.to_str().is_some()) else { return Ok(None) };
        let (graph, size) = (File::open(path)?, file.metadata()?.len());
        let left = graph.metadata()?.len();
        let model = Message { reader: &mut BufReader::new(graph), left };
        let bytes = model.with_slim(proto::model::GRAPH, 0, |graph| match beside {
            Some(_) => graph.with_slim(proto::graph::INITIALIZER, 0, |tensor| tensor.placed_tensor(name, size)),
            None => graph.with_slim(proto::graph::INITIALIZER, SMALLEST, |tensor| tensor.slim_tensor(name)),
        });
        Ok(if_valid(bytes.map(Some))?.map(|bytes| Slim {
            bytes,
            file: file.clone(),
            blocks: None,
            fuses_kernels: true,
        }))
    };
    slim().map_err(|error: io::Error| RuntimeError::Graph(format!("{}: {error}", path.display())))
}

/// Has the folder of the graph at `path` only links to some of its `external` weights, as the Hub's cache does? ONNX Runtime 1.24 refuses
/// those that lead out of the folder.
pub(super) fn are_linked(path: &Path, external: &BTreeSet<PathBuf>) -> bool {
    external.iter().any(|name| path.with_file_name(name).is_symlink())
}

impl<R: BufRead + Seek> Message<'_, R> {
    /// The message, of whose fields `wanted` that have at least so many bytes has become what `slim` makes of each.
    fn with_slim(
        mut self,
        wanted: u64,
        smallest: u64,
        slim: impl Fn(Message<'_, R>) -> io::Result<Vec<u8>>,
    ) -> io::Result<Vec<u8>> {
        let mut target = Vec::new();
        self.fields(|message, number, value| match *value {
            Value::Bytes(length) if number == wanted && length >= smallest => {
                put_bytes(&mut target, number, &message.nested(length, &slim)?);
                Ok(true)
            }
            value => message.copy_field(number, value, &mut target),
        })?;
        Ok(target)
    }

    /// `TensorProto`, whose weights, if they are in another file, are in the file `name` of `size` bytes, with all told of their place that
    /// may be left out. Fails with [`io::ErrorKind::InvalidData`] if that cannot be.
    fn placed_tensor(self, name: &str, size: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.copy(&mut bytes)?;
        let told = Tensor::read(bytes)?;
        let Some(place) = &told.place else { return Ok(told.bytes) };
        let of_value = element_type(told.data_type).1;
        let length = of_value.map_or(place.length, |bytes| bytes.saturating_mul(told.values()));
        let is_within = place.offset.checked_add(length).is_some_and(|end| end <= size);
        if ![0, length].contains(&place.length) || !is_within {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut placed = tensor(&told.name, &told.shape, told.data_type);
        Place { file: name.to_owned(), offset: place.offset, length }.put(&mut placed);
        Ok(placed)
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

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::runtime::OnnxFile;
    use crate::runtime::onnx::protobuf::put_number;
    use crate::runtime::test_graphs::{fixture, slim};

    fn graph(model: &str) -> PathBuf {
        fixture(model).join("model.onnx")
    }

    fn parsed(bytes: &[u8]) -> OnnxFile {
        OnnxFile::parse(&mut Cursor::new(bytes), bytes.len() as u64).unwrap()
    }

    #[test]
    fn a_graph_is_the_same_but_for_where_its_large_weights_are() {
        let path = graph("tiny-wide-pool");
        let slim = slim(&path).unwrap();
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
        let slim = slim(&path).unwrap();
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
        let slim = slim(&path).unwrap();
        assert_eq!(slim.file, path.with_file_name("model.onnx_data").canonicalize().unwrap());
        let (before, after) = (OnnxFile::read(&path).unwrap(), parsed(&slim.bytes));
        assert_eq!((before.parameters, before.external_data), (after.parameters, after.external_data));
    }

    /// A graph of a tensor of four floats for each of these entries of where it is, beside a file of 32 bytes that each names.
    fn external(folder: &Path, tensors: &[&[(&str, &str)]]) -> PathBuf {
        let mut graph = Vec::new();
        for entries in tensors {
            let mut placed = tensor("", &[4], proto::tensor::FLOAT);
            for (key, value) in *entries {
                let mut entry = Vec::new();
                put_bytes(&mut entry, proto::entry::KEY, key.as_bytes());
                put_bytes(&mut entry, proto::entry::VALUE, value.as_bytes());
                put_bytes(&mut placed, proto::tensor::EXTERNAL_DATA, &entry);
                if *key == "location" && !folder.join(value).exists() {
                    std::fs::write(folder.join(value), [0; 32]).unwrap();
                }
            }
            put_bytes(&mut graph, proto::graph::INITIALIZER, &placed);
        }
        let mut model = Vec::new();
        put_bytes(&mut model, proto::model::GRAPH, &graph);
        let path = folder.join("model.onnx");
        std::fs::write(&path, model).unwrap();
        path
    }

    #[test]
    fn what_may_be_left_out_of_a_place_is_told() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("elsewhere")).unwrap();
        std::fs::write(folder.path().join("elsewhere/real"), [0; 32]).unwrap();
        std::os::unix::fs::symlink("elsewhere/real", folder.path().join("weights")).unwrap();
        let path = external(folder.path(), &[&[("location", "weights")], &[("location", "weights"), ("offset", "16")]]);
        let slim = slim(&path).unwrap();
        assert_eq!(slim.file, folder.path().join("elsewhere/real").canonicalize().unwrap());
        let graph = Model::read(&slim.bytes).unwrap().graph;
        let places = graph.initializers.iter().map(|tensor| tensor.place.as_ref().unwrap());
        let told: Vec<_> = places.map(|place| (place.file.as_str(), place.offset, place.length)).collect();
        assert_eq!(told, [("real", 0, 16), ("real", 16, 16)]);
    }

    #[test]
    fn a_graph_whose_weights_are_in_several_files_or_not_where_they_are_told_to_be_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("in")).unwrap();
        let is_slim = |tensors: &[&[(&str, &str)]]| slim(&external(folder.path(), tensors)).is_some();
        assert!(is_slim(&[&[("location", "weights"), ("offset", "16"), ("length", "16")]]));
        assert!(!is_slim(&[&[("location", "weights")], &[("location", "others")]]));
        assert!(!is_slim(&[&[("location", "in/weights")]]));
        assert!(!is_slim(&[&[("location", "weights"), ("offset", "17")]]), "beyond the end");
        assert!(!is_slim(&[&[("location", "weights"), ("offset", &u64::MAX.to_string())]]));
        assert!(!is_slim(&[&[("location", "weights"), ("length", "15")]]), "four floats have 16 bytes");
    }
}
