//! Whatever is sent: a clear error, bounded memory, and the next request is served.

use std::io::{Read, Write};
use std::time::Duration;

use reqwest::blocking::multipart::{Form, Part};
use serde_json::json;

use crate::harness::{Answer, RED, Server, image_fixture, picture};

fn tiny() -> Server {
    Server::start(&["tiny-classifier"])
}

#[test]
fn what_is_no_image_is_told_so() {
    let server = tiny();
    for (body, status, message) in [
        (&b""[..], 400, "there is no image in the request"),
        (b"hello, this is text", 415, "not a JPEG, PNG, WebP, GIF, BMP or TIFF image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "not a JPEG"),
        (b"%PDF-1.7", 415, "not a JPEG"),
        (b"\x89PNG\r\n\x1a\n", 422, "PNG"),
    ] {
        server.post_image("/v1/classify", body).assert_error(status, message);
    }
    server.assert_serves();
}

#[test]
fn images_that_break_off_are_refused() {
    let server = tiny();
    for file in ["420.jpg", "420_progressive.jpg", "rgb8.png", "lossy.webp", "palette.gif", "rgb.bmp", "rgb_lzw.tiff"] {
        let whole = image_fixture(file);
        let answer = server.post_image("/v1/classify", &whole[..whole.len() / 2]);
        answer.assert_error(422, "cannot be decoded");
    }
    server.assert_serves();
}

#[test]
fn sizes_are_judged_before_pixels_are_decoded() {
    let server = tiny();
    let mut gif = image_fixture("palette.gif")[..44].to_vec();
    gif[6..10].fill(0xff);
    server
        .post_image("/v1/classify", gif)
        .assert_error(413, "65535x65535 = 4294836225 pixels, more than the limit of 64000000");
    let mut png = image_fixture("rgb8.png");
    png[16..24].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 16]);
    server.post_image("/v1/classify", png).assert_error(422, "no pixels");
    server.assert_serves();
}

/// A PNG of `side` x `side` pixels whose pixel data inflates to `inflated` bytes of zeros.
fn png_bomb(side: u32, inflated: usize) -> Vec<u8> {
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut chunk = |kind: &[u8; 4], data: &[u8]| {
        png.extend((data.len() as u32).to_be_bytes());
        png.extend(kind);
        png.extend(data);
        let mut crc = flate2::Crc::new();
        crc.update(kind);
        crc.update(data);
        png.extend(crc.sum().to_be_bytes());
    };
    let side = side.to_be_bytes();
    chunk(b"IHDR", &[&side[..], &side, &[8, 2, 0, 0, 0]].concat());
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    let zeros = vec![0; 1 << 20];
    for _ in 0..inflated >> 20 {
        zlib.write_all(&zeros).unwrap();
    }
    chunk(b"IDAT", &zlib.finish().unwrap());
    chunk(b"IEND", &[]);
    png
}

/// The most memory that a process has had resident, in megabytes.
#[cfg(target_os = "linux")]
fn peak(process: &std::process::Child) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() >> 10
}

#[test]
#[cfg(target_os = "linux")]
fn what_grows_without_end_when_it_is_read_costs_no_more_than_its_size() {
    let models = crate::harness::models_dir(&["tiny-classifier"]);
    let (mut child, address) = crate::harness::program(models.path(), &[]);
    let client = reqwest::blocking::Client::new();
    let classify = |kind: &'static str, body: Vec<u8>| {
        let request = client.post(format!("http://{address}/v1/classify")).header("content-type", kind).body(body);
        request.send().unwrap().status().as_u16()
    };
    assert_eq!(classify("image/png", picture(RED)), 200);
    let before = peak(&child);
    let small = png_bomb(8, 1 << 30);
    assert!(small.len() < 2 << 20, "a bomb is small: {}", small.len());
    for _ in 0..3 {
        assert!([200, 422].contains(&classify("image/png", small.clone())));
    }
    assert_eq!(classify("image/png", png_bomb(60_000, 1 << 20)), 413);
    let json = format!("{{\"images\":[{}0]}}", "0,".repeat(9_000_000));
    assert_eq!(classify("application/json", json.into_bytes()), 400);
    let grown = peak(&child) - before;
    assert!(grown < 100, "{grown} MB more after bombs of 1 GB");
    assert_eq!(classify("image/png", picture(RED)), 200);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn bodies_over_the_limit_are_refused_with_both_numbers() {
    let server = Server::start_with(&["tiny-classifier"], |config| config.limits.max_body_bytes = 1_000_000);
    // Announced: refused by its length alone. Chunked: refused when it has grown too large.
    let huge = vec![0; 200_000_000];
    let announced = server.post("/v1/classify").body(huge.clone());
    Answer::of(announced).assert_error(413, "the body has 200000000 bytes, this server takes at most 1000000 bytes");
    let chunked = reqwest::blocking::Body::new(std::io::Cursor::new(huge).take(20_000_000));
    Answer::of(server.post("/v1/classify").body(chunked))
        .assert_error(413, "the body has more, this server takes at most 1000000 bytes");
    server.assert_serves();
}

