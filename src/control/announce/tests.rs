//! Routes to VIPs in a kernel of their own.

use super::*;
use crate::forward::spec::ServiceId;
use std::process::Command;
use std::time::Duration;

fn spec(table: u32) -> AnnounceSpec {
    AnnounceSpec {
        services: vec![ServiceId(0)],
        protocol: 200,
        table,
        healthy_percent: 0,
        withdraw_wait: Duration::ZERO,
    }
}

fn ip(words: &str) -> String {
    let output = Command::new("ip").args(words.split(' ')).output().expect("ip");
    assert!(output.status.success(), "ip {words}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn in_namespace(test: fn()) {
    let body = move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root");
        ip("link set lo up");
        test();
    };
    std::thread::spawn(body).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

fn addrs(of: &[&str]) -> BTreeSet<Addr> {
    of.iter().map(|a| a.parse().expect("literal")).collect()
}

fn shown(table: u32) -> String {
    let of = |family| ip(&format!("{family} route show table {table} proto 200"));
    // `ip` fails where the table does not exist; here it always has, once.
    of("-4") + &of("-6")
}

#[test]
fn routes_come_and_go_and_leftovers_too() {
    in_namespace(|| {
        for table in [200, 70_000] {
            for line in ["-4 route add 192.0.2.99", "-6 route add 2001:db8::99"] {
                let left = line.replace("add ", "add blackhole ");
                ip(&format!("{left} table {table} proto 200"));
                // Somebody else's.
                let other = left.replace("99", "77");
                ip(&format!("{other} table {table} proto static"));
            }
            let mut announcer = Announcer::new(&spec(table)).expect("sockets");
            assert_eq!(shown(table).trim(), "", "what a killed run has left");
            let both = addrs(&["203.0.113.10", "2001:db8:5::10"]);
            announcer.set(&both).expect("announced");
            announcer.set(&both).expect("nothing to do");
            let seen = shown(table);
            assert!(seen.contains("203.0.113.10") && seen.contains("2001:db8:5::10"), "{seen}");
            announcer.set(&addrs(&["203.0.113.10"])).expect("one withdrawn");
            assert!(!shown(table).contains("2001:db8:5::10"));
            ip(&format!("route del 203.0.113.10 table {table} proto 200"));
            announcer.set(&both).expect("the other again");
            drop(announcer);
            assert_eq!(shown(table).trim(), "");
            assert!(ip(&format!("route show table {table}")).contains("192.0.2.77"));
        }
    });
}

#[test]
fn what_a_killed_run_has_left_goes_also_where_nothing_is_announced() {
    in_namespace(|| {
        let mut announcer = Announcer::new(&spec(200)).expect("sockets");
        announcer.device = Some(Device::None);
        announcer.set(&addrs(&["203.0.113.10", "2001:db8:5::10"])).expect("announced");
        std::mem::forget(announcer);
        assert!(shown(200).contains("203.0.113.10"), "as a killed run");
        let spec = AnnounceSpec { services: Vec::new(), ..spec(200) };
        let _announcer = Announcer::new(&spec).expect("sockets");
        assert_eq!(shown(200).trim(), "");
    });
}

#[test]
fn a_second_run_leaves_what_the_first_announces() {
    in_namespace(|| {
        let mut first = Announcer::new(&spec(200)).expect("sockets");
        first.set(&addrs(&["203.0.113.10", "2001:db8:5::10"])).expect("announced");
        let all = shown(200);
        assert_eq!(all.matches("dev vips").count(), 2, "{all}");
        let second = Announcer::new(&spec(200)).expect("sockets");
        assert_eq!(shown(200), all);
        drop(second);
        assert_eq!(shown(200), all);
    });
}

#[test]
fn a_device_that_somebody_takes_down_or_away_is_opened_anew() {
    in_namespace(|| {
        let mut announcer = Announcer::new(&spec(200)).expect("sockets");
        let both = addrs(&["203.0.113.10", "2001:db8:5::10"]);
        announcer.set(&both).expect("announced");
        let device = format!("vips{}", std::process::id());
        for line in [format!("link set {device} down"), format!("link del {device}")] {
            ip(&line);
            announcer.renew().expect("announced");
            let seen = shown(200);
            assert_eq!(seen.matches(&format!("dev {device}")).count(), 2, "{line}: {seen}");
            assert_eq!(announcer.announced(), &both);
        }
    });
}

#[test]
fn what_another_s_route_has_replaced_is_announced_no_more_until_that_goes() {
    in_namespace(|| {
        let mut announcer = Announcer::new(&spec(200)).expect("sockets");
        let both = addrs(&["203.0.113.10", "2001:db8:5::10"]);
        announcer.set(&both).expect("announced");
        ip("route replace 203.0.113.10 dev lo table 200 proto static");
        (0..LOOKED_AT_EVERY).for_each(|_| announcer.renew().expect("looked at"));
        assert_eq!(announcer.announced(), &addrs(&["2001:db8:5::10"]));
        let there = || ip("route show table 200");
        assert!(there().contains("proto static") && !there().contains("proto 200"));
        ip("route del 203.0.113.10 dev lo table 200 proto static");
        announcer.renew().expect("announced");
        assert!(announcer.announced() == &both && there().contains("proto 200"));
    });
}

#[test]
fn what_somebody_removes_is_announced_anew() {
    in_namespace(|| {
        let mut announcer = Announcer::new(&spec(200)).expect("sockets");
        let both = addrs(&["203.0.113.10", "2001:db8:5::10"]);
        announcer.set(&both).expect("announced");
        let all = shown(200);
        for family in ["-4", "-6"] {
            ip(&format!("{family} route flush table 200"));
        }
        assert_eq!(shown(200).trim(), "");
        announcer.renew().expect("announced");
        assert_eq!(shown(200), all);
        announcer.renew().expect("nothing to do");
        assert_eq!(shown(200), all);
    });
}

#[test]
fn a_route_of_somebody_else_stays_and_the_vip_waits() {
    in_namespace(|| {
        ip("link set lo up");
        let mut announcer = Announcer::new(&spec(254)).expect("sockets");
        ip("route add 203.0.113.10 dev lo proto static");
        assert!(ip("route show 203.0.113.10").contains("dev lo"));
        let wanted = addrs(&["203.0.113.10"]);
        announcer.set(&wanted).expect("told once, by the log");
        announcer.set(&wanted).expect("and again");
        assert!(announcer.announced().is_empty());
        let there = || ip("route show 203.0.113.10");
        assert!(there().contains("proto static") && !there().contains("blackhole"));
        ip("route del 203.0.113.10 dev lo proto static");
        announcer.set(&wanted).expect("announced");
        assert!(announcer.announced() == &wanted && there().contains("proto 200"));
    });
}

#[test]
fn routes_go_with_the_process_and_its_device() {
    in_namespace(|| {
        let mut announcer = Announcer::new(&spec(200)).expect("sockets");
        announcer.set(&addrs(&["203.0.113.10", "2001:db8:5::10"])).expect("announced");
        assert_eq!(shown(200).matches("dev vips").count(), 2, "{}", shown(200));
        // As the kernel does where a process ends.
        announcer.device = None;
        let start = std::time::Instant::now();
        while !shown(200).trim().is_empty() {
            assert!(start.elapsed() < Duration::from_secs(20), "{}", shown(200));
            std::thread::sleep(Duration::from_millis(1));
        }
    });
}
