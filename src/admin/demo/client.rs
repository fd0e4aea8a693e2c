//! The demo's users: some read token streams, some download for ever.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use hdrhistogram::Histogram;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::server::{BULK_PATH, CHAT_PATH, CHUNK_BYTES};

/// A request that takes longer than this has failed.
const REQUEST_LIMIT: Duration = Duration::from_secs(15);
/// Largest time the histograms hold, microseconds.
const HISTOGRAM_MAX_US: u64 = 60_000_000;

/// Who asks, and how often at once.
#[derive(Clone, Debug)]
pub struct Load {
    pub vip: SocketAddr,
    pub chat_name: String,
    pub bulk_name: String,
    pub chat_users: u32,
    pub bulk_users: u32,
    /// Events that a full answer has.
    pub chunks: u32,
    /// When measuring begins: what was asked before is not counted.
    pub warm_up: Duration,
    pub measure: Duration,
}

/// What the users saw. Times in microseconds.
#[derive(Clone, Debug)]
pub struct Seen {
    pub requests: u64,
    pub errors: u64,
    /// The first error's text: a count alone helps nobody.
    pub first_error: Option<String>,
    /// From `connect` to the first byte of the answer's body.
    pub first_byte_us: Histogram<u64>,
    /// Between consecutive events of one answer.
    pub gap_us: Histogram<u64>,
    pub chat_bytes: u64,
    pub bulk_bytes: u64,
    pub measured: Duration,
}

impl Seen {
    fn new() -> Result<Seen> {
        let histogram = || Histogram::new_with_max(HISTOGRAM_MAX_US, 3);
        Ok(Seen {
            requests: 0,
            errors: 0,
            first_error: None,
            first_byte_us: histogram()?,
            gap_us: histogram()?,
            chat_bytes: 0,
            bulk_bytes: 0,
            measured: Duration::ZERO,
        })
    }

    fn merge(&mut self, other: &Seen) -> Result<()> {
        self.requests += other.requests;
        self.errors += other.errors;
        if self.first_error.is_none() {
            self.first_error.clone_from(&other.first_error);
        }
        self.first_byte_us.add(&other.first_byte_us)?;
        self.gap_us.add(&other.gap_us)?;
        self.chat_bytes += other.chat_bytes;
        Ok(())
    }
}

/// Shared by all users of one run.
struct Run {
    load: Load,
    tls: TlsConnector,
    measuring: AtomicBool,
    bulk_bytes: AtomicU64,
}

/// Runs the load to its end. To be called on a thread inside the clients' namespace.
///
/// # Errors
/// The TLS set-up fails; failed requests are counted, not errors.
pub async fn run(load: Load, trusted: &CertificateDer<'static>) -> Result<Seen> {
    let run = Arc::new(Run {
        tls: connector(trusted)?,
        measuring: AtomicBool::new(false),
        bulk_bytes: AtomicU64::new(0),
        load: load.clone(),
    });
    let mut bulk = tokio::task::JoinSet::new();
    for _ in 0..load.bulk_users {
        bulk.spawn(bulk_user(Arc::clone(&run)));
    }
    let mut chat = tokio::task::JoinSet::new();
    let end = Instant::now() + load.warm_up + load.measure;
    for user in 0..load.chat_users {
        chat.spawn(chat_user(Arc::clone(&run), user, end));
    }
    tokio::time::sleep(load.warm_up).await;
    let (bulk_before, started) = (run.bulk_bytes.load(Ordering::Relaxed), Instant::now());
    run.measuring.store(true, Ordering::Relaxed);
    tokio::time::sleep(load.measure).await;
    let mut seen = Seen::new()?;
    seen.bulk_bytes = run.bulk_bytes.load(Ordering::Relaxed) - bulk_before;
    seen.measured = started.elapsed();
    bulk.abort_all();
    while let Some(user) = chat.join_next().await {
        seen.merge(&user??)?;
    }
    Ok(seen)
}