#[test]
fn json_of_very_many_values_is_refused_before_it_is_read() {
    let server = tiny();
    let body = format!("{{\"images\":[{}0]}}", "0,".repeat(5_000_000));
    let request = server.post("/v1/classify").header("content-type", "application/json").body(body);
    Answer::of(request).assert_error(400, "JSON values");
    server.assert_serves();
}

#[test]
fn nobody_is_told_to_send_a_body_that_is_refused() {
    let server = Server::start_with(&["tiny-classifier"], |config| config.limits.max_body_bytes = 1_000_000);
    let ask = |line: &str, headers: &str| {
        server.exchange(format!("{line} HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\n{headers}\r\n").as_bytes())
    };
    for (line, headers, status) in [
        ("POST /v1/classify", "content-length: 2000000\r\n", 413),
        ("POST /v1/classify", "content-length: 1000\r\naccept: text/html\r\n", 406),
        ("POST /v1/classify", "content-length: 1000\r\nx-request-timeout-ms: soon\r\n", 400),
        ("POST /v1/clasify", "content-length: 1000\r\n", 404),
        ("POST /v1/models", "content-length: 1000\r\n", 405),
    ] {
        let answer = ask(line, headers);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{line} {headers}: {answer}");
    }
    let mut stream = server.connect();
    stream
        .write_all(b"POST /v1/classify HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 9\r\n\r\n")
        .unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 100", "but who may come is");
    server.assert_serves();
}

#[test]
fn bodies_of_any_refused_request_are_read_so_that_the_answer_is() {
    let server = tiny();
    let body = vec![0; 4_000_000];
    let refused = |path: &str, accept: &str| Answer::of(server.post(path).header("accept", accept).body(body.clone()));
    refused("/v1/classify", "text/html").assert_error(406, "which the Accept header excludes");
    refused("/v1/clasify", "*/*").assert_error(404, "there is nothing at /v1/clasify");
    refused("/v1/models", "*/*").assert_error(405, "does not take that method");
    server.assert_serves();
}

#[test]
fn a_name_in_the_path_that_is_no_text_is_an_error_like_others() {
    let server = tiny();
    for path in ["/readyz/%FF", "/v1/models/%FF"] {
        server.get_json(path).assert_error(400, "UTF-8");
    }
}

#[test]
fn a_body_that_trickles_in_gets_408() {
    let server =
        Server::start_with(&["tiny-classifier"], |config| config.limits.body_timeout = Duration::from_millis(200));
    let answer = server
        .exchange(b"POST /v1/classify HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 1000\r\n\r\nstart");
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(
        answer.contains("the body did not arrive within 200 ms") && answer.contains("application/problem+json"),
        "{answer}"
    );
    server.assert_serves();
}

#[test]
fn a_body_that_does_not_arrive_before_the_requests_own_deadline_gets_504() {
    let server =
        Server::start_with(&["tiny-classifier"], |config| config.limits.body_timeout = Duration::from_secs(3600));
    let head = b"POST /v1/classify HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-request-timeout-ms: 200\r\n";
    let answer = server.exchange(&[&head[..], b"content-length: 1000\r\n\r\nstart"].concat());
    assert!(answer.starts_with("HTTP/1.1 504 ") && answer.contains("Deadline exceeded"), "{answer}");
    server.assert_serves();
}

#[test]
fn a_header_that_never_ends_is_cut_off() {
    let server =
        Server::start_with(&["tiny-classifier"], |config| config.limits.idle_timeout = Duration::from_millis(200));
    let mut stream = server.connect();
    stream.write_all(b"POST /v1/classify HTTP/1.1\r\nx-slow: ").unwrap();
    let mut rest = Vec::new();
    let end = stream.read_to_end(&mut rest);
    assert!(end.is_ok() || end.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset));
    server.assert_serves();
}

#[test]
fn parameters_of_a_wrong_type_are_named() {
    let server = tiny();
    for (query, message) in [
        ("top_k=0", "top_k must be at least 1, not 0"),
        ("top_k=-1", "top_k must be at least 1, not -1"),
        ("top_k=five", "top_k must be a whole number, not \"five\""),
        ("top_k=2.5", "top_k must be a whole number"),
        ("top_k=1&top_k=2", "top_k is given 2 times"),
        ("function_to_apply=tanh", "function_to_apply must be one of softmax, sigmoid, none"),
        ("function_to_apply=default", "function_to_apply must be one of"),
        ("topk=3", "there is no parameter 'topk'; there are: model, top_k, function_to_apply"),
        ("labels=cat", "there is no parameter 'labels'"),
    ] {
        server.post_image(&format!("/v1/classify?{query}"), picture(RED)).assert_error(400, message);
    }
    server.assert_serves();
}

