//! Which ports come and go in a reload, and by which numbers they are known.

use crate::config::Config;
use crate::control::reload::ReloadError;
use crate::nic::spec::{PORTS_MAX, PortSpec};
use crate::packet::{CopyTo, PortId};
use crate::qos::dscp::Remap;

/// What a reload does to ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PortPlan {
    /// They go first, because others take over their interfaces or numbers.
    pub leave_first: Vec<PortId>,
    /// They go once nothing is sent to them any more.
    pub leave_last: Vec<PortId>,
    /// They come while all others are there still.
    pub open_first: Vec<PortId>,
    /// They come when those that go first are gone.
    pub open_then: Vec<PortId>,
}

impl PortPlan {
    /// By the numbers of [`keep_port_numbers`]. `is_lost`: the port's interface is gone for good,
    /// so that one of the same name has to be opened.
    pub(super) fn of(
        running: &Config,
        wanted: &Config,
        is_lost: impl Fn(PortId) -> bool,
    ) -> PortPlan {
        let port = |config: &Config, at: usize| {
            config.ports.get(at).filter(|port| !port.is_vacant()).cloned()
        };
        let changes = (0..running.ports.len().max(wanted.ports.len())).filter_map(|at| {
            let (old, new) = (port(running, at), port(wanted, at));
            let stays = old == new && !is_lost(PortId(at as u16));
            (!stays).then_some((old, new))
        });
        let (old, new): (Vec<_>, Vec<_>) = changes.unzip();
        let (old, new): (Vec<PortSpec>, Vec<PortSpec>) =
            (old.into_iter().flatten().collect(), new.into_iter().flatten().collect());
        let meets = |a: &PortSpec, all: &[PortSpec]| all.iter().any(|b| b.interface == a.interface);
        let ids = |list: Vec<&PortSpec>| list.into_iter().map(|port| port.id).collect();
        let (leave_first, leave_last) = old.iter().partition(|port| meets(port, &new));
        let (open_then, open_first) = new.iter().partition(|port| meets(port, &old));
        PortPlan {
            leave_first: ids(leave_first),
            leave_last: ids(leave_last),
            open_first: ids(open_first),
            open_then: ids(open_then),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        *self == PortPlan::default()
    }

    /// Ports that go, in any order.
    pub(super) fn leaving(&self) -> impl Iterator<Item = PortId> + '_ {
        self.leave_first.iter().chain(&self.leave_last).copied()
    }

    /// Ports that come, in any order.
    pub(super) fn opening(&self) -> impl Iterator<Item = PortId> + Clone + '_ {
        self.open_first.iter().chain(&self.open_then).copied()
    }

    pub(super) fn opened_names(&self, wanted: &Config) -> Vec<String> {
        names_of(wanted, self.opening())
    }

    pub(super) fn closed_names(&self, running: &Config) -> Vec<String> {
        names_of(running, self.leaving())
    }
}

fn names_of(config: &Config, ids: impl Iterator<Item = PortId>) -> Vec<String> {
    ids.filter_map(|id| config.ports.get(usize::from(id.0))).map(|p| p.name.clone()).collect()
}

