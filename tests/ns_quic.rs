//! Delayed binding of QUIC with real peers: quinn on both sides, three names on one VIP, a NAT that
//! changes its port under way.

mod common;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Connection, Endpoint, ServerConfig};
use rustls::pki_types::PrivateKeyDer;
use tidegate::lab::Process;

use common::tls::client_config;
use common::{Net, SERVERS4, SERVERS6, VIP4, VIP6, noise};

/// Names without a rule go to the first one's server.
const NAMES: [&str; 3] = ["a.test.example", "b.test.example", "c.test.example"];
const PORT: u16 = 8_443;
/// Bytes that a server takes at once.
const MESSAGE_BYTES_MAX: usize = 8_000_000;
const PATIENCE: Duration = Duration::from_secs(30);

struct Site {
    net: Net,
    vip: &'static str,
    _edge: Process,
}

impl Site {
    fn new(mode: &str, vip: &'static str) -> Site {
        let net = Net::new(1);
        let servers = if vip == VIP4 { SERVERS4 } else { SERVERS6 };
        let mut text = net.config_head("llm-edge", "") + &common::nat();
        text += &format!(
            "[service.quic]\nvip = \"{vip}\"\nport = 443\nprotocol = \"udp\"\npool = \"p0\"\n\
             mode = \"{mode}\"\nbind = \"hello\"\n"
        );
        for (i, server) in servers.iter().enumerate() {
            text += &format!("[[pool.p{i}.backend]]\naddress = \"{server}\"\nport = {PORT}\n");
            if i > 0 {
                text += &format!("[[rule]]\nsni = \"{}\"\npool = \"p{i}\"\n", NAMES[i]);
            }
            let at = SocketAddr::new(server.parse().expect("an address"), PORT);
            // It ends with the test's process.
            net.server.thread("server", move || run(serve(at))).expect("a thread");
        }
        let edge = net.start(&text);
        Site { net, vip, _edge: edge }
    }

    fn vip(&self) -> SocketAddr {
        SocketAddr::new(self.vip.parse().expect("an address"), 443)
    }

    /// What the name's server answers with before it says everything again.
    fn whoami(&self, name: &str) -> String {
        let servers = if self.vip == VIP4 { SERVERS4 } else { SERVERS6 };
        let place = NAMES.iter().position(|n| *n == name).unwrap_or(0);
        format!("{}\n", SocketAddr::new(servers[place].parse().expect("an address"), PORT))
    }

    /// Runs a client.
    fn client<F: Future<Output = T>, T: Send + 'static>(
        &self,
        f: impl FnOnce(SocketAddr) -> F + Send + 'static,
    ) -> T {
        let vip = self.vip();
        let client = self.net.client.thread("client", move || run(f(vip)));
        client.expect("a thread").join().unwrap_or_else(|_| {
            panic!("{:#}", self.net.ask_json(&["show", "counters"])["total"]);
        })
    }

    fn count(&self, name: &str) -> u64 {
        self.net.ask_json(&["show", "counters"])["total"][name].as_u64().unwrap_or(0)
    }
}

fn run<T>(f: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(f)
}

/// On every stream: its own address, and all that was said.
async fn serve(at: SocketAddr) {
    let made = rcgen::generate_simple_self_signed(NAMES.map(String::from)).expect("certificate");
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("a certificate");
    let crypto = QuicServerConfig::try_from(tls).expect("TLS for QUIC");
    let endpoint = Endpoint::server(ServerConfig::with_crypto(Arc::new(crypto)), at);
    let endpoint = endpoint.expect("an endpoint");
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(async move {
            let Ok(connection) = incoming.await else { return };
            while let Ok((mut send, mut receive)) = connection.accept_bi().await {
                let Ok(said) = receive.read_to_end(MESSAGE_BYTES_MAX).await else { return };
                let _ = send.write_all(format!("{at}\n").as_bytes()).await;
                let _ = send.write_all(&said).await;
                let _ = send.finish();
            }
        });
    }
}

fn endpoint(toward: SocketAddr, post_quantum: bool) -> Endpoint {
    let any: IpAddr =
        if toward.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let mut endpoint = Endpoint::client(SocketAddr::new(any, 0)).expect("an endpoint");
    let crypto = QuicClientConfig::try_from(client_config(post_quantum)).expect("TLS for QUIC");
    endpoint.set_default_client_config(ClientConfig::new(Arc::new(crypto)));
    endpoint
}

