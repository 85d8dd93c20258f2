//! A measurement of plans, see [`super::contest`], in a process of its own, so that what sessions leave behind (memory, or a crash)
//! is not the server's.
//!
//! The process is told what to measure by the first line of its standard input. It asks for each turn of measuring by a [`Word`] on
//! its standard output, and begins it with the next line of its input: the server holds its own runs back meanwhile.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::contest::{self, Measured, Quietly};
use super::probe::{self, Probe};
use crate::batching::{ClosedGate, RunGate};
use crate::models::graph_model::Binding;
use crate::models::image_encoder::ImageBinding;
use crate::models::opener::{Files, Opener};
use crate::models::plan::Plan;
use crate::models::text_encoder::TokenBinding;
use crate::models::{LoadContext, LoadError};
use crate::preprocess::{DecodeLimits, ImageProcessor};
use crate::runtime::{ExecutionProvider, Runtime};
use crate::telemetry::Metrics;

/// A process that takes longer is ended. TensorRT compiles for minutes.
const LIMIT: (Duration, Duration) = (Duration::from_secs(120), Duration::from_secs(1800));

/// No turn of a process holds the server's own runs back for longer: what does not fit is measured beside them.
const LONGEST_TURN: Duration = Duration::from_secs(2);

/// How often is looked whether the server stops.
const POLL: Duration = Duration::from_millis(10);

/// What a process is told.
#[derive(Serialize, Deserialize)]
struct Request {
    onnxruntime: PathBuf,
    cache_dir: PathBuf,
    files: Files,
    outputs: Vec<String>,
    device_id: u32,
    open_inputs: Vec<Vec<Option<String>>>,
    plans: Vec<Plan>,
    enough: Duration,
    probe: Probe,
}

/// What a process says, a line each.
#[derive(Serialize, Deserialize)]
enum Word {
    /// It would begin a turn, and waits for a line.
    Begin,
    /// The turn has ended.
    End,
    /// Its last.
    Outcome(Result<Vec<Measured>, String>),
}

/// Measures `plans`, in their order, for about `enough` in all, in a process of the context's program, or in this one if there is none.
/// There are fewer outcomes than plans where measuring took too long. Blocks; gives up when `stopped` says so.
pub(super) fn measure<B: Binding>(
    opener: &Opener<B>,
    plans: &[Plan],
    enough: Duration,
    probe: &Probe,
    items: &[B::Item],
    stopped: &dyn Fn() -> bool,
) -> Result<Vec<Measured>, LoadError> {
    let gate = &opener.context.gate;
    let Some(program) = &opener.context.program else {
        let quietly = |turn: &mut dyn FnMut()| {
            let closed = gate.close(LONGEST_TURN);
            turn();
            if let Some(closed) = closed {
                closed.open();
            }
            Ok(())
        };
        return Ok(contest::measure(opener, plans, items, probe.preparation().as_deref(), enough, &quietly));
    };
    let request = Request {
        onnxruntime: opener.context.runtime.library.clone(),
        cache_dir: opener.context.cache_dir.clone(),
        files: opener.files.clone(),
        outputs: opener.outputs.clone(),
        device_id: opener.device_id,
        open_inputs: opener.open_inputs.clone(),
        plans: plans.to_vec(),
        enough,
        probe: probe.clone(),
    };
    let compiles = plans.iter().any(|plan| plan.provider == ExecutionProvider::TensorRt);
    let limit = if compiles { LIMIT.1 } else { LIMIT.0 };
    in_process(program, &request, limit, gate, stopped).map_err(LoadError::System)
}

