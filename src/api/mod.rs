//! HTTP: routes, limits, answers. The only part that knows axum.

mod admission;
mod classify;
mod connections;
mod error;
mod health;
mod models;
mod observe;
mod openapi;
mod parameters;
mod upload;
mod zero_shot;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{DefaultBodyLimit, FromRequestParts, Request};
use axum::response::{IntoResponse, Response};
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use utoipa_swagger_ui::SwaggerUi;

pub use admission::Admission;
pub use connections::Connections;

use crate::config::Limits;
use crate::cpu_pool::CpuPool;
use crate::models::Registry;
use crate::panics::panic_text;
use crate::telemetry::SharedMetrics;
use error::ApiError;

/// What every handler shares.
#[derive(Clone)]
pub struct AppState {
    /// The models.
    pub registry: Arc<Registry>,
    /// Decodes and preprocesses.
    pub pool: Arc<CpuPool>,
    /// The server's capacity.
    pub admission: Arc<Admission>,
    /// Bounds of requests.
    pub limits: Arc<Limits>,
    /// Counters and histograms.
    pub metrics: SharedMetrics,
    /// Set when the server begins to stop.
    pub draining: Arc<AtomicBool>,
}

impl AppState {
    /// Is the server on its way down?
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }
}

/// All routes that the OpenAPI document describes.
fn described() -> OpenApiRouter<AppState> {
    let inference = OpenApiRouter::new().routes(routes!(classify::classify)).routes(routes!(zero_shot::zero_shot));
    OpenApiRouter::with_openapi(openapi::Document::openapi())
        .merge(inference)
        .routes(routes!(models::list_models))
        .routes(routes!(models::show_model))
        .routes(routes!(health::livez))
        .routes(routes!(health::readyz))
        .routes(routes!(health::readyz_model))
        .routes(routes!(health::health))
        .routes(routes!(health::metrics))
        .routes(routes!(openapi::openapi_json))
        .routes(routes!(openapi::openapi_yaml))
}

/// The OpenAPI document, as `openapi.yaml` holds it.
pub fn openapi_document() -> utoipa::openapi::OpenApi {
    described().into_openapi()
}

/// The whole HTTP interface.
pub fn router(state: AppState) -> Router {
    // Swagger UI is compiled in, so /docs works without any other host.
    let docs = SwaggerUi::new("/docs").config(utoipa_swagger_ui::Config::from("/openapi.json").validator_url("none"));
    Router::from(described())
        .merge(docs)
        .fallback(|request: Request| {
            let error = ApiError::no_such_path(request.uri().path());
            turn_away(request, error)
        })
        .method_not_allowed_fallback(|request: Request| turn_away(request, ApiError::method_not_allowed()))
        .layer(CatchPanicLayer::custom(answer_panic))
        // The upload reads bodies under limits of its own.
        .layer(DefaultBodyLimit::disable())
        .layer(axum::middleware::from_fn_with_state(state.clone(), observe::observe))
        .with_state(state)
}

async fn turn_away(request: Request, error: ApiError) -> ApiError {
    upload::discard_unread(request).await;
    error
}

/// A name from the path.
#[derive(FromRequestParts)]
#[from_request(via(axum::extract::Path), rejection(ApiError))]
struct Path<T>(T);

impl From<PathRejection> for ApiError {
    fn from(error: PathRejection) -> Self {
        Self::bad_request(error.body_text())
    }
}

fn answer_panic(panic: Box<dyn std::any::Any + Send>) -> Response {
    ApiError::internal(format!("a handler panicked: {}", panic_text(panic.as_ref()))).into_response()
}
