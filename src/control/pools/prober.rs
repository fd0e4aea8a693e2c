//! Checks all backends, again and again: a task each, few of them at work at once.

use std::sync::{Arc, OnceLock};

use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Duration, Instant, sleep_until, timeout};

use super::probe::{Probe, told};
use super::{BackendKey, checked, key};
use crate::base::Seed;
use crate::base::hash::Rng;
use crate::config::Config;
use crate::config::health::HealthSpec;
use crate::control::checks::Door;
use crate::control::checks::way::Target;

/// Checks at work at once: each holds a descriptor.
const AT_ONCE_MAX: usize = 256;
/// Results that wait for the control loop at most.
const RESULTS_MAX: usize = 1024;

/// What a check found.
#[derive(Debug)]
pub struct Found {
    pub key: BackendKey,
    pub result: Result<(), String>,
    /// From its SYN to the answer, where its connection came about.
    pub rtt: Option<Duration>,
}

/// The tasks that check. They end with it.
#[derive(Debug)]
pub struct Prober {
    wanted: Vec<(BackendKey, HealthSpec, Target)>,
    /// The way through the workers; `None`: they do not run yet.
    door: Option<Door>,
    tasks: Vec<JoinHandle<()>>,
    seats: Arc<Semaphore>,
    to: mpsc::Sender<Found>,
    results: mpsc::Receiver<Found>,
}

impl Prober {
    pub fn new() -> Prober {
        let (to, results) = mpsc::channel(RESULTS_MAX);
        let seats = Arc::new(Semaphore::new(AT_ONCE_MAX));
        Prober { wanted: Vec::new(), door: None, tasks: Vec::new(), seats, to, results }
    }

    /// Checks what this configuration says from now on. Needs a tokio runtime.
    pub fn set_config(&mut self, config: &Config) {
        let spec = |pool: u16| config.health.get(usize::from(pool))?.check.clone();
        let wanted = checked(config).filter_map(|(pool, backend)| {
            let spec = spec(pool.id.0)?;
            let target = Target::of(config, pool, backend, &spec);
            Some((key(pool, backend), spec, target))
        });
        let wanted: Vec<_> = wanted.collect();
        if wanted != self.wanted {
            self.wanted = wanted;
            self.begin();
        }
    }

    /// From now on checks that go by the workers do.
    pub fn set_door(&mut self, door: Door) {
        self.door = Some(door);
        self.begin();
    }

    fn begin(&mut self) {
        self.end();
        for (key, spec, target) in &self.wanted {
            if target.way.is_some() && self.door.is_none() {
                continue;
            }
            let asking = Asking {
                key: key.clone(),
                spec: spec.clone(),
                target: *target,
                door: self.door.clone(),
            };
            let (seats, to) = (Arc::clone(&self.seats), self.to.clone());
            self.tasks.push(tokio::spawn(asking.repeat(seats, to)));
        }
    }

    /// The next result. Never ends.
    pub async fn found(&mut self) -> Found {
        match self.results.recv().await {
            Some(found) => found,
            // A sender is kept here.
            None => std::future::pending().await,
        }
    }

    /// A result that waits already.
    pub fn waiting(&mut self) -> Option<Found> {
        self.results.try_recv().ok()
    }

    /// Checks that have ended by a bug: they go on with the next change of what is to be done.
    pub fn dead(&self) -> usize {
        self.tasks.iter().filter(|task| task.is_finished()).count()
    }

    fn end(&mut self) {
        self.tasks.drain(..).for_each(|task| task.abort());
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.end();
    }
}

/// A backend's checks.
struct Asking {
    key: BackendKey,
    spec: HealthSpec,
    target: Target,
    door: Option<Door>,
}

impl Asking {
    async fn repeat(self, seats: Arc<Semaphore>, to: mpsc::Sender<Found>) {
        let probe = Probe::new(&self.spec.check);
        let mut rng = Rng::new(Seed::random());
        // Not all at the same moment, but soon: a dead backend is in use until then.
        let soon = self.spec.interval.min(Duration::from_secs(1));
        let mut due = Instant::now() + part(soon, &mut rng) / 4;
        loop {
            sleep_until(due).await;
            due = Instant::now() + jittered(&self.spec, &mut rng);
            let Ok(_seat) = seats.acquire().await else { return };
            let mut rtt = None;
            let result = self.ask(&probe, &mut rtt).await;
            if to.send(Found { key: self.key.clone(), result, rtt }).await.is_err() {
                return;
            }
        }
    }

    /// `rtt` is told even where the check fails later.
    async fn ask(&self, probe: &Probe<'_>, rtt: &mut Option<Duration>) -> Result<(), String> {
        let (Target { end, way }, limit) = (self.target, self.spec.timeout);
        let (Some(way), Some(door)) = (way, &self.door) else {
            let asked = timeout(limit, async {
                let begun = Instant::now();
                let stream = TcpStream::connect(end).await.map_err(|e| told("connect", &e))?;
                *rtt = Some(begun.elapsed());
                probe.talk(stream, end).await
            });
            return asked.await.unwrap_or_else(|_| Err(format!("no answer within {limit:?}")));
        };
        let cause = Arc::new(OnceLock::new());
        let asked = timeout(limit, async {
            let connected = door.connect(end, way, &cause).await;
            // Its seat is taken for as long as the connection lasts.
            let connected = connected.map_err(|e| told("connect", &e))?;
            *rtt = Some(connected.rtt);
            probe.talk(connected.stream, end).await
        });
        asked.await.unwrap_or_else(|_| match cause.get() {
            Some(reason) => Err(format!("not sent: {}", reason.label())),
            None => Err(format!("no answer within {limit:?}")),
        })
    }
}

/// A random part of a time.
fn part(whole: Duration, rng: &mut Rng) -> Duration {
    whole * rng.below(1_000) / 1_000
}

fn jittered(spec: &HealthSpec, rng: &mut Rng) -> Duration {
    let most = spec.interval * u32::from(spec.jitter_percent) / 100;
    spec.interval - most + part(most * 2, rng)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_that_ends_by_a_bug_is_counted() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        runtime.expect("a runtime").block_on(async {
            let mut prober = Prober::new();
            prober.tasks.push(tokio::spawn(async { panic!("a bug") }));
            prober.tasks.push(tokio::spawn(std::future::pending()));
            let counted = async {
                while prober.dead() == 0 {
                    tokio::task::yield_now().await;
                }
            };
            timeout(Duration::from_secs(20), counted).await.expect("it is over");
            assert_eq!(prober.dead(), 1);
        });
    }
}
