//! The threads that run workers: each one or several, which go from one thread to another while
//! they run.

use std::any::Any;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use crossbeam::queue::ArrayQueue;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::{Pid, gettid};

use super::clock::Clock;
use super::runner::{Runnable, Shift, prepare_thread};
use super::spec::IdleStrategy;
use crate::nic::Port;
use crate::nic::wake::{Sleeper, Waker};

/// What a thread is given beside the workers.
pub struct ThreadParts {
    pub number: u16,
    /// Pinned to this core; `None`: the kernel moves it about.
    pub core: Option<usize>,
    pub idle: IdleStrategy,
    pub clock: Clock,
}

/// How a thread ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It was dismissed, and has no worker any more.
    Dismissed,
    /// A bug in a turn of this worker. The heartbeats of all that it ran have stopped, and their
    /// ports are closed.
    Panicked { worker: u16, words: String },
}

/// Where workers are handed to threads; one place for each thread that there may be.
pub struct Threads<P: Port> {
    inboxes: Arc<[Inbox<P>]>,
}

impl<P: Port> Clone for Threads<P> {
    fn clone(&self) -> Threads<P> {
        Threads { inboxes: Arc::clone(&self.inboxes) }
    }
}

/// Workers on their way to one thread.
struct Inbox<P: Port> {
    waiting: ArrayQueue<Runnable<P>>,
    claims: Arc<Claims>,
}

impl<P: Port> Drop for Inbox<P> {
    /// What nobody took up: the process ends.
    fn drop(&mut self) {
        while let Some(mut runnable) = self.waiting.pop() {
            runnable.worker.close();
        }
    }
}

/// Who needs a thread: each worker that it runs or that is on its way to it, and the control plane
/// until it dismisses it. It ends when nobody does.
pub(super) struct Claims {
    count: AtomicUsize,
    waker: Waker,
}

/// Of a thread that has ended, or not begun.
const NO_THREAD: usize = usize::MAX;

impl Claims {
    /// Whether there is a thread to be claimed.
    fn add(&self) -> bool {
        let more = |n: usize| (n != NO_THREAD).then(|| n + 1);
        self.count.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
    }

    pub(super) fn remove(&self) {
        self.count.fetch_sub(1, Ordering::AcqRel);
        self.waker.wake();
    }

