//! How long runs take, learned from those that have ended: by this it is told when a job's turn comes, and what waiting for company is worth.

use std::time::Duration;

/// After so many runs of the solo worker while others waited, none of a small batch between them, what that takes is forgotten, so that one is
/// run again: what keeps them from being run may be that one was held up.
const FORGOTTEN_AFTER: u32 = 64;

/// Moving averages; `None` before the first run of a kind.
#[derive(Debug, Default)]
pub(super) struct RunTimes {
    /// What one job costs a worker.
    per_job: Option<Duration>,
    /// What a small batch takes.
    small: Option<Duration>,
    /// What one job takes the solo worker.
    lone: Option<Duration>,
    /// What it takes until one that has been announced comes, the wait for a thread included.
    preparation: Option<Duration>,
    /// Of its runs since the last small batch, those after which others waited.
    lone_runs: u32,
}

impl RunTimes {
    /// An instance has run a batch, in what takes as long for `size` jobs.
    pub(super) fn learn_batch(&mut self, time: Duration, size: usize, is_small: bool) {
        average(&mut self.per_job, time / u32::try_from(size.max(1)).unwrap_or(u32::MAX));
        if is_small {
            low_average(&mut self.small, time);
            self.lone_runs = 0;
        }
    }

    /// The solo worker has run a job, while others waited or none did: with all cores, which is as much as what all `instances` have.
    pub(super) fn learn_lone(&mut self, time: Duration, instances: usize, others_wait: bool) {
        average(&mut self.per_job, times(time, instances));
        low_average(&mut self.lone, time);
        self.lone_runs += u32::from(others_wait);
        if self.lone_runs == FORGOTTEN_AFTER {
            (self.small, self.lone_runs) = (None, 0);
        }
    }

    /// A job has been prepared.
    pub(super) fn learn_preparation(&mut self, time: Duration) {
        low_average(&mut self.preparation, time);
    }

    /// What a job takes that the solo worker runs, from when it begins to come; nothing if none has been timed. No longer than what instances
    /// run: one that was held up, with none after it by which that would show, must not keep all others away.
    pub(super) fn lone(&self) -> Duration {
        let of_instances = self.small.or(self.per_job);
        let run = self.lone.map(|lone| of_instances.map_or(lone, |of_instances| lone.min(of_instances)));
        run.map_or(Duration::ZERO, |run| run + self.preparation.unwrap_or_default())
    }

    /// What a small batch takes; nothing if none has been timed.
    pub(super) fn small(&self) -> Duration {
        self.small.unwrap_or_default()
    }

    /// Would the solo worker have run so many jobs before a small batch were done?
    pub(super) fn solo_is_sooner(&self, jobs: usize) -> bool {
        self.lone.zip(self.small).is_some_and(|(lone, small)| times(lone, jobs) <= small)
    }

    /// When a job's turn comes after so many others of its worker; at once if none has been timed.
    pub(super) fn wait(&self, turns: usize) -> Duration {
        self.per_job.map_or(Duration::ZERO, |time| times(time, turns))
    }
}

/// So many times as long.
fn times(time: Duration, count: usize) -> Duration {
    time.saturating_mul(u32::try_from(count).unwrap_or(u32::MAX))
}

/// A run that was held up, by a process that was stopped or a machine that was, says little of others: it counts as one of twice the
/// time.
fn average(average: &mut Option<Duration>, value: Duration) {
    *average = Some(average.map_or(value, |average| (average * 7 + value.min(average * 2)) / 8));
}

/// The same, but what was before, if that was held up, is forgotten soon.
fn low_average(low: &mut Option<Duration>, value: Duration) {
    let before = low.unwrap_or(value);
    average(low, value);
    *low = low.map(|low| low.min((before + value) / 2));
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_turn_costs_what_a_job_costs_a_worker_on_average() {
        let mut run_times = RunTimes::default();
        assert_eq!(run_times.wait(3), Duration::ZERO);
        run_times.learn_batch(64 * MS, 4, false);
        assert_eq!(run_times.wait(3), 48 * MS);
        run_times.learn_lone(4 * MS, 2, false);
        assert_eq!(run_times.wait(1), 15 * MS, "7/8 of 16 ms and 1/8 of 2 × 4 ms");
    }

    #[test]
    fn small_batches_are_timed_by_themselves() {
        let mut run_times = RunTimes::default();
        run_times.learn_batch(64 * MS, 4, false);
        assert_eq!(run_times.small(), Duration::ZERO);
        run_times.learn_batch(16 * MS, 4, true);
        run_times.learn_batch(24 * MS, 4, true);
        assert_eq!(run_times.small(), 17 * MS);
    }

    #[test]
    fn the_solo_worker_is_sooner_while_jobs_one_by_one_take_less_than_a_small_batch() {
        let mut run_times = RunTimes::default();
        run_times.learn_lone(12 * MS, 2, false);
        assert!(!run_times.solo_is_sooner(2), "no small batch has been timed");
        run_times.learn_batch(150 * MS, 8, false);
        assert!(!run_times.solo_is_sooner(2), "nor by a full one");
        run_times.learn_batch(40 * MS, 4, true);
        assert!(run_times.solo_is_sooner(3) && !run_times.solo_is_sooner(4));
    }

    #[test]
    fn what_a_lone_job_takes_begins_with_its_preparation_and_is_no_more_than_one_core_takes() {
        let mut run_times = RunTimes::default();
        assert_eq!(run_times.lone(), Duration::ZERO);
        run_times.learn_preparation(2 * MS);
        assert_eq!(run_times.lone(), Duration::ZERO, "its run has not been timed");
        run_times.learn_lone(40 * MS, 2, false);
        assert_eq!(run_times.lone(), 42 * MS);
        run_times.learn_batch(10 * MS, 1, true);
        assert_eq!(run_times.lone(), 12 * MS, "the first run was a slow one");
        (0..4).for_each(|_| run_times.learn_lone(8 * MS, 2, false));
        assert_eq!(run_times.lone(), 12 * MS);
        run_times.learn_lone(8 * MS, 2, false);
        assert_eq!(run_times.lone(), 11 * MS, "(40 - 8) / 2⁵ more than 8");
    }

    #[test]
    fn a_small_batch_that_was_held_up_does_not_leave_everything_to_the_solo_worker() {
        let mut run_times = RunTimes::default();
        run_times.learn_batch(16 * MS, 4, true);
        run_times.learn_batch(60_000 * MS, 4, true);
        assert_eq!(run_times.small(), 18 * MS, "it counts as one of twice the time");
        let mut run_times = RunTimes::default();
        run_times.learn_batch(60_000 * MS, 4, true);
        let mut lone = |others_wait| {
            run_times.learn_lone(4 * MS, 2, others_wait);
            run_times.solo_is_sooner(1000)
        };
        assert!((0..1000).all(|_| lone(false)), "of the only one is not known that it was held up");
        assert!((1..FORGOTTEN_AFTER).all(|_| lone(true)) && !lone(true), "one is run again");
        run_times.learn_batch(60_000 * MS, 4, true);
        (0..20).for_each(|_| run_times.learn_batch(16 * MS, 4, true));
        assert!(run_times.small() < 17 * MS, "it is soon as if it had not been");
    }
}
