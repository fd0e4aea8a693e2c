//! Flows that are seen in the middle.

use std::sync::Arc;

use super::*;
use crate::flow::TcpState;
use crate::forward::Tables;
use crate::forward::spec::BackendSpec;

#[test]
fn packets_in_the_middle_join_where_appliances_agree() {
    for family in [&V4, &V6] {
        for (port, joins) in [(80, false), (81, true), (82, true), (83, true), (84, true)] {
            let mut rig = Rig::new(LIMITS);
            let stage = &mut Balance::new();
            let vip = (family.vip, port);
            let whole = |rig: &mut Rig, stage: &mut Balance, flags| {
                rig.run(stage, Shape::tcp(flags).between(family.client, vip)).verdict
            };
            for flags in [RST, RST | ACK, SYN | ACK] {
                let got = whole(&mut rig, stage, flags);
                assert_eq!(got, dropped(DropReason::NoFlow), "{port}: {flags:#x} joins nothing");
            }
            let want = if joins { OUT } else { dropped(DropReason::NoFlow) };
            assert_eq!(whole(&mut rig, stage, ACK), want, "{port}");
            assert_eq!(rig.flows.len(), usize::from(joins));
            // As long as half of the table is free.
            let mut full = Rig::new(FlowLimits { flows_max: 4, half_open_max: 4 });
            for client_port in 0..4 {
                let client = (family.client.0, 5_000 + client_port);
                full.run(stage, Shape::tcp(ACK).between(client, vip));
            }
            assert_eq!(full.flows.len(), if joins { 2 } else { 0 }, "{port}");
        }
        // An answer shows whose flow it is, too, and the first that it is open by half.
        for (flags, state) in [(ACK, TcpState::Established), (SYN | ACK, TcpState::SynReceived)] {
            let mut rig = Rig::new(LIMITS);
            let answer = Shape::tcp(flags).at_backend();
            let got = rig.run(&mut Balance::new(), answer.between(family.backend, family.client));
            let want = answer.after(CLIENT_MAC, CLIENT_SIDE);
            assert_eq!(got.verdict, OUT);
            assert_eq!(got.bytes, want.between((family.vip, 81), family.client));
            let flow = rig.flows.iter().next().map(|(_, flow)| flow.tcp);
            assert_eq!(flow, Some(state));
        }
    }
}

/// Its pool may have changed, or it was never a backend of this flow: where another would be chosen
/// its answer opens nothing.
#[test]
fn an_answer_joins_only_where_its_backend_would_be_chosen() {
    let second = ("10.1.0.77", V4.backend.1);
    let mut spec = services();
    let pool = &mut spec.pools[0];
    pool.backends.push(BackendSpec { addr: addr(second.0), ..pool.backends[0].clone() });
    let tables = Arc::new(Tables::build(&spec, 2, crate::base::Seed(7)));
    let mut joined = [0; 2];
    for port in 5_000..5_008 {
        let joins = [V4.backend, second].map(|backend| {
            let mut rig = Rig::new(LIMITS);
            rig.snapshot.forward = Arc::clone(&tables);
            let answer = Shape::tcp(ACK).at_backend().between(backend, (V4.client.0, port));
            rig.run(&mut Balance::new(), answer).verdict == OUT
        });
        assert_ne!(joins[0], joins[1], "one of the two, for port {port}");
        joined[usize::from(joins[1])] += 1;
    }
    assert!(joined.iter().all(|flows| *flows > 0), "{joined:?}");
}
