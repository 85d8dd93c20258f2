//! `POST /v1/zero-shot`: the request's own labels, templates, and the text-embedding cache.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use reqwest::blocking::multipart::{Form, Part};
use serde_json::{Value, json};

use crate::harness::{Answer, BLUE, GREEN, RED, Server, picture};

fn ask(server: &Server, colour: [u8; 3], parameters: Value) -> Answer {
    let mut body = json!({"image": BASE64.encode(picture(colour))});
    body.as_object_mut().unwrap().extend(parameters.as_object().unwrap().clone());
    server.post_json("/v1/zero-shot", &body)
}

#[test]
fn labels_come_as_json_form_or_query() {
    let server = Server::start(&["tiny-clip"]);
    let answer = ask(&server, RED, json!({"labels": ["green", "red", "blue"]}));
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json["model"], "tiny-clip");
    assert_eq!(answer.predictions()[0], json!({"label": "red", "index": 1, "score": answer.score("red")}));
    assert_eq!(answer.predictions().len(), 3, "all labels by default");
    let file = Part::bytes(picture(GREEN)).file_name("a.png");
    let form = Form::new().part("image", file).text("labels", "red").text("labels", "green").text("top_k", "1");
    let from_form = Answer::of(server.post("/v1/zero-shot").multipart(form));
    assert_eq!((from_form.top_label(), from_form.predictions().len()), ("green", 1), "{from_form:?}");
    let from_query = server.post_image("/v1/zero-shot?labels=red&labels=blue", picture(BLUE));
    assert_eq!(from_query.top_label(), "blue");
    assert!(from_query.header("server-timing").contains("inference;dur="));
}

#[test]
fn several_images_share_their_labels() {
    let server = Server::start(&["tiny-clip"]);
    let images = [RED, BLUE].map(|colour| BASE64.encode(picture(colour)));
    let answer = server.post_json("/v1/zero-shot", &json!({"images": images, "labels": ["red", "blue"]}));
    let top = |index: usize| answer.json["results"][index]["predictions"][0]["label"].clone();
    assert_eq!((top(0), top(1)), (json!("red"), json!("blue")));
}

#[test]
fn a_template_makes_the_prompt_and_several_are_averaged() {
    let server = Server::start(&["tiny-clip"]);
    let plain = ask(&server, RED, json!({"labels": ["red", "green"]}));
    let same = ask(&server, RED, json!({"labels": ["red", "green"], "hypothesis_template": "{}"}));
    assert_eq!(plain.json, same.json);
    let photo = ask(&server, RED, json!({"labels": ["red", "green"], "hypothesis_template": "a photo of a {}"}));
    assert_eq!(photo.top_label(), "red");
    assert_eq!(photo.predictions()[0]["label"], "red", "the label, not the prompt");
    // "green {}" pulls every label towards green, so the mean with the plain prompt tells red and blue less apart.
    let both = ask(&server, RED, json!({"labels": ["red", "blue"], "hypothesis_template": ["{}", "green {}"]}));
    let alone = ask(&server, RED, json!({"labels": ["red", "blue"]}));
    assert!(both.score("blue") > alone.score("blue") * 2.0, "{both:?} {alone:?}");
}

#[test]
fn a_cached_answer_equals_the_first_one_and_hits_are_counted() {
    let server = Server::start(&["tiny-clip"]);
    let labels = json!({"labels": ["red", "green", "a cup of coffee"]});
    let first = ask(&server, RED, labels.clone());
    let count = |name: &str| server.metric(&format!("ocelli_text_cache_{name}_total{{model=\"tiny-clip\"}}"));
    assert_eq!((count("hits"), count("misses")), (0.0, 3.0));
    let second = ask(&server, RED, labels);
    assert_eq!(first.json, second.json, "bit for bit");
    assert_eq!((count("hits"), count("misses")), (3.0, 3.0));
}

#[test]
fn the_cache_is_bounded() {
    let server = Server::start_with(&["tiny-clip"], |config| config.text_cache_size = 2);
    for _ in 0..2 {
        assert_eq!(ask(&server, RED, json!({"labels": ["red", "green", "blue", "gray"]})).status, 200);
    }
    let hits = server.metric("ocelli_text_cache_hits_total{model=\"tiny-clip\"}");
    assert!(hits <= 2.0, "{hits} hits in a cache of 2");
}

#[test]
fn labels_and_templates_that_cannot_be_used_are_refused() {
    let server = Server::start_with(&["tiny-clip"], |config| {
        config.limits.max_labels = 100;
        config.limits.max_templates = 2;
    });
    let many: Vec<String> = (0..10_000).map(|number| format!("label {number}")).collect();
    for (parameters, status, message) in [
        (json!({}), 400, "labels are missing"),
        (json!({"labels": []}), 400, "labels are missing"),
        (json!({"labels": many}), 422, "10000 labels were sent, this server takes at most 100"),
        (json!({"labels": ["red", ""]}), 422, "labels[1] is empty"),
        (json!({"labels": ["red", "red"]}), 422, "labels[1], 'red', was sent before"),
        (json!({"labels": ["red", 7]}), 400, "labels must be a text or a list of texts, not 7"),
        (json!({"labels": [["red"]]}), 400, "labels must be"),
        (json!({"labels": ["red ".repeat(50)]}), 422, "has 52 tokens; this model takes at most 16"),
        (json!({"labels": [" ".repeat(9000) + "red"]}), 422, "is 9003 bytes long; at most 8192 are taken"),
        (json!({"labels": ["red"], "hypothesis_template": "a photo"}), 422, "must contain {} exactly once"),
        (json!({"labels": ["red"], "hypothesis_template": ["{}", "{} {}"]}), 422, "must contain {} exactly once"),
        (json!({"labels": ["red"], "hypothesis_template": ["{}", "a {}", "b {}"]}), 422, "3 templates were sent"),
        (json!({"labels": ["red"], "top_k": 0}), 400, "top_k must be at least 1"),
        (json!({"labels": ["red"], "function_to_apply": "none"}), 400, "there is no parameter 'function_to_apply'"),
    ] {
        ask(&server, RED, parameters).assert_error(status, message);
    }
    assert_eq!(ask(&server, RED, json!({"labels": ["red", "green"]})).top_label(), "red", "the next request is served");
}

#[test]
fn a_request_may_have_more_prompts_than_the_queue_holds() {
    let server = Server::start_with(&["tiny-clip"], |config| config.model_defaults.max_queue_size = 8);
    let labels: Vec<String> = (0..50).map(|number| format!("red {number}")).collect();
    let answer = ask(&server, RED, json!({"labels": labels, "hypothesis_template": ["{}", "a {}"]}));
    assert_eq!((answer.status, answer.predictions().len()), (200, 50), "{answer:?}");
}

#[test]
fn a_classifier_is_not_asked_for_labels_nor_a_dual_encoder_without() {
    let server = Server::start(&["tiny-classifier", "tiny-clip"]);
    ask(&server, RED, json!({"labels": ["red"], "model": "tiny-classifier"})).assert_error(
        400,
        "'tiny-classifier' is for image-classification; for zero-shot-image-classification there are: tiny-clip",
    );
    server.post_image("/v1/classify?model=tiny-clip", picture(RED)).assert_error(400, "there are: tiny-classifier");
}

#[test]
fn a_server_without_a_zero_shot_model_says_so() {
    let server = Server::start(&["tiny-classifier"]);
    ask(&server, RED, json!({"labels": ["red"]})).assert_error(404, "no model for zero-shot-image-classification");
}
