//! Whether the solo worker keeps up: how far behind it would be if it had run every job so far.

use std::time::{Duration, Instant};

use super::run_times::RunTimes;

/// A solo worker that runs all jobs one after the other, in thought only, so that it is told by the load, and hardly by who runs it.
#[derive(Debug, Default)]
pub(super) struct SoloLoad {
    /// When it would have run all jobs so far.
    done: Option<Instant>,
    /// Is it too far behind? Told anew as jobs come alone: by whom a job is run must not change as time passes, with nobody being woken.
    is_behind: bool,
}

impl SoloLoad {
    /// A job begins to come, to a queue and workers that are idle or not.
    pub(super) fn add(&mut self, now: Instant, times: &RunTimes, is_idle: bool) {
        let lone = times.lone();
        // Of jobs that each came to an idle server it would have run every one in time, be it by a hair.
        let takes = if is_idle { lone * 3 / 4 } else { lone };
        let behind = self.done.map_or(Duration::ZERO, |done| done.saturating_duration_since(now)) + takes;
        // As many as it takes over at once, and some room for those that come a little early.
        let most = times.small().max(lone * 2) + lone / 2;
        self.is_behind = behind > most;
        // However long more came than it could run, it is not far behind when fewer come.
        self.done = Some(now + behind.min(most + lone * 2));
    }

    /// Could it run the jobs that come?
    pub(super) fn keeps_up(&self) -> bool {
        !self.is_behind
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Does it keep up after so many jobs at this distance, each of which takes 10 ms?
    fn keeps_up(load: &mut SoloLoad, start: &mut Instant, (jobs, apart): (u32, Duration), is_idle: bool) -> bool {
        let mut times = RunTimes::default();
        times.learn_lone(8 * MS, 2, false);
        times.learn_preparation(2 * MS);
        for _ in 0..jobs {
            *start += apart;
            load.add(*start, &times, is_idle);
        }
        load.keeps_up()
    }

    #[test]
    fn it_keeps_up_with_jobs_that_are_further_apart_than_they_take_and_with_two_at_once() {
        let (mut load, mut now) = (SoloLoad::default(), Instant::now());
        assert!(load.keeps_up() && keeps_up(&mut load, &mut now, (1000, 11 * MS), false));
        assert!(keeps_up(&mut load, &mut now, (1, Duration::ZERO), false));
        assert!(!keeps_up(&mut load, &mut now, (1, Duration::ZERO), false));
    }

    #[test]
    fn it_is_behind_while_more_comes_and_no_longer_for_long_afterwards() {
        let (mut load, mut now) = (SoloLoad::default(), Instant::now());
        assert!(!keeps_up(&mut load, &mut now, (20, 9 * MS), false));
        assert!(!keeps_up(&mut load, &mut now, (100_000, MS), false));
        assert!(
            !keeps_up(&mut load, &mut now, (1, 11 * MS), false) && keeps_up(&mut load, &mut now, (25, 11 * MS), false)
        );
    }

    #[test]
    fn jobs_that_each_come_to_an_idle_server_are_never_too_many() {
        let (mut load, mut now) = (SoloLoad::default(), Instant::now());
        assert!(keeps_up(&mut load, &mut now, (1000, 9 * MS), true), "what they take is told too high");
        assert!(!keeps_up(&mut load, &mut now, (100, 9 * MS), false));
    }

    #[test]
    fn nothing_is_too_much_before_anything_has_been_timed() {
        let mut load = SoloLoad::default();
        (0..100).for_each(|_| load.add(Instant::now(), &RunTimes::default(), false));
        assert!(load.keeps_up());
    }
}
