//! Rules on requests with real peers: nginx, curl and h2load, over HTTP/1 and HTTP/2 in the clear.

mod common;

use std::fs;
use std::process::Command;
use std::time::Duration;

use common::{CLIENT4, H2C, HTTP, Net, SERVERS4, SERVERS6, VIP4, VIP6, nat, pool, service};
use nix::sys::signal::Signal;
use serde_json::Value;
use tidegate::lab::{Namespace, Process, Veth, VethEnd, wait_for};

const LIMIT: Duration = Duration::from_secs(60);

fn config(net: &Net) -> String {
    let mut text = net.config_head("llm-edge", "") + &nat();
    for (family, vip, servers) in [("4", VIP4, SERVERS4), ("6", VIP6, SERVERS6)] {
        for (name, port) in [("web", HTTP), ("h2c", H2C)] {
            let name = format!("{name}{family}");
            text += &service(&name, vip, port, &name, "nat");
            text += &pool(&name, servers, port);
        }
    }
    text + "[qos.wan]\nrate = \"1Gbit/s\"\ndefault = \"rest\"\n\
            [qos.wan.class.rest]\nrate = \"10%\"\n[qos.wan.class.talk]\nrate = \"10%\"\n\
            [qos.wan.class.load]\nrate = \"10%\"\n[qos.wan.class.batch]\nrate = \"10%\"\n\
            [[rule]]\nname = \"closed\"\npath = \"/admin/*\"\nreset = true\n\
            [[rule]]\nname = \"silent\"\nheader.x-silent = \"*\"\ndrop = true\n\
            [[rule]]\nname = \"talk\"\npath = \"/v1/chat/*\"\nclass = \"talk\"\n\
            [[rule]]\nname = \"load\"\npath = \"/v1/files/{id}\"\nmethod = \"GET\"\n\
            class = \"load\"\n\
            tenant = \"acme\"\n"
}

/// The flow to a service that was opened last, as it is listed.
fn flow(net: &Net, server: &str, path: &str) -> Value {
    let flows = net.ask_json(&["show", "flows"])["flows"].clone();
    let mut all = flows.as_array().into_iter().flatten();
    let found = all.find(|f| f["server"] == server && f["path"] == path);
    found.cloned().unwrap_or_else(|| panic!("no flow to {server} with {path}: {flows:#}"))
}

fn sent(net: &Net, class: &str) -> u64 {
    let classes = net.ask_json(&["show", "qos"])["classes"].clone();
    let mut all = classes.as_array().into_iter().flatten();
    let of = all.find(|c| c["class"] == class).unwrap_or_else(|| panic!("{class}: {classes:#}"));
    of["values"]["sent_packets"].as_u64().unwrap_or_default()
}

fn curl(net: &Net, args: &[&str]) -> Result<String, String> {
    let all = [&["-sSf", "-m", "20"][..], args].concat();
    net.client.run("curl", &all).map_err(|e| e.to_string())
}

/// So many requests, of these paths in turn, over so many connections.
fn load(net: &Net, version: &[&str], counts: [u32; 2], urls: &[String]) {
    let [requests, connections] = counts.map(|n| n.to_string());
    let urls = urls.iter().map(String::as_str);
    let args = [version, &["-n", &requests, "-c", &connections, "-m", "1"]].concat();
    let args: Vec<&str> = args.into_iter().chain(urls).collect();
    let told = net.client.run("h2load", &args).expect("h2load");
    let all = format!("{requests} succeeded, 0 failed, 0 errored");
    assert!(told.contains(&all), "{told}");
}

