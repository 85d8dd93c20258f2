//! The text-embedding cache: a bounded map from prompt to embedding, least recently used out first.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use lru::LruCache;

/// An embedding of length 1, shared between the cache and the requests that use it.
pub type Embedding = Arc<[f32]>;

/// Embeddings of one model's prompts, all as one arithmetic computes them: what is kept is what would be computed anew.
pub struct EmbeddingCache(Mutex<Entries>);

struct Entries {
    /// The arithmetic, by its number; a later one has a higher.
    arithmetic: u64,
    embeddings: LruCache<String, Embedding>,
}

impl EmbeddingCache {
    /// A cache of at most `capacity` prompts.
    pub fn new(capacity: usize) -> Self {
        let embeddings = LruCache::new(NonZeroUsize::new(capacity).unwrap_or(NonZeroUsize::MIN));
        Self(Mutex::new(Entries { arithmetic: 0, embeddings }))
    }

    /// The embeddings of `prompts` as `arithmetic` computes them, `None` for those not here. Those of earlier ones are forgotten.
    pub fn get_all(&self, arithmetic: u64, prompts: &[String]) -> Vec<Option<Embedding>> {
        let mut entries = self.lock();
        if arithmetic > entries.arithmetic {
            entries.embeddings.clear();
            entries.arithmetic = arithmetic;
        }
        prompts.iter().map(|prompt| entries.embeddings.get(prompt).cloned()).collect()
    }

    /// Keeps the embedding of `prompt`, if that was asked for while `arithmetic` was the latest and still is.
    pub fn insert(&self, arithmetic: u64, prompt: String, embedding: Embedding) {
        let mut entries = self.lock();
        if arithmetic == entries.arithmetic {
            entries.embeddings.put(prompt, embedding);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|&text| text.to_owned()).collect()
    }

    fn are_here(cache: &EmbeddingCache, arithmetic: u64, texts: &[&str]) -> Vec<bool> {
        cache.get_all(arithmetic, &prompts(texts)).iter().map(Option::is_some).collect()
    }

    #[test]
    fn the_least_recently_used_prompt_goes_first() {
        let cache = EmbeddingCache::new(2);
        cache.insert(0, "a".to_owned(), Arc::from([1.0]));
        cache.insert(0, "b".to_owned(), Arc::from([2.0]));
        assert_eq!(are_here(&cache, 0, &["a"]), [true]);
        cache.insert(0, "c".to_owned(), Arc::from([3.0]));
        assert_eq!(are_here(&cache, 0, &["a", "b", "c"]), [true, false, true]);
    }

    #[test]
    fn what_an_earlier_arithmetic_computed_is_forgotten_and_not_kept() {
        let cache = EmbeddingCache::new(2);
        cache.insert(0, "a".to_owned(), Arc::from([1.0]));
        assert_eq!(are_here(&cache, 1, &["a"]), [false]);
        cache.insert(0, "a".to_owned(), Arc::from([1.0]));
        assert_eq!(are_here(&cache, 1, &["a"]), [false], "it was asked for before the change");
        cache.insert(1, "a".to_owned(), Arc::from([1.5]));
        assert_eq!(are_here(&cache, 1, &["a"]), [true]);
    }
}
