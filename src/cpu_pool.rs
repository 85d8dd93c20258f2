//! The CPU pool: a fixed number of threads for decoding and preprocessing, off the async runtime.

mod elsewhere;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use elsewhere::{Core, Elsewhere};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::{JoinError, JoinSet};

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

    /// Hands `work` to the pool at once, which runs it first come, first served. Who drops the future takes back work that has not begun.
    ///
    /// # Errors
    /// The work panicked.
    pub fn run<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(
        &self,
        work: F,
    ) -> impl Future<Output = Result<T, Panicked>> + Send + use<T, F> {
        // A set takes back what has not begun when it is dropped.
        let mut set = JoinSet::new();
        if let Some(runtime) = &self.0 {
            set.spawn_blocking_on(work, runtime.handle());
        }
        async move { set.join_next().await.ok_or_else(Panicked::dropped)?.map_err(Panicked::from) }
    }
}

/// For work that a [`CpuPool`] runs: does `ours` on this thread and `theirs` on another of the pool meanwhile, or, if none has begun
/// with it by then, on this one afterwards.
///
/// # Errors
/// `theirs` panicked.
pub fn join<A, B: Send + 'static, F: FnOnce() -> B + Send + 'static>(
    ours: impl FnOnce() -> A,
    theirs: F,
) -> Result<(A, B), Panicked> {
    let offer = Arc::new(Mutex::new(Some(theirs)));
    let taken = Arc::clone(&offer);
    let take = |offer: &Mutex<Option<_>>| offer.lock().unwrap_or_else(PoisonError::into_inner).take();
    let pool = Handle::current();
    // While inference's threads spin, as they do for a while after a run, no core looks free, and the system wakes the other thread on
    // this one as often as not. It leaves, and for that it has to get its turn.
    let here = Core::current();
    let elsewhere = move |theirs: F| {
        let _elsewhere = Elsewhere::than(here);
        theirs()
    };
    let begun = pool.spawn_blocking(move || take(&taken).map(elsewhere));
    std::thread::yield_now();
    let ours = ours();
    let theirs = match take(&offer) {
        Some(theirs) => theirs(),
        None => pool.block_on(begun)?.ok_or_else(Panicked::dropped)?,
    };
    Ok((ours, theirs))
}

impl Panicked {
    fn dropped() -> Self {
        Self("the pool dropped the work".to_owned())
    }
}

impl From<JoinError> for Panicked {
    fn from(error: JoinError) -> Self {
        match error.try_into_panic() {
            Ok(panic) => Self(crate::panics::panic_text(panic.as_ref()).to_owned()),
            Err(_) => Self::dropped(),
        }
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
    async fn work_is_shared_with_a_thread_that_has_time_and_done_alone_without_one() {
        let work = || {
            let (tell, told) = mpsc::channel();
            let theirs = move || tell.send(std::thread::current().id()).map_or(0, |()| 7);
            let ours = move |time| told.recv_timeout(time).ok();
            (ours, theirs)
        };
        let shared = move || {
            let (ours, theirs) = work();
            (join(|| ours(Duration::from_secs(60)), theirs).unwrap(), std::thread::current().id())
        };
        let ((other, seven), this) = CpuPool::new(2).unwrap().run(shared).await.unwrap();
        assert!(seven == 7 && other.is_some_and(|other| other != this));
        let alone = move || {
            let (ours, theirs) = work();
            join(|| ours(Duration::ZERO), theirs).unwrap()
        };
        assert_eq!(CpuPool::new(1).unwrap().run(alone).await.unwrap(), (None, 7));
        let panics = || join(|| std::thread::sleep(Duration::from_millis(50)), || -> () { panic!("eight") });
        let panicked = CpuPool::new(2).unwrap().run(panics).await.unwrap();
        assert_eq!(panicked.unwrap_err().0, "eight");
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
