//! When a batch is due: a pure function of how many jobs wait, how long the oldest has, who is at work, and whether more can come.

use std::time::Duration;

/// A batch that is not even a small one waits so long for jobs that are on their way, in parts of what a small one runs: those of a batch
/// that has just ended are back by then, if their clients ask on, and hardly any time is lost if they do not. On two cores of a Xeon, CLIP
/// with batches of four did 123 requests/s with 8 connections, and 106 without.
const GATHERING: u32 = 8;

/// But no longer than this, whatever runs have taken.
const LONGEST_GATHERING: Duration = Duration::from_millis(10);

/// Full batches of so many times as many jobs as small ones are far from them. Where they are of four times as many, a size between gained
/// ViT-B/16 a tenth with 8 connections and took four tenths off the median time at 80 % of the load, but EfficientNet-Lite0 then takes 253 MB
/// instead of 215.
const FAR: usize = 8;

/// How large a batch may grow and how long its oldest job may wait for that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchPolicy {
    /// Most jobs in a batch, at least 1.
    pub max_batch_size: usize,
    /// The smallest of the sizes, see [`session_sizes`], in which an instance runs jobs that are too few for that; `None`: it runs as many as
    /// there are.
    pub small_batch_size: Option<usize>,
    /// Is there a solo worker?
    pub has_solo: bool,
    /// How long the **oldest** job may wait for company while a worker is idle.
    pub max_queue_delay: Duration,
}

/// Which jobs a worker takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Batches of all sizes, beside others of its kind; lone jobs only where the solo worker does not take them.
    Instance,
    /// One job at a time, with all cores, while no instance runs: a lone one, unless more come than it could run, and what it has done sooner
    /// than a small batch would be. All cores together do less than each by itself.
    Solo,
}

/// What there is to decide by.
#[derive(Debug, Clone, Copy)]
pub struct Situation {
    /// Jobs that wait.
    pub len: usize,
    /// How long the oldest of them has.
    pub oldest_age: Duration,
    /// Jobs that are being prepared.
    pub coming: usize,
    /// How many instances there are.
    pub instances: usize,
    /// Those of them that run a batch.
    pub busy: usize,
    /// How many jobs those run.
    pub running: usize,
    /// Instances that are out, to rebuild their model after a failed run.
    pub out: usize,
    /// How long ago one last ended a batch; `None`: never.
    pub last_end_age: Option<Duration>,
    /// What a small batch takes, as far as is known.
    pub small_run: Duration,
    /// Would the solo worker have run all jobs that wait, are being prepared or run there already before a small batch were done?
    pub solo_is_sooner: bool,
    /// Could it run all that comes, at the rate of late?
    pub solo_keeps_up: bool,
    /// Is the solo worker out, to rebuild its model after a failed run, or is there none?
    pub solo_is_out: bool,
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

/// The batch sizes that an instance has sessions for, rising: small batches, full ones, and one between, where they are far apart. Without that,
/// ResNet-50 at 80 % of what two cores of a Xeon can do went to and fro between single images and eights, of which each kept a core for so long
/// that as many waited again. It costs 95 MB there, and 0.2 to 0.4 s at the start.
pub fn session_sizes(small_batch_size: usize, max_batch_size: usize) -> impl Iterator<Item = usize> {
    let (small, max) = (small_batch_size.max(1), max_batch_size);
    // The first of small, twice small, four times small and so on that is nearer to full batches than to small ones.
    let mut doubled = std::iter::successors(Some(small), |size| size.checked_mul(2));
    let is_far = max / small >= FAR;
    let between = doubled.find(|&size| size / small >= max.div_ceil(size)).filter(|_| is_far);
    [Some(small).filter(|&small| small < max), between, Some(max)].into_iter().flatten()
}

impl BatchPolicy {
    /// Batches up to this, due at once, without a solo worker.
    pub fn up_to(max_batch_size: usize) -> Self {
        Self { max_batch_size, small_batch_size: None, has_solo: false, max_queue_delay: Duration::ZERO }
    }

