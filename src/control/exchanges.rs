//! Ports on their way to the workers and back: opened and closed here, which takes the kernel's
//! time, and exchanged by each worker between two turns.

use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc;
use std::thread::JoinHandle;

use super::appliance::{Appliance, blueprint};
use super::port_state::PortState;
use super::reload::ReloadError;
use crate::config::Config;
use crate::nic::spec::{AttachMode, PortSpec};
use crate::nic::steer::Loaded;
use crate::nic::xsk::{Delivery, XskPort};
use crate::nic::{NicError, OpenedPort};
use crate::packet::PortId;
use crate::worker::{Exchange, Frames, PortOrder, Side, emptying_room};

/// What is under way between control and workers.
#[derive(Default)]
pub(super) struct Exchanges {
    /// By worker and port: what has packets delivered once the worker has the port; `None` where it
    /// goes.
    awaited: BTreeMap<(u16, PortId), Option<Delivery>>,
    /// By worker: ports that are being closed, and the frames that they held.
    closing: Vec<(u16, JoinHandle<Frames>)>,
    /// By worker: frames of ports that are closed.
    closed: Vec<(u16, Frames)>,
}

impl Exchanges {
    /// Whether all ports are where they should be, and all frames.
    pub(super) fn is_idle(&self) -> bool {
        self.awaited.is_empty() && self.closing.is_empty() && self.closed.is_empty()
    }
}

/// Programs for ports to come, in no order.
pub(super) type Programs = Vec<Loaded>;
/// All that were asked for, or why the kernel refuses one.
pub(super) type Loading = JoinHandle<Result<Programs, NicError>>;

/// A port that was opened and is with no worker yet.
pub(super) struct Opened {
    spec: PortSpec,
    port: OpenedPort,
}

impl Appliance {
    /// Sees what can be seen of ports before anything is changed: those that come beside those that
    /// stay.
    ///
    /// # Errors
    /// Which port can't be had, and why.
    pub(super) fn check_ports(
        &self,
        wanted: &Config,
        opening: impl Iterator<Item = PortId> + Clone,
    ) -> Result<(), ReloadError> {
        let mut rings = Vec::new();
        for port in wanted.ports.iter().filter(|p| !opening.clone().any(|id| id == p.id)) {
            let state = self.ports.get(usize::from(port.id.0)).and_then(Option::as_ref);
            rings.extend(state.map(|state| (port.rx_ring, state.mode.queues)));
        }
        for id in opening {
            let Some(spec) = wanted.ports.get(usize::from(id.0)) else { continue };
            let queues = self
                .opener
                .check(spec, rings.iter().copied(), &wanted.workers)
                .map_err(|source| refused(spec, source))?;
            rings.push((spec.rx_ring, queues));
        }
        Ok(())
    }

    /// Has the kernel check programs that are to be attached so, on a thread: it takes up to
    /// seconds, and many on a machine that is busy.
    pub(super) fn load_programs(&self, of: Vec<AttachMode>) -> io::Result<Loading> {
        let offload = self.steering.steer().offloads();
        let load = move || of.into_iter().map(|mode| Loaded::load(mode, offload)).collect();
        std::thread::Builder::new().name("programs".into()).spawn(load)
    }

    /// Opens ports, each with one of the programs; all or none.
    ///
    /// # Errors
    /// Which one can't be opened, and why.
    pub(super) fn open_ports(
        &mut self,
        wanted: &Config,
        ids: &[PortId],
        programs: &mut Programs,
    ) -> Result<Vec<Opened>, ReloadError> {
        let mut opened = Vec::with_capacity(ids.len());
        for spec in ids.iter().filter_map(|id| wanted.ports.get(usize::from(id.0))) {
            let on = (self.steering.steer_mut(), &mut self.changes);
            let at = programs.iter().position(|program| program.suits(spec.attach));
            let none = || NicError::Load("none was loaded for it".to_owned());
            let loaded = at.map(|at| programs.swap_remove(at)).ok_or_else(none);
            let port = loaded.and_then(|l| self.opener.open(spec, &wanted.workers, l, on));
            match port {
                Ok(port) => opened.push(Opened { spec: spec.clone(), port }),
                Err(source) => {
                    self.close_opened(opened);
                    return Err(refused(spec, source));
                }
            }
        }
        Ok(opened)
    }

