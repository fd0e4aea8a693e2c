//! A steady stream of numbered datagrams to an echo server: when did answers stop, how many are
//! lost?

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tidegate::lab::{Namespace, wait_for};

/// So long after the one before, an answer may come yet.
const LATE: Duration = Duration::from_secs(1);
/// Between datagrams.
pub const INTERVAL: Duration = Duration::from_millis(2);
/// For what is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// Answers datagrams, of any size, in a namespace until dropped.
pub struct Echo {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Echo {
    pub fn start(ns: &Namespace, addresses: &[SocketAddr]) -> Echo {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = addresses
            .iter()
            .map(|&address| {
                let socket =
                    ns.enter(move || UdpSocket::bind(address)).expect("thread").expect("bind");
                socket.set_read_timeout(Some(Duration::from_millis(50))).expect("timeout");
                let stop = Arc::clone(&stop);
                std::thread::spawn(move || {
                    let mut buf = vec![0; 1 << 16];
                    while !stop.load(Ordering::Relaxed) {
                        if let Ok((n, from)) = socket.recv_from(&mut buf) {
                            let _ = socket.send_to(&buf[..n], from);
                        }
                    }
                })
            })
            .collect();
        Echo { stop, threads }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for t in self.threads.drain(..) {
            let _ = t.join();
        }
    }
}

/// One datagram's fate: when it was sent, since the start, and whether its answer came.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    pub at: Duration,
    pub answered: bool,
}

/// Sends until stopped.
pub struct Probe {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Sent>>,
    pub start: Instant,
}

impl Probe {
    pub fn start(ns: &Namespace, target: SocketAddr) -> Probe {
        let stop = Arc::new(AtomicBool::new(false));
        let start = Instant::now();
        let flag = Arc::clone(&stop);
        let thread = ns.thread("probe", move || run(target, start, &flag)).expect("thread");
        Probe { stop, thread, start }
    }

    /// Time since the probe started: to compare with [`Sent::at`].
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    pub fn finish(self) -> Vec<Sent> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("probe")
    }
}

fn run(target: SocketAddr, start: Instant, stop: &AtomicBool) -> Vec<Sent> {
    let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).expect("bind");
    socket.connect(target).expect("connect");
    socket.set_nonblocking(true).expect("nonblocking");
    let mut sent: Vec<Sent> = Vec::new();
    let collect = |sent: &mut Vec<Sent>| {
        let mut buf = [0; 8];
        let mut count = 0;
        while let Ok(8) = socket.recv(&mut buf) {
            count += 1;
            if let Some(s) = sent.get_mut(u64::from_be_bytes(buf) as usize) {
                s.answered = true;
            }
        }
        count
    };
    while !stop.load(Ordering::Relaxed) {
        let number = sent.len() as u64;
        // A refused datagram (no route yet) counts as lost.
        let _ = socket.send(&number.to_be_bytes());
        sent.push(Sent { at: start.elapsed(), answered: false });
        std::thread::sleep(INTERVAL);
        collect(&mut sent);
    }
    let mut last = Instant::now();
    while last.elapsed() < LATE && sent.iter().any(|s| !s.answered) {
        std::thread::sleep(INTERVAL);
        if collect(&mut sent) > 0 {
            last = Instant::now();
        }
    }
    sent
}

/// The longest time within `from..to` in which no datagram that was sent got an answer.
pub fn longest_silence(sent: &[Sent], from: Duration, to: Duration) -> Duration {
    let mut longest = Duration::ZERO;
    let mut last = from;
    for s in sent.iter().filter(|s| s.answered && s.at >= from && s.at <= to) {
        longest = longest.max(s.at - last);
        last = s.at;
    }
    longest.max(to.saturating_sub(last))
}

/// Datagrams sent within `from..to` that got no answer.
pub fn lost(sent: &[Sent], from: Duration, to: Duration) -> usize {
    sent.iter().filter(|s| !s.answered && s.at >= from && s.at <= to).count()
}

/// One datagram after the other, each once the one before is answered.
pub struct Lockstep {
    socket: UdpSocket,
    pub sent: u64,
    pub answered: u64,
}

impl Lockstep {
    pub fn to(client: &Namespace, target: SocketAddr) -> Lockstep {
        let connect = move || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(target)?;
            socket.set_read_timeout(Some(Duration::from_millis(500)))?;
            Ok::<_, std::io::Error>(socket)
        };
        let socket = client.enter(connect).expect("thread").expect("socket");
        Lockstep { socket, sent: 0, answered: 0 }
    }

    /// Whether it was answered in time.
    pub fn round(&mut self) -> bool {
        let number = self.sent.to_be_bytes();
        self.sent += 1;
        let mut buf = [0; 64];
        // A refusal of the one before may be told of now.
        let _ = self.socket.send(&number);
        while let Ok(n) = self.socket.recv(&mut buf) {
            if buf[..n] == number {
                self.answered += 1;
                return true;
            }
        }
        false
    }

    pub fn until(&mut self, what: &str, mut done: impl FnMut(&mut Lockstep) -> bool) {
        wait_for(PATIENCE, what, || done(self)).unwrap_or_else(|e| panic!("{e:?}"));
    }
}
