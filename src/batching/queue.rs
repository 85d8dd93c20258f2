//! The queue in front of a graph: a mutex, a deque and a condition variable.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::policy::{BatchPolicy, Decision, Role, Situation};
use super::run_times::RunTimes;
use super::solo_load::SoloLoad;
use super::{Answer, InferenceError, Model, RunGate};
use crate::telemetry::{DropReason, QueueMetrics};

/// A share of what the server admits at a time. It travels with the work, so that work whose client has left still counts.
pub type Permit = Arc<OwnedSemaphorePermit>;

/// One input on its way to a model.
pub struct Job<M: Model> {
    /// What the model gets.
    pub input: M::Input,
    /// When the answer is of no more use.
    pub deadline: Instant,
    /// Where the answer goes. Closed: the client has left, and the job is dropped unanswered.
    pub reply: oneshot::Sender<Result<Answer<M::Output>, InferenceError>>,
    /// Held until the job is answered or dropped.
    pub permit: Option<Permit>,
}

/// A job and the moment it came in.
pub(super) struct Waiting<M: Model> {
    pub(super) job: Job<M>,
    pub(super) since: Instant,
}

/// The workers that serve a queue at one time. A newer crew relieves an older one without a job being lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crew(u64);

/// Jobs that wait for a worker.
pub struct BatchQueue<M: Model> {
    state: Mutex<State<M>>,
    /// Wakes instances, all of whom can do the same.
    for_instances: Condvar,
    /// Wakes the solo worker.
    for_solo: Condvar,
    /// Wakes who waits for the end of a crew.
    ended: Condvar,
    capacity: usize,
    pub(super) metrics: QueueMetrics,
    /// What its batches' runs go through.
    pub(super) gate: Arc<RunGate>,
}

struct State<M: Model> {
    jobs: VecDeque<Waiting<M>>,
    closed: bool,
    /// Is no worker there, after one has failed to rebuild its model?
    broken: bool,
    policy: BatchPolicy,
    /// The crew's solo worker, if it has one.
    solo: Workers,
    /// Its instances.
    instances: Workers,
    /// When one of these last ended a batch.
    last_end: Option<Instant>,
    /// Jobs that have been announced and not yet come.
    coming: usize,
    /// Which workers may take batches: those of the newest crew.
    crew: Crew,
    /// What the crew's runs took.
    run_times: RunTimes,
    /// Whether its solo worker could run everything.
    solo_load: SoloLoad,
}

/// Workers of a crew that can do the same.
struct Workers {
    count: usize,
    /// Those that run a batch.
    busy: usize,
    /// The jobs in those batches.
    jobs: usize,
    /// Those that are out, to rebuild their model.
    out: usize,
}

impl Workers {
    fn new(count: usize) -> Self {
        Self { count, busy: 0, jobs: 0, out: 0 }
    }

    /// Is none there?
    fn are_out(&self) -> bool {
        self.out >= self.count
    }
}

impl<M: Model> BatchQueue<M> {
    /// A queue of at most `capacity` jobs, without workers yet.
    pub fn new(capacity: usize, metrics: QueueMetrics, gate: Arc<RunGate>) -> Self {
        let policy = BatchPolicy::up_to(1);
        let jobs = VecDeque::new();
        let state = State {
            jobs,
            closed: false,
            broken: false,
            policy,
            solo: Workers::new(0),
            instances: Workers::new(1),
            last_end: None,
            coming: 0,
            crew: Crew(0),
            run_times: RunTimes::default(),
            solo_load: SoloLoad::default(),
        };
        let (for_instances, for_solo, ended) = (Condvar::new(), Condvar::new(), Condvar::new());
        Self { state: Mutex::new(state), for_instances, for_solo, ended, capacity, metrics, gate }
    }

