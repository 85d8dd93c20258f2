//! JPEG pixels by libjpeg-turbo, the library of the reference: bit for bit the same, and reduced at little cost.

use image::RgbImage;
use turbojpeg::{Colorspace, DecompressHeader, Decompressor, Error, Image, PixelFormat, ScalingFactor};

use super::{FORMAT, JpegDecoder, START_OF_SCAN, is_frame, next_marker, next_segment, stands_alone};
use crate::preprocess::buffer;
use crate::preprocess::container::Outline;
use crate::preprocess::decode::{DecodeError, corrupt, unsupported};

pub(in crate::preprocess) const DECODER: JpegDecoder = JpegDecoder { name: "libjpeg-turbo", lacks: None };

/// Eighths of its size at which a picture can be decoded for less than in full.
const REDUCTIONS: [usize; 3] = [1, 2, 4];

/// Decodes the pixels of a JPEG whose outline has been checked, as stored, not turned upright: at the smallest scale
/// that leaves no side shorter than `needed` (width, height).
pub(in crate::preprocess) fn decode(
    bytes: &[u8],
    outline: &Outline<'_>,
    needed: (u32, u32),
) -> Result<RgbImage, DecodeError> {
    let mut decompressor = Decompressor::new().map_err(failed)?;
    // The wrapper takes a warning about the header for an error. Pillow takes no notice, so what is warned about
    // is left out then.
    match decompressor.read_header(bytes) {
        Ok(header) => decode_with(decompressor, bytes, header, outline, needed),
        Err(_) => {
            let plain = plain(bytes);
            let header = decompressor.read_header(&plain).map_err(failed)?;
            decode_with(decompressor, &plain, header, outline, needed)
        }
    }
}

fn decode_with(
    mut decompressor: Decompressor,
    bytes: &[u8],
    header: DecompressHeader,
    outline: &Outline<'_>,
    needed: (u32, u32),
) -> Result<RgbImage, DecodeError> {
    let size = (outline.size.0 as usize, outline.size.1 as usize);
    if (header.width, header.height) != size {
        return Err(corrupt(FORMAT, "it has two sizes"));
    }
    let needed = (needed.0 as usize, needed.1 as usize);
    let scale = if header.is_lossless { ScalingFactor::ONE } else { smallest_scale(size, needed) };
    decompressor.set_scaling_factor(scale).map_err(failed)?;
    let (width, height) = (scale.scale(size.0), scale.scale(size.1));
    let inks = matches!(header.colorspace, Colorspace::CMYK | Colorspace::YCCK);
    let format = if inks { PixelFormat::CMYK } else { PixelFormat::RGB };
    let pitch = width * format.size();
    let mut pixels = buffer::take(pitch * height);
    let image = Image { pixels: pixels.as_mut_slice(), width, pitch, height, format };
    match decompressor.decompress(bytes, image) {
        // The wrapper takes warnings for errors, but the pixels are there.
        Err(Error::TurboJpegError(message)) if is_harmless(&message) => {}
        outcome => outcome.map_err(failed)?,
    }
    let pixels = if inks { inks_to_rgb(&pixels) } else { pixels };
    RgbImage::from_raw(width as u32, height as u32, pixels).ok_or_else(|| corrupt(FORMAT, "pixels are missing"))
}

fn failed(error: Error) -> DecodeError {
    let Error::TurboJpegError(message) = error else { return corrupt(FORMAT, error) };
    // Some messages name the function first.
    let reason = message.split_once("(): ").map_or(message.as_str(), |(_, reason)| reason);
    if reason.starts_with("Unsupported") { unsupported(FORMAT, reason) } else { corrupt(FORMAT, reason) }
}

/// The smallest scale that leaves no side shorter than needed; both are (width, height).
fn smallest_scale(size: (usize, usize), needed: (usize, usize)) -> ScalingFactor {
    let mut scales = REDUCTIONS.into_iter().map(|eighths| ScalingFactor::new(eighths, 8));
    let large_enough = |scale: &ScalingFactor| scale.scale(size.0) >= needed.0 && scale.scale(size.1) >= needed.1;
    scales.find(large_enough).unwrap_or(ScalingFactor::ONE)
}

