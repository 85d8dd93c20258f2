//! How fast sessions run batches, all of them at once, with what a server does beside them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::LoadError;
use super::opener::{Binding, GraphModel, Warmed};
use super::tuning::{FEW, Speed, gains_end};
use crate::config::usable_cores;

/// How long a batch size of a plan is measured at a time: others may take a core for a moment or, on a shared machine, half of its
/// speed for seconds. So plans and sizes take turns, and the mean of each counts.
const TURN: Duration = Duration::from_millis(50);

/// A turn of a small batch begins with runs that have nothing beside them, for this long: threads that have slept are slow at first.
const ALONE: Duration = Duration::from_millis(20);

/// Everything has so many turns at least, and more where they are short; fewer, where these would take many times what is enough.
const TURNS: (usize, usize) = (3, 9);
const TOO_LONG: u32 = 3;

/// What does less than this part of what another does is not measured any longer.
pub(super) const HOPELESS: f64 = 0.6;

/// Does something while the server runs nothing. Fails where there is no more server.
pub(super) type Quietly<'a> = dyn Fn(&mut dyn FnMut()) -> Result<(), LoadError> + 'a;

/// What a server computes for an item before it can be in a batch.
pub(super) type Preparation<'a> = dyn Fn() + Sync + 'a;

/// The sessions of a plan, and how fast they were at each turn.
pub(super) struct Contender<B: Binding> {
    sessions: Vec<Warmed<B>>,
    turns: Vec<(usize, Vec<Turn>)>,
    /// Why it cannot go on.
    failure: Option<LoadError>,
}

/// What one batch size did in a turn.
#[derive(Debug, Clone, Copy)]
struct Turn {
    per_second: f64,
    run: Duration,
}

impl<B: Binding> Contender<B> {
    /// With the batch sizes that are to be measured, rising.
    pub(super) fn new(sessions: Vec<Warmed<B>>, sizes: &[usize]) -> Self {
        Self { sessions, turns: sizes.iter().map(|&size| (size, Vec::new())).collect(), failure: None }
    }

    /// Has it had a turn?
    pub(super) fn has_run(&self) -> bool {
        self.failure.is_some() || self.turns.iter().any(|(_, turns)| !turns.is_empty())
    }

    /// By batch size.
    pub(super) fn speeds(self) -> Result<Vec<Speed>, LoadError> {
        match self.failure {
            Some(error) => Err(error),
            None => Ok(speeds(&self.turns)),
        }
    }

    /// Most items per second at any batch size; 0 if it failed.
    pub(super) fn best_per_second(&self) -> f64 {
        let speeds = if self.failure.is_some() { Vec::new() } else { speeds(&self.turns) };
        speeds.iter().map(|speed| speed.per_second).fold(0.0, f64::max)
    }

    /// A turn of each size that is still worth it.
    fn take_turns(&mut self, preparation: Option<&Preparation<'_>>, quietly: &Quietly<'_>) -> Result<(), LoadError> {
        let is_first = self.turns.iter().all(|(_, turns)| turns.is_empty());
        for index in 0..self.turns.len() {
            let size = self.turns[index].0;
            if is_first {
                // The first run of a size is slow.
                timed_runs(&mut self.sessions, Duration::ZERO, 1, |model| samples(model, size))?;
            }
            let mut turn = Err(LoadError::System("no turn was taken".to_owned()));
            quietly(&mut || turn = take_turn(&mut self.sessions, size, index < FEW, preparation))?;
            self.turns[index].1.push(turn?);
            if is_first && gains_end(&speeds(&self.turns[..=index])) {
                self.turns.truncate(index + 1);
                break;
            }
        }
        Ok(())
    }
}

