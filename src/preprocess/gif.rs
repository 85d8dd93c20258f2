//! GIF: the first frame on its screen, as Pillow shows it.

use std::num::NonZeroU64;

use gif::{ColorOutput, DecodeOptions, DecodingError, MemoryLimit};
use image::{Rgb, RgbImage};

use super::container::four;
use super::decode::{DecodeError, DecodeLimits, METADATA_BYTES, breaks_off, corrupt};

const FORMAT: &str = "GIF";

/// Decodes the first frame. What it leaves of the screen has the transparent colour, or else the palette's first; a frame
/// that does not fit makes the screen larger. (The `image` crate leaves the rest black and cuts the frame off.)
pub(super) fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<RgbImage, DecodeError> {
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    let memory = limits.max_pixels.saturating_add(METADATA_BYTES);
    options.set_memory_limit(MemoryLimit::Bytes(NonZeroU64::new(memory).unwrap_or(NonZeroU64::MIN)));
    let [w0, w1, h0, h1] = four(bytes, 6).ok_or_else(|| breaks_off(FORMAT))?;
    let screen = (u32::from(u16::from_le_bytes([w0, w1])), u32::from(u16::from_le_bytes([h0, h1])));
    limits.check(screen)?;
    let mut decoder = options.read_info(bytes).map_err(failed)?;
    let frame = decoder.next_frame_info().map_err(failed)?.ok_or_else(|| breaks_off(FORMAT))?;
    let (left, top) = (u32::from(frame.left), u32::from(frame.top));
    let (width, height) = (u32::from(frame.width), u32::from(frame.height));
    let transparent = usize::from(frame.transparent.unwrap_or(0));
    if width == 0 || height == 0 {
        return Err(DecodeError::ZeroSized { width, height });
    }
    let size = (screen.0.max(left + width), screen.1.max(top + height));
    limits.check(size)?;
    let mut indices = vec![0; decoder.buffer_size()];
    decoder.read_into_buffer(&mut indices).map_err(failed)?;
    let palette = decoder.palette().map(colours).map_err(failed)?;
    let colour = |index: usize| Rgb(palette.get(index).copied().unwrap_or_default());
    let mut image = RgbImage::from_pixel(size.0, size.1, colour(transparent));
    for (y, row) in (top..).zip(indices.chunks_exact(width as usize)) {
        for (x, &index) in (left..).zip(row) {
            image.put_pixel(x, y, colour(usize::from(index)));
        }
    }
    Ok(image)
}

fn colours(palette: &[u8]) -> Vec<[u8; 3]> {
    palette.as_chunks::<3>().0.to_vec()
}

fn failed(error: DecodingError) -> DecodeError {
    match error {
        DecodingError::Io(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => breaks_off(FORMAT),
        DecodingError::MemoryLimit => corrupt(FORMAT, "it asks for more memory than an image of its size needs"),
        error => corrupt(FORMAT, error),
    }
}