    /// Decides for an idle worker.
    pub fn decide(&self, role: Role, situation: Situation) -> Decision {
        let Situation { len, closed, .. } = situation;
        if len == 0 {
            return if closed { Decision::Stop } else { Decision::WaitForJobs };
        }
        if self.is_for_solo(situation) != (role == Role::Solo) {
            return Decision::WaitForJobs;
        }
        let size = if role == Role::Solo { 1 } else { self.size(situation) };
        match self.patience(situation) {
            Some(left) if !closed && (role == Role::Solo || len < self.max_batch_size) => Decision::WaitAtMost(left),
            _ => Decision::Run(size),
        }
    }

    /// How many jobs an instance runs: as many as fill one of its sessions, or all that there are. Idle instances share what waits, and none takes
    /// so many that there are not about as many for each of the others: while some run and others are being decoded, an instance that
    /// has taken too many leaves one of those without work.
    fn size(&self, Situation { len, coming, instances, busy, running, out, .. }: Situation) -> usize {
        let Some(small) = self.small_batch_size else { return len.min(self.max_batch_size) };
        let there = instances.saturating_sub(out).max(1);
        let share = len.div_ceil(there.saturating_sub(busy).max(1));
        let company = len + coming + running;
        // Where single jobs use the machine so badly that small batches are of several, larger ones gain more than that loses.
        let leaves_enough = |size| small > 1 || size * there <= company + size / 4;
        let is_worth_it = |&size: &usize| match self.max_queue_delay {
            Duration::ZERO => size <= share && leaves_enough(size),
            // Who lets jobs wait for full batches gets them.
            _ => size <= len,
        };
        let largest = session_sizes(small, self.max_batch_size).take_while(is_worth_it).last();
        largest.unwrap_or(small).min(len)
    }

    /// The size of the session in which an instance runs so many jobs, where it has several.
    pub(super) fn session_size(&self, jobs: usize) -> usize {
        let of_size = |small| session_sizes(small, self.max_batch_size).find(|&size| size >= jobs);
        self.small_batch_size.and_then(of_size).unwrap_or(jobs)
    }

    /// Is what waits for the solo worker, where there is one? Who is out gets nothing, as long as there is another.
    pub(super) fn is_for_solo(&self, situation: Situation) -> bool {
        let Situation { len, instances, busy, out, solo_is_sooner, solo_keeps_up, solo_is_out, .. } = situation;
        if solo_is_out || out >= instances {
            return !solo_is_out;
        }
        // Where small batches are single jobs, several instances run as many of them at once.
        let may_be_sooner = self.small_batch_size > Some(1) || instances - out == 1;
        busy == 0 && (len == 1 && solo_keeps_up || may_be_sooner && solo_is_sooner)
    }

    /// How much longer what waits may wait for more, if it may.
    fn patience(&self, situation: Situation) -> Option<Duration> {
        let delay = self.max_queue_delay.saturating_sub(situation.oldest_age);
        Some(delay.max(self.patience_for_a_small_batch(situation))).filter(|left| !left.is_zero())
    }

