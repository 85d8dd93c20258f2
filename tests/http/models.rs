//! `GET /v1/models`, and the kinds of graphs that folders hold.

use std::sync::mpsc;

use ocelli::models::ModelState;
use ocelli::preprocess::{DecodeMode, JPEG_DECODER};
use ocelli::runtime::{ExecutionProvider, Precision};
use reqwest::blocking::multipart::{Form, Part};
use serde_json::json;

use crate::harness::{
    Answer, BLUE, GREEN, PATIENCE, RED, Server, config, copy_fixture, fixtures, models_dir, picture, providers,
};

#[test]
fn a_model_tells_how_it_is_really_run() {
    let server = Server::start(&["tiny-classifier", "tiny-clip"]);
    let list = server.get_json("/v1/models").json;
    let names: Vec<_> = list["models"].as_array().unwrap().iter().map(|model| model["name"].clone()).collect();
    assert_eq!(names, ["tiny-classifier", "tiny-clip"]);
    let model = server.get_json("/v1/models/tiny-classifier").json;
    assert_eq!(model, list["models"][0]);
    assert_eq!(model["state"], "ready");
    assert_eq!(model["task"], "image-classification");
    assert_eq!(model["labels"], json!(["red", "green", "blue", "gray, or grey"]));
    assert_eq!(model["input_size"], json!({"height": 8, "width": 8}));
    assert_eq!(model["jpeg"], json!({"decoder": JPEG_DECODER.name, "decode": "exact"}));
    assert_eq!(model["function_to_apply"], "softmax");
    let graph = &model["graphs"][0];
    assert_eq!((&graph["provider"], &graph["precision"]), (&json!("cpu"), &json!("f32")));
    assert_eq!(graph["batch_sizes_warmed"], json!([1, 2, 3, 4, 5, 6, 7, 8]));
    assert_eq!(graph["sha256"].as_str().unwrap().len(), 64);
    assert_eq!(graph["file"], "model.onnx");
    let dual = server.get_json("/v1/models/tiny-clip").json;
    assert_eq!(dual["task"], "zero-shot-image-classification");
    assert_eq!(dual["graphs"].as_array().unwrap().len(), 2);
    assert_eq!((&dual["logit_scale"], &dual["max_text_length"]), (&json!(20.0), &json!(16)));
}

#[test]
fn every_kind_of_classifier_graph_gives_the_same_answers() {
    let kinds = ["tiny-classifier", "tiny-fixed-batch", "tiny-fp16", "tiny-outputs", "tiny-external", "tiny-fragile"];
    let server = Server::start(&kinds);
    for model in kinds {
        for (colour, label) in [(RED, "red"), (GREEN, "green"), (BLUE, "blue")] {
            let ask = |model: &str| {
                server.post_image(&format!("/v1/classify?model={model}&function_to_apply=none"), picture(colour))
            };
            let (answer, reference) = (ask(model), ask("tiny-classifier"));
            assert_eq!((answer.status, answer.top_label()), (200, label), "{model}: {answer:?}");
            let difference = (answer.score(label) - reference.score(label)).abs();
            assert!(difference < 0.02, "{model}: logits differ by {difference}");
        }
    }
    let fixed = server.get_json("/v1/models/tiny-fixed-batch").json;
    assert_eq!(fixed["graphs"][0]["batch_sizes_warmed"], json!([1]));
}

#[test]
fn one_graph_with_both_encoders_answers_like_two() {
    let server = Server::start(&["tiny-clip", "tiny-combined-clip"]);
    let ask = |model: &str| {
        server.post_image(&format!("/v1/zero-shot?model={model}&labels=red&labels=blue"), picture([255, 0, 240]))
    };
    let (split, combined) = (ask("tiny-clip"), ask("tiny-combined-clip"));
    assert_eq!((combined.status, combined.top_label()), (200, "red"), "{combined:?}");
    assert!((split.score("blue") - combined.score("blue")).abs() < 1e-4, "{split:?} {combined:?}");
    let scale = server.get_json("/v1/models/tiny-combined-clip").json["logit_scale"].as_f64().unwrap();
    assert!((scale - 20.0).abs() < 1e-3, "read out of the graph: {scale}");
}

#[test]
fn a_combined_graph_tells_what_the_folder_does_not() {
    let models = models_dir(&[]);
    let folder = models.path().join("tiny");
    copy_fixture("tiny-combined-clip", &folder);
    // As for SigLIP, whose scale is no use without its bias.
    let config_json = json!({"model_type": "siglip", "logit_scale": 7, "text_config": {"max_position_embeddings": 16}});
    std::fs::write(folder.join("config.json"), config_json.to_string()).unwrap();
    let server = Server::start_in(models, |_| {});
    let model = server.get_json("/v1/models/tiny").json;
    let (scale, bias) = (model["logit_scale"].as_f64().unwrap(), model["logit_bias"].as_f64().unwrap_or(0.0));
    assert!((scale - 20.0).abs() < 1e-2 && bias.abs() < 1e-2, "{model}");
}

