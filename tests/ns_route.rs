//! Plain routing between hosts: iperf3 over IPv4 and IPv6, the kernel's own forwarding off.

mod common;

use std::process::Command;
use std::time::Duration;

use common::{Net, SERVERS4, SERVERS6};
use serde_json::Value;
use tidegate::lab::{Process, wait_for};

/// How long anything may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
/// Of the 50 MiB sent: the server no longer counts what comes after the client has said that it is
/// done.
const TCP_BYTES: f64 = 40e6;

/// One run against a server of its own: one that has served before may still be busy with that.
fn iperf(net: &Net, port: u16, args: &[&str]) -> Value {
    let port = port.to_string();
    let mut server = Command::new("iperf3");
    server.args(["-s", "-1", "-p", &port]);
    let mut server = net.server.spawn(server).expect("iperf3");
    wait_for(LIMIT, "iperf3", || {
        let listening = net.server.run("ss", &["-Hltn", "sport", "=", &format!(":{port}")]);
        listening.is_ok_and(|out| !out.is_empty())
    })
    .expect("listening");
    let mut all = vec!["-J", "-p", &port];
    all.extend(args);
    let out = net.client.run("iperf3", &all).expect("iperf3");
    server.wait(LIMIT).expect("ends");
    serde_json::from_str(&out).expect("JSON")
}

fn number(report: &Value, pointer: &str) -> f64 {
    let number = report.pointer(pointer).and_then(Value::as_f64);
    number.unwrap_or_else(|| panic!("no {pointer} in {report:#}"))
}

fn routed(pipeline: &str) -> (Net, Process) {
    let net = Net::new(1);
    net.kernel_forwards(false);
    let config = [
        net.config_head(pipeline, ""),
        "[transit]\nprefixes = [\"10.0.0.0/8\", \"fd00::/16\"]\n".to_string(),
    ]
    .concat();
    let edge = net.start(&config);
    (net, edge)
}

#[test]
fn tcp_and_udp_through_the_router() {
    let (net, _edge) = routed("router");
    let mut ports = 5201..;
    let mut run = |args: &[&str]| iperf(&net, ports.next().expect("a port"), args);
    // Of its addresses the server's kernel answers datagrams from these.
    for target in [SERVERS4[0], SERVERS6[2]] {
        for way in [&[][..], &["-R"]] {
            let tcp = run(&[&["-c", target, "-n", "50M"], way].concat());
            let bytes = number(&tcp, "/end/sum_received/bytes");
            assert!(bytes >= TCP_BYTES, "{target} {way:?}: {bytes} bytes over TCP");
        }
        // The ends may be too late to take a datagram; the way is good if all come once.
        let mut lost = f64::NAN;
        wait_for(LIMIT, "datagrams to come", || {
            let udp = run(&["-c", target, "-u", "-b", "20M", "-n", "4M", "-l", "1200"]);
            lost = number(&udp, "/end/sum/lost_percent");
            number(&udp, "/end/sum/packets") > 3_000.0 && lost < 1.0
        })
        .unwrap_or_else(|_| panic!("{target}: {lost} % of UDP lost"));
    }
}

#[test]
fn traceroute_sees_the_hop() {
    let (net, _edge) = routed("router");
    // A hop limit of 1 ends at the appliance, which says so: the sender's error queue shows it.
    for (target, dump) in [(SERVERS4[0], "-4"), (SERVERS6[0], "-6")] {
        let script = format!(
            "import socket,sys\n\
             v6='{dump}'=='-6'\n\
             s=socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM)\n\
             lvl,ttl,err,q=(41,16,25,1) if v6 else (0,2,11,1)\n\
             s.setsockopt(lvl,ttl,1); s.setsockopt(lvl,err,1); s.settimeout(5)\n\
             s.connect(('{target}',9)); s.send(b'x')\n\
             import select; p=select.poll(); p.register(s,select.POLLERR); \n\
             assert p.poll(5000), 'no answer'\n\
             d,anc,f,a=s.recvmsg(2048,512,0x2000)\n\
             e=anc[0][2]; print('type',e[5],'code',e[6])\n"
        );
        let out = net.client.run("python3", &["-c", &script]).expect("python3");
        let wanted = if dump == "-6" { "type 3 code 0" } else { "type 11 code 0" };
        assert!(out.contains(wanted), "{target}: {out}");
    }
}
