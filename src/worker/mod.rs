//! The poll loop: one thread a core, its ports, its tables, its frames.

pub mod build;
mod checking;
pub mod clock;
mod closing;
pub mod command;
pub mod count;
mod cut;
mod deciding;
mod delaying;
mod desk;
pub mod egress;
pub mod handover;
mod joining;
pub mod leaving;
mod moving;
pub mod offload;
mod openings;
mod pace;
pub mod runner;
pub mod side;
pub mod spec;
mod standing;
pub mod threads;
pub mod turn;

pub use build::{Blueprint, Own, emptying_room};
pub use clock::Clock;
pub use command::{Blocked, ControlLink, Phase, Update, WorkerCommand, WorkerEvent, WorkerLink};
pub use count::{FlowCount, FlowsOf};
pub use desk::{Exchange, Frames, PortDesk, PortOrder};
pub use egress::EgressQueue;
pub use handover::Handover;
pub use runner::{Heartbeat, NoHeartbeat, Runnable};
pub use side::Side;
pub use threads::{Exit, ThreadParts, Threads, WorkerThread};
pub use turn::{Worker, WorkerParts};
