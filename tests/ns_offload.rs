//! Flows that the XDP program forwards itself, between real programs.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use common::probe::{Echo, Lockstep};
use common::{HTTP, HTTPS, Net, SERVERS4, SERVERS6, VIP4, VIP6, fetch, nat, noise, pool, service};
use nix::sys::signal::Signal;
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::Value;
use tidegate::lab::wait_for;

const LIMIT: Duration = Duration::from_secs(60);
const WAN: usize = 0;
const LAN: usize = 1;
const OFFLOAD: &str = "offload = \"auto\"";
const TRANSIT: &str = "[transit]\nprefixes = [\"10.0.0.0/8\", \"fd00::/16\"]\n";
/// Each file that is fetched is 720 segments of 1448 bytes at least.
const SEGMENTS: u64 = 720;

fn balanced(net: &Net, pipeline: &str, workers: &str) -> String {
    [
        net.config_head(pipeline, &format!("{OFFLOAD}\n{workers}")),
        nat(),
        pool("four", SERVERS4, HTTP),
        pool("six", SERVERS6, HTTP),
        service("four", VIP4, 80, "four", "nat"),
        service("six", VIP6, 80, "six", "dnat"),
    ]
    .concat()
}

fn routed(net: &Net, workers: &str) -> String {
    net.config_head("router", &format!("{OFFLOAD}\n{workers}")) + TRANSIT
}

/// Hosts whose veth devices take XDP frames.
fn net(queues: u16) -> Net {
    let net = Net::new(queues);
    net.client.run("ethtool", &["-K", "wan0", "gro", "on"]).expect("ethtool");
    net.server.run("ethtool", &["-K", "eth0", "gro", "on"]).expect("ethtool");
    net
}

/// Packets that the program has forwarded of those that came in by a port.
fn offloaded(net: &Net, port: usize) -> u64 {
    let ports = net.ask_json(&["show", "ports"]);
    ports["ports"][port]["steered"]["offloaded"].as_u64().expect("a number")
}

fn said_of(net: &Net, port: usize) -> String {
    let ports = net.ask_json(&["show", "ports"]);
    ports["ports"][port]["offload"].as_str().expect("words").to_owned()
}

/// Fetches until the program has forwarded so many more of the packets that come in by a port: on
/// a busy machine a file may be here before its flow is handed down.
#[track_caller]
fn fetch_until(net: &Net, url: &str, port: usize, more: u64) -> u64 {
    let wanted = offloaded(net, port) + more;
    let mut fetches = 0;
    wait_for(LIMIT, "flows to be handed down", || {
        fetch(net, url);
        fetches += 1;
        offloaded(net, port) >= wanted
    })
    .unwrap_or_else(|_| panic!("{} of {wanted}: {}", offloaded(net, port), said_of(net, port)));
    fetches
}

/// Replaces what nginx serves by what shows every byte that is out of place.
fn make_noise(net: &Net) {
    std::fs::write(net.path("nginx/html/1m.bin"), noise(1 << 20, 1)).expect("write");
}

/// The flows as they are listed.
fn flows(net: &Net) -> Vec<Value> {
    let flows = net.ask_json(&["show", "flows", "--limit", "1000"]);
    flows["flows"].as_array().expect("a list").clone()
}

fn echo_at() -> SocketAddr {
    format!("{}:7007", SERVERS4[0]).parse().expect("address")
}

