//! Tests of precedence and of mistakes.

use std::io::Write;

use super::*;

fn check(arguments: &[&str], file: &str) -> Result<Config, Vec<String>> {
    let command = clap::Command::new("ocelli").args(super::arguments());
    let matches = command.get_matches_from([&["ocelli"], arguments].concat());
    let mut written = tempfile::NamedTempFile::new().unwrap();
    written.write_all(file.as_bytes()).unwrap();
    let mut mistakes = Vec::new();
    let sources = Sources::read(&matches, Some(written.path()), &mut mistakes);
    Config::check(&sources, mistakes)
}

#[test]
fn defaults_are_valid() {
    let config = Config::default();
    assert_eq!(config.listen.port(), 8080);
    assert_eq!(config.model("anything").instances, None);
    assert_eq!(config.model_defaults.threads_for(1), usable_cores());
    assert_eq!(config.model_defaults.tuning.objective, Some(Objective::Throughput));
}

#[test]
fn a_flag_beats_the_file_and_the_file_beats_the_default() {
    let config = check(&["--max-batch-size", "4"], "max_batch_size = 16\nmax_images = 3\nmodels_dir = 'here'").unwrap();
    assert_eq!(config.model_defaults.batch_policy.max_batch_size, 4);
    assert_eq!(config.limits.max_images, 3);
    assert_eq!(config.models_dir, PathBuf::from("here"));
    assert_eq!(config.limits.max_labels, 1000);
    assert_eq!(check(&[], "max_in_flight = 2").unwrap().limits.max_images, 2, "more could never be admitted");
}

#[test]
fn a_models_table_beats_the_top_level_for_that_model_alone() {
    let file = "precision = 'f32'\n[models.vit]\nprecision = 'bf16'\nmax_queue_delay_ms = 1.5";
    let config = check(&[], file).unwrap();
    assert_eq!(config.model("vit").precision, Some(Precision::Bf16));
    assert_eq!(config.model("vit").batch_policy.max_queue_delay, Duration::from_micros(1500));
    assert_eq!(config.model("other").precision, Some(Precision::F32));
}

#[test]
fn large_jpegs_are_decoded_fast_unless_the_reference_is_asked_for() {
    let decode_mode = |file| check(&[], file).unwrap().model("any").decode_mode();
    assert_eq!(decode_mode(""), DecodeMode::Fast);
    assert_eq!(decode_mode("precision = 'bf16'"), DecodeMode::Fast);
    assert_eq!(decode_mode("precision = 'f32'"), DecodeMode::Exact);
    assert_eq!(decode_mode("precision = 'f32'\ndecode = 'fast'"), DecodeMode::Fast);
    assert_eq!(decode_mode("decode = 'exact'"), DecodeMode::Exact);
}

#[test]
fn every_mistake_is_reported_with_its_key() {
    let file = "listen = 'nowhere'\nmax_labels = 0\nspeed = 'fast'\nmax_images = [1]\n[models.vit]\ndevice = 'gpu'\ndecode = 'half'\nlisten = '1'";
    let mistakes = check(&["--precision", "f8"], file).unwrap_err();
    let all = mistakes.join("\n");
    for expected in [
        "listen: invalid socket address syntax, not 'nowhere'",
        "max_labels: must be a whole number from 1",
        "speed: there is no such key",
        "max_images: must be a text, a number or true or false, not a array",
        "models.vit.device: must be auto, cpu, openvino, cuda, tensorrt, not 'gpu'",
        "models.vit.decode: must be auto, exact, fast, not 'half'",
        "models.vit.listen: 'listen' belongs at the file's top level",
        "precision: must be auto, f32, tf32, bf16, f16, not 'f8' (from --precision)",
    ] {
        assert!(all.contains(expected), "'{expected}' is missing in:\n{all}");
    }
    assert_eq!(mistakes.len(), 8, "each is said once:\n{all}");
}

#[test]
fn a_broken_file_is_reported_with_its_line() {
    let mistakes = check(&[], "max_images = 2\nmax_labels = = 3").unwrap_err();
    assert!(mistakes[0].contains("line 2"), "{mistakes:?}");
}

#[test]
fn the_readme_lists_every_key_with_its_default() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    for key in KEYS {
        let default = if key.default.is_empty() { "–".to_owned() } else { format!("`{}`", key.default) };
        let scope = if key.per_model { " ¹" } else { "" };
        let row = format!("| `{}`{scope} | {default} | {} |", key.name, key.help);
        assert!(readme.contains(&row), "the README lacks the row\n{row}");
    }
}
