//! OSPF with an upstream router, by BIRD and by FRR with the shipped configurations: VIPs
//! announced, and what it tells learnt and used.
//!
//! The client's namespace is the upstream router: BIRD.

mod common;

use std::time::Instant;

use common::daemons::{SOON, bird, frr, shipped};
use common::{HTTP, Net, SERVERS4, SERVERS6, VIP4, VIP6, nat, service};
use tidegate::lab::{Namespace, wait_for};

/// Behind the upstream router, from some time on.
const NEWS: [(&str, &str); 2] = [("198.51.100.1", "32"), ("2001:db8:99::1", "128")];

const UPSTREAM: &str = "
router id 10.0.1.2;
protocol device { scan time 1; }
protocol direct { ipv4; ipv6; interface \"lo\"; }
protocol kernel { ipv4 { import none; export where source != RTS_DEVICE; }; }
protocol kernel { ipv6 { import none; export where source != RTS_DEVICE; }; }
protocol ospf v2 ospf4 {
    ipv4 { import all; export where source = RTS_DEVICE; };
    area 0 { interface \"wan0\" { type ptp; hello 1; dead 4; }; };
}
protocol ospf v3 ospf6 {
    ipv6 { import all; export where source = RTS_DEVICE; };
    area 0 { interface \"wan0\" { type ptp; hello 1; dead 4; }; };
}
";

const PIPELINE: &str = "
name = \"balance-and-route\"
description = \"Balances services, and routes the rest\"
[[stage]]
balance = {}
[[stage]]
route = {}
";

/// A balancer that also routes, so that what is learnt is used by what passes.
fn config(net: &Net, announce: &str) -> String {
    let pipeline = net.write("pipeline.toml", PIPELINE);
    let pipeline = pipeline.to_str().expect("path");
    let mut text = net.config_head(pipeline, "") + &nat();
    text += &format!("[announce]\n{announce}withdraw_wait = \"100ms\"\n");
    text += "[transit]\nprefixes = [\"198.51.100.0/24\", \"10.0.2.0/24\", \"2001:db8:99::/48\", \
             \"fd00:2::/64\"]\n";
    for (name, vip, server) in [("web4", VIP4, SERVERS4[0]), ("web6", VIP6, SERVERS6[0])] {
        text += &service(name, vip, 80, name, "nat");
        text += &format!(
            "announce = true\n[pool.{name}.health]\ntype = \"tcp\"\ninterval = \"200ms\"\n\
             timeout = \"2s\"\n[[pool.{name}.backend]]\naddress = \"{server}\"\nport = {HTTP}\n"
        );
    }
    text
}

fn knows(ns: &Namespace, prefix: &str, way: &str) -> bool {
    let family = if prefix.contains(':') { "-6" } else { "-4" };
    ns.run("ip", &[family, "route", "show", prefix]).is_ok_and(|shown| shown.contains(way))
}

/// Packets that had nowhere to go.
fn without_route(net: &Net) -> u64 {
    let shown = net.ask_json(&["show", "drops"]);
    let drops = shown["drops"].as_array().expect("a list");
    let of = drops.iter().find(|d| d["reason"] == "no_route").expect("the reason");
    of["packets"].as_u64().expect("a number")
}

fn spoken_with(net: &Net, announce: &str) {
    // The kernel itself forwards nothing: what passes, passes by tidegate.
    net.kernel_forwards(false);
    net.client.sysctl("net.ipv4.ip_forward", "1").expect("sysctl");
    let nginx = net.start_nginx();
    let _edge = net.start(&config(net, announce));
    let announced = || [VIP4, VIP6].iter().all(|vip| knows(&net.client, vip, "proto bird"));
    wait_for(SOON, "the VIPs upstream", announced).expect("announced");
    for url in [format!("http://{VIP4}/"), format!("http://[{VIP6}]/")] {
        let got = net.client.run("curl", &["-sf", "--max-time", "20", &url]).expect("an answer");
        assert!(got.contains("hello from behind the VIP"), "{got}");
    }
    for (host, len) in NEWS {
        // A host refuses what nothing listens for.
        let script = format!(
            "import socket, sys\n\
             try: socket.create_connection(('{host}', 9), 1)\n\
             except ConnectionRefusedError: sys.exit(0)\n\
             except OSError: sys.exit(1)\n"
        );
        let answers = || net.server.run("python3", &["-c", &script]).is_ok();
        assert!(!answers(), "{host} is not there yet");
        net.client.ip(&format!("addr add {host}/{len} dev lo")).expect("address");
        let start = Instant::now();
        let learnt = || knows(&net.appliance, host, "dev wan");
        wait_for(SOON, "the news in the kernel", learnt).expect("learnt");
        let in_kernel = start.elapsed();
        wait_for(SOON, "the news in use", answers).expect("used");
        // BIRD looks at its interfaces and its links' state once a second.
        println!("{host}: in the kernel after {in_kernel:?}, used after {:?}", start.elapsed());
        net.client.ip(&format!("addr del {host}/{len} dev lo")).expect("address");
        let forgotten = || !knows(&net.appliance, host, "dev wan");
        wait_for(SOON, "the end of the news", forgotten).expect("forgotten");
        // What is dropped for want of a route shows that ours has forgotten it, too.
        let before = without_route(net);
        wait_for(SOON, "the end of the news in use", || !answers() && without_route(net) > before)
            .unwrap_or_else(|_| panic!("{host} is gone, its route is not"));
    }
    drop(nginx);
    let withdrawn = || [VIP4, VIP6].iter().all(|vip| !knows(&net.client, vip, "proto bird"));
    wait_for(SOON, "no VIPs without servers", withdrawn).expect("withdrawn");
}

#[test]
fn bird_learns_and_announces() {
    let net = Net::new(1);
    let _upstream = bird(&net, &net.client, "upstream", UPSTREAM);
    let _daemon = bird(&net, &net.appliance, "edge", &shipped("bird-ospf.conf"));
    spoken_with(&net, "");
}

#[test]
fn frr_learns_and_announces() {
    let net = Net::new(1);
    let _upstream = bird(&net, &net.client, "upstream", UPSTREAM);
    let _daemons = frr(&net, &shipped("frr-ospf.conf"), &["ospfd", "ospf6d"]);
    spoken_with(&net, "table = 254\n");
}
