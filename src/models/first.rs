//! What a graph is served with first, before anything is measured at this start.

use super::LoadError;
use super::engine::EngineSource;
use super::graph_model::Binding;
use super::opener::{Opener, Warmed};
use super::plan::{Plan, first_plan, providers};
use super::tuning::Tuning;
use super::tuning::TuningCache;
use crate::config::ModelSettings;
use crate::runtime::{Precision, RuntimeError};

/// What a graph is served with first: the best of what an earlier start measured, or the first plan that works.
pub(super) struct First<B: Binding> {
    pub(super) plan: Plan,
    /// Those of the plan's workers.
    pub(super) sessions: Vec<Warmed<B>>,
    /// Why this plan.
    pub(super) reason: String,
    /// What an earlier start measured.
    pub(super) tuning: Option<Tuning>,
}

impl<B: Binding> First<B> {
    pub(super) fn open(opener: &Opener<B>, source: &EngineSource<'_>, cache: &TuningCache) -> Result<Self, LoadError> {
        let settings = source.settings;
        let kept = cache.read();
        let chosen = |tuning: Tuning| Some((opener.choose(settings, &tuning.candidates)?, tuning));
        if let Some((plan, tuning)) = kept.and_then(chosen) {
            match opener.open_crew(&plan) {
                Ok(sessions) => {
                    let reason = "auto: measured at an earlier start".to_owned();
                    return Ok(Self { plan, sessions, reason, tuning: Some(tuning) });
                }
                Err(error) => {
                    tracing::warn!(model = source.model, %error, "the best of what an earlier start measured no longer works")
                }
            }
        }
        let mut failures = Vec::new();
        for provider in providers(&opener.context, settings) {
            let plan = match settings.leaves_open() {
                true => opener.lone_plan(settings, provider),
                false => opener.as_asked(settings, first_plan(settings, provider)),
            };
            match opener.open_crew(&plan) {
                Ok(sessions) => {
                    let mut reason = reason(settings, &failures);
                    if plan.max_batch_size < settings.batch_policy.max_batch_size {
                        reason += "; batches of one until tuning has measured";
                    }
                    return Ok(Self { plan, sessions, reason, tuning: None });
                }
                Err(error) if settings.device.is_some() => return Err(error),
                Err(error) => {
                    let provider = provider.name();
                    tracing::warn!(model = source.model, graph = source.graph, provider, %error, "auto passes over a provider");
                    failures.push((provider, error));
                }
            }
        }
        Err(failures.pop().map_or_else(
            || {
                let precision = settings.precision.map_or("auto", Precision::name);
                let problem = format!("precision {precision} cannot be had from any provider of this library");
                LoadError::Runtime(RuntimeError::Provider(problem))
            },
            |(_, error)| error,
        ))
    }
}

fn reason(settings: &ModelSettings, failures: &[(&str, LoadError)]) -> String {
    if settings.device.is_some() {
        return "asked for".to_owned();
    }
    match failures {
        [] => "auto: first of cuda, openvino and cpu in this library".to_owned(),
        _ => {
            let failed: Vec<_> =
                failures.iter().map(|(provider, error)| format!("{provider} failed ({error})")).collect();
            format!("auto: {}", failed.join("; "))
        }
    }
}
