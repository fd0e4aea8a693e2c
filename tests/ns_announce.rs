//! VIPs announced to an upstream router by BIRD and by FRR, with the shipped configurations, and
//! that router's routes in use.
//!
//! The client's namespace is the upstream router: BIRD, AS 64512.

mod common;

use common::daemons::{SOON, bird, frr, shipped};
use common::{HTTP, Net, SERVERS4, SERVERS6, VIP4, VIP6, nat, service};
use nix::sys::signal::Signal;
use tidegate::lab::wait_for;

const UPSTREAM: &str = "
router id 10.0.1.2;
protocol device { scan time 1; }
protocol static { ipv4; route 198.51.100.0/24 blackhole; }
protocol static { ipv6; route 2001:db8:99::/48 blackhole; }
protocol kernel { ipv4 { import none; export where source = RTS_BGP; }; }
protocol kernel { ipv6 { import none; export where source = RTS_BGP; }; }
template bgp edge {
    local as 64512;
    connect retry time 1; connect delay time 1; error wait time 1, 2;
}
protocol bgp edge4 from edge {
    neighbor 10.0.1.1 as 64513;
    ipv4 { import all; export where source = RTS_STATIC; };
}
protocol bgp edge6 from edge {
    neighbor fd00:1::1 as 64513;
    ipv6 { import all; export where source = RTS_STATIC; };
}
";

/// A shipped configuration, whose upstream router is called as it is here.
fn adapted(file: &str) -> String {
    let text = shipped(file);
    let (v4, v6) = (text.replace("192.0.2.1 ", "10.0.1.2 "), "2001:db8::1 ");
    assert_ne!(v4, text, "{file} names its neighbour");
    v4.replace(v6, "fd00:1::2 ")
}

fn config(net: &Net, announce: &str) -> String {
    let backend = |pool: &str, address: &str| {
        format!(
            "[pool.{pool}.health]\ntype = \"tcp\"\ninterval = \"200ms\"\ntimeout = \"2s\"\n\
             fall = 2\nrise = 1\n[[pool.{pool}.backend]]\naddress = \"{address}\"\n\
             port = {HTTP}\n"
        )
    };
    [
        net.config_head("l4-balancer", ""),
        nat(),
        format!("[announce]\n{announce}withdraw_wait = \"100ms\"\n"),
        service("web4", VIP4, 80, "web4", "nat"),
        "announce = true\n".into(),
        service("web6", VIP6, 80, "web6", "nat"),
        "announce = true\n".into(),
        backend("web4", SERVERS4[0]),
        backend("web6", SERVERS6[0]),
    ]
    .concat()
}

/// Whether the upstream router sends a VIP's packets to the appliance.
fn is_announced(net: &Net, vip: &str, via: &str) -> bool {
    let family = if vip.contains(':') { "-6" } else { "-4" };
    let shown = net.client.run("ip", &[family, "route", "show", vip]);
    shown.is_ok_and(|s| s.contains(&format!("via {via}")) && s.contains("proto bird"))
}

fn both(net: &Net, announced: bool) -> impl FnMut() -> bool {
    move || {
        let vips = [(VIP4, "10.0.1.1"), (VIP6, "fd00:1::1")];
        vips.iter().all(|(vip, via)| is_announced(net, vip, via) == announced)
    }
}

fn announced_while_served(net: &Net, announce: &str, table: &str) {
    let mut nginx = net.start_nginx();
    let mut edge = net.start(&config(net, announce));
    wait_for(SOON, "the VIPs upstream", both(net, true)).expect("announced");
    for url in [format!("http://{VIP4}/"), format!("http://[{VIP6}]/")] {
        let got = net.client.run("curl", &["-sf", "--max-time", "20", &url]).expect("an answer");
        assert!(got.contains("hello from behind the VIP"), "{got}");
    }
    let learnt = || {
        let of = |f: &str, p: &str| net.appliance.run("ip", &[f, "route", "show", p]);
        let is = |got: Result<String, _>| got.is_ok_and(|s: String| s.contains("dev wan"));
        is(of("-4", "198.51.100.0/24").map_err(drop))
            && is(of("-6", "2001:db8:99::/48").map_err(drop))
    };
    wait_for(SOON, "what upstream tells, in the kernel", learnt).expect("learnt");

    drop(nginx);
    wait_for(SOON, "no VIPs without servers", both(net, false)).expect("withdrawn");
    nginx = net.start_nginx();
    wait_for(SOON, "the VIPs again", both(net, true)).expect("announced again");

    net.ask(&["drain", "service", "web4"]).expect("drained");
    let drained = || !is_announced(net, VIP4, "10.0.1.1") && is_announced(net, VIP6, "fd00:1::1");
    wait_for(SOON, "one VIP without its drained service", drained).expect("withdrawn");
    net.ask(&["undrain", "service", "web4"]).expect("undrained");
    wait_for(SOON, "both VIPs", both(net, true)).expect("announced again");

    net.ask(&["stop"]).expect("stopped");
    edge.wait(SOON).expect("the end");
    for family in ["-4", "-6"] {
        let args = [family, "route", "show", "table", table, "proto", "200"];
        // Where a table never had a route, `ip` says that there is none.
        let left = net.appliance.run("ip", &args).unwrap_or_default();
        assert_eq!(left.trim(), "", "withdrawn before the end");
    }
    wait_for(SOON, "no VIPs upstream", both(net, false)).expect("withdrawn");

    let mut edge = net.start(&config(net, announce));
    wait_for(SOON, "the VIPs of another run", both(net, true)).expect("announced");
    edge.signal(Signal::SIGKILL).expect("killed");
    edge.wait(SOON).expect("the end");
    wait_for(SOON, "no VIPs of who was killed", both(net, false)).expect("withdrawn");
    drop(nginx);
}

#[test]
fn bird_announces_what_is_served() {
    let net = Net::new(1);
    let _upstream = bird(&net, &net.client, "upstream", UPSTREAM);
    let _daemon = bird(&net, &net.appliance, "edge", &adapted("bird.conf"));
    announced_while_served(&net, "", "200");
}

#[test]
fn frr_announces_what_is_served() {
    let net = Net::new(1);
    let _upstream = bird(&net, &net.client, "upstream", UPSTREAM);
    let _daemons = frr(&net, &adapted("frr.conf"), &["bgpd"]);
    announced_while_served(&net, "table = 254\n", "254");
}
