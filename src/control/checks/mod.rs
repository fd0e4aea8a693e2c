//! Health checks on the way of real traffic.
//!
//! ```text
//! socket of a check ─► a namespace of its own ─► TUN ─► pump ─► worker: source, tunnel, next hop
//!                                                        ▲                     │
//!                                    answers, by port ───┴─ worker ◄─ XDP ◄─ backend
//! ```
//! So a check is a connection of the kernel's, whose packets leave as those of a client's would
//! behind the balancer, and whose answers come where a client's would go: from a backend that takes
//! its tunnel apart and has the VIP, or not at all.

mod local_ports;
mod ports;
mod pump;
mod space;
pub mod way;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::thread::JoinHandle;

use crossbeam::queue::ArrayQueue;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::time::{Duration, Instant};

use crate::base::Addr;
use crate::forward::checks::{CheckRing, CheckWay, OWN_PORTS, PortsOf};
use crate::forward::spec::{ForwardMode, ForwardSpec};
use crate::nic::tun::Tun;
use crate::nic::wake::{Sleeper, Waker};
use crate::packet::DropReason;
use crate::worker::WorkerLink;

pub use local_ports::warning as local_ports_warning;
use ports::{Ports, Seat};

/// Sockets that wait to be made at most: one for each check that may be at work.
const SOCKETS_MAX: usize = 256;
/// Ports tried for one check: a server without timestamps keeps them for a minute each.
const PORTS_TRIED_MAX: usize = 16;

/// Why packets of a check did not go out, once one did not.
pub type Told = Arc<OnceLock<DropReason>>;

/// The way through the workers. Dropped, its thread ends, and with that its namespace.
pub struct Passage {
    door: Door,
    thread: Option<JoinHandle<()>>,
}

/// Where checks go through, from any task.
#[derive(Clone)]
pub struct Door {
    shared: Arc<Shared>,
}

struct Shared {
    ring: Arc<CheckRing>,
    waker: Waker,
    sockets: ArrayQueue<SocketWanted>,
    /// By port, and whose it is: whom the check there asks. An entry stays until the port is used
    /// again, for the end of its connection.
    checks: Mutex<HashMap<(PortsOf, u16), Check>>,
    own_ports: Arc<Ports>,
    nat_ports: Mutex<Option<Arc<Ports>>>,
    /// Whether the thread runs that makes sockets.
    is_open: AtomicBool,
    ended: AtomicBool,
}

#[derive(Clone)]
struct Check {
    end: SocketAddr,
    way: CheckWay,
    told: Told,
}

/// A check's connection, once it is there.
pub struct Connected {
    pub stream: TcpStream,
    /// From its SYN to the answer.
    pub rtt: Duration,
    _seat: Seat,
}

/// A socket that is bound to a port of the namespace's.
struct SocketWanted {
    v4: bool,
    port: u16,
    made: oneshot::Sender<io::Result<TcpSocket>>,
}

impl Passage {
    /// Not open yet.
    ///
    /// # Errors
    /// No descriptor left.
    pub fn new() -> io::Result<Passage> {
        let sleeper = Sleeper::new()?;
        let (waker, wakes) = (sleeper.waker(), sleeper.waker());
        let shared = Shared {
            ring: Arc::new(CheckRing::new(move || wakes.wake())),
            waker,
            sockets: ArrayQueue::new(SOCKETS_MAX),
            checks: Mutex::default(),
            own_ports: Arc::new(Ports::new(OWN_PORTS)),
            nat_ports: Mutex::default(),
            is_open: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        };
        let door = Door { shared: Arc::new(shared) };
        Ok(Passage { door, thread: None })
    }

    /// Where workers give what comes back.
    pub fn ring(&self) -> Arc<CheckRing> {
        Arc::clone(&self.door.shared.ring)
    }

    pub fn door(&self) -> Door {
        self.door.clone()
    }

