//! A graph that OpenVINO computes only in parts while the number of images is open, and then gives up on.

use ocelli::config::{Config, ModelSettings};
use ocelli::runtime::{ExecutionProvider, Runtime};
use reqwest::blocking::multipart::{Form, Part};
use serde_json::json;

use crate::harness::{Answer, BLUE, GREEN, RED, Server, picture};

/// A server of the graph, on OpenVINO; `None` where there is no OpenVINO.
fn partitioned(change: impl FnOnce(&mut ModelSettings)) -> Option<Server> {
    let device = ExecutionProvider::OpenVino;
    if !Runtime::load(None).unwrap().providers.contains(&device) {
        return None;
    }
    Some(Server::start_with(&["../partitioned/tiny-swin"], |config| {
        config.cache_dir = config.models_dir.join(".cache");
        config.model_defaults.device = Some(device);
        change(&mut config.model_defaults);
    }))
}

#[test]
fn batches_of_what_openvino_cannot_run_with_an_open_number_of_images_are_filled_up() {
    let scores = |server: &Server, colours: &[[u8; 3]]| {
        let form = colours
            .iter()
            .fold(Form::new(), |form, &colour| form.part("image", Part::bytes(picture(colour)).file_name("a.png")));
        let answer = Answer::of(server.post("/v1/classify").multipart(form)).json;
        let results = answer["results"].as_array().unwrap().clone();
        results.iter().map(|result| result["predictions"][0]["score"].as_f64().unwrap()).collect::<Vec<_>>()
    };
    let Some(reference) = partitioned(|model| model.device = Some(ExecutionProvider::Cpu)) else { return };
    let colours = [RED, GREEN, BLUE, RED, GREEN];
    let wanted = scores(&reference, &colours);
    let same = |scores: Vec<f64>| scores.iter().zip(&wanted).all(|(score, wanted)| (score - wanted).abs() < 1e-4);
    assert!((wanted[0] - wanted[1]).abs() > 1e-2, "they tell colours apart: {wanted:?}");
    for (solo_threads, warmed) in [(None, json!([1, 3])), (Some(1), json!([1, 2, 3]))] {
        let change = |model: &mut ModelSettings| {
            (model.instances, model.batch_policy.max_batch_size) = (Some(2), 3);
            (model.solo_threads, model.solo_max_batch_size) = (solo_threads, Some(2));
        };
        let server = partitioned(change).unwrap();
        let graph = server.get_json("/v1/models/tiny-swin").json["graphs"][0].clone();
        assert_eq!(graph["batch_sizes_warmed"], warmed, "{graph}");
        assert_eq!(graph["solo_max_batch_size"], solo_threads.map_or(json!(null), |_| json!(2)));
        for count in 1..=colours.len() {
            assert!(same(scores(&server, &colours[..count])), "{count} images");
        }
    }
}

#[test]
fn each_batch_size_is_measured_where_their_number_cannot_be_open() {
    let change = |model: &mut ModelSettings| {
        let defaults = Config::default().model_defaults;
        (model.tuning, model.threads) = (defaults.tuning, None);
    };
    let Some(server) = partitioned(change) else { return };
    let graph = |server: &Server| server.get_json("/v1/models/tiny-swin").json["graphs"][0].clone();
    server.wait_until("it has been measured", |server| graph(server)["tuning"].is_object());
    let tuned = graph(&server);
    for candidate in tuned["tuning"]["candidates"].as_array().unwrap() {
        let sizes = candidate["speeds"].as_array().unwrap().iter().map(|speed| speed["batch_size"].as_u64().unwrap());
        assert_eq!(sizes.collect::<Vec<_>>(), [1, 4], "{candidate}");
    }
}
