//! Entropy-coded coefficients: most of them two by one look into a table, which tells how many zeros come before each, and its value.

use std::io::BufRead;

use super::frame::ZIGZAG;

/// Bits by which is looked up.
const LOOKUP: u32 = 11;

/// A Huffman code for coefficients.
pub(super) struct Code {
    /// By the next bits.
    entries: Box<[Entry; 1 << LOOKUP]>,
    /// Of each length, the 16 bits behind the last of its codes (0 if it has none), and what leads from a code to the index of its
    /// symbol. (libjpeg's `maxcode` and `valoffset`.)
    lengths: [(u32, i32); 17],
    symbols: Vec<u8>,
}

/// A code for AC coefficients.
pub(super) struct AcCode {
    code: Code,
    pairs: Box<[Pair; 1 << LOOKUP]>,
    runs: Box<[Run; 1 << LOOKUP]>,
}

/// What some bits begin with.
///
/// Bits 0 to 7: how many of them it takes. 8 to 11: zeros before the coefficient. 12: is the coefficient among them? 13: does the block
/// end instead? 16 to 31: the coefficient, or, where its own bits are too many to be looked up, their number. 0: the code itself is too
/// long, or there is none.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Entry(u32);

impl Entry {
    const NOT_HERE: Self = Self(0);
    const HAS_VALUE: u32 = 1 << 12;
    const ENDS_BLOCK: u32 = 1 << 13;

    /// For a symbol, the number of bits of its code, and the bits that are looked up behind these.
    fn new(symbol: u8, code_bits: u32, behind: u32) -> Self {
        let (zeros, own_bits) = (u32::from(symbol >> 4), u32::from(symbol & 15));
        let entry = code_bits | zeros << 8;
        let Some(unread) = (LOOKUP - code_bits).checked_sub(own_bits) else { return Self(entry | own_bits << 16) };
        let value = extend(behind >> unread, own_bits) as u16;
        let ends = own_bits == 0 && zeros < SIXTEEN_ZEROS;
        let flags = Self::HAS_VALUE | if ends { Self::ENDS_BLOCK } else { 0 };
        Self((entry + own_bits) | flags | u32::from(value) << 16)
    }

    fn bits(self) -> u32 {
        self.0 & 0xff
    }

    fn zeros(self) -> u32 {
        self.0 >> 8 & 15
    }

    fn is(self, flag: u32) -> bool {
        self.0 & flag != 0
    }

    fn value(self) -> i16 {
        (self.0 >> 16) as i16
    }
}

/// So many zeros before a coefficient of no bits are one more, and not the end of the block.
const SIXTEEN_ZEROS: u32 = 15;

/// A coefficient by its own bits, of which those below the middle stand for negative ones.
fn extend(bits: u32, count: u32) -> i32 {
    let is_negative = count > 0 && bits >> (count - 1) == 0;
    bits as i32 - if is_negative { (1 << count) - 1 } else { 0 }
}

/// Two coefficients, or one, or the end of the block, also behind one.
///
/// Bits 0 to 6: how many bits it takes. 7: is it the end? 8 to 15: how far it leads on in the block. 16 to 23 and 24 to 31: how far ahead
/// the coefficients are that bits 32 to 47 and 48 to 63 hold. Those that there are not are 0 and written to where none has been
/// yet, which changes nothing. 0: it is not all there.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Pair(u64);

impl Pair {
    const NONE: Self = Self(0);
    const ENDS_BLOCK: u64 = 1 << 7;

    /// For what some bits begin with, and what begins behind it.
    fn new(first: Entry, second: Entry) -> Self {
        if !first.is(Entry::HAS_VALUE) {
            return Self::NONE;
        }
        let pair = |bits: u32, ends, length: u32, (ahead, value): (u32, i16)| {
            let ends = if ends { Self::ENDS_BLOCK } else { 0 };
            let lengths = u64::from(bits | length << 8 | first.zeros() << 16 | ahead << 24);
            Self(lengths | ends | u64::from(first.value() as u16) << 32 | u64::from(value as u16) << 48)
        };
        let behind = first.zeros() + 1;
        let bits = first.bits() + second.bits();
        if first.is(Entry::ENDS_BLOCK) {
            pair(first.bits(), true, 0, (0, 0))
        } else if !second.is(Entry::HAS_VALUE) || bits > LOOKUP {
            pair(first.bits(), false, behind, (behind, 0))
        } else if second.is(Entry::ENDS_BLOCK) {
            pair(bits, true, behind, (behind, 0))
        } else {
            let ahead = behind + second.zeros();
            pair(bits, false, ahead + 1, (ahead, second.value()))
        }
    }

    fn bits(self) -> u32 {
        self.0 as u32 & 0x7f
    }

    fn ends_block(self) -> bool {
        self.0 & Self::ENDS_BLOCK != 0
    }

