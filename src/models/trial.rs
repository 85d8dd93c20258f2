//! One measurement of one plan: its answers to the probe, and its speed. In a process of its own, so that what sessions leave
//! behind (memory, or a crash) is not the server's.

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::image_encoder::ImageBinding;
use super::opener::{BatchSizes, Binding, Files, GraphModel, Opener, Plan, Use, Warmed};
use super::probe::{self, Probe};
use super::text_encoder::TokenBinding;
use super::tuning::{Speed, gains_end};
use super::{LoadContext, LoadError};
use crate::batching::Role;
use crate::preprocess::{DecodeLimits, ImageProcessor};
use crate::runtime::{ExecutionProvider, Precision, Runtime};
use crate::telemetry::Metrics;

/// Batch sizes are measured by turns, for this long: others may take a core for a moment, and of each size the best turn counts.
const TURN: Duration = Duration::from_millis(50);

/// A size gets turns until they add up to this: a long run says as much as many short ones.
const MEASURED: Duration = Duration::from_millis(200);

/// A plan that does less than this part of what the fastest one does, one item a run, is not measured with more.
const HOPELESS: f64 = 0.7;

/// A process that takes longer is ended. TensorRT compiles for minutes.
const LIMIT: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(1800));

/// What a process is told on its standard input.
#[derive(Serialize, Deserialize)]
struct Request {
    onnxruntime: PathBuf,
    cache_dir: PathBuf,
    files: Files,
    outputs: Vec<String>,
    device_id: u32,
    open_inputs: Vec<Vec<Option<String>>>,
    plan: Plan,
    fastest: f64,
    probe: Probe,
}

/// What was measured.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Trial {
    /// To the probe's items.
    pub(super) answers: Vec<Vec<f32>>,
    /// By batch size.
    pub(super) speeds: Vec<Speed>,
}

/// Measures `plan` in a process of the context's program, or in this one if there is none. Blocks; gives up when `stopped` says so.
/// `fastest` is what other plans do at most, one item a run, in items per second; a hopeless one is told by it.
pub(super) fn measure<B: Binding>(
    opener: &Opener<B>,
    plan: &Plan,
    probe: &Probe,
    items: &[B::Item],
    fastest: f64,
    stopped: &dyn Fn() -> bool,
) -> Result<Trial, LoadError> {
    let Some(program) = &opener.context.program else {
        return perform(opener, plan, items, fastest);
    };
    let request = Request {
        onnxruntime: opener.context.runtime.library.clone(),
        cache_dir: opener.context.cache_dir.clone(),
        files: opener.files.clone(),
        outputs: opener.outputs.clone(),
        device_id: opener.device_id,
        open_inputs: opener.open_inputs.clone(),
        plan: *plan,
        fastest,
        probe: probe.clone(),
    };
    let limit = if plan.provider == ExecutionProvider::TensorRt { LIMIT.1 } else { LIMIT.0 };
    in_process(program, &request, limit, stopped).map_err(LoadError::System)
}

fn in_process(program: &Path, request: &Request, limit: Duration, stopped: &dyn Fn() -> bool) -> Result<Trial, String> {
    let text = serde_json::to_vec(request).map_err(|error| error.to_string())?;
    let failed = |error: std::io::Error| format!("no measuring process could be started: {error}");
    let mut command = Command::new(program);
    command.arg("measure").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(failed)?;
    let Some((mut input, mut output)) = child.stdin.take().zip(child.stdout.take()) else {
        return Err("the measuring process has no pipes".to_owned());
    };
    // Read beside the waiting: an answer may be longer than a pipe holds.
    let reader = std::thread::spawn(move || std::io::read_to_string(&mut output));
    // A process that has ended at once tells why through its exit code.
    let _ = input.write_all(&text);
    drop(input);
    let status = wait(&mut child, limit, stopped);
    let answer = reader.join().ok().and_then(Result::ok).unwrap_or_default();
    let status = status?;
    let outcome: Result<Result<Trial, String>, _> = serde_json::from_str(&answer);
    outcome.unwrap_or_else(|_| Err(format!("the measuring process ended with {status}")))
}