/// Renumbers the ports of `wanted` so that those of `running` keep their numbers: flows and
/// forwarding tables hold them. A port is the same one by its name and its interface. Numbers that
/// nobody has any more stand for vacant ports.
///
/// # Errors
/// [`ReloadError::TooManyPorts`].
pub(super) fn keep_port_numbers(running: &Config, wanted: &mut Config) -> Result<(), ReloadError> {
    let is_free = |n: &u16| running.ports.get(usize::from(*n)).is_none_or(PortSpec::is_vacant);
    let mut free = (0..PORTS_MAX as u16).filter(is_free);
    let mut numbers = Vec::with_capacity(wanted.ports.len());
    for port in &wanted.ports {
        if port.is_vacant() {
            numbers.push(port.id.0);
            continue;
        }
        let same = |p: &&PortSpec| p.name == port.name && p.interface == port.interface;
        let known = running.ports.iter().find(same).map(|p| p.id.0);
        numbers.push(known.or_else(|| free.next()).ok_or(ReloadError::TooManyPorts)?);
    }
    let taken = wanted.ports.iter().zip(&numbers).filter(|(port, _)| !port.is_vacant());
    let len = taken.map(|(_, n)| usize::from(*n) + 1).max().unwrap_or(0);
    let len = len.max(running.ports.len());
    let renumber = |id: &mut PortId| {
        *id = numbers.get(usize::from(id.0)).map_or(*id, |n| PortId(*n));
    };
    let mut ports: Vec<_> = (0..len as u16).map(|n| PortSpec::vacant(PortId(n))).collect();
    for mut port in std::mem::take(&mut wanted.ports).into_iter().filter(|p| !p.is_vacant()) {
        renumber(&mut port.id);
        let at = usize::from(port.id.0);
        ports[at] = port;
    }
    wanted.ports = ports;
    wanted.qos.iter_mut().for_each(|qos| renumber(&mut qos.port));
    wanted.metering.meters.iter_mut().filter_map(|m| m.port.as_mut()).for_each(renumber);
    for mirror in wanted.rules.iter_mut().filter_map(|rule| rule.mirror.as_mut()) {
        if let CopyTo::Port(port) = &mut mirror.to {
            renumber(port);
        }
    }
    let trust = std::mem::take(&mut wanted.metering.trust);
    for (remap, number) in trust.into_iter().zip(&numbers).filter(|(r, _)| *r != Remap::TRUST) {
        let at = usize::from(*number);
        if wanted.metering.trust.len() <= at {
            wanted.metering.trust.resize(at + 1, Remap::TRUST);
        }
        wanted.metering.trust[at] = remap;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config;

    fn load(ports: &[(&str, &str)], more: &str) -> Config {
        let port = |(name, interface): &(&str, &str)| {
            format!("[port.{name}]\ninterface = \"{interface}\"\n")
        };
        let ports: String = ports.iter().map(port).collect();
        let text = format!(
            "pipeline = \"l4-balancer\"\n{ports}[transit]\nprefixes = [\"10.0.0.0/8\"]\n{more}"
        );
        config::load_text(Path::new("t.toml"), &text).expect("a good file")
    }

    fn numbered(running: &Config, ports: &[(&str, &str)], more: &str) -> Config {
        let mut wanted = load(ports, more);
        keep_port_numbers(running, &mut wanted).expect("room");
        let right = (0u16..).zip(&wanted.ports).all(|(n, port)| port.id == PortId(n));
        assert!(right, "{:?}", wanted.ports);
        wanted
    }

    fn names(config: &Config) -> Vec<&str> {
        config.ports.iter().map(|port| port.name.as_str()).collect()
    }

    fn ids<const N: usize>(ids: [u16; N]) -> Vec<PortId> {
        ids.map(PortId).to_vec()
    }

    const ALL: [(&str, &str); 3] = [("a", "e0"), ("b", "e1"), ("c", "e2")];

    #[test]
    fn numbers_last_whatever_comes_and_goes() {
        let running = load(&ALL, "");
        let fewer = numbered(&running, &[("c", "e2"), ("a", "e0")], "");
        assert_eq!(names(&fewer), ["a", "", "c"]);
        let qos = "[qos.d]\nrate = \"1Gbit/s\"\ndefault = \"x\"\n[qos.d.class.x]\nrate = \"10%\"\n\
                   [dscp.d]\ntrust = false\n";
        let more = numbered(&fewer, &[("d", "e3"), ("c", "e2"), ("a", "e0")], qos);
        assert_eq!(names(&more), ["a", "d", "c"]);
        assert_eq!(more.qos[0].port, PortId(1));
        let trust = &more.metering.trust;
        assert_eq!((trust.len(), trust[0]), (2, Remap::TRUST));
        assert_ne!(trust[1], Remap::TRUST);
        // As it is: nothing changes any more.
        let again = numbered(&more, &[("d", "e3"), ("c", "e2"), ("a", "e0")], qos);
        assert_eq!(again, more);
        // What ran before, with its gaps, is gone back to.
        let mut back = fewer.clone();
        keep_port_numbers(&more, &mut back).expect("room");
        assert_eq!(names(&back), ["a", "", "c"]);
        let mut back = running.clone();
        keep_port_numbers(&more, &mut back).expect("room");
        assert_eq!(names(&back), ["a", "", "c", "b"], "its number is another's now");
        let fewer_again = numbered(&fewer, &[("c", "e2"), ("a", "e0")], "");
        assert_eq!(fewer_again, fewer);
    }

    #[test]
    fn all_numbers_may_be_taken_by_those_that_stay_and_go() {
        let name = |i: usize| (format!("p{i}"), format!("e{i}"));
        let list: Vec<_> = (0..100).map(name).collect();
        let of = |from: usize, to: usize| -> Vec<(&str, &str)> {
            list[from..to].iter().map(|(a, b)| (a.as_str(), b.as_str())).collect()
        };
        let running = load(&of(0, 40), "");
        let mut wanted = load(&of(40, 65), "");
        let refused = keep_port_numbers(&running, &mut wanted).expect_err("65 at once");
        assert!(refused.to_string().contains("64"), "{refused}");
        assert_eq!(numbered(&running, &of(40, 64), "").ports.len(), 64);
    }

    #[test]
    fn who_takes_over_an_interface_waits_for_it() {
        let running = load(&ALL, "");
        let plan = |ports: &[(&str, &str)], lost: Option<u16>| {
            let wanted = numbered(&running, ports, "");
            PortPlan::of(&running, &wanted, |id| lost == Some(id.0))
        };
        assert!(plan(&ALL, None).is_empty());
        let added = plan(&[ALL[0], ALL[1], ALL[2], ("d", "e3")], None);
        assert_eq!(added, PortPlan { open_first: ids([3]), ..PortPlan::default() });
        let gone = plan(&ALL[..2], None);
        assert_eq!(gone, PortPlan { leave_last: ids([2]), ..PortPlan::default() });
        let moved = plan(&[ALL[0], ALL[1], ("c", "e9")], None);
        assert_eq!(moved.leave_last, ids([2]));
        assert_eq!(moved.open_first, ids([3]), "another number: tables still lead to the old one");
        let renamed = plan(&[ALL[0], ALL[1], ("d", "e2")], None);
        let first = |leave, open| PortPlan {
            leave_first: ids([leave]),
            open_then: ids([open]),
            ..PortPlan::default()
        };
        assert_eq!(renamed, first(2, 3));
        assert_eq!(plan(&ALL, Some(1)), first(1, 1), "opened anew");
        let mut slower = numbered(&running, &ALL, "");
        slower.ports[2].rx_ring = 64;
        assert_eq!(PortPlan::of(&running, &slower, |_| false), first(2, 2));
        let swapped = plan(&[("a", "e1"), ("b", "e0"), ALL[2]], None);
        assert_eq!((swapped.leave_first, swapped.open_then), (ids([0, 1]), ids([3, 4])));
    }
}
