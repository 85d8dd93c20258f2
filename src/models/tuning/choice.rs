//! What `auto` decides by: measurements of plans, and the rule that chooses among them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::config::{Objective, TuningSettings};
use crate::models::plan::Plan;
use crate::runtime::{ExecutionProvider, Precision};

/// One way to run a graph, as measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Candidate {
    /// The execution provider.
    pub provider: ExecutionProvider,
    /// The arithmetic.
    pub precision: Precision,
    /// Batches run at once.
    pub instances: usize,
    /// Inference threads per instance.
    pub threads: usize,
    /// By batch size; empty if it was ruled out before.
    pub speeds: Vec<Speed>,
    /// The furthest that a probability moved from f32's on the built-in photos.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub largest_shift: Option<f64>,
    /// Why it was ruled out.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ruled_out: Option<String>,
}

/// How fast one batch size runs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Speed {
    /// Items per run.
    pub batch_size: usize,
    /// Items per second, of all sessions together, while as many are being decoded and preprocessed.
    pub per_second: f64,
    /// A run, in milliseconds; of the two smallest batches with nothing beside it.
    pub run_ms: f64,
}

/// What tuning found for one graph.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Tuning {
    /// From an earlier start, on the same machine with the same files and settings.
    #[serde(default)]
    pub cached: bool,
    /// Everything that was measured.
    pub candidates: Vec<Candidate>,
}

impl Candidate {
    pub(super) fn of(plan: &Plan) -> Self {
        let Plan { provider, precision, instances, threads, .. } = *plan;
        Self { provider, precision, instances, threads, speeds: Vec::new(), largest_shift: None, ruled_out: None }
    }

    /// As it was measured, up to this batch size.
    pub(super) fn plan(&self, max_batch_size: usize) -> Plan {
        let Self { provider, precision, instances, threads, .. } = *self;
        Plan { provider, precision, instances, threads, max_batch_size, small_batch_size: None, solo_threads: None }
    }

    /// The time of a run of the smallest batch, in milliseconds.
    pub(super) fn single_ms(&self) -> f64 {
        self.speeds.first().map_or(f64::INFINITY, |speed| speed.run_ms)
    }

    /// How many times as fast as `other` it runs few items. The more threads a run has, the likelier it is that all its measurements
    /// were disturbed; so that of the two smallest batches counts which speaks more for it.
    fn gain_with_few(&self, other: &Self) -> f64 {
        let runs = self.speeds.iter().zip(&other.speeds).take(FEW);
        let same = runs.filter(|(mine, theirs)| mine.batch_size == theirs.batch_size);
        same.map(|(mine, theirs)| theirs.run_ms / mine.run_ms).fold(0.0, f64::max)
    }

    /// Most items per second at any batch size.
    pub(super) fn best_per_second(&self) -> f64 {
        best_per_second(&self.speeds)
    }

    /// The same, or items per second at the batch size that would be served, where its batches are seldom likely to fill.
    fn likely_per_second(&self) -> f64 {
        let fills = self.speeds.iter().all(|speed| self.scarcity(speed) == 0.0);
        let served = if fills { None } else { smallest_batch(self) };
        served.map_or_else(|| self.best_per_second(), |speed| speed.per_second)
    }

    /// How often the images that it takes to fill all sessions are twice as many as are likely to be there.
    fn scarcity(&self, speed: &Speed) -> f64 {
        let images = if self.provider.is_on_cpu() { speed.batch_size * self.instances } else { 1 };
        (images as f64 / LIKELY_COMPANY as f64).max(1.0).log2()
    }
}

/// Most items per second at any batch size.
pub(super) fn best_per_second(speeds: &[Speed]) -> f64 {
    speeds.iter().map(|speed| speed.per_second).fold(0.0, f64::max)
}

/// Two figures that lie closer than this are taken for equal: the same one moves by as much between two measurements.
const NOISE: f64 = 0.03;

