//! Bytes to pixels to tensor: image decoding and the steps of the Hugging Face image processors.
#![cfg_attr(
    not(any(feature = "turbojpeg", target_arch = "x86_64")),
    allow(dead_code, reason = "the decoder that needs no tools decodes all of a picture, whatever the demand")
)]

mod buffer;
mod classes;
mod config;
mod container;
mod decode;
mod gif;
mod jpeg;
mod kernel;
mod normalize;
mod prepared;
mod processor;
mod resize;
mod simd;
#[cfg(test)]
mod tests;
mod tiff;
mod vp8l;
mod window;

pub use config::ProcessorError;
pub use decode::{DecodeError, DecodeLimits, DecodeMode, MAX_SIDE, decode};
pub use jpeg::JpegDecoder;
pub use prepared::PreparedImage;
pub use processor::ImageProcessor;

/// The JPEG decoder that is compiled in.
pub const JPEG_DECODER: JpegDecoder = jpeg::DECODER;