#[test]
fn both_families_are_forwarded_whole_and_the_connections_end() {
    let net = net(1);
    let _nginx = net.start_nginx();
    make_noise(&net);
    let _edge = net.start(&balanced(&net, "l4-balancer", ""));
    for port in [WAN, LAN] {
        let said = said_of(&net, port);
        assert_eq!(said, "yes, but not `dsr` and QUIC with delayed binding");
    }
    for url in [format!("http://{VIP4}/1m.bin"), format!("http://[{VIP6}]/1m.bin")] {
        fetch_until(&net, &url, LAN, 5 * SEGMENTS);
        fetch_until(&net, &url, WAN, 50);
        // Those of before may have left the table by now: closed ones stay for 10 s.
        fetch(&net, &url);
        wait_for(LIMIT, "the ends, and what the program has counted", || {
            let flows = flows(&net);
            let whole = |f: &Value| f["packets_reply"].as_u64() >= Some(SEGMENTS);
            flows.iter().all(|f| f["state"] != "established") && flows.iter().any(whole)
        })
        .unwrap_or_else(|_| panic!("{}", net.ask(&["show", "flows"]).expect("flows")));
    }
    assert_eq!(net.ask_json(&["show", "drops"])["total"], 0);
}

#[test]
fn datagrams_are_counted_each_and_their_flow_lives() {
    let net = net(1);
    let _echo = Echo::start(&net.server, &[echo_at()]);
    let _edge = net.start(&routed(&net, ""));
    assert_eq!(said_of(&net, WAN), "yes");
    let mut client = Lockstep::to(&net.client, echo_at());
    client.until("enough by the program", |c| {
        (0..100).for_each(|_| {
            c.round();
        });
        offloaded(&net, WAN) > 500 && offloaded(&net, LAN) > 500
    });
    let listed = || flows(&net).first().cloned().unwrap_or_default();
    // The neighbours' first packets may have got lost; behind the appliance nothing does.
    wait_for(LIMIT, "what the program has counted", || {
        let flow = listed();
        flow["packets_forward"] == client.sent && flow["packets_reply"] == client.answered
    })
    .unwrap_or_else(|_| panic!("{} of {}: {}", client.answered, client.sent, listed()));
    // 14 + 20 + 8 bytes of headers, 8 of payload.
    assert_eq!(listed()["bytes_forward"], client.sent * 50);
}

#[test]
fn no_packet_is_overtaken_as_its_flow_is_handed_down() {
    let net = net(1);
    let _edge = net.start(&routed(&net, ""));
    let server = net.server.enter(|| UdpSocket::bind(echo_at()).expect("bind")).expect("thread");
    server.set_read_timeout(Some(Duration::from_millis(300))).expect("a time");
    let mut overtaken = 0;
    for _ in 0..12 {
        let client = net.client.enter(|| UdpSocket::bind("0.0.0.0:0").expect("bind"));
        let (client, wanted) = (client.expect("thread"), offloaded(&net, WAN) + 100);
        let (mut sent, mut last, mut bytes) = (0_u32, 0, [0; 4]);
        wait_for(LIMIT, "the flow to be handed down", || {
            for burst in 1..=8 * 32 {
                sent += 1;
                let _ = client.send_to(&sent.to_be_bytes(), echo_at());
                while burst % 32 == 0 && last < sent && server.recv(&mut bytes).is_ok() {
                    overtaken += u32::from(u32::from_be_bytes(bytes) < last);
                    last = last.max(u32::from_be_bytes(bytes));
                }
            }
            offloaded(&net, WAN) >= wanted
        })
        .expect("in time");
    }
    assert_eq!(overtaken, 0);
}

#[test]
fn a_reset_comes_to_the_worker_at_once() {
    let net = net(1);
    let _nginx = net.start_nginx();
    let _edge = net.start(&balanced(&net, "l4-balancer", ""));
    let get = || {
        let mut stream = TcpStream::connect((VIP4, 80)).expect("connect");
        stream.write_all(b"GET /1m.bin HTTP/1.1\r\nHost: x\r\n\r\n").expect("send");
        let mut bytes = vec![0; 1 << 20];
        stream.read_exact(&mut bytes).expect("the file");
        stream
    };
    fetch_until(&net, &format!("http://{VIP4}/1m.bin"), LAN, 1);
    let stream = net.client.enter(get).expect("thread");
    assert!(flows(&net).iter().any(|f| f["state"] == "established"));
    // Closed with unread data or without linger: a reset.
    let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(&stream, sockopt::Linger, &linger).expect("linger");
    drop(stream);
    wait_for(LIMIT, "the reset", || flows(&net).iter().all(|f| f["state"] == "reset"))
        .unwrap_or_else(|_| panic!("{:?}", flows(&net)));
}

