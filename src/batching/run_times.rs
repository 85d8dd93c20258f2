//! How long runs take, learned from those that have ended: by this it is told when a job's turn comes, and which worker answers sooner.

use std::time::{Duration, Instant};

/// What a full batch took is forgotten if none has been run for so long: what keeps others from being run may be that one was held up.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(10);

/// Moving averages; `None` before the first run of a kind.
#[derive(Debug, Default)]
pub(super) struct RunTimes {
    /// What one job costs a worker.
    per_job: Option<Duration>,
    /// What one costs the solo worker: by itself, and among a few.
    lone: Option<Duration>,
    among_few: Option<Duration>,
    /// A full batch of another, and when the last one ended.
    full_batch: Option<(Duration, Instant)>,
}

impl RunTimes {
    /// The solo worker has run `size` jobs: with all cores, which is as much as what all `workers` have.
    pub(super) fn learn_solo(&mut self, time: Duration, size: usize, workers: usize) {
        average(&mut self.per_job, part(times(time, workers), size));
        average(if size > 1 { &mut self.among_few } else { &mut self.lone }, part(time, size));
    }

    /// Another has run a batch of `size` jobs.
    pub(super) fn learn_batch(&mut self, time: Duration, size: usize, is_full: bool, now: Instant) {
        average(&mut self.per_job, part(time, size));
        if is_full {
            // After a while it counts alone, unless it took more than what is known: a process that was stopped may have gone on with it.
            let is_anew = self.full_batch(now).is_none();
            let known = self.full_batch.map(|(known, _)| known);
            let mut full_batch = known.filter(|&known| !is_anew || known <= time);
            average(&mut full_batch, time);
            self.full_batch = full_batch.map(|time| (time, now));
        }
    }

    /// What a full batch takes, if one has been timed of late.
    fn full_batch(&self, now: Instant) -> Option<Duration> {
        let (time, last) = self.full_batch?;
        (now.saturating_duration_since(last) < FORGOTTEN_AFTER).then_some(time)
    }

    /// Would the solo worker answer so many jobs, a few at a time, before a full batch were done? A lone job it always would, so that
    /// its time is learned anew where other load has distorted it.
    pub(super) fn solo_is_sooner(&self, jobs: usize, now: Instant) -> bool {
        let per_job = self.lone.into_iter().chain(self.among_few).min();
        let solo = per_job.map(|time| times(time, jobs));
        jobs <= 1 || solo.zip(self.full_batch(now)).is_some_and(|(solo, batch)| solo <= batch)
    }

    /// When a job's turn comes after so many others of its worker; at once if none has been timed.
    pub(super) fn wait(&self, turns: usize) -> Duration {
        self.per_job.map_or(Duration::ZERO, |time| times(time, turns))
    }
}

fn part(time: Duration, count: usize) -> Duration {
    time / u32::try_from(count.max(1)).unwrap_or(u32::MAX)
}

fn times(time: Duration, count: usize) -> Duration {
    time.saturating_mul(u32::try_from(count).unwrap_or(u32::MAX))
}

/// A run that was held up, by a process that was stopped or a machine that was, says little of others: it counts as one of twice the
/// time.
fn average(average: &mut Option<Duration>, value: Duration) {
    *average = Some(average.map_or(value, |average| (average * 7 + value.min(average * 2)) / 8));
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_solo_worker_is_sooner_while_jobs_one_by_one_take_less_than_a_full_batch() {
        let mut run_times = RunTimes::default();
        run_times.learn_solo(12 * MS, 1, 2);
        assert!(!run_times.solo_is_sooner(2, Instant::now()), "no full batch has been timed");
        run_times.learn_batch(20 * MS, 1, false, Instant::now());
        assert!(!run_times.solo_is_sooner(2, Instant::now()), "nor by one that was not full");
        run_times.learn_batch(150 * MS, 8, true, Instant::now());
        assert!(run_times.solo_is_sooner(12, Instant::now()) && !run_times.solo_is_sooner(13, Instant::now()));
    }

    #[test]
    fn a_few_at_a_time_count_by_what_one_of_them_takes_unless_that_is_more_than_by_itself() {
        let mut run_times = RunTimes::default();
        run_times.learn_solo(40 * MS, 4, 2);
        assert_eq!(run_times.wait(1), 20 * MS, "of a worker: twice what it is of all");
        run_times.learn_batch(150 * MS, 8, true, Instant::now());
        assert!(
            run_times.solo_is_sooner(15, Instant::now()) && !run_times.solo_is_sooner(16, Instant::now()),
            "10 ms each"
        );
        run_times.learn_solo(14 * MS, 1, 2);
        assert!(run_times.solo_is_sooner(15, Instant::now()) && !run_times.solo_is_sooner(16, Instant::now()));
        (0..40).for_each(|_| run_times.learn_solo(800 * MS, 4, 2));
        assert!(
            run_times.solo_is_sooner(10, Instant::now()) && !run_times.solo_is_sooner(11, Instant::now()),
            "14 ms each"
        );
    }

    #[test]
    fn a_lone_job_is_for_the_solo_worker_also_after_load_has_made_that_look_slow() {
        let mut run_times = RunTimes::default();
        run_times.learn_solo(9 * MS, 1, 2);
        run_times.learn_batch(3 * MS, 1, true, Instant::now());
        assert!(run_times.solo_is_sooner(1, Instant::now()) && !run_times.solo_is_sooner(2, Instant::now()));
    }

    #[test]
    fn a_batch_that_was_held_up_does_not_keep_others_from_being_run() {
        let mut run_times = RunTimes::default();
        let now = Instant::now();
        run_times.learn_solo(2 * MS, 1, 2);
        run_times.learn_batch(12 * MS, 4, true, now);
        run_times.learn_batch(60_000 * MS, 4, true, now);
        assert!(run_times.solo_is_sooner(6, now) && !run_times.solo_is_sooner(7, now), "13.5 ms");
        let mut run_times = RunTimes { full_batch: None, ..run_times };
        run_times.learn_batch(60_000 * MS, 4, true, now);
        assert!(run_times.solo_is_sooner(30, now), "of the only one is not known that it was held up");
        let later = now + FORGOTTEN_AFTER;
        assert!(!run_times.solo_is_sooner(30, later), "one is run again");
        run_times.learn_batch(12 * MS, 4, true, later);
        assert!(run_times.solo_is_sooner(6, later) && !run_times.solo_is_sooner(7, later), "and counts alone");
        let much_later = later + FORGOTTEN_AFTER;
        run_times.learn_batch(60_000 * MS, 4, true, much_later);
        assert!(!run_times.solo_is_sooner(7, much_later), "it has run for as long as the process was stopped");
    }

    #[test]
    fn a_turn_costs_what_a_job_costs_a_worker_on_average() {
        let mut run_times = RunTimes::default();
        assert_eq!(run_times.wait(3), Duration::ZERO);
        run_times.learn_batch(64 * MS, 4, true, Instant::now());
        assert_eq!(run_times.wait(3), 48 * MS);
        run_times.learn_solo(4 * MS, 1, 2);
        assert_eq!(run_times.wait(1), 15 * MS, "7/8 of 16 ms and 1/8 of 2 × 4 ms");
    }
}