/// What is listed of connections to one server with one version of HTTP.
fn are_listed(net: &Net, server: &str, app: &str) {
    let http1 = app == "http1";
    let version: &[&str] = if http1 { &["--h1"] } else { &[] };
    let url = |path: &str| format!("http://{server}{path}");
    let (chat, files) = (url("/v1/chat/completions?a=b"), url("/v1/files/7"));
    load(net, version, [2, 1], &[files.clone(), chat.clone()]);
    let seen = flow(net, server, "/v1/chat/completions");
    assert_eq!((&seen["app"], &seen["class"]), (&app.into(), &"talk".into()), "{seen:#}");
    assert_eq!((&seen["requests"], &seen["status"]), (&2.into(), &200.into()), "{seen:#}");
    assert_eq!((&seen["method"], &seen["operation"]), (&"GET".into(), &"chat".into()));
    load(net, version, [4, 1], &[files, chat.clone(), chat, url("/v1/files/8")]);
    let seen = flow(net, server, "/v1/files/8");
    assert_eq!((&seen["class"], &seen["tenant"]), (&"load".into(), &"acme".into()), "{seen:#}");
    let asked = server.replace(['[', ']'], "");
    assert_eq!(seen["authority"], asked, "as h2load has it: {seen:#}");
    // No rule names it: the catalogue does.
    let version = if http1 { "--http1.1" } else { "--http2-prior-knowledge" };
    curl(net, &[version, &url("/v1/embeddings")]).expect("served");
    assert_eq!(flow(net, server, "/v1/embeddings")["class"], "batch");
    let failed = curl(net, &[version, &url("/admin/x")]).expect_err("reset");
    assert!(failed.contains("reset by peer"), "{failed}");
    let silent = curl(net, &[version, "-m", "1", "-H", "X-Silent: 1", &url("/")]);
    assert!(silent.expect_err("dropped").contains("timed out"));
}

#[test]
fn requests_choose_the_class_of_their_connection() {
    let net = Net::new(1);
    let _nginx = net.start_nginx();
    let _edge = net.start(&config(&net));
    for vip in [VIP4.to_string(), format!("[{VIP6}]")] {
        are_listed(&net, &format!("{vip}:{HTTP}"), "http1");
        are_listed(&net, &format!("{vip}:{H2C}"), "h2c");
    }
    let before = (sent(&net, "talk"), sent(&net, "load"));
    load(&net, &[], [2_000, 20], &[format!("http://{VIP4}:{H2C}/v1/chat/completions")]);
    load(&net, &["--h1"], [2_000, 20], &[format!("http://{VIP4}:{HTTP}/v1/files/9")]);
    let after = || (sent(&net, "talk") - before.0, sent(&net, "load") - before.1);
    wait_for(LIMIT, "the classes' counters", || after().0 > 1_000 && after().1 > 1_000)
        .unwrap_or_else(|e| panic!("{e}: {:?}", after()));
    let counters = net.ask_json(&["show", "counters"]);
    let count = |name: &str| counters["total"][name].as_u64().unwrap_or_default();
    assert!(count("requests_read") >= 4_000, "{counters:#}");
    assert!(count("apps_http1") >= 20 && count("apps_http2") >= 20, "{counters:#}");
    assert_eq!(count("unknown_gaps") + count("unknown_crowded"), 0, "{counters:#}");
    assert!(count("resets_sent") >= 8, "{counters:#}");
    assert!(net.ask(&["show", "flows"]).expect("a table").contains("/v1/files/"));
}

/// A third link of the appliance's, and who listens there.
fn monitor(net: &Net, in_gre: bool) -> (Namespace, Process) {
    let monitor = Namespace::new("monitor").expect("namespace");
    let a = VethEnd { namespace: &net.appliance, name: "mon", addresses: &["10.0.3.1/24"] };
    let b = VethEnd { namespace: &monitor, name: "mon0", addresses: &["10.0.3.2/24"] };
    Veth { a, b, queues: 1, wire_like: true }.create().expect("veth");
    if in_gre {
        // Room for the headers around whole packets.
        net.appliance.ip("link set mon mtu 1600").expect("ip");
        monitor.ip("link set mon0 mtu 1600").expect("ip");
    }
    let filter = if in_gre { "ip proto 47" } else { "tcp" };
    let file = net.path("copies.pcap");
    let mut command = Command::new("tcpdump");
    command.args(["-i", "mon0", "-B", "16384", "-U", "-Z", "root", "-w"]).arg(&file).arg(filter);
    let tcpdump = monitor.spawn(command).expect("tcpdump");
    // The file's own header is written when the capture has begun.
    let begun = || fs::metadata(&file).is_ok_and(|m| m.len() >= 24);
    wait_for(LIMIT, "the capture", begun).expect("a file");
    (monitor, tcpdump)
}