/// To be worth its place, a larger batch has to do more than what is [`NOISE`], and by so much more for each millisecond that it
/// runs: who comes meanwhile waits for all of it. Small, because few images do not wait for full
/// batches, see [`crate::batching::BatchPolicy::small_batch_size`].
const GAIN_PER_MS: f64 = 0.000_05;

/// Images in a batch that are likely to be found best, or nearly so.
pub(super) const LIKELY_BATCH: usize = 4;

/// What a batch larger than [`LIKELY_BATCH`] has to do more than that instead of [`NOISE`]. It takes more memory, and needs more company: at 8
/// connections, batches of eight did 0.83 (EfficientNet-Lite0) and 0.74 (ResNet-50) of what batches of four did, which at 32 did as
/// much but for 1 to 3 %.
const LARGE_BATCH_GAIN: f64 = 0.05;

/// Images that are likely to be in work at once, however large the machine: so many fill two sessions with batches of eight.
pub(super) const LIKELY_COMPANY: usize = 16;

/// What batches have to do more, for each time that it takes twice as many images as [`LIKELY_COMPANY`] to fill all sessions. On 16 cores of
/// a Xeon, 16 sessions with batches of eight did 1,500 requests/s with 128 connections, but 740 with 32 and 452 with 16, though each session
/// does as many images a second one by one.
const COMPANY_GAIN: f64 = 0.25;

/// What is expected in arithmetic other than f32, and taken for granted unless measurements speak against it by as much: that it is faster
/// than f32, that a batch of up to [`LIKELY_BATCH`] does more than a smaller one, because matrix units want many rows, and that all cores
/// together are faster with few items. Three servers that were started on two cores at once disturbed each other so that one took f32,
/// which did half. On Xeons that have such units, servers that took turns did 1.1 (EfficientNet-Lite0) to 1.9 times (CLIP) as much with
/// batches of four as with single items; in disturbed hours, tuning saw 0.92 for the former and 0.82 for ResNet-50, which does 1.4 times as
/// much.
const EXPECTED_GAIN: f64 = 0.25;

/// Runs of this many milliseconds are only made longer where that has paid so far, see [`gains_end`].
const LONG_RUN_MS: f64 = 200.0;

/// What sessions of several threads lose in a server beyond what is measured: a run waits for its slowest thread, and HTTP takes cores
/// from under some of them, as decoding does, which is measured with them. Over HTTP with 32 connections, one session of two threads
/// did 18 to 26 % less than two of one (EfficientNet-Lite0, ResNet-50, CLIP), where measuring saw 10 to 15 %.
const CONTENTION: f64 = 0.12;

/// A session of its own for lone items has to be this much faster with them to be worth its memory.
const SOLO_GAIN: f64 = 0.1;

/// Small batches are the smallest that do at least this part of what full ones do: at seven tenths of the load that full ones can take,
/// what comes is hardly ever enough for one, and who waits for it to fill waits for long.
const SMALL_BATCH_SHARE: f64 = 0.7;

/// So many of the smallest batches are run with nothing beside them too.
pub(super) const FEW: usize = 2;

/// What a choice for throughput may make of lone items.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::models) enum Latitude {
    /// They may take this many times the shortest.
    Bound(f64),
    /// They get a session of their own where that is faster.
    SoloSession,
}

