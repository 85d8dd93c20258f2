//! More than the server can do: 429 at once, deadlines kept, nothing computed for clients that have left.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::{Answer, BLACK, RED, Server, WHITE, models_dir, picture, serve_command, started};

fn slow() -> Server {
    Server::start_with(&["tiny-slow"], |config| {
        config.limits.max_in_flight = 2;
        config.model_defaults.batch_policy.max_batch_size = 1;
    })
}

fn in_flight(server: &Server) -> f64 {
    server.metric("ocelli_in_flight_images")
}

#[test]
fn images_beyond_the_limit_get_429_and_a_time_to_retry() {
    let server = slow();
    std::thread::scope(|scope| {
        let busy: Vec<_> = (0..2).map(|_| scope.spawn(|| server.post_image("/v1/classify", picture(WHITE)))).collect();
        server.wait_until("both are in work", |server| in_flight(server) == 2.0);
        let refused = server.post_image("/v1/classify", picture(BLACK));
        refused.assert_error(429, "2 images are in work, as many as may be");
        assert_eq!(refused.header("retry-after"), "1");
        for busy in busy {
            assert_eq!(busy.join().unwrap().status, 200, "what was admitted is answered");
        }
    });
    server.assert_serves();
}

#[test]
fn a_request_with_more_images_than_there_is_room_for_gets_429() {
    let server = slow();
    let images = serde_json::json!({"images": vec!["aGVsbG8gd29ybGQ="; 3]});
    server.post_json("/v1/classify", &images).assert_error(429, "2 images are in work, as many as may be");
    server.assert_serves();
}

#[test]
fn bodies_together_stay_within_the_memory_set_aside_for_them() {
    let server = Server::start_with(&["tiny-classifier"], |config| {
        config.limits.max_buffered_bytes = 100_000;
        config.limits.max_body_bytes = 90_000;
    });
    let mut first = server.connect();
    first.write_all(b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-length: 80000\r\n\r\n").unwrap();
    first.write_all(&[0; 60_000]).unwrap();
    server.wait_until("the first body is held", |server| server.metric("ocelli_buffered_body_bytes") == 60_000.0);
    server.post_image("/v1/classify", vec![0; 50_000]).assert_error(429, "fill the memory set aside");
    drop(first);
    server.wait_until("its memory is given back", |server| server.metric("ocelli_buffered_body_bytes") == 0.0);
    server.assert_serves();
}

#[test]
fn a_deadline_that_passes_is_504_and_the_work_is_not_done() {
    let server = slow();
    let started = Instant::now();
    let request = server.post("/v1/classify").header("x-request-timeout-ms", "100").body(picture(WHITE));
    Answer::of(request).assert_error(504, "the deadline passed while the work was queued or running");
    assert!(started.elapsed() < Duration::from_secs(20), "the client did not wait for the run");
    let bad = server.post("/v1/classify").header("x-request-timeout-ms", "soon").body(picture(RED));
    Answer::of(bad).assert_error(400, "x-request-timeout-ms must be a whole number");
    server.assert_serves();
}

#[test]
fn a_job_whose_client_has_left_is_dropped_from_the_queue() {
    let server = Server::start_with(&["tiny-slow"], |config| config.model_defaults.batch_policy.max_batch_size = 1);
    let dropped = "ocelli_jobs_dropped_total{model=\"tiny-slow\",graph=\"model\",reason=\"client_gone\"}";
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| server.post_image("/v1/classify", picture(WHITE)));
        server.wait_until("the worker is busy", |server| in_flight(server) == 1.0);
        let body = picture(WHITE);
        let mut leaver = server.connect();
        let head = format!("POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
        leaver.write_all(&[head.as_bytes(), &body].concat()).unwrap();
        server.wait_until("the second image waits", |server| in_flight(server) == 2.0);
        drop(leaver);
        assert_eq!(busy.join().unwrap().status, 200);
    });
    server.wait_until("nothing is in flight", |server| in_flight(server) == 0.0);
    assert_eq!(server.metric(dropped), 1.0, "its image was not computed");
    let log_status = server.metric("ocelli_requests_total{endpoint=\"/v1/classify\",model=\"\",status=\"499\"}");
    assert_eq!(log_status, 1.0, "a client that left is counted as such");
    server.assert_serves();
}

#[test]
fn a_full_queue_answers_429() {
    let server = Server::start_with(&["tiny-slow"], |config| {
        config.model_defaults.batch_policy.max_batch_size = 1;
        config.model_defaults.max_queue_size = 1;
    });
    std::thread::scope(|scope| {
        let clients: Vec<_> =
            (0..6).map(|_| scope.spawn(|| server.post_image("/v1/classify", picture(WHITE)).status)).collect();
        let statuses: Vec<u16> = clients.into_iter().map(|client| client.join().unwrap()).collect();
        assert!(statuses.contains(&200) && statuses.contains(&429), "{statuses:?}");
        assert!(statuses.iter().all(|status| [200, 429].contains(status)), "{statuses:?}");
    });
    server.assert_serves();
}

#[test]
fn connections_beyond_the_limit_wait_for_their_turn() {
    let server = Server::start_with(&["tiny-classifier"], |config| config.limits.max_connections = 2);
    let (one, two) = (server.connect(), server.connect());
    server_sees(&one);
    server_sees(&two);
    let third = std::thread::scope(|scope| {
        let third = scope.spawn(|| server.post_image("/v1/classify", picture(RED)).status);
        std::thread::sleep(Duration::from_millis(200));
        assert!(!third.is_finished(), "there is no place for it");
        drop((one, two));
        third.join().unwrap()
    });
    assert_eq!(third, 200);
}

#[test]
fn a_client_that_does_not_read_its_answers_loses_its_connection() {
    let server = Server::start_with(&["tiny-classifier"], |config| {
        config.limits.max_connections = 1;
        config.limits.idle_timeout = Duration::from_millis(300);
    });
    let mut stream = server.connect();
    // More than the system holds for both ends.
    stream.write_all("GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nhost: x\r\n\r\n".repeat(40).as_bytes()).unwrap();
    server.assert_serves();
}

/// Asks something, so that the connection has certainly been accepted.
fn server_sees(mut stream: &std::net::TcpStream) {
    use std::io::Read;
    stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
}

#[cfg(target_os = "linux")]
#[test]
fn more_connections_may_be_open_than_a_shell_allows_at_first() {
    let models = models_dir(&["tiny-classifier"]);
    let serve = serve_command(models.path());
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -Sn 100 && exec \"$0\" \"$@\""]).arg(serve.get_program()).args(serve.get_args());
    let (mut child, _) = started(limited.current_dir(env!("CARGO_MANIFEST_DIR")).stderr(Stdio::piped()));
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", child.id())).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let allowed: u64 = files.split_whitespace().nth(3).unwrap().parse().unwrap();
    assert!(allowed > 100, "{files}");
}
