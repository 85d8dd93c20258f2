//! Measuring how a graph is best run, while it is being served: providers, precisions, sessions, threads and batch sizes.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::choice::{Candidate, LIKELY_BATCH, LIKELY_COMPANY, Latitude, Speed, Tuning, choose, judge};
use super::contest::{BUDGET, HOPELESS, Measured, Trial};
use super::probe::Probe;
use super::timing::batch_sizes;
use super::trial;
use crate::batching::InferenceError;
use crate::config::{ModelSettings, Objective, usable_cores};
use crate::models::LoadError;
use crate::models::engine::Engine;
use crate::models::graph_model::Binding;
use crate::models::opener::{Opener, Warmed};
use crate::models::plan::{Plan, first_plan, providers};
use crate::runtime::Precision;

/// How long an arithmetic is measured; they differ by a multiple.
const BRIEFLY: Duration = Duration::from_millis(400);

/// How long sessions and batch sizes are measured, all together.
const ENOUGH: Duration = Duration::from_secs(4);

/// How long the engine may take for its own answers to the probe.
const ANSWERS: Duration = Duration::from_secs(60);

/// How long an earlier crew's last batch is waited for before sessions are opened that should find its memory free.
const LAST_BATCH: Duration = Duration::from_secs(2);

/// Most sessions that are tried on a GPU.
const GPU_INSTANCES: usize = 4;

/// Sessions at most that are likely to be found best, or nearly so.
const LIKELY_INSTANCES: usize = 8;

/// Where 16-bit floating point is this near to another arithmetic with lone items, it is ahead with more of them, for which it has to
/// fetch no more weights.
const HALF_IS_NEAR: f64 = 0.9;

/// What makes probabilities of a graph's answers to the probe's items.
pub(in crate::models) type Probabilities<'a> = dyn Fn(&[Vec<f32>]) -> Vec<Vec<f32>> + 'a;

/// What fidelity is judged on.
pub(in crate::models) struct Judgement<'a, B: Binding> {
    /// How another process makes the items.
    pub(in crate::models) probe: Probe,
    pub(in crate::models) items: Vec<B::Item>,
    pub(in crate::models) probabilities: &'a Probabilities<'a>,
}

impl<B: Binding> Opener<B> {
    /// The plan that measurements speak for, under these settings.
    pub(in crate::models) fn choose(&self, settings: &ModelSettings, candidates: &[Candidate]) -> Option<Plan> {
        let plan = choose(candidates, settings.tuning.objective?, self.latitude(settings))?;
        Some(self.as_asked(settings, plan))
    }

    /// What a choice may make of lone items.
    pub(in crate::models) fn latitude(&self, settings: &ModelSettings) -> Latitude {
        let left_open = settings.instances.is_none() && settings.solo_threads.is_none();
        let may_solo = left_open && self.can_fix_batch_size();
        if may_solo { Latitude::SoloSession } else { Latitude::Bound(settings.tuning.latency_bound) }
    }
}

impl<B: Binding> Engine<B> {
    /// Is there anything to measure?
    pub(in crate::models) fn wants_tuning(&self) -> bool {
        self.settings.leaves_open() && self.info().tuning.is_none()
    }

    /// The engine's own answers, through its queue. Blocks.
    pub(in crate::models) fn answers(&self, items: &[B::Item]) -> Result<Vec<Vec<f32>>, InferenceError> {
        let deadline = Instant::now() + ANSWERS;
        let pending: Vec<_> =
            items.iter().map(|item| self.submit_ahead(item.clone(), deadline)).collect::<Result<_, _>>()?;
        pending.into_iter().map(|pending| Ok(pending.blocking_answer(deadline)?.output)).collect()
    }

    /// Measures one stage of what the settings leave open, and goes over to the best of it. Blocks for some seconds, in which the
    /// engine serves; ends early when the engine is closed.
    pub(in crate::models) fn tune(&self, stage: Stage, judgement: &Judgement<'_, B>) {
        let found = match stage {
            Stage::Arithmetic => self.wants_tuning().then(|| self.refer(judgement)).flatten(),
            Stage::Batches => self.found.lock().unwrap_or_else(PoisonError::into_inner).take(),
        };
        let Some(found) = found else { return };
        let mut tuner = Tuner { engine: self, judgement, started: Instant::now(), found, broke_off: false };
        match stage {
            Stage::Arithmetic => {
                tuner.measure_arithmetics();
                tuner.go_over_to_the_best_arithmetic();
                *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(tuner.found);
            }
            Stage::Batches => {
                tuner.measure_batches();
                tuner.go_over_to_the_best();
            }
        }
        // What is measured next should not share the cores with the end of this.
        self.await_relieved(LAST_BATCH);
    }

