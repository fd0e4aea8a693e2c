//! XDP programs on links as rtnetlink sees them: who is attached, and attaching for longer than the
//! process lives.
//!
//! Attaching normally goes by `bpf_link`, which the kernel undoes when the process ends. With
//! `on_failure = "drop"` the program must stay and drop our traffic after a crash: that takes the
//! older attachment over netlink (`IFLA_XDP`, `linux/if_link.h`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

use super::spec::AttachMode;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWQDISC: u16 = 36;
const TC_H_ROOT: u32 = u32::MAX;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_IFALIAS: u16 = 20;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
const IFLA_NUM_TX_QUEUES: u16 = 31;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_FD: u16 = 1;
const IFLA_XDP_FLAGS: u16 = 3;
const IFLA_XDP_PROG_ID: u16 = 4;
const IFLA_XDP_DRV_PROG_ID: u16 = 5;
const IFLA_XDP_SKB_PROG_ID: u16 = 6;
const XDP_FLAGS_UPDATE_IF_NOEXIST: u32 = 1;
const XDP_FLAGS_SKB_MODE: u32 = 2;
const XDP_FLAGS_DRV_MODE: u32 = 4;
/// Bytes of `nlmsghdr` and of `ifinfomsg`.
const HEADERS: usize = 32;
const IFINFOMSG: usize = 16;
/// A link's description with hundreds of virtual functions fits.
const REPLY_MAX: usize = 64 * 1024;

/// Index of an interface of this thread's network namespace.
pub fn index_of(interface: &str) -> io::Result<u32> {
    nix::net::if_::if_nametoindex(interface).map_err(io::Error::from)
}

/// The MAC address of a link.
///
/// # Errors
/// The link's absence, or one without an Ethernet address.
pub fn mac_of(index: u32) -> io::Result<[u8; 6]> {
    let reply = request(RTM_GETLINK, index, &[])?;
    let address = attribute(reply.get(HEADERS..).unwrap_or_default(), IFLA_ADDRESS);
    address.and_then(|a| a.try_into().ok()).ok_or(io::ErrorKind::InvalidData.into())
}

/// The largest IP packet of a link, bytes.
///
/// # Errors
/// The link's absence, or netlink failing.
pub fn mtu_of(index: u32) -> io::Result<u32> {
    let reply = request(RTM_GETLINK, index, &[])?;
    let mtu = attribute(reply.get(HEADERS..).unwrap_or_default(), IFLA_MTU);
    let mtu = mtu.and_then(|m| m.first_chunk::<4>().copied());
    mtu.map(u32::from_ne_bytes).ok_or(io::ErrorKind::InvalidData.into())
}

/// The id of the XDP program attached to a link, whatever its mode.
///
/// # Errors
/// The link's absence, or netlink failing.
pub fn xdp_program_id(index: u32) -> io::Result<Option<u32>> {
    let reply = request(RTM_GETLINK, index, &[])?;
    let xdp = attribute(reply.get(HEADERS..).unwrap_or_default(), IFLA_XDP);
    let Some(xdp) = xdp else { return Ok(None) };
    let id = [IFLA_XDP_PROG_ID, IFLA_XDP_DRV_PROG_ID, IFLA_XDP_SKB_PROG_ID]
        .into_iter()
        .find_map(|kind| attribute(xdp, kind)?.first_chunk::<4>().copied());
    Ok(id.map(u32::from_ne_bytes).filter(|&id| id != 0))
}

/// What somebody has written to a link's alias.
///
/// # Errors
/// The link's absence, or netlink failing.
pub(super) fn alias_of(index: u32) -> io::Result<Option<String>> {
    let reply = request(RTM_GETLINK, index, &[])?;
    let alias = attribute(reply.get(HEADERS..).unwrap_or_default(), IFLA_IFALIAS);
    Ok(alias.map(|a| String::from_utf8_lossy(a).trim_end_matches('\0').to_owned()))
}

/// Makes a veth pair with so many queues of each kind at both ends; down.
///
/// # Errors
/// A link of one of the names being there (`EEXIST`), or the kernel refusing it.
pub(super) fn create_veth(name: &str, peer: &str, queues: u32, mtu: u32) -> io::Result<()> {
    let end = |out: &mut Vec<u8>, name: &str| {
        put_attribute(out, IFLA_IFNAME, &[name.as_bytes(), b"\0"].concat());
        put_attribute(out, IFLA_MTU, &mtu.to_ne_bytes());
        put_attribute(out, IFLA_NUM_TX_QUEUES, &queues.to_ne_bytes());
        put_attribute(out, IFLA_NUM_RX_QUEUES, &queues.to_ne_bytes());
    };
    let mut other = vec![0; IFINFOMSG];
    end(&mut other, peer);
    let mut data = Vec::new();
    put_attribute(&mut data, VETH_INFO_PEER | NLA_F_NESTED, &other);
    let mut info = Vec::new();
    put_attribute(&mut info, IFLA_INFO_KIND, b"veth");
    put_attribute(&mut info, IFLA_INFO_DATA | NLA_F_NESTED, &data);
    let mut attributes = Vec::new();
    end(&mut attributes, name);
    put_attribute(&mut attributes, IFLA_LINKINFO | NLA_F_NESTED, &info);
    let how = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    request_with(RTM_NEWLINK, how, (0, 0), 0, &attributes).map(drop)
}

