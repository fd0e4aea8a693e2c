//! Sends packets faster than any socket: the kernel runs our program over frames of its own and
//! puts them out as XDP frames (`Documentation/bpf/bpf_prog_run.rst`, Linux 5.18). For generators.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aya::maps::{Array, MapData};
use aya::programs::{TestRun, TestRunAttrs, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use nix::sys::pthread::{pthread_kill, pthread_self};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::error::NicError;
use super::link;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/flood.o"));
const PROGRAM: &str = "tidegate_flood";
/// `header` of `src/nic/bpf/flood.c`, bytes.
const HEADER: usize = 72;
const UDP: u8 = 17;
const TCP: u8 = 6;
const ETH: usize = 14;
/// Frames that the kernel makes and sends at once.
const BATCH: u32 = 64;
/// Ends the kernel's run early; nobody else uses it, and by default it is ignored.
const INTERRUPT: Signal = Signal::SIGURG;
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Sends packets of many flows from one interface: UDP, or one TCP segment of each flow.
pub struct Flood {
    ebpf: Ebpf,
    state: Array<MapData, [u64; 2]>,
    frame: Vec<u8>,
}

impl Flood {
    /// `frame` is the first flow's, with correct checksums; of each next one the source port is one
    /// more, and of those beyond port 65535 the source address.
    ///
    /// On a veth device the other end needs an XDP program or GRO, or the kernel drops all.
    ///
    /// # Errors
    /// No such interface, no privileges, a frame that isn't UDP or TCP in IPv4 without options or
    /// in IPv6, more flows than the last 16 bits of the source address can tell apart.
    pub fn new(interface: &str, frame: &[u8], flows: u32) -> Result<Flood, NicError> {
        let egress = link::index_of(interface)
            .map_err(|_| NicError::NoInterface { interface: interface.to_owned() })?;
        let set = Settings::read(frame, flows).ok_or_else(|| NicError::Io {
            what: format!("a frame of {} bytes and {flows} flows", frame.len()),
            source: io::ErrorKind::InvalidInput.into(),
        })?;
        let mut ebpf = EbpfLoader::new()
            .override_global("header", &set.header[..], true)
            .override_global("egress", &egress, true)
            .override_global("flows", &flows, true)
            .override_global("is_v6", &set.is_v6, true)
            .override_global("port_first", &set.port_first, true)
            .override_global("host_first", &set.host_first, true)
            .override_global("ip_sum", &set.ip_sum, true)
            .override_global("is_tcp", &set.is_tcp, true)
            .override_global("l4_sum", &set.l4_sum, true)
            .load(OBJECT)
            .map_err(|e| load_error(&e))?;
        program(&mut ebpf)?.load().map_err(|e| load_error(&e))?;
        let state = ebpf.take_map(".bss").and_then(|m| Array::try_from(m).ok());
        let state = state.ok_or(NicError::Map { map: ".bss", reason: "missing".into() })?;
        Ok(Flood { ebpf, state, frame: frame.to_owned() })
    }

    /// Sends so many frames, fewer where [`interruptible`] ends it. To begin and to end costs some
    /// 10 ms.
    ///
    /// # Errors
    /// No privileges, or a kernel that can't.
    pub fn send(&mut self, frames: u32) -> Result<(), NicError> {
        let options = TestRunOptions {
            data_in: Some(&self.frame),
            repeat: frames,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::new()
        };
        match program(&mut self.ebpf)?.test_run(options) {
            Ok(_) => Ok(()),
            Err(e) => match NicError::os_error(&e) {
                Some(libc::EINTR) => Ok(()),
                Some(libc::EINVAL) => {
                    Err(NicError::Load("XDP live frames need Linux 5.18".to_owned()))
                }
                _ => Err(load_error(&e)),
            },
        }
    }

    /// Frames made so far; those that the other end had no room for are among them.
    ///
    /// # Errors
    /// The kernel refusing to read the map.
    pub fn frames(&self) -> Result<u64, NicError> {
        let state = self.state.get(&0, 0);
        let error = |e: aya::maps::MapError| NicError::Map { map: ".bss", reason: e.to_string() };
        Ok(state.map_err(error)?[0])
    }
}

/// Runs `work` on this thread; ends its sends once `is_over` says so, which another thread asks
/// every few milliseconds.
///
/// # Errors
/// The signal's action can't be set.
pub fn interruptible<T>(
    mut is_over: impl FnMut() -> bool + Send,
    work: impl FnOnce() -> T,
) -> io::Result<T> {
    extern "C" fn nothing(_: libc::c_int) {}
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing. The action stays: others may still be interrupted.
    unsafe { sigaction(INTERRUPT, &action) }?;
    let me = pthread_self();
    let done = AtomicBool::new(false);
    Ok(std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                std::thread::sleep(LOOK_EVERY);
                if is_over() {
                    // Again and again: one may come before the kernel's run has begun.
                    let _ = pthread_kill(me, INTERRUPT);
                }
            }
        });
        let _done = SetOnDrop(&done);
        work()
    }))
}

