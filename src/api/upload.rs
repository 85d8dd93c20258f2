//! A request's body becomes images and parameters: raw bytes, a multipart form, or JSON with base64.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, HttpBody as _};
use axum::extract::{FromRequest, Multipart, Request};
use axum::http::{HeaderMap, header, request};
use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::{DecodeError, alphabet};
use bytes::Bytes;
use http_body_util::BodyExt;
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{timeout, timeout_at};

use super::AppState;
use super::admission::HeldBytes;
use super::error::ApiError;
use super::parameters::{Parameters, Raw};
use crate::config::Limits;
use crate::models::Ticket;

/// A body that is refused is still read for a while, so that its sender reads the answer instead of a reset: up to so many bytes,
const DISCARD_BYTES: usize = 1 << 28;
/// until the request's deadline, but for so long at least and at most: an answer that is due is not held back.
const DISCARD_TIME: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Values that JSON may have besides the images, labels and templates that there may be: each takes many times its own length once it is read.
const MORE_JSON_VALUES: usize = 1 << 16;

/// Fields that a form may have besides.
const MORE_FIELDS: usize = 64;

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What a request brought.
pub struct Upload {
    /// The encoded images, at least one.
    pub images: Vec<Bytes>,
    /// From the query, and from the form or the JSON.
    pub parameters: Parameters,
    /// The request's deadline and its share of the server.
    pub ticket: Ticket,
}

impl Upload {
    /// Admits the request, reads its body under the limits and takes it apart.
    ///
    /// # Errors
    /// 429 without room, 408, 413, and 400 for what cannot be read.
    pub async fn receive(state: &AppState, request: Request) -> Result<Self, ApiError> {
        let deadline = deadline(request.headers(), state.limits.request_timeout);
        let admitted = deadline.and_then(|deadline| Ok((deadline, admit(state, request.headers())?)));
        let (deadline, mut permit) = match admitted {
            Ok(admitted) => admitted,
            Err(error) => {
                discard_unread(request).await;
                return Err(error);
            }
        };
        let (parts, mut body) = request.into_parts();
        let bytes = match read_body(state, &mut body, deadline).await {
            Ok(bytes) => bytes,
            Err(error) => {
                // Somebody else may come meanwhile.
                drop(permit);
                discard(body, deadline).await;
                return Err(error);
            }
        };
        let mut parameters = Parameters::from_query(parts.uri.query());
        let images = take_apart(parts, bytes, &mut parameters, &state.limits).await?;
        match images.len() {
            0 => return Err(ApiError::bad_request("there is no image in the request")),
            count if count > state.limits.max_images => {
                let limit = state.limits.max_images;
                return Err(ApiError::bad_request(format!(
                    "the request has {count} images, this server takes at most {limit}"
                )));
            }
            count => permit.merge(state.admission.admit(count - 1)?),
        }
        let permit = Some(Arc::new(permit));
        let threads = state.admission.cores_per_image();
        let ticket = Ticket { deadline, permit, threads };
        Ok(Self { images, parameters, ticket })
    }
}

/// What the head of a request says about whether its body should come at all.
fn admit(state: &AppState, headers: &HeaderMap) -> Result<OwnedSemaphorePermit, ApiError> {
    if !accepts_json(headers) {
        return Err(ApiError::not_acceptable());
    }
    let limit = state.limits.max_body_bytes;
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > limit as u64) {
        return Err(ApiError::body_too_large(length, limit));
    }
    state.admission.admit(1)
}

/// The server's deadline, or the earlier one that `x-request-timeout-ms` asks for.
fn deadline(headers: &HeaderMap, server_timeout: Duration) -> Result<Instant, ApiError> {
    let timeout = match headers.get("x-request-timeout-ms") {
        None => server_timeout,
        Some(value) => {
            let milliseconds = value.to_str().ok().and_then(|text| text.trim().parse().ok());
            let wrong = || ApiError::bad_request("x-request-timeout-ms must be a whole number of milliseconds");
            Duration::from_millis(milliseconds.ok_or_else(wrong)?).min(server_timeout)
        }
    };
    Ok(Instant::now() + timeout)
}

/// Does the `Accept` header, if there is one, leave room for JSON?
fn accepts_json(headers: &HeaderMap) -> bool {
    let mut ranges = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).peekable();
    let allows = |range: &str| {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
        let refused = parts.any(|parameter| matches!(parameter, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"));
        !refused && matches!(kind.as_str(), "" | "*/*" | "application/*" | "application/json")
    };
    ranges.peek().is_none() || ranges.any(|value| value.split(',').any(allows))
}

async fn read_body(state: &AppState, body: &mut Body, deadline: Instant) -> Result<HeldBytes, ApiError> {
    let limit = state.limits.max_body_bytes;
    // As its head tells, if it does.
    let expected = usize::try_from(body.size_hint().lower()).unwrap_or(limit).min(limit);
    let read = async {
        let mut buffer = state.admission.buffer(expected);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| ApiError::bad_request("the body broke off"))?;
            if let Ok(chunk) = frame.into_data() {
                if buffer.len() + chunk.len() > limit {
                    return Err(ApiError::body_too_large(None, limit));
                }
                buffer.extend(&chunk)?;
            }
        }
        Ok(buffer.freeze())
    };
    let body_timeout = state.limits.body_timeout;
    let body_deadline = Instant::now() + body_timeout;
    timeout_at(deadline.min(body_deadline).into(), read).await.unwrap_or_else(|_| {
        Err(if deadline < body_deadline {
            ApiError::deadline_exceeded()
        } else {
            ApiError::body_timeout(body_timeout.as_millis())
        })
    })
}

