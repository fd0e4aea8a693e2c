//! What becomes of the copies that workers make: a thread says to other servers what shadowed
//! connections say, and writes frames into files.
//!
//! Workers hand over records and never wait ([`crate::observe::copies`]). Here is all the time in
//! the world: what is not taken soon enough is missed and counted, and the packets themselves know
//! nothing of it.

mod answers;
mod converse;
mod files;
mod pair;
mod pairs;
mod plan;
mod speech;
mod streams;
mod told;
mod view;
mod windows;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc;
use tokio::task::LocalSet;

use crate::config::Config;
use crate::control::ticks::every;
use crate::observe::copies::{CopyAbout, CopyRing, RECORDS_MAX};
use crate::packet::FilesId;
use crate::worker::Clock;
use converse::converse;
use files::{Files, FilesTold};
use pair::SharedTold;
use pairs::Pairs;
use plan::{FilesPlan, Plan, ShadowPlan};

/// How often copies are taken: in this time a worker has room for [`RECORDS_MAX`].
const TICK: Duration = Duration::from_millis(1);
/// How often files are flushed, and what is over is forgotten.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// The control plane's end: rings of the workers, the thread, and what is told of it.
pub struct Copies {
    clock: Clock,
    rings: Vec<Arc<CopyRing>>,
    /// By service; kept over reloads.
    told: BTreeMap<String, SharedTold>,
    files: BTreeMap<FilesId, Arc<FilesTold>>,
    thread: Option<(mpsc::UnboundedSender<Plan>, JoinHandle<()>)>,
}

impl Copies {
    pub fn new(clock: Clock) -> Copies {
        Copies {
            clock,
            rings: Vec::new(),
            told: BTreeMap::new(),
            files: BTreeMap::new(),
            thread: None,
        }
    }

    /// The ring of one more worker, before [`Copies::set_config`] is first called.
    pub fn ring(&mut self, frame_bytes: usize) -> Arc<CopyRing> {
        let ring = Arc::new(CopyRing::new(RECORDS_MAX, frame_bytes));
        self.rings.push(Arc::clone(&ring));
        ring
    }

    /// Goes on by another configuration. The thread begins with the first that has work for it.
    ///
    /// # Errors
    /// It can't be started.
    pub fn set_config(&mut self, config: &Config) -> io::Result<()> {
        let plan = self.plan(config);
        let plan = match &self.thread {
            None if plan.is_empty() => return Ok(()),
            None => plan,
            Some((plans, _)) => match plans.send(plan) {
                Ok(()) => return Ok(()),
                Err(unsent) => unsent.0,
            },
        };
        let (plans, given) = mpsc::unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (rings, clock) = (self.rings.clone(), self.clock.clone());
        let body = move || {
            let taker = Taker { rings, clock, pairs: None, files: BTreeMap::new() };
            LocalSet::new().block_on(&runtime, taker.serve(given));
        };
        let thread = std::thread::Builder::new().name("copies".into()).spawn(body)?;
        let _ = plans.send(plan);
        self.thread = Some((plans, thread));
        Ok(())
    }

    /// Whether the thread has ended by a bug: nothing is copied before the next reload.
    pub fn is_dead(&self) -> bool {
        self.thread.as_ref().is_some_and(|(_, thread)| thread.is_finished())
    }

    fn plan(&mut self, config: &Config) -> Plan {
        let mut plan = Plan::default();
        for service in &config.forward.services {
            let Some(shadow) = service.shadow.as_ref().filter(|shadow| shadow.share > 0) else {
                continue;
            };
            let told = Arc::clone(self.told.entry(service.name.clone()).or_default());
            plan.shadows.push(ShadowPlan::new(config, service, shadow, told));
        }
        for spec in &config.files {
            let told = Arc::clone(self.files.entry(spec.id).or_default());
            plan.files.push(FilesPlan { spec: spec.clone(), told });
        }
        plan
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        if let Some((plans, thread)) = self.thread.take() {
            drop(plans);
            let _ = thread.join();
        }
    }
}

/// The thread's own.
struct Taker {
    rings: Vec<Arc<CopyRing>>,
    clock: Clock,
    /// Once there is a shadow.
    pairs: Option<Box<Pairs>>,
    files: BTreeMap<FilesId, Files>,
}

impl Taker {
    /// Takes copies until nobody gives plans any more.
    async fn serve(mut self, mut plans: mpsc::UnboundedReceiver<Plan>) {
        let (mut tick, mut housekeeping) = (every(TICK), every(HOUSEKEEPING));
        loop {
            tokio::select! {
                plan = plans.recv() => match plan {
                    Some(plan) => self.set_plan(plan),
                    None => return self.end(),
                },
                _ = tick.tick() => self.take_all(),
                _ = housekeeping.tick() => self.keep_house(),
            }
        }
    }

    fn set_plan(&mut self, plan: Plan) {
        if !plan.shadows.is_empty() || self.pairs.is_some() {
            let pairs = self.pairs.get_or_insert_with(|| Box::new(Pairs::new()));
            pairs.set_plans(plan.shadows);
        }
        let now = self.clock.now();
        let mut before = std::mem::take(&mut self.files);
        for plan in plan.files {
            let same = before.remove(&plan.spec.id).filter(|files| files.plan.spec == plan.spec);
            self.files.insert(plan.spec.id, same.unwrap_or_else(|| Files::new(plan)));
        }
        before.values_mut().for_each(|files| files.flush(now));
    }

    /// Takes what workers have made, no more than a ring holds of each.
    fn take_all(&mut self) {
        let now = self.clock.now();
        let unix_now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let unix_now = unix_now.as_nanos() as u64;
        for ring in &self.rings {
            for record in std::iter::from_fn(|| ring.take()).take(RECORDS_MAX) {
                match &record.about {
                    CopyAbout::Frame(id) => {
                        if let Some(files) = self.files.get_mut(id) {
                            let unix = unix_now.saturating_sub(now.since(record.at));
                            files.write(now, unix, record.length, record.bytes());
                        }
                    }
                    CopyAbout::Segment(segment) => {
                        let pairs = self.pairs.as_mut();
                        if let Some((talk, to)) = pairs.and_then(|p| p.take(segment, &record)) {
                            tokio::task::spawn_local(converse(talk, to, self.clock.clone()));
                        }
                    }
                }
                ring.give_back(record);
            }
        }
    }

    fn keep_house(&mut self) {
        let now = self.clock.now();
        self.files.values_mut().for_each(|files| files.flush(now));
        if let Some(pairs) = &mut self.pairs {
            pairs.sweep(now);
        }
    }

    fn end(mut self) {
        self.take_all();
        self.keep_house();
    }
}
