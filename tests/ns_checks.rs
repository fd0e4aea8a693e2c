//! Health checks go the way of real traffic: a server that is well by itself, but does not take
//! its tunnel apart or has no VIP, is down.

mod common;

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use common::{H2C, HTTP, HTTPS, NAT4, NAT6, Net, SERVERS4, SERVERS6, VIP4, VIP6};
use common::{nat, pool, service};
use nix::sys::signal::Signal;
use tidegate::lab::{Process, wait_for};

const GUE_PORT: u16 = 6080;
/// For what takes a few seconds on a machine of its own.
const SOON: Duration = Duration::from_secs(60);

/// A service and its pool of one name, whose backends are checked.
fn checked(
    name: &str,
    (vip, port): (&str, u16),
    servers: [&str; 3],
    mode: &str,
    check: &str,
) -> String {
    let at = if mode == "nat" { HTTP } else { port };
    let check = format!(
        "[pool.{name}.health]\n{check}\ninterval = \"200ms\"\ntimeout = \"1s\"\n\
         fall = 1\nrise = 1\nflap_window = \"0s\"\n"
    );
    [pool(name, servers, at), service(name, vip, port, name, mode), check].concat()
}

fn config(net: &Net) -> String {
    let http = "type = \"http\"\nbody = \"hello\"";
    let tls = "type = \"tls\"\nsni = \"chat.test.example\"";
    let http2 = "type = \"http2\"\nbody = \"hello\"";
    // nginx answers who has asked.
    let from = |nat: &str| format!("type = \"http\"\npath = \"/whoami\"\nbody = \" {nat}\"");
    [
        net.config_head("l4-balancer", "count = 2"),
        nat(),
        checked("ipip-four", (VIP4, HTTP), SERVERS4, "ipip", http),
        checked("ipip-six", (VIP6, HTTP), SERVERS6, "ipip", http),
        checked("gue-six-in-four", (VIP6, HTTPS), SERVERS4, "gue", tls),
        checked("gue-four-in-six", (VIP4, HTTPS), SERVERS6, "gue", tls),
        checked("dsr-four", (VIP4, H2C), SERVERS4, "dsr", http2),
        checked("dsr-six", (VIP6, H2C), SERVERS6, "dsr", http2),
        checked("nat-four", (VIP4, 80), SERVERS4, "nat", &from(NAT4)),
        checked("nat-six", (VIP6, 80), SERVERS6, "nat", &from(NAT6)),
    ]
    .concat()
}

fn decapsulate(net: &Net) -> Process {
    let seen = net.path("seen");
    let mut command = Command::new("python3");
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/decapsulate.py"));
    command.args(["inner", &GUE_PORT.to_string()]).arg(&seen);
    let mut process = net.server.spawn(command).expect("python3");
    let ready = wait_for(SOON, "the tunnels' end", || !process.is_running() || seen.exists());
    if ready.is_err() || !process.is_running() {
        panic!("no tunnels' end: {}", process.kill_and_read_stderr());
    }
    process
}

/// Waits until the pools are up whose names have such a beginning, with all their backends, and no
/// others.
fn until_up(net: &Net, beginnings: &[&str]) {
    let mut last = serde_json::Value::Null;
    let agreed = wait_for(SOON, "the checks to agree", || {
        last = net.ask_json(&["show", "backends"]);
        let backends = last["backends"].as_array().expect("backends");
        backends.iter().all(|b| {
            let name = b["pool"].as_str().expect("a name");
            let wanted = beginnings.iter().any(|beginning| name.starts_with(beginning));
            let health = &b["health"];
            health["checks"].as_u64() > Some(0) && health["up"] == wanted
        })
    });
    assert!(agreed.is_ok(), "{beginnings:?} were to be up: {last:#}");
}

