//! Measuring how a graph is best run, while it is being served: providers, precisions, sessions, threads and batch sizes.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use super::engine::Engine;
use super::opener::{Binding, Plan, Warmed, first_plan, providers};
use super::tuning::{Candidate, Speed, Tuning, choose, judge};
use super::{LoadError, Ticket};
use crate::batching::InferenceError;
use crate::config::usable_cores;
use crate::runtime::Precision;

/// How long one batch size is measured, and the runs that it takes at least.
const MEASURED: (Duration, usize) = (Duration::from_millis(150), 3);

/// No new candidate is tried after this.
const BUDGET: Duration = Duration::from_secs(8);

/// A candidate whose single item takes this many times as long as the fastest is not measured further.
const HOPELESS: f64 = 3.0;

/// What makes probabilities of a graph's answers to the probe's items.
pub(super) type Probabilities<'a> = dyn Fn(&[Vec<f32>]) -> Vec<Vec<f32>> + 'a;

/// What fidelity is judged on.
pub(super) struct Probe<'a, B: Binding> {
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
    pub(super) fn tune(&self, probe: &Probe<'_, B>) {
        let Some(objective) = self.settings.tuning.objective.filter(|_| self.wants_tuning()) else { return };
        let started = Instant::now();
        let candidates = match self.measure_all(probe, started) {
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

    fn measure_all(&self, probe: &Probe<'_, B>, started: Instant) -> Result<Vec<Candidate>, InferenceError> {
        // A precision that was asked for by name is not judged; else what runs now is f32, the reference.
        let reference = match self.settings.precision {
            Some(_) => None,
            None => Some((probe.probabilities)(&self.answers(&probe.items)?)),
        };
        let mut candidates: Vec<Candidate> = Vec::new();
        let try_plan = |candidates: &mut Vec<Candidate>, plan: Plan| {
            if self.is_closed() || started.elapsed() > BUDGET {
                return;
            }
            let fastest = candidates.iter().map(Candidate::single_ms).fold(f64::INFINITY, f64::min);
            let mut candidate = Candidate::of(&plan);
            if let Err(error) = self.measure(&mut candidate, &plan, probe, reference.as_deref(), fastest) {
                candidate.ruled_out = Some(error.to_string());
            }
            candidates.push(candidate);
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

    /// Fills in how fast and how faithful a plan is.
    fn measure(
        &self,
        candidate: &mut Candidate,
        plan: &Plan,
        probe: &Probe<'_, B>,
        reference: Option<&[Vec<f32>]>,
        fastest_ms: f64,
    ) -> Result<(), LoadError> {
        let sizes = batch_sizes(plan.max_batch_size);
        let mut sessions = vec![self.opener.open_for(plan, &sizes)?];
        if let (Some(reference), true) = (reference, plan.precision != Precision::F32) {
            let Some(session) = sessions.first_mut() else { return Ok(()) };
            let rows = probe.items.iter().map(|item| session.model.rows(std::slice::from_ref(item)));
            let rows: Vec<_> = rows.map(|rows| Ok(rows?.row(0).to_vec())).collect::<Result<_, LoadError>>()?;
            let (shift, problem) = judge(reference, &(probe.probabilities)(&rows), &self.settings.tuning);
            (candidate.largest_shift, candidate.ruled_out) = (Some(shift), problem);
            if candidate.ruled_out.is_some() {
                return Ok(());
            }
        }
        while sessions.len() < plan.instances {
            sessions.push(self.opener.open_for(plan, &sizes)?);
        }
        let sizes = sessions.first().map(|session| session.batch_sizes.clone()).unwrap_or_default();
        for size in sizes {
            if self.is_closed() || candidate.speeds.first().is_some_and(|one| one.run_ms > fastest_ms * HOPELESS) {
                break;
            }
            candidate.speeds.push(measure_size(&mut sessions, size)?);
        }
        Ok(())
    }
}

/// Powers of two up to `max`, and `max` itself.
fn batch_sizes(max: usize) -> Vec<usize> {
    let powers = std::iter::successors(Some(1), |size| Some(size * 2)).take_while(|&size| size < max);
    powers.chain([max]).collect()
}

/// Runs batches of `size` in all sessions at once.
fn measure_size<B: Binding>(sessions: &mut [Warmed<B>], size: usize) -> Result<Speed, LoadError> {
    let (time, least) = MEASURED;
    let start = Barrier::new(sessions.len());
    let runs = std::thread::scope(|scope| {
        let threads = sessions.iter_mut().map(|session| {
            let start = &start;
            scope.spawn(move || {
                start.wait();
                let begin = Instant::now();
                let (mut fastest, mut runs) = (Duration::MAX, 0_usize);
                while runs < least || begin.elapsed() < time {
                    let run = Instant::now();
                    session.model.run_samples(size)?;
                    fastest = fastest.min(run.elapsed());
                    runs += 1;
                    // Long runs say enough by themselves.
                    if begin.elapsed() > time * 4 {
                        break;
                    }
                }
                Ok::<_, LoadError>((runs as f64 / begin.elapsed().as_secs_f64(), fastest))
            })
        });
        let threads: Vec<_> = threads.collect();
        let joined = threads.into_iter().map(|thread| {
            thread.join().unwrap_or_else(|_| Err(LoadError::System("a measuring run panicked".to_owned())))
        });
        joined.collect::<Result<Vec<_>, LoadError>>()
    })?;
    let per_second = runs.iter().map(|(per_second, _)| per_second * size as f64).sum();
    let fastest = runs.iter().map(|(_, fastest)| *fastest).min().unwrap_or_default();
    Ok(Speed { batch_size: size, per_second, run_ms: fastest.as_secs_f64() * 1e3 })
}
