//! Ports that come and go while the XDP programs forward flows to and from them.

mod common;

use std::net::SocketAddr;

use common::annex::Annex;
use common::probe::{Echo, Lockstep};
use common::{Net, SERVERS4};

fn config(net: &Net, more: &str) -> String {
    let head = net.config_head("router", "offload = \"auto\"");
    format!("{head}{more}[transit]\nprefixes = [\"10.0.0.0/8\"]\n")
}

fn offloaded(net: &Net, port: &str) -> u64 {
    let shown = net.ask_json(&["show", "ports"]);
    let mut all = shown["ports"].as_array().expect("ports").iter();
    let of = all.find(|of| of["name"] == port).expect("the port");
    of["steered"]["offloaded"].as_u64().expect("a number")
}

/// Datagrams that a host was given.
fn arrived(annex: &Annex) -> u64 {
    let text = annex.host.run("cat", &["/proc/net/snmp"]).expect("statistics");
    let values = text.lines().filter_map(|line| line.strip_prefix("Udp: ")).nth(1);
    let first = values.and_then(|values| values.split(' ').next()?.parse().ok());
    first.expect("`InDatagrams` is the first one")
}

fn gro_on(annex: &Annex) {
    annex.host.run("ethtool", &["-K", "e0", "gro", "on"]).expect("ethtool");
}

/// Both directions by the program, of whoever is behind these ports.
fn until_offloaded(net: &Net, client: &mut Lockstep, ports: [&str; 2]) {
    let before = ports.map(|port| offloaded(net, port));
    client.until("the programs", |c| {
        (0..50).for_each(|_| _ = c.round());
        ports.iter().zip(before).all(|(port, before)| offloaded(net, port) > before + 40)
    });
}

#[test]
fn a_port_goes_and_comes_while_flows_are_offloaded_to_it_and_from_it() {
    let net = Net::new(1);
    net.client.run("ethtool", &["-K", "wan0", "gro", "on"]).expect("ethtool");
    net.server.run("ethtool", &["-K", "eth0", "gro", "on"]).expect("ethtool");
    let annex = Annex::new(&net, "dmz", 3);
    gro_on(&annex);
    let at = |address: &str| format!("{address}:7007").parse::<SocketAddr>().expect("address");
    let _echo = Echo::start(&net.server, &[at(SERVERS4[0])]);
    let _far = Echo::start(&annex.host, &[at("10.0.3.2")]);
    let with_dmz = config(&net, "[port.dmz]\ninterface = \"dmz\"\n");
    let without = config(&net, "");
    let _edge = net.start(&with_dmz);
    let mut stays = Lockstep::to(&net.client, at(SERVERS4[0]));
    let mut goes = Lockstep::to(&net.client, at("10.0.3.2"));
    until_offloaded(&net, &mut stays, ["wan", "lan"]);
    until_offloaded(&net, &mut goes, ["wan", "dmz"]);
    let reload = |text: &str| {
        net.write("tidegate.toml", text);
        net.ask(&["reload"]).expect("taken over");
    };
    for _ in 0..2 {
        reload(&without);
        // What was on its way has come by now, and the host itself is asked nothing.
        assert!((0..3).all(|_| !goes.round()), "it is no port any more");
        let before = arrived(&annex);
        assert!((0..3).all(|_| !goes.round()));
        assert_eq!(arrived(&annex), before, "sent to a port that is gone");
        until_offloaded(&net, &mut stays, ["wan", "lan"]);
        // Another interface has its name by the time that it is a port again.
        net.appliance.ip("link del dmz").expect("it was there");
        annex.link(&net);
        gro_on(&annex);
        reload(&with_dmz);
        until_offloaded(&net, &mut goes, ["wan", "dmz"]);
        assert!(stays.round(), "the other ports' flows go on");
    }
}
