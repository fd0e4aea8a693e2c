//! Two appliances behind a router that shares flows out between them (ECMP). One is killed while
//! connections are open: those of services bound by the first packet go on through the other.
//!
//! ```text
//!                      ┌─ 10.0.1.0/24 ─ [a] ─┐
//! client ── router ────┤                     ├── bridge: servers 10.0.2.11-13
//!                      └─ 10.0.3.0/24 ─ [b] ─┘
//! ```

mod common;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::{HTTP, Net, SERVERS4, VIP4, pool, service};
use nix::sys::socket::sockopt::RcvBuf;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn};
use nix::sys::socket::{connect, setsockopt, socket};
use tidegate::lab::{Namespace, Process, Veth, VethEnd, wait_for};

/// Downloads at once.
const DOWNLOADS: usize = 16;
/// Bytes of the file, and those that a client's kernel takes in beyond what the client has read: so
/// half a file is not there yet, whatever the client waits for.
const BYTES: usize = 1 << 20;
const BUFFER: usize = 64 << 10;
const PATIENCE: Duration = Duration::from_secs(60);

/// One appliance.
struct Edge {
    namespace: Namespace,
    socket: PathBuf,
}

struct Site {
    /// Its client is the client, its server the servers.
    net: Net,
    router: Namespace,
    edges: Vec<Edge>,
}

/// Name, address of the router, of the appliance toward it, and toward the servers.
const EDGES: [(&str, &str, &str, &str); 2] =
    [("a", "10.0.1.2", "10.0.1.1", "10.0.2.21"), ("b", "10.0.3.2", "10.0.3.1", "10.0.2.22")];

impl Site {
    fn new(mode: &str) -> (Site, Vec<Process>) {
        let mut net = Net::new(1);
        // Of the usual network only its servers' namespace is of use.
        let client = Namespace::new("ecmp-client").expect("namespace");
        let router = Namespace::new("ecmp-router").expect("namespace");
        net.server.ip("link del eth0").expect("the usual link");
        net.server.ip("link add br0 type bridge").expect("bridge");
        net.server.ip("link set br0 up").expect("bridge");
        for a in SERVERS4 {
            net.server.ip(&format!("addr add {a}/24 dev br0")).expect("address");
        }
        link((&client, "wan0", &["10.0.0.2/24"]), (&router, "top0", &["10.0.0.1/24"]));
        client.ip("route add default via 10.0.0.1").expect("route");
        link((&net.server, "to-r", &[]), (&router, "low0", &["10.0.2.254/24"]));
        net.server.ip("link set to-r master br0").expect("bridge");
        router.sysctl("net.ipv4.ip_forward", "1").expect("sysctl");
        // By ports too (the flow's, not only the hosts').
        router.sysctl("net.ipv4.fib_multipath_hash_policy", "1").expect("sysctl");
        net.client = client;
        let (mut edges, mut processes) = (Vec::new(), Vec::new());
        for e in EDGES {
            let namespace = Namespace::new(e.0).expect("namespace");
            let (wan, r) = (format!("{}/24", e.2), format!("{}/24", e.1));
            let (to_edge, to_bridge) = (format!("to-{}", e.0), format!("br-{}", e.0));
            link((&router, &to_edge, &[&r]), (&namespace, "wan", &[&wan]));
            let lan = format!("{}/24", e.3);
            link((&net.server, &to_bridge, &[]), (&namespace, "lan", &[&lan]));
            net.server.ip(&format!("link set {to_bridge} master br0")).expect("bridge");
            namespace.ip(&format!("route add default via {}", e.1)).expect("route");
            let (socket, process) = start(&net, &namespace, e.0, mode);
            edges.push(Edge { namespace, socket });
            processes.push(process);
        }
        (Site { net, router, edges }, processes)
    }

    /// New flows go to these appliances alone, and what servers send to the client by them.
    fn route_by(&self, edges: &[usize]) {
        let ways = |gateway: fn(usize) -> &'static str| {
            let way = |&i: &usize| format!(" nexthop via {}", gateway(i));
            edges.iter().map(way).collect::<String>()
        };
        let to_vip = format!("route replace {VIP4}/32{}", ways(|i| EDGES[i].2));
        self.router.ip(&to_vip).expect("route");
        let back = format!("route replace 10.0.0.0/24{}", ways(|i| EDGES[i].3));
        self.net.server.ip(&back).expect("route");
    }

    fn flows(&self, edge: usize) -> u64 {
        let args = ["show", "counters", "--json", "--socket"];
        let edge = &self.edges[edge];
        let socket = edge.socket.to_str().expect("path");
        let out =
            edge.namespace.run(env!("CARGO_BIN_EXE_tidegate"), &[&args[..], &[socket]].concat());
        let json: serde_json::Value = serde_json::from_str(&out.expect("answer")).expect("JSON");
        json["total"]["flows_opened"].as_u64().expect("a number")
    }
}

