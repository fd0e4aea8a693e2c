//! How AF_XDP ports come and go: errors at opening, what is left after closing and after SIGKILL.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::net::{Side, ip, port_spec, with_veth, workers_spec};
use crate::packets::{same, udp};
use tidegate::nic::ethtool::{Ethtool, Offload};
use tidegate::nic::link::{index_of, xdp_program_id};
use tidegate::nic::restore::{Restored, restore_leftovers, restore_offloads};
use tidegate::nic::spec::{AttachMode, BusyPoll, CopyMode, PortSpec};
use tidegate::nic::steer::kernel_now;
use tidegate::nic::{NicError, Port, open};
use tidegate::worker::spec::{OnFailure, WorkersSpec};

/// A link goes with its last descriptor, which a child that another test has just forked has too
/// until it is the program that it is to be.
const GONE_LIMIT: Duration = Duration::from_secs(30);

fn has_program(interface: &str) -> bool {
    let index = index_of(interface).expect("interface");
    xdp_program_id(index).expect("netlink").is_some()
}

fn until_gone(after: &str) {
    let gone = tidegate::lab::wait_for(GONE_LIMIT, "no program", || !has_program("v0"));
    assert!(gone.is_ok(), "a program is left: {after}");
}

fn gro(interface: &str) -> Option<bool> {
    Ethtool::open().expect("socket").offload(interface, Offload::Gro).expect("interface")
}

fn switch_gro_on(interface: &str) {
    let ethtool = Ethtool::open().expect("socket");
    ethtool.set_offload(interface, Offload::Gro, true).expect("gro on");
}

/// The error of opening, which has to leave nothing behind.
fn refused(specs: &[PortSpec], workers: &WorkersSpec) -> NicError {
    switch_gro_on("v0");
    let state = tempfile::tempdir().expect("directory");
    let error = match open(specs, workers, state.path()) {
        Ok(_) => panic!("opened"),
        Err(error) => error,
    };
    let left = std::fs::read_dir(state.path()).expect("directory").count();
    assert_eq!(left, 0, "a state file is left: {error}");
    assert_eq!(gro("v0"), Some(true), "GRO is left off: {error}");
    error
}

#[test]
fn links_that_carry_more_than_a_frame_are_refused() {
    with_veth(1, || {
        let spec = [port_spec(0, "v0")];
        for (mtu, more) in [("9000", ""), ("3822", ", or `frame_size = 4096`")] {
            ip(&["link", "set", "v0", "mtu", mtu]);
            let told = refused(&spec, &workers_spec(1)).to_string();
            let fix = format!(
                "interface v0 has an MTU of {mtu}, but a frame of 2048 bytes holds a packet of \
                 1774: `ip link set dev v0 mtu 1774`{more}"
            );
            assert_eq!(told, fix);
        }
        ip(&["link", "set", "v0", "mtu", "1774"]);
        Side::open("v0", 1, AttachMode::Auto).close();
    });
}

#[test]
fn closing_leaves_nothing() {
    with_veth(1, || {
        switch_gro_on("v0");
        let a = Side::open("v0", 1, AttachMode::Auto);
        assert!(has_program("v0"));
        assert_eq!(gro("v0"), Some(false));
        assert_eq!(a.nic.modes[0].switched_off, [Offload::Gro]);
        a.close();
        until_gone("closed");
        assert_eq!(gro("v0"), Some(true));
        // The queue is free again.
        Side::open("v0", 1, AttachMode::Auto).close();
    });
}

/// What the kernel does not take goes with the port, which may be looked after once more.
#[test]
fn a_port_whose_link_is_down_closes_with_what_was_not_sent() {
    with_veth(1, || {
        let mut a = Side::open("v0", 1, AttachMode::Auto);
        ip(&["link", "set", "v0", "down"]);
        let (port, pool) = (&mut a.nic.ports[0][0], &mut a.nic.pools[0]);
        let packet = udp(([10, 1, 1, 1], 7), ([10, 1, 1, 2], 9));
        let mut frames = vec![pool.take_with(&packet).expect("a free frame")];
        assert_eq!(port.tx_burst(kernel_now(), pool, &mut frames), 1);
        assert!(port.tx_in_flight_bytes() > 0, "it was sent");
        port.close(pool);
        port.poll(kernel_now(), pool);
        assert_eq!((port.tx_in_flight_bytes(), pool.outstanding()), (0, 0));
    });
}

