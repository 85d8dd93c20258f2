//! `POST /v1/zero-shot`: images and labels in, these labels' scores out.

use std::collections::HashSet;

use axum::extract::{Request, State};
use axum::response::Response;

use super::AppState;
use super::classify::{ClassifyResponse, in_time, place_error, respond};
use super::error::ApiError;
use super::openapi::{ImageBytes, InferenceFailure, ZeroShotJson, ZeroShotMultipart, ZeroShotQuery};
use super::parameters::Parameters;
use super::upload::Upload;
use crate::config::Limits;
use crate::models::ZeroShotQuestion;
use crate::text::Templates;

const PARAMETERS: &str = "model, labels, hypothesis_template, top_k";

/// Scores of the request's own labels.
///
/// The body is as for `/v1/classify`; the labels come as repeated query keys or form fields, or as a JSON list.
#[utoipa::path(
    post, path = "/v1/zero-shot", tag = "inference", params(
        ZeroShotQuery,
        ("x-request-timeout-ms" = Option<u64>, Header, description = "Shortens the server's deadline, never lengthens it"),
    ),
    request_body(content(
        (ImageBytes = "application/octet-stream"), (ZeroShotMultipart = "multipart/form-data"), (ZeroShotJson = "application/json"),
    )),
    responses(
        (status = 200, description = "The labels' scores", body = ClassifyResponse, headers(
            ("server-timing" = String, description = "decode, queue and inference time in milliseconds"),
            ("x-request-id" = String, description = "The request's id, echoed or made"),
        )),
        InferenceFailure,
    )
)]
pub(super) async fn zero_shot(State(state): State<AppState>, request: Request) -> Result<Response, ApiError> {
    let upload = Upload::receive(&state, request).await?;
    let mut parameters = upload.parameters;
    let name = parameters.text("model")?;
    let question = read_question(&mut parameters, &state.limits)?;
    parameters.finish(PARAMETERS)?;
    let model = state.registry.zero_shot(name.as_deref())?;
    let several = upload.images.len() > 1;
    let work = async {
        let answer = model.classify(&state.pool, upload.images, &question, &upload.ticket).await;
        answer.map_err(|(index, error)| match index {
            Some(index) => place_error(error, index, several),
            None => error.into(),
        })
    };
    let answer = in_time(upload.ticket.deadline, work).await;
    respond(&model.name, &model.metrics, answer)
}

fn read_question(parameters: &mut Parameters, limits: &Limits) -> Result<ZeroShotQuestion, ApiError> {
    let labels = parameters.texts("labels")?;
    check_labels(&labels, limits.max_labels)?;
    let templates = parameters.texts("hypothesis_template")?;
    if templates.len() > limits.max_templates {
        let (count, limit) = (templates.len(), limits.max_templates);
        return Err(ApiError::unusable_labels(format!(
            "{count} templates were sent, this server takes at most {limit}"
        )));
    }
    Ok(ZeroShotQuestion { top_k: parameters.top_k(labels.len())?, templates: Templates::new(templates)?, labels })
}

fn check_labels(labels: &[String], limit: usize) -> Result<(), ApiError> {
    if labels.is_empty() {
        return Err(ApiError::bad_request(
            "labels are missing: send at least one, as repeated 'labels' or a JSON list",
        ));
    }
    if labels.len() > limit {
        let count = labels.len();
        return Err(ApiError::unusable_labels(format!("{count} labels were sent, this server takes at most {limit}")));
    }
    let mut seen = HashSet::with_capacity(labels.len());
    for (index, label) in labels.iter().enumerate() {
        if label.trim().is_empty() {
            return Err(ApiError::unusable_labels(format!("labels[{index}] is empty")));
        }
        if !seen.insert(label) {
            let label: String = label.chars().take(60).collect();
            return Err(ApiError::unusable_labels(format!("labels[{index}], '{label}', was sent before")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_counted_and_neither_empty_nor_twice() {
        let labels = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        assert!(check_labels(&labels(&["cat", "dog"]), 2).is_ok());
        for (bad, expected) in [
            (labels(&[]), "labels are missing"),
            (labels(&["a", "b", "c"]), "3 labels were sent, this server takes at most 2"),
            (labels(&["a", " "]), "labels[1] is empty"),
            (labels(&["a", "a"]), "labels[1], 'a', was sent before"),
        ] {
            let error = format!("{:?}", check_labels(&bad, 2).unwrap_err());
            assert!(error.contains(expected), "'{expected}' is not in '{error}'");
        }
    }
}
