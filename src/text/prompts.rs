//! Prompt templates: `"a photo of a {}"` and a label give a prompt.

use super::{TextError, beginning};

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
            return Ok(Self(vec!["{}".to_owned()]));
        }
        match templates.iter().find(|template| template.matches("{}").count() != 1) {
            Some(template) => Err(TextError::Template(beginning(template))),
            None => Ok(Self(templates)),
        }
    }

    /// How many prompts a label gives.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The prompts of all `labels`, those of one label side by side.
    pub fn prompts(&self, labels: &[String]) -> Vec<String> {
        let pairs = labels.iter().flat_map(|label| self.0.iter().map(move |template| (label, template)));
        pairs.map(|(label, template)| template.replacen("{}", label, 1)).collect()
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
        assert_eq!(templates.prompts(&texts(&["a {} cat"])), ["a {} cat"]);
    }

    #[test]
    fn every_template_gives_a_prompt_for_every_label() {
        let templates = Templates::new(texts(&["a {}.", "the {}."])).unwrap();
        let prompts = templates.prompts(&texts(&["cat", "{}"]));
        assert_eq!(prompts, ["a cat.", "the cat.", "a {}.", "the {}."]);
    }

    #[test]
    fn a_template_needs_one_place_for_the_label() {
        for bad in ["a photo", "{} and {}", ""] {
            let error = Templates::new(texts(&["{}", bad])).unwrap_err();
            assert_eq!(error, TextError::Template(bad.to_owned()));
        }
    }
}