fn in_process(
    program: &Path,
    request: &Request,
    limit: Duration,
    gate: &RunGate,
    stopped: &dyn Fn() -> bool,
) -> Result<Vec<Measured>, String> {
    let text = serde_json::to_string(request).map_err(|error| error.to_string())?;
    let failed = |error: std::io::Error| format!("no measuring process could be started: {error}");
    let mut command = Command::new(program);
    command.arg("measure").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(failed)?;
    let Some((mut input, output)) = child.stdin.take().zip(child.stdout.take()) else {
        return Err("the measuring process has no pipes".to_owned());
    };
    let (sender, words) = mpsc::channel();
    std::thread::spawn(move || {
        // What else a library may have printed there is no word.
        let lines = BufReader::new(output).split(b'\n').map_while(Result::ok);
        lines.filter_map(|line| serde_json::from_slice::<Word>(&line).ok()).try_for_each(|word| sender.send(word))
    });
    // A process that has ended at once tells why through its exit code.
    let tell = |input: &mut ChildStdin, line: &str| drop(writeln!(input, "{line}"));
    tell(&mut input, &text);
    let (started, mut turn, mut outcome) = (Instant::now(), None, None);
    let is_over = || stopped() || started.elapsed() > limit;
    while !is_over() {
        match words.recv_timeout(POLL) {
            Ok(Word::Begin) => {
                turn = gate.close(LONGEST_TURN);
                tell(&mut input, "");
            }
            Ok(Word::End) => turn.take().map_or((), ClosedGate::open),
            Ok(Word::Outcome(measured)) => outcome = Some(measured),
            Err(RecvTimeoutError::Timeout) => {
                if turn.as_ref().is_some_and(|turn| turn.time() > LONGEST_TURN) {
                    turn = None;
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    // With its input closed, it waits for nothing more.
    drop((turn, input));
    let status = wait(&mut child, &is_over);
    outcome.unwrap_or_else(|| {
        Err(match status {
            Some(status) => format!("the measuring process ended with {status}"),
            None => format!("measuring was ended after {:.0} s", started.elapsed().as_secs_f64()),
        })
    })
}

/// Waits for the end of a process, which is ended when its time is over.
fn wait(child: &mut Child, is_over: &dyn Fn() -> bool) -> Option<ExitStatus> {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) => {}
            Err(_) => return None,
        }
        if is_over() {
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        std::thread::sleep(POLL);
    }
}

/// The measuring process, which reads from the server that started it and writes to it.
///
/// # Errors
/// There is no more server.
pub fn measure_for_server(mut input: impl BufRead, output: impl Write) -> std::io::Result<()> {
    // Where memory runs out, this process ends and not the server that starts it. Other systems than Linux have no such file.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    let mut request = String::new();
    input.read_line(&mut request)?;
    let (input, output) = (RefCell::new(input), RefCell::new(output));
    let say = |word: &Word| {
        let mut output = output.borrow_mut();
        writeln!(output, "{}", serde_json::to_string(word)?)?;
        output.flush()
    };
    let quietly = |turn: &mut dyn FnMut()| {
        let gone = |error: std::io::Error| LoadError::System(error.to_string());
        say(&Word::Begin).map_err(gone)?;
        if input.borrow_mut().read_line(&mut String::new()).map_err(gone)? == 0 {
            return Err(LoadError::System("the server has gone".to_owned()));
        }
        turn();
        say(&Word::End).map_err(gone)
    };
    let outcome = serde_json::from_str(&request).map_err(|error| error.to_string());
    let outcome = outcome.and_then(|request| carry_out(request, &quietly).map_err(|error| error.to_string()));
    say(&Word::Outcome(outcome))
}

fn carry_out(request: Request, quietly: &Quietly<'_>) -> Result<Vec<Measured>, LoadError> {
    let Request { onnxruntime, cache_dir, files, outputs, device_id, open_inputs, plans, enough, probe } = request;
    let context = LoadContext {
        runtime: Runtime::load(Some(&onnxruntime))?,
        metrics: Arc::new(Metrics::new()),
        decode_limits: DecodeLimits { max_pixels: 0 },
        cache_dir,
        text_cache_size: 1,
        program: None,
        gate: Arc::default(),
    };
    let preparation = probe.preparation();
    let preparation = preparation.as_deref();
    Ok(match probe {
        Probe::Photos { image_processor } => {
            let processor = ImageProcessor::from_json(&image_processor, None)
                .map_err(|error| LoadError::System(error.to_string()))?;
            let binding = ImageBinding::for_processor(&processor);
            let opener = Opener { context, binding, files, outputs, device_id, open_inputs };
            contest::measure(&opener, &plans, &probe::photos(&processor), preparation, enough, quietly)
        }
        Probe::Prompts { tokens, max_length, padding, image_size } => {
            let binding = TokenBinding::new(max_length, padding, image_size);
            let opener = Opener { context, binding, files, outputs, device_id, open_inputs };
            contest::measure(&opener, &plans, &tokens, preparation, enough, quietly)
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::runtime::Precision;

    #[test]
    fn a_request_that_is_none_is_answered_with_an_error() {
        let mut said = Vec::new();
        measure_for_server(&b"{}\n"[..], &mut said).unwrap();
        let Ok(Word::Outcome(Err(error))) = serde_json::from_slice(&said) else { panic!("{said:?}") };
        assert!(error.contains("missing field"), "{error}");
    }

    fn request() -> Request {
        Request {
            onnxruntime: PathBuf::new(),
            cache_dir: PathBuf::new(),
            files: Files { graph: PathBuf::new(), int8: None, sha256: String::new(), weights: 0 },
            outputs: Vec::new(),
            device_id: 0,
            plans: vec![Plan {
                provider: ExecutionProvider::Cpu,
                precision: Precision::F32,
                instances: 1,
                threads: 1,
                max_batch_size: 1,
                small_batch_size: None,
                solo_threads: None,
            }],
            enough: Duration::ZERO,
            open_inputs: Vec::new(),
            probe: Probe::Photos { image_processor: serde_json::Value::Null },
        }
    }

    fn in_process(program: &Path, limit: Duration, stopped: &dyn Fn() -> bool) -> Result<Vec<Measured>, String> {
        super::in_process(program, &request(), limit, &RunGate::default(), stopped)
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_process_that_crashes_or_says_nothing_is_an_error_and_no_more() {
        let error = in_process(Path::new("/bin/false"), LONG, &|| false).unwrap_err();
        assert!(error.contains("ended with exit status: 1"), "{error}");
        assert!(in_process(Path::new("/nowhere"), LONG, &|| false).unwrap_err().contains("could be started"));
    }

    /// A program that does what the shell script says. Written by another process: no file is run that a process has open for
    /// writing, as one that another test starts meanwhile would have it.
    fn program(folder: &Path, script: &str) -> PathBuf {
        let path = folder.join("program");
        let write = r#"printf '#!/bin/sh\n%s\n' "$1" > "$0" && chmod +x "$0""#;
        let status = Command::new("/bin/sh").arg("-c").arg(write).arg(&path).arg(script).status().unwrap();
        assert!(status.success());
        path
    }

    #[test]
    fn a_process_is_ended_at_the_limit_and_when_the_server_stops() {
        let folder = tempfile::tempdir().unwrap();
        let hangs = program(folder.path(), "exec sleep 600");
        let error = in_process(&hangs, Duration::ZERO, &|| false).unwrap_err();
        assert!(error.contains("measuring was ended"), "{error}");
        let error = in_process(&hangs, LONG, &|| true).unwrap_err();
        assert!(error.contains("measuring was ended"), "{error}");
    }

    #[test]
    fn a_turn_begins_once_the_servers_runs_have_ended() {
        let folder = tempfile::tempdir().unwrap();
        let outcome = r#"{"Outcome":{"Ok":[{"Ok":{"answers":[],"speeds":[]}}]}}"#;
        let script = format!(r#"read request; echo '"Begin"'; read word; echo '"End"'; echo '{outcome}'"#);
        let measures = program(folder.path(), &script);
        let gate = RunGate::default();
        let run = gate.enter();
        let (over, is_over) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| over.send(super::in_process(&measures, &request(), LONG, &gate, &|| false)).unwrap());
            assert!(is_over.recv_timeout(Duration::from_millis(200)).is_err(), "a run goes on");
            drop(run);
            is_over.recv().unwrap().unwrap();
        });
    }

    #[test]
    fn a_turn_that_does_not_end_keeps_the_server_from_running_for_a_while_only() {
        let folder = tempfile::tempdir().unwrap();
        let hangs = program(folder.path(), r#"read request; echo '"Begin"'; read word; exec sleep 600"#);
        let (gate, stops) = (RunGate::default(), AtomicBool::new(false));
        let stopped = || stops.load(Ordering::Relaxed);
        std::thread::scope(|scope| {
            let process = scope.spawn(|| super::in_process(&hangs, &request(), LONG, &gate, &stopped));
            while !gate.is_closed() {
                std::thread::sleep(POLL);
            }
            drop(gate.enter());
            stops.store(true, Ordering::Relaxed);
            assert!(process.join().unwrap().unwrap_err().contains("measuring was ended"));
        });
    }

    #[test]
    fn what_is_no_word_is_passed_over_and_a_process_that_ends_within_a_turn_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let crashes = program(folder.path(), r#"read request; echo chatter; echo '"Begin"'; read word; exit 3"#);
        let error = in_process(&crashes, LONG, &|| false).unwrap_err();
        assert!(error.contains("ended with exit status: 3"), "{error}");
    }
}
