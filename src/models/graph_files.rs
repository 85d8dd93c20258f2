//! Which graph files a model folder holds, and which of them the settings ask for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::folder::FolderError;
use crate::config::ModelSettings;
use crate::runtime::Precision;

/// The graphs of a folder. A combined graph of a dual encoder is a `Single`; config.json tells.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum GraphFiles {
    /// `model.onnx`, or a variant of it.
    Single(PathBuf),
    /// `vision_model.onnx` and `text_model.onnx`, and `model.onnx` if that is there too.
    Split { vision: PathBuf, text: PathBuf, combined: Option<PathBuf> },
}

impl GraphFiles {
    /// Looks at the folder's top and in its `onnx/`, where the Hub's ONNX repositories have their graphs.
    pub(super) fn find(folder: &Path, settings: &ModelSettings) -> Result<Self, FolderError> {
        let choose = |stem| choose(stem, &variants(folder, stem), settings);
        let missing = |file, beside| Err(FolderError::new(file, format!("is missing beside {beside}")));
        // A variant may be of one encoder alone; the other is then the plain one.
        let has = |stem| settings.variant.as_ref().is_some_and(|wanted| variants(folder, stem).contains_key(wanted));
        let encoder = |stem, other| {
            let plain = ModelSettings { variant: None, ..settings.clone() };
            let settings = if has(other) && !has(stem) { &plain } else { settings };
            self::choose(stem, &variants(folder, stem), settings)
        };
        match (encoder("vision_model", "text_model")?, encoder("text_model", "vision_model")?) {
            (Some(vision), Some(text)) => {
                // Only asked for its scale, so its variant does not matter.
                let combined = variants(folder, "model").into_values().next();
                Ok(Self::Split { vision, text, combined })
            }
            (Some(_), None) => missing("text_model.onnx", "vision_model.onnx"),
            (None, Some(_)) => missing("vision_model.onnx", "text_model.onnx"),
            (None, None) => choose("model")?.map(Self::Single).ok_or_else(|| {
                FolderError::new(
                    "model.onnx",
                    "is missing; a folder holds model.onnx, or vision_model.onnx and text_model.onnx, at its top or in onnx/ \
                     (scripts/export makes one from a checkpoint)",
                )
            }),
        }
    }
}

/// The int8 variant beside a plain graph, as `scripts/quantize` makes it.
pub(super) fn int8_of(plain: &Path) -> Option<PathBuf> {
    let stem = plain.file_stem()?.to_str()?;
    // Variants have none.
    let is_plain = ["model", "vision_model", "text_model"].contains(&stem);
    Some(plain.with_file_name(file_name(stem, "int8"))).filter(|int8| is_plain && int8.is_file())
}

/// Files called `{stem}.onnx` and `{stem}_{variant}.onnx`, by variant; the plain one's is empty.
fn variants(folder: &Path, stem: &str) -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    for folder in [folder.to_path_buf(), folder.join("onnx")] {
        for path in std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let variant = name.strip_prefix(stem).and_then(|rest| rest.strip_suffix(".onnx"));
            let variant = variant.and_then(|rest| if rest.is_empty() { Some(rest) } else { rest.strip_prefix('_') });
            if let (Some(variant), true) = (variant, path.is_file()) {
                found.entry(variant.to_owned()).or_insert(path);
            }
        }
    }
    found
}

/// The variant that was asked for; else half precision for `f16`; else the plain graph; else the only one there is.
fn choose(
    stem: &str,
    variants: &BTreeMap<String, PathBuf>,
    settings: &ModelSettings,
) -> Result<Option<PathBuf>, FolderError> {
    let there_are = || variants.keys().map(|variant| file_name(stem, variant)).collect::<Vec<_>>().join(", ");
    if variants.is_empty() {
        return Ok(None);
    }
    if let Some(wanted) = &settings.variant {
        return variants.get(wanted).cloned().map(Some).ok_or_else(|| {
            let problem = format!("is missing, and the setting variant asks for it; there are: {}", there_are());
            FolderError::new(&file_name(stem, wanted), problem)
        });
    }
    let half = variants.get("fp16").filter(|_| settings.precision == Some(Precision::F16));
    let only = || variants.values().next().filter(|_| variants.len() == 1);
    half.or_else(|| variants.get("")).or_else(only).cloned().map(Some).ok_or_else(|| {
        let problem = format!("is missing; there are {}: choose one with the setting variant", there_are());
        FolderError::new(&file_name(stem, ""), problem)
    })
}

