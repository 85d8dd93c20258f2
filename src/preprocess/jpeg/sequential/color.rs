//! Chroma upsampled to the size of luma, and both converted to RGB, to the same bits as by libjpeg-turbo.
//!
//! Source: `h2v1_fancy_upsample` and `h2v2_fancy_upsample` of `jdsample.c`, and `jdcolor.c`, of the Independent JPEG Group.

use std::arch::x86_64::*;
use std::ops::Range;

/// Pixels that are converted at a time.
const LANES: usize = 16;

/// A row of chroma, upsampled to twice its width by a triangle filter.
#[derive(Default)]
pub(super) struct Upsampled {
    row: Vec<u8>,
    /// What its samples are made of.
    sums: Vec<u16>,
}

impl Upsampled {
    /// Upsamples `near` for some `columns`: each sample is three parts its own and one part its neighbour's. If there are twice as many
    /// rows, too, `far` is the row's neighbour on the nearer side, and counts in the same way.
    #[target_feature(enable = "avx2")]
    pub(super) fn fill(&mut self, near: &[u8], far: Option<&[u8]>, columns: &Range<usize>) {
        let Self { row, sums } = self;
        let (first, last) = (columns.start / 2, columns.end.div_ceil(2));
        let count = last - first;
        // With a neighbour at either side, which at an edge is the sample itself.
        sums.resize(count + 2, 0);
        row.resize(count * 2, 0);
        let (before, behind) = (first.saturating_sub(1), last.min(near.len() - 1));
        let places = [(before, 0..1), (first, 1..count + 1), (behind, count + 1..count + 2)];
        for (column, places) in places {
            let sums = &mut sums[places];
            let near = &near[column..][..sums.len()];
            match far.map(|far| &far[column..][..sums.len()]) {
                Some(far) => {
                    for ((sum, &near), &far) in sums.iter_mut().zip(near).zip(far) {
                        *sum = u16::from(near) * 3 + u16::from(far);
                    }
                }
                None => sums.iter_mut().zip(near).for_each(|(sum, &near)| *sum = near.into()),
            }
        }
        if far.is_some() {
            upsample::<4, 8, 7>(sums, row);
        } else {
            upsample::<2, 1, 2>(sums, row);
        }
    }

    /// The samples of the `columns` for which it was filled.
    pub(super) fn samples(&self, columns: &Range<usize>) -> &[u8] {
        &self.row[columns.start % 2..][..columns.len()]
    }
}

/// Two samples of each sum but the first and the last, without `SHIFT` bits. Even and odd ones are rounded by different amounts, so that
/// none of the two ways prevails.
#[target_feature(enable = "avx2")]
fn upsample<const SHIFT: u16, const EVEN: u16, const ODD: u16>(sums: &[u16], row: &mut [u8]) {
    let (twos, _) = row.as_chunks_mut::<2>();
    let count = twos.len();
    let (before, own, behind) = (&sums[..count], &sums[1..][..count], &sums[2..][..count]);
    for (((two, before), own), behind) in twos.iter_mut().zip(before).zip(own).zip(behind) {
        let (even, odd) = ((own * 3 + before + EVEN) >> SHIFT, (own * 3 + behind + ODD) >> SHIFT);
        *two = (even | odd << 8).to_le_bytes();
    }
}

/// A row of RGB pixels by rows of luma, blue and red that are as long.
#[target_feature(enable = "avx2")]
pub(super) fn to_rgb(luma: &[u8], blue: &[u8], red: &[u8], output: &mut [u8]) {
    let (luma, blue, red) = (luma.as_chunks::<LANES>(), blue.as_chunks::<LANES>(), red.as_chunks::<LANES>());
    let (output, rest) = output.as_chunks_mut::<{ LANES * 3 }>();
    for (((output, luma), blue), red) in output.iter_mut().zip(luma.0).zip(blue.0).zip(red.0) {
        convert(luma, blue, red, output);
    }
    if !rest.is_empty() {
        let whole = |rest: &[u8]| {
            let mut whole = [0; LANES];
            whole[..rest.len()].copy_from_slice(rest);
            whole
        };
        let mut last = [0; LANES * 3];
        convert(&whole(luma.1), &whole(blue.1), &whole(red.1), &mut last);
        rest.copy_from_slice(&last[..rest.len()]);
    }
}

