//! Links with a smaller MTU, behind routers in front of the clients or of the servers, that both
//! ends don't see: real TCP through each way of forwarding, which stalls unless the routers' ICMP
//! errors come to who has sent what was too large.
//!
//! ```text
//! client ── (1360) near router ── [appliance] ── far router (1360) ── server
//! ```

mod common;

use std::process::Command;
use std::time::Duration;

use common::{HTTP, Net, SERVERS4, SERVERS6, VIP4, VIP6, nat, noise, service};
use tidegate::lab::{Namespace, Process, Veth, VethEnd, wait_for};

/// What IPv6 asks of any link, and a tunnel, fit.
const SMALL: &str = "1360";
const FILE_BYTES: usize = 300_000;

/// The network, with a router more on each side.
struct Site {
    net: Net,
    _near: Namespace,
    /// Where there is one.
    _far: Option<Namespace>,
}

impl Site {
    fn new(far_router: bool) -> Site {
        Site::of_queues(1, far_router)
    }

    fn of_queues(queues: u16, far_router: bool) -> Site {
        let mut net = Net::new(queues);
        net.kernel_forwards(true);
        let client = Namespace::new("far-client").expect("namespace");
        link(
            (&net.client, "low0", &["10.1.1.1/24", "fd00:11::1/64"]),
            (&client, "wan0", &["10.1.1.2/24", "fd00:11::2/64"]),
        );
        // What a router sends down is small; the ends think that all links take 1500.
        default_route(&client, "10.1.1.1", "fd00:11::1");
        net.appliance.ip("route add 10.1.1.0/24 via 10.0.1.2").expect("route");
        net.appliance.ip("-6 route add fd00:11::/64 via fd00:1::2").expect("route");
        let near = std::mem::replace(&mut net.client, client);
        routes(&near);
        let far = far_router.then(|| {
            let server = Namespace::new("far-server").expect("namespace");
            link(
                (&net.server, "low0", &["10.2.2.1/24", "fd00:22::1/64"]),
                (&server, "eth0", &["10.2.2.2/24", "fd00:22::2/64"]),
            );
            default_route(&server, "10.2.2.1", "fd00:22::1");
            // The server has an address that was the router's. IPv4's others go with the first one.
            for a in SERVERS4 {
                let _gone = net.server.ip(&format!("addr del {a}/24 dev eth0"));
            }
            net.server.ip(&format!("addr add {}/24 dev eth0", SERVERS4[1])).expect("address");
            net.server.ip("route replace default via 10.0.2.1").expect("route");
            net.server.ip(&format!("addr del {}/64 dev eth0", SERVERS6[0])).expect("address");
            for (a, gw, end, len) in [
                (SERVERS4[0], SERVERS4[1], "10.2.2.2", 32),
                (SERVERS6[0], SERVERS6[1], "fd00:22::2", 128),
            ] {
                server.ip(&format!("addr add {a}/{len} dev lo")).expect("address");
                net.server
                    .ip(&format!("route add {a}/{len} via {end} mtu lock {SMALL}"))
                    .expect("route");
                net.appliance.ip(&format!("route add {a}/{len} via {gw}")).expect("route");
            }
            let far = std::mem::replace(&mut net.server, server);
            routes(&far);
            far
        });
        for route in ["10.1.1.2/32", "fd00:11::2/128"] {
            near.ip(&format!("route add {route} dev low0 mtu lock {SMALL}")).expect("route");
        }
        Site { net, _near: near, _far: far }
    }

    /// The server holds the VIPs; `tunnels`: and takes packets out of others.
    fn hold_vips(&self, tunnels: bool) -> Option<Process> {
        let server = &self.net.server;
        server.sysctl("net.ipv4.conf.all.arp_ignore", "1").expect("sysctl");
        server.sysctl("net.ipv4.conf.all.rp_filter", "0").expect("sysctl");
        server.sysctl("net.ipv4.conf.default.rp_filter", "0").expect("sysctl");
        server.ip(&format!("addr add {VIP4}/32 dev lo")).expect("VIP");
        server.ip(&format!("addr add {VIP6}/128 dev lo")).expect("VIP");
        tunnels.then(|| {
            let seen = self.net.path("seen");
            let mut command = Command::new("python3");
            command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/decapsulate.py"));
            command.args(["inner", "6080"]).arg(&seen);
            let end = server.spawn(command).expect("python3");
            wait_for(Duration::from_secs(20), "the tunnels' end", || seen.exists()).expect("it");
            end
        })
    }

    /// Both ways, a file: most of its segments are as large as the ends think that they may be.
    fn transfers(&self, what: &str) {
        let file = self.net.write("noise", "");
        std::fs::write(&file, noise(FILE_BYTES, 7)).expect("write");
        for (i, host) in [VIP4.to_string(), format!("[{VIP6}]")].iter().enumerate() {
            let url = format!("http://{host}:{HTTP}");
            let get = format!("{url}/1m.bin");
            let size = "%{http_code} %{size_download} %{size_upload}";
            let file = file.to_str().expect("path");
            let name = format!("{url}/put/{what}{i}");
            let at_once = format!("{name}-at-once");
            for (args, want) in [
                (&["-o", "/dev/null", &get][..], "200 1048576 0".to_string()),
                (&["-T", file, &name], format!("201 0 {FILE_BYTES}")),
                // The body comes with the head, and with delayed binding is held as it is.
                (&["-H", "Expect:", "-T", file, &at_once], format!("201 0 {FILE_BYTES}")),
            ] {
                let all = [&["-sS", "-m", "60", "-w", size][..], args].concat();
                let got = self.net.client.run("curl", &all);
                let got = got.unwrap_or_else(|e| {
                    let state =
                        ["drops", "ports", "neighbours"].map(|s| self.net.ask(&["show", s]));
                    panic!("{what}, {args:?} stalls: {e}\n{state:#?}")
                });
                assert!(got.ends_with(&want), "{what}, {args:?}: {got}");
            }
        }
        let ports = self.net.ask_json(&["show", "ports"]).to_string();
        assert!(counted(&ports) > 0, "{what}: no error was told, nothing was shown: {ports}");
    }
}

