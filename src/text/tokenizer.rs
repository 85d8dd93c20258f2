//! The tokenizer of a model folder: `tokenizer.json`, with a limit on the number of tokens.

use super::{TextError, beginning};

/// Turns prompts into token ids.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    max_length: usize,
}

impl Tokenizer {
    /// Reads the content of a `tokenizer.json`. Prompts of more than `max_length` tokens, special ones included, are refused.
    ///
    /// # Errors
    /// Why the content is no tokenizer.
    pub fn from_bytes(json: &[u8], max_length: usize) -> Result<Self, String> {
        let mut inner = tokenizers::Tokenizer::from_bytes(json).map_err(|error| error.to_string())?;
        // Whatever the file says: a prompt is never cut in silence, and a batch is padded where it is put together.
        inner.with_truncation(None).map_err(|error| error.to_string())?;
        inner.with_padding(None);
        // "<|endoftext|>" in a label is text like any other; as a token it would cut the prompt short.
        inner.set_encode_special_tokens(true);
        Ok(Self { inner, max_length })
    }

    /// The id of the token that is written like this, if there is one.
    pub fn token_id(&self, token: &str) -> Option<i64> {
        self.inner.token_to_id(token).map(i64::from)
    }

    /// The token ids of `prompt`, special tokens included.
    ///
    /// # Errors
    /// [`TextError::TooLong`], [`TextError::Tokenizer`].
    pub fn encode(&self, prompt: &str) -> Result<Vec<i64>, TextError> {
        let encoding = self
            .inner
            .encode_fast(prompt, true)
            .map_err(|error| TextError::Tokenizer { prompt: beginning(prompt), cause: error.to_string() })?;
        let ids = encoding.get_ids();
        if ids.len() > self.max_length {
            return Err(TextError::TooLong { prompt: beginning(prompt), tokens: ids.len(), limit: self.max_length });
        }
        Ok(ids.iter().copied().map(i64::from).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny(max_length: usize) -> Tokenizer {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/models/tiny-clip/tokenizer.json");
        Tokenizer::from_bytes(&std::fs::read(path).unwrap(), max_length).unwrap()
    }

    #[test]
    fn prompts_past_the_limit_are_refused_with_both_numbers() {
        let words = "red ".repeat(100);
        let Err(TextError::TooLong { tokens, limit, prompt }) = tiny(16).encode(&words) else {
            panic!("100 words were taken");
        };
        assert_eq!((tokens, limit), (102, 16));
        assert!(prompt.ends_with('…') && prompt.len() < 80);
    }

    #[test]
    fn a_special_token_in_a_label_is_plain_text() {
        let tokenizer = tiny(16);
        let plain = tokenizer.encode("red").unwrap();
        let with_special = tokenizer.encode("red [SEP]").unwrap();
        let separator = plain.last().unwrap();
        assert_eq!(with_special.iter().filter(|id| *id == separator).count(), 1, "{with_special:?}");
    }

    #[test]
    fn a_file_that_is_no_tokenizer_is_refused() {
        assert!(Tokenizer::from_bytes(b"{}", 16).is_err());
    }
}
