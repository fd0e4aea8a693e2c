//! The receiving end: counts what arrives, and looks closely at a sample.

use std::fs;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
};
use tidegate::base::Seed;
use tidegate::lab::{Namespace, wait_for};
use tidegate::packet::{PacketMeta, ParseOptions, parse};

use crate::bed::{
    Amount, BACKEND_PORT, BACKENDS, Bed, CLIENTS, NAT, SINK_MAC, Traffic, VIP, VIP_PORT,
};

/// Packets looked at.
const SAMPLE: u64 = 200;
const UDP: u8 = 17;
const IPV4: [u8; 2] = [8, 0];

/// What receives. It does so in the sender's softirq, as veth does by default: on the core of who
/// sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Sink {
    /// An XDP program that drops what comes: for XDP frames the nearest to a wire, and for the
    /// kernel cheaper than the others. Socket buffers of AF_XDP are copied to a page first.
    Xdp,
    /// The kernel's stack, behind GRO.
    Gro,
    /// The kernel's stack. Such a device takes no frames of XDP programs.
    Plain,
}

impl Sink {
    pub fn takes_xdp_frames(self) -> bool {
        self != Sink::Plain
    }

    /// Has the device be as it is to be, but what it gets still reaches the stack.
    ///
    /// # Errors
    /// As `ethtool` says.
    pub fn open(self, bed: &Bed) -> anyhow::Result<()> {
        if self.takes_xdp_frames() {
            bed.sink.run("ethtool", &["-K", "s0", "gro", "on"])?;
        }
        Ok(())
    }

    /// Nothing needs to reach the stack any more.
    ///
    /// # Errors
    /// As `clang` and `ip` say.
    pub fn close(self, bed: &Bed) -> anyhow::Result<()> {
        if self == Sink::Xdp {
            let dir = tempfile::tempdir()?;
            let (source, object) = (dir.path().join("sink.c"), dir.path().join("sink.o"));
            fs::write(&source, include_str!("sink.c"))?;
            let (source, object) = (source.display(), object.display());
            let include = format!("-I/usr/include/{}-linux-gnu", std::env::consts::ARCH);
            let compile = format!("clang -target bpf -O2 -g {include} -c {source} -o {object}");
            bed.sink.run("sh", &["-c", &compile])?;
            bed.sink.ip(&format!("link set dev s0 xdpdrv obj {object} sec xdp"))?;
        }
        Ok(())
    }
}

/// What a forwarder is to do with the addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Translation {
    None,
    /// The destination becomes a backend's.
    Destination,
    /// The source becomes ours, too.
    Full,
}

/// Packets that the sink has received.
///
/// # Errors
/// `/proc` not telling.
pub fn received(ns: &Namespace) -> anyhow::Result<u64> {
    let text = ns.enter(|| fs::read_to_string("/proc/thread-self/net/dev"))?;
    let text = text.context("/proc/thread-self/net/dev")?;
    let numbers = text.lines().find_map(|l| l.trim().strip_prefix("s0:"));
    let packets = numbers.and_then(|n| n.split_whitespace().nth(1)?.parse().ok());
    packets.context("no s0 in the sink's namespace")
}

/// Sends a few packets of this traffic and sees that each arrives as it should: to the sink's MAC
/// address, translated, with correct checksums.
///
/// # Errors
/// What is wrong with a packet, or that too few have come.
pub fn verify(bed: &Bed, traffic: Traffic, translation: Translation) -> anyhow::Result<()> {
    let tap = bed.sink.enter(open_tap)?.context("a packet socket")?;
    let sending = bed.send(traffic, Amount::Packets(SAMPLE))?;
    let mut bytes = vec![0; 2_048];
    let (mut seen, mut wrong) = (0, None);
    let mut read = || {
        loop {
            match recv(tap.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
                // Neighbour discovery goes its own ways.
                Ok(n) if bytes[..n].get(12..14) != Some(&IPV4) => {}
                Ok(n) => match check(&bytes[..n], traffic, translation) {
                    Ok(()) => seen += 1,
                    Err(e) => wrong = Some(e),
                },
                Err(Errno::EAGAIN | Errno::EINTR) => break,
                Err(e) => {
                    wrong = Some(e.into());
                    break;
                }
            }
        }
        wrong.is_some() || seen >= SAMPLE
    };
    let waited = wait_for(Duration::from_secs(5), "the sample", &mut read);
    sending.finish()?;
    if let Some(e) = wrong {
        return Err(e.context(format!("a packet at the sink, of {traffic:?}")));
    }
    ensure!(waited.is_ok(), "of {SAMPLE} packets of {traffic:?} only {seen} came to the sink");
    Ok(())
}

fn open_tap() -> nix::Result<std::os::fd::OwnedFd> {
    const ROOM: usize = 4 << 20;
    let protocol = SockProtocol::EthAll;
    let tap = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    setsockopt(&tap, sockopt::RcvBufForce, &ROOM)?;
    Ok(tap)
}

fn check(bytes: &[u8], traffic: Traffic, translation: Translation) -> anyhow::Result<()> {
    ensure!(bytes.len() + 4 == usize::from(traffic.size), "{} B long", bytes.len());
    ensure!(bytes.starts_with(&SINK_MAC), "to MAC address {:02x?}", &bytes[..6]);
    let mut meta = PacketMeta::default();
    let opts = ParseOptions { verify_transport_checksum: true };
    if let Err(reason) = parse(bytes, Seed(0), opts, &mut meta) {
        bail!("malformed: {reason:?}");
    }
    let key = meta.key;
    let (src, dst) = (key.src.to_ip(), key.dst.to_ip());
    let from_client = matches!(src, IpAddr::V4(a) if a.octets().starts_with(&CLIENTS));
    let to_backend = key.dport == BACKEND_PORT && BACKENDS.iter().any(|b| dst.to_string() == *b);
    let to_vip = key.dport == VIP_PORT && dst == IpAddr::V4(VIP);
    let as_wanted = match translation {
        Translation::None => from_client && to_vip,
        Translation::Destination => from_client && to_backend,
        Translation::Full => src == IpAddr::V4(NAT) && to_backend,
    };
    ensure!(key.proto == UDP && as_wanted, "{key:?}, with translation {translation:?} wanted");
    Ok(())
}
