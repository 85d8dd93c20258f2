//! Measuring how a graph is best run, while it is being served: providers, precisions, sessions, threads and batch sizes.

use std::time::{Duration, Instant};

use super::engine::{Engine, open_crew};
use super::opener::{Binding, Opener, Plan, Use, first_plan, providers};
use super::probe::Probe;
use super::trial::{self, Trial, batch_sizes};
use super::tuning::{Candidate, Latitude, Tuning, choose, judge};
use super::{LoadError, Ticket};
use crate::batching::{InferenceError, Role};
use crate::config::{ModelSettings, Objective, usable_cores};
use crate::runtime::Precision;

/// No new candidate is tried after this.
const BUDGET: Duration = Duration::from_secs(20);

/// How long an earlier crew's last batch is waited for before sessions are opened that should find its memory free.
const LAST_BATCH: Duration = Duration::from_secs(2);

/// What makes probabilities of a graph's answers to the probe's items.
pub(super) type Probabilities<'a> = dyn Fn(&[Vec<f32>]) -> Vec<Vec<f32>> + 'a;

/// What fidelity is judged on.
pub(super) struct Judgement<'a, B: Binding> {
    /// How another process makes the items.
    pub(super) probe: Probe,
    pub(super) items: Vec<B::Item>,
    pub(super) probabilities: &'a Probabilities<'a>,
}

impl<B: Binding> Opener<B> {
    /// The plan that measurements speak for, under these settings.
    pub(super) fn choose(&self, settings: &ModelSettings, candidates: &[Candidate]) -> Option<Plan> {
        let plan = choose(candidates, settings.tuning.objective?, self.latitude(settings))?;
        Some(Plan { solo_threads: settings.solo_threads.or(plan.solo_threads), ..plan })
    }

    /// What a choice may make of lone items.
    pub(super) fn latitude(&self, settings: &ModelSettings) -> Latitude {
        let left_open = settings.instances.is_none() && settings.solo_threads.is_none();
        let may_solo = left_open && self.can_fix_batch_size();
        if may_solo { Latitude::SoloSession } else { Latitude::Bound(settings.tuning.latency_bound) }
    }
}

impl<B: Binding> Engine<B> {
    /// Is there anything to measure?
    pub(super) fn wants_tuning(&self) -> bool {
        self.settings.leaves_open() && self.info().tuning.is_none()
    }

    /// The engine's own answers, through its queue. Blocks.
    pub(super) fn answers(&self, items: &[B::Item]) -> Result<Vec<Vec<f32>>, InferenceError> {
        let ticket = Ticket { deadline: Instant::now() + Duration::from_secs(60), permit: None };
        let pending = items.iter().map(|item| self.submit(item.clone(), ticket.clone()));
        let pending: Vec<_> = pending.collect::<Result<_, _>>()?;
        pending.into_iter().map(|pending| Ok(pending.blocking_answer()?.output)).collect()
    }

    /// Measures what the settings leave open and goes over to the best of it. Blocks for some seconds, in which the present
    /// crew serves; ends early when the engine is closed.
    pub(super) fn tune(&self, judgement: &Judgement<'_, B>) {
        if !self.wants_tuning() {
            return;
        }
        let started = Instant::now();
        let candidates = match self.measure_all(judgement, started) {
            Ok(candidates) => candidates,
            Err(error) => {
                return tracing::warn!(model = self.name.0, graph = self.name.1, %error, "tuning was given up");
            }
        };
        if self.is_closed() {
            return;
        }
        for candidate in &candidates {
            tracing::info!(
                model = self.name.0,
                graph = self.name.1,
                provider = candidate.provider.name(),
                precision = candidate.precision.name(),
                instances = candidate.instances,
                threads = candidate.threads,
                best_per_second = candidate.best_per_second(),
                single_ms = candidate.single_ms(),
                largest_shift = candidate.largest_shift,
                ruled_out = candidate.ruled_out,
                "measured"
            );
        }
        let Some(plan) = self.opener.choose(&self.settings, &candidates) else { return };
        let tuning = Tuning { cached: false, candidates };
        self.cache.write(&tuning);
        let reason = format!("auto: best of {} measured", tuning.candidates.len());
        if plan == self.plan() {
            return self.note(reason, tuning);
        }
        let before = self.plan();
        if let Err(error) = self.go_over(plan, reason, Some(tuning)) {
            tracing::warn!(model = self.name.0, graph = self.name.1, %error, "the tuned plan does not work");
            if let Err(error) = self.go_over(before, "auto: the tuned plan does not work".to_owned(), None) {
                tracing::error!(model = self.name.0, graph = self.name.1, %error, "nor can the first plan be gone back to");
            }
        }
    }

