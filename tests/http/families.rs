//! Parity: a tiny model of every checkpoint family answers over HTTP what `transformers` answers.
//!
//! tests/fixtures/families/generate.py makes the models and the golden answers, and says how.

use std::collections::BTreeMap;
use std::os::unix::fs::DirEntryExt;
use std::path::PathBuf;
use std::sync::mpsc;

use ocelli::config::Config;
use ocelli::preprocess::{DecodeLimits, decode};
use ocelli::runtime::{ExecutionProvider, Runtime};
use reqwest::blocking::multipart::{Form, Part};
use serde_json::Value;

use crate::harness::{Answer, PATIENCE, Server, config, fixtures};

/// How far an answer may lie from the golden one. JPEG has the tolerance of its decoder (preprocessing of a few steps).
struct Tolerance {
    pixel: f64,
    logit: f64,
    score: f64,
}

const LOSSLESS: Tolerance = Tolerance { pixel: 1e-6, logit: 1e-4, score: 1e-4 };
const JPEG: Tolerance = Tolerance { pixel: 0.09, logit: 0.15, score: 0.02 };

fn golden() -> Value {
    serde_json::from_slice(&std::fs::read(fixtures().join("families/golden.json")).unwrap()).unwrap()
}

fn server() -> Server {
    server_with(|_| {})
}

fn server_with(change: impl FnOnce(&mut Config)) -> Server {
    let models = fixtures().join("families/models");
    let mut config = config(&models);
    config.model_defaults.batch_policy.max_batch_size = 2;
    change(&mut config);
    let (ready, is_ready) = mpsc::channel();
    let server = Server::spawn(config, tempfile::tempdir().unwrap(), move |_| ready.send(()).unwrap());
    is_ready.recv_timeout(PATIENCE).unwrap();
    server
}

/// Every photo's name and content, and what may differ for it.
fn photos(golden: &Value) -> Vec<(String, Vec<u8>, Tolerance)> {
    let read = |image: &Value| {
        let file = image["file"].as_str().unwrap();
        let tolerance = if image["lossless"].as_bool().unwrap() { LOSSLESS } else { JPEG };
        (file.to_owned(), std::fs::read(fixtures().join("families/images").join(file)).unwrap(), tolerance)
    };
    golden["images"].as_array().unwrap().iter().map(read).collect()
}

fn families<'a>(golden: &'a Value, task: &'a str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    golden["families"].as_object().unwrap().iter().filter(move |(_, family)| family["task"] == task)
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

/// The scores of the first image in the order of their labels.
fn by_index(answer: &Answer) -> Vec<f64> {
    let mut scores: Vec<_> =
        answer.predictions().iter().map(|p| (p["index"].as_u64(), p["score"].as_f64().unwrap())).collect();
    scores.sort_by_key(|(index, _)| *index);
    scores.into_iter().map(|(_, score)| score).collect()
}

fn largest_difference(ours: &[f64], theirs: &[f64]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    ours.iter().zip(theirs).map(|(ours, theirs)| (ours - theirs).abs()).fold(0.0, f64::max)
}