    /// What there is to know before anything is measured.
    fn refer(&self, judgement: &Judgement<'_, B>) -> Option<Found<B>> {
        // A precision that was asked for by name is not judged; else what runs now is f32, the reference.
        let reference = match self.settings.precision {
            Some(_) => None,
            None => match self.answers(&judgement.items) {
                Ok(answers) => Some((judgement.probabilities)(&answers)),
                Err(error) => {
                    tracing::warn!(model = self.name.0, graph = self.name.1, %error, "tuning was given up");
                    return None;
                }
            },
        };
        Some(Found { reference, candidates: Vec::new(), lone: None, broke_off: false })
    }
}

/// Tuning goes through these one after the other, through each with all graphs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::models) enum Stage {
    /// Providers and precisions, which differ by a multiple: the fastest serves from then on.
    Arithmetic,
    /// Sessions, threads and batch sizes.
    Batches,
}

/// What has been found of a graph so far.
pub(in crate::models) struct Found<B: Binding> {
    /// What f32 makes of the probe.
    reference: Option<Vec<Vec<f32>>>,
    candidates: Vec<Candidate>,
    /// The plan that serves meanwhile and its session, where it could go on as the solo worker's for lone items.
    lone: Option<(Plan, Warmed<B>)>,
    /// Has a measuring process ended before it told what it measured? That may say nothing of the plans: one that is short of memory may
    /// end it, or one that stops the server.
    broke_off: bool,
}

/// One stage of one graph.
struct Tuner<'a, B: Binding> {
    engine: &'a Engine<B>,
    judgement: &'a Judgement<'a, B>,
    started: Instant,
    found: Found<B>,
    /// As [`Found::broke_off`], in this stage.
    broke_off: bool,
}

