//! Probes and metrics: `/livez`, `/readyz`, `/health`, `/metrics`.

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;

use super::error::{ApiError, Problem};
use super::{AppState, Path};
use crate::models::{ModelInfo, ModelState};
use crate::telemetry::METRICS_CONTENT_TYPE;

/// Does the process run? Independent of models and of load.
#[utoipa::path(get, path = "/livez", tag = "health", responses((status = 200, description = "It runs", body = String)))]
pub(super) async fn livez() -> &'static str {
    "ok\n"
}

/// Does every model answer, and is the server not draining? Independent of load.
#[utoipa::path(get, path = "/readyz", tag = "health", responses(
    (status = 200, description = "Ready", body = String),
    (status = 503, description = "Not ready; the message names the models", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn readyz(State(state): State<AppState>) -> Result<&'static str, ApiError> {
    ready(&state, &state.registry.infos())
}

/// The same as `/readyz`.
#[utoipa::path(get, path = "/health", tag = "health", responses(
    (status = 200, description = "Ready", body = String),
    (status = 503, description = "Not ready; the message names the models", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn health(state: State<AppState>) -> Result<&'static str, ApiError> {
    readyz(state).await
}

/// Does this model answer, and is the server not draining?
#[utoipa::path(
    get, path = "/readyz/{model}", tag = "health",
    params(("model" = String, Path, description = "The model's name")),
    responses(
        (status = 200, description = "Ready", body = String),
        (status = 404, description = "Unknown model", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Not ready", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn readyz_model(
    State(state): State<AppState>,
    Path(model): Path<String>,
) -> Result<&'static str, ApiError> {
    ready(&state, &[state.registry.info(&model)?])
}

fn ready(state: &AppState, models: &[ModelInfo]) -> Result<&'static str, ApiError> {
    if state.is_draining() {
        return Err(ApiError::unavailable("the server is draining"));
    }
    let unready = models.iter().filter(|model| model.state != ModelState::Ready).map(|model| {
        let reason = model.reason.as_ref().map_or_else(String::new, |reason| format!(" ({reason})"));
        format!("{} is {}{reason}", model.name, model.state.name())
    });
    let unready: Vec<String> = unready.collect();
    if unready.is_empty() { Ok("ok\n") } else { Err(ApiError::unavailable(unready.join("; "))) }
}

/// Counters, gauges and histograms for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "health", responses(
    (status = 200, description = "OpenMetrics text", body = String, content_type = "application/openmetrics-text"),
))]
pub(super) async fn metrics(State(state): State<AppState>) -> impl IntoResponse {
    let metrics = &state.metrics;
    metrics.in_flight.set(state.admission.images_in_flight() as i64);
    metrics.buffered_bytes.set(state.admission.bytes_buffered() as i64);
    for model in state.registry.infos() {
        metrics.model(&model.name).set_ready(model.state == ModelState::Ready);
    }
    ([(header::CONTENT_TYPE, METRICS_CONTENT_TYPE)], metrics.encode())
}