#[test]
fn errors_name_their_cause_and_leave_nothing() {
    with_veth(1, || {
        let ok = || port_spec(0, "v0");
        let workers = workers_spec(1);
        let text = |specs: &[PortSpec], workers: &WorkersSpec, wanted: &str| {
            let error = refused(specs, workers).to_string();
            assert!(error.contains(wanted), "{error}");
            until_gone(&error);
        };
        text(&[port_spec(0, "nowhere0")], &workers, "nowhere0: no such interface");
        text(&[ok()], &workers_spec(2), "`ethtool -L v0 rx 2 tx 2`");
        text(&[PortSpec { rx_ring: 500, ..ok() }], &workers, "rx_ring is 500, not a power of two");
        text(&[ok()], &WorkersSpec { frames: 512, ..workers_spec(1) }, "raise `frames`");
        text(&[PortSpec { copy: CopyMode::ZeroCopy, ..ok() }], &workers, "no zero-copy mode");
        let mixed = [
            PortSpec { copy: CopyMode::ZeroCopy, ..ok() },
            PortSpec { copy: CopyMode::Copy, ..port_spec(1, "v1") },
        ];
        text(&mixed, &workers, "can't be mixed");
        // The second port fails after the first was opened.
        ip(&["link", "set", "v0", "mtu", "3800"]);
        let native = PortSpec { attach: AttachMode::Native, ..port_spec(1, "v1") };
        let large = WorkersSpec { frame_size: 4_096, ..workers_spec(1) };
        text(&[ok(), native], &large, "v1: native XDP refused");
        ip(&["link", "set", "v0", "mtu", "1500"]);
        let huge = WorkersSpec { huge_pages: true, frames: 1 << 22, ..workers_spec(1) };
        text(&[ok()], &huge, "vm.nr_hugepages=");
    });
}

#[test]
fn native_falls_back_to_generic_and_says_why() {
    with_veth(1, || {
        ip(&["link", "set", "v1", "mtu", "9000"]);
        let a = Side::open("v0", 1, AttachMode::Auto);
        let mode = &a.nic.modes[0];
        assert!(!mode.native);
        let why = mode.native_refused.clone().unwrap_or_default();
        assert!(why.contains("MTU"), "{why}");
        a.close();
    });
}

#[test]
fn a_second_appliance_is_refused() {
    with_veth(1, || {
        let a = Side::open("v0", 1, AttachMode::Auto);
        let state = tempfile::tempdir().expect("directory");
        let error = open(&[port_spec(0, "v0")], &workers_spec(1), state.path());
        let error = error.map(|_| ()).expect_err("in use").to_string();
        assert!(error.contains("already has an XDP program (`tidegate_steer`"), "{error}");
        assert!(has_program("v0"), "the first one's program is gone");
        a.close();
    });
}

#[test]
fn busy_polling_is_accepted_and_works() {
    with_veth(1, || {
        let busy = Some(BusyPoll { micros: 20, budget: 64 });
        let specs = [PortSpec { busy_poll: busy, ..port_spec(0, "v0") }];
        let mut a = Side::with(&specs, &workers_spec(1)).expect("open").takes_everything();
        assert!(a.nic.modes[0].busy_poll);
        let mut b = Side::open("v1", 1, AttachMode::Auto);
        let packets: Vec<_> =
            (0..50).map(|i| udp(([10, 1, 1, 1], i), ([10, 1, 1, 2], 9))).collect();
        b.send(0, &packets);
        same(&a.receive(0, 50), &packets);
        a.close();
        b.close();
    });
}

/// One worker drives both queues of a port, and two ports share its frames.
#[test]
fn a_worker_may_have_several_queues_and_ports() {
    with_veth(2, || {
        let specs = [port_spec(0, "v0"), port_spec(1, "v1")];
        let workers = WorkersSpec { frames: 4096, ..workers_spec(1) };
        let mut all = Side::with(&specs, &workers).expect("open").takes_everything();
        assert_eq!(all.nic.ports[0][0].fds().count(), 2);
        let packets: Vec<_> =
            (0..20).map(|i| udp(([10, 1, 1, 1], i), ([10, 1, 1, 2], 9))).collect();
        all.send(0, &packets);
        // What the first port has sent arrives on the second.
        all.nic.ports[0].swap(0, 1);
        same(&all.receive(0, 20), &packets);
        all.close();
    });
}

const CHILD: &str = "NIC_LIFECYCLE_CHILD";

/// Not a test: the process that others kill, or that opens without privileges.
#[test]
#[ignore = "run by other tests, in a process of its own"]
fn child() {
    let Ok(role) = std::env::var(CHILD) else { return };
    let (role, dir) = role.split_once(' ').expect("two words");
    if role == "nobody" {
        const NOBODY: u32 = 65534;
        nix::unistd::setuid(nix::unistd::Uid::from_raw(NOBODY)).expect("setuid");
    }
    let on_failure = if role == "drop" { OnFailure::Drop } else { OnFailure::Pass };
    let workers = WorkersSpec { on_failure, ..workers_spec(1) };
    let attach = if role == "tc" { AttachMode::Tc } else { AttachMode::Auto };
    let port = PortSpec { attach, ..port_spec(0, "v0") };
    match open(&[port], &workers, Path::new(dir)) {
        Ok(_nic) => {
            println!("opened");
            std::thread::sleep(std::time::Duration::from_secs(60));
        }
        Err(e) => println!("refused: {e}"),
    }
}

