//! Wiring: what starts in which order, and what stops in which.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::api::{self, Admission, AppState, Connections};
use crate::config::{Config, ShutdownSettings};
use crate::cpu_pool::CpuPool;
use crate::models::{LoadContext, Registry};
use crate::preprocess::{DecodeLimits, JPEG_DECODER};
use crate::runtime::{Runtime, RuntimeError, use_huge_pages};
use crate::telemetry::{Metrics, SharedMetrics};

/// How long the end waits for a measurement to notice it.
const LAST_MEASUREMENT: Duration = Duration::from_secs(2);

/// How the server is told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// With a grace period, for load balancers to notice.
    Graceful,
    /// Without: somebody at a terminal waits.
    Prompt,
}

/// Why the server ended otherwise than by being told to.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Mistakes of configuration.
    #[error("{}", .0.join("\n"))]
    Config(Vec<String>),
    /// The library, or a provider that was asked for.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The operating system.
    #[error("{0}")]
    System(String),
    /// Work that was not done at the end of the shutdown's time limit.
    #[error("shutdown timed out; still at work: {0}")]
    Stragglers(String),
}

/// What loading models takes, from checked settings.
///
/// # Errors
/// The ONNX Runtime library.
pub fn load_context(config: &Config, metrics: SharedMetrics) -> Result<LoadContext, RuntimeError> {
    Ok(LoadContext {
        runtime: Runtime::load(config.onnxruntime.as_deref())?,
        metrics,
        decode_limits: DecodeLimits { max_pixels: config.limits.max_pixels },
        cache_dir: config.cache_dir.clone(),
        text_cache_size: config.text_cache_size,
        program: config.program.clone(),
        gate: Arc::default(),
    })
}

/// Serves on `listener` until `shutdown` resolves. Models load in the background, so `/livez` answers at once; `on_ready`
/// is called when every model answers or has failed.
///
/// # Errors
/// Mistakes of configuration, a library or provider that cannot be used, or work left over at the shutdown's time limit.
pub async fn run(
    config: Config,
    listener: TcpListener,
    shutdown: impl Future<Output = Shutdown>,
    on_ready: impl FnOnce(&Registry) + Send + 'static,
) -> Result<(), ServerError> {
    if let Some(lacks) = JPEG_DECODER.lacks {
        tracing::info!("{lacks}");
    }
    let metrics: SharedMetrics = Arc::new(Metrics::new());
    let context = load_context(&config, metrics.clone())?;
    let registry = Arc::new(Registry::scan(&config).map_err(ServerError::Config)?);
    let pool = CpuPool::new(config.preprocess_threads).map_err(|error| ServerError::System(error.to_string()))?;
    let state = AppState {
        registry: Arc::clone(&registry),
        pool: Arc::new(pool),
        admission: Arc::new(Admission::new(&config.limits, config.preprocess_threads)),
        limits: Arc::new(config.limits.clone()),
        metrics: metrics.clone(),
        draining: Arc::new(AtomicBool::new(false)),
    };
    let connections = Connections::new(&config.limits, metrics);
    let router = api::router(state.clone());
    let mut loading = load_in_background(Arc::clone(&registry), context, on_ready);
    let stopped = async {
        let how = shutdown.await;
        state.draining.store(true, Ordering::Release);
        if how == Shutdown::Graceful {
            tracing::info!(grace = ?config.shutdown.grace, "shutting down: unready, still serving");
            sleep(config.shutdown.grace).await;
        }
    };
    tokio::select! {
        () = connections.accept(&listener, &router) => {}
        () = stopped => {}
        error = failure(&mut loading) => return Err(error),
    }
    drop(listener);
    let drained = drain(connections, &registry, config.shutdown).await;
    // A measurement in its last run, or a model that is still being loaded, which is then left behind.
    if !loading.is_finished() {
        let _ = timeout(LAST_MEASUREMENT, loading).await;
    }
    drained
}

type Loading = JoinHandle<Result<(), RuntimeError>>;

/// Loads the models, and then measures how they are best run.
fn load_in_background(
    registry: Arc<Registry>,
    context: LoadContext,
    on_ready: impl FnOnce(&Registry) + Send + 'static,
) -> Loading {
    tokio::task::spawn_blocking(move || {
        registry.load_all(&context)?;
        on_ready(&registry);
        registry.tune_all();
        // Last, since tuning may open other sessions.
        let megabytes = use_huge_pages() >> 20;
        tracing::info!(megabytes, "memory is in huge pages");
        Ok(())
    })
}

/// Resolves only if the start must not go on.
async fn failure(loading: &mut Loading) -> ServerError {
    match loading.await {
        Ok(Ok(())) => std::future::pending().await,
        Ok(Err(error)) => error.into(),
        Err(error) => ServerError::System(format!("loading models: {error}")),
    }
}

/// Answers what is in flight, closes the queues and joins the workers, all under one time limit.
async fn drain(connections: Connections, registry: &Registry, settings: ShutdownSettings) -> Result<(), ServerError> {
    let deadline = Instant::now() + settings.timeout;
    tracing::info!(limit = ?settings.timeout, "shutting down: finishing what is in flight");
    let answered = timeout(settings.timeout, connections.finish()).await.is_ok();
    registry.close();
    let stragglers = registry.join(deadline).await;
    if answered && stragglers.is_empty() {
        tracing::info!("stopped");
        return Ok(());
    }
    let mut names: Vec<String> = stragglers.iter().map(ToString::to_string).collect();
    if !answered {
        names.push("requests without an answer".to_owned());
    }
    Err(ServerError::Stragglers(names.join(", ")))
}