/// Discards the body of a request that is refused by its head. Who waits to be told to send one (`Expect: 100-continue`, as curl does) is
/// not told to.
pub(super) async fn discard_unread(request: Request) {
    let expectation = request.headers().get(header::EXPECT);
    if !expectation.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        discard(request.into_body(), Instant::now() + DISCARD_TIME.1).await;
    }
}

async fn discard(mut body: Body, deadline: Instant) {
    let time = deadline.saturating_duration_since(Instant::now()).clamp(DISCARD_TIME.0, DISCARD_TIME.1);
    let mut left = DISCARD_BYTES;
    let read = async {
        while let Some(Ok(frame)) = body.frame().await {
            let length = frame.data_ref().map_or(0, Bytes::len);
            match left.checked_sub(length) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    };
    // Too slow or too much: the connection is closed under the sender, as it would have been without this.
    let _ = timeout(time, read).await;
}

async fn take_apart(
    parts: request::Parts,
    body: HeldBytes,
    parameters: &mut Parameters,
    limits: &Limits,
) -> Result<Vec<Bytes>, ApiError> {
    let content_type =
        parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let content_type = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match content_type.as_str() {
        "multipart/form-data" => from_multipart(parts, body, parameters, limits).await,
        "application/json" => from_json(&body, parameters, limits),
        // Whatever the header claims, the bytes decide: `curl --data-binary` says it sends a form.
        _ if body.bytes.is_empty() => Ok(Vec::new()),
        _ => Ok(vec![body.bytes]),
    }
}

async fn from_multipart(
    parts: request::Parts,
    body: HeldBytes,
    parameters: &mut Parameters,
    limits: &Limits,
) -> Result<Vec<Bytes>, ApiError> {
    let most = values_wanted(limits).saturating_add(MORE_FIELDS);
    let wrong =
        |error: &dyn std::fmt::Display| ApiError::bad_request(format!("the multipart form cannot be read: {error}"));
    let HeldBytes { bytes, room } = body;
    let request = Request::from_parts(parts, Body::from(bytes));
    let mut form = Multipart::from_request(request, &()).await.map_err(|error| wrong(&error.body_text()))?;
    let (mut images, mut fields) = (Vec::new(), 0);
    while let Some(field) = form.next_field().await.map_err(|error| wrong(&error.body_text()))? {
        fields += 1;
        if fields > most {
            return Err(ApiError::bad_request(format!("the form has more than {most} fields")));
        }
        let is_text = field.content_type().is_none_or(|kind| kind.starts_with("text/"));
        if field.file_name().is_none() && is_text {
            let name = field.name().unwrap_or_default().to_owned();
            let text = field.text().await.map_err(|error| wrong(&error.body_text()))?;
            parameters.push(name, Raw::Text(text));
        } else {
            // A copy of what the form holds.
            images.push(room.hold(field.bytes().await.map_err(|error| wrong(&error.body_text()))?));
        }
    }
    Ok(images)
}

fn from_json(body: &HeldBytes, parameters: &mut Parameters, limits: &Limits) -> Result<Vec<Bytes>, ApiError> {
    let most = values_wanted(limits).saturating_add(MORE_JSON_VALUES);
    if json_values(&body.bytes) > most {
        return Err(ApiError::bad_request(format!("the body has more than {most} JSON values")));
    }
    let value: Value = serde_json::from_slice(&body.bytes)
        .map_err(|error| ApiError::bad_request(format!("the body is not JSON: {error}")))?;
    let Value::Object(object) = value else {
        return Err(ApiError::bad_request("the body must be a JSON object"));
    };
    let mut images = Vec::new();
    for (key, value) in object {
        match (key.as_str(), value) {
            ("image", Value::String(text)) => images.push(from_base64(body, "image", &text)?),
            ("images", Value::Array(values)) => {
                // Each text is let go of once it is decoded.
                for (index, value) in values.into_iter().enumerate() {
                    let place = format!("images[{index}]");
                    let Value::String(text) = value else {
                        return Err(ApiError::bad_request(format!("{place} must be a text in base64")));
                    };
                    images.push(from_base64(body, &place, &text)?);
                }
            }
            ("image" | "images", Value::Null) => {}
            ("image", _) => return Err(ApiError::bad_request("image must be a text in base64")),
            ("images", _) => return Err(ApiError::bad_request("images must be a list of texts in base64")),
            (_, value) => parameters.push(key, Raw::Json(value)),
        }
    }
    Ok(images)
}

/// Images, labels and templates that there may be.
fn values_wanted(limits: &Limits) -> usize {
    limits.max_images.saturating_add(limits.max_labels).saturating_add(limits.max_templates)
}

/// How many values there are in `json`, if it is JSON: at most one more than its commas and brackets that open.
fn json_values(json: &[u8]) -> usize {
    let mut values = 1;
    let mut bytes = json.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b',' | b'[' | b'{' => values += 1,
            b'"' => {
                while let Some(end) = memchr::memchr2(b'"', b'\\', bytes.as_slice()) {
                    match bytes.nth(end) {
                        Some(b'\\') => drop(bytes.next()),
                        _ => break,
                    }
                }
            }
            _ => {}
        }
    }
    values
}

