//! Many connections at once, and hellos with the key share of a post-quantum group.

use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    ActiveKeyExchange, CryptoProvider, SharedSecret, SupportedKxGroup, WebPkiSupportedAlgorithms,
    ring, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, NamedGroup, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::common::{VIP4, VIP6, noise};
use crate::site::{NAMES, Site};

/// Open at the same time.
const CROWD: usize = 5_000;
/// Handshakes under way at the same time: all run on this machine's few cores.
const HANDSHAKES: usize = 400;
const PATIENCE: Duration = Duration::from_secs(60);

/// X25519MLKEM768 as a client offers it: a share of 1,216 bytes and an X25519 one beside it. The
/// servers don't know it and take the other; so its own secret is never wanted.
#[derive(Debug)]
struct PostQuantum;

const SHARE_BYTES: usize = 1_184;

struct Started {
    share: Vec<u8>,
    classical: Box<dyn ActiveKeyExchange>,
}

impl SupportedKxGroup for PostQuantum {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        let classical = ring::kx_group::X25519.start()?;
        let mut share = noise(SHARE_BYTES, 7);
        share.extend(classical.pub_key());
        Ok(Box::new(Started { share, classical }))
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::X25519MLKEM768
    }
}

impl ActiveKeyExchange for Started {
    fn complete(self: Box<Self>, _: &[u8]) -> Result<SharedSecret, Error> {
        Err(Error::General("no server here takes it".into()))
    }

    fn hybrid_component(&self) -> Option<(NamedGroup, &[u8])> {
        Some((NamedGroup::X25519, self.classical.pub_key()))
    }

    fn complete_hybrid_component(self: Box<Self>, peer: &[u8]) -> Result<SharedSecret, Error> {
        self.classical.complete(peer)
    }

    fn pub_key(&self) -> &[u8] {
        &self.share
    }

    fn group(&self) -> NamedGroup {
        NamedGroup::X25519MLKEM768
    }
}

/// Takes any certificate whose key the server has shown to hold.
#[derive(Debug)]
struct AnyCertificate(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

fn connector(post_quantum: bool) -> TlsConnector {
    let mut provider: CryptoProvider = ring::default_provider();
    let algorithms = provider.signature_verification_algorithms;
    if post_quantum {
        provider.kx_groups = vec![&PostQuantum, ring::kx_group::X25519];
    }
    let config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(algorithms)))
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
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
