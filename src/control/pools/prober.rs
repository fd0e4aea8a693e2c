//! Checks all backends, again and again: a task each, few of them at work at once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
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
    tasks: BTreeMap<BackendKey, Task>,
    /// The way through the workers; `None`: they do not run yet.
    door: Option<Door>,
    seats: Seats,
    to: mpsc::Sender<Found>,
    results: mpsc::Receiver<Found>,
}

/// A backend's checks; they end with it.
#[derive(Debug)]
struct Task {
    spec: HealthSpec,
    target: Target,
    /// `None`: they wait for the door.
    running: Option<JoinHandle<()>>,
}

impl Drop for Task {
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            running.abort();
        }
    }
}

impl Prober {
    pub fn new() -> Prober {
        let (to, results) = mpsc::channel(RESULTS_MAX);
        Prober { tasks: BTreeMap::new(), door: None, seats: Seats::default(), to, results }
    }

    /// Checks what this configuration says from now on; what it says as before goes on. Needs a
    /// tokio runtime.
    pub fn set_config(&mut self, config: &Config) {
        let spec = |pool: u16| config.health.get(usize::from(pool))?.check.clone();
        let wanted = checked(config).filter_map(|(pool, backend)| {
            let spec = spec(pool.id.0)?;
            let target = Target::of(config, pool, backend, &spec);
            Some((key(pool, backend), spec, target))
        });
        let wanted: Vec<_> = wanted.collect();
        self.seats.share_out(wanted.iter().map(|(key, ..)| key.0.as_str()));
        let mut before = std::mem::take(&mut self.tasks);
        for (key, spec, target) in wanted {
            let is_same = |task: &Task| {
                let is_alive = task.running.as_ref().is_none_or(|r| !r.is_finished());
                task.spec == spec && task.target == target && is_alive
            };
            let task = before.remove(&key).filter(is_same);
            let task = task.unwrap_or_else(|| self.task(&key, spec, target));
            self.tasks.insert(key, task);
        }
    }

    /// From now on checks that go by the workers do.
    pub fn set_door(&mut self, door: Door) {
        self.door = Some(door);
        for (key, task) in std::mem::take(&mut self.tasks) {
            let task = match task.target.way {
                Some(_) => self.task(&key, task.spec.clone(), task.target),
                None => task,
            };
            self.tasks.insert(key, task);
        }
    }

    fn task(&self, key: &BackendKey, spec: HealthSpec, target: Target) -> Task {
        let can = target.way.is_none() || self.door.is_some();
        let running = can.then(|| {
            let (key, spec, door) = (key.clone(), spec.clone(), self.door.clone());
            let (seats, to) = (self.seats.of(&key.0), self.to.clone());
            tokio::spawn(Asking { key, spec, target, door }.repeat(seats, to))
        });
        Task { spec, target, running }
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

    /// Checks that have ended by a bug: they go on with the next change of the configuration.
    pub fn dead(&self) -> usize {
        let running = self.tasks.values().filter_map(|task| task.running.as_ref());
        running.filter(|task| task.is_finished()).count()
    }
}

/// How many checks may be at work at once: [`AT_ONCE_MAX`] in all, and of each pool its part, so
/// that backends that hang hold up those of their own pool only.
#[derive(Debug)]
struct Seats {
    all: Arc<Semaphore>,
    pools: BTreeMap<String, Arc<PoolSeats>>,
}

/// What a pool has of them.
#[derive(Debug)]
struct PoolSeats {
    all: Arc<Semaphore>,
    own: Semaphore,
    part: Mutex<Part>,
}

#[derive(Debug, Default)]
struct Part {
    seats: usize,
    /// Those of them that are taken by more than the part allows: it was larger before.
    owed: usize,
}

impl Default for Seats {
    fn default() -> Seats {
        Seats { all: Arc::new(Semaphore::new(AT_ONCE_MAX)), pools: BTreeMap::new() }
    }
}

impl Seats {
    /// Takes the pool of each backend.
    fn share_out<'a>(&mut self, backends: impl Iterator<Item = &'a str>) {
        let mut pools: BTreeMap<&str, usize> = BTreeMap::new();
        backends.for_each(|pool| *pools.entry(pool).or_default() += 1);
        let counts: Vec<usize> = pools.values().copied().collect();
        self.pools.retain(|pool, _| pools.contains_key(pool.as_str()));
        for (pool, seats) in pools.into_keys().zip(parts(&counts)) {
            let all = &self.all;
            let of = self.pools.entry(pool.to_string());
            of.or_insert_with(|| Arc::new(PoolSeats::none_of(all))).set(seats);
        }
    }

