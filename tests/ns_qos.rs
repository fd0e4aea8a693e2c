//! The class tree under real traffic: iperf3, Linux's TCP with and without ECN, a flood, and a
//! stream that must not feel any of it.

mod common;

use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::thread::JoinHandle;
use std::time::Duration;

use common::stream::{Flood, Stream};
use common::{Net, SERVERS4};
use serde_json::Value;
use tidegate::lab::{Process, wait_for};

/// iperf3's ports, one a class; then the stream's and the flood's.
const W: u16 = 5201;
const O: u16 = 5202;
const B: u16 = 5203;
const STREAM: u16 = 7001;
const FLOOD: u16 = 7002;

/// A router whose port to the servers has this tree; destination ports tell the classes.
fn routed(tree: &str, rules: &[(u16, &str)]) -> (Net, Process) {
    routed_by(1, tree, rules)
}

/// As [`routed`], by so many workers.
fn routed_by(workers: u16, tree: &str, rules: &[(u16, &str)]) -> (Net, Process) {
    let net = Net::new(workers);
    net.kernel_forwards(false);
    let mut config = net.config_head("router", &format!("count = {workers}"));
    config += "[transit]\nprefixes = [\"10.0.0.0/8\"]\n";
    config += tree;
    for (port, class) in rules {
        config +=
            &format!("[[rule]]\nname = \"to-{port}\"\nport = [{port}]\nclass = \"{class}\"\n");
    }
    let edge = net.start(&config);
    (net, edge)
}

fn class(name: &str, lines: &str) -> String {
    format!("[qos.lan.class.{name}]\n{lines}\n")
}

fn server(net: &Net, port: u16) -> Process {
    let mut command = Command::new("iperf3");
    command.args(["-s", "-J", "-p", &port.to_string()]);
    let server = net.server.spawn(command).expect("iperf3");
    let filter = format!(":{port}");
    wait_for(Duration::from_secs(30), "iperf3", || {
        let listening = net.server.run("ss", &["-Hltn", "sport", "=", &filter]);
        listening.is_ok_and(|out| !out.is_empty())
    })
    .expect("listening");
    server
}

/// Runs iperf3 for so long, in a thread of its own. Cubic, unlike BBR, answers to marks and drops.
fn iperf(net: &Net, port: u16, flows: u32, seconds: u32) -> JoinHandle<Value> {
    let words = format!(
        "-J --get-server-output -C cubic -c {} -p {port} -P {flows} -t {seconds}",
        SERVERS4[0]
    );
    let run = move || {
        let out = Command::new("iperf3").args(words.split(' ')).output().expect("iperf3");
        let text = String::from_utf8_lossy(&out.stdout);
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
    };
    net.client.thread("iperf3", run).expect("thread")
}

/// A counter of nstat; 0 where it never counted.
fn nstat(net: &Net, client: bool, name: &str) -> u64 {
    let ns = if client { &net.client } else { &net.server };
    let out = ns.run("nstat", &["-asz", name]).expect("nstat");
    let line = out.lines().find(|line| line.starts_with(name)).expect("counter");
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("number")
}

/// What `show qos` says of a class on the port to the servers, once a worker has told of it.
fn shown(net: &Net, class: &str) -> Value {
    let mut told = None;
    let all = wait_for(Duration::from_secs(20), class, || {
        let shown = net.ask_json(&["show", "qos"]);
        let classes = shown["classes"].as_array().expect("classes");
        let of = |c: &&Value| c["class"] == class && c["port"] == "lan";
        told = classes.iter().find(of).map(|c| c["values"].clone());
        told.is_some()
    });
    told.unwrap_or_else(|| panic!("{all:?}: {:#}", net.ask_json(&["show", "qos"])))
}

/// Workers tell of their classes once a second: asking more often only takes the processor from
/// those that send.
const ASKED_EVERY: Duration = Duration::from_millis(300);
/// Bytes a second of the port, frames counted whole.
const TABLE_PORT: u64 = 2_500_000;

