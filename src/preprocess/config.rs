//! `preprocessor_config.json` as read and checked: every effective setting, and which of them were defaults.

use serde::Serialize;
use serde_json::{Map, Value};

use super::classes::{self, Class};
use super::kernel::Filter;

/// What a processor config lacks or asks for in vain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {problem}")]
pub struct ProcessorError {
    /// The key.
    pub key: String,
    /// What is wrong with it.
    pub problem: String,
}

impl ProcessorError {
    pub(super) fn new(key: &str, problem: impl Into<String>) -> Self {
        Self { key: key.to_owned(), problem: problem.into() }
    }
}

/// What an image is resized to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(super) enum Size {
    /// Both sides, whatever the aspect ratio.
    Exact { height: usize, width: usize },
    /// The shorter side; the other keeps the aspect ratio.
    ShortestEdge { shortest_edge: usize },
}

/// A height and a width in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct CropSize {
    pub(super) height: usize,
    pub(super) width: usize,
}

/// The settings in effect, by the names of the file.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Settings {
    pub(super) image_processor_type: &'static str,
    pub(super) do_resize: bool,
    pub(super) size: Size,
    #[serde(serialize_with = "as_number")]
    pub(super) resample: Filter,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) crop_pct: Option<f64>,
    pub(super) do_center_crop: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) crop_size: Option<CropSize>,
    pub(super) do_rescale: bool,
    pub(super) rescale_factor: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rescale_offset: Option<bool>,
    pub(super) do_normalize: bool,
    pub(super) image_mean: [f64; 3],
    pub(super) image_std: [f64; 3],
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) include_top: Option<bool>,
}

fn as_number<S: serde::Serializer>(filter: &Filter, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u8(filter.number())
}

/// Keys that do not change pixels here: bookkeeping, output formats, and steps for labels or batches.
const HARMLESS: [&str; 19] = [
    "_valid_kwargs_names",
    "_valid_processor_keys",
    "auto_map",
    "data_format",
    "device",
    "disable_grouping",
    // Images arrive as RGB.
    "do_convert_rgb",
    // Concerns segmentation maps.
    "do_reduce_labels",
    "feature_extractor_type",
    "image_processor_type",
    "image_seq_length",
    "input_data_format",
    "model_input_names",
    "num_channels",
    "pad_size",
    "processor_class",
    "reduce_labels",
    "return_tensors",
    "transformers_version",
];

const CLIP_STATISTICS: ([f64; 3], [f64; 3]) =
    ([0.481_454_66, 0.457_827_5, 0.408_210_73], [0.268_629_54, 0.261_302_58, 0.275_777_11]);

impl Settings {
    /// Reads the content of a processor config. Returns the settings and the defaults they took, as `key = value`.
    pub(super) fn from_json(config: &Value, model_type: Option<&str>) -> Result<(Self, Vec<String>), ProcessorError> {
        let map = config.as_object().ok_or_else(|| ProcessorError::new("image_processor", "must be a JSON object"))?;
        let mut keys = Keys { map, defaults: Vec::new(), known: HARMLESS.to_vec() };
        let named = ["image_processor_type", "feature_extractor_type"];
        let named = named.into_iter().find_map(|key| Some((key, keys.given(key)?)));
        let named = named.map(|(key, value)| Ok((key, value.as_str().ok_or_else(|| wrong(key, "a text", value))?)));
        let class = classes::find(named.transpose()?, model_type)?;
        let settings = keys.settings(class)?;
        keys.refuse_unknown()?;
        Ok((settings, keys.defaults))
    }
}

/// The keys of a file, with a record of what was asked for.
struct Keys<'a> {
    map: &'a Map<String, Value>,
    defaults: Vec<String>,
    known: Vec<&'static str>,
}