    /// Goes over to another plan, one session after the other, so that not all of the old and the new ones are in memory at once:
    /// a solo session alone can serve while the others are opened.
    fn go_over(&self, plan: Plan, reason: String, tuning: Option<Tuning>) -> Result<(), LoadError> {
        if plan == self.plan() {
            return Ok(());
        }
        let Some(threads) = plan.solo_threads else {
            return self.run(plan, open_crew(&self.opener, &plan)?, reason, tuning);
        };
        let solo = self.opener.open(&plan, &Use::of(&plan, Role::Solo))?;
        let alone = Plan { instances: 1, threads, max_batch_size: 1, solo_threads: None, ..plan };
        self.run(alone, solo.clone(), "auto: going over to what was measured best".to_owned(), None)?;
        self.await_relieved(LAST_BATCH);
        let mut sessions = self.opener.open(&plan, &Use::of(&plan, plan.role()))?;
        sessions.extend(solo);
        self.run(plan, sessions, reason, tuning)
    }

    fn measure_all(&self, judgement: &Judgement<'_, B>, started: Instant) -> Result<Vec<Candidate>, InferenceError> {
        // A precision that was asked for by name is not judged; else what runs now is f32, the reference.
        let reference = match self.settings.precision {
            Some(_) => None,
            None => Some((judgement.probabilities)(&self.answers(&judgement.items)?)),
        };
        let mut candidates: Vec<Candidate> = Vec::new();
        let try_plan = |candidates: &mut Vec<Candidate>, plan: Plan| {
            if self.is_closed() || started.elapsed() > BUDGET {
                return;
            }
            let fastest = candidates.iter().map(Candidate::singles_per_second).fold(0.0, f64::max);
            candidates.push(self.candidate(&plan, judgement, reference.as_deref(), fastest));
        };
        for provider in providers(&self.opener.context, &self.settings) {
            let first = first_plan(&self.settings, provider);
            // The lowest is likely the fastest, and what is far slower than that need not be measured in full.
            for precision in self.opener.precisions(&self.settings, provider).into_iter().rev() {
                // In a lower precision that it computes natively, the same provider is faster.
                let has_faster = candidates.iter().any(|other: &Candidate| {
                    other.provider == provider && is_native_half(other.precision) && other.ruled_out.is_none()
                });
                if precision != Precision::F32 || !has_faster {
                    try_plan(&mut candidates, Plan { precision, solo_threads: None, ..first });
                }
            }
        }
        // The best arithmetic, cut into more sessions of fewer threads.
        let best = choose(&candidates, Objective::Throughput, Latitude::Bound(f64::INFINITY));
        if let (Some(best), None, None) = (best, self.settings.instances, self.settings.threads) {
            let cores = usable_cores();
            let whole = Plan { max_batch_size: self.settings.batch_policy.max_batch_size, ..best };
            for instances in batch_sizes(cores).into_iter().filter(|&instances| instances > 1) {
                try_plan(&mut candidates, Plan { instances, threads: cores / instances, ..whole });
            }
        }
        Ok(candidates)
    }

    /// How fast and how faithful a plan is.
    fn candidate(
        &self,
        plan: &Plan,
        judgement: &Judgement<'_, B>,
        reference: Option<&[Vec<f32>]>,
        fastest: f64,
    ) -> Candidate {
        let mut candidate = Candidate::of(plan);
        let stopped = || self.is_closed();
        match trial::measure(&self.opener, plan, &judgement.probe, &judgement.items, fastest, &stopped) {
            Err(error) => candidate.ruled_out = Some(error.to_string()),
            Ok(Trial { answers, speeds }) => {
                candidate.speeds = speeds;
                if let Some(reference) = reference.filter(|_| plan.precision != Precision::F32) {
                    let probabilities = (judgement.probabilities)(&answers);
                    let (shift, problem) = judge(reference, &probabilities, &self.settings.tuning);
                    (candidate.largest_shift, candidate.ruled_out) = (Some(shift), problem);
                }
            }
        }
        candidate
    }
}

/// 16-bit floating point, which is measured only where the hardware computes it.
fn is_native_half(precision: Precision) -> bool {
    matches!(precision, Precision::Bf16 | Precision::F16)
}
