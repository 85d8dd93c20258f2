//! Where a crop lies: which pixels of one axis are seen, and how much zero padding surrounds them.

use std::ops::Range;

/// How half a pixel of crop offset is rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rounding {
    /// `transformers`: `int((n - c) / 2)`.
    Down,
    /// torchvision's own `CenterCrop`, which timm uses: `round((n - c) / 2)`, half to even.
    HalfToEven,
}

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

    /// The middle `length` pixels of this window, or this window in the middle of `length` pixels.
    pub(super) fn center(self, length: usize, rounding: Rounding) -> Self {
        if length >= self.length {
            let offset = self.offset + (length - self.length) / 2;
            return Self { offset, length, ..self };
        }
        let spare = self.length - length;
        let cut = match rounding {
            Rounding::HalfToEven if spare % 4 == 3 => spare / 2 + 1,
            Rounding::Down | Rounding::HalfToEven => spare / 2,
        };
        // What is cut from the front comes from the padding first.
        let seen_cut = cut.saturating_sub(self.offset);
        let offset = self.offset.saturating_sub(cut);
        let start = (self.seen.start + seen_cut).min(self.seen.end);
        let end = self.seen.end.min(start + (length - offset));
        Self { seen: start..end, offset, length }
    }
}
