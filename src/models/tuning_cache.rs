//! What tuning measured, kept between starts.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::tuning::Tuning;
use crate::config::ModelSettings;

/// To be raised when something else is measured than before.
const REVISION: u32 = 4;

/// Where measurements of a graph are kept between starts. Everything that could change them is in the name.
pub(super) struct TuningCache(PathBuf);

impl TuningCache {
    /// For the graph with the hash `sha256`, or several of those, as `library` runs it on this machine with these settings.
    pub(super) fn new(cache_dir: &Path, sha256: &[String], library: &Path, settings: &ModelSettings) -> Self {
        let length = std::fs::metadata(library).map_or(0, |file| file.len());
        let cores = crate::config::usable_cores();
        let version = env!("CARGO_PKG_VERSION");
        let name = library.file_name().unwrap_or_default();
        let key = format!("{version} {REVISION} {sha256:?} {name:?} {length} {} {cores} {settings:?}", processor());
        let hash: String = Sha256::digest(key).iter().map(|byte| format!("{byte:02x}")).collect();
        Self(cache_dir.join("tuning").join(format!("{hash}.json")))
    }

    /// What an earlier start measured. A file that cannot be read is as good as none.
    pub(super) fn read(&self) -> Option<Tuning> {
        let tuning: Tuning = serde_json::from_slice(&std::fs::read(&self.0).ok()?).ok()?;
        Some(Tuning { cached: true, ..tuning })
    }

    /// Keeps measurements for later starts.
    pub(super) fn write(&self, tuning: &Tuning) {
        let write = || {
            std::fs::create_dir_all(self.0.parent().unwrap_or(Path::new("")))?;
            // In one step, so that no other start reads half of it.
            let partial = self.0.with_extension(format!("{}.partial", std::process::id()));
            std::fs::write(&partial, serde_json::to_vec(tuning)?)?;
            std::fs::rename(&partial, &self.0)
        };
        if let Err(error) = write() {
            tracing::warn!(file = %self.0.display(), %error, "what was measured cannot be kept; the next start will measure again");
        }
    }
}

/// The processor's name, as far as the system tells.
fn processor() -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = |name: &str| cpuinfo.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
    format!("{} {} {}", std::env::consts::ARCH, line("model name"), line("flags"))
}

#[cfg(test)]
mod tests {
    use super::super::tuning::{Candidate, Speed};
    use super::*;
    use crate::config::Config;
    use crate::runtime::{ExecutionProvider, Precision};

    #[test]
    fn measurements_are_kept_for_the_same_circumstances_only() {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = Config::default().model_defaults;
        let cache = |settings: &ModelSettings, hash: &str| {
            TuningCache::new(folder.path(), &[hash.to_owned()], Path::new("library"), settings)
        };
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
        settings.batch_policy.max_batch_size = 3;
        assert!(cache(&settings, "a").read().is_none());
    }
}
