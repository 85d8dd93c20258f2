//! How fast sessions run batches, all of them at once, with what a server does beside them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::config::usable_cores;
use crate::models::LoadError;
use crate::models::graph_model::{Binding, GraphModel};
use crate::models::opener::Warmed;

/// What a server computes for an item before it can be in a batch.
pub(in crate::models) type Preparation<'a> = dyn Fn() + Sync + 'a;

/// Of the times given; 0 if there are none.
pub(in crate::models) fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// Of the values given; 0 if there are none.
pub(in crate::models) fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len().max(1) as f64;
    values.sum::<f64>() / count
}

/// Powers of two up to `max`, and `max` itself.
pub(in crate::models) fn batch_sizes(max: usize) -> Vec<usize> {
    let powers = std::iter::successors(Some(1), |size| Some(size * 2)).take_while(|&size| size < max);
    powers.chain([max]).collect()
}

/// How long sessions are timed.
#[derive(Debug, Clone, Copy)]
pub(in crate::models) struct Span {
    pub(in crate::models) time: Duration,
    /// Runs of each session, however long they take.
    pub(in crate::models) least: usize,
    /// Are all busy before the first run that counts of any, and until the last one has ended what it began in the time? Where they share
    /// cores, or wait for each other, the first ones and the last ones would otherwise look faster than all can be together.
    pub(in crate::models) keeps_all_busy: bool,
}

impl Span {
    /// For sessions that have cores of their own, or are compared with others that share them alike.
    pub(in crate::models) fn of(time: Duration) -> Self {
        Self { time, least: 1, keeps_all_busy: false }
    }
}

/// As [`timed_runs`] of `size` items each, with as many being prepared meanwhile, by as many threads as there are cores.
pub(in crate::models) fn timed_with_preparation<B: Binding>(
    sessions: &mut [Warmed<B>],
    span: Span,
    size: usize,
    preparation: &Preparation<'_>,
    run: impl Fn(&mut GraphModel<B>) -> Result<(), LoadError> + Sync,
) -> Result<Vec<TimedRuns>, LoadError> {
    with_preparation(preparation, |backlog| {
        // As under a load that fills batches, the next ones are there when these have been run.
        backlog.order(size * sessions.len());
        drop(backlog.await_prepared(size * sessions.len()));
        timed_runs(sessions, span, |model| {
            // Another batch is prepared while this one runs.
            backlog.order(size);
            let outcome = run(model);
            backlog.take(size);
            outcome
        })
    })
}

/// Items that are to be prepared, and that have been.
#[derive(Default)]
struct Backlog {
    counts: Mutex<Counts>,
    changed: Condvar,
}

#[derive(Default)]
struct Counts {
    ordered: usize,
    prepared: usize,
    closed: bool,
}

impl Backlog {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn order(&self, items: usize) {
        self.counts().ordered += items;
        self.changed.notify_all();
    }

    /// Waits for so many prepared items.
    fn await_prepared(&self, items: usize) -> MutexGuard<'_, Counts> {
        let waits = |counts: &mut Counts| counts.prepared < items && !counts.closed;
        self.changed.wait_while(self.counts(), waits).unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for so many, and takes them.
    fn take(&self, items: usize) {
        let mut counts = self.await_prepared(items);
        counts.prepared = counts.prepared.saturating_sub(items);
    }

    /// Prepares what is ordered, until it is closed.
    fn work(&self, preparation: &Preparation<'_>) {
        loop {
            let waits = |counts: &mut Counts| counts.ordered == 0 && !counts.closed;
            let mut counts = self.changed.wait_while(self.counts(), waits).unwrap_or_else(PoisonError::into_inner);
            if counts.closed {
                return;
            }
            counts.ordered -= 1;
            drop(counts);
            preparation();
            self.counts().prepared += 1;
            self.changed.notify_all();
        }
    }

    fn close(&self) {
        self.counts().closed = true;
        self.changed.notify_all();
    }
}

/// Calls `measure` with as many threads beside it as there are cores, which prepare what it orders, as the server's do.
fn with_preparation<T>(preparation: &Preparation<'_>, measure: impl FnOnce(&Backlog) -> T) -> T {
    let backlog = Backlog::default();
    std::thread::scope(|scope| {
        for _ in 0..usable_cores() {
            scope.spawn(|| {
                // Who waits for it would wait forever.
                if catch_unwind(AssertUnwindSafe(|| backlog.work(preparation))).is_err() {
                    backlog.close();
                }
            });
        }
        let outcome = measure(&backlog);
        backlog.close();
        outcome
    })
}

/// What one session did while it was timed.
pub(in crate::models) struct TimedRuns {
    /// Each run that counts, one after the other.
    pub(in crate::models) runs: Vec<Duration>,
    /// Further runs, before and after these, which only kept the others company.
    pub(in crate::models) more: usize,
}

/// Runs per second of all sessions together. Each counts by its own time: up to the end of the one that is done first, those that the
/// cores have favoured so far would look as if they went on like that.
pub(in crate::models) fn runs_per_second(sessions: &[TimedRuns]) -> f64 {
    let time = |session: &TimedRuns| session.runs.iter().sum::<Duration>().as_secs_f64();
    sessions.iter().map(|session| session.runs.len() as f64 / time(session)).sum()
}

/// Sessions that have not had enough yet.
struct Unsatisfied {
    count: Mutex<usize>,
    changed: Condvar,
}

impl Unsatisfied {
    fn one_less(&self) {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.changed.notify_all();
    }

    /// Are there none, or none after so long?
    fn are_none(&self, patience: Duration) -> bool {
        let count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(count, patience, |count| *count > 0);
        *waited.unwrap_or_else(PoisonError::into_inner).0 == 0
    }
}

