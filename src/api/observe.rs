//! The outermost layer: request ids, the log line, request metrics, and the body of every error answer.

use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;
use tower_http::request_id::{MakeRequestId, MakeRequestUuid};

use super::AppState;
use super::error::ApiError;
use crate::telemetry::{ModelMetrics, SharedMetrics};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longer ids are replaced: they would fill the log.
const LONGEST_REQUEST_ID: usize = 128;

/// nginx's status for a client that closed the connection before the answer; used in logs and metrics only.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// What a handler tells this layer about the model that answered.
#[derive(Clone)]
pub(super) struct Answered {
    pub(super) model: String,
    pub(super) metrics: ModelMetrics,
}

/// Surrounds every request.
pub(super) async fn observe(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let id = request_id(&request);
    let mut record = Record {
        id: id.to_str().unwrap_or_default().to_owned(),
        method: request.method().clone(),
        path: request.uri().path().chars().take(200).collect(),
        endpoint: endpoint(request.uri().path()),
        model: String::new(),
        started: Instant::now(),
        metrics: state.metrics.clone(),
        status: None,
    };
    let mut response = next.run(request).await;
    if let Some(error) = response.extensions_mut().remove::<ApiError>() {
        if let Some(cause) = error.cause() {
            tracing::error!(request_id = record.id, path = record.path, cause, "request failed");
        }
        let mut problem = error.into_problem(&record.id);
        // An `Allow` header that the router set stays.
        let headers = std::mem::take(problem.headers_mut());
        response.headers_mut().remove(axum::http::header::CONTENT_LENGTH);
        response.headers_mut().extend(headers);
        *response.body_mut() = problem.into_body();
    }
    if let Some(answered) = response.extensions_mut().remove::<Answered>() {
        answered.metrics.request_duration.observe(record.started.elapsed().as_secs_f64());
        record.model = answered.model;
    }
    response.headers_mut().insert(REQUEST_ID, id);
    record.status = Some(response.status().as_u16());
    response
}

/// The client's id if it is fit for a log, else a new one.
fn request_id(request: &Request) -> HeaderValue {
    let fit = |id: &&HeaderValue| id.to_str().is_ok_and(|text| !text.is_empty() && text.len() <= LONGEST_REQUEST_ID);
    let given = request.headers().get(REQUEST_ID).filter(fit);
    let made = || MakeRequestUuid.make_request_id(request).map(tower_http::request_id::RequestId::into_header_value);
    given.cloned().or_else(made).unwrap_or_else(|| HeaderValue::from_static("none"))
}

/// The metric's label: the paths that matter, so that nobody can make labels by asking for paths.
fn endpoint(path: &str) -> &'static str {
    match path {
        "/v1/classify" => "/v1/classify",
        "/v1/zero-shot" => "/v1/zero-shot",
        "/metrics" | "/livez" | "/readyz" | "/health" => "probe",
        path if path.starts_with("/readyz/") => "probe",
        _ => "other",
    }
}

/// One request's line in the log. Written when dropped, so that requests whose client has left are written too.
struct Record {
    id: String,
    method: Method,
    path: String,
    endpoint: &'static str,
    model: String,
    started: Instant,
    metrics: SharedMetrics,
    status: Option<u16>,
}

impl Drop for Record {
    fn drop(&mut self) {
        let status = self.status.unwrap_or(CLIENT_CLOSED_REQUEST);
        self.metrics.count_request(self.endpoint, &self.model, status);
        let milliseconds = self.started.elapsed().as_secs_f64() * 1e3;
        let Self { id, method, path, model, .. } = self;
        // Probes and scrapes come every few seconds; why a model is not ready has been logged by itself.
        if self.endpoint == "probe" {
            tracing::debug!(request_id = id, %method, path, status, milliseconds, "request");
        } else {
            tracing::info!(request_id = id, %method, path, model, status, milliseconds, "request");
        }
    }
}
