//! The appliance dies, hangs or stops under load: what becomes of the traffic.

mod common;

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::Duration;

use common::probe::{Echo, Probe, longest_silence, lost};
use common::{Net, SERVERS4};
use nix::sys::signal::Signal;
use tidegate::lab::{Process, wait_for};

/// The XDP program bypasses a worker whose heartbeat is older.
const HEARTBEAT_LIMIT: Duration = Duration::from_millis(100);
/// For what takes no time on an idle machine.
const LIMIT: Duration = Duration::from_secs(60);
/// Where no heartbeat is to be missed, however busy the machine is.
const PATIENT: Duration = Duration::from_secs(10);
/// What a loaded machine of two cores may add to any of it: silence that lasts is longer.
const SLACK: Duration = Duration::from_millis(1_400);

fn target() -> SocketAddr {
    format!("{}:7007", SERVERS4[0]).parse().expect("address")
}

fn config(net: &Net, on_failure: &str, heartbeat_limit: Duration) -> String {
    let limit = heartbeat_limit.as_millis();
    let workers = format!("on_failure = \"{on_failure}\"\nheartbeat_limit = \"{limit}ms\"");
    [
        net.config_head("router", &workers),
        "[transit]\nprefixes = [\"10.0.0.0/8\", \"fd00::/16\"]\n".to_string(),
    ]
    .concat()
}

/// What happened to the traffic before and after `blow`, for a second each.
struct Outcome {
    before_lost: usize,
    answered_before: usize,
    silence_after: Duration,
    /// In the second half of the time after the blow.
    answered_late: usize,
}

fn under_load(net: &Net, process: &mut Process, blow: impl FnOnce(&mut Process)) -> Outcome {
    let _echo = Echo::start(&net.server, &[target()]);
    let probe = Probe::start(&net.client, target());
    sleep(Duration::from_secs(1));
    let blow_at = probe.now();
    blow(process);
    sleep(Duration::from_secs(2));
    let end = probe.now();
    let sent = probe.finish();
    let late = end - Duration::from_secs(1);
    Outcome {
        // The first datagrams wait for neighbours to be resolved.
        before_lost: lost(&sent, Duration::from_millis(300), blow_at - Duration::from_millis(50)),
        answered_before: sent.iter().filter(|s| s.answered && s.at < blow_at).count(),
        silence_after: longest_silence(&sent, blow_at, end),
        answered_late: sent.iter().filter(|s| s.answered && s.at > late).count(),
    }
}

#[test]
fn killed_with_pass_the_kernel_goes_on() {
    let net = Net::new(1);
    net.kernel_forwards(true);
    let mut edge = net.start(&config(&net, "pass", PATIENT));
    let seen = under_load(&net, &mut edge, |p| p.signal(Signal::SIGKILL).expect("kill"));
    assert_eq!(seen.before_lost, 0, "lost while all was well");
    assert!(seen.silence_after < HEARTBEAT_LIMIT + SLACK, "{:?}", seen.silence_after);
    assert!(seen.answered_late > 0, "nothing goes on");
    let link = net.appliance.ip("-d link show wan").expect("ip");
    assert!(!link.contains("xdp"), "the program is still there: {link}");
}

#[test]
fn killed_with_drop_traffic_stops() {
    let net = Net::new(1);
    net.kernel_forwards(true);
    let mut edge = net.start(&config(&net, "drop", PATIENT));
    let seen = under_load(&net, &mut edge, |p| p.signal(Signal::SIGKILL).expect("kill"));
    assert_eq!(seen.before_lost, 0, "lost while all was well");
    assert_eq!(seen.answered_late, 0, "traffic went on");
    // The next start takes the left program over, and traffic flows again.
    drop(edge);
    let mut edge = net.start(&config(&net, "drop", PATIENT));
    let seen = under_load(&net, &mut edge, |p| {
        p.signal(Signal::SIGTERM).expect("term");
        assert!(p.wait(LIMIT).expect("ends").success());
    });
    assert_eq!(seen.before_lost, 0, "lost after the second start");
    let link = net.appliance.ip("-d link show wan").expect("ip");
    assert!(!link.contains("xdp"), "left behind by a clean stop: {link}");
}

#[test]
fn a_hung_worker_is_bypassed_within_its_limit() {
    let net = Net::new(1);
    net.kernel_forwards(true);
    let mut edge = net.start(&config(&net, "pass", HEARTBEAT_LIMIT));
    let seen = under_load(&net, &mut edge, |p| p.signal(Signal::SIGSTOP).expect("stop"));
    assert_eq!(seen.before_lost, 0, "lost while all was well");
    assert!(seen.silence_after < HEARTBEAT_LIMIT + SLACK, "{:?}", seen.silence_after);
    assert!(seen.answered_late > 0, "nothing goes on");
    edge.signal(Signal::SIGCONT).expect("continue");
}

