//! The program's commands as a user types them.

use std::path::Path;
use std::process::{Command, Output};

use crate::harness::{RED, fixtures, models_dir, picture};

fn ocelli(models: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ocelli"));
    command
        .args(["--device", "cpu", "--models-dir"])
        .arg(models)
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn classify_prints_labels_for_files_and_counts_what_fails() {
    let models = models_dir(&["tiny-classifier", "tiny-clip"]);
    let red = models.path().join("red.png");
    std::fs::write(&red, picture(RED)).unwrap();
    let red = red.to_str().unwrap();
    let output = ocelli(models.path(), &["classify", red, "--top-k", "2"]);
    let lines: Vec<String> = text(&output.stdout).lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), 3, "{output:?}");
    assert!(lines[0] == red && lines[1].ends_with("  red"), "{lines:?}");
    let output = ocelli(
        models.path(),
        &["classify", "--json", "--labels", "green", "red", "--template", "a photo of a {}", "--", red],
    );
    let line: serde_json::Value = serde_json::from_str(&text(&output.stdout)).unwrap();
    assert_eq!(line["predictions"][0]["label"], "red");
    let output = ocelli(models.path(), &["classify", "/nowhere.png", red]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("/nowhere.png: ") && text(&output.stdout).contains("  red"), "{output:?}");
}

