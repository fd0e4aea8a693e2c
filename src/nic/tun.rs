//! A network device whose other end is this process (`TUN`, Documentation/networking/tuntap.rst).

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

const DEVICE: &str = "/dev/net/tun";

/// The process's end: what the kernel sends by the device is read here, and what is written here
/// the kernel receives by it. IP packets, one a call. The device is gone when this is dropped, or
/// with the process.
#[derive(Debug)]
pub struct Tun {
    file: File,
}

impl Tun {
    /// Makes a device of this name in the network namespace of the calling thread. Reading and
    /// writing never wait.
    ///
    /// # Errors
    /// No `/dev/net/tun` (no module, a container without it), no `CAP_NET_ADMIN`, or a name that is
    /// taken or too long.
    pub fn open(name: &str) -> io::Result<Tun> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open(DEVICE)?;
        let mut ifr_name = [0; libc::IFNAMSIZ];
        if name.len() >= ifr_name.len() {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        for (to, from) in ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        let flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
        let mut request =
            libc::ifreq { ifr_name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags } };
        // SAFETY: the ioctl reads and writes one `ifreq`, which outlives the call.
        let made = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
        if made < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Tun { file })
    }

    /// Readable when there is a packet.
    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// The next packet that the kernel sent: how long it is. One that is longer than the room is
    /// cut.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] where there is none.
    pub fn read(&self, room: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(room)
    }

    /// Has the kernel receive a packet.
    ///
    /// # Errors
    /// A packet that is none, or a device that is down.
    pub fn write(&self, packet: &[u8]) -> io::Result<()> {
        (&self.file).write(packet).map(drop)
    }
}