/// The plan to run, with the largest batch that pays; `None` if nothing could be measured.
///
/// For throughput: the most items per second, within what `latitude` says of lone ones. For latency: the lowest single-item
/// latency. Of equals the first wins, and the smaller batch.
pub(in crate::models) fn choose(candidates: &[Candidate], objective: Objective, latitude: Latitude) -> Option<Plan> {
    let usable = || candidates.iter().filter(|candidate| candidate.ruled_out.is_none() && !candidate.speeds.is_empty());
    let fastest = usable().map(Candidate::single_ms).fold(f64::INFINITY, f64::min);
    let bound = match latitude {
        Latitude::Bound(bound) => bound,
        Latitude::SoloSession => f64::INFINITY,
    };
    let expected = |candidate: &Candidate| 1.0 + expected_gain(candidate.precision);
    let throughput = |candidate: &Candidate| {
        let loses = latitude == Latitude::SoloSession && candidate.provider.is_on_cpu() && candidate.threads > 1;
        candidate.likely_per_second() * if loses { 1.0 - CONTENTION } else { 1.0 } * expected(candidate)
    };
    let latency = |candidate: &Candidate| candidate.single_ms() / expected(candidate);
    let best = usable().filter(|candidate| candidate.single_ms() <= fastest * bound).reduce(|best, other| {
        let better = match objective {
            Objective::Throughput => throughput(other) > throughput(best) * (1.0 + NOISE),
            Objective::Latency => latency(other) < latency(best) * (1.0 - NOISE),
        };
        if better { other } else { best }
    })?;
    // On a GPU a batch of a few costs hardly more than one, so no session should wait for a full one.
    let may_solo = objective == Objective::Throughput && latitude == Latitude::SoloSession && best.provider.is_on_cpu();
    // Answers must not depend on the load, so only sessions with the same arithmetic come into question.
    let wider = usable().filter(|other| {
        (other.provider, other.precision) == (best.provider, best.precision) && other.threads > best.threads
    });
    let solo = wider.filter(|_| may_solo).max_by(|a, b| a.gain_with_few(best).total_cmp(&b.gain_with_few(best)));
    let gains = |solo: &&Candidate| solo.gain_with_few(best) > 1.0 + SOLO_GAIN - expected_gain(best.precision);
    let solo = solo.filter(gains);
    let full = smallest_batch(best)?;
    let does_enough = |speed: &&Speed| speed.per_second >= full.per_second * SMALL_BATCH_SHARE;
    let small = best.speeds.iter().find(does_enough).map(|speed| speed.batch_size);
    Some(Plan {
        small_batch_size: small.filter(|_| solo.is_some()),
        solo_threads: solo.map(|solo| solo.threads),
        ..best.plan(full.batch_size)
    })
}

/// See [`EXPECTED_GAIN`].
fn expected_gain(precision: Precision) -> f64 {
    if precision == Precision::F32 { 0.0 } else { EXPECTED_GAIN }
}

/// The smallest batch than which no larger one does enough more, or is expected to.
fn smallest_batch(candidate: &Candidate) -> Option<Speed> {
    let Candidate { speeds, precision, .. } = candidate;
    let pays = |large: &Speed, small: &Speed| {
        let scarcer = candidate.scarcity(large) - candidate.scarcity(small);
        let least = if scarcer > 0.0 {
            NOISE + COMPANY_GAIN * scarcer
        } else if large.batch_size <= LIKELY_BATCH {
            NOISE - expected_gain(*precision)
        } else if small.batch_size >= LIKELY_BATCH {
            LARGE_BATCH_GAIN
        } else {
            NOISE
        };
        large.per_second / small.per_second > 1.0 + least + GAIN_PER_MS * large.run_ms
    };
    let mut each = speeds.iter().enumerate();
    each.find_map(|(index, small)| speeds[index + 1..].iter().all(|large| !pays(large, small)).then_some(*small))
}

/// Do the last of these, of rising batch sizes, show that larger ones would gain nothing, but take long to measure? It takes two of
/// them, as one may have met a slow moment.
pub(super) fn gains_end(speeds: &[Speed]) -> bool {
    let [.., before, middle, last] = speeds else { return false };
    let gains_nothing = |speed: &Speed| speed.per_second < before.per_second * (1.0 + NOISE);
    last.run_ms > LONG_RUN_MS && gains_nothing(middle) && gains_nothing(last)
}

