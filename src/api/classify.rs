//! `POST /v1/classify`: images in, the model's labels out.

use axum::extract::{Request, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use bytes::Bytes;
use futures_util::future::try_join_all;
use serde::Serialize;
use tokio::time::{Instant, timeout_at};
use utoipa::ToSchema;

use super::AppState;
use super::error::ApiError;
use super::observe::Answered;
use super::openapi::{ClassifyJson, ClassifyMultipart, ClassifyQuery, ImageBytes, InferenceFailure};
use super::upload::Upload;
use crate::models::{Classifier, PredictError, Ticket, Timings};
use crate::postprocess::{FunctionToApply, Prediction};
use crate::telemetry::ModelMetrics;

const PARAMETERS: &str = "model, top_k, function_to_apply";
const DEFAULT_TOP_K: usize = 5;

/// The answer of `/v1/classify` and `/v1/zero-shot`.
#[derive(Debug, Serialize, ToSchema)]
pub struct ClassifyResponse {
    /// The model that answered.
    #[schema(example = "efficientnet-lite0")]
    pub model: String,
    /// One entry per image, in the order sent.
    pub results: Vec<ImageResult>,
}

/// The labels of one image.
#[derive(Debug, Serialize, ToSchema)]
pub struct ImageResult {
    /// Sorted by score, ties by index.
    pub predictions: Vec<Prediction>,
}

/// Labels for images.
///
/// The body is one image's bytes, a multipart form with one or more files, or JSON with base64. Parameters come as
/// query, form fields or JSON keys.
#[utoipa::path(
    post, path = "/v1/classify", tag = "inference", params(
        ClassifyQuery,
        ("x-request-timeout-ms" = Option<u64>, Header, description = "Shortens the server's deadline, never lengthens it"),
    ),
    request_body(content(
        (ImageBytes = "application/octet-stream"), (ClassifyMultipart = "multipart/form-data"), (ClassifyJson = "application/json"),
    )),
    responses(
        (status = 200, description = "The labels", body = ClassifyResponse, headers(
            ("server-timing" = String, description = "decode, queue and inference time in milliseconds"),
            ("x-request-id" = String, description = "The request's id, echoed or made"),
        )),
        InferenceFailure,
    )
)]
pub(super) async fn classify(State(state): State<AppState>, request: Request) -> Result<Response, ApiError> {
    let upload = Upload::receive(&state, request).await?;
    let mut parameters = upload.parameters;
    let name = parameters.text("model")?;
    let top_k = parameters.top_k(DEFAULT_TOP_K)?;
    let function = match parameters.text("function_to_apply")? {
        None => None,
        Some(name) => Some(FunctionToApply::from_name(&name).ok_or_else(|| {
            ApiError::bad_request(format!("function_to_apply must be one of {}", FunctionToApply::NAMES))
        })?),
    };
    parameters.finish(PARAMETERS)?;
    let model = state.registry.classifier(name.as_deref())?;
    let Ticket { deadline, .. } = upload.ticket;
    let work = classify_all(&state, &model, upload.images, function, top_k, &upload.ticket);
    let answer = in_time(deadline, work).await;
    respond(&model.name, &model.metrics, answer)
}

async fn classify_all(
    state: &AppState,
    model: &Classifier,
    images: Vec<Bytes>,
    function: Option<FunctionToApply>,
    top_k: usize,
    ticket: &Ticket,
) -> Result<(Vec<Vec<Prediction>>, Timings), ApiError> {
    let several = images.len() > 1;
    let each = images.into_iter().enumerate().map(async |(index, image)| {
        let answer = model.classify(&state.pool, image, function, top_k, ticket.clone()).await;
        answer.map_err(|error| place_error(error, index, several))
    });
    let answers = try_join_all(each).await?;
    let timings = answers.iter().fold(Timings::default(), |longest, (_, timings)| longest.max(*timings));
    Ok((answers.into_iter().map(|(predictions, _)| predictions).collect(), timings))
}

/// Names the image's position where there are several.
pub(super) fn place_error(error: PredictError, index: usize, several: bool) -> ApiError {
    let is_about_the_image = matches!(error, PredictError::Image(_));
    let error = ApiError::from(error);
    if several && is_about_the_image { error.in_image(index) } else { error }
}

/// Gives up on `work` at the deadline. What it has queued is dropped there, because nobody listens any more.
pub(super) async fn in_time<T>(
    deadline: std::time::Instant,
    work: impl Future<Output = Result<T, ApiError>>,
) -> Result<T, ApiError> {
    let outcome = timeout_at(Instant::from_std(deadline), work).await;
    outcome.unwrap_or_else(|_| Err(ApiError::deadline_exceeded()))
}

/// Writes the answer, and tells the outermost layer which model gave it, also when it is an error.
pub(super) fn respond(
    model: &str,
    metrics: &ModelMetrics,
    answer: Result<(Vec<Vec<Prediction>>, Timings), ApiError>,
) -> Result<Response, ApiError> {
    let answered = Extension(Answered { model: model.to_owned(), metrics: metrics.clone() });
    let response = match answer {
        Err(error) => error.into_response(),
        Ok((results, timings)) => {
            let results = results.into_iter().map(|predictions| ImageResult { predictions }).collect();
            let model = model.to_owned();
            let mut response = Json(ClassifyResponse { model, results }).into_response();
            if let Ok(value) = HeaderValue::try_from(server_timing(&timings)) {
                response.headers_mut().insert(header::HeaderName::from_static("server-timing"), value);
            }
            response
        }
    };
    Ok((answered, response).into_response())
}

fn server_timing(timings: &Timings) -> String {
    let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3;
    let Timings { decode, queue, inference } = *timings;
    format!("decode;dur={:.2}, queue;dur={:.2}, inference;dur={:.2}", ms(decode), ms(queue), ms(inference))
}
