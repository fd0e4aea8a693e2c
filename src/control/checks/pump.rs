//! Carries packets of checks between the TUN device and the workers, and makes the sockets, which
//! have to be made in here.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::net::TcpSocket;

use super::{Shared, inner};
use crate::base::Addr;
use crate::forward::checks::{CheckPacket, PACKET_BYTES_MAX, PACKETS_MAX};
use crate::nic::tun::Tun;
use crate::nic::wake::Sleeper;
use crate::packet::checksum::{Sum, pseudo};
use crate::packet::field::{addr4_at, addr6_at, put_addr, put_u16, put_u32, u16_at};
use crate::packet::{ipv4, ipv6, tcp};
use crate::worker::{WorkerCommand, WorkerLink};

/// It looks after itself this often although nobody calls.
const IDLE_NS: u64 = 1_000_000_000;
/// A worker whose ring is full is tried again after this.
const FULL_WAIT: Duration = Duration::from_millis(1);

/// Runs until the passage ends.
pub fn run(shared: &Shared, mut sleeper: Sleeper, tun: &Tun, workers: Vec<WorkerLink>) {
    sleeper.watch(tun.fd());
    let mut pump = Pump { shared, tun, workers, outbox: VecDeque::new() };
    while !shared.ended.load(Ordering::SeqCst) {
        pump.make_sockets();
        pump.take_answers();
        let is_short = !pump.read_packets();
        pump.send_packets();
        if is_short || !pump.outbox.is_empty() {
            std::thread::sleep(FULL_WAIT);
            continue;
        }
        let called = || {
            let ended = shared.ended.load(Ordering::SeqCst);
            ended || !shared.sockets.is_empty() || shared.ring.has_given()
        };
        sleeper.sleep(IDLE_NS, called);
    }
}

struct Pump<'a> {
    shared: &'a Shared,
    tun: &'a Tun,
    workers: Vec<WorkerLink>,
    /// Bounded by the number of packets that there are.
    outbox: VecDeque<(usize, Box<CheckPacket>)>,
}

impl Pump<'_> {
    fn make_sockets(&self) {
        while let Some(wanted) = self.shared.sockets.pop() {
            // Whoever waited may have given up.
            let _ = wanted.made.send(socket(wanted.v4, wanted.port));
        }
    }

    /// What workers gave: answers, and packets that could not go out.
    fn take_answers(&self) {
        // Then it is time to look after what goes out.
        for mut packet in std::iter::from_fn(|| self.shared.ring.take()).take(PACKETS_MAX) {
            match packet.failed {
                Some(reason) => {
                    let ends = ends_of(packet.bytes());
                    if let Some(check) = ends.and_then(|(port, to)| self.shared.check(port, to)) {
                        // The first reason is told.
                        let _ = check.told.set(reason);
                    }
                }
                None => self.deliver(&mut packet),
            }
            self.shared.ring.recycle(packet);
        }
    }

    fn deliver(&self, packet: &mut CheckPacket) {
        let key = packet.key;
        if self.shared.check(key.dport, (key.src, key.sport)).is_none() {
            return;
        }
        let (l4, is_whole) = (packet.l4, packet.has_partial_checksum);
        if readdress(packet.bytes_mut(), (key.src, key.dst), l4, is_whole).is_some()
            && let Err(error) = self.tun.write(packet.bytes())
        {
            tracing::debug!(%error, "an answer to a check is lost");
        }
    }

    /// `false`: more may wait than there is room for.
    fn read_packets(&mut self) -> bool {
        let mut bytes = [0; PACKET_BYTES_MAX];
        loop {
            let Some(mut packet) = self.shared.ring.blank() else { return false };
            let read = self.tun.read(&mut bytes);
            let sent = read.as_ref().map_or(&[][..], |length| &bytes[..*length]);
            let check =
                ends_of(sent).and_then(|(port, to)| Some((port, self.shared.check(port, to)?)));
            match check {
                Some((port, check)) if packet.fill(sent) && !self.workers.is_empty() => {
                    packet.way = check.way;
                    self.outbox.push_back((usize::from(port) % self.workers.len(), packet));
                }
                // The kernel's own, such as router solicitations.
                _ => self.shared.ring.recycle(packet),
            }
            if read.is_err() {
                return true;
            }
        }
    }

    fn send_packets(&mut self) {
        for _ in 0..self.outbox.len() {
            let Some((worker, packet)) = self.outbox.pop_front() else { return };
            let Err(back) = self.workers[worker].send(WorkerCommand::Check(packet)) else {
                continue;
            };
            if let WorkerCommand::Check(packet) = back {
                self.outbox.push_back((worker, packet));
            }
        }
    }
}

