//! Limits of connections and requests with real peers: nginx, curl and h2load.

mod common;

use std::time::{Duration, Instant};

use common::{H2C, HTTP, Net, SERVERS4, SERVERS6, VIP4, VIP6, nat, pool, service};
use serde_json::Value;
use tidegate::lab::wait_for;

const LIMIT: Duration = Duration::from_secs(60);

/// Tokens that come so slowly that a test sees none of them, but for the last limit.
const LIMITS: &str = "\
    [limit.few]\nconnections = \"1/h\"\nconnections_burst = 3\naction = \"reset\"\n\
    [limit.asks]\nrequests = \"1/h\"\nrequests_burst = 5\naction = \"reset\"\n\
    [limit.late]\nconnections = \"1/h\"\nconnections_burst = 2\naction = \"reset\"\nper = \"all\"\n\
    [limit.first]\nrequests = \"1/h\"\nrequests_burst = 3\naction = \"reset\"\n\
    [limit.slow]\nconnections = \"20/s\"\nconnections_burst = 5\n\
    [limit.waits]\nconnections = \"20/s\"\nconnections_burst = 1\naction = \"delay\"\n\
    requests = \"20/s\"\nrequests_burst = 1\ndelay_max = \"3s\"\n\
    [[rule]]\npath = \"/v1/*\"\nlimit = \"asks\"\n";

fn config(net: &Net) -> String {
    let mut text = net.config_head("llm-edge", "") + &nat();
    let services = [
        ("few4", VIP4, HTTP, SERVERS4, "limit = \"few\"\n"),
        ("few6", VIP6, HTTP, SERVERS6, "limit = \"few\"\n"),
        ("asks4", VIP4, H2C, SERVERS4, ""),
        ("asks6", VIP6, H2C, SERVERS6, ""),
        ("late", VIP4, 90, SERVERS4, "limit = \"late\"\nbind = \"request\"\n"),
        ("slow", VIP4, 91, SERVERS4, "limit = \"slow\"\n"),
        ("waits4", VIP4, 93, SERVERS4, "limit = \"waits\"\n"),
        ("waits6", VIP6, 94, SERVERS6, "limit = \"waits\"\nbind = \"request\"\n"),
        ("first", VIP4, 92, SERVERS4, "limit = \"first\"\nbind = \"request\"\n"),
    ];
    for (name, vip, port, servers, more) in services {
        text += &(service(name, vip, port, name, "nat") + more);
        text += &pool(name, servers, if port < 1_000 { HTTP } else { port });
    }
    text + LIMITS
}

fn curl(net: &Net, url: &str) -> Result<String, String> {
    net.client.run("curl", &["-sSf", "-m", "10", url]).map_err(|e| e.to_string())
}

/// What a limit tells of its connections or requests.
fn told(net: &Net, limit: &str) -> (u64, u64, u64) {
    let limits = net.ask_json(&["show", "limits"])["limits"].clone();
    let found = limits.as_array().into_iter().flatten().find(|l| l["name"] == limit).cloned();
    let found = found.unwrap_or_else(|| panic!("no {limit}: {limits:#}"));
    let count = |name: &str| found[name].as_u64().unwrap_or_default();
    (count("passed"), count("refused"), count("clients"))
}

/// Requests of h2load: how many succeeded and how many failed.
fn load(net: &Net, args: &[&str], url: &str) -> (u64, u64) {
    let all = [&["-T", "30"][..], args, &[url]].concat();
    let told = net.client.run("h2load", &all).expect("h2load");
    let line = told.lines().find(|l| l.starts_with("requests:")).unwrap_or_default().to_string();
    let number = |word: &str| {
        let part = line.split(',').find(|part| part.trim().ends_with(word));
        let number = part.and_then(|part| part.split_whitespace().rev().nth(1));
        number.and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{word}: {told}"))
    };
    (number("succeeded"), number("failed"))
}

