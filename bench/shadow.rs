//! What a shadow costs the service that it stands beside: times of its answers with none, and with
//! one that answers, is dead, or hangs.
//!
//! `cargo bench --bench shadow -- [--rounds N] [--json FILE] [--quick]`; needs root, nginx and
//! python3. A client, the appliance and nginx in network namespaces; eight connections ask every
//! 4 ms each, and are opened anew after fifty requests. The kinds take turns, a reload between
//! them, and every answer is compared with what it must be. Client, both servers, the kernel and
//! the appliance share the machine's cores: at 100 % there is twice the work for servers, too.

#[path = "common/mod.rs"]
mod common;
#[path = "../tests/common/mod.rs"]
mod net;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::{Value, json};

use common::{Cli, Samples, machine};
use net::{HTTP, NAT4, Net, SERVERS4, VIP4};

const CONNECTIONS: usize = 8;
const EVERY: Duration = Duration::from_millis(4);
const REQUESTS_EACH: usize = 50;
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
const BODY: &[u8] = b"hello from behind the VIP\n";
/// What is beside the service, and of which share of its connections.
const KINDS: [(&str, Option<(&str, u32)>); 5] = [
    ("no shadow", None),
    ("5 % to a server that answers", Some(("well", 5))),
    ("100 % to a server that answers", Some(("well", 100))),
    ("100 % to a port that nobody has", Some(("dead", 100))),
    ("100 % to a server that hangs", Some(("hung", 100))),
];
const DEAD_PORT: u16 = 9_999;
const HUNG_PORT: u16 = 9_000;

#[derive(Parser)]
#[command(about = "Measures what shadows cost the services that they stand beside")]
struct Args {
    #[command(flatten)]
    cli: Cli,
}

fn main() -> ExitCode {
    let args = Args::parse();
    println!("{}", machine());
    let length = Duration::from_secs(if args.cli.quick { 1 } else { 3 });
    let net = Net::new(1);
    let _nginx = net.start_nginx();
    let mut command = Command::new("python3");
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/shadow_server.py"));
    command.args(["hang", SERVERS4[2], &HUNG_PORT.to_string()]).arg(net.dir.path());
    let _hung = net.server.spawn(command).expect("python3");
    let _edge = net.start(&config(&net, None));
    // By kind, every time of all rounds, and each round's p50 and p99.
    let mut times: [Vec<f64>; KINDS.len()] = Default::default();
    let mut p99s: [Samples; KINDS.len()] = Default::default();
    let wanted = || KINDS.iter().enumerate().filter(|(_, (name, _))| args.cli.wants(name));
    for _ in 0..args.cli.rounds() {
        for (kind, (_, shadow)) in wanted() {
            net.write("tidegate.toml", &config(&net, *shadow));
            net.ask(&["reload"]).expect("taken");
            let mut round = ask_for(&net, length);
            p99s[kind].add(quantile(&mut round, 0.99));
            times[kind].append(&mut round);
        }
    }
    println!(
        "{:<34}{:>10}{:>10}{:>10}{:>24}",
        "us to an answer", "answers", "p50", "p99", "p99 of rounds"
    );
    let mut rows: Vec<Value> = Vec::new();
    for (kind, (name, _)) in wanted() {
        let all = &mut times[kind];
        let (p50, p99, answers) = (quantile(all, 0.5), quantile(all, 0.99), all.len());
        println!("{name:<34}{answers:>10}{p50:>10.0}{p99:>10.0}{:>24}", p99s[kind]);
        rows.push(json!({
            "shadow": name, "answers": answers, "p50_us": p50, "p99_us": p99,
            "p99_us_of_rounds": p99s[kind].json(),
        }));
    }
    args.cli.write("shadow", json!({ "rows": rows }))
}

fn config(net: &Net, shadow: Option<(&str, u32)>) -> String {
    let pool = |name: &str, address: &str, port: u16| {
        format!("[[pool.{name}.backend]]\naddress = \"{address}\"\nport = {port}\n")
    };
    let shadow = shadow.map_or(String::new(), |(pool, percent)| {
        format!("shadow = {{ pool = \"{pool}\", percent = {percent} }}\n")
    });
    [
        net.config_head("l4-balancer", ""),
        format!("[nat]\naddresses = [\"{NAT4}\"]\n"),
        pool("web", SERVERS4[0], HTTP),
        pool("well", SERVERS4[1], HTTP),
        pool("dead", SERVERS4[2], DEAD_PORT),
        pool("hung", SERVERS4[2], HUNG_PORT),
        net::service("web", VIP4, 80, "web", "nat"),
        shadow,
    ]
    .concat()
}

/// Times of answers to all connections, microseconds.
fn ask_for(net: &Net, length: Duration) -> Vec<f64> {
    let threads: Vec<_> = (0..CONNECTIONS)
        .map(|n| {
            // Not all at the same moment.
            let begin = EVERY * n as u32 / CONNECTIONS as u32;
            net.client.thread("client", move || one_client(begin, length)).expect("a thread")
        })
        .collect();
    threads.into_iter().flat_map(|thread| thread.join().expect("it ends")).collect()
}

fn one_client(begin: Duration, length: Duration) -> Vec<f64> {
    let mut next = Instant::now() + begin;
    let end = next + length;
    let mut times = Vec::new();
    let mut room = [0; 4_096];
    while next < end {
        let mut stream = TcpStream::connect((VIP4, 80)).expect("connect");
        stream.set_nodelay(true).expect("set");
        for _ in 0..REQUESTS_EACH {
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
            let asked = Instant::now();
            stream.write_all(REQUEST).expect("sent");
            let mut came = 0;
            while !room[..came].ends_with(BODY) {
                let count = stream.read(&mut room[came..]).expect("an answer");
                assert!(count > 0, "cut after {:?}", String::from_utf8_lossy(&room[..came]));
                came += count;
            }
            let head = &room[..came - BODY.len()];
            assert!(head.starts_with(b"HTTP/1.1 200 ") && head.ends_with(b"\r\n\r\n"));
            times.push(asked.elapsed().as_secs_f64() * 1e6);
            // Late ones do not make the next come sooner.
            next = (next + EVERY).max(Instant::now());
        }
    }
    times
}

fn quantile(times: &mut [f64], share: f64) -> f64 {
    times.sort_by(f64::total_cmp);
    let at = (times.len() as f64 * share) as usize;
    times.get(at.min(times.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}
