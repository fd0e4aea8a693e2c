//! What ethtool does, by `SIOCETHTOOL` (`linux/ethtool.h`): offloads, queues, the driver's name.
//!
//! Works on the interfaces of the calling thread's network namespace.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use serde::{Deserialize, Serialize};

const SIOCETHTOOL: libc::c_ulong = 0x8946;
const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETHTOOL_SFLAGS: u32 = 0x26;
const ETHTOOL_GCHANNELS: u32 = 0x3c;
const ETHTOOL_SCHANNELS: u32 = 0x3d;
const ETH_FLAG_LRO: u32 = 1 << 15;

/// Something a NIC or the kernel does to packets on their way, which can be switched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Offload {
    RxChecksum,
    TxChecksum,
    Tso,
    Gso,
    /// Joins received segments: hides packets from XDP.
    Gro,
    /// As GRO, by the NIC.
    Lro,
}

impl Offload {
    /// Those that change what an AF_XDP socket sees of received packets.
    pub const RECEIVE_MERGES: [Offload; 2] = [Offload::Gro, Offload::Lro];
    /// All: a link without any behaves like a wire, which lab links should.
    pub const ALL: [Offload; 6] = [
        Offload::RxChecksum,
        Offload::TxChecksum,
        Offload::Tso,
        Offload::Gso,
        Offload::Gro,
        Offload::Lro,
    ];

    /// The commands that read and write it.
    fn commands(self) -> (u32, u32) {
        match self {
            Offload::RxChecksum => (0x14, 0x15),
            Offload::TxChecksum => (0x16, 0x17),
            Offload::Tso => (0x1e, 0x1f),
            Offload::Gso => (0x23, 0x24),
            Offload::Gro => (0x2b, 0x2c),
            Offload::Lro => (ETHTOOL_GFLAGS, ETHTOOL_SFLAGS),
        }
    }
}

impl fmt::Display for Offload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Offload::RxChecksum => "rx",
            Offload::TxChecksum => "tx",
            Offload::Tso => "tso",
            Offload::Gso => "gso",
            Offload::Gro => "gro",
            Offload::Lro => "lro",
        })
    }
}

/// Queue counts of an interface (`struct ethtool_channels`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Channels {
    pub rx: u32,
    pub tx: u32,
    pub combined: u32,
    pub rx_max: u32,
    pub tx_max: u32,
    pub combined_max: u32,
}

impl Channels {
    /// Receive queues that packets arrive on.
    pub fn receive(&self) -> u32 {
        self.rx + self.combined
    }

    pub fn transmit(&self) -> u32 {
        self.tx + self.combined
    }

    /// The command that gives an interface `n` queues of each kind.
    pub fn command(&self, interface: &str, n: u32) -> String {
        if self.combined_max == 0 && self.rx_max > 0 {
            format!("ethtool -L {interface} rx {n} tx {n}")
        } else {
            format!("ethtool -L {interface} combined {n}")
        }
    }
}

#[repr(C)]
struct Value {
    cmd: u32,
    data: u32,
}

#[repr(C)]
#[derive(Default)]
struct ChannelsArg {
    cmd: u32,
    rx_max: u32,
    tx_max: u32,
    other_max: u32,
    combined_max: u32,
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

#[repr(C)]
struct DriverArg {
    cmd: u32,
    driver: [u8; 32],
    version: [u8; 32],
    firmware: [u8; 32],
    bus: [u8; 32],
    rom: [u8; 32],
    reserved: [u8; 12],
    flags: u32,
    stats: u32,
    tests: u32,
    eeprom: u32,
    registers: u32,
}

/// A handle for asking about the interfaces of one namespace.
#[derive(Debug)]
pub struct Ethtool {
    fd: OwnedFd,
}

impl Ethtool {
    /// # Errors
    /// No socket to be had.
    pub fn open() -> io::Result<Ethtool> {
        let fd = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        Ok(Ethtool { fd })
    }

    /// Whether an offload is on; `None` where the interface doesn't know it.
    ///
    /// # Errors
    /// No such interface.
    pub fn offload(&self, interface: &str, offload: Offload) -> io::Result<Option<bool>> {
        let mut value = Value { cmd: offload.commands().0, data: 0 };
        if !self.supported(interface, &mut value)? {
            return Ok(None);
        }
        Ok(Some(match offload {
            Offload::Lro => value.data & ETH_FLAG_LRO != 0,
            _ => value.data != 0,
        }))
    }

    /// Switches an offload.
    ///
    /// # Errors
    /// No such interface, no privileges, or an offload that can't be switched.
    pub fn set_offload(&self, interface: &str, offload: Offload, on: bool) -> io::Result<()> {
        let (get, set) = offload.commands();
        let mut value = Value { cmd: set, data: u32::from(on) };
        if offload == Offload::Lro {
            let mut flags = Value { cmd: get, data: 0 };
            self.call(interface, &mut flags)?;
            let others = flags.data & !ETH_FLAG_LRO;
            value.data = if on { others | ETH_FLAG_LRO } else { others };
        }
        self.call(interface, &mut value)
    }

