//! What a file says about its image before any pixel is decoded: size, orientation, and whether it is whole.

use image::metadata::Orientation;

use super::decode::{DecodeError, breaks_off, corrupt};
use super::tiff::{self, Directory};
use super::vp8l;

/// The outline of an image file.
#[derive(Debug, Default)]
pub(super) struct Outline<'a> {
    /// Width and height in pixels, as declared; not yet checked.
    pub(super) size: (u32, u32),
    /// EXIF, from its TIFF header on.
    pub(super) exif: Option<&'a [u8]>,
    /// XMP, which may tell the orientation where EXIF does not.
    pub(super) xmp: Option<&'a [u8]>,
    /// How many times a decoder goes through the picture; 0 where that is not known.
    pub(super) scans: usize,
    /// Where a JPEG or a WebP ends, in bytes. What lies behind has not been looked at, and is not for a decoder.
    pub(super) end: usize,
}

impl Outline<'_> {
    /// How the stored picture has to be turned. XMP is asked where EXIF tells nothing at all; a value outside 1 to 8 counts as none.
    pub(super) fn orientation(&self) -> Orientation {
        let told = self.exif.and_then(exif_orientation).or_else(|| self.xmp.and_then(xmp_orientation));
        told.and_then(Orientation::from_exif).unwrap_or(Orientation::NoTransforms)
    }
}

/// What EXIF tells, as Pillow reads it: a number that may be of other types than it should; 0 for what is no number.
fn exif_orientation(exif: &[u8]) -> Option<u8> {
    const ORIENTATION: u32 = 274;
    let directory = Directory::first(exif).filter(|_| exif.starts_with(b"II*\0") || exif.starts_with(b"MM\0*"))?;
    let entry = directory.entries(ORIENTATION).next()?;
    let value = match entry.kind()? {
        tiff::SHORT | tiff::SIGNED_SHORT => entry.value(2),
        tiff::LONG | tiff::SIGNED_LONG => entry.value(4),
        tiff::SIGNED_BYTE => entry.value(1),
        _ => None,
    };
    Some(value.and_then(|value| u8::try_from(value).ok()).unwrap_or(0))
}

/// The first digit in `tiff:Orientation="6"` or `<tiff:Orientation>6`, as Pillow's `getexif` looks for it.
fn xmp_orientation(xmp: &[u8]) -> Option<u8> {
    const KEY: &[u8] = b"tiff:Orientation";
    xmp.windows(KEY.len()).enumerate().filter(|(_, window)| *window == KEY).find_map(|(start, _)| {
        let rest = &xmp[start + KEY.len()..];
        let digit = rest.strip_prefix(b"=\"").or_else(|| rest.strip_prefix(b">"))?.first()?;
        digit.is_ascii_digit().then(|| digit - b'0')
    })
}

/// The four bytes at `at`.
pub(super) fn four(bytes: &[u8], at: usize) -> Option<[u8; 4]> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok()
}

/// Reads the outline of a PNG. Missing pixels are for the decoder to find.
pub(super) fn png_outline(bytes: &[u8]) -> Result<Outline<'_>, DecodeError> {
    if four(bytes, 12) != Some(*b"IHDR") {
        return Err(corrupt("PNG", "its header is missing"));
    }
    let side = |at| four(bytes, at).map(u32::from_be_bytes).ok_or_else(|| breaks_off("PNG"));
    let mut outline = Outline { size: (side(16)?, side(20)?), ..Outline::default() };
    let mut at = 8;
    while let (Some(length), Some(kind)) = (four(bytes, at), four(bytes, at + 4)) {
        let start = at + 8;
        let Some(end) = start.checked_add(u32::from_be_bytes(length) as usize) else { break };
        let Some(data) = bytes.get(start..end) else { break };
        match &kind {
            // Pillow honours EXIF after the pixels too; the decoder only sees what comes before them.
            b"eXIf" => outline.exif = Some(data.strip_prefix(b"Exif\0\0").unwrap_or(data)),
            b"iTXt" if data.starts_with(b"XML:com.adobe.xmp\0\0") => outline.xmp = Some(data),
            b"IEND" => break,
            _ => {}
        }
        at = end + 4;
    }
    Ok(outline)
}

