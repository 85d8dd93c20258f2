//! Stopping: unready, then no new connections, then what is in flight is answered, all under time limits.

use std::net::TcpStream;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use ocelli::server::Shutdown;

use crate::harness::{PATIENCE, Server, WHITE, fixtures, models_dir, picture, program};

#[test]
fn during_the_grace_the_server_is_unready_and_still_answers() {
    let mut server = Server::start_with(&["tiny-classifier"], |config| config.shutdown.grace = Duration::from_secs(3));
    assert_eq!(server.get("/readyz").send().unwrap().status(), 200);
    server.tell_to_stop(Shutdown::Graceful);
    server.wait_until("the server is unready", |server| server.get("/readyz").send().unwrap().status() == 503);
    server.get_json("/readyz").assert_error(503, "the server is draining");
    assert_eq!(server.get("/livez").send().unwrap().status(), 200);
    server.assert_serves();
    server.join().unwrap();
    assert!(TcpStream::connect(server.address).is_err(), "the port is closed");
}

#[test]
fn a_request_in_flight_is_answered_before_the_server_stops() {
    let mut server = Server::start(&["tiny-slow"]);
    std::thread::scope(|scope| {
        let answer = scope.spawn({
            let request = server.post("/v1/classify").body(picture(WHITE));
            move || request.send().unwrap().status()
        });
        server.wait_until("it is in work", |server| server.metric("ocelli_in_flight_images") == 1.0);
        server.tell_to_stop(Shutdown::Graceful);
        assert_eq!(answer.join().unwrap(), 200);
    });
    server.join().unwrap();
}

#[test]
fn idle_connections_do_not_hold_the_server_up() {
    let mut server = Server::start(&["tiny-classifier"]);
    let idle = server.connect();
    server.assert_serves();
    let started = Instant::now();
    server.tell_to_stop(Shutdown::Prompt);
    server.join().unwrap();
    assert!(started.elapsed() < Duration::from_secs(10));
    drop(idle);
}

#[test]
fn a_straggler_is_named_at_the_time_limit() {
    let mut server = Server::start_with(&["tiny-slow"], |config| config.shutdown.timeout = Duration::from_millis(50));
    let request = server.post("/v1/classify").body(picture(WHITE));
    let client = std::thread::spawn(move || request.send().map(|response| response.status()));
    server.wait_until("it is in work", |server| server.metric("ocelli_in_flight_images") == 1.0);
    // In the run itself, not on the way to it.
    server.wait_until("it has left the queue", |server| {
        server.metric("ocelli_decode_duration_seconds_count{model=\"tiny-slow\"}") == 1.0
            && server.metric("ocelli_queue_depth{model=\"tiny-slow\",graph=\"model\"}") == 0.0
    });
    server.tell_to_stop(Shutdown::Prompt);
    let error = server.join().unwrap_err().to_string();
    assert!(error.contains("shutdown timed out; still at work: tiny-slow/model/0 (in a run for"), "{error}");
    let _ = client.join();
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

#[test]
fn sigterm_answers_what_is_in_flight_and_exits_with_0() {
    let models = models_dir(&["tiny-slow"]);
    let (mut child, address) = program(models.path(), &["--shutdown-grace-ms", "10"]);
    let client = reqwest::blocking::Client::builder().timeout(PATIENCE).build().unwrap();
    let request = client.post(format!("http://{address}/v1/classify")).body(picture(WHITE));
    let answer = std::thread::spawn(move || request.send().unwrap().status());
    let in_flight = || {
        client
            .get(format!("http://{address}/metrics"))
            .send()
            .unwrap()
            .text()
            .unwrap()
            .contains("ocelli_in_flight_images 1\n")
    };
    let start = Instant::now();
    while !in_flight() {
        assert!(start.elapsed() < PATIENCE);
    }
    signal(&child, "-TERM");
    assert_eq!(answer.join().unwrap(), 200);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn ctrl_c_stops_without_grace() {
    let models = models_dir(&["tiny-classifier"]);
    let (mut child, _) = program(models.path(), &["--shutdown-grace-ms", "10"]);
    signal(&child, "-INT");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let models = models_dir(&["tiny-classifier"]);
    let (mut child, address) = program(models.path(), &["--shutdown-grace-ms", "3600000"]);
    signal(&child, "-TERM");
    let ready = || reqwest::blocking::get(format!("http://{address}/readyz")).unwrap().status();
    let start = Instant::now();
    while ready() != 503 {
        assert!(start.elapsed() < PATIENCE);
    }
    signal(&child, "-TERM");
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn a_port_that_is_taken_is_an_error_that_names_it() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = Command::new(env!("CARGO_BIN_EXE_ocelli"))
        .args(["serve", "--listen", &address, "--models-dir"])
        .arg(fixtures().join("models"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains(&format!("cannot listen on {address}")), "{error}");
}
