//! Ports whose program stands behind the driver (`mode = "tc"`): merged segments of up to 64 KB
//! between real programs.

mod common;

use std::process::Command;
use std::time::Duration;

use common::{HTTPS, Net, SERVERS4, SERVERS6, VIP4, VIP6, fetch, nat, noise, pool, service};
use nix::sys::signal::Signal;
use serde_json::Value;
use tidegate::lab::{Namespace, Process, wait_for};

const LIMIT: Duration = Duration::from_secs(60);
/// Each file that is fetched is 720 segments of 1448 bytes at least.
const SEGMENTS: u64 = 720;
const PORTS: [&str; 2] = ["wan", "lan"];

/// Links on which all ends merge, and let others compute their checksums.
fn net() -> Net {
    let net = Net::new(1);
    let ends = [
        (&net.client, "wan0"),
        (&net.appliance, "wan"),
        (&net.appliance, "lan"),
        (&net.server, "eth0"),
    ];
    for (ns, interface) in ends {
        for feature in ["rx", "tx", "sg", "tso", "gso", "gro"] {
            ns.run("ethtool", &["-K", interface, feature, "on"]).expect("ethtool");
        }
    }
    net
}

/// Servers of bytes that nothing repeats.
fn serve(net: &Net) -> Process {
    let nginx = net.start_nginx();
    std::fs::write(net.path("nginx/html/1m.bin"), noise(1 << 20, 1)).expect("write");
    nginx
}

/// Delayed binding, so that what is forwarded has other sequence numbers, too.
fn config(net: &Net, offload: &str) -> String {
    const UNTIMED: &str = "name = \"untimed\"\n[[stage]]\n\
                           inspect = { hello_bytes_max = 16384, flows_max = 64 }\n\
                           [[stage]]\nbalance = {}\n";
    let file = net.path("untimed.toml");
    std::fs::write(&file, UNTIMED).expect("write");
    let (pipeline, offload) = (file.to_str().expect("path"), format!("offload = \"{offload}\""));
    let mut head = net.config_head(pipeline, &offload);
    for port in PORTS {
        let interface = format!("interface = \"{port}\"\n");
        head = head.replace(&interface, &format!("{interface}mode = \"tc\"\n"));
    }
    let bound = |name, vip| service(name, vip, 443, name, "nat") + "bind = \"hello\"\n";
    let pools = pool("four", SERVERS4, HTTPS) + &pool("six", SERVERS6, HTTPS);
    [head, nat(), pools, bound("four", VIP4), bound("six", VIP6)].concat()
}

fn urls() -> [String; 2] {
    [format!("https://{VIP4}/1m.bin"), format!("https://[{VIP6}]/1m.bin")]
}

fn port(net: &Net, port: &str) -> Value {
    let all = net.ask_json(&["show", "ports"]);
    let all = all["ports"].as_array().expect("a list");
    all.iter().find(|p| p["name"] == port).cloned().unwrap_or_default()
}

/// Skbs that the program has forwarded, each of one segment or more.
fn offloaded(net: &Net, of: &str) -> u64 {
    port(net, of)["steered"]["offloaded"].as_u64().expect("a number")
}

fn companions(ns: &Namespace) -> usize {
    let links = ns.ip("-o link show type veth").expect("ip");
    links.lines().filter(|l| l.contains("tge") || l.contains("tgx")).count()
}

#[test]
fn merged_segments_are_forwarded_whole_and_counted_each() {
    let net = net();
    let _nginx = serve(&net);
    let _edge = net.start(&config(&net, "auto"));
    for name in PORTS {
        let seen = port(&net, name);
        assert_eq!(seen["attach"], "tc", "{seen}");
        assert!(seen["offload"].as_str().is_some_and(|s| s.starts_with("yes")), "{seen}");
    }
    for url in urls() {
        let before = offloaded(&net, "lan");
        let mut fetched = 0;
        wait_for(LIMIT, "flows to be handed down", || {
            fetch(&net, &url);
            fetched += 1;
            offloaded(&net, "lan") >= before + 10 && offloaded(&net, "wan") > 0
        })
        .expect("handed down");
        // A file is no more than a third as many pieces as segments; the flow has them all.
        let pieces = (offloaded(&net, "lan") - before) / fetched;
        assert!(pieces < SEGMENTS / 3, "{pieces} pieces a file: nothing was merged");
        wait_for(LIMIT, "what the program has counted", || {
            let flows = net.ask_json(&["show", "flows", "--limit", "1000"]);
            let flows = flows["flows"].as_array().cloned().unwrap_or_default();
            flows.iter().any(|f| f["packets_reply"].as_u64() >= Some(SEGMENTS))
        })
        .unwrap_or_else(|_| panic!("{}", net.ask(&["show", "flows"]).expect("flows")));
    }
}

/// What goes up to a worker is cut into frames first.
#[test]
fn workers_get_frames_of_what_is_merged() {
    let net = net();
    let _nginx = serve(&net);
    let _edge = net.start(&config(&net, "off"));
    for url in urls() {
        fetch(&net, &url);
    }
    assert_eq!(offloaded(&net, "lan"), 0);
    assert_eq!(net.ask_json(&["show", "drops"])["total"], 0);
}

/// Whatever way the process ends, its companions go: by itself, or by whoever starts next.
#[test]
fn companions_go_with_the_process_and_with_the_port() {
    let net = net();
    let text = config(&net, "auto");
    let mut edge = net.start(&text);
    assert_eq!(companions(&net.appliance), 4);
    edge.signal(Signal::SIGKILL).expect("kill");
    edge.wait(LIMIT).expect("ends");
    let mut edge = net.start(&text);
    assert_eq!(companions(&net.appliance), 4);
    // A port that is attached otherwise from now on, and one that goes back.
    for (to, left) in [("mode = \"native\"", 2), ("mode = \"tc\"", 4)] {
        let changed = text.replacen("mode = \"tc\"", to, 1);
        net.write("tidegate.toml", &changed);
        net.ask(&["reload"]).expect("taken");
        assert_eq!(companions(&net.appliance), left, "{to}");
    }
    edge.signal(Signal::SIGKILL).expect("kill");
    edge.wait(LIMIT).expect("ends");
    let mut doctor = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    doctor.args(["doctor", "--restore"]);
    let mut doctor = net.appliance.spawn(doctor).expect("start");
    doctor.wait(LIMIT).expect("ends");
    assert_eq!(companions(&net.appliance), 0);
    let mut edge = net.start(&text);
    edge.signal(Signal::SIGTERM).expect("terminate");
    edge.wait(LIMIT).expect("ends");
    assert_eq!(companions(&net.appliance), 0);
}