    fn length(self) -> usize {
        (self.0 >> 8 & 0xff) as usize
    }

    /// How far ahead they are, and their values.
    fn coefficients(self) -> [(usize, i16); 2] {
        let ahead = |bit: u32| (self.0 >> bit & 0xff) as usize;
        [(ahead(16), (self.0 >> 32) as i16), (ahead(24), (self.0 >> 48) as i16)]
    }
}

/// As many coefficients as some bits hold, or the end of the block behind them, to be passed over.
///
/// Bits 0 to 3: how many bits they take. 4: is the end among them? 8 to 15: how far they lead on in the block. 0: not one is all there.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Run(u16);

impl Run {
    const NONE: Self = Self(0);
    const ENDS_BLOCK: u16 = 1 << 4;

    /// For all that `bits` begin with.
    fn new(bits: usize, entries: &[Entry; 1 << LOOKUP]) -> Self {
        let (mut taken, mut length, mut ends) = (0, 0, false);
        while !ends {
            let next = entries[bits << taken & ((1 << LOOKUP) - 1)];
            if !next.is(Entry::HAS_VALUE) || taken + next.bits() > LOOKUP {
                break;
            }
            taken += next.bits();
            ends = next.is(Entry::ENDS_BLOCK);
            length += if ends { 0 } else { next.zeros() + 1 };
        }
        let flag = if ends { Self::ENDS_BLOCK } else { 0 };
        Self(taken as u16 | flag | (length as u16) << 8)
    }

    fn bits(self) -> u32 {
        u32::from(self.0 & 15)
    }

    fn ends_block(self) -> bool {
        self.0 & Self::ENDS_BLOCK != 0
    }

    fn length(self) -> usize {
        usize::from(self.0 >> 8)
    }
}

impl Code {
    /// By how many codes there are of each length from 1 on, and their symbols; `None` if there is no such code.
    pub(super) fn new(counts: &[u8; 16], symbols: &[u8]) -> Option<Self> {
        let mut entries = Box::new([Entry::NOT_HERE; 1 << LOOKUP]);
        let mut lengths = [(0, 0); 17];
        let (mut code, mut index) = (0_u32, 0);
        for (bits, &count) in (1_u32..).zip(counts) {
            let (end, to_index) = &mut lengths[bits as usize];
            *to_index = index as i32 - code as i32;
            for _ in 0..count {
                let symbol = *symbols.get(index)?;
                // All 1s are no code.
                if code + 1 >= 1 << bits {
                    return None;
                }
                if let Some(unread) = LOOKUP.checked_sub(bits) {
                    for (behind, entry) in (0..).zip(&mut entries[(code << unread) as usize..][..1 << unread]) {
                        *entry = Entry::new(symbol, bits, behind);
                    }
                }
                (code, index) = (code + 1, index + 1);
                *end = code << (16 - bits);
            }
            code <<= 1;
        }
        Some(Self { entries, lengths, symbols: symbols.to_vec() })
    }

    /// The symbol that the `next` 16 bits begin with, whose code is too long to be looked up, and that code's bits.
    #[cold]
    #[inline(never)]
    fn symbol(&self, next: u32) -> Option<(u8, u32)> {
        let bits = (1..=16).find(|&bits| next < self.lengths[bits as usize].0)?;
        let index = (next >> (16 - bits)) as i32 + self.lengths[bits as usize].1;
        Some((self.symbols.get(usize::try_from(index).ok()?).copied()?, bits))
    }

    /// Could it be one for DC coefficients? They have no zeros before them, and 11 bits at most.
    pub(super) fn is_for_dc(&self) -> bool {
        self.symbols.iter().all(|&symbol| symbol <= 11)
    }
}

impl AcCode {
    pub(super) fn new(code: Code) -> Self {
        let (mut pairs, mut runs) = (Box::new([Pair::NONE; 1 << LOOKUP]), Box::new([Run::NONE; 1 << LOOKUP]));
        runs.iter_mut().enumerate().for_each(|(bits, run)| *run = Run::new(bits, &code.entries));
        for (bits, (pair, &first)) in pairs.iter_mut().zip(code.entries.iter()).enumerate() {
            let behind = bits << first.bits() & ((1 << LOOKUP) - 1);
            *pair = Pair::new(first, code.entries[behind]);
        }
        Self { code, pairs, runs }
    }
}

/// The bits between two restarts.
#[derive(Clone, Copy)]
pub(super) struct Bits<'d> {
    data: &'d [u8],
    /// The next byte of `data` to be taken. Behind the last, 0s are taken.
    at: usize,
    /// The next bits, from the highest on, and how many of them are valid.
    next: u64,
    count: u32,
}

impl<'d> Bits<'d> {
    pub(super) fn new(data: &'d [u8]) -> Self {
        Self { data, at: 0, next: 0, count: 0 }
    }

