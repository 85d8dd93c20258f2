//! A thread is kept off a core for a while, where the system has a call for that.

#[cfg(target_os = "linux")]
use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};

/// A core, by the system's number.
#[derive(Clone, Copy)]
pub(super) struct Core(#[cfg(target_os = "linux")] usize);

/// This thread is off a core. Dropped, it may be on all that it might be on before.
pub(super) struct Elsewhere(#[cfg(target_os = "linux")] Option<CpuSet>);

impl Core {
    /// The one that this thread is on.
    pub(super) fn current() -> Self {
        Self(
            #[cfg(target_os = "linux")]
            sched_getcpu(),
        )
    }
}

impl Elsewhere {
    /// Leaves `core` if this thread is there and may be on another.
    #[cfg(target_os = "linux")]
    pub(super) fn than(Core(core): Core) -> Self {
        let allowed = (sched_getcpu() == core).then(|| sched_getaffinity(None).ok()).flatten();
        Self(allowed.filter(|allowed| {
            let mut others = *allowed;
            others.unset(core);
            sched_setaffinity(None, &others).is_ok()
        }))
    }

    /// Does nothing here.
    #[cfg(not(target_os = "linux"))]
    pub(super) fn than(_core: Core) -> Self {
        Self()
    }
}

#[cfg(target_os = "linux")]
impl Drop for Elsewhere {
    fn drop(&mut self) {
        if let Some(allowed) = &self.0 {
            let _ = sched_setaffinity(None, allowed);
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_thread_leaves_its_core_and_may_return() {
        let before = sched_getaffinity(None).unwrap();
        // With a single core there is no other, and the thread stays.
        if before.count() > 1 {
            // Between the two calls the system may move the thread, which then has nothing to leave.
            let left = (0..100).any(|_| {
                let here = Core::current();
                let _elsewhere = Elsewhere::than(here);
                !sched_getaffinity(None).unwrap().is_set(here.0) && sched_getcpu() != here.0
            });
            assert!(left);
        }
        assert_eq!(sched_getaffinity(None).unwrap(), before);
    }
}
