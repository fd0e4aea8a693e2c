//! Datagrams that are larger than the links' MTU, both ways through each way of forwarding: the
//! kernels at both ends cut them up and put them together.

mod common;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use common::probe::Echo;
use common::{Net, SERVERS4, SERVERS6, VIP4, VIP6, nat, noise, service};
use tidegate::lab::{Process, wait_for};

const GUE_PORT: u16 = 6080;
/// Of datagrams. Five fragments, and one that is a fragment for tunnels only.
const SIZES: [usize; 2] = [7_000, 1_472];
const PATIENCE: Duration = Duration::from_secs(30);

/// Port of each mode's service.
const MODES: [(&str, u16); 5] =
    [("nat", 7001), ("dnat", 7002), ("dsr", 7003), ("ipip", 7004), ("gue", 7005)];

fn config(net: &Net) -> String {
    let mut text = net.config_head("l4-balancer", "count = 2") + &nat();
    for (mode, port) in MODES {
        for (family, vip, server) in [("4", VIP4, SERVERS4[0]), ("6", VIP6, SERVERS6[0])] {
            let name = format!("{mode}{family}");
            text += &service(&name, vip, port, &name, mode);
            text += "protocol = \"udp\"\n";
            text += &format!("[[pool.{name}.backend]]\naddress = \"{server}\"\nport = {port}\n");
        }
    }
    text
}

/// The servers hold the VIPs, and take packets out of tunnels.
fn hold_vips(net: &Net) -> Process {
    for (key, value) in [
        ("net.ipv4.conf.all.arp_ignore", "1"),
        ("net.ipv4.conf.all.rp_filter", "0"),
        ("net.ipv4.conf.default.rp_filter", "0"),
    ] {
        net.server.sysctl(key, value).expect("sysctl");
    }
    net.server.ip(&format!("addr add {VIP4}/32 dev lo")).expect("VIP");
    net.server.ip(&format!("addr add {VIP6}/128 dev lo")).expect("VIP");
    let seen = net.path("seen");
    let mut command = Command::new("python3");
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/decapsulate.py"));
    command.args(["inner", &GUE_PORT.to_string()]).arg(&seen);
    let end = net.server.spawn(command).expect("python3");
    wait_for(PATIENCE, "the tunnels' end", || seen.exists()).expect("it");
    end
}

/// Sends until the whole is answered: at first a sender may have to learn of a smaller MTU.
fn exchange(net: &Net, what: &str, to: SocketAddr, size: usize) {
    let says = noise(size, u64::from(to.port()));
    let socket = net
        .client
        .enter(move || {
            let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(Duration::from_millis(300)))?;
            Ok::<_, std::io::Error>(socket)
        })
        .expect("thread")
        .expect("socket");
    let mut got = vec![0; 1 << 16];
    let answered = wait_for(PATIENCE, what, || {
        // An error of the one before may be told of now.
        let _ = socket.send(&says);
        socket.recv(&mut got).is_ok_and(|n| got[..n] == says)
    });
    if answered.is_err() {
        let state = ["drops", "ports", "counters"].map(|s| net.ask(&["show", s]));
        panic!("{what}: {size} bytes were not answered\n{state:#?}");
    }
}

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse::<IpAddr>().expect("address"), port)
}

#[test]
fn services_of_every_mode() {
    let net = Net::new(2);
    net.kernel_forwards(true);
    let _end = hold_vips(&net);
    let mut listen = Vec::new();
    for (mode, port) in MODES {
        let translated = matches!(mode, "nat" | "dnat");
        listen.push(at(if translated { SERVERS4[0] } else { VIP4 }, port));
        listen.push(at(if translated { SERVERS6[0] } else { VIP6 }, port));
    }
    let _echo = Echo::start(&net.server, &listen);
    let _edge = net.start(&config(&net));
    for (mode, port) in MODES {
        for vip in [VIP4, VIP6] {
            for size in SIZES {
                exchange(&net, &format!("{mode} of {vip}"), at(vip, port), size);
            }
        }
    }
    let ports = net.ask_json(&["show", "ports"]).to_string();
    assert!(ports.contains("\"fragment\":"), "later fragments are the appliance's: {ports}");
}

#[test]
fn a_router_between() {
    let net = Net::new(2);
    net.kernel_forwards(false);
    let to = [at(SERVERS4[0], 7007), at(SERVERS6[0], 7007)];
    let _echo = Echo::start(&net.server, &to);
    let transit = "[transit]\nprefixes = [\"10.0.0.0/8\", \"fd00::/16\"]\n";
    let _edge = net.start(&(net.config_head("router", "count = 2") + transit));
    for to in to {
        exchange(&net, "route", to, SIZES[0]);
    }
}
