//! The models of the models folder: look-up by name, loading in the background, stopping.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::entry::Entry;
use super::info::{ModelInfo, ModelState};
use super::tuning::Stage;
use super::{Classifier, LoadContext, LoadError, LoadedModel, Task, ZeroShotClassifier};
use crate::batching::Straggler;
use crate::config::Config;
use crate::panics::panic_text;
use crate::runtime::RuntimeError;

/// Why a request got no model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// No such name.
    #[error("there is no model '{name}'; there are: {}", known.join(", "))]
    Unknown {
        /// As requested.
        name: String,
        /// All names.
        known: Vec<String>,
    },
    /// A model for something else.
    #[error("the model '{name}' is for {task}; for {wanted} there are: {}", known.join(", "))]
    WrongTask {
        /// As requested.
        name: String,
        /// The model's own task.
        task: String,
        /// What was asked for.
        wanted: String,
        /// Names of models for that.
        known: Vec<String>,
    },
    /// The request named none, and there is none for its task.
    #[error("this server has no model for {0}")]
    NoneForTask(String),
    /// Loading, failed or unloading.
    #[error("the model '{name}' is {}{}", state.name(), reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}")))]
    NotReady {
        /// The model's name.
        name: String,
        /// Its state.
        state: ModelState,
        /// Why, if it failed.
        reason: Option<String>,
    },
}

/// So soon do workers end that have no work, once they are told.
const IDLE_ENDS_WITHIN: Duration = Duration::from_millis(200);

/// Every model of the models folder.
pub struct Registry {
    entries: BTreeMap<String, Entry>,
    default_classifier: Option<String>,
    default_zero_shot: Option<String>,
}

