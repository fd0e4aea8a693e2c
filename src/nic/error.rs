//! What can go wrong when ports are opened, told so that an operator knows what to change.

use std::io;

/// Why a port could not be opened or steered to. Nothing is left behind when one is returned.
#[derive(Debug, thiserror::Error)]
pub enum NicError {
    #[error("interface {interface}: no such interface in this network namespace")]
    NoInterface { interface: String },
    #[error("interface {interface}: queue {queue} is taken by another AF_XDP socket")]
    QueueTaken { interface: String, queue: u32 },
    #[error(
        "{what}: not permitted; run as root or with the capabilities CAP_NET_ADMIN, CAP_NET_RAW, \
         CAP_BPF, CAP_PERFMON and CAP_IPC_LOCK (or a `ulimit -l` that covers all frames), and a \
         folder /run/tidegate to write to"
    )]
    Privileges { what: String },
    #[error(
        "{what}: the limit for locked memory is too low; raise `ulimit -l` (LimitMEMLOCK in a \
         systemd unit) or grant CAP_IPC_LOCK"
    )]
    LockedMemory { what: String },
    #[error("kernel {found} is too old: AF_XDP as used here needs {needed} or later")]
    KernelTooOld { found: String, needed: &'static str },
    #[error(
        "interface {interface} has {have} {what} queues for {workers} workers, each needs one of \
         its own: `{fix}`, or fewer workers"
    )]
    TooFewQueues { interface: String, have: u32, what: &'static str, workers: u16, fix: String },
    #[error("interface {interface} has {have} receive queues, over the limit of {limit}")]
    TooManyQueues { interface: String, have: u32, limit: u32 },
    #[error("interface {interface}: {mode} XDP refused: {source}{hint}")]
    AttachRefused { interface: String, mode: &'static str, hint: &'static str, source: io::Error },
    #[error(
        "interface {interface} already has an XDP program ({program}); stop its owner, or remove \
         it with `ip link set dev {interface} xdp off`"
    )]
    ProgramPresent { interface: String, program: String },
    #[error("kernel {found} is too old for `mode = \"tc\"`, which needs {needed} or later")]
    KernelWithoutTcx { found: String, needed: &'static str },
    #[error("interface {interface}: a program for tc (TCX) refused: {source}{hint}")]
    TcxRefused { interface: String, hint: &'static str, source: io::Error },
    #[error(
        "interface {interface}: its companion {companion} is there already, of another tidegate \
         or somebody else: `ip link del {companion}` if nobody needs it"
    )]
    CompanionTaken { interface: String, companion: String },
    #[error("interface {interface}: the driver has no zero-copy mode; use copy = \"auto\"")]
    NoZeroCopy { interface: String },
    #[error(
        "copy modes of the ports differ: one memory region holds the frames of all ports, so \
         `zero-copy` and `copy` can't be mixed"
    )]
    MixedCopyModes,
    #[error(
        "{have} frames a worker are too few: the receive rings of its ports alone take {need}; \
         raise `frames` or lower `rx_ring`"
    )]
    TooFewFrames { have: u32, need: u32 },
    #[error(
        "interface {interface} has an MTU of {mtu}, but a frame of {frame_size} bytes holds a \
         packet of {fits}: `ip link set dev {interface} mtu {fits}`{hint}"
    )]
    MtuTooLarge { interface: String, mtu: u32, frame_size: u32, fits: u32, hint: &'static str },
    #[error("interface {interface}: {what} is {value}, not a power of two")]
    NotPowerOfTwo { interface: String, what: &'static str, value: u32 },
    #[error(
        "interface {interface}: a {what} of {value} is more than the {limit} of the largest port \
         at the start, which the memory region's rings were made for: restart, or take less"
    )]
    RingTooLarge { interface: String, what: &'static str, value: u32, limit: u32 },
    #[error(
        "no memory for {bytes} bytes of frames in huge pages: reserve them with `sysctl \
         vm.nr_hugepages={pages}`"
    )]
    HugePages { bytes: u64, pages: u64 },
    #[error("the kernel refused the XDP program: {0}")]
    Load(String),
    #[error(
        "the XDP programs have room for {limit} {what}, not for {wanted}; a reload needs room for \
         those of before as well: let some go by a reload of its own"
    )]
    TooMany { what: &'static str, wanted: usize, limit: u32 },
    #[error("map `{map}` of the XDP program: {reason}")]
    Map { map: &'static str, reason: String },
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
}

impl NicError {
    /// Names the reason behind a failed call as far as the error number tells.
    pub(crate) fn from_io(what: impl Into<String>, source: io::Error) -> NicError {
        let what = what.into();
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => NicError::Privileges { what },
            Some(libc::ENOBUFS) => NicError::LockedMemory { what },
            _ => NicError::Io { what, source },
        }
    }

    /// The error number of the deepest cause that has one.
    pub(crate) fn os_error(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
        let mut at = Some(error);
        let mut found = None;
        while let Some(e) = at {
            if let Some(io) = e.downcast_ref::<io::Error>() {
                found = io.raw_os_error().or(found);
            }
            at = e.source();
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_numbers_choose_the_message() {
        let e = NicError::from_io("bind", io::Error::from_raw_os_error(libc::EPERM));
        assert!(e.to_string().contains("CAP_NET_RAW"), "{e}");
        let e = NicError::from_io("umem", io::Error::from_raw_os_error(libc::ENOBUFS));
        assert!(e.to_string().contains("ulimit -l"), "{e}");
        let e = NicError::from_io("bind", io::Error::from_raw_os_error(libc::ENODEV));
        assert!(matches!(e, NicError::Io { .. }), "{e}");
        assert_eq!(NicError::os_error(&e), Some(libc::ENODEV));
    }
}
