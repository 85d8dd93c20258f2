//! JPEGs from libjpeg-turbo's compressor, and what may be asked of a decoder.

use image::RgbImage;
use turbojpeg::{Image, PixelFormat, Subsamp, compress};

use crate::preprocess::decode::Demand;
use crate::preprocess::window::Margins;

/// A demand for this size and these margins.
pub(in crate::preprocess) struct Asked(pub(in crate::preprocess) (u32, u32), pub(in crate::preprocess) Margins);

impl Demand for Asked {
    fn size(&self, _full: (u32, u32)) -> (u32, u32) {
        self.0
    }

    fn margins(&self, _full: (u32, u32), _decoded: (u32, u32)) -> Margins {
        self.1
    }
}

pub(in crate::preprocess) fn jpeg(image: &RgbImage, quality: i32, subsampling: Subsamp) -> Vec<u8> {
    compress(as_input(image), quality, subsampling).unwrap().to_vec()
}

/// For a compressor.
pub(in crate::preprocess) fn as_input(image: &RgbImage) -> Image<&[u8]> {
    let (width, height) = (image.width() as usize, image.height() as usize);
    Image { pixels: image.as_raw().as_slice(), width, pitch: width * 3, height, format: PixelFormat::RGB }
}
