//! Probes: alive at once, ready when every model is warm.

use std::sync::mpsc;

use crate::harness::{RED, Server, config, models_dir, picture};

#[test]
fn the_server_is_alive_while_models_load_and_ready_when_they_are_warm() {
    let folder = models_dir(&["tiny-classifier", "tiny-clip"]);
    let (reached, loaded) = mpsc::channel();
    let (release, go_on) = mpsc::channel::<()>();
    let server = Server::spawn(config(folder.path()), folder, move |_| {
        reached.send(()).unwrap();
        // Holds the loading thread; readiness must not depend on it any more.
        let _ = go_on.recv();
    });
    assert_eq!(server.get("/livez").send().unwrap().status(), 200);
    loaded.recv_timeout(crate::harness::PATIENCE).unwrap();
    for path in ["/readyz", "/health", "/readyz/tiny-classifier", "/readyz/tiny-clip"] {
        assert_eq!(server.get(path).send().unwrap().status(), 200, "{path}");
    }
    drop(release);
    server.get_json("/readyz/vit").assert_error(404, "there is no model 'vit'");
}

#[test]
fn a_model_that_cannot_load_is_named_and_the_others_answer() {
    let folder = models_dir(&["tiny-classifier"]);
    std::fs::create_dir(folder.path().join("empty")).unwrap();
    let broken = folder.path().join("broken");
    std::fs::create_dir(&broken).unwrap();
    for file in ["config.json", "preprocessor_config.json"] {
        std::fs::copy(crate::harness::fixtures().join("models/tiny-classifier").join(file), broken.join(file)).unwrap();
    }
    std::fs::write(broken.join("model.onnx"), "this is no graph").unwrap();
    let (ready, is_ready) = mpsc::channel();
    let server = Server::spawn(config(folder.path()), folder, move |_| ready.send(()).unwrap());
    is_ready.recv_timeout(crate::harness::PATIENCE).unwrap();
    let readiness = server.get_json("/readyz");
    readiness.assert_error(503, "empty is failed (config.json: is missing");
    readiness.assert_error(503, "broken is failed (");
    assert_eq!(readiness.header("retry-after"), "1");
    assert_eq!(server.get("/readyz/tiny-classifier").send().unwrap().status(), 200);
    assert_eq!(server.state_of("broken"), "failed");
    let refused = server.post_image("/v1/classify?model=broken", picture(RED));
    refused.assert_error(503, "the model 'broken' is failed");
    assert_eq!(refused.header("retry-after"), "1");
    let answer = server.post_image("/v1/classify?model=tiny-classifier", picture(RED));
    assert_eq!((answer.status, answer.top_label()), (200, "red"));
    assert_eq!(server.metric("ocelli_model_ready{model=\"broken\"}"), 0.0);
    assert_eq!(server.metric("ocelli_model_ready{model=\"tiny-classifier\"}"), 1.0);
}

#[test]
fn full_queues_do_not_make_the_server_unready() {
    let server = Server::start_with(&["tiny-slow"], |config| config.limits.max_in_flight = 1);
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| server.post_image("/v1/classify", picture(crate::harness::WHITE)));
        server.wait_until("the image is in work", |server| server.metric("ocelli_in_flight_images") == 1.0);
        assert_eq!(server.get("/readyz").send().unwrap().status(), 200);
        assert_eq!(server.get("/livez").send().unwrap().status(), 200);
        assert_eq!(busy.join().unwrap().status, 200);
    });
}
