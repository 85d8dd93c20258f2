//! Metrics as Prometheus reads them, and logs that tell of requests without telling their secrets.

use std::io::Read;
use std::process::Command;

use crate::harness::{RED, Server, models_dir, picture, serve_command, started_without_reader};

#[test]
fn requests_are_counted_by_endpoint_model_and_status() {
    let server = Server::start(&["tiny-classifier", "tiny-clip"]);
    server.assert_serves();
    server.post_image("/v1/classify", b"text".to_vec());
    server.post_image("/v1/zero-shot?labels=red", picture(RED));
    server.post_image("/v1/classify?model=made-up-by-the-client", picture(RED));
    server.get_json("/made/up/by/the/client");
    for (labels, count) in [
        ("endpoint=\"/v1/classify\",model=\"tiny-classifier\",status=\"200\"", 1.0),
        ("endpoint=\"/v1/classify\",model=\"tiny-classifier\",status=\"415\"", 1.0),
        ("endpoint=\"/v1/zero-shot\",model=\"tiny-clip\",status=\"200\"", 1.0),
        ("endpoint=\"/v1/classify\",model=\"\",status=\"404\"", 1.0),
        ("endpoint=\"other\",model=\"\",status=\"404\"", 1.0),
    ] {
        assert_eq!(server.metric(&format!("ocelli_requests_total{{{labels}}}")), count, "{labels}");
    }
    let text = server.get("/metrics").send().unwrap().text().unwrap();
    assert!(!text.contains("made"), "clients make no labels:\n{text}");
}

#[test]
fn every_stage_is_timed_per_model() {
    let server = Server::start(&["tiny-classifier"]);
    server.assert_serves();
    for name in [
        "ocelli_request_duration_seconds_count{model=\"tiny-classifier\"}",
        "ocelli_decode_duration_seconds_count{model=\"tiny-classifier\"}",
        "ocelli_queue_duration_seconds_count{model=\"tiny-classifier\",graph=\"model\"}",
        "ocelli_inference_duration_seconds_count{model=\"tiny-classifier\",graph=\"model\"}",
        "ocelli_batch_size_count{model=\"tiny-classifier\",graph=\"model\"}",
        "ocelli_batch_size_bucket{le=\"1.0\",model=\"tiny-classifier\",graph=\"model\"}",
    ] {
        assert_eq!(server.metric(name), 1.0, "{name}");
    }
    let response = server.get("/metrics").send().unwrap();
    assert!(response.headers()["content-type"].to_str().unwrap().starts_with("application/openmetrics-text"));
    assert!(response.text().unwrap().ends_with("# EOF\n"));
}

#[test]
fn the_log_has_the_request_id_and_no_secret() {
    let models = models_dir(&["tiny-classifier"]);
    let mut child = serve_command(models.path()).args(["--log-level", "trace"]).spawn().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let (found, address) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let (mut log, mut buffer) = (String::new(), [0; 8192]);
        loop {
            let length = stderr.read(&mut buffer).unwrap();
            if length == 0 {
                return log;
            }
            log.push_str(&String::from_utf8_lossy(&buffer[..length]));
            if let Some(line) = log.lines().find(|line| line.contains("\"models are loaded\"") && line.ends_with('}')) {
                let event: serde_json::Value = serde_json::from_str(line).unwrap();
                let _ = found.send(event["address"].as_str().unwrap().to_owned());
            }
        }
    });
    let address = address.recv_timeout(crate::harness::PATIENCE).unwrap();
    let client = reqwest::blocking::Client::new();
    let request = client.post(format!("http://{address}/v1/classify?top_k=1"));
    let request =
        request.header("authorization", "Bearer hf_secret").header("x-request-id", "find-me").body(picture(RED));
    assert_eq!(request.send().unwrap().status(), 200);
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    child.wait().unwrap();
    let log = reader.join().unwrap();
    let line = log.lines().find(|line| line.contains("find-me") && line.contains("\"status\":200"));
    let event: serde_json::Value = serde_json::from_str(line.expect("the request is in the log")).unwrap();
    assert_eq!((&event["model"], &event["path"]), (&"tiny-classifier".into(), &"/v1/classify".into()));
    assert!(!log.contains("hf_secret"), "the token is in the log");
}

#[test]
fn a_log_that_nobody_reads_stops_no_request() {
    let models = models_dir(&["tiny-classifier"]);
    let (mut child, address, log) = started_without_reader(&mut serve_command(models.path()));
    let client = reqwest::blocking::Client::new();
    // A pipe holds 64 KiB, and a line is longer than 100 bytes.
    for _ in 0..1000 {
        let answer = client.post(format!("http://{address}/v1/classify")).body("no image").send().unwrap();
        assert_eq!(answer.status(), 415);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    drop(log);
}
