//! Reload under load: no flow breaks, no more is lost than what was on its way, and what is refused
//! changes nothing.

mod common;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use common::annex::Annex;
use common::probe::{Echo, Probe, lost};
use common::{HTTP, Net, SERVERS4, VIP4, nat, pool, service};
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use tidegate::base::Seed;
use tidegate::base::hash::Rng;
use tidegate::lab::{Process, wait_for};

/// Packets that may be between the ports while one snapshot gives way to the next.
const IN_FLIGHT_MAX: usize = 1;
const RELOADS: usize = 100;
/// Random changes of ports.
const CHANGES: usize = 20;
/// For what is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
/// Requests of the load, at a rate that leaves the machine time for reloads.
const REQUESTS: &str = "20000";
const RATE_OF_EACH: &str = "60";

const RIGHT: [&str; 5] = ["maglev", "round-robin", "least-connections", "least-load", "peak-ewma"];

/// A configuration in which everything that may change does so at random; both services and their
/// servers stay.
fn config(net: &Net, rng: &mut Rng) -> String {
    let mut text = [net.config_head("llm-edge", ""), nat()].concat();
    for (name, port) in [("web", HTTP), ("echo", 7_007)] {
        let weights = SERVERS4.map(|_| 1 + rng.below(9));
        let mut part = pool(name, SERVERS4, port);
        for (server, weight) in SERVERS4.iter().zip(weights) {
            let backend = format!("address = \"{server}\"\n");
            part = part.replacen(&backend, &format!("{backend}weight = {weight}\n"), 1);
        }
        let balance = RIGHT[rng.below(5) as usize];
        let _ = write!(text, "[pool.{name}]\nbalance = \"{balance}\"\n{part}");
    }
    text += &pool("other", SERVERS4, HTTP);
    let (web, other) = (1 + rng.below(99), rng.below(50));
    text += &service("web", VIP4, 80, "web", "nat")
        .replace("\"web\"\nmode", &format!("{{ web = {web}, other = {other} }}\nmode"));
    text += &service("echo", VIP4, 7_007, "echo", "nat");
    text += "protocol = \"udp\"\n";
    for extra in 0..rng.below(4) {
        let port = 9_000 + 10 * extra as u16 + rng.below(10) as u16;
        text += &service(&format!("extra-{extra}"), VIP4, port, "other", "nat");
        if rng.chance(0.5) {
            text += "bind = \"hello\"\n";
        }
    }
    let _ = write!(
        text,
        "[qos.wan]\nrate = \"{}Mbit/s\"\ndefault = \"rest\"\n\
         [qos.wan.class.rest]\nrate = \"100Mbit/s\"\nceil = \"100%\"\n",
        200 + 10 * rng.below(20)
    );
    for class in 0..rng.below(3) {
        let _ = write!(
            text,
            "[qos.wan.class.c{class}]\nrate = \"{}Mbit/s\"\nceil = \"100%\"\n\
             [[rule]]\nclient = \"10.0.{}.0/24\"\nclass = \"c{class}\"\n",
            1 + rng.below(40),
            1 + rng.below(3),
        );
    }
    text
}

/// The same with a fault, one of each kind in turn.
fn broken(good: &str, round: usize) -> String {
    match round % 10 {
        0 => good.replace("pool = \"echo\"", "pool = \"ehco\""),
        1 => good.replacen("weight = ", "weight = 7", 1).replacen("weight = ", "wieght = ", 1),
        2 => good.replacen("rate = \"", "rate = \"fast", 1),
        3 => format!("{good}[qos.wan"),
        4 => good.replace("flows_max = 100000", "flows_max = 200000"),
        5 => good.replace("[port.lan]\ninterface = \"lan\"", "[port.lan]\ninterface = \"wan\""),
        6 => format!("{good}[[rule]]\nclass = \"nobody\"\n"),
        7 => good.replace("vip = ", "vip = 7 # "),
        8 => good.replace("default = \"rest\"\n", ""),
        _ => good.replacen("address = ", "adress = ", 1),
    }
}

