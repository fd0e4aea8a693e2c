//! What is told of a class.

use serde::{Deserialize, Serialize};

use super::Values;

/// A class of one port, all workers together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClassView {
    pub port: String,
    pub class: String,
    /// The class above it; none below the port.
    pub parent: Option<String>,
    /// As configured: 0 (borrows first) to 7, and the share among siblings that borrow.
    pub priority: u8,
    pub weight: u32,
    pub values: Values,
}
