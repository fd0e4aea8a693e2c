//! Any bytes as a capture file.

use std::io::Cursor;

use tidegate::base::Nanos;
use tidegate::nic::Port;
use tidegate::nic::pcap::{Pace, PcapPort};
use tidegate::packet::{Frame, FramePool};

use super::rig::START;

/// A record's header: no packet takes fewer bytes.
const RECORD_HEADER: usize = 16;

/// Input: the file.
pub fn run(data: &[u8]) {
    for pace in [Pace::AsFast, Pace::AsCaptured] {
        let Ok(mut port) = PcapPort::new(Some(Box::new(Cursor::new(data.to_vec()))), None, pace)
        else {
            return;
        };
        let mut pool = FramePool::standalone(4, 2_048);
        let mut frames: Vec<Frame> = Vec::new();
        let (mut now, mut packets) = (START, 0);
        while !port.finished() {
            let got = port.rx_burst(now, &mut pool, &mut frames, 3);
            assert_eq!(got, frames.len());
            packets += got;
            assert!(packets * RECORD_HEADER <= data.len(), "more packets than bytes");
            frames.drain(..).for_each(|f| pool.put(f));
            if got == 0 {
                assert!(pace == Pace::AsCaptured && now < Nanos::MAX || port.finished());
                now = Nanos::MAX;
            }
        }
        let stats = port.stats();
        assert_eq!(stats.rx_packets, packets as u64);
        assert!(stats.rx_bytes <= data.len() as u64);
        port.close(&mut pool);
        assert_eq!(pool.outstanding(), 0);
    }
}
