//! An interactive stream and what stands in its way: small datagrams at a steady pace, each with
//! the time it was sent, and a flood of large ones. Both ends are threads of this process, so that
//! one clock tells the delay of one way, and before all other programs, so that their own wait for
//! a core is not counted.

use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tidegate::lab::Namespace;

/// Of a datagram's payload.
pub const STREAM_BYTES: usize = 200;
pub const STREAM_INTERVAL: Duration = Duration::from_millis(20);
const FLOOD_BYTES: usize = 1_400;
/// How long the last datagrams may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// By datagram, the time it took; `None`: it never came.
pub type Delays = Vec<Option<Duration>>;

/// A stream under way, until it has sent all its datagrams.
pub struct Stream {
    sender: JoinHandle<()>,
    receiver: JoinHandle<Delays>,
}

impl Stream {
    pub fn start(from: &Namespace, to: &Namespace, target: SocketAddr, datagrams: usize) -> Stream {
        let epoch = Instant::now();
        let socket = to.enter(move || UdpSocket::bind(target)).expect("thread").expect("bind");
        socket.set_read_timeout(Some(PATIENCE)).expect("timeout");
        let receive = move || receive(&socket, epoch, datagrams);
        let receiver = std::thread::spawn(receive);
        let send = move || send(target, epoch, datagrams);
        Stream { sender: from.thread("stream", send).expect("thread"), receiver }
    }

    pub fn finish(self) -> Delays {
        self.sender.join().expect("sender");
        self.receiver.join().expect("receiver")
    }
}

fn send(target: SocketAddr, epoch: Instant, datagrams: usize) {
    let socket = connected(target);
    run_first();
    let begin = Instant::now();
    for n in 0..datagrams {
        let due = begin + STREAM_INTERVAL * n as u32;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let mut payload = [0; STREAM_BYTES];
        payload[..8].copy_from_slice(&(n as u64).to_be_bytes());
        payload[8..16].copy_from_slice(&(epoch.elapsed().as_nanos() as u64).to_be_bytes());
        let _ = socket.send(&payload);
    }
}

fn receive(socket: &UdpSocket, epoch: Instant, datagrams: usize) -> Delays {
    run_first();
    let mut delays = vec![None; datagrams];
    let mut payload = [0; STREAM_BYTES];
    let mut missing = datagrams;
    while missing > 0 {
        let Ok(STREAM_BYTES) = socket.recv(&mut payload) else { break };
        let now = epoch.elapsed();
        let word = |at: usize| u64::from_be_bytes(payload[at..at + 8].try_into().expect("eight"));
        if let Some(delay @ None) = delays.get_mut(word(0) as usize) {
            *delay = Some(now.saturating_sub(Duration::from_nanos(word(8))));
            missing -= 1;
        }
    }
    delays
}

/// Makes this thread run as soon as it can (sched(7), SCHED_FIFO): it is hardly ever busy. Where
/// that is not allowed, its wait for a core is counted, too.
fn run_first() {
    let thread = nix::unistd::gettid().to_string();
    let _ = Command::new("chrt").args(["-f", "-p", "10", &thread]).output();
}

/// The delay that `share` of the datagrams that came did not exceed; zero if none came.
pub fn quantile(delays: &Delays, share: f64) -> Duration {
    let mut came: Vec<Duration> = delays.iter().flatten().copied().collect();
    came.sort_unstable();
    let rank = (came.len() as f64 * share).ceil() as usize;
    came.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

/// Datagrams at a steady rate, received by nobody, until dropped.
pub struct Flood {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    pub fn start(from: &Namespace, target: SocketAddr, bits_per_second: u64) -> Flood {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let flood = move || {
            let socket = connected(target);
            let begin = Instant::now();
            let mut sent = 0u64;
            while !flag.load(Ordering::Relaxed) {
                let due = begin.elapsed().as_micros() as u64 * bits_per_second / 8_000_000;
                while sent < due {
                    // Nobody listens: the answer to one makes the next fail.
                    let _ = socket.send(&[0; FLOOD_BYTES]);
                    sent += FLOOD_BYTES as u64;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        Flood { stop, thread: Some(from.thread("flood", flood).expect("thread")) }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn connected(target: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("bind");
    socket.connect(target).expect("connect");
    socket
}
