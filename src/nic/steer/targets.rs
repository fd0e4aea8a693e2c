//! By which interfaces a program may send what it forwards.

use aya::Ebpf;
use aya::maps::{Array, DevMap, MapData};

use super::program::{map_error, take};
use crate::nic::error::NicError;

const MAP: &str = "offload_ports";

/// An interface that is a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) index: u32,
    /// From XDP programs of other devices, too.
    pub(super) takes_frames: bool,
}

/// The interfaces of one program, by port.
pub(super) enum Targets {
    Xdp(DevMap<MapData>),
    /// Sends as the kernel does, by any interface.
    Tc(Array<MapData, u32>),
}

impl Targets {
    pub(super) fn take(ebpf: &mut Ebpf, is_tc: bool) -> Result<Targets, NicError> {
        Ok(match is_tc {
            true => Targets::Tc(take(ebpf, MAP)?),
            false => Targets::Xdp(take(ebpf, MAP)?),
        })
    }

    pub(super) fn reaches(&self, target: Target) -> bool {
        target.takes_frames || matches!(self, Targets::Tc(_))
    }

    pub(super) fn set(&mut self, port: u32, to: Option<Target>) -> Result<(), NicError> {
        let index = to.filter(|&to| self.reaches(to)).map_or(0, |to| to.index);
        match self {
            Targets::Xdp(map) => map.set(port, index, None, 0).map_err(|e| map_error(MAP, &e)),
            Targets::Tc(map) => map.set(port, index, 0).map_err(|e| map_error(MAP, &e)),
        }
    }
}
