//! Raw memory: the arena that packet frames live in, tables on huge pages, cache prefetching, and
//! comparing many words at once.
//!
//! The only room below `nic` that holds unsafe code. Everything it offers is safe to call: a slot
//! of an arena is reached through its [`Slot`], a handle that can't be copied, so whoever holds it
//! is the only one who can touch the bytes.

use std::alloc::{self, Layout};
use std::fmt::{self, Debug};
use std::io;
use std::num::NonZeroU32;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Slots dropped instead of being given back, in the whole process. Zero in a correct program.
static LEAKED_SLOTS: AtomicU64 = AtomicU64::new(0);
static NEXT_ARENA: AtomicU32 = AtomicU32::new(1);

/// Slots that were dropped without being given back to a pool or a kernel ring.
pub fn leaked_slots() -> u64 {
    LEAKED_SLOTS.load(Ordering::Relaxed)
}

/// One region of equal slots, page-aligned, shared by everyone who handles its slots.
pub struct Arena {
    base: NonNull<u8>,
    id: NonZeroU32,
    slots: u32,
    slot_size: u32,
    backing: Backing,
}

enum Backing {
    /// Mapped here, of this many bytes; unmapped on drop.
    Mapped(usize),
    /// Kept alive by its owner, which is dropped after the arena.
    Foreign(#[expect(dead_code, reason = "held for its Drop")] Box<dyn Send + Sync>),
}

// SAFETY: the arena hands out references to its bytes only through a `Slot`, which is neither Copy
// nor Clone and exists once per index (`mint` is called once per arena, `slot_from_raw` is unsafe),
// so two threads can't reach the same bytes.
unsafe impl Send for Arena {}
// SAFETY: as above: `&Arena` alone gives no access to any byte.
unsafe impl Sync for Arena {}

/// The right to use one slot of one arena. Give it back to a pool or to a ring: dropping it leaks
/// the slot, which is counted, and panics in debug builds.
#[derive(Debug, PartialEq, Eq)]
pub struct Slot {
    index: u32,
    /// Never 0, so that an `Option` of whatever holds a slot is no larger than the thing itself.
    arena: NonZeroU32,
}

impl Slot {
    /// The slot's number within its arena.
    #[inline]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Gives the handle up without giving the slot back: for lending it to a kernel ring.
    #[inline]
    pub fn into_raw(self) -> u32 {
        let index = self.index;
        std::mem::forget(self);
        index
    }
}

impl Drop for Slot {
    #[cold]
    fn drop(&mut self) {
        LEAKED_SLOTS.fetch_add(1, Ordering::Relaxed);
        if cfg!(debug_assertions) && !std::thread::panicking() {
            panic!("frame slot {} of arena {} was dropped, not given back", self.index, self.arena);
        }
    }
}

impl Arena {
    /// Maps `slots` slots of `slot_size` bytes (a power of two, at least 64) and mints their
    /// handles.
    ///
    /// # Errors
    /// `mmap` failing, as it does for huge pages when none are reserved.
    ///
    /// # Panics
    /// On a slot size that is no power of two: sizes are checked when the configuration is read.
    pub fn map(slots: u32, slot_size: u32, huge: bool) -> io::Result<(Arc<Arena>, Vec<Slot>)> {
        assert!(slot_size.is_power_of_two() && slot_size >= 64, "slot size {slot_size}");
        let page = if huge { HUGE_PAGE } else { 4096 };
        let len = (slots as usize * slot_size as usize).next_multiple_of(page).max(page);
        let flags = libc::MAP_PRIVATE
            | libc::MAP_ANONYMOUS
            | if huge { libc::MAP_HUGETLB } else { libc::MAP_POPULATE };
        // SAFETY: an anonymous mapping at an address of the kernel's choice touches nothing that
        // exists.
        let p = unsafe {
            libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
        };
        if p == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(p.cast::<u8>()).ok_or_else(io::Error::last_os_error)?;
        Ok(Self::assemble(base, slots, slot_size, Backing::Mapped(len)))
    }

    /// Takes over memory that `owner` keeps mapped, and mints the handles of its slots.
    ///
    /// # Safety
    /// `base` points to `slots * slot_size` writable bytes that stay valid until `owner` is dropped
    /// and that nothing else reads or writes, except the kernel within slots whose handle was given
    /// up.
    pub unsafe fn adopt(
        base: NonNull<u8>,
        slots: u32,
        slot_size: u32,
        owner: Box<dyn Send + Sync>,
    ) -> (Arc<Arena>, Vec<Slot>) {
        assert!(slot_size.is_power_of_two() && slot_size >= 64, "slot size {slot_size}");
        Self::assemble(base, slots, slot_size, Backing::Foreign(owner))
    }

