//! How many groups of prefix codes a lossless WebP has. A decoder builds tables for all of them before the first pixel, many kB for a
//! group of which a file needs some bytes; so they have to be counted before it is given one.
//!
//! What comes before the number has to be read for that: the picture's transforms, each with a small picture of its own, and the
//! picture that says which group is for which pixels. The names are those of the format's specification, "WebP Lossless Bitstream".

/// Most groups. libwebp's encoder makes no more (`MAX_HUFF_IMAGE_SIZE`); tables of so many take some 60 MB, and 300 where each is of the
/// longest codes.
pub(super) const MAX_GROUPS: u32 = 2600;

const LITERALS: usize = 256;
const LENGTH_CODES: usize = 24;
const CODE_LENGTH_CODE_ORDER: [usize; 19] = [17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
const LONGEST_CODE: usize = 15;

/// The groups of prefix codes of the picture in `stream`, which begins after its size; `None` if it is damaged before its first pixel.
pub(super) fn prefix_code_groups(stream: &[u8], (width, height): (u32, u32)) -> Option<u32> {
    let bits = &mut Bits { bytes: stream, at: 0 };
    let (mut width, mut seen) = (width, 0_u32);
    while bits.read(1)? == 1 {
        let transform = bits.read(2)?;
        if seen >> transform & 1 == 1 {
            return None;
        }
        seen |= 1 << transform;
        match transform {
            // Predictor and colour: one pixel for each block.
            0 | 1 => drop(read_block_picture(bits, (width, height))?),
            // The green of each pixel is subtracted.
            2 => {}
            // A palette, of which several indices fill a pixel if it is small.
            _ => {
                let colours = bits.read(8)? + 1;
                read_picture(bits, (colours, 1))?;
                width = match colours {
                    0..=2 => width.div_ceil(8),
                    3..=4 => width.div_ceil(4),
                    5..=16 => width.div_ceil(2),
                    _ => width,
                };
            }
        }
    }
    read_colour_cache(bits)?;
    if bits.read(1)? == 0 {
        return Some(1);
    }
    Some(read_block_picture(bits, (width, height))? + 1)
}

/// Reads a picture of one pixel for each block of another, and that blocks' size before it.
fn read_block_picture(bits: &mut Bits<'_>, (width, height): (u32, u32)) -> Option<u32> {
    let size = 1 << (bits.read(3)? + 2);
    read_picture(bits, (width.div_ceil(size), height.div_ceil(size)))
}

/// Reads a picture within a picture. Returns the largest number that red and green make in any of its pixels, or one that is larger.
fn read_picture(bits: &mut Bits<'_>, (width, height): (u32, u32)) -> Option<u32> {
    let cached_colours = read_colour_cache(bits)?;
    let green_or_length = Code::read(bits, LITERALS + LENGTH_CODES + cached_colours)?;
    let [red, blue, alpha] = [Code::read(bits, LITERALS)?, Code::read(bits, LITERALS)?, Code::read(bits, LITERALS)?];
    let distance = Code::read(bits, 40)?;
    // A symbol that is the only one takes no bits. If it is not for a literal, there is nothing to copy, or the empty cache's 0 alone.
    if let [only] = green_or_length.symbols[..]
        && usize::from(only) >= LITERALS
    {
        return (usize::from(only) >= LITERALS + LENGTH_CODES).then_some(0);
    }
    let mut left = width.checked_mul(height)?;
    let mut largest = 0;
    while left > 0 {
        let code = green_or_length.symbol(bits)?;
        if code < LITERALS as u32 {
            // What is copied from pixels before or from the cache has been here as a literal, or is 0.
            largest = largest.max(red.symbol(bits)? << 8 | code);
            blue.symbol(bits)?;
            alpha.symbol(bits)?;
            left -= 1;
            if [&green_or_length, &red, &blue, &alpha].iter().all(|code| code.has_one_symbol()) {
                // All others are the same.
                return Some(largest);
            }
        } else if code < (LITERALS + LENGTH_CODES) as u32 {
            let length = read_prefixed(bits, code - LITERALS as u32)?;
            let distance = distance.symbol(bits)?;
            read_prefixed(bits, distance)?;
            left = left.checked_sub(length)?;
        } else {
            left -= 1;
        }
    }
    Some(largest)
}

/// Returns how many colours the cache has that follows.
fn read_colour_cache(bits: &mut Bits<'_>) -> Option<usize> {
    if bits.read(1)? == 0 {
        return Some(0);
    }
    let size = bits.read(4)?;
    (1..=11).contains(&size).then_some(1 << size)
}

/// Reads the rest of a length or a distance.
fn read_prefixed(bits: &mut Bits<'_>, prefix: u32) -> Option<u32> {
    if prefix < 4 {
        return Some(prefix + 1);
    }
    let extra = (prefix - 2) >> 1;
    Some(((2 + (prefix & 1)) << extra) + bits.read(extra)? + 1)
}

/// A canonical prefix code.
struct Code {
    /// Symbols by the length of their codes.
    counts: [u32; LONGEST_CODE + 1],
    /// By rising codes.
    symbols: Vec<u16>,
}

impl Code {
    fn read(bits: &mut Bits<'_>, alphabet: usize) -> Option<Self> {
        if bits.read(1)? == 0 {
            let lengths = read_code_lengths(bits, alphabet)?;
            return Self::new(&lengths);
        }
        let has_two = bits.read(1)? == 1;
        let first_length = if bits.read(1)? == 1 { 8 } else { 1 };
        // In the order in which they are named.
        let mut symbols = vec![bits.read(first_length)? as u16];
        if has_two {
            symbols.push(bits.read(8)? as u16);
        }
        let mut counts = [0; LONGEST_CODE + 1];
        counts[1] = symbols.len() as u32;
        symbols.iter().all(|&symbol| usize::from(symbol) < alphabet).then_some(Self { counts, symbols })
    }

    /// By the length of each symbol's code, 0 for none. `None` if codes are missing or too many.
    fn new(lengths: &[usize]) -> Option<Self> {
        let mut counts = [0; LONGEST_CODE + 1];
        let mut symbols: Vec<u16> =
            (0..lengths.len() as u16).filter(|&symbol| lengths[usize::from(symbol)] > 0).collect();
        for &symbol in &symbols {
            *counts.get_mut(lengths[usize::from(symbol)])? += 1;
        }
        symbols.sort_by_key(|&symbol| lengths[usize::from(symbol)]);
        let used: u32 = (1..=LONGEST_CODE).map(|length| counts[length] << (LONGEST_CODE - length)).sum();
        (symbols.len() == 1 || used == 1 << LONGEST_CODE).then_some(Self { counts, symbols })
    }

    fn has_one_symbol(&self) -> bool {
        self.symbols.len() == 1
    }

    /// Reads a symbol; one that is the only one has no bits.
    fn symbol(&self, bits: &mut Bits<'_>) -> Option<u32> {
        if let [only] = self.symbols[..] {
            return Some(u32::from(only));
        }
        let (mut code, mut first, mut index) = (0, 0, 0);
        for count in &self.counts[1..] {
            code = code << 1 | bits.read(1)?;
            if code - first < *count {
                return self.symbols.get((index + code - first) as usize).map(|&symbol| u32::from(symbol));
            }
            index += count;
            first = (first + count) << 1;
        }
        None
    }
}

/// Reads the lengths of a code's codes, which are coded themselves.
fn read_code_lengths(bits: &mut Bits<'_>, alphabet: usize) -> Option<Vec<usize>> {
    let mut lengths = [0; CODE_LENGTH_CODE_ORDER.len()];
    let given = bits.read(4)? as usize + 4;
    for &symbol in &CODE_LENGTH_CODE_ORDER[..given] {
        lengths[symbol] = bits.read(3)? as usize;
    }
    let code = Code::new(&lengths)?;
    let mut left = alphabet;
    if bits.read(1)? == 1 {
        let size = 2 + 2 * bits.read(3)?;
        left = 2 + bits.read(size)? as usize;
        if left > alphabet {
            return None;
        }
    }
    let mut lengths = Vec::with_capacity(alphabet);
    let mut before = 8;
    while lengths.len() < alphabet && left > 0 {
        left -= 1;
        let (length, repeats) = match code.symbol(bits)? as usize {
            16 => (before, 3 + bits.read(2)?),
            17 => (0, 3 + bits.read(3)?),
            18 => (0, 11 + bits.read(7)?),
            length => {
                if length > 0 {
                    before = length;
                }
                (length, 1)
            }
        };
        lengths.extend(std::iter::repeat_n(length, repeats as usize));
    }
    (lengths.len() <= alphabet).then_some(lengths)
}

/// Bits, from the lowest of each byte on.
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    /// The number that the next `count` bits make, at most 25 of them; `None` past the end.
    fn read(&mut self, count: u32) -> Option<u32> {
        let mut number = 0;
        for index in 0..count {
            let byte = self.bytes.get(self.at / 8)?;
            number |= u32::from(byte >> (self.at % 8) & 1) << index;
            self.at += 1;
        }
        Some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bits for a stream, from the first on.
    fn stream(numbers: &[(u32, u32)]) -> Vec<u8> {
        let bits: Vec<u32> =
            numbers.iter().flat_map(|&(number, count)| (0..count).map(move |bit| number >> bit & 1)).collect();
        bits.chunks(8).map(|bits| bits.iter().rev().fold(0, |byte, bit| byte << 1 | *bit as u8)).collect()
    }

    /// A code of one symbol of eight bits.
    fn only(symbol: u32) -> [(u32, u32); 4] {
        [(1, 1), (0, 1), (1, 1), (symbol, 8)]
    }

    /// The start of a picture whose pixels all belong to one group.
    fn of_group(group: u32) -> Vec<u8> {
        let head = [(0, 1), (0, 1), (1, 1), (0, 3), (0, 1)];
        let codes = [group & 0xff, group >> 8, 0, 0, 0].map(only);
        stream(&[&head[..], &codes.concat()].concat())
    }

    #[test]
    fn groups_are_counted_by_the_largest_that_a_pixel_belongs_to() {
        for group in [0, 255, 256, 2599, 0xffff] {
            assert_eq!(prefix_code_groups(&of_group(group), (1, 1)), Some(group + 1));
            assert_eq!(prefix_code_groups(&of_group(group), (16384, 16384)), Some(group + 1));
        }
        assert_eq!(prefix_code_groups(&stream(&[(0, 1), (0, 1), (0, 1)]), (8, 8)), Some(1));
    }

    #[test]
    fn transforms_before_it_are_passed_over() {
        let pixels = |colour: u32| [&[(0, 1)][..], &[colour, 0, 0, 0, 0].map(only).concat()].concat();
        let predictor = [&[(1, 1), (0, 2), (2, 3)][..], &pixels(5)].concat();
        let green = vec![(1, 1), (2, 2)];
        let palette = [&[(1, 1), (3, 2), (3, 8)][..], &pixels(9)].concat();
        let numbers = [predictor, green, palette, vec![(0, 1), (1, 1), (10, 4), (1, 1), (1, 3)], pixels(7)].concat();
        assert_eq!(prefix_code_groups(&stream(&numbers), (100, 50)), Some(8));
    }

    #[test]
    fn codes_of_several_lengths_and_copies_are_read() {
        // Lengths 1, 2 and 3 have the codes 0, 10 and 11 by themselves; the green ones get: 2 for 0, 2 for 1, 1 for the copy of one pixel.
        let mut numbers = vec![(0, 1), (0, 1), (1, 1), (0, 3), (0, 1)];
        numbers.extend([(0, 1), (4, 4), (0, 3), (2, 3), (0, 3), (1, 3), (2, 3), (0, 3), (0, 3), (0, 3)]);
        // Of 280: 2, 2, 254 zeros as 138 and 116, then 1.
        let code = |symbol| match symbol {
            1 => vec![(0, 1)],
            2 => vec![(1, 1), (0, 1)],
            _ => vec![(1, 1), (1, 1)],
        };
        numbers.push((0, 1));
        numbers.extend([code(2), code(2)].concat());
        numbers.extend([code(18), vec![(127, 7)], code(18), vec![(105, 7)], code(1)].concat());
        numbers.extend([code(18), vec![(12, 7)]].concat());
        numbers.extend([3, 0, 0, 0].map(only).concat());
        // 3 × 1 pixels: green 1, a copy of length 1 at any distance, green 0.
        numbers.extend([(1, 1), (1, 1), (0, 1), (1, 1), (0, 1)]);
        let groups = prefix_code_groups(&stream(&numbers), (12, 4));
        assert_eq!(groups, Some((3 << 8 | 1) + 1));
    }

    #[test]
    fn pixels_of_no_bits_are_not_gone_through_one_by_one() {
        // A picture of 4 milliards of pixels, whose only green symbol comes after and before so many.
        let groups = |cache: &[(u32, u32)], before: &[u32], after: u32| {
            let mut numbers = [&[(0, 1), (0, 1), (1, 1), (0, 3)][..], cache].concat();
            // Of lengths, there are a run of zeros (18) and 14.
            numbers.extend([&[(0, 1), (14, 4), (0, 3), (1, 3)][..], &[(0, 3); 15], &[(1, 3), (0, 1)]].concat());
            let zeros = |&count: &u32| [(1, 1), (count - 11, 7)];
            numbers.extend([before.iter().map(zeros).collect::<Vec<_>>().concat(), vec![(0, 1)]].concat());
            numbers.extend([zeros(&after).to_vec(), [0; 4].map(only).concat()].concat());
            prefix_code_groups(&stream(&numbers), (4 * 65535, 4 * 65535))
        };
        assert_eq!(groups(&[(0, 1)], &[138, 62], 79), Some(201), "a literal");
        assert_eq!(groups(&[(0, 1)], &[138, 119], 22), None, "copies of nothing");
        assert_eq!(groups(&[(1, 1), (5, 4)], &[138, 138, 11], 24), Some(1), "the empty cache");
    }

    #[test]
    fn a_transform_is_there_but_once() {
        let green = [(1, 1), (2, 2)];
        let end = [(0, 1), (0, 1), (0, 1)];
        assert_eq!(prefix_code_groups(&stream(&[&green[..], &end].concat()), (9, 9)), Some(1));
        assert_eq!(prefix_code_groups(&stream(&[&green[..], &green, &end].concat()), (9, 9)), None);
    }

    #[test]
    fn what_breaks_off_is_no_picture() {
        let whole = of_group(300);
        for length in 0..whole.len() - 1 {
            assert_eq!(prefix_code_groups(&whole[..length], (1, 1)), None);
        }
    }
}