impl<B: Binding> Tuner<'_, B> {
    fn go_over_to_the_best(mut self) {
        if self.engine.is_closed() {
            return;
        }
        let plan = self.engine.opener.choose(&self.engine.settings, &self.found.candidates);
        let tuning = Tuning { cached: false, candidates: std::mem::take(&mut self.found.candidates) };
        let before = self.engine.plan();
        let arithmetic = |plan: &Plan| (plan.provider, plan.precision);
        let again = if self.found.broke_off { "; the next start will measure again" } else { "" };
        // Of the same arithmetic, what serves is likelier to be good than the best of what little was measured.
        let better = plan.filter(|plan| !self.broke_off || arithmetic(plan) != arithmetic(&before));
        let Some(plan) = better else {
            return self.engine.note(format!("auto: as far as could be measured{again}"), tuning);
        };
        let reason = format!("auto: best of {} measured{again}", tuning.candidates.len());
        match self.go_over(plan, reason, tuning.clone()) {
            Ok(()) if self.found.broke_off => {}
            Ok(()) => self.engine.cache.write(&tuning),
            Err(error) => {
                self.warn(&error, "the tuned plan does not work");
                self.go_back(before);
            }
        }
    }

    fn go_back(&self, before: Plan) {
        if self.engine.plan() == before {
            return;
        }
        let reason = "auto: the tuned plan does not work".to_owned();
        let sessions = self.engine.opener.open_crew(&before);
        if let Err(error) = sessions.and_then(|sessions| self.engine.run(before, sessions, reason, None)) {
            self.warn(&error, "nor can the plan before it be gone back to");
        }
    }

    /// Every provider and precision. On a CPU by lone items, of which a batch makes little more: what is far slower with them need
    /// not be measured with more.
    fn measure_arithmetics(&mut self) {
        let Engine { opener, settings, .. } = self.engine;
        for provider in providers(&opener.context, settings) {
            let mut first = first_plan(settings, provider);
            if provider.is_on_cpu() {
                first.max_batch_size = 1;
            }
            // In a lower precision that it computes natively, the same provider is faster.
            for precision in opener.precisions(settings, provider).into_iter().rev() {
                let has_faster = self.found.candidates.iter().any(|other| {
                    other.provider == provider && is_native_half(other.precision) && other.ruled_out.is_none()
                });
                if precision != Precision::F32 || !has_faster {
                    self.measure(&[Plan { precision, ..first }], BRIEFLY);
                }
            }
        }
    }

    /// Of the arithmetics measured so far.
    fn best_arithmetic(&self) -> Option<Plan> {
        choose(&self.found.candidates, Objective::Throughput, Latitude::Bound(f64::INFINITY))
    }

    /// Who comes meanwhile should not have to wait for the rest of the measuring.
    fn go_over_to_the_best_arithmetic(&mut self) {
        let Some(best) = self.best_arithmetic() else { return };
        let Engine { opener, settings, .. } = self.engine;
        let present = self.engine.plan();
        if self.engine.is_closed() || (best.provider, best.precision) == (present.provider, present.precision) {
            return;
        }
        let plan = Plan { precision: best.precision, ..opener.lone_plan(settings, best.provider) };
        let reason = "auto: the fastest arithmetic of those measured";
        let gone_over = opener.open_crew(&plan).and_then(|sessions| {
            self.engine.run(plan, sessions.clone(), reason.to_owned(), None)?;
            Ok(sessions)
        });
        match gone_over {
            // As a solo session it may go on.
            Ok(mut sessions) if plan.max_batch_size == 1 => {
                self.found.lone = sessions.pop().map(|lone| (plan, lone));
                self.go_over_to_what_is_likely();
            }
            Ok(_) => {}
            Err(error) => self.warn(&error, "the fastest arithmetic does not work"),
        }
    }

    /// Adds a session a core for batches to the lone one that serves, where tuning may find that: measuring takes a while, and the
    /// longer the more comes meanwhile, of which lone items are the slowest way.
    fn go_over_to_what_is_likely(&self) {
        let Engine { opener, settings, .. } = self.engine;
        let Some((lone, session)) = &self.found.lone else { return };
        let instances = usable_cores().min(LIKELY_INSTANCES);
        let is_likely = lone.provider.is_on_cpu()
            && settings.tuning.objective == Some(Objective::Throughput)
            && opener.latitude(settings) == Latitude::SoloSession
            && settings.threads.is_none();
        if !is_likely || instances == 1 || self.engine.is_closed() {
            return;
        }
        let plan = Plan {
            instances,
            threads: usable_cores() / instances,
            max_batch_size: settings.batch_policy.max_batch_size.min(LIKELY_BATCH).min(LIKELY_COMPANY / instances),
            small_batch_size: None,
            solo_threads: Some(lone.threads),
            ..*lone
        };
        let plan = opener.as_asked(settings, plan);
        let reason = "auto: likely, until batches have been measured".to_owned();
        self.engine.await_relieved(LAST_BATCH);
        if let Err(error) = self.run_beside(session.clone(), plan, reason, None) {
            self.warn(&error, "what is likely does not work");
        }
    }

    /// Opens the sessions of the plan's instances, and goes over to them with `lone` as the solo worker's.
    fn run_beside(&self, lone: Warmed<B>, plan: Plan, reason: String, tuning: Option<Tuning>) -> Result<(), LoadError> {
        let mut sessions = self.engine.opener.open_instances(&plan)?;
        sessions.push(lone);
        self.engine.run(plan, sessions, reason, tuning)
    }

    /// All batch sizes of the arithmetics that come into question, the fastest first: in one session of all cores, and in more of
    /// fewer threads.
    fn measure_batches(&mut self) {
        let settings = &self.engine.settings;
        let max_batch_size = settings.batch_policy.max_batch_size;
        let cores = usable_cores();
        let mut plans = Vec::new();
        for arithmetic in self.hopeful_arithmetics() {
            let whole = Plan { max_batch_size, ..arithmetic };
            plans.push(whole);
            if let (None, None) = (settings.instances, settings.threads) {
                // While one session copies, another one computes; a GPU has no cores to be divided.
                let most = if arithmetic.provider.is_on_cpu() { cores } else { GPU_INSTANCES };
                let splits = batch_sizes(most).into_iter().skip(1);
                plans.extend(splits.map(|instances| Plan { instances, threads: (cores / instances).max(1), ..whole }));
            }
        }
        // What was measured with all sizes, or insists on one, has no more to show.
        let is_known = |plan: &Plan| {
            let mut same = self.found.candidates.iter().filter(|other| other.plan(max_batch_size) == *plan);
            same.any(|other| max_batch_size == 1 || !matches!(other.speeds[..], [Speed { batch_size: 1, .. }]))
        };
        if !matches!(&plans[..], [only] if is_known(only)) {
            self.measure(&plans, ENOUGH);
        }
    }

    /// On a CPU, all that are not far behind with lone items, and f32 only where it is ahead of a half precision.
    fn hopeful_arithmetics(&self) -> Vec<Plan> {
        let Some(best) = self.best_arithmetic() else { return Vec::new() };
        if !best.provider.is_on_cpu() {
            return vec![best];
        }
        let usable = |candidate: &&Candidate| candidate.ruled_out.is_none() && candidate.provider.is_on_cpu();
        let mut hopeful: Vec<&Candidate> = self.found.candidates.iter().filter(usable).collect();
        hopeful.sort_by(|a, b| a.single_ms().total_cmp(&b.single_ms()));
        let fastest = hopeful.first().map_or(f64::INFINITY, |candidate| candidate.single_ms());
        let half = hopeful.iter().find(|candidate| is_native_half(candidate.precision)).map(|half| half.single_ms());
        let ahead_of_half = half.map_or(f64::INFINITY, |half| half * HALF_IS_NEAR);
        hopeful.retain(|candidate| {
            let bound = if candidate.precision == Precision::F32 { ahead_of_half } else { f64::INFINITY };
            candidate.single_ms() < bound.min(fastest / HOPELESS)
        });
        hopeful.into_iter().map(|candidate| candidate.plan(1)).collect()
    }

    /// How fast and how faithful plans are, in place of what was measured of them with fewer batch sizes. Nothing is measured once
    /// the engine is closed, or the time is up.
    fn measure(&mut self, plans: &[Plan], enough: Duration) {
        let engine = self.engine;
        if engine.is_closed() || self.started.elapsed() > BUDGET {
            return;
        }
        let began = Instant::now();
        let Judgement { probe, items, .. } = self.judgement;
        let measured = match trial::measure(&engine.opener, plans, enough, probe, items, &|| engine.is_closed()) {
            // The engine's end says nothing of the plans.
            Err(_) if engine.is_closed() => return,
            Err(error) => {
                (self.broke_off, self.found.broke_off) = (true, true);
                vec![Err(error.to_string()); plans.len()]
            }
            Ok(measured) => measured,
        };
        for (plan, measured) in plans.iter().zip(measured) {
            self.note(plan, measured, began.elapsed());
        }
    }

    fn note(&mut self, plan: &Plan, measured: Measured, time: Duration) {
        let engine = self.engine;
        let mut candidate = Candidate::of(plan);
        match measured {
            Err(error) => candidate.ruled_out = Some(error),
            Ok(Trial { answers, speeds }) => {
                candidate.speeds = speeds;
                if let Some(reference) = self.found.reference.as_ref().filter(|_| plan.precision != Precision::F32) {
                    let probabilities = (self.judgement.probabilities)(&answers);
                    let (shift, problem) = judge(reference, &probabilities, &engine.settings.tuning);
                    (candidate.largest_shift, candidate.ruled_out) = (Some(shift), problem);
                }
            }
        }
        tracing::info!(
            model = engine.name.0,
            graph = engine.name.1,
            provider = candidate.provider.name(),
            precision = candidate.precision.name(),
            instances = candidate.instances,
            threads = candidate.threads,
            batch_sizes = candidate.speeds.len(),
            best_per_second = candidate.best_per_second(),
            single_ms = candidate.single_ms(),
            largest_shift = candidate.largest_shift,
            ruled_out = candidate.ruled_out,
            seconds = time.as_secs_f64(),
            "measured"
        );
        match self.found.candidates.iter_mut().find(|other| other.plan(0) == candidate.plan(0)) {
            // With fewer batch sizes it worked.
            Some(_) if candidate.speeds.is_empty() => {}
            Some(other) => *other = candidate,
            None => self.found.candidates.push(candidate),
        }
    }

    /// Goes over to another plan, one session after the other, so that not all of the old and the new ones are in memory at once:
    /// a solo session alone can serve while the others are opened.
    fn go_over(&mut self, plan: Plan, reason: String, tuning: Tuning) -> Result<(), LoadError> {
        let Engine { opener, .. } = self.engine;
        if plan == self.engine.plan() {
            self.engine.note(reason, tuning);
            return Ok(());
        }
        let go_on_with = |alone: Plan, session: &Warmed<B>| {
            let reason = "auto: going over to what was measured best".to_owned();
            self.engine.run(alone, vec![session.clone()], reason, None)?;
            self.engine.await_relieved(LAST_BATCH);
            Ok::<_, LoadError>(())
        };
        let lone = self.found.lone.take();
        if let Some((alone, session)) = lone.as_ref().filter(|(alone, _)| *alone != self.engine.plan()) {
            go_on_with(*alone, session)?;
        }
        let Some(threads) = plan.solo_threads else {
            return self.engine.run(plan, opener.open_crew(&plan)?, reason, Some(tuning));
        };
        let alone =
            Plan { instances: 1, threads, max_batch_size: 1, small_batch_size: None, solo_threads: None, ..plan };
        let session = match lone.filter(|(lone, _)| *lone == alone) {
            Some((_, session)) => session,
            None => {
                let session = opener.open_solo(&plan)?;
                go_on_with(alone, &session)?;
                session
            }
        };
        self.run_beside(session, plan, reason, Some(tuning))
    }

    fn warn(&self, error: &LoadError, what: &str) {
        tracing::warn!(model = self.engine.name.0, graph = self.engine.name.1, %error, "{what}");
    }
}

/// 16-bit floating point, which is measured only where the hardware computes it.
fn is_native_half(precision: Precision) -> bool {
    matches!(precision, Precision::Bf16 | Precision::F16)
}