#[test]
fn weights_that_the_hubs_cache_has_links_to_are_read_by_every_provider() {
    let runtime = ocelli::runtime::Runtime::load(None).unwrap();
    for &device in runtime.providers.iter().filter(|device| device.is_on_cpu()) {
        let models = models_dir(&[]);
        let (blobs, snapshot) = (models.path().join(".blobs"), models.path().join("tiny"));
        copy_fixture("tiny-external", &blobs);
        std::fs::create_dir(&snapshot).unwrap();
        for entry in std::fs::read_dir(&blobs).unwrap() {
            let name = entry.unwrap().file_name();
            // A blob has no name but its hash.
            let blob = blobs.join(format!("blob of {}", name.to_string_lossy()));
            std::fs::rename(blobs.join(&name), &blob).unwrap();
            std::os::unix::fs::symlink(&blob, snapshot.join(&name)).unwrap();
        }
        Server::start_in(models, |config| config.model_defaults.device = Some(device)).assert_serves();
    }
}

#[test]
fn siglip_scores_every_label_by_itself_on_prompts_of_full_length() {
    let server = Server::start(&["tiny-siglip"]);
    let ask = |labels: &str| server.post_image(&format!("/v1/zero-shot?{labels}"), picture(RED));
    let answer = ask("labels=red&labels=gray&labels=green");
    assert_eq!((answer.status, answer.top_label()), (200, "red"), "{answer:?}");
    assert!(answer.score("red") > 0.999 && (answer.score("gray") - 0.2339).abs() < 1e-3, "{answer:?}");
    assert_eq!(ask("labels=red").score("red"), answer.score("red"), "a label's score does not depend on the others");
    let info = server.get_json("/v1/models/tiny-siglip").json;
    assert_eq!((&info["function_to_apply"], &info["logit_bias"]), (&json!("sigmoid"), &json!(-5.0)));
}

#[test]
fn weights_are_told_by_their_element_types() {
    let server = Server::start(&["tiny-classifier", "tiny-fp16"]);
    let parameters =
        |model: &str| server.get_json(&format!("/v1/models/{model}")).json["graphs"][0]["parameters"].clone();
    assert!(parameters("tiny-classifier")["float"].as_u64().unwrap() > 0);
    assert!(parameters("tiny-fp16")["float16"].as_u64().unwrap() > 0);
}

#[test]
fn a_graph_in_a_folder_of_its_own_is_found() {
    let server = Server::start(&["tiny-onnx-subfolder"]);
    assert_eq!(server.state_of("tiny-onnx-subfolder"), "ready");
    assert_eq!(server.get_json("/v1/models/tiny-onnx-subfolder").json["graphs"][0]["file"], "onnx/model.onnx");
}

#[test]
fn a_graph_fixed_at_one_image_serves_many_at_a_time() {
    let server = Server::start(&["tiny-fixed-batch"]);
    std::thread::scope(|scope| {
        for (colour, label) in [(RED, "red"), (GREEN, "green"), (BLUE, "blue"), (RED, "red")] {
            let server = &server;
            scope.spawn(move || assert_eq!(server.post_image("/v1/classify", picture(colour)).top_label(), label));
        }
    });
}

#[test]
fn several_instances_share_one_queue() {
    let server = Server::start_with(&["tiny-classifier"], |config| config.model_defaults.instances = Some(3));
    assert_eq!(server.get_json("/v1/models/tiny-classifier").json["graphs"][0]["instances"], 3);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| server.assert_serves());
        }
    });
}