/// Is this a warning after which all pixels are there? libjpeg-turbo tells the first warning of a picture only.
///
/// Other warnings mean that data is missing or wrong, and that the rest of the picture is gray or noise. Pillow shows
/// such pictures; here they are errors.
fn is_harmless(warning: &str) -> bool {
    let more_than_needed = |warning: &str| {
        // Before a restart marker it is a damaged interval.
        let marker = warning.split_once(" extraneous bytes before marker 0x").map(|(_, marker)| marker);
        marker.is_some_and(|marker| !matches!(marker, "d0" | "d1" | "d2" | "d3" | "d4" | "d5" | "d6" | "d7"))
    };
    // Some encoders write these parameters wrong, and decoders need not read them.
    let misdeclared = ["Invalid SOS parameters for sequential JPEG", "Inconsistent progression sequence"];
    more_than_needed(warning) || misdeclared.iter().any(|start| warning.starts_with(start))
}

/// The same picture with a header that holds only what its pixels depend on, in forms that nothing warns about: no
/// stray bytes between segments, no profiles, and of JFIF's and Adobe's segments what tells the colour space.
fn plain(bytes: &[u8]) -> Vec<u8> {
    let mut plain = vec![0xff, 0xd8];
    let mut rest = bytes.get(2..).unwrap_or_default();
    let mut components = 0;
    let mut adobe_transform = None;
    while let Some(marker) = next_marker(&mut rest) {
        if stands_alone(marker) {
            continue;
        }
        let Some(mut segment) = next_segment(&mut rest) else { break };
        match marker {
            0xe0 if segment.len() >= 14 && segment.starts_with(b"JFIF\0") => {
                segment = b"JFIF\0\x01\x01\0\0\x01\0\x01\0\0"
            }
            0xee if segment.len() >= 12 && segment.starts_with(b"Adobe") => {
                adobe_transform = Some(plain.len() + 4 + 11)
            }
            0xe0..=0xef | 0xfe => continue,
            _ if is_frame(marker) => components = segment.get(5).copied().unwrap_or_default(),
            _ => {}
        }
        plain.extend([0xff, marker]);
        plain.extend(((segment.len() + 2) as u16).to_be_bytes());
        plain.extend(segment);
        if marker == START_OF_SCAN {
            plain.extend(rest);
            break;
        }
    }
    // A code that does not go with the number of components counts as the one that does, unless it is 0.
    if let Some(code) = adobe_transform.and_then(|at| plain.get_mut(at)).filter(|code| **code > 0) {
        *code = if components == 4 { 2 } else { 1 };
    }
    plain
}

