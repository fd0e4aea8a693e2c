//! Shadows: servers that hear requests besides, and files that take copies. Whatever becomes of
//! them, what they stand beside is as it was.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use common::{H2C, HTTP, Net, SERVERS4, VIP4, nat, noise, service};
use serde_json::Value;
use tidegate::lab::{Process, wait_for};

/// For what takes well under a second on a machine of its own.
const SOON: Duration = Duration::from_secs(30);
const SHADOW_PORT: u16 = 9_000;
const BODY: &str = "hello from behind the VIP\n";

fn shadow_server(net: &Net, mode: &str, address: &str) -> (Process, PathBuf) {
    let dir = net.path(&format!("heard-{address}"));
    fs::create_dir_all(&dir).expect("made");
    let mut command = Command::new("python3");
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/shadow_server.py"));
    command.args([mode, address, &SHADOW_PORT.to_string()]).arg(&dir);
    let process = net.server.spawn(command).expect("python3");
    let up = wait_for(SOON, "the shadow's server", || {
        let end = format!("{address}:{SHADOW_PORT}");
        net.server.enter(move || TcpStream::connect(end).is_ok()).expect("thread")
    });
    up.expect("it listens");
    // That was one connection, too.
    if mode == "answer" {
        let first = || fs::read_dir(&dir).expect("there").count() > 0;
        wait_for(SOON, "its end", first).expect("written");
        fs::read_dir(&dir).expect("there").for_each(|entry| {
            fs::remove_file(entry.expect("a file").path()).expect("removed");
        });
    }
    (process, dir)
}

fn pool(name: &str, address: &str, port: u16) -> String {
    format!("[[pool.{name}.backend]]\naddress = \"{address}\"\nport = {port}\n")
}

fn shadowed(name: &str, port: u16, by: &str, percent: &str) -> String {
    service(name, VIP4, port, "web", "nat")
        + &format!("shadow = {{ pool = \"{by}\", percent = {percent} }}\n")
}

/// What is told of a service's shadow.
fn told(net: &Net, service: &str) -> Value {
    let all = net.ask_json(&["show", "shadow"]);
    let all = all["shadows"].as_array().expect("a list");
    all.iter().find(|s| s["service"] == service).expect("listed").clone()
}

fn until(net: &Net, service: &str, what: &str, is: impl Fn(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    let done = wait_for(SOON, what, || {
        last = told(net, service);
        is(&last)
    });
    done.unwrap_or_else(|error| panic!("{error}: {last:#}"));
    last
}

/// Says requests on one connection, each cut in two, and returns the bodies.
fn talk(net: &Net, port: u16, requests: &[Vec<u8>]) -> Vec<String> {
    let connect = move || TcpStream::connect((VIP4, port)).expect("connect");
    let mut stream = net.client.enter(connect).expect("thread");
    stream.set_nodelay(true).expect("set");
    stream.set_read_timeout(Some(SOON)).expect("a limit");
    let mut bodies = Vec::new();
    for request in requests {
        let (first, second) = request.split_at(request.len() / 2);
        stream.write_all(first).expect("sent");
        stream.write_all(second).expect("sent");
        let mut answer = String::new();
        while !answer.split_once("\r\n\r\n").is_some_and(|(_, body)| body.ends_with('\n')) {
            let mut part = [0; 1_024];
            let length = stream.read(&mut part).expect("an answer");
            assert!(length > 0, "cut after {answer:?}");
            answer.push_str(&String::from_utf8_lossy(&part[..length]));
        }
        bodies.push(answer.split_once("\r\n\r\n").expect("a head").1.to_owned());
    }
    bodies
}

/// How often each stream of bytes was sent or heard.
fn counted(streams: impl Iterator<Item = Vec<u8>>) -> BTreeMap<Vec<u8>, usize> {
    let mut counts = BTreeMap::new();
    streams.for_each(|stream| *counts.entry(stream).or_default() += 1);
    counts
}

/// Bound by the first packet, and by what the client asks.
#[test]
fn a_shadow_hears_the_same_bytes_and_its_answers_are_compared() {
    let net = Net::new(1);
    let _nginx = net.start_nginx();
    let (_shadow, heard) = shadow_server(&net, "answer", SERVERS4[1]);
    let config = net.config_head("llm-edge", "")
        + &nat()
        + &pool("web", SERVERS4[0], HTTP)
        + &pool("new", SERVERS4[1], SHADOW_PORT)
        + &shadowed("plain", 80, "new", "100")
        + &shadowed("bound", 81, "new", "100.0")
        + "bind = \"request\"\n";
    let _edge = net.start(&config);
    let mut sent = Vec::new();
    for (port, of) in [(80, "plain"), (81, "bound")] {
        for n in 0..10 {
            let get = |path: &str| format!("GET {path}?{of}{n} HTTP/1.1\r\nhost: a\r\n\r\n");
            let requests = [get("/"), get("/v1/x"), get("/bad/../v1/y")].map(String::into_bytes);
            let bodies = talk(&net, port, &requests);
            assert_eq!(bodies, [BODY, "fine\n", "fine\n"], "the service's own server");
            sent.push(requests.concat());
        }
        let told = until(&net, of, "all answers to be compared", |told| {
            told["open"] == 0 && told["status_same"] == 20 && told["status_different"] == 10
        });
        assert_eq!((&told["connections"], &told["requests"]), (&10.into(), &30.into()), "{told:#}");
        let sizes = [&told["size_same"], &told["size_different"], &told["shadow_bytes"]];
        assert_eq!(sizes, [10, 20, 30 * BODY.len()], "{told:#}");
        assert_eq!(told["original_bytes"], 10 * (BODY.len() + 2 * "fine\n".len()), "{told:#}");
        for side in ["original_first", "shadow_first"] {
            assert_eq!(told[side]["count"], 30, "{told:#}");
        }
        let cut = told["cut"].as_object().expect("reasons");
        assert!(cut.values().all(|count| *count == 0), "{told:#}");
    }
    let files = || fs::read_dir(&heard).expect("there").map(|e| e.expect("a file").path());
    wait_for(SOON, "the end of all shadows", || files().count() == sent.len()).expect("ended");
    assert!(counted(sent.into_iter()) == counted(files().map(|f| fs::read(f).expect("read"))));

    // Without the shadow nothing of it is left, and a connection goes on.
    let open = move || TcpStream::connect((VIP4, 80)).expect("connect");
    let mut stream = net.client.enter(open).expect("thread");
    net.write("tidegate.toml", &config.replace("shadow = {", "#"));
    net.ask(&["reload"]).expect("taken");
    assert_eq!(net.ask(&["show", "shadow"]).expect("answer").trim(), "no service is shadowed");
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.ends_with(BODY), "{answer}");
}

