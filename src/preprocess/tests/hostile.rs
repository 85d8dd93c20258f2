//! Hostile and broken uploads: each ends in an error, in bounded time and memory, and none in a panic.

use super::{LIMITS, fixture, fixtures, report};
use crate::preprocess::{DecodeError, DecodeLimits, decode};

#[test]
fn a_file_that_breaks_off_is_an_error_unless_all_pixels_are_there() {
    // Its orientation comes after its pixels.
    let files = fixtures().filter(|(file, _)| file != "orientation_late.png");
    let mut failures = Vec::new();
    for (file, bytes) in files {
        let whole = decode(&bytes, &LIMITS);
        let cuts = (0..bytes.len()).filter(|&length| {
            let cut = decode(&bytes[..length], &LIMITS);
            cut.is_ok() && cut != whole
        });
        let cuts: Vec<usize> = cuts.collect();
        if !cuts.is_empty() {
            failures.push(format!("{file}, {} bytes, gives another picture when cut to {cuts:?}", bytes.len()));
        }
    }
    report(&failures);
}

#[test]
fn a_file_without_its_second_half_is_an_error() {
    // The first half of an animation has the first frame.
    let files = fixtures().filter(|(file, _)| !file.starts_with("animated"));
    let halves = files.filter(|(_, bytes)| decode(&bytes[..bytes.len() / 2], &LIMITS).is_ok());
    report(&halves.map(|(file, _)| file).collect::<Vec<_>>());
}

#[test]
fn no_damaged_byte_makes_a_decoder_panic() {
    for (file, bytes) in fixtures() {
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0xff;
            let outcome = std::panic::catch_unwind(|| decode(&damaged, &LIMITS).is_ok());
            assert!(outcome.is_ok(), "{file} with byte {at} flipped");
        }
    }
}

#[test]
fn sizes_are_refused_before_any_pixel_is_decoded() {
    let mut gif = fixture("palette.gif");
    gif[6..10].fill(0xff);
    let error = decode(&gif[..44], &DecodeLimits { max_pixels: 64_000_000 }).unwrap_err();
    let DecodeError::TooManyPixels { width: 65_535, height: 65_535, limit: 64_000_000 } = error else {
        panic!("{error}");
    };
    let mut png = fixture("rgb8.png");
    png[16..20].fill(0);
    assert!(matches!(decode(&png, &LIMITS), Err(DecodeError::ZeroSized { width: 0, .. })));
    let limits = DecodeLimits { max_pixels: 100 };
    for (file, bytes) in fixtures().filter(|(file, _)| !file.starts_with("red_")) {
        let error = decode(&bytes, &limits).unwrap_err();
        let refused = matches!(error, DecodeError::TooManyPixels { .. } | DecodeError::Unsupported { .. });
        assert!(refused, "{file}: {error}");
    }
}

#[test]
fn bytes_that_are_no_image_are_told_so() {
    assert_eq!(decode(b"", &LIMITS), Err(DecodeError::Empty));
    for text in [&b"hello"[..], b"<html>", b"%PDF-1.7", b"II", &[0; 64], b"\x89PNG"] {
        assert_eq!(decode(text, &LIMITS), Err(DecodeError::UnknownFormat), "{text:?}");
    }
}