/// # Errors
/// The link's absence, or no privileges.
pub(super) fn set_alias(index: u32, alias: &str) -> io::Result<()> {
    let mut attributes = Vec::new();
    put_attribute(&mut attributes, IFLA_IFALIAS, alias.as_bytes());
    request(RTM_SETLINK, index, &attributes).map(drop)
}

/// Has the kernel give a link no IPv6 address by itself.
///
/// # Errors
/// The link's absence, or no privileges.
pub(super) fn forbid_addresses(index: u32) -> io::Result<()> {
    let mut mode = Vec::new();
    put_attribute(&mut mode, IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE]);
    let mut families = Vec::new();
    put_attribute(&mut families, libc::AF_INET6 as u16 | NLA_F_NESTED, &mode);
    let mut attributes = Vec::new();
    put_attribute(&mut attributes, IFLA_AF_SPEC | NLA_F_NESTED, &families);
    match request(RTM_SETLINK, index, &attributes) {
        // There is no IPv6, on this link or at all.
        Err(e) if e.raw_os_error() == Some(libc::EAFNOSUPPORT) => Ok(()),
        done => done.map(drop),
    }
}

/// # Errors
/// The link's absence, or no privileges.
pub(super) fn set_up_without_arp(index: u32) -> io::Result<()> {
    let flags = (libc::IFF_UP | libc::IFF_NOARP) as u32;
    request_with(RTM_SETLINK, NLM_F_ACK, (index, flags), flags, &[]).map(drop)
}

/// Has packets that a device does not take wait, so many at most.
///
/// # Errors
/// The link's absence, or no privileges.
pub(super) fn set_fifo(index: u32, packets: u32) -> io::Result<()> {
    let mut attributes = Vec::new();
    put_attribute(&mut attributes, TCA_KIND, b"pfifo\0");
    put_attribute(&mut attributes, TCA_OPTIONS, &packets.to_ne_bytes());
    // `struct tcmsg` has the handle and the parent where `struct ifinfomsg` has flags, and a word
    // more behind them.
    let mut rest = vec![0; 4];
    rest.extend_from_slice(&attributes);
    let how = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
    request_with(RTM_NEWQDISC, how, (index, 0), TC_H_ROOT, &rest).map(drop)
}

/// Removes a link; both ends of a veth pair.
///
/// # Errors
/// The link's absence, or no privileges.
pub(super) fn delete(index: u32) -> io::Result<()> {
    request_with(RTM_DELLINK, NLM_F_ACK, (index, 0), 0, &[]).map(drop)
}

/// Whether a device takes frames that an XDP program redirects to it (`NETDEV_XDP_ACT_NDO_XMIT`).
/// A veth device does so while its peer has GRO or an XDP program. Kernels before 6.3 don't tell.
pub fn takes_xdp_frames(index: u32) -> bool {
    const NDO_XMIT: u64 = 1 << 2; // enum netdev_xdp_act, linux/netdev.h
    features(index) & NDO_XMIT != 0
}

/// Whether a driver reads and writes frames of AF_XDP sockets itself
/// (`NETDEV_XDP_ACT_XSK_ZEROCOPY`).
/// Kernels before 6.3 don't tell.
pub fn has_zero_copy(index: u32) -> Option<bool> {
    const XSK_ZEROCOPY: u64 = 1 << 3;
    let features = features(index);
    (features != 0).then_some(features & XSK_ZEROCOPY != 0)
}

/// What a driver does for XDP programs; 0 where the kernel doesn't tell.
fn features(index: u32) -> u64 {
    let mut options = libbpf_sys::bpf_xdp_query_opts {
        sz: size_of::<libbpf_sys::bpf_xdp_query_opts>() as libbpf_sys::size_t,
        ..Default::default()
    };
    // SAFETY: fills the struct, whose size is passed.
    let result = unsafe { libbpf_sys::bpf_xdp_query(index as i32, 0, &raw mut options) };
    if result == 0 { options.feature_flags } else { 0 }
}

/// An attachment that outlives the process unless this is dropped.
#[derive(Debug)]
pub struct LastingXdp {
    index: u32,
    mode: u32,
}

impl LastingXdp {
    /// Attaches `program` where none is attached.
    ///
    /// # Errors
    /// The driver refusing the mode, or a program being there (`EBUSY`).
    pub fn attach(index: u32, program: BorrowedFd<'_>, mode: AttachMode) -> io::Result<LastingXdp> {
        let mode = flag(mode);
        set(index, program.as_raw_fd(), mode | XDP_FLAGS_UPDATE_IF_NOEXIST)?;
        Ok(LastingXdp { index, mode })
    }
}

