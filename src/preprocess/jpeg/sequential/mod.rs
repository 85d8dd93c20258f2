//! JPEGs as cameras write them (sequential, Huffman-coded, in one scan, 4:2:0, 4:2:2 or 4:4:4) on processors with AVX2: to the same bits as
//! by libjpeg-turbo, and in two thirds of its time, most of which goes into Huffman codes. All others, and what is damaged, are left to
//! the library.

mod color;
mod frame;
mod huffman;
mod idct;
mod planes;

use image::RgbImage;

use self::frame::Frame;
use self::planes::{Layout, Part};
use super::reduction;
use crate::preprocess::container::Outline;
use crate::preprocess::decode::{Decoded, Demand};
use crate::preprocess::simd;

/// As the library's `decode`; `None` where the picture is for that.
pub(super) fn decode(bytes: &[u8], outline: &Outline<'_>, demand: &impl Demand) -> Option<Decoded> {
    if !simd::is_available() || outline.scans != 1 {
        return None;
    }
    #[expect(unsafe_code, reason = "the compiler cannot see that the processor has been asked")]
    // SAFETY: the processor has AVX2 and BMI2.
    unsafe {
        decode_with_avx2(bytes, outline, demand)
    }
}

#[target_feature(enable = "avx2,bmi2")]
fn decode_with_avx2(bytes: &[u8], outline: &Outline<'_>, demand: &impl Demand) -> Option<Decoded> {
    let frame = Frame::read(bytes)?;
    let layout = Layout::new(&frame, outline.size, reduction(outline.size, demand.size(outline.size)))?;
    let (width, height) = layout.size;
    let cut = demand.margins(outline.size, (width as u32, height as u32));
    let part = Part { rows: cut.top..height - cut.bottom, columns: cut.sides..width - cut.sides };
    let pixels = planes::decode(&layout, &frame, &part)?;
    let pixels = RgbImage::from_raw(part.columns.len() as u32, part.rows.len() as u32, pixels)?;
    Some(Decoded { pixels, cut, size: outline.size })
}

#[cfg(test)]
#[cfg(feature = "turbojpeg")]
mod tests {
    use image::imageops::blur;
    use proptest::prelude::*;
    use turbojpeg::{Compressor, Subsamp};

    use super::*;
    use crate::preprocess::jpeg::{library, outline};
    use crate::preprocess::tests::jpegs::{Asked, as_input, jpeg};
    use crate::preprocess::tests::{LIMITS, fixture, fixtures, noise};
    use crate::preprocess::window::Margins;

    const EVERYTHING: Asked = Asked((u32::MAX, u32::MAX), Margins { sides: 0, top: 0, bottom: 0 });

    /// With Huffman codes of its own.
    fn optimized_jpeg(image: &RgbImage, quality: i32, subsampling: Subsamp) -> Vec<u8> {
        let mut compressor = Compressor::new().unwrap();
        compressor.set_quality(quality).unwrap();
        compressor.set_subsamp(subsampling).unwrap();
        compressor.set_optimize(true).unwrap();
        compressor.compress_to_vec(as_input(image)).unwrap()
    }

    /// Is the JPEG decoded here? Then as by the library.
    fn is_decoded(bytes: &[u8], demand: &Asked) -> bool {
        let outline = outline(bytes).unwrap();
        let Some(ours) = decode(bytes, &outline, demand) else { return false };
        let theirs = library::decode(bytes, &outline, &Asked(demand.0, Margins::default())).unwrap();
        let Margins { sides, top, .. } = ours.cut;
        let (width, height) = ours.pixels.dimensions();
        let seen = image::imageops::crop_imm(&theirs.pixels, sides as u32, top as u32, width, height).to_image();
        assert!(ours.pixels == seen && ours.size == theirs.size && ours.cut == demand.1);
        true
    }

