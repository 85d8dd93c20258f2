//! `GET /v1/models`: which models there are, and how each is really run.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::error::{ApiError, Problem};
use super::{AppState, Path};
use crate::models::ModelInfo;

/// Every model of the server.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelList {
    /// By name.
    pub models: Vec<ModelInfo>,
}

/// Every model: its task, labels, state, and how it is run.
#[utoipa::path(get, path = "/v1/models", tag = "models", responses((status = 200, description = "All models", body = ModelList)))]
pub(super) async fn list_models(State(state): State<AppState>) -> Json<ModelList> {
    let models = state.registry.infos();
    Json(ModelList { models })
}

/// One model: its task, labels, state, and how it is run.
#[utoipa::path(
    get, path = "/v1/models/{name}", tag = "models",
    params(("name" = String, Path, description = "The model's name")),
    responses(
        (status = 200, description = "The model", body = ModelInfo),
        (status = 404, description = "Unknown model", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn show_model(
    State(state): State<AppState>,
    Path(name): Path<String>,
) -> Result<Json<ModelInfo>, ApiError> {
    Ok(Json(state.registry.info(&name)?))
}
