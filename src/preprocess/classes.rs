//! The image processor classes of transformers 5.23: which there are, and where their defaults differ.

use super::config::{ProcessorError, Size};
use super::kernel::Filter;

/// A processor class of transformers 5.23, and its defaults where classes differ.
pub(super) struct Class {
    pub(super) name: &'static str,
    pub(super) resample: Filter,
    pub(super) size: Size,
    /// What a lone number means as `size`.
    pub(super) default_to_square: bool,
    pub(super) crop_size: Option<usize>,
    pub(super) do_center_crop: bool,
    pub(super) clip_statistics: bool,
    /// `do_pad` is honoured; the classes that override the reference's `_preprocess` ignore it.
    pub(super) pads: bool,
}

const fn square(side: usize) -> Size {
    Size::Exact { height: side, width: side }
}

const fn shortest(side: usize) -> Size {
    Size::ShortestEdge { shortest_edge: side }
}

const VIT: Class = Class {
    name: "ViTImageProcessor",
    resample: Filter::Bilinear,
    size: square(224),
    default_to_square: true,
    crop_size: None,
    do_center_crop: false,
    clip_statistics: false,
    pads: true,
};

const CLIP: Class = Class {
    name: "CLIPImageProcessor",
    resample: Filter::Bicubic,
    size: shortest(224),
    default_to_square: false,
    crop_size: Some(224),
    do_center_crop: true,
    clip_statistics: true,
    pads: true,
};

const CLASSES: [Class; 8] = [
    VIT,
    CLIP,
    Class { name: "BitImageProcessor", ..CLIP },
    Class { name: "SiglipImageProcessor", resample: Filter::Bicubic, default_to_square: false, ..VIT },
    Class {
        name: "DeiTImageProcessor",
        resample: Filter::Bicubic,
        size: square(256),
        crop_size: Some(224),
        do_center_crop: true,
        ..VIT
    },
    Class { name: "BeitImageProcessor", resample: Filter::Bicubic, crop_size: Some(224), pads: false, ..VIT },
    Class {
        name: "EfficientNetImageProcessor",
        resample: Filter::Bicubic,
        size: square(346),
        crop_size: Some(289),
        pads: false,
        ..VIT
    },
    Class {
        name: "ConvNextImageProcessor",
        resample: Filter::Bicubic,
        size: shortest(384),
        default_to_square: false,
        pads: false,
        ..VIT
    },
];

/// The class of a processor config: as the file names it, else as the model's type implies.
///
/// # Errors
/// A class that is not implemented, or no class at all; both name the key.
pub(super) fn find(named: Option<(&str, &str)>, model_type: Option<&str>) -> Result<&'static Class, ProcessorError> {
    let (key, value, name) = match (named, model_type) {
        // Old files say FeatureExtractor, some even as an image processor's type; Fast and Pil are backends.
        (Some((key, value)), _) => {
            let name = value.replace("FeatureExtractor", "ImageProcessor");
            let name = name.strip_suffix("Fast").or_else(|| name.strip_suffix("Pil")).unwrap_or(&name).to_owned();
            (key, value, name)
        }
        (None, Some(model_type)) => {
            let name = implied_by(model_type).map(|name| format!("{name}ImageProcessor")).unwrap_or_default();
            ("model_type", model_type, name)
        }
        (None, None) => {
            return Err(ProcessorError::new("image_processor_type", "is missing, and config.json has no model_type"));
        }
    };
    CLASSES.iter().find(|class| class.name == name).ok_or_else(|| {
        let known: Vec<_> = CLASSES.iter().map(|class| class.name).collect();
        ProcessorError::new(key, format!("'{value}' is not implemented; those that are: {}", known.join(", ")))
    })
}

/// The class that goes with `model_type` of config.json.
fn implied_by(model_type: &str) -> Option<&'static str> {
    Some(match model_type {
        "beit" => "Beit",
        "clip" => "CLIP",
        "deit" => "DeiT",
        "dinov2" => "Bit",
        "efficientnet" => "EfficientNet",
        "resnet" | "convnext" | "convnextv2" => "ConvNext",
        "vit" | "swin" | "swinv2" => "ViT",
        "siglip" => "Siglip",
        _ => return None,
    })
}