    /// Announces a crew of so many `instances` that take batches by `policy`, and a solo worker beside them if that has one. Those of
    /// the crew before end with their present batch.
    pub fn relieve(&self, policy: BatchPolicy, instances: usize) -> Crew {
        let mut state = self.lock();
        let crew = Crew(state.crew.0 + 1);
        (state.crew, state.policy, state.broken) = (crew, policy, false);
        (state.run_times, state.solo_load) = (RunTimes::default(), SoloLoad::default());
        (state.solo, state.instances) = (Workers::new(usize::from(policy.has_solo)), Workers::new(instances.max(1)));
        drop(state);
        self.wake_all();
        crew
    }

    /// Tells that a job is being prepared, which takes a core that no other should count on. Dropped when it comes, or if it never
    /// will.
    pub fn announce(self: &Arc<Self>) -> Announcement<M> {
        let now = Instant::now();
        let mut state = self.lock();
        state.expect(now);
        state.coming += 1;
        self.wake_one(&state);
        drop(state);
        Announcement(Some((Arc::clone(self), now)))
    }

    /// Puts a job at the end of the queue.
    ///
    /// # Errors
    /// The queue is full, closed or has no worker left, or the job's turn would come too late. The job is dropped, its permit released.
    pub fn push(&self, job: Job<M>) -> Result<(), InferenceError> {
        let mut state = self.lock();
        state.expect(Instant::now());
        let added = self.add(&mut state, job);
        // What waits may now be for others, also if this one is refused.
        self.wake_one(&state);
        added
    }

    fn add(&self, state: &mut State<M>, job: Job<M>) -> Result<(), InferenceError> {
        state.is_open()?;
        if state.jobs.len() >= self.capacity {
            return Err(InferenceError::QueueFull);
        }
        let since = Instant::now();
        if since >= job.deadline {
            return Err(InferenceError::DeadlineExceeded);
        }
        if since + state.estimated_wait() > job.deadline {
            return Err(InferenceError::DeadlineUnreachable);
        }
        state.jobs.push_back(Waiting { job, since });
        self.metrics.depth.set(state.jobs.len() as i64);
        Ok(())
    }

    /// Puts a job before all others, also where the queue is full: for the few that the server asks for itself.
    ///
    /// # Errors
    /// The queue is closed or has no worker left. The job is dropped, its permit released.
    pub fn push_ahead(&self, job: Job<M>) -> Result<(), InferenceError> {
        let mut state = self.lock();
        state.is_open()?;
        // The first of the queue tells how long the oldest has waited.
        let since = state.jobs.front().map_or_else(Instant::now, |oldest| oldest.since);
        state.jobs.push_front(Waiting { job, since });
        self.metrics.depth.set(state.jobs.len() as i64);
        self.wake_one(&state);
        Ok(())
    }