#[test]
fn a_hung_worker_with_drop_stops_its_traffic() {
    let net = Net::new(1);
    net.kernel_forwards(true);
    let mut edge = net.start(&config(&net, "drop", HEARTBEAT_LIMIT));
    let seen = under_load(&net, &mut edge, |p| p.signal(Signal::SIGSTOP).expect("stop"));
    assert!(seen.answered_before > 0, "nothing came through before");
    assert_eq!(seen.answered_late, 0, "traffic went on");
    edge.signal(Signal::SIGCONT).expect("continue");
}

#[test]
fn a_graceful_stop_leaves_the_interface_as_it_was() {
    let net = Net::new(1);
    net.kernel_forwards(true);
    let features = |net: &Net| {
        ["wan", "lan"].map(|i| net.appliance.run("ethtool", &["-k", i]).expect("ethtool"))
    };
    for i in ["wan", "lan"] {
        net.appliance.run("ethtool", &["-K", i, "gro", "on"]).expect("ethtool");
    }
    let before = features(&net);
    let mut edge = net.start(&config(&net, "pass", PATIENT));
    assert_ne!(before, features(&net), "GRO is off on AF_XDP ports");
    edge.signal(Signal::SIGTERM).expect("term");
    assert!(edge.wait(LIMIT).expect("ends").success());
    assert_eq!(before, features(&net));
    assert!(!net.socket().exists(), "the control socket is left");
    let link = net.appliance.ip("-d link show wan").expect("ip");
    assert!(!link.contains("xdp"), "{link}");
}

/// The port is not what another interface of its name is: packets that it would lose are dropped
/// with a reason, `show ports` says so, and the end is in order.
#[test]
fn an_interface_that_is_replaced_is_told_of() {
    let net = Net::new(1);
    let mut edge = net.start(&config(&net, "pass", PATIENT));
    let state = || {
        let ports = net.ask_json(&["show", "ports"]);
        let shown = net.ask(&["show", "ports"]).expect("ports");
        let lan = shown.lines().find(|line| line.starts_with("lan")).unwrap_or_default();
        let words = ["up", "down", "gone", "replaced"];
        let word = lan.split_whitespace().find(|w| words.contains(w)).unwrap_or_default();
        (word.to_owned(), ports["ports"][1]["replaced"] == true)
    };
    let becomes = |word: &str| {
        let is = || state() == (word.to_owned(), word == "replaced");
        wait_for(LIMIT, word, is).unwrap_or_else(|_| panic!("{word}: {:?}", state()));
    };
    becomes("up");
    net.appliance.ip("link del lan").expect("ip");
    becomes("gone");
    net.appliance.ip("link add lan type veth peer name lan-peer").expect("ip");
    for link in ["lan", "lan-peer"] {
        net.appliance.ip(&format!("link set {link} up")).expect("ip");
    }
    net.appliance.ip("addr add 10.0.2.1/24 dev lan").expect("ip");
    becomes("replaced");
    let drops = || net.ask_json(&["show", "drops"])["total"].as_u64().expect("a number");
    let before = drops();
    let send = || {
        let sent = net.client.enter(|| {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("bind");
            socket.send_to(b"lost", (SERVERS4[0], 9)).expect("send");
        });
        sent.expect("thread");
        drops() > before
    };
    wait_for(LIMIT, "a reason", send).expect("dropped");
    edge.signal(Signal::SIGTERM).expect("term");
    assert!(edge.wait(LIMIT).expect("ends").success());
}

/// A worker that drains receives nothing more: what arrives is the kernel's from the first moment.
#[test]
fn while_it_drains_the_kernel_forwards() {
    let net = Net::new(1);
    net.kernel_forwards(true);
    let shaped = format!(
        "{}[qos.lan]\nrate = \"20kbit/s\"\ndefault = \"all\"\n\
         [qos.lan.class.all]\nrate = \"100%\"\nqueue = \"fifo\"\n",
        config(&net, "pass", PATIENT).replace("on_failure", "drain_limit = \"6s\"\non_failure")
    );
    let mut edge = net.start(&shaped);
    let _echo = Echo::start(&net.server, &[target()]);
    fill_queue(&net);
    edge.signal(Signal::SIGTERM).expect("term");
    sleep(Duration::from_millis(500));
    let probe = Probe::start(&net.client, target());
    sleep(Duration::from_secs(1));
    let sent = probe.finish();
    if !edge.is_running() {
        let out = edge.finish().expect("output");
        panic!("ended already: {} {}", out.status, String::from_utf8_lossy(&out.stderr));
    }
    let answered = sent.iter().filter(|s| s.answered).count();
    assert!(answered > sent.len() / 2, "{answered} of {} answers", sent.len());
    assert!(edge.wait(LIMIT).expect("ends").success());
}

/// Sends more to a port that nobody listens to than a slow link carries in many seconds.
fn fill_queue(net: &Net) {
    let sent = net.client.enter(|| {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("bind");
        for i in 0..2_000 {
            let _ = socket.send_to(&[0; 1_200], (SERVERS4[1], 9));
            // Few are kept until the neighbour is known.
            sleep(Duration::from_micros(if i < 5 { 100_000 } else { 100 }));
        }
    });
    sent.expect("thread");
}
