//! A graph's file: its name, what is in it, and its hash.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use super::{LoadError, cache_file};
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

/// Who changes a file again so soon may leave the times that the system tells of it as they are.
const RECENT: Duration = Duration::from_secs(2);

impl StoredGraph {
    /// What the file at `path` holds. Its hash is kept in `cache_dir` for as long as the system tells of no change: to hash the weights again takes a
    /// tenth to a fifth of a start.
    pub(super) fn read(path: &Path, folder: &Path, cache_dir: &Path) -> Result<Self, LoadError> {
        let file = OnnxFile::read(path)?;
        let sha256 = kept_hash(path, &file, cache_dir, SystemTime::now())
            .map_err(|error| LoadError::System(format!("{}: {error}", path.display())))?;
        let name = path.strip_prefix(folder).unwrap_or(path).display().to_string();
        Ok(Self { file: name, parameters: file.parameters, sha256, open_inputs: file.open_inputs })
    }
}

/// The graph's file and those of its external data, in the order of their names.
fn files(graph: &Path, file: &OnnxFile) -> Vec<PathBuf> {
    let external = file.external_data.iter().map(|name| graph.parent().unwrap_or(Path::new("")).join(name));
    std::iter::once(graph.to_path_buf()).chain(external).collect()
}

/// [`content_hash`], or what it was when these files were last hashed.
fn kept_hash(graph: &Path, file: &OnnxFile, cache_dir: &Path, now: SystemTime) -> io::Result<String> {
    let files = files(graph, file);
    let (mut key, mut changed_last) = (Sha256::new(), UNIX_EPOCH);
    for path in &files {
        let told = path.metadata()?;
        let (modified, changed) = ((told.mtime(), told.mtime_nsec()), (told.ctime(), told.ctime_nsec()));
        key.update(format!("{path:?} {} {} {modified:?} {changed:?} ", told.ino(), told.len()));
        let changed = UNIX_EPOCH + Duration::from_secs(changed.0.try_into().unwrap_or(0));
        changed_last = changed_last.max(told.modified()?).max(changed);
    }
    let kept = cache_dir.join("hashes").join(hexadecimal(&key.finalize()));
    let is_hash = |text: &String| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if let Some(hash) = std::fs::read_to_string(&kept).ok().filter(is_hash) {
        return Ok(hash);
    }
    let is_settled = now.duration_since(changed_last).is_ok_and(|age| age > RECENT);
    let hash = content_hash(&files)?;
    if is_settled && let Err(error) = cache_file::write(&kept, hash.as_bytes()) {
        tracing::warn!(file = %kept.display(), %error, "a hash cannot be kept; the next start will take longer");
    }
    Ok(hash)
}

/// SHA-256 over all of `files`.
fn content_hash(files: &[PathBuf]) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    for path in files {
        let mut reader = File::open(path)?;
        loop {
            let length = reader.read(&mut buffer)?;
            if length == 0 {
                break;
            }
            hasher.update(&buffer[..length]);
        }
    }
    Ok(hexadecimal(&hasher.finalize()))
}

/// As hashes are told.
pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph_in(folder: &Path) -> PathBuf {
        let graph = folder.join("model.onnx");
        std::fs::write(&graph, "graph").unwrap();
        graph
    }

    #[test]
    fn the_hash_covers_external_data() {
        let folder = tempfile::tempdir().unwrap();
        let graph = graph_in(folder.path());
        let mut file = OnnxFile::default();
        let alone = content_hash(&files(&graph, &file)).unwrap();
        assert_eq!(alone.len(), 64);
        std::fs::write(folder.path().join("weights"), "weights").unwrap();
        file.external_data.insert("weights".into());
        assert_ne!(content_hash(&files(&graph, &file)).unwrap(), alone);
    }

    #[test]
    fn a_hash_is_kept_until_the_file_changes() {
        let (folder, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let graph = graph_in(folder.path());
        let hash_at = |now| kept_hash(&graph, &OnnxFile::default(), cache.path(), now).unwrap();
        let hash = || hash_at(SystemTime::now() + RECENT * 2);
        let kept = || std::fs::read_dir(cache.path().join("hashes")).map_or(0, Iterator::count);
        let first = hash_at(SystemTime::now());
        assert_eq!(kept(), 0, "it may be changing");
        assert_eq!((hash(), kept()), (first.clone(), 1));
        let entry = std::fs::read_dir(cache.path().join("hashes")).unwrap().next().unwrap().unwrap().path();
        std::fs::write(&entry, "0".repeat(64)).unwrap();
        assert_eq!(hash(), "0".repeat(64), "what is kept is taken");
        std::fs::write(&entry, "half").unwrap();
        assert_eq!(hash(), first, "what is no hash is not");
        std::fs::write(&graph, "other").unwrap();
        assert_ne!(hash(), first);
    }
}