    fn of(&self, pool: &str) -> Arc<PoolSeats> {
        let alone = || {
            let alone = PoolSeats::none_of(&self.all);
            alone.set(1);
            Arc::new(alone)
        };
        self.pools.get(pool).cloned().unwrap_or_else(alone)
    }
}

/// The seats of pools of so many backends, no more in all than there are, unless there are more
/// pools. Nobody waits where there is one for each backend. Otherwise half of them are shared out
/// equally, so that a hanging backend of a small pool does not hold up the others of it, and what
/// is left by the number of backends, so that those of a large one are checked about as often.
fn parts(backends: &[usize]) -> Vec<usize> {
    let level = |level: usize| backends.iter().map(move |count| level.min(*count));
    let fits = |at: &usize| level(*at).sum::<usize>() <= AT_ONCE_MAX / 2;
    let at = (1..=AT_ONCE_MAX).take_while(fits).last().unwrap_or(1);
    let unmet = backends.iter().sum::<usize>() - level(at).sum::<usize>();
    let left = AT_ONCE_MAX.saturating_sub(level(at).sum()).min(unmet);
    let more = |(count, has): (&usize, usize)| has + left * (count - has) / unmet.max(1);
    backends.iter().zip(level(at)).map(more).collect()
}

impl PoolSeats {
    fn none_of(all: &Arc<Semaphore>) -> PoolSeats {
        PoolSeats { all: Arc::clone(all), own: Semaphore::new(0), part: Mutex::default() }
    }

    /// Has it so many from now on; those that are taken count.
    fn set(&self, seats: usize) {
        let mut part = self.part();
        let fewer = part.seats.saturating_sub(seats);
        part.owed += fewer - self.own.forget_permits(fewer);
        let more = seats.saturating_sub(part.seats);
        let paid = more.min(part.owed);
        part.owed -= paid;
        self.own.add_permits(more - paid);
        part.seats = seats;
    }

    /// Waits for one of the pool's seats, and for one of all. `None`: there are none any more.
    async fn take(self: &Arc<PoolSeats>) -> Option<(Seat, OwnedSemaphorePermit)> {
        self.own.acquire().await.ok()?.forget();
        let seat = Seat(Arc::clone(self));
        Some((seat, Arc::clone(&self.all).acquire_owned().await.ok()?))
    }