async fn connect(endpoint: &Endpoint, to: SocketAddr, name: &str) -> Connection {
    let connecting = endpoint.connect(to, name).expect("a name");
    tokio::time::timeout(PATIENCE, connecting).await.expect("in time").expect("connected")
}

async fn ask(connection: &Connection, says: &[u8]) -> Vec<u8> {
    let asking = async {
        let (mut send, mut receive) = connection.open_bi().await.expect("a stream");
        send.write_all(says).await.expect("sent");
        send.finish().expect("finished");
        receive.read_to_end(MESSAGE_BYTES_MAX).await.expect("an answer")
    };
    tokio::time::timeout(PATIENCE, asking).await.expect("in time")
}

/// Connections that are all open at once, a third to each name.
fn names_lead_to_their_servers(mode: &str, vip: &'static str) {
    const CONNECTIONS: usize = 60;
    let site = Site::new(mode, vip);
    let answers = site.client(|vip| async move {
        let open = (0..CONNECTIONS)
            .map(|i| async move { connect(&endpoint(vip, i % 2 == 1), vip, NAMES[i % 3]).await });
        let open = futures::future::join_all(open).await;
        let asked = open.iter().map(|connection| ask(connection, b"hello"));
        futures::future::join_all(asked).await
    });
    for (i, answer) in answers.iter().enumerate() {
        let name = NAMES[i % 3];
        assert_eq!(String::from_utf8_lossy(answer), site.whoami(name) + "hello", "{name}");
    }
    assert_eq!(site.count("bindings_joined"), CONNECTIONS as u64);
    for failure in ["bindings_unserved", "bindings_timed_out", "bindings_crowded_out"] {
        assert_eq!(site.count(failure), 0, "{failure}");
    }
}

#[test]
fn names_behind_nat() {
    names_lead_to_their_servers("nat", VIP4);
}

#[test]
fn names_behind_dnat() {
    names_lead_to_their_servers("dnat", VIP6);
}

/// 4 MB each way; then the NAT before the client forgets the connection, and packets come from
/// another port.
#[test]
fn clients_behind_a_nat_that_forgets_are_followed() {
    const BYTES: usize = 4_000_000;
    let site = Site::new("nat", VIP4);
    let whoami = site.whoami(NAMES[2]);
    site.client(move |vip| async move {
        let nat = Nat::start(vip);
        let endpoint = endpoint(vip, true);
        let connection = connect(&endpoint, nat.inside, NAMES[2]).await;
        let wanted = |said: &[u8]| [whoami.as_bytes(), said].concat();
        let said = noise(BYTES, 3);
        assert!(ask(&connection, &said).await == wanted(&said), "changed on its way");
        for turn in 0..3 {
            nat.forget();
            let said = noise(100_000, turn);
            assert!(ask(&connection, &said).await == wanted(&said), "changed on its way");
        }
    });
    assert_eq!(site.count("clients_followed"), 3);
    assert_eq!(site.count("bindings_joined"), 1);
}

/// A NAT in this process, for one client.
struct Nat {
    inside: SocketAddr,
    forget: tokio::sync::watch::Sender<()>,
}

impl Nat {
    /// Packets to its inside go on to `remote`.
    fn start(remote: SocketAddr) -> Nat {
        let socket = |addr: Ipv4Addr| {
            let socket = UdpSocket::bind((addr, 0)).expect("a socket");
            socket.set_nonblocking(true).expect("not blocking");
            tokio::net::UdpSocket::from_std(socket).expect("a socket")
        };
        let near = socket(Ipv4Addr::LOCALHOST);
        let inside = near.local_addr().expect("an address");
        let (forget, mut forgets) = tokio::sync::watch::channel(());
        tokio::spawn(async move {
            let mut far = socket(Ipv4Addr::UNSPECIFIED);
            let mut client = None;
            let (mut up, mut down) = ([0; 2_048], [0; 2_048]);
            loop {
                tokio::select! {
                    changed = forgets.changed() => match changed {
                        Ok(()) => far = socket(Ipv4Addr::UNSPECIFIED),
                        Err(_) => return,
                    },
                    Ok((n, from)) = near.recv_from(&mut up) => {
                        client = Some(from);
                        let _ = far.send_to(&up[..n], remote).await;
                    }
                    Ok((n, _)) = far.recv_from(&mut down) => {
                        if let Some(client) = client {
                            let _ = near.send_to(&down[..n], client).await;
                        }
                    }
                }
            }
        });
        Nat { inside, forget }
    }

    fn forget(&self) {
        self.forget.send(()).expect("it runs");
    }
}