    /// Opens it, where it is not open yet.
    ///
    /// # Errors
    /// What the kernel refuses: see [`space::enter`]. It may allow it another time.
    pub fn open(&mut self, workers: impl Iterator<Item = WorkerLink>) -> io::Result<()> {
        self.open_in(workers, space::enter)
    }

    fn open_in(
        &mut self,
        workers: impl Iterator<Item = WorkerLink>,
        enter: impl FnOnce() -> io::Result<Tun> + Send + 'static,
    ) -> io::Result<()> {
        if self.thread.is_some() {
            return Ok(());
        }
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (shared, workers) = (Arc::clone(&self.door.shared), workers.collect());
        let run = move || match enter() {
            Ok(tun) => {
                shared.is_open.store(true, Ordering::SeqCst);
                drop(ready.send(Ok(())));
                pump::run(&shared, shared.waker.sleeper(), &tun, workers);
                shared.is_open.store(false, Ordering::SeqCst);
            }
            Err(error) => drop(ready.send(Err(error))),
        };
        let thread = std::thread::Builder::new().name("checks".into()).spawn(run)?;
        let opened = is_ready.recv().unwrap_or_else(|_| Err(io::Error::other("a panic")));
        match opened {
            Ok(()) => self.thread = Some(thread),
            Err(_) => drop(thread.join()),
        }
        opened
    }

    /// Says which ports of `[nat]` are for checks. Those of before stay where there is no `[nat]`:
    /// checks may be at work on them when it comes back.
    pub fn set_config(&self, spec: &ForwardSpec) {
        let range = spec.nat.as_ref().map(|nat| nat.check_range());
        let range = range.filter(|(first, last)| first <= last).map(|(first, last)| first..=last);
        let mut ports = locked(&self.door.shared.nat_ports);
        if let Some(range) = range
            && ports.as_ref().is_none_or(|ports| ports.range() != range)
        {
            *ports = Some(Arc::new(Ports::new(range)));
        }
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        self.door.shared.ended.store(true, Ordering::SeqCst);
        self.door.shared.waker.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Door {
    /// A connection to where the check is to ask, through the workers. The port is free for others
    /// when it is dropped. `told` hears it where packets can't go out.
    ///
    /// # Errors
    /// As with any connection; where the passage is not open, at once.
    pub async fn connect(
        &self,
        end: SocketAddr,
        way: CheckWay,
        told: &Told,
    ) -> io::Result<Connected> {
        let mut refused = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for _ in 0..PORTS_TRIED_MAX {
            let seat = self.ports(way.mode)?.seat().await;
            self.shared.begin(seat.port(), Check { end, way, told: Arc::clone(told) });
            let socket = self.socket(end.is_ipv4(), seat.port()).await?;
            let begun = Instant::now();
            match socket.connect(end).await {
                Ok(stream) => {
                    return Ok(Connected { stream, rtt: begun.elapsed(), _seat: seat });
                }
                Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => refused = error,
                Err(error) => return Err(error),
            }
        }
        Err(refused)
    }

    fn ports(&self, mode: ForwardMode) -> io::Result<Arc<Ports>> {
        if mode != ForwardMode::Nat {
            return Ok(Arc::clone(&self.shared.own_ports));
        }
        let ports = locked(&self.shared.nat_ports).clone();
        ports.ok_or_else(|| io::Error::other("the `ports` of `[nat]` are too few for checks"))
    }

    async fn socket(&self, v4: bool, port: u16) -> io::Result<TcpSocket> {
        if !self.shared.is_open.load(Ordering::SeqCst) {
            return Err(io::Error::other("the way through the workers is not open"));
        }
        let (made, socket) = oneshot::channel();
        let wanted = SocketWanted { v4, port, made };
        if self.shared.sockets.push(wanted).is_err() {
            return Err(io::Error::other("too many checks at once"));
        }
        self.shared.waker.wake();
        socket.await.unwrap_or_else(|_| Err(io::Error::other("checks have ended")))
    }
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Door").finish_non_exhaustive()
    }
}

impl Shared {
    fn begin(&self, port: u16, check: Check) {
        let of = check.way.ports();
        self.ring.ask(of, port, check.end());
        locked(&self.checks).insert((of, port), check);
    }

