//! Where a crop lies: which pixels of one axis are seen, how much zero padding surrounds them, and what lies outside.

use std::ops::Range;

/// What lies outside of what is looked at of a picture, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Margins {
    /// Columns at either side.
    pub(super) sides: usize,
    /// Rows at the top.
    pub(super) top: usize,
    /// Rows at the bottom.
    pub(super) bottom: usize,
}

impl Margins {
    /// Height and width of what lies inside, in a picture of (height, width).
    pub(super) fn inside(&self, (height, width): (usize, usize)) -> (usize, usize) {
        (height - self.top - self.bottom, width - 2 * self.sides)
    }

    /// Height and width of a picture whose inside has (height, width).
    pub(super) fn outside(&self, (height, width): (usize, usize)) -> (usize, usize) {
        (height + self.top + self.bottom, width + 2 * self.sides)
    }
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

    /// Where in the output the pixels appear.
    pub(super) fn shown(&self) -> Range<usize> {
        self.offset..self.offset + self.seen.len()
    }

    /// The output's pixels in `range`, as an output of their own.
    pub(super) fn part(&self, range: Range<usize>) -> Self {
        let end = self.offset + self.seen.len();
        let (from, to) = (range.start.clamp(self.offset, end), range.end.clamp(self.offset, end));
        let seen = self.seen.start + from - self.offset..self.seen.start + to - self.offset;
        Self { seen, offset: from.saturating_sub(range.start).min(range.len()), length: range.len() }
    }

    /// This output and behind it the `next` part of what both are parts of.
    pub(super) fn followed_by(&self, next: &Self) -> Self {
        let offset = if self.seen.is_empty() { self.length + next.offset } else { self.offset };
        Self { seen: self.seen.start..next.seen.end, offset, length: self.length + next.length }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn two_parts_are_the_whole(length in 1_usize..20, crop in 1_usize..30, at in 0_usize..30) {
            let whole = Window::all(length).center(crop);
            let at = at.min(crop);
            let (upper, lower) = (whole.part(0..at), whole.part(at..crop));
            prop_assert_eq!(upper.seen.len() + lower.seen.len(), whole.seen.len());
            for part in [&upper, &lower] {
                prop_assert!(part.offset + part.seen.len() <= part.length);
            }
            prop_assert_eq!(upper.followed_by(&lower), whole);
        }
    }
}
