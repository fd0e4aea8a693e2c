//! Plain routing between hosts: iperf3 over IPv4 and IPv6, the kernel's own forwarding off.

mod common;

use std::process::Command;
use std::time::Duration;

use common::{Net, SERVERS4, SERVERS6};
use serde_json::Value;
use tidegate::lab::{Process, wait_for};

fn start_iperf(net: &Net) -> Process {
    let mut command = Command::new("iperf3");
    command.args(["-s"]);
    let server = net.server.spawn(command).expect("iperf3");
    wait_for(Duration::from_secs(5), "iperf3", || {
        let listening = net.server.run("ss", &["-Hltn", "sport", "=", ":5201"]);
        listening.is_ok_and(|out| !out.is_empty())
    })
    .expect("listening");
    server
}

fn iperf(net: &Net, args: &[&str]) -> Value {
    let mut all = vec!["-J", "-t", "3"];
    all.extend(args);
    let out = net.client.run("iperf3", &all).expect("iperf3");
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
    let _iperf = start_iperf(&net);
    // Of its addresses the server's kernel answers datagrams from these.
    for target in [SERVERS4[0], SERVERS6[2]] {
        let tcp = iperf(&net, &["-c", target]);
        let bps = number(&tcp, "/end/sum_received/bits_per_second");
        assert!(bps > 50e6, "{target}: {bps} bit/s over TCP");
        let back = iperf(&net, &["-c", target, "-R"]);
        let bps = number(&back, "/end/sum_received/bits_per_second");
        assert!(bps > 50e6, "{target}: {bps} bit/s back over TCP");
        let udp = iperf(&net, &["-c", target, "-u", "-b", "20M", "-l", "1200"]);
        let lost = number(&udp, "/end/sum/lost_percent");
        assert!(lost < 1.0, "{target}: {lost} % of UDP lost");
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
