//! Delayed binding: a client's connection is taken without a backend, its first bytes are held, and
//! once they have told where it belongs it is joined to a connection to a backend.
//!
//! ```text
//! SYN ──► cookie ──► Waiting ──► Opening ──► Replaying ──► translated
//!         no state   bytes held  SYN to the  bytes sent    segments pass, numbers
//!                    and read    backend     and sent      of the server changed
//!                                            again
//! ```
//!
//! Everything here is pure: segments and times go in, segments and the next time come out.

pub mod binding;
pub mod cookie;
pub mod emit;
pub mod held;
pub mod options;
mod replay;
pub mod slots;
pub mod translate;

pub use binding::{Binding, FromClient, FromServer, Heard, OnTimer, Phase, Seen};
pub use cookie::{Agreed, Cookies, Promise};
pub use emit::{Out, Segment, Toward};
pub use held::Held;
pub use slots::Slots;
pub use translate::{Shift, Translation};
