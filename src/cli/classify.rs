//! `ocelli classify`: labels for image files, without a server.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::{Failure, print};
use crate::config::Config;
use crate::cpu_pool::CpuPool;
use crate::models::{LoadedModel, Registry, Task, Ticket, ZeroShotQuestion};
use crate::postprocess::Prediction;
use crate::server::load_context;
use crate::telemetry::Metrics;
use crate::text::Templates;

const TOP_K: usize = 5;

pub(super) fn command() -> Command {
    let arg = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    Command::new("classify")
        .about("Classifies image files, without a server.")
        .arg(Arg::new("images").value_name("IMAGE").num_args(1..).required(true).help("Image files."))
        .arg(arg("model", "NAME", "The model; by default the default one for the task."))
        .arg(
            arg("labels", "LABEL", "Labels to choose from, which makes it zero-shot.")
                .action(ArgAction::Append)
                .num_args(1..),
        )
        .arg(arg("template", "TEMPLATE", "Hypothesis template for the labels, with one {}.").action(ArgAction::Append))
        .arg(
            arg("top-k", "N", "Labels per image; by default 5, for zero-shot all.")
                .value_parser(clap::value_parser!(u32).range(1..)),
        )
        .arg(
            Arg::new("json").long("json").action(ArgAction::SetTrue).help("One JSON object a line instead of a table."),
        )
}

pub(super) fn run(config: &Config, matches: &ArgMatches) -> Result<(), Failure> {
    let texts = |name: &str| matches.get_many::<String>(name).into_iter().flatten().cloned().collect::<Vec<_>>();
    let labels = texts("labels");
    let task = if labels.is_empty() { Task::ImageClassification } else { Task::ZeroShotImageClassification };
    let top_k = matches.get_one::<u32>("top-k").map(|&top_k| top_k as usize);
    let question = ZeroShotQuestion {
        top_k: top_k.unwrap_or(labels.len()),
        labels,
        templates: Templates::new(texts("template"))?,
    };
    let registry = Registry::scan(config).map_err(Failure::Config)?;
    let name = match matches.get_one::<String>("model").map(String::as_str).or_else(|| registry.default_for(task)) {
        Some(name) => name.to_owned(),
        None => return Err(Failure::Runtime("the models folder holds no model for this".to_owned())),
    };
    let model = registry.load(&name, &load_context(config, Arc::new(Metrics::new()))?)?;
    let pool = CpuPool::new(config.preprocess_threads)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut failures = 0;
    for path in texts("images") {
        let answer = runtime.block_on(classify_file(&model, &pool, Path::new(&path), task, &question, top_k));
        match answer {
            Ok(predictions) => print(&render(&path, &predictions, matches.get_flag("json"))),
            Err(error) => {
                failures += 1;
                super::report(&format!("{path}: {error}"));
            }
        }
    }
    registry.close();
    if failures == 0 { Ok(()) } else { Err(Failure::Runtime(format!("{failures} image(s) could not be classified"))) }
}

async fn classify_file(
    model: &LoadedModel,
    pool: &CpuPool,
    path: &Path,
    task: Task,
    question: &ZeroShotQuestion,
    top_k: Option<usize>,
) -> Result<Vec<Prediction>, String> {
    let image = Bytes::from(std::fs::read(path).map_err(|error| error.to_string())?);
    let deadline = Instant::now() + std::time::Duration::from_secs(3600);
    let ticket = Ticket { deadline, permit: None, threads: 1 };
    match (model, task) {
        (LoadedModel::Classifier(model), Task::ImageClassification) => {
            let answer = model.classify(pool, image, None, top_k.unwrap_or(TOP_K), ticket).await;
            answer.map(|(predictions, _)| predictions).map_err(|error| error.to_string())
        }
        (LoadedModel::ZeroShot(model), Task::ZeroShotImageClassification) => {
            let answer = model.classify(pool, vec![image], question, &ticket).await;
            let (mut results, _) = answer.map_err(|(_, error)| error.to_string())?;
            Ok(results.pop().unwrap_or_default())
        }
        (LoadedModel::ZeroShot(model), _) => Err(format!("{} is a zero-shot model: give it --labels", model.name)),
        (LoadedModel::Classifier(model), _) => Err(format!("{} has labels of its own: leave --labels out", model.name)),
    }
}

fn render(path: &str, predictions: &[Prediction], json: bool) -> String {
    if json {
        return format!("{}\n", serde_json::json!({"image": path, "predictions": predictions}));
    }
    let lines = predictions.iter().map(|prediction| format!("  {:.4}  {}\n", prediction.score, prediction.label));
    format!("{path}\n{}", lines.collect::<String>())
}