#[test]
fn the_shadow_hears_its_share_of_the_connections() {
    const CONNECTIONS: u32 = 2_000;
    let net = Net::new(1);
    let _nginx = net.start_nginx();
    let _edge = net.start(
        &(net.config_head("l4-balancer", "")
            + &nat()
            + &pool("web", SERVERS4[0], HTTP)
            + &pool("new", SERVERS4[1], HTTP)
            + &shadowed("web", 80, "new", "20")),
    );
    let url = format!("http://{VIP4}/");
    let (all, at_once) = (CONNECTIONS.to_string(), (CONNECTIONS / 4).to_string());
    for _ in 0..4 {
        let args = ["--h1", "-n", &at_once, "-c", &at_once, "-r", "100", &url];
        let out = net.client.run("h2load", &args).expect("h2load");
        assert!(out.contains(&format!("{at_once} succeeded, 0 failed")), "{all}: {out}");
    }
    let told = until(&net, "web", "all shadows to end", |told| told["open"] == 0);
    let heard = told["connections"].as_u64().expect("a number");
    // Six standard deviations of 2,000 draws.
    assert!((293..=507).contains(&heard), "{told:#}");
    assert_eq!((&told["status_same"], &told["size_same"]), (&heard.into(), &heard.into()));
}

#[test]
fn a_shadow_that_is_dead_or_hangs_changes_nothing() {
    let net = Net::new(1);
    let _nginx = net.start_nginx();
    let (_hung, _) = shadow_server(&net, "hang", SERVERS4[1]);
    let _edge = net.start(
        &(net.config_head("l4-balancer", "")
            + &nat()
            + &pool("web", SERVERS4[0], HTTP)
            + &pool("dead", SERVERS4[2], SHADOW_PORT)
            + &pool("hung", SERVERS4[1], SHADOW_PORT)
            + &shadowed("beside-dead", 80, "dead", "100")
            + &shadowed("beside-hung", 81, "hung", "100")),
    );
    let bytes = noise(4 << 20, 5);
    let file = net.path("upload.bin");
    fs::write(&file, &bytes).expect("written");
    for port in [80, 81] {
        let url = |path: &str| format!("http://{VIP4}:{port}/{path}");
        let (put, got) = (url(&format!("put/{port}.bin")), net.path("got.bin"));
        let (file, out) = (file.to_str().expect("path"), got.to_str().expect("path"));
        net.client.run("curl", &["-sSf", "-m", "60", "-T", file, &put]).expect("uploaded");
        let kept = fs::read(net.path(&format!("nginx/html/put/{port}.bin"))).expect("kept");
        assert!(kept == bytes, "an upload has changed");
        let args = ["-sSf", "-m", "60", "-o", out, &url("1m.bin")];
        net.client.run("curl", &args).expect("downloaded");
        assert!(fs::read(&got).expect("got") == vec![0xa5; 1 << 20], "a download has changed");
        let args = ["--h1", "-n", "500", "-c", "10", &url("")];
        let out = net.client.run("h2load", &args).expect("h2load");
        assert!(out.contains("500 succeeded, 0 failed, 0 errored, 0 timeout"), "{out}");
    }
    let cut = |told: &Value, why: &str| told["cut"][why].as_u64().expect("a number");
    // An upload may be too much for its shadow before that is refused.
    let dead = until(&net, "beside-dead", "refusals", |told| {
        cut(told, "refused") >= 10 && told["connections"] == 12 && told["open"] == 0
    });
    assert_eq!((&dead["requests"], &dead["status_same"]), (&0.into(), &0.into()), "{dead:#}");
    let hung = until(&net, "beside-hung", "the upload's shadow", |told| {
        cut(told, "slow") + cut(told, "gap") >= 1
    });
    assert_eq!(hung["status_same"], 0, "{hung:#}");
    let text = net.ask(&["show", "shadow"]).expect("answer");
    assert!(text.contains("shadows of beside-dead that were cut: refused"), "{text}");
}

