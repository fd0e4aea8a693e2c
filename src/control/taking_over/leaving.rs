//! Ports on their way to their ends, and those that come in their places or come back.

use std::time::Duration;

use super::Pending;
use super::handing_out::Taking;
use crate::base::Nanos;
use crate::config::Config;
use crate::control::exchanges::Programs;
use crate::control::reload::ReloadError;
use crate::control::run::Control;
use crate::nic::spec::PortSpec;

/// Packets that a port's sockets have when it is detached are given this long.
const RINGS_EMPTY_WITHIN: Duration = Duration::from_millis(20);

/// Ports that are detached, and go to their ends.
pub(super) struct Leaving {
    ports: Vec<PortSpec>,
    /// What was on its way when they were detached is taken in until then; `None`: they are asked
    /// for.
    not_before: Option<Nanos>,
}

impl Leaving {
    pub(super) fn ports(&self) -> &[PortSpec] {
        &self.ports
    }
}

impl Control {
    /// Detaches ports.
    pub(super) fn leave(&mut self, ports: Vec<PortSpec>) -> Leaving {
        let a = &mut self.appliance;
        ports.iter().for_each(|port| a.detach(port.id));
        Leaving { ports, not_before: Some(a.clock.now() + RINGS_EMPTY_WITHIN) }
    }

    /// Asks for ports when what was on its way to them has come; whether all are closed.
    pub(super) fn has_left(&mut self, leaving: &mut Leaving) -> bool {
        let a = &mut self.appliance;
        if leaving.ports.is_empty() {
            return true;
        }
        match leaving.not_before {
            Some(at) if a.clock.now() < at => false,
            Some(_) => {
                leaving.not_before = None;
                let ids: Vec<_> = leaving.ports.iter().map(|port| port.id).collect();
                a.take_back(&ids);
                false
            }
            None => a.exchanges.is_idle(),
        }
    }

    /// Opens what has taken the place of those that went, and hands everything out. If that fails,
    /// those come back.
    pub(super) fn cleared(
        &mut self,
        gone: Leaving,
        mut pending: Pending,
    ) -> Result<Taking, ReloadError> {
        let a = &mut self.appliance;
        a.forget_ports(&gone.ports);
        let before = a.config.clone();
        for port in &gone.ports {
            a.config.ports[usize::from(port.id.0)] = PortSpec::vacant(port.id);
        }
        let mut programs = std::mem::take(&mut pending.programs);
        let ids = std::mem::take(&mut pending.plan.open_then);
        let taking = match a.open_ports(&pending.wanted, &ids, &mut programs) {
            Ok(opened) => {
                pending.opened.extend(opened);
                pending.plan.open_then = ids;
                self.hand_out(pending)
            }
            Err(error) => {
                a.close_opened(pending.opened);
                Err(error)
            }
        };
        taking.inspect_err(|_| self.reopen(&before, &gone.ports, programs))
    }

    /// What was to make room is gone, too late: it comes back.
    pub(super) fn returned(&mut self, gone: &Leaving, programs: Programs) {
        let a = &mut self.appliance;
        a.forget_ports(&gone.ports);
        let before = a.config.clone();
        self.reopen(&before, &gone.ports, programs);
    }

    /// Opens ports that were closed for others, by the configuration that has them. What can't be
    /// opened is none of the running configuration's any more: a reload tries again.
    fn reopen(&mut self, before: &Config, ports: &[PortSpec], mut programs: Programs) {
        let a = &mut self.appliance;
        for port in ports {
            let at = usize::from(port.id.0);
            match a.open_ports(before, &[port.id], &mut programs) {
                Ok(opened) => {
                    a.config.ports[at] = port.clone();
                    a.hand_over(before, opened);
                }
                Err(error) => {
                    a.config.ports[at] = PortSpec::vacant(port.id);
                    tracing::error!("it was closed, and can't be opened: {error}");
                }
            }
        }
        // By the interfaces that have these names now.
        let opened = |id| ports.iter().any(|port| port.id == id);
        a.feed.set_ports(&a.config.ports, a.netlink.mirror(), opened);
        a.reroute();
        a.refresh_offload();
    }
}
