//! Who may compute: runs of all queues side by side, or for a moment nobody, so that something can be measured.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

/// Every run goes through it.
#[derive(Default)]
pub struct RunGate {
    lock: RwLock<()>,
    /// Runs that wait for it to be opened.
    waiting: AtomicUsize,
}

/// The gate while it is closed. Dropped, it is open.
pub struct ClosedGate<'a> {
    gate: &'a RunGate,
    since: Instant,
    lock: RwLockWriteGuard<'a, ()>,
}

impl RunGate {
    /// Blocks while the gate is closed. It is not closed before what this returns is dropped.
    pub fn enter(&self) -> RwLockReadGuard<'_, ()> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let entered = self.lock.read().unwrap_or_else(PoisonError::into_inner);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        entered
    }

    /// Lets no more runs in, and blocks until those that are have ended.
    pub fn close(&self) -> ClosedGate<'_> {
        let lock = self.lock.write().unwrap_or_else(PoisonError::into_inner);
        ClosedGate { gate: self, since: Instant::now(), lock }
    }
}

impl ClosedGate<'_> {
    /// How long it has been closed.
    pub fn time(&self) -> Duration {
        self.since.elapsed()
    }

    /// Opens the gate. If runs waited for that, they get as much time as they lost before this returns.
    pub fn open(self) {
        let (time, waited) = (self.time(), self.gate.waiting.load(Ordering::Relaxed) > 0);
        drop(self.lock);
        if waited {
            std::thread::sleep(time);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn runs_go_side_by_side_and_wait_while_the_gate_is_closed() {
        let gate = RunGate::default();
        let (first, second) = (gate.enter(), gate.enter());
        drop((first, second));
        let closed = gate.close();
        let (entered, has_entered) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                drop(gate.enter());
                entered.send(()).unwrap();
            });
            assert!(has_entered.recv_timeout(Duration::from_millis(50)).is_err(), "it is closed");
            let time = closed.time();
            let opened = Instant::now();
            closed.open();
            assert!(opened.elapsed() >= time, "who waited gets as long as that");
            has_entered.recv().unwrap();
        });
        let closed = gate.close();
        std::thread::sleep(Duration::from_millis(300));
        let opened = Instant::now();
        closed.open();
        assert!(opened.elapsed() < Duration::from_millis(200), "nobody waited");
    }

    #[test]
    fn the_gate_is_closed_once_the_runs_within_have_ended() {
        let gate = RunGate::default();
        let run = gate.enter();
        let (closed, is_closed) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                drop(gate.close());
                closed.send(()).unwrap();
            });
            assert!(is_closed.recv_timeout(Duration::from_millis(50)).is_err(), "a run goes on");
            drop(run);
            is_closed.recv().unwrap();
        });
    }
}
