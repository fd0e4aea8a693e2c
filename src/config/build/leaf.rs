//! How a leaf of a class tree holds its packets.

use std::time::Duration;

use toml::Spanned;

use super::Build;
use crate::config::file::{FileClass, FileQueue, Noted};
use crate::qos::spec::QueueSpec;

/// The defaults of RFC 8290, section 5.2: toward clients on the Internet.
const TARGET: Duration = Duration::from_millis(5);
const INTERVAL: Duration = Duration::from_millis(100);
const SHORTEST: Duration = Duration::from_micros(10);
const LONGEST: Duration = Duration::from_secs(10);

/// The queue of a class; one that has children holds no packets.
pub fn queue_of(b: &mut Build<'_>, c: &FileClass, has_children: bool) -> QueueSpec {
    let is_fifo = matches!(c.queue.as_ref().map(Spanned::get_ref), Some(FileQueue::Fifo));
    if has_children {
        let given = [
            c.limit.as_ref().map(Spanned::span),
            c.queue.as_ref().map(Spanned::span),
            c.target.as_ref().map(Spanned::span),
            c.interval.as_ref().map(Spanned::span),
            c.flow_rate.as_ref().map(Spanned::span),
        ];
        for span in given.into_iter().flatten() {
            b.warning(&span, "a class with classes below it holds no packets: no effect");
        }
    }
    let target = duration(b, &c.target, TARGET);
    let interval = duration(b, &c.interval, INTERVAL);
    if is_fifo {
        for span in [&c.target, &c.interval].into_iter().flatten().map(Spanned::span) {
            b.error(&span, "a `fifo` has no queue management: only `fq-codel` takes this");
        }
        return QueueSpec::Fifo;
    }
    if target >= interval
        && let Some(span) = c.target.as_ref().or(c.interval.as_ref()).map(Spanned::span)
    {
        let what = format!("a target of {target:?} is not below the interval of {interval:?}");
        b.error(&span, what);
    }
    let ns = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
    QueueSpec::FqCodel { target: ns(target), interval: ns(interval) }
}

fn duration(b: &mut Build<'_>, given: &Noted<Duration>, default: Duration) -> Duration {
    let Some(given) = given else { return default };
    let d = given.get_ref().0;
    if (SHORTEST..=LONGEST).contains(&d) {
        return d;
    }
    b.error(&given.span(), format!("{d:?} is not within {SHORTEST:?} to {LONGEST:?}"));
    default
}
