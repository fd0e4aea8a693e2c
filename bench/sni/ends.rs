//! Clients and servers: what they say has the form of TLS, so that routers read it, but nothing is
//! encrypted, so that the ends cost little. They are Linux's own TCP.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::bed::{FAR_CORE, NAMES, PORT, SERVER_PORT, VIP, server};
use crate::speech::hello;

/// Bytes of a usual ClientHello.
const HELLO_BYTES: usize = 517;
/// ServerHello, a certificate, and what belongs to them.
pub const FLIGHT_BYTES: usize = 2_800;
/// The client's last message of the handshake and its request.
pub const REQUEST_BYTES: usize = 300;
pub const ANSWER_BYTES: usize = 500;
const CHUNK_BYTES: usize = 1 << 16;
/// No exchange takes this long.
const LIMIT: Duration = Duration::from_secs(10);

/// What a client wants: the first byte of its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// One answer.
    Answer = 1,
    /// Answers to more requests.
    Answers = 2,
    /// Bytes without end.
    Download = 3,
}

/// What clients saw.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Connections closed after their answer, or exchanges on one.
    pub done: u64,
    pub bytes: u64,
    pub elapsed: Duration,
    /// From a connection's first segment to its answer, or from a request to its answer.
    pub took: Vec<Duration>,
}

/// Runs on the far ends' core until it has something to tell.
///
/// # Errors
/// The core not to be had, or the future's.
pub fn run<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let mut core = CpuSet::new();
    core.set(FAR_CORE)?;
    sched_setaffinity(Pid::from_raw(0), &core)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(future)
}

/// Serves on all of the servers' addresses for as long as the program runs.
///
/// # Errors
/// An address that can't be listened on.
pub async fn serve() -> anyhow::Result<()> {
    let mut listeners = Vec::new();
    for last in NAMES.iter().flat_map(|(_, servers)| servers) {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(server(*last))?;
        listeners.push((*last, socket.listen(65_535).context("listening")?));
    }
    let all = listeners.into_iter().map(|(last, listener)| accept(last, listener));
    let mut set = tokio::task::JoinSet::new();
    all.for_each(|one| drop(set.spawn(one)));
    set.join_all().await;
    Ok(())
}

async fn accept(last: u8, listener: TcpListener) {
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                // A client that goes away says so in its own count.
                let _ = answer(last, stream).await;
            });
        }
    }
}

async fn answer(last: u8, mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut bytes = [0; HELLO_BYTES];
    stream.read_exact(&mut bytes).await?;
    let mut flight = [0; FLIGHT_BYTES];
    flight[0] = last;
    stream.write_all(&flight).await?;
    loop {
        let mut request = [0; REQUEST_BYTES];
        stream.read_exact(&mut request).await?;
        if request[0] == Wish::Download as u8 {
            let chunk = vec![0; CHUNK_BYTES];
            loop {
                stream.write_all(&chunk).await?;
            }
        }
        stream.write_all(&[0; ANSWER_BYTES]).await?;
    }
}

/// Where clients connect to, for a name: the VIP, or its first server.
pub fn target(name: usize, routed: bool) -> SocketAddr {
    match routed {
        true => SocketAddr::new(VIP.into(), PORT),
        false => SocketAddr::new(server(NAMES[name].1[0]).ip(), SERVER_PORT),
    }
}

/// A connection with the handshake behind it, at a server of the right name.
async fn connect(name: usize, routed: bool, said: &[u8]) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(target(name, routed)).await?;
    stream.set_nodelay(true)?;
    stream.write_all(said).await?;
    let mut flight = [0; FLIGHT_BYTES];
    stream.read_exact(&mut flight).await?;
    ensure!(NAMES[name].1.contains(&flight[0]), "{} led to server {}", NAMES[name].0, flight[0]);
    Ok(stream)
}

async fn ask(stream: &mut TcpStream, wish: Wish) -> io::Result<()> {
    let mut request = [0; REQUEST_BYTES];
    request[0] = wish as u8;
    stream.write_all(&request).await
}

async fn exchange(stream: &mut TcpStream, wish: Wish) -> io::Result<()> {
    ask(stream, wish).await?;
    stream.read_exact(&mut [0; ANSWER_BYTES]).await?;
    Ok(())
}

/// The ClientHellos by name.
pub fn hellos() -> [Vec<u8>; NAMES.len()] {
    NAMES.map(|(name, _)| {
        let shortest = hello(name, 0).len();
        hello(name, HELLO_BYTES - shortest)
    })
}

/// One connection after another, each for one answer.
///
/// # Errors
/// Any connection that fails.
pub async fn opening(routed: bool, window: Duration) -> anyhow::Result<Seen> {
    let (start, hellos, mut seen) = (Instant::now(), hellos(), Seen::default());
    while start.elapsed() < window {
        let (name, begin) = (seen.took.len() % NAMES.len(), Instant::now());
        let one = async {
            let mut stream = connect(name, routed, &hellos[name]).await?;
            exchange(&mut stream, Wish::Answer).await?;
            anyhow::Ok(())
        };
        timeout(LIMIT, one).await.context("a connection hangs")??;
        seen.took.push(begin.elapsed());
    }
    (seen.done, seen.elapsed) = (seen.took.len() as u64, start.elapsed());
    Ok(seen)
}

/// One request after another on one connection.
///
/// # Errors
/// The connection's.
pub async fn exchanges(routed: bool, window: Duration) -> anyhow::Result<Seen> {
    let mut stream = connect(0, routed, &hellos()[0]).await?;
    let (start, mut seen) = (Instant::now(), Seen::default());
    while start.elapsed() < window {
        let begin = Instant::now();
        timeout(LIMIT, exchange(&mut stream, Wish::Answers)).await.context("no answer")??;
        seen.took.push(begin.elapsed());
        // As a stream of tokens, whose router has gone to sleep in between.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    (seen.done, seen.elapsed) = (seen.took.len() as u64, start.elapsed());
    Ok(seen)
}

/// As much as comes over one connection.
///
/// # Errors
/// The connection's.
pub async fn download(routed: bool, window: Duration) -> anyhow::Result<Seen> {
    let mut stream = connect(1, routed, &hellos()[1]).await?;
    ask(&mut stream, Wish::Download).await?;
    let (start, mut seen) = (Instant::now(), Seen::default());
    let mut chunk = vec![0; CHUNK_BYTES];
    while start.elapsed() < window {
        let n = timeout(LIMIT, stream.read(&mut chunk)).await.context("no bytes")??;
        ensure!(n > 0, "the download has ended");
        seen.bytes += n as u64;
    }
    seen.elapsed = start.elapsed();
    Ok(seen)
}