/// Reads the outline of a WebP, and checks that it is whole and that the pictures in it fit its canvas: the decoder takes a picture's
/// memory before it compares.
pub(super) fn webp_outline(bytes: &[u8]) -> Result<Outline<'_>, DecodeError> {
    let declared = four(bytes, 4).map(u32::from_le_bytes).ok_or_else(|| breaks_off("WebP"))?;
    let end = (declared as usize).saturating_add(8);
    let body = bytes.get(12..end).ok_or_else(|| breaks_off("WebP"))?;
    let mut outline = Outline { end, ..Outline::default() };
    for (index, chunk) in RiffChunks(body).enumerate() {
        let (kind, data) = chunk?;
        let size = picture_size(kind, data)?;
        match (index, size) {
            (0, Some(size)) => outline.size = size,
            (0, None) => return Err(corrupt("WebP", "its header is missing")),
            (_, Some(size)) if size.0 > outline.size.0 || size.1 > outline.size.1 => {
                return Err(corrupt("WebP", "it holds a picture larger than itself"));
            }
            _ => {}
        }
        match &kind {
            b"EXIF" => outline.exif = Some(data.strip_prefix(b"Exif\0\0").unwrap_or(data)),
            b"XMP " => outline.xmp = Some(data),
            _ => {}
        }
    }
    Ok(outline)
}

/// May the first picture of a TIFF be stored as JPEGs? Each of its strips is a file of its own then, whose size nothing bounds.
pub(super) fn tiff_may_hold_jpegs(bytes: &[u8]) -> bool {
    const COMPRESSION: u32 = 259;
    const JPEG: u32 = 7;
    let Some(directory) = Directory::first(bytes) else { return false };
    // Of an entry that is there twice, decoders take one or the other.
    directory.entries(COMPRESSION).any(|compression| match compression.kind() {
        Some(tiff::SHORT) => compression.value(2) == Some(JPEG),
        Some(tiff::LONG) => compression.value(4) == Some(JPEG),
        // None that the format allows.
        Some(_) => true,
        None => false,
    })
}

/// Checks the tables that decoding the lossless pictures of a WebP needs which a decoder of its first picture decodes, and that the first
/// frame of an animation is one picture as large as it says: a decoder sees what it holds as that.
pub(super) fn check_webp_pictures(bytes: &[u8], canvas: (u32, u32)) -> Result<(), DecodeError> {
    let chunks = || RiffChunks(bytes.get(12..).unwrap_or_default()).map_while(Result::ok);
    let first = |wanted: &[u8; 4]| chunks().find(|(kind, _)| kind == wanted).map(|(_, data)| data);
    let says_it_moves = first(b"VP8X").is_some_and(|data| data.first().is_some_and(|flags| flags & 2 != 0));
    for kind in [b"VP8L", b"ALPH"] {
        first(kind).map_or(Ok(()), |data| check_lossless(*kind, data, canvas))?;
    }
    match first(b"ANMF") {
        None => Ok(()),
        Some([_, _, _, _, _, _, w0, w1, w2, h0, h1, h2, _, _, _, _, chunks @ ..]) if says_it_moves => {
            check_frame(chunks, (three(w0, w1, w2) + 1, three(h0, h1, h2) + 1))
        }
        Some(_) => Err(corrupt("WebP", "a frame is damaged")),
    }
}

/// Checks a frame of this size.
fn check_frame(chunks: &[u8], size: (u32, u32)) -> Result<(), DecodeError> {
    let mut chunks = RiffChunks(chunks).map_while(Result::ok);
    let mut picture = chunks.next();
    if let Some((kind, data)) = picture.filter(|(kind, _)| kind == b"ALPH") {
        check_lossless(kind, data, size)?;
        picture = chunks.next().filter(|(kind, _)| kind == b"VP8 ");
    }
    match picture {
        Some((kind, data)) if matches!(&kind, b"VP8 " | b"VP8L") && picture_size(kind, data)? == Some(size) => {
            check_lossless(kind, data, size)
        }
        _ => Err(corrupt("WebP", "a frame is damaged")),
    }
}

/// Checks the tables that decoding the picture in a chunk needs, if it is lossless; `size` is that of alpha, which does not say it.
fn check_lossless(kind: [u8; 4], data: &[u8], size: (u32, u32)) -> Result<(), DecodeError> {
    let (stream, size) = match (&kind, data) {
        (b"VP8L", [_, _, _, _, _, stream @ ..]) => (stream, picture_size(kind, data)?.unwrap_or(size)),
        // Alpha, where it is compressed.
        (b"ALPH", [header, stream @ ..]) if header & 3 == 1 => (stream, size),
        _ => return Ok(()),
    };
    match vp8l::prefix_code_groups(stream, size) {
        None => Err(corrupt("WebP", "a lossless picture is damaged")),
        Some(groups) if groups > vp8l::MAX_GROUPS => {
            Err(corrupt("WebP", format!("it has {groups} groups of prefix codes, more than {}", vp8l::MAX_GROUPS)))
        }
        Some(_) => Ok(()),
    }
}

