//! `POST /v1/classify`: every form of body, every parameter, every header.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use image::{ImageFormat, Rgb, RgbImage};
use reqwest::blocking::multipart::{Form, Part};
use serde_json::json;

use crate::harness::{Answer, BLUE, GREEN, RED, Server, encoded, image_fixture, picture};

#[test]
fn an_image_comes_as_bytes_with_any_content_type_or_none() {
    let server = Server::start(&["tiny-classifier"]);
    for content_type in [
        None,
        Some("image/png"),
        Some("image/jpeg"),
        Some("application/octet-stream"),
        Some("text/plain"),
        Some("application/x-www-form-urlencoded"),
    ] {
        let request = server.post("/v1/classify").body(picture(GREEN));
        let request = match content_type {
            Some(content_type) => request.header("content-type", content_type),
            None => request,
        };
        let answer = Answer::of(request);
        assert_eq!((answer.status, answer.top_label()), (200, "green"), "{content_type:?}: {answer:?}");
    }
    let answer = server.post_image("/v1/classify", picture(BLUE));
    assert_eq!(answer.json["model"], "tiny-classifier");
    assert_eq!(answer.header("content-type"), "application/json");
}

#[test]
fn images_come_as_files_of_a_form_under_any_name() {
    let server = Server::start(&["tiny-classifier"]);
    let file = |colour| Part::bytes(picture(colour)).file_name("a.png");
    let form = Form::new()
        .part("image", file(RED))
        .part("anything", file(BLUE))
        .text("top_k", "1")
        .text("model", "tiny-classifier");
    let answer = Answer::of(server.post("/v1/classify").multipart(form));
    assert_eq!(answer.status, 200, "{answer:?}");
    let labels: Vec<_> =
        answer.json["results"].as_array().unwrap().iter().map(|result| &result["predictions"][0]["label"]).collect();
    assert_eq!(labels, ["red", "blue"], "in the order sent");
    assert_eq!(answer.predictions().len(), 1);
    let typed = Form::new().part("image", Part::bytes(picture(GREEN)).mime_str("image/png").unwrap());
    assert_eq!(
        Answer::of(server.post("/v1/classify").multipart(typed)).top_label(),
        "green",
        "a part with an image type is a file"
    );
}

#[test]
fn images_come_as_base64_or_data_uri_in_json() {
    let server = Server::start(&["tiny-classifier"]);
    let red = BASE64.encode(picture(RED));
    let uri = format!("data:image/png;base64,{}", BASE64.encode(picture(BLUE)));
    let answer = server.post_json("/v1/classify", &json!({"image": red, "images": null}));
    assert_eq!(answer.top_label(), "red", "{answer:?}");
    let answer =
        server.post_json("/v1/classify", &json!({"images": [uri, red], "top_k": 2, "function_to_apply": null}));
    let counts: Vec<_> = answer.json["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|result| result["predictions"].as_array().unwrap().len())
        .collect();
    assert_eq!(counts, [2, 2]);
    assert_eq!(answer.top_label(), "blue");
}

#[test]
fn predictions_are_sorted_and_top_k_is_clamped() {
    let server = Server::start(&["tiny-classifier"]);
    let answer = server.post_image("/v1/classify?top_k=1000", picture(RED));
    let scores: Vec<f64> =
        answer.predictions().iter().map(|prediction| prediction["score"].as_f64().unwrap()).collect();
    assert_eq!(scores.len(), 4);
    assert!(scores.is_sorted_by(|a, b| a >= b), "{scores:?}");
    assert!((scores.iter().sum::<f64>() - 1.0).abs() < 1e-5, "softmax sums to 1: {scores:?}");
    let tied: Vec<_> = answer
        .predictions()
        .iter()
        .map(|prediction| prediction["index"].as_u64().unwrap())
        .filter(|index| [1, 2].contains(index))
        .collect();
    assert_eq!(tied, [1, 2], "green and blue tie, so index decides");
}

#[test]
fn function_to_apply_turns_logits_into_scores() {
    let server = Server::start(&["tiny-classifier"]);
    let ask = |function: &str| server.post_image(&format!("/v1/classify?function_to_apply={function}"), picture(RED));
    let logit = ask("none").score("red");
    assert!(logit > 1.0, "a logit: {logit}");
    assert!((ask("Sigmoid").score("red") - 1.0 / (1.0 + (-logit).exp())).abs() < 1e-5);
    assert_eq!(ask("softmax").json, server.post_image("/v1/classify", picture(RED)).json, "the default");
}

#[test]
fn the_same_picture_gives_the_same_answer_in_every_format() {
    let server = Server::start(&["tiny-classifier"]);
    let image = RgbImage::from_pixel(40, 30, Rgb([200, 30, 40]));
    for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP, ImageFormat::Bmp, ImageFormat::Tiff] {
        let answer = server.post_image("/v1/classify", encoded(&image, format));
        assert_eq!((answer.status, answer.top_label()), (200, "red"), "{format:?}: {answer:?}");
    }
}