    fn part(&self) -> MutexGuard<'_, Part> {
        self.part.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of a pool's seats that is taken.
#[derive(Debug)]
struct Seat(Arc<PoolSeats>);

impl Drop for Seat {
    fn drop(&mut self) {
        let mut part = self.0.part();
        match part.owed {
            0 => self.0.own.add_permits(1),
            owed => part.owed = owed - 1,
        }
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
    async fn repeat(self, seats: Arc<PoolSeats>, to: mpsc::Sender<Found>) {
        let probe = Probe::new(&self.spec.check);
        let mut rng = Rng::new(Seed::random());
        let mut due = Instant::now() + first(&self.spec, &mut rng);
        loop {
            sleep_until(due).await;
            due = Instant::now() + jittered(&self.spec, &mut rng);
            let Some(_seats) = seats.take().await else { return };
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

/// When a backend is checked first. Not all at the same moment, but soon: a dead one is in use
/// until then.
fn first(spec: &HealthSpec, rng: &mut Rng) -> Duration {
    part(spec.interval.min(Duration::from_secs(1)), rng) / 4
}

/// From one check to the next.
fn jittered(spec: &HealthSpec, rng: &mut Rng) -> Duration {
    let most = spec.interval * u32::from(spec.jitter_percent) / 100;
    spec.interval - most + part(most * 2, rng)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(jitter_percent: u8) -> HealthSpec {
        let text = format!(
            "pipeline = \"l4-balancer\"\n[port.p]\ninterface = \"p\"\n[nat]\naddresses = \
             [\"192.0.2.9\"]\n[service.s]\nvip = \"203.0.113.1\"\nport = 80\npool = \"a\"\n\
             [[pool.a.backend]]\naddress = \"10.0.0.1\"\n[pool.a.health]\ntype = \"tcp\"\n\
             interval = \"1s\"\njitter_percent = {jitter_percent}\n"
        );
        let config = crate::config::load_text(std::path::Path::new("t.toml"), &text);
        let config = config.unwrap_or_else(|faults| panic!("{faults}"));
        config.health[0].check.clone().expect("given")
    }

    /// When many backends are checked for the first time, and for the twentieth.
    fn checks(jitter_percent: u8) -> [Vec<Duration>; 2] {
        let spec = spec(jitter_percent);
        let (mut firsts, mut lasts) = (Vec::new(), Vec::new());
        for seed in 0..200 {
            let mut rng = Rng::new(Seed(seed));
            let begun = first(&spec, &mut rng);
            let mut at = begun;
            for _ in 1..20 {
                let next = jittered(&spec, &mut rng);
                let most = spec.interval * u32::from(jitter_percent) / 100;
                assert!((spec.interval - most..=spec.interval + most).contains(&next), "{next:?}");
                at += next;
            }
            firsts.push(begun);
            lasts.push(at);
        }
        [firsts, lasts]
    }

    /// How many of them come within a fortieth of a second at most, and over what time.
    fn crowd(of: &[Duration]) -> (usize, Duration) {
        let within = |from: &Duration| {
            let until = *from + Duration::from_millis(25);
            of.iter().filter(|at| (*from..until).contains(*at)).count()
        };
        let (first, last) = (of.iter().min(), of.iter().max());
        let over = last.zip(first).map(|(last, first)| *last - *first);
        (of.iter().map(within).max().unwrap_or(0), over.unwrap_or_default())
    }

    #[test]
    fn checks_of_many_backends_do_not_come_together() {
        let [firsts, lasts] = checks(10);
        let (most, over) = crowd(&firsts);
        assert!(most < 50, "{most} of 200 at once at first");
        assert!(over < Duration::from_millis(250), "{over:?} until all are known");
        let (most, over) = crowd(&lasts);
        assert!(most < 25 && over > Duration::from_secs(1), "{most} of 200 at once, {over:?}");
        let [_, lasts] = checks(0);
        let (most, over) = crowd(&lasts);
        assert!(most < 50 && over < Duration::from_millis(250), "{most}, {over:?}: as they began");
    }

    /// Where no packet goes anywhere.
    fn in_runtime<F: Future<Output = ()> + Send + 'static>(body: F) {
        let body = move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(body);
        };
        std::thread::spawn(body).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    }

    /// Pools by their names, each with one backend whose checks take no way through workers.
    fn pools(of: &[(&str, &str)]) -> Config {
        let service = |(name, _): &(&str, &str)| {
            format!(
                "[service.{name}]\nvip = \"203.0.113.1\"\nport = {}\npool = \"{name}\"\n\
                 mode = \"dnat\"\n",
                name.bytes().map(u32::from).sum::<u32>()
            )
        };
        let pool = |(name, more): &(&str, &str)| {
            format!(
                "[[pool.{name}.backend]]\naddress = \"192.0.2.1\"\n[pool.{name}.health]\n\
                 type = \"tcp\"\n{more}"
            )
        };
        let services: String = of.iter().map(service).collect();
        let pools: String = of.iter().map(pool).collect();
        let head = "pipeline = \"l4-balancer\"\n[port.p]\ninterface = \"p\"\n";
        let text = format!("{head}{services}{pools}");
        let config = crate::config::load_text(std::path::Path::new("t.toml"), &text);
        config.unwrap_or_else(|faults| panic!("{faults}"))
    }

    #[test]
    fn checks_that_a_reload_leaves_as_they_are_go_on() {
        in_runtime(async {
            let mut prober = Prober::new();
            let ids = |prober: &Prober| {
                let of = |(key, task): (&BackendKey, &Task)| {
                    (key.0.clone(), task.running.as_ref().expect("no way").id())
                };
                prober.tasks.iter().map(of).collect::<BTreeMap<_, _>>()
            };
            prober.set_config(&pools(&[("a", ""), ("b", "")]));
            let before = ids(&prober);
            prober.set_config(&pools(&[("a", ""), ("b", "rise = 9\n"), ("c", "")]));
            let after = ids(&prober);
            assert_eq!(before["a"], after["a"], "another pool's checks have changed");
            assert!(before["b"] != after["b"] && after.len() == 3);
            prober.set_config(&pools(&[("c", "")]));
            assert_eq!(ids(&prober), [("c".to_string(), after["c"])].into());
        });
    }

    #[test]
    fn each_pool_has_seats_for_its_backends_or_its_part() {
        assert!(parts(&[]).is_empty());
        assert_eq!(parts(&[1, 3, 252]), [1, 3, 252], "one for each");
        assert_eq!(parts(&[200, 9]), [200, 9], "and no more");
        let beside = |large: usize, many: usize, small: usize| {
            let parts = parts(&[vec![large], vec![small; many]].concat());
            assert!(parts.iter().sum::<usize>() <= AT_ONCE_MAX.max(many + 1), "{parts:?}");
            (parts[0], parts[1])
        };
        assert_eq!(beside(500, 63, 1), (193, 1));
        assert_eq!(beside(500, 63, 4), (104, 2));
        assert_eq!(beside(500, 1, 500), (128, 128));
        assert_eq!(beside(500, 1, 5), (251, 5));
        assert_eq!(beside(500, 300, 4), (1, 1), "there are more pools");
    }

    #[test]
    fn backends_that_hang_hold_up_their_own_pool_only() {
        in_runtime(async {
            let mut seats = Seats::default();
            let of = |big: usize| [vec!["big"; big], vec!["small"; 9]].concat().into_iter();
            seats.share_out(of(500));
            let (big, small) = (seats.of("big"), seats.of("small"));
            let mut held = Vec::new();
            let soon = Duration::from_millis(10);
            while let Ok(Some(seat)) = timeout(soon, big.take()).await {
                held.push(seat);
            }
            assert_eq!(held.len(), AT_ONCE_MAX - 9, "and the rest of them waits");
            assert!(timeout(soon, small.take()).await.is_ok_and(|seat| seat.is_some()));
            // Those that are taken count after a reload, too.
            seats.share_out(of(200));
            held.truncate(200);
            assert!(timeout(soon, big.take()).await.is_err(), "200 of 200 hang");
            held.truncate(199);
            assert!(timeout(soon, big.take()).await.is_ok_and(|seat| seat.is_some()));
            seats.share_out(of(210));
            while let Ok(Some(seat)) = timeout(soon, big.take()).await {
                held.push(seat);
            }
            assert_eq!(held.len(), 210);
        });
    }

    #[test]
    fn a_check_that_ends_by_a_bug_is_counted_and_begun_anew() {
        in_runtime(async {
            let mut prober = Prober::new();
            let config = pools(&[("a", ""), ("b", "")]);
            prober.set_config(&config);
            let task = prober.tasks.values_mut().next().expect("two");
            task.running = Some(tokio::spawn(async { panic!("a bug") }));
            let counted = async {
                while prober.dead() == 0 {
                    tokio::task::yield_now().await;
                }
            };
            timeout(Duration::from_secs(20), counted).await.expect("it is over");
            assert_eq!(prober.dead(), 1);
            prober.set_config(&config);
            assert_eq!(prober.dead(), 0);
        });
    }
}
