//! Many connections at once, and hellos with the key share of a post-quantum group.

use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::common::tls::client_config;
use crate::common::{VIP4, VIP6};
use crate::site::{NAMES, Site};

/// Open at the same time.
const CROWD: usize = 5_000;
/// Handshakes under way at the same time: all run on this machine's few cores.
const HANDSHAKES: usize = 400;
const PATIENCE: Duration = Duration::from_secs(120);

fn connector(post_quantum: bool) -> TlsConnector {
    TlsConnector::from(Arc::new(client_config(post_quantum)))
}

type Stream = tokio_rustls::client::TlsStream<TcpStream>;

async fn open(connector: TlsConnector, address: String, name: &'static str) -> Stream {
    let within = tokio::time::timeout(PATIENCE, async {
        let stream = TcpStream::connect(address).await.expect("connect");
        connector.connect(name.try_into().expect("a name"), stream).await
    });
    within.await.expect("in time").expect("TLS")
}

async fn ask(mut stream: Stream, name: &str) -> String {
    let request = format!("GET /whoami HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("a request sent");
    let mut answer = Vec::new();
    // Servers may close without saying so in TLS; what they said is looked at.
    let read = stream.read_to_end(&mut answer);
    let _ = tokio::time::timeout(PATIENCE, read).await.expect("in time");
    String::from_utf8_lossy(&answer).into_owned()
}

/// Opens so many connections in turn to the five names, and asks on them once all are open.
async fn crowd(count: usize, address: String, post_quantum: bool) -> Vec<(usize, String)> {
    let connector = connector(post_quantum);
    let mut open_now = Vec::with_capacity(count);
    let mut started = tokio::task::JoinSet::new();
    for i in 0..count {
        let name = NAMES[i % NAMES.len()];
        let (connector, address) = (connector.clone(), address.clone());
        started.spawn(async move { (i, open(connector, address, name).await) });
        if started.len() >= HANDSHAKES {
            open_now.push(started.join_next().await.expect("one").expect("no panic"));
        }
    }
    open_now.extend(started.join_all().await);
    assert_eq!(open_now.len(), count);
    let mut asked = tokio::task::JoinSet::new();
    for (i, stream) in open_now {
        asked.spawn(async move { (i, ask(stream, NAMES[i % NAMES.len()]).await) });
    }
    asked.join_all().await
}

fn run(site: &Site, count: usize, post_quantum: bool) {
    let address = format!("{}:443", site.host());
    let answers = site.net.client.thread("crowd", move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(crowd(count, address, post_quantum))
    });
    let answers = answers.expect("a thread").join().expect("no panic");
    assert_eq!(answers.len(), count);
    for (i, answer) in answers {
        let name = NAMES[i % NAMES.len()];
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        assert!(head.starts_with("HTTP/1.1 200"), "{name}: {answer:?}");
        assert!(body.contains(&site.whoami(name)), "{name}: {answer:?}");
    }
}

impl Site {
    /// So many clients at once, each asking its server once.
    pub fn crowd(&self, count: usize) {
        run(self, count, false);
    }
}

/// Hellos of 1,700 bytes, which come in two segments.
#[test]
fn post_quantum_hellos_lead_to_their_servers() {
    for (mode, vip) in [("nat", VIP4), ("dnat", VIP6)] {
        let site = Site::new(mode, vip);
        run(&site, 50, true);
        site.nothing_went_wrong(50);
    }
}

/// Five thousand connections are open at once; then each is asked something.
#[test]
fn five_thousand_at_once() {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    let wanted = 2 * CROWD as u64;
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(wanted), hard.max(wanted)).expect("root may");
    let site = Site::new("nat", VIP4);
    run(&site, CROWD, false);
    site.nothing_went_wrong(CROWD as u64);
}
