//! `[workers]`.

use std::ops::Range;
use std::time::Duration;

use toml::Spanned;

use super::{Build, show};
use crate::config::file::{FileConfig, FileIdle, FileOffload, FileOnFailure, FileWorkers};
use crate::nic::spec::PortSpec;
use crate::worker::spec::{IdleStrategy, OnFailure, WorkersSpec};

const WORKERS_MAX: i64 = 64;
const FRAMES_DEFAULT: u32 = 16_384;
const FRAMES_MAX: i64 = 1 << 24;
/// Frames beside those in rings: a batch, parked packets, and the class trees' queues.
const FRAMES_RESERVE: u32 = 1_024;
/// Fits an Ethernet frame of MTU 1500 behind XDP's headroom, at half the memory of 4096.
const FRAME_SIZE_DEFAULT: u32 = 2_048;
const FLOWS_DEFAULT: u32 = 1_000_000;
const FLOWS: std::ops::RangeInclusive<i64> = 64..=1 << 24;
const HALF_OPEN_DEFAULT: u32 = 65_536;
const CORE_MAX: i64 = 4_095;
/// Below the lower one a worker that is merely scheduled away counts as dead.
const HEARTBEAT: [Duration; 3] =
    [Duration::from_millis(5), Duration::from_millis(100), Duration::from_secs(60)];
const DRAIN: [Duration; 3] = [Duration::ZERO, Duration::from_secs(5), Duration::from_secs(3_600)];

pub fn workers(b: &mut Build<'_>, file: &FileConfig, ports: &[PortSpec]) -> WorkersSpec {
    let none = FileWorkers::default();
    let w = file.workers.as_ref().map_or(&none, Spanned::get_ref);
    let at = file.workers.as_ref().map_or(0..0, Spanned::span);
    let count = b.number(&w.count, 1..=WORKERS_MAX, 1u16);
    let count_max = count_max(b, w, count);
    let flows_max = b.number(&w.flows_max, FLOWS, FLOWS_DEFAULT);
    let half_open_default = HALF_OPEN_DEFAULT.min(flows_max);
    WorkersSpec {
        count,
        count_max,
        cores: cores(b, w, &at, count),
        idle: match w.idle {
            Some(FileIdle::Busy) => IdleStrategy::Busy,
            Some(FileIdle::Adaptive) | None => IdleStrategy::Adaptive,
        },
        on_failure: match w.on_failure {
            Some(FileOnFailure::Drop) => OnFailure::Drop,
            Some(FileOnFailure::Pass) | None => OnFailure::Pass,
        },
        heartbeat_limit: {
            let [low, default, high] = HEARTBEAT;
            b.within(&w.heartbeat_limit, low..=high, default, show)
        },
        offload: matches!(w.offload, Some(FileOffload::Auto)),
        frames: frames(b, w, ports),
        frame_size: frame_size(b, w),
        huge_pages: w.huge_pages.unwrap_or(false),
        flows_max,
        half_open_max: b.number(&w.half_open_max, 64..=i64::from(flows_max), half_open_default),
        drain_limit: {
            let [low, default, high] = DRAIN;
            b.within(&w.drain_limit, low..=high, default, show)
        },
    }
}

/// How many there are; unless that is given, as many as run, or as are asked for where these are
/// more.
fn count_max(b: &mut Build<'_>, w: &FileWorkers, count: u16) -> u16 {
    let least = b.running.map_or(count, |running| running.count_max.max(count));
    let count_max = b.number(&w.count_max, 1..=WORKERS_MAX, least);
    if let Some(given) = &w.count_max
        && count_max < count
    {
        let what = format!("`count` is {count}: of the workers that there are, not more can run");
        b.error(&given.span(), what);
        return count;
    }
    count_max
}

/// Whether the machine has these cores is seen at start.
fn cores(b: &mut Build<'_>, w: &FileWorkers, table: &Range<usize>, count: u16) -> Vec<usize> {
    let Some(list) = &w.cores else { return Vec::new() };
    let mut cores: Vec<usize> = Vec::new();
    for core in list.get_ref() {
        let n = *core.get_ref();
        let known = usize::try_from(n).ok().filter(|_| n <= CORE_MAX);
        match known {
            None => b.error(&core.span(), format!("{n} is not within 0 to {CORE_MAX}")),
            Some(c) if cores.contains(&c) => {
                b.error(&core.span(), format!("core {c} is given twice"));
            }
            Some(c) => cores.push(c),
        }
    }
    let given = list.get_ref().len();
    if given != 0 && given != usize::from(count) && !b.faulty.contains(table, "cores") {
        let what = format!("cores for {given} of {count} threads: as many as `count`, or none");
        b.error(&list.span(), what);
    }
    cores
}

/// Each worker has a socket on each port, and each ring of it may be full of frames.
fn frames(b: &mut Build<'_>, w: &FileWorkers, ports: &[PortSpec]) -> u32 {
    let rings: u32 = ports.iter().map(|p| p.rx_ring.saturating_add(p.tx_ring)).sum();
    let needed = rings.saturating_add(FRAMES_RESERVE);
    let Some(given) = &w.frames else {
        // Half as much again, so that queues have room beside full rings.
        return FRAMES_DEFAULT.max((needed + needed / 2).next_power_of_two());
    };
    let frames = b.number(&w.frames, 1..=FRAMES_MAX, FRAMES_DEFAULT);
    if frames < needed {
        let what = format!(
            "{frames} frames are too few: the rings of all ports hold {rings} and \
             {FRAMES_RESERVE} more are needed; give {needed} or more"
        );
        b.error(&given.span(), what);
    }
    frames
}

fn frame_size(b: &mut Build<'_>, w: &FileWorkers) -> u32 {
    match &w.frame_size {
        None => FRAME_SIZE_DEFAULT,
        Some(given) => match given.get_ref() {
            2_048 => 2_048,
            4_096 => 4_096,
            n => {
                b.error(&given.span(), format!("a frame has 2048 or 4096 bytes, not {n}"));
                FRAME_SIZE_DEFAULT
            }
        },
    }
}