#[test]
fn json_that_is_wrong_is_told_what_and_where() {
    let server = tiny();
    for (body, status, message) in [
        (json!([1, 2]), 400, "the body must be a JSON object"),
        (json!({}), 400, "there is no image in the request"),
        (json!({"image": 7}), 400, "image must be a text in base64"),
        (json!({"image": "%%%"}), 400, "image is not base64"),
        (json!({"image": "https://example.com/cat.jpg"}), 400, "a URL, which this server does not fetch"),
        (json!({"image": "data:image/png,abc"}), 400, "a data: URI without base64"),
        (json!({"images": "abcd"}), 400, "images must be a list of texts in base64"),
        (json!({"images": ["aGVsbG8gd29ybGQ=", 3]}), 400, "images[1] must be a text in base64"),
        (json!({"images": []}), 400, "there is no image in the request"),
        (json!({"image": "aGVsbG8gd29ybGQ="}), 415, "not a JPEG"),
        (json!({"image": "aGVsbG8gd29ybGQ=", "top_k": "5"}), 400, "top_k must be a whole number"),
        (json!({"image": "aGVsbG8gd29ybGQ=", "model": ["a"]}), 400, "model must be a text"),
    ] {
        server.post_json("/v1/classify", &body).assert_error(status, message);
    }
    let broken = server.post("/v1/classify").header("content-type", "application/json").body("{\"image\": ");
    Answer::of(broken).assert_error(400, "the body is not JSON");
    server.assert_serves();
}

#[test]
fn one_bad_image_of_several_fails_the_request_and_is_named() {
    let server = tiny();
    let file = |bytes: Vec<u8>| Part::bytes(bytes).file_name("a.png");
    let form = Form::new().part("a", file(picture(RED))).part("b", file(b"no image at all".to_vec()));
    Answer::of(server.post("/v1/classify").multipart(form)).assert_error(415, "images[1]: the bytes are not a JPEG");
    server.assert_serves();
}

#[test]
fn forms_that_are_no_forms_are_refused() {
    let server = tiny();
    let form = |body: &'static str| {
        server.post("/v1/classify").header("content-type", "multipart/form-data; boundary=x").body(body)
    };
    for body in
        ["", "nothing", "--x\r\ncontent-disposition: form-data; name=\"image\"; filename=\"a\"\r\n\r\nbroken off"]
    {
        Answer::of(form(body)).assert_error(400, "the multipart form cannot be read");
    }
    Answer::of(form("--x--\r\n")).assert_error(400, "there is no image in the request");
    let without_boundary = server.post("/v1/classify").header("content-type", "multipart/form-data").body("x");
    Answer::of(without_boundary).assert_error(400, "the multipart form cannot be read");
    let field = "--x\r\ncontent-disposition: form-data; name=\"labels\"\r\n\r\na\r\n";
    let many = server.post("/v1/classify").header("content-type", "multipart/form-data; boundary=x");
    let many = many.body(field.repeat(5000) + "--x--\r\n");
    Answer::of(many).assert_error(400, "the form has more than 1228 fields");
    server.assert_serves();
}

#[test]
fn too_many_images_in_one_request_are_refused() {
    let server = Server::start_with(&["tiny-classifier"], |config| config.limits.max_images = 2);
    let images = json!({"images": vec!["aGVsbG8gd29ybGQ="; 3]});
    server
        .post_json("/v1/classify", &images)
        .assert_error(400, "the request has 3 images, this server takes at most 2");
}

#[test]
fn unknown_models_and_paths_are_answered_with_what_there_is() {
    let server = tiny();
    server
        .post_image("/v1/classify?model=vit", picture(RED))
        .assert_error(404, "there is no model 'vit'; there are: tiny-classifier");
    server.get_json("/v1/models/vit").assert_error(404, "there are: tiny-classifier");
    server.get_json("/nowhere").assert_error(404, "there is nothing at /nowhere");
    let wrong_method = server.get_json("/v1/classify");
    wrong_method.assert_error(405, "the Allow header");
    assert_eq!(wrong_method.header("allow"), "POST");
}

#[test]
fn an_accept_header_that_excludes_json_gets_406() {
    let server = tiny();
    let ask = |accept: &str| Answer::of(server.post("/v1/classify").header("accept", accept).body(picture(RED)));
    ask("text/html").assert_error(406, "answers are application/json");
    assert_eq!(ask("text/html, */*;q=0.1").status, 200);
}

#[test]
fn what_is_not_http_gets_an_answer_or_a_closed_connection() {
    let server = tiny();
    for bytes in [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], b"GET\r\n\r\n", b"\0\0\0\0\r\n\r\n"] {
        let answer = server.exchange(bytes);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }
    server.assert_serves();
}

#[test]
fn a_run_that_fails_is_500_without_its_cause_and_fails_alone() {
    let server = Server::start(&["tiny-fragile"]);
    let failed = server.post_image("/v1/classify", picture(crate::harness::WHITE));
    failed.assert_error(500, "its log has the cause under this request's id");
    assert!(!failed.json.to_string().contains("onnx"), "the cause stays in the log: {failed:?}");
    server.assert_serves();
}
