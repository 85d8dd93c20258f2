//! A graph's file: its name, what is in it, and its hash.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use serde::Serialize;
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use super::LoadError;
use crate::runtime::OnnxFile;

/// A graph's file and what is in it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct StoredGraph {
    /// Its name, relative to the model's folder.
    #[schema(example = "model.onnx")]
    pub file: String,
    /// How many weights are stored in each element type, by ONNX's names.
    pub parameters: BTreeMap<&'static str, u64>,
    /// SHA-256 of the file and its external data, in hexadecimal.
    pub sha256: String,
    /// As [`OnnxFile::open_inputs`].
    #[serde(skip)]
    pub(super) open_inputs: Vec<Vec<Option<String>>>,
}

impl StoredGraph {
    /// What the file at `path` holds.
    pub(super) fn read(path: &Path, folder: &Path) -> Result<Self, LoadError> {
        let file = OnnxFile::read(path)?;
        let sha256 =
            content_hash(path, &file).map_err(|error| LoadError::System(format!("{}: {error}", path.display())))?;
        let name = path.strip_prefix(folder).unwrap_or(path).display().to_string();
        Ok(Self { file: name, parameters: file.parameters, sha256, open_inputs: file.open_inputs })
    }
}

/// SHA-256 over a graph's file and its external data, in the order of their names.
fn content_hash(graph: &Path, file: &OnnxFile) -> std::io::Result<String> {
    let external = file.external_data.iter().map(|name| graph.parent().unwrap_or(Path::new("")).join(name));
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    for path in std::iter::once(graph.to_path_buf()).chain(external) {
        let mut reader = std::fs::File::open(path)?;
        loop {
            let length = reader.read(&mut buffer)?;
            if length == 0 {
                break;
            }
            hasher.update(&buffer[..length]);
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_covers_external_data() {
        let folder = tempfile::tempdir().unwrap();
        let graph = folder.path().join("model.onnx");
        std::fs::write(&graph, "graph").unwrap();
        let mut file = OnnxFile::default();
        let alone = content_hash(&graph, &file).unwrap();
        assert_eq!(alone.len(), 64);
        std::fs::write(folder.path().join("weights"), "weights").unwrap();
        file.external_data.insert("weights".into());
        assert_ne!(content_hash(&graph, &file).unwrap(), alone);
    }
}
