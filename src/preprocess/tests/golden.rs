//! Golden tests: the same bytes give the pixels of Pillow and the tensors of transformers.
//!
//! tests/fixtures/preprocess/generate.py makes the fixtures and says what is in them.

use ndarray::Array3;
use serde_json::Value;

use super::{LIMITS, fixture, folder, noise, report};
use crate::preprocess::jpeg::is_exact;
use crate::preprocess::kernel::nearest_sources;
use crate::preprocess::{DecodeError, ImageProcessor, decode};

struct Golden {
    manifest: Value,
    expected: Vec<u8>,
}

impl Golden {
    fn read() -> Self {
        let manifest = std::fs::read(folder().join("manifest.json")).unwrap();
        let expected = std::fs::read(folder().join("expected.bin")).unwrap();
        Self { manifest: serde_json::from_slice(&manifest).unwrap(), expected }
    }

    fn cases(&self, key: &str) -> impl Iterator<Item = &Value> {
        self.manifest[key].as_array().unwrap().iter()
    }

    fn bytes(&self, case: &Value, length: usize) -> &[u8] {
        let offset = number(&case["offset"]);
        &self.expected[offset..offset + length]
    }
}

fn number(value: &Value) -> usize {
    value.as_u64().unwrap() as usize
}

fn numbers(value: &Value) -> Vec<usize> {
    value.as_array().unwrap().iter().map(number).collect()
}

#[test]
fn the_fixtures_come_from_the_kernels_we_port() {
    let capability = &Golden::read().manifest["versions"]["cpu_capability"];
    assert!(capability == "AVX2" || capability == "AVX512", "made on {capability}: bilinear would be in f32");
}

#[test]
fn bytes_decode_to_the_pixels_of_pillow() {
    let golden = Golden::read();
    let mut failures = Vec::new();
    for case in golden.cases("decode") {
        let file = case["file"].as_str().unwrap();
        let size = (number(&case["width"]), number(&case["height"]));
        let wanted = golden.bytes(case, size.0 * size.1 * 3);
        let image = match decode(&fixture(file), &LIMITS) {
            Ok(image) => image,
            Err(error) => {
                failures.push(format!("{file}: {error}"));
                continue;
            }
        };
        if (image.width() as usize, image.height() as usize) != size {
            failures.push(format!("{file}: {}x{} instead of {size:?}", image.width(), image.height()));
            continue;
        }
        let steps: Vec<u8> = image.as_raw().iter().zip(wanted).map(|(ours, theirs)| ours.abs_diff(*theirs)).collect();
        let largest = steps.iter().copied().max().unwrap_or(0);
        let mean = steps.iter().map(|&step| f64::from(step)).sum::<f64>() / steps.len() as f64;
        // Lossless formats have no tolerance; JPEG has that of its decoder, which is none for Pillow's own.
        let exact = is_exact(&fixture(file));
        let tolerance = |key: &str| if exact { 0.0 } else { case[key].as_f64().unwrap_or(0.0) };
        if f64::from(largest) > tolerance("steps") || mean > tolerance("mean") {
            failures.push(format!("{file}: up to {largest} steps, {mean:.3} on average"));
        }
    }
    report(&failures);
}

/// Compares a tensor with a case, bit for bit, and says where they part.
fn compare(golden: &Golden, case: &Value, tensor: &Array3<f32>) -> Option<String> {
    let name = &case["name"];
    if tensor.shape() != numbers(&case["shape"]) {
        return Some(format!("{name}: shape {:?} instead of {}", tensor.shape(), case["shape"]));
    }
    let ours: Vec<u8> = tensor.iter().flat_map(|value| value.to_le_bytes()).collect();
    if let Some(hash) = case["fnv1a"].as_str() {
        let fnv1a = ours
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
        return (hash != format!("{fnv1a:016x}")).then(|| format!("{name}: another hash"));
    }
    let wanted = golden.bytes(case, ours.len()).as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
    let differences: Vec<f32> = tensor.iter().zip(wanted).map(|(ours, theirs)| (ours - theirs).abs()).collect();
    let largest = differences.iter().copied().fold(0.0, f32::max);
    let differing = differences.iter().filter(|&&difference| difference > 0.0).count();
    (differing > 0).then(|| format!("{name}: {differing} of {} values differ, by up to {largest}", differences.len()))
}

#[test]
fn images_become_the_tensors_of_transformers_bit_for_bit() {
    let golden = Golden::read();
    let mut failures = Vec::new();
    for case in golden.cases("process") {
        let size = numbers(&case["image"]);
        let processor = ImageProcessor::from_json(&case["config"], case["model_type"].as_str()).unwrap();
        let tensor = processor.prepare(&noise(size[0] as u32, size[1] as u32)).tensor();
        let (height, width) = processor.output_size();
        assert_eq!(tensor.shape(), [3, height, width], "{}", case["name"]);
        failures.extend(compare(&golden, case, &tensor));
    }
    report(&failures);
}

#[test]
fn nearest_takes_the_pixels_of_torchvision() {
    for case in Golden::read().cases("nearest") {
        let (source, target) = (number(&case["source"]), number(&case["target"]));
        let ours: Vec<usize> = nearest_sources(source, target, 0..target).collect();
        assert_eq!(ours, numbers(&case["indices"]), "{source} to {target}");
    }
}

#[test]
fn forms_that_our_decoder_lacks_are_refused_by_name() {
    for case in Golden::read().cases("unsupported") {
        let file = case["file"].as_str().unwrap();
        let error = decode(&fixture(file), &LIMITS).unwrap_err();
        assert!(matches!(error, DecodeError::Unsupported { format: "TIFF", .. }), "{file}: {error}");
    }
}