/// What must not differ where nothing has changed.
fn standing(net: &Net) -> [String; 2] {
    let weights = |pool: &serde_json::Value| {
        let backends = pool["backends"].as_array().expect("backends").iter();
        let of = backends.map(|b| format!("{} {} {}", b["name"], b["weight"], b["weight_now"]));
        format!("{} {} {:?}", pool["name"], pool["balance"], of.collect::<Vec<_>>())
    };
    let pools = net.ask_json(&["show", "pools"]);
    let pools = pools["pools"].as_array().expect("pools").iter().map(weights);
    [pools.collect::<Vec<_>>().join("\n"), net.ask_json(&["show", "services"]).to_string()]
}

fn count(net: &Net, of: &str) -> u64 {
    net.ask_json(&["show", "counters"])["process"][of].as_u64().expect("a count")
}

/// Loads `text`; how long packets were held up, microseconds.
fn reload(net: &Net, text: &str) -> u64 {
    net.write("tidegate.toml", text);
    let done = net.ask_json(&["reload"]);
    done["blocked_us"].as_u64().expect("a time")
}

#[test]
fn a_hundred_reloads_under_load_break_nothing() {
    let net = Net::new(1);
    let _nginx = net.start_nginx();
    let mut rng = Rng::new(Seed(5));
    // All that it says of refusals is more than a pipe holds, which nobody reads.
    let _edge = net.start_through(&config(&net, &mut rng), &["env", "RUST_LOG=off"]);
    let echo: Vec<SocketAddr> =
        SERVERS4.iter().map(|a| format!("{a}:7007").parse().expect("address")).collect();
    let _echo = Echo::start(&net.server, &echo);
    let probe = Probe::start(&net.client, format!("{VIP4}:7007").parse().expect("address"));
    let mut load = std::process::Command::new("h2load");
    load.args(["-n", REQUESTS, "-c", "20", "--rps", RATE_OF_EACH, "--h1"]);
    load.arg(format!("http://{VIP4}/"));
    std::thread::sleep(Duration::from_millis(500));
    let from = probe.now();
    let load = net.client.spawn(load).expect("h2load");
    let mut last = String::new();
    let mut blocked: Vec<u64> = Vec::new();
    for _ in 0..RELOADS {
        last = config(&net, &mut rng);
        blocked.push(reload(&net, &last));
        std::thread::sleep(Duration::from_millis(50));
    }
    let (before, taken) = (standing(&net), count(&net, "reloads"));
    for round in 0..RELOADS {
        net.write("tidegate.toml", &broken(&last, round));
        let refused = net.ask(&["reload"]).expect_err("it is broken");
        assert!(refused.contains("tidegate.toml"), "{round}: {refused}");
    }
    assert_eq!(standing(&net), before);
    assert_eq!((count(&net, "reloads"), count(&net, "reloads_refused")), (taken, RELOADS as u64));
    let out = load.finish().expect("h2load");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let all_well = format!("{REQUESTS} succeeded, 0 failed, 0 errored, 0 timeout");
    assert!(text.contains(&all_well), "{text}");
    let to = probe.now();
    let sent = probe.finish();
    let lost = lost(&sent, from, to);
    blocked.sort_unstable();
    println!(
        "{RELOADS} reloads held packets up for {} us (median), {} us (90th), {} us (most); \
         {lost} of {} datagrams lost",
        blocked[RELOADS / 2],
        blocked[RELOADS * 9 / 10],
        blocked[RELOADS - 1],
        sent.len(),
    );
    assert!(lost <= IN_FLIGHT_MAX * RELOADS, "{lost} of {} datagrams lost", sent.len());
}

