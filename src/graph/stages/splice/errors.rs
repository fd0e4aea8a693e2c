//! What ICMP errors say of spliced connections.

use super::{LinkState, Splice};
use crate::forward::mss;
use crate::packet::{Direction, FlowRef};

impl Splice {
    /// What is added to the TCP sequence number that an error quotes, so that who has sent the
    /// quoted packet knows it. `way` is the error's own.
    pub fn quoted_change(&self, flow: FlowRef, way: Direction) -> u32 {
        let translation = self.links.get(flow.0 as usize).map(|link| link.translation);
        match way {
            // Toward the server: what it counts is translated for the client.
            Direction::Forward => 0u32.wrapping_sub(translation.unwrap_or_default().sequence),
            Direction::Reply => 0,
        }
    }

    /// The path to the backend takes no larger packet than this. What of the held bytes got lost is
    /// sent again in segments that fit.
    pub fn send_smaller(&mut self, flow: FlowRef, mtu: u16, v4: bool) {
        if let Some(link) = self.links.get(flow.0 as usize)
            && let LinkState::Binding(slot) = link.state
            && let Some(bound) = self.bound.get_mut(usize::from(slot))
        {
            bound.binding.send_smaller(mss::of_mtu(mtu, v4));
        }
    }
}
