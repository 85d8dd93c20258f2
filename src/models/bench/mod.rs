//! What preprocessing and inference cost by themselves, measured through the code that serves: for `ocelli bench`.

pub(super) mod report;

use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::time::{ClockId, clock_gettime};

use self::report::{Batches, BenchReport, BenchRequest, Choice, Failure, InferenceCost, PreprocessingCost, Way, Ways};
use super::graph_model::GraphModel;
use super::image_encoder::{ImageBinding, ImageEncoder};
use super::opener::{BatchSizes, Use, Warmed};
use super::plan::providers;
use super::tuning::timing::{Span, batch_sizes, median, runs_per_second, timed_runs, timed_with_preparation};
use super::tuning::{Latitude, choose};
use super::{GraphInfo, LoadError, LoadedModel, PredictError};
use crate::batching::{Model, Role};
use crate::config::{Objective, usable_cores};
use crate::preprocess::PreparedImage;
use crate::runtime::use_huge_pages;

impl LoadedModel {
    /// Measures preprocessing and the image's graph, one figure after the other, while nothing else runs. Blocks.
    ///
    /// # Errors
    /// An image that cannot be decoded. A way that cannot be run is noted in the report instead.
    pub fn bench(&self, request: &BenchRequest) -> Result<BenchReport, PredictError> {
        let encoder = self.image_encoder();
        let engine = &encoder.engine;
        let prepare = |image: &Bytes| encoder.prepare(image);
        let images: Vec<PreparedImage> = request.images.iter().map(prepare).collect::<Result<_, _>>()?;
        let ways = ways(encoder, &request.ways);
        // What takes turns with each other is in memory at once, so not all there can be.
        let together = if matches!(request.ways, Ways::All) { 1 } else { ways.len().max(1) };
        let mut preprocessing = vec![Vec::new(); images.len()];
        let (mut inference, mut failures) = (Vec::new(), Vec::new());
        for (index, ways) in ways.chunks(together).enumerate() {
            let open = |&way: &Way| (way, OpenedWay::open(encoder, way, &request.batches));
            let mut opened: Vec<(Way, Result<OpenedWay, LoadError>)> = ways.iter().map(open).collect();
            tracing::info!(ways = ways.len(), rounds = request.rounds, "measuring");
            for _ in 0..request.rounds {
                if index == 0 {
                    for (image, costs) in request.images.iter().zip(&mut preprocessing) {
                        costs.push(preprocessing_cost(encoder, image, request)?);
                    }
                }
                for (_, opened) in &mut opened {
                    let Ok(way) = opened else { continue };
                    if let Err(error) = way.measure(encoder, &images, request) {
                        *opened = Err(error);
                    }
                }
            }
            for (way, opened) in opened {
                match opened {
                    Ok(way) => {
                        let costs = way.opened.iter().flat_map(|opened| &opened.costs);
                        inference.extend(costs.filter_map(|(_, costs)| InferenceCost::mean(costs)));
                    }
                    Err(error) => failures.push(Failure { way, reason: error.to_string() }),
                }
            }
        }
        let preprocessing = preprocessing.iter().map(|costs| PreprocessingCost::mean(costs)).collect();
        let graph = engine.info();
        let latitude = engine.opener.latitude(&engine.settings);
        let choices = choices(&graph, latitude);
        let latency_bound = match latitude {
            Latitude::SoloSession => None,
            Latitude::Bound(bound) => Some(bound),
        };
        Ok(BenchReport { cores: usable_cores(), graph, latency_bound, choices, preprocessing, inference, failures })
    }

    fn image_encoder(&self) -> &ImageEncoder {
        match self {
            Self::Classifier(model) => model.image_encoder(),
            Self::ZeroShot(model) => model.image_encoder(),
        }
    }
}

fn choices(graph: &GraphInfo, latitude: Latitude) -> Vec<Choice> {
    let candidates = graph.tuning.as_ref().map(|tuning| tuning.candidates.as_slice()).unwrap_or_default();
    let objectives = [("throughput", Objective::Throughput), ("latency", Objective::Latency)];
    let choice = |(name, objective)| {
        let plan = choose(candidates, objective, latitude)?;
        Some(Choice { objective: name, way: Way::of(&plan), max_batch_size: plan.max_batch_size })
    };
    objectives.into_iter().filter_map(choice).collect()
}

