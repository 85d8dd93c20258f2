//! `ocelli models`: what the models folder holds, and what is wrong with what cannot load.

use std::sync::Arc;

use clap::Command;

use super::{Failure, print};
use crate::config::Config;
use crate::models::{ModelInfo, Registry};
use crate::server::load_context;
use crate::telemetry::Metrics;

pub(super) fn command() -> Command {
    Command::new("models").about("Loads each model once and prints how it would run, or what is wrong with it.")
}

pub(super) fn run(config: &Config) -> Result<(), Failure> {
    let registry = Registry::scan(config).map_err(Failure::Config)?;
    let context = load_context(config, Arc::new(Metrics::new()))?;
    let mut broken = 0;
    for name in registry.names() {
        // The reason is in the model's info.
        broken += usize::from(registry.load(&name, &context).is_err());
        print(&describe(&registry.info(&name)?));
    }
    registry.close();
    if broken == 0 { Ok(()) } else { Err(Failure::Runtime(format!("{broken} model(s) cannot be loaded"))) }
}

fn describe(model: &ModelInfo) -> String {
    let mut text = format!("{}: {}\n", model.name, model.state.name());
    if let Some(reason) = &model.reason {
        text += &format!("  wrong      {reason}\n");
    }
    if let Some(description) = &model.description {
        let size = description.input_size;
        text += &format!("  task       {}\n", description.task.name());
        text += &format!("  model      {}\n", description.architecture);
        text += &format!("  input      {}x{} pixels\n", size.width, size.height);
        if let Some(labels) = &description.labels {
            text += &format!("  labels     {}\n", labels.len());
        }
    }
    for graph in &model.graphs {
        let full = graph.batch_sizes_warmed.last().copied().unwrap_or_default();
        let small =
            graph.small_batch_size.filter(|&size| size < full).map(|size| format!(", smaller ones from {size} on"));
        let solo = graph.solo_threads.map(|threads| format!(", {threads} thread(s) for single images"));
        text += &format!(
            "  {:<10} {} {}, {} instance(s) of {} thread(s), batches up to {}{}{}; {}\n",
            graph.stored.file.rsplit('/').next().unwrap_or_default().trim_end_matches(".onnx"),
            graph.provider.name(),
            graph.precision.name(),
            graph.instances,
            graph.threads,
            full,
            small.unwrap_or_default(),
            solo.unwrap_or_default(),
            graph.provider_reason,
        );
    }
    text
}
