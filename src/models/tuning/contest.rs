//! Which of several plans is fastest: each is measured in turns with the best of those before, so that a moment in which the machine
//! is slow speaks against none of them.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::choice::{FEW, Speed, best_per_second, gains_end};
use super::timing::{
    Preparation, Span, TimedRuns, batch_sizes, mean, median, runs_per_second, timed_runs, timed_with_preparation,
};
use crate::batching::Role;
use crate::models::LoadError;
use crate::models::graph_model::{Binding, GraphModel};
use crate::models::opener::{BatchSizes, Opener, Use, Warmed};
use crate::models::plan::Plan;
use crate::runtime::Precision;

/// After this, no further plan is opened to be measured.
pub(super) const BUDGET: Duration = Duration::from_secs(20);

/// How long a batch size of a plan is measured at a time: others may take a core for a moment or, on a shared machine, half of its
/// speed for seconds. So plans and sizes take turns, and the mean of each counts.
const TURN: Duration = Duration::from_millis(50);

/// A turn of a small batch begins with runs that have nothing beside them, for this long: threads that have slept are slow at first.
const ALONE: Duration = Duration::from_millis(20);

/// Everything has so many turns at least, and more where they are short; fewer, where these would take many times what is enough.
const TURNS: (usize, usize) = (2, 9);
const TOO_LONG: u32 = 3;

/// What does less than this part of what another does is not measured any longer.
pub(super) const HOPELESS: f64 = 0.6;

/// Does something while the server runs nothing. Fails where there is no more server.
pub(super) type Quietly<'a> = dyn Fn(&mut dyn FnMut()) -> Result<(), LoadError> + 'a;

/// What was measured of a plan, or why it cannot be run.
pub(super) type Measured = Result<Trial, String>;

/// What was measured of a plan.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Trial {
    /// To the probe's items.
    #[serde(with = "bits")]
    pub(super) answers: Vec<Vec<f32>>,
    /// By batch size.
    pub(super) speeds: Vec<Speed>,
}

/// Answers between processes: in JSON there is no number for what is none (NaN), nor for infinity.
mod bits {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(answers: &[Vec<f32>], serializer: S) -> Result<S::Ok, S::Error> {
        let bits = |answer: &Vec<f32>| answer.iter().map(|value| value.to_bits()).collect::<Vec<u32>>();
        answers.iter().map(bits).collect::<Vec<_>>().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Vec<f32>>, D::Error> {
        let answers = Vec::<Vec<u32>>::deserialize(deserializer)?;
        Ok(answers.into_iter().map(|answer| answer.into_iter().map(f32::from_bits).collect()).collect())
    }
}

/// Opens one plan after the other and measures each in turns with the best of those before, so that the sessions of no more than two
/// are in memory.
pub(super) fn measure<B: Binding>(
    opener: &Opener<B>,
    plans: &[Plan],
    items: &[B::Item],
    preparation: Option<&Preparation<'_>>,
    enough: Duration,
    quietly: &Quietly<'_>,
) -> Vec<Measured> {
    let begin = Instant::now();
    let enough = enough / u32::try_from(plans.len().saturating_sub(1)).unwrap_or(u32::MAX).max(1);
    let mut measured: Vec<Measured> = Vec::new();
    let mut best: Option<(usize, Contender<B>)> = None;
    for (index, plan) in plans.iter().enumerate() {
        if begin.elapsed() > BUDGET {
            break;
        }
        let (answers, mut contender) = match open(opener, plan, items) {
            Ok(opened) => opened,
            Err(error) => {
                measured.push(Err(error.to_string()));
                continue;
            }
        };
        measured.push(Ok(Trial { answers, speeds: Vec::new() }));
        let Some((before, mut other)) = best.take() else {
            best = Some((index, contender));
            continue;
        };
        measure_in_turns(&mut [&mut other, &mut contender], preparation, enough, quietly);
        let (mut winner, mut loser) = ((before, other), (index, contender));
        if loser.1.best_per_second() > winner.1.best_per_second() {
            std::mem::swap(&mut winner, &mut loser);
        }
        note(&mut measured, loser);
        best = Some(winner);
    }
    if let Some((index, mut winner)) = best {
        // It had nobody to take turns with.
        if !winner.has_run() {
            measure_in_turns(&mut [&mut winner], preparation, enough, quietly);
        }
        note(&mut measured, (index, winner));
    }
    measured
}

fn note<B: Binding>(measured: &mut [Measured], (index, contender): (usize, Contender<B>)) {
    match (contender.speeds(), &mut measured[index]) {
        (Ok(speeds), Ok(trial)) => trial.speeds = speeds,
        (Ok(_), Err(_)) => {}
        (Err(error), measured) => *measured = Err(error.to_string()),
    }
}

/// Opens the plan's sessions and asks for the probe's answers.
fn open<B: Binding>(
    opener: &Opener<B>,
    plan: &Plan,
    items: &[B::Item],
) -> Result<(Vec<Vec<f32>>, Contender<B>), LoadError> {
    // As they would be opened to serve, if it is for one size alone.
    let sizes = if plan.max_batch_size == 1 { BatchSizes::Only(1) } else { BatchSizes::First(1) };
    let mut sessions = opener.open(plan, &Use { sizes, ..Use::of(plan, Role::Instance) })?;
    let (mut answers, mut sizes) = (Vec::new(), Vec::new());
    if let Some(session) = sessions.first_mut() {
        sizes = session.model.batch_sizes(batch_sizes(plan.max_batch_size));
        // The reference is not compared with itself.
        for item in items.iter().filter(|_| plan.precision != Precision::F32) {
            answers.push(session.model.rows(std::slice::from_ref(item))?.row(0).to_vec());
        }
    }
    Ok((answers, Contender::new(sessions, &sizes)))
}

/// The sessions of a plan, and how fast they were at each turn.
struct Contender<B: Binding> {
    sessions: Vec<Warmed<B>>,
    turns: Vec<(usize, Vec<Turn>)>,
    /// Why it cannot go on.
    failure: Option<LoadError>,
}

/// What one batch size did in a turn.
#[derive(Debug, Clone, Copy)]
struct Turn {
    per_second: f64,
    run: Duration,
}

impl<B: Binding> Contender<B> {
    /// With the batch sizes that are to be measured, rising.
    fn new(sessions: Vec<Warmed<B>>, sizes: &[usize]) -> Self {
        Self { sessions, turns: sizes.iter().map(|&size| (size, Vec::new())).collect(), failure: None }
    }