/// Waits for the end of a process, which is ended at the limit or when the server stops.
fn wait(child: &mut Child, limit: Duration, stopped: &dyn Fn() -> bool) -> Result<std::process::ExitStatus, String> {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().map_err(|error| error.to_string())? {
            return Ok(status);
        }
        if stopped() || started.elapsed() > limit {
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!("measuring was ended after {:.0} s", started.elapsed().as_secs_f64()));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The measuring process: a request in JSON to an answer in JSON.
pub fn answer_request(request: &str) -> String {
    let trial = || {
        let request: Request = serde_json::from_str(request).map_err(|error| error.to_string())?;
        carry_out(request).map_err(|error| error.to_string())
    };
    let outcome: Result<Trial, String> = trial();
    serde_json::to_string(&outcome).unwrap_or_default()
}

fn carry_out(request: Request) -> Result<Trial, LoadError> {
    let Request { onnxruntime, cache_dir, files, outputs, device_id, open_inputs, plan, fastest, probe } = request;
    let context = LoadContext {
        runtime: Runtime::load(Some(&onnxruntime))?,
        metrics: Arc::new(Metrics::new()),
        decode_limits: DecodeLimits { max_pixels: 0 },
        cache_dir,
        text_cache_size: 1,
        program: None,
    };
    match probe {
        Probe::Photos { image_processor } => {
            let processor = ImageProcessor::from_json(&image_processor, None)
                .map_err(|error| LoadError::System(error.to_string()))?;
            let binding = ImageBinding::for_processor(&processor);
            let opener = Opener { context, binding, files, outputs, device_id, open_inputs };
            perform(&opener, &plan, &probe::photos(&processor), fastest)
        }
        Probe::Prompts { tokens, max_length, padding, image_size } => {
            let binding = TokenBinding::new(max_length, padding, image_size);
            let opener = Opener { context, binding, files, outputs, device_id, open_inputs };
            perform(&opener, &plan, &tokens, fastest)
        }
    }
}

/// Opens the plan's sessions, asks for the probe's answers and measures batch sizes.
fn perform<B: Binding>(opener: &Opener<B>, plan: &Plan, items: &[B::Item], fastest: f64) -> Result<Trial, LoadError> {
    let mut sessions = opener.open(plan, &Use { sizes: BatchSizes::First(1), ..Use::of(plan, Role::Any) })?;
    let mut trial = Trial { answers: Vec::new(), speeds: Vec::new() };
    let Some(session) = sessions.first_mut() else { return Ok(trial) };
    let sizes = session.model.batch_sizes(batch_sizes(plan.max_batch_size));
    // The reference is not compared with itself.
    for item in items.iter().filter(|_| plan.precision != Precision::F32) {
        trial.answers.push(session.model.rows(std::slice::from_ref(item))?.row(0).to_vec());
    }
    trial.speeds = measure_sizes(&mut sessions, &sizes, fastest)?;
    Ok(trial)
}

/// How fast batches of `sizes` run, the smallest first, up to one that shows that larger ones are not worth their time.
fn measure_sizes<B: Binding>(
    sessions: &mut [Warmed<B>],
    sizes: &[usize],
    fastest: f64,
) -> Result<Vec<Speed>, LoadError> {
    let mut measured: Vec<(Speed, Duration)> = Vec::new();
    for &size in sizes {
        // The first run of a size is slow.
        timed_runs(sessions, Duration::ZERO, 1, |model| Ok(model.run_samples(size).map(drop)?))?;
        measured.push(measure_size(sessions, size)?);
        // What looks slow may have been disturbed, and has all its turns before it is judged.
        if is_enough(&measured, fastest) {
            take_turns(sessions, &mut measured)?;
            if is_enough(&measured, fastest) {
                break;
            }
        }
    }
    take_turns(sessions, &mut measured)?;
    Ok(measured.into_iter().map(|(speed, _)| speed).collect())
}

/// Do these show that larger batches are not worth their time?
fn is_enough(measured: &[(Speed, Duration)], fastest: f64) -> bool {
    let speeds: Vec<Speed> = measured.iter().map(|(speed, _)| *speed).collect();
    speeds.iter().all(|speed| speed.per_second < fastest * HOPELESS) || gains_end(&speeds)
}

/// Measures each again, by turns, until it has been measured for long enough.
fn take_turns<B: Binding>(sessions: &mut [Warmed<B>], measured: &mut [(Speed, Duration)]) -> Result<(), LoadError> {
    while measured.iter().any(|(_, time)| *time < MEASURED) {
        for (best, time) in measured.iter_mut().filter(|(_, time)| *time < MEASURED) {
            let (speed, turn) = measure_size(sessions, best.batch_size)?;
            best.per_second = best.per_second.max(speed.per_second);
            best.run_ms = best.run_ms.min(speed.run_ms);
            *time += turn;
        }
    }
    Ok(())
}

/// Powers of two up to `max`, and `max` itself.
pub(super) fn batch_sizes(max: usize) -> Vec<usize> {
    let powers = std::iter::successors(Some(1), |size| Some(size * 2)).take_while(|&size| size < max);
    powers.chain([max]).collect()
}

/// Runs batches of `size` in all sessions at once, for a turn. Returns also how long that was.
fn measure_size<B: Binding>(sessions: &mut [Warmed<B>], size: usize) -> Result<(Speed, Duration), LoadError> {
    let timed = timed_runs(sessions, TURN, 1, |model| Ok(model.run_samples(size).map(drop)?))?;
    let per_second = runs_per_second(&timed) * size as f64;
    let fastest = timed.iter().flat_map(|session| &session.runs).min().copied().unwrap_or_default();
    let turn = timed.iter().map(|session| session.time).max().unwrap_or_default();
    Ok((Speed { batch_size: size, per_second, run_ms: fastest.as_secs_f64() * 1e3 }, turn))
}

/// What one session did while it was timed.
pub(super) struct TimedRuns {
    /// From the start of the first run to the end of the last.
    pub(super) time: Duration,
    /// Each run.
    pub(super) runs: Vec<Duration>,
}

/// Runs per second of all sessions together, for as long as all of them ran: where they are more than the cores, those that end last
/// have cores to themselves for a while, and would look faster than they can be together.
pub(super) fn runs_per_second(sessions: &[TimedRuns]) -> f64 {
    let window = sessions.iter().map(|session| session.time.as_secs_f64()).fold(f64::INFINITY, f64::min);
    let within = |session: &TimedRuns| {
        let mut left = window;
        let parts = session.runs.iter().map(|run| {
            let part = (left / run.as_secs_f64()).clamp(0.0, 1.0);
            left -= run.as_secs_f64();
            part
        });
        parts.sum::<f64>()
    };
    sessions.iter().map(within).sum::<f64>() / window
}

/// Repeats `run` in all sessions at once, for the time given and at least so many times. None stops before all have had enough:
/// where they are more than the cores, the others would then be faster than they can be together.
pub(super) fn timed_runs<B: Binding>(
    sessions: &mut [Warmed<B>],
    time: Duration,
    least: usize,
    run: impl Fn(&mut GraphModel<B>) -> Result<(), LoadError> + Sync,
) -> Result<Vec<TimedRuns>, LoadError> {
    let start = Barrier::new(sessions.len());
    let unsatisfied = AtomicUsize::new(sessions.len());
    let (start, unsatisfied, run) = (&start, &unsatisfied, &run);
    std::thread::scope(|scope| {
        let threads = sessions.iter_mut().map(|session| {
            scope.spawn(move || {
                start.wait();
                let begin = Instant::now();
                let (mut runs, mut satisfied) = (Vec::new(), false);
                let outcome = loop {
                    let one = Instant::now();
                    // The others wait for a word of this session, also where it panics.
                    let outcome = catch_unwind(AssertUnwindSafe(|| run(&mut session.model)));
                    if let Err(error) = outcome.unwrap_or_else(|_| Err(panicked())) {
                        break Err(error);
                    }
                    runs.push(one.elapsed());
                    // Long runs say enough by themselves.
                    let enough = runs.len() >= least && begin.elapsed() >= time || begin.elapsed() > time * 4;
                    if enough && !satisfied {
                        satisfied = true;
                        unsatisfied.fetch_sub(1, Ordering::Relaxed);
                    }
                    if unsatisfied.load(Ordering::Relaxed) == 0 {
                        break Ok(());
                    }
                };
                if !satisfied && outcome.is_err() {
                    // The others do not wait for what has failed.
                    unsatisfied.fetch_sub(1, Ordering::Relaxed);
                }
                outcome.map(|()| TimedRuns { time: begin.elapsed(), runs })
            })
        });
        let threads: Vec<_> = threads.collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err(panicked()))).collect()
    })
}

