//! The two default models on real photos. Runs where `scripts/test` has fetched them.

use std::path::{Path, PathBuf};

use reqwest::blocking::multipart::{Form, Part};

use crate::harness::{Answer, Server};

fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A photo, or `None` where the test is to be passed over.
fn photo(name: &str) -> Option<Vec<u8>> {
    std::env::var_os("OCELLI_TEST_DEFAULT_MODELS")?;
    Some(std::fs::read(project().join(".setup/photos").join(name)).unwrap())
}

/// A server with the default models and the settings that a user gets.
fn server() -> Server {
    let models: PathBuf = project().join("models");
    Server::start_with(&[], |config| {
        let defaults = ocelli::config::Config::default();
        config.models_dir = models;
        config.model_defaults = defaults.model_defaults;
        // Measuring would go on behind the test and leave its choice in the user's cache.
        config.model_defaults.tuning.objective = None;
    })
}

#[test]
fn photos_get_the_labels_a_person_would_give() {
    let (Some(coffee), Some(camera), Some(cat)) = (photo("coffee.png"), photo("camera.png"), photo("chelsea.png"))
    else {
        return;
    };
    let server = server();
    let top = |photo: Vec<u8>| {
        let answer = server.post_image("/v1/classify", photo);
        assert_eq!(answer.status, 200, "{answer:?}");
        answer
    };
    let answer = top(coffee);
    assert_eq!((answer.top_label(), answer.json["model"].as_str()), ("espresso", Some("efficientnet-lite0")));
    assert!((0.9..=1.0).contains(&answer.score("espresso")), "{answer:?}");
    let answer = top(camera);
    assert!(answer.top_label() == "tripod" && (0.85..=1.0).contains(&answer.score("tripod")), "{answer:?}");
    let answer = top(cat);
    for prediction in &answer.predictions()[..3] {
        let label = prediction["label"].as_str().unwrap();
        assert!(label.contains("cat") || label.contains("tabby") || label.contains("lynx"), "{answer:?}");
    }
}

#[test]
fn photos_are_told_apart_by_labels_of_the_request() {
    let photos = [
        ("coffee.png", "a cup of coffee"),
        ("chelsea.png", "a cat"),
        ("rocket.jpg", "a rocket"),
        ("flower.jpg", "a flower"),
    ];
    if photo("coffee.png").is_none() {
        return;
    }
    let server = server();
    for (file, wanted) in photos {
        let image = Part::bytes(photo(file).unwrap()).file_name(file);
        let form = photos.iter().fold(Form::new().part("image", image), |form, (_, label)| form.text("labels", *label));
        let answer = Answer::of(server.post("/v1/zero-shot").multipart(form));
        assert_eq!((answer.status, answer.top_label()), (200, wanted), "{file}: {answer:?}");
        assert_eq!(answer.json["model"], "conse-minilm");
    }
}
