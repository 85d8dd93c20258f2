//! A server on a port of its own with the models a test names, and the pictures that its requests bring.

use std::io::{BufRead, BufReader, Cursor, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use image::{ImageFormat, Rgb, RgbImage};
use ocelli::config::Config;
use ocelli::models::{ModelInfo, Registry};
use ocelli::runtime::{ExecutionProvider, Precision};
use ocelli::server::{self, ServerError, Shutdown};
use reqwest::blocking::{Client, RequestBuilder, Response};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// Longer than anything takes that works at all.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A running server. Dropping it stops it.
pub struct Server {
    pub address: SocketAddr,
    client: Client,
    stop: Option<oneshot::Sender<Shutdown>>,
    thread: Option<JoinHandle<Result<(), ServerError>>>,
    _models_dir: tempfile::TempDir,
}

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// A models folder with links to the named fixture models.
pub fn models_dir(models: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for model in models {
        let fixture = fixtures().join("models").join(model);
        let name = fixture.file_name().unwrap();
        std::os::unix::fs::symlink(&fixture, folder.path().join(name)).unwrap();
    }
    folder
}

/// A copy of a fixture model.
pub fn copy_fixture(model: &str, folder: &Path) {
    std::fs::create_dir(folder).unwrap();
    for entry in std::fs::read_dir(fixtures().join("models").join(model)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
    }
}

/// A configuration that gives the reference's answers and does not linger at its end.
pub fn config(models_dir: &Path) -> Config {
    let mut config = Config { models_dir: models_dir.to_path_buf(), ..Config::default() };
    config.shutdown.grace = Duration::ZERO;
    config.cache_dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache");
    config.model_defaults.device = Some(ExecutionProvider::Cpu);
    config.model_defaults.precision = Some(Precision::F32);
    config.model_defaults.threads = Some(1);
    config.model_defaults.tuning.objective = None;
    config
}

impl Server {
    /// Serves the named fixture models; returns when each is ready or has failed.
    pub fn start(models: &[&str]) -> Self {
        Self::start_with(models, |_| {})
    }

    /// As [`Self::start`], with other settings.
    pub fn start_with(models: &[&str], change: impl FnOnce(&mut Config)) -> Self {
        Self::start_in(models_dir(models), change)
    }

    /// As [`Self::start_with`], for the models of a folder.
    pub fn start_in(models_dir: tempfile::TempDir, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = config(models_dir.path());
        change(&mut config);
        let (ready, is_ready) = mpsc::channel();
        let server = Self::spawn(config, models_dir, move |_| ready.send(()).unwrap());
        is_ready.recv_timeout(PATIENCE).expect("the models load");
        server
    }

    /// Starts a server and returns at once; `on_ready` is called when its models have loaded.
    pub fn spawn(
        config: Config,
        models_dir: tempfile::TempDir,
        on_ready: impl FnOnce(&Registry) + Send + 'static,
    ) -> Self {
        let (stop, stopped) = oneshot::channel();
        let (bound, address) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            let result = runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                bound.send(listener.local_addr().unwrap()).unwrap();
                let shutdown = async { stopped.await.unwrap_or(Shutdown::Prompt) };
                server::run(config, listener, shutdown, on_ready).await
            });
            runtime.shutdown_background();
            result
        });
        let client = Client::builder().timeout(PATIENCE).build().unwrap();
        let address = address.recv_timeout(PATIENCE).unwrap();
        Self { address, client, stop: Some(stop), thread: Some(thread), _models_dir: models_dir }
    }

    pub fn get(&self, path: &str) -> RequestBuilder {
        self.client.get(format!("http://{}{path}", self.address))
    }

    pub fn post(&self, path: &str) -> RequestBuilder {
        self.client.post(format!("http://{}{path}", self.address))
    }

    /// Posts an image's bytes.
    pub fn post_image(&self, path: &str, image: impl Into<Vec<u8>>) -> Answer {
        Answer::of(self.post(path).body(image.into()))
    }

    /// Posts a JSON body.
    pub fn post_json(&self, path: &str, body: &Value) -> Answer {
        Answer::of(self.post(path).json(body))
    }

    /// Gets a JSON document.
    pub fn get_json(&self, path: &str) -> Answer {
        Answer::of(self.get(path))
    }

    /// What `GET /v1/models/{name}` says, as far as tests compare it.
    pub fn state_of(&self, model: &str) -> String {
        self.get_json(&format!("/v1/models/{model}")).json["state"].as_str().unwrap().to_owned()
    }

    /// A metric's value, by its name and labels as `/metrics` writes them; 0 if it has not been counted yet.
    pub fn metric(&self, name_and_labels: &str) -> f64 {
        let text = self.get("/metrics").send().unwrap().text().unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name_and_labels)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Waits until `condition` holds.
    pub fn wait_until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !condition(self) {
            assert!(start.elapsed() < PATIENCE, "{what} has not come true");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The server still does its work: the question after every attack.
    pub fn assert_serves(&self) {
        let answer = self.post_image("/v1/classify", picture(RED));
        assert_eq!((answer.status, answer.top_label()), (200, "red"), "{:?}", answer.json);
    }

    /// A bare connection, for what a well-behaved client would not send.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Sends bytes as they are and reads until the server closes.
    pub fn exchange(&self, request: &[u8]) -> String {
        let mut stream = self.connect();
        stream.write_all(request).unwrap();
        let mut answer = Vec::new();
        // A reset after the answer is as good as an end.
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Tells the server to stop.
    pub fn tell_to_stop(&mut self, how: Shutdown) {
        let _ = self.stop.take().unwrap().send(how);
    }

    /// Waits until the server has stopped.
    pub fn join(&mut self) -> Result<(), ServerError> {
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(Shutdown::Prompt);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A JSON answer, with what tests look at.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub json: Value,
}

impl Answer {
    pub fn of(request: RequestBuilder) -> Self {
        Self::read(request.send().unwrap())
    }

    fn read(response: Response) -> Self {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().unwrap();
        let json = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Self { status, headers, json }
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The predictions of the first image.
    pub fn predictions(&self) -> &[Value] {
        self.json["results"][0]["predictions"].as_array().unwrap_or_else(|| panic!("no predictions in {self:?}"))
    }

    pub fn top_label(&self) -> &str {
        self.predictions()[0]["label"].as_str().unwrap()
    }

    /// The score of `label` for the first image.
    pub fn score(&self, label: &str) -> f64 {
        let found = self.predictions().iter().find(|prediction| prediction["label"] == label);
        found.unwrap_or_else(|| panic!("no {label} in {self:?}"))["score"].as_f64().unwrap()
    }

    /// Asserts an error answer: its status, a part of its message, and the shape that all errors have.
    #[track_caller]
    pub fn assert_error(&self, status: u16, message: &str) {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.header("content-type"), "application/problem+json", "{self:?}");
        let text = |key: &str| self.json[key].as_str().unwrap_or_else(|| panic!("no text '{key}' in {self:?}"));
        assert!(text("detail").contains(message), "'{message}' is not in '{}'", text("detail"));
        assert_eq!(text("error"), text("detail"));
        assert_eq!(text("type"), "about:blank");
        assert!(!text("title").is_empty());
        assert_eq!(self.json["status"], status);
        assert_eq!(text("request_id"), self.header("x-request-id"));
    }
}

/// The real program, about to serve a models folder on a free port, its JSON log on standard error.
pub fn serve_command(models: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ocelli"));
    command.args(["serve", "--listen", "127.0.0.1:0", "--device", "cpu", "--tune", "off", "--log-format", "json"]);
    command.arg("--models-dir").arg(models).current_dir(env!("CARGO_MANIFEST_DIR")).stderr(Stdio::piped());
    command
}

/// The real program, serving a models folder, and its address.
pub fn program(models: &Path, arguments: &[&str]) -> (Child, String) {
    started(serve_command(models).args(arguments))
}

/// The program that `command` starts, once its models are loaded, and its address.
pub fn started(command: &mut Command) -> (Child, String) {
    let (child, address, mut log) = started_without_reader(command);
    // Read on, so that no line is dropped.
    std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
    (child, address)
}

/// The same, and its log, which nobody reads on.
pub fn started_without_reader(command: &mut Command) -> (Child, String, BufReader<ChildStderr>) {
    let mut child = command.spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut address = None;
    let mut line = String::new();
    while log.read_line(&mut line).unwrap() > 0 {
        let event: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("not JSON: {line}"));
        if event["message"] == "models are loaded" {
            address = event["address"].as_str().map(str::to_owned);
            break;
        }
        line.clear();
    }
    (child, address.expect("the log tells where the server listens"), log)
}

pub const RED: [u8; 3] = [255, 0, 0];
pub const GREEN: [u8; 3] = [0, 255, 0];
pub const BLUE: [u8; 3] = [0, 0, 255];
pub const BLACK: [u8; 3] = [0, 0, 0];
pub const WHITE: [u8; 3] = [255, 255, 255];

/// A PNG of one colour.
pub fn picture(colour: [u8; 3]) -> Vec<u8> {
    encoded(&RgbImage::from_pixel(16, 12, Rgb(colour)), ImageFormat::Png)
}

pub fn encoded(image: &RgbImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// An encoded image of the preprocessing fixtures.
pub fn image_fixture(file: &str) -> Vec<u8> {
    std::fs::read(fixtures().join("preprocess/images").join(file)).unwrap()
}

/// The provider in use and the arithmetic of each graph of a model.
pub fn providers(info: &ModelInfo) -> Vec<(ExecutionProvider, Precision)> {
    info.graphs.iter().map(|graph| (graph.provider, graph.precision)).collect()
}