/// Compares probabilities with those of f32, a row an item: the furthest that one moved, and why that is too far, if it is.
pub(super) fn judge(reference: &[Vec<f32>], rows: &[Vec<f32>], settings: &TuningSettings) -> (f64, Option<String>) {
    if reference.iter().map(Vec::len).ne(rows.iter().map(Vec::len)) {
        return (f64::INFINITY, Some("its answers have not as many values".to_owned()));
    }
    let mut shift: f64 = 0.0;
    let mut changed = 0;
    for (wanted, row) in reference.iter().zip(rows) {
        for (a, b) in wanted.iter().zip(row) {
            let moved = f64::from((a - b).abs());
            shift = if moved.is_nan() { f64::INFINITY } else { shift.max(moved) };
        }
        let best = |row: &[f32]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]).then(b.cmp(&a)));
        if let (Some(first), Some(now)) = (best(wanted), best(row)) {
            changed += usize::from(f64::from(wanted[first] - wanted[now]) > settings.margin);
        }
    }
    let problem = if changed > 0 {
        Some(format!("another label comes first for {changed} of {} built-in photos", reference.len()))
    } else if shift > settings.max_shift {
        Some(format!("probabilities move by up to {shift:.3}, more than {}", settings.max_shift))
    } else {
        None
    };
    (shift, problem)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn candidate(instances: usize, speeds: &[(usize, f64, f64)]) -> Candidate {
        let speed = |&(batch_size, per_second, run_ms): &(usize, f64, f64)| Speed { batch_size, per_second, run_ms };
        let plan = Plan {
            provider: ExecutionProvider::Cpu,
            precision: Precision::F32,
            instances,
            threads: 1,
            max_batch_size: 8,
            small_batch_size: None,
            solo_threads: None,
        };
        Candidate { speeds: speeds.iter().map(speed).collect(), ..Candidate::of(&plan) }
    }

    #[test]
    fn throughput_decides_within_the_latency_bound() {
        let one = candidate(1, &[(1, 100.0, 10.0), (8, 120.0, 66.0)]);
        let two = candidate(2, &[(1, 130.0, 15.0), (8, 160.0, 100.0)]);
        let three = candidate(3, &[(1, 150.0, 30.0), (8, 300.0, 80.0)]);
        let all = [one, two, three];
        let choice = |objective, bound| {
            choose(&all, objective, Latitude::Bound(bound)).map(|plan| (plan.instances, plan.max_batch_size))
        };
        assert_eq!(choice(Objective::Throughput, 1.5), Some((2, 8)));
        assert_eq!(choice(Objective::Throughput, 3.0), Some((3, 8)));
        assert_eq!(choice(Objective::Throughput, 1.0), Some((1, 8)));
        assert_eq!(choice(Objective::Latency, 1.5), Some((1, 8)));
    }

    #[test]
    fn differences_within_the_noise_change_nothing() {
        let all = [candidate(1, &[(1, 99.0, 10.0), (8, 100.0, 80.0)]), candidate(2, &[(1, 101.0, 9.9)])];
        let plan = choose(&all, Objective::Throughput, Latitude::Bound(1.5)).unwrap();
        assert_eq!((plan.instances, plan.max_batch_size), (1, 1), "nor is a larger batch taken that does not pay");
    }

    #[test]
    fn a_larger_batch_has_to_pay_the_more_the_longer_it_runs() {
        let batch = |speeds: &[(usize, f64, f64)]| smallest_batch(&candidate(1, speeds)).unwrap().batch_size;
        assert_eq!(batch(&[(1, 100.0, 10.0), (2, 101.0, 20.0)]), 1);
        assert_eq!(batch(&[(1, 100.0, 10.0), (2, 104.0, 19.0)]), 2);
        assert_eq!(batch(&[(1, 100.0, 10.0), (2, 104.0, 500.0)]), 1);
        // As measured by themselves on two cores of an EPYC.
        assert_eq!(
            batch(&[(1, 720.5, 2.7), (2, 720.4, 5.4), (4, 740.2, 10.6), (8, 670.0, 23.3)]),
            1,
            "EfficientNet-Lite0"
        );
        assert_eq!(batch(&[(1, 80.3, 24.0), (2, 90.7, 44.0), (4, 97.0, 82.0), (8, 102.9, 155.0)]), 8, "CLIP ViT-B/32");
        assert_eq!(batch(&[(1, 100.0, 10.0), (2, 90.0, 22.0), (4, 120.0, 33.0)]), 4, "a dip is no end");
    }

    #[test]
    fn the_more_sessions_there_are_to_fill_the_more_batches_have_to_gain() {
        let choice = |instances, speeds: &[(usize, f64, f64)]| {
            let candidates = [Candidate { precision: Precision::Bf16, ..candidate(instances, speeds) }];
            choose(&candidates, Objective::Throughput, Latitude::SoloSession).unwrap().max_batch_size
        };
        // As measured on 16 cores of a Xeon.
        let small = [(1, 1527.0, 6.6), (2, 1731.0, 17.0), (4, 1535.0, 37.9), (8, 1670.0, 71.2)];
        assert_eq!((choice(16, &small), choice(2, &small)), (1, 8));
        let large = [(1, 586.0, 25.0), (2, 800.0, 35.0), (4, 1030.0, 52.0), (8, 1060.0, 100.0)];
        assert_eq!((choice(2, &large), choice(8, &large), choice(16, &large), choice(64, &large)), (4, 4, 4, 4));
        let moderate = [(1, 586.0, 25.0), (2, 800.0, 35.0), (4, 970.0, 57.0)];
        assert_eq!((choice(2, &moderate), choice(8, &moderate), choice(16, &moderate)), (4, 2, 2));
    }

    #[test]
    fn in_half_precision_it_takes_more_than_noise_to_leave_a_batch_of_a_few() {
        let batch = |speeds: &[(usize, f64, f64)]| {
            smallest_batch(&Candidate { precision: Precision::Bf16, ..candidate(1, speeds) }).unwrap().batch_size
        };
        // As measured with decoding beside on two cores of a Xeon with AMX.
        let lite0 = [(1, 387.0, 4.3), (2, 423.0, 6.9), (4, 415.0, 14.0), (8, 412.0, 29.0)];
        assert_eq!(batch(&lite0), 4, "EfficientNet-Lite0");
        let hardly_more = [(1, 363.2, 3.7), (2, 398.0, 6.0), (4, 380.3, 20.8), (8, 396.5, 39.2)];
        assert_eq!(batch(&hardly_more), 4, "EfficientNet-Lite0, of which eight need more company");
        let disturbed = [(1, 235.7, 7.2), (2, 228.5, 11.4), (4, 215.9, 39.6)];
        assert_eq!(batch(&disturbed), 4, "EfficientNet-Lite0 in an hour in which four did 1.11 times what one did");
        assert_eq!(batch(&[(1, 105.0, 11.4), (2, 127.0, 20.2), (4, 173.0, 38.8), (8, 156.0, 78.4)]), 4, "ResNet-50");
        assert_eq!(batch(&[(1, 20.0, 71.1), (2, 22.0, 126.5), (4, 28.0, 245.7), (8, 28.8, 488.2)]), 4, "ViT-B/16");
        assert_eq!(batch(&[(1, 49.0, 28.7), (2, 59.0, 47.9), (4, 91.0, 72.8), (8, 110.0, 126.5)]), 8, "CLIP ViT-B/32");
        let disturbed = [(1, 94.7, 23.6), (2, 100.3, 30.4), (4, 82.4, 93.5)];
        assert_eq!(batch(&disturbed), 4, "ResNet-50 in an hour in which four did 1.4 times what one did");
        assert_eq!(batch(&[(1, 100.0, 10.0), (2, 77.0, 26.0), (4, 75.0, 53.0)]), 1, "it loses clearly");
    }

    #[test]
    fn long_runs_that_gain_nothing_end_the_measuring() {
        let ends = |speeds: &[(usize, f64, f64)]| gains_end(&candidate(1, speeds).speeds);
        assert!(ends(&[(1, 24.6, 80.0), (2, 25.1, 157.0), (4, 25.3, 310.0)]));
        assert!(!ends(&[(1, 17.8, 54.0), (2, 21.6, 92.0), (4, 23.8, 210.0)]), "it gains");
        assert!(!ends(&[(1, 100.0, 10.0), (2, 90.0, 22.0), (4, 99.0, 41.0)]), "a short one costs little to measure");
        assert!(
            !ends(&[(1, 16.9, 135.0), (2, 16.5, 225.0)]),
            "as ViT-B/16 was seen under load; four did half as much again"
        );
        assert!(!ends(&[(1, 1.0, 1000.0)]), "there is nothing to compare it with");
    }

    fn with_threads(threads: usize, candidate: Candidate) -> Candidate {
        Candidate { threads, ..candidate }
    }

    #[test]
    fn lone_items_get_a_session_of_their_own_where_that_is_faster() {
        let wide = with_threads(2, candidate(1, &[(1, 100.0, 10.0), (2, 101.0, 20.0)]));
        let narrow = candidate(2, &[(1, 97.0, 20.0), (2, 98.0, 41.0)]);
        let choice = |candidates: &[Candidate]| {
            let plan = choose(candidates, Objective::Throughput, Latitude::SoloSession).unwrap();
            (plan.instances, plan.max_batch_size, plan.solo_threads)
        };
        assert_eq!(choice(&[wide.clone(), narrow.clone()]), (2, 1, Some(2)), "equal but for what contention takes");
        assert_eq!(choice(std::slice::from_ref(&wide)), (1, 1, None), "it is its own");
        let quick = candidate(2, &[(1, 97.0, 10.5), (2, 98.0, 21.0)]);
        assert_eq!(choice(&[wide.clone(), quick]), (2, 1, None), "it gains too little");
        let mut other = Candidate { precision: Precision::Bf16, ..wide.clone() };
        other.speeds.iter_mut().for_each(|speed| speed.per_second *= 0.7);
        assert_eq!(choice(&[other, narrow.clone()]), (2, 1, None), "its answers would be others");
        let on_gpu = |candidate: &Candidate| Candidate { provider: ExecutionProvider::Cuda, ..candidate.clone() };
        assert_eq!(
            choice(&[on_gpu(&wide), on_gpu(&narrow)]),
            (1, 1, None),
            "threads take no cores from decoding there"
        );
        let large = candidate(2, &[(1, 90.0, 22.0), (2, 98.0, 41.0)]);
        assert_eq!(choice(&[wide.clone(), large]), (2, 2, Some(2)), "a batch of two pays");
        let disturbed = with_threads(2, candidate(1, &[(1, 67.0, 20.5), (2, 90.0, 20.0)]));
        assert_eq!(choice(&[disturbed, narrow]), (2, 1, Some(2)), "with two it shows");
        let half = |candidate: Candidate| Candidate { precision: Precision::Bf16, ..candidate };
        let seems_slow = half(with_threads(2, candidate(1, &[(1, 43.5, 26.0), (2, 62.6, 34.0)])));
        let batches = half(candidate(2, &[(1, 94.7, 23.6), (2, 100.3, 30.4)]));
        assert_eq!(
            choice(&[seems_slow, batches.clone()]),
            (2, 2, Some(2)),
            "in half precision it is taken for granted"
        );
        let is_slow = half(with_threads(2, candidate(1, &[(1, 43.5, 28.3), (2, 62.6, 37.0)])));
        assert_eq!(choice(&[is_slow, batches]), (2, 2, None), "unless it loses clearly");
        let slow = candidate(2, &[(1, 80.0, 25.0), (2, 85.0, 47.0)]);
        assert_eq!(choice(&[wide, slow]), (1, 1, None));
    }

    #[test]
    fn small_batches_are_the_smallest_that_do_most_of_what_full_ones_do() {
        let small = |narrow: &[(usize, f64, f64)]| {
            let wide = [(1, narrow[0].1, narrow[0].2 / 2.0)];
            let all = [with_threads(2, candidate(1, &wide)), candidate(2, narrow)];
            let plan = choose(&all, Objective::Throughput, Latitude::SoloSession).unwrap();
            (plan.small_batch_size, plan.max_batch_size)
        };
        // As measured with decoding beside on two cores of a Xeon with AMX.
        assert_eq!(small(&[(1, 387.0, 4.3), (2, 423.0, 6.9), (4, 415.0, 14.0)]), (Some(1), 2), "EfficientNet-Lite0");
        assert_eq!(small(&[(1, 20.0, 71.1), (2, 22.0, 126.5), (4, 28.0, 245.7)]), (Some(1), 4), "ViT-B/16");
        let clip = [(1, 49.0, 28.7), (2, 59.0, 47.9), (4, 91.0, 72.8), (8, 110.0, 126.5)];
        assert_eq!(small(&clip), (Some(4), 8), "CLIP ViT-B/32");
        assert_eq!(
            small(&[(1, 100.0, 10.0), (2, 100.0, 20.0)]),
            (Some(1), 1),
            "of one, full and small ones are the same"
        );
        let without_solo = [candidate(2, &clip)];
        let plan = choose(&without_solo, Objective::Throughput, Latitude::SoloSession).unwrap();
        assert_eq!((plan.small_batch_size, plan.max_batch_size), (None, 8));
    }

    #[test]
    fn f32_has_to_be_clearly_ahead_of_what_should_be_faster() {
        let half = Candidate { precision: Precision::Bf16, ..candidate(2, &[(1, 124.0, 8.1)]) };
        for objective in [Objective::Throughput, Objective::Latency] {
            let choice =
                |f32: Candidate| choose(&[f32, half.clone()], objective, Latitude::SoloSession).unwrap().precision;
            assert_eq!(choice(candidate(2, &[(1, 133.0, 7.5)])), Precision::Bf16, "a disturbed moment");
            assert_eq!(choice(candidate(2, &[(1, 200.0, 5.0)])), Precision::F32, "a graph that is slow in bf16");
        }
    }

    #[test]
    fn what_was_ruled_out_or_not_measured_is_not_chosen() {
        let mut fast = candidate(2, &[(1, 900.0, 1.0)]);
        fast.ruled_out = Some("wrong answers".to_owned());
        let slow = candidate(1, &[(1, 10.0, 100.0)]);
        assert_eq!(choose(&[fast.clone(), slow], Objective::Throughput, Latitude::Bound(1.5)).unwrap().instances, 1);
        assert_eq!(choose(&[fast, candidate(1, &[])], Objective::Throughput, Latitude::Bound(1.5)), None);
    }

    #[test]
    fn fidelity_is_judged_by_shifts_and_by_the_best_label() {
        let settings = Config::default().model_defaults.tuning;
        let judge = |wanted: &[f32], row: &[f32]| judge(&[wanted.to_vec()], &[row.to_vec()], &settings);
        let (shift, problem) = judge(&[0.75, 0.25], &[0.78125, 0.21875]);
        assert!(shift == 0.03125 && problem.is_none(), "{shift} {problem:?}");
        assert!(judge(&[0.9, 0.1], &[0.8, 0.2]).1.unwrap().contains("move by up to 0.100"));
        assert!(judge(&[0.60, 0.40], &[0.40, 0.60]).1.unwrap().contains("another label comes first"));
        assert_eq!(judge(&[0.51, 0.49], &[0.49, 0.51]).1, None, "a near tie may turn");
        assert!(judge(&[0.5, 0.5], &[f32::NAN, 0.5]).1.is_some());
        assert!(judge(&[0.5, 0.5], &[0.5, 0.5, 0.0]).1.unwrap().contains("not as many values"));
    }
}
