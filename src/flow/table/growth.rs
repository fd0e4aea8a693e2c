//! The steps that flows hold.

use super::{FlowTable, Steps};
use crate::packet::FlowRef;

impl FlowTable {
    /// What becomes of flows that have more bytes.
    pub fn steps(&self) -> &Steps {
        &self.steps
    }

    pub fn steps_mut(&mut self) -> &mut Steps {
        &mut self.steps
    }

    /// Gives a flow the number of its next step, which the caller held.
    ///
    /// # Panics
    /// As [`FlowTable::get`].
    pub fn set_steps(&mut self, r: FlowRef, number: u8) {
        let before = std::mem::replace(&mut self.flows[r.0 as usize].steps, number);
        self.steps.release(before);
    }
}