    /// Blocks until a batch is due and takes it for a worker of `crew`; `None` when that has been relieved, or when the queue
    /// is closed and nothing in it is for this worker. The end of the batch has to be told by [`Self::finish`].
    /// Jobs whose client has left or whose deadline has passed are dropped here, and counted.
    pub(super) fn next_batch(&self, crew: Crew, role: Role) -> Option<Vec<Waiting<M>>> {
        let changed = if role == Role::Solo { &self.for_solo } else { &self.for_instances };
        let mut state = self.lock();
        loop {
            if state.crew != crew {
                // The word that woke this worker may have been for one of the new crew.
                self.wake_one(&state);
                return None;
            }
            let now = Instant::now();
            match state.policy.decide(role, state.situation(now)) {
                Decision::Run(size) => {
                    let batch = self.take(&mut state, size, now);
                    let begins = !batch.is_empty();
                    let workers = state.workers(role);
                    workers.busy += usize::from(begins);
                    workers.jobs += batch.len();
                    self.wake_one(&state);
                    if begins {
                        return Some(batch);
                    }
                }
                Decision::WaitAtMost(time) => {
                    let waited = changed.wait_timeout(state, time);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
                Decision::WaitForJobs => {
                    state = changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                Decision::Stop => return None,
            }
        }
    }

    /// Takes up to `size` jobs that somebody still waits for.
    fn take(&self, state: &mut State<M>, size: usize, now: Instant) -> Vec<Waiting<M>> {
        let mut batch = Vec::with_capacity(size);
        while batch.len() < size {
            let Some(waiting) = state.jobs.pop_front() else { break };
            if waiting.job.reply.is_closed() {
                self.metrics.dropped(DropReason::ClientGone).inc();
            } else if waiting.job.deadline <= now {
                self.metrics.dropped(DropReason::Deadline).inc();
                let _ = waiting.job.reply.send(Err(InferenceError::DeadlineExceeded));
            } else {
                batch.push(waiting);
            }
        }
        self.metrics.depth.set(state.jobs.len() as i64);
        batch
    }

    /// Ends a batch of `size` jobs that [`Self::next_batch`] gave out, and learns what it cost.
    pub(super) fn finish(&self, crew: Crew, role: Role, size: usize, time: Duration) {
        let mut state = self.lock();
        if state.crew != crew {
            return;
        }
        let workers = state.workers(role);
        workers.busy = workers.busy.saturating_sub(1);
        workers.jobs = workers.jobs.saturating_sub(size);
        match role {
            Role::Solo => {
                let (instances, others_wait) = (state.instances.count, !state.jobs.is_empty());
                state.run_times.learn_lone(time, instances, others_wait);
            }
            Role::Instance => {
                state.last_end = Some(Instant::now());
                let policy = state.policy;
                let is_small = policy.small_batch_size.is_some_and(|small| size <= small);
                // What is for batches of one size takes no less time for fewer.
                state.run_times.learn_batch(time, policy.session_size(size), is_small);
            }
        }
        // There are cores again, perhaps for another worker's kind of work.
        self.wake_one(&state);
    }

    /// A worker goes out, to rebuild its model, or comes back. Meanwhile others take what would be for it, if there are any. Returns
    /// whether it is needed any longer.
    pub(super) fn set_out(&self, crew: Crew, role: Role, is_out: bool) -> bool {
        let mut state = self.lock();
        if state.crew != crew {
            return false;
        }
        let out = &mut state.workers(role).out;
        *out = if is_out { *out + 1 } else { out.saturating_sub(1) };
        state.broken &= is_out;
        self.wake_one(&state);
        !state.closed || !state.jobs.is_empty()
    }

    /// A worker that is out could not rebuild its model. If no other is there, what waits is told so, and what comes until one is back:
    /// a model that may never come back should hold nothing that others could use.
    pub(super) fn rebuilding_failed(&self, crew: Crew) {
        let mut state = self.lock();
        if state.crew != crew || !state.solo.are_out() || !state.instances.are_out() {
            return;
        }
        state.broken = true;
        for Waiting { job, .. } in state.jobs.drain(..) {
            let _ = job.reply.send(Err(InferenceError::Broken));
        }
        self.metrics.depth.set(0);
        self.wake_one(&state);
    }

    /// Takes no more jobs; those that wait are still answered.
    pub fn close(&self) {
        self.lock().closed = true;
        self.wake_all();
    }

    /// Has [`Self::close`] been called?
    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Blocks for `time`, or until `crew` is no longer needed: relieved, or the queue closed. Returns whether it still is.
    pub(super) fn is_needed_after(&self, crew: Crew, time: Duration) -> bool {
        let needed = |state: &mut State<M>| !state.closed && state.crew == crew;
        let waited = self.ended.wait_timeout_while(self.lock(), time, needed);
        needed(&mut waited.unwrap_or_else(PoisonError::into_inner).0)
    }

    /// Wakes one worker that may take the waiting jobs, if there are any. Whoever changes the state calls this: a worker that was woken
    /// before may find that they are now for another. Once nothing waits nor will come, all have to hear of it.
    fn wake_one(&self, state: &State<M>) {
        if state.jobs.is_empty() {
            if state.closed {
                self.wake_all();
            }
            return;
        }
        let is_for_solo = state.policy.is_for_solo(state.situation(Instant::now()));
        if is_for_solo { &self.for_solo } else { &self.for_instances }.notify_one();
    }

    fn wake_all(&self) {
        self.for_instances.notify_all();
        self.for_solo.notify_all();
        self.ended.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State<M>> {
        // Nothing between lock and unlock can leave the state half-changed, so a poisoned lock is as good as a clean one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A job that is being prepared for a queue, until it comes.
pub struct Announcement<M: Model>(Option<(Arc<BatchQueue<M>>, Instant)>);

impl<M: Model> Announcement<M> {
    /// Puts the job at the end of the queue, in one step with the end of its announcement: between the two, nobody would wait for it.
    ///
    /// # Errors
    /// As of [`BatchQueue::push`].
    pub fn come(mut self, job: Job<M>) -> Result<(), InferenceError> {
        let Some((queue, since)) = self.0.take() else { return Err(InferenceError::Closed) };
        let mut state = queue.lock();
        state.coming -= 1;
        state.run_times.learn_preparation(since.elapsed());
        let added = queue.add(&mut state, job);
        queue.wake_one(&state);
        added
    }
}

impl<M: Model> Drop for Announcement<M> {
    fn drop(&mut self) {
        if let Some((queue, _)) = self.0.take() {
            let mut state = queue.lock();
            state.coming -= 1;
            queue.wake_one(&state);
        }
    }
}

impl<M: Model> State<M> {
    /// Fails if no more jobs are taken.
    fn is_open(&self) -> Result<(), InferenceError> {
        match (self.closed, self.broken) {
            (true, _) => Err(InferenceError::Closed),
            (false, true) => Err(InferenceError::Broken),
            (false, false) => Ok(()),
        }
    }

    /// A job has begun to come.
    fn expect(&mut self, now: Instant) {
        let is_idle = self.jobs.is_empty() && self.coming + self.solo.busy + self.instances.busy == 0;
        self.solo_load.add(now, &self.run_times, is_idle);
    }

    /// The crew's workers that can do the same as one of `role`.
    fn workers(&mut self, role: Role) -> &mut Workers {
        match role {
            Role::Solo => &mut self.solo,
            Role::Instance => &mut self.instances,
        }
    }

    fn situation(&self, now: Instant) -> Situation {
        Situation {
            len: self.jobs.len(),
            oldest_age: self.jobs.front().map_or(Duration::ZERO, |oldest| now - oldest.since),
            coming: self.coming,
            instances: self.instances.count,
            busy: self.instances.busy,
            running: self.instances.jobs,
            last_end_age: self.last_end.map(|end| now.saturating_duration_since(end)),
            small_run: self.run_times.small(),
            solo_is_sooner: self.run_times.solo_is_sooner(self.jobs.len() + self.coming + self.solo.busy),
            solo_keeps_up: self.solo_load.keeps_up(),
            solo_is_out: self.solo.are_out(),
            out: self.instances.out,
            closed: self.closed,
        }
    }

    /// When the turn of a job that came now would be, as far as can be told. An empty queue never refuses.
    fn estimated_wait(&self) -> Duration {
        self.run_times.wait(self.jobs.len() / self.instances.count)
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;

    struct Echo;

    impl Model for Echo {
        type Input = u32;
        type Output = u32;

        fn run(&mut self, batch: &[u32]) -> Result<Vec<u32>, String> {
            Ok(batch.to_vec())
        }
    }

    type Receiver = oneshot::Receiver<Result<Answer<u32>, InferenceError>>;

    fn queue(max_batch_size: usize, capacity: usize) -> Arc<BatchQueue<Echo>> {
        let queue = Arc::new(BatchQueue::new(capacity, QueueMetrics::default(), Arc::default()));
        assert_eq!(queue.relieve(BatchPolicy::up_to(max_batch_size), 1), CREW);
        queue
    }

    const CREW: Crew = Crew(1);

    fn with_solo(max_batch_size: usize) -> BatchPolicy {
        BatchPolicy { has_solo: true, small_batch_size: Some(1), ..BatchPolicy::up_to(max_batch_size) }
    }

    fn job(input: u32, time: Duration) -> (Job<Echo>, Receiver) {
        let (reply, answer) = oneshot::channel();
        let deadline = Instant::now() + time;
        let permit = None;
        (Job { input, deadline, reply, permit }, answer)
    }

    /// Pushes jobs; the receivers keep them wanted.
    fn push_each(queue: &BatchQueue<Echo>, inputs: Range<u32>) -> Vec<Receiver> {
        let push = |input| {
            let (job, answer) = job(input, LONG);
            queue.push(job).unwrap();
            answer
        };
        inputs.map(push).collect()
    }

    const MS: Duration = Duration::from_millis(1);
    const LONG: Duration = Duration::from_secs(600);

    fn inputs(batch: &[Waiting<Echo>]) -> Vec<u32> {
        batch.iter().map(|waiting| waiting.job.input).collect()
    }

    /// What a worker gets that asks while a `change` is made without which nothing is for it: whether or not it waits by then, it
    /// gets that no sooner. What the change returns lives until then.
    fn taken_once<T>(queue: &BatchQueue<Echo>, (crew, role): (Crew, Role), change: impl FnOnce() -> T) -> Vec<u32> {
        std::thread::scope(|scope| {
            let taken = scope.spawn(|| inputs(&queue.next_batch(crew, role).unwrap()));
            let _changed = change();
            taken.join().unwrap()
        })
    }

    #[test]
    fn batches_keep_the_order_of_arrival() {
        let queue = queue(2, 10);
        let _answers = push_each(&queue, 0..3);
        assert_eq!(inputs(&queue.next_batch(CREW, Role::Instance).unwrap()), [0, 1]);
        assert_eq!(inputs(&queue.next_batch(CREW, Role::Instance).unwrap()), [2]);
    }

    #[test]
    fn a_crew_that_was_relieved_takes_nothing_and_the_next_one_everything() {
        let queue = queue(1, 10);
        let _answers = push_each(&queue, 0..3);
        assert_eq!(inputs(&queue.next_batch(CREW, Role::Instance).unwrap()), [0]);
        let next = queue.relieve(BatchPolicy::up_to(8), 1);
        assert!(queue.next_batch(CREW, Role::Instance).is_none());
        assert!(!queue.is_needed_after(CREW, LONG) && queue.is_needed_after(next, Duration::ZERO));
        assert_eq!(inputs(&queue.next_batch(next, Role::Instance).unwrap()), [1, 2], "by the new crew's policy");
    }

    #[test]
    fn a_lone_job_goes_to_the_solo_worker_until_an_instance_runs() {
        let queue = queue(8, 10);
        let crew = queue.relieve(with_solo(2), 1);
        let _answers = push_each(&queue, 0..3);
        assert_eq!(inputs(&queue.next_batch(crew, Role::Instance).unwrap()), [0, 1]);
        let end = || queue.finish(crew, Role::Instance, 2, Duration::ZERO);
        assert_eq!(taken_once(&queue, (crew, Role::Solo), end), [2]);
        let (last, _answer) = job(3, LONG);
        queue.push(last).unwrap();
        queue.close();
        assert_eq!(inputs(&queue.next_batch(crew, Role::Solo).unwrap()), [3]);
        assert!(queue.next_batch(crew, Role::Instance).is_none(), "no other will come");
        assert!(queue.next_batch(crew, Role::Solo).is_none());
    }

    #[test]
    fn a_job_that_waited_for_the_solo_worker_goes_to_an_instance_once_a_second_comes() {
        let queue = queue(1, 10);
        let crew = queue.relieve(with_solo(4), 1);
        let (first, _first_answer) = job(1, LONG);
        queue.push(first).unwrap();
        assert_eq!(inputs(&queue.next_batch(crew, Role::Solo).unwrap()), [1]);
        let (second, _second_answer) = job(2, LONG);
        queue.push(second).unwrap();
        assert_eq!(taken_once(&queue, (crew, Role::Instance), || push_each(&queue, 3..4)), [2]);
    }

    #[test]
    fn a_small_batch_that_is_not_full_waits_for_the_end_of_another() {
        let queue = queue(8, 10);
        let crew = queue.relieve(BatchPolicy { small_batch_size: Some(2), ..with_solo(8) }, 2);
        let _answers = push_each(&queue, 0..5);
        assert_eq!(inputs(&queue.next_batch(crew, Role::Instance).unwrap()), [0, 1], "nothing has been timed yet");
        queue.finish(crew, Role::Instance, 2, LONG);
        assert_eq!(inputs(&queue.next_batch(crew, Role::Instance).unwrap()), [2, 3]);
        let end = || queue.finish(crew, Role::Instance, 2, LONG);
        assert_eq!(taken_once(&queue, (crew, Role::Solo), end), [4], "the last one is alone then");
    }

    #[test]
    fn the_end_of_a_batch_lets_what_waited_for_it_go() {
        let queue = queue(8, 10);
        let crew = queue.relieve(BatchPolicy { small_batch_size: Some(4), ..with_solo(8) }, 2);
        let _answers = push_each(&queue, 0..6);
        queue.finish(crew, Role::Instance, 4, LONG);
        assert_eq!(inputs(&queue.next_batch(crew, Role::Instance).unwrap()), [0, 1, 2, 3]);
        // Long enough for the other to wait; it must go on either way.
        let end = || {
            std::thread::sleep(MS * 20);
            queue.finish(crew, Role::Instance, 4, LONG);
        };
        assert_eq!(taken_once(&queue, (crew, Role::Instance), end), [4, 5]);
    }

    #[test]
    fn all_the_jobs_that_the_solo_worker_would_run_count() {
        let queue = queue(8, 10);
        let crew = queue.relieve(BatchPolicy { small_batch_size: Some(4), ..with_solo(8) }, 2);
        queue.finish(crew, Role::Instance, 2, MS * 12);
        queue.finish(crew, Role::Solo, 1, MS * 4);
        let is_sooner = || queue.lock().situation(Instant::now()).solo_is_sooner;
        let _answers = push_each(&queue, 0..3);
        assert!(is_sooner(), "three take 12 ms");
        assert_eq!(inputs(&queue.next_batch(crew, Role::Solo).unwrap()), [0]);
        let announcement = queue.announce();
        assert!(!is_sooner(), "one runs, two wait and another is being prepared");
        drop(announcement);
        assert!(is_sooner(), "it never came");
        let announcement = queue.announce();
        queue.finish(crew, Role::Solo, 1, MS * 4);
        let (last, _answer) = job(3, LONG);
        announcement.come(last).unwrap();
        assert!(is_sooner(), "it counts once");
        assert_eq!(queue.lock().coming, 0);
    }

    #[test]
    fn a_lone_job_is_for_an_instance_while_more_comes_than_the_solo_worker_could_run() {
        let queue = queue(8, 10);
        let crew = queue.relieve(with_solo(8), 2);
        queue.finish(crew, Role::Solo, 1, MS * 60_000);
        let keeps_up = || queue.lock().situation(Instant::now()).solo_keeps_up;
        let answers: Vec<_> = (0..3).map(|input| (keeps_up(), push_each(&queue, input..input + 1))).collect();
        assert!(answers.iter().all(|(kept_up, _)| *kept_up) && !keeps_up());
        for input in 0..3 {
            assert_eq!(inputs(&queue.next_batch(crew, Role::Instance).unwrap()), [input], "the last one is alone");
            queue.finish(crew, Role::Instance, 1, MS);
        }
        let crew = queue.relieve(with_solo(8), 2);
        let _answer = push_each(&queue, 3..4);
        assert_eq!(inputs(&queue.next_batch(crew, Role::Solo).unwrap()), [3], "nothing is known of this crew");
    }

    #[test]
    fn a_refused_job_that_makes_a_waiting_one_anothers_wakes_that() {
        let queue = queue(8, 1);
        let crew = queue.relieve(with_solo(8), 2);
        queue.finish(crew, Role::Solo, 1, MS * 60_000);
        let _answer = push_each(&queue, 0..1);
        let refused = || {
            // Long enough for the instance to wait; it must get the job either way.
            std::thread::sleep(MS * 20);
            [1, 2].map(|input| assert_eq!(queue.push(job(input, LONG).0), Err(InferenceError::QueueFull)))
        };
        assert_eq!(taken_once(&queue, (crew, Role::Instance), refused), [0]);
    }

    #[test]
    fn the_jobs_that_run_count_until_their_batch_ends() {
        let queue = queue(8, 20);
        let crew = queue.relieve(with_solo(8), 2);
        let running = || queue.lock().situation(Instant::now()).running;
        let _answers = push_each(&queue, 0..12);
        let sizes = [(); 2].map(|()| queue.next_batch(crew, Role::Instance).unwrap().len());
        assert_eq!((sizes, running()), ([4, 4], 8));
        queue.finish(crew, Role::Instance, 4, MS);
        assert_eq!(running(), 4);
        assert_eq!(queue.next_batch(crew, Role::Instance).unwrap().len(), 4, "eight there are");
        queue.relieve(with_solo(8), 2);
        assert_eq!(running(), 0);
    }

    #[test]
    fn a_run_for_more_jobs_than_it_had_counts_as_one_of_all() {
        let queue = queue(8, 10);
        let crew = queue.relieve(BatchPolicy { small_batch_size: Some(2), ..with_solo(8) }, 2);
        queue.finish(crew, Role::Instance, 1, MS * 16);
        assert_eq!(queue.lock().run_times.small(), MS * 16);
        assert_eq!(queue.lock().run_times.wait(1), MS * 8);
        queue.finish(crew, Role::Instance, 5, MS * 64);
        queue.finish(crew, Role::Solo, 1, MS * 4);
        assert_eq!(queue.lock().run_times.wait(1), MS * 8, "twice what it is with all cores");
        assert_eq!(queue.lock().run_times.small(), MS * 16);
    }

    #[test]
    fn what_would_be_for_a_worker_that_is_out_goes_to_the_others() {
        let queue = queue(2, 10);
        let crew = queue.relieve(with_solo(2), 1);
        let _lone = push_each(&queue, 0..1);
        assert_eq!(taken_once(&queue, (crew, Role::Instance), || queue.set_out(crew, Role::Solo, true)), [0]);
        queue.set_out(crew, Role::Solo, false);
        queue.finish(crew, Role::Instance, 1, MS);
        let _three = push_each(&queue, 1..4);
        assert_eq!(taken_once(&queue, (crew, Role::Solo), || queue.set_out(crew, Role::Instance, true)), [1]);
        queue.set_out(crew, Role::Instance, false);
        assert_eq!(inputs(&queue.next_batch(crew, Role::Instance).unwrap()), [2, 3], "it is back");
    }

    #[test]
    fn the_end_of_an_earlier_crews_batch_frees_no_core_of_the_present_one() {
        let queue = queue(1, 10);
        let _answers = push_each(&queue, 0..3);
        assert_eq!(inputs(&queue.next_batch(CREW, Role::Instance).unwrap()), [0]);
        let crew = queue.relieve(with_solo(1), 1);
        assert_eq!(inputs(&queue.next_batch(crew, Role::Instance).unwrap()), [1]);
        queue.finish(CREW, Role::Instance, 1, Duration::ZERO);
        assert_eq!(queue.lock().instances.busy, 1);
    }

    #[test]
    fn a_full_queue_refuses() {
        let queue = queue(8, 1);
        let (first, _answer) = job(1, LONG);
        queue.push(first).unwrap();
        assert_eq!(queue.push(job(2, LONG).0), Err(InferenceError::QueueFull));
    }

    #[test]
    fn the_servers_own_jobs_come_first_and_into_a_full_queue_too() {
        let queue = queue(8, 1);
        let _answers: Vec<_> = [(1, false), (2, true), (3, true)]
            .into_iter()
            .map(|(input, own)| {
                let (job, answer) = job(input, LONG);
                if own { queue.push_ahead(job) } else { queue.push(job) }.unwrap();
                answer
            })
            .collect();
        assert_eq!(inputs(&queue.next_batch(CREW, Role::Instance).unwrap()), [3, 2, 1]);
        queue.close();
        assert_eq!(queue.push_ahead(job(4, LONG).0), Err(InferenceError::Closed));
    }

    #[test]
    fn a_closed_queue_refuses_and_is_emptied() {
        let queue = queue(8, 10);
        let (first, _answer) = job(1, LONG);
        queue.push(first).unwrap();
        queue.close();
        assert_eq!(queue.push(job(2, LONG).0), Err(InferenceError::Closed));
        assert_eq!(inputs(&queue.next_batch(CREW, Role::Instance).unwrap()), [1]);
        assert!(queue.next_batch(CREW, Role::Instance).is_none());
    }

    #[test]
    fn a_worker_that_waits_while_a_closed_queue_is_emptied_by_others_ends_too() {
        let queue = queue(1, 10);
        let crew = queue.relieve(with_solo(1), 1);
        let _answers = push_each(&queue, 0..3);
        assert_eq!(inputs(&queue.next_batch(crew, Role::Instance).unwrap()), [0]);
        queue.close();
        let (tell, told) = std::sync::mpsc::channel();
        let waiting = Arc::clone(&queue);
        std::thread::spawn(move || tell.send(waiting.next_batch(crew, Role::Solo).is_none()).unwrap());
        // Long enough for it to wait; it must end either way.
        std::thread::sleep(MS * 20);
        for input in 1..3 {
            assert_eq!(inputs(&queue.next_batch(crew, Role::Instance).unwrap()), [input], "all cores are taken");
        }
        assert!(told.recv_timeout(Duration::from_secs(60)).unwrap());
    }

    #[test]
    fn jobs_nobody_waits_for_are_dropped_and_counted() {
        let queue = queue(8, 10);
        let (gone, answer) = job(1, LONG);
        drop(answer);
        queue.push(gone).unwrap();
        let (late, mut late_answer) = job(2, Duration::from_millis(50));
        let deadline = late.deadline;
        queue.push(late).unwrap();
        let (live, _live_answer) = job(3, LONG);
        queue.push(live).unwrap();
        std::thread::sleep(deadline.saturating_duration_since(Instant::now()));
        assert_eq!(inputs(&queue.next_batch(CREW, Role::Instance).unwrap()), [3]);
        let late_answer = late_answer.try_recv().unwrap();
        assert!(matches!(late_answer, Err(InferenceError::DeadlineExceeded)));
        assert_eq!(queue.metrics.dropped(DropReason::ClientGone).get(), 1);
        assert_eq!(queue.metrics.dropped(DropReason::Deadline).get(), 1);
    }

    #[test]
    fn a_job_whose_turn_would_come_too_late_is_refused_unless_nothing_waits() {
        let queue = queue(1, 10);
        queue.finish(CREW, Role::Instance, 1, Duration::from_secs(60));
        let (first, _answer) = job(1, Duration::from_secs(30));
        queue.push(first).unwrap();
        let second = job(2, Duration::from_secs(30)).0;
        assert_eq!(queue.push(second), Err(InferenceError::DeadlineUnreachable));
    }
}
