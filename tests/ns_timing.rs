//! Answers are timed from outside, through TLS: a real server that streams, real clients.

mod common;

use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use common::{HTTP, HTTPS, Net, SERVERS4, VIP4, make_certificate, nat, pool, service};
use tidegate::lab::{Process, wait_for};

/// As `stream_server.py` waits: before an answer, and before each of its events.
const FIRST_SECS: f64 = 0.3;
const GAP_SECS: f64 = 0.06;
const CHUNKS: u64 = 10;
const REQUESTS: u64 = 2;

/// One after the other: beside the others' workers a server would get to its tickets late.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn config(net: &Net, bind: &str) -> String {
    let services = [
        service("chat", VIP4, 443, "gpu", "nat") + bind,
        service("clear", VIP4, 80, "plain", "nat"),
    ];
    let rules = "[qos.wan]\nrate = \"1Gbit/s\"\ndefault = \"other\"\n\
                 [qos.wan.class.other]\nrate = \"1%\"\n[qos.wan.class.chat]\nrate = \"1%\"\n\
                 [[rule]]\nport = 443\nclass = \"chat\"\n";
    [
        net.config_head("llm-edge", ""),
        nat(),
        pool("gpu", SERVERS4, HTTPS),
        pool("plain", SERVERS4, HTTP),
        services.concat(),
        rules.to_string(),
    ]
    .concat()
}

fn start_servers(net: &Net) -> Vec<Process> {
    make_certificate(net.dir.path());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/stream_server.py");
    let server = |address: &&str| {
        let mut command = Command::new("python3");
        command.args([script, address]).args([HTTPS.to_string(), HTTP.to_string()]);
        command.arg(net.path("cert.pem")).arg(net.path("key.pem"));
        let process = net.server.spawn(command).expect("python3");
        let url = format!("http://{address}:{HTTP}/");
        let up = || net.server.run("curl", &["-sf", &url]).is_ok();
        wait_for(Duration::from_secs(20), "the server", up).expect("a server");
        process
    };
    SERVERS4.iter().map(server).collect()
}

/// Two requests over one connection.
fn ask(net: &Net, url: &str, more: &[&str]) {
    let body = format!("{{\"messages\":[{{\"content\":\"{}\"}}]}}", "word ".repeat(4_000));
    let mut args = vec!["-sfkN", "--http1.1", "-d", &body, "-o", "/dev/null"];
    args.extend(more);
    args.push(url);
    args.extend(["--next", "-sfkN", "--http1.1", "-d", &body, "-o", "/dev/null"]);
    args.extend(more);
    args.push(url);
    net.client.run("curl", &args).expect("answers");
}

/// What is told of one name: answers and gaps, with the least time that each can have taken.
fn check(net: &Net, of: &str, name: &str) {
    let told = net.ask_json(&["show", "latency"]);
    let all = told["latencies"].as_array().expect("a list").clone();
    let line = all.iter().find(|l| l["of"] == of && l["name"] == name);
    let line = line.unwrap_or_else(|| panic!("{of} {name} is not in {told}"));
    let (first, gap) = (&line["first"], &line["gap"]);
    assert_eq!(first["count"], REQUESTS, "{line}");
    // The end of the last chunk may come by itself.
    let gaps = gap["count"].as_u64().expect("a number");
    assert!((REQUESTS * CHUNKS..=REQUESTS * (CHUNKS + 1)).contains(&gaps), "{line}");
    let least = [(first, REQUESTS, FIRST_SECS), (gap, REQUESTS * CHUNKS, GAP_SECS)];
    for (times, count, secs) in least {
        assert!(times["sum_secs"].as_f64() >= Some(count as f64 * secs), "{line}");
    }
}

#[test]
fn tokens_are_timed_without_a_key() {
    let _alone = alone();
    let net = Net::new(1);
    let _servers = start_servers(&net);
    let _edge = net.start(&config(&net, ""));
    ask(&net, &format!("https://{VIP4}/v1"), &["--tls-max", "1.3"]);
    check(&net, "service", "chat");
    check(&net, "class", "chat");
    let told = net.ask(&["show", "latency"]).expect("a table");
    assert!(told.contains("backend  gpu/"), "{told}");
    ask(&net, &format!("http://{VIP4}/v1"), &[]);
    check(&net, "service", "clear");
}

#[test]
fn spliced_connections_are_timed_too() {
    let _alone = alone();
    let net = Net::new(1);
    let _servers = start_servers(&net);
    let _edge = net.start(&config(&net, "bind = \"hello\"\n"));
    ask(&net, &format!("https://{VIP4}/v1"), &["--tls-max", "1.3"]);
    check(&net, "service", "chat");
}

#[test]
fn tls_1_2_is_timed_too() {
    let _alone = alone();
    let net = Net::new(1);
    let _servers = start_servers(&net);
    let _edge = net.start(&config(&net, ""));
    ask(&net, &format!("https://{VIP4}/v1"), &["--tls-max", "1.2"]);
    check(&net, "service", "chat");
}
