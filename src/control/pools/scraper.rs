//! Reads the metrics of backends' engines, again and again: a task each, few of them at work at
//! once.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Duration, Instant, sleep_until, timeout};

use super::engines::{Engine, read};
use super::probe::Page;
use super::{BackendKey, key};
use crate::base::Seed;
use crate::base::hash::Rng;
use crate::config::Config;
use crate::config::engines::MetricsSpec;
use crate::forward::load::Reading;

/// Readings at work at once: each holds a descriptor and a page.
const AT_ONCE_MAX: usize = 64;
/// Readings that wait for the control loop at most.
const RESULTS_MAX: usize = 1024;

/// What an engine told.
#[derive(Debug)]
pub struct Scraped {
    pub key: BackendKey,
    pub result: Result<(Engine, Reading), String>,
}

/// The tasks that read. They end with it.
#[derive(Debug)]
pub struct Scraper {
    wanted: Vec<(BackendKey, MetricsSpec)>,
    tasks: Vec<JoinHandle<()>>,
    seats: Arc<Semaphore>,
    to: mpsc::Sender<Scraped>,
    results: mpsc::Receiver<Scraped>,
}

impl Scraper {
    pub fn new() -> Scraper {
        let (to, results) = mpsc::channel(RESULTS_MAX);
        let seats = Arc::new(Semaphore::new(AT_ONCE_MAX));
        Scraper { wanted: Vec::new(), tasks: Vec::new(), seats, to, results }
    }

    /// Reads what this configuration says from now on. Needs a tokio runtime.
    pub fn set_config(&mut self, config: &Config) {
        let pools = config.forward.pools.iter().zip(&config.metrics);
        let wanted = pools.filter_map(|(pool, spec)| Some((pool, spec.as_ref()?)));
        let wanted: Vec<_> = wanted
            .flat_map(|(pool, spec)| {
                pool.backends.iter().map(|b| (key(pool, b), spec.clone())).collect::<Vec<_>>()
            })
            .collect();
        if wanted == self.wanted {
            return;
        }
        self.end();
        for (key, spec) in &wanted {
            let (seats, to) = (Arc::clone(&self.seats), self.to.clone());
            self.tasks.push(tokio::spawn(repeat(key.clone(), spec.clone(), seats, to)));
        }
        self.wanted = wanted;
    }

    /// The next reading. Never ends.
    pub async fn scraped(&mut self) -> Scraped {
        match self.results.recv().await {
            Some(scraped) => scraped,
            // A sender is kept here.
            None => std::future::pending().await,
        }
    }

    /// Readers that have ended by a bug: they go on with the next change of what is to be done.
    pub fn dead(&self) -> usize {
        self.tasks.iter().filter(|task| task.is_finished()).count()
    }

    fn end(&mut self) {
        self.tasks.drain(..).for_each(|task| task.abort());
    }
}

impl Drop for Scraper {
    fn drop(&mut self) {
        self.end();
    }
}

async fn repeat(
    key: BackendKey,
    spec: MetricsSpec,
    seats: Arc<Semaphore>,
    to: mpsc::Sender<Scraped>,
) {
    let end = SocketAddr::new(key.1.to_ip(), spec.port.unwrap_or(key.2));
    let page = Page::new(spec.tls, &spec.path);
    // Spread over the interval: their pages are not all read at the same moment.
    let part = Rng::new(Seed::random()).below(1_000);
    let mut due = Instant::now() + spec.interval.min(Duration::from_secs(1)) * part / 1_000;
    loop {
        sleep_until(due).await;
        due = (due + spec.interval).max(Instant::now());
        let Ok(_seat) = seats.acquire().await else { return };
        let result = match timeout(spec.timeout, page.fetch(end)).await {
            Ok(Ok(page)) => read(&page),
            Ok(Err(words)) => Err(words),
            Err(_) => Err(format!("no metrics within {:?}", spec.timeout)),
        };
        if to.send(Scraped { key: key.clone(), result }).await.is_err() {
            return;
        }
    }
}