impl Drop for LastingXdp {
    fn drop(&mut self) {
        if let Err(error) = set(self.index, -1, self.mode) {
            tracing::warn!(ifindex = self.index, %error, "XDP program not detached");
        }
    }
}

/// Removes whatever XDP program is attached over netlink.
///
/// # Errors
/// Netlink failing; a program held by a `bpf_link` (`EBUSY`).
pub fn detach(index: u32) -> io::Result<()> {
    let native = set(index, -1, XDP_FLAGS_DRV_MODE);
    let generic = set(index, -1, XDP_FLAGS_SKB_MODE);
    native.or(generic)
}

fn flag(mode: AttachMode) -> u32 {
    match mode {
        // A program for tc is none for XDP.
        AttachMode::Auto | AttachMode::Tc => 0,
        AttachMode::Native => XDP_FLAGS_DRV_MODE,
        AttachMode::Generic => XDP_FLAGS_SKB_MODE,
    }
}

fn set(index: u32, program: RawFd, flags: u32) -> io::Result<()> {
    let mut nest = Vec::with_capacity(16);
    put_attribute(&mut nest, IFLA_XDP_FD, &program.to_ne_bytes());
    put_attribute(&mut nest, IFLA_XDP_FLAGS, &flags.to_ne_bytes());
    let mut attributes = Vec::with_capacity(24);
    put_attribute(&mut attributes, IFLA_XDP | NLA_F_NESTED, &nest);
    request(RTM_SETLINK, index, &attributes).map(drop)
}

fn request(kind: u16, index: u32, attributes: &[u8]) -> io::Result<Vec<u8>> {
    let ack = if kind == RTM_SETLINK { NLM_F_ACK } else { 0 };
    request_with(kind, ack, (index, 0), 0, attributes)
}

/// Sends one request about a link, with its flags and which of them are changed, and returns its
/// answer; an error in the answer becomes ours.
fn request_with(
    kind: u16,
    how: u16,
    (index, flags): (u32, u32),
    change: u32,
    attributes: &[u8],
) -> io::Result<Vec<u8>> {
    let fd = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    let mut message = Vec::with_capacity(HEADERS + attributes.len());
    message.extend_from_slice(&((HEADERS + attributes.len()) as u32).to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&(NLM_F_REQUEST | how).to_ne_bytes());
    message.extend_from_slice(&[0; 8]); // sequence, port: one request a socket
    message.extend_from_slice(&[0; 4]); // family, type
    message.extend_from_slice(&index.to_ne_bytes());
    message.extend_from_slice(&flags.to_ne_bytes());
    message.extend_from_slice(&change.to_ne_bytes());
    message.extend_from_slice(attributes);
    send(fd.as_raw_fd(), &message, MsgFlags::empty())?;
    let mut reply = vec![0; REPLY_MAX];
    let len = recv(fd.as_raw_fd(), &mut reply, MsgFlags::empty())?;
    reply.truncate(len);
    let field = |at: usize| reply.get(at..at + 4).and_then(|b| b.first_chunk::<4>().copied());
    match reply.get(4..6).map(|b| u16::from_ne_bytes([b[0], b[1]])) {
        Some(NLMSG_ERROR) => match field(16).map(i32::from_ne_bytes) {
            Some(0) => Ok(reply),
            Some(code) => Err(io::Error::from_raw_os_error(-code)),
            None => Err(io::ErrorKind::InvalidData.into()),
        },
        Some(RTM_NEWLINK) => Ok(reply),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn put_attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.extend_from_slice(&(value.len() as u16 + 4).to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// The value of the first attribute of a kind.
fn attribute(mut bytes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let header = bytes.first_chunk::<4>()?;
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let found = u16::from_ne_bytes([header[2], header[3]]) & NLA_TYPE_MASK;
        let value = bytes.get(4..len)?;
        if found == kind {
            return Some(value);
        }
        bytes = bytes.get(len.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_and_bad_lengths_end_the_search() {
        let mut bytes = Vec::new();
        put_attribute(&mut bytes, 3, b"abcde");
        put_attribute(&mut bytes, 4 | NLA_F_NESTED, &7u32.to_ne_bytes());
        assert_eq!(attribute(&bytes, 3), Some(&b"abcde"[..]));
        assert_eq!(attribute(&bytes, 4), Some(&7u32.to_ne_bytes()[..]));
        assert_eq!(attribute(&bytes, 5), None);
        for broken in [&[0u8, 0, 3, 0][..], &[9, 0, 3, 0, 1], &[4, 0]] {
            assert_eq!(attribute(broken, 4), None);
        }
    }

    #[test]
    fn the_loopback_takes_large_packets() {
        let index = index_of("lo").expect("there always is one");
        assert!(mtu_of(index).expect("told") > 1_500);
        assert!(mtu_of(u32::MAX / 2).is_err());
    }

    #[test]
    fn the_loopback_has_no_program() {
        let index = index_of("lo").expect("every namespace has one");
        assert_eq!(xdp_program_id(index).expect("netlink"), None);
        assert_eq!(mac_of(index).expect("netlink"), [0; 6]);
        assert!(index_of("no-such-if").is_err());
    }
}