    /// Has it had a turn?
    fn has_run(&self) -> bool {
        self.failure.is_some() || self.turns.iter().any(|(_, turns)| !turns.is_empty())
    }

    /// By batch size.
    fn speeds(self) -> Result<Vec<Speed>, LoadError> {
        match self.failure {
            Some(error) => Err(error),
            None => Ok(speeds(&self.turns)),
        }
    }

    /// Most items per second at any batch size; 0 if it failed.
    fn best_per_second(&self) -> f64 {
        if self.failure.is_some() { 0.0 } else { best_per_second(&speeds(&self.turns)) }
    }

    /// A turn of each size that is still worth it.
    fn take_turns(&mut self, preparation: Option<&Preparation<'_>>, quietly: &Quietly<'_>) -> Result<(), LoadError> {
        let is_first = self.turns.iter().all(|(_, turns)| turns.is_empty());
        for index in 0..self.turns.len() {
            let size = self.turns[index].0;
            if is_first {
                // The first run of a size is slow.
                timed_runs(&mut self.sessions, Span::of(Duration::ZERO), |model| samples(model, size))?;
            }
            let mut turn = Err(LoadError::System("no turn was taken".to_owned()));
            quietly(&mut || turn = take_turn(&mut self.sessions, size, index < FEW, preparation))?;
            self.turns[index].1.push(turn?);
            if is_first && gains_end(&speeds(&self.turns[..=index])) {
                self.turns.truncate(index + 1);
                break;
            }
        }
        Ok(())
    }
}

/// Measures the contenders in turns with each other, until they have had enough turns or it is clear which is faster: for about as
/// long as `enough`.
fn measure_in_turns<B: Binding>(
    contenders: &mut [&mut Contender<B>],
    preparation: Option<&Preparation<'_>>,
    enough: Duration,
    quietly: &Quietly<'_>,
) {
    let begin = Instant::now();
    for turns in 0..TURNS.1 {
        let limit = if turns >= TURNS.0 { enough } else { enough * TOO_LONG };
        if turns > 0 && begin.elapsed() > limit {
            break;
        }
        for contender in contenders.iter_mut().filter(|contender| contender.failure.is_none()) {
            contender.failure = contender.take_turns(preparation, quietly).err();
        }
        let able = contenders.iter().filter(|contender| contender.failure.is_none());
        let rates: Vec<f64> = able.map(|contender| contender.best_per_second()).collect();
        let best = rates.iter().copied().fold(0.0, f64::max);
        if turns > 0 && rates.iter().any(|&rate| rate < best * HOPELESS) {
            break;
        }
    }
}

/// By batch size, of those that have had a turn.
fn speeds(sizes: &[(usize, Vec<Turn>)]) -> Vec<Speed> {
    let speed = |(batch_size, turns): &(usize, Vec<Turn>)| {
        let per_second = mean(turns.iter().map(|turn| turn.per_second));
        let run_ms = mean(turns.iter().map(|turn| turn.run.as_secs_f64() * 1e3));
        (!turns.is_empty()).then_some(Speed { batch_size: *batch_size, per_second, run_ms })
    };
    sizes.iter().filter_map(speed).collect()
}

/// Runs batches of `size` in all sessions at once, with as many items being prepared as they take; before that, if it shall, for a
/// moment with nothing beside them.
fn take_turn<B: Binding>(
    sessions: &mut [Warmed<B>],
    size: usize,
    also_alone: bool,
    preparation: Option<&Preparation<'_>>,
) -> Result<Turn, LoadError> {
    let run = |model: &mut GraphModel<B>| samples(model, size);
    let alone = if also_alone { timed_runs(sessions, Span::of(ALONE), run)? } else { Vec::new() };
    let timed = match preparation {
        None => timed_runs(sessions, Span::of(TURN), run)?,
        Some(preparation) => timed_with_preparation(sessions, Span::of(TURN), size, preparation, run)?,
    };
    let per_second = runs_per_second(&timed) * size as f64;
    let runs = if also_alone { alone } else { timed };
    let mut runs: Vec<Duration> = runs.into_iter().flat_map(|session: TimedRuns| session.runs).collect();
    Ok(Turn { per_second, run: median(&mut runs) })
}

fn samples<B: Binding>(model: &mut GraphModel<B>, size: usize) -> Result<(), LoadError> {
    Ok(model.run_samples(size).map(drop)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_averaged() {
        let turn = |per_second, run| Turn { per_second, run: Duration::from_millis(run) };
        let measured = [(1, vec![turn(100.0, 9), turn(60.0, 16)]), (2, vec![turn(110.0, 18)]), (4, Vec::new())];
        let speed = |batch_size, per_second, run_ms| Speed { batch_size, per_second, run_ms };
        assert_eq!(speeds(&measured), [speed(1, 80.0, 12.5), speed(2, 110.0, 18.0)]);
    }
}
