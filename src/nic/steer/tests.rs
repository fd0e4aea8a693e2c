//! What the programs are told of addresses and ends.

use super::*;

fn vip(addr: &str, port: u16, canary_share: u16) -> VipEntry {
    VipEntry { addr: addr.parse().expect("literal"), port, proto: 6, canary_share }
}

#[test]
fn an_address_gathers_all_its_roles() {
    let a: Addr = "192.0.2.1".parse().expect("literal");
    let infos = addr_infos(
        &[a],
        &[vip("192.0.2.1", 80, 10_000), vip("192.0.2.1", 443, 500)],
        &[NatRange { addr: a, first: 40_000, last: 49_999 }],
        Some((64_000, 64_511)),
    );
    let info = infos[&a];
    assert_eq!(info.flags, ADDR_LOCAL | ADDR_VIP | ADDR_NAT);
    assert_eq!((info.nat_first, info.nat_last), (40_000, 49_999));
    assert_eq!(info.fragment_share, 500, "fragments follow the smallest share");
}

#[test]
fn checks_have_ports_of_own_addresses_only() {
    let [own, vip_too, nat] =
        ["192.0.2.1", "192.0.2.2", "192.0.2.9"].map(|a| a.parse().expect("literal"));
    let range = NatRange { addr: nat, first: 40_000, last: 49_999 };
    let vips = [vip("192.0.2.2", 80, 10_000), vip("192.0.2.3", 80, 10_000)];
    let infos = addr_infos(&[own, vip_too], &vips, &[range], Some((64_000, 64_511)));
    let told = |a: &Addr| {
        let info = infos[a];
        (info.flags, info.nat_first, info.nat_last)
    };
    assert_eq!(told(&own), (ADDR_LOCAL | ADDR_CHECKS, 64_000, 64_511));
    assert_eq!(told(&vip_too), (ADDR_LOCAL | ADDR_VIP | ADDR_CHECKS, 64_000, 64_511));
    assert_eq!(told(&nat), (ADDR_NAT, 40_000, 49_999));
    assert_eq!(told(&vips[1].addr), (ADDR_VIP, 0, 0), "not the box's own");
}

#[test]
fn later_fragments_of_backends_have_no_port_and_the_smallest_share() {
    let tunnel = vip("10.0.0.2", 0, SHARE_TUNNEL as u16);
    let map = fragments_of(&[vip("10.0.0.1", 80, 500), vip("10.0.0.1", 443, 9_000), tunnel]);
    let list: Vec<_> = map.iter().map(|(e, share)| (e.port, *share)).collect();
    assert_eq!(list, [(0, 500)], "and none of tunnels' ends");
}

#[test]
fn the_largest_share_of_a_backend_counts() {
    let map = endpoints(&[vip("10.0.0.1", 80, 500), vip("10.0.0.1", 80, 9_000)]);
    assert_eq!(map.values().copied().collect::<Vec<_>>(), [9_000]);
}

/// The verifier gives up at a million instructions, and a start waits for it: some 50 ms for these.
/// It looks at what follows a function that is not static once, however many ways lead through it.
#[test]
fn the_verifier_looks_at_each_program_a_few_times_only() {
    const INSTRUCTIONS_MAX: u32 = 50_000;
    for (mode, offload) in [AttachMode::Native, AttachMode::Tc]
        .into_iter()
        .flat_map(|mode| [false, true].map(|offload| (mode, offload)))
    {
        let loaded = Loaded::load(mode, offload).expect("root");
        let program = loaded.ebpf.program(PROGRAM_NAME).expect("its name");
        let info = program.info().expect("loaded");
        let looked_at = info.verified_instruction_count().expect("Linux 5.16");
        assert!(looked_at < INSTRUCTIONS_MAX, "{mode:?}, offload {offload}: {looked_at}");
    }
}
