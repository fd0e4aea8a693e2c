//! Flows: their table, their timers, and the beginning of their byte streams in order.

pub mod advance;
pub mod entry;
pub mod index;
pub mod names;
pub mod notes;
pub mod reassembly;
pub mod serving;
pub mod sightings;
pub mod steps;
pub mod table;
pub mod tcp;
mod treatments;
pub mod wheel;

pub use advance::Advance;
pub use entry::{Details, Flow, FlowKind, Hop, NewFlow, SumChange};
pub use names::Names;
pub use notes::{Fate, HelloNote, Note, Notes, Reclassed};
pub use serving::Serving;
pub use sightings::{Sighting, Sightings};
pub use steps::{Step, Steps, TooMany};
pub use table::{FlowLimits, FlowTable, InsertError, Timeouts};
pub use tcp::TcpState;
pub use treatments::{Treatment, Treatments};
