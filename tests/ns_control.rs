//! A running appliance as operators and programs meet it: answers, metrics, reload, the end.

mod common;

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use common::probe::Echo;
use common::{HTTP, HTTPS, Net, SERVERS4, SERVERS6, VIP4, nat, pool, service};
use nix::sys::signal::Signal;
use tidegate::lab::{Veth, VethEnd, wait_for};

const LIMIT: Duration = Duration::from_secs(60);

fn config(net: &Net) -> String {
    [
        net.config_head("llm-edge", ""),
        nat(),
        pool("web", SERVERS4, HTTP),
        service("web", VIP4, 80, "web", "nat"),
        "[qos.wan]\nrate = \"200Mbit/s\"\ndefault = \"rest\"\n\
         [qos.wan.class.rest]\nrate = \"100Mbit/s\"\n\
         [[rule]]\nport = 80\nclass = \"rest\"\n"
            .to_string(),
    ]
    .concat()
    .replace("metrics = false", "metrics = \"127.0.0.1:9898\"")
}

fn ask_fails(net: &Net, words: &[&str]) -> (i32, String) {
    let socket = net.socket();
    let mut args = words.to_vec();
    args.extend(["--socket", socket.to_str().expect("path")]);
    let program = env!("CARGO_BIN_EXE_tidegate");
    let output = net.appliance.output(program, &args).expect("start");
    let code = output.status.code().expect("a code");
    assert!(output.stdout.is_empty());
    (code, String::from_utf8(output.stderr).expect("UTF-8"))
}