    /// Switches off those of `offloads` that are on, and returns which those were.
    ///
    /// # Errors
    /// As [`Ethtool::set_offload`]; those switched before the error stay off.
    pub fn switch_off(&self, interface: &str, offloads: &[Offload]) -> io::Result<Vec<Offload>> {
        let mut switched = Vec::new();
        for &offload in offloads {
            if self.offload(interface, offload)? == Some(true) {
                self.set_offload(interface, offload, false)?;
                switched.push(offload);
            }
        }
        Ok(switched)
    }

    /// Queue counts; one combined queue where the driver doesn't say.
    ///
    /// # Errors
    /// No such interface.
    pub fn channels(&self, interface: &str) -> io::Result<Channels> {
        let mut arg = ChannelsArg { cmd: ETHTOOL_GCHANNELS, ..ChannelsArg::default() };
        if !self.supported(interface, &mut arg)? {
            return Ok(Channels { combined: 1, combined_max: 1, ..Channels::default() });
        }
        Ok(Channels {
            rx: arg.rx,
            tx: arg.tx,
            combined: arg.combined,
            rx_max: arg.rx_max,
            tx_max: arg.tx_max,
            combined_max: arg.combined_max,
        })
    }

    /// Sets the queue counts, as `ethtool -L` does.
    ///
    /// # Errors
    /// No such interface, no privileges, counts beyond the maximum.
    pub fn set_channels(&self, interface: &str, n: u32) -> io::Result<()> {
        let mut arg = ChannelsArg { cmd: ETHTOOL_GCHANNELS, ..ChannelsArg::default() };
        self.call(interface, &mut arg)?;
        arg.cmd = ETHTOOL_SCHANNELS;
        if arg.combined_max > 0 {
            arg.combined = n;
        } else {
            (arg.rx, arg.tx) = (n, n);
        }
        self.call(interface, &mut arg)
    }

    /// The driver's name, such as `veth` or `mlx5_core`; empty where it has none.
    ///
    /// # Errors
    /// No such interface.
    pub fn driver(&self, interface: &str) -> io::Result<String> {
        let mut arg = DriverArg {
            cmd: ETHTOOL_GDRVINFO,
            driver: [0; 32],
            version: [0; 32],
            firmware: [0; 32],
            bus: [0; 32],
            rom: [0; 32],
            reserved: [0; 12],
            flags: 0,
            stats: 0,
            tests: 0,
            eeprom: 0,
            registers: 0,
        };
        if !self.supported(interface, &mut arg)? {
            return Ok(String::new());
        }
        let name = arg.driver.split(|&b| b == 0).next().unwrap_or_default();
        Ok(String::from_utf8_lossy(name).into_owned())
    }

    /// `false` where the driver lacks the command.
    fn supported<T>(&self, interface: &str, arg: &mut T) -> io::Result<bool> {
        match self.call(interface, arg) {
            Ok(()) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// `T` is one of the structs above, whose first field is the command.
    fn call<T>(&self, interface: &str, arg: &mut T) -> io::Result<()> {
        let bytes = interface.as_bytes();
        if bytes.is_empty() || bytes.len() >= libc::IFNAMSIZ || bytes.contains(&0) {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        // SAFETY: all zeroes is a valid ifreq.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, &from) in request.ifr_name.iter_mut().zip(bytes) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_data = std::ptr::from_mut(arg).cast();
        // SAFETY: `arg` has the size that its command reads and writes (`linux/ethtool.h`), and
        // outlives the call.
        let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), SIOCETHTOOL, &mut request) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

const _: () = assert!(size_of::<ChannelsArg>() == 36 && size_of::<DriverArg>() == 196);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_answers() {
        let ethtool = Ethtool::open().expect("socket");
        assert_eq!(ethtool.channels("lo").expect("lo").receive(), 1);
        assert!(ethtool.offload("lo", Offload::Gro).expect("lo").is_some());
        let e = ethtool.channels("no-such-if").expect_err("absent");
        assert_eq!(e.raw_os_error(), Some(libc::ENODEV));
        assert!(ethtool.channels("a-name-that-is-too-long").is_err());
    }

    #[test]
    fn the_command_fits_the_driver() {
        let veth = Channels { rx: 1, tx: 1, rx_max: 8, tx_max: 8, ..Channels::default() };
        assert_eq!(veth.command("v0", 2), "ethtool -L v0 rx 2 tx 2");
        let nic = Channels { combined: 1, combined_max: 8, ..Channels::default() };
        assert_eq!(nic.command("eth0", 4), "ethtool -L eth0 combined 4");
    }
}