fn start(net: &Net, namespace: &Namespace, name: &str, mode: &str) -> (PathBuf, Process) {
    let socket = net.path(&format!("{name}.sock"));
    let head = net.config_head("l4-balancer", "");
    let own = net.socket().display().to_string();
    let text = [
        head.replace(&own, socket.to_str().expect("path")),
        pool("web", SERVERS4, HTTP),
        service("web", VIP4, HTTP, "web", mode),
    ];
    let file = net.write(&format!("{name}.toml"), &text.concat());
    let mut process = namespace.spawn(tidegate(&file)).expect("start");
    let up = wait_for(Duration::from_secs(20), "an appliance", || {
        !process.is_running() || socket.exists()
    });
    if up.is_err() || !process.is_running() {
        panic!("appliance {name} did not start: {}", process.kill_and_read_stderr());
    }
    (socket, process)
}

fn tidegate(file: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.args(["run", "-c"]).arg(file);
    command
}

fn link(a: (&Namespace, &str, &[&str]), b: (&Namespace, &str, &[&str])) {
    let end = |(namespace, name, addresses)| VethEnd { namespace, name, addresses };
    Veth { a: end(a), b: end(b), queues: 1, wire_like: true }.create().expect("veth");
}

/// Downloads go on; each is to have all its bytes in the end.
fn survive_the_death_of_one(mode: &str) {
    let (site, mut processes) = Site::new(mode);
    if mode == "dsr" {
        site.net.server.sysctl("net.ipv4.conf.all.arp_ignore", "1").expect("sysctl");
        site.net.server.ip(&format!("addr add {VIP4}/32 dev lo")).expect("VIP");
    }
    site.route_by(&[0, 1]);
    if mode == "dsr" {
        // Answers take the router's own way.
        site.net.server.ip("route replace 10.0.0.0/24 via 10.0.2.254").expect("route");
    }
    let _nginx = site.net.start_nginx();
    let halves = (0..DOWNLOADS).map(|_| read_half(&site.net)).collect::<Vec<_>>();
    wait_for(Duration::from_secs(30), "flows on both appliances", || {
        let (a, b) = (site.flows(0), site.flows(1));
        a > 0 && b > 0 && a + b >= DOWNLOADS as u64
    })
    .expect("both are used");
    let _said = processes.remove(0).kill_and_read_stderr();
    // What a routing protocol does when its neighbour is gone.
    let to_vip = format!("route replace {VIP4}/32 via {}", EDGES[1].2);
    site.router.ip(&to_vip).expect("route");
    if mode != "dsr" {
        let back = format!("route replace 10.0.0.0/24 via {}", EDGES[1].3);
        site.net.server.ip(&back).expect("route");
    }
    for (stream, had) in halves {
        assert_eq!(had + read(stream, BYTES), BYTES, "{mode}: all bytes of a file");
    }
    // Each goes on through the other, which may count the last a moment later.
    wait_for(Duration::from_secs(20), "flows taken over", || site.flows(1) == DOWNLOADS as u64)
        .unwrap_or_else(|_| panic!("{} of {DOWNLOADS} flows are here", site.flows(1)));
}

/// A client with the first half of a file, and how many bytes of it that are.
fn read_half(net: &Net) -> (BufReader<TcpStream>, usize) {
    let connect = || {
        let tcp = (AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC);
        let socket = socket(tcp.0, tcp.1, tcp.2, None).expect("a socket");
        // Before it connects: what is in flight by then is in the old window.
        setsockopt(&socket, RcvBuf, &BUFFER).expect("a buffer");
        let vip = SocketAddrV4::new(VIP4.parse().expect("an address"), HTTP);
        connect(socket.as_raw_fd(), &SockaddrIn::from(vip)).expect("connect");
        TcpStream::from(socket)
    };
    let mut stream = net.client.enter(connect).expect("thread");
    stream.set_read_timeout(Some(PATIENCE)).expect("a limit");
    let head = format!("GET /1m.bin HTTP/1.1\r\nhost: {VIP4}\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("sent");
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).expect("a status line");
    assert_eq!(line, "HTTP/1.1 200 OK\r\n");
    while line != "\r\n" {
        line.clear();
        stream.read_line(&mut line).expect("a header");
    }
    let had = read(stream.by_ref(), BYTES / 2);
    (stream, had)
}

/// How many bytes, of `most`, come before the end.
fn read(from: impl Read, most: usize) -> usize {
    let copied = io::copy(&mut from.take(most as u64), &mut io::sink()).expect("what is sent");
    usize::try_from(copied).expect("a part of memory")
}

#[test]
fn flows_of_dsr_go_on_through_the_other() {
    survive_the_death_of_one("dsr");
}

#[test]
fn flows_of_dnat_go_on_through_the_other() {
    survive_the_death_of_one("dnat");
}