/// Plain base64 with or without padding and line breaks, or a `data:` URI of it.
fn from_base64(body: &HeldBytes, place: &str, text: &str) -> Result<Bytes, ApiError> {
    let text = text.trim();
    if text.starts_with("http://") || text.starts_with("https://") {
        return Err(ApiError::bad_request(format!(
            "{place} is a URL, which this server does not fetch; send the image's bytes"
        )));
    }
    let encoded = match text.strip_prefix("data:") {
        None => text,
        Some(uri) => match uri.split_once(',') {
            Some((head, data)) if head.ends_with(";base64") => data,
            _ => return Err(ApiError::bad_request(format!("{place} is a data: URI without base64"))),
        },
    };
    let decoded = match BASE64.decode(encoded) {
        Err(DecodeError::InvalidByte(_, byte)) if byte.is_ascii_whitespace() => {
            BASE64.decode(encoded.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect::<Vec<u8>>())
        }
        decoded => decoded,
    };
    let decoded = decoded.map_err(|error| ApiError::bad_request(format!("{place} is not base64: {error}")))?;
    Ok(body.room.hold(decoded))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn accept(value: &'static str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static(value));
        accepts_json(&headers)
    }

    #[test]
    fn accept_must_leave_room_for_json() {
        assert!(accepts_json(&HeaderMap::new()));
        assert!(accept("*/*") && accept("text/html, application/json;q=0.5") && accept("application/*"));
        assert!(!accept("text/html") && !accept("image/png, application/json;q=0"));
    }

    #[test]
    fn a_client_shortens_the_deadline_and_never_lengthens_it() {
        let server = Duration::from_secs(30);
        let left = |value| {
            let mut headers = HeaderMap::new();
            headers.insert("x-request-timeout-ms", HeaderValue::from_static(value));
            deadline(&headers, server).map(|deadline| deadline - Instant::now())
        };
        assert!(left("1000").unwrap() <= Duration::from_secs(1));
        assert!(left("99999999").unwrap() <= server);
        assert!(left("soon").is_err() && left("-1").is_err());
    }

    #[tokio::test]
    async fn images_of_a_form_keep_the_room_of_its_body() {
        let limits = crate::config::Config::default().limits;
        let admission = super::super::admission::Admission::new(&limits, 1);
        let form = "--x\r\ncontent-disposition: form-data; name=\"image\"; filename=\"a\"\r\n\r\npixels\r\n--x--\r\n";
        let mut body = admission.buffer(0);
        body.extend(form.as_bytes()).unwrap();
        let request = Request::builder().header(header::CONTENT_TYPE, "multipart/form-data; boundary=x").body(());
        let (parts, ()) = request.unwrap().into_parts();
        let images = take_apart(parts, body.freeze(), &mut Parameters::from_query(None), &limits).await.unwrap();
        assert_eq!((images[0].as_ref(), admission.bytes_buffered()), (&b"pixels"[..], form.len()));
        drop(images);
        assert_eq!(admission.bytes_buffered(), 0);
    }

    #[test]
    fn json_values_are_counted_before_they_are_read() {
        for (json, values) in [
            ("7", 1),
            ("[0,0,0]", 4),
            (r#"{"images":["a","b"],"top_k":1}"#, 5),
            (r#"["[,{", "\",\\", "\\"]"#, 4),
            (r#"["ends in a text\"#, 2),
        ] {
            assert_eq!(json_values(json.as_bytes()), values, "{json}");
        }
    }

    #[test]
    fn base64_comes_plain_wrapped_unpadded_or_as_data_uri() {
        let limits = crate::config::Config::default().limits;
        let body = super::super::admission::Admission::new(&limits, 1).buffer(0).freeze();
        for text in ["aGk=", "aGk", "aG\nk=", "data:image/png;base64,aGk=", " aGk= "] {
            assert_eq!(from_base64(&body, "image", text).unwrap(), "hi");
        }
        for text in ["a", "%%%", "data:image/png,aGk=", "https://example.com/a.png"] {
            assert!(from_base64(&body, "image", text).is_err(), "{text} was taken");
        }
    }
}