fn connector(trusted: &CertificateDer<'static>) -> Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Every request shows its whole handshake, as a new user's would.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Opens a connection, asks for `path`, and gives the answer's head.
async fn ask(run: &Run, name: &str, path: &str) -> Result<Response<Incoming>> {
    let tcp = TcpStream::connect(run.load.vip).await.context("connect")?;
    tcp.set_nodelay(true)?;
    let server = ServerName::try_from(name.to_string())?;
    let tls = run.tls.connect(server, tcp).await.context("TLS handshake")?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await?;
    tokio::spawn(connection);
    let request = Request::get(path).header("host", name).body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await.context("request")?;
    ensure!(response.status().is_success(), "status {}", response.status());
    Ok(response)
}

async fn bulk_user(run: Arc<Run>) {
    loop {
        if let Ok(mut answer) = ask(&run, &run.load.bulk_name, BULK_PATH).await {
            while let Some(Ok(frame)) = answer.frame().await {
                let n = frame.data_ref().map_or(0, Bytes::len);
                run.bulk_bytes.fetch_add(n as u64, Ordering::Relaxed);
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn chat_user(run: Arc<Run>, user: u32, end: Instant) -> Result<Seen> {
    let mut seen = Seen::new()?;
    // Users don't start in step.
    tokio::time::sleep(Duration::from_millis(u64::from(user) * 37 % 500)).await;
    while Instant::now() < end {
        let counted = run.measuring.load(Ordering::Relaxed);
        let outcome = tokio::time::timeout(REQUEST_LIMIT, read_stream(&run)).await;
        if !counted {
            continue;
        }
        seen.requests += 1;
        match outcome {
            Ok(Ok(stream)) => stream.count_into(&mut seen),
            Ok(Err(e)) => seen.fail(format!("{e:#}")),
            Err(_) => seen.fail(format!("no full answer within {REQUEST_LIMIT:?}")),
        }
    }
    Ok(seen)
}

impl Seen {
    fn fail(&mut self, why: String) {
        self.errors += 1;
        self.first_error.get_or_insert(why);
    }
}

/// One answer's times.
struct StreamTimes {
    first_byte: Duration,
    gaps: Vec<Duration>,
    bytes: u64,
}

impl StreamTimes {
    fn count_into(&self, seen: &mut Seen) {
        let us = |d: &Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
        seen.first_byte_us.saturating_record(us(&self.first_byte));
        for gap in &self.gaps {
            seen.gap_us.saturating_record(us(gap));
        }
        seen.chat_bytes += self.bytes;
    }
}

async fn read_stream(run: &Run) -> Result<StreamTimes> {
    let start = Instant::now();
    let mut answer = ask(run, &run.load.chat_name, CHAT_PATH).await?;
    let mut times = StreamTimes { first_byte: Duration::ZERO, gaps: Vec::new(), bytes: 0 };
    let mut last: Option<Instant> = None;
    while let Some(frame) = answer.frame().await {
        let frame = frame?;
        let Some(data) = frame.data_ref() else { continue };
        times.bytes += data.len() as u64;
        let now = Instant::now();
        match last {
            None => times.first_byte = now - start,
            Some(before) => times.gaps.push(now - before),
        }
        last = Some(now);
    }
    let whole = u64::from(run.load.chunks) * CHUNK_BYTES as u64;
    ensure!(times.bytes == whole, "{} of {whole} bytes of the answer came", times.bytes);
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::super::server::{self, Identity, StreamShape};
    use super::*;

    #[test]
    fn users_and_servers_agree_without_an_appliance() {
        let identity = Identity::generate(&["chat.demo.example", "bulk.demo.example"]).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let vip = listener.local_addr().unwrap();
        let shape = StreamShape { chunks: 5, interval: Duration::from_millis(2) };
        let load = Load {
            vip,
            chat_name: "chat.demo.example".into(),
            bulk_name: "bulk.demo.example".into(),
            chat_users: 2,
            bulk_users: 1,
            chunks: 5,
            warm_up: Duration::from_millis(300),
            measure: Duration::from_millis(600),
        };
        let trusted = identity.certificate.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let seen = runtime.block_on(async {
            tokio::select! {
                served = server::serve(vec![listener], &identity, shape) => {
                    panic!("serving ended: {served:?}")
                }
                seen = run(load, &trusted) => seen.unwrap(),
            }
        });
        assert!(seen.requests > 0 && seen.errors == 0, "{seen:?}");
        assert!(seen.bulk_bytes > 100_000, "{}", seen.bulk_bytes);
        assert_eq!(seen.chat_bytes, seen.requests * 5 * CHUNK_BYTES as u64);
        assert!(seen.gap_us.len() == seen.requests * 4);
    }
}