    /// The check that asks an end from a port.
    fn check(&self, port: u16, end: (Addr, u16)) -> Option<Check> {
        let checks = locked(&self.checks);
        let of = |of| checks.get(&(of, port)).filter(|check| check.end() == end);
        [PortsOf::Own, PortsOf::Nat].into_iter().find_map(of).cloned()
    }
}

impl Check {
    fn end(&self) -> (Addr, u16) {
        (self.end.ip().into(), self.end.port())
    }
}

fn inner(v4: bool) -> IpAddr {
    if v4 { space::INNER4.into() } else { space::INNER6.into() }
}

/// Nobody panics with one of these locks, and what they guard is whole at all times.
fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::spec::NatSpec;
    use std::pin::pin;
    use std::task::{Context, Poll};

    fn refuse(passage: &mut Passage, words: &'static str) -> String {
        let opened = passage.open_in(std::iter::empty(), move || Err(io::Error::other(words)));
        opened.expect_err("refused").to_string()
    }

    #[test]
    fn the_kernel_is_asked_anew_after_a_refusal() {
        let mut passage = Passage::new().expect("a descriptor");
        assert_eq!(refuse(&mut passage, "not now"), "not now");
        assert_eq!(refuse(&mut passage, "nor now"), "nor now");
    }

    /// The ranges may meet, and so may checks that ask from the same number.
    #[test]
    fn checks_from_ports_of_one_number_are_told_apart() {
        let passage = Passage::new().expect("a descriptor");
        let shared = &passage.door.shared;
        let backend: Addr = "10.0.0.1".parse().expect("literal");
        let begin = |mode, end: &str| {
            let end = end.parse().expect("literal");
            let check = Check { end, way: CheckWay { mode, backend }, told: Told::default() };
            shared.begin(64_007, check);
        };
        let mode = |addr: &str, port| {
            let end = (addr.parse().expect("literal"), port);
            shared.check(64_007, end).map(|check| check.way.mode)
        };
        begin(ForwardMode::Dsr, "203.0.113.1:443");
        begin(ForwardMode::Nat, "10.0.0.1:8080");
        assert_eq!(mode("203.0.113.1", 443), Some(ForwardMode::Dsr));
        assert_eq!(mode("10.0.0.1", 8080), Some(ForwardMode::Nat));
        assert_eq!(mode("10.0.0.1", 443), None);
        begin(ForwardMode::Ipip, "203.0.113.1:80");
        assert_eq!(mode("203.0.113.1", 443), None, "its port is another's now");
    }

    #[test]
    fn ports_in_use_are_known_when_nat_comes_back() {
        let passage = Passage::new().expect("a descriptor");
        let with = NatSpec { addresses: Vec::new(), port_first: 1, port_last: 80, check_ports: 9 };
        let spec = |nat| ForwardSpec { nat, ..ForwardSpec::default() };
        passage.set_config(&spec(Some(with.clone())));
        let ports = || passage.door.ports(ForwardMode::Nat).expect("ports");
        let before = ports();
        passage.set_config(&spec(None));
        passage.set_config(&spec(Some(with)));
        assert!(Arc::ptr_eq(&before, &ports()));
    }

    #[test]
    fn a_check_does_not_wait_for_a_way_that_is_not_open() {
        let mut passage = Passage::new().expect("a descriptor");
        refuse(&mut passage, "not now");
        let door = passage.door();
        let end: SocketAddr = "203.0.113.1:443".parse().expect("literal");
        let way = CheckWay { mode: ForwardMode::Dsr, backend: Addr::from(end.ip()) };
        let told = Told::default();
        let connect = pin!(door.connect(end, way, &told));
        match connect.poll(&mut Context::from_waker(std::task::Waker::noop())) {
            Poll::Ready(result) => assert!(result.is_err()),
            Poll::Pending => panic!("waits for nobody"),
        }
    }
}