#[test]
fn a_check_shows_what_a_client_would_find() {
    let net = Net::new(2);
    net.server.sysctl("net.ipv4.conf.all.rp_filter", "0").expect("sysctl");
    net.server.sysctl("net.ipv4.conf.default.rp_filter", "0").expect("sysctl");
    let links = || {
        let all = net.appliance.ip("-o link").expect("ip");
        let names = all.lines().filter_map(|line| line.split_whitespace().nth(1));
        names.map(str::to_string).collect::<BTreeSet<_>>()
    };
    let before = links();
    let _nginx = net.start_nginx();
    let edge = net.start(&config(&net));
    // All servers answer at their own addresses.
    until_up(&net, &["nat"]);
    for vip in [VIP4, VIP6] {
        let whole = if vip.contains(':') { 128 } else { 32 };
        net.server.ip(&format!("addr add {vip}/{whole} dev lo")).expect("VIP");
    }
    until_up(&net, &["nat", "dsr"]);
    let end = decapsulate(&net);
    until_up(&net, &["nat", "dsr", "ipip", "gue"]);
    let seen = std::fs::read_to_string(net.path("seen")).expect("what the tunnels' end has seen");
    for way in ["ipip 4 in 4 from 10.0.2.1", "ipip 6 in 6 from fd00:2::1"] {
        assert!(seen.lines().any(|line| line == way), "no {way}: {seen}");
    }
    for way in ["gue 6 in 4 from 10.0.2.1", "gue 4 in 6 from fd00:2::1"] {
        assert!(seen.lines().any(|line| line == way), "no {way}: {seen}");
    }
    end.signal(Signal::SIGKILL).expect("kill");
    until_up(&net, &["nat", "dsr"]);
    // Another way, without a restart: what only tunnels do no longer matters.
    let text = config(&net).replace("mode = \"ipip\"", "mode = \"dsr\"");
    net.write("tidegate.toml", &text);
    // Ports of checks are not for others.
    net.appliance.sysctl("net.ipv4.ip_local_port_range", "32768 65000").expect("sysctl");
    let told = net.ask_json(&["reload"])["warnings"].to_string();
    assert!(told.contains("net.ipv4.ip_local_reserved_ports=64000-64511"), "{told}");
    until_up(&net, &["nat", "dsr", "ipip"]);
    net.server.ip(&format!("addr del {VIP6}/128 dev lo")).expect("VIP");
    until_up(&net, &["nat", "dsr-four", "ipip-four"]);
    // Nothing of the checks is to be seen, during the run or after a bad end.
    assert_eq!(links(), before);
    edge.signal(Signal::SIGKILL).expect("kill");
    assert_eq!(links(), before);
}

/// Starts it in a mount namespace of its own, in which this was done.
fn start_where(net: &Net, is_done: &str, config: &str) -> Process {
    let script = format!("{is_done} && exec \"$0\" \"$@\"");
    net.start_through(config, &["unshare", "-m", "sh", "-c", &script])
}

fn http_by_nat(net: &Net) -> String {
    let http = checked("nat", (VIP4, 80), SERVERS4, "nat", "type = \"http\"\nbody = \"hello\"");
    [net.config_head("l4-balancer", ""), nat(), http].concat()
}

#[test]
fn checks_that_the_kernel_has_no_place_for_are_refused_by_a_reload() {
    let net = Net::new(1);
    let with = http_by_nat(&net);
    let without = with.split("[pool.nat.health]").next().expect("a part").to_owned();
    let _edge = start_where(&net, "mount --bind /dev/null /dev/net/tun", &without);
    net.write("tidegate.toml", &with);
    for refused in 1..=2 {
        let words = net.ask(&["reload"]).expect_err("no TUN device");
        assert!(words.contains("for want of a TUN device (/dev/net/tun)"), "{words}");
        let counted = net.ask_json(&["show", "counters"])["process"]["reloads_refused"].clone();
        assert_eq!(counted, refused);
    }
    let backends = net.ask_json(&["show", "backends"])["backends"].to_string();
    assert!(!backends.contains("\"up\":false"), "{backends}");
    net.write("tidegate.toml", &without);
    let same = net.ask_json(&["reload"]);
    assert_eq!(same["unchanged"], true, "{same}");
}

/// As in some containers.
#[test]
fn checks_do_without_a_proc_that_can_be_written() {
    let net = Net::new(1);
    let _nginx = net.start_nginx();
    let readonly = "mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys";
    let mut edge = start_where(&net, readonly, &http_by_nat(&net));
    until_up(&net, &["nat"]);
    edge.signal(Signal::SIGTERM).expect("term");
    edge.wait(SOON).expect("ends");
    let said = edge.kill_and_read_stderr();
    assert!(said.contains("tcp_tw_reuse: ports of health checks are free again later"), "{said}");
}