    /// A small batch takes as long if it is not full. So where half of the cores are taken, what is too little for it leaves the others to
    /// decoding until one is free, and else a moment is worth waiting for jobs that are about to come.
    fn patience_for_a_small_batch(&self, situation: Situation) -> Duration {
        let Situation { len, oldest_age, coming, instances, busy, last_end_age, small_run, solo_is_sooner, .. } =
            situation;
        let is_worth_it = len < self.small_batch_size.unwrap_or(1) && !(busy == 0 && solo_is_sooner);
        // Whatever comes and goes meanwhile, nobody waits for much longer than it would have taken.
        if !is_worth_it || oldest_age > small_run * 2 {
            return Duration::ZERO;
        }
        if busy > 0 && busy * 2 >= instances {
            return small_run.saturating_sub(oldest_age);
        }
        let gathering = (small_run / GATHERING).min(LONGEST_GATHERING);
        let quiet_for = last_end_age.map_or(oldest_age, |age| age.min(oldest_age));
        let more_may_come = coming > 0 || last_end_age.is_some_and(|age| age < gathering);
        if more_may_come { gathering.saturating_sub(quiet_for) } else { Duration::ZERO }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    fn policy(max_batch_size: usize, max_queue_delay: Duration) -> BatchPolicy {
        BatchPolicy { has_solo: true, small_batch_size: Some(1), max_queue_delay, ..BatchPolicy::up_to(max_batch_size) }
    }

    fn in_small_ones(max_batch_size: usize, small: usize) -> BatchPolicy {
        BatchPolicy { small_batch_size: Some(small), ..policy(max_batch_size, Duration::ZERO) }
    }

    fn situation(len: usize, oldest_age: Duration) -> Situation {
        Situation {
            len,
            oldest_age,
            coming: 0,
            instances: 2,
            busy: 0,
            running: 0,
            out: 0,
            last_end_age: None,
            small_run: 48 * MS,
            solo_is_sooner: false,
            solo_keeps_up: true,
            solo_is_out: false,
            closed: false,
        }
    }

    fn closed(len: usize) -> Situation {
        Situation { closed: true, ..situation(len, Duration::ZERO) }
    }

    #[test]
    fn a_full_batch_is_due_at_once() {
        for len in [8, 20] {
            let busy = Situation { busy: 1, running: 8, ..situation(len, Duration::ZERO) };
            assert_eq!(policy(8, 5 * MS).decide(Role::Instance, busy), Decision::Run(8));
            assert_eq!(BatchPolicy::up_to(8).decide(Role::Instance, busy), Decision::Run(8));
        }
    }

    #[test]
    fn the_oldest_job_decides_how_long_to_wait() {
        for (role, len) in [(Role::Instance, 3), (Role::Solo, 1)] {
            assert_eq!(policy(8, 5 * MS).decide(role, situation(len, 2 * MS)), Decision::WaitAtMost(3 * MS));
            assert_eq!(policy(8, 5 * MS).decide(role, situation(len, 5 * MS)), Decision::Run(1));
        }
    }

    #[test]
    fn without_a_delay_or_small_batches_nothing_waits_and_all_there_are_go() {
        for len in 1..8 {
            let without_solo = Situation { solo_is_out: true, busy: 1, coming: 1, ..situation(len, Duration::ZERO) };
            assert_eq!(BatchPolicy::up_to(8).decide(Role::Instance, without_solo), Decision::Run(len));
        }
    }

    #[test]
    fn a_lone_job_is_for_the_solo_worker_while_no_instance_runs() {
        let policy = policy(4, Duration::ZERO);
        assert_eq!(policy.decide(Role::Solo, situation(1, MS)), Decision::Run(1));
        assert_eq!(policy.decide(Role::Instance, situation(1, MS)), Decision::WaitForJobs);
        for other in [situation(2, MS), Situation { busy: 1, ..situation(1, MS) }] {
            assert_eq!(policy.decide(Role::Solo, other), Decision::WaitForJobs);
            assert_eq!(policy.decide(Role::Instance, other), Decision::Run(1));
        }
    }

    #[test]
    fn a_few_jobs_are_for_the_solo_worker_where_that_has_them_done_sooner_than_a_small_batch() {
        let policy = in_small_ones(8, 4);
        let sooner = Situation { solo_is_sooner: true, coming: 1, ..situation(2, MS) };
        assert_eq!(policy.decide(Role::Solo, sooner), Decision::Run(1));
        assert_eq!(policy.decide(Role::Instance, sooner), Decision::WaitForJobs);
        let busy = Situation { busy: 1, ..sooner };
        assert_eq!(policy.decide(Role::Solo, busy), Decision::WaitForJobs);
        assert_eq!(policy.decide(Role::Instance, busy), Decision::WaitAtMost(47 * MS));
    }

    #[test]
    fn sessions_are_for_small_and_full_batches_and_for_one_size_between_where_they_are_far_apart() {
        let sizes = |small, max| session_sizes(small, max).collect::<Vec<_>>();
        assert_eq!([sizes(1, 8), sizes(1, 15), sizes(1, 16)], [[1, 4, 8], [1, 4, 15], [1, 4, 16]]);
        assert_eq!([sizes(1, 4), sizes(4, 8), sizes(2, 15)], [[1, 4], [4, 8], [2, 15]], "they are near");
        assert_eq!((sizes(4, 4), sizes(0, 1)), (vec![4], vec![1]));
        assert_eq!((sizes(2, 16), sizes(1, 64)), (vec![2, 8, 16], vec![1, 8, 64]));
        assert_eq!(sizes(1, usize::MAX).len(), 3);
    }

    #[test]
    fn an_instance_runs_as_many_as_fill_a_session_if_as_many_are_there_for_the_others() {
        let size = |len, running, coming| {
            let situation = Situation { busy: 1, running, coming, ..situation(len, MS) };
            match policy(8, Duration::ZERO).decide(Role::Instance, situation) {
                Decision::Run(size) => size,
                other => panic!("{other:?}"),
            }
        };
        for (len, size_of_many) in [(1, 1), (3, 1), (4, 4), (7, 4), (8, 8), (100, 8)] {
            assert_eq!(size(len, 8, 0), size_of_many, "{len} beside a full batch");
        }
        assert_eq!((size(4, 1, 1), size(4, 1, 2), size(5, 1, 1)), (1, 4, 4), "about as many for the other");
        assert_eq!((size(8, 4, 0), size(8, 6, 0)), (4, 8), "nearly as many are enough");
        let beside_four = Situation { busy: 1, running: 4, ..situation(8, MS) };
        assert_eq!(in_small_ones(8, 4).decide(Role::Instance, beside_four), Decision::Run(8));
    }

    #[test]
    fn idle_instances_share_what_waits() {
        for (len, size) in [(2, 1), (4, 1), (8, 4), (9, 4), (16, 8)] {
            assert_eq!(policy(8, Duration::ZERO).decide(Role::Instance, situation(len, MS)), Decision::Run(size));
        }
        assert_eq!(
            policy(8, MS).decide(Role::Instance, situation(8, MS)),
            Decision::Run(8),
            "unless they wait for full ones"
        );
        let one_is_out = Situation { out: 1, ..situation(8, MS) };
        assert_eq!(policy(8, Duration::ZERO).decide(Role::Instance, one_is_out), Decision::Run(8));
    }

    #[test]
    fn what_is_too_little_for_the_smallest_session_goes_in_that() {
        for len in 1..=3 {
            let situation = Situation { solo_is_out: true, ..situation(len, MS) };
            assert_eq!(in_small_ones(8, 3).decide(Role::Instance, situation), Decision::Run(len));
        }
    }

    #[test]
    fn what_the_solo_worker_could_not_keep_up_with_is_for_the_instances() {
        let behind = Situation { solo_keeps_up: false, ..situation(1, MS) };
        assert_eq!(policy(4, Duration::ZERO).decide(Role::Instance, behind), Decision::Run(1));
        assert_eq!(policy(4, Duration::ZERO).decide(Role::Solo, behind), Decision::WaitForJobs);
        let company = Situation { coming: 4, ..behind };
        assert_eq!(in_small_ones(8, 4).decide(Role::Instance, company), Decision::WaitAtMost(5 * MS));
        let few = Situation { coming: 1, solo_is_sooner: true, ..behind };
        assert_eq!(
            in_small_ones(8, 4).decide(Role::Solo, few),
            Decision::Run(1),
            "a small batch would keep up no better"
        );
    }

    #[test]
    fn what_does_not_fill_a_small_batch_waits_while_half_of_the_instances_run() {
        let policy = in_small_ones(8, 4);
        let run = Situation { busy: 1, ..situation(3, 10 * MS) };
        assert_eq!(policy.decide(Role::Instance, run), Decision::WaitAtMost(38 * MS), "as long as it would take");
        assert_eq!(policy.decide(Role::Instance, Situation { instances: 3, ..run }), Decision::Run(3));
        assert_eq!(policy.decide(Role::Instance, Situation { len: 4, ..run }), Decision::Run(4));
        assert_eq!(policy.decide(Role::Instance, Situation { oldest_age: 48 * MS, ..run }), Decision::Run(3));
        assert_eq!(policy.decide(Role::Instance, Situation { small_run: Duration::ZERO, ..run }), Decision::Run(3));
    }

    #[test]
    fn what_does_not_fill_a_small_batch_waits_a_moment_for_what_is_about_to_come() {
        let policy = in_small_ones(8, 4);
        let coming = Situation { coming: 1, ..situation(3, 2 * MS) };
        assert_eq!(policy.decide(Role::Instance, coming), Decision::WaitAtMost(4 * MS));
        assert_eq!(policy.decide(Role::Instance, Situation { oldest_age: 6 * MS, ..coming }), Decision::Run(3));
        let back = Situation { last_end_age: Some(MS), ..situation(3, 40 * MS) };
        assert_eq!(policy.decide(Role::Instance, back), Decision::WaitAtMost(5 * MS));
        assert_eq!(policy.decide(Role::Instance, Situation { len: 4, ..back }), Decision::Run(4));
        assert_eq!(policy.decide(Role::Instance, Situation { oldest_age: 97 * MS, ..back }), Decision::Run(3));
        assert_eq!(policy.decide(Role::Instance, Situation { last_end_age: Some(7 * MS), ..back }), Decision::Run(3));
        let lone = Situation { len: 1, ..coming };
        assert_eq!(policy.decide(Role::Solo, lone), Decision::WaitAtMost(4 * MS), "together they take less");
        assert_eq!(policy.decide(Role::Solo, Situation { coming: 0, ..lone }), Decision::Run(1));
    }

    #[test]
    fn a_closed_queue_is_emptied_and_then_stops() {
        let policy = BatchPolicy { max_queue_delay: 5 * MS, ..in_small_ones(8, 4) };
        assert_eq!(policy.decide(Role::Instance, Situation { busy: 1, ..closed(3) }), Decision::Run(3));
        assert_eq!(policy.decide(Role::Instance, closed(1)), Decision::WaitForJobs, "the solo worker may yet go out");
        assert_eq!(policy.decide(Role::Solo, closed(1)), Decision::Run(1));
        for role in [Role::Instance, Role::Solo] {
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
            let policy = BatchPolicy { max_queue_delay: delay, ..BatchPolicy::up_to(max) };
            let situation = Situation { closed, solo_is_out: true, ..situation(len, age) };
            match policy.decide(Role::Instance, situation) {
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
        fn jobs_are_always_for_somebody_and_wait_no_longer_than_a_few_small_batches_take(
            (max, small) in (1usize..64, 1usize..8), (len, age_ms) in (1usize..200, 0u32..200), coming in 0usize..4,
            busy in 0usize..2, last_end_ms in prop::option::of(0u32..20), closed: bool,
            (solo_is_sooner, solo_keeps_up) in any::<(bool, bool)>(),
            out in prop::sample::select(vec![None, Some(Role::Solo), Some(Role::Instance)]),
        ) {
            let policy = in_small_ones(max, small.min(max));
            let (solo_is_out, instances_out) = (out == Some(Role::Solo), if out == Some(Role::Instance) { 2 } else { 0 });
            let last_end_age = last_end_ms.map(|age| MS * age);
            let idle = situation(len, MS * age_ms);
            let situation = Situation {
                coming, busy, running: busy * 2, last_end_age, closed, solo_is_sooner, solo_keeps_up, solo_is_out, out: instances_out,
                ..idle
            };
            let takes = |role| match policy.decide(role, situation) {
                Decision::Run(size) => Some((size, Duration::ZERO)),
                Decision::WaitAtMost(left) => Some((1, left)),
                Decision::WaitForJobs | Decision::Stop => None,
            };
            let of_both = [takes(Role::Instance), takes(Role::Solo)];
            let [one] = of_both.iter().flatten().collect::<Vec<_>>()[..] else { panic!("one of the two, and not both") };
            prop_assert!(out.is_none_or(|role| takes(role).is_none()), "and it is there");
            prop_assert!(one.0 <= len.min(max));
            prop_assert!(one.1.is_zero() || !closed && MS * age_ms + one.1 <= MS * 48 * 2 + LONGEST_GATHERING);
        }
    }
}
