//! Threads that come and go while they forward: workers go from one to another, and no request and
//! no datagram is lost on the way.

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use common::probe::{Echo, Probe, lost};
use common::{HTTP, Net, SERVERS4, VIP4, nat, pool, service};
use tidegate::base::Seed;
use tidegate::base::hash::Rng;
use tidegate::lab::Process;

/// Workers that there are.
const WORKERS: u32 = 3;
/// Random changes of their number, their cores, or of what they do.
const CHANGES: usize = 60;
const REQUESTS: &str = "8000";
const RATE_OF_EACH: &str = "60";

fn text(net: &Net, workers: &str, weight: u32) -> String {
    let web = pool("web", SERVERS4, HTTP).replacen("port", &format!("weight = {weight}\nport"), 1);
    let rest = [
        nat(),
        web,
        pool("echo", SERVERS4, 7_007),
        service("web", VIP4, 80, "web", "nat"),
        service("echo", VIP4, 7_007, "echo", "nat"),
        "protocol = \"udp\"\n".to_owned(),
    ];
    net.config_head("l4-balancer", workers) + &rest.concat()
}

/// Of each thread its number, its core, and its workers.
fn threads(net: &Net) -> Vec<(u32, Option<u32>, Vec<u32>)> {
    let shown = net.ask_json(&["show", "workers"]);
    let lines = shown["threads"].as_array().expect("threads").iter();
    let number = |value: &serde_json::Value| value.as_u64().map(|n| n as u32);
    let line = |thread: &serde_json::Value| {
        let workers = thread["workers"].as_array().expect("workers").iter();
        let workers = workers.map(|w| number(w).expect("a number")).collect();
        (number(&thread["thread"]).expect("a number"), number(&thread["core"]), workers)
    };
    lines.map(line).collect()
}

/// The worker threads that the kernel knows, by name; several may have the same.
fn running(edge: &Process) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", edge.id())).expect("running");
    let names = tasks.flatten().filter_map(|t| std::fs::read_to_string(t.path().join("comm")).ok());
    let names = names.map(|n| n.trim().to_owned());
    let mut workers: Vec<_> = names.filter(|n| n.starts_with("worker-")).collect();
    workers.sort_unstable();
    workers
}

/// Those that end are given time to.
fn come_to(edge: &Process, threads: u32) {
    let wanted: Vec<_> = (0..threads).map(|number| format!("worker-{number}")).collect();
    let limit = Duration::from_secs(60);
    let there = tidegate::lab::wait_for(limit, "so many threads", || running(edge) == wanted);
    assert!(there.is_ok(), "{:?}, not {threads}", running(edge));
}

fn reload(net: &Net, text: &str) -> serde_json::Value {
    net.write("tidegate.toml", text);
    net.ask_json(&["reload"])
}

/// Some number of threads, on cores of their own or not.
fn any_threads(rng: &mut Rng) -> (u32, Vec<u32>) {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let count = 1 + rng.below(WORKERS);
    let pinned = count <= cores && rng.chance(0.5);
    let first = rng.below(cores);
    let list = (0..count).map(|thread| (first + thread) % cores);
    (count, if pinned { list.collect() } else { Vec::new() })
}

#[test]
fn threads_come_and_go_under_load_and_nothing_is_lost() {
    let net = Net::new(WORKERS as u16);
    let _nginx = net.start_nginx();
    let edge = net.start(&text(&net, &format!("count_max = {WORKERS}"), 1));
    assert_eq!(threads(&net), [(0, None, vec![0, 1, 2])]);
    let echo: Vec<SocketAddr> =
        SERVERS4.iter().map(|a| format!("{a}:7007").parse().expect("address")).collect();
    let _echo = Echo::start(&net.server, &echo);
    let probe = Probe::start(&net.client, format!("{VIP4}:7007").parse().expect("address"));
    std::thread::sleep(Duration::from_millis(300));
    let from = probe.now();
    let mut load = std::process::Command::new("h2load");
    load.args(["-n", REQUESTS, "-c", "20", "--rps", RATE_OF_EACH, "--h1"]);
    load.arg(format!("http://{VIP4}/"));
    let load = net.client.spawn(load).expect("h2load");
    let mut rng = Rng::new(Seed(23));
    let (mut blocked, mut worked) = (Vec::new(), Vec::new());
    for _ in 0..CHANGES {
        let (count, cores) = any_threads(&mut rng);
        // Where it does not say so, there are as many workers as there were.
        let max = if rng.chance(0.5) { format!("count_max = {WORKERS}\n") } else { String::new() };
        let workers = format!("count = {count}\n{max}cores = {cores:?}");
        let done = reload(&net, &text(&net, &workers, 1 + rng.below(9)));
        blocked.push(done["blocked_us"].as_u64().expect("a time"));
        worked.push(done["worked_us"].as_u64().expect("a time"));
        let of = |thread: u32| (0..WORKERS).filter(|w| w % count == thread).collect();
        let core = |thread: u32| cores.get(thread as usize).copied();
        let wanted: Vec<_> = (0..count).map(|thread| (thread, core(thread), of(thread))).collect();
        assert_eq!(threads(&net), wanted);
        std::thread::sleep(Duration::from_millis(50));
    }
    let out = load.finish().expect("h2load");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(
        text.contains(&format!("{REQUESTS} succeeded, 0 failed, 0 errored, 0 timeout")),
        "{text}"
    );
    let to = probe.now();
    let sent = probe.finish();
    blocked.sort_unstable();
    worked.sort_unstable();
    println!(
        "{CHANGES} changes of threads held packets up for {} us (median), {} us (most), of which \
         workers took {} us (median), {} us (most); {} of {} datagrams lost",
        blocked[CHANGES / 2],
        blocked[CHANGES - 1],
        worked[CHANGES / 2],
        worked[CHANGES - 1],
        lost(&sent, from, to),
        sent.len(),
    );
    assert_eq!(lost(&sent, from, to), 0, "of {} datagrams", sent.len());
    assert!(sent.len() > CHANGES);
    come_to(&edge, threads(&net).len() as u32);
}

#[test]
fn what_is_refused_or_not_confirmed_leaves_the_threads_as_they_were() {
    let net = Net::new(2);
    let edge = net.start(&text(&net, "count_max = 2", 1));
    let one = vec![(0, None, vec![0, 1])];
    net.write("tidegate.toml", &text(&net, "count = 3", 1));
    let words = net.ask(&["reload"]).expect_err("there are two workers");
    assert!(
        words.contains("workers.count: 1 runs, 3 wanted, 2 at most since the start"),
        "{words}"
    );
    net.write("tidegate.toml", &text(&net, "count = 2\n[workers.cores]", 1));
    net.ask(&["reload"]).expect_err("a fault");
    assert_eq!((threads(&net), running(&edge).len()), (one.clone(), 1));

    net.write("tidegate.toml", &text(&net, "count = 2", 1));
    net.ask(&["reload", "--confirm", "1s"]).expect("taken over");
    assert_eq!(threads(&net), [(0, None, vec![0]), (1, None, vec![1])]);
    let back = tidegate::lab::wait_for(Duration::from_secs(60), "one thread", || {
        threads(&net) == one && running(&edge) == ["worker-0"]
    });
    assert!(back.is_ok(), "{:?}, {:?}", threads(&net), running(&edge));
}
