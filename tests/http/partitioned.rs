//! Graphs of which OpenVINO would compute only parts if they were not rewritten.

use ocelli::runtime::{ExecutionProvider, Runtime};
use reqwest::blocking::multipart::{Form, Part};
use serde_json::json;

use crate::harness::{Answer, BLUE, GREEN, RED, Server, picture};

/// A server of such a graph, for batches of up to three images.
fn partitioned(model: &str, device: ExecutionProvider) -> Server {
    Server::start_with(&[&format!("../partitioned/{model}")], |config| {
        config.cache_dir = config.models_dir.join(".cache");
        let model = &mut config.model_defaults;
        model.device = Some(device);
        (model.instances, model.batch_policy.max_batch_size) = (Some(2), 3);
    })
}

#[test]
fn openvino_computes_batches_of_any_size_by_itself() {
    if !Runtime::load(None).unwrap().providers.contains(&ExecutionProvider::OpenVino) {
        return;
    }
    let scores = |server: &Server, colours: &[[u8; 3]]| {
        let form = colours
            .iter()
            .fold(Form::new(), |form, &colour| form.part("image", Part::bytes(picture(colour)).file_name("a.png")));
        let answer = Answer::of(server.post("/v1/classify").multipart(form)).json;
        let results = answer["results"].as_array().unwrap().clone();
        results.iter().map(|result| result["predictions"][0]["score"].as_f64().unwrap()).collect::<Vec<_>>()
    };
    let colours = [RED, GREEN, BLUE, RED, GREEN];
    for model in ["tiny-swin", "tiny-vit"] {
        let wanted = scores(&partitioned(model, ExecutionProvider::Cpu), &colours);
        assert!((wanted[0] - wanted[1]).abs() > 1e-2, "{model} tells colours apart: {wanted:?}");
        let server = partitioned(model, ExecutionProvider::OpenVino);
        let graph = server.get_json(&format!("/v1/models/{model}")).json["graphs"][0].clone();
        assert_eq!((&graph["batch_sizes_warmed"], &graph["nodes_on_cpu"]), (&json!([1, 2, 3]), &json!(0)), "{graph}");
        for count in 1..=colours.len() {
            let scores = scores(&server, &colours[..count]);
            let same = scores.iter().zip(&wanted).all(|(score, wanted)| (score - wanted).abs() < 1e-4);
            assert!(same, "{model}, {count} images: {scores:?} {wanted:?}");
        }
    }
}