/// Also if `work` panics, or the scope would wait for ever.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// The constants of `flood.c`.
#[derive(Debug, PartialEq, Eq)]
struct Settings {
    header: [u8; HEADER],
    is_v6: u32,
    is_tcp: u32,
    port_first: u32,
    host_first: u32,
    ip_sum: u32,
    l4_sum: u32,
}

impl Settings {
    fn read(frame: &[u8], flows: u32) -> Option<Settings> {
        let u16_at =
            |at: usize| frame.get(at..at + 2).map(|b| u32::from(b[0]) << 8 | u32::from(b[1]));
        let (is_v6, protocol, host_at, l4_at) = match (u16_at(12)?, frame.get(ETH)?) {
            (0x0800, 0x45) => (false, *frame.get(ETH + 9)?, ETH + 14, ETH + 20),
            (0x86dd, v6) if v6 >> 4 == 6 => (true, *frame.get(ETH + 6)?, ETH + 22, ETH + 40),
            _ => return None,
        };
        let (sum_at, len) = match protocol {
            UDP => (l4_at + 6, l4_at + 8),
            TCP => (l4_at + 16, l4_at + 18),
            _ => return None,
        };
        let (port_first, host_first) = (u16_at(l4_at)?, u16_at(host_at)?);
        let last = host_first.checked_add(port_first.checked_add(flows.checked_sub(1)?)? >> 16)?;
        if last > 0xffff {
            return None;
        }
        let mut header = [0; HEADER];
        header[..len].copy_from_slice(frame.get(..len)?);
        let without = |sum: u32, field: u32| fold(sum + (!field & 0xffff));
        let ip_sum = if is_v6 { 0 } else { without(!u16_at(ETH + 10)? & 0xffff, host_first) };
        let l4_sum = without(without(!u16_at(sum_at)? & 0xffff, host_first), port_first);
        let (is_v6, is_tcp) = (is_v6.into(), (protocol == TCP).into());
        Some(Settings { header, is_v6, is_tcp, port_first, host_first, ip_sum, l4_sum })
    }
}

fn fold(sum: u32) -> u32 {
    (sum & 0xffff) + (sum >> 16)
}

fn program(ebpf: &mut Ebpf) -> Result<&mut Xdp, NicError> {
    let program = ebpf.program_mut(PROGRAM).and_then(|p| p.try_into().ok());
    program.ok_or_else(|| NicError::Load(format!("no program {PROGRAM}")))
}

fn load_error(error: &(dyn std::error::Error + 'static)) -> NicError {
    match NicError::os_error(error) {
        Some(libc::EPERM | libc::EACCES) => {
            NicError::Privileges { what: "loading the generator's program".to_owned() }
        }
        _ => NicError::Load(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_frames_whose_flows_differ_are_taken() {
        let mut frame = vec![0; 60];
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[14] = 0x45;
        frame[23] = 17;
        frame[28..30].copy_from_slice(&[0xff, 0xff]);
        frame[34..36].copy_from_slice(&[0xff, 0xfe]);
        assert!(Settings::read(&frame, 2).is_some());
        assert_eq!(Settings::read(&frame, 3), None, "the third has no address");
        assert_eq!(Settings::read(&frame, 0), None);
        for len in 0..42 {
            assert_eq!(Settings::read(&frame[..len], 1), None, "{len}");
        }
        frame[14] = 0x46;
        assert_eq!(Settings::read(&frame, 1), None, "options");
        (frame[14], frame[23]) = (0x45, 1);
        assert_eq!(Settings::read(&frame, 1), None, "ICMP");
        frame[23] = 6;
        assert!(Settings::read(&frame, 2).is_some_and(|set| set.is_tcp == 1));
        assert_eq!(Settings::read(&frame[..51], 1), None, "no checksum");
    }

    #[test]
    fn an_interrupted_call_ends_early() {
        let start = std::time::Instant::now();
        let mut pipe = [0; 2];
        // SAFETY: fills two descriptors; nobody writes, so that the read blocks.
        assert_eq!(unsafe { libc::pipe(pipe.as_mut_ptr()) }, 0);
        let over = move || start.elapsed() > Duration::from_millis(20);
        let read = interruptible(over, || {
            let mut byte = 0u8;
            // SAFETY: room for the one byte asked for.
            let n = unsafe { libc::read(pipe[0], (&raw mut byte).cast(), 1) };
            (n, io::Error::last_os_error().raw_os_error())
        });
        assert_eq!(read.expect("sigaction"), (-1, Some(libc::EINTR)));
    }
}