/// Measures the contenders in turns with each other, until they have had enough turns or it is clear which is faster: for about as
/// long as `enough`.
pub(super) fn measure_in_turns<B: Binding>(
    contenders: &mut [&mut Contender<B>],
    preparation: Option<&Preparation<'_>>,
    enough: Duration,
    quietly: &Quietly<'_>,
) {
    let begin = Instant::now();
    for turns in 0..TURNS.1 {
        let limit = if turns >= TURNS.0 { enough } else { enough * TOO_LONG };
        if turns > 0 && begin.elapsed() > limit {
            break;
        }
        for contender in contenders.iter_mut().filter(|contender| contender.failure.is_none()) {
            contender.failure = contender.take_turns(preparation, quietly).err();
        }
        let rates = || contenders.iter().map(|contender| contender.best_per_second());
        let best = rates().fold(0.0, f64::max);
        if turns > 0 && rates().any(|rate| rate < best * HOPELESS) {
            break;
        }
    }
}

/// By batch size, of those that have had a turn.
fn speeds(sizes: &[(usize, Vec<Turn>)]) -> Vec<Speed> {
    let speed = |(batch_size, turns): &(usize, Vec<Turn>)| {
        let per_second = turns.iter().map(|turn| turn.per_second).sum::<f64>() / turns.len() as f64;
        let run_ms = turns.iter().map(|turn| turn.run.as_secs_f64()).sum::<f64>() * 1e3 / turns.len() as f64;
        (!turns.is_empty()).then_some(Speed { batch_size: *batch_size, per_second, run_ms })
    };
    sizes.iter().filter_map(speed).collect()
}

/// Powers of two up to `max`, and `max` itself.
pub(super) fn batch_sizes(max: usize) -> Vec<usize> {
    let powers = std::iter::successors(Some(1), |size| Some(size * 2)).take_while(|&size| size < max);
    powers.chain([max]).collect()
}

/// Runs batches of `size` in all sessions at once, with as many items being prepared as they take; before that, if it shall, for a
/// moment with nothing beside them.
fn take_turn<B: Binding>(
    sessions: &mut [Warmed<B>],
    size: usize,
    also_alone: bool,
    preparation: Option<&Preparation<'_>>,
) -> Result<Turn, LoadError> {
    let run = |model: &mut GraphModel<B>| samples(model, size);
    let alone = if also_alone { timed_runs(sessions, ALONE, 1, run)? } else { Vec::new() };
    let timed = match preparation {
        None => timed_runs(sessions, TURN, 1, run)?,
        Some(preparation) => timed_with_preparation(sessions, TURN, 1, size, preparation, run)?,
    };
    let per_second = runs_per_second(&timed) * size as f64;
    Ok(Turn { per_second, run: median_run(if also_alone { alone } else { timed }) })
}

/// As [`timed_runs`] of `size` items each, with as many being prepared meanwhile, by as many threads as there are cores.
pub(super) fn timed_with_preparation<B: Binding>(
    sessions: &mut [Warmed<B>],
    time: Duration,
    least: usize,
    size: usize,
    preparation: &Preparation<'_>,
    run: impl Fn(&mut GraphModel<B>) -> Result<(), LoadError> + Sync,
) -> Result<Vec<TimedRuns>, LoadError> {
    with_preparation(preparation, |backlog| {
        // As under a load that fills batches, the next ones are there when these have been run.
        backlog.order(size * sessions.len());
        drop(backlog.await_prepared(size * sessions.len()));
        timed_runs(sessions, time, least, |model| {
            // Another batch is prepared while this one runs.
            backlog.order(size);
            let outcome = run(model);
            backlog.take(size);
            outcome
        })
    })
}

fn median_run(sessions: Vec<TimedRuns>) -> Duration {
    let mut runs: Vec<Duration> = sessions.into_iter().flat_map(|session| session.runs).collect();
    runs.sort_unstable();
    runs.get(runs.len() / 2).copied().unwrap_or_default()
}

