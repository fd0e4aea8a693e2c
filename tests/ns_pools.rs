//! Backends that die, hang, fail and are drained: what becomes of clients.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use common::{HTTP, NAT4, Net, SERVERS4, VIP4, pool, service};
use nix::sys::signal::Signal;
use tidegate::lab::{Process, wait_for};

/// For what takes well under a second on a machine of its own.
const SOON: Duration = Duration::from_secs(30);
const REQUESTS: &str = "2000";

const HEALTH: &str = "[pool.web.health]\ntype = \"http\"\npath = \"/health\"\nbody = \"well\"\n\
                      interval = \"200ms\"\ntimeout = \"2s\"\nfall = 2\nrise = 2\n";

fn config(net: &Net, more: &str) -> String {
    [
        net.config_head("l4-balancer", ""),
        format!("[nat]\naddresses = [\"{NAT4}\"]\n"),
        pool("web", SERVERS4, HTTP),
        service("web", VIP4, 80, "web", "nat"),
        more.to_string(),
    ]
    .concat()
}

/// An nginx on one of the servers' addresses. It answers 500 while a file `sick-ADDRESS` exists.
fn nginx(net: &Net, address: &str) -> Process {
    let dir = net.path(address);
    std::fs::create_dir_all(&dir).expect("mkdir");
    let d = dir.display();
    let sick = net.path(&format!("sick-{address}"));
    let text = format!(
        "user root;\nmaster_process off;\npid {d}/nginx.pid;\nerror_log stderr warn;\n\
         events {{ worker_connections 1024; }}\nhttp {{\n access_log off;\n\
         keepalive_requests 1000000;\n keepalive_timeout 3600;\n client_body_temp_path {d}/body;\n\
         proxy_temp_path {d}/proxy;\n fastcgi_temp_path {d}/fcgi;\n\
         uwsgi_temp_path {d}/uwsgi;\n scgi_temp_path {d}/scgi;\n\
         server {{\n listen {address}:{HTTP};\n root {d};\n\
         if (-f {}) {{ return 500; }}\n\
         location = /health {{ return 200 \"well\\n\"; }}\n\
         location = / {{ return 200 \"{address}\\n\"; }}\n }}\n}}\n",
        sick.display()
    );
    std::fs::write(dir.join("nginx.conf"), text).expect("write");
    net.run_nginx(&dir, address)
}

/// Which backends answer `count` new connections; an error in any of them fails the test.
fn who_answers(net: &Net, count: usize) -> BTreeSet<String> {
    let url = format!("http://{VIP4}/");
    let ask = |_| net.client.run("curl", &["-sSf", "-m", "10", &url]).expect("an answer");
    (0..count).map(ask).map(|name| name.trim().to_string()).collect()
}