#[test]
fn what_nobody_confirms_is_taken_back() {
    let net = Net::new(1);
    let text = |weight: u32| {
        let pool =
            pool("web", SERVERS4, HTTP).replacen("port", &format!("weight = {weight}\nport"), 1);
        [net.config_head("l4-balancer", ""), nat(), pool, service("web", VIP4, 80, "web", "nat")]
            .concat()
    };
    let weight = || net.ask_json(&["show", "pools"])["pools"][0]["backends"][0]["weight"].clone();
    let _edge = net.start(&text(1));
    let nothing = net.ask(&["confirm"]).expect_err("nothing is on trial");
    assert!(nothing.contains("nothing to confirm"), "{nothing}");

    net.write("tidegate.toml", &text(2));
    let said = net.ask(&["reload", "--confirm", "2s"]).expect("taken over");
    assert!(said.contains("undone in 2 s, unless `tidegate confirm` comes first"), "{said}");
    let back = wait_for(Duration::from_secs(60), "the one before", || weight() == 1);
    assert!(back.is_ok(), "{:#}", net.ask_json(&["show", "counters"])["process"]);
    assert_eq!((count(&net, "rollbacks"), count(&net, "reloads_refused")), (1, 0));

    let said = net.ask(&["reload", "--confirm", "1h"]).expect("taken over");
    assert!(said.contains("3600 s"), "{said}");
    net.write("tidegate.toml", &text(3));
    let busy = net.ask(&["reload"]).expect_err("it would not be clear what to go back to");
    assert!(busy.contains("on trial for 35"), "{busy}");
    assert!(net.ask(&["show", "counters"]).expect("shown").contains("on trial for 35"));
    assert_eq!(net.ask(&["confirm"]).expect("kept"), "confirmed\n");
    assert_eq!(weight(), 2);
    net.ask(&["reload"]).expect("taken over");
    assert_eq!((weight(), count(&net, "rollbacks")), (3.into(), 1));
}

#[test]
fn a_difference_is_told_and_nothing_changes_but_by_the_reload() {
    let net = Net::new(1);
    let head = net.config_head("l4-balancer", "");
    let text = |backends: &str, service_port: u16| {
        let service = service("web", VIP4, service_port, "web", "nat");
        [&head, &*nat(), backends, &service].concat()
    };
    let few = pool("web", SERVERS4, HTTP);
    let more = format!("{few}[[pool.web.backend]]\naddress = \"{}\"\nport = 9\n", SERVERS4[0]);
    let _edge = net.start(&text(&few, 80));
    let before = standing(&net);
    let same = net.ask(&["reload", "--diff"]).expect("nothing to refuse");
    assert!(same.ends_with("tidegate.toml: no difference from what runs\n"), "{same}");

    net.write("tidegate.toml", &text(&more, 81));
    let said = net.ask(&["reload", "--diff"]).expect("nothing to refuse");
    let added = format!("  + pool.web.backend[4 {}:9]: {{ address", SERVERS4[0]);
    assert!(said.contains(": 2 different from what runs\n") && said.contains(&added), "{said}");
    assert!(said.contains("  ~ service.web.port: 80 -> 81\n"), "{said}");
    let json = net.ask_json(&["reload", "--diff"]);
    assert_eq!((&json["unchanged"], &json["refused"]), (&false.into(), &serde_json::Value::Null));
    assert_eq!((&json["changes"][1]["old"], &json["changes"][1]["new"]), (&80.into(), &81.into()));
    assert_eq!(standing(&net), before, "only told");

    // What a reload refuses is told before it is tried, with the same exit code.
    let fixed = text(&more, 81).replace("flows_max = 100000", "flows_max = 200000");
    net.write("tidegate.toml", &fixed);
    let refused = net.ask(&["reload", "--diff"]).expect_err("the same as a reload");
    assert!(refused.contains("needs a restart: workers.flows_max: 100000 runs"), "{refused}");
    net.write("tidegate.toml", &broken(&text(&more, 81), 9));
    let refused = net.ask(&["reload", "--diff"]).expect_err("it can't be read");
    assert!(refused.contains("adress"), "{refused}");
    assert_eq!((count(&net, "reloads"), count(&net, "reloads_refused")), (0, 0));

    net.write("tidegate.toml", &text(&more, 81));
    assert_eq!(net.ask_json(&["reload"])["backends"], 4);
    assert_ne!(standing(&net), before);
    let done = net.ask(&["reload", "--diff"]).expect("nothing to refuse");
    assert!(done.ends_with("no difference from what runs\n"), "{done}");
}

