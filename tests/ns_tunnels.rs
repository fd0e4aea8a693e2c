//! Services whose backends are reached through tunnels: real TCP, larger than fits into them.

mod common;

use std::process::Command;
use std::time::Duration;

use common::{HTTP, HTTPS, Net, SERVERS4, SERVERS6, VIP4, VIP6, pool, service};
use tidegate::lab::{Process, wait_for};

const GUE_PORT: u16 = 6080;

/// Takes tunnels apart in the servers' namespace, which holds the VIPs.
fn decapsulate(net: &Net) -> Process {
    net.server.ip(&format!("addr add {VIP4}/32 dev lo")).expect("VIP");
    net.server.ip(&format!("addr add {VIP6}/128 dev lo")).expect("VIP");
    net.server.sysctl("net.ipv4.conf.all.rp_filter", "0").expect("sysctl");
    net.server.sysctl("net.ipv4.conf.default.rp_filter", "0").expect("sysctl");
    let seen = net.path("seen");
    let mut command = Command::new("python3");
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/decapsulate.py"));
    command.args(["inner", &GUE_PORT.to_string()]).arg(&seen);
    let mut process = net.server.spawn(command).expect("python3");
    let ready = wait_for(Duration::from_secs(20), "the tunnels' end", || {
        !process.is_running() || seen.exists()
    });
    if ready.is_err() || !process.is_running() {
        panic!("no tunnels' end: {}", process.kill_and_read_stderr());
    }
    process
}

/// Both families within both. Answers go to the client directly; here the appliance's kernel
/// stands for their way.
fn config(net: &Net, mode: &str, tunnel: &str) -> String {
    let cleartext = |name: &str, vip, servers| {
        [pool(name, servers, HTTP), service(name, vip, HTTP, name, mode)].concat()
    };
    let tls = |name: &str, vip, servers| {
        [pool(name, servers, HTTPS), service(name, vip, HTTPS, name, mode)].concat()
    };
    [
        net.config_head("l4-balancer", ""),
        cleartext("four-in-four", VIP4, SERVERS4),
        cleartext("six-in-six", VIP6, SERVERS6),
        tls("four-in-six", VIP4, SERVERS6),
        tls("six-in-four", VIP6, SERVERS4),
        tunnel.to_string(),
    ]
    .concat()
}

fn ask_everything(net: &Net) {
    // A request that takes several whole segments, which don't fit into the tunnel.
    let filler = format!("X-Filler: {}", "x".repeat(7_000));
    for host in [VIP4.to_string(), format!("[{VIP6}]")] {
        for url in [format!("http://{host}:{HTTP}/"), format!("https://{host}:{HTTPS}/")] {
            for extra in [&[][..], &["-H", &filler]] {
                let args = [&["-skS", "-m", "30", "--http1.1", &url], extra].concat();
                let got = net.client.run("curl", &args);
                assert!(got.as_ref().is_ok_and(|out| out.contains("hello")), "{url}: {got:?}");
            }
        }
    }
}

fn serves(mode: &str, tunnel: &str, sources: [&str; 2]) {
    let net = Net::new(1);
    net.kernel_forwards(true);
    let _end = decapsulate(&net);
    let _nginx = net.start_nginx();
    let _edge = net.start(&config(&net, mode, tunnel));
    ask_everything(&net);
    let seen = std::fs::read_to_string(net.path("seen")).expect("what the tunnels' end has seen");
    for (way, source) in
        [("4 in 4", 0), ("6 in 4", 0), ("4 in 6", 1), ("6 in 6", 1)].map(|(w, s)| (w, sources[s]))
    {
        let is = |line: &str| {
            line.strip_prefix(&format!("{mode} {way} from ")).is_some_and(|s| s.starts_with(source))
        };
        assert!(seen.lines().any(is), "no {way} from {source}:\n{seen}");
    }
    let drops = net.ask_json(&["show", "drops"]);
    let too_big = drops.to_string().contains("too_big");
    assert!(too_big, "whole segments were to be too large: {drops:#}");
}

#[test]
fn ip_in_ip_carries_both_families() {
    serves("ipip", "", ["10.0.2.1", "fd00:2::1"]);
}

#[test]
fn gue_carries_both_families_from_many_addresses() {
    let tunnel = "[tunnel]\nsources = [\"10.0.77.0/24\", \"fd00:77::/64\"]\n";
    serves("gue", tunnel, ["10.0.77.", "fd00:77::"]);
}