/// ICMP errors that were steered to the appliance, on all ports.
fn counted(ports: &str) -> u64 {
    let numbers = ports.split("\"icmp_error\":").skip(1);
    numbers.filter_map(|n| n.split([',', '}']).next()?.trim().parse::<u64>().ok()).sum()
}

fn link(a: (&Namespace, &str, &[&str]), b: (&Namespace, &str, &[&str])) {
    let end = |(namespace, name, addresses)| VethEnd { namespace, name, addresses };
    Veth { a: end(a), b: end(b), queues: 1, wire_like: true }.create().expect("veth");
}

fn default_route(ns: &Namespace, gw4: &str, gw6: &str) {
    ns.ip(&format!("route add default via {gw4}")).expect("route");
    ns.ip(&format!("-6 route add default via {gw6}")).expect("route");
}

fn routes(ns: &Namespace) {
    for (key, value) in [
        ("net.ipv4.ip_forward", "1"),
        ("net.ipv6.conf.all.forwarding", "1"),
        ("net.ipv4.conf.all.rp_filter", "0"),
        ("net.ipv4.icmp_ratelimit", "0"),
        ("net.ipv6.icmp.ratelimit", "0"),
        ("net.ipv4.conf.all.send_redirects", "0"),
    ] {
        ns.sysctl(key, value).expect("sysctl");
    }
}

/// Services of both families with one server. No SYN is changed: the links of the appliance itself
/// are as large as the ends think.
fn config(net: &Net, pipeline: &str, mode: &str, more: &str) -> String {
    config_of_workers(net, "", pipeline, mode, more)
}

fn config_of_workers(net: &Net, workers: &str, pipeline: &str, mode: &str, more: &str) -> String {
    let mut text = net.config_head(pipeline, workers) + &nat();
    for (name, vip, server) in [("four", VIP4, SERVERS4[0]), ("six", VIP6, SERVERS6[0])] {
        text += &service(name, vip, HTTP, name, mode);
        text += more;
        text += &format!("[[pool.{name}.backend]]\naddress = \"{server}\"\nport = {HTTP}\n");
    }
    text
}

fn served(far_router: bool, mode: &str, more: &str) {
    let site = Site::new(far_router);
    let tunnels = matches!(mode, "ipip" | "gue");
    let _end = (tunnels || mode == "dsr").then(|| site.hold_vips(tunnels));
    let _nginx = site.net.start_nginx();
    let pipeline = if more.is_empty() { "l4-balancer" } else { "llm-edge" };
    let _edge = site.net.start(&config(&site.net, pipeline, mode, more));
    site.transfers(mode);
}

#[test]
fn nat_tells_both_sides() {
    served(true, "nat", "");
}

#[test]
fn dnat_tells_both_sides() {
    served(true, "dnat", "");
}

#[test]
fn dsr_tells_the_servers() {
    served(false, "dsr", "");
}

#[test]
fn ip_in_ip_tells_both_sides() {
    served(true, "ipip", "");
}

#[test]
fn gue_tells_both_sides() {
    served(true, "gue", "");
}

#[test]
fn spliced_connections_tell_both_sides() {
    served(true, "nat", "bind = \"request\"\n");
}

/// A router's errors all arrive at one queue, because they are from it and to one address, while
/// connections belong to either worker: half of the errors must go to the other one, else a
/// connection stalls whose sender isn't told.
#[test]
fn errors_find_the_worker_of_their_flow() {
    const UPLOADS: usize = 10;
    let site = Site::of_queues(2, true);
    let net = &site.net;
    let _nginx = net.start_nginx();
    let _edge = net.start(&config_of_workers(net, "count = 2", "l4-balancer", "nat", ""));
    let file = net.write("noise", "");
    std::fs::write(&file, noise(FILE_BYTES / 3, 7)).expect("write");
    for i in 0..UPLOADS {
        let (host, family) =
            if i % 2 == 0 { (VIP4.to_string(), "-4") } else { (format!("[{VIP6}]"), "-6") };
        let before = counted(&net.ask_json(&["show", "ports"]).to_string());
        // What the client has learnt with the upload before, it is to be told again.
        net.client.ip(&format!("{family} route flush cache")).expect("flush");
        let url = format!("http://{host}:{HTTP}/put/workers{i}");
        let file = file.to_str().expect("path");
        let got = net.client.run("curl", &["-sSf", "-m", "60", "-T", file, &url]);
        let told = counted(&net.ask_json(&["show", "ports"]).to_string()) - before;
        assert!(got.is_ok() && told > 0, "upload {i}, told {told} times: {got:?}");
    }
}
