//! A graph's matrices transposed, in a file of their own. OpenVINO multiplies by transposed matrices. Where a graph has others, it transposes them while
//! it opens a session, which takes longer than the rest of that, and keeps them for as long as the session lives, beside what its kernels
//! make of them, which is all that is read later: two thirds of what a session of a ViT takes. What comes transposed from a file is let go
//! of with the file. Such a file is written once and found by later sessions, processes and starts.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::weights_file::{Matrix, Weights};
use super::weights_in_file::{Slim, if_valid};
use crate::runtime::onnx::graph::{Graph, Model, Node, Tensor};
use crate::runtime::onnx::parts::{DOMAIN, PRODUCT, Place, tensor, with_integer};
use crate::runtime::onnx::protobuf::put_bytes;
use crate::runtime::{RuntimeError, onnx::proto};

/// Graphs whose weights could not be written, of which it is said and tried but once.
static REFUSED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// The graph, which is that of the file `path`, with the matrices that it multiplies by transposed, in a file in `folder`; `None` if they
/// are not most of its weights, or if there can be no such file.
///
/// # Errors
/// [`RuntimeError::Graph`]: it is no whole ONNX model.
pub(super) fn with_transposed(slim: &Slim, path: &Path, folder: &Path) -> Result<Option<Slim>, RuntimeError> {
    let unreadable = |error: io::Error| RuntimeError::Graph(format!("{}: {error}", path.display()));
    let refused = || REFUSED.lock().unwrap_or_else(PoisonError::into_inner);
    if refused().contains(&slim.file) {
        return Ok(None);
    }
    let rewritten = if_valid(Rewritten::of(&slim.bytes, &slim.file)).map_err(unreadable)?;
    let Some(rewritten) = rewritten else { return Ok(None) };
    match rewritten.weights.written(&slim.file, folder) {
        Ok(file) => Ok(Some(Slim { bytes: rewritten.model, file, ..*slim })),
        Err(error) => {
            tracing::warn!(
                file = %path.display(), folder = %folder.display(), %error,
                "transposed weights cannot be kept; sessions take more memory and longer to open"
            );
            refused().insert(slim.file.clone());
            Ok(None)
        }
    }
}

/// A model whose large weights are in another file than before.
struct Rewritten {
    model: Vec<u8>,
    weights: Weights,
}

impl Rewritten {
    /// `None` if less than half of the weights would be transposed.
    fn of(model: &[u8], source: &Path) -> io::Result<Option<Self>> {
        let mut model = Model::read(model)?;
        let graph = &model.graph;
        if graph.has_graphs_inside() || graph.names().is_none() {
            return Ok(None);
        }
        let (mut products, mut matrices) = (HashMap::new(), BTreeMap::new());
        let producers = graph.producers();
        for (index, node) in graph.nodes.iter().enumerate() {
            let [of, by] = &node.inputs[..] else { continue };
            let transposed = format!("{by}/transposed");
            if node.operator != "MatMul" || of == by {
                continue;
            }
            if let Some(matrix) = graph.columns(by, &producers)? {
                matrices.insert(transposed.clone(), matrix);
                products.insert(index, transposed);
            }
        }
        let bytes: u64 = matrices.values().map(|columns| columns.matrix.bytes()).sum();
        let all: u64 =
            graph.initializers.iter().filter_map(|tensor| tensor.place.as_ref()).map(|place| place.length).sum();
        if bytes == 0 || bytes < all / 2 {
            return Ok(None);
        }
        let (rewritten, weights) = graph.with_products(&products, &matrices, source)?;
        tracing::debug!(matrices = matrices.len(), bytes, "matrices are transposed in a file of their own");
        model.import(DOMAIN);
        Ok(Some(Self { model: model.with_graph(&rewritten), weights }))
    }
}

impl Node {
    /// The product as one by what is transposed, with other names for what it reads.
    pub(super) fn by_transposed(&self, name: impl Fn(&str) -> String) -> io::Result<Vec<u8>> {
        Ok(with_integer(self.replaced(DOMAIN, PRODUCT, name)?, "transB", 1))
    }
}

/// Columns of a matrix in the graph's file.
struct Columns<'g> {
    tensor: &'g Tensor,
    place: &'g Place,
    matrix: Matrix,
}

