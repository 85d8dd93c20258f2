//! Where a crop lies: which pixels of one axis are seen, and how much zero padding surrounds them.

use std::ops::Range;

/// One axis of a crop: the pixels `seen` appear from `offset` on in an output of `length` pixels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) seen: Range<usize>,
    pub(super) offset: usize,
    pub(super) length: usize,
}

impl Window {
    /// All of an axis.
    pub(super) fn all(length: usize) -> Self {
        Self { seen: 0..length, offset: 0, length }
    }

    /// The middle `length` pixels of this window, or this window in the middle of `length` pixels. Half a pixel is
    /// rounded down, as in `transformers` (torchvision's own `CenterCrop` rounds half to even).
    pub(super) fn center(self, length: usize) -> Self {
        if length >= self.length {
            let offset = self.offset + (length - self.length) / 2;
            return Self { offset, length, ..self };
        }
        let cut = (self.length - length) / 2;
        // What is cut from the front comes from the padding first.
        let seen_cut = cut.saturating_sub(self.offset);
        let offset = self.offset.saturating_sub(cut);
        let start = (self.seen.start + seen_cut).min(self.seen.end);
        let end = self.seen.end.min(start + (length - offset));
        Self { seen: start..end, offset, length }
    }
}
