//! What a port got when it was opened, and how it stands.

use super::appliance::Appliance;
use crate::nic::PortMode;
use crate::nic::spec::PortSpec;

/// A port that is open.
pub(super) struct PortState {
    pub mode: PortMode,
    /// Its link, as last logged.
    pub up: bool,
    /// Another interface has its name, which was logged.
    pub replaced: bool,
    /// Whether flows are offloaded to it, as shown; `None` before it is known.
    pub offload: Option<String>,
}

impl PortState {
    pub(super) fn new(mode: PortMode) -> PortState {
        PortState { mode, up: true, replaced: false, offload: None }
    }

    /// Says what the port got: nothing falls back silently.
    pub(super) fn log(&self, port: &PortSpec) {
        let mode = &self.mode;
        tracing::info!(
            port = port.name,
            interface = mode.interface,
            driver = mode.driver,
            attach = self.attach_text(),
            copy = self.copy_text(),
            busy_poll = mode.busy_poll,
            queues = mode.queues,
            switched_off = ?mode.switched_off,
            "port open"
        );
        if let Some(reason) = &mode.native_refused {
            tracing::warn!(port = port.name, reason, "native XDP refused, generic in use");
        }
        if port.busy_poll.is_some() && !mode.busy_poll {
            tracing::warn!(port = port.name, "busy polling refused by the kernel");
        }
    }

    pub(super) fn attach_text(&self) -> &'static str {
        match &self.mode {
            mode if mode.companion.is_some() => "tc",
            mode if mode.native => "native",
            _ => "generic",
        }
    }

    pub(super) fn copy_text(&self) -> &'static str {
        if self.mode.zero_copy { "zero-copy" } else { "copy" }
    }
}

impl Appliance {
    /// The ports that there are, with their numbers.
    pub(super) fn open_ports_now(&self) -> impl Iterator<Item = (&PortSpec, &PortState)> {
        let ports = self.config.ports.iter().zip(&self.ports);
        let ports = ports.filter(|(spec, _)| !spec.is_vacant());
        ports.filter_map(|(spec, state)| Some((spec, state.as_ref()?)))
    }

    /// Says when a port's link goes or comes back.
    pub(super) fn log_links(&mut self) {
        let (feed, mirror) = (&self.feed, self.netlink.mirror());
        for (port, state) in self.config.ports.iter().zip(&mut self.ports) {
            let Some(state) = state.as_mut().filter(|_| !port.is_vacant()) else { continue };
            let at = usize::from(port.id.0);
            let link = feed.link(at, mirror);
            let up = link.is_some_and(|l| l.up && l.carrier);
            let gone = link.is_none();
            match (std::mem::replace(&mut state.up, up), up) {
                (true, false) => tracing::warn!(port = port.name, gone, "link down"),
                (false, true) => tracing::info!(port = port.name, "link up"),
                _ => {}
            }
            let replaced = feed.is_replaced(at, mirror);
            if !std::mem::replace(&mut state.replaced, replaced) && replaced {
                let (port, interface) = (&port.name, &port.interface);
                tracing::error!(port, interface, "another interface has this name now: reload");
            }
        }
    }
}