#[test]
fn models_tells_what_is_there_and_what_is_wrong() {
    let models = models_dir(&["tiny-classifier"]);
    let output = ocelli(models.path(), &["models"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(text(&output.stdout).starts_with("tiny-classifier: ready\n"), "{output:?}");
    std::fs::create_dir(models.path().join("empty")).unwrap();
    let output = ocelli(models.path(), &["models"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("empty: failed\n  wrong      config.json: is missing"), "{output:?}");
}

#[test]
fn bench_prints_what_preprocessing_and_inference_cost() {
    let models = models_dir(&["tiny-classifier", "tiny-clip"]);
    let red = models.path().join("red.png");
    std::fs::write(&red, picture(RED)).unwrap();
    let bench = |arguments: &[&str]| {
        let common = ["bench", "--tune", "off", "--seconds", "0.001", "--largest-batch", "3", red.to_str().unwrap()];
        let output = ocelli(models.path(), &[&common, arguments].concat());
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
    };
    let answer = bench(&["--model", "tiny-clip"]);
    assert_eq!(answer["model"], "tiny-clip");
    let report = &answer["report"];
    assert_eq!(report["graph"]["file"], "vision_model.onnx");
    let positive = |value: &serde_json::Value| value.as_f64().is_some_and(|value| value > 0.0);
    let preprocessing = &report["preprocessing"][0];
    for key in ["bytes", "wall_ms", "cpu_ms", "cpu_ms_all_cores"] {
        assert!(positive(&preprocessing[key]), "{key} in {preprocessing}");
    }
    let costs = report["inference"].as_array().unwrap();
    for cost in costs {
        assert!(["cpu_ms", "run_ms", "fastest_ms", "per_second"].iter().all(|key| positive(&cost[key])), "{cost}");
    }
    let whole = costs.iter().filter(|cost| cost["instances"] == 1 && cost["threads"] == report["cores"]);
    assert_eq!(whole.map(|cost| cost["batch_size"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2, 3]);

    let in_turns = ["--rounds", "2", "--batch-size", "2", "--with-preprocessing"];
    let answer = bench(&[&["--way", "cpu,f32,2,1", "--way", "cpu,bf16,1,1"], &in_turns[..]].concat());
    assert_eq!(answer["model"], "tiny-classifier", "the default classifier");
    let report = &answer["report"];
    let [cost] = &report["inference"].as_array().unwrap()[..] else { panic!("{report}") };
    assert_eq!((&cost["instances"], &cost["batch_size"]), (&2.into(), &2.into()));
    assert!(positive(&cost["served_per_second"]) && cost["runs"].as_u64() >= Some(2 * 2 * 3), "{cost}");
    let failure = &report["failures"][0];
    assert_eq!(failure["precision"], "bf16");
    assert!(failure["reason"].as_str().unwrap().contains("the cpu provider computes in f32"), "{failure}");
}

#[test]
fn mistakes_of_configuration_are_reported_all_at_once() {
    let output =
        ocelli(&fixtures().join("models"), &["serve", "--max-images", "0", "--precision", "f8", "--listen", "here"]);
    assert_eq!(output.status.code(), Some(2));
    let error = text(&output.stderr);
    for expected in ["the configuration has 3 mistake(s)", "max_images: ", "precision: ", "listen: "] {
        assert!(error.contains(expected), "'{expected}' is not in:\n{error}");
    }
}

#[test]
fn a_library_that_is_missing_or_is_none_says_what_to_run() {
    let models = models_dir(&["tiny-classifier"]);
    let not_a_library = models.path().join("libonnxruntime.so");
    std::fs::write(&not_a_library, "text").unwrap();
    for library in ["/nowhere", not_a_library.to_str().unwrap()] {
        let output = ocelli(models.path(), &["models", "--onnxruntime", library]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let error = text(&output.stderr);
        assert!(error.contains(library), "{error}");
    }
}

#[test]
fn settings_come_from_variables_and_files_too() {
    let models = models_dir(&["tiny-classifier"]);
    let file = models.path().join("ocelli.toml");
    std::fs::write(&file, "max_batch_size = 2\n[models.tiny-classifier]\ninstances = 2\n").unwrap();
    let run = |variables: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ocelli"));
        command
            .args(["models", "--device", "cpu", "--tune", "off", "--models-dir"])
            .arg(models.path())
            .arg("--config")
            .arg(&file);
        let output = command.envs(variables.iter().copied()).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
        text(&output.stdout)
    };
    assert!(run(&[]).contains("2 instance(s)") && run(&[]).contains("batches up to 2"), "{}", run(&[]));
    let with_variable = run(&[("OCELLI_MAX_BATCH_SIZE", "3")]);
    assert!(with_variable.contains("batches up to 3"), "a variable beats the file: {with_variable}");
}

#[test]
fn the_openapi_command_prints_the_committed_document() {
    let output = Command::new(env!("CARGO_BIN_EXE_ocelli")).arg("openapi").output().unwrap();
    let committed = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.yaml")).unwrap();
    assert_eq!(text(&output.stdout), committed);
}

/// The line about the graph that `ocelli models` prints, started by `launcher`.
#[cfg(target_os = "linux")]
fn graph_line(launcher: &[&str]) -> String {
    let models = models_dir(&["tiny-classifier"]);
    let ocelli = [env!("CARGO_BIN_EXE_ocelli"), "models", "--tune", "off", "--device", "cpu", "--models-dir"];
    let mut command = Command::new(launcher.first().unwrap_or(&ocelli[0]));
    command.args(launcher.iter().skip(1)).args(&ocelli[usize::from(launcher.is_empty())..]).arg(models.path());
    let output = command.current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    let lines = text(&output.stdout);
    lines.lines().find(|line| line.contains("instance(s)")).unwrap_or_else(|| panic!("{output:?}")).to_owned()
}

#[cfg(target_os = "linux")]
#[test]
fn threads_follow_the_affinity_mask() {
    let cores = std::thread::available_parallelism().unwrap();
    assert!(graph_line(&[]).contains(&format!("of {cores} thread(s)")), "{}", graph_line(&[]));
    // The first core that this process may use.
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim();
    let first = allowed.split([',', '-']).next().unwrap();
    let line = graph_line(&["taskset", "--cpu-list", first]);
    assert!(line.contains("of 1 thread(s)"), "{line}");
}

#[cfg(target_os = "linux")]
#[test]
fn threads_follow_the_cgroups_quota() {
    // Version 2, or the controller of version 1; making a group takes privileges that not every machine gives a test.
    let (group, quota, value) = if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        ("/sys/fs/cgroup/ocelli-test", "cpu.max", "100000 100000")
    } else {
        ("/sys/fs/cgroup/cpu/ocelli-test", "cpu.cfs_quota_us", "100000")
    };
    let group = format!("{group}-{}", std::process::id());
    let limited = std::fs::create_dir(&group).and_then(|()| std::fs::write(format!("{group}/{quota}"), value));
    if let Err(error) = limited {
        let _ = std::fs::remove_dir(&group);
        eprintln!("not tested: no group with a CPU quota can be made here ({error})");
        return;
    }
    let enter = format!("echo $$ >{group}/cgroup.procs && exec \"$@\"");
    let line = graph_line(&["sh", "-c", &enter, "sh"]);
    std::fs::remove_dir(&group).unwrap();
    assert!(line.contains("of 1 thread(s)"), "{line}");
}
