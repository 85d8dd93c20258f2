//! Prompt templates: `"a photo of a {}"` and a label give a prompt.

use super::{TextError, beginning};

/// Longest prompt, in bytes. More than any encoder takes tokens of, but tokens do not bound it: any number of blanks may be none, and a
/// word of any length one.
pub const MAX_PROMPT_BYTES: usize = 8 << 10;

/// Most bytes of all prompts of a request: each label is multiplied by each template.
pub const MAX_BYTES_IN_ALL: usize = 16 << 20;

/// What stands for the label in a template.
const PLACE: &str = "{}";

/// Templates, each with one place for the label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Templates(Vec<String>);

impl Templates {
    /// Checks each template; without any, the labels are the prompts.
    ///
    /// # Errors
    /// [`TextError::Template`].
    pub fn new(templates: Vec<String>) -> Result<Self, TextError> {
        if templates.is_empty() {
            return Ok(Self(vec![PLACE.to_owned()]));
        }
        match templates.iter().find(|template| template.matches(PLACE).count() != 1) {
            Some(template) => Err(TextError::Template(beginning(template))),
            None => Ok(Self(templates)),
        }
    }

    /// How many prompts a label gives.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The prompts of all `labels`, those of one label side by side.
    ///
    /// # Errors
    /// [`TextError::TooManyBytes`], [`TextError::TooManyBytesInAll`]; nothing has been put together then.
    pub fn prompts(&self, labels: &[String]) -> Result<Vec<String>, TextError> {
        let pairs = || labels.iter().flat_map(|label| self.0.iter().map(move |template| (label, template)));
        let mut in_all = 0;
        for (label, template) in pairs() {
            let bytes = template.len() - PLACE.len() + label.len();
            if bytes > MAX_PROMPT_BYTES {
                let longer = if label.len() > template.len() { label } else { template };
                return Err(TextError::TooManyBytes { prompt: beginning(longer), bytes });
            }
            in_all += bytes;
        }
        if in_all > MAX_BYTES_IN_ALL {
            return Err(TextError::TooManyBytesInAll(in_all));
        }
        Ok(pairs().map(|(label, template)| template.replacen(PLACE, label, 1)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn without_a_template_labels_are_prompts_verbatim() {
        let templates = Templates::new(Vec::new()).unwrap();
        assert_eq!(templates.prompts(&texts(&["a {} cat"])).unwrap(), ["a {} cat"]);
    }

    #[test]
    fn every_template_gives_a_prompt_for_every_label() {
        let templates = Templates::new(texts(&["a {}.", "the {}."])).unwrap();
        let prompts = templates.prompts(&texts(&["cat", "{}"])).unwrap();
        assert_eq!(prompts, ["a cat.", "the cat.", "a {}.", "the {}."]);
    }

    #[test]
    fn prompts_are_neither_too_long_nor_too_many_to_be_put_together() {
        let template = |bytes: usize| Templates::new(vec![" ".repeat(bytes) + PLACE]).unwrap();
        let label = texts(&["cat"]);
        assert_eq!(template(MAX_PROMPT_BYTES - 3).prompts(&label).unwrap()[0].len(), MAX_PROMPT_BYTES);
        let error = template(MAX_PROMPT_BYTES - 2).prompts(&label).unwrap_err().to_string();
        assert!(error.contains("8193 bytes long; at most 8192"), "{error}");
        let most = MAX_BYTES_IN_ALL / MAX_PROMPT_BYTES;
        let labels = |count| vec!["x".repeat(MAX_PROMPT_BYTES); count];
        assert_eq!(template(0).prompts(&labels(most)).unwrap().len(), most);
        let error = template(0).prompts(&labels(most + 1)).unwrap_err();
        assert_eq!(error, TextError::TooManyBytesInAll(MAX_BYTES_IN_ALL + MAX_PROMPT_BYTES));
    }

    #[test]
    fn a_template_needs_one_place_for_the_label() {
        for bad in ["a photo", "{} and {}", ""] {
            let error = Templates::new(texts(&["{}", bad])).unwrap_err();
            assert_eq!(error, TextError::Template(bad.to_owned()));
        }
    }
}
