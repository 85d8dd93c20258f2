//! The OpenAPI document: what the handlers' own descriptions leave out, and the paths that serve it.

use axum::Json;
use axum::http::header;
use axum::response::IntoResponse;
use serde::Serialize;
use utoipa::{IntoParams, IntoResponses, OpenApi, ToSchema};

use super::error::Problem;
use super::openapi_document;
use crate::postprocess::FunctionToApply;

/// The document's head; the paths are added by the router.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Ocelli",
        description = "An image-classification server: images in, labels out.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    tags(
        (name = "inference", description = "Images in, labels out"),
        (name = "models", description = "Which models there are, and how each is really run"),
        (name = "health", description = "Probes and metrics"),
        (name = "documentation", description = "This document"),
    )
)]
pub(super) struct Document;

// The types below describe what `upload` and `parameters` read; they are never built.

/// Parameters of a classify request.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes the query, never built")]
pub(super) struct ClassifyQuery {
    /// The model's name; by default the server's default classifier.
    model: Option<String>,
    /// Labels per image, clamped to the number of labels.
    #[param(minimum = 1, default = 5)]
    top_k: Option<i64>,
    /// By default what the model's config says.
    function_to_apply: Option<FunctionToApply>,
}

/// Parameters of a zero-shot request.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes the query, never built")]
pub(super) struct ZeroShotQuery {
    /// The model's name; by default the server's default zero-shot model.
    model: Option<String>,
    /// The candidate labels, a key each.
    labels: Option<Vec<String>>,
    /// Each contains `{}` once; several are averaged in embedding space. By default the labels are the prompts.
    hypothesis_template: Option<Vec<String>>,
    /// Labels per image; by default all.
    #[param(minimum = 1)]
    top_k: Option<i64>,
}

/// The errors of an inference request.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "describes the answers, never built")]
pub(super) enum InferenceFailure {
    #[response(status = 400, description = "Malformed request", content_type = "application/problem+json")]
    Malformed(Problem),
    #[response(status = 404, description = "Unknown model", content_type = "application/problem+json")]
    UnknownModel(Problem),
    #[response(
        status = 406,
        description = "The Accept header excludes JSON",
        content_type = "application/problem+json"
    )]
    NotAcceptable(Problem),
    #[response(
        status = 408,
        description = "The body did not arrive in time",
        content_type = "application/problem+json"
    )]
    BodyTooSlow(Problem),
    #[response(status = 413, description = "Body or image too large", content_type = "application/problem+json")]
    TooLarge(Problem),
    #[response(
        status = 415,
        description = "Not an image of an enabled format",
        content_type = "application/problem+json"
    )]
    NoImage(Problem),
    #[response(
        status = 422,
        description = "An image, labels or a template that cannot be used",
        content_type = "application/problem+json"
    )]
    Unusable(Problem),
    #[response(
        status = 429,
        description = "Overloaded; retry after the time in Retry-After",
        content_type = "application/problem+json"
    )]
    Overloaded(Problem),
    #[response(status = 500, description = "A fault in the server", content_type = "application/problem+json")]
    Fault(Problem),
    #[response(
        status = 503,
        description = "Loading, failed or draining; retry after the time in Retry-After",
        content_type = "application/problem+json"
    )]
    NotReady(Problem),
    #[response(status = 504, description = "The deadline passed", content_type = "application/problem+json")]
    DeadlinePassed(Problem),
}

/// An image as it is: a JPEG, PNG, WebP, GIF, BMP or TIFF.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
#[expect(dead_code, reason = "describes the body, never built")]
pub(super) struct ImageBytes(Vec<u8>);

/// One text, or several.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[schema(example = json!(["a cat", "a cup of coffee"]))]
#[expect(dead_code, reason = "describes JSON, never built")]
pub(super) enum Texts {
    One(String),
    Several(Vec<String>),
}

/// A classify request as a form.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes the form, never built")]
pub(super) struct ClassifyMultipart {
    /// The image; any field name serves, and several files are several images.
    #[schema(value_type = String, format = Binary, content_media_type = "application/octet-stream")]
    image: Vec<u8>,
    model: Option<String>,
    #[schema(minimum = 1)]
    top_k: Option<i64>,
    function_to_apply: Option<FunctionToApply>,
}

/// A classify request as JSON. Either `image` or `images`.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes the JSON, never built")]
pub(super) struct ClassifyJson {
    /// An image in base64, or a `data:` URI.
    image: Option<String>,
    /// Several such images.
    images: Option<Vec<String>>,
    model: Option<String>,
    #[schema(minimum = 1)]
    top_k: Option<i64>,
    function_to_apply: Option<FunctionToApply>,
}

/// A zero-shot request as a form.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes the form, never built")]
pub(super) struct ZeroShotMultipart {
    /// The image; any field name serves, and several files are several images.
    #[schema(value_type = String, format = Binary, content_media_type = "application/octet-stream")]
    image: Vec<u8>,
    /// The candidate labels, a field each, if the query has none.
    labels: Option<Vec<String>>,
    hypothesis_template: Option<Vec<String>>,
    model: Option<String>,
    #[schema(minimum = 1)]
    top_k: Option<i64>,
}

/// A zero-shot request as JSON. Either `image` or `images`.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes the JSON, never built")]
pub(super) struct ZeroShotJson {
    /// An image in base64, or a `data:` URI.
    image: Option<String>,
    /// Several such images.
    images: Option<Vec<String>>,
    /// The candidate labels, if the query has none.
    labels: Option<Texts>,
    /// Templates with one `{}` each.
    hypothesis_template: Option<Texts>,
    model: Option<String>,
    #[schema(minimum = 1)]
    top_k: Option<i64>,
}

/// This document as JSON.
#[utoipa::path(get, path = "/openapi.json", tag = "documentation", responses((status = 200, description = "The OpenAPI document", body = Object)))]
pub(super) async fn openapi_json() -> impl IntoResponse {
    Json(openapi_document())
}

/// This document as YAML.
#[utoipa::path(get, path = "/openapi.yaml", tag = "documentation", responses(
    (status = 200, description = "The OpenAPI document", body = String, content_type = "application/yaml"),
))]
pub(super) async fn openapi_yaml() -> Result<impl IntoResponse, super::ApiError> {
    let yaml = openapi_document().to_yaml().map_err(|error| super::ApiError::internal(error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, "application/yaml")], yaml))
}
