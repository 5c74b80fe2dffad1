//! Floats that all threads of a job read and write, each its own part between two barriers.
#![allow(unsafe_code)]

use std::cell::UnsafeCell;

/// A fixed number of floats. Large ones cost nothing until they are written.
pub(crate) struct SharedFloats {
    floats: Box<[UnsafeCell<f32>]>,
}

// SAFETY: access goes through `read` and `write`, whose callers keep writers apart from everyone else.
unsafe impl Sync for SharedFloats {}

impl SharedFloats {
    /// That many zeros.
    pub fn new(length: usize) -> SharedFloats {
        let zeros: Box<[f32]> = vec![0.0f32; length].into_boxed_slice();
        // SAFETY: `UnsafeCell<f32>` has the layout of `f32`.
        let floats = unsafe { Box::from_raw(Box::into_raw(zeros) as *mut [UnsafeCell<f32>]) };
        SharedFloats { floats }
    }

    /// `length` floats from `start`, to read.
    ///
    /// # Safety
    /// While the slice lives no thread writes to them.
    #[inline]
    pub unsafe fn read(&self, start: usize, length: usize) -> &[f32] {
        let cells = &self.floats[start..start + length];
        // SAFETY: the layout is that of `[f32]`; the caller keeps writers away.
        unsafe { std::slice::from_raw_parts(cells.as_ptr().cast(), length) }
    }

    /// `length` floats from `start`, to write.
    ///
    /// # Safety
    /// While the slice lives nobody else reads or writes them.
    #[inline]
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn write(&self, start: usize, length: usize) -> &mut [f32] {
        let cells = &self.floats[start..start + length];
        // SAFETY: the cells allow writes through a shared reference; the caller keeps everyone else away.
        unsafe { std::slice::from_raw_parts_mut(UnsafeCell::raw_get(cells.as_ptr()), length) }
    }

    /// The same as [`SharedFloats::read`], for the only owner.
    pub fn read_alone(&mut self, start: usize, length: usize) -> &[f32] {
        // SAFETY: nobody else has a reference.
        unsafe { self.read(start, length) }
    }
}
