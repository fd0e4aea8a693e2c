//! Zones at a distance: what spills goes to the nearest, as health checks measure it.

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use common::{HTTP, NAT4, Net, SERVERS4, VIP4, run_nginx, service};
use tidegate::lab::{Namespace, Process, Veth, VethEnd, wait_for};

/// For what takes a second or two on a machine of its own.
const SOON: Duration = Duration::from_secs(60);

/// An nginx that says which one it is.
fn nginx(net: &Net, host: &Namespace, address: &str) -> Process {
    let dir = net.path(address);
    std::fs::create_dir_all(&dir).expect("mkdir");
    let d = dir.display();
    let text = format!(
        "user root;\nmaster_process off;\npid {d}/nginx.pid;\nerror_log stderr warn;\n\
         events {{ worker_connections 256; }}\nhttp {{\n access_log off;\n\
         client_body_temp_path {d}/body;\n proxy_temp_path {d}/proxy;\n\
         fastcgi_temp_path {d}/fcgi;\n uwsgi_temp_path {d}/uwsgi;\n scgi_temp_path {d}/scgi;\n\
         server {{\n listen {address}:{HTTP};\n return 200 \"{address}\\n\";\n }}\n}}\n"
    );
    std::fs::write(dir.join("nginx.conf"), text).expect("write");
    run_nginx(host, &dir, address)
}

/// Which backends answer `count` new connections; an error in any of them fails the test.
fn who_answers(net: &Net, count: usize) -> BTreeSet<String> {
    let url = format!("http://{VIP4}/");
    let ask = |_| net.client.run("curl", &["-sSf", "-m", "20", &url]).expect("an answer");
    (0..count).map(ask).map(|name| name.trim().to_string()).collect()
}

fn names(of: &[&str]) -> BTreeSet<String> {
    of.iter().map(|name| (*name).to_string()).collect()
}

/// A host 10.0.3.2 beyond a port `far`, at the end of a link that takes 200 ms each way.
struct FarSite {
    host: Namespace,
    _link: Namespace,
    _relay: Process,
}

impl FarSite {
    const ADDRESS: &str = "10.0.3.2";
    const ROUND_TRIP_US: u64 = 400_000;

    fn new(net: &Net) -> FarSite {
        let (host, link) = ("far-host", "far-link");
        let (host, link) = (Namespace::new(host), Namespace::new(link));
        let (host, link) = (host.expect("namespace"), link.expect("namespace"));
        let end = |namespace, name, addresses| VethEnd { namespace, name, addresses };
        for (a, b) in [
            (end(&net.appliance, "far", &["10.0.3.1/24"]), end(&link, "near0", &[])),
            (end(&host, "eth0", &["10.0.3.2/24"]), end(&link, "far0", &[])),
        ] {
            Veth { a, b, queues: 1, wire_like: true }.create().expect("veth");
        }
        host.ip("route add default via 10.0.3.1").expect("route");
        let mut relay = std::process::Command::new("python3");
        relay.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/relay.py"));
        relay.args(["near0", "far0", &(Self::ROUND_TRIP_US / 2_000).to_string()]);
        let relay = link.spawn(relay).expect("python3");
        FarSite { host, _link: link, _relay: relay }
    }
}

/// By their names, and in the file, the zones stand the other way round.
#[test]
fn what_spills_goes_to_the_nearest_zone_and_then_to_the_next() {
    let net = Net::new(1);
    let far = FarSite::new(&net);
    let [home, near, _] = SERVERS4;
    let _servers = [home, near].map(|address| nginx(&net, &net.server, address));
    let _far = nginx(&net, &far.host, FarSite::ADDRESS);
    let backend = |(address, zone, weight): (&str, &str, u16)| {
        format!(
            "[[pool.web.backend]]\naddress = \"{address}\"\nname = \"{address}\"\n\
             port = {HTTP}\nzone = \"{zone}\"\nweight = {weight}\n"
        )
    };
    let zones = [(home, "home", 1), (FarSite::ADDRESS, "a-far", 9), (near, "b-near", 9)];
    let text = [
        net.config_head("l4-balancer", ""),
        "[port.far]\ninterface = \"far\"\n".to_string(),
        format!("[appliance]\nzone = \"home\"\n[nat]\naddresses = [\"{NAT4}\"]\n"),
        "[pool.web]\ndistance = \"rtt\"\nreturn_after = \"0s\"\n".to_string(),
        zones.into_iter().map(backend).collect(),
        "[pool.web.health]\ntype = \"http\"\npath = \"/health\"\ninterval = \"1s\"\n\
         timeout = \"10s\"\n"
            .to_string(),
        service("web", VIP4, 80, "web", "nat"),
    ]
    .concat();
    let _edge = net.start(&text);
    let mut pools = serde_json::Value::Null;
    let ordered = wait_for(SOON, "the order", || {
        pools = net.ask_json(&["show", "pools"]);
        pools["pools"][0]["nearest"] == serde_json::json!(["b-near", "a-far"])
    });
    assert!(ordered.is_ok(), "{pools:#}");
    let shown = net.ask_json(&["show", "backends"]);
    for backend in shown["backends"].as_array().expect("backends") {
        let health = &backend["health"];
        let is_far = backend["address"] == FarSite::ADDRESS;
        for of in ["rtt_us", "rtt_min_us"] {
            let us = health[of].as_u64().expect("measured");
            assert_eq!(us >= FarSite::ROUND_TRIP_US, is_far, "{backend:#}");
        }
    }
    assert_eq!(who_answers(&net, 20), names(&[home]));
    let drain = |address: &str| net.ask_json(&["drain", "backend", &format!("web/{address}")]);
    drain(home);
    assert_eq!(who_answers(&net, 20), names(&[near]));
    drain(near);
    assert_eq!(who_answers(&net, 5), names(&[FarSite::ADDRESS]));
}