    /// How many there are yet; `None` if more have been taken than there are.
    pub(super) fn left(&self) -> Option<usize> {
        let taken = self.at * 8 - self.count as usize;
        (self.data.len() * 8).checked_sub(taken)
    }

    /// Makes at least 56 bits valid.
    #[inline(always)]
    fn fill(&mut self) {
        match self.data.get(self.at..).and_then(|rest| rest.first_chunk::<8>()) {
            // What does not count yet comes again with the next call, the same.
            Some(bytes) => {
                self.next |= u64::from_be_bytes(*bytes) >> self.count;
                let taken = (63 - self.count) / 8;
                self.at += taken as usize;
                self.count += taken * 8;
            }
            None => *self = self.filled_at_end(),
        }
    }

    // By value: whose address is taken is kept in memory, also where this is not called.
    #[cold]
    #[inline(never)]
    fn filled_at_end(mut self) -> Self {
        while self.count < 56 {
            let byte = self.data.get(self.at).copied().unwrap_or_default();
            self.next |= u64::from(byte) << (56 - self.count);
            (self.at, self.count) = (self.at + 1, self.count + 8);
        }
        self
    }

    #[inline(always)]
    fn peek(&self, bits: u32) -> u32 {
        (self.next >> (64 - bits)) as u32
    }

    #[inline(always)]
    fn skip(&mut self, bits: u32) {
        self.next <<= bits;
        self.count -= bits;
    }

    /// The next coefficient, the zeros before it, and whether the block ends instead. Takes up to 31 bits.
    #[inline(always)]
    fn coefficient(&mut self, code: &Code) -> Option<(u32, i32, bool)> {
        let entry = code.entries[self.peek(LOOKUP) as usize];
        self.skip(entry.bits());
        if entry.is(Entry::HAS_VALUE) {
            return Some((entry.zeros(), entry.value().into(), entry.is(Entry::ENDS_BLOCK)));
        }
        let (zeros, own_bits) = if entry == Entry::NOT_HERE {
            let (symbol, bits) = code.symbol(self.peek(16))?;
            self.skip(bits);
            (u32::from(symbol >> 4), u32::from(symbol & 15))
        } else {
            (entry.zeros(), entry.value() as u32)
        };
        if own_bits == 0 {
            return Some((zeros, 0, zeros < SIXTEEN_ZEROS));
        }
        let value = extend(self.peek(own_bits), own_bits);
        self.skip(own_bits);
        Some((zeros, value, false))
    }

    /// The first coefficient of a block; `dc` is that of the block before and becomes this one's.
    #[inline(always)]
    fn first(&mut self, code: &Code, dc: &mut i32) -> Option<i16> {
        self.fill();
        *dc += self.coefficient(code)?.1;
        i16::try_from(*dc).ok()
    }

    /// By itself, the next coefficient from `index` on, and where it is, unless the block ends instead.
    #[inline(always)]
    fn next(&mut self, code: &Code, index: usize) -> Option<Option<(usize, i16)>> {
        self.fill();
        let (zeros, value, ends) = self.coefficient(code)?;
        let index = index + zeros as usize;
        // What goes beyond the last one is damaged.
        (ends || index < 64).then_some((!ends).then_some((index, value as i16)))
    }

    /// Reads a block, which is 0 but for its first coefficient. `dc` is that of the block before and becomes this one's. Returns how many
    /// coefficients, in the order of the file, may be other than 0; `None` where the data is damaged.
    #[inline(always)]
    pub(super) fn block(
        &mut self,
        (dc_code, ac_code): (&Code, &AcCode),
        dc: &mut i32,
        block: &mut [i16; 64],
    ) -> Option<usize> {
        // No index is beyond the table, nor a position beyond the block; the compiler is to see that, too.
        let position = |index: usize| usize::from(ZIGZAG[index % ZIGZAG.len()] % 64);
        block[0] = self.first(dc_code, dc)?;
        let mut index = 1;
        // The last one has no end behind it.
        while index < 64 {
            self.fill();
            // As many as there are bits for.
            for _ in 0..56 / LOOKUP {
                let pair = ac_code.pairs[self.peek(LOOKUP) as usize];
                let next = index + pair.length();
                if pair != Pair::NONE && next < 64 {
                    self.skip(pair.bits());
                    let [first, second] = pair.coefficients();
                    block[position(index + first.0)] = first.1;
                    block[position(index + second.0)] = second.1;
                    index = next;
                    if pair.ends_block() {
                        return Some(index);
                    }
                    continue;
                }
                let Some((at, value)) = self.next(&ac_code.code, index)? else { return Some(index) };
                block[position(at)] = value;
                index = at + 1;
                break;
            }
        }
        Some(index)
    }