/// Rows 1 and 4 of the table: everyone sends; then the largest is silent.
#[test]
fn shares_are_those_of_the_table() {
    // For as long as a shared machine may keep the worker off its core no rate is lost (bursts of
    // 100 ms), and for as long as it may keep the peers off theirs packets wait (up to 2 s, of what
    // the class gets at most).
    let leaf = |name, percent: u64, weight: u64, most: u64| {
        let (burst, limit) = (TABLE_PORT * percent / 1_000, TABLE_PORT * most / 50);
        let lines = format!(
            "rate = \"{percent}%\"\nweight = {weight}\nqueue = \"fifo\"\n\
             burst = {burst}\nlimit = {limit}"
        );
        class(name, &lines)
    };
    let tree = [
        format!("[qos.lan]\nrate = \"20Mbit/s\"\nburst = {}\ndefault = \"w\"\n", TABLE_PORT / 10),
        leaf("w", 30, 3, 75),
        leaf("o", 10, 1, 25),
        leaf("b", 60, 6, 60),
    ]
    .concat();
    let (net, _edge) = routed(&tree, &[(W, "w"), (O, "o"), (B, "b")]);
    let _servers = [W, O, B].map(|port| server(&net, port));
    let client = |port: u16| {
        let mut command = Command::new("iperf3");
        // Reno fills a queue at once, where others stop at the first sign of one.
        let words = format!("-C reno -c {} -p {port} -P 8 -t 600", SERVERS4[0]);
        command.args(words.split(' '));
        net.client.spawn(command).expect("iperf3")
    };
    let _others = [W, O].map(client);
    let largest = client(B);
    assert_shares(&net, &[("w", 30), ("o", 10), ("b", 60)], &[]);
    drop(largest);
    assert_shares(&net, &[("w", 75), ("o", 25)], &["b"]);
}

/// Holds what classes send to their percentages, over some seconds in which packets of all these
/// wait, and none of the `silent` ones. Where the worker was kept from its core, the classes are at
/// different places of their bursts when it begins or ends: the longer it is, the less that tells.
/// So what is wrong is measured anew, over twice as long each time.
fn assert_shares(net: &Net, want: &[(&str, u64)], silent: &[&str]) {
    let mut all_wrong = Vec::new();
    for seconds in [4, 8, 16, 32] {
        let got = sent_of(net, want, silent, seconds * TABLE_PORT);
        let all: u64 = got.iter().sum();
        let wrong = want.iter().zip(&got).find(|((_, percent), bytes)| {
            let share = **bytes as f64 / all as f64 * 100.0;
            (share / *percent as f64 - 1.0).abs() > 0.02
        });
        let Some(((class, percent), bytes)) = wrong else { return };
        let share = *bytes as f64 / all as f64 * 100.0;
        all_wrong.push(format!("{class}: {share:.2} %, not {percent}, of {got:?} bytes"));
    }
    panic!("{all_wrong:#?}");
}

/// What classes send while the port sends so many bytes; as above.
fn sent_of(net: &Net, want: &[(&str, u64)], silent: &[&str], bytes_min: u64) -> Vec<u64> {
    let (mut since, mut got) = (None, Vec::new());
    let longest = Duration::from_secs(90 + 3 * bytes_min / TABLE_PORT);
    let all = wait_for(longest, "packets of all classes to wait", || {
        std::thread::sleep(ASKED_EVERY);
        let shown = net.ask_json(&["show", "qos"]);
        let classes = shown["classes"].as_array().expect("classes");
        let value = |class: &str, name: &str| {
            let of = |c: &&Value| c["class"] == class && c["port"] == "lan";
            let class = classes.iter().find(of).unwrap_or_else(|| panic!("{shown:#}"));
            class["values"][name].as_u64().expect("a number")
        };
        let waits = |(class, percent): &(&str, u64)| {
            value(class, "backlog_bytes") > TABLE_PORT * percent / 200 // half a second
        };
        if !want.iter().all(waits) || silent.iter().any(|c| value(c, "backlog_bytes") > 0) {
            since = None;
            return false;
        }
        let sent: Vec<u64> = want.iter().map(|(class, _)| value(class, "sent_bytes")).collect();
        let start: &Vec<u64> = since.get_or_insert_with(|| sent.clone());
        got = sent.iter().zip(start).map(|(now, before)| now - before).collect();
        got.iter().sum::<u64>() >= bytes_min
    });
    all.unwrap_or_else(|e| panic!("{e}: {:#}", net.ask_json(&["show", "qos"])));
    got
}