#[test]
fn local_senders_partial_checksums_are_completed() {
    let net = net(1);
    let _nginx = net.start_nginx();
    make_noise(&net);
    let _edge = net.start(&balanced(&net, "l4-balancer", ""));
    net.client.run("ethtool", &["-K", "wan0", "tx", "on", "tso", "off"]).expect("ethtool");
    for url in [format!("http://{VIP4}/1m.bin"), format!("http://[{VIP6}]/1m.bin")] {
        fetch_until(&net, &url, LAN, SEGMENTS);
    }
    let counters = net.ask_json(&["show", "counters"]);
    let completed = counters["total"]["checksums_completed"].as_u64().expect("a number");
    assert!(completed > 0, "{counters}");
    assert_eq!(offloaded(&net, WAN), 0, "a sum that was to be completed");
}

#[test]
fn of_a_shaped_port_the_other_direction_goes() {
    let net = net(1);
    let _nginx = net.start_nginx();
    let qos = "[qos.lan]\nrate = \"1Gbit/s\"\ndefault = \"all\"\n\
               [qos.lan.class.all]\nrate = \"100%\"\n";
    let plain = routed(&net, "");
    let _edge = net.start(&(plain.clone() + qos));
    let url = format!("http://{}:{HTTP}/1m.bin", SERVERS4[0]);
    fetch_until(&net, &url, LAN, SEGMENTS);
    assert_eq!(offloaded(&net, WAN), 0);
    assert_eq!(said_of(&net, LAN), "no: `[qos]` shapes what leaves by it");
    let shown = net.ask(&["show", "ports"]).expect("ports");
    assert!(shown.contains("lan: no: `[qos]` shapes what leaves by it"), "{shown}");
    // Without it both go, and with it again one only.
    net.write("tidegate.toml", &plain);
    net.ask(&["reload"]).expect("taken");
    fetch_until(&net, &url, WAN, 1);
    net.write("tidegate.toml", &(plain + qos));
    net.ask(&["reload"]).expect("taken");
    let before = offloaded(&net, WAN);
    fetch_until(&net, &url, LAN, SEGMENTS);
    assert_eq!(offloaded(&net, WAN), before, "shaped, and past the shaper");
}

#[test]
fn two_workers_hand_down_what_is_theirs() {
    let net = net(2);
    let _nginx = net.start_nginx();
    make_noise(&net);
    let _edge = net.start(&balanced(&net, "l4-balancer", "count = 2"));
    for url in [format!("http://{VIP4}/1m.bin"), format!("http://[{VIP6}]/1m.bin")] {
        fetch_until(&net, &url, LAN, 5 * SEGMENTS);
    }
    assert_eq!(net.ask_json(&["show", "drops"])["total"], 0);
}

/// Both halves are real TCP with timestamps and window scaling.
#[test]
fn spliced_connections_go_down_once_they_are_joined() {
    let net = net(1);
    let _nginx = net.start_nginx();
    make_noise(&net);
    let bound = |name, vip, mode| service(name, vip, 443, name, mode) + "bind = \"hello\"\n";
    let untimed = "name = \"untimed\"\n[[stage]]\n\
                   inspect = { hello_bytes_max = 16384, flows_max = 64 }\n\
                   [[stage]]\nbalance = {}\n";
    let file = net.path("untimed.toml");
    std::fs::write(&file, untimed).expect("write");
    let text = [
        net.config_head(file.to_str().expect("path"), OFFLOAD),
        nat(),
        pool("four", SERVERS4, HTTPS),
        pool("six", SERVERS6, HTTPS),
        bound("four", VIP4, "nat"),
        bound("six", VIP6, "dnat"),
    ];
    let _edge = net.start(&text.concat());
    for url in [format!("https://{VIP4}/1m.bin"), format!("https://[{VIP6}]/1m.bin")] {
        fetch_until(&net, &url, LAN, 5 * SEGMENTS);
        fetch_until(&net, &url, WAN, 50);
        wait_for(LIMIT, "the ends of the connections", || {
            flows(&net).iter().all(|f| f["state"] != "established")
        })
        .unwrap_or_else(|_| panic!("{}", net.ask(&["show", "flows"]).expect("flows")));
    }
    assert_eq!(net.ask_json(&["show", "drops"])["total"], 0);
}

