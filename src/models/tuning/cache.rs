//! What tuning measured, kept between starts.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::choice::Tuning;
use crate::models::cache_file;
use crate::models::engine::EngineSource;
use crate::models::stored_graph::{StoredGraph, hexadecimal};

/// To be raised when something else is measured than before.
const REVISION: u32 = 10;

/// Where measurements of a graph are kept between starts. Everything that could change them is in the name.
pub(in crate::models) struct TuningCache(PathBuf);

impl TuningCache {
    /// For the graph of `source`, and its variant in int8 if that may be taken, as `library` runs it on this machine.
    pub(in crate::models) fn new(
        cache_dir: &Path,
        source: &EngineSource<'_>,
        int8: Option<&StoredGraph>,
        library: &Path,
    ) -> Self {
        let EngineSource { graph, stored, judged_with, folder, settings, .. } = source;
        let sha256 = [Some(*stored), int8, *judged_with].map(|graph| graph.map(|graph| &graph.sha256));
        let length = std::fs::metadata(library).map_or(0, |file| file.len());
        let cores = crate::config::usable_cores();
        let version = env!("CARGO_PKG_VERSION");
        let name = library.file_name().unwrap_or_default();
        let mut key = Sha256::new();
        key.update(format!("{version} {REVISION} {graph} {sha256:?} {name:?} {length} {cores} {settings:?}"));
        key.update(processors());
        key.update(descriptions(folder));
        let hash = hexadecimal(&key.finalize());
        Self(cache_dir.join("tuning").join(format!("{hash}.json")))
    }

    /// What an earlier start measured. A file that cannot be read is as good as none.
    pub(in crate::models) fn read(&self) -> Option<Tuning> {
        let tuning: Tuning = serde_json::from_slice(&std::fs::read(&self.0).ok()?).ok()?;
        Some(Tuning { cached: true, ..tuning })
    }

    /// Keeps measurements for later starts.
    pub(in crate::models) fn write(&self, tuning: &Tuning) {
        let written = serde_json::to_vec(tuning).map_err(Into::into).and_then(|text| cache_file::write(&self.0, &text));
        if let Err(error) = written {
            tracing::warn!(file = %self.0.display(), %error, "what was measured cannot be kept; the next start will measure again");
        }
    }
}

/// What the folder's other files say of the model: how inputs are made, which fidelity was judged on, and what becomes of outputs.
fn descriptions(folder: &Path) -> Vec<u8> {
    let entries = [folder.to_path_buf(), folder.join("onnx")].map(std::fs::read_dir).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "json"));
    files.sort_unstable();
    files.iter().filter_map(|file| std::fs::read(file).ok()).flatten().collect()
}

/// The names of the processor and of GPUs, as far as the system tells.
fn processors() -> String {
    let line = |text: &str, name: &str| text.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mut names = vec![std::env::consts::ARCH.to_owned(), line(&cpuinfo, "model name"), line(&cpuinfo, "flags")];
    let gpus = std::fs::read_dir("/proc/driver/nvidia/gpus").into_iter().flatten().flatten();
    let mut gpus: Vec<String> = gpus
        .map(|gpu| line(&std::fs::read_to_string(gpu.path().join("information")).unwrap_or_default(), "Model"))
        .collect();
    gpus.sort_unstable();
    names.append(&mut gpus);
    names.join(" ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::choice::{Candidate, Speed};
    use super::*;
    use crate::config::{Config, ModelSettings};
    use crate::runtime::{ExecutionProvider, Precision};

    #[test]
    fn measurements_are_kept_for_the_same_circumstances_only() {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = Config::default().model_defaults;
        let model = tempfile::tempdir().unwrap();
        let stored = |hash: &str| StoredGraph {
            file: "f".to_owned(),
            parameters: BTreeMap::new(),
            sha256: hash.to_owned(),
            open_inputs: Vec::new(),
        };
        let cache_of = |graph: &'static str, settings: &ModelSettings, hash: &str, other: &str| {
            let source = EngineSource {
                model: "m",
                graph,
                file: Path::new("f"),
                stored: &stored(hash),
                judged_with: Some(&stored(other)),
                folder: model.path(),
                outputs: &[],
                settings,
            };
            TuningCache::new(folder.path(), &source, None, Path::new("library"))
        };
        let cache = |settings: &ModelSettings, hash: &str| cache_of("vision_model", settings, hash, "other");
        assert!(cache(&settings, "a").read().is_none());
        let candidates = vec![Candidate {
            provider: ExecutionProvider::Cpu,
            precision: Precision::F32,
            instances: 2,
            threads: 1,
            speeds: vec![Speed { batch_size: 1, per_second: 10.0, run_ms: 100.0 }],
            largest_shift: None,
            ruled_out: None,
        }];
        cache(&settings, "a").write(&Tuning { cached: false, candidates: candidates.clone() });
        assert_eq!(cache(&settings, "a").read().unwrap(), Tuning { cached: true, candidates });
        assert!(cache(&settings, "b").read().is_none());
        assert!(cache_of("text_model", &settings, "a", "other").read().is_none(), "both encoders may be in one graph");
        assert!(cache_of("vision_model", &settings, "a", "b").read().is_none(), "they are judged together");
        std::fs::write(model.path().join("weights.bin"), "1").unwrap();
        assert!(cache(&settings, "a").read().is_some());
        std::fs::write(model.path().join("preprocessor_config.json"), "{}").unwrap();
        assert!(cache(&settings, "a").read().is_none(), "fidelity was judged on other inputs");
        std::fs::remove_file(model.path().join("preprocessor_config.json")).unwrap();
        settings.batch_policy.max_batch_size = 3;
        assert!(cache(&settings, "a").read().is_none());
    }
}
