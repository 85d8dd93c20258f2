//! One model of the registry: its folder, its state, and the model itself while it is loaded.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, PoisonError, RwLock};

use super::classifier::ClassifierParts;
use super::folder::{FolderContent, FolderError, ModelFolder};
use super::info::{Description, ModelInfo, ModelState};
use super::tuning::Stage;
use super::{Classifier, GraphInfo, LoadContext, LoadError, Stop, ZeroShotClassifier};
use crate::batching::Straggler;
use crate::config::ModelSettings;

/// A model that answers.
#[derive(Clone)]
pub enum LoadedModel {
    /// For `/v1/classify`.
    Classifier(Arc<Classifier>),
    /// For `/v1/zero-shot`.
    ZeroShot(Arc<ZeroShotClassifier>),
}

impl LoadedModel {
    fn graphs(&self) -> Vec<GraphInfo> {
        match self {
            Self::Classifier(model) => model.graphs(),
            Self::ZeroShot(model) => model.graphs(),
        }
    }

    fn broken(&self) -> Option<String> {
        match self {
            Self::Classifier(model) => model.broken(),
            Self::ZeroShot(model) => model.broken(),
        }
    }

    fn tune(&self, name: &str, stage: Stage) {
        match self {
            Self::Classifier(model) => model.tune(stage),
            Self::ZeroShot(model) => {
                if let Err(error) = model.tune(stage) {
                    tracing::warn!(model = name, %error, "tuning was given up");
                }
            }
        }
    }

    fn stop(&self) -> &dyn Stop {
        match self {
            Self::Classifier(model) => model.as_ref(),
            Self::ZeroShot(model) => model.as_ref(),
        }
    }
}

enum State {
    Loading,
    Ready(LoadedModel),
    Failed(String),
    Unloading(LoadedModel),
}

/// A sub-folder of the models folder.
pub(super) struct Entry {
    path: PathBuf,
    settings: ModelSettings,
    /// What the folder said when it was first read; `None` if it could not be.
    pub(super) description: Option<Description>,
    /// Has a request named it, or been given it as the default?
    pub(super) asked_for: AtomicBool,
    state: RwLock<State>,
}

impl Entry {
    /// Reads the folder; if that fails, the model has failed.
    pub(super) fn open(path: PathBuf, settings: ModelSettings) -> Self {
        let (description, state) = match ModelFolder::open(&path, &settings) {
            Ok(folder) => {
                let defaults = folder.processor.defaults_taken();
                if !defaults.is_empty() {
                    tracing::info!(
                        model = folder.name,
                        ?defaults,
                        "the image processor's file lacks keys; their defaults are taken"
                    );
                }
                (Some(Description::of(&folder, &settings)), State::Loading)
            }
            Err(error) => (None, failed(&path, &error)),
        };
        Self { path, settings, description, asked_for: AtomicBool::new(false), state: RwLock::new(state) }
    }

    /// Opens and warms the model. Blocks.
    pub(super) fn load(&self, name: &str, context: &LoadContext) -> Result<LoadedModel, LoadError> {
        let result = ModelFolder::open(&self.path, &self.settings)
            .map_err(LoadError::from)
            .and_then(|folder| load_model(context, folder, &self.settings));
        let state = match &result {
            Ok(model) => State::Ready(model.clone()),
            Err(error) => {
                tracing::error!(model = name, %error, "model could not be loaded");
                State::Failed(error.to_string())
            }
        };
        context.metrics.model(name).set_ready(result.is_ok());
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = state;
        result
    }

    /// The model, or why it does not answer at present.
    pub(super) fn ready(&self) -> Result<LoadedModel, (ModelState, Option<String>)> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        match (state.now(), &*state) {
            ((ModelState::Ready, _), State::Ready(model)) => Ok(model.clone()),
            (now, _) => Err(now),
        }
    }

    /// What there is to tell of the model, which the registry calls `name`.
    pub(super) fn info(&self, name: &str) -> ModelInfo {
        let current = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let (state, reason) = current.now();
        let graphs = current.model().map(LoadedModel::graphs).unwrap_or_default();
        let mut description = self.description.clone();
        if let (Some(description), Some(LoadedModel::ZeroShot(model))) = (&mut description, current.model()) {
            description.logit_scale = Some(model.scoring.logit_scale);
            description.logit_bias =
                description.logit_bias.or(Some(model.scoring.logit_bias).filter(|&bias| bias != 0.0));
        }
        ModelInfo { name: name.to_owned(), state, reason, description, graphs }
    }

    /// Measures how the model is best run, if it is there. Blocks for some seconds.
    pub(super) fn tune(&self, name: &str, stage: Stage) {
        if let Ok(model) = self.ready() {
            model.tune(name, stage);
        }
    }

    /// Takes no more work; what waits is still answered.
    pub(super) fn close(&self) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if let State::Ready(model) = &*state {
            let model = model.clone();
            model.stop().close();
            *state = State::Unloading(model);
        }
    }

    /// Workers that have not ended yet.
    pub(super) fn stragglers(&self) -> Vec<Straggler> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.model().map(|model| model.stop().stragglers()).unwrap_or_default()
    }
}

impl State {
    fn model(&self) -> Option<&LoadedModel> {
        match self {
            Self::Ready(model) | Self::Unloading(model) => Some(model),
            Self::Loading | Self::Failed(_) => None,
        }
    }

    /// The state to tell of, and the reason of a failure; a model whose workers broke has failed, for the time being.
    fn now(&self) -> (ModelState, Option<String>) {
        match self {
            Self::Loading => (ModelState::Loading, None),
            Self::Failed(reason) => (ModelState::Failed, Some(reason.clone())),
            Self::Unloading(_) => (ModelState::Unloading, None),
            Self::Ready(model) => match model.broken() {
                Some(reason) => (ModelState::Failed, Some(reason)),
                None => (ModelState::Ready, None),
            },
        }
    }
}

fn load_model(context: &LoadContext, folder: ModelFolder, settings: &ModelSettings) -> Result<LoadedModel, LoadError> {
    match folder.content {
        FolderContent::Classifier { graph, labels, function_to_apply } => {
            let parts = ClassifierParts { name: folder.name, labels, function_to_apply, processor: folder.processor };
            let model = Classifier::start(context, parts, &graph, &folder.path, settings)?;
            Ok(LoadedModel::Classifier(Arc::new(model)))
        }
        FolderContent::DualEncoder(_) => {
            let model = ZeroShotClassifier::start(context, folder, settings)?;
            Ok(LoadedModel::ZeroShot(Arc::new(model)))
        }
    }
}

fn failed(path: &Path, error: &FolderError) -> State {
    tracing::error!(folder = %path.display(), %error, "model folder cannot be read");
    State::Failed(error.to_string())
}