#[test]
fn everything_that_can_be_asked_is_answered() {
    let net = Net::new(1);
    let _nginx = net.start_nginx();
    let mut edge = net.start(&config(&net));
    let url = format!("http://{VIP4}/");
    for _ in 0..20 {
        net.client.run("curl", &["-sSf", "-m", "20", "-o", "/dev/null", &url]).expect("served");
    }
    // They are published now and then.
    let mut counters = serde_json::Value::Null;
    let published = wait_for(LIMIT, "all packets of all flows", || {
        counters = net.ask_json(&["show", "counters"]);
        let total = &counters["total"];
        total["flows_opened"] == 20 && total["rx_packets"] == total["tx_packets"]
    });
    assert!(published.is_ok(), "{counters:#}");
    assert_eq!(counters["process"]["pipeline"], "llm-edge");
    let total = |name: &str| counters["total"][name].as_u64().expect("a number");
    assert_eq!(total("flows_opened"), 20);
    assert!(total("rx_packets") >= 20 * 10 && total("rx_packets") == total("tx_packets"));
    assert_eq!(net.ask_json(&["show", "drops"])["total"], 0);
    let flows = net.ask_json(&["show", "flows", "--limit", "5"]);
    assert_eq!(flows["flows"].as_array().map(Vec::len), Some(5));
    assert_eq!(flows["total"], total("flows"));
    assert_eq!(flows["flows"][0]["service"], "web");
    assert_eq!(flows["flows"][0]["class"], "rest");
    let services = net.ask_json(&["show", "services"]);
    assert_eq!(services["services"][0]["backends"], 3);
    let backends = net.ask_json(&["show", "backends"]);
    for backend in backends["backends"].as_array().expect("a list") {
        assert!(backend["mac"].is_string(), "resolved ahead of need: {backend}");
        assert_eq!(backend["via_port"], "lan");
    }
    let ports = net.ask_json(&["show", "ports"]);
    let wan = &ports["ports"][0];
    assert_eq!((&wan["name"], &wan["attach"]), (&"wan".into(), &"native".into()));
    assert!(wan["steered"]["vip"].as_u64() >= Some(100) && wan["tx_bytes"].as_u64() > Some(0));
    let neighbours = net.ask_json(&["show", "neighbours"]);
    assert!(neighbours["neighbours"].as_array().map_or(0, Vec::len) >= 3);
    // A class's rate is known with the second sample that has its packets.
    let deadline = std::time::Instant::now() + LIMIT;
    let qos = loop {
        let qos = net.ask_json(&["show", "qos"]);
        let rate = qos["classes"][0]["values"]["sent_bits_10s"].as_u64();
        if rate > Some(0) || std::time::Instant::now() > deadline {
            break qos;
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    assert!(qos["classes"][0]["values"]["sent_packets"].as_u64() >= Some(50), "{qos}");
    let class = |name: &str| qos["classes"][0]["values"][name].as_u64().expect(name);
    assert_eq!((class("rate_bits"), class("ceil_bits")), (100_000_000, 200_000_000), "{qos}");
    assert!(class("sent_bits_10s") > 0, "{qos}");
    assert!(class("sojourn_p50_ns") <= class("sojourn_p999_ns"), "{qos}");
    for what in ["counters", "drops", "flows", "services", "backends", "ports", "neighbours"] {
        let text = net.ask(&["show", what]).expect("a table");
        assert!(text.lines().count() >= 1 && text.ends_with('\n'), "{what}: {text}");
    }

    let page = net.appliance.run("curl", &["-sSf", "http://127.0.0.1:9898/metrics"]);
    let page = page.expect("metrics");
    assert!(page.contains("tidegate_worker_flows_opened_total{worker=\"0\"} 20"), "{page}");
    assert!(page.contains("tidegate_class_sent_packets_total{port=\"wan\",class=\"rest\"}"));
    assert!(page.ends_with("# EOF\n"));
    let health = net.appliance.run("curl", &["-sSf", "http://127.0.0.1:9898/healthz"]);
    assert_eq!(health.expect("healthz"), "ok\n");

    net.ask(&["stop"]).expect("stops");
    assert!(edge.wait(LIMIT).expect("ends").success());
    assert!(!net.socket().exists(), "the control socket is left");
    let link = net.appliance.ip("-d link show wan").expect("ip");
    assert!(!link.contains("xdp"), "{link}");
}

#[test]
fn a_reload_takes_over_or_says_what_it_can_not_and_changes_nothing() {
    let net = Net::new(1);
    let text = config(&net);
    let mut edge = net.start(&text);
    let reload = |text: &str| {
        net.write("tidegate.toml", text);
        net.ask(&["reload"])
    };
    assert!(reload(&text).expect("taken").contains("unchanged"));
    let more = text.replace("port = 80\n", "port = 81\n").replace("200Mbit", "300Mbit");
    assert!(reload(&more).expect("taken").contains("1 services, 3 backends, 1 rules"));
    assert_eq!(net.ask_json(&["show", "services"])["services"][0]["port"], 81);

    net.write("tidegate.toml", &more.replace("flows_max = ", "flows_max = 1"));
    let (code, said) = ask_fails(&net, &["reload"]);
    assert_eq!(code, 2);
    assert!(said.contains("restart") && said.contains("workers.flows_max: 100000 runs"), "{said}");
    let said = reload(&more.replace("[port.lan]", "[port.inside]")).expect("taken");
    assert!(said.contains("ports closed: lan\nports opened: inside\n"), "{said}");
    net.write("tidegate.toml", &more.replace("300Mbit/s", "300Mbit/x"));
    let (code, said) = ask_fails(&net, &["reload"]);
    assert_eq!(code, 2);
    assert!(said.contains("tidegate.toml:") && said.contains("300Mbit/x"), "{said}");

    let process = net.ask_json(&["show", "counters"])["process"].clone();
    assert_eq!((&process["reloads"], &process["reloads_refused"]), (&2.into(), &2.into()));
    assert_eq!(net.ask_json(&["show", "services"])["services"][0]["port"], 81);
    // The signal does the same.
    net.write("tidegate.toml", &text);
    edge.signal(Signal::SIGHUP).expect("signal");
    wait_for(LIMIT, "the reload", || {
        net.ask_json(&["show", "services"])["services"][0]["port"] == 80
    })
    .expect("reloaded");
    edge.signal(Signal::SIGTERM).expect("signal");
    assert!(edge.wait(LIMIT).expect("ends").success());
}

#[test]
fn one_appliance_a_socket_and_the_next_start_clears_up() {
    let net = Net::new(1);
    net.appliance.run("ethtool", &["-K", "wan", "gro", "on"]).expect("ethtool");
    let gro = || {
        let all = net.appliance.run("ethtool", &["-k", "wan"]).expect("ethtool");
        let line = all.lines().find(|l| l.starts_with("generic-receive-offload:"));
        line.expect("gro").contains(": on")
    };
    let edge = net.start(&config(&net));
    assert!(!gro(), "off on AF_XDP ports");
    let file = net.path("tidegate.toml");
    let second = ["run", "-c", file.to_str().expect("path")];
    let output = net.appliance.output(env!("CARGO_BIN_EXE_tidegate"), &second).expect("start");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("another tidegate runs"), "{said}");
    net.ask(&["show", "counters"]).expect("the first one still answers");

    edge.signal(Signal::SIGKILL).expect("kill");
    drop(edge);
    assert!(net.socket().exists() && !gro(), "what a killed run leaves");
    let (code, said) = ask_fails(&net, &["show", "drops"]);
    assert_eq!(code, 1);
    assert!(said.contains("nobody listens"), "{said}");
    let doctor = net.appliance.run(env!("CARGO_BIN_EXE_tidegate"), &["doctor"]).expect("ready");
    assert!(doctor.contains("wan: restored") && gro(), "{doctor}");
    assert!(!doctor.contains("leftover:"), "no program: {doctor}");
    let mut edge = net.start(&config(&net));
    edge.signal(Signal::SIGINT).expect("signal");
    assert!(edge.wait(LIMIT).expect("ends").success());
    assert!(gro() && !net.socket().exists());
}

/// A program that drops traffic is told of by who only looks, and taken away by who is asked to.
#[test]
fn the_doctor_tells_of_a_program_that_was_left_to_drop() {
    let net = Net::new(1);
    let text = config(&net).replace("[workers]\n", "[workers]\non_failure = \"drop\"\n");
    let edge = net.start(&text);
    edge.signal(Signal::SIGKILL).expect("kill");
    drop(edge);
    let doctor = |more: &[&str]| {
        let args = [&["doctor"][..], more].concat();
        net.appliance.run(env!("CARGO_BIN_EXE_tidegate"), &args).expect("ready")
    };
    for _ in 0..2 {
        let said = doctor(&[]);
        let line = said.lines().find(|l| l.contains("wan: leftover"));
        assert!(line.is_some_and(|l| l.starts_with("warn")), "{said}");
        assert!(said.contains("tidegate doctor --restore"), "{said}");
    }
    let said = doctor(&["--restore"]);
    assert!(said.contains("XDP program removed") && !said.contains("leftover:"), "{said}");
    assert!(doctor(&[]).contains("none of a killed run"));
    assert!(!net.appliance.ip("-d link show wan").expect("ip").contains("xdp"));
}

#[test]
fn a_signal_during_the_start_ends_in_order() {
    let net = Net::new(1);
    net.appliance.run("ethtool", &["-K", "wan", "gro", "on"]).expect("ethtool");
    let file = net.write("tidegate.toml", &config(&net));
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.args(["run", "-c"]).arg(&file);
    let mut edge = net.appliance.spawn(command).expect("start");
    // The socket comes first: from then on there is something to clear up.
    wait_for(LIMIT, "the socket", || net.socket().exists()).expect("a socket");
    edge.signal(Signal::SIGTERM).expect("signal");
    assert!(edge.wait(LIMIT).expect("ends").success(), "{}", edge.kill_and_read_stderr());
    assert!(!net.socket().exists());
    let features = net.appliance.run("ethtool", &["-k", "wan"]).expect("ethtool");
    assert!(features.contains("generic-receive-offload: on"), "{features}");
}

/// A tap beside kernel forwarding: copies of both directions come in by a port of their own.
#[test]
fn a_tap_names_the_flows_of_a_mirror_port_and_sends_nothing() {
    let net = Net::new(1);
    let _nginx = net.start_nginx();
    net.kernel_forwards(true);
    let end = |name| VethEnd { namespace: &net.appliance, name, addresses: &[] };
    let mirror = Veth { a: end("copies"), b: end("mirror"), queues: 1, wire_like: true };
    mirror.create().expect("veth");
    net.appliance.run("nft", &["add table netdev t"]).expect("nft");
    for port in ["wan", "lan"] {
        let hook = format!("type filter hook ingress device {port} priority 0;");
        let chain = format!("add chain netdev t {port} {{ {hook} }}");
        net.appliance.run("nft", &[&chain]).expect("nft");
        let rule = format!("add rule netdev t {port} dup to copies");
        net.appliance.run("nft", &[&rule]).expect("nft");
    }
    let text = format!(
        "pipeline = \"tap\"\n[workers]\nflows_max = 1000\nheartbeat_limit = \"5s\"\n\
         [admin]\nsocket = \"{}\"\nmetrics = false\n[port.mirror]\ninterface = \"mirror\"\n\
         [transit]\nprefixes = [\"0.0.0.0/0\", \"::/0\"]\n\
         [[rule]]\nsni = \"chat.test.example\"\nclass = \"chat\"\n\
         [[rule]]\nport = [{HTTP}, {HTTPS}]\nclass = \"web\"\n",
        net.socket().display()
    );
    let mut edge = net.start(&text);
    let ask = |host: &str, address: &str| {
        let resolve = format!("{host}:{HTTPS}:{address}");
        let url = format!("https://{host}:{HTTPS}/");
        let args = ["-ksSf", "-m", "20", "-o", "/dev/null", "--resolve", &resolve, &url];
        net.client.run("curl", &args).expect("served");
    };
    ask("chat.test.example", SERVERS4[0]);
    ask("other.test.example", &format!("[{}]", SERVERS6[1]));
    let plain = format!("http://{}:{HTTP}/", SERVERS4[2]);
    net.client.run("curl", &["-sSf", "-m", "20", "-o", "/dev/null", &plain]).expect("served");

    let mut last = String::new();
    let mut seen = || {
        let flows = net.ask_json(&["show", "flows"])["flows"].clone();
        if flows.as_array().is_some_and(|flows| !flows.is_empty()) {
            last = flows.to_string();
        }
        let row = |f: &serde_json::Value| {
            let text = |key: &str| f[key].as_str().unwrap_or("-").to_string();
            (f["protocol"] == "tcp").then(|| (text("server"), text("sni"), text("class")))
        };
        let mut rows: Vec<_> = flows.as_array().into_iter().flatten().filter_map(row).collect();
        rows.sort();
        rows
    };
    let row = |server: String, sni: &str, class: &str| (server, sni.into(), class.into());
    let want = [
        row(format!("{}:{HTTPS}", SERVERS4[0]), "chat.test.example", "chat"),
        row(format!("{}:{HTTP}", SERVERS4[2]), "-", "web"),
        row(format!("[{}]:{HTTPS}", SERVERS6[1]), "other.test.example", "web"),
    ];
    if let Err(error) = wait_for(LIMIT, "the flows", || seen() == want) {
        let counters = net.ask_json(&["show", "counters"]);
        panic!("{error}; last seen {last}; counted {counters}");
    }
    let counters = net.ask_json(&["show", "counters"]);
    assert_eq!(counters["total"]["names_found"], 2, "{counters}");
    assert_eq!(counters["total"]["tx_packets"], 0, "{counters}");
    let drops = net.ask_json(&["show", "drops"]);
    assert_eq!(drops["total"], counters["total"]["rx_packets"], "{drops}");
    edge.signal(Signal::SIGTERM).expect("signal");
    assert!(edge.wait(LIMIT).expect("ends").success());
}

#[test]
fn the_first_packet_to_an_unknown_neighbour_arrives() {
    let net = Net::new(1);
    let text =
        [net.config_head("router", ""), "[transit]\nprefixes = [\"10.0.0.0/8\"]\n".to_string()]
            .concat();
    let mut edge = net.start(&text);
    net.appliance.ip("neigh flush dev lan").expect("ip");
    net.appliance.ip("neigh flush dev wan").expect("ip");
    let target: SocketAddr = format!("{}:7007", SERVERS4[1]).parse().expect("address");
    let _echo = Echo::start(&net.server, &[target]);
    let answered = net.client.enter(move || {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("bind");
        socket.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
        socket.send_to(b"one datagram", target).expect("send");
        socket.recv(&mut [0; 64])
    });
    assert_eq!(answered.expect("thread").expect("an answer"), 12);
    let counters = net.ask_json(&["show", "counters"]);
    assert!(counters["total"]["parked"].as_u64() >= Some(1), "{counters}");
    assert_eq!(net.ask_json(&["show", "drops"])["total"], 0);
    edge.signal(Signal::SIGTERM).expect("signal");
    assert!(edge.wait(LIMIT).expect("ends").success());
}