#[test]
fn what_is_inspected_goes_once_it_is_understood() {
    let net = net(1);
    let _echo = Echo::start(&net.server, &[echo_at()]);
    let more = "[service.echo]\nvip = \"203.0.113.10\"\nport = 7007\nprotocol = \"udp\"\n\
                pool = \"echo\"\nmode = \"nat\"\n\
                [[pool.echo.backend]]\naddress = \"10.0.2.11\"\nport = 7007\n";
    let _edge = net.start(&(balanced(&net, "llm-edge", "") + more));
    let said = said_of(&net, WAN);
    assert!(said.contains("not TLS and HTTP over TCP (stage `timing`)"), "{said}");
    let mut client = Lockstep::to(&net.client, format!("{VIP4}:7007").parse().expect("address"));
    client.until("both directions", |c| {
        (0..100).for_each(|_| {
            c.round();
        });
        offloaded(&net, WAN) > 100 && offloaded(&net, LAN) > 100
    });
}

/// What is timed stays with the worker; what can't be, and what is not in the sample, goes.
#[test]
fn through_llm_edge_tcp_goes_but_for_what_is_timed() {
    let net = net(1);
    let _nginx = net.start_nginx();
    make_noise(&net);
    let more = format!(
        "[[pool.mail.backend]]\naddress = \"{}\"\nport = 2525\n{}",
        SERVERS4[0],
        service("mail", VIP4, 25, "mail", "nat")
    );
    let text = balanced(&net, "llm-edge", "") + &more;
    let _edge = net.start(&text);
    let said = said_of(&net, LAN);
    assert!(said.contains("not TLS and HTTP over TCP (stage `timing`)"), "{said}");
    let url = format!("http://{VIP4}/1m.bin");
    for fetches in 1..=3 {
        fetch(&net, &url);
        wait_for(LIMIT, "its answer", || firsts(&net, "four") == fetches).expect("timed");
    }
    assert_eq!((offloaded(&net, WAN), offloaded(&net, LAN)), (0, 0), "timed");
    speak_another_protocol(&net, || offloaded(&net, LAN) > SEGMENTS && offloaded(&net, WAN) > 50);
    // A sample so thin that these are hardly in it.
    let thin =
        include_str!("../pipelines/llm-edge.toml").replace("65536 }", "65536, one_in = 65536 }");
    std::fs::create_dir_all(net.path("pipelines")).expect("folder");
    net.write("pipelines/thin.toml", &thin);
    net.write("tidegate.toml", &text.replace("\"llm-edge\"", "\"thin\""));
    net.ask(&["reload"]).expect("taken");
    let said = said_of(&net, LAN);
    assert!(said.contains("not one in 65536 connections of TLS and HTTP"), "{said}");
    fetch_until(&net, &url, LAN, 5 * SEGMENTS);
    assert_eq!(firsts(&net, "four"), 3);
}

/// Answers of a service that were timed.
fn firsts(net: &Net, service: &str) -> u64 {
    let told = net.ask_json(&["show", "latency"]);
    let mut all = told["latencies"].as_array().expect("a list").iter();
    let ours = all.find(|l| l["of"] == "service" && l["name"] == service);
    ours.map_or(0, |l| l["first"]["count"].as_u64().expect("a number"))
}

