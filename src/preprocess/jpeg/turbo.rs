//! JPEG pixels by libjpeg-turbo, the library of the reference: bit for bit the same, and reduced at little cost.

use image::RgbImage;
use turbojpeg::{PixelFormat, ScalingFactor};

use super::decompressor::{Decompressor, Region};
use super::{FORMAT, JpegDecoder, START_OF_SCAN, is_frame, next_marker, next_segment, reduction, stands_alone};
use crate::preprocess::buffer;
use crate::preprocess::container::Outline;
use crate::preprocess::decode::{DecodeError, Decoded, Demand, corrupt, unsupported};
use crate::preprocess::window::Margins;

pub(in crate::preprocess) const DECODER: JpegDecoder = JpegDecoder { name: "libjpeg-turbo", lacks: None };

/// Pixels at an edge that depend on what lies beyond.
const INTERPOLATED: usize = 2;

/// Does decoding some rows of a picture, of which this size is demanded, spare the pixels of the others? Where there are several scans,
/// and at a fraction of its size, nearly all of the time goes into what has to be read in any case.
pub(in crate::preprocess) fn decodes_rows(outline: &Outline<'_>, needed: (u32, u32)) -> bool {
    outline.scans == 1 && smallest_scale(outline.size, needed) == ScalingFactor::ONE
}

/// [`super::decode`], of all JPEGs.
pub(in crate::preprocess) fn decode(
    bytes: &[u8],
    outline: &Outline<'_>,
    demand: &impl Demand,
) -> Result<Decoded, DecodeError> {
    // Warnings about the header would hide those about pixels. Pillow takes no notice of them, so what is warned about is left out.
    match Decompressor::read(bytes) {
        Ok(decompressor) => decode_with(decompressor, outline, demand),
        Err(_) => decode_with(Decompressor::read(&plain(bytes)).map_err(failed)?, outline, demand),
    }
}

fn decode_with(
    decompressor: Decompressor<'_>,
    outline: &Outline<'_>,
    demand: &impl Demand,
) -> Result<Decoded, DecodeError> {
    let (header, full) = (&decompressor.header, outline.size);
    let size = (full.0 as usize, full.1 as usize);
    if header.size != size {
        return Err(corrupt(FORMAT, "it has two sizes"));
    }
    let scale = match header.is_lossless {
        true => ScalingFactor::ONE,
        false => smallest_scale(full, demand.size(full)),
    };
    let whole = (scale.scale(size.0), scale.scale(size.1));
    let margins = demand.margins(full, (whole.0 as u32, whole.1 as u32));
    let cut = cut(header.block.map(|width| scale.scale(width)), margins);
    let (height, width) = cut.inside((whole.1, whole.0));
    let has_inks = header.has_inks;
    let format = if has_inks { PixelFormat::CMYK } else { PixelFormat::RGB };
    let mut pixels = buffer::take(width * height * format.size());
    match decompressor.decompress(scale, &Region { left: cut.sides, top: cut.top, width, height }, format, &mut pixels)
    {
        // The pixels are there.
        Err(message) if is_harmless(&message) => {}
        outcome => outcome.map_err(failed)?,
    }
    let pixels = if has_inks { inks_to_rgb(&pixels) } else { pixels };
    let pixels = RgbImage::from_raw(width as u32, height as u32, pixels);
    let pixels = pixels.ok_or_else(|| corrupt(FORMAT, "pixels are missing"))?;
    Ok(Decoded { pixels, cut, size: full })
}

/// What is cut of `margins`: at the sides whole blocks of this width. The outermost pixels of what remains would come out otherwise
/// than in the whole picture, as colours are interpolated between neighbours, so they must not be needed.
fn cut(block: Option<usize>, margins: Margins) -> Margins {
    let beyond = |margin: usize| margin.saturating_sub(INTERPOLATED);
    let Some(width) = block.filter(|&width| width > 0) else { return Margins::default() };
    Margins { sides: beyond(margins.sides) / width * width, top: beyond(margins.top), bottom: beyond(margins.bottom) }
}

