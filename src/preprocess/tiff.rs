//! The first directory of a TIFF, or of EXIF, which has the same form.

/// Types of values.
pub(super) const SHORT: u32 = 3;
pub(super) const LONG: u32 = 4;
pub(super) const SIGNED_BYTE: u32 = 6;
pub(super) const SIGNED_SHORT: u32 = 8;
pub(super) const SIGNED_LONG: u32 = 9;

/// The first directory, as far as the bytes go.
pub(super) struct Directory<'a> {
    bytes: &'a [u8],
    is_little: bool,
    start: usize,
    entries: u32,
}

/// An entry, by the place where its tag is.
#[derive(Clone, Copy)]
pub(super) struct Entry<'a, 'd>(&'d Directory<'a>, usize);

impl<'a> Directory<'a> {
    /// That of a file, or of EXIF from its byte order on.
    pub(super) fn first(bytes: &'a [u8]) -> Option<Self> {
        let header = Self { bytes, is_little: bytes.starts_with(b"II"), start: 0, entries: 0 };
        let at = header.number(4, 4)? as usize;
        Some(Self { start: at.checked_add(2)?, entries: header.number(at, 2)?, ..header })
    }

    /// The entries called `tag`; there should be one at most.
    pub(super) fn entries<'d>(&'d self, tag: u32) -> impl Iterator<Item = Entry<'a, 'd>> {
        let places = (self.start..self.bytes.len()).step_by(12).zip(0..self.entries);
        places.filter(move |&(place, _)| self.number(place, 2) == Some(tag)).map(|(place, _)| Entry(self, place))
    }

    fn number(&self, at: usize, length: usize) -> Option<u32> {
        let bytes = self.bytes.get(at..at.checked_add(length)?)?;
        let add = |number: u32, byte: &u8| number << 8 | u32::from(*byte);
        Some(if self.is_little { bytes.iter().rev().fold(0, add) } else { bytes.iter().fold(0, add) })
    }
}

impl Entry<'_, '_> {
    /// The type of its values.
    pub(super) fn kind(self) -> Option<u32> {
        self.0.number(self.1 + 2, 2)
    }

    /// The first of its values, of so many bytes, where they are in the entry itself.
    pub(super) fn value(self, bytes: usize) -> Option<u32> {
        let count = self.0.number(self.1 + 4, 4)? as usize;
        let is_within = (1..=4 / bytes).contains(&count);
        if is_within { self.0.number(self.1 + 8, bytes) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_in_both_byte_orders_as_far_as_they_go() {
        let little = *b"II*\0\x08\0\0\0\x02\0\x00\x01\x03\0\x01\0\0\0\x07\0\0\0\x12\x01\x04\0\x01\0\0\0\x01\x02\0\0";
        let big = *b"MM\0*\0\0\0\x08\0\x02\x01\x00\0\x03\0\0\0\x01\0\x07\0\0\x01\x12\0\x04\0\0\0\x01\0\0\x02\x01";
        for bytes in [little, big] {
            let directory = Directory::first(&bytes).unwrap();
            let told = |tag| directory.entries(tag).map(|entry| (entry.kind(), entry.value(2))).collect::<Vec<_>>();
            assert_eq!((told(256), told(1)), (vec![(Some(3), Some(7))], vec![]));
            let long: Vec<_> = directory.entries(274).map(|entry| (entry.kind(), entry.value(4))).collect();
            assert_eq!(long, [(Some(4), Some(0x201))]);
            for length in 0..bytes.len() {
                if let Some(directory) = Directory::first(&bytes[..length]) {
                    directory.entries(274).for_each(|entry| assert!(entry.value(4).is_none() || length == bytes.len()));
                }
            }
        }
    }
}