fn three(a: &u8, b: &u8, c: &u8) -> u32 {
    u32::from_le_bytes([*a, *b, *c, 0])
}

/// The size of the picture in a chunk, if it holds one: width and height in pixels.
fn picture_size(kind: [u8; 4], data: &[u8]) -> Result<Option<(u32, u32)>, DecodeError> {
    let size = match (&kind, data) {
        (b"VP8X", [_, _, _, _, w0, w1, w2, h0, h1, h2, ..]) => (three(w0, w1, w2) + 1, three(h0, h1, h2) + 1),
        (b"VP8 ", [_, _, _, 0x9d, 0x01, 0x2a, w0, w1, h0, h1, ..]) => {
            let side = |a: &u8, b: &u8| u32::from(u16::from_le_bytes([*a, *b]) & 0x3fff);
            (side(w0, w1), side(h0, h1))
        }
        (b"VP8L", [0x2f, a, b, c, d, ..]) => {
            let header = u32::from_le_bytes([*a, *b, *c, *d]);
            ((header & 0x3fff) + 1, (header >> 14 & 0x3fff) + 1)
        }
        // A frame is a header of 16 bytes and chunks; the picture is the only one of them with a size.
        (b"ANMF", [_, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, chunks @ ..]) => {
            for chunk in RiffChunks(chunks) {
                let (kind, data) = chunk?;
                if matches!(&kind, b"VP8 " | b"VP8L") {
                    return picture_size(kind, data);
                }
            }
            return Err(corrupt("WebP", "a frame is empty"));
        }
        (b"VP8X" | b"VP8 " | b"VP8L" | b"ANMF", _) => return Err(corrupt("WebP", "a header is damaged")),
        _ => return Ok(None),
    };
    Ok(Some(size))
}

/// The chunks of a RIFF body: kind and data.
struct RiffChunks<'a>(&'a [u8]);

