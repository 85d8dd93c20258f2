//! When a batch is due: a pure function of how many jobs wait, how long the oldest has, and whether more can come.

use std::time::Duration;

/// How large a batch may grow and how long its oldest job may wait for that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchPolicy {
    /// Most jobs in a batch, at least 1.
    pub max_batch_size: usize,
    /// How long the **oldest** job may wait for company while a worker is idle.
    pub max_queue_delay: Duration,
}

/// What an idle worker should do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Run a batch of the oldest jobs, this many.
    Run(usize),
    /// Jobs wait, but may wait this much longer for more.
    WaitAtMost(Duration),
    /// Nothing waits.
    WaitForJobs,
    /// Nothing waits and nothing will come.
    Stop,
}

impl BatchPolicy {
    /// Decides for `len` waiting jobs, the oldest of which has waited `oldest_age`; `closed`: no more will come.
    pub fn decide(&self, len: usize, oldest_age: Duration, closed: bool) -> Decision {
        if len == 0 {
            return if closed { Decision::Stop } else { Decision::WaitForJobs };
        }
        if closed || len >= self.max_batch_size {
            return Decision::Run(len.min(self.max_batch_size));
        }
        match self.max_queue_delay.checked_sub(oldest_age) {
            Some(left) if !left.is_zero() => Decision::WaitAtMost(left),
            _ => Decision::Run(len),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    fn policy(max_batch_size: usize, max_queue_delay: Duration) -> BatchPolicy {
        BatchPolicy { max_batch_size, max_queue_delay }
    }

    #[test]
    fn a_full_batch_is_due_at_once() {
        assert_eq!(policy(8, 5 * MS).decide(8, Duration::ZERO, false), Decision::Run(8));
        assert_eq!(policy(8, 5 * MS).decide(20, Duration::ZERO, false), Decision::Run(8));
    }

    #[test]
    fn the_oldest_job_decides_how_long_to_wait() {
        assert_eq!(policy(8, 5 * MS).decide(3, 2 * MS, false), Decision::WaitAtMost(3 * MS));
        assert_eq!(policy(8, 5 * MS).decide(3, 5 * MS, false), Decision::Run(3));
    }

    #[test]
    fn without_a_delay_nothing_waits() {
        assert_eq!(policy(8, Duration::ZERO).decide(1, Duration::ZERO, false), Decision::Run(1));
    }

    #[test]
    fn a_closed_queue_is_emptied_and_then_stops() {
        assert_eq!(policy(8, 5 * MS).decide(3, Duration::ZERO, true), Decision::Run(3));
        assert_eq!(policy(8, 5 * MS).decide(0, Duration::ZERO, true), Decision::Stop);
        assert_eq!(policy(8, 5 * MS).decide(0, Duration::ZERO, false), Decision::WaitForJobs);
    }

    proptest! {
        #[test]
        fn no_batch_is_empty_or_too_large_and_no_wait_is_longer_than_allowed(
            max in 1usize..64, delay_us in 0u64..10_000, len in 0usize..200, age_us in 0u64..20_000, closed: bool,
        ) {
            let delay = Duration::from_micros(delay_us);
            let age = Duration::from_micros(age_us);
            match policy(max, delay).decide(len, age, closed) {
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
    }
}
