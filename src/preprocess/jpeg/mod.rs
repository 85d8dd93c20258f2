//! JPEG: its markers are read here; its pixels are decoded here too if it is as cameras write it, else by the library that is compiled in.

#[cfg(feature = "turbojpeg")]
mod decompressor;
#[cfg(target_arch = "x86_64")]
mod sequential;
#[cfg(feature = "turbojpeg")]
mod turbo;
#[cfg(not(feature = "turbojpeg"))]
mod zune;

use std::io::BufRead;

#[cfg(feature = "turbojpeg")]
use turbo as library;
#[cfg(not(feature = "turbojpeg"))]
use zune as library;

pub(super) use library::{DECODER, decodes_rows};

use super::container::Outline;
use super::decode::{DecodeError, Decoded, Demand, breaks_off, corrupt};
use super::simd;

const FORMAT: &str = "JPEG";

/// A JPEG decoder.
pub struct JpegDecoder {
    /// Its name.
    pub name: &'static str,
    /// What a server with it lacks and how to get that, where it is not the best one.
    pub lacks: Option<&'static str>,
}

/// Most scans of a JPEG. Progressive encoders write about 10; each scan may cost as much as decoding the whole picture,
/// and a few bytes are enough to ask for one.
const MAX_SCANS: usize = 100;

/// Are JPEGs decoded at a fraction of their size where that is demanded? All by the library that is compiled in, or those that cameras
/// write here.
pub(super) fn reduces() -> bool {
    DECODER.lacks.is_none() || simd::is_available()
}

/// Decodes the pixels of a JPEG whose outline has been checked, as stored, not turned upright: at the smallest scale that leaves no
/// side shorter than demanded, without the margins for which there is no demand. Errors in rows below those demanded are not detected.
pub(super) fn decode(bytes: &[u8], outline: &Outline<'_>, demand: &impl Demand) -> Result<Decoded, DecodeError> {
    #[cfg(target_arch = "x86_64")]
    if let Some(decoded) = sequential::decode(bytes, outline, demand) {
        return Ok(decoded);
    }
    library::decode(bytes, outline, demand)
}

/// Are a JPEG's pixels those of libjpeg-turbo?
#[cfg(test)]
pub(super) fn is_exact(bytes: &[u8]) -> bool {
    #[cfg(target_arch = "x86_64")]
    if outline(bytes).is_ok_and(|outline| sequential::decode(bytes, &outline, &super::decode::Everything).is_some()) {
        return true;
    }
    DECODER.name == "libjpeg-turbo"
}

/// Eighths of its size at which a picture can be decoded for less than in full.
const REDUCTIONS: [usize; 3] = [1, 2, 4];

/// The fewest eighths of its size at which no side of a picture is shorter than needed; sizes are (width, height).
fn reduction(size: (u32, u32), needed: (u32, u32)) -> usize {
    let reaches = |eighths: usize, length: u32, needed: u32| (length as usize * eighths).div_ceil(8) >= needed as usize;
    let is_large_enough = |&eighths: &usize| reaches(eighths, size.0, needed.0) && reaches(eighths, size.1, needed.1);
    REDUCTIONS.into_iter().find(is_large_enough).unwrap_or(8)
}

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
            END_OF_IMAGE if has_frame => {
                outline.end = bytes.len() - rest.len();
                return Ok(outline);
            }
            END_OF_IMAGE => return Err(corrupt(FORMAT, "it has no picture")),
            _ if stands_alone(marker) => continue,
            _ => {}
        }
        let segment = next_segment(&mut rest).ok_or_else(|| breaks_off(FORMAT))?;
        match (marker, segment) {
            (_, [_, h0, h1, w0, w1, ..]) if is_frame(marker) => {
                if has_frame {
                    return Err(corrupt(FORMAT, "it has two frame headers"));
                }
                has_frame = true;
                let side = |high: &u8, low: &u8| u32::from(u16::from_be_bytes([*high, *low]));
                outline.size = (side(w0, w1), side(h0, h1));
            }
            (START_OF_SCAN, _) => {
                outline.scans += 1;
                if outline.scans > MAX_SCANS {
                    return Err(corrupt(FORMAT, format!("it has more than {MAX_SCANS} scans")));
                }
            }
            (0xe1, segment) => {
                if let Some(exif) = segment.strip_prefix(b"Exif\0\0") {
                    outline.exif.get_or_insert(exif);
                } else if segment.starts_with(b"http://ns.adobe.com/xap/1.0/\0") {
                    outline.xmp = Some(segment);
                }
            }
            _ => {}
        }
    }
}

const END_OF_IMAGE: u8 = 0xd9;
const START_OF_SCAN: u8 = 0xda;

/// Restart markers and the like have no segment; restart markers lie within pixel data. Nor have codes without a meaning: where pixels
/// are damaged, libjpeg goes on right behind one, and would find there what had been skipped here as a segment of it. Other decoders skip
/// one, and find less.
fn stands_alone(marker: u8) -> bool {
    matches!(marker, 0x00..=0xbf | 0xd0..=0xd8)
}

/// Frame headers, without the tables (C4, CC) and the extension (C8) among them.
fn is_frame(marker: u8) -> bool {
    matches!(marker, 0xc0..=0xcf) && !matches!(marker, 0xc4 | 0xc8 | 0xcc)
}

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

#[cfg(test)]
mod tests {
    use super::*;

    /// A JPEG with nothing in it but `scans` starts of scans.
    fn bomb(scans: usize) -> Vec<u8> {
        let frame = [0xff, 0xd8, 0xff, 0xc2, 0, 8, 8, 0, 16, 0, 24, 1];
        let scan = [0xff, START_OF_SCAN, 0, 2];
        [&frame[..], &scan.repeat(scans), &[0xff, END_OF_IMAGE]].concat()
    }

    #[test]
    fn a_jpeg_of_very_many_scans_is_refused_before_any_is_decoded() {
        assert_eq!(outline(&bomb(MAX_SCANS)).unwrap().size, (24, 16));
        let error = outline(&bomb(MAX_SCANS + 1)).unwrap_err();
        assert!(error.to_string().contains("more than 100 scans"), "{error}");
    }

    #[test]
    fn what_lies_behind_the_end_is_no_part_of_it() {
        let whole = bomb(2);
        assert_eq!(outline(&[&whole[..], &bomb(MAX_SCANS + 1)].concat()).unwrap().end, whole.len());
    }

    #[test]
    fn scans_are_counted_behind_a_code_without_a_meaning() {
        let scans = [0xff, START_OF_SCAN, 0, 2].repeat(MAX_SCANS + 1);
        let [high, low] = u16::try_from(scans.len() + 2).unwrap().to_be_bytes();
        let mut hidden = bomb(1);
        hidden.truncate(hidden.len() - 2);
        hidden.extend([0xff, 0x02, high, low]);
        hidden.extend(scans);
        hidden.extend([0xff, END_OF_IMAGE]);
        let error = outline(&hidden).unwrap_err();
        assert!(error.to_string().contains("more than 100 scans"), "{error}");
    }
}