/// What a monitor sees of a translated connection is what the client sees, both ways; of others it
/// sees nothing.
#[test]
fn copies_of_a_connection_go_to_a_monitor() {
    copies_are_seen("mon", "mon", false);
}

/// The same in GRE, through which `inspect` looks.
#[test]
fn copies_of_a_connection_go_to_a_collector() {
    copies_are_seen("far", "10.0.3.2", true);
}

fn copies_are_seen(mirror: &str, shown: &str, in_gre: bool) {
    let net = Net::new(1);
    let _nginx = net.start_nginx();
    let (_monitor, mut tcpdump) = monitor(&net, in_gre);
    let _edge = net.start(
        &(net.config_head("llm-edge", "")
            + "[port.mon]\ninterface = \"mon\"\n[collector.far]\naddress = \"10.0.3.2\"\n"
            + &nat()
            + &service("web", VIP4, HTTP, "web", "nat")
            + &pool("web", SERVERS4, HTTP)
            + &service("h2c", VIP4, H2C, "h2c", "nat")
            + &pool("h2c", SERVERS4, H2C)
            + &format!("[[rule]]\nport = {HTTP}\nmirror = \"{mirror}\"\n")),
    );
    let unseen = format!("http://{VIP4}:{H2C}/whoami");
    curl(&net, &["--http2-prior-knowledge", &unseen]).expect("served");
    curl(&net, &["-o", "/dev/null", &format!("http://{VIP4}:{HTTP}/1m.bin")]).expect("served");
    let server = format!("{VIP4}:{HTTP}");
    let seen = || {
        let flow = flow(&net, &server, "/1m.bin");
        assert_eq!(flow["mirror"], shown, "{flow:#}");
        let packets = |key: &str| flow[key].as_u64().unwrap_or_default();
        let counters = net.ask_json(&["show", "counters"]);
        let count = |name: &str| counters["total"][name].as_u64().unwrap_or_default();
        let copies = count("mirrored") + count("mirror_missed");
        (copies, packets("packets_forward") + packets("packets_reply"), count("mirrored"))
    };
    wait_for(LIMIT, "a copy of each packet", || {
        let (copies, packets, _) = seen();
        packets > 700 && copies == packets
    })
    .unwrap_or_else(|e| panic!("{e}: {:?}", seen()));
    assert!(seen().2 > 100, "hardly any copies: {:?}", seen());
    let total = &net.ask_json(&["show", "counters"])["total"];
    assert_eq!(total["mirror_cut"], 0, "{total:#}");
    let file = net.path("copies.pcap");
    wait_for(LIMIT, "the monitor", || fs::metadata(&file).is_ok_and(|m| m.len() > 100_000))
        .expect("copies");
    tcpdump.signal(Signal::SIGINT).expect("running");
    tcpdump.wait(LIMIT).expect("its end");
    let words = ["inspect", file.to_str().expect("path"), "--json"];
    let told = net.appliance.run(env!("CARGO_BIN_EXE_tidegate"), &words).expect("inspected");
    let flows: Vec<Value> =
        told.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(flows.len(), 1, "{told}");
    let is = |key: &str| flows[0][key].as_str().map(str::to_owned);
    assert_eq!(is("client_ip").as_deref(), Some(CLIENT4), "{told}");
    assert_eq!(is("server_ip").as_deref(), Some(VIP4), "{told}");
    assert_eq!(is("http_path").as_deref(), Some("/1m.bin"), "{told}");
}