impl<'a> Iterator for RiffChunks<'a> {
    type Item = Result<([u8; 4], &'a [u8]), DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        // A stray byte at the end is padding.
        if self.0.len() <= 1 {
            return None;
        }
        let (Some(kind), Some(length)) = (four(self.0, 0), four(self.0, 4)) else {
            self.0 = &[];
            return Some(Err(breaks_off("WebP")));
        };
        let end = (u32::from_le_bytes(length) as usize).saturating_add(8);
        let Some(data) = self.0.get(8..end) else {
            self.0 = &[];
            return Some(Err(breaks_off("WebP")));
        };
        self.0 = self.0.get(end + end % 2..).unwrap_or_default();
        Some(Ok((kind, data)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::decode::decode;
    use super::super::tests::{LIMITS, fixture};
    use super::*;

    #[test]
    fn the_orientation_is_the_one_that_pillow_finds() {
        // As `Image.getexif` of Pillow 12 answers.
        let exif = |kind: u8, count: u8, value: u8| {
            [b"II*\0\x08\0\0\0\x01\0\x12\x01", &[kind, 0, count, 0, 0, 0, value, 0, 0, 0][..]].concat()
        };
        let (right, none) = (Orientation::Rotate90, Orientation::NoTransforms);
        let six: Option<&[u8]> = Some(b"tiff:Orientation=\"6\"");
        let other_tag = [b"II*\0\x08\0\0\0\x01\0\x00\x01", &[3, 0, 1, 0, 0, 0, 6, 0, 0, 0][..]].concat();
        let big = [b"MM\0*\0\0\0\x08\0\x01\x01\x12", &[0, 3, 0, 0, 0, 1, 0, 6, 0, 0][..]].concat();
        for (what, exif, xmp, wanted) in [
            ("a short", Some(exif(3, 1, 6)), None, right),
            ("a long", Some(exif(4, 1, 6)), None, right),
            ("signed", Some(exif(6, 1, 6)), None, right),
            ("in the other byte order", Some(big), None, right),
            ("bytes, which are no number", Some(exif(1, 1, 6)), six, none),
            ("text", Some(exif(2, 1, b'6')), six, none),
            ("one of two", Some(exif(3, 2, 6)), None, right),
            ("0, and XMP is not asked", Some(exif(3, 1, 0)), six, none),
            ("9, and XMP is not asked", Some(exif(3, 1, 9)), six, none),
            ("another tag, and XMP is asked", Some(other_tag), six, right),
            ("no EXIF", Some(b"no EXIF".to_vec()), six, right),
            ("the first digit of XMP", None, Some(b"tiff:Orientation>9 tiff:Orientation>6"), none),
            ("what is a digit", None, Some(b"tiff:Orientation=\"x tiff:Orientation>6"), right),
        ] {
            let outline = Outline { exif: exif.as_deref(), xmp, ..Outline::default() };
            assert_eq!(outline.orientation(), wanted, "{what}");
        }
    }

    #[test]
    fn no_lossless_picture_is_refused_that_the_decoder_reads() {
        let mut read = 0;
        for name in ["lossless.webp", "lossless_alpha.webp", "lossy_alpha.webp", "animated.webp"] {
            let whole = fixture(name);
            for (index, mask) in (20..whole.len()).flat_map(|index| [1, 16, 0x55].map(|mask| (index, mask))) {
                let mut bytes = whole.clone();
                bytes[index] ^= mask;
                let decoder = image::codecs::webp::WebPDecoder::new(std::io::Cursor::new(&bytes));
                let is_read = decoder.and_then(image::DynamicImage::from_decoder).is_ok();
                read += usize::from(is_read);
                let refused = decode(&bytes, &LIMITS).err().map(|error| error.to_string()).unwrap_or_default();
                assert!(!(is_read && refused.contains("lossless")), "{name}, byte {index}: {refused}");
            }
        }
        assert!(read > 100, "{read}");
    }

    #[test]
    fn what_lies_behind_a_webp_is_not_for_the_decoder() {
        let lossless = fixture("lossless.webp");
        let (width, height) = webp_outline(&lossless).unwrap().size;
        let side = |side: u32| (side - 1).to_le_bytes()[..3].to_vec();
        let head = [b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0".to_vec(), side(width), side(height)].concat();
        let hidden = [&head[..], &lossless[12..]].concat();
        let decoder = image::codecs::webp::WebPDecoder::new(std::io::Cursor::new(&hidden));
        assert!(decoder.and_then(image::DynamicImage::from_decoder).is_ok(), "by itself, it would read that");
        assert!(decode(&hidden, &LIMITS).is_err());
    }

    #[test]
    fn frames_are_of_animations_and_as_large_as_they_say() {
        let animated = fixture("animated.webp");
        assert!(decode(&animated, &LIMITS).is_ok());
        let frame = animated.windows(4).position(|window| window == b"ANMF").unwrap() + 8;
        for (index, mask) in [(20, 2), (frame + 6, 1), (frame + 9, 1)] {
            let mut bytes = animated.clone();
            bytes[index] ^= mask;
            let error = decode(&bytes, &LIMITS).unwrap_err().to_string();
            assert!(
                error.contains("a frame is damaged") || error.contains("lossless picture is damaged"),
                "{index}: {error}"
            );
        }
    }

    /// A TIFF's header and directory, with these entries of (tag, type, value).
    fn tiff(is_little: bool, entries: &[(u32, u32, u32)]) -> Vec<u8> {
        let number = |value: u32, length: usize| {
            let bytes = value.to_le_bytes()[..length].to_vec();
            if is_little { bytes } else { bytes.into_iter().rev().collect() }
        };
        let mut bytes = if is_little { b"II".to_vec() } else { b"MM".to_vec() };
        bytes.extend([number(42, 2), number(8, 4), number(entries.len() as u32, 2)].concat());
        for &(tag, kind, value) in entries {
            let length = if kind == 3 { 2 } else { 4 };
            bytes.extend([number(tag, 2), number(kind, 2), number(1, 4), number(value, length)].concat());
            bytes.resize(bytes.len() + 4 - length, 0);
        }
        bytes
    }

    #[test]
    fn a_tiff_of_jpegs_is_seen_in_either_order_of_bytes() {
        for is_little in [true, false] {
            let holds_jpegs = |entries: &[(u32, u32, u32)]| tiff_may_hold_jpegs(&tiff(is_little, entries));
            assert!(holds_jpegs(&[(256, 3, 7), (259, 3, 7)]) && holds_jpegs(&[(259, 4, 7)]));
            assert!(holds_jpegs(&[(259, 3, 5), (259, 3, 7)]), "the last one of two");
            assert!(holds_jpegs(&[(259, 1, 1)]), "of a type that none has");
            assert!(!holds_jpegs(&[(256, 3, 7), (259, 3, 5)]) && !holds_jpegs(&[(259, 4, 1)]) && !holds_jpegs(&[]));
        }
        let whole = tiff(true, &[(256, 3, 7), (259, 3, 1)]);
        assert!((0..whole.len()).all(|length| !tiff_may_hold_jpegs(&whole[..length])));
    }
}
