//! Text for zero-shot classification: prompts from labels and templates, their tokens, and a cache of their embeddings.

mod cache;
mod prompts;
mod tokenizer;

pub use cache::{Embedding, EmbeddingCache};
pub use prompts::{MAX_BYTES_IN_ALL, MAX_PROMPT_BYTES, Templates};
pub use tokenizer::Tokenizer;

/// What is wrong with labels or templates; the message is fit for a client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// A prompt has more tokens than the text encoder takes.
    #[error("the prompt '{prompt}' has {tokens} tokens; this model takes at most {limit}")]
    TooLong {
        /// The prompt's beginning.
        prompt: String,
        /// Its length.
        tokens: usize,
        /// The longest that is taken.
        limit: usize,
    },
    /// A prompt has more bytes than [`MAX_PROMPT_BYTES`].
    #[error("the prompt '{prompt}' is {bytes} bytes long; at most {MAX_PROMPT_BYTES} are taken")]
    TooManyBytes {
        /// The prompt's beginning.
        prompt: String,
        /// Its length.
        bytes: usize,
    },
    /// All prompts together have more bytes than [`MAX_BYTES_IN_ALL`].
    #[error("labels and templates make prompts of {0} bytes in all; at most {MAX_BYTES_IN_ALL} are taken")]
    TooManyBytesInAll(usize),
    /// A template that does not say, exactly once, where the label goes.
    #[error("hypothesis_template '{0}' must contain {{}} exactly once")]
    Template(String),
    /// The tokenizer gave up.
    #[error("the prompt '{prompt}' cannot be tokenised: {cause}")]
    Tokenizer {
        /// The prompt's beginning.
        prompt: String,
        /// Why.
        cause: String,
    },
}

/// As much of a client's text as fits into an error message.
fn beginning(text: &str) -> String {
    const LONGEST: usize = 60;
    let mut short: String = text.chars().take(LONGEST).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}