#[target_feature(enable = "avx2")]
fn convert(luma: &[u8; LANES], blue: &[u8; LANES], red: &[u8; LANES], output: &mut [u8; LANES * 3]) {
    let wide = |bytes: &[u8; LANES]| _mm256_cvtepu8_epi16(load(bytes));
    let middle = _mm256_set1_epi16(128);
    let y = wide(luma);
    let (cb, cr) = (_mm256_sub_epi16(wide(blue), middle), _mm256_sub_epi16(wide(red), middle));
    // Factors have 16 binary places. Of those that need more than 16 bits, the whole part is added by itself.
    let times = |value: __m256i, factor: i16| {
        let product = _mm256_mulhi_epi16(_mm256_add_epi16(value, value), _mm256_set1_epi16(factor));
        _mm256_srai_epi16::<1>(_mm256_add_epi16(product, _mm256_set1_epi16(1)))
    };
    // 1.402 and 1.772.
    let r = _mm256_add_epi16(_mm256_add_epi16(y, cr), times(cr, 26345));
    let b = _mm256_add_epi16(_mm256_add_epi16(y, _mm256_add_epi16(cb, cb)), times(cb, -14942));
    // -0.34414 and -0.71414.
    let factors = _mm256_set1_epi32(i32::from(-22554_i16) & 0xffff | 18734 << 16);
    let part = |pairs: __m256i| {
        let sum = _mm256_add_epi32(_mm256_madd_epi16(pairs, factors), _mm256_set1_epi32(1 << 15));
        _mm256_srai_epi32::<16>(sum)
    };
    let parts = _mm256_packs_epi32(part(_mm256_unpacklo_epi16(cb, cr)), part(_mm256_unpackhi_epi16(cb, cr)));
    let g = _mm256_add_epi16(y, _mm256_sub_epi16(parts, cr));
    let narrow = |words: __m256i| _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
    let (r, g, b) = (narrow(r), narrow(g), narrow(b));
    for (part, place) in output.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        let [of_red, of_green, of_blue] = &SHUFFLES[part];
        let red_and_green = _mm_or_si128(_mm_shuffle_epi8(r, load(of_red)), _mm_shuffle_epi8(g, load(of_green)));
        store(place, _mm_or_si128(red_and_green, _mm_shuffle_epi8(b, load(of_blue))));
    }
}

/// For each third of sixteen pixels' bytes, and of red, green and blue: which of its values belongs there, or none of them (128).
const SHUFFLES: [[[u8; LANES]; 3]; 3] = {
    let mut shuffles = [[[128; LANES]; 3]; 3];
    let mut byte = 0;
    while byte < LANES * 3 {
        shuffles[byte / LANES][byte % 3][byte % LANES] = (byte / 3) as u8;
        byte += 1;
    }
    shuffles
};

#[target_feature(enable = "avx2")]
fn load(bytes: &[u8; LANES]) -> __m128i {
    #[expect(unsafe_code, reason = "the only way to read sixteen bytes at once")]
    // SAFETY: there are sixteen bytes.
    unsafe {
        _mm_loadu_si128(bytes.as_ptr().cast())
    }
}

#[target_feature(enable = "avx2")]
fn store(place: &mut [u8; LANES], bytes: __m128i) {
    #[expect(unsafe_code, reason = "the only way to write sixteen bytes at once")]
    // SAFETY: there is room for sixteen bytes.
    unsafe {
        _mm_storeu_si128(place.as_mut_ptr().cast(), bytes);
    }
}
