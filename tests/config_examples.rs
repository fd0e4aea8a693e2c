//! The shipped examples are valid, and say what their comments say.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tidegate::base::units::BitRate;
use tidegate::config::{Config, load, load_text};
use tidegate::forward::spec::ForwardMode;
use tidegate::graph::spec::StageSpec;
use tidegate::nic::spec::{AttachMode, CopyMode};
use tidegate::packet::ClassId;
use tidegate::worker::spec::{IdleStrategy, OnFailure};

fn config_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config")
}

fn example(name: &str) -> Config {
    match load(&config_dir().join(name)) {
        Ok(config) => config,
        Err(faults) => panic!("{faults}"),
    }
}

#[test]
fn all_examples_load_without_a_warning() {
    let mut seen = 0;
    for entry in std::fs::read_dir(config_dir()).expect("config/") {
        let path = entry.expect("entry").path();
        if path.extension().is_some_and(|e| e == "toml") {
            let config = load(&path).unwrap_or_else(|faults| panic!("{faults}"));
            assert_eq!(config.warnings, [], "{}", path.display());
            let mut check = Command::new(env!("CARGO_BIN_EXE_tidegate"));
            let checked = check.arg("check").arg("-c").arg(&path).output().expect("tidegate");
            assert!(checked.status.success(), "{}: {checked:?}", path.display());
            seen += 1;
        }
    }
    assert!(seen >= 7, "only {seen} examples");
}

#[test]
fn the_example_of_several_sites() {
    let c = example("example-sites.toml");
    let modes: Vec<ForwardMode> = c.forward.services.iter().map(|s| s.mode).collect();
    assert_eq!(modes, [ForwardMode::Gue, ForwardMode::Nat]);
    let split = c.forward.split(c.forward.services[0].pool).expect("a split");
    assert_eq!(split.parts.iter().map(|(_, share)| *share).collect::<Vec<_>>(), [95, 5]);
    assert_eq!(c.announce.services, [c.forward.services[0].id]);
    assert_eq!((c.announce.table, c.announce.healthy_percent), (200, 25));
    let pool = &c.forward.pools[0];
    assert!(pool.by_rtt && c.health[0].cuts_on_down && c.health[2].check.is_none());
    let away: Vec<bool> = pool.backends.iter().map(|b| b.is_away).collect();
    assert_eq!(away, [false, false, true, true, true]);
    assert_eq!((pool.backends[0].connections_max, pool.backends[4].priority), (Some(4_000), 1));
}

#[test]
fn the_first_configuration_of_the_readme() {
    let readme = std::fs::read_to_string(config_dir().join("../README.md")).expect("README.md");
    let (_, text) = readme.split_once("```toml\n").expect("a configuration");
    let (text, _) = text.split_once("```").expect("its end");
    let c = load_text(Path::new("edge.toml"), text).unwrap_or_else(|faults| panic!("{faults}"));
    assert_eq!(c.warnings, []);
    assert_eq!((c.forward.services.len(), c.rules.len(), c.class_names.len()), (1, 2, 3));
}

#[test]
fn the_rules_of_the_readme() {
    let readme = std::fs::read_to_string(config_dir().join("../README.md")).expect("README.md");
    let (_, reference) = readme.split_once("### `[[rule]]`").expect("a reference");
    let (_, text) = reference.split_once("```toml\n").expect("rules");
    let (text, _) = text.split_once("```").expect("their end");
    let head = "pipeline = \"llm-edge\"\n[port.a]\ninterface = \"eth0\"\n[service.s]\n\
                vip = \"203.0.113.1\"\nport = 80\npool = \"p\"\n[[pool.p.backend]]\n\
                address = \"10.0.0.1\"\n[nat]\naddresses = \"10.0.0.9\"\n";
    let c = load_text(Path::new("edge.toml"), &format!("{head}{text}"));
    let c = c.unwrap_or_else(|faults| panic!("{faults}"));
    assert_eq!((c.rules.len(), c.rules[0].path.len(), c.rules[2].mark), (3, 2, Some(34)));
}

