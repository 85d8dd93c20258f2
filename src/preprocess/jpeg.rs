//! JPEG: its markers are read here, its pixels are decoded by a library that can be swapped here.

use std::io::{BufRead, Cursor};

use image::codecs::jpeg::JpegDecoder;
use image::{ColorType, ImageDecoder, RgbImage};

use super::container::Outline;
use super::decode::{DecodeError, breaks_off, corrupt, into_decode_error};

const FORMAT: &str = "JPEG";

/// Reads a JPEG's markers up to its end.
///
/// Decoders fill what is missing with gray, so that a JPEG is whole has to be seen here: it is when its
/// markers lead to an end-of-image marker.
pub(super) fn outline(bytes: &[u8]) -> Result<Outline<'_>, DecodeError> {
    let mut outline = Outline::default();
    let mut has_frame = false;
    // After the start-of-image marker.
    let mut rest = bytes.get(2..).unwrap_or_default();
    loop {
        let marker = next_marker(&mut rest).ok_or_else(|| breaks_off(FORMAT))?;
        match marker {
            END_OF_IMAGE if has_frame => return Ok(outline),
            END_OF_IMAGE => return Err(corrupt(FORMAT, "it has no picture")),
            // Restart markers and the like stand alone; restart markers lie within pixel data.
            0x00 | 0x01 | 0xd0..=0xd8 => continue,
            _ => {}
        }
        let segment = next_segment(&mut rest).ok_or_else(|| breaks_off(FORMAT))?;
        match (marker, segment) {
            // Frame headers, without the tables (C4, CC) and the extension (C8) among them.
            (0xc0..=0xcf, [_, h0, h1, w0, w1, ..]) if !matches!(marker, 0xc4 | 0xc8 | 0xcc) => {
                if has_frame {
                    return Err(corrupt(FORMAT, "it has two frame headers"));
                }
                has_frame = true;
                let side = |high: &u8, low: &u8| u32::from(u16::from_be_bytes([*high, *low]));
                outline.size = (side(w0, w1), side(h0, h1));
            }
            (0xe1, segment) => {
                if let Some(exif) = segment.strip_prefix(b"Exif\0\0") {
                    outline.exif.get_or_insert(exif);
                } else if segment.starts_with(b"http://ns.adobe.com/xap/1.0/\0") {
                    outline.xmp.get_or_insert(segment);
                }
            }
            _ => {}
        }
    }
}

const END_OF_IMAGE: u8 = 0xd9;

/// Skips to the next marker and takes it. Within pixel data, `FF 00` is a value, which the caller skips.
fn next_marker(rest: &mut &[u8]) -> Option<u8> {
    rest.skip_until(0xff).ok()?;
    // Any number of FF may fill up before a marker's code.
    let code = rest.iter().position(|&byte| byte != 0xff)?;
    let marker = rest[code];
    *rest = &rest[code + 1..];
    Some(marker)
}

/// Takes a segment: two bytes of length, which count themselves, and its data.
fn next_segment<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::from(u16::from_be_bytes([*rest.first()?, *rest.get(1)?]));
    let segment = rest.get(2..length)?;
    *rest = &rest[length..];
    Some(segment)
}

/// Decodes the pixels of a JPEG whose outline has been checked, as stored, not turned upright.
///
/// CMYK and YCCK are taken as Adobe writes them, inverted, as Pillow does.
pub(super) fn decode(bytes: &[u8]) -> Result<RgbImage, DecodeError> {
    let failed = |error| into_decode_error(FORMAT, error);
    let decoder = JpegDecoder::new(Cursor::new(bytes)).map_err(failed)?;
    let (width, height) = decoder.dimensions();
    let color = decoder.color_type();
    let length = usize::try_from(decoder.total_bytes()).map_err(|_| corrupt(FORMAT, "it is too large"))?;
    let mut buffer = vec![0; length];
    decoder.read_image(&mut buffer).map_err(failed)?;
    if color == ColorType::L8 {
        buffer = buffer.iter().flat_map(|&gray| [gray; 3]).collect();
    }
    RgbImage::from_raw(width, height, buffer).ok_or_else(|| corrupt(FORMAT, "its colour type is not supported"))
}