/// Without doubles.
fn ways(encoder: &ImageEncoder, wanted: &Ways) -> Vec<Way> {
    let cores = usable_cores();
    let served = Way::of(&encoder.engine.plan());
    let all = match wanted {
        Ways::These(ways) => ways.clone(),
        Ways::Served => {
            vec![served, Way { instances: 1, threads: cores, ..served }, Way { instances: cores, threads: 1, ..served }]
        }
        Ways::All => {
            let settings = &encoder.engine.settings;
            let arithmetic = providers(&encoder.engine.opener.context, settings).into_iter().flat_map(|provider| {
                let precisions = encoder.engine.opener.precisions(settings, provider);
                precisions.into_iter().map(move |precision| (provider, precision))
            });
            let splits = splits(cores);
            let ways = arithmetic.flat_map(|(provider, precision)| {
                splits.iter().map(move |&(instances, threads)| Way { provider, precision, instances, threads })
            });
            ways.collect()
        }
    };
    let mut ways = Vec::new();
    for way in all {
        if !ways.contains(&way) {
            ways.push(way);
        }
    }
    ways
}

/// Numbers of sessions and of threads in each: powers of two and all cores, with at most twice as many threads as cores.
fn splits(cores: usize) -> Vec<(usize, usize)> {
    let instances = batch_sizes(cores * 2);
    let threads = batch_sizes(cores);
    let pairs = instances.iter().flat_map(|&instances| threads.iter().map(move |&threads| (instances, threads)));
    pairs.filter(|(instances, threads)| instances * threads <= cores * 2).collect()
}

fn preprocessing_cost(
    encoder: &ImageEncoder,
    image: &[u8],
    request: &BenchRequest,
) -> Result<PreprocessingCost, PredictError> {
    let (mut alone, cpu_alone) = prepare_repeatedly(encoder, image, request)?;
    let cores = usable_cores();
    let start = Barrier::new(cores);
    let together: Vec<_> = std::thread::scope(|scope| {
        let work = || {
            start.wait();
            prepare_repeatedly(encoder, image, request)
        };
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        // A thread that panicked has no figures to give.
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect::<Result<_, _>>()
    })?;
    let runs: usize = together.iter().map(|(runs, _)| runs.len()).sum();
    let cpu_together: Duration = together.iter().map(|(_, cpu)| *cpu).sum();
    Ok(PreprocessingCost {
        bytes: image.len(),
        cpu_ms: ms(cpu_alone) / alone.len() as f64,
        wall_ms: ms(median(&mut alone)),
        cpu_ms_all_cores: ms(cpu_together) / runs as f64,
    })
}

/// The time of each run, and the CPU time of all.
fn prepare_repeatedly(
    encoder: &ImageEncoder,
    image: &[u8],
    request: &BenchRequest,
) -> Result<(Vec<Duration>, Duration), PredictError> {
    // The first run pays for what all others find: pages, caches.
    encoder.prepare(image)?;
    let (begin, cpu) = (Instant::now(), cpu_time(ClockId::ThreadCPUTime));
    let mut runs = Vec::new();
    while runs.len() < request.least_runs() || begin.elapsed() < request.time {
        let one = Instant::now();
        encoder.prepare(image)?;
        runs.push(one.elapsed());
    }
    Ok((runs, cpu_time(ClockId::ThreadCPUTime).saturating_sub(cpu)))
}

/// A way to run the graph.
struct OpenedWay {
    way: Way,
    /// For each batch size, where sessions are opened for one alone.
    opened: Vec<Opened>,
}

/// Sessions, and by batch size what was measured of them, once in each round.
struct Opened {
    sessions: Vec<Warmed<ImageBinding>>,
    costs: Vec<(usize, Vec<InferenceCost>)>,
}

impl Opened {
    /// With those of the batch sizes that are `wanted` which the sessions can run.
    fn new(sessions: Vec<Warmed<ImageBinding>>, wanted: Vec<usize>) -> Self {
        let sizes = sessions.first().map(|session| session.model.batch_sizes(wanted)).unwrap_or_default();
        Self { sessions, costs: sizes.into_iter().map(|size| (size, Vec::new())).collect() }
    }
}