#[test]
fn single_images_and_batches_of_each_size_have_sessions_of_their_own() {
    let open = "tiny-classifier";
    for (model, small, told, warmed) in [
        (open, None, json!(1), json!([1, 3])),
        (open, Some(2), json!(2), json!([1, 2, 3])),
        (open, Some(9), json!(3), json!([1, 3])),
        ("tiny-fixed-batch", None, json!(null), json!([1])),
    ] {
        let server = Server::start_with(&[model], |config| {
            let model = &mut config.model_defaults;
            (model.instances, model.solo_threads, model.batch_policy.max_batch_size) = (Some(2), Some(1), 3);
            model.small_batch_size = small;
        });
        let graph = server.get_json(&format!("/v1/models/{model}")).json["graphs"][0].clone();
        assert_eq!((&graph["instances"], &graph["solo_threads"]), (&json!(2), &json!(1)));
        assert_eq!((&graph["small_batch_size"], &graph["batch_sizes_warmed"]), (&told, &warmed));
        server.assert_serves();
        // Seven images are more than two full batches, in whichever order they come.
        let colours = [
            (RED, "red"),
            (GREEN, "green"),
            (BLUE, "blue"),
            (RED, "red"),
            (RED, "red"),
            (BLUE, "blue"),
            (GREEN, "green"),
        ];
        let form = colours.iter().fold(Form::new(), |form, &(colour, _)| {
            form.part("image", Part::bytes(picture(colour)).file_name("a.png"))
        });
        let answer = Answer::of(server.post("/v1/classify").multipart(form));
        let labels: Vec<_> =
            answer.json["results"].as_array().unwrap().iter().map(|r| r["predictions"][0]["label"].clone()).collect();
        assert_eq!(labels, colours.map(|(_, label)| json!(label)));
        std::thread::scope(|scope| {
            for (colour, label) in colours {
                let server = &server;
                scope.spawn(move || assert_eq!(server.post_image("/v1/classify", picture(colour)).top_label(), label));
            }
        });
    }
}

