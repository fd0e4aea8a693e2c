//! Whether the kernel gives ports of health checks to sockets of this host: what is answered to
//! these would go to checks.

use std::ops::RangeInclusive;
use std::path::Path;

use crate::forward::checks::OWN_PORTS;

/// Of the network namespace of whoever reads, as what follows.
const RANGE: &str = "ip_local_port_range";
const RESERVED: &str = "ip_local_reserved_ports";
const FOLDER: &str = "/proc/sys/net/ipv4";

/// What is to be said where it does. Nothing where the kernel does not tell.
pub fn warning() -> Option<String> {
    let read = |name| std::fs::read_to_string(Path::new(FOLDER).join(name)).unwrap_or_default();
    told(&read(RANGE), &read(RESERVED))
}

fn told(range: &str, reserved: &str) -> Option<String> {
    let given = range_of(&mut range.split_ascii_whitespace())?;
    let kept: Vec<_> =
        reserved.trim().split(',').filter_map(|part| range_of(&mut part.split('-'))).collect();
    let is_given = |port: &u16| given.contains(port) && !kept.iter().any(|k| k.contains(port));
    let port = OWN_PORTS.clone().find(is_given)?;
    let own = format!("{}-{}", OWN_PORTS.start(), OWN_PORTS.end());
    let wanted = match reserved.trim() {
        "" => own.clone(),
        others => format!("{others},{own}"),
    };
    Some(format!(
        "health checks ask from the ports {own} of this host, but the kernel gives {port} and \
         others of them to its sockets, which get no answers then: \
         `sysctl -w net.ipv4.{RESERVED}={wanted}`"
    ))
}

/// A range, or one number.
fn range_of<'a>(ends: &mut impl Iterator<Item = &'a str>) -> Option<RangeInclusive<u16>> {
    let first = ends.next()?.trim().parse().ok()?;
    Some(first..=ends.next().map_or(Some(first), |last| last.trim().parse().ok())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_that_the_kernel_gives_to_others_are_told() {
        assert_eq!(told("32768\t60999\n", "\n"), None);
        assert_eq!(told("", ""), None, "nothing is known");
        let words = told("1024\t65535\n", "\n").expect("they meet");
        assert!(words.contains("the kernel gives 64000 and"), "{words}");
        assert!(words.ends_with("net.ipv4.ip_local_reserved_ports=64000-64511`"), "{words}");
        let words = told("1024\t64000\n", "80,8080-8089\n").expect("they meet");
        assert!(words.ends_with("reserved_ports=80,8080-8089,64000-64511`"), "{words}");
        assert_eq!(told("1024\t65535\n", "80,64000-64511\n"), None);
        let words = told("1024\t65535\n", "64000-64100,64102-65000\n").expect("one is left");
        assert!(words.contains("64101"), "{words}");
    }
}
