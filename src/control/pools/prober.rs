//! Checks all backends, again and again: a task each, few of them at work at once.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Duration, Instant, sleep_until, timeout};

use super::probe::Probe;
use super::{BackendKey, checked, key};
use crate::base::Seed;
use crate::base::hash::Rng;
use crate::config::Config;
use crate::config::health::HealthSpec;

/// Checks at work at once: each holds a descriptor.
const AT_ONCE_MAX: usize = 256;
/// Results that wait for the control loop at most.
const RESULTS_MAX: usize = 1024;

/// What a check found.
#[derive(Debug)]
pub struct Found {
    pub key: BackendKey,
    pub result: Result<(), String>,
}

/// The tasks that check. They end with it.
#[derive(Debug)]
pub struct Prober {
    wanted: Vec<(BackendKey, HealthSpec)>,
    tasks: Vec<JoinHandle<()>>,
    seats: Arc<Semaphore>,
    to: mpsc::Sender<Found>,
    results: mpsc::Receiver<Found>,
}

impl Prober {
    pub fn new() -> Prober {
        let (to, results) = mpsc::channel(RESULTS_MAX);
        let seats = Arc::new(Semaphore::new(AT_ONCE_MAX));
        Prober { wanted: Vec::new(), tasks: Vec::new(), seats, to, results }
    }

    /// Checks what this configuration says from now on. Needs a tokio runtime.
    pub fn set_config(&mut self, config: &Config) {
        let spec = |pool: u16| config.health.get(usize::from(pool))?.check.clone();
        let wanted: Vec<_> = checked(config)
            .filter_map(|(pool, backend)| Some((key(pool, backend), spec(pool.id.0)?)))
            .collect();
        if wanted == self.wanted {
            return;
        }
        self.end();
        for (key, spec) in &wanted {
            let seats = Arc::clone(&self.seats);
            let check = repeat(key.clone(), spec.clone(), seats, self.to.clone());
            self.tasks.push(tokio::spawn(check));
        }
        self.wanted = wanted;
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

async fn repeat(key: BackendKey, spec: HealthSpec, seats: Arc<Semaphore>, to: mpsc::Sender<Found>) {
    let end = SocketAddr::new(key.1.to_ip(), spec.port.unwrap_or(key.2));
    let probe = Probe::new(&spec.check);
    let mut rng = Rng::new(Seed::random());
    // Not all at the same moment, but soon: a dead backend is in use until then.
    let mut due = Instant::now() + part(spec.interval.min(Duration::from_secs(1)), &mut rng) / 4;
    loop {
        sleep_until(due).await;
        due = Instant::now() + jittered(&spec, &mut rng);
        let Ok(_seat) = seats.acquire().await else { return };
        let result = match timeout(spec.timeout, probe.run(end)).await {
            Ok(result) => result,
            Err(_) => Err(format!("no answer within {:?}", spec.timeout)),
        };
        if to.send(Found { key: key.clone(), result }).await.is_err() {
            return;
        }
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
