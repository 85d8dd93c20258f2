//! The built-in photos and labels that the fidelity of a precision is judged on.

use crate::preprocess::{DecodeLimits, ImageProcessor, ImageTensor, decode};

/// Small photos, CC0 or in the public domain: an astronaut (NASA), a photographer (Lav Varshney), a cat (Stefan van der Walt),
/// ancient coins (Brooklyn Museum), coffee (Rachel Michetti) and a rocket (SpaceX), as scikit-image has them.
const PHOTOS: [&[u8]; 6] = [
    include_bytes!("probe/astronaut.jpg"),
    include_bytes!("probe/camera.jpg"),
    include_bytes!("probe/chelsea.jpg"),
    include_bytes!("probe/coins.jpg"),
    include_bytes!("probe/coffee.jpg"),
    include_bytes!("probe/rocket.jpg"),
];

/// Labels that fit the photos, and some that fit none.
pub(super) const LABELS: [&str; 10] = [
    "an astronaut",
    "a photographer",
    "a cat",
    "coins",
    "a cup of coffee",
    "a rocket",
    "a dog",
    "a car",
    "a landscape",
    "a page of text",
];

/// The photos as a model sees them.
pub(super) fn photos(processor: &ImageProcessor) -> Vec<ImageTensor> {
    let limits = DecodeLimits { max_pixels: 1 << 20 };
    PHOTOS.iter().filter_map(|photo| decode(photo, &limits).ok()).map(|image| processor.process(&image)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_photo_can_be_read() {
        let processor = ImageProcessor::from_json(&serde_json::json!({}), Some("vit")).unwrap();
        assert_eq!(photos(&processor).len(), PHOTOS.len());
    }
}
