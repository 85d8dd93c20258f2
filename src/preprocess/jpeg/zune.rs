//! JPEG pixels by zune-jpeg, the `image` crate's decoder, which takes no tools to build.

use std::io::Cursor;

use image::codecs::jpeg;
use image::{ColorType, ImageDecoder, RgbImage};

use super::{FORMAT, JpegDecoder};
use crate::preprocess::container::Outline;
use crate::preprocess::decode::{DecodeError, Decoded, Demand, corrupt, into_decode_error};
use crate::preprocess::window::Margins;

pub(in crate::preprocess) const DECODER: JpegDecoder = JpegDecoder {
    name: "zune-jpeg",
    lacks: Some(
        "built without libjpeg-turbo: JPEGs other than baseline ones in 4:2:0, 4:2:2 or 4:4:4 (on processors without AVX2 all) take about \
         a fifth longer to decode, come out up to 4 steps (of 255) from the reference, and are not reduced by decode = \"fast\"; \
         scripts/serve builds with it, and so does cargo build --release --features turbojpeg, which needs cmake and, on x86, nasm",
    ),
};

/// Does decoding some rows of a picture spare the pixels of the others? Not where this library decodes it.
pub(in crate::preprocess) fn decodes_rows(_outline: &Outline<'_>, _needed: (u32, u32)) -> bool {
    false
}

/// Decodes the pixels of a JPEG whose outline has been checked, as stored, not turned upright, and always in full.
///
/// CMYK and YCCK are taken as Adobe writes them, inverted, as Pillow does.
pub(in crate::preprocess) fn decode(
    bytes: &[u8],
    _outline: &Outline<'_>,
    _demand: &impl Demand,
) -> Result<Decoded, DecodeError> {
    let failed = |error| into_decode_error(FORMAT, error);
    let decoder = jpeg::JpegDecoder::new(Cursor::new(bytes)).map_err(failed)?;
    let (width, height) = decoder.dimensions();
    let color = decoder.color_type();
    let length = usize::try_from(decoder.total_bytes()).map_err(|_| corrupt(FORMAT, "it is too large"))?;
    let mut buffer = vec![0; length];
    decoder.read_image(&mut buffer).map_err(failed)?;
    if color == ColorType::L8 {
        buffer = buffer.iter().flat_map(|&gray| [gray; 3]).collect();
    }
    let pixels = RgbImage::from_raw(width, height, buffer);
    let pixels = pixels.ok_or_else(|| corrupt(FORMAT, "its colour type is not supported"))?;
    Ok(Decoded { pixels, cut: Margins::default(), size: (width, height) })
}