/// A connection that is neither TLS nor HTTP, whose client asks for more until all is well.
fn speak_another_protocol(net: &Net, mut enough: impl FnMut() -> bool) {
    const ANSWER: usize = 1 << 20;
    let at = (SERVERS4[0], 2525);
    let listener = net.server.enter(move || TcpListener::bind(at)).expect("thread").expect("bind");
    let server = std::thread::spawn(move || {
        let (mut client, _) = listener.accept()?;
        while client.read_exact(&mut [0; 5]).is_ok() {
            client.write_all(&[b'a'; ANSWER])?;
        }
        Ok::<_, std::io::Error>(())
    });
    let connect = || TcpStream::connect((VIP4, 25));
    let mut stream = net.client.enter(connect).expect("thread").expect("connect");
    stream.set_read_timeout(Some(LIMIT)).expect("timeout");
    wait_for(LIMIT, "a protocol that is not timed", || {
        stream.write_all(b"more\n").expect("send");
        let mut answer = vec![0; ANSWER];
        stream.read_exact(&mut answer).expect("an answer");
        assert!(answer.iter().all(|&byte| byte == b'a'));
        enough()
    })
    .unwrap_or_else(|_| panic!("{} {}", offloaded(net, WAN), said_of(net, WAN)));
    drop(stream);
    server.join().expect("no panic").expect("served");
}

/// Old flows finish, new ones go elsewhere, and flushed ones end at both ends.
#[test]
fn offloaded_flows_of_what_is_drained_go_on_until_they_are_flushed() {
    let net = net(1);
    let _nginx = net.start_nginx();
    let _edge = net.start(&balanced(&net, "l4-balancer", ""));
    let connect = || TcpStream::connect((VIP4, 80));
    let mut kept = net.client.enter(connect).expect("thread").expect("connect");
    kept.set_read_timeout(Some(LIMIT)).expect("timeout");
    let ours = kept.local_addr().expect("bound").to_string();
    let listed = || flows(&net).into_iter().find(|f| f["client"] == ours).unwrap_or_default();
    let is_down = |f: &Value| f["offloaded_forward"] == true && f["offloaded_reply"] == true;
    wait_for(LIMIT, "both directions", || {
        get(&mut kept);
        is_down(&listed())
    })
    .unwrap_or_else(|_| panic!("{}", listed()));
    let gauge = || net.ask_json(&["show", "counters"])["total"]["flows_offloaded"].as_u64();
    assert!(gauge() >= Some(2), "{:?}", gauge());
    let shown = net.ask(&["show", "flows"]).expect("flows");
    assert!(shown.contains(" both "), "{shown}");

    let backend = listed()["backend"].as_str().expect("an address").to_owned();
    let drain = |more: &[&str]| {
        let name = format!("four/{backend}");
        net.ask_json(&[&["drain", "backend", &name][..], more].concat())
    };
    let left = drain(&[]);
    assert_eq!(left["flows"], 1, "{left}");
    let before = offloaded(&net, LAN);
    for _ in 0..10 {
        fetch(&net, &format!("http://{VIP4}/1m.bin"));
        get(&mut kept);
    }
    assert!(is_down(&listed()), "{}", listed());
    assert!(offloaded(&net, LAN) >= before + 10 * SEGMENTS);
    let elsewhere = |f: &Value| f["client"] == ours || f["backend"] != backend;
    assert!(flows(&net).iter().all(elsewhere), "{:?}", flows(&net));

    let done = drain(&["--flush"]);
    assert_eq!((&done["cut"], &done["flows"]), (&1.into(), &0.into()), "{done}");
    let end = kept.read(&mut [0; 1]).expect_err("cut").kind();
    assert_eq!(end, std::io::ErrorKind::ConnectionReset);
    let at = ["-Htn", "state", "established", "src", &backend];
    let gone = || net.server.run("ss", &at).is_ok_and(|out| out.is_empty());
    wait_for(LIMIT, "the server's end", gone).expect("told");
    assert!(!is_down(&listed()), "{}", listed());
}

