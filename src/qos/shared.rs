//! One class tree for all workers of a port.
//!
//! Each worker keeps its own packets, in its own queues, and sends them itself. What they share is
//! the tree: buckets, rounds, priorities. Its leaves hold no packets but what workers still want to
//! send, and what it hands out is not a packet's turn but a lease: so many bytes of this class by
//! that worker, paid for in advance. So classes get their shares, and limits hold, whichever
//! workers their packets lie in; within a class, workers are served by how many flows wait there.
//!
//! A worker visits the tree once a burst, and never waits for it: when another is there, it goes on
//! with what it was granted. Whoever is there serves all, so that a lease is in the right order
//! whoever polls most often. A worker that does not send what it was granted is passed over until
//! it has, and costs the others no more than its [`Absence`] says: what one that looks all the time
//! can send soon, and what comes while one that is kept from its core is away.

use std::collections::VecDeque;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use super::absence::Absence;
use super::build::{Compiled, compile};
use super::spec::PortQosSpec;
use super::succession::predecessors;
use super::tree::{ROOT, Tree};
use crate::base::Nanos;
use crate::packet::ClassId;

/// Leases that one worker holds, or has waiting to be fetched, at most. Of classes that are leased
/// a frame at a time these are 3 MB: no worker is granted more, however late it is.
pub(super) const LEASES_MAX: usize = 2_048;
/// A lease is at most what its class is guaranteed in this time ...
pub(super) const LEASE_NS: u64 = 200_000;
/// ... or this share of its burst, or this many bytes, or, of what is lent, what is left of its
/// round. A frame is always leased.
const LEASE_BURST_SHARE: u32 = 8;
pub(super) const LEASE_BYTES_MAX: u32 = 512 << 10;
/// Leases that one visit hands out at most.
const LEASES_A_VISIT: usize = 256;
/// Classes that one visit wakes at most.
const WAKES_A_VISIT: usize = 2_048;

/// The tree that the workers of one port share. Made by the control plane, before the workers.
pub struct Shared {
    global: Mutex<Global>,
}

/// The trees that workers share, by port. The same for all workers, from start to end.
#[derive(Clone, Default)]
pub struct SharedPorts {
    ports: Arc<Mutex<Vec<Option<Arc<Shared>>>>>,
}

impl SharedPorts {
    /// The tree of a port, which is made, or changed to `spec`, if need be. For the control plane.
    pub fn tree(&self, port: usize, spec: &PortQosSpec) -> Arc<Shared> {
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        if ports.len() <= port {
            ports.resize(port + 1, None);
        }
        let shared = ports[port].get_or_insert_with(|| Shared::new(spec));
        shared.reconfigure(spec);
        Arc::clone(shared)
    }
}

/// The right to send so many bytes of a class.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lease {
    pub leaf: u32,
    pub bytes: u32,
    /// On the rate of a class above.
    pub is_borrowed: bool,
}

pub(super) struct Global {
    /// Of the specification: members that know another one get nothing until they know this.
    pub fingerprint: u64,
    ids: Vec<ClassId>,
    pub tree: Tree,
    /// By class.
    lease_bytes: Vec<u32>,
    /// By class and member.
    demands: Vec<Demand>,
    /// By class: the member whose turn it is.
    turns: Vec<u16>,
    /// By number; those that left have no queue.
    members: Vec<Option<Account>>,
    /// Those that have not left.
    present: u32,
    frame: u32,
    now: Nanos,
}

/// What one member wants of one class.
#[derive(Clone, Copy, Debug, Default)]
struct Demand {
    /// Bytes that wait there, beyond what was leased for them.
    bytes: u32,
    /// Bytes that wait there, and may not go yet.
    asleep: u32,
    /// Bytes left in this round among the members.
    deficit: i32,
    /// Flows that wait there.
    flows: u16,
    /// It is on its member's list of those passed over.
    is_passed: bool,
}

const _: () = assert!(size_of::<Demand>() == 16);

/// A member's leases.
struct Account {
    leases: VecDeque<Lease>,
    /// Leases that it has fetched and not used up, as it told last.
    held: usize,
    /// Bytes leased and not known to be sent.
    unsent: u32,
    /// Classes of which it gets nothing more until it has sent some.
    passed: Vec<u32>,
    absence: Absence,
    /// Bytes that it may be granted beyond what it has sent.
    unsent_max: u32,
}

impl Shared {
    /// For workers that shape `spec` together.
    pub fn new(spec: &PortQosSpec) -> Arc<Shared> {
        Arc::new(Shared { global: Mutex::new(Global::new(spec, Nanos::ZERO)) })
    }

