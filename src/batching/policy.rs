//! When a batch is due: a pure function of how many jobs wait, how long the oldest has, who is at work, and whether more can come.

use std::time::Duration;

/// How large a batch may grow and how long its oldest job may wait for that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchPolicy {
    /// Most jobs in a batch, at least 1.
    pub max_batch_size: usize,
    /// Most that the solo worker takes at a time; 0: there is none.
    pub solo_max_batch_size: usize,
    /// How long the **oldest** job may wait for company while a worker is idle.
    pub max_queue_delay: Duration,
}

/// Which jobs a worker takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Whatever waits, up to the largest batch.
    Any,
    /// Full batches, and partial ones that the crew's solo worker does not take.
    Full,
    /// One job at a time, or a few, with all cores, while at least half of the other workers are idle: what is too few for a full batch, and
    /// more if that would be answered before a batch finished.
    Solo,
}

/// What there is to decide by.
#[derive(Debug, Clone, Copy)]
pub struct Situation {
    /// Jobs that wait.
    pub len: usize,
    /// How long the oldest of them has.
    pub oldest_age: Duration,
    /// Would the solo worker have answered all there are before a batch that began now were done?
    pub solo_is_sooner: bool,
    /// Are half of the workers of the role [`Role::Full`] idle (rounded down), and one at least?
    pub cores_are_free: bool,
    /// Is the solo worker out, to rebuild its model after a failed run, or is there none?
    pub solo_is_out: bool,
    /// Are all the others?
    pub others_are_out: bool,
    /// Will no more jobs come?
    pub closed: bool,
}

/// What an idle worker should do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Run a batch of the oldest jobs, this many.
    Run(usize),
    /// Jobs wait, but may wait this much longer for more.
    WaitAtMost(Duration),
    /// Nothing waits that is for this worker.
    WaitForJobs,
    /// Nothing waits that is for this worker, and nothing will come.
    Stop,
}

impl BatchPolicy {
    /// Batches up to this, due at once, without a solo worker.
    pub fn up_to(max_batch_size: usize) -> Self {
        Self { max_batch_size, solo_max_batch_size: 0, max_queue_delay: Duration::ZERO }
    }

    /// Decides for an idle worker.
    pub fn decide(&self, role: Role, situation: Situation) -> Decision {
        let Situation { len, closed, .. } = situation;
        let is_full = len >= self.max_batch_size;
        match role {
            _ if len == 0 && closed => Decision::Stop,
            _ if len == 0 => Decision::WaitForJobs,
            Role::Full if self.is_for_solo(situation) => Decision::WaitForJobs,
            Role::Any | Role::Full if is_full => Decision::Run(self.max_batch_size),
            Role::Any | Role::Full => self.run_when_due(len, situation),
            Role::Solo if !self.is_for_solo(situation) => Decision::WaitForJobs,
            Role::Solo if is_full => Decision::Run(len.min(self.solo_max_batch_size)),
            Role::Solo => self.run_when_due(len.min(self.solo_max_batch_size), situation),
        }
    }

    /// Is what waits for the solo worker, where there is one? While others compute on most cores, it is not: all cores together do
    /// less than each by itself. Who is out gets nothing, as long as there is another.
    pub(super) fn is_for_solo(&self, situation: Situation) -> bool {
        let Situation { len, solo_is_sooner, cores_are_free, solo_is_out, others_are_out, .. } = situation;
        match (solo_is_out, others_are_out) {
            (true, _) => false,
            (false, true) => true,
            (false, false) => cores_are_free && (len < self.max_batch_size || solo_is_sooner),
        }
    }

