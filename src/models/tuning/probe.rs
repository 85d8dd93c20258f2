//! The built-in photos and labels that the fidelity of a precision is judged on.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::timing::Preparation;
use crate::models::Padding;
use crate::preprocess::{DecodeLimits, ImageProcessor, PreparedImage, decode};

/// Items to judge fidelity on, as another process is told to make them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::models) enum Probe {
    /// The built-in photos, through this image processor.
    Photos {
        /// Its effective settings.
        image_processor: Value,
    },
    /// The built-in labels, as tokens.
    Prompts { tokens: Vec<Vec<i64>>, max_length: usize, padding: Padding, image_size: (usize, usize) },
}

/// A photo as it is often sent, of 640×480, costs about as much as so many of the built-in ones: 2.3 ms, as measured.
const USUAL_PHOTO: usize = 5;

impl Probe {
    /// What a server computes for an item of a usual size before it can be in a batch; `None` where that is next to nothing.
    pub(in crate::models) fn preparation(&self) -> Option<Box<Preparation<'static>>> {
        let Self::Photos { image_processor } = self else { return None };
        let processor = ImageProcessor::from_json(image_processor, None).ok()?;
        Some(Box::new(move || drop(photos_of(&processor, &PHOTOS[..USUAL_PHOTO]))))
    }
}

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
pub(in crate::models) const LABELS: [&str; 10] = [
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
pub(in crate::models) fn photos(processor: &ImageProcessor) -> Vec<PreparedImage> {
    photos_of(processor, &PHOTOS)
}

fn photos_of(processor: &ImageProcessor, encoded: &[&[u8]]) -> Vec<PreparedImage> {
    let limits = DecodeLimits { max_pixels: 1 << 20 };
    encoded.iter().filter_map(|photo| decode(photo, &limits).ok()).map(|image| processor.prepare(&image)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_photo_can_be_read() {
        let processor = ImageProcessor::from_json(&serde_json::json!({}), Some("vit")).unwrap();
        assert_eq!(photos(&processor).len(), PHOTOS.len());
        let told = serde_json::to_value(&processor).unwrap();
        let retold = ImageProcessor::from_json(&told, None).unwrap();
        assert_eq!(photos(&retold), photos(&processor), "the effective settings say it all");
    }
}
