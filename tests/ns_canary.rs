//! A canary that is made smaller: connections that have begun stay where they are.

mod common;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::Duration;

use common::{Net, SERVERS4, VIP4, nat, pool, service};
use tidegate::lab::{Namespace, wait_for};

const PORT: u16 = 7000;
const HERE: u8 = b'K';
const BEHIND: u8 = b'B';
/// For what takes seconds on a machine of its own.
const PATIENCE: Duration = Duration::from_secs(60);

/// Says who it is for every byte that it hears.
fn serve(ns: &Namespace, at: &str, name: u8) {
    let address = SocketAddr::new(at.parse().expect("an address"), PORT);
    let listener = ns.enter(move || TcpListener::bind(address)).expect("thread").expect("bind");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut byte = [0];
                while stream.read_exact(&mut byte).is_ok() && stream.write_all(&[name]).is_ok() {}
            });
        }
    });
}

struct Clients(Vec<TcpStream>);

impl Clients {
    fn connect(net: &Net, count: usize) -> Clients {
        let vip = SocketAddr::new(VIP4.parse().expect("an address"), PORT);
        let all =
            move || (0..count).map(|_| TcpStream::connect(vip)).collect::<Result<Vec<_>, _>>();
        Clients::of(net.client.enter(all).expect("thread").expect("connections"))
    }

    /// All at once, each by a thread of its own.
    fn connect_later(net: &Net, count: usize) -> Vec<JoinHandle<io::Result<TcpStream>>> {
        let vip = SocketAddr::new(VIP4.parse().expect("an address"), PORT);
        let connect = move |_| std::thread::spawn(move || TcpStream::connect(vip));
        net.client.enter(move || (0..count).map(connect).collect()).expect("thread")
    }

    fn of(all: Vec<TcpStream>) -> Clients {
        all.iter().for_each(|s| s.set_read_timeout(Some(PATIENCE)).expect("a limit"));
        Clients(all)
    }

    /// Who answers each of them.
    fn ask(&mut self) -> Vec<u8> {
        let ask = |stream: &mut TcpStream| {
            let mut byte = [0];
            stream.write_all(b"?").expect("sent");
            stream.read_exact(&mut byte).expect("an answer");
            byte[0]
        };
        self.0.iter_mut().map(ask).collect()
    }
}

/// Until the kernel gets a client's connection: it is known then which flows had begun.
fn wait_for_the_kernel(net: &Net) {
    wait_for_the_kernels(net, 1);
}

/// Until the kernel gets so many clients' connections, one after the other: where it had a part of
/// them before, one alone tells nothing.
fn wait_for_the_kernels(net: &Net, count: usize) {
    let are_here = || Clients::connect(net, count).ask().iter().all(|by| *by == HERE);
    wait_for(PATIENCE, "clients of the kernel's", are_here).expect("some");
}

fn config(net: &Net, mode: &str, more: &str, percent: u8) -> String {
    let (pipeline, nat) = (net.config_head("l4-balancer", ""), nat());
    let pipeline = match more.is_empty() {
        true => pipeline,
        false => pipeline.replace("l4-balancer", "llm-edge"),
    };
    let canary = format!("canary_percent = {percent}\n{more}");
    let service = service("web", VIP4, PORT, "web", mode) + &canary;
    [pipeline, nat, service, pool("web", SERVERS4, PORT)].concat()
}

/// The box serves the VIP itself, and tidegate's backends do.
fn box_and_backends() -> Net {
    let net = Net::new(1);
    net.appliance.ip(&format!("addr add {VIP4}/32 dev lo")).expect("an address of the box");
    serve(&net.appliance, VIP4, HERE);
    SERVERS4.iter().for_each(|at| serve(&net.server, at, BEHIND));
    net
}

fn lower(net: &Net, config: &str) {
    net.write("tidegate.toml", config);
    net.ask(&["reload"]).expect("taken");
}

fn flows_stay_when_the_share_falls(mode: &str) {
    let net = box_and_backends();
    let lower = |percent: u8| lower(&net, &config(&net, mode, "", percent));
    let _edge = net.start(&config(&net, mode, "", 100));
    let mut first = Clients::connect(&net, 40);
    assert_eq!(first.ask(), [BEHIND; 40]);

    lower(25);
    assert_eq!(first.ask(), [BEHIND; 40], "while it is found out who they are");
    wait_for_the_kernel(&net);
    let mut second = Clients::connect(&net, 60);
    let of_second = second.ask();
    let here = of_second.iter().filter(|by| **by == HERE).count();
    assert!((20..60).contains(&here), "{here} of 60 are the kernel's, with a canary of 25 %");
    assert_eq!(first.ask(), [BEHIND; 40], "once it is known");

    lower(0);
    assert_eq!((first.ask(), second.ask()), (vec![BEHIND; 40], of_second.clone()));
    wait_for_the_kernels(&net, 40);
    let mut third = Clients::connect(&net, 20);
    assert_eq!(third.ask(), [HERE; 20]);
    assert_eq!((first.ask(), second.ask()), (vec![BEHIND; 40], of_second));
}

#[test]
fn flows_of_nat_stay_when_the_share_falls() {
    flows_stay_when_the_share_falls("nat");
}

#[test]
fn flows_of_dnat_stay_when_the_share_falls() {
    flows_stay_when_the_share_falls("dnat");
}

/// Of connections that wait for their binding no worker has a flow.
fn who_has_not_spoken_yet_stays(mode: &str) {
    let net = box_and_backends();
    let config = |percent| config(&net, mode, "bind = \"request\"\n", percent);
    let _edge = net.start(&config(100));
    let mut silent = Clients::connect(&net, 40);

    // Their handshakes are half done: what the appliance answers is lost once.
    let lost = format!(
        "add table ip loss; add chain ip loss in {{ type filter hook input priority 0; }}; \
         add rule ip loss in ip saddr {VIP4} counter drop"
    );
    net.client.run("nft", &[&lost]).expect("nft");
    let late = Clients::connect_later(&net, 20);
    let are_lost = || {
        let rules = net.client.run("nft", &["list table ip loss"]).expect("nft");
        let lost = rules.split("packets ").nth(1).and_then(|rest| rest.split(' ').next());
        lost.and_then(|lost| lost.parse().ok()).is_some_and(|lost: u32| lost >= 20)
    };
    wait_for(PATIENCE, "the appliance's answers", are_lost).expect("lost");
    net.client.run("nft", &["delete table ip loss"]).expect("nft");
    lower(&net, &config(25));
    let late = late.into_iter().map(|one| one.join().expect("thread").expect("a connection"));
    let mut late = Clients::of(late.collect());
    assert_eq!(late.ask(), [BEHIND; 20], "whose handshakes were under way");
    wait_for_the_kernel(&net);
    assert_eq!(silent.ask(), [BEHIND; 40], "once it is known");
    assert_eq!(silent.ask(), [BEHIND; 40], "and again");
}

#[test]
fn who_waits_for_a_binding_of_nat_stays_when_the_share_falls() {
    who_has_not_spoken_yet_stays("nat");
}

#[test]
fn who_waits_for_a_binding_of_dnat_stays_when_the_share_falls() {
    who_has_not_spoken_yet_stays("dnat");
}