    pub(super) fn is_none(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    /// Whether the thread may end; it has to, then.
    pub(super) fn end(&self) -> bool {
        self.count.compare_exchange(0, NO_THREAD, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

impl<P: Port> Threads<P> {
    /// Places for so many threads, to each of which all of as many workers may come.
    ///
    /// # Errors
    /// No descriptor left.
    pub fn new(count_max: u16) -> io::Result<Threads<P>> {
        let inbox = |_| {
            let waker = Sleeper::new()?.waker();
            let claims = Claims { count: AtomicUsize::new(NO_THREAD), waker };
            let waiting = ArrayQueue::new(usize::from(count_max.max(1)));
            Ok(Inbox { waiting, claims: Arc::new(claims) })
        };
        let inboxes = (0..count_max.max(1)).map(inbox).collect::<io::Result<Vec<_>>>()?;
        Ok(Threads { inboxes: inboxes.into() })
    }

    /// Hands a worker to a thread that knows of it by [`WorkerThread::claim`].
    pub(super) fn give(&self, thread: u16, runnable: Runnable<P>) {
        let Some(inbox) = self.inboxes.get(usize::from(thread)) else { return };
        let given = inbox.waiting.push(runnable);
        debug_assert!(given.is_ok(), "there is room for all workers");
        inbox.claims.waker.wake();
    }

    /// The next worker that comes to a thread.
    pub(super) fn take(&self, thread: u16) -> Option<Runnable<P>> {
        self.inboxes.get(usize::from(thread))?.waiting.pop()
    }

    /// Whether a worker waits to be taken up.
    #[inline]
    pub(super) fn is_called(&self, thread: u16) -> bool {
        self.inboxes.get(usize::from(thread)).is_some_and(|inbox| !inbox.waiting.is_empty())
    }

    /// Starts a thread, with its first workers.
    ///
    /// # Errors
    /// The thread can't be made, or there is no place for it.
    pub fn spawn(&self, parts: ThreadParts, workers: Vec<Runnable<P>>) -> io::Result<WorkerThread>
    where
        P: Send + 'static,
    {
        let number = parts.number;
        let inbox = self.inboxes.get(usize::from(number)).ok_or(io::ErrorKind::NotFound)?;
        let claims = Arc::clone(&inbox.claims);
        claims.count.store(1 + workers.len(), Ordering::Release);
        let place = Arc::new(Place::default());
        let (told, threads) = (Arc::clone(&place), self.clone());
        let held = Arc::clone(&claims);
        let sleeper = claims.waker.sleeper();
        let name = format!("worker-{number}");
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            if let Some(core) = prepare_thread(&parts) {
                told.core.store(core, Ordering::Release);
            }
            let shift = Shift::new(parts, threads, held, sleeper);
            told.tid.store(gettid().as_raw(), Ordering::Release);
            shift.run_guarded(workers)
        });
        let thread = thread.inspect_err(|_| claims.count.store(NO_THREAD, Ordering::Release))?;
        Ok(WorkerThread { thread, place, claims, dismissed: false })
    }
}

/// A thread of workers, as the control plane sees it.
pub struct WorkerThread {
    thread: JoinHandle<Exit>,
    place: Arc<Place>,
    claims: Arc<Claims>,
    dismissed: bool,
}

/// Where a thread runs.
struct Place {
    /// The kernel's number of it; 0 before it runs.
    tid: AtomicI32,
    /// The core that it is pinned to, or [`ANY_CORE`].
    core: AtomicUsize,
}

const ANY_CORE: usize = usize::MAX;

impl Default for Place {
    fn default() -> Place {
        Place { tid: AtomicI32::new(0), core: AtomicUsize::new(ANY_CORE) }
    }
}

impl WorkerThread {
    /// Moves the thread to a core; `None`: to whichever the calling thread may use.
    ///
    /// # Errors
    /// There is no such core, or it is not for this process: the thread stays where it is.
    pub fn pin(&self, core: Option<usize>) -> io::Result<()> {
        let set = match core {
            None => sched_getaffinity(Pid::from_raw(0))?,
            Some(core) => {
                let mut set = CpuSet::new();
                set.set(core)?;
                set
            }
        };
        match self.place.tid.load(Ordering::Acquire) {
            0 => return Err(io::ErrorKind::NotFound.into()),
            tid => sched_setaffinity(Pid::from_raw(tid), &set)?,
        }
        self.place.core.store(core.unwrap_or(ANY_CORE), Ordering::Release);
        Ok(())
    }

    /// The core that it is pinned to, whatever was asked for; `None`: the kernel moves it about.
    pub fn core(&self) -> Option<usize> {
        Some(self.place.core.load(Ordering::Acquire)).filter(|core| *core != ANY_CORE)
    }

    /// Whether it runs: workers may go to it.
    pub fn is_ready(&self) -> bool {
        self.place.tid.load(Ordering::Acquire) != 0
    }

    /// Has it wait for one more worker. Whether it does: it may have ended.
    pub fn claim(&self) -> bool {
        self.claims.add()
    }

    /// It may end, once its workers have.
    pub fn dismiss(&mut self) {
        if !std::mem::replace(&mut self.dismissed, true) {
            self.claims.remove();
        }
    }

    /// Keeps it after all. Whether that is possible: it may have ended.
    pub fn keep(&mut self) -> bool {
        if self.dismissed && self.claims.add() {
            self.dismissed = false;
        }
        !self.dismissed
    }

    /// Whether it has ended; [`WorkerThread::join`] doesn't wait then.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for its end.
    pub fn join(self) -> Exit {
        let own = |panic: Box<dyn Any + Send>| Exit::Panicked { worker: 0, words: words(&*panic) };
        self.thread.join().unwrap_or_else(own)
    }
}

/// What a panic says.
pub(super) fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}
