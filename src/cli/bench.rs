//! `ocelli bench`: what a model's preprocessing and inference cost without HTTP, for `scripts/bench` to compare with.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::{Failure, print};
use crate::config::Config;
use crate::models::{Batches, BenchReport, BenchRequest, Registry, Task, Way, Ways};
use crate::server::load_context;
use crate::telemetry::Metrics;

pub(super) fn command() -> Command {
    let arg = |name: &'static str, value: &'static str, default: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).default_value(default).help(help)
    };
    Command::new("bench")
        .about("Measures preprocessing and inference without HTTP, and prints JSON.")
        .arg(Arg::new("images").value_name("IMAGE").num_args(1..).required(true).help("Image files."))
        .arg(Arg::new("model").long("model").value_name("NAME").help("The model; by default the default classifier."))
        .arg(arg("seconds", "S", "1", "Time for each figure.").value_parser(|text: &str| match text.parse::<f64>() {
            Ok(seconds @ 0.001..=3600.0) => Ok(seconds),
            _ => Err("must be a number from 0.001 to 3600"),
        }))
        .arg(
            arg("largest-batch", "N", "32", "Batches are the powers of two up to this.")
                .value_parser(clap::value_parser!(u16).range(1..=1024)),
        )
        .arg(
            Arg::new("batch-size")
                .long("batch-size")
                .value_name("N")
                .action(ArgAction::Append)
                .value_parser(clap::value_parser!(u16).range(1..=1024))
                .help("Measures this batch size instead of those; repeatable."),
        )
        .arg(
            arg("rounds", "N", "1", "Measures everything so many times, in turns, and tells means.")
                .value_parser(clap::value_parser!(u16).range(1..)),
        )
        .arg(
            Arg::new("with-preprocessing")
                .long("with-preprocessing")
                .action(ArgAction::SetTrue)
                .help("Measures throughput while as many images are preprocessed, too."),
        )
        .arg(
            Arg::new("way")
                .long("way")
                .value_name("PROVIDER,PRECISION,INSTANCES,THREADS")
                .action(ArgAction::Append)
                .value_parser(|text: &str| text.parse::<Way>())
                .help(
                    "Measures this way to run the graph instead of the server's, as in openvino,bf16,1,2; repeatable.",
                ),
        )
        .arg(
            Arg::new("all-ways")
                .long("all-ways")
                .action(ArgAction::SetTrue)
                .conflicts_with("way")
                .help("Measures every way to run the graph that the library, the machine and the settings allow."),
        )
}

pub(super) fn run(config: &Config, matches: &ArgMatches) -> Result<(), Failure> {
    // As in the server, tuning measures in processes of its own.
    let config = &Config { program: std::env::current_exe().ok(), ..config.clone() };
    let registry = Registry::scan(config).map_err(Failure::Config)?;
    let named = matches.get_one::<String>("model").map(String::as_str);
    let Some(name) = named.or_else(|| registry.default_for(Task::ImageClassification)) else {
        return Err(Failure::Runtime("the models folder holds no classifier; name a model with --model".to_owned()));
    };
    let request = request(matches)?;
    let model = registry.load(name, &load_context(config, Arc::new(Metrics::new()))?)?;
    // Only this model is loaded, so only this one is tuned; as in the server, what an earlier start found is taken.
    registry.tune_all();
    let report = model.bench(&request)?;
    registry.close();
    let files = matches.get_many::<String>("images").into_iter().flatten();
    print(&format!("{}\n", to_json(name, &files.collect::<Vec<_>>(), &report)));
    Ok(())
}

fn request(matches: &ArgMatches) -> Result<BenchRequest, Failure> {
    let read = |file: &String| {
        let bytes = std::fs::read(Path::new(file)).map_err(|error| format!("{file}: {error}"))?;
        Ok(Bytes::from(bytes))
    };
    let files = matches.get_many::<String>("images").into_iter().flatten();
    let ways = match matches.get_many::<Way>("way") {
        Some(ways) => Ways::These(ways.copied().collect()),
        None if matches.get_flag("all-ways") => Ways::All,
        None => Ways::Served,
    };
    let batches = match matches.get_many::<u16>("batch-size") {
        Some(sizes) => Batches::These(sizes.copied().map(usize::from).collect()),
        None => Batches::UpTo(matches.get_one::<u16>("largest-batch").copied().map_or(1, usize::from)),
    };
    Ok(BenchRequest {
        images: files.map(read).collect::<Result<_, String>>()?,
        ways,
        batches,
        with_preparation: matches.get_flag("with-preprocessing"),
        rounds: matches.get_one::<u16>("rounds").copied().map_or(1, usize::from),
        time: matches.get_one("seconds").copied().map_or(Duration::ZERO, Duration::from_secs_f64),
    })
}

fn to_json(name: &str, files: &[&String], report: &BenchReport) -> serde_json::Value {
    let version = env!("CARGO_PKG_VERSION");
    serde_json::json!({"version": version, "model": name, "images": files, "report": report})
}
