//! The CPU pool: a fixed number of threads for decoding and preprocessing, off the async runtime.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tokio::sync::oneshot;

/// Threads for work that computes. Its queue is bounded by admission: who has no permit does not get here.
pub struct CpuPool {
    pool: rayon_core::ThreadPool,
}

/// The work panicked; the message is for the log.
#[derive(Debug, thiserror::Error)]
#[error("panicked: {0}")]
pub struct Panicked(pub String);

impl CpuPool {
    /// Starts `threads` threads.
    ///
    /// # Errors
    /// The operating system starts no more threads.
    pub fn new(threads: usize) -> Result<Self, rayon_core::ThreadPoolBuildError> {
        let builder = rayon_core::ThreadPoolBuilder::new().num_threads(threads);
        let pool = builder.thread_name(|index| format!("preprocess-{index}")).build()?;
        Ok(Self { pool })
    }

    /// Runs `work` on the pool, first come, first served. Work whose caller has gone is not begun.
    ///
    /// # Errors
    /// The work panicked.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Panicked> {
        let (reply, result) = oneshot::channel();
        self.pool.spawn_fifo(move || {
            if reply.is_closed() {
                return;
            }
            let outcome = catch_unwind(AssertUnwindSafe(work))
                .map_err(|panic| Panicked(crate::batching::panic_text(panic.as_ref()).to_owned()));
            // The caller may have gone while the work was done.
            let _ = reply.send(outcome);
        });
        result.await.unwrap_or_else(|_| Err(Panicked("the pool dropped the work".to_owned())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_is_answered_and_a_panic_is_caught() {
        let pool = CpuPool::new(1).unwrap();
        assert_eq!(pool.run(|| 6 * 7).await.unwrap(), 42);
        let panicked = pool.run(|| panic!("seven")).await;
        assert_eq!(panicked.unwrap_err().0, "seven");
        assert_eq!(pool.run(|| 1).await.unwrap(), 1, "the thread lives on");
    }
}
