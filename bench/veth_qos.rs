//! What an interactive stream feels of 32 greedy TCP flows and a flood at a port of 100 Mbit/s:
//! behind tidegate, and behind Linux HTB with its fifo leaves.
//!
//! `cargo bench --bench veth_qos [-- [--seconds S] [--json FILE]]`, as root, with iperf3 and tc.
//! The stream is 200 bytes every 20 ms, its delay that of one way. It stands once in a class of its
//! own, and once among the rest. Its ends run before all other programs, as the kernel's shaper
//! does and tidegate is made to (`chrt`, of util-linux): their wait for a core that others use,
//! however many these are, is not what is measured.

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "veth/priority.rs"]
mod priority;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use clap::Parser;
use common::stream::{Delays, Flood, STREAM_INTERVAL, Stream, quantile};
use common::{Net, SERVERS4};
use serde_json::{Value, json};
use tidegate::lab::{Process, wait_for};

/// Destination ports of streams: in a class of its own, and among the rest.
const OWN: u16 = 7001;
const AMONG: u16 = 7011;
const FLOOD: u16 = 7002;
const GREEDY: u16 = 5201;
const FLOOD_BITS_PER_SECOND: u64 = 100_000_000;
/// The kernel's shaper runs in softirqs, before any program; so does tidegate then.
const BEFORE_PROGRAMS: [&str; 3] = ["chrt", "-f", "1"];
/// What is wanted of the stream in a class of its own, with none lost.
const P99_MAX_MS: f64 = 2.0;
/// Seconds that the greedy flows have before the stream begins, and after it ends.
const SETTLE: u64 = 2;

/// The same tree twice.
const TREE: &str = r#"
[transit]
prefixes = ["10.0.0.0/8"]
[qos.lan]
rate = "100Mbit/s"
overhead = 14
default = "rest"
[qos.lan.class.interactive]
rate = "10Mbit/s"
ceil = "100Mbit/s"
priority = 0
[qos.lan.class.rest]
rate = "50Mbit/s"
ceil = "100Mbit/s"
priority = 1
[[rule]]
name = "interactive"
port = [7001]
class = "interactive"
"#;
const HTB: [&str; 5] = [
    "qdisc add dev lan root handle 1: htb default 20",
    "class add dev lan parent 1: classid 1:1 htb rate 100mbit ceil 100mbit",
    "class add dev lan parent 1:1 classid 1:10 htb rate 10mbit ceil 100mbit prio 0",
    "class add dev lan parent 1:1 classid 1:20 htb rate 50mbit ceil 100mbit prio 1",
    "filter add dev lan parent 1: protocol ip prio 1 u32 match ip dport 7001 0xffff flowid 1:10",
];

#[derive(Parser)]
#[command(about = "Delay beside greedy flows, tidegate and Linux HTB; needs root")]
struct Cli {
    /// Length of each stream.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Write the results here, too.
    #[arg(long)]
    json: Option<PathBuf>,
    /// `cargo bench` says so.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shaper {
    Tidegate,
    Htb,
}

/// One stream's fate.
struct Row {
    shaper: &'static str,
    class: &'static str,
    delays: Delays,
    /// Of the greedy flows beside it.
    mbits: f64,
    /// Of what waited in its class, as tidegate counts it.
    queue_p99_ms: Option<f64>,
}

fn main() {
    let cli = Cli::parse();
    // Streams and shapers before all else on the machine, iperf3's 64 ends among it: they are not
    // to be what a datagram waits for.
    let _priority = priority::raise().expect("root, and renice of the package bsdutils");
    println!("shaper      stream                p50 ms   p99 ms   max ms     lost   TCP Mbit/s");
    let mut rows = Vec::new();
    for shaper in [Shaper::Tidegate, Shaper::Htb] {
        for row in measure(shaper, cli.seconds) {
            println!("{row}");
            rows.push(row);
        }
    }
    let ratios = [0, 1].map(|class| rows[class + 2].ms(0.99) / rows[class].ms(0.99));
    for (row, ratio) in rows.iter().zip(ratios) {
        println!("{}: p99 of Linux HTB / tidegate {ratio:.1}", row.class);
    }
    let is_met = rows[0].ms(0.99) <= P99_MAX_MS && rows[0].lost() == 0;
    let verdict = if is_met { "met" } else { "NOT MET" };
    println!("in its own class: a p99 of {P99_MAX_MS} ms at most and none lost: {verdict}");
    let Some(path) = cli.json else { return };
    let rows: Vec<Value> = rows.iter().map(Row::to_json).collect();
    let text = json!({
        "bench": "veth_qos", "seconds": cli.seconds, "rows": rows,
        "p99_max_ms": P99_MAX_MS, "is_met": is_met, "htb_p99_ratios": ratios,
    })
    .to_string();
    if let Err(e) = std::fs::write(&path, text + "\n") {
        eprintln!("{}: {e}", path.display());
        std::process::exit(1);
    }
}

