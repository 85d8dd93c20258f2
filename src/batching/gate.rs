//! Who may compute: runs of all queues side by side, or for a moment nobody, so that something can be measured.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Every run goes through it.
#[derive(Default)]
pub struct RunGate {
    state: Mutex<State>,
    opened: Condvar,
    emptied: Condvar,
}

#[derive(Default)]
struct State {
    closed: bool,
    /// Runs that go on.
    within: usize,
    /// Runs that wait for it to be opened.
    waiting: usize,
}

/// A run that goes on. Dropped, it has ended.
pub struct Run<'a>(&'a RunGate);

/// The gate while it is closed. Dropped, it is open.
pub struct ClosedGate<'a> {
    gate: &'a RunGate,
    since: Instant,
}

impl RunGate {
    /// Blocks while the gate is closed.
    pub fn enter(&self) -> Run<'_> {
        let mut state = self.lock();
        state.waiting += 1;
        let opened = self.opened.wait_while(state, |state| state.closed);
        state = opened.unwrap_or_else(PoisonError::into_inner);
        state.waiting -= 1;
        state.within += 1;
        Run(self)
    }

    /// Lets no more runs in, and blocks until those that are have ended; `None` if that takes longer than `limit`: then it is open
    /// again. For one at a time.
    pub fn close(&self, limit: Duration) -> Option<ClosedGate<'_>> {
        let mut state = self.lock();
        state.closed = true;
        let closed = ClosedGate { gate: self, since: Instant::now() };
        let emptied = self.emptied.wait_timeout_while(state, limit, |state| state.within > 0);
        let (state, emptied) = emptied.unwrap_or_else(PoisonError::into_inner);
        drop(state);
        (!emptied.timed_out()).then_some(closed)
    }

    /// Are no runs let in at present?
    #[cfg(test)]
    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.within -= 1;
        if state.within == 0 {
            self.0.emptied.notify_all();
        }
    }
}

impl ClosedGate<'_> {
    /// How long no runs have been let in.
    pub fn time(&self) -> Duration {
        self.since.elapsed()
    }

    /// Opens the gate, and, if runs were held up, sleeps for as long as it was closed, so that serving has half of the time at least.
    pub fn open(self) {
        let (time, waited) = (self.time(), self.gate.lock().waiting > 0);
        drop(self);
        if waited {
            std::thread::sleep(time);
        }
    }
}

impl Drop for ClosedGate<'_> {
    fn drop(&mut self) {
        self.gate.lock().closed = false;
        self.gate.opened.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_millis(50);

    #[test]
    fn runs_go_side_by_side_and_wait_while_the_gate_is_closed() {
        let gate = RunGate::default();
        drop((gate.enter(), gate.enter()));
        let closed = gate.close(LONG).unwrap();
        let (entered, has_entered) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                drop(gate.enter());
                entered.send(()).unwrap();
            });
            while gate.lock().waiting == 0 {
                std::thread::yield_now();
            }
            assert!(has_entered.recv_timeout(SHORT).is_err(), "it is closed");
            let time = closed.time();
            let opened = Instant::now();
            closed.open();
            assert!(opened.elapsed() >= time, "who waited gets as long as that");
            has_entered.recv().unwrap();
        });
    }

    #[test]
    fn it_is_opened_at_once_where_nobody_waits() {
        let gate = RunGate::default();
        let closed = ClosedGate { since: Instant::now().checked_sub(LONG).unwrap(), ..gate.close(LONG).unwrap() };
        let opened = Instant::now();
        closed.open();
        assert!(opened.elapsed() < LONG);
        drop(gate.enter());
    }

    #[test]
    fn the_gate_is_closed_once_the_runs_within_have_ended() {
        let gate = RunGate::default();
        let run = gate.enter();
        let (closed, is_closed) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| closed.send(gate.close(LONG).is_some()).unwrap());
            assert!(is_closed.recv_timeout(SHORT).is_err(), "a run goes on");
            drop(run);
            assert!(is_closed.recv().unwrap());
        });
    }

    #[test]
    fn a_run_that_does_not_end_keeps_nobody_out() {
        let gate = RunGate::default();
        let _hangs = gate.enter();
        assert!(gate.close(SHORT).is_none());
        drop(gate.enter());
    }
}