    /// Passes over a block that is not needed: [`Self::block`] without its coefficients, but for the first.
    #[inline(always)]
    pub(super) fn skip_block(&mut self, (dc_code, ac_code): (&Code, &AcCode), dc: &mut i32) -> Option<()> {
        self.first(dc_code, dc)?;
        let mut index = 1;
        while index < 64 {
            self.fill();
            for _ in 0..56 / LOOKUP {
                let run = ac_code.runs[self.peek(LOOKUP) as usize];
                let next = index + run.length();
                if run != Run::NONE && next < 64 {
                    self.skip(run.bits());
                    index = next;
                    if run.ends_block() {
                        return Some(());
                    }
                    continue;
                }
                let Some((at, _)) = self.next(&ac_code.code, index)? else { return Some(()) };
                index = at + 1;
                break;
            }
        }
        Some(())
    }
}

/// Takes entropy-coded data up to the next marker, which it returns, and puts its bytes into `into`: `FF 00` is one byte there.
pub(super) fn unstuff(data: &mut &[u8], into: &mut Vec<u8>) -> Option<u8> {
    into.clear();
    loop {
        let before = *data;
        let length = data.skip_until(0xff).ok()?;
        let (&code, rest) = data.split_first()?;
        *data = rest;
        if code != 0 {
            into.extend(&before[..length - 1]);
            return Some(code);
        }
        into.extend(&before[..length]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 0: end of the block. 10: one bit. 110: a zero and one bit. 1110: sixteen zeros. 111100000000: eleven bits.
    fn code() -> Code {
        let counts = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0];
        Code::new(&counts, &[0x00, 0x01, 0x11, 0xf0, 0x0b]).unwrap()
    }

    fn block(bits: &str) -> Option<(usize, Vec<(usize, i16)>)> {
        let bits: Vec<u8> = bits.bytes().filter(|bit| *bit != b' ').map(|bit| bit - b'0').collect();
        let data: Vec<u8> =
            bits.chunks(8).map(|byte| (0..8).fold(0, |sum, at| sum * 2 + byte.get(at).copied().unwrap_or(1))).collect();
        let mut block = [0; 64];
        let (mut bits, codes) = (Bits::new(&data), (&code(), &AcCode::new(code())));
        let mut passed_over = bits;
        let skipped = passed_over.skip_block(codes, &mut 0);
        let read = bits.block(codes, &mut 0, &mut block);
        assert_eq!((skipped.is_some(), passed_over.left()), (read.is_some(), bits.left()), "to the same end");
        let extent = read?;
        let values = ZIGZAG[..64].iter().map(|&position| block[usize::from(position)]).enumerate();
        bits.left().map(|_| (extent, values.filter(|&(_, value)| value != 0).collect()))
    }

    #[test]
    fn coefficients_are_read_one_by_one_and_in_pairs() {
        assert_eq!(block("101 0"), Some((1, vec![(0, 1)])), "an end");
        assert_eq!(block("101 100 0"), Some((2, vec![(0, 1), (1, -1)])), "one and the end");
        let many = "0 101 100 1101 101 1110 1100 0";
        assert_eq!(block(many), Some((24, vec![(1, 1), (2, -1), (4, 1), (5, 1), (23, -1)])));
        let long = "111100000000 10000000000 111100000000 01111111111 0";
        assert_eq!(block(long), Some((2, vec![(0, 1024), (1, -1024)])));
    }

    #[test]
    fn a_block_may_be_full_and_no_more() {
        let full = |ones: usize| block(&format!("0 1110 1110 1110 {}", "101".repeat(ones)));
        let (extent, values) = full(15).unwrap();
        assert_eq!((extent, values.len()), (64, 15));
        assert_eq!(block(&format!("0 1110 1110 1110 1110 {}", "0".repeat(9))), None, "it ends behind the last");
        assert_eq!(full(14).map(|(extent, _)| extent), None, "it breaks off");
        assert_eq!(block("0 11111"), None, "no such code");
    }

    #[test]
    fn there_are_no_more_codes_than_bits_for_them() {
        let mut counts = [0; 16];
        counts[1] = 3;
        assert!(Code::new(&counts, &[1, 2, 3]).is_some());
        counts[1] = 4;
        assert!(Code::new(&counts, &[1, 2, 3, 4]).is_none());
        counts[1] = 3;
        assert!(Code::new(&counts, &[1, 2]).is_none());
    }

    #[test]
    fn data_ends_at_a_marker() {
        let mut data = &[1, 0xff, 0, 2, 0xff, 0xd0, 3, 0xff][..];
        let mut bytes = Vec::new();
        assert_eq!(unstuff(&mut data, &mut bytes), Some(0xd0));
        assert_eq!(bytes, [1, 0xff, 2]);
        assert_eq!(unstuff(&mut data, &mut bytes), None);
    }
}
