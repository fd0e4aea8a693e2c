//! Sending with `--engine xdp`: the kernel makes the frames.

use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signalfd::SignalFd;

use super::flows::FlowSet;
use super::report::Meter;
use super::{Mode, PktgenArgs, Report, end_of, usage};
use crate::nic::flood::{Flood, interruptible};
use crate::nic::steer::kernel_now;

/// Frames of one call at most; a call ends early when the time is over.
const CALL_MAX: u64 = 1 << 30;

/// Sends until the time or the count is reached, or a signal comes.
pub(super) fn send(
    args: &PktgenArgs,
    flows: Option<FlowSet>,
    signals: Option<&SignalFd>,
) -> anyhow::Result<Report> {
    let (Some(mut flows), Mode::Tx) = (flows, args.mode) else {
        return Err(usage("--engine xdp only sends: --mode tx"));
    };
    if args.rate > 0 || args.latency {
        return Err(usage("--engine xdp knows neither --rate nor --latency"));
    }
    let mut frame = vec![0; flows.size()];
    flows.write_next(&mut frame, None);
    let mut flood = Flood::new(&args.interface, &frame, args.flows)?;
    let begin = kernel_now();
    let end = end_of(args, begin)?;
    let mut meter = Meter::new(&args.interface, true, false, begin);
    meter.sent(begin, 0, 0);
    let stopped = AtomicBool::new(false);
    let is_over = || {
        let called = signals.is_some_and(|s| !matches!(s.read_signal(), Ok(None)));
        stopped.fetch_or(called || kernel_now() >= end, Ordering::Relaxed);
        stopped.load(Ordering::Relaxed)
    };
    let limit = if args.count > 0 { args.count } else { u64::MAX };
    interruptible(is_over, || {
        while meter.tx_packets() < limit && !stopped.load(Ordering::Relaxed) {
            let want = (limit - meter.tx_packets()).min(CALL_MAX);
            flood.send(want as u32)?;
            let sent = (flood.frames()? - meter.tx_packets()) as usize;
            meter.sent(kernel_now(), sent, sent * frame.len());
        }
        anyhow::Ok(())
    })??;
    Ok(meter.report(0))
}
