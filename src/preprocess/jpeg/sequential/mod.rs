//! JPEGs as nearly all photos are (sequential, Huffman-coded, luma and chroma in one scan) on processors with AVX2: to the same bits as
//! libjpeg-turbo, and faster, for most of its time goes into Huffman codes. Whatever is otherwise, or damaged, is left to the library.

mod color;
mod frame;
mod huffman;
mod idct;
mod planes;

use image::RgbImage;

use self::frame::Frame;
use self::planes::{Layout, Part, Planes};
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
    // SAFETY: the processor has AVX2.
    unsafe {
        decode_with_avx2(bytes, outline, demand)
    }
}

#[target_feature(enable = "avx2")]
fn decode_with_avx2(bytes: &[u8], outline: &Outline<'_>, demand: &impl Demand) -> Option<Decoded> {
    let frame = Frame::read(bytes)?;
    let layout = Layout::new(&frame, outline.size, reduction(outline.size, demand.size(outline.size)))?;
    let (width, height) = layout.size;
    let cut = demand.margins(outline.size, (width as u32, height as u32));
    let part = Part { rows: cut.top..height - cut.bottom, columns: cut.sides..width - cut.sides };
    let pixels = Planes::decode(&layout, &frame, &part)?.into_rgb(&layout, &part);
    let pixels = RgbImage::from_raw(part.columns.len() as u32, part.rows.len() as u32, pixels)?;
    Some(Decoded { pixels, cut, size: outline.size })
}

#[cfg(test)]
#[cfg(feature = "turbojpeg")]
mod tests {
    use image::imageops::blur;
    use proptest::prelude::*;
    use turbojpeg::{Image, PixelFormat, Subsamp, compress};

    use super::*;
    use crate::preprocess::jpeg::{library, outline};
    use crate::preprocess::tests::{LIMITS, fixture, fixtures, noise};
    use crate::preprocess::window::Margins;

    /// A demand for this size and these margins.
    struct Asked((u32, u32), Margins);

    impl Demand for Asked {
        fn size(&self, _full: (u32, u32)) -> (u32, u32) {
            self.0
        }

        fn margins(&self, _full: (u32, u32), _decoded: (u32, u32)) -> Margins {
            self.1
        }
    }

    const EVERYTHING: Asked = Asked((u32::MAX, u32::MAX), Margins { sides: 0, top: 0, bottom: 0 });

    fn jpeg(image: &RgbImage, quality: i32, subsampling: Subsamp) -> Vec<u8> {
        let (width, height) = (image.width() as usize, image.height() as usize);
        let pixels = image.as_raw().as_slice();
        let image = Image { pixels, width, pitch: width * 3, height, format: PixelFormat::RGB };
        compress(image, quality, subsampling).unwrap().to_vec()
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
        let jpegs = fixtures().filter(|(file, _)| file.ends_with(".jpg"));
        let others = jpegs.filter(|(_, bytes)| !is_decoded(bytes, &EVERYTHING)).map(|(file, _)| file);
        let mut others: Vec<_> = others.collect();
        others.sort_unstable();
        let wanted =
            [["411", "420_column", "420_progressive", "440", "441"], ["cmyk", "cmyk_white", "gray", "rgb", "ycck"]];
        assert_eq!(others, wanted.as_flattened().iter().map(|name| format!("{name}.jpg")).collect::<Vec<_>>());
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
            width in 5_u32..90, height in 1_u32..90, quality in 1_i32..=100, sigma in 0_f32..3.0,
            subsampling in prop::sample::select(vec![Subsamp::Sub2x2, Subsamp::Sub2x1, Subsamp::None]),
            eighths in prop::sample::select(vec![1, 2, 4, 8]), margins in prop::array::uniform3(0_usize..40),
        ) {
            let image = noise(width, height);
            let image = if sigma > 0.5 { blur(&image, sigma) } else { image };
            let bytes = jpeg(&image, quality, subsampling);
            let size = [width, height].map(|side| (side * eighths).div_ceil(8));
            let [sides, top, bottom] = margins;
            let most = |margin: usize, side: u32| margin.min((side as usize - 1) / 2);
            let margins = Margins { sides: most(sides, size[0]), top: most(top, size[1]), bottom: most(bottom, size[1]) };
            let is_for_library = eighths < 8 && subsampling == Subsamp::Sub2x1;
            prop_assert_eq!(is_decoded(&bytes, &Asked(size.into(), margins)), !is_for_library);
        }
    }
}