fn report(failures: &[String]) {
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn every_family_loads() {
    let (golden, server) = (golden(), server());
    for family in golden["families"].as_object().unwrap().keys() {
        let info = server.get_json(&format!("/v1/models/{family}")).json;
        assert_eq!(info["state"], "ready", "{info}");
    }
}

#[test]
fn pixel_values_are_those_of_the_reference() {
    let golden = golden();
    let photos = photos(&golden);
    let mut failures = Vec::new();
    for (family, answers) in golden["families"].as_object().unwrap() {
        let folder = fixtures().join("families/models").join(family);
        let settings = ocelli::config::Config::default().model_defaults;
        let processor = ocelli::models::ModelFolder::open(&folder, &settings).unwrap().processor;
        for (file, bytes, tolerance) in &photos {
            let wanted = &answers["answers"][file]["pixel_values"];
            let tensor = processor.prepare(&decode(bytes, &DecodeLimits { max_pixels: 1 << 20 }).unwrap()).tensor();
            let shape: Vec<f64> = std::iter::once(1.0).chain(tensor.shape().iter().map(|&side| side as f64)).collect();
            assert_eq!(shape, numbers(&wanted["shape"]), "{family} {file}");
            let stride = wanted["stride"].as_u64().unwrap() as usize;
            let ours: Vec<f64> = tensor.iter().step_by(stride).map(|&value| f64::from(value)).collect();
            let difference = largest_difference(&ours, &numbers(&wanted["values"]));
            if difference > tolerance.pixel {
                failures.push(format!("{family} {file}: pixel values differ by {difference}"));
            }
        }
    }
    report(&failures);
}

#[test]
fn logits_are_those_of_the_reference() {
    let (golden, server) = (golden(), server());
    let photos = photos(&golden);
    let mut failures = Vec::new();
    for (family, answers) in families(&golden, "image-classification") {
        for (file, bytes, tolerance) in &photos {
            let path = format!("/v1/classify?model={family}&function_to_apply=none&top_k=1000");
            let ours = by_index(&server.post_image(&path, bytes.clone()));
            let difference = largest_difference(&ours, &numbers(&answers["answers"][file]["logits"]));
            if difference > tolerance.logit {
                failures.push(format!("{family} {file}: logits differ by {difference}"));
            }
        }
    }
    report(&failures);
}

#[test]
fn zero_shot_scores_are_those_of_the_pipeline() {
    let (golden, server) = (golden(), server());
    let photos = photos(&golden);
    let mut failures = Vec::new();
    for (family, answers) in families(&golden, "zero-shot-image-classification") {
        for question in answers["zero_shot"].as_array().unwrap() {
            let texts = |key: &str| {
                question[key].as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
            };
            let (labels, templates): (Vec<String>, Vec<String>) = (texts("labels"), texts("templates"));
            for (file, bytes, tolerance) in &photos {
                let form = Form::new().part("image", Part::bytes(bytes.clone()).file_name("photo"));
                let form = labels
                    .iter()
                    .fold(form.text("model", family.clone()), |form, label| form.text("labels", label.clone()));
                let form =
                    templates.iter().fold(form, |form, template| form.text("hypothesis_template", template.clone()));
                let answer = Answer::of(server.post("/v1/zero-shot").multipart(form));
                assert_eq!(answer.status, 200, "{family} {labels:?}: {answer:?}");
                let difference = largest_difference(&by_index(&answer), &numbers(&question["scores"][file]));
                if difference > tolerance.score {
                    failures.push(format!("{family} {file} {labels:?} {templates:?}: scores differ by {difference}"));
                }
            }
        }
    }
    report(&failures);
}

#[test]
fn token_ids_are_those_of_the_reference_and_long_prompts_are_refused() {
    let (golden, server) = (golden(), server());
    for (family, answers) in families(&golden, "zero-shot-image-classification") {
        let json = std::fs::read(fixtures().join("families/models").join(family).join("tokenizer.json")).unwrap();
        let tokenizer = ocelli::text::Tokenizer::from_bytes(&json, 77).unwrap();
        for case in answers["tokens"].as_array().unwrap() {
            let ours: Vec<f64> =
                tokenizer.encode(case["text"].as_str().unwrap()).unwrap().iter().map(|&id| id as f64).collect();
            assert_eq!(ours, numbers(&case["ids"]), "{family}: {}", case["text"]);
        }
        let too_long = &answers["too_long"];
        let photo = photos(&golden).swap_remove(3).1;
        let form = Form::new().part("image", Part::bytes(photo).file_name("photo")).text("model", family.clone());
        let form = form.text("labels", too_long["text"].as_str().unwrap().to_owned());
        let refused = Answer::of(server.post("/v1/zero-shot").multipart(form));
        let message = format!("has {} tokens; this model takes at most {}", too_long["tokens"], too_long["limit"]);
        refused.assert_error(422, &message);
    }
}

#[test]
fn transposed_weights_are_found_by_later_starts_and_are_no_need() {
    let device = ExecutionProvider::OpenVino;
    if !Runtime::load(None).unwrap().providers.contains(&device) {
        return;
    }
    let golden = golden();
    let photo = photos(&golden).swap_remove(0).1;
    let cache = tempfile::tempdir().unwrap();
    let answers = |cache_dir: PathBuf| {
        let server = server_with(|config| {
            config.model_defaults.device = Some(device);
            // In others, weights are not transposed.
            config.model_defaults.precision = device.native_precisions().last().copied();
            config.cache_dir = cache_dir;
        });
        let answer = |family: &String| {
            by_index(&server.post_image(&format!("/v1/classify?model={family}&top_k=1000"), photo.clone()))
        };
        families(&golden, "image-classification").map(|(family, _)| answer(family)).collect::<Vec<_>>()
    };
    let files = || {
        let files = std::fs::read_dir(cache.path().join("weights")).unwrap().map(|file| file.unwrap());
        files.map(|file| (file.file_name(), file.ino())).collect::<BTreeMap<_, _>>()
    };
    let first = answers(cache.path().to_owned());
    let written = files();
    assert!(written.len() >= 5, "those of transformers: {written:?}");
    assert_eq!(answers(cache.path().to_owned()), first);
    assert_eq!(files(), written, "they were only read");
    let no_folder = cache.path().join("file");
    std::fs::write(&no_folder, "").unwrap();
    for (without, with) in answers(no_folder).iter().zip(&first) {
        // Where they are, OpenVINO joins other operations in one, which rounds otherwise in bf16.
        assert!(largest_difference(without, with) < 0.02, "{without:?} {with:?}");
    }
}
