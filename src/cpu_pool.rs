//! The CPU pool: a fixed number of threads for decoding and preprocessing, off the async runtime.

use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

/// Threads for work that computes. Its queue is bounded by admission: who has no permit does not get here.
///
/// They are the blocking threads of a runtime that does nothing else, for those sleep as soon as they have no work. The threads of
/// a pool for parallel loops look around and yield for a while first, which took inference off its cores some thousand times a
/// second.
pub struct CpuPool(Option<Runtime>);

/// The work panicked; the message is for the log.
#[derive(Debug, thiserror::Error)]
#[error("panicked: {0}")]
pub struct Panicked(pub String);

impl CpuPool {
    /// A pool of `threads` threads, each of which is started when it is first needed.
    ///
    /// # Errors
    /// The operating system lacks what an async runtime needs.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let mut builder = Builder::new_current_thread();
        builder.max_blocking_threads(threads).thread_keep_alive(Duration::MAX).thread_name("preprocess");
        Ok(Self(Some(builder.build()?)))
    }

    /// Runs `work` on the pool, first come, first served. Work whose caller has gone is not begun.
    ///
    /// # Errors
    /// The work panicked.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Panicked> {
        let dropped = || Panicked("the pool dropped the work".to_owned());
        let runtime = self.0.as_ref().ok_or_else(dropped)?;
        // A set takes back what has not begun when it is dropped.
        let mut set = JoinSet::new();
        set.spawn_blocking_on(work, runtime.handle());
        let outcome = set.join_next().await.ok_or_else(dropped)?;
        outcome.map_err(|error| match error.try_into_panic() {
            Ok(panic) => Panicked(crate::batching::panic_text(panic.as_ref()).to_owned()),
            Err(_) => dropped(),
        })
    }
}

impl Drop for CpuPool {
    fn drop(&mut self) {
        // Without waiting for work in progress, which an async runtime's thread may not do.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn work_is_answered_and_a_panic_is_caught() {
        let pool = CpuPool::new(1).unwrap();
        assert_eq!(pool.run(|| 6 * 7).await.unwrap(), 42);
        let panicked = pool.run(|| panic!("seven")).await;
        assert_eq!(panicked.unwrap_err().0, "seven");
        assert_eq!(pool.run(|| 1).await.unwrap(), 1, "the thread lives on");
    }

    #[tokio::test]
    async fn work_is_done_in_order_and_not_begun_for_a_caller_who_has_gone() {
        let pool = CpuPool::new(1).unwrap();
        let (let_go, held) = mpsc::channel::<()>();
        let (done, order) = mpsc::channel();
        let report = |name| {
            let done = done.clone();
            move || done.send(name).unwrap()
        };
        let first = pool.run(move || held.recv().unwrap());
        let second = pool.run(report("second"));
        let impatient = tokio::time::timeout(Duration::ZERO, pool.run(report("gone")));
        let release = async move {
            assert!(impatient.await.is_err());
            let_go.send(()).unwrap();
        };
        let last = pool.run(report("last"));
        let (first, second, (), last) = tokio::join!(first, second, release, last);
        first.and(second).and(last).unwrap();
        drop(done);
        assert_eq!(order.iter().collect::<Vec<_>>(), ["second", "last"]);
    }
}
