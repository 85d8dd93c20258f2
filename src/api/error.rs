//! Failures to answers: the only place that knows which status a failure has.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::batching::InferenceError;
use crate::models::{LookupError, PredictError};
use crate::preprocess::DecodeError;
use crate::text::TextError;

/// A failure on its way to the client. What a client may not see stays in `cause`, for the log.
#[derive(Debug, Clone)]
pub struct ApiError {
    status: StatusCode,
    title: &'static str,
    detail: String,
    cause: Option<String>,
}

/// The body of an error answer: RFC 9457 problem details, and `error` for the Hugging Face clients.
#[derive(Debug, Serialize, ToSchema)]
pub struct Problem {
    /// Always `about:blank`: the title and the status say it all.
    #[serde(rename = "type")]
    #[schema(example = "about:blank")]
    pub kind: &'static str,
    /// The kind of failure.
    #[schema(example = "Unsupported image")]
    pub title: &'static str,
    /// The HTTP status.
    #[schema(example = 415)]
    pub status: u16,
    /// What was wrong.
    #[schema(example = "the bytes are not a JPEG, PNG, WebP, GIF, BMP or TIFF image")]
    pub detail: String,
    /// The same as `detail`.
    pub error: String,
    /// The request's `x-request-id`.
    pub request_id: String,
}

impl ApiError {
    fn new(status: StatusCode, title: &'static str, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        let cause = None;
        Self { status, title, detail, cause }
    }