/// Both services, and these ports besides the usual two.
fn with_ports(net: &Net, workers: &str, ports: &[(&str, &str, &str)]) -> String {
    let mut text = net.config_head("l4-balancer", workers);
    for (name, interface, more) in ports {
        let _ = write!(text, "[port.{name}]\ninterface = \"{interface}\"\n{more}\n");
    }
    text += &[nat(), pool("web", SERVERS4, HTTP), pool("echo", SERVERS4, 7_007)].concat();
    text += &service("web", VIP4, 80, "web", "nat");
    text + &service("echo", VIP4, 7_007, "echo", "nat") + "protocol = \"udp\"\n"
}

/// Names of the ports, each with how its program is attached.
fn ports(net: &Net) -> Vec<String> {
    let shown = net.ask_json(&["show", "ports"]);
    let one = |port: &serde_json::Value| {
        format!("{} {}", port["name"].as_str().expect("a"), port["attach"].as_str().expect("b"))
    };
    shown["ports"].as_array().expect("ports").iter().map(one).collect()
}

fn frames_available(net: &Net) -> u64 {
    net.ask_json(&["show", "counters"])["total"]["frames_available"].as_u64().expect("a count")
}

/// Ports at random, under load on those that stay: who is behind a port is served while there is
/// one, flows of others go on, and no frame is lost.
#[test]
fn ports_come_and_go_under_load() {
    const RINGS: [&str; 3] = ["rx_ring = 512", "rx_ring = 1024", "mode = \"generic\""];
    let net = Net::new(1);
    let _nginx = net.start_nginx();
    let annexes = [Annex::new(&net, "dmz", 3), Annex::new(&net, "lab", 4)];
    let _edge = net.start(&with_ports(&net, "", &[]));
    let full = frames_available(&net);
    let echo: Vec<SocketAddr> =
        SERVERS4.iter().map(|a| format!("{a}:7007").parse().expect("address")).collect();
    let _echo = Echo::start(&net.server, &echo);
    let probe = Probe::start(&net.client, format!("{VIP4}:7007").parse().expect("address"));
    assert!(!annexes.iter().any(Annex::is_served), "no port yet, and the kernel forwards nothing");
    std::thread::sleep(Duration::from_millis(300));
    let from = probe.now();
    let mut rng = Rng::new(Seed(8));
    let (mut name, mut settings, mut blocked) = ("dmz", RINGS[0], Vec::new());
    for _ in 0..CHANGES {
        // Either is there or not, and of one the settings, or the name, change as well.
        if rng.chance(0.3) {
            settings = RINGS[rng.below(3) as usize];
        }
        if rng.chance(0.3) {
            name = ["dmz", "outer"][rng.below(2) as usize];
        }
        let mut list = vec![(name, "dmz", settings), ("lab", "lab", "")];
        list.retain(|_| rng.chance(0.7));
        blocked.push(reload(&net, &with_ports(&net, "", &list)));
        let names: Vec<String> =
            ports(&net).iter().map(|p| p.split(' ').next().expect("a name").into()).collect();
        let mut wanted: Vec<&str> = list.iter().map(|port| port.0).chain(["wan", "lan"]).collect();
        wanted.sort_unstable();
        let mut sorted = names.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, wanted);
        for annex in &annexes {
            let is_port = list.iter().any(|port| port.1 == annex.interface);
            assert_eq!(annex.has_program(&net), is_port, "{}", annex.interface);
            if is_port {
                let served = wait_for(PATIENCE, "an answer", || annex.is_served());
                assert!(served.is_ok(), "{list:?}: {:#}", net.ask_json(&["show", "ports"]));
            }
        }
    }
    blocked.push(reload(&net, &with_ports(&net, "", &[])));
    let (to, sent) = (probe.now(), probe.finish());
    let lost = lost(&sent, from, to);
    blocked.sort_unstable();
    println!(
        "{} changes of ports held packets up for {} us (median), {} us (most); {lost} of {} \
         datagrams lost",
        blocked.len(),
        blocked[blocked.len() / 2],
        blocked[blocked.len() - 1],
        sent.len(),
    );
    assert!(lost <= IN_FLIGHT_MAX * blocked.len(), "{lost} of {} datagrams lost", sent.len());
    assert_eq!(count(&net, "reloads_refused"), 0);
    // Fill rings may lack a batch before they are filled up again.
    let right = full..full + 2 * 32;
    let all = wait_for(PATIENCE, "all frames", || right.contains(&frames_available(&net)));
    assert!(all.is_ok(), "{} of {full} frames are back", frames_available(&net));
}

