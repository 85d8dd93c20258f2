//! How fast sessions run batches, all of them at once.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::LoadError;
use super::opener::{Binding, GraphModel, Warmed};
use super::tuning::{Speed, gains_end};

/// Batch sizes are measured by turns, for this long: others may take a core for a moment, and of each size the best turn counts.
const TURN: Duration = Duration::from_millis(50);

/// A size gets turns until they add up to this: a long run says as much as many short ones.
const MEASURED: Duration = Duration::from_millis(200);

/// Does something while the server runs nothing. Fails where there is no more server.
pub(super) type Quietly<'a> = dyn Fn(&mut dyn FnMut()) -> Result<(), LoadError> + 'a;

/// How fast batches of `sizes` run, the smallest first, up to one that shows that larger ones are not worth their time.
pub(super) fn measure_sizes<B: Binding>(
    sessions: &mut [Warmed<B>],
    sizes: &[usize],
    quietly: &Quietly<'_>,
) -> Result<Vec<Speed>, LoadError> {
    let mut measured: Vec<(Speed, Duration)> = Vec::new();
    for &size in sizes {
        // The first run of a size is slow.
        timed_runs(sessions, Duration::ZERO, 1, |model| Ok(model.run_samples(size).map(drop)?))?;
        measured.push(measure_size(sessions, size, quietly)?);
        // What looks slow may have been disturbed, and has all its turns before it is judged.
        let speeds = |measured: &[(Speed, Duration)]| measured.iter().map(|(speed, _)| *speed).collect::<Vec<_>>();
        if gains_end(&speeds(&measured)) {
            take_turns(sessions, &mut measured, quietly)?;
            if gains_end(&speeds(&measured)) {
                break;
            }
        }
    }
    take_turns(sessions, &mut measured, quietly)?;
    Ok(measured.into_iter().map(|(speed, _)| speed).collect())
}

/// Measures each again, by turns, until it has been measured for long enough.
fn take_turns<B: Binding>(
    sessions: &mut [Warmed<B>],
    measured: &mut [(Speed, Duration)],
    quietly: &Quietly<'_>,
) -> Result<(), LoadError> {
    while measured.iter().any(|(_, time)| *time < MEASURED) {
        for (best, time) in measured.iter_mut().filter(|(_, time)| *time < MEASURED) {
            let (speed, turn) = measure_size(sessions, best.batch_size, quietly)?;
            best.per_second = best.per_second.max(speed.per_second);
            best.run_ms = best.run_ms.min(speed.run_ms);
            *time += turn;
        }
    }
    Ok(())
}

/// Powers of two up to `max`, and `max` itself.
pub(super) fn batch_sizes(max: usize) -> Vec<usize> {
    let powers = std::iter::successors(Some(1), |size| Some(size * 2)).take_while(|&size| size < max);
    powers.chain([max]).collect()
}

/// Runs batches of `size` in all sessions at once, for a turn. Returns also how long that was.
fn measure_size<B: Binding>(
    sessions: &mut [Warmed<B>],
    size: usize,
    quietly: &Quietly<'_>,
) -> Result<(Speed, Duration), LoadError> {
    let mut timed = Ok(Vec::new());
    quietly(&mut || timed = timed_runs(sessions, TURN, 1, |model| Ok(model.run_samples(size).map(drop)?)))?;
    let timed = timed?;
    let per_second = runs_per_second(&timed) * size as f64;
    let fastest = timed.iter().flat_map(|session| &session.runs).min().copied().unwrap_or_default();
    let turn = timed.iter().map(|session| session.time).max().unwrap_or_default();
    Ok((Speed { batch_size: size, per_second, run_ms: fastest.as_secs_f64() * 1e3 }, turn))
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
    fn batch_sizes_are_powers_of_two_and_the_largest() {
        assert_eq!(batch_sizes(1), [1]);
        assert_eq!(batch_sizes(8), [1, 2, 4, 8]);
        assert_eq!(batch_sizes(12), [1, 2, 4, 8, 12]);
    }
}