    /// 400: a request that cannot be read.
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "Malformed request", detail)
    }

    /// 404 for a path.
    pub fn no_such_path(path: &str) -> Self {
        let detail = format!("there is nothing at {path}; /docs lists what there is");
        Self::new(StatusCode::NOT_FOUND, "Not found", detail)
    }

    /// 405.
    pub fn method_not_allowed() -> Self {
        let detail = "this path does not take that method; the Allow header lists those it takes";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed", detail)
    }

    /// 406: the answer would be JSON.
    pub fn not_acceptable() -> Self {
        let detail = "answers are application/json, which the Accept header excludes";
        Self::new(StatusCode::NOT_ACCEPTABLE, "Not acceptable", detail)
    }

    /// 408: the body came too slowly.
    pub fn body_timeout(limit_ms: u128) -> Self {
        let detail = format!("the body did not arrive within {limit_ms} ms");
        Self::new(StatusCode::REQUEST_TIMEOUT, "Body too slow", detail)
    }

    /// 413: too many bytes.
    pub fn body_too_large(announced: Option<u64>, limit: usize) -> Self {
        let size = announced.map_or_else(|| "more".to_owned(), |bytes| format!("{bytes} bytes"));
        let detail = format!("the body has {size}, this server takes at most {limit} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "Body too large", detail)
    }

    /// 422: labels or templates that cannot be used.
    pub fn unusable_labels(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Unusable labels", detail)
    }

    /// 429: no room at present.
    pub fn overloaded(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "Overloaded", detail)
    }

    /// 500; `cause` is logged and never sent.
    pub fn internal(cause: impl Into<String>) -> Self {
        let detail = "a fault in the server; its log has the cause under this request's id";
        let error = Self::new(StatusCode::INTERNAL_SERVER_ERROR, "Internal error", detail);
        let cause = Some(cause.into());
        Self { cause, ..error }
    }

    /// 503: loading, failed or draining.
    pub fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "Not ready", detail)
    }

    /// 504: the deadline passed.
    pub fn deadline_exceeded() -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "Deadline exceeded", InferenceError::DeadlineExceeded.to_string())
    }

    /// Puts the image's position before the message, where a request brought several.
    pub fn in_image(mut self, index: usize) -> Self {
        self.detail = format!("images[{index}]: {}", self.detail);
        self
    }

    /// What the log should know and the client should not.
    pub fn cause(&self) -> Option<&str> {
        self.cause.as_deref()
    }

    /// The answer of this error to the request called `request_id`.
    pub fn into_problem(self, request_id: &str) -> Response {
        let problem = Problem {
            kind: "about:blank",
            title: self.title,
            status: self.status.as_u16(),
            error: self.detail.clone(),
            detail: self.detail,
            request_id: request_id.to_owned(),
        };
        let mut response = (self.status, Json(problem)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl IntoResponse for ApiError {
    /// A response without a body; the outermost layer writes it, because only that knows the request's id.
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<LookupError> for ApiError {
    fn from(error: LookupError) -> Self {
        let detail = error.to_string();
        match error {
            LookupError::Unknown { .. } | LookupError::NoneForTask(_) => {
                Self::new(StatusCode::NOT_FOUND, "Unknown model", detail)
            }
            LookupError::WrongTask { .. } => Self::bad_request(detail),
            LookupError::NotReady { .. } => Self::unavailable(detail),
        }
    }
}

impl From<DecodeError> for ApiError {
    fn from(error: DecodeError) -> Self {
        let detail = error.to_string();
        match error {
            DecodeError::Empty => Self::bad_request(detail),
            DecodeError::UnknownFormat | DecodeError::Unsupported { .. } => {
                Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Unsupported image", detail)
            }
            DecodeError::TooManyPixels { .. } => Self::new(StatusCode::PAYLOAD_TOO_LARGE, "Image too large", detail),
            _ => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Broken image", detail),
        }
    }
}

impl From<TextError> for ApiError {
    fn from(error: TextError) -> Self {
        Self::unusable_labels(error.to_string())
    }
}

impl From<InferenceError> for ApiError {
    fn from(error: InferenceError) -> Self {
        let detail = error.to_string();
        match error {
            InferenceError::QueueFull | InferenceError::DeadlineUnreachable => Self::overloaded(detail),
            InferenceError::DeadlineExceeded => Self::deadline_exceeded(),
            InferenceError::Closed | InferenceError::Broken => Self::unavailable(detail),
            InferenceError::Failed(cause) => Self::internal(cause),
        }
    }
}

impl From<PredictError> for ApiError {
    fn from(error: PredictError) -> Self {
        match error {
            PredictError::Image(error) => error.into(),
            PredictError::Text(error) => error.into(),
            PredictError::Inference(error) => error.into(),
            PredictError::Panicked(error) => Self::internal(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_has_its_status() {
        let status = |error: ApiError| error.into_response().status().as_u16();
        assert_eq!(status(InferenceError::QueueFull.into()), 429);
        assert_eq!(status(InferenceError::DeadlineUnreachable.into()), 429);
        assert_eq!(status(InferenceError::DeadlineExceeded.into()), 504);
        assert_eq!(status(InferenceError::Closed.into()), 503);
        assert_eq!(status(InferenceError::Broken.into()), 503);
        assert_eq!(status(InferenceError::Failed("x".to_owned()).into()), 500);
        assert_eq!(status(DecodeError::Empty.into()), 400);
        assert_eq!(status(DecodeError::UnknownFormat.into()), 415);
        assert_eq!(
            status(DecodeError::Unsupported { format: "TIFF", reason: "it holds a JPEG".to_owned() }.into()),
            415
        );
        assert_eq!(status(DecodeError::ZeroSized { width: 0, height: 1 }.into()), 422);
    }

    #[test]
    fn a_cause_is_kept_from_the_client() {
        let error = ApiError::from(InferenceError::Failed("secret path".to_owned()));
        assert_eq!(error.cause(), Some("secret path"));
        assert!(!error.detail.contains("secret"));
    }

    #[test]
    fn overload_and_unreadiness_say_when_to_retry() {
        for error in [ApiError::overloaded("full"), ApiError::unavailable("loading")] {
            assert_eq!(error.into_problem("id").headers()[header::RETRY_AFTER], "1");
        }
    }
}