#[test]
fn a_stream_loses_nothing_beside_greedy_flows_and_a_flood() {
    const DATAGRAMS: usize = 200;
    let tree = [
        "[qos.lan]\nrate = \"40Mbit/s\"\ndefault = \"bulk\"\n".to_string(),
        class("interactive", "rate = \"10%\"\npriority = 0"),
        class("bulk", "rate = \"50%\"\npriority = 1"),
    ]
    .concat();
    let (net, _edge) = routed(&tree, &[(STREAM, "interactive")]);
    let _server = server(&net, W);
    let to = |address: &str, port: u16| SocketAddr::new(address.parse().expect("address"), port);
    let flood = Flood::start(&net.client, to(SERVERS4[1], FLOOD), 60_000_000);
    let greedy = iperf(&net, W, 32, 6);
    std::thread::sleep(Duration::from_secs(1));
    // One in a class of its own, one among those that flood: there its flow alone protects it.
    let targets = [to(SERVERS4[0], STREAM), to(SERVERS4[2], STREAM + 10)];
    let streams = targets.map(|target| Stream::start(&net.client, &net.server, target, DATAGRAMS));
    for (target, stream) in targets.iter().zip(streams) {
        let lost = stream.finish().iter().filter(|delay| delay.is_none()).count();
        assert_eq!(lost, 0, "of the stream to {target}");
    }
    greedy.join().expect("run");
    drop(flood);
    let bulk = shown(&net, "bulk");
    assert!(bulk["dropped_packets"].as_u64() > Some(100), "there was no overload: {bulk:#}");
    let mut interactive = Value::Null;
    let published = wait_for(Duration::from_secs(30), "the stream's count", || {
        interactive = shown(&net, "interactive");
        interactive["sent_packets"].as_u64() == Some(DATAGRAMS as u64)
    });
    assert!(published.is_ok(), "{interactive:#}");
}

/// One flow, whose rule names another class of the tree after a reload, and then one that is new.
#[test]
fn a_reload_moves_live_flows_to_their_new_classes() {
    let tree = |names: &[&str]| {
        let leaf = |name: &&str| class(name, "rate = \"10%\"");
        "[qos.lan]\nrate = \"40Mbit/s\"\ndefault = \"rest\"\n".to_string()
            + &names.iter().map(leaf).collect::<String>()
    };
    let rule = |class: &str| format!("[[rule]]\nport = [{FLOOD}]\nclass = \"{class}\"\n");
    let net = Net::new(1);
    net.kernel_forwards(false);
    let head = net.config_head("router", "count = 1") + "[transit]\nprefixes = [\"10.0.0.0/8\"]\n";
    let _edge = net.start(&(head.clone() + &tree(&["gold", "silver", "rest"]) + &rule("gold")));
    let target = SocketAddr::new(SERVERS4[1].parse().expect("address"), FLOOD);
    let _flow = Flood::start(&net.client, target, 1_000_000);
    let sent = |class: &str| {
        std::thread::sleep(ASKED_EVERY);
        shown(&net, class)["sent_packets"].as_u64().expect("a number")
    };
    let sends = |class: &str| {
        let before = sent(class);
        let moves = wait_for(Duration::from_secs(30), class, || sent(class) > before + 100);
        moves.unwrap_or_else(|e| panic!("{e}: {:#}", net.ask_json(&["show", "qos"])));
    };
    sends("gold");
    let changes = [(["gold", "silver", "rest"], "silver"), (["gold", "bronze", "rest"], "bronze")];
    for (names, class) in changes {
        net.write("tidegate.toml", &(head.clone() + &tree(&names) + &rule(class)));
        net.ask(&["reload"]).expect("taken over");
        sends(class);
    }
    assert_eq!(sent("rest"), 0);
}