    #[test]
    fn fixtures_are_decoded_as_by_the_library_or_left_to_it() {
        let jpegs = fixtures().filter(|(file, _)| simd::is_available() && file.ends_with(".jpg"));
        let others = jpegs.filter(|(_, bytes)| !is_decoded(bytes, &EVERYTHING)).map(|(file, _)| file);
        let mut others: Vec<_> = others.collect();
        others.sort_unstable();
        let wanted =
            [["411", "420_column", "420_progressive", "440", "441"], ["cmyk", "cmyk_white", "gray", "rgb", "ycck"]];
        let wanted = wanted.as_flattened().iter().filter(|_| simd::is_available()).map(|name| format!("{name}.jpg"));
        assert_eq!(others, wanted.collect::<Vec<_>>());
    }

    /// Where the segment with this marker begins, and its length with the marker.
    fn segment(bytes: &[u8], marker: u8) -> (usize, usize) {
        let at = bytes.windows(2).position(|window| window == [0xff, marker]).unwrap();
        (at, 2 + usize::from(u16::from_be_bytes([bytes[at + 2], bytes[at + 3]])))
    }

    #[test]
    fn colours_are_taken_for_luma_and_chroma_as_by_the_library() {
        let with_jfif = jpeg(&noise(40, 30), 90, Subsamp::Sub2x2);
        let (at, length) = segment(&with_jfif, 0xe0);
        let plain = [&with_jfif[..at], &with_jfif[at + length..]].concat();
        let adobe = |transform: u8, rest: &[u8]| {
            let adobe = [0xff, 0xee, 0, 14, b'A', b'd', b'o', b'b', b'e', 0, 100, 0, 0, 0, 0, transform];
            [&rest[..2], &adobe, &rest[2..]].concat()
        };
        let mut other_ids = plain.clone();
        for (marker, first, step) in [(0xc0, 10, 3), (0xda, 5, 2)] {
            let start = segment(&plain, marker).0 + first;
            (0..3).for_each(|index| other_ids[start + index * step] += 7);
        }
        let mut extended = plain.clone();
        extended[segment(&plain, 0xc0).0 + 1] = 0xc1;
        let cases = [
            (&with_jfif, true),
            (&plain, true),
            (&extended, true),
            (&adobe(1, &plain), true),
            (&adobe(0, &plain), false),
            (&adobe(0, &with_jfif), true),
            (&other_ids, false),
            (&adobe(1, &other_ids), true),
        ];
        for (index, (bytes, is_ours)) in cases.into_iter().enumerate() {
            assert_eq!(is_decoded(bytes, &EVERYTHING), is_ours && simd::is_available(), "case {index}");
        }
    }

    /// A JPEG of units of 16×16 pixels, each of which is an interval of its own.
    fn with_restarts(columns: u32, rows: u32) -> Vec<u8> {
        let image = noise(columns * 16, rows * 16);
        let units = (0..columns * rows).map(|unit| {
            let (left, top) = (unit % columns * 16, unit / columns * 16);
            jpeg(&image::imageops::crop_imm(&image, left, top, 16, 16).to_image(), 90, Subsamp::Sub2x2)
        });
        let mut bytes = Vec::new();
        for (index, unit) in units.enumerate() {
            let (at, length) = segment(&unit, 0xda);
            let data = &unit[at + length..unit.len() - 2];
            if index == 0 {
                bytes = [&unit[..at], &[0xff, 0xdd, 0, 4, 0, 1], &unit[at..at + length], data].concat();
                let size = segment(&bytes, 0xc0).0 + 5;
                bytes[size..size + 2].copy_from_slice(&(rows as u16 * 16).to_be_bytes());
                bytes[size + 2..size + 4].copy_from_slice(&(columns as u16 * 16).to_be_bytes());
            } else {
                bytes.extend([0xff, 0xd0 + (index - 1) as u8 % 8]);
                bytes.extend(data);
            }
        }
        bytes.extend([0xff, 0xd9]);
        bytes
    }