#[test]
fn copies_are_kept_in_a_ring_of_files() {
    let net = Net::new(1);
    let _nginx = net.start_nginx();
    let dir = net.path("ring");
    fs::create_dir(&dir).expect("made");
    let ring = format!("{{ dir = \"{}\", files = 3, size = \"128KiB\" }}", dir.display());
    let _edge = net.start(
        &(net.config_head("llm-edge", "")
            + &format!("[collector.box]\nring = {ring}\n")
            + &nat()
            + &pool("web", SERVERS4[0], HTTP)
            + &service("web", VIP4, 80, "web", "nat")
            + "[[rule]]\nport = 80\nmirror = \"box\"\n"),
    );
    let url = format!("http://{VIP4}/1m.bin");
    for _ in 0..2 {
        net.client.run("curl", &["-sSf", "-m", "60", "-o", "/dev/null", &url]).expect("served");
    }
    let small = format!("http://{VIP4}/whoami");
    let file = || fs::read_dir(&dir).expect("there").map(|e| e.expect("a file").path()).max();
    let inspected = |file: &PathBuf| {
        let words = ["inspect", file.to_str().expect("path"), "--json"];
        net.appliance.run(env!("CARGO_BIN_EXE_tidegate"), &words)
    };
    // What comes last is in the newest file, as soon as that is flushed.
    wait_for(SOON, "the last connection in the newest file", || {
        net.client.run("curl", &["-sSf", "-m", "10", &small]).expect("served");
        std::thread::sleep(Duration::from_millis(200));
        file().is_some_and(|file| inspected(&file).is_ok_and(|told| told.contains("/whoami")))
    })
    .expect("captured");
    let sizes: Vec<u64> = fs::read_dir(&dir)
        .expect("there")
        .map(|entry| entry.expect("a file").metadata().expect("its size").len())
        .collect();
    assert!(sizes.len() <= 3 && sizes.iter().all(|size| *size <= 128 << 10), "{sizes:?}");
    let total = &net.ask_json(&["show", "counters"])["total"];
    assert!(total["mirrored"].as_u64() > Some(100), "{total:#}");
}

/// HTTP/2 without TLS: many requests at once on each connection, and answers beyond the windows
/// that connections begin with.
#[test]
fn a_shadow_hears_http2_and_its_answers_are_compared_by_stream() {
    const LARGE: usize = 100_000;
    const REQUESTS: u64 = 66;
    let net = Net::new(1);
    let _nginx = net.start_nginx();
    fs::write(net.path("nginx/html/large"), noise(LARGE, 1)).expect("written");
    let config = net.config_head("l4-balancer", "")
        + &nat()
        + &pool("web", SERVERS4[0], H2C)
        + &pool("new", SERVERS4[1], H2C)
        + &pool("old", SERVERS4[1], HTTP)
        + &shadowed("h2", 80, "new", "100")
        + &shadowed("mute", 81, "old", "100");
    let _edge = net.start(&config);
    let load = |port: u16, path: &str, count: usize| {
        let url = format!("http://{VIP4}:{port}/{path}");
        let args = ["-n", &count.to_string(), "-c", "3", "-m", "5", &url];
        let said = net.client.run("h2load", &args).expect("h2load");
        let all_well = format!("{count} succeeded, 0 failed, 0 errored");
        assert!(said.contains(&all_well), "{said}");
    };
    load(80, "", 60);
    load(80, "large", 6);
    let all = until(&net, "h2", "all answers to be compared", |told| {
        told["open"] == 0 && told["status_same"] == REQUESTS
    });
    assert_eq!((&all["connections"], &all["requests"]), (&6.into(), &REQUESTS.into()), "{all:#}");
    assert_eq!((&all["size_same"], &all["status_different"]), (&REQUESTS.into(), &0.into()));
    let bytes = 6 * LARGE + 60 * BODY.len();
    assert_eq!([&all["original_bytes"], &all["shadow_bytes"]], [bytes; 2], "{all:#}");
    let cut = all["cut"].as_object().expect("reasons");
    assert!(cut.values().all(|count| *count == 0), "{all:#}");
    // A server that speaks HTTP/1 alone is no shadow of such a service, and costs it nothing.
    load(81, "", 60);
    until(&net, "mute", "its end", |told| {
        let cut = |why: &str| told["cut"][why].as_u64().expect("a count");
        told["open"] == 0 && cut("unread") + cut("closed") == 3
    });
}
