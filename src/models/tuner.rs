//! Measuring how a graph is best run, while it is being served: providers, precisions, sessions, threads and batch sizes.

use std::time::{Duration, Instant};

use super::Ticket;
use super::engine::Engine;
use super::opener::{Binding, Plan, first_plan, providers};
use super::probe::Probe;
use super::trial::{self, Trial};
use super::tuning::{Candidate, Tuning, choose, judge};
use crate::batching::InferenceError;
use crate::config::usable_cores;
use crate::runtime::Precision;

/// No new candidate is tried after this.
const BUDGET: Duration = Duration::from_secs(8);

/// What makes probabilities of a graph's answers to the probe's items.
pub(super) type Probabilities<'a> = dyn Fn(&[Vec<f32>]) -> Vec<Vec<f32>> + 'a;

/// What fidelity is judged on.
pub(super) struct Judgement<'a, B: Binding> {
    /// How another process makes the items.
    pub(super) probe: Probe,
    pub(super) items: Vec<B::Item>,
    pub(super) probabilities: &'a Probabilities<'a>,
}

impl<B: Binding> Engine<B> {
    /// Is there anything to measure?
    pub(super) fn wants_tuning(&self) -> bool {
        let settings = &self.settings;
        let open = settings.device.is_none() || settings.precision.is_none() || settings.instances.is_none();
        settings.tuning.objective.is_some() && open && self.info().tuning.is_none()
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
        let Some(objective) = self.settings.tuning.objective.filter(|_| self.wants_tuning()) else { return };
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
        let Some(plan) = choose(&candidates, objective, self.settings.tuning.latency_bound) else { return };
        let tuning = Tuning { cached: false, candidates };
        self.cache.write(plan, &tuning);
        let reason = format!("auto: best of {} measured", tuning.candidates.len());
        if plan == self.plan() {
            return self.note(reason, tuning);
        }
        if let Err(error) = self.run(plan, Vec::new(), reason, Some(tuning)) {
            tracing::warn!(model = self.name.0, graph = self.name.1, %error, "the tuned plan does not work; the first one stays");
        }
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
            let fastest = candidates.iter().map(Candidate::single_ms).fold(f64::INFINITY, f64::min);
            candidates.push(self.candidate(&plan, judgement, reference.as_deref(), fastest));
        };
        for provider in providers(&self.opener.context, &self.settings) {
            let first = first_plan(&self.settings, provider);
            let precisions = match self.settings.precision {
                Some(precision) => vec![precision],
                None => provider.native_precisions().to_vec(),
            };
            for precision in precisions {
                try_plan(&mut candidates, Plan { precision, ..first });
            }
        }
        // The best arithmetic, cut into more sessions of fewer threads.
        let best = choose(&candidates, crate::config::Objective::Throughput, f64::INFINITY);
        if let (Some(best), None, None) = (best, self.settings.instances, self.settings.threads) {
            let cores = usable_cores();
            let whole = Plan { max_batch_size: self.settings.batch_policy.max_batch_size, ..best };
            for instances in std::iter::successors(Some(2), |instances| Some(instances * 2)).take_while(|&n| n <= cores)
            {
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
        fastest_ms: f64,
    ) -> Candidate {
        let mut candidate = Candidate::of(plan);
        let stopped = || self.is_closed();
        match trial::measure(&self.opener, plan, &judgement.probe, &judgement.items, fastest_ms, &stopped) {
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