/// Adobe's CMYK or YCCK, which is stored inverted, to RGB as Pillow converts it.
fn inks_to_rgb(pixels: &[u8]) -> Vec<u8> {
    let (pixels, _) = pixels.as_chunks::<4>();
    let mut rgb = vec![0; pixels.len() * 3];
    for (target, &[cyan, magenta, yellow, key]) in rgb.as_chunks_mut::<3>().0.iter_mut().zip(pixels) {
        // Inverted: what is stored as 255 is no ink.
        let mix = |stored: u8| {
            let product = u32::from(255 - stored) * u32::from(key) + 128;
            key - ((product + (product >> 8)) >> 8) as u8
        };
        *target = [mix(cyan), mix(magenta), mix(yellow)];
    }
    rgb
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preprocess::tests::{LIMITS, fixture, fixtures, noise, report};
    use crate::preprocess::{DecodeMode, ImageProcessor, decode as decode_any, decode::decode_at_least};

    fn jpeg(image: &RgbImage, subsampling: turbojpeg::Subsamp) -> Vec<u8> {
        let (width, height) = (image.width() as usize, image.height() as usize);
        let pixels = image.as_raw().as_slice();
        let image = Image { pixels, width, pitch: width * 3, height, format: PixelFormat::RGB };
        turbojpeg::compress(image, 90, subsampling).unwrap().to_vec()
    }

    #[test]
    fn a_plain_header_changes_no_pixel() {
        let jpegs = fixtures().filter(|(file, _)| file.ends_with(".jpg") && !file.starts_with("orientation"));
        let changed = jpegs.filter(|(_, bytes)| decode_any(&plain(bytes), &LIMITS) != decode_any(bytes, &LIMITS));
        report(&changed.map(|(file, _)| file).collect::<Vec<_>>());
    }

    #[test]
    fn an_unknown_adobe_transform_counts_as_the_usual_one() {
        let mut bytes = fixture("cmyk.jpg");
        let adobe = bytes.windows(5).position(|window| window == b"Adobe").unwrap();
        bytes[adobe + 11] = 7;
        assert_eq!(decode_any(&bytes, &LIMITS), decode_any(&fixture("ycck.jpg"), &LIMITS));
    }

    #[test]
    fn missing_or_wrong_pixel_data_is_an_error_also_where_the_file_ends_properly() {
        for file in ["420.jpg", "420_progressive.jpg", "420_restart.jpg", "gray.jpg", "cmyk.jpg"] {
            let whole = fixture(file);
            let scan = whole.windows(2).position(|window| window == [0xff, START_OF_SCAN]).unwrap();
            let cut = (scan + whole.len()) / 2;
            let bytes = [&whole[..cut], &[0xff, 0xd9]].concat();
            let error = decode_any(&bytes, &LIMITS).unwrap_err();
            assert!(matches!(error, DecodeError::Corrupt { format: "JPEG", .. }), "{file}: {error}");
        }
    }

    #[test]
    fn warnings_are_harmless_if_all_pixels_are_there() {
        assert!(is_harmless("Corrupt JPEG data: 5 extraneous bytes before marker 0xd9"));
        assert!(is_harmless("Invalid SOS parameters for sequential JPEG"));
        assert!(!is_harmless("Corrupt JPEG data: 1214 extraneous bytes before marker 0xd0"));
        assert!(!is_harmless("Corrupt JPEG data: premature end of data segment"));
        assert!(!is_harmless("Corrupt JPEG data: bad Huffman code"));
    }

    #[test]
    fn the_smallest_scale_that_is_large_enough_is_taken() {
        let scale = |needed| smallest_scale((4000, 3001), needed);
        assert_eq!(scale((500, 376)), ScalingFactor::ONE_EIGHTH);
        assert_eq!(scale((500, 377)), ScalingFactor::ONE_QUARTER);
        assert_eq!(scale((2000, 1)), ScalingFactor::ONE_HALF);
        assert_eq!(scale((2001, 1)), ScalingFactor::ONE);
        assert_eq!(scale((9000, 9000)), ScalingFactor::ONE, "an image is never enlarged");
    }

    #[test]
    fn a_picture_that_is_to_be_turned_keeps_its_full_size() {
        // 24x16 as stored.
        let decoded = decode_at_least(&fixture("orientation6.jpg"), &LIMITS, |size| {
            assert_eq!(size, (16, 24));
            (8, 9)
        });
        let decoded = decoded.unwrap();
        assert_eq!((decoded.pixels.dimensions(), decoded.size), ((8, 12), (16, 24)));
    }

    fn tensor(bytes: &[u8], mode: DecodeMode) -> ndarray::Array3<f32> {
        let config = serde_json::json!({"image_processor_type": "CLIPImageProcessor", "size": 60, "crop_size": 56});
        ImageProcessor::from_json(&config, None).unwrap().read(bytes, &LIMITS, mode).unwrap().tensor()
    }

    #[test]
    fn fast_tensors_are_near_the_exact_ones_and_not_shifted() {
        // At a quarter, 226x151, the longer side would come out as 89 instead of 90, and the crop a pixel off.
        let (exact, fast): (Vec<_>, Vec<_>) = [(904, 602), (602, 904)]
            .into_iter()
            .flat_map(|(width, height)| {
                let smooth = image::imageops::blur(&noise(width, height), 4.0);
                let bytes = jpeg(&smooth, turbojpeg::Subsamp::Sub2x2);
                let tensors = (tensor(&bytes, DecodeMode::Exact), tensor(&bytes, DecodeMode::Fast));
                tensors.0.into_iter().zip(tensors.1)
            })
            .unzip();
        let mean = exact.iter().zip(&fast).map(|(exact, fast)| (exact - fast).abs()).sum::<f32>() / exact.len() as f32;
        assert!(mean > 0.0, "nothing was reduced");
        assert!(mean < 0.02, "{mean}");
    }
}
