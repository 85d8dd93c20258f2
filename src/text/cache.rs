//! The text-embedding cache: a bounded map from prompt to embedding, least recently used out first.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use lru::LruCache;

/// An embedding of length 1, shared between the cache and the requests that use it.
pub type Embedding = Arc<[f32]>;

/// Embeddings of one model's prompts. A new load of the model starts with an empty cache, so content never goes stale.
pub struct EmbeddingCache {
    entries: Mutex<LruCache<String, Embedding>>,
}

impl EmbeddingCache {
    /// A cache of at most `capacity` prompts.
    pub fn new(capacity: usize) -> Self {
        let capacity = NonZeroUsize::new(capacity).unwrap_or(NonZeroUsize::MIN);
        Self { entries: Mutex::new(LruCache::new(capacity)) }
    }

    /// The embeddings of `prompts`, `None` for those not here.
    pub fn get_all(&self, prompts: &[String]) -> Vec<Option<Embedding>> {
        let mut entries = self.lock();
        prompts.iter().map(|prompt| entries.get(prompt).cloned()).collect()
    }

    /// Keeps the embedding of `prompt`.
    pub fn insert(&self, prompt: String, embedding: Embedding) {
        self.lock().put(prompt, embedding);
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, LruCache<String, Embedding>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_prompt_goes_first() {
        let cache = EmbeddingCache::new(2);
        let prompts: Vec<String> = ["a", "b", "c"].map(str::to_owned).to_vec();
        cache.insert("a".to_owned(), Arc::from([1.0]));
        cache.insert("b".to_owned(), Arc::from([2.0]));
        cache.get_all(&prompts[..1]);
        cache.insert("c".to_owned(), Arc::from([3.0]));
        let found: Vec<bool> = cache.get_all(&prompts).iter().map(Option::is_some).collect();
        assert_eq!(found, [true, false, true]);
    }
}
