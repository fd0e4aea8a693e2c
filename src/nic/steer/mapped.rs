//! A BPF array that both sides map: read and written without system calls.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr::NonNull;

/// The values of an array map, shared with the program. `T` holds atomics only.
pub(super) struct MappedArray<T> {
    base: NonNull<T>,
    len: usize,
}

// SAFETY: values are only reached by shared references, which `T: Sync` allows from any thread.
unsafe impl<T: Sync> Send for MappedArray<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for MappedArray<T> {}

impl<T: Sync> MappedArray<T> {
    /// Maps a map that was created with `BPF_F_MMAPABLE` and holds `len` values at least, whose
    /// size is a multiple of 8: they lie one after the other.
    pub(super) fn map(fd: BorrowedFd<'_>, len: usize) -> io::Result<MappedArray<T>> {
        MappedArray::new(len, libc::MAP_SHARED, fd.as_raw_fd())
    }

    /// Zeroes that nobody else maps: for workers without a program.
    pub(super) fn anonymous(len: usize) -> io::Result<MappedArray<T>> {
        MappedArray::new(len, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1)
    }

    fn new(len: usize, flags: libc::c_int, fd: RawFd) -> io::Result<MappedArray<T>> {
        const { assert!(size_of::<T>().is_multiple_of(8)) };
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let bytes = len * size_of::<T>();
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let p = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, fd, 0) };
        match NonNull::new(p.cast::<T>()) {
            Some(base) if p != libc::MAP_FAILED => Ok(MappedArray { base, len }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The value at `index`; those beyond the end begin at the first again.
    #[inline]
    pub(super) fn at(&self, index: usize) -> &T {
        // SAFETY: inside the mapping, which lives as long as `self`. All bit patterns are values of
        // atomics, and those are all that either side writes.
        unsafe { self.base.add(index % self.len).as_ref() }
    }
}

impl<T> Drop for MappedArray<T> {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length; references into it borrow `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len * size_of::<T>()) };
    }
}
