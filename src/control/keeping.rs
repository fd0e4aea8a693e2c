//! Flows that had begun when their service's share was lowered stay here: workers are asked which
//! those are, and then now and then which of them there still are.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::run::Control;
use crate::base::Nanos;
use crate::forward::spec::{ForwardMode, ForwardSpec};
use crate::nic::steer::{Lowered, MAX_KEPT, VipEntry};
use crate::packet::FlowKey;
use crate::worker::{KeyList, Outside, WorkerCommand};

/// Packets that were let in before the share was lowered are in receive rings for so long.
const RINGS_EMPTY_WITHIN: Duration = Duration::from_millis(20);
/// Nothing is known of a client of delayed binding before its handshake is done: of one whose SYN
/// came before the share was lowered that is so for so long, though a packet be lost (RFC 6298, 2).
const HANDSHAKES_WITHIN: Duration = Duration::from_secs(2);
/// Workers that have not told by then hang: the flows of the others stay.
const TOLD_WITHIN: Duration = Duration::from_secs(5);
/// What has ended is forgotten so often.
const ASKED_EVERY: Duration = Duration::from_secs(10);
/// Flows that a worker tells at once.
const PART_FLOWS: usize = 4_096;

#[derive(Default)]
pub(super) struct Keeping {
    now: Option<UnderWay>,
    /// Workers have been asked since the share before holds no more: what the programs noted until
    /// then is a flow, or has ended.
    has_settled: bool,
    /// When workers are asked next.
    next: Option<Nanos>,
}

struct UnderWay {
    /// What is asked by.
    lowered: Lowered,
    of: Arc<Outside>,
    not_before: Nanos,
    deadline: Nanos,
    /// Asked, and not done.
    awaited: BTreeSet<u16>,
    asked: bool,
    found: HashSet<FlowKey>,
    /// Clients whose connections are being bound.
    binding: HashSet<FlowKey>,
}

impl Control {
    /// Goes on with what is known of flows that are outside of their service's share by now.
    pub(super) fn check_keeping(&mut self) {
        let a = &mut self.appliance;
        let (now, lowered) = (a.clock.now(), a.steering.lowered());
        if lowered.vips.is_empty() {
            let Keeping { now, next, .. } = std::mem::take(&mut self.keeping);
            if (now.is_some() || next.is_some())
                && let Err(error) = a.steering.keep(&HashSet::new(), true)
            {
                tracing::warn!(%error, "flows are kept that need not be");
            }
            return;
        }
        if self.keeping.now.as_ref().is_some_and(|under_way| under_way.lowered != *lowered) {
            self.keeping.now = None;
        }
        let is_due = lowered.holds() || self.keeping.next.is_none_or(|at| now >= at);
        match &mut self.keeping.now {
            None if is_due => {
                let is_delayed = lowered.holds() && binds_late(lowered, &a.config.forward);
                let wait = if is_delayed { HANDSHAKES_WITHIN } else { RINGS_EMPTY_WITHIN };
                let not_before = now + wait;
                let of = Arc::new(outside(lowered, &a.steering.tables().vips));
                self.keeping.now = Some(UnderWay {
                    lowered: lowered.clone(),
                    of,
                    not_before,
                    deadline: not_before + TOLD_WITHIN,
                    awaited: a.crew.seats.iter().map(|s| s.id).collect(),
                    asked: false,
                    found: HashSet::new(),
                    binding: HashSet::new(),
                });
            }
            Some(under_way) if !under_way.asked && now >= under_way.not_before => {
                under_way.asked = true;
                for seat in &mut a.crew.seats {
                    let list = KeyList::new(Arc::clone(&under_way.of), PART_FLOWS);
                    seat.send(WorkerCommand::ListKeys(Box::new(list)));
                }
            }
            Some(under_way) if under_way.awaited.is_empty() || now >= under_way.deadline => {
                self.kept(now);
            }
            _ => {}
        }
    }

    /// A worker has told some; it is asked for more while there are.
    pub(super) fn keys_listed(&mut self, worker: u16, mut list: Box<KeyList>) {
        let Some(now) = &mut self.keeping.now else { return };
        if !Arc::ptr_eq(&now.of, &list.of) {
            return;
        }
        now.found.extend(list.keys.drain(..));
        now.binding.extend(list.binding.drain(..));
        if list.cursor == 0 {
            now.awaited.remove(&worker);
        } else if let Some(seat) = self.appliance.crew.seats.iter_mut().find(|s| s.id == worker) {
            seat.send(WorkerCommand::ListKeys(list));
        }
    }

    fn kept(&mut self, now: Nanos) {
        let Some(under_way) = self.keeping.now.take() else { return };
        let UnderWay { awaited, mut found, binding, lowered, .. } = under_way;
        found.extend(&binding);
        let room = (MAX_KEPT as usize).saturating_sub(found.len());
        found.extend(answers(&self.appliance.config.forward, &binding).take(room));
        // What has come while they told is told the second time; who was amid a handshake then has
        // until the third to become known.
        let holds = lowered.holds();
        let had_settled = std::mem::replace(&mut self.keeping.has_settled, !holds);
        self.keeping.next = Some(if holds { now } else { now + ASKED_EVERY });
        if !awaited.is_empty() {
            tracing::error!(?awaited, "workers hang: flows of theirs may go to the kernel");
        }
        let are_all = !holds && had_settled && awaited.is_empty();
        match self.appliance.steering.keep(&found, are_all) {
            Ok(0) if holds => {
                tracing::info!(flows = found.len(), "outside of lowered canary shares, kept");
            }
            Ok(0) => {}
            Ok(refused) => tracing::error!(
                refused,
                "no room to keep all flows outside of lowered canary shares: the kernel gets them"
            ),
            Err(error) => tracing::error!(%error, "flows outside of lowered shares can't be kept"),
        }
    }
}

/// Whether some of what is lowered is bound by what clients say.
fn binds_late(lowered: &Lowered, spec: &ForwardSpec) -> bool {
    let mut late = spec.services.iter().filter(|s| s.delay.is_some());
    late.any(|s| lowered.vips.contains_key(&(s.vip, s.port, s.proto)))
}

/// Whatever may answer those whose connections are being bound, as if they sent there: with `dnat`
/// backends answer by their own addresses, and which one it will be is not known yet.
fn answers<'a>(
    spec: &'a ForwardSpec,
    binding: &'a HashSet<FlowKey>,
) -> impl Iterator<Item = FlowKey> + 'a {
    binding.iter().flat_map(|client| {
        let here = spec.services.iter().filter(|s| {
            s.mode == ForwardMode::Dnat
                && (s.vip, s.port, s.proto) == (client.dst, client.dport, client.proto)
        });
        let backends = here.flat_map(|s| spec.pools_of(s)).flat_map(|pool| &pool.backends);
        backends.map(|b| FlowKey { dst: b.addr, dport: b.port, ..*client })
    })
}

fn outside(lowered: &Lowered, services: &[VipEntry]) -> Outside {
    let share = |at| {
        let services = services.iter().filter(|s| (s.addr, s.port, s.proto) == at);
        services.map(|s| s.canary_share).max().unwrap_or_default()
    };
    Outside::new(lowered.vips.keys().map(|&at| (at, share(at))).collect())
}