/// Who answers on a connection that stays.
fn ask_on(stream: &mut TcpStream) -> String {
    stream.set_read_timeout(Some(SOON)).expect("a limit");
    let request = format!("GET / HTTP/1.1\r\nhost: {VIP4}\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("sent");
    let mut answer = String::new();
    // The body is the answer's last line.
    while !answer.split_once("\r\n\r\n").is_some_and(|(_, body)| body.ends_with('\n')) {
        let mut part = [0; 1024];
        let length = stream.read(&mut part).expect("an answer");
        assert!(length > 0, "cut after {answer:?}");
        answer.push_str(&String::from_utf8_lossy(&part[..length]));
    }
    answer.lines().last().unwrap_or_default().to_string()
}

fn h2load(net: &Net) {
    let url = format!("http://{VIP4}/");
    let args = ["--h1", "-n", REQUESTS, "-c", "20", &url];
    let out = net.client.run("h2load", &args).expect("h2load");
    let wanted = format!("{REQUESTS} succeeded, 0 failed, 0 errored, 0 timeout");
    assert!(out.contains(&wanted), "{out}");
}

/// Waits until exactly these are up.
fn until_up(net: &Net, wanted: &[&str]) {
    let mut last = serde_json::Value::Null;
    let agreed = wait_for(SOON, "the checks to agree", || {
        last = net.ask_json(&["show", "backends"]);
        let backends = last["backends"].as_array().expect("backends");
        let is_up = |address: &str| {
            let found = backends.iter().find(|b| b["address"] == address).expect("listed");
            found["health"]["checks"].as_u64() > Some(0) && found["health"]["up"] == true
        };
        SERVERS4.iter().all(|a| is_up(a) == wanted.contains(a))
    });
    assert!(agreed.is_ok(), "{last:#}");
}

fn names(of: &[&str]) -> BTreeSet<String> {
    of.iter().map(ToString::to_string).collect()
}

#[test]
fn the_dead_the_hung_and_the_failing_are_left_and_return() {
    let net = Net::new(1);
    let [a, b, c] = SERVERS4;
    let mut servers = SERVERS4.map(|address| nginx(&net, address));
    let _edge = net.start(&config(&net, HEALTH));
    until_up(&net, &[a, b, c]);
    assert_eq!(who_answers(&net, 40), names(&[a, b, c]));

    servers[0].signal(Signal::SIGKILL).expect("kill");
    until_up(&net, &[b, c]);
    h2load(&net);
    assert_eq!(who_answers(&net, 20), names(&[b, c]));

    servers[1].signal(Signal::SIGSTOP).expect("stop");
    until_up(&net, &[c]);
    h2load(&net);
    assert_eq!(who_answers(&net, 10), names(&[c]));
    let text = net.ask(&["show", "backends"]).expect("answer");
    assert!(text.contains("connect: Connection refused"), "{text}");
    assert!(text.contains("no answer within 2s"), "{text}");

    servers[1].signal(Signal::SIGCONT).expect("continue");
    servers[0] = nginx(&net, a);
    until_up(&net, &[a, b, c]);
    net.write(&format!("sick-{c}"), "");
    until_up(&net, &[a, b]);
    h2load(&net);
    assert_eq!(who_answers(&net, 40), names(&[a, b]));
    let text = net.ask(&["show", "backends"]).expect("answer");
    assert!(text.contains("http: status 500"), "{text}");

    // All are down: better one that may fail than none at all.
    for server in [a, b] {
        net.write(&format!("sick-{server}"), "");
    }
    until_up(&net, &[]);
    let text = net.ask(&["show", "backends"]).expect("answer");
    assert!(text.contains("in use for want of others"), "{text}");
    let url = format!("http://{VIP4}/");
    let status = ["-s", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}", &url];
    assert_eq!(net.client.run("curl", &status).expect("an answer"), "500");
}

#[test]
fn turns_go_round_and_full_backends_are_passed_over() {
    let net = Net::new(1);
    let [a, b, c] = SERVERS4;
    let _servers = SERVERS4.map(|address| nginx(&net, address));
    let text = config(&net, "[pool.web]\nbalance = \"round-robin\"\n");
    let mut edge = net.start(&text);
    let url = format!("http://{VIP4}/");
    let answers: Vec<String> = (0..9)
        .map(|_| net.client.run("curl", &["-sSf", "-m", "10", &url]).expect("an answer"))
        .collect();
    assert!(
        answers.windows(4).all(|w| w[0] == w[3] && w[0] != w[1] && w[1] != w[2]),
        "{answers:?}"
    );

    // Two connections each for the first two, the third is for what is left.
    let limited = |of: &str| format!("address = \"{of}\"\nport = {HTTP}\nmax_connections = 2\n");
    let mut text = text.replace("round-robin", "least-connections");
    for of in [a, b] {
        text = text.replace(&format!("address = \"{of}\"\nport = {HTTP}\n"), &limited(of));
    }
    let last = format!("address = \"{c}\"\nport = {HTTP}\n");
    text = text.replace(&last, &format!("{last}priority = 1\nmax_connections = 3\n"));
    net.write("tidegate.toml", &text);
    net.ask(&["reload"]).expect("reload");
    let open = || {
        let connect = || TcpStream::connect((VIP4, 80)).expect("connect");
        let mut stream = net.client.enter(connect).expect("thread");
        (ask_on(&mut stream), stream)
    };
    let mut held: Vec<(String, TcpStream)> = (0..7).map(|_| open()).collect();
    let count = |held: &[(String, TcpStream)], of: &str| held.iter().filter(|h| h.0 == of).count();
    assert!(held[..4].iter().all(|h| h.0 != c), "{held:?}");
    assert_eq!([a, b, c].map(|of| count(&held, of)), [2, 2, 3], "{held:?}");
    let refused = net.client.run("curl", &["-sSf", "-m", "2", &url]);
    assert!(refused.is_err(), "all are full");
    let full = |name: &str| {
        let drops = net.ask_json(&["show", "drops"]);
        let drops = drops["drops"].as_array().expect("drops");
        drops.iter().find(|d| d["reason"] == name).expect("listed")["packets"].as_u64()
    };
    assert!(full("backends_full") > Some(0));
    let text = net.ask(&["show", "backends"]).expect("answer");
    assert!(text.contains("2 of 2") && text.contains("3 of 3"), "{text}");

    held.retain(|h| h.0 != b);
    let has_room = wait_for(SOON, "the connections to end", || {
        let backends = net.ask_json(&["show", "backends"]);
        let backends = backends["backends"].as_array().expect("backends");
        backends.iter().any(|of| of["address"] == b && of["connections"] == 0)
    });
    assert!(has_room.is_ok());
    assert_eq!(open().0, b);
    assert!(edge.is_running());
}

/// What an engine of these requests tells.
fn metrics(net: &Net, server: &str, running: u32, waiting: u32, cache: f64) {
    let text = format!(
        "vllm:num_requests_running{{engine=\"0\"}} {running}\n\
         vllm:num_requests_waiting{{engine=\"0\"}} {waiting}\n\
         vllm:kv_cache_usage_perc{{engine=\"0\"}} {cache}\n"
    );
    // As a whole: a reader sees the old text or the new one.
    let new = net.write(&format!("{server}/metrics.new"), &text);
    std::fs::rename(new, net.path(&format!("{server}/metrics"))).expect("rename");
}

/// Waits until engines are believed, or none is.
fn until_engines(net: &Net, wanted: &str, holds: impl Fn(&serde_json::Value) -> bool) {
    let mut last = serde_json::Value::Null;
    let held = wait_for(SOON, wanted, || {
        last = net.ask_json(&["show", "pools"]);
        let backends = last["pools"][0]["backends"].as_array().expect("backends");
        backends.iter().all(|b| holds(&b["engine"]))
    });
    assert!(held.is_ok(), "{wanted}: {last:#}");
}

#[test]
fn engines_that_have_much_to_do_get_nothing_new_while_they_say_so() {
    let net = Net::new(2);
    let [a, b, c] = SERVERS4;
    let _servers = SERVERS4.map(|address| nginx(&net, address));
    metrics(&net, a, 50, 50, 0.9);
    metrics(&net, b, 2, 0, 0.05);
    metrics(&net, c, 3, 0, 0.06);
    let text = config(
        &net,
        "[pool.web]\nbalance = \"least-load\"\n[pool.web.metrics]\n\
                             interval = \"200ms\"\ntimeout = \"5s\"\nstale_after = \"10s\"\n",
    );
    let mut edge = net.start(&text.replace("[workers]\n", "[workers]\ncount = 2\n"));
    until_engines(&net, "all to tell", |e| e["stale"] == false);
    assert_eq!(who_answers(&net, 30), names(&[b, c]));
    let shown = net.ask(&["show", "pools"]).expect("answer");
    assert!(
        shown.contains("vLLM") && shown.contains("least-load") && shown.contains("90%"),
        "{shown}"
    );

    metrics(&net, a, 0, 0, 0.0);
    metrics(&net, b, 50, 50, 0.9);
    metrics(&net, c, 50, 50, 0.9);
    until_engines(&net, "the new state", |e| e["running"] == 0.0 || e["waiting"] == 50.0);
    assert_eq!(who_answers(&net, 20).iter().filter(|of| *of == a).count(), 1);

    for server in SERVERS4 {
        std::fs::remove_file(net.path(&format!("{server}/metrics"))).expect("removed");
    }
    until_engines(&net, "all to be stale", |e| e["stale"] == true);
    assert_eq!(who_answers(&net, 40), names(&[a, b, c]), "by connections alone");
    let shown = net.ask(&["show", "pools"]).expect("answer");
    assert!(shown.contains("silent for") && shown.contains("http: status 404"), "{shown}");
    assert!(edge.is_running());
}

/// What a client that waits for an answer gets instead.
fn wait_for_end(stream: &mut TcpStream) -> String {
    stream.set_read_timeout(Some(SOON)).expect("a limit");
    match stream.read(&mut [0; 64]) {
        Ok(length) => format!("{length} bytes"),
        Err(error) => error.kind().to_string(),
    }
}

/// Connections until each server has one, by server.
fn one_each(net: &Net) -> BTreeMap<String, TcpStream> {
    let mut held = BTreeMap::new();
    while held.len() < SERVERS4.len() {
        let connect = || TcpStream::connect((VIP4, 80)).expect("connect");
        let mut stream = net.client.enter(connect).expect("thread");
        let server = ask_on(&mut stream);
        held.entry(server).or_insert(stream);
    }
    held
}

/// Connections that a server has from the appliance.
fn connections_at(net: &Net, server: &str) -> usize {
    let local = format!("src {server}:{HTTP}");
    let filter = ["-Htn", "state", "established", &local];
    net.server.run("ss", &filter).expect("ss").lines().count()
}

#[test]
fn flows_of_the_downed_and_the_flushed_are_reset_at_both_ends() {
    let net = Net::new(1);
    let [a, b, c] = SERVERS4;
    let servers = SERVERS4.map(|address| nginx(&net, address));
    let health = format!("[pool.web]\non_down = \"reset\"\n{HEALTH}");
    let mut edge = net.start(&config(&net, &health));
    until_up(&net, &[a, b, c]);
    let mut held = one_each(&net);

    servers[0].signal(Signal::SIGSTOP).expect("stop");
    let mut of = |server: &str| held.remove(server).expect("one each");
    let mut waits = of(a);
    waits.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").expect("sent");
    assert_eq!(wait_for_end(&mut waits), "connection reset", "while it waits for the answer");
    let (mut kept, mut flushed) = (of(b), of(c));
    assert_eq!([ask_on(&mut kept), ask_on(&mut flushed)], [b, c]);

    let name = format!("web/{c}:{HTTP}");
    let done = net.ask_json(&["drain", "backend", &name, "--flush"]);
    assert_eq!((done["cut"].as_u64(), done["flows"].as_u64()), (Some(1), Some(0)), "{done}");
    assert_eq!(wait_for_end(&mut flushed), "connection reset");
    let ended = wait_for(SOON, "the server's end", || connections_at(&net, c) == 0);
    assert!(ended.is_ok(), "{}", net.server.run("ss", &["-tn"]).expect("ss"));
    assert_eq!(ask_on(&mut kept), b, "others' flows are left alone");
    assert_eq!(who_answers(&net, 10), names(&[b]));
    assert!(edge.is_running());
}

/// Asks until backends are out by what their connections have shown.
fn until_out(net: &Net, wanted: &[&str]) {
    let mut last = serde_json::Value::Null;
    let url = format!("http://{VIP4}/");
    let agreed = wait_for(SOON, "outliers to be taken out", || {
        let _ = net.client.run("curl", &["-s", "-m", "5", "-o", "/dev/null", &url]);
        last = net.ask_json(&["show", "pools"]);
        let backends = last["pools"][0]["backends"].as_array().expect("backends");
        let out = backends.iter().filter(|b| b["outlier"]["out_secs"].is_number());
        let out: BTreeSet<&str> = out.filter_map(|b| b["name"].as_str()).collect();
        let wanted: Vec<String> = wanted.iter().map(|a| format!("{a}:{HTTP}")).collect();
        out == wanted.iter().map(String::as_str).collect()
    });
    assert!(agreed.is_ok(), "{last:#}");
    // Workers hear of it a moment after it is told.
    let is_answered = |_| net.client.run("curl", &["-sSf", "-m", "5", &url]).is_ok();
    let heard = wait_for(SOON, "workers to leave them out", || (0..5).all(is_answered));
    assert!(heard.is_ok(), "{last:#}");
}

fn outliers(eject: &str) -> String {
    format!(
        "[pool.web.outliers]\nfailures = 3\nanswers_min = 4\neject = \"{eject}\"\n\
         ejected_percent_max = 70\n"
    )
}

#[test]
fn who_refuses_or_fails_is_taken_out_by_its_connections() {
    let net = Net::new(1);
    let [a, b, c] = SERVERS4;
    let servers = SERVERS4.map(|address| nginx(&net, address));
    let mut edge = net.start(&config(&net, &outliers("1h")).replace("l4-balancer", "llm-edge"));
    assert_eq!(who_answers(&net, 40), names(&[a, b, c]));

    servers[0].signal(Signal::SIGKILL).expect("kill");
    until_out(&net, &[a]);
    h2load(&net);
    net.write(&format!("sick-{b}"), "");
    until_out(&net, &[a, b]);
    assert_eq!(who_answers(&net, 20), names(&[c]));
    let shown = net.ask(&["show", "pools"]).expect("answer");
    for part in ["connections in a row failed", "answers were errors", "taken out, tried again"] {
        assert!(shown.contains(part), "{shown}");
    }
    assert!(edge.is_running());
}

/// No rule asks for requests, and each connection has one.
#[test]
fn answers_count_and_are_timed_where_backends_are_chosen_by_requests() {
    let net = Net::new(1);
    let [a, b, c] = SERVERS4;
    let _servers = SERVERS4.map(|address| nginx(&net, address));
    let text = config(&net, &outliers("1h")).replace("l4-balancer", "llm-edge");
    let text = text.replace("port = 80\n", "port = 80\nbind = \"request\"\n");
    let mut edge = net.start(&text);
    assert_eq!(who_answers(&net, 40), names(&[a, b, c]));
    let timed = || {
        let shown = net.ask_json(&["show", "latency"]);
        let lines = shown["latencies"].as_array().expect("lines").iter();
        let of = lines.filter(|line| line["of"] == "service" && line["name"] == "web");
        of.filter_map(|line| line["first"]["count"].as_u64()).sum::<u64>()
    };
    wait_for(SOON, "40 times", || timed() == 40).expect("timed");
    net.write(&format!("sick-{b}"), "");
    until_out(&net, &[b]);
    assert_eq!(who_answers(&net, 20), names(&[a, c]));
    assert!(edge.is_running());
}

#[test]
fn who_was_taken_out_is_tried_again() {
    let net = Net::new(1);
    let [a, b, c] = SERVERS4;
    let mut servers = SERVERS4.map(|address| nginx(&net, address));
    let mut edge = net.start(&config(&net, &outliers("1s")));
    servers[0].signal(Signal::SIGKILL).expect("kill");
    let url = format!("http://{VIP4}/");
    let ask = || net.client.run("curl", &["-s", "-m", "5", &url]).unwrap_or_default();
    let out = wait_for(SOON, "it to be taken out", || {
        ask();
        let pools = net.ask_json(&["show", "pools"]);
        pools["pools"][0]["backends"][0]["outlier"]["ejections"].as_u64() > Some(0)
    });
    assert!(out.is_ok(), "{}", net.ask(&["show", "pools"]).expect("answer"));
    servers[0] = nginx(&net, a);
    let back = wait_for(SOON, "it to be tried again", || ask().trim() == a);
    assert!(back.is_ok(), "{}", net.ask(&["show", "pools"]).expect("answer"));
    assert_eq!(who_answers(&net, 40), names(&[a, b, c]));
    assert!(edge.is_running());
}

/// A client whose server closes first has its port free at once: this one waits for that.
#[test]
fn a_port_that_is_used_again_leads_to_nobody_who_was_drained() {
    let net = Net::new(1);
    let servers = SERVERS4.map(|address| nginx(&net, address));
    let mut edge = net.start(&config(&net, ""));
    let ask = |port: u16| {
        let local = port.to_string();
        let url = format!("http://{VIP4}/");
        let closed = ["-H", "connection: close", "--ignore-content-length"];
        let args = [&["-sSf", "-m", "5", "--local-port", &local, &url][..], &closed].concat();
        net.client.run("curl", &args).expect("an answer").trim().to_string()
    };
    let ports = || 20_000..20_012;
    let before: Vec<String> = ports().map(ask).collect();
    assert_eq!(ports().map(ask).collect::<Vec<_>>(), before, "nobody was drained");
    let [a, b, c] = SERVERS4;
    assert_eq!(before.iter().map(String::as_str).collect::<BTreeSet<_>>(), [a, b, c].into());
    net.ask(&["drain", "backend", &format!("web/{a}:{HTTP}")]).expect("drained");
    for (port, before) in ports().zip(before) {
        let now = ask(port);
        assert!(now != a && (before == a || before == now), "{port}: {now} after {before}");
    }
    assert!(edge.is_running());
    drop(servers);
}

#[test]
fn what_is_drained_keeps_its_flows_and_gets_no_new_ones() {
    let net = Net::new(1);
    let _servers = SERVERS4.map(|address| nginx(&net, address));
    let text = config(&net, "");
    let mut edge = net.start(&text);
    let connect = || TcpStream::connect((VIP4, 80)).expect("connect");
    let mut old = net.client.enter(connect).expect("thread");
    let serving = format!("{}:{HTTP}", ask_on(&mut old));
    let name = format!("web/{serving}");
    let left = net.ask_json(&["drain", "backend", &name]);
    assert_eq!((left["drained"].as_bool(), left["flows"].as_u64()), (Some(true), Some(1)));
    let others = |seen: &BTreeSet<String>| {
        seen.len() == 2 && !seen.iter().any(|server| serving.starts_with(server))
    };
    let seen = who_answers(&net, 30);
    assert!(others(&seen), "{seen:?} beside {serving}");

    net.write("tidegate.toml", &text.replace("port = 80\n", "port = 80\nidle_timeout = \"1h\"\n"));
    net.ask(&["reload"]).expect("reload");
    let seen = who_answers(&net, 30);
    assert!(others(&seen), "after the reload: {seen:?} beside {serving}");
    assert_eq!(format!("{}:{HTTP}", ask_on(&mut old)), serving, "the old flow was moved or cut");
    assert!(net.ask(&["show", "backends"]).expect("answer").contains("drained"));

    // Who waits does not drain anew what somebody undrains meanwhile.
    let is_drained = || net.ask(&["show", "backends"]).expect("answer").contains("drained");
    net.ask(&["undrain", "backend", &name]).expect("undrain");
    let mut waiting = std::process::Command::new(env!("CARGO_BIN_EXE_tidegate"));
    waiting.args(["drain", "backend", &name, "--wait", "--socket"]).arg(net.socket());
    let mut waiting = net.appliance.spawn(waiting).expect("tidegate");
    wait_for(SOON, "it to be drained", is_drained).expect("drained");
    net.ask(&["undrain", "backend", &name]).expect("undrain");
    assert!(!waiting.wait(SOON).expect("the end").success() && !is_drained());

    drop(old);
    let left = net.ask_json(&["drain", "backend", &name, "--wait"]);
    assert_eq!(left["flows"].as_u64(), Some(0));
    net.ask(&["undrain", "backend", &name]).expect("undrain");
    assert_eq!(who_answers(&net, 40).len(), 3);

    net.ask(&["drain", "appliance"]).expect("drain");
    let refused = net.client.run("curl", &["-sSf", "-m", "2", &format!("http://{VIP4}/")]);
    assert!(refused.is_err(), "a new flow of a drained appliance");
    let drops = net.ask_json(&["show", "drops"]);
    let drops = drops["drops"].as_array().expect("drops");
    let drained = drops.iter().find(|d| d["reason"] == "service_drained").expect("listed");
    assert!(drained["packets"].as_u64() > Some(0));
    net.ask(&["undrain", "appliance"]).expect("undrain");
    h2load(&net);
    assert!(net.ask(&["drain", "pool", "nosuch"]).expect_err("no pool").contains("no pool"));
    assert!(edge.is_running());
}
