//! A worker: an operating-system thread that owns one model, takes batches and sends each job its own answer.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::queue::Waiting;
use super::{Answer, BatchQueue, Crew, InferenceError, Model, Role};
use crate::panics::panic_text;

/// Between two attempts to rebuild a model after a failed run; doubled each time, up to the second figure.
const REBUILD_DELAY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// A running worker thread.
pub struct Worker {
    name: String,
    thread: JoinHandle<()>,
    crew: mpsc::Sender<Crew>,
    state: Arc<WorkerState>,
}

#[derive(Default)]
struct WorkerState {
    busy_since: Mutex<Option<Instant>>,
    broken: Mutex<Option<String>>,
}

/// A worker that did not stop in time.
#[derive(Debug, Clone)]
pub struct Straggler {
    /// The worker's name.
    pub name: String,
    /// How long its present run has taken, if it is running one.
    pub busy_for: Option<Duration>,
}

impl std::fmt::Display for Straggler {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.busy_for {
            Some(time) => write!(formatter, "{} (in a run for {:.1} s)", self.name, time.as_secs_f64()),
            None => write!(formatter, "{} (idle)", self.name),
        }
    }
}

impl Worker {
    /// Starts a thread that serves `queue` with `model`, from [`Self::begin`] on, until its crew is relieved, or the queue is closed and
    /// empty. After a failed run the model is replaced by what `rebuild` returns. One that is dropped before it has begun ends.
    ///
    /// # Errors
    /// The operating system starts no more threads.
    pub fn spawn<M: Model>(
        name: String,
        queue: Arc<BatchQueue<M>>,
        role: Role,
        mut model: M,
        rebuild: impl Fn() -> Result<M, String> + Send + 'static,
    ) -> std::io::Result<Self> {
        let state = Arc::new(WorkerState::default());
        let thread_state = Arc::clone(&state);
        let thread_name = name.clone();
        let (crew, begun) = mpsc::channel();
        let run = move || {
            warm_up(&mut model);
            if let Ok(crew) = begun.recv() {
                work(&thread_name, &queue, (crew, role), model, rebuild, &thread_state);
            }
        };
        let thread = std::thread::Builder::new().name(name.clone()).spawn(run)?;
        Ok(Self { name, thread, crew, state })
    }

    /// Takes up work as one of `crew`.
    pub fn begin(&self, crew: Crew) {
        // A thread that has ended shows as such.
        let _ = self.crew.send(crew);
    }

    /// Why the worker cannot answer at present, if it cannot: its model broke and could not be rebuilt yet.
    pub fn broken(&self) -> Option<String> {
        lock(&self.state.broken).clone()
    }