    /// Changes to another tree, with the tokens of the classes that stay. Members follow when they
    /// are reconfigured themselves; until then their packets wait. Nothing happens if the tree is
    /// that of `spec` already.
    pub fn reconfigure(&self, spec: &PortQosSpec) {
        if self.lock().fingerprint == fingerprint(spec) {
            return;
        }
        let mut new = Global::new(spec, Nanos::ZERO);
        self.lock().replace(&mut new);
    }

    /// A new member's number.
    pub(super) fn join(&self) -> usize {
        self.lock().join()
    }

    pub(super) fn leave(&self, member: usize) {
        self.lock().leave(member);
    }

    /// For the control plane, and when a member comes or goes.
    fn lock(&self) -> MutexGuard<'_, Global> {
        self.global.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None`: another is there.
    #[inline]
    pub(super) fn try_lock(&self) -> Option<MutexGuard<'_, Global>> {
        match self.global.try_lock() {
            Ok(global) => Some(global),
            Err(TryLockError::Poisoned(e)) => Some(e.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

impl Global {
    fn new(spec: &PortQosSpec, now: Nanos) -> Global {
        let Compiled { tree, ids, largest: frame, .. } = compile(spec, now);
        let lease = |class: &super::class::Class| {
            let most = (class.rate.cap().max(frame) / LEASE_BURST_SHARE).min(LEASE_BYTES_MAX);
            (class.rate.bytes_in(LEASE_NS).min(u64::from(most)) as u32).max(frame)
        };
        Global {
            fingerprint: fingerprint(spec),
            lease_bytes: tree.classes.iter().map(lease).collect(),
            demands: Vec::new(),
            turns: vec![0; ids.len()],
            members: Vec::new(),
            present: 0,
            frame,
            ids,
            tree,
            now,
        }
    }

    /// Puts a new tree in this one's place; the old one is left in `new`, to be freed elsewhere.
    fn replace(&mut self, new: &mut Global) {
        (new.now, new.present) = (self.now, self.present);
        new.tree.inherit(self.now, &predecessors(&new.ids, &self.ids), &mut self.tree);
        for member in std::mem::take(&mut self.members) {
            let classes = new.ids.len();
            new.members.push(member.map(|old| {
                let absence = old.absence.interrupted();
                Account { absence, ..Account::new(classes) }
            }));
        }
        new.resize();
        std::mem::swap(self, new);
    }

    fn join(&mut self) -> usize {
        let free = self.members.iter().position(Option::is_none);
        let at = free.unwrap_or(self.members.len());
        if at == self.members.len() {
            self.members.push(None);
            // Rows grow: everyone's demands are told again.
            self.resize();
        }
        let members = self.members.len();
        // What one who left wanted, or was passed over for, is not the new one's.
        self.demands.iter_mut().skip(at).step_by(members).for_each(|d| *d = Demand::default());
        self.members[at] = Some(Account::new(self.ids.len()));
        self.present += 1;
        at
    }

    fn leave(&mut self, member: usize) {
        if self.members[member].take().is_some() {
            self.present -= 1;
        }
    }

    /// Members that there are.
    pub fn present(&self) -> u32 {
        self.present
    }

    fn resize(&mut self) {
        let old = std::mem::take(&mut self.demands);
        let (classes, members) = (self.ids.len(), self.members.len());
        self.demands = vec![Demand::default(); classes * members];
        if !old.is_empty() {
            let before = old.len() / classes;
            for class in 0..classes {
                let row = &old[class * before..][..before.min(members)];
                self.demands[class * members..][..row.len()].copy_from_slice(row);
            }
        }
    }

    /// Moves on to `now`; a clock that steps back is ignored.
    pub fn advance(&mut self, now: Nanos) {
        self.now = self.now.max(now);
        self.tree.wake(self.now, WAKES_A_VISIT);
    }

    /// Takes what a member was granted while it was away.
    pub fn collect(&mut self, member: usize, into: &mut VecDeque<Lease>) {
        if let Some(account) = &mut self.members[member] {
            into.extend(account.leases.drain(..));
        }
    }

    /// A member tells what it holds of its leases, so that it gets more of what it was passed over
    /// for.
    pub fn report(&mut self, member: usize, held: usize, unsent: u32) {
        let Some(account) = &mut self.members[member] else { return };
        (account.held, account.unsent) = (held, unsent);
        account.absence.ends(self.now);
        let port = &self.tree.classes[ROOT as usize].rate;
        account.unsent_max = account.absence.bytes(port).max(2 * self.frame);
        if !account.has_room() {
            return;
        }
        while let Some(leaf) = self.members[member].as_mut().and_then(|a| a.passed.pop()) {
            let at = leaf as usize * self.members.len() + member;
            self.demands[at].is_passed = false;
            if self.demands[at].bytes > 0 {
                self.tree.activate(self.now, leaf);
            }
        }
    }

    /// A member has all that it was granted, and something waits for more. It is away from when it
    /// may have that: while its classes wait for tokens it is not.
    pub fn leaves_waiting(&mut self, member: usize) {
        let Some(account) = &mut self.members[member] else { return };
        let may_have = self.tree.is_ready() || !account.has_room();
        let due = if may_have { Some(self.now) } else { self.tree.wheel.next() };
        if let Some(due) = due {
            account.absence.begins(due.max(self.now));
        }
    }

    /// A member tells what waits of a class, beyond its leases: what it wants to send, and what may
    /// not go yet.
    pub fn want(&mut self, member: usize, leaf: u32, (bytes, asleep): (u32, u32), flows: u16) {
        let demand = &mut self.demands[leaf as usize * self.members.len() + member];
        let before = demand.bytes;
        (demand.bytes, demand.asleep, demand.flows) = (bytes, asleep, flows.max(1));
        if before == 0 && bytes > 0 && !demand.is_passed {
            self.tree.activate(self.now, leaf);
        }
    }

    /// Bytes of a class that wait with other members than this one, beyond their leases.
    pub fn held_by_others(&self, member: usize, leaf: u32) -> u32 {
        let row = &self.demands[leaf as usize * self.members.len()..][..self.members.len()];
        let others = row.iter().zip(&self.members).enumerate();
        let others = others.filter(|(at, (_, account))| *at != member && account.is_some());
        others.fold(0, |sum, (_, (demand, _))| {
            sum.saturating_add(demand.bytes).saturating_add(demand.asleep)
        })
    }

    /// Hands leases out, to all, until nothing may go or `member` has as many bytes as it can use.
    pub fn serve(&mut self, member: usize, bytes: u64) {
        let mut left = bytes;
        for _ in 0..LEASES_A_VISIT {
            let Some(choice) = self.tree.choose() else { return };
            let leaf = choice.class();
            let Some(next) = self.next_member(leaf) else {
                self.tree.deactivate(leaf);
                continue;
            };
            // A loan is no longer than a turn: siblings would wait for theirs so much longer.
            let turn = self.tree.left_of_rounds(choice).max(self.frame);
            let demand = &mut self.demands[leaf as usize * self.members.len() + next];
            let granted = demand.bytes.min(self.lease_bytes[leaf as usize]).min(turn);
            demand.bytes -= granted;
            demand.deficit -= granted as i32;
            if let Some(account) = &mut self.members[next] {
                let lease = Lease { leaf, bytes: granted, is_borrowed: choice.is_borrowed() };
                account.leases.push_back(lease);
                account.unsent = account.unsent.saturating_add(granted);
            }
            let row = leaf as usize * self.members.len();
            let emptied = self.demands[row..][..self.members.len()].iter().all(|d| d.bytes == 0);
            self.tree.charge(self.now, choice, granted, emptied);
            if next == member {
                left = left.saturating_sub(u64::from(granted));
                if left == 0 {
                    return;
                }
            }
        }
    }

    /// When there is something for a member: at once, if it was granted something while it was
    /// away. It may turn out to be nothing.
    pub fn next_event(&self, member: usize) -> Option<Nanos> {
        let granted = self.members[member].as_ref().is_some_and(|a| !a.leases.is_empty());
        if granted || self.tree.is_ready() { Some(self.now) } else { self.tree.wheel.next() }
    }

    /// The member to serve next of those that want to send of a class: a deficit round robin whose
    /// quanta are as their flows. `None`: all that want to are passed over.
    fn next_member(&mut self, leaf: u32) -> Option<usize> {
        let (count, row) = (self.members.len(), leaf as usize * self.members.len());
        let mut most_flows = 0;
        for member in 0..count {
            let demand = &mut self.demands[row + member];
            if demand.bytes == 0 || demand.is_passed {
                continue;
            }
            match &mut self.members[member] {
                Some(account) if account.has_room() => {
                    most_flows = most_flows.max(u32::from(demand.flows));
                }
                Some(account) => {
                    demand.is_passed = true;
                    account.passed.push(leaf);
                }
                None => demand.bytes = 0,
            }
        }
        if most_flows == 0 {
            return None;
        }
        let turn = &mut self.turns[leaf as usize];
        loop {
            let member = usize::from(*turn) % count;
            let demand = &mut self.demands[row + member];
            if demand.bytes > 0 && !demand.is_passed {
                if demand.deficit > 0 {
                    return Some(member);
                }
                let share = u64::from(self.frame) * u64::from(demand.flows);
                demand.deficit += (share / u64::from(most_flows)).max(1) as i32;
            }
            *turn = ((member + 1) % count) as u16;
        }
    }
}

impl Account {
    fn new(classes: usize) -> Account {
        Account {
            leases: VecDeque::with_capacity(LEASES_MAX),
            held: 0,
            unsent: 0,
            passed: Vec::with_capacity(classes),
            absence: Absence::NONE,
            unsent_max: 0,
        }
    }

    fn has_room(&self) -> bool {
        self.unsent < self.unsent_max && self.held + self.leases.len() < LEASES_MAX
    }
}

/// Two specifications with the same one lay out the same tree.
pub(super) fn fingerprint(spec: &PortQosSpec) -> u64 {
    let mut hasher = DefaultHasher::new();
    spec.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::units::BitRate;
    use crate::packet::PortId;
    use crate::qos::spec::ClassSpec;

    /// A port of a gigabit, with one class that is held to a megabit.
    fn spec() -> PortQosSpec {
        let rate = BitRate(1_000_000);
        let class = ClassSpec { burst: 3_000, cburst: 3_000, ..ClassSpec::plain(0, rate, rate) };
        PortQosSpec {
            port: PortId(0),
            rate: BitRate(1_000_000_000),
            burst: 500_000,
            overhead: 0,
            mpu: 0,
            mtu: 1_500,
            default_class: ClassId(0),
            classes: vec![class],
        }
    }

    /// Bytes that a member may be granted in advance, at last, where it sends all that it gets of
    /// the class and comes so much later than there may be something for it.
    fn granted_in_advance(late_ns: u64) -> u32 {
        let mut global = Global::new(&spec(), Nanos::ZERO);
        let (member, leaf) = (global.join(), ROOT + 1);
        let mut now = Nanos::from_secs(1);
        for _ in 0..40 {
            global.advance(now);
            global.report(member, 0, 0);
            global.want(member, leaf, (100_000, 0), 1);
            global.serve(member, 64_000);
            let mut fetched = VecDeque::new();
            global.collect(member, &mut fetched);
            global.leaves_waiting(member);
            let next = global.next_event(member).expect("tokens come");
            now = next.max(now).saturating_add(late_ns);
        }
        assert!(now.since(Nanos::from_secs(1)) > 200_000_000, "the class waited");
        global.report(member, 0, 0);
        global.members[member].as_ref().expect("joined").unsent_max
    }

    #[test]
    fn one_that_waits_for_tokens_is_not_away() {
        assert_eq!(granted_in_advance(0), 25_000, "what a gigabit sends in 200 us");
        assert_eq!(granted_in_advance(4_000_000), 1_000_000, "and in twice 4 ms");
    }

    /// What is lent goes turn by turn: 12,500 bytes at once of one that has half of the port by
    /// itself would be as many turns of the other.
    #[test]
    fn a_loan_is_no_longer_than_a_turn() {
        let mut spec = spec();
        spec.classes = [(0, 500_000_000), (1, 1_000_000)]
            .map(|(id, rate)| ClassSpec::plain(id, BitRate(rate), spec.rate))
            .map(|class| ClassSpec { burst: 200_000, ..class })
            .into();
        let mut global = Global::new(&spec, Nanos::ZERO);
        let member = global.join();
        let (mut now, mut lent, mut apart) = (Nanos::from_secs(1), [0i64; 2], 0);
        for round in 0..3_000 {
            if round == 1_000 {
                // By now their bursts are used up.
                lent = [0; 2];
            }
            now = now.saturating_add(20_000);
            global.advance(now);
            global.report(member, 0, 0);
            for leaf in [1, 2] {
                global.want(member, leaf, (100_000, 0), 1);
            }
            global.serve(member, 64_000);
            let mut fetched = VecDeque::new();
            global.collect(member, &mut fetched);
            for lease in fetched.iter().filter(|lease| lease.is_borrowed) {
                lent[lease.leaf as usize - 1] += i64::from(lease.bytes);
                apart = if round < 1_000 { 0 } else { apart.max((lent[0] - lent[1]).abs()) };
            }
        }
        assert!(lent[0] > 1_000_000 && apart <= 3_000, "{lent:?}, {apart} bytes apart");
    }
}
