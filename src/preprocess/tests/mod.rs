//! Tests of the whole of `preprocess`: against the reference, against hostile bytes, and of the settings.

mod golden;
mod hostile;
#[cfg(feature = "turbojpeg")]
pub(super) mod jpegs;

use std::path::PathBuf;

use image::RgbImage;

use super::DecodeLimits;

pub(super) const LIMITS: DecodeLimits = DecodeLimits { max_pixels: 1 << 20 };

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/preprocess")
}

/// An encoded image of the fixtures.
pub(super) fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(folder().join("images").join(name)).unwrap()
}

/// Every encoded image of the fixtures, with its name.
pub(super) fn fixtures() -> impl Iterator<Item = (String, Vec<u8>)> {
    let files = std::fs::read_dir(folder().join("images")).unwrap();
    files.map(|file| file.unwrap().file_name().into_string().unwrap()).map(|file| (file.clone(), fixture(&file)))
}

/// The picture that generate.py calls `noise`.
pub(super) fn noise(width: u32, height: u32) -> RgbImage {
    let mut state = 1_u32;
    let ramp = |at: u32, length: u32| at * 255 / (length - 1).max(1);
    let mut image = RgbImage::new(width, height);
    for (x, y, pixel) in image.enumerate_pixels_mut() {
        for (channel, value) in (1..).zip(&mut pixel.0) {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let gradient = (ramp(x, width) * channel + ramp(y, height)) & 255;
            *value = (((state >> 24) + gradient) / 2) as u8;
        }
    }
    image
}

/// Fails with all that went wrong.
pub(super) fn report(failures: &[String]) {
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}