/// What waits of a flow in a slow class goes with it to a fast one, before what comes next.
#[test]
fn a_flow_keeps_its_order_when_its_class_changes() {
    const DATAGRAMS: u32 = 1_000;
    const EVERY: Duration = Duration::from_millis(5);
    let slow =
        ["rate = \"100kbit/s\"", "ceil = \"100kbit/s\"", "target = \"9s\"", "interval = \"10s\""]
            .join("\n");
    let tree = "[qos.lan]\nrate = \"40Mbit/s\"\ndefault = \"rest\"\n".to_string()
        + &class("slow", &slow)
        + &class("fast", "rate = \"10%\"")
        + &class("rest", "rate = \"10%\"");
    let rule = |class: &str| format!("[[rule]]\nport = [{FLOOD}]\nclass = \"{class}\"\n");
    let net = Net::new(1);
    net.kernel_forwards(false);
    let head = net.config_head("router", "count = 1") + "[transit]\nprefixes = [\"10.0.0.0/8\"]\n";
    let _edge = net.start(&(head.clone() + &tree + &rule("slow")));
    let target = SocketAddr::new(SERVERS4[1].parse().expect("address"), FLOOD);
    let bind = move || UdpSocket::bind(target);
    let receiver = net.server.enter(bind).expect("thread").expect("bind");
    receiver.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
    let received = std::thread::spawn(move || {
        let (mut numbers, mut payload) = (Vec::new(), [0; 4]);
        while numbers.len() < DATAGRAMS as usize && receiver.recv(&mut payload).is_ok() {
            numbers.push(u32::from_be_bytes(payload));
        }
        numbers
    });
    let send = move || {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("bind");
        socket.connect(target).expect("connect");
        for n in 0..DATAGRAMS {
            socket.send(&n.to_be_bytes()).expect("send");
            std::thread::sleep(EVERY);
        }
    };
    let sender = net.client.thread("numbers", send).expect("thread");
    let waiting = || shown(&net, "slow")["backlog_packets"].as_u64().expect("a number");
    wait_for(Duration::from_secs(20), "a backlog", || waiting() > 40).expect("slow enough");
    net.write("tidegate.toml", &(head + &tree + &rule("fast")));
    net.ask(&["reload"]).expect("taken over");
    wait_for(Duration::from_secs(20), "its way out", || waiting() == 0).expect("taken along");
    sender.join().expect("sender");
    let numbers = received.join().expect("receiver");
    assert_eq!(numbers, (0..DATAGRAMS).collect::<Vec<_>>(), "none lost, none overtaken");
}

/// Datagrams of many flows, which the kernel spreads over both workers.
#[test]
fn what_is_shown_is_the_sum_over_the_workers() {
    const FLOWS: u64 = 32;
    const EACH: u64 = 8;
    const PAYLOAD: usize = 200;
    /// With Ethernet, IPv4 and UDP headers, and the port's overhead.
    const COUNTED: u64 = PAYLOAD as u64 + 14 + 20 + 8 + 24;
    let tree = [
        "[qos.lan]\nrate = \"100Mbit/s\"\ndefault = \"rest\"\n".to_string(),
        class("told", "rate = \"50%\""),
        class("rest", "rate = \"10%\""),
    ]
    .concat();
    let (net, _edge) = routed_by(2, &tree, &[(STREAM, "told")]);
    let send = |flows: u64, each: u64| {
        let all = move || {
            for _ in 0..flows {
                let socket = UdpSocket::bind("10.0.1.2:0").expect("bind");
                for _ in 0..each {
                    socket.send_to(&[0; PAYLOAD], (SERVERS4[0], STREAM)).expect("send");
                }
            }
        };
        net.client.enter(all).expect("thread");
    };
    let mut told = Value::Null;
    let mut wait_for_sent = |packets: u64| {
        let all = wait_for(Duration::from_secs(20), "what was sent", || {
            told = shown(&net, "told");
            told["sent_packets"].as_u64() >= Some(packets)
        });
        all.unwrap_or_else(|e| panic!("{e}: {told:#}"));
        told.clone()
    };
    // Alone, so that both know their neighbour before the rest comes.
    send(1, 1);
    wait_for_sent(1);
    send(FLOWS, EACH);
    let told = wait_for_sent(FLOWS * EACH + 1);
    let value = |name: &str| told[name].as_u64().unwrap_or_else(|| panic!("{name}: {told:#}"));
    assert_eq!(value("sent_packets"), FLOWS * EACH + 1);
    assert_eq!(value("sent_bytes"), (FLOWS * EACH + 1) * COUNTED);
    assert_eq!((value("dropped_packets"), value("backlog_packets")), (0, 0));
    let counters = net.ask_json(&["show", "counters"]);
    for worker in counters["workers"].as_array().expect("workers") {
        assert!(
            worker["values"]["tx_packets"].as_u64() > Some(0),
            "all went by the other: {counters:#}"
        );
    }
}