/// Both streams, at the same time.
fn measure(shaper: Shaper, seconds: u64) -> Vec<Row> {
    let net = Net::new(1);
    let _edge = start(&net, shaper);
    let mut command = Command::new("nice");
    command.args(["-n", "20", "iperf3", "-s", "-p", &GREEDY.to_string()]);
    let _server = net.server.spawn(command).expect("iperf3 is of the package iperf3");
    wait_for(Duration::from_secs(5), "iperf3", || {
        let listening = net.server.run("ss", &["-Hltn", "sport", "=", &format!(":{GREEDY}")]);
        listening.is_ok_and(|out| !out.is_empty())
    })
    .expect("listening");
    let to = |address: &str, port| SocketAddr::new(address.parse().expect("address"), port);
    let flood = Flood::start(&net.client, to(SERVERS4[1], FLOOD), FLOOD_BITS_PER_SECOND);
    let words = format!(
        "-n 20 iperf3 -J -C cubic -P 32 -c {} -p {GREEDY} -t {}",
        SERVERS4[0],
        seconds + 2 * SETTLE
    );
    let greedy = move || Command::new("nice").args(words.split(' ')).output();
    let greedy = net.client.thread("iperf3", greedy).expect("thread");
    std::thread::sleep(Duration::from_secs(SETTLE));
    let datagrams =
        (Duration::from_secs(seconds).as_millis() / STREAM_INTERVAL.as_millis()) as usize;
    let streams = [(SERVERS4[0], OWN), (SERVERS4[2], AMONG)]
        .map(|(server, port)| Stream::start(&net.client, &net.server, to(server, port), datagrams));
    let [own, among] = streams.map(Stream::finish);
    let out = greedy.join().expect("thread").expect("iperf3");
    drop(flood);
    let text = String::from_utf8_lossy(&out.stderr);
    let report: Value =
        serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("iperf3: {e}: {text}"));
    let bits = report.pointer("/end/sum_received/bits_per_second").and_then(Value::as_f64);
    let mbits = bits.unwrap_or_default() / 1e6;
    let own_queue = (shaper == Shaper::Tidegate).then(|| queue_p99_ms(&net));
    let shaper = if shaper == Shaper::Tidegate { "tidegate" } else { "Linux HTB" };
    vec![
        Row { shaper, class: "in its own class", delays: own, mbits, queue_p99_ms: own_queue },
        Row { shaper, class: "among the rest", delays: among, mbits, queue_p99_ms: None },
    ]
}

/// How long the stream's packets waited in its own class; among the rest all flows are counted
/// together.
fn queue_p99_ms(net: &Net) -> f64 {
    let shown = net.ask_json(&["show", "qos"]);
    let classes = shown["classes"].as_array().expect("classes");
    let class = classes.iter().find(|c| c["class"] == "interactive").expect("the class");
    class["values"]["sojourn_p99_ns"].as_f64().expect("nanoseconds") / 1e6
}

fn start(net: &Net, shaper: Shaper) -> Option<Process> {
    if shaper == Shaper::Tidegate {
        net.kernel_forwards(false);
        let config = net.config_head("router", "") + TREE;
        return Some(net.start_through(&config, &BEFORE_PROGRAMS));
    }
    net.kernel_forwards(true);
    for words in HTB {
        let words: Vec<&str> = words.split(' ').collect();
        net.appliance.run("tc", &words).expect("tc is of the package iproute2");
    }
    None
}

impl Row {
    fn ms(&self, share: f64) -> f64 {
        quantile(&self.delays, share).as_secs_f64() * 1e3
    }

    fn lost(&self) -> usize {
        self.delays.iter().filter(|delay| delay.is_none()).count()
    }

    fn to_json(&self) -> Value {
        json!({
            "shaper": self.shaper, "stream": self.class, "lost": self.lost(),
            "datagrams": self.delays.len(), "tcp_mbits": self.mbits,
            "p50_ms": self.ms(0.5), "p99_ms": self.ms(0.99), "max_ms": self.ms(1.0),
            "queue_p99_ms": self.queue_p99_ms,
        })
    }
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| self.ms(share));
        let lost = format!("{}/{}", self.lost(), self.delays.len());
        write!(f, "{:11} {:18} ", self.shaper, self.class)?;
        write!(f, "{p50:>9.2} {p99:>8.2} {max:>8.2} {lost:>8} {:>12.1}", self.mbits)?;
        self.queue_p99_ms.map_or(Ok(()), |ms| write!(f, "   {ms:.3} ms of p99 in the queue"))
    }
}