fn samples<B: Binding>(model: &mut GraphModel<B>, size: usize) -> Result<(), LoadError> {
    Ok(model.run_samples(size).map(drop)?)
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
pub(super) struct TimedRuns {
    /// From the start of the first run to the end of the last.
    pub(super) time: Duration,
    /// Each run.
    pub(super) runs: Vec<Duration>,
}

/// Runs per second of all sessions together, for as long as all of them ran: where they are more than the cores, those that end last
/// have cores to themselves for a while, and would look faster than they can be together.
pub(super) fn runs_per_second(sessions: &[TimedRuns]) -> f64 {
    let window = sessions.iter().map(|session| session.time.as_secs_f64()).fold(f64::INFINITY, f64::min);
    let within = |session: &TimedRuns| {
        let mut left = window;
        let parts = session.runs.iter().map(|run| {
            let part = (left / run.as_secs_f64()).clamp(0.0, 1.0);
            left -= run.as_secs_f64();
            part
        });
        parts.sum::<f64>()
    };
    sessions.iter().map(within).sum::<f64>() / window
}

/// Repeats `run` in all sessions at once, for the time given and at least so many times. None stops before all have had enough:
/// where they are more than the cores, the others would then be faster than they can be together.
pub(super) fn timed_runs<B: Binding>(
    sessions: &mut [Warmed<B>],
    time: Duration,
    least: usize,
    run: impl Fn(&mut GraphModel<B>) -> Result<(), LoadError> + Sync,
) -> Result<Vec<TimedRuns>, LoadError> {
    let start = Barrier::new(sessions.len());
    let unsatisfied = AtomicUsize::new(sessions.len());
    let (start, unsatisfied, run) = (&start, &unsatisfied, &run);
    std::thread::scope(|scope| {
        let threads = sessions.iter_mut().map(|session| {
            scope.spawn(move || {
                start.wait();
                let begin = Instant::now();
                let (mut runs, mut satisfied) = (Vec::new(), false);
                let outcome = loop {
                    let one = Instant::now();
                    // The others wait for a word of this session, also where it panics.
                    let outcome = catch_unwind(AssertUnwindSafe(|| run(&mut session.model)));
                    if let Err(error) = outcome.unwrap_or_else(|_| Err(panicked())) {
                        break Err(error);
                    }
                    runs.push(one.elapsed());
                    // Long runs say enough by themselves.
                    let enough = runs.len() >= least && begin.elapsed() >= time || begin.elapsed() > time * 4;
                    if enough && !satisfied {
                        satisfied = true;
                        unsatisfied.fetch_sub(1, Ordering::Relaxed);
                    }
                    if unsatisfied.load(Ordering::Relaxed) == 0 {
                        break Ok(());
                    }
                };
                if !satisfied && outcome.is_err() {
                    // The others do not wait for what has failed.
                    unsatisfied.fetch_sub(1, Ordering::Relaxed);
                }
                outcome.map(|()| TimedRuns { time: begin.elapsed(), runs })
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
    fn only_the_time_in_which_all_sessions_ran_counts() {
        let session = |milliseconds: &[u64]| {
            let runs: Vec<Duration> = milliseconds.iter().map(|&time| Duration::from_millis(time)).collect();
            TimedRuns { time: runs.iter().sum(), runs }
        };
        let alike = [session(&[100, 100]), session(&[100, 100])];
        assert!((runs_per_second(&alike) - 20.0).abs() < 1e-9);
        // A session of shorter runs.
        let uneven = [session(&[100, 100]), session(&[100, 50, 50])];
        assert!((runs_per_second(&uneven) - 25.0).abs() < 1e-9);
        let late = [session(&[100]), session(&[100, 50])];
        assert!((runs_per_second(&late) - 20.0).abs() < 1e-9);
        let half = [session(&[100]), session(&[200])];
        assert!((runs_per_second(&half) - 15.0).abs() < 1e-9);
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
    fn turns_are_averaged() {
        let turn = |per_second, run| Turn { per_second, run: Duration::from_millis(run) };
        let measured = [(1, vec![turn(100.0, 9), turn(60.0, 16)]), (2, vec![turn(110.0, 18)]), (4, Vec::new())];
        let speed = |batch_size, per_second, run_ms| Speed { batch_size, per_second, run_ms };
        assert_eq!(speeds(&measured), [speed(1, 80.0, 12.5), speed(2, 110.0, 18.0)]);
    }

    #[test]
    fn batch_sizes_are_powers_of_two_and_the_largest() {
        assert_eq!(batch_sizes(1), [1]);
        assert_eq!(batch_sizes(8), [1, 2, 4, 8]);
        assert_eq!(batch_sizes(12), [1, 2, 4, 8, 12]);
    }
}
