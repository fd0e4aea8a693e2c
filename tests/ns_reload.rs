//! Reload under load: no flow breaks, and no more is lost than what was on its way.

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use common::probe::{Echo, Probe, lost};
use common::{HTTP, Net, SERVERS4, VIP4, nat, pool, service};

/// Packets that may be between the ports while one snapshot gives way to the next.
const IN_FLIGHT_MAX: usize = 1;
const RELOADS: usize = 20;

fn config(net: &Net, round: usize) -> String {
    let mut text = [
        net.config_head("llm-edge", ""),
        nat(),
        pool("web", SERVERS4, HTTP),
        service("web", VIP4, 80, "web", "nat"),
        pool("echo", SERVERS4, 7007),
        service("echo", VIP4, 7007, "echo", "nat"),
        "protocol = \"udp\"\n".to_string(),
    ]
    .concat();
    // Every reload changes the weights, the rates and the rules.
    let rate = 200 + 10 * (round % 5);
    text.push_str(&format!(
        "[qos.wan]\nrate = \"{rate}Mbit/s\"\ndefault = \"rest\"\n\
         [qos.wan.class.rest]\nrate = \"100Mbit/s\"\nceil = \"100%\"\n\
         [qos.wan.class.first]\nrate = \"50Mbit/s\"\nceil = \"100%\"\n\
         [[rule]]\nclient = \"10.0.{}.0/24\"\nclass = \"first\"\n",
        1 + round % 2
    ));
    text.replacen("port = 8080\n", &format!("port = 8080\nweight = {}\n", 1 + round % 3), 1)
}

#[test]
fn reload_under_load_breaks_nothing() {
    let net = Net::new(1);
    let _nginx = net.start_nginx();
    let edge_config = config(&net, 0);
    let _edge = net.start(&edge_config);
    let echo: Vec<SocketAddr> =
        SERVERS4.iter().map(|a| format!("{a}:7007").parse().expect("address")).collect();
    let _echo = Echo::start(&net.server, &echo);
    let probe = Probe::start(&net.client, format!("{VIP4}:7007").parse().expect("address"));
    let mut load = std::process::Command::new("h2load");
    load.args(["-n", "30000", "-c", "20", "--h1"]).arg(format!("http://{VIP4}/"));
    std::thread::sleep(Duration::from_millis(500));
    let from = probe.now();
    let load = net.client.spawn(load).expect("h2load");
    for round in 1..=RELOADS {
        net.write("tidegate.toml", &config(&net, round));
        net.ask(&["reload"]).expect("reload");
        std::thread::sleep(Duration::from_millis(100));
    }
    // A broken file changes nothing and says where it is broken.
    net.write("tidegate.toml", &config(&net, 1).replace("pool = \"web\"", "pool = \"wbe\""));
    let refused = net.ask(&["reload"]).expect_err("an unknown pool");
    assert!(refused.contains("tidegate.toml:") && refused.contains("wbe"), "{refused}");
    let out = load.finish().expect("h2load");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(text.contains("30000 succeeded, 0 failed, 0 errored, 0 timeout"), "{text}");
    let to = probe.now();
    let sent = probe.finish();
    let lost = lost(&sent, from, to);
    assert!(lost <= IN_FLIGHT_MAX * RELOADS, "{lost} of {} datagrams lost", sent.len());
}