    /// A run of `size` jobs, once the oldest has waited as long as it may.
    fn run_when_due(&self, size: usize, situation: Situation) -> Decision {
        match self.max_queue_delay.checked_sub(situation.oldest_age) {
            Some(left) if !left.is_zero() && !situation.closed => Decision::WaitAtMost(left),
            _ => Decision::Run(size),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    fn policy(max_batch_size: usize, max_queue_delay: Duration) -> BatchPolicy {
        BatchPolicy { solo_max_batch_size: 1, max_queue_delay, ..BatchPolicy::up_to(max_batch_size) }
    }

    fn situation(len: usize, oldest_age: Duration) -> Situation {
        Situation {
            len,
            oldest_age,
            solo_is_sooner: false,
            cores_are_free: true,
            solo_is_out: false,
            others_are_out: false,
            closed: false,
        }
    }

    fn closed(len: usize) -> Situation {
        Situation { closed: true, ..situation(len, Duration::ZERO) }
    }

    #[test]
    fn a_full_batch_is_due_at_once() {
        for role in [Role::Any, Role::Full] {
            assert_eq!(policy(8, 5 * MS).decide(role, situation(8, Duration::ZERO)), Decision::Run(8));
            assert_eq!(policy(8, 5 * MS).decide(role, situation(20, Duration::ZERO)), Decision::Run(8));
        }
    }

    #[test]
    fn the_oldest_job_decides_how_long_to_wait() {
        assert_eq!(policy(8, 5 * MS).decide(Role::Any, situation(3, 2 * MS)), Decision::WaitAtMost(3 * MS));
        assert_eq!(policy(8, 5 * MS).decide(Role::Any, situation(3, 5 * MS)), Decision::Run(3));
        assert_eq!(policy(8, 5 * MS).decide(Role::Solo, situation(3, 2 * MS)), Decision::WaitAtMost(3 * MS));
        assert_eq!(policy(8, 5 * MS).decide(Role::Solo, situation(3, 5 * MS)), Decision::Run(1));
    }

    #[test]
    fn without_a_delay_nothing_waits() {
        for role in [Role::Any, Role::Solo] {
            assert_eq!(policy(8, Duration::ZERO).decide(role, situation(1, Duration::ZERO)), Decision::Run(1));
        }
    }

    #[test]
    fn few_jobs_are_for_the_solo_worker_while_half_the_cores_are_free_and_full_batches_for_the_others() {
        let policy = policy(4, Duration::ZERO);
        assert_eq!(policy.decide(Role::Full, situation(3, MS)), Decision::WaitForJobs);
        assert_eq!(policy.decide(Role::Solo, situation(3, MS)), Decision::Run(1));
        assert_eq!(policy.decide(Role::Solo, situation(4, MS)), Decision::WaitForJobs);
        let busy = Situation { cores_are_free: false, ..situation(3, MS) };
        assert_eq!(policy.decide(Role::Solo, busy), Decision::WaitForJobs);
        assert_eq!(policy.decide(Role::Full, busy), Decision::Run(3), "a core that is free takes what there is");
    }

    #[test]
    fn the_solo_worker_takes_as_many_as_there_are_and_as_it_may() {
        let policy = BatchPolicy { solo_max_batch_size: 3, ..policy(4, Duration::ZERO) };
        for (len, size) in [(1, 1), (2, 2), (3, 3), (4, 3), (7, 3)] {
            let sooner = Situation { solo_is_sooner: true, ..situation(len, MS) };
            assert_eq!(policy.decide(Role::Solo, sooner), Decision::Run(size));
        }
    }

    #[test]
    fn a_full_batch_is_for_the_solo_worker_where_that_is_sooner_done() {
        for (max, len) in [(1, 1), (1, 2), (4, 4), (4, 6)] {
            let policy = policy(max, Duration::ZERO);
            let sooner = Situation { solo_is_sooner: true, ..situation(len, MS) };
            assert_eq!(policy.decide(Role::Solo, sooner), Decision::Run(1));
            assert_eq!(policy.decide(Role::Full, sooner), Decision::WaitForJobs);
            assert_eq!(policy.decide(Role::Solo, situation(len, MS)), Decision::WaitForJobs);
            assert_eq!(policy.decide(Role::Full, situation(len, MS)), Decision::Run(max));
        }
    }

    #[test]
    fn a_closed_queue_is_emptied_and_then_stops() {
        let policy = policy(8, 5 * MS);
        assert_eq!(policy.decide(Role::Any, closed(3)), Decision::Run(3));
        assert_eq!(policy.decide(Role::Full, closed(3)), Decision::WaitForJobs, "the solo worker may yet go out");
        assert_eq!(policy.decide(Role::Solo, closed(3)), Decision::Run(1));
        assert_eq!(policy.decide(Role::Solo, closed(8)), Decision::WaitForJobs, "the others take these first");
        for role in [Role::Any, Role::Full, Role::Solo] {
            assert_eq!(policy.decide(role, closed(0)), Decision::Stop);
            assert_eq!(policy.decide(role, situation(0, Duration::ZERO)), Decision::WaitForJobs);
        }
    }

    proptest! {
        #[test]
        fn no_batch_is_empty_or_too_large_and_no_wait_is_longer_than_allowed(
            max in 1usize..64, delay_us in 0u64..10_000, len in 0usize..200, age_us in 0u64..20_000, closed: bool,
        ) {
            let delay = Duration::from_micros(delay_us);
            let age = Duration::from_micros(age_us);
            match policy(max, delay).decide(Role::Any, Situation { closed, ..situation(len, age) }) {
                Decision::Run(size) => {
                    prop_assert!(size >= 1 && size <= max && size <= len);
                    prop_assert!(closed || len >= max || age >= delay);
                }
                Decision::WaitAtMost(left) => {
                    prop_assert!(!left.is_zero() && left + age == delay && !closed && len < max);
                }
                Decision::WaitForJobs => prop_assert!(len == 0 && !closed),
                Decision::Stop => prop_assert!(len == 0 && closed),
            }
        }

        #[test]
        fn jobs_are_always_for_somebody_once_a_worker_is_idle(
            max in 1usize..64, len in 1usize..200, solo_is_sooner: bool, cores_are_free: bool, closed: bool,
            out in prop::sample::select(vec![None, Some(Role::Solo), Some(Role::Full)]),
        ) {
            let policy = policy(max, Duration::ZERO);
            let (solo_is_out, others_are_out) = (out == Some(Role::Solo), out == Some(Role::Full));
            let idle = situation(len, Duration::ZERO);
            let situation = Situation { solo_is_sooner, cores_are_free, closed, solo_is_out, others_are_out, ..idle };
            let runs = |role| matches!(policy.decide(role, situation), Decision::Run(_));
            prop_assert!(runs(Role::Full) != runs(Role::Solo), "one of the two, and not both");
            prop_assert!(out.is_none_or(|role| !runs(role)), "and it is there");
        }
    }
}