impl Graph {
    /// The columns of a matrix that `value` always is: a whole one in a file, or a part that `Split` cuts from it.
    fn columns(&self, value: &str, producers: &HashMap<&str, usize>) -> io::Result<Option<Columns<'_>>> {
        let Some(node) = producers.get(value).map(|&index| &self.nodes[index]) else {
            let given = self.inputs.contains_key(value);
            let whole = self.initializer(value).filter(|_| !given);
            return Ok(whole.and_then(|tensor| tensor.columns(|width| Some(0..width))));
        };
        let [whole, widths] = &node.inputs[..] else { return Ok(None) };
        let axis = node.integers()?.remove("axis");
        let cut =
            (self.initializer(whole), self.initializer(widths), node.outputs.iter().position(|part| part == value));
        let (Some(tensor), Some(widths), Some(index)) = cut else { return Ok(None) };
        if node.operator != "Split" || axis.as_deref() != Some(&[1]) {
            return Ok(None);
        }
        let widths: Option<Vec<u64>> =
            widths.integers()?.and_then(|widths| widths.into_iter().map(|width| u64::try_from(width).ok()).collect());
        Ok(widths.and_then(|widths| {
            let start = widths.get(..index)?.iter().try_fold(0_u64, |sum, &width| sum.checked_add(width))?;
            let end = start.checked_add(*widths.get(index)?)?;
            tensor.columns(|width| (end <= width).then_some(start..end))
        }))
    }

    /// `GraphProto` with `products`, by their nodes, that multiply by `matrices`, and the file that its large weights are in.
    fn with_products(
        &self,
        products: &HashMap<usize, String>,
        matrices: &BTreeMap<String, Columns<'_>>,
        source: &Path,
    ) -> io::Result<(Vec<u8>, Weights)> {
        let mut nodes = Vec::with_capacity(self.nodes.len());
        let mut read: BTreeSet<&str> = self.outputs.iter().chain(self.inputs.keys()).map(String::as_str).collect();
        for (index, node) in self.nodes.iter().enumerate().rev() {
            // What cut a matrix.
            if node.operator == "Split" && !node.outputs.iter().any(|part| read.contains(part.as_str())) {
                continue;
            }
            let bytes = match products.get(&index) {
                Some(transposed) => {
                    read.extend([node.inputs[0].as_str(), transposed]);
                    let name = |value: &str| if value == node.inputs[1] { transposed } else { value }.to_owned();
                    node.by_transposed(name)?
                }
                None => {
                    read.extend(node.inputs.iter().map(String::as_str));
                    node.bytes.clone()
                }
            };
            nodes.push(bytes);
        }
        let is_read = |tensor: &&Tensor| read.contains(tensor.name.as_str()) || self.readers(&tensor.name).is_empty();
        let kept: Vec<&Tensor> = self.initializers.iter().filter(is_read).collect();
        let told = |place: &Place| (place.offset, place.length);
        let of_matrices: Vec<_> = matrices.values().map(|columns| (told(columns.place), &columns.matrix)).collect();
        let of_others: Vec<_> = kept.iter().filter_map(|tensor| tensor.place.as_ref()).map(told).collect();
        let mut weights = Weights::new(source, &(of_matrices, of_others))?;
        let mut graph = self.rest.clone();
        for (name, Columns { tensor: whole, place, matrix }) in matrices {
            let shape = [matrix.columns.end - matrix.columns.start, matrix.shape[0]];
            let mut transposed = tensor(name, &shape, whole.data_type);
            weights.add(place, Some(matrix.clone())).put(&mut transposed);
            put_bytes(&mut graph, proto::graph::INITIALIZER, &transposed);
        }
        for other in kept {
            match &other.place {
                None => put_bytes(&mut graph, proto::graph::INITIALIZER, &other.bytes),
                Some(place) => {
                    let mut moved = tensor(&other.name, &other.shape, other.data_type);
                    weights.add(place, None).put(&mut moved);
                    put_bytes(&mut graph, proto::graph::INITIALIZER, &moved);
                }
            }
        }
        for bytes in nodes.iter().rev() {
            put_bytes(&mut graph, proto::graph::NODE, bytes);
        }
        Ok((graph, weights))
    }
}

impl Tensor {
    /// These of its columns, if it is a matrix of floats in a file.
    fn columns(&self, columns: impl FnOnce(u64) -> Option<Range<u64>>) -> Option<Columns<'_>> {
        let (&[rows, width], place) = (&self.shape[..], self.place_of_floats()?) else { return None };
        let columns = columns(width)?;
        Some(Columns { tensor: self, place, matrix: Matrix { shape: [rows, width], columns } })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::MetadataExt;
    use std::time::{Duration, SystemTime};

    use super::super::weights_file::UNUSED;
    use super::*;
    use crate::runtime::onnx::parts::{FUSED_PRODUCT, node, sizes};
    use crate::runtime::test_graphs::{count, differing_floats, differing_values, same_answers, value, write_model};

    const HEIGHT: u64 = 40;
    const WIDTH: u64 = 72;

    /// A product with a whole matrix, and one with another's columns in two parts.
    fn products() -> Vec<Vec<u8>> {
        vec![
            node("MatMul", &["x", "A"], &["hidden"], None),
            node("Split", &["B", "widths"], &["B0", "B1"], Some(("axis", 1))),
            node("MatMul", &["hidden", "B0"], &["left"], None),
            node("MatMul", &["hidden", "B1"], &["right"], None),
            node("Concat", &["left", "right"], &["out"], Some(("axis", 1))),
        ]
    }

    /// Writes a model of these nodes into `folder`, and reads it without its weights.
    fn model(folder: &Path, nodes: &[Vec<u8>]) -> Slim {
        let matrices: [(&str, &[u64]); 2] = [("A", &[HEIGHT, WIDTH]), ("B", &[WIDTH, HEIGHT])];
        let mut tensors = matrices.map(|(name, shape)| differing_floats(name, shape)).to_vec();
        tensors.push(sizes("widths", &[33, 7]));
        write_model(folder, nodes, &tensors, &[value("x", &[2, HEIGHT])], &[value("out", &[2, HEIGHT])], 17)
    }

