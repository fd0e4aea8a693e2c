//! Connections that have room for fields and header tables only while they need it.

use super::{Connection, Failure, Half, Side};
use crate::inspect::fields::Fields;
use crate::inspect::hpack::Decoder;

impl Connection<Fields> {
    /// Without room for fields and for header tables (of at most this size): that is lent for each
    /// call of [`Connection::feed`].
    pub fn bare(table_bytes: usize) -> Connection {
        let half = |side| Half::new(side, None, Decoder::bare(table_bytes));
        Connection { client: half(Side::Client), server: half(Side::Server), requests: 0 }
    }

    /// Room for a direction's fields, which may hold anything. There must be some while it is fed,
    /// and from then on while [`Connection::is_amid_block`].
    pub fn fields(&mut self, side: Side) -> &mut Option<Box<Fields>> {
        &mut self.half_mut(side).fields
    }

    pub fn has_fields(&self, side: Side) -> bool {
        self.half(side).fields.is_some()
    }

    /// Whether a block of this direction has come in part.
    pub fn is_amid_block(&self, side: Side) -> bool {
        let half = self.half(side);
        half.failure.is_none() && half.block.is_some()
    }

    /// There is no room for what this direction still says.
    pub fn give_up(&mut self, side: Side) {
        self.half_mut(side).failure = Some(Failure::NoRoom);
    }

    /// What holds this direction's header table, and where more may be lent: [`Decoder::room`],
    /// [`Decoder::spare`].
    pub fn decoder(&mut self, side: Side) -> &mut Decoder {
        &mut self.half_mut(side).decoder
    }

    fn half(&self, side: Side) -> &Half<Fields> {
        match side {
            Side::Client => &self.client,
            Side::Server => &self.server,
        }
    }

    fn half_mut(&mut self, side: Side) -> &mut Half<Fields> {
        match side {
            Side::Client => &mut self.client,
            Side::Server => &mut self.server,
        }
    }
}