impl Registry {
    /// Reads the models folder. A sub-folder that cannot be read becomes a model that failed.
    ///
    /// # Errors
    /// Mistakes of configuration, with their keys: no models, or settings for a model that is not there.
    pub fn scan(config: &Config) -> Result<Self, Vec<String>> {
        let dir = config.models_dir.display();
        let listing = std::fs::read_dir(&config.models_dir).map_err(|error| {
            vec![format!("models_dir: {dir} cannot be read: {error}. scripts/setup fetches two models into 'models'")]
        })?;
        let mut entries = BTreeMap::new();
        for path in listing.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()) {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if !name.starts_with('.') {
                let settings = config.model(&name).clone();
                entries.insert(name, Entry::open(path, settings));
            }
        }
        let registry = Self {
            default_classifier: default_model(&entries, config.default_classifier.as_ref(), Task::ImageClassification),
            default_zero_shot: default_model(
                &entries,
                config.default_zero_shot.as_ref(),
                Task::ZeroShotImageClassification,
            ),
            entries,
        };
        let mistakes = registry.mistakes(config);
        if mistakes.is_empty() { Ok(registry) } else { Err(mistakes) }
    }

    fn mistakes(&self, config: &Config) -> Vec<String> {
        let dir = config.models_dir.display();
        if self.entries.is_empty() {
            return vec![format!("models_dir: {dir} holds no model folders. scripts/setup fetches two into 'models'")];
        }
        let names = self.names().join(", ");
        let named = config.models.keys().map(|name| (format!("models.{name}"), Some(name)));
        let defaults = [
            ("default_classifier", config.default_classifier.as_ref(), Task::ImageClassification),
            ("default_zero_shot", config.default_zero_shot.as_ref(), Task::ZeroShotImageClassification),
        ];
        let all = named.chain(defaults.map(|(key, name, _)| (key.to_owned(), name)));
        let unknown = all.filter_map(|(key, name)| {
            let name = name.filter(|name| !self.entries.contains_key(*name))?;
            Some(format!("{key}: there is no folder '{name}' in {dir}, which holds {names}"))
        });
        let unfit = defaults.into_iter().filter_map(|(key, name, wanted)| {
            let (name, entry) = self.entries.get_key_value(name?)?;
            let fits = entry.description.as_ref()?.task == wanted;
            (!fits).then(|| format!("{key}: {}", self.wrong_task(name, wanted)))
        });
        unknown.chain(unfit).collect()
    }

    /// Loads one model after the other. Blocks; the models before the failing one stay loaded.
    ///
    /// # Errors
    /// A provider or a library that was asked for and cannot be used: the start must not go on. What is wrong with one
    /// folder alone makes that model `failed` instead.
    pub fn load_all(&self, context: &LoadContext) -> Result<(), RuntimeError> {
        for (name, entry) in &self.entries {
            if let Some(LoadError::Runtime(error @ (RuntimeError::Provider(_) | RuntimeError::Library(_)))) =
                entry.load(name, context).err()
            {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Measures, model by model, how each is best run where the settings leave that open. Blocks for some seconds a model, in
    /// which all of them answer; ends early once they are closed.
    pub fn tune_all(&self) {
        self.for_each_stage(|stage, name, entry| {
            // Without it the model serves as it does.
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| entry.tune(name, stage))) {
                tracing::error!(model = name, cause = panic_text(panic.as_ref()), "tuning panicked and was given up");
            }
        });
    }

    /// Calls `tune` for each stage of each model: of those first that have been asked for by then, as others may never be.
    fn for_each_stage(&self, mut tune: impl FnMut(Stage, &str, &Entry)) {
        let of_all = |stage| self.entries.iter().map(move |(name, entry)| (stage, name, entry));
        let mut left: Vec<_> = [Stage::Arithmetic, Stage::Batches].into_iter().flat_map(of_all).collect();
        while !left.is_empty() {
            let asked_for = left.iter().position(|(.., entry)| entry.asked_for.load(Ordering::Relaxed));
            let (stage, name, entry) = left.remove(asked_for.unwrap_or(0));
            tune(stage, name, entry);
        }
    }

    /// Loads the one model called `name`. Blocks.
    ///
    /// # Errors
    /// Why it could not be loaded.
    pub fn load(&self, name: &str, context: &LoadContext) -> Result<LoadedModel, LoadError> {
        match self.entries.get(name) {
            Some(entry) => entry.load(name, context),
            None => Err(LoadError::System(self.unknown(name).to_string())),
        }
    }

    /// The classifier called `name`, or the default one.
    ///
    /// # Errors
    /// Why there is none at present.
    pub fn classifier(&self, name: Option<&str>) -> Result<Arc<Classifier>, LookupError> {
        let task = Task::ImageClassification;
        match self.find(name.or(self.default_classifier.as_deref()), task)? {
            (_, LoadedModel::Classifier(model)) => Ok(model),
            (name, LoadedModel::ZeroShot(_)) => Err(self.wrong_task(name, task)),
        }
    }

    /// The zero-shot model called `name`, or the default one.
    ///
    /// # Errors
    /// Why there is none at present.
    pub fn zero_shot(&self, name: Option<&str>) -> Result<Arc<ZeroShotClassifier>, LookupError> {
        let task = Task::ZeroShotImageClassification;
        match self.find(name.or(self.default_zero_shot.as_deref()), task)? {
            (_, LoadedModel::ZeroShot(model)) => Ok(model),
            (name, LoadedModel::Classifier(_)) => Err(self.wrong_task(name, task)),
        }
    }

    fn find<'a>(&self, name: Option<&'a str>, task: Task) -> Result<(&'a str, LoadedModel), LookupError> {
        let name = name.ok_or_else(|| LookupError::NoneForTask(task.name().to_owned()))?;
        let entry = self.entries.get(name).ok_or_else(|| self.unknown(name))?;
        entry.asked_for.store(true, Ordering::Relaxed);
        if entry.description.as_ref().is_some_and(|description| description.task != task) {
            return Err(self.wrong_task(name, task));
        }
        let model =
            entry.ready().map_err(|(state, reason)| LookupError::NotReady { name: name.to_owned(), state, reason })?;
        Ok((name, model))
    }

    fn unknown(&self, name: &str) -> LookupError {
        LookupError::Unknown { name: name.to_owned(), known: self.names() }
    }

    fn wrong_task(&self, name: &str, wanted: Task) -> LookupError {
        let task = |entry: &Entry| entry.description.as_ref().map(|description| description.task);
        let own = self.entries.get(name).and_then(task);
        let fitting = self.entries.iter().filter(|(_, entry)| task(entry) == Some(wanted));
        LookupError::WrongTask {
            name: name.to_owned(),
            task: own.map_or("another task", Task::name).to_owned(),
            wanted: wanted.name().to_owned(),
            known: fitting.map(|(name, _)| name.clone()).collect(),
        }
    }

    /// All names, sorted.
    pub fn names(&self) -> Vec<String> {
        self.entries.keys().cloned().collect()
    }

    /// The default model for `task`.
    pub fn default_for(&self, task: Task) -> Option<&str> {
        match task {
            Task::ImageClassification => self.default_classifier.as_deref(),
            Task::ZeroShotImageClassification => self.default_zero_shot.as_deref(),
        }
    }

    /// What there is to tell of the model called `name`.
    ///
    /// # Errors
    /// [`LookupError::Unknown`].
    pub fn info(&self, name: &str) -> Result<ModelInfo, LookupError> {
        let entry = self.entries.get(name).ok_or_else(|| self.unknown(name))?;
        Ok(entry.info(name))
    }

    /// What there is to tell of all models.
    pub fn infos(&self) -> Vec<ModelInfo> {
        self.entries.iter().map(|(name, entry)| entry.info(name)).collect()
    }

    /// Takes no more work; what waits in the queues is still answered.
    pub fn close(&self) {
        for entry in self.entries.values() {
            entry.close();
        }
    }

    /// Waits until every worker has ended, or until `deadline`, but long enough for those that are idle; returns those that have not.
    pub async fn join(&self, deadline: Instant) -> Vec<Straggler> {
        let deadline = deadline.max(Instant::now() + IDLE_ENDS_WITHIN);
        loop {
            // One that was being loaded may be ready by now.
            self.close();
            let stragglers: Vec<Straggler> = self.entries.values().flat_map(Entry::stragglers).collect();
            if stragglers.is_empty() || Instant::now() >= deadline {
                return stragglers;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
fn default_model(entries: &BTreeMap<String, Entry>, configured: Option<&String>, task: Task) -> Option<String> {
    let is_for_task = |entry: &Entry| entry.description.as_ref().is_some_and(|description| description.task == task);
    let first = || entries.iter().find(|(_, entry)| is_for_task(entry)).map(|(name, _)| name.clone());
    configured.cloned().or_else(first)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config(models_dir: &Path) -> Config {
        Config { models_dir: models_dir.to_path_buf(), ..Config::default() }
    }

    #[test]
    fn a_missing_or_empty_models_folder_says_what_to_run() {
        let missing = Registry::scan(&config(Path::new("/nowhere"))).err().unwrap();
        assert!(missing[0].contains("/nowhere") && missing[0].contains("scripts/setup"), "{missing:?}");
        let empty = tempfile::tempdir().unwrap();
        let mistakes = Registry::scan(&config(empty.path())).err().unwrap();
        assert!(mistakes[0].contains("holds no model folders"), "{mistakes:?}");
    }

    #[test]
    fn settings_for_models_that_are_not_there_are_mistakes() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models");
        let mut config = config(&fixtures);
        config.models.insert("vit".to_owned(), config.model_defaults.clone());
        config.default_zero_shot = Some("siglip".to_owned());
        let mistakes = Registry::scan(&config).err().unwrap();
        assert!(
            mistakes[0].starts_with("models.vit: ") && mistakes[1].starts_with("default_zero_shot: "),
            "{mistakes:?}"
        );
    }

    #[test]
    fn models_that_are_asked_for_are_tuned_first() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models");
        let mut registry = Registry::scan(&config(&fixtures)).unwrap();
        registry.entries.retain(|name, _| ["tiny-classifier", "tiny-fp16", "tiny-slow"].contains(&name.as_str()));
        let mut order = Vec::new();
        registry.for_each_stage(|stage, name, _| {
            if order.is_empty() {
                // Nothing is loaded here; asked for it has been all the same.
                assert!(registry.classifier(Some("tiny-slow")).is_err());
            }
            order.push((stage, name.to_owned()));
        });
        let expected = [
            (Stage::Arithmetic, "tiny-classifier"),
            (Stage::Arithmetic, "tiny-slow"),
            (Stage::Batches, "tiny-slow"),
            (Stage::Arithmetic, "tiny-fp16"),
            (Stage::Batches, "tiny-classifier"),
            (Stage::Batches, "tiny-fp16"),
        ];
        assert_eq!(order, expected.map(|(stage, name)| (stage, name.to_owned())));
    }

    #[test]
    fn a_default_for_another_task_is_a_mistake() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models");
        let config = Config { default_classifier: Some("tiny-clip".to_owned()), ..config(&fixtures) };
        let mistakes = Registry::scan(&config).err().unwrap();
        assert!(
            mistakes[0].starts_with("default_classifier: the model 'tiny-clip' is for zero-shot-image-classification"),
            "{mistakes:?}"
        );
    }
}