impl OpenedWay {
    fn open(encoder: &ImageEncoder, way: Way, batches: &Batches) -> Result<Self, LoadError> {
        let wanted = match batches {
            Batches::UpTo(largest) => batch_sizes(*largest),
            Batches::These(sizes) => sizes.clone(),
        };
        let opener = &encoder.engine.opener;
        let plan = way.plan(wanted.iter().copied().max().unwrap_or(1));
        let serve = Use::of(&plan, Role::Instance);
        let open = |sizes| opener.open(&plan, &Use { sizes, ..serve });
        let opened = if way.provider.is_on_cpu() && opener.can_fix_batch_size() {
            // As they are opened to serve.
            let open = |size| Ok(Opened::new(open(BatchSizes::Only(size))?, vec![size]));
            wanted.into_iter().map(open).collect::<Result<_, LoadError>>()?
        } else {
            // On a GPU as they are opened to serve, on a CPU for all the sizes wanted.
            let sizes = if way.provider.is_on_cpu() { BatchSizes::First(1) } else { serve.sizes };
            vec![Opened::new(open(sizes)?, wanted)]
        };
        Ok(Self { way, opened })
    }

    /// One round.
    fn measure(
        &mut self,
        encoder: &ImageEncoder,
        images: &[PreparedImage],
        request: &BenchRequest,
    ) -> Result<(), LoadError> {
        for Opened { sessions, costs } in &mut self.opened {
            for (batch_size, costs) in costs {
                costs.push(inference_cost(encoder, self.way, *batch_size, sessions, images, request)?);
            }
        }
        Ok(())
    }
}

fn inference_cost(
    encoder: &ImageEncoder,
    way: Way,
    batch_size: usize,
    sessions: &mut [Warmed<ImageBinding>],
    images: &[PreparedImage],
    request: &BenchRequest,
) -> Result<InferenceCost, LoadError> {
    let span = Span { time: request.time, least: request.least_runs(), keeps_all_busy: true };
    let batch: Vec<PreparedImage> = images.iter().cycle().take(batch_size).cloned().collect();
    let run = |model: &mut GraphModel<ImageBinding>| model.run(&batch).map(drop).map_err(LoadError::System);
    // The first of a size is slow.
    timed_runs(sessions, Span::of(Duration::ZERO), run)?;
    // As in the server.
    use_huge_pages();
    let cpu = cpu_time(ClockId::ProcessCPUTime);
    let timed = timed_runs(sessions, span, run)?;
    let cpu = cpu_time(ClockId::ProcessCPUTime).saturating_sub(cpu);
    let per_second = runs_per_second(&timed) * batch_size as f64;
    let served_per_second = if request.with_preparation {
        let turn = AtomicUsize::new(0);
        let prepare = || {
            let turn = turn.fetch_add(1, Ordering::Relaxed);
            // It has been prepared before, so it can be.
            drop(encoder.prepare(&request.images[turn % request.images.len()]));
        };
        let timed = timed_with_preparation(sessions, span, batch_size, &prepare, run)?;
        Some(runs_per_second(&timed) * batch_size as f64)
    } else {
        None
    };
    let all_runs: usize = timed.iter().map(|session| session.runs.len() + session.more).sum();
    let mut runs: Vec<Duration> = timed.into_iter().flat_map(|session| session.runs).collect();
    let fastest = runs.iter().min().copied().unwrap_or_default();
    Ok(InferenceCost {
        way,
        batch_size,
        runs: runs.len(),
        cpu_ms: ms(cpu) / (all_runs * batch_size) as f64,
        run_ms: ms(median(&mut runs)),
        fastest_ms: ms(fastest),
        per_second,
        served_per_second,
    })
}

/// CPU time used so far.
fn cpu_time(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or_default(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_use_all_cores_and_at_most_twice_as_many_threads() {
        assert_eq!(splits(1), [(1, 1), (2, 1)]);
        assert_eq!(splits(2), [(1, 1), (1, 2), (2, 1), (2, 2), (4, 1)]);
        let six = splits(6);
        assert!(six.contains(&(1, 6)) && six.contains(&(2, 4)) && six.contains(&(12, 1)) && !six.contains(&(4, 4)));
    }

    #[test]
    fn cpu_time_counts_work_and_not_sleep() {
        let start = cpu_time(ClockId::ThreadCPUTime);
        std::thread::sleep(Duration::from_millis(50));
        let slept = cpu_time(ClockId::ThreadCPUTime).saturating_sub(start);
        assert!(slept < Duration::from_millis(25), "{slept:?}");
        while cpu_time(ClockId::ThreadCPUTime).saturating_sub(start) < slept + Duration::from_millis(5) {
            std::hint::spin_loop();
        }
    }
}
