//! An upload's bytes become RGB8 pixels, as Pillow's `exif_transpose` and `convert("RGB")` leave them.

use std::io::Cursor;

use image::codecs::{bmp::BmpDecoder, png::PngDecoder, tiff::TiffDecoder, webp::WebPDecoder};
use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ImageDecoder, ImageError, ImageFormat, Limits, RgbImage};
use serde::Serialize;
use utoipa::ToSchema;

use super::container;
use super::window::Margins;
use super::{buffer, gif, jpeg};

/// Longest side an image may have, in pixels: what JPEG, GIF and BMP can say. Resizing costs memory in
/// proportion to the longer side alone, so the number of pixels would not bound it.
pub const MAX_SIDE: u32 = 65_535;

/// What metadata (profiles, comments, directories) may take beside the pixels, in bytes.
pub(super) const METADATA_BYTES: u64 = 16 << 20;

/// Below the rows that one of two threads reads there have to be so many pixels, or the other costs more than it spares.
const LEAST_DIVIDED: usize = 1 << 15;

/// What an upload may cost before any pixel is decoded.
///
/// Decoders get memory in proportion to the pixels the image itself declares, at most about 16 bytes each
/// (16-bit RGBA, twice) and 16 MiB for metadata, so `max_pixels` bounds both; lossless WebPs up to some 300 MB more for their
/// codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeLimits {
    /// Most pixels (width times height) an image may have.
    pub max_pixels: u64,
}

/// How exactly JPEGs are decoded that are much larger than what a model sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DecodeMode {
    /// In full, as the reference does.
    Exact,
    /// At a fraction of their size, at least twice what they are resized to, where the decoder offers it.
    Fast,
}

impl DecodeMode {
    /// All, in the order in which a help text names them.
    pub const ALL: [Self; 2] = [Self::Exact, Self::Fast];

    /// The name in settings and answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Fast => "fast",
        }
    }

    /// What the JPEG decoders that are compiled in make of it.
    pub fn in_effect(self) -> Self {
        if jpeg::reduces() { self } else { Self::Exact }
    }

    /// The mode called `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }
}

/// What of an upright picture will be looked at; sizes are (width, height).
pub(super) trait Demand {
    /// The size at which a picture of this size is decoded at least.
    fn size(&self, full: (u32, u32)) -> (u32, u32);

    /// What of a picture of the size `full` that is decoded at the size `decoded` need not be there.
    fn margins(&self, full: (u32, u32), decoded: (u32, u32)) -> Margins;
}

/// All of it.
pub(super) struct Everything;

impl Demand for Everything {
    fn size(&self, full: (u32, u32)) -> (u32, u32) {
        full
    }

    fn margins(&self, _full: (u32, u32), _decoded: (u32, u32)) -> Margins {
        Margins::default()
    }
}

/// An upright RGB8 picture, or part of one.
#[derive(Debug)]
pub(super) struct Decoded {
    pub(super) pixels: RgbImage,
    /// What was cut from it.
    pub(super) cut: Margins,
    /// Width and height that it has in full; the pixels are fewer where it was cut, or decoded at a fraction.
    pub(super) size: (u32, u32),
}

/// Why bytes did not become an image. All messages are fit for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// There are no bytes.
    #[error("the image is empty")]
    Empty,
    /// No format that is read here.
    #[error("the bytes are not a JPEG, PNG, WebP, GIF, BMP or TIFF image")]
    UnknownFormat,
    /// A known format, in a form that is not read here.
    #[error("this kind of {format} image is not supported: {reason}")]
    Unsupported {
        /// The format's name.
        format: &'static str,
        /// What about it.
        reason: String,
    },
    /// More pixels than [`DecodeLimits::max_pixels`].
    #[error("the image has {width}x{height} = {} pixels, more than the limit of {limit}", u64::from(*width) * u64::from(*height))]
    TooManyPixels {
        /// Declared width in pixels.
        width: u32,
        /// Declared height in pixels.
        height: u32,
        /// The limit, in pixels.
        limit: u64,
    },
    /// A side longer than [`MAX_SIDE`].
    #[error("the image is {width}x{height} pixels; the limit for a side is {limit}")]
    SideTooLong {
        /// Declared width in pixels.
        width: u32,
        /// Declared height in pixels.
        height: u32,
        /// The limit, in pixels.
        limit: u32,
    },
    /// Width or height is 0.
    #[error("the image has no pixels ({width}x{height})")]
    ZeroSized {
        /// Declared width in pixels.
        width: u32,
        /// Declared height in pixels.
        height: u32,
    },
    /// The image breaks off or contradicts itself.
    #[error("the {format} image cannot be decoded: {reason}")]
    Corrupt {
        /// The format's name.
        format: &'static str,
        /// What is wrong.
        reason: String,
    },
}