/// Gets the file once over a connection that stays.
fn get(stream: &mut TcpStream) {
    const BODY: usize = 1 << 20;
    stream.write_all(b"GET /1m.bin HTTP/1.1\r\nHost: x\r\n\r\n").expect("sent");
    let (mut bytes, mut piece) = (Vec::new(), vec![0; BODY]);
    let head = |bytes: &[u8]| bytes.windows(4).position(|w| w == b"\r\n\r\n").map(|at| at + 4);
    while head(&bytes[..bytes.len().min(4096)]).is_none_or(|head| bytes.len() < head + BODY) {
        let n = stream.read(&mut piece).expect("an answer");
        assert_ne!(n, 0, "closed");
        bytes.extend_from_slice(&piece[..n]);
    }
}

#[test]
fn reloads_and_new_neighbours_under_load_lose_no_byte() {
    let net = net(1);
    let _nginx = net.start_nginx();
    make_noise(&net);
    let text = balanced(&net, "l4-balancer", "");
    let mut edge = net.start(&text);
    let url = format!("http://{VIP4}/1m.bin");
    let again = "for i in $(seq 60); do curl -sSfk -m 20 \"$0\" | sha256sum; done | sort | uniq -c";
    let target = url.clone();
    let fetches = net.client.thread("fetches", move || {
        std::process::Command::new("sh").args(["-c", again, &target]).output()
    });
    let mut more = text.clone();
    for port in 81..86 {
        more += &service(&format!("more-{port}"), VIP4, port, "four", "nat");
        net.write("tidegate.toml", &more);
        net.ask(&["reload"]).expect("taken");
        fetch_until(&net, &url, LAN, 100);
    }
    let output = fetches.expect("thread").join().expect("no panic").expect("sh");
    let sums = String::from_utf8_lossy(&output.stdout);
    assert_eq!((sums.lines().count(), output.stderr.len()), (1, 0), "{sums} {output:?}");
    assert!(sums.trim().starts_with("60 "), "{sums}");
    net.server.ip("link set eth0 address 02:00:00:00:00:77").expect("another MAC address");
    net.appliance.ip("neigh flush dev lan").expect("resolved anew");
    fetch_until(&net, &url, WAN, 1);
    edge.signal(Signal::SIGKILL).expect("kill");
    edge.wait(LIMIT).expect("ends");
    let link = net.appliance.ip("-d link show wan").expect("ip");
    assert!(!link.contains("xdp"), "{link}");
}

/// The program that is left must not go on with what a dead worker has handed down.
#[test]
fn killed_with_drop_or_pass_offloaded_flows_do_as_others() {
    for (on_failure, goes_on) in [("drop", false), ("pass", true)] {
        let net = net(1);
        net.kernel_forwards(true);
        let _echo = Echo::start(&net.server, &[echo_at()]);
        let workers = format!("on_failure = \"{on_failure}\"\nheartbeat_limit = \"1s\"");
        let mut edge = net.start(&routed(&net, &workers));
        let mut client = Lockstep::to(&net.client, echo_at());
        client.until("the program", |c| c.round() && offloaded(&net, WAN) > 20);
        edge.signal(Signal::SIGKILL).expect("kill");
        edge.wait(LIMIT).expect("ends");
        if goes_on {
            client.until("the kernel to forward", Lockstep::round);
        } else {
            client.until("silence", |c| !c.round());
            assert!((0..4).all(|_| !client.round()), "traffic goes on");
        }
    }
}

#[test]
fn a_port_that_takes_no_xdp_frames_is_told_of_and_served_all_the_same() {
    let net = Net::new(1);
    let _nginx = net.start_nginx();
    let mut edge = net.start(&balanced(&net, "l4-balancer", ""));
    fetch(&net, &format!("http://{VIP4}/1m.bin"));
    assert_eq!((offloaded(&net, WAN), offloaded(&net, LAN)), (0, 0));
    assert!(said_of(&net, LAN).starts_with("no: its device takes no frames"));
    edge.signal(Signal::SIGTERM).expect("term");
    edge.wait(LIMIT).expect("ends");
    let said = edge.kill_and_read_stderr();
    assert!(said.contains("no flows are offloaded to it"), "{said}");
}