    fn assemble(
        base: NonNull<u8>,
        slots: u32,
        slot_size: u32,
        backing: Backing,
    ) -> (Arc<Arena>, Vec<Slot>) {
        let id = NonZeroU32::new(NEXT_ARENA.fetch_add(1, Ordering::Relaxed));
        let id = id.expect("fewer than 2^32 arenas");
        let handles = (0..slots).map(|index| Slot { index, arena: id }).collect();
        (Arc::new(Arena { base, id, slots, slot_size, backing }), handles)
    }

    pub fn slots(&self) -> u32 {
        self.slots
    }

    pub fn slot_size(&self) -> u32 {
        self.slot_size
    }

    /// The handle of a slot that a kernel ring gives back.
    ///
    /// # Safety
    /// The slot's handle was given up with [`Slot::into_raw`] and not remade since; the kernel is
    /// done with it.
    ///
    /// # Panics
    /// On an index outside the arena: descriptors are checked in release builds too.
    #[inline]
    pub unsafe fn slot_from_raw(&self, index: u32) -> Slot {
        assert!(index < self.slots, "slot {index} of {}", self.slots);
        Slot { index, arena: self.id }
    }

    #[inline(always)]
    fn at(&self, slot: &Slot) -> *mut u8 {
        assert!(slot.arena == self.id, "slot of another arena");
        // SAFETY: handles of this arena are minted with `index < slots`, so the offset is inside.
        unsafe { self.base.as_ptr().add(slot.index as usize * self.slot_size as usize) }
    }

    /// All bytes of the slot.
    #[inline(always)]
    pub fn bytes<'a>(&'a self, slot: &'a Slot) -> &'a [u8] {
        // SAFETY: `at` points to `slot_size` bytes, initialised by mmap's zeroes; the unique handle
        // is borrowed, so nobody writes meanwhile.
        unsafe { std::slice::from_raw_parts(self.at(slot), self.slot_size as usize) }
    }

    /// All bytes of the slot, to write.
    #[inline(always)]
    pub fn bytes_mut<'a>(&'a self, slot: &'a mut Slot) -> &'a mut [u8] {
        // SAFETY: as in `bytes`; the handle is borrowed mutably, so this reference is the only one.
        unsafe { std::slice::from_raw_parts_mut(self.at(slot), self.slot_size as usize) }
    }

    /// Asks the cache for the line `offset` bytes into the slot.
    #[inline(always)]
    pub fn prefetch(&self, slot: &Slot, offset: usize) {
        prefetch_at(self.at(slot).wrapping_add(offset));
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if let Backing::Mapped(len) = self.backing {
            // SAFETY: mapped in `map` with this length; no reference into it outlives `self`.
            unsafe { libc::munmap(self.base.as_ptr().cast(), len) };
        }
    }
}

/// A vector with room for so many elements and no more, on transparent huge pages where the kernel
/// has them: a table that is looked into at random otherwise costs a walk through the page tables
/// with nearly every look. It begins with a huge page, so that no part of it is left on small ones
/// but less than half a page at its end.
pub struct Table<T> {
    first: NonNull<T>,
    len: usize,
    room: usize,
}

const HUGE_PAGE: usize = 2 << 20;
const CACHE_LINE: usize = 64;

// SAFETY: it owns its elements alone, as a `Vec` does.
unsafe impl<T: Send> Send for Table<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Table<T> {}

impl<T> Table<T> {
    /// An empty one with room for `n`.
    ///
    /// # Panics
    /// On more than half the address space. Where there is not so much memory the process ends, as
    /// with a `Vec`.
    pub fn with_room(n: usize) -> Table<T> {
        let Some(layout) = Self::layout(n) else {
            return Table { first: NonNull::dangling(), len: 0, room: n };
        };
        // SAFETY: the layout has a size other than 0.
        let at = unsafe { alloc::alloc(layout) };
        let Some(first) = NonNull::new(at.cast()) else { alloc::handle_alloc_error(layout) };
        // SAFETY: it was just allocated, with this size.
        unsafe { prefer_huge_pages(at, layout.size()) };
        Table { first, len: 0, room: n }
    }