/// What can't be opened leaves everything as it was, be it seen before, or when what it takes the
/// place of is gone already; and a port on trial goes again.
#[test]
fn a_port_that_can_not_be_opened_changes_nothing() {
    /// Two workers; programs that outlive the process, and that forward flows.
    const LASTING: &str = "count = 2\non_failure = \"drop\"\noffload = \"auto\"";
    let net = Net::new(2);
    let _nginx = net.start_nginx();
    let annex = Annex::new(&net, "dmz", 3);
    let _edge = net.start(&with_ports(&net, LASTING, &[("dmz", "dmz", "mode = \"generic\"")]));
    let served = || wait_for(PATIENCE, "an answer", || annex.is_served()).is_ok();
    assert!(served());
    let before = ports(&net);
    // With this on its other end, a veth device refuses native XDP.
    annex.host.ip("link set e0 mtu 9000").expect("an MTU");
    let refused = |list: &[(&str, &str, &str)], says: &str| {
        net.write("tidegate.toml", &with_ports(&net, LASTING, list));
        let words = net.ask(&["reload"]).expect_err("it can't be opened");
        assert!(words.contains(says), "{words}");
        assert!(served() && ports(&net) == before, "{:?}", ports(&net));
    };
    refused(&[("dmz", "dmz", "mode = \"generic\""), ("far", "nosuch", "")], "port far: interface");
    refused(&[("dmz", "dmz", "rx_ring = 4096")], "more than the 2048 of the largest port");
    refused(&[("dmz", "dmz", "mode = \"native\"")], "native XDP refused");
    refused(&[("edge", "dmz", "mode = \"native\"")], "port edge: interface dmz: native XDP");
    assert_eq!(count(&net, "reloads_refused"), 4);

    net.write("tidegate.toml", &with_ports(&net, LASTING, &[]));
    net.ask(&["reload", "--confirm", "2s"]).expect("taken over");
    assert_eq!(ports(&net).len(), 2);
    let back = wait_for(PATIENCE, "the port", || ports(&net) == before);
    assert!(back.is_ok() && served(), "{:?}", ports(&net));
    assert_eq!(count(&net, "rollbacks"), 1);
}

/// A thread of the appliance, in `/proc`.
fn task(edge: &Process, thread: &str) -> PathBuf {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", edge.id())).expect("running");
    let is_it = |task: &PathBuf| {
        std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == thread)
    };
    tasks.flatten().map(|task| task.path()).find(is_it).expect("the thread")
}

/// A thread that stands still until this is dropped.
struct Held(Pid);

