//! What flows turned out to be, counted.

use super::{Given, Slot};
use crate::inspect::inspector::{App, Inspector, Unknown};
use crate::inspect::tls::Failure;
use crate::observe::Counters;

/// Counts what a flow turned out to be. Returns why it is unknown, where it looked like something
/// that is known.
pub(super) fn count_end(
    inspector: &Inspector,
    slot: &Slot,
    why: Given,
    counters: &mut Counters,
) -> Option<&'static str> {
    if inspector.app() != App::None {
        if !slot.counted {
            count_app(inspector.app(), counters);
        }
        if inspector.client_hello().is_none() && matches!(inspector.app(), App::Tls) {
            match why {
                Given::Done => counters.hellos_malformed += 1,
                Given::Stalled => counters.unknown_stalled += 1,
                Given::Up(unknown) => count_unknown(unknown, counters),
            }
            return match why {
                Given::Done => None,
                Given::Stalled => Some("stalled"),
                Given::Up(unknown) => Some(unknown.name()),
            };
        }
        return None;
    }
    match (inspector.unknown(), why) {
        (Some(unknown), _) | (None, Given::Up(unknown)) => {
            count_unknown(unknown, counters);
            Some(unknown.name())
        }
        (None, Given::Stalled) => {
            counters.unknown_stalled += 1;
            Some("stalled")
        }
        (None, Given::Done) => {
            counters.apps_other += 1;
            None
        }
    }
}

pub(in crate::graph::stages) fn count_app(app: App, counters: &mut Counters) {
    match app {
        App::None => {}
        App::Tls => counters.apps_tls += 1,
        App::Quic | App::QuicMaybe => counters.apps_quic += 1,
        App::Http1 | App::ConnectTls => counters.apps_http1 += 1,
        App::H2c | App::H2cUpgrade | App::H2cMid => counters.apps_http2 += 1,
    }
}

pub(in crate::graph::stages) fn count_unknown(unknown: Unknown, counters: &mut Counters) {
    match unknown {
        Unknown::HelloTooLong => counters.unknown_hello_too_long += 1,
        Unknown::HeadMalformed => counters.unknown_head_malformed += 1,
        Unknown::HeadTooLong => counters.unknown_head_too_long += 1,
        Unknown::StreamTooLong => counters.unknown_stream_too_long += 1,
        Unknown::Gaps => counters.unknown_gaps += 1,
        Unknown::Crowded => counters.unknown_crowded += 1,
    }
}

pub(in crate::graph::stages) fn count_failure(failure: Option<Failure>, counters: &mut Counters) {
    match failure {
        Some(Failure::Malformed) => counters.hellos_malformed += 1,
        Some(Failure::TooLong) => counters.unknown_hello_too_long += 1,
        Some(Failure::NotTls) | None => counters.apps_other += 1,
    }
}

/// A hello that was read: its name.
pub(in crate::graph::stages) fn count_name(sni: Option<&[u8]>, counters: &mut Counters) {
    match sni {
        Some(_) => counters.names_found += 1,
        None => counters.hellos_without_name += 1,
    }
}
