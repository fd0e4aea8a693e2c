//! Services in front of real nginx, asked by real clients, in every forwarding mode and both
//! families.

mod common;

use std::time::Duration;

use common::{HTTP, HTTPS, NAT4, Net, SERVERS4, SERVERS6, VIP4, VIP6, nat, pool, service};
use tidegate::lab::wait_for;

/// Requests of one h2load run: an error in any of them fails the test.
const REQUESTS: u32 = 10_000;

/// What one test configures: VIP port for TLS and clear text in front of the same ports of nginx
/// where the mode can't translate ports, of 443 and 80 where it can.
struct Ports {
    https: u16,
    http: u16,
}

fn config(net: &Net, mode: &str, ports: &Ports, workers: &str) -> String {
    [
        net.config_head("l4-balancer", workers),
        nat(),
        pool("tls4", SERVERS4, HTTPS),
        pool("tls6", SERVERS6, HTTPS),
        pool("web4", SERVERS4, HTTP),
        pool("web6", SERVERS6, HTTP),
        service("tls4", VIP4, ports.https, "tls4", mode),
        service("tls6", VIP6, ports.https, "tls6", mode),
        service("web4", VIP4, ports.http, "web4", mode),
        service("web6", VIP6, ports.http, "web6", mode),
    ]
    .concat()
}

fn h2load(net: &Net, url: &str, extra: &[&str]) {
    let n = REQUESTS.to_string();
    let mut args = vec!["-n", &n, "-c", "20"];
    args.extend(extra);
    args.push(url);
    let out = net.client.run("h2load", &args).expect("h2load");
    let wanted = format!("{REQUESTS} succeeded, 0 failed, 0 errored, 0 timeout");
    assert!(out.contains(&wanted), "{url}:\n{out}");
}

/// Every client against every VIP.
fn ask_everything(net: &Net, ports: &Ports) {
    for host in [VIP4.to_string(), format!("[{VIP6}]")] {
        let web = format!("http://{host}:{}/", ports.http);
        let tls = format!("https://{host}:{}/", ports.https);
        let curl = |args: &[&str]| net.client.run("curl", args).expect("curl");
        assert!(curl(&["-sS", "-m", "10", &web]).contains("hello"));
        for version in ["--http1.1", "--http2"] {
            assert!(curl(&["-skS", "-m", "10", version, &tls]).contains("hello"));
        }
        let big = curl(&[
            "-skS",
            "-m",
            "20",
            "-o",
            "/dev/null",
            "-w",
            "%{size_download}",
            &format!("{tls}1m.bin"),
        ]);
        assert_eq!(big, "1048576");
        let connect = format!("{host}:{}", ports.https);
        let hello = net
            .client
            .run(
                "sh",
                &[
                    "-c",
                    &format!(
                        "openssl s_client -connect {connect} -servername chat.test.example -brief \
                 </dev/null 2>&1"
                    ),
                ],
            )
            .expect("s_client");
        assert!(hello.contains("CONNECTION ESTABLISHED"), "{hello}");
        h2load(net, &web, &["--h1"]);
        h2load(net, &tls, &["-m", "10"]);
    }
}

fn whoami(net: &Net, port: u16, times: usize) -> Vec<(String, String)> {
    (0..times)
        .map(|_| {
            let url = format!("http://{VIP4}:{port}/whoami");
            let out = net.client.run("curl", &["-sS", "-m", "10", &url]).expect("curl");
            let (server, client) = out.trim().split_once(' ').expect("two words");
            (server.to_string(), client.to_string())
        })
        .collect()
}

#[test]
fn nat_serves_every_client_and_hides_them() {
    let net = Net::new(1);
    let _nginx = net.start_nginx();
    let ports = Ports { https: 443, http: 80 };
    let _edge = net.start(&config(&net, "nat", &ports, ""));
    ask_everything(&net, &ports);
    let seen = whoami(&net, ports.http, 40);
    for server in SERVERS4 {
        assert!(seen.iter().any(|(s, _)| s == server), "{server} got nothing: {seen:?}");
    }
    assert!(seen.iter().all(|(_, client)| client == NAT4), "{seen:?}");
}

#[test]
fn dnat_serves_every_client_and_shows_them() {
    let net = Net::new(1);
    let _nginx = net.start_nginx();
    let ports = Ports { https: 443, http: 80 };
    let _edge = net.start(&config(&net, "dnat", &ports, ""));
    ask_everything(&net, &ports);
    let seen = whoami(&net, ports.http, 10);
    assert!(seen.iter().all(|(_, client)| client == common::CLIENT4), "{seen:?}");
}

#[test]
fn dsr_leaves_the_way_back_to_the_servers() {
    let net = Net::new(1);
    net.server.sysctl("net.ipv4.conf.all.arp_ignore", "1").expect("sysctl");
    net.server.sysctl("net.ipv4.conf.all.arp_announce", "2").expect("sysctl");
    net.server.ip(&format!("addr add {VIP4}/32 dev lo")).expect("VIP");
    net.server.ip(&format!("addr add {VIP6}/128 dev lo")).expect("VIP");
    // The answers' way does not lead through the appliance: here its kernel stands for that way.
    net.kernel_forwards(true);
    let _nginx = net.start_nginx();
    let ports = Ports { https: HTTPS, http: HTTP };
    let _edge = net.start(&config(&net, "dsr", &ports, ""));
    ask_everything(&net, &ports);
    let seen = whoami(&net, ports.http, 10);
    assert!(seen.iter().all(|(server, _)| server == VIP4), "{seen:?}");
    assert!(seen.iter().all(|(_, client)| client == common::CLIENT4), "{seen:?}");
}

#[test]
fn two_workers_hand_over_what_arrives_at_the_other_queue() {
    let net = Net::new(2);
    let _nginx = net.start_nginx();
    let ports = Ports { https: 443, http: 80 };
    let _edge = net.start(&config(&net, "nat", &ports, "count = 2"));
    ask_everything(&net, &ports);
    let counters = net.ask_json(&["show", "counters"]);
    let handed = counters["total"]["handed_over"].as_u64();
    assert!(handed.is_some_and(|n| n > 1_000), "{counters:#}");
}

/// A client that sits beside the servers: its packets leave by the port that they came in by.
#[test]
fn hosts_of_one_port_reach_each_other() {
    let net = Net::new(1);
    let _nginx = net.start_nginx();
    let web = [pool("web", SERVERS4, HTTP), service("web", VIP4, 80, "web", "nat")].concat();
    let _edge = net.start(&[net.config_head("l4-balancer", ""), nat(), web].concat());
    let url = format!("http://{VIP4}/");
    let served = || net.server.run("curl", &["-sf", "-m", "5", &url]);
    let asked = wait_for(Duration::from_secs(30), "an answer", || served().is_ok());
    assert!(asked.is_ok(), "{:#}", net.ask_json(&["show", "drops"]));
    assert!(served().expect("again").contains("hello"));
}