impl Held {
    fn new(edge: &Process, thread: &str) -> Held {
        let number = task(edge, thread).file_name().and_then(|name| name.to_str()?.parse().ok());
        let thread = Pid::from_raw(number.expect("a number"));
        ptrace::seize(thread, ptrace::Options::empty()).expect("root may");
        ptrace::interrupt(thread).expect("it runs");
        waitpid(thread, Some(WaitPidFlag::__WALL)).expect("it stands");
        Held(thread)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = ptrace::detach(self.0, None);
    }
}

/// What a reload could not end because a worker stood still ends when that goes on: what had to
/// make room only is back, and what was to go is gone. Meanwhile nothing else is begun.
#[test]
fn a_worker_that_hangs_leaves_no_port_half_closed() {
    let net = Net::new(1);
    let _nginx = net.start_nginx();
    let annex = Annex::new(&net, "dmz", 3);
    let with_dmz = with_ports(&net, "", &[("dmz", "dmz", "mode = \"generic\"")]);
    let edge = net.start(&with_dmz);
    let served = || wait_for(PATIENCE, "an answer", || annex.is_served()).is_ok();
    assert!(served());
    let (before, full) = (ports(&net), frames_available(&net));
    let refused = |text: &str, says: &str| {
        net.write("tidegate.toml", text);
        let words = net.ask(&["reload"]).expect_err("it can't be taken over");
        assert!(words.contains(says), "{words}");
    };

    let held = Held::new(&edge, "worker-0");
    refused(&with_ports(&net, "", &[("edge", "dmz", "")]), "hang, or the kernel: ports are not");
    assert!(!annex.has_program(&net), "it had to make room");
    refused(&with_dmz, "held up by workers that hang");
    drop(held);
    assert!(served(), "{:?}", ports(&net));
    assert_eq!((&ports(&net), count(&net, "reloads_refused")), (&before, 2));

    let held = Held::new(&edge, "worker-0");
    refused(&with_ports(&net, "", &[]), "workers {0} hang: they don't take it over");
    drop(held);
    let gone = wait_for(PATIENCE, "the port to go", || !annex.has_program(&net));
    assert!(gone.is_ok(), "{:?}", ports(&net));
    let again = wait_for(PATIENCE, "the end of the first", || net.ask(&["reload"]).is_ok());
    assert!(again.is_ok());
    reload(&net, &with_dmz);
    assert!(served());
    let right = full..full + 3 * 32;
    let all = wait_for(PATIENCE, "all frames", || right.contains(&frames_available(&net)));
    assert!(all.is_ok(), "{} of {full} frames are back", frames_available(&net));

    // A port that comes back may find another interface of its name.
    net.appliance.ip("link del dmz").expect("it was there");
    annex.link(&net);
    annex.host.ip("link set e0 mtu 9000").expect("an MTU");
    let edge = ("edge", "dmz", "mode = \"native\"");
    refused(&with_ports(&net, "", &[edge]), "port edge: interface dmz: native XDP refused");
    assert!(ports(&net) == before && served(), "{:?}", ports(&net));
}

/// Cores that a thread of the appliance may use, as the kernel writes them.
fn cores_of(edge: &Process, thread: &str) -> String {
    let status = std::fs::read_to_string(task(edge, thread).join("status")).expect("running");
    let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    line.expect("a list").trim().to_owned()
}

#[test]
fn workers_go_to_other_cores_while_they_run() {
    let net = Net::new(1);
    let text = |workers: &str| {
        let rest = [nat(), pool("web", SERVERS4, HTTP), service("web", VIP4, 80, "web", "nat")];
        net.config_head("l4-balancer", workers) + &rest.concat()
    };
    let edge = net.start(&text(""));
    let all = cores_of(&edge, "worker-0");
    for (workers, wanted) in [("cores = [0]", "0"), ("", all.as_str())] {
        reload(&net, &text(workers));
        assert_eq!(cores_of(&edge, "worker-0"), wanted);
    }
}