    /// Closes ports that no worker has had.
    pub(super) fn close_opened(&mut self, opened: Vec<Opened>) {
        for Opened { spec, port } in opened {
            self.detach(spec.id);
            drop(port);
            self.changes.restore(&spec.interface);
        }
    }

    /// Has the kernel take what comes by a port's interface from now on.
    pub(super) fn detach(&mut self, id: PortId) {
        if let Err(error) = self.steering.steer_mut().detach(id) {
            tracing::warn!(port = id.0, %error, "the XDP programs may still send there");
        }
    }

    /// Gives ports to the workers, made by `config`, which has them.
    pub(super) fn hand_over(&mut self, config: &Config, opened: Vec<Opened>) {
        let slots = self.steering.steer().offload_slots();
        for Opened { spec, port: OpenedPort { mode, ports } } in by_number(opened) {
            let at = usize::from(spec.id.0);
            if self.ports.len() <= at {
                self.ports.resize_with(at + 1, || None);
            }
            let state = PortState::new(mode);
            state.log(&spec);
            self.ports[at] = Some(state);
            let blueprint = blueprint(config, &self.snapshot);
            for (seat, port) in self.crew.seats.iter_mut().zip(ports) {
                let delivery = port.delivery();
                let side = Some(blueprint.side(at, port));
                let (room, slots) = (emptying_room(), slots.clone());
                let exchange = Exchange { id: spec.id, side, slots, room };
                seat.exchange([PortOrder::Exchange(Box::new(exchange))]);
                self.exchanges.awaited.insert((seat.id, spec.id), Some(delivery));
            }
        }
    }

    /// Asks the workers for ports that are detached. They drop what waits for them.
    pub(super) fn take_back(&mut self, ids: &[PortId]) {
        let slots = self.steering.steer().offload_slots();
        for seat in &mut self.crew.seats {
            let order = |&id: &PortId| {
                let side = Some(Side::vacant(self.opener.vacant(id)));
                let exchange = Exchange { id, side, slots: slots.clone(), room: emptying_room() };
                PortOrder::Exchange(Box::new(exchange))
            };
            seat.exchange(ids.iter().map(order));
            self.exchanges.awaited.extend(ids.iter().map(|id| ((seat.id, *id), None)));
        }
    }

    /// Ports that workers have given back are closed.
    pub(super) fn forget_ports(&mut self, specs: &[PortSpec]) {
        for spec in specs {
            self.changes.restore(&spec.interface);
            if let Some(state) = self.ports.get_mut(usize::from(spec.id.0)) {
                *state = None;
            }
            tracing::info!(port = spec.name, interface = spec.interface, "port closed");
        }
    }

    /// Takes in what workers have done, and has frames of closed ports go back to them.
    pub(super) fn poll_exchanges(&mut self) {
        for seat in &self.crew.seats {
            while let Some(done) = seat.exchanged() {
                if let PortOrder::Exchange(exchange) = done {
                    self.exchanges.exchanged(seat.id, *exchange);
                }
            }
        }
        for (worker, thread) in self.exchanges.closing.extract_if(.., |c| c.1.is_finished()) {
            match thread.join() {
                Ok(frames) => self.exchanges.closed.push((worker, frames)),
                Err(_) => {
                    tracing::error!(worker, "a port was not closed in order: its frames are lost");
                }
            }
        }
        for (worker, frames) in self.exchanges.closed.drain(..) {
            if let Some(seat) = self.crew.seats.iter_mut().find(|s| s.id == worker) {
                seat.exchange([PortOrder::Frames(frames)]);
            }
        }
    }
}