/// Starts `child` and returns it with the line it printed.
fn spawn_child(role: &str) -> (Child, String) {
    let mut child = Command::new(std::env::current_exe().expect("own path"))
        .args(["--ignored", "--exact", "lifecycle::child", "--nocapture"])
        .env(CHILD, role)
        .stdout(Stdio::piped())
        .spawn()
        .expect("spawn");
    let out = BufReader::new(child.stdout.take().expect("piped"));
    let said = |line: &String| line.contains("opened") || line.contains("refused");
    let line = out.lines().map_while(Result::ok).find(said).expect("a line");
    (child, line)
}

/// After SIGKILL: with `pass` the kernel has removed the program, with `drop` it stays. The next
/// start finds and restores everything.
#[test]
fn a_kill_leaves_what_the_next_start_restores() {
    with_veth(1, || {
        for (on_failure, stays) in [("pass", false), ("drop", true)] {
            switch_gro_on("v0");
            let state = tempfile::tempdir().expect("directory");
            let role = format!("{on_failure} {}", state.path().display());
            let (mut child, line) = spawn_child(&role);
            assert!(line.contains("opened"), "{line}");
            assert_eq!(restore_leftovers(state.path()).expect("readable"), [], "it still runs");
            child.kill().expect("kill");
            child.wait().expect("wait");
            assert_eq!(has_program("v0"), stays, "{on_failure}");
            assert_eq!(gro("v0"), Some(false));
            // To look at it changes nothing of the program, as often as one looks.
            for switched_on in [&[Offload::Gro][..], &[]] {
                let told = restore_offloads(state.path()).expect("readable");
                let of = |r: &Restored| (r.switched_on.clone(), r.detached, r.left);
                let told: Vec<_> = told.iter().map(of).collect();
                let seen = stays || !switched_on.is_empty();
                let wanted = seen.then(|| (switched_on.to_vec(), false, stays));
                assert_eq!(told, Vec::from_iter(wanted), "{on_failure}");
            }
            let restored = restore_leftovers(state.path()).expect("readable");
            let detached: Vec<_> = restored.iter().map(|r| (r.detached, r.left)).collect();
            assert_eq!(detached, Vec::from_iter(stays.then_some((true, false))));
            assert!(!has_program("v0"), "{on_failure}");
            assert_eq!(gro("v0"), Some(true));
            Side::open("v0", 1, AttachMode::Auto).close();
        }
    });
}

fn has_companion(interface: &str) -> bool {
    let index = index_of(interface).expect("an interface");
    index_of(&format!("tge{index}")).is_ok() || index_of(&format!("tgx{index}")).is_ok()
}

/// Of a program for tc: nothing is on the interface, and what is beside it goes with its process,
/// or is looked after by the next one.
#[test]
fn companions_are_removed_but_not_those_in_use() {
    with_veth(1, || {
        let tc = [PortSpec { attach: AttachMode::Tc, ..port_spec(0, "v0") }];
        switch_gro_on("v0");
        let a = Side::with(&tc, &workers_spec(1)).expect("open");
        assert!(has_companion("v0") && !has_program("v0"));
        assert_eq!((gro("v0"), &a.nic.modes[0].switched_off[..]), (Some(true), &[][..]));
        let told = refused(&tc, &workers_spec(1)).to_string();
        assert!(told.contains("is there already") && told.contains("`ip link del tgx"), "{told}");
        assert!(has_companion("v0"), "the first one's is gone");
        a.close();
        assert!(!has_companion("v0"));
        // Killed; then the note of it is there, or gone with /run.
        for noted in [true, false] {
            let state = tempfile::tempdir().expect("directory");
            let (mut child, line) = spawn_child(&format!("tc {}", state.path().display()));
            assert!(line.contains("opened"), "{line}");
            assert_eq!(restore_leftovers(state.path()).expect("readable"), [], "it still runs");
            child.kill().expect("kill");
            child.wait().expect("wait");
            assert!(has_companion("v0"));
            if noted {
                let restored = restore_leftovers(state.path()).expect("readable");
                assert_eq!(restored.iter().map(|r| r.companion).collect::<Vec<_>>(), [true]);
                assert!(!has_companion("v0"));
            }
            Side::with(&tc, &workers_spec(1)).expect("open").close();
            assert!(!has_companion("v0"));
        }
    });
}

#[test]
fn missing_privileges_are_named() {
    with_veth(1, || {
        let state = tempfile::tempdir().expect("directory");
        let open_to_all = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(state.path(), open_to_all).expect("permissions");
        let (mut child, said) = spawn_child(&format!("nobody {}", state.path().display()));
        child.wait().expect("wait");
        assert!(said.contains("refused: ") && said.contains("CAP_NET_ADMIN"), "{said}");
        assert!(!has_program("v0"));
    });
}