    /// Has the thread ended?
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// The worker as one that did not stop in time.
    pub fn straggler(&self) -> Straggler {
        Straggler { name: self.name.clone(), busy_for: lock(&self.state.busy_since).map(|since| since.elapsed()) }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn work<M: Model>(
    name: &str,
    queue: &BatchQueue<M>,
    (crew, role): (Crew, Role),
    mut model: M,
    rebuild: impl Fn() -> Result<M, String>,
    state: &WorkerState,
) {
    while let Some(batch) = queue.next_batch(crew, role) {
        *lock(&state.busy_since) = Some(Instant::now());
        let healthy = run_batch(name, queue, (crew, role), &mut model, batch);
        *lock(&state.busy_since) = None;
        if !healthy {
            let is_needed = queue.set_out(crew, role, true);
            // Dropped before its successor is built: two sessions may not fit on one device.
            drop(model);
            if !is_needed {
                return;
            }
            let Some(rebuilt) = rebuild_until_it_works(name, queue, crew, &rebuild, state) else { return };
            model = rebuilt;
            warm_up(&mut model);
            queue.set_out(crew, role, false);
        }
    }
}

/// A panic shows again when a batch is run.
fn warm_up<M: Model>(model: &mut M) {
    let _ = catch_unwind(AssertUnwindSafe(|| model.warm_up()));
}

/// Runs one batch and answers its jobs; `false` if the model can no longer be trusted.
fn run_batch<M: Model>(
    name: &str,
    queue: &BatchQueue<M>,
    (crew, role): (Crew, Role),
    model: &mut M,
    batch: Vec<Waiting<M>>,
) -> bool {
    let run = queue.gate.enter();
    let started = Instant::now();
    let size = batch.len();
    let (inputs, replies): (Vec<_>, Vec<_>) =
        batch.into_iter().map(|Waiting { job, since }| (job.input, (job.reply, job.permit, started - since))).unzip();
    let outcome = catch_unwind(AssertUnwindSafe(|| model.run(&inputs)))
        .unwrap_or_else(|panic| Err(format!("panicked: {}", panic_text(panic.as_ref()))))
        .and_then(|outputs| match outputs.len() {
            answers if answers == size => Ok(outputs),
            answers => Err(format!("{answers} answers to {size} jobs")),
        });
    let inference = started.elapsed();
    drop(run);
    queue.finish(crew, role, size, inference);
    queue.metrics.batch_size.observe(size as f64);
    queue.metrics.inference.observe(inference.as_secs_f64());
    match outcome {
        Ok(outputs) => {
            for (output, (reply, _permit, waited)) in outputs.into_iter().zip(replies) {
                queue.metrics.queue.observe(waited.as_secs_f64());
                // A client that has left in the meantime is no fault.
                let _ = reply.send(Ok(Answer { output, queue: waited, inference }));
            }
            true
        }
        Err(cause) => {
            tracing::error!(worker = name, batch_size = size, %cause, "inference failed");
            for (reply, ..) in replies {
                let _ = reply.send(Err(InferenceError::Failed(cause.clone())));
            }
            false
        }
    }
}

/// `None` when the crew was no longer needed.
fn rebuild_until_it_works<M: Model>(
    name: &str,
    queue: &BatchQueue<M>,
    crew: Crew,
    rebuild: &impl Fn() -> Result<M, String>,
    state: &WorkerState,
) -> Option<M> {
    let (mut delay, longest) = REBUILD_DELAY;
    loop {
        let attempt = catch_unwind(AssertUnwindSafe(rebuild));
        match attempt.unwrap_or_else(|panic| Err(format!("panicked: {}", panic_text(panic.as_ref())))) {
            Ok(model) => {
                *lock(&state.broken) = None;
                tracing::info!(worker = name, "session rebuilt after a failed run");
                return Some(model);
            }
            Err(cause) => {
                tracing::error!(worker = name, %cause, retry_in = ?delay, "session could not be rebuilt");
                *lock(&state.broken) = Some(cause);
                queue.rebuilding_failed(crew);
            }
        }
        if !queue.is_needed_after(crew, delay) {
            return None;
        }
        delay = (delay * 2).min(longest);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use tokio::sync::oneshot;

    use super::*;
    use crate::batching::{BatchPolicy, Job};
    use crate::telemetry::QueueMetrics;

    /// Doubles its inputs; 13 makes it panic, 14 fail, 15 answer too little. Waits for a word before each run if told to.
    struct Doubler {
        gate: Option<mpsc::Receiver<()>>,
        generation: u32,
    }

    impl Model for Doubler {
        type Input = u32;
        type Output = (u32, u32);

        fn run(&mut self, batch: &[u32]) -> Result<Vec<(u32, u32)>, String> {
            if let Some(gate) = &self.gate {
                gate.recv().unwrap();
            }
            if batch.contains(&14) {
                return Err("fourteen".to_owned());
            }
            assert!(!batch.contains(&13), "thirteen");
            let answered = batch.iter().filter(|&&input| input != 15);
            Ok(answered.map(|input| (input * 2, self.generation)).collect())
        }
    }

    type Receiver = oneshot::Receiver<Result<Answer<(u32, u32)>, InferenceError>>;

    fn start(max_batch_size: usize, gate: Option<mpsc::Receiver<()>>) -> (Arc<BatchQueue<Doubler>>, Worker) {
        let queue = Arc::new(BatchQueue::new(100, QueueMetrics::default(), Arc::default()));
        let rebuild = || Ok(Doubler { gate: None, generation: 2 });
        let model = Doubler { gate, generation: 1 };
        let worker = Worker::spawn("worker-0".to_owned(), Arc::clone(&queue), Role::Instance, model, rebuild).unwrap();
        worker.begin(queue.relieve(BatchPolicy::up_to(max_batch_size), 1));
        (queue, worker)
    }

    fn push(queue: &BatchQueue<Doubler>, input: u32) -> Receiver {
        let (reply, answer) = oneshot::channel();
        let deadline = Instant::now() + Duration::from_secs(600);
        let permit = None;
        queue.push(Job { input, deadline, reply, permit }).unwrap();
        answer
    }

    #[test]
    fn a_worker_that_does_not_begin_leaves_the_work_to_those_there_are() {
        let (queue, worker) = start(8, None);
        let model = Doubler { gate: None, generation: 9 };
        let idle =
            Worker::spawn("idle".to_owned(), Arc::clone(&queue), Role::Instance, model, || Err(String::new())).unwrap();
        assert_eq!(push(&queue, 1).blocking_recv().unwrap().unwrap().output, (2, 1));
        let Worker { thread, crew, .. } = idle;
        drop(crew);
        thread.join().unwrap();
        assert!(!worker.is_finished());
        queue.close();
    }

    #[test]
    fn each_job_gets_its_own_answer() {
        let (release, gate) = mpsc::channel();
        let (queue, worker) = start(8, Some(gate));
        let answers: Vec<_> = (20..40).map(|input| push(&queue, input)).collect();
        drop((0..20).map(|_| release.send(())).collect::<Vec<_>>());
        for (input, answer) in (20..40).zip(answers) {
            assert_eq!(answer.blocking_recv().unwrap().unwrap().output, (input * 2, 1));
        }
        queue.close();
        worker.thread.join().unwrap();
    }

    #[test]
    fn no_batch_runs_while_the_gate_is_closed() {
        let (queue, worker) = start(8, None);
        let closed = queue.gate.close(Duration::from_secs(60)).unwrap();
        let mut answer = push(&queue, 1);
        while worker.straggler().busy_for.is_none() {
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_millis(50));
        assert!(answer.try_recv().is_err(), "it has the job and waits");
        closed.open();
        assert_eq!(answer.blocking_recv().unwrap().unwrap().output, (2, 1));
        queue.close();
    }

    #[test]
    fn a_panic_an_error_or_a_missing_answer_fails_that_batch_alone() {
        let (queue, _worker) = start(1, None);
        for (input, message) in [(13, "panicked: thirteen"), (14, "fourteen"), (15, "0 answers to 1 jobs")] {
            let error = push(&queue, input).blocking_recv().unwrap().unwrap_err();
            assert_eq!(error, InferenceError::Failed(message.to_owned()));
            let next = push(&queue, 1).blocking_recv().unwrap().unwrap();
            assert_eq!(next.output, (2, 2), "answered by the rebuilt model");
        }
        queue.close();
    }

    #[test]
    fn who_waits_for_a_model_that_cannot_be_rebuilt_is_told_so() {
        let queue = Arc::new(BatchQueue::new(100, QueueMetrics::default(), Arc::default()));
        let (let_fail, may_fail) = mpsc::channel::<()>();
        let rebuild = move || {
            let _ = may_fail.recv();
            Err("gone".to_owned())
        };
        let model = Doubler { gate: None, generation: 1 };
        let worker = Worker::spawn("worker".to_owned(), Arc::clone(&queue), Role::Instance, model, rebuild).unwrap();
        worker.begin(queue.relieve(BatchPolicy::up_to(1), 1));
        let failed = push(&queue, 14).blocking_recv().unwrap().unwrap_err();
        assert_eq!(failed, InferenceError::Failed("fourteen".to_owned()));
        let waits = push(&queue, 1);
        let_fail.send(()).unwrap();
        assert_eq!(waits.blocking_recv().unwrap().unwrap_err(), InferenceError::Broken);
        let (reply, _answer) = oneshot::channel();
        let deadline = Instant::now() + Duration::from_secs(600);
        let refused = queue.push(Job { input: 1, deadline, reply, permit: None });
        assert_eq!(refused, Err(InferenceError::Broken));
        queue.relieve(BatchPolicy::up_to(1), 1);
        push(&queue, 1);
        drop(let_fail);
        worker.thread.join().unwrap();
    }

    #[test]
    fn while_a_worker_rebuilds_its_model_the_others_answer() {
        let queue = Arc::new(BatchQueue::new(100, QueueMetrics::default(), Arc::default()));
        let crew = queue.relieve(BatchPolicy { has_solo: true, ..BatchPolicy::up_to(8) }, 1);
        let (let_go, held) = mpsc::channel::<()>();
        let spawn = |role, generation, rebuild: Box<dyn Fn() -> Result<Doubler, String> + Send>| {
            let model = Doubler { gate: None, generation };
            let worker = Worker::spawn("worker".to_owned(), Arc::clone(&queue), role, model, rebuild).unwrap();
            worker.begin(crew);
            worker
        };
        let rebuild_solo = move || {
            held.recv().unwrap();
            Ok(Doubler { gate: None, generation: 3 })
        };
        let _solo = spawn(Role::Solo, 1, Box::new(rebuild_solo));
        let _other = spawn(Role::Instance, 2, Box::new(|| Err("not needed".to_owned())));
        assert_eq!(
            push(&queue, 1).blocking_recv().unwrap().unwrap().output,
            (2, 1),
            "a lone job is for the solo worker"
        );
        push(&queue, 14).blocking_recv().unwrap().unwrap_err();
        assert_eq!(push(&queue, 1).blocking_recv().unwrap().unwrap().output, (2, 2), "which is out");
        let_go.send(()).unwrap();
        while push(&queue, 1).blocking_recv().unwrap().unwrap().output != (2, 3) {}
        queue.close();
    }

    #[test]
    fn a_worker_that_hangs_is_named_with_its_time() {
        let (release, gate) = mpsc::channel();
        let (queue, worker) = start(1, Some(gate));
        let answer = push(&queue, 1);
        queue.close();
        while worker.straggler().busy_for.is_none() {
            std::thread::yield_now();
        }
        assert!(!worker.is_finished());
        assert_eq!(worker.straggler().name, "worker-0");
        release.send(()).unwrap();
        answer.blocking_recv().unwrap().unwrap();
        worker.thread.join().unwrap();
    }
}
