//! What a picture's pixels depend on beside its coefficients: sizes, tables, and where the entropy-coded data begins.

use std::cell::RefCell;
use std::rc::Rc;

use super::super::{START_OF_SCAN, next_marker, next_segment, stands_alone};
use super::huffman::{AcCode, Code};

/// A picture of luma and two components of chroma, which are as large or half as large, in one scan.
pub(super) struct Frame<'b> {
    /// Samples of luma for each of chroma, across and down: (1, 1), (2, 1) or (2, 2).
    pub(super) sampling: (usize, usize),
    /// Luma, blue and red.
    pub(super) components: [Component; 3],
    /// Minimum coded units between restarts; 0 for none.
    pub(super) restart_interval: usize,
    /// Entropy-coded data and what comes behind it.
    pub(super) data: &'b [u8],
    /// For DC and AC coefficients, by the numbers that the components have.
    tables: [[Option<HuffmanTable<'b>>; 4]; 2],
}

/// One of a frame's components.
pub(super) struct Component {
    id: u8,
    /// Quantisation steps, row by row.
    pub(super) steps: [i16; 64],
    /// Numbers of its Huffman tables, for DC and AC coefficients.
    codes: (usize, usize),
}

/// How many codes there are of each length from 1 on, and their symbols.
type HuffmanTable<'b> = (&'b [u8; 16], &'b [u8]);

const BASELINE: u8 = 0xc0;
const EXTENDED_SEQUENTIAL: u8 = 0xc1;
const HUFFMAN_TABLES: u8 = 0xc4;
const QUANTISATION_TABLES: u8 = 0xdb;
const RESTART_INTERVAL: u8 = 0xdd;
const COMMENT: u8 = 0xfe;

/// Positions in a block, row by row, in the order in which a file has them; behind these what a run may reach that is too long.
pub(super) static ZIGZAG: [u8; 128] = {
    let mut positions = [63; 128];
    let (mut index, mut row, mut column) = (0, 0, 0);
    while index < 64 {
        positions[index] = (row * 8 + column) as u8;
        let goes_up = (row + column) % 2 == 0;
        match (goes_up, row, column) {
            (true, _, 7) => row += 1,
            (true, 0, _) => column += 1,
            (true, ..) => (row, column) = (row - 1, column + 1),
            (false, 7, _) => column += 1,
            (false, _, 0) => row += 1,
            (false, ..) => (row, column) = (row + 1, column - 1),
        }
        index += 1;
    }
    positions
};

impl<'b> Frame<'b> {
    /// Reads the markers up to the scan's data; `None` for what is not as cameras write it.
    pub(super) fn read(bytes: &'b [u8]) -> Option<Self> {
        let mut rest = bytes.get(2..)?;
        let mut steps = [None; 4];
        let mut tables = [[None; 4]; 2];
        let (mut frame, mut restart_interval) = (None, 0);
        let (mut is_jfif, mut adobe_transform) = (false, None);
        loop {
            let marker = next_marker(&mut rest).filter(|&marker| !stands_alone(marker))?;
            let segment = next_segment(&mut rest)?;
            match marker {
                0xe0 => is_jfif |= segment.len() >= 14 && segment.starts_with(b"JFIF\0"),
                0xee if segment.len() >= 12 && segment.starts_with(b"Adobe") => adobe_transform = Some(segment[11]),
                QUANTISATION_TABLES => read_steps(segment, &mut steps)?,
                HUFFMAN_TABLES => read_huffman_tables(segment, &mut tables)?,
                RESTART_INTERVAL => restart_interval = usize::from(u16::from_be_bytes(segment.try_into().ok()?)),
                BASELINE | EXTENDED_SEQUENTIAL => frame = Some(segment),
                START_OF_SCAN => {
                    let (sampling, components) = read_components(frame?, segment, &steps)?;
                    let ids = components.each_ref().map(|component| component.id);
                    // As libjpeg decides that it is luma and chroma.
                    if !is_jfif && adobe_transform.map_or(ids != [1, 2, 3], |transform| transform != 1) {
                        return None;
                    }
                    return Some(Self { sampling, components, restart_interval, data: rest, tables });
                }
                0xe0..=0xef | COMMENT => {}
                _ => return None,
            }
        }
    }

    /// As [`Self::new_codes`]; those of the thread's last picture, if they are the same: few encoders make codes for each picture.
    pub(super) fn codes(&self) -> Option<Rc<Codes>> {
        thread_local! {
            static LAST: RefCell<Option<(Vec<u8>, Rc<Codes>)>> = const { RefCell::new(None) };
        }
        let told = self.told_codes()?;
        if let Some(codes) =
            LAST.with_borrow(|last| last.as_ref().filter(|last| last.0 == told).map(|last| Rc::clone(&last.1)))
        {
            return Some(codes);
        }
        let codes = Rc::new(self.new_codes()?);
        LAST.set(Some((told, Rc::clone(&codes))));
        Some(codes)
    }

    /// All that the file tells of the codes that are used.
    fn told_codes(&self) -> Option<Vec<u8>> {
        let mut told = Vec::new();
        for Component { codes: (dc, ac), .. } in &self.components {
            for (number, (counts, symbols)) in [(*dc, self.tables[0][*dc]?), (*ac, self.tables[1][*ac]?)] {
                told.push(number as u8);
                told.extend_from_slice(counts);
                told.extend_from_slice(symbols);
            }
        }
        Some(told)
    }

    /// Each component's Huffman codes for DC and AC coefficients, by their numbers in [`Component::codes`].
    fn new_codes(&self) -> Option<Codes> {
        // A file may hold any number of tables, of which these are used.
        let mut codes = Codes::default();
        for Component { codes: (dc, ac), .. } in &self.components {
            let code = |(counts, symbols): HuffmanTable<'_>| Code::new(counts, symbols);
            if codes.dc[*dc].is_none() {
                codes.dc[*dc] = Some(code(self.tables[0][*dc]?).filter(Code::is_for_dc)?);
            }
            if codes.ac[*ac].is_none() {
                codes.ac[*ac] = Some(AcCode::new(code(self.tables[1][*ac]?)?));
            }
        }
        Some(codes)
    }
}

/// Huffman codes by their numbers.
#[derive(Default)]
pub(super) struct Codes {
    dc: [Option<Code>; 4],
    ac: [Option<AcCode>; 4],
}

impl Codes {
    /// A component's.
    pub(super) fn of(&self, component: &Component) -> Option<(&Code, &AcCode)> {
        let (dc, ac) = component.codes;
        Some((self.dc[dc].as_ref()?, self.ac[ac].as_ref()?))
    }
}

/// Sampling and components, by the headers of the frame and of its scan.
fn read_components(
    frame: &[u8],
    scan: &[u8],
    steps: &[Option<[i16; 64]>; 4],
) -> Option<((usize, usize), [Component; 3])> {
    let &[8, _, _, _, _, 3, luma, of_luma, luma_steps, blue, 0x11, blue_steps, red, 0x11, red_steps] = frame else {
        return None;
    };
    let &[3, scan_luma, luma_codes, scan_blue, blue_codes, scan_red, red_codes, 0, 63, 0] = scan else { return None };
    let ids = [luma, blue, red];
    let are_distinct = luma != blue && blue != red && red != luma;
    if ids != [scan_luma, scan_blue, scan_red] || !are_distinct {
        return None;
    }
    let sampling = match of_luma {
        0x11 => (1, 1),
        0x21 => (2, 1),
        0x22 => (2, 2),
        _ => return None,
    };
    let component = |id: u8, number: u8, codes: u8| {
        let codes = (usize::from(codes >> 4), usize::from(codes & 15));
        let steps = (*steps.get(usize::from(number))?)?;
        (codes.0 < 4 && codes.1 < 4).then_some(Component { id, steps, codes })
    };
    let components = [
        component(luma, luma_steps, luma_codes)?,
        component(blue, blue_steps, blue_codes)?,
        component(red, red_steps, red_codes)?,
    ];
    Some((sampling, components))
}

/// Quantisation tables of 8 bits.
fn read_steps(mut segment: &[u8], steps: &mut [Option<[i16; 64]>; 4]) -> Option<()> {
    while let Some((&number, rest)) = segment.split_first() {
        let (values, rest) = rest.split_first_chunk::<64>()?;
        let mut table = [0; 64];
        for (&position, &value) in ZIGZAG.iter().zip(values) {
            table[usize::from(position)] = i16::from(value);
        }
        *steps.get_mut(usize::from(number))? = Some(table);
        segment = rest;
    }
    Some(())
}

fn read_huffman_tables<'b>(mut segment: &'b [u8], tables: &mut [[Option<HuffmanTable<'b>>; 4]; 2]) -> Option<()> {
    while let Some((&number, rest)) = segment.split_first() {
        let (counts, rest) = rest.split_first_chunk::<16>()?;
        let (symbols, rest) = rest.split_at_checked(counts.iter().copied().map(usize::from).sum())?;
        let table = tables.get_mut(usize::from(number >> 4))?.get_mut(usize::from(number & 15))?;
        *table = Some((counts, symbols)).filter(|_| symbols.len() <= 256);
        segment = rest;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_go_to_and_fro_between_the_edges() {
        assert_eq!(ZIGZAG[..16], [0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5]);
        assert_eq!(ZIGZAG[56..65], [53, 60, 61, 54, 47, 55, 62, 63, 63]);
        let mut positions = ZIGZAG[..64].to_vec();
        positions.sort_unstable();
        assert!(positions.into_iter().eq(0..64));
    }
}
