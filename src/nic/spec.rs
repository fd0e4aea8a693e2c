//! What a port is asked to be. Built by `config`, read by the ports.

use crate::packet::PortId;

/// Ports of an appliance at most.
pub const PORTS_MAX: usize = 64;

/// How the program is attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttachMode {
    /// Native, then generic where the driver can't; the one got is reported.
    #[default]
    Auto,
    Native,
    Generic,
    /// No XDP program on the interface: behind the driver, at the beginning of traffic control
    /// (TCX, Linux 6.6), where merged packets are forwarded whole.
    Tc,
}

/// Whether the NIC reads and writes our frames itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CopyMode {
    /// Zero-copy, then copy; the one got is reported.
    #[default]
    Auto,
    ZeroCopy,
    Copy,
}

/// `SO_PREFER_BUSY_POLL` and its companions (Linux 5.11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusyPoll {
    /// `SO_BUSY_POLL`, microseconds.
    pub micros: u32,
    /// `SO_BUSY_POLL_BUDGET`, packets.
    pub budget: u32,
}

/// One interface of the appliance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSpec {
    pub id: PortId,
    /// The operator's name for it.
    pub name: String,
    /// The kernel's name for it.
    pub interface: String,
    pub attach: AttachMode,
    pub copy: CopyMode,
    /// Descriptors in the receive and in the fill ring; a power of two.
    pub rx_ring: u32,
    /// Descriptors in the transmit and in the completion ring; a power of two.
    pub tx_ring: u32,
    pub busy_poll: Option<BusyPoll>,
    /// Verify transport checksums on receive; partial ones are completed either way.
    pub verify_checksums: bool,
    /// The kernel's table of routes for transit packets that come in here; `None`: those that it
    /// asks by itself.
    pub table: Option<u32>,
}

impl PortSpec {
    /// A number that no port has now.
    pub fn vacant(id: PortId) -> PortSpec {
        PortSpec::in_memory(id, "")
    }

    /// Whether no port has this number.
    pub fn is_vacant(&self) -> bool {
        self.interface.is_empty()
    }

    /// A port in memory, for simulations: there is no interface to open.
    pub fn in_memory(id: PortId, name: impl Into<String>) -> PortSpec {
        let name = name.into();
        PortSpec {
            id,
            interface: name.clone(),
            name,
            attach: AttachMode::default(),
            copy: CopyMode::default(),
            rx_ring: 0,
            tx_ring: 0,
            busy_poll: None,
            verify_checksums: false,
            table: None,
        }
    }
}