    #[test]
    fn decoding_starts_anew_behind_each_restart_marker() {
        let bytes = with_restarts(5, 4);
        for (size, margins) in [((80, 64), (0, 0, 0)), ((80, 64), (9, 20, 30)), ((20, 16), (2, 3, 5))] {
            let (sides, top, bottom) = margins;
            let asked = Asked(size, Margins { sides, top, bottom });
            assert_eq!(is_decoded(&bytes, &asked), simd::is_available(), "{size:?}");
        }
        let mut lost = bytes;
        let at = lost.windows(2).position(|window| window == [0xff, 0xd3]).unwrap();
        lost[at + 1] = 0xd4;
        assert!(!is_decoded(&lost, &EVERYTHING));
    }

    #[test]
    fn tables_that_are_not_used_cost_nothing() {
        let photo = jpeg(&noise(40, 30), 90, Subsamp::Sub2x2);
        let mut table = [0; 22];
        (table[0], table[1], table[3], table[4], table[5]) = (0xff, 0xc4, 20, 0x13, 1);
        let bytes = [&photo[..2], &table.repeat(500_000), &photo[2..]].concat();
        let started = std::time::Instant::now();
        assert_eq!(is_decoded(&bytes, &EVERYTHING), simd::is_available());
        // To build one takes microseconds, and a multiple of that in a build for tests.
        assert!(started.elapsed() < std::time::Duration::from_secs(5));
    }

    proptest! {
        #[test]
        fn what_is_damaged_is_left_to_the_library_unless_it_makes_the_same_of_it(
            form in prop::sample::select(vec!["420.jpg", "420_restart.jpg", "422.jpg", "444.jpg"]),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            cut in prop::option::of(any::<prop::sample::Index>()),
        ) {
            let mut bytes = fixture(form);
            for (index, value) in changes {
                let length = bytes.len();
                bytes[index.index(length)] = value;
            }
            if let Some(cut) = cut {
                let end = cut.index(bytes.len());
                bytes.drain(end.min(bytes.len() - 2)..bytes.len() - 2);
            }
            if let Ok(outline) = outline(&bytes)
                && LIMITS.check(outline.size).is_ok()
                && let Some(ours) = decode(&bytes, &outline, &EVERYTHING)
            {
                let theirs = library::decode(&bytes, &outline, &EVERYTHING).unwrap();
                prop_assert!(ours.pixels == theirs.pixels);
            }
        }

        #[test]
        fn photos_are_decoded_as_by_the_library(
            width in 1_u32..90, height in 1_u32..90, quality in 1_i32..=100, sigma in 0_f32..3.0, is_optimized: bool,
            subsampling in prop::sample::select(vec![Subsamp::Sub2x2, Subsamp::Sub2x1, Subsamp::None]),
            eighths in prop::sample::select(vec![1, 2, 4, 8]), margins in prop::array::uniform3(0_usize..40),
        ) {
            let image = noise(width, height);
            let image = if sigma > 0.5 { blur(&image, sigma) } else { image };
            let encode = if is_optimized { optimized_jpeg } else { jpeg };
            let bytes = encode(&image, quality, subsampling);
            let size = [width, height].map(|side| (side * eighths).div_ceil(8));
            let [sides, top, bottom] = margins;
            let most = |margin: usize, side: u32| margin.min((side as usize - 1) / 2);
            let margins = Margins { sides: most(sides, size[0]), top: most(top, size[1]), bottom: most(bottom, size[1]) };
            let eighths = reduction((width, height), size.into());
            let is_for_library = match subsampling {
                Subsamp::None => false,
                Subsamp::Sub2x1 => eighths < 8 || width <= 4,
                _ => eighths == 8 && width <= 4,
            };
            prop_assert_eq!(is_decoded(&bytes, &Asked(size.into(), margins)), simd::is_available() && !is_for_library);
        }
    }
}
