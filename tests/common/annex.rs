//! Hosts beyond further interfaces of the appliance.

use tidegate::lab::{Namespace, Veth, VethEnd};

use super::{Net, VIP4};

/// A host `10.0.NUMBER.2` beyond one more interface, by a veth pair.
pub struct Annex {
    pub interface: &'static str,
    number: u8,
    pub host: Namespace,
}

impl Annex {
    pub fn new(net: &Net, interface: &'static str, number: u8) -> Annex {
        let host = Namespace::new(interface).expect("namespace");
        let annex = Annex { interface, number, host };
        annex.link(net);
        annex
    }

    /// A new pair of interfaces, where there is none.
    pub fn link(&self, net: &Net) {
        let Annex { interface, number, host } = self;
        let (a, b) = (format!("10.0.{number}.2/24"), format!("10.0.{number}.1/24"));
        let (there, here): (&[&str], &[&str]) = (&[&a], &[&b]);
        let end = |namespace, name, addresses| VethEnd { namespace, name, addresses };
        let (a, b) = (end(host, "e0", there), end(&net.appliance, interface, here));
        Veth { a, b, queues: 2, wire_like: true }.create().expect("veth");
        host.ip(&format!("route add default via 10.0.{number}.1")).expect("route");
    }

    pub fn is_served(&self) -> bool {
        let url = format!("http://{VIP4}/");
        self.host.run("curl", &["-sf", "--max-time", "2", &url]).is_ok()
    }

    pub fn has_program(&self, net: &Net) -> bool {
        net.appliance.run("ip", &["link", "show", self.interface]).expect("ip").contains("xdp")
    }
}