impl DecodeLimits {
    /// Checks a size that a header declares.
    pub(super) fn check(&self, (width, height): (u32, u32)) -> Result<(), DecodeError> {
        if width == 0 || height == 0 {
            return Err(DecodeError::ZeroSized { width, height });
        }
        let limit = self.max_pixels;
        if u64::from(width) * u64::from(height) > limit {
            return Err(DecodeError::TooManyPixels { width, height, limit });
        }
        if width.max(height) > MAX_SIDE {
            return Err(DecodeError::SideTooLong { width, height, limit: MAX_SIDE });
        }
        Ok(())
    }
}

/// Decodes `bytes`, whose format is recognised from themselves, to upright RGB8.
///
/// As in Pillow, which the reference uses: EXIF orientation is applied, alpha is dropped without compositing,
/// palettes are expanded, colour profiles are ignored, and of animations the first frame is taken. Unlike
/// Pillow, 16-bit gray keeps its high byte (Pillow clips at 255, which leaves such pictures white).
///
/// # Errors
/// See [`DecodeError`]; the declared size is checked before any pixel is decoded.
pub fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<RgbImage, DecodeError> {
    Ok(decode_demanded(bytes, limits, &Everything)?.pixels)
}

/// As [`decode`], but may leave out pixels for which there is no demand.
pub(super) fn decode_demanded(
    bytes: &[u8],
    limits: &DecodeLimits,
    demand: &impl Demand,
) -> Result<Decoded, DecodeError> {
    if bytes.is_empty() {
        return Err(DecodeError::Empty);
    }
    let format = image::guess_format(bytes).map_err(|_| DecodeError::UnknownFormat)?;
    let (pixels, orientation) = match format {
        ImageFormat::Jpeg => {
            let outline = jpeg::outline(bytes)?;
            limits.check(outline.size)?;
            let orientation = outline.orientation();
            let demand = Turned { demand, orientation };
            let decoded = jpeg::decode(&bytes[..outline.end], &outline, &demand)?;
            let (cut, size) = (turn_margins(decoded.cut, orientation), turn(decoded.size, orientation));
            return Ok(Decoded { pixels: upright(decoded.pixels, orientation), cut, size });
        }
        ImageFormat::Png => {
            let outline = container::png_outline(bytes)?;
            limits.check(outline.size)?;
            let decoder = PngDecoder::with_limits(Cursor::new(bytes), decoder_limits(outline.size));
            (read("PNG", limits, decoder)?.0, outline.orientation())
        }
        ImageFormat::WebP => {
            let outline = container::webp_outline(bytes)?;
            limits.check(outline.size)?;
            let bytes = &bytes[..outline.end];
            container::check_webp_pictures(bytes, outline.size)?;
            (read("WebP", limits, WebPDecoder::new(Cursor::new(bytes)))?.0, outline.orientation())
        }
        ImageFormat::Gif => (gif::decode(bytes, limits)?, Orientation::NoTransforms),
        ImageFormat::Bmp => read("BMP", limits, BmpDecoder::new(Cursor::new(bytes)))?,
        ImageFormat::Tiff if container::tiff_may_hold_jpegs(bytes) => {
            return Err(unsupported("TIFF", "its pixels are compressed as JPEG"));
        }
        ImageFormat::Tiff => read("TIFF", limits, TiffDecoder::new(Cursor::new(bytes)))?,
        _ => return Err(DecodeError::UnknownFormat),
    };
    let pixels = upright(pixels, orientation);
    let size = pixels.dimensions();
    Ok(Decoded { pixels, cut: Margins::default(), size })
}

