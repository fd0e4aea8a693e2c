//! The program for tc (TCX, Linux 6.6), and the one at its companion's exit.
//!
//! Both are attached by links, which the kernel undoes when the process ends.

use std::error::Error;
use std::io;

use aya::Ebpf;
use aya::maps::{Array, MapData};
use aya::programs::tc::TcAttachOptions;
use aya::programs::{LinkOrder, Program, SchedClassifier, TcAttachType, Xdp, XdpMode};

use super::program::{PROGRAM_NAME, load_error, map_error, take};
use crate::nic::companion::Companion;
use crate::nic::error::NicError;

const EXIT_NAME: &str = "tidegate_exit";

pub(super) fn load(ebpf: &mut Ebpf) -> Result<(), NicError> {
    steering(ebpf)?.load().map_err(|e| load_error(&e))?;
    exit(ebpf)?.load().map_err(|e| load_error(&e))
}

/// Attaches both: the exit's first, so that all that is steered gets on.
pub(super) fn attach(
    ebpf: &mut Ebpf,
    interface: &str,
    companion: &Companion,
) -> Result<(), NicError> {
    let refused = |e: &(dyn Error + 'static)| {
        let source = NicError::os_error(e)
            .map_or_else(|| io::Error::other(e.to_string()), io::Error::from_raw_os_error);
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => {
                NicError::Privileges { what: format!("attaching a program for tc to {interface}") }
            }
            errno => {
                let large = errno == Some(libc::ERANGE);
                let hint = if large { " (its MTU is too large for a veth pair's XDP)" } else { "" };
                NicError::TcxRefused { interface: interface.to_owned(), hint, source }
            }
        }
    };
    let mut entry: Array<MapData, u32> = take(ebpf, "companion")?;
    entry.set(0, companion.entry, 0).map_err(|e| map_error("companion", &e))?;
    // Not in the generic hook, which passes over what was redirected to the entry.
    exit(ebpf)?.attach_to_if_index(companion.exit, XdpMode::Driver).map_err(|e| refused(&e))?;
    // Before others: what is not ours goes on to them.
    let first = TcAttachOptions::TcxOrder(LinkOrder::first());
    steering(ebpf)?
        .attach_with_options(interface, TcAttachType::Ingress, first)
        .map_err(|e| refused(&e))?;
    Ok(())
}

fn steering(ebpf: &mut Ebpf) -> Result<&mut SchedClassifier, NicError> {
    named(ebpf, PROGRAM_NAME)?.try_into().map_err(|e| load_error(&e))
}

fn exit(ebpf: &mut Ebpf) -> Result<&mut Xdp, NicError> {
    named(ebpf, EXIT_NAME)?.try_into().map_err(|e| load_error(&e))
}

fn named<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Program, NicError> {
    ebpf.program_mut(name).ok_or_else(|| NicError::Load(format!("no program {name}")))
}