    /// `n` times `value`.
    pub fn filled(n: usize, value: T) -> Table<T>
    where
        T: Clone,
    {
        let mut table = Self::with_room(n);
        table.extend(std::iter::repeat_n(value, n));
        table
    }

    /// Adds an element behind the others.
    ///
    /// # Panics
    /// Where there is no room for it.
    #[inline]
    pub fn push(&mut self, value: T) {
        assert!(self.len < self.room, "a table of {} is full", self.room);
        // SAFETY: `room` elements fit what was allocated, and this one is below that.
        unsafe { self.first.add(self.len).write(value) };
        self.len += 1;
    }

    /// Of `n` elements; `None` where they take no memory. What is half a huge
    /// page or more is one.
    fn layout(n: usize) -> Option<Layout> {
        let exact = Layout::array::<T>(n).expect("less than half the address space");
        let up = exact.size().next_multiple_of(HUGE_PAGE);
        let is_huge = exact.size() >= HUGE_PAGE / 2;
        let size = if is_huge && up - exact.size() <= HUGE_PAGE / 2 { up } else { exact.size() };
        let align = exact.align().max(if is_huge { HUGE_PAGE } else { CACHE_LINE });
        let layout = Layout::from_size_align(size, align).expect("as above");
        (size > 0).then_some(layout)
    }
}

impl<T> Extend<T> for Table<T> {
    fn extend<I: IntoIterator<Item = T>>(&mut self, values: I) {
        values.into_iter().for_each(|value| self.push(value));
    }
}

impl<T> Deref for Table<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: `first` is aligned, and the first `len` elements have been written.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for Table<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above; the table is borrowed mutably, so this reference is the only one.
        unsafe { std::slice::from_raw_parts_mut(self.first.as_ptr(), self.len) }
    }
}

impl<T: Debug> Debug for Table<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T> Drop for Table<T> {
    fn drop(&mut self) {
        let elements = std::ptr::from_mut::<[T]>(&mut **self);
        // SAFETY: they are dropped once, and nobody sees them afterwards.
        unsafe { std::ptr::drop_in_place(elements) };
        if let Some(layout) = Self::layout(self.room) {
            // SAFETY: allocated in `with_room` with this layout.
            unsafe { alloc::dealloc(self.first.as_ptr().cast(), layout) };
        }
    }
}

/// An empty vector with room for `n`, on huge pages as far as it fills them: for what only turns
/// out how long it is as it grows.
pub fn huge_table<T>(n: usize) -> Vec<T> {
    let mut table: Vec<T> = Vec::with_capacity(n);
    // SAFETY: the vector's own memory, whose size is that of an allocation.
    unsafe { prefer_huge_pages(table.as_mut_ptr().cast(), table.capacity() * size_of::<T>()) };
    table
}

/// Asks the kernel for huge pages where they lie whole within a part of memory.
///
/// # Safety
/// The part belongs to the caller.
unsafe fn prefer_huge_pages(from: *mut u8, len: usize) {
    let before = from.align_offset(HUGE_PAGE);
    let whole = len.saturating_sub(before) / HUGE_PAGE * HUGE_PAGE;
    if whole > 0 {
        let first = from.wrapping_add(before);
        // SAFETY: whole pages within the caller's memory; the advice changes nothing of what they
        // hold. It is a wish: where it is refused, they stay small.
        unsafe { libc::madvise(first.cast(), whole, libc::MADV_HUGEPAGE) };
    }
}

/// Asks the cache for `slice[index]`; for the first element, or for nothing, when that is outside.
/// Without a branch, which where it can't be foretold costs more than a fetch in vain.
#[inline(always)]
pub fn prefetch<T>(slice: &[T], index: usize) {
    let inside = usize::from(index < slice.len());
    prefetch_at(slice.as_ptr().wrapping_add(index * inside));
}

/// Asks the cache for the line that `value` begins in.
#[inline(always)]
pub fn prefetch_line<T>(value: &T) {
    prefetch_at(value);
}

/// A bit for each of `words` that equals `wanted`, the first one's lowest.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub fn lanes_equal(words: &[u32; 8], wanted: u32) -> u32 {
    use std::arch::x86_64::{
        _mm_cmpeq_epi32, _mm_loadu_si128, _mm_movemask_epi8, _mm_packs_epi16, _mm_packs_epi32,
        _mm_set1_epi32, _mm_setzero_si128,
    };
    let halves = words.as_ptr();
    // SAFETY: SSE2 is part of x86_64, and each load reads 16 of the array's 32 bytes.
    unsafe {
        let wanted = _mm_set1_epi32(wanted.cast_signed());
        let low = _mm_cmpeq_epi32(_mm_loadu_si128(halves.cast()), wanted);
        let high = _mm_cmpeq_epi32(_mm_loadu_si128(halves.add(4).cast()), wanted);
        let bytes = _mm_packs_epi16(_mm_packs_epi32(low, high), _mm_setzero_si128());
        _mm_movemask_epi8(bytes).cast_unsigned()
    }
}