fn panicked() -> LoadError {
    LoadError::System("a measuring run panicked".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_time_in_which_all_sessions_ran_counts() {
        let session = |milliseconds: &[u64]| {
            let runs: Vec<Duration> = milliseconds.iter().map(|&time| Duration::from_millis(time)).collect();
            TimedRuns { time: runs.iter().sum(), runs }
        };
        let alike = [session(&[100, 100]), session(&[100, 100])];
        assert!((runs_per_second(&alike) - 20.0).abs() < 1e-9);
        // A session of shorter runs.
        let uneven = [session(&[100, 100]), session(&[100, 50, 50])];
        assert!((runs_per_second(&uneven) - 25.0).abs() < 1e-9);
        let late = [session(&[100]), session(&[100, 50])];
        assert!((runs_per_second(&late) - 20.0).abs() < 1e-9);
        let half = [session(&[100]), session(&[200])];
        assert!((runs_per_second(&half) - 15.0).abs() < 1e-9);
    }

    #[test]
    fn batch_sizes_are_powers_of_two_and_the_largest() {
        assert_eq!(batch_sizes(1), [1]);
        assert_eq!(batch_sizes(8), [1, 2, 4, 8]);
        assert_eq!(batch_sizes(12), [1, 2, 4, 8, 12]);
    }

    #[test]
    fn a_request_that_is_none_is_answered_with_an_error() {
        let outcome: Result<Trial, String> = serde_json::from_str(&answer_request("{}")).unwrap();
        assert!(outcome.unwrap_err().contains("missing field"));
    }

    fn request() -> Request {
        Request {
            onnxruntime: PathBuf::new(),
            cache_dir: PathBuf::new(),
            files: Files { graph: PathBuf::new(), int8: None },
            outputs: Vec::new(),
            device_id: 0,
            plan: Plan {
                provider: ExecutionProvider::Cpu,
                precision: Precision::F32,
                instances: 1,
                threads: 1,
                max_batch_size: 1,
                solo_threads: None,
            },
            open_inputs: Vec::new(),
            fastest: 1.0,
            probe: Probe::Photos { image_processor: serde_json::Value::Null },
        }
    }

    #[test]
    fn a_process_that_crashes_or_says_nothing_is_an_error_and_no_more() {
        let long = Duration::from_secs(60);
        let error = in_process(Path::new("/bin/false"), &request(), long, &|| false).unwrap_err();
        assert!(error.contains("ended with exit status: 1"), "{error}");
        assert!(
            in_process(Path::new("/nowhere"), &request(), long, &|| false).unwrap_err().contains("could be started")
        );
    }

    #[test]
    fn a_process_is_ended_at_the_limit_and_when_the_server_stops() {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("hangs");
        std::fs::write(&script, "#!/bin/sh\nexec sleep 600\n").unwrap();
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let error = in_process(&script, &request(), Duration::ZERO, &|| false).unwrap_err();
        assert!(error.contains("measuring was ended"), "{error}");
        let error = in_process(&script, &request(), Duration::from_secs(60), &|| true).unwrap_err();
        assert!(error.contains("measuring was ended"), "{error}");
    }
}