fn file_name(stem: &str, variant: &str) -> String {
    if variant.is_empty() { format!("{stem}.onnx") } else { format!("{stem}_{variant}.onnx") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("onnx")).unwrap();
        for file in files {
            std::fs::write(folder.path().join(file), "").unwrap();
        }
        folder
    }

    fn find(files: &[&str], change: impl FnOnce(&mut ModelSettings)) -> Result<String, String> {
        let folder = folder(files);
        let mut settings = Config::default().model_defaults;
        change(&mut settings);
        let name = |path: PathBuf| path.strip_prefix(folder.path()).unwrap().display().to_string();
        match GraphFiles::find(folder.path(), &settings).map_err(|error| error.to_string())? {
            GraphFiles::Single(graph) => Ok(name(graph)),
            GraphFiles::Split { vision, text, combined } => {
                Ok(format!("{} + {}{}", name(vision), name(text), if combined.is_some() { " + combined" } else { "" }))
            }
        }
    }

    const HUB: [&str; 3] = ["onnx/model.onnx", "onnx/model_fp16.onnx", "onnx/model_quantized.onnx"];

    #[test]
    fn the_plain_graph_is_taken_unless_a_variant_or_f16_is_asked_for() {
        assert_eq!(find(&HUB, |_| {}).unwrap(), "onnx/model.onnx");
        assert_eq!(find(&HUB, |settings| settings.precision = Some(Precision::F16)).unwrap(), "onnx/model_fp16.onnx");
        assert_eq!(find(&["model.onnx"], |settings| settings.precision = Some(Precision::F16)).unwrap(), "model.onnx");
        let variant = |settings: &mut ModelSettings| settings.variant = Some("quantized".to_owned());
        assert_eq!(find(&HUB, variant).unwrap(), "onnx/model_quantized.onnx");
        assert_eq!(find(&["model_int8.onnx", "model.onnx_data"], |_| {}).unwrap(), "model_int8.onnx", "the only one");
    }

    #[test]
    fn what_cannot_be_chosen_is_told_with_what_there_is() {
        let error = find(&["model_fp16.onnx", "model_q4.onnx"], |_| {}).unwrap_err();
        assert_eq!(
            error,
            "model.onnx: is missing; there are model_fp16.onnx, model_q4.onnx: choose one with the setting variant"
        );
        let error = find(&HUB, |settings| settings.variant = Some("int8".to_owned())).unwrap_err();
        assert!(
            error.starts_with(
                "model_int8.onnx: is missing, and the setting variant asks for it; there are: model.onnx, "
            )
        );
    }

    #[test]
    fn a_plain_graph_has_an_int8_variant_beside_it_and_a_variant_has_none() {
        let folder = folder(&["onnx/model.onnx", "onnx/model_int8.onnx", "vision_model.onnx"]);
        let int8 = |file| int8_of(&folder.path().join(file));
        assert_eq!(int8("onnx/model.onnx"), Some(folder.path().join("onnx/model_int8.onnx")));
        assert_eq!(int8("vision_model.onnx"), None);
        assert_eq!(int8("onnx/model_int8.onnx"), None);
    }

    #[test]
    fn split_graphs_are_taken_together() {
        let split = ["onnx/vision_model.onnx", "onnx/text_model.onnx"];
        assert_eq!(find(&split, |_| {}).unwrap(), "onnx/vision_model.onnx + onnx/text_model.onnx");
        let all = [split[0], split[1], "onnx/model_quantized.onnx"];
        assert_eq!(find(&all, |_| {}).unwrap(), "onnx/vision_model.onnx + onnx/text_model.onnx + combined");
        let quantized = ["vision_model.onnx", "vision_model_int8.onnx", "text_model.onnx"];
        let int8 = |settings: &mut ModelSettings| settings.variant = Some("int8".to_owned());
        assert_eq!(find(&quantized, int8).unwrap(), "vision_model_int8.onnx + text_model.onnx");
        assert!(find(&split, int8).unwrap_err().contains("vision_model_int8.onnx: is missing"));
        assert_eq!(find(&split[1..], |_| {}).unwrap_err(), "vision_model.onnx: is missing beside text_model.onnx");
        assert_eq!(find(&split[..1], |_| {}).unwrap_err(), "text_model.onnx: is missing beside vision_model.onnx");
    }
}