impl<'a> Keys<'a> {
    /// A key's value; `null` counts as missing.
    fn given(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Reads a key, or takes its default and notes that.
    fn read<T: Serialize>(
        &mut self,
        key: &'static str,
        default: T,
        parse: impl FnOnce(&'a Value) -> Result<T, ProcessorError>,
    ) -> Result<T, ProcessorError> {
        self.known.push(key);
        match self.given(key) {
            Some(value) => parse(value),
            None => {
                let shown = serde_json::to_string(&default).unwrap_or_default();
                self.defaults.push(format!("{key} = {shown}"));
                Ok(default)
            }
        }
    }

    fn switch(&mut self, key: &'static str, default: bool) -> Result<bool, ProcessorError> {
        // In the reference, a step that is said to be nothing is not taken, whatever the default.
        if self.map.get(key).is_some_and(Value::is_null) {
            self.known.push(key);
            return Ok(false);
        }
        self.read(key, default, |value| value.as_bool().ok_or_else(|| wrong(key, "true or false", value)))
    }

    fn number(&mut self, key: &'static str, default: f64) -> Result<f64, ProcessorError> {
        let positive = |value: &Value| value.as_f64().filter(|number| number.is_finite() && *number > 0.0);
        self.read(key, default, |value| positive(value).ok_or_else(|| wrong(key, "a number above 0", value)))
    }

    fn settings(&mut self, class: &Class) -> Result<Settings, ProcessorError> {
        let number = class.resample.number();
        let resample = self.read("resample", number, |value| {
            value
                .as_u64()
                .and_then(|number| u8::try_from(number).ok())
                .ok_or_else(|| wrong("resample", "a number", value))
        })?;
        let default_to_square = match self.given("default_to_square") {
            Some(value) => value.as_bool().ok_or_else(|| wrong("default_to_square", "true or false", value))?,
            None => class.default_to_square,
        };
        self.known.push("default_to_square");
        let do_center_crop = self.switch_if(class.crop_size.is_some(), "do_center_crop", class.do_center_crop)?;
        let (mean, std) = if class.clip_statistics { CLIP_STATISTICS } else { ([0.5; 3], [0.5; 3]) };
        let efficient_net = class.name == "EfficientNetImageProcessor";
        let conv_next = class.name == "ConvNextImageProcessor";
        let settings = Settings {
            image_processor_type: class.name,
            do_resize: self.switch("do_resize", true)?,
            size: self.read("size", class.size, |value| parse_size("size", value, default_to_square))?,
            resample: parse_filter(resample)?,
            crop_pct: if conv_next { Some(self.number("crop_pct", 224.0 / 256.0)?) } else { None },
            do_center_crop,
            crop_size: if do_center_crop { Some(self.crop_size(class)?) } else { None },
            do_rescale: self.switch("do_rescale", true)?,
            rescale_factor: self.number("rescale_factor", 1.0 / 255.0)?,
            rescale_offset: if efficient_net { Some(self.switch("rescale_offset", false)?) } else { None },
            do_normalize: self.switch("do_normalize", true)?,
            image_mean: self.read("image_mean", mean, |value| parse_channels("image_mean", value))?,
            image_std: self.read("image_std", std, |value| parse_channels("image_std", value))?,
            include_top: if efficient_net { Some(self.switch("include_top", true)?) } else { None },
        };
        if settings.image_std.contains(&0.0) {
            return Err(ProcessorError::new("image_std", "must not be 0"));
        }
        self.known.push("crop_size");
        self.refuse_steps(class)?;
        Ok(settings)
    }

    /// A switch that classes without it may have in their files all the same; then its default is no news.
    fn switch_if(&mut self, has: bool, key: &'static str, default: bool) -> Result<bool, ProcessorError> {
        if has || self.given(key).is_some() {
            return self.switch(key, default);
        }
        self.known.push(key);
        Ok(default)
    }

    fn crop_size(&mut self, class: &Class) -> Result<CropSize, ProcessorError> {
        let parse = |value: &Value| match parse_size("crop_size", value, true)? {
            Size::Exact { height, width } => Ok(CropSize { height, width }),
            Size::ShortestEdge { .. } => Err(wrong("crop_size", "a number, or height and width", value)),
        };
        match (class.crop_size, self.given("crop_size")) {
            (None, None) => Err(ProcessorError::new("crop_size", "is missing, and do_center_crop is true")),
            (None, Some(value)) => parse(value),
            (Some(side), _) => self.read("crop_size", CropSize { height: side, width: side }, parse),
        }
    }

    /// Steps that the reference would take and this code does not.
    fn refuse_steps(&self, class: &Class) -> Result<(), ProcessorError> {
        let on = |key| self.given(key).is_some_and(|value| *value != Value::Bool(false));
        if class.pads && on("do_pad") {
            return Err(ProcessorError::new("do_pad", "is true, and padding is not implemented"));
        }
        if class.name == "CLIPImageProcessor" && on("use_square_size") {
            return Err(ProcessorError::new("use_square_size", "is not implemented; set size to height and width"));
        }
        match self.given("num_channels") {
            Some(value) if value.as_u64() != Some(3) => Err(wrong("num_channels", "3", value)),
            _ => Ok(()),
        }
    }

    /// Unknown keys are ignored, as in the reference, but not in silence: a switch that is on is an error.
    fn refuse_unknown(&self) -> Result<(), ProcessorError> {
        for (key, value) in self.map {
            if self.known.contains(&key.as_str()) || value.is_null() || *value == Value::Bool(false) {
                continue;
            }
            if key.starts_with("do_") && key != "do_pad" {
                return Err(ProcessorError::new(key, "is a step that is not implemented"));
            }
            tracing::warn!(key, %value, "ignored an unknown key of the image processor's config");
        }
        Ok(())
    }
}

fn wrong(key: &str, expected: &str, value: &Value) -> ProcessorError {
    ProcessorError::new(key, format!("must be {expected}, not {value}"))
}

fn parse_filter(number: u8) -> Result<Filter, ProcessorError> {
    let filters = [Filter::Nearest, Filter::Lanczos, Filter::Bilinear, Filter::Bicubic];
    filters.into_iter().find(|filter| filter.number() == number).ok_or_else(|| {
        let problem = format!("{number} is not implemented; 0 nearest, 1 Lanczos, 2 bilinear and 3 bicubic are");
        ProcessorError::new("resample", problem)
    })
}

/// A number, a list of height and width, or a dictionary with `height` and `width` or with `shortest_edge`.
fn parse_size(key: &str, value: &Value, default_to_square: bool) -> Result<Size, ProcessorError> {
    // Larger than any model's input; bounds what a processor may allocate.
    const MAX_SIDE: u64 = 8192;
    let side = |value: &Value| match value.as_u64() {
        Some(side @ 1..=MAX_SIDE) => Ok(side as usize),
        _ => Err(wrong(key, &format!("1 to {MAX_SIDE} pixels"), value)),
    };
    match value {
        Value::Array(sides) => match sides.as_slice() {
            [height, width] => Ok(Size::Exact { height: side(height)?, width: side(width)? }),
            _ => Err(wrong(key, "a list of height and width", value)),
        },
        Value::Object(sides) => {
            let mut given: Vec<_> = sides.iter().filter(|(_, side)| !side.is_null()).collect();
            given.sort_by_key(|(name, _)| name.as_str());
            match given.as_slice() {
                [(first, height), (second, width)] if *first == "height" && *second == "width" => {
                    Ok(Size::Exact { height: side(height)?, width: side(width)? })
                }
                [(name, edge)] if *name == "shortest_edge" => Ok(Size::ShortestEdge { shortest_edge: side(edge)? }),
                _ => Err(wrong(key, "a number, height and width, or shortest_edge alone", value)),
            }
        }
        _ if default_to_square => side(value).map(|side| Size::Exact { height: side, width: side }),
        _ => side(value).map(|side| Size::ShortestEdge { shortest_edge: side }),
    }
}

/// One number per channel, or one for all.
fn parse_channels(key: &str, value: &Value) -> Result<[f64; 3], ProcessorError> {
    let list = match value {
        Value::Array(values) => values.iter().map(Value::as_f64).collect::<Option<Vec<_>>>(),
        _ => value.as_f64().map(|value| vec![value; 3]),
    };
    let channels = list.and_then(|list| <[f64; 3]>::try_from(list).ok());
    channels.ok_or_else(|| wrong(key, "one number per colour channel (3)", value))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_step_that_is_null_is_not_taken() {
        let read = |config: Value| Settings::from_json(&config, None).unwrap().0;
        let class = |key: &str, value: Value| json!({"image_processor_type": "ViTImageProcessor", key: value});
        assert!(read(class("do_normalize", json!(true))).do_normalize);
        assert!(!read(class("do_normalize", Value::Null)).do_normalize);
        assert!(!read(class("do_rescale", Value::Null)).do_rescale);
        assert!(read(class("image_mean", Value::Null)).do_normalize, "another key is as if it were missing");
    }
}
