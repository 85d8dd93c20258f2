//! `ocelli serve`: the server, until SIGTERM or Ctrl-C.

use std::net::SocketAddr;

use clap::{Arg, ArgMatches, Command};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::{Failure, print};
use crate::config::{Config, usable_cores};
use crate::models::{ModelState, Registry, Task};
use crate::server::{self, ServerError, Shutdown};

/// What a hurried operator's second signal exits with: the shell's code for SIGINT.
const INTERRUPTED: i32 = 130;

pub(super) fn command() -> Command {
    let example = Arg::new("example_image")
        .long("example-image")
        .env("OCELLI_EXAMPLE_IMAGE")
        .value_name("FILE")
        .default_value("photo.jpg")
        .hide(true)
        .help("The image in the line to try that is printed at the start.");
    Command::new("serve").about("Serves the models over HTTP.").arg(example)
}

pub(super) fn run(mut config: Config, matches: &ArgMatches, json: bool) -> Result<(), Failure> {
    let image = matches.get_one::<String>("example_image").cloned().unwrap_or_default();
    config.program = std::env::current_exe().ok();
    // The async runtime moves bytes; decoding and inference have threads of their own.
    allow_files(config.limits.max_connections);
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(usable_cores().clamp(1, 4)).thread_name("http").enable_all();
    let runtime = builder.build()?;
    let outcome = runtime.block_on(async {
        let listener = TcpListener::bind(config.listen).await;
        let listener = listener.map_err(|error| format!("cannot listen on {}: {error}", config.listen))?;
        let address = listener.local_addr()?;
        tracing::info!(%address, models_dir = %config.models_dir.display(), "listening; models are loading");
        let shutdown = shutdown_signal()?;
        let on_ready = move |registry: &Registry| announce(registry, address, &image, json);
        server::run(config, listener, shutdown, on_ready).await.map_err(|error| match error {
            ServerError::Config(mistakes) => Failure::Config(mistakes),
            other => Failure::Runtime(other.to_string()),
        })
    });
    // A straggler was given its time; waiting for its thread here would make the limit meaningless.
    runtime.shutdown_background();
    outcome
}

/// Asks for as many open files as `connections` need, and some more. Many systems allow a process 1,024 unless it asks.
fn allow_files(connections: usize) {
    const OTHERS: u64 = 1024;
    let wanted = (connections as u64).saturating_add(OTHERS);
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return;
    }
    let allowed = limit.maximum.map_or(wanted, |most| most.min(wanted));
    if allowed < wanted {
        tracing::warn!(allowed, wanted, "fewer files may be open than max_connections needs");
    }
    let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(allowed), ..limit });
}

/// Resolves at the first SIGTERM or Ctrl-C; the second one ends the process at once.
fn shutdown_signal() -> Result<impl Future<Output = Shutdown>, std::io::Error> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        let how = tokio::select! {
            _ = terminate.recv() => Shutdown::Graceful,
            _ = interrupt.recv() => Shutdown::Prompt,
        };
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::warn!("second signal: exiting without finishing");
            std::process::exit(INTERRUPTED);
        });
        how
    })
}

/// Says where the server listens, which models answer, and what to try.
fn announce(registry: &Registry, address: SocketAddr, image: &str, json: bool) {
    let (ready, failed): (Vec<_>, Vec<_>) =
        registry.infos().into_iter().partition(|model| model.state == ModelState::Ready);
    let names = |models: &[crate::models::ModelInfo]| {
        models.iter().map(|model| model.name.clone()).collect::<Vec<_>>().join(", ")
    };
    if json {
        tracing::info!(%address, ready = names(&ready), failed = names(&failed), "models are loaded");
        return;
    }
    let mut text = format!("\nOcelli listens on http://{address}\n\n");
    for model in &ready {
        let graphs = model.graphs.iter().map(|graph| format!("{} {}", graph.provider.name(), graph.precision.name()));
        let graphs: Vec<_> = graphs.collect();
        text += &format!("  ready   {:<24} {}\n", model.name, graphs.join(", "));
    }
    for model in &failed {
        text += &format!("  failed  {:<24} {}\n", model.name, model.reason.as_deref().unwrap_or_default());
    }
    text += "\nTry:\n";
    if registry.default_for(Task::ImageClassification).is_some() {
        text += &format!("  curl --data-binary @{image} http://{address}/v1/classify\n");
    }
    if registry.default_for(Task::ZeroShotImageClassification).is_some() {
        text += &format!(
            "  curl -F image=@{image} -F 'labels=a cat' -F 'labels=a cup of coffee' http://{address}/v1/zero-shot\n"
        );
    }
    text += &format!("\nInteractive documentation: http://{address}/docs\n\n");
    print(&text);
}
