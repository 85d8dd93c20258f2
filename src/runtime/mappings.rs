//! What is mapped into the process's memory, as Linux lists it in `/proc/self/maps`.

use std::ops::Range;

/// A line of the list.
pub(super) struct Mapping<'a> {
    pub(super) addresses: Range<usize>,
    /// Such as `r--p`.
    pub(super) permissions: &'a str,
    /// The file's path, or what else is mapped; empty for memory that was allocated.
    pub(super) name: &'a str,
}

impl<'a> Mapping<'a> {
    pub(super) fn parse(line: &'a str) -> Option<Self> {
        // Offset, device and inode come before the name, of which spaces may be a part.
        let mut fields = line.splitn(6, ' ');
        let (start, end) = fields.next()?.split_once('-')?;
        let permissions = fields.next()?;
        let name = fields.nth(3)?.trim_start();
        let address = |text| usize::from_str_radix(text, 16).ok();
        Some(Self { addresses: address(start)?..address(end)?, permissions, name })
    }
}