/// Would two threads, of which one reads the rows that `upper` demands, and one those below, take less time than one?
pub(super) fn is_divisible(bytes: &[u8], limits: &DecodeLimits, upper: &impl Demand) -> bool {
    if image::guess_format(bytes).ok() != Some(ImageFormat::Jpeg) {
        return false;
    }
    let Ok(outline) = jpeg::outline(bytes) else { return false };
    let (size, is_upright) = (outline.size, outline.orientation() == Orientation::NoTransforms);
    if !is_upright || limits.check(size).is_err() || !jpeg::decodes_rows(&outline, upper.size(size)) {
        return false;
    }
    upper.margins(size, size).bottom * size.0 as usize >= LEAST_DIVIDED
}

/// The demand on an upright picture, as one on the picture as stored.
struct Turned<'a, D> {
    demand: &'a D,
    orientation: Orientation,
}

impl<D: Demand> Demand for Turned<'_, D> {
    fn size(&self, full: (u32, u32)) -> (u32, u32) {
        turn(self.demand.size(turn(full, self.orientation)), self.orientation)
    }

    fn margins(&self, full: (u32, u32), decoded: (u32, u32)) -> Margins {
        let Self { demand, orientation } = self;
        turn_margins(demand.margins(turn(full, *orientation), turn(decoded, *orientation)), *orientation)
    }
}