#[test]
fn clients_are_held_to_their_limits() {
    let net = Net::new(1);
    let _nginx = net.start_nginx();
    let _edge = net.start(&config(&net));
    // Each family's client is one of its own.
    for vip in [VIP4.to_string(), format!("[{VIP6}]")] {
        let url = format!("http://{vip}:{HTTP}/");
        for _ in 0..3 {
            curl(&net, &url).expect("has a token");
        }
        let refused = curl(&net, &url).expect_err("has none");
        assert!(refused.contains("Couldn't connect") || refused.contains("refused"), "{refused}");
    }
    let few = told(&net, "few");
    assert_eq!((few.0, few.2), (6, 2));
    assert!(few.1 >= 2, "{few:?}");
    requests_of_a_connection(&net);
    // A cookie that comes back takes the token, a SYN does not.
    let url = format!("http://{VIP4}:90/");
    let served: Vec<_> = (0..4).map(|_| curl(&net, &url).is_ok()).collect();
    assert_eq!(served, [true, true, false, false]);
    assert_eq!(told(&net, "late").0, 2);
    // Whose SYNs are dropped sends them again, and is served in the end.
    let url = format!("http://{VIP4}:91/");
    assert_eq!(load(&net, &["--h1", "-n", "12", "-c", "12"], &url), (12, 0));
    assert_eq!(told(&net, "slow").0, 12);
    they_wait(&net);
    are_told(&net);
}

/// Connections, then requests of one connection, that wait: none is lost.
fn they_wait(net: &Net) {
    for (i, (vip, port)) in [(VIP4.to_string(), 93), (format!("[{VIP6}]"), 94)].iter().enumerate() {
        let url = format!("http://{vip}:{port}/");
        let begun = Instant::now();
        assert_eq!(load(net, &["--h1", "-n", "12", "-c", "6"], &url), (12, 0));
        // The last of 12 requests waits for 11 others' tokens.
        assert!(begun.elapsed() >= Duration::from_millis(500), "{:?}", begun.elapsed());
        let served = 6 * (i as u64 + 1);
        assert_eq!(told_of(net, "waits", "connections"), (served, 0));
        assert_eq!(told_of(net, "waits", "requests"), (2 * served, 0));
    }
}

/// Receive rings of three queues a port keep three quarters of the worker's frames: what is left is
/// free all the same, so who may wait does.
#[test]
fn they_wait_beside_many_receive_rings() {
    let net = Net::new(3);
    let _nginx = net.start_nginx();
    let _edge = net.start(&config(&net));
    they_wait(&net);
}

/// What of a limit passed, and what was refused.
fn told_of(net: &Net, limit: &str, of: &str) -> (u64, u64) {
    let limits = net.ask_json(&["show", "limits"])["limits"].clone();
    let is_it = |l: &&Value| l["name"] == limit && l["of"] == of;
    let found = limits.as_array().into_iter().flatten().find(is_it).cloned();
    let found = found.unwrap_or_else(|| panic!("no {limit}: {limits:#}"));
    // Connections that come one by one leave the waiting to their requests.
    let of_it = limits.as_array().into_iter().flatten().filter(|l| l["name"] == limit);
    assert!(of_it.filter_map(|l| l["delayed"].as_u64()).sum::<u64>() > 0, "none: {limits:#}");
    (found["passed"].as_u64().unwrap_or_default(), found["refused"].as_u64().unwrap_or_default())
}

/// Requests over one connection: HTTP/2, then HTTP/1 by the other family.
fn requests_of_a_connection(net: &Net) {
    let url = format!("http://{VIP4}:{H2C}/v1/embeddings");
    let (succeeded, failed) = load(net, &["-n", "8", "-c", "1", "-m", "1"], &url);
    assert_eq!((succeeded + failed, told(net, "asks").0), (8, 5));
    let free = format!("http://{VIP4}:{H2C}/");
    assert_eq!(load(net, &["-n", "20", "-c", "2"], &free), (20, 0), "of no rule with a limit");
    // Those of a connection that is bound by its first one count, too.
    let url = format!("http://{VIP4}:92/");
    let (succeeded, failed) = load(net, &["--h1", "-n", "5", "-c", "1", "-T", "3"], &url);
    assert_eq!((succeeded, failed, told(net, "first").0), (3, 2, 3));
    assert!(curl(net, &url).is_err(), "one that is refused at once");
    let url = format!("http://[{VIP6}]:{HTTP}/v1/embeddings");
    let first = curl(net, &url).expect_err("its connections are used up");
    assert!(!first.contains("404"), "{first}");
}

/// What was refused is told wherever one may look.
fn are_told(net: &Net) {
    let over = || {
        let drops = net.ask_json(&["show", "drops"])["drops"].clone();
        let found = drops.as_array().into_iter().flatten().find(|d| d["reason"] == "over_limit");
        found.and_then(|d: &Value| d["packets"].as_u64()).unwrap_or_default()
    };
    wait_for(LIMIT, "drops", || over() > 0).expect("drops over the limit");
    let table = net.ask(&["show", "limits"]).expect("a table");
    assert!(table.contains("asks") && table.contains("requests"), "{table}");
}