impl Exchanges {
    fn exchanged(&mut self, worker: u16, exchange: Exchange<XskPort>) {
        if let Some(Some(delivery)) = self.awaited.remove(&(worker, exchange.id))
            && let Err(error) = delivery.start()
        {
            tracing::error!(port = exchange.id.0, %error, "no packets are delivered to it");
        }
        let Some(side) = exchange.side else { return };
        // The kernel lets sockets go only when nobody can be looking at them any more.
        let spawn = |job| std::thread::Builder::new().name("closing".into()).spawn(job);
        match aside(side.port, |port| Frames(port.into_frames()), spawn) {
            Ok(thread) => self.closing.push((worker, thread)),
            Err(frames) => self.closed.push((worker, frames)),
        }
    }
}

type Job<R> = Box<dyn FnOnce() -> R + Send>;

/// Does something with `item` on a thread of its own; right here, where there is none to be had.
fn aside<T: Send + 'static, R: Send + Default + 'static>(
    item: T,
    work: fn(T) -> R,
    spawn: impl FnOnce(Job<R>) -> io::Result<JoinHandle<R>>,
) -> Result<JoinHandle<R>, R> {
    let (give, given) = mpsc::sync_channel(1);
    match spawn(Box::new(move || given.recv().map(work).unwrap_or_default())) {
        Ok(thread) => {
            // It waits for nothing else.
            let _ = give.send(item);
            Ok(thread)
        }
        Err(error) => {
            tracing::warn!(%error, "no thread to close a port: all else waits for it");
            Err(work(item))
        }
    }
}

/// In the order of their numbers: a worker has no gaps, so new numbers have to come one by one.
fn by_number(mut opened: Vec<Opened>) -> Vec<Opened> {
    opened.sort_by_key(|opened| opened.spec.id);
    opened
}

fn refused(spec: &PortSpec, source: NicError) -> ReloadError {
    ReloadError::Port { port: spec.name.clone(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::port_plan::{PortPlan, keep_port_numbers};
    use crate::nic::PortMode;

    fn load(ports: &[(&str, &str)]) -> Config {
        let port = |(name, interface): &(&str, &str)| {
            format!("[port.{name}]\ninterface = \"{interface}\"\n")
        };
        let ports: String = ports.iter().map(port).collect();
        let text =
            format!("pipeline = \"l4-balancer\"\n{ports}[transit]\nprefixes = [\"10.0.0.0/8\"]\n");
        crate::config::load_text(std::path::Path::new("t.toml"), &text).expect("a good file")
    }

    fn opened(spec: &PortSpec) -> Opened {
        let mode = PortMode {
            port: spec.id,
            interface: spec.interface.clone(),
            driver: String::new(),
            native: false,
            native_refused: None,
            companion: None,
            zero_copy: false,
            busy_poll: false,
            queues: 1,
            tx_batch: 1,
            switched_off: Vec::new(),
        };
        Opened { spec: spec.clone(), port: OpenedPort { mode, ports: Vec::new() } }
    }

    #[test]
    fn what_no_thread_does_is_done_all_the_same() {
        let double = |n: u64| 2 * n;
        let thread = aside(21, double, |job| std::thread::Builder::new().spawn(job));
        assert_eq!(thread.map(|thread| thread.join().expect("no panic")).ok(), Some(42));
        let refused = |_| Err(io::Error::from(io::ErrorKind::WouldBlock));
        assert_eq!(aside(21, double, refused).err(), Some(42));
    }

    /// One port gets another name, so that it comes last; a new one has a higher number.
    #[test]
    fn ports_are_handed_over_in_the_order_of_their_numbers() {
        let running = load(&[("a", "e0"), ("b", "e1")]);
        let mut wanted = load(&[("a", "e0"), ("c", "e1"), ("d", "e9")]);
        keep_port_numbers(&running, &mut wanted).expect("room");
        let plan = PortPlan::of(&running, &wanted, |_| false);
        let as_opened: Vec<_> = plan.opening().collect();
        assert_eq!(as_opened, [PortId(3), PortId(2)], "the case that is meant");
        let all = as_opened.iter().map(|id| opened(&wanted.ports[usize::from(id.0)])).collect();
        let ids: Vec<_> = by_number(all).iter().map(|opened| opened.spec.id).collect();
        assert_eq!(ids, [PortId(2), PortId(3)]);
    }
}