#[test]
fn odd_kinds_of_images_answer_properly() {
    let server = Server::start(&["tiny-classifier"]);
    for (file, label) in [("red_transparent.png", "red"), ("cmyk_white.jpg", "gray, or grey")] {
        let answer = server.post_image("/v1/classify", image_fixture(file));
        assert_eq!((answer.status, answer.top_label()), (200, label), "{file}: {answer:?}");
    }
    let score_of = |file: &str| {
        let answer = server.post_image("/v1/classify?function_to_apply=none", image_fixture(file));
        assert_eq!(answer.status, 200, "{file}: {answer:?}");
        answer.score("red")
    };
    for file in [
        "cmyk.jpg",
        "ycck.jpg",
        "cmyk.tiff",
        "rgb16.png",
        "rgba16.png",
        "l16.png",
        "la16.png",
        "l1.png",
        "l8_trns.png",
        "palette4.png",
        "palette_trns.png",
        "gray.jpg",
        "rgba8.png",
        "interlaced.gif",
        "lossy_alpha.webp",
        "420_progressive.jpg",
        "icc.png",
    ] {
        assert!(score_of(file).is_finite());
    }
    // The mean colour is the same however the picture is turned, up to the JPEG's and the resizing's rounding.
    let upright = score_of("orientation1.jpg");
    for orientation in 2..=8 {
        let turned = score_of(&format!("orientation{orientation}.jpg"));
        assert!((turned - upright).abs() < 0.1, "orientation {orientation}: {turned} instead of {upright}");
    }
    for file in ["animated.gif", "animated.png", "animated.webp"] {
        assert!(score_of(file).is_finite(), "the first frame of {file}");
    }
}

#[test]
fn the_default_model_is_the_configured_one_or_the_first() {
    let models = ["tiny-classifier", "tiny-onnx-subfolder", "tiny-outputs"];
    let server = Server::start(&models);
    assert_eq!(server.post_image("/v1/classify", picture(RED)).json["model"], "tiny-classifier");
    assert_eq!(server.post_image("/v1/classify?model=tiny-outputs", picture(RED)).json["model"], "tiny-outputs");
    let server = Server::start_with(&models, |config| config.default_classifier = Some("tiny-outputs".to_owned()));
    assert_eq!(server.post_image("/v1/classify", picture(RED)).json["model"], "tiny-outputs");
}

#[test]
fn answers_carry_a_request_id_and_their_timing() {
    let server = Server::start(&["tiny-classifier"]);
    let answer = Answer::of(server.post("/v1/classify").header("x-request-id", "my-id-7").body(picture(RED)));
    assert_eq!(answer.header("x-request-id"), "my-id-7");
    let timing = answer.header("server-timing");
    for part in ["decode;dur=", "queue;dur=", "inference;dur="] {
        let value = timing.split(part).nth(1).unwrap_or_else(|| panic!("{part} is not in {timing}"));
        let value: f64 = value.split(',').next().unwrap().parse().unwrap();
        assert!(value >= 0.0);
    }
    let made = server.post_image("/v1/classify", picture(RED)).header("x-request-id").to_owned();
    assert_eq!(made.len(), 36, "a UUID: {made}");
    let long = Answer::of(server.post("/v1/classify").header("x-request-id", "x".repeat(1000)).body(picture(RED)));
    assert_eq!(long.header("x-request-id").len(), 36, "one that would fill the log is replaced");
}

#[test]
fn batches_give_every_client_its_own_answer() {
    let server = Server::start_with(&["tiny-classifier"], |config| {
        config.model_defaults.batch_policy.max_queue_delay = std::time::Duration::from_millis(20);
    });
    std::thread::scope(|scope| {
        for client in 0..16 {
            let server = &server;
            scope.spawn(move || {
                for turn in 0..10 {
                    let (colour, label) = [(RED, "red"), (GREEN, "green"), (BLUE, "blue")][(client + turn) % 3];
                    let answer = server.post_image("/v1/classify", picture(colour));
                    assert_eq!((answer.status, answer.top_label()), (200, label), "{answer:?}");
                }
            });
        }
    });
    let batches = server.metric("ocelli_batch_size_count{model=\"tiny-classifier\",graph=\"model\"}");
    assert!(batches < 160.0, "some of 160 images shared a run, in {batches} runs");
}