#[test]
fn the_edge_example() {
    let c = example("example-llm-edge.toml");
    assert_eq!(c.pipeline.stages.len(), 7);
    assert_eq!((c.workers.count, c.workers.count_max), (2, 4));
    assert_eq!(c.workers.cores, [2, 3]);
    assert_eq!(c.workers.heartbeat_limit, Duration::from_millis(100));
    let names: Vec<&str> = c.forward.services.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["chat", "chat6", "internal", "files"], "ids follow the file's order");
    assert!(c.forward.services.iter().all(|s| s.canary_share == 10_000));
    assert_eq!(c.forward.services[0].idle_established, Duration::from_secs(7_440));
    let backends: Vec<(&str, u16, u16)> = c
        .forward
        .pools
        .iter()
        .flat_map(|p| &p.backends)
        .map(|b| (b.name.as_str(), b.port, b.weight))
        .collect();
    assert_eq!(
        backends,
        [
            ("gpu-1", 8443, 2),
            ("gpu-2", 8443, 1),
            ("[2001:db8:1::1]:8443", 8443, 1),
            ("10.0.1.1:8080", 8080, 1),
            ("10.0.1.9:8080", 8080, 1),
            ("10.0.2.1:443", 443, 1)
        ]
    );
    let shadow = c.forward.services[2].shadow.expect("one");
    assert_eq!(
        (c.forward.pools[usize::from(shadow.pool.0)].name.as_str(), shadow.share),
        ("plain-next", 500)
    );
    assert_eq!(c.class_names, ["interactive", "batch", "bulk", "other"]);
    assert_eq!(c.qos.len(), 2);
    for port in &c.qos {
        let ids: Vec<ClassId> = port.classes.iter().map(|c| c.id).collect();
        assert_eq!(ids, [ClassId(0), ClassId(1), ClassId(2), ClassId(3)]);
        assert_eq!(port.default_class, ClassId(3));
        assert_eq!(port.classes[2].rate, BitRate(1_000_000_000));
        assert_eq!(port.classes[2].ceil, BitRate(8_000_000_000));
        assert_eq!(port.classes[0].ceil, BitRate(10_000_000_000), "the parent's, by default");
    }
    let classes: Vec<ClassId> = c.rules.iter().map(|r| r.class).collect();
    assert_eq!(classes, [ClassId(1), ClassId(0), ClassId(2), ClassId(0)]);
    assert_eq!(c.rules[3].dscp, [46, 34]);
}

#[test]
fn the_other_examples() {
    let c = example("example-l4.toml");
    assert_eq!(c.pipeline.stages, [StageSpec::Balance]);
    let modes: Vec<ForwardMode> = c.forward.services.iter().map(|s| s.mode).collect();
    assert_eq!(modes, [ForwardMode::Nat, ForwardMode::Dnat, ForwardMode::Dsr]);
    assert_eq!(c.forward.services[2].proto, 17);
    assert_eq!(c.forward.pools[0].backends[2].weight, 0);
    assert!(c.qos.is_empty());

    let c = example("example-router.toml");
    assert_eq!(c.forward.transit.len(), 2);
    let tree = &c.qos[0].classes;
    assert_eq!(tree[1].name, "a-voice");
    assert_eq!(tree[1].parent, Some(tree[0].id));
    assert_eq!(tree[1].rate, BitRate(30_000_000), "5% of 60% of 1 Gbit/s");
    assert_eq!(tree[1].ceil, BitRate(200_000_000), "20% of the parent's ceiling");

    let c = example("example-rules.toml");
    assert_eq!(c.tenant_names, ["acme"]);
    let ends: Vec<bool> = c.rules.iter().map(|r| r.class.is_refused()).collect();
    assert_eq!(ends, [true, false, true, false, false, false, false]);
    assert_eq!((c.rules[1].bytes_over, c.rules[3].mark), (Some(500_000_000), Some(34)));
    let known = c.catalogue.find(None, Some(b"/generate/7")).expect("added");
    assert_eq!((known.provider, known.class), ("in-house", "interactive"));
    let StageSpec::Inspect { headers, .. } = &c.pipeline.stages[1] else { panic!("inspect") };
    assert_eq!(headers, &["x-tenant"]);

    let c = example("example-tap.toml");
    assert_eq!(c.class_names, ["llm", "web"]);
    assert_eq!(c.pipeline.stages.last(), Some(&StageSpec::Tap));
}