fn failed(message: String) -> DecodeError {
    // Some messages name the function first.
    let reason = message.split_once("(): ").map_or(message.as_str(), |(_, reason)| reason);
    if reason.starts_with("Unsupported") { unsupported(FORMAT, reason) } else { corrupt(FORMAT, reason) }
}

/// The smallest scale that leaves no side shorter than needed; both are (width, height).
fn smallest_scale(size: (u32, u32), needed: (u32, u32)) -> ScalingFactor {
    ScalingFactor::new(reduction(size, needed), 8)
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
    use image::imageops::crop_imm;
    use turbojpeg::Subsamp;

    use super::*;
    use crate::preprocess::decode::decode_demanded;
    use crate::preprocess::tests::jpegs::{Asked, as_input, jpeg};
    use crate::preprocess::tests::{LIMITS, fixture, fixtures, noise, report};
    use crate::preprocess::{DecodeMode, ImageProcessor, decode as decode_any};

    #[test]
    fn a_part_of_a_picture_has_the_pixels_that_it_has_in_the_whole() {
        let image = noise(150, 117);
        let forms = [Subsamp::None, Subsamp::Sub1x2, Subsamp::Sub2x1, Subsamp::Sub2x2, Subsamp::Sub4x1, Subsamp::Gray];
        let mut jpegs: Vec<_> = forms.map(|form| (format!("{form:?}"), jpeg(&image, 90, form))).into();
        jpegs.extend(fixtures().filter(|(file, _)| file.ends_with(".jpg")));
        let mut cuts = 0;
        for (name, bytes) in jpegs {
            let whole = decode_any(&bytes, &LIMITS).unwrap();
            let (width, height) = whole.dimensions();
            let asked =
                [(0, 0, 0), (1, 1, 1), (3, 7, 7), (20, 2, 2), (19, 30, 0), (0, 0, 30), (40, 33, 20), (60, 9, 50)];
            for (sides, top, bottom) in asked {
                let most = |margin: usize, length: u32| margin.min((length as usize - 1) / 2);
                let margins =
                    Margins { sides: most(sides, width), top: most(top, height), bottom: most(bottom, height) };
                let part = decode_demanded(&bytes, &LIMITS, &Asked((width, height), margins)).unwrap();
                let cut = part.cut;
                assert_eq!(part.size, (width, height), "{name}");
                let is_less = cut.sides <= margins.sides && cut.top <= margins.top && cut.bottom <= margins.bottom;
                assert!(is_less, "{name} {margins:?} {cut:?}");
                cuts += [cut.sides, cut.top, cut.bottom].iter().filter(|&&cut| cut > 0).count();
                let seen = |picture: &RgbImage, sides: usize, top: usize| {
                    let (rows, columns) = margins.inside((height as usize, width as usize));
                    crop_imm(picture, sides as u32, top as u32, columns as u32, rows as u32).to_image()
                };
                let ours = seen(&part.pixels, margins.sides - cut.sides, margins.top - cut.top);
                let wanted = seen(&whole, margins.sides, margins.top);
                assert!(ours == wanted, "{name} without {margins:?}, of which {cut:?} were cut");
            }
        }
        assert!(cuts > 100, "{cuts}");
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
        let decoded =
            decode_demanded(&fixture("orientation6.jpg"), &LIMITS, &Asked((8, 9), Margins::default())).unwrap();
        assert_eq!((decoded.pixels.dimensions(), decoded.size), ((8, 12), (16, 24)));
    }

    fn tensor(bytes: &[u8], mode: DecodeMode) -> ndarray::Array3<f32> {
        let config = serde_json::json!({"image_processor_type": "CLIPImageProcessor", "size": 60, "crop_size": 56});
        ImageProcessor::from_json(&config, None).unwrap().read(bytes, &LIMITS, mode).unwrap().tensor()
    }

    #[test]
    fn tensors_are_those_of_the_whole_picture() {
        let configs = [
            serde_json::json!({"image_processor_type": "CLIPImageProcessor", "size": 60, "crop_size": 48}),
            serde_json::json!({"image_processor_type": "ViTImageProcessor", "size": {"height": 50, "width": 40}}),
            serde_json::json!({"image_processor_type": "ConvNextImageProcessor", "size": 56, "crop_pct": 0.875}),
        ];
        let large = [Subsamp::Sub2x2, Subsamp::None].map(|form| ("noise".to_owned(), jpeg(&noise(310, 190), 90, form)));
        for (name, bytes) in fixtures().filter(|(file, _)| file.ends_with(".jpg")).chain(large) {
            for config in &configs {
                let processor = ImageProcessor::from_json(config, None).unwrap();
                let whole = processor.prepare(&decode_any(&bytes, &LIMITS).unwrap());
                assert!(processor.read(&bytes, &LIMITS, DecodeMode::Exact).unwrap() == whole, "{name}: {config}");
                let height = processor.output_size().0;
                for row in [1, height * 7 / 10, height] {
                    let rows = |rows| processor.read_rows(&bytes, &LIMITS, DecodeMode::Exact, rows).unwrap();
                    assert!(rows(0..row).above(&rows(row..height)) == whole, "{name} divided at {row}: {config}");
                }
            }
        }
    }

    #[test]
    fn what_two_threads_read_no_sooner_than_one_is_not_divided() {
        let config = serde_json::json!({"image_processor_type": "CLIPImageProcessor"});
        let processor = ImageProcessor::from_json(&config, None).unwrap();
        let division = |bytes: &[u8], mode| processor.division(bytes, &LIMITS, mode);
        let photo = jpeg(&noise(640, 480), 90, Subsamp::Sub2x2);
        assert_eq!(division(&photo, DecodeMode::Fast), Some(134));
        let large = jpeg(&noise(1000, 1000), 90, Subsamp::Sub2x2);
        assert_eq!(division(&large, DecodeMode::Exact), Some(134));
        assert_eq!(division(&large, DecodeMode::Fast), None, "decoded at half its size");
        assert_eq!(division(&jpeg(&noise(200, 200), 90, Subsamp::Sub2x2), DecodeMode::Exact), None, "small");
        let turned = |orientation| {
            let exif = *b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0";
            let jpeg = [&[0xff, 0xd8, 0xff, 0xe1, 0, 34][..], &exif, &[orientation], &[0; 6], &photo[2..]].concat();
            division(&jpeg, DecodeMode::Exact)
        };
        assert_eq!((turned(1), turned(6)), (Some(134), None));
        for other in [&b"\xff\xd8\xff"[..], b"GIF89a", b""] {
            assert_eq!(division(other, DecodeMode::Exact), None);
        }
        let mut compressor = turbojpeg::Compressor::new().unwrap();
        compressor.set_progressive(true).unwrap();
        let progressive = compressor.compress_to_vec(as_input(&noise(640, 480))).unwrap();
        assert_eq!(division(&progressive, DecodeMode::Exact), None);
        let nearest = serde_json::json!({"image_processor_type": "ViTImageProcessor", "resample": 0});
        let nearest = ImageProcessor::from_json(&nearest, None).unwrap();
        assert_eq!(nearest.division(&photo, &LIMITS, DecodeMode::Exact), None, "the whole is decoded in any case");
    }

    #[test]
    fn fast_tensors_are_near_the_exact_ones_and_not_shifted() {
        // At a quarter, 226x151, the longer side would come out as 89 instead of 90, and the crop a pixel off.
        let (exact, fast): (Vec<_>, Vec<_>) = [(904, 602), (602, 904)]
            .into_iter()
            .flat_map(|(width, height)| {
                let smooth = image::imageops::blur(&noise(width, height), 4.0);
                let bytes = jpeg(&smooth, 90, Subsamp::Sub2x2);
                let tensors = (tensor(&bytes, DecodeMode::Exact), tensor(&bytes, DecodeMode::Fast));
                tensors.0.into_iter().zip(tensors.1)
            })
            .unzip();
        let mean = exact.iter().zip(&fast).map(|(exact, fast)| (exact - fast).abs()).sum::<f32>() / exact.len() as f32;
        assert!(mean > 0.0, "nothing was reduced");
        assert!(mean < 0.02, "{mean}");
    }
}
