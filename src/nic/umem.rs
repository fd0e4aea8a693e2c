//! The one memory region that the frames of all AF_XDP sockets of the process live in.

use std::num::NonZeroU32;
use std::ptr::{NonNull, with_exposed_provenance_mut};
use std::sync::Arc;

use xsk_rs::config::{FrameSize, QueueSize, UmemConfig};
use xsk_rs::{FrameDesc, Umem as XskUmem};

use super::error::NicError;
use crate::base::mem::{Arena, Slot};
use crate::packet::Frame;
use crate::packet::frame::HEADROOM;

const HUGE_PAGE: u64 = 2 << 20;

/// The region, registered with the kernel, as the sockets and as the packet path know it.
#[derive(Clone)]
pub struct Umem {
    pub(super) xsk: XskUmem,
    pub(super) arena: Arc<Arena>,
    /// The descriptor of each slot, its data at [`HEADROOM`], which is where the kernel puts
    /// received packets too: xsk-rs lets nobody else make descriptors.
    pub(super) descs: Arc<[FrameDesc]>,
}

/// The region's dimensions.
#[derive(Clone, Copy, Debug)]
pub struct UmemSpec {
    pub frames: u32,
    /// Bytes: 2048 or 4096.
    pub frame_size: u32,
    /// Descriptors of each fill ring and of each completion ring; powers of two. All sockets have
    /// rings of the same size, for libxdp keeps one setting for the region.
    pub fill_ring: u32,
    pub completion_ring: u32,
    pub huge_pages: bool,
}

impl Umem {
    /// Maps and registers the region, and mints the handles of its slots.
    ///
    /// # Errors
    /// No privileges, locked memory or huge pages running out, a size the kernel refuses.
    pub fn create(spec: UmemSpec) -> Result<(Umem, Vec<Slot>), NicError> {
        let size = u64::from(spec.frame_size);
        let mut frames = u64::from(spec.frames);
        if spec.huge_pages {
            // A mapping in huge pages has to be unmapped in whole ones.
            frames = (frames * size).next_multiple_of(HUGE_PAGE) / size;
        }
        let bytes = frames * size;
        let what = || format!("registering {bytes} bytes of frames with the kernel");
        let config = config(&spec).map_err(|reason| NicError::Io {
            what: what(),
            source: std::io::Error::new(std::io::ErrorKind::InvalidInput, reason),
        })?;
        let count = u32::try_from(frames).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN);
        let (xsk, mut descs) = XskUmem::new(config, count, spec.huge_pages).map_err(|e| {
            let errno = NicError::os_error(&e);
            if spec.huge_pages && errno == Some(libc::ENOMEM) {
                return NicError::HugePages { bytes, pages: bytes.div_ceil(HUGE_PAGE) };
            }
            let source = errno.map_or_else(
                || std::io::Error::other(e.to_string()),
                std::io::Error::from_raw_os_error,
            );
            NicError::from_io(what(), source)
        })?;
        let base = base_of(&xsk, &mut descs);
        // SAFETY: the region has `count` frames of `frame_size` bytes and stays mapped while a
        // clone of `xsk` lives; only sockets of this module hand its frames to the kernel, by slots
        // whose handles they hold.
        let (arena, slots) =
            unsafe { Arena::adopt(base, count.get(), spec.frame_size, Box::new(xsk.clone())) };
        Ok((Umem { xsk, arena, descs: descs.into() }, slots))
    }

    /// Moves a packet to where its slot's descriptor points. Received packets are there already;
    /// only those whose front grew or shrank are moved.
    #[cold]
    pub(super) fn realign(&self, frame: &mut Frame) {
        let (from, len) = (frame.offset(), frame.len());
        let low = from.min(HEADROOM);
        let span = from.max(HEADROOM) + len - low;
        let fits = frame.set_extent(&self.arena, low, span);
        debug_assert!(fits);
        frame.bytes_mut(&self.arena).copy_within(from - low..from - low + len, HEADROOM - low);
        let fits = frame.set_extent(&self.arena, HEADROOM, len);
        debug_assert!(fits);
    }
}

fn config(spec: &UmemSpec) -> Result<UmemConfig, String> {
    let ring = |n| QueueSize::new(n).map_err(|e| e.to_string());
    UmemConfig::builder()
        .frame_size(FrameSize::new(spec.frame_size).map_err(|e| e.to_string())?)
        .fill_queue_size(ring(spec.fill_ring)?)
        .comp_queue_size(ring(spec.completion_ring)?)
        .frame_headroom(0)
        .build()
        .map_err(|e| e.to_string())
}

/// Where the region begins: xsk-rs tells only where a frame's data begins.
fn base_of(xsk: &XskUmem, descs: &mut [FrameDesc]) -> NonNull<u8> {
    assert!(descs.iter().take(1).all(|d| d.addr() == HEADROOM), "frame 0 begins with its headroom");
    let data = descs.first_mut().map(|first| {
        // SAFETY: the descriptor is this region's, and nobody uses the frame yet.
        let mut data = unsafe { xsk.data_mut(first) };
        data.contents_mut().as_mut_ptr().expose_provenance()
    });
    // The whole mapping was handed to the kernel and libxdp, so its provenance is exposed.
    let base = data.map(|at| with_exposed_provenance_mut::<u8>(at - HEADROOM));
    NonNull::new(base.unwrap_or_default()).unwrap_or(NonNull::dangling())
}