/// A socket of the namespace that this thread is in.
fn socket(v4: bool, port: u16) -> io::Result<TcpSocket> {
    let socket = if v4 { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::new(inner(v4), port))?;
    Ok(socket)
}

/// The source port of an IP packet that holds a whole TCP header, and where it goes.
fn ends_of(packet: &[u8]) -> Option<(u16, (Addr, u16))> {
    let (protocol, l4, to) = match packet.first()? >> 4 {
        4 => {
            let head = packet.get(..ipv4::HEADER_LEN)?;
            let to = addr4_at(head, ipv4::offset::DESTINATION);
            (head[ipv4::offset::PROTOCOL], usize::from(head[0] & 0xf) * 4, to)
        }
        6 => {
            let head = packet.get(..ipv6::HEADER_LEN)?;
            let to = addr6_at(head, ipv6::offset::DESTINATION);
            (head[ipv6::offset::NEXT_HEADER], ipv6::HEADER_LEN, to)
        }
        _ => return None,
    };
    let segment = packet.get(l4..).filter(|s| s.len() >= tcp::HEADER_LEN)?;
    let port = |at| u16_at(segment, at);
    (protocol == tcp::PROTOCOL)
        .then(|| (port(tcp::offset::SOURCE_PORT), (to, port(tcp::offset::DESTINATION_PORT))))
}

/// Makes a packet one for the sockets in here. `None`, where it is damaged; a partial checksum
/// shows nothing of that.
fn readdress(packet: &mut [u8], (src, dst): (Addr, Addr), l4: usize, is_whole: bool) -> Option<()> {
    let to = Addr::from(inner(dst.is_v4()));
    let (head, segment) = packet.split_at_mut_checked(l4)?;
    let length = u16::try_from(segment.len()).ok()?;
    if segment.len() < tcp::HEADER_LEN {
        return None;
    }
    let sum = |dst, segment: &[u8]| pseudo(src, dst, tcp::PROTOCOL, length).bytes(segment);
    if !is_whole && !sum(dst, segment).verifies() {
        return None;
    }
    if dst.is_v4() {
        if head.len() < ipv4::HEADER_LEN {
            return None;
        }
        put_u32(head, ipv4::offset::DESTINATION, to.v4_bits());
        put_u16(head, ipv4::offset::CHECKSUM, 0);
        let check = Sum::of(head).checksum();
        put_u16(head, ipv4::offset::CHECKSUM, check);
    } else {
        let head = head.get_mut(..ipv6::HEADER_LEN)?;
        put_addr(head, ipv6::offset::DESTINATION, to);
    }
    put_u16(segment, tcp::offset::CHECKSUM, 0);
    let check = sum(to, segment).checksum();
    put_u16(segment, tcp::offset::CHECKSUM, check);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Seed;
    use crate::packet::build::{TcpSpec, tcp_packet};
    use crate::packet::{PacketMeta, ParseOptions, eth, parse};

    fn answer(v4: bool) -> Vec<u8> {
        let of = |v4: &str, v6: &str, is_v4| if is_v4 { v4.to_owned() } else { v6.to_owned() };
        let src = (of("203.0.113.1", "2001:db8::1", v4).parse().expect("literal"), 443);
        let dst = (of("10.0.0.1", "fd00::1", v4).parse().expect("literal"), 64_007);
        tcp_packet(&TcpSpec::new(src, dst, tcp::flag::SYN | tcp::flag::ACK, &[]))
    }

    #[test]
    fn answers_are_for_the_sockets_and_damaged_ones_for_nobody() {
        for v4 in [true, false] {
            let mut frame = answer(v4);
            let mut meta = PacketMeta::default();
            parse(&frame, Seed(1), ParseOptions::default(), &mut meta).expect("a good packet");
            let ends = (meta.key.src, meta.key.dst);
            let l4 = usize::from(meta.l4 - meta.l3);
            let whole = frame.clone();
            assert!(readdress(&mut frame[eth::HEADER_LEN..], ends, l4, false).is_some());
            let options = ParseOptions { verify_transport_checksum: true };
            parse(&frame, Seed(1), options, &mut meta).expect("sums that fit");
            assert_eq!(meta.key.dst.to_ip(), inner(v4));
            assert_eq!((meta.key.src, meta.key.dport), (ends.0, 64_007));
            let asked = (443, (inner(v4).into(), 64_007));
            assert_eq!(ends_of(&frame[eth::HEADER_LEN..]), Some(asked));

            let mut damaged = whole;
            *damaged.last_mut().expect("bytes") ^= 1;
            let packet = &mut damaged[eth::HEADER_LEN..];
            assert!(readdress(&mut packet.to_vec(), ends, l4, false).is_none());
            assert!(readdress(packet, ends, l4, true).is_some(), "a partial sum");
            assert!(readdress(packet, ends, packet.len(), true).is_none(), "no header");
        }
    }
}