/// After a run that is longer than all that there is to time, a session waits for so large a part of it for others that are about to end
/// theirs: another run in their company would cost as much again and tell nothing.
const PATIENCE: u32 = 8;

/// Repeats `run` in all sessions at once. None stops before all have had enough, or nearly so: where they are more than the cores, the
/// others would then be faster than they can be together.
pub(in crate::models) fn timed_runs<B: Binding>(
    sessions: &mut [Warmed<B>],
    Span { time, least, keeps_all_busy }: Span,
    run: impl Fn(&mut GraphModel<B>) -> Result<(), LoadError> + Sync,
) -> Result<Vec<TimedRuns>, LoadError> {
    let start = Barrier::new(sessions.len());
    let unsatisfied = Unsatisfied { count: Mutex::new(sessions.len()), changed: Condvar::new() };
    // Those that have not ended what they began before all had enough.
    let timed = AtomicUsize::new(sessions.len());
    let (start, unsatisfied, timed, run) = (&start, &unsatisfied, &timed, &run);
    std::thread::scope(|scope| {
        let threads = sessions.iter_mut().map(|session| {
            scope.spawn(move || {
                let (mut runs, mut more, mut satisfied, mut counts) = (Vec::new(), 0, false, true);
                // A failure shows again.
                let mut run_before = |session: &mut Warmed<B>| {
                    let _ = catch_unwind(AssertUnwindSafe(|| run(&mut session.model)));
                    more += 1;
                };
                // For another batch size, it prepares for each thread anew.
                if session.model.graph.prepares_for_each_thread() {
                    run_before(session);
                }
                start.wait();
                if keeps_all_busy {
                    run_before(session);
                }
                let begin = Instant::now();
                let outcome = loop {
                    let one = Instant::now();
                    // The others wait for a word of this session, also where it panics.
                    let outcome = catch_unwind(AssertUnwindSafe(|| run(&mut session.model)));
                    if let Err(error) = outcome.unwrap_or_else(|_| Err(panicked())) {
                        break Err(error);
                    }
                    let took = one.elapsed();
                    if counts {
                        runs.push(took);
                    } else {
                        more += 1;
                    }
                    // Long runs say enough by themselves.
                    let enough = runs.len() >= least && begin.elapsed() >= time || begin.elapsed() > time * 4;
                    if enough && !satisfied {
                        satisfied = true;
                        unsatisfied.one_less();
                    }
                    let patience = if took > time && !keeps_all_busy { took / PATIENCE } else { Duration::ZERO };
                    if counts && satisfied && unsatisfied.are_none(patience) {
                        counts = false;
                        timed.fetch_sub(1, Ordering::Relaxed);
                    }
                    if !counts && (!keeps_all_busy || timed.load(Ordering::Relaxed) == 0) {
                        break Ok(());
                    }
                };
                // The others do not wait for what has failed.
                if outcome.is_err() {
                    if !satisfied {
                        unsatisfied.one_less();
                    }
                    timed.fetch_sub(usize::from(counts), Ordering::Relaxed);
                }
                outcome.map(|()| TimedRuns { runs, more })
            })
        });
        let threads: Vec<_> = threads.collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err(panicked()))).collect()
    })
}

fn panicked() -> LoadError {
    LoadError::System("a measuring run panicked".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_session_counts_by_its_own_time() {
        let session = |milliseconds: &[u64]| {
            let runs: Vec<Duration> = milliseconds.iter().map(|&time| Duration::from_millis(time)).collect();
            TimedRuns { runs, more: 1 }
        };
        let cases = [
            ([session(&[100, 100]), session(&[100, 100])], 20.0),
            ([session(&[100, 100]), session(&[100, 50, 50])], 25.0),
            ([session(&[100]), session(&[100, 100])], 20.0),
            ([session(&[100]), session(&[200])], 15.0),
        ];
        for (sessions, wanted) in cases {
            assert!((runs_per_second(&sessions) - wanted).abs() < 1e-9, "{wanted}");
        }
    }

    #[test]
    fn who_has_had_enough_waits_for_others_as_long_as_it_has_patience() {
        let unsatisfied = Unsatisfied { count: Mutex::new(1), changed: Condvar::new() };
        assert!(!unsatisfied.are_none(Duration::ZERO));
        assert!(!unsatisfied.are_none(Duration::from_millis(1)));
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| unsatisfied.are_none(Duration::from_secs(60)));
            unsatisfied.one_less();
            assert!(waits.join().unwrap());
        });
        assert!(unsatisfied.are_none(Duration::ZERO));
    }

    #[test]
    fn a_batch_waits_until_as_many_items_are_prepared() {
        let prepared = AtomicUsize::new(0);
        let prepare = || {
            prepared.fetch_add(1, Ordering::SeqCst);
        };
        let seen = with_preparation(&prepare, |backlog| {
            let batch = |size: usize| {
                backlog.order(size);
                backlog.take(size);
                prepared.load(Ordering::SeqCst)
            };
            [batch(1), batch(8), batch(3)]
        });
        assert_eq!(seen, [1, 9, 12]);
    }

    #[test]
    fn preparation_that_panics_holds_up_nobody() {
        with_preparation(&|| panic!("it cannot be decoded"), |backlog| {
            backlog.order(2);
            backlog.take(2);
        });
    }

    #[test]
    fn batch_sizes_are_powers_of_two_and_the_largest() {
        assert_eq!(batch_sizes(1), [1]);
        assert_eq!(batch_sizes(8), [1, 2, 4, 8]);
        assert_eq!(batch_sizes(12), [1, 2, 4, 8, 12]);
    }
}