fn upright(pixels: RgbImage, orientation: Orientation) -> RgbImage {
    use Orientation::{NoTransforms, Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
    match orientation {
        NoTransforms => pixels,
        Rotate90 => turned(pixels, true, false),
        Rotate270 => turned(pixels, false, true),
        Rotate90FlipH => turned(pixels, false, false),
        Rotate270FlipH => turned(pixels, true, true),
        _ => {
            let mut pixels = DynamicImage::ImageRgb8(pixels);
            pixels.apply_orientation(orientation);
            pixels.into_rgb8()
        }
    }
}

/// Columns as rows, from right to left or from the bottom up if so asked. (By the `image` crate it takes longer than to decode.)
fn turned(pixels: RgbImage, from_right: bool, from_bottom: bool) -> RgbImage {
    /// Both pictures are gone through by squares with so many pixels at a side, whose rows stay in the processor's cache.
    const SIDE: usize = 32;
    let (width, height) = (pixels.width() as usize, pixels.height() as usize);
    let mut target = buffer::take(width * height * 3);
    let (places, _) = target.as_chunks_mut::<3>();
    for (top, left) in (0..height).step_by(SIDE).flat_map(|top| (0..width).step_by(SIDE).map(move |left| (top, left))) {
        for y in top..height.min(top + SIDE) {
            let column = if from_right { height - 1 - y } else { y };
            let row = &pixels.as_raw().as_chunks::<3>().0[y * width..][..width];
            for (x, pixel) in (left..width).zip(&row[left..width.min(left + SIDE)]) {
                let row_of_target = if from_bottom { width - 1 - x } else { x };
                places[row_of_target * height + column] = *pixel;
            }
        }
    }
    let size = (pixels.height(), pixels.width());
    buffer::give_back(pixels.into_raw());
    RgbImage::from_raw(size.0, size.1, target).unwrap_or_default()
}

/// The upright size of a picture of this size as stored, or the other way round.
fn turn<T>((width, height): (T, T), orientation: Orientation) -> (T, T) {
    use Orientation::{FlipHorizontal, FlipVertical, NoTransforms, Rotate180};
    match orientation {
        NoTransforms | FlipHorizontal | FlipVertical | Rotate180 => (width, height),
        _ => (height, width),
    }
}

/// The upright margins of a picture with these as stored, or the other way round. Of one that is turned, the smaller of top and bottom
/// counts for both, so that it does not matter which becomes which.
fn turn_margins(margins: Margins, orientation: Orientation) -> Margins {
    if orientation == Orientation::NoTransforms {
        return margins;
    }
    let (sides, ends) = turn((margins.sides, margins.top.min(margins.bottom)), orientation);
    Margins { sides, top: ends, bottom: ends }
}

/// Memory for decoding an image of this size, whatever its chunks inflate to.
fn decoder_limits((width, height): (u32, u32)) -> Limits {
    let mut limits = Limits::default();
    let pixels = u64::from(width) * u64::from(height);
    limits.max_alloc = Some(pixels.saturating_mul(16).saturating_add(METADATA_BYTES));
    limits
}

/// Decodes an image whose decoder has read no more than the header so far.
fn read<D: ImageDecoder>(
    format: &'static str,
    limits: &DecodeLimits,
    decoder: Result<D, ImageError>,
) -> Result<(RgbImage, Orientation), DecodeError> {
    let failed = |error| into_decode_error(format, error);
    let mut decoder = decoder.map_err(failed)?;
    let size = decoder.dimensions();
    limits.check(size)?;
    let color = decoder.color_type();
    if matches!(color, ColorType::Rgb32F | ColorType::Rgba32F) {
        return Err(unsupported(format, "floating-point colours"));
    }
    decoder.set_limits(decoder_limits(size)).map_err(failed)?;
    // Only TIFF tells its orientation this cheaply, and only TIFF has no outline.
    let orientation = if format == "TIFF" { decoder.orientation().map_err(failed)? } else { Orientation::NoTransforms };
    let length = usize::try_from(decoder.total_bytes()).map_err(|_| corrupt(format, "it is too large"))?;
    let mut buffer = buffer::take(length);
    // Not all decoders fill it whatever the file holds, and no picture may show what another one left behind.
    buffer.fill(0);
    decoder.read_image(&mut buffer).map_err(failed)?;
    let rgb = to_rgb(color, buffer).ok_or_else(|| unsupported(format, "its colour type"))?;
    let pixels = RgbImage::from_raw(size.0, size.1, rgb).ok_or_else(|| corrupt(format, "pixels are missing"))?;
    Ok((pixels, orientation))
}

/// Drops alpha and the low byte of 16-bit samples, and triples gray.
fn to_rgb(color: ColorType, buffer: Vec<u8>) -> Option<Vec<u8>> {
    let high = |sample: &[u8]| u16::from_ne_bytes([sample[0], sample[1]]).to_be_bytes()[0];
    Some(match color {
        ColorType::Rgb8 => buffer,
        ColorType::L8 => map_pixels::<1>(&buffer, |pixel| [pixel[0]; 3]),
        ColorType::La8 => map_pixels::<2>(&buffer, |pixel| [pixel[0]; 3]),
        ColorType::Rgba8 => map_pixels::<4>(&buffer, |pixel| [pixel[0], pixel[1], pixel[2]]),
        ColorType::L16 => map_pixels::<2>(&buffer, |pixel| [high(pixel); 3]),
        ColorType::La16 => map_pixels::<4>(&buffer, |pixel| [high(pixel); 3]),
        ColorType::Rgb16 => map_pixels::<6>(&buffer, |pixel| [high(&pixel[0..]), high(&pixel[2..]), high(&pixel[4..])]),
        ColorType::Rgba16 => {
            map_pixels::<8>(&buffer, |pixel| [high(&pixel[0..]), high(&pixel[2..]), high(&pixel[4..])])
        }
        _ => return None,
    })
}

fn map_pixels<const BYTES: usize>(buffer: &[u8], to_rgb: impl Fn(&[u8; BYTES]) -> [u8; 3]) -> Vec<u8> {
    let (pixels, _) = buffer.as_chunks::<BYTES>();
    let mut rgb = vec![0; pixels.len() * 3];
    for (target, pixel) in rgb.as_chunks_mut::<3>().0.iter_mut().zip(pixels) {
        *target = to_rgb(pixel);
    }
    rgb
}

/// What a decoder says, in words for the client.
pub(super) fn into_decode_error(format: &'static str, error: ImageError) -> DecodeError {
    match error {
        ImageError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => breaks_off(format),
        ImageError::Limits(_) => corrupt(format, "it asks for more memory than an image of its size needs"),
        ImageError::Unsupported(error) => unsupported(format, error),
        error => corrupt(format, error),
    }
}

pub(super) fn corrupt(format: &'static str, reason: impl ToString) -> DecodeError {
    DecodeError::Corrupt { format, reason: reason.to_string() }
}

pub(super) fn breaks_off(format: &'static str) -> DecodeError {
    corrupt(format, "it breaks off")
}

pub(super) fn unsupported(format: &'static str, reason: impl ToString) -> DecodeError {
    DecodeError::Unsupported { format, reason: reason.to_string() }
}