    /// The names of the files with weights in `folder`.
    fn files(folder: &Path) -> Vec<String> {
        let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| !name.ends_with(".onnx")).collect()
    }

    fn transposed(slim: &Slim, folder: &Path) -> Option<Slim> {
        with_transposed(slim, &slim.file, folder).unwrap()
    }

    fn compare(folder: &Path, slim: &Slim) -> Graph {
        let transposed = transposed(slim, folder).unwrap();
        same_answers(folder, &transposed.bytes, ("x", differing_values(&[2, HEIGHT as usize])), "out")
    }

    #[test]
    fn products_with_transposed_matrices_are_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let graph = compare(folder.path(), &model(folder.path(), &products()));
        let counts = [FUSED_PRODUCT, "MatMul", "Split"].map(|operator| count(&graph, operator));
        assert_eq!(counts, [3, 0, 0]);
        assert!(graph.initializer("A").is_none() && graph.initializer("B").is_none());
    }

    #[test]
    fn who_else_reads_a_matrix_still_finds_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut nodes = products();
        nodes.push(node("Transpose", &["B"], &["turned"], None));
        let graph = compare(folder.path(), &model(folder.path(), &nodes));
        assert!(graph.initializer("A").is_none() && graph.initializer("B").is_some());
    }

    #[test]
    fn a_file_is_written_once_and_again_when_the_graph_has_changed() {
        let folder = tempfile::tempdir().unwrap();
        let slim = model(folder.path(), &products());
        let first = transposed(&slim, folder.path()).unwrap().file;
        let written = first.metadata().unwrap().ino();
        let again = transposed(&slim, folder.path()).unwrap().file;
        assert_eq!((&again, again.metadata().unwrap().ino()), (&first, written));
        assert_eq!(files(folder.path()).len(), 1, "nothing is left over");
        // In place, of the same length, and some ticks of the system's clock later.
        let change = || {
            std::thread::sleep(Duration::from_millis(50));
            let mut bytes = fs::read(&slim.file).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(&slim.file, bytes).unwrap();
            transposed(&slim, folder.path()).unwrap().file
        };
        let second = change();
        assert_ne!(second, first);
        assert!(first.exists(), "another server may use it");
        let age = |file: &Path| File::open(file).unwrap().set_modified(SystemTime::now() - UNUSED * 2).unwrap();
        age(&first);
        age(&second);
        transposed(&slim, folder.path()).unwrap();
        let third = change();
        assert_eq!((first.exists(), second.exists(), third.exists()), (false, true, true), "who is used stays");
    }

    #[test]
    fn what_another_left_half_written_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let slim = model(folder.path(), &products());
        let file = transposed(&slim, folder.path()).unwrap().file;
        let whole = fs::read(&file).unwrap();
        fs::remove_file(&file).unwrap();
        fs::write(file.with_extension("partial"), vec![7; whole.len() * 2]).unwrap();
        assert_eq!(fs::read(transposed(&slim, folder.path()).unwrap().file).unwrap(), whole);
        fs::write(&file, &whole[1..]).unwrap();
        assert_eq!(
            fs::read(transposed(&slim, folder.path()).unwrap().file).unwrap(),
            whole,
            "nor is a shorter one taken"
        );
        assert_eq!(files(folder.path()).len(), 1);
    }

    #[test]
    fn several_write_a_file_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let slim = model(folder.path(), &products());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| transposed(&slim, folder.path()).unwrap());
            }
        });
        compare(folder.path(), &slim);
    }

    #[test]
    fn a_folder_that_cannot_be_written_to_changes_nothing() {
        let [folder, other] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let slim = model(folder.path(), &products());
        assert!(transposed(&slim, &slim.file).is_none(), "a file is in its place");
        assert!(transposed(&slim, folder.path()).is_none(), "it is tried but once");
        let slim = model(other.path(), &products());
        fs::write(&slim.file, "").unwrap();
        assert!(transposed(&slim, other.path()).is_none(), "the weights are no longer there");
        assert_eq!(files(other.path()), [""; 0]);
    }

    #[test]
    fn a_graph_of_other_weights_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let is_transposed = |nodes: &[Vec<u8>]| transposed(&model(folder.path(), nodes), folder.path()).is_some();
        assert!(is_transposed(&products()[1..]), "one of two that are as large");
        assert!(!is_transposed(&products()[4..]));
        let by_rows = node("Split", &["B", "widths"], &["B0", "B1"], None);
        assert!(!is_transposed(&[vec![by_rows], products()[2..].to_vec()].concat()), "rows are cut, not columns");
        let nesting = node("Loop", &["", "condition", "x"], &["again"], None);
        assert!(!is_transposed(&[vec![nesting], products()].concat()), "the graph in the loop may read a matrix");
    }
}