/// Flows of a class with a `flow_rate`, of which each could take all.
#[test]
fn each_flow_is_held_to_its_rate() {
    const FLOWS: usize = 4;
    const SECONDS: u32 = 6;
    let tree = [
        "[qos.lan]\nrate = \"40Mbit/s\"\ndefault = \"all\"\n".to_string(),
        class("all", "rate = \"100%\"\nflow_rate = \"4Mbit/s\""),
    ]
    .concat();
    let (net, _edge) = routed(&tree, &[]);
    // Of 1538 bytes on the wire 1448 are what iperf3 counts.
    const MOST: f64 = 4.0 * 1448.0 / 1538.0;
    let mut rates = Vec::new();
    // A worker that gets no processor loses some of it, of all flows alike; peers that get none
    // lose some of theirs: then once more.
    for _ in 0..3 {
        let _server = server(&net, W);
        let report = iperf(&net, W, FLOWS as u32, SECONDS).join().expect("run");
        let intervals = report["server_output_json"]["intervals"].as_array().expect("intervals");
        let seconds = &intervals[1..SECONDS as usize - 1];
        let bits = |flow: usize| -> f64 {
            let bytes = seconds.iter().map(|i| i["streams"][flow]["bytes"].as_f64());
            bytes.map(|bytes| bytes.unwrap_or_else(|| panic!("{report:#}")) * 8.0).sum()
        };
        rates = (0..FLOWS).map(|flow| bits(flow) / seconds.len() as f64 / 1e6).collect();
        assert!(rates.iter().all(|rate| *rate <= MOST * 1.05), "{rates:.2?} Mbit/s");
        let most = rates.iter().copied().fold(0.0, f64::max);
        if most > 0.0 && rates.iter().all(|rate| *rate >= most * 0.8) {
            return;
        }
    }
    panic!("a flow gets less than others: {rates:.2?} Mbit/s");
}

#[test]
fn ecn_flows_are_marked_and_lose_nothing() {
    let tree = [
        "[qos.lan]\nrate = \"40Mbit/s\"\ndefault = \"all\"\n".to_string(),
        class("all", "rate = \"100%\"\ntarget = \"5ms\"\ninterval = \"20ms\""),
    ]
    .concat();
    let (net, _edge) = routed(&tree, &[]);
    for ns in [&net.client, &net.server] {
        ns.sysctl("net.ipv4.tcp_ecn", "1").expect("sysctl");
    }
    let _server = server(&net, W);
    let before = nstat(&net, false, "IpExtInCEPkts");
    iperf(&net, W, 4, 4).join().expect("run");
    let mut marked = 0;
    let mut all = Value::Null;
    // Counters are published now and then, and the last packets may be on their way.
    let settled = wait_for(Duration::from_secs(30), "marks sent to be marks received", || {
        all = shown(&net, "all");
        marked = nstat(&net, false, "IpExtInCEPkts") - before;
        all["marked_packets"].as_u64() == Some(marked)
    });
    assert!(settled.is_ok() && marked > 10, "{marked} marks came; {all:#}");
    assert_eq!(all["dropped_packets"].as_u64(), Some(0), "{all:#}");
    // Timers may fire where peers get no processor; nothing was found missing.
    assert_eq!(nstat(&net, true, "TcpExtTCPFastRetrans"), 0);
}
