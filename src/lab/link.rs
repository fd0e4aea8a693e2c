//! veth pairs between namespaces.

use super::{Namespace, Result};

/// One end of a pair: where it is and what it is called there.
#[derive(Clone, Copy)]
pub struct VethEnd<'a> {
    pub namespace: &'a Namespace,
    pub name: &'a str,
    /// Addresses with prefix lengths, IPv4 and IPv6.
    pub addresses: &'a [&'a str],
}

/// How to make a pair.
#[derive(Clone, Copy)]
pub struct Veth<'a> {
    pub a: VethEnd<'a>,
    pub b: VethEnd<'a>,
    /// Receive and transmit queues of each end.
    pub queues: u16,
    /// Offloads off, so that packets look as on a wire: real checksums, no super-packets. AF_XDP
    /// and any test of checksums needs it.
    pub wire_like: bool,
}

impl Veth<'_> {
    /// Makes the pair, sets addresses and brings both ends up.
    ///
    /// # Errors
    /// As `ip` and `ethtool` say.
    pub fn create(&self) -> Result<()> {
        let (a, b) = (&self.a, &self.b);
        let q = self.queues;
        a.namespace.ip(&format!(
            "link add {} numrxqueues {q} numtxqueues {q} type veth peer name {} numrxqueues {q} \
             numtxqueues {q} netns {}",
            a.name,
            b.name,
            b.namespace.path()
        ))?;
        for end in [a, b] {
            end.settle(self.wire_like)?;
        }
        Ok(())
    }
}

impl VethEnd<'_> {
    fn settle(&self, wire_like: bool) -> Result<()> {
        let ns = self.namespace;
        if wire_like {
            let off = ["-K", self.name, "tx", "off", "rx", "off", "tso", "off", "gso", "off"];
            ns.run("ethtool", &off)?;
            ns.run("ethtool", &["-K", self.name, "gro", "off"])?;
        }
        // Duplicate address detection would keep IPv6 addresses unusable for a second.
        ns.sysctl(&format!("net.ipv6.conf.{}.accept_dad", self.name), "0")?;
        for address in self.addresses {
            ns.ip(&format!("addr add {address} dev {}", self.name))?;
        }
        ns.ip(&format!("link set {} up", self.name))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::Duration;

    use super::*;

    const TRIES: usize = 20;

    #[test]
    fn two_hosts_reach_each_other() {
        let (left, right) =
            (Namespace::new("l").expect("root"), Namespace::new("r").expect("root"));
        Veth {
            a: VethEnd {
                namespace: &left,
                name: "to-r",
                addresses: &["10.9.0.1/24", "fd09::1/64"],
            },
            b: VethEnd {
                namespace: &right,
                name: "to-l",
                addresses: &["10.9.0.2/24", "fd09::2/64"],
            },
            queues: 2,
            wire_like: true,
        }
        .create()
        .expect("veth");
        for (here, there) in [("10.9.0.1:0", "10.9.0.2:7"), ("[fd09::1]:0", "[fd09::2]:7")] {
            let server =
                right.enter(move || UdpSocket::bind(there).expect("bind")).expect("thread");
            server.set_read_timeout(Some(Duration::from_millis(500))).expect("timeout");
            // IPv6 waits for the kernel to notice the carrier, which it looks for once a second.
            let arrived = (0..TRIES).any(|_| {
                let sent = left
                    .enter(move || UdpSocket::bind(here).and_then(|s| s.send_to(b"hello", there)));
                // Before that there may be no address to bind to: not sent is not arrived.
                drop(sent.expect("thread"));
                server.recv(&mut [0; 16]).is_ok_and(|n| n == 5)
            });
            assert!(arrived, "{there}");
        }
        let channels = left.run("ethtool", &["-l", "to-r"]).expect("ethtool");
        assert!(channels.contains("RX:\t\t2"), "{channels}");
    }
}