/// The defaults that the documentation promises.
#[test]
fn what_is_not_given() {
    let text = "pipeline = \"llm-edge\"\n\
        [port.a]\ninterface = \"eth0\"\n[port.b]\ninterface = \"eth1\"\n\
        [service.s]\nvip = \"203.0.113.1\"\nport = 443\npool = \"p\"\n\
        [service.u]\nvip = \"203.0.113.1\"\nport = 443\nprotocol = \"udp\"\npool = \"p\"\n\
        [[pool.p.backend]]\naddress = \"10.0.0.1\"\n[nat]\naddresses = \"10.0.0.9\"\n\
        [qos.b]\nrate = \"100Mbit/s\"\ndefault = \"c\"\n[qos.b.class.c]\nrate = \"10Mbit/s\"\n\
        [[rule]]\ndscp = 46\nclass = \"c\"\n";
    let c = load_text(Path::new("t.toml"), text).unwrap_or_else(|faults| panic!("{faults}"));
    assert_eq!(c.warnings, []);
    let w = &c.workers;
    assert_eq!((w.count, w.cores.len(), w.idle), (1, 0, IdleStrategy::Adaptive));
    assert_eq!((w.on_failure, w.huge_pages), (OnFailure::Pass, false));
    assert_eq!(w.heartbeat_limit, Duration::from_millis(100));
    assert_eq!((w.frames, w.frame_size), (16_384, 2_048));
    assert_eq!((w.flows_max, w.half_open_max), (1_000_000, 65_536));
    assert_eq!(w.drain_limit, Duration::from_secs(5));
    let p = &c.ports[1];
    assert_eq!((p.id.0, p.attach, p.copy), (1, AttachMode::Auto, CopyMode::Auto));
    assert_eq!((p.rx_ring, p.tx_ring, p.busy_poll), (2_048, 2_048, None));
    let [tcp, udp] = c.forward.services.as_slice() else { panic!("two services") };
    assert_eq!((tcp.proto, tcp.mode, tcp.canary_share), (6, ForwardMode::Nat, 10_000));
    assert_eq!(tcp.idle_established, Duration::from_secs(7_440));
    assert_eq!(udp.idle_established, Duration::from_secs(300));
    let backend = &c.forward.pools[0].backends[0];
    assert_eq!((backend.name.as_str(), backend.weight), ("10.0.0.1:443", 1));
    let nat = c.forward.nat.as_ref().expect("given");
    assert_eq!((nat.port_first, nat.port_last), (1_024, 32_767));
    let q = &c.qos[0];
    assert_eq!((q.port.0, q.overhead, q.mpu, q.mtu), (1, 24, 84, 1_518));
    assert_eq!(q.burst, 50_000, "4 ms at 100 Mbit/s");
    let class = &q.classes[0];
    assert_eq!((class.parent, class.ceil), (None, BitRate(100_000_000)));
    assert_eq!((class.burst, class.cburst), (5_000, 50_000));
    assert_eq!((class.priority, class.weight, class.limit), (0, 1, 1_250_000));
    assert_eq!(c.rules[0].name, "rule-1");
    assert_eq!(c.admin.socket, PathBuf::from("/run/tidegate/tidegate.sock"));
    assert_eq!(c.admin.socket_mode, 0o660);
    assert_eq!(c.admin.metrics, "127.0.0.1:9898".parse().ok());
}

#[test]
fn many_tenants_by_a_template() {
    let c = example("example-tenants.toml");
    assert_eq!((c.tenant_names.len(), c.class_names.len()), (501, 3 * 501 + 2));
    assert_eq!((c.qos[0].classes.len(), c.rules.len()), (3 * 501 + 2, 2 * 501));
    let class = |name: &str| c.qos[0].classes.iter().find(|class| class.name == name).expect(name);
    let (own, chat) = (class("tenant-007"), class("tenant-007:chat"));
    assert_eq!((own.rate, chat.parent), (BitRate(17_910_000), Some(own.id)));
    let rule = |name: &str| c.rules.iter().find(|rule| rule.name == name).expect(name);
    let clients = |name: &str| {
        rule(name).client.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(clients("tenant-001:chat"), "10.64.0.0/24");
    assert_eq!(clients("tenant-500:batch"), "10.65.243.0/24");
    assert_eq!(clients("acme:chat"), "198.51.100.0/24 2001:db8:100::/48");
    let chat = rule("tenant-007:chat");
    assert_eq!(chat.class, class("tenant-007:chat").id);
    assert_eq!(c.tenant_names[usize::from(chat.tenant.expect("a tenant"))], "tenant-007");
}

/// Whatever is in the file, the answer is a configuration or faults, at places within the file.
#[test]
fn damaged_files_are_told_of() {
    let text = std::fs::read_to_string(config_dir().join("example-l4.toml")).expect("example");
    let (mut loaded, mut refused) = (0, 0);
    let mut check = |text: &str| match load_text(Path::new("t.toml"), text) {
        Ok(_) => loaded += 1,
        Err(faults) => {
            refused += 1;
            assert!(faults.has_errors());
            let lines = u32::try_from(text.lines().count()).expect("few") + 1;
            for (line, column) in faults.iter().filter_map(|f| f.place) {
                assert!((1..=lines).contains(&line) && column >= 1, "{line}:{column}");
            }
        }
    };
    for (i, _) in text.char_indices() {
        check(&text[..i]);
        for junk in ["", "=", "\"", "[", "]", "9", "-", "\n", "µ"] {
            if i % 3 == 0 {
                check(&format!("{}{junk}{}", &text[..i], &text[i + 1..]));
            }
        }
    }
    assert!(loaded > 1_000 && refused > 1_000, "{loaded} loaded, {refused} refused");
}
