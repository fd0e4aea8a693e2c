//! Rules: from what is known of a flow to its class.

pub mod spec;