#[test]
fn a_provider_that_was_named_and_cannot_be_used_stops_the_start() {
    for (device, precision, message) in [
        (ExecutionProvider::Cuda, None, "the execution provider cuda is not in"),
        (ExecutionProvider::Cpu, Some(Precision::Bf16), "precision bf16 cannot be had"),
    ] {
        let folder = models_dir(&["tiny-classifier"]);
        let mut config = config(folder.path());
        config.model_defaults.device = Some(device);
        config.model_defaults.precision = precision.or(Some(Precision::F32));
        let mut server = Server::spawn(config, folder, |_| {});
        let error = server.join().unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn auto_takes_a_provider_of_the_library_and_says_which() {
    let folder = models_dir(&["tiny-classifier"]);
    let mut config = config(folder.path());
    config.model_defaults.device = None;
    config.model_defaults.precision = None;
    let (ready, infos) = mpsc::channel();
    let server = Server::spawn(config, folder, move |registry| ready.send(registry.infos()).unwrap());
    let infos = infos.recv_timeout(PATIENCE).unwrap();
    assert_eq!(infos[0].state, ModelState::Ready, "{:?}", infos[0].reason);
    let [(provider, precision)] = providers(&infos[0])[..] else { panic!("one graph") };
    assert_eq!(provider.refuses(precision), None);
    assert!(infos[0].graphs[0].provider_reason.starts_with("auto: "));
    let jpeg = infos[0].description.as_ref().unwrap().jpeg;
    assert_eq!(jpeg.decode, DecodeMode::Fast.in_effect(), "who does not ask for f32 does not ask for every pixel");
    server.assert_serves();
}

#[test]
fn what_is_left_open_is_measured_while_the_model_answers_and_kept_for_the_next_start() {
    measured_and_kept(Some(env!("CARGO_BIN_EXE_ocelli")));
}

#[test]
fn measuring_works_without_a_process_of_its_own() {
    measured_and_kept(None);
}

#[test]
fn a_window_larger_than_any_picture_takes_its_mean_on_every_provider() {
    let runtime = ocelli::runtime::Runtime::load(None).unwrap();
    for &device in runtime.providers.iter().filter(|device| device.is_on_cpu()) {
        Server::start_with(&["tiny-wide-pool"], |config| config.model_defaults.device = Some(device)).assert_serves();
    }
}

#[test]
fn a_provider_that_cannot_run_a_graph_is_passed_over_and_the_answers_are_right() {
    let server = Server::start_with(&["tiny-padded-pool"], |config| {
        config.model_defaults = ocelli::config::Config::default().model_defaults;
        config.cache_dir = config.models_dir.join(".cache");
        config.program = Some(env!("CARGO_BIN_EXE_ocelli").into());
    });
    server.assert_serves();
    let graph = |server: &Server| server.get_json("/v1/models/tiny-padded-pool").json["graphs"][0].clone();
    server.wait_until("it has been measured", |server| graph(server)["tuning"].is_object());
    let tuned = graph(&server);
    assert_eq!(tuned["provider"], "cpu", "{tuned}");
    for candidate in tuned["tuning"]["candidates"].as_array().unwrap() {
        assert_eq!(candidate["ruled_out"].is_null(), candidate["provider"] == "cpu", "{candidate}");
    }
    server.assert_serves();
}

#[test]
fn an_int8_graph_is_measured_only_where_that_is_allowed() {
    for allowed in [false, true] {
        let models = models_dir(&[]);
        let folder = models.path().join("tiny");
        copy_fixture("tiny-classifier", &folder);
        // What makes a graph int8 to the server is its name.
        std::fs::copy(folder.join("model.onnx"), folder.join("model_int8.onnx")).unwrap();
        let server = Server::start_in(models, |config| {
            config.model_defaults = ocelli::config::Config::default().model_defaults;
            config.model_defaults.tuning.int8 = allowed;
            // What the server asks itself to be measured by is more than that, and comes in all the same.
            config.model_defaults.max_queue_size = 1;
            config.cache_dir = config.models_dir.join(".cache");
        });
        let graph = |server: &Server| server.get_json("/v1/models/tiny").json["graphs"][0].clone();
        server.wait_until("it has been measured", |server| graph(server)["tuning"].is_object());
        let tuned = graph(&server);
        let candidates = tuned["tuning"]["candidates"].as_array().unwrap();
        assert_eq!(candidates.iter().any(|candidate| candidate["precision"] == "int8"), allowed, "{tuned}");
        assert_eq!(tuned["precision"] == "int8", tuned["file"] == "model_int8.onnx", "{tuned}");
        server.assert_serves();
    }
}

#[test]
fn an_int8_graph_that_cannot_be_used_is_left_out() {
    let other = std::fs::read(fixtures().join("models/tiny-clip/vision_model.onnx")).unwrap();
    for int8 in [&b"broken"[..], &other] {
        let models = models_dir(&[]);
        let folder = models.path().join("tiny");
        copy_fixture("tiny-classifier", &folder);
        std::fs::write(folder.join("model_int8.onnx"), int8).unwrap();
        let server = Server::start_in(models, |config| {
            config.model_defaults = ocelli::config::Config::default().model_defaults;
            config.model_defaults.tuning.int8 = true;
            config.cache_dir = config.models_dir.join(".cache");
        });
        let graph = |server: &Server| server.get_json("/v1/models/tiny").json["graphs"][0].clone();
        server.wait_until("it has been measured", |server| graph(server)["tuning"].is_object());
        assert_ne!(graph(&server)["precision"], "int8");
        server.assert_serves();
    }
}

#[test]
fn a_measurement_that_breaks_off_is_not_kept() {
    let cache = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let server = Server::start_with(&["tiny-classifier"], |config| {
            config.cache_dir = cache.path().to_path_buf();
            config.model_defaults = ocelli::config::Config::default().model_defaults;
            config.program = Some("/bin/false".into());
        });
        let graph = |server: &Server| server.get_json("/v1/models/tiny-classifier").json["graphs"][0].clone();
        server.wait_until("it has been tried", |server| graph(server)["tuning"].is_object());
        let tried = graph(&server);
        assert_eq!(tried["tuning"]["cached"], false, "{tried}");
        assert!(tried["provider_reason"].as_str().unwrap().contains("will measure again"), "{tried}");
        server.assert_serves();
    }
}

fn measured_and_kept(program: Option<&str>) {
    let cache = tempfile::tempdir().unwrap();
    let start = || {
        Server::start_with(&["tiny-classifier", "tiny-clip"], |config| {
            config.cache_dir = cache.path().to_path_buf();
            config.model_defaults = ocelli::config::Config::default().model_defaults;
            config.program = program.map(Into::into);
        })
    };
    let graph =
        |server: &Server, model: &str| server.get_json(&format!("/v1/models/{model}")).json["graphs"][0].clone();
    let server = start();
    server.assert_serves();
    for model in ["tiny-classifier", "tiny-clip"] {
        server.wait_until("it has been measured", |server| {
            server.assert_serves();
            graph(server, model)["tuning"].is_object()
        });
        let tuned = graph(&server, model);
        assert!(tuned["provider_reason"].as_str().unwrap().contains("measured"), "{tuned}");
        let candidates = tuned["tuning"]["candidates"].as_array().unwrap();
        let chosen = |candidate: &&serde_json::Value| {
            ["provider", "precision", "instances", "threads"].iter().all(|key| candidate[key] == tuned[key])
        };
        let chosen = candidates.iter().find(chosen).unwrap_or_else(|| panic!("the choice is no candidate: {tuned}"));
        assert!(chosen["ruled_out"].is_null() && chosen["speeds"][0]["per_second"].as_f64().unwrap() > 0.0, "{chosen}");
    }
    server.assert_serves();
    drop(server);
    let again = start();
    let kept = graph(&again, "tiny-classifier");
    assert_eq!(
        (&kept["tuning"]["cached"], &kept["provider_reason"]),
        (&json!(true), &json!("auto: measured at an earlier start"))
    );
    again.assert_serves();
}

#[test]
fn what_was_asked_for_by_name_is_not_measured() {
    let server = Server::start(&["tiny-classifier"]);
    let graph = server.get_json("/v1/models/tiny-classifier").json["graphs"][0].clone();
    assert!(graph["tuning"].is_null() && graph["provider_reason"] == "asked for", "{graph}");
}