/// A bit for each of `words` that equals `wanted`, the first one's lowest.
#[cfg(not(target_arch = "x86_64"))]
pub fn lanes_equal(words: &[u32; 8], wanted: u32) -> u32 {
    let bit = |(at, &word): (usize, &u32)| u32::from(word == wanted) << at;
    words.iter().enumerate().map(bit).sum()
}

/// Asks the cache for the line at any address, be it one of memory or not.
#[inline(always)]
pub fn prefetch_at<T>(p: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch is a hint; it never faults, whatever the address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(p.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_equal_word_has_its_bit() {
        for set in 0..256u32 {
            let words = std::array::from_fn(|at| if set >> at & 1 == 1 { 0x8000_0001 } else { 1 });
            assert_eq!(lanes_equal(&words, 0x8000_0001), set);
        }
    }

    #[test]
    fn tables_hold_what_was_put_there_and_drop_it_once() {
        let seen = std::rc::Rc::new(());
        for room in [0, 1, 7, (HUGE_PAGE / 8) + 1, HUGE_PAGE / 5] {
            let mut table = Table::with_room(room);
            table.extend((0..room).map(|_| std::rc::Rc::clone(&seen)));
            assert_eq!((table.len(), std::rc::Rc::strong_count(&seen)), (room, room + 1));
            drop(table);
            assert_eq!(std::rc::Rc::strong_count(&seen), 1);
        }
        let mut table = Table::filled(3, 2u32);
        table[1] += 5;
        assert_eq!(table[..], [2, 7, 2]);
        assert_eq!(Table::filled(3, 4u8)[..], [4; 3]);
        assert!(Table::<()>::filled(5, ()).len() == 5);
    }

    #[test]
    fn large_tables_begin_with_a_huge_page_and_small_ones_with_a_line() {
        for (room, align, size) in [
            (3, CACHE_LINE, 3),
            (HUGE_PAGE / 2 - 1, CACHE_LINE, HUGE_PAGE / 2 - 1),
            (HUGE_PAGE / 2, HUGE_PAGE, HUGE_PAGE),
            (HUGE_PAGE + 1, HUGE_PAGE, HUGE_PAGE + 1),
            (3 * HUGE_PAGE - 1, HUGE_PAGE, 3 * HUGE_PAGE),
        ] {
            let layout = Table::<u8>::layout(room).expect("some memory");
            assert_eq!((layout.align(), layout.size()), (align, size), "{room}");
            let table = Table::filled(room, 7u8);
            assert!((table.as_ptr() as usize).is_multiple_of(align));
            assert!(table.iter().all(|&byte| byte == 7));
        }
    }

    #[test]
    #[should_panic(expected = "a table of 2 is full")]
    fn a_table_has_no_more_room_than_it_was_made_with() {
        let mut table = Table::filled(2, 0u8);
        table.push(1);
    }

    #[test]
    fn slots_are_disjoint() {
        let (arena, mut slots) = Arena::map(4, 2048, false).expect("map");
        for s in &mut slots {
            let tag = s.index() as u8 + 1;
            arena.bytes_mut(s).fill(tag);
        }
        for s in &slots {
            assert!(arena.bytes(s).iter().all(|&b| b == s.index() as u8 + 1));
        }
        for s in slots {
            s.into_raw();
        }
    }

    #[test]
    #[should_panic(expected = "slot of another arena")]
    fn a_foreign_slot_is_refused() {
        let (_a, a_slots) = Arena::map(1, 2048, false).expect("map");
        let (b, b_slots) = Arena::map(1, 2048, false).expect("map");
        let foreign = std::mem::ManuallyDrop::new(a_slots);
        let _own = std::mem::ManuallyDrop::new(b_slots);
        let _ = b.bytes(&foreign[0]);
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "was dropped, not given back")]
    fn a_dropped_slot_is_a_bug() {
        let (_a, mut slots) = Arena::map(1, 2048, false).expect("map");
        let slot = slots.pop();
        drop(slot);
    }
}
