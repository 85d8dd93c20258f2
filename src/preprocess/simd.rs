//! The resampling kernel's sums on processors with AVX2, to the same bits; elsewhere nothing here does anything.

use super::kernel::Kernel;

/// Are there vector instructions for this processor?
pub(super) fn is_available() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::is_x86_feature_detected!("avx2");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// [`Kernel::horizontal`] in memory of [`super::buffer`] for rows of `stride` bytes, if it can be done here.
pub(super) fn horizontal(kernel: &Kernel, pixels: &[u8], stride: usize, first: usize) -> Option<Vec<u8>> {
    #[cfg(target_arch = "x86_64")]
    if is_available() {
        #[expect(unsafe_code, reason = "the compiler cannot see that the processor has been asked")]
        // SAFETY: the processor has AVX2.
        return Some(unsafe { avx2::horizontal(kernel, pixels, stride, first) });
    }
    let _ = (kernel, pixels, stride, first);
    None
}

/// [`Kernel::vertical`] into `output`, for as many bytes of each row as can be done here, which it returns.
pub(super) fn vertical(kernel: &Kernel, pixels: &[u8], stride: usize, first: usize, output: &mut [u8]) -> usize {
    #[cfg(target_arch = "x86_64")]
    if is_available() {
        #[expect(unsafe_code, reason = "the compiler cannot see that the processor has been asked")]
        // SAFETY: the processor has AVX2.
        return unsafe { avx2::vertical(kernel, pixels, stride, first, output) };
    }
    let _ = (kernel, pixels, stride, first, output);
    0
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::super::buffer;
    use super::super::kernel::{Kernel, LANES};

    /// Rows that are resampled side by side.
    const ROWS: usize = 4;
    /// Bytes that a row of pixels is read by.
    const BLOCK: usize = 16;

    #[target_feature(enable = "avx2")]
    pub(super) fn horizontal(kernel: &Kernel, pixels: &[u8], stride: usize, first: usize) -> Vec<u8> {
        let target = kernel.starts.len() * 3;
        let rows = pixels.len() / stride.max(1);
        let mut output = buffer::take(rows * target);
        // Blocks reach beyond what they are read for, so the last rows are read from a longer copy.
        let beyond = BLOCK * (1 + kernel.taps / LANES);
        let copied = pixels.len().saturating_sub(beyond) / (ROWS * stride).max(1) * ROWS;
        let mut last = vec![0; (rows - copied).next_multiple_of(ROWS) * stride + beyond];
        last[..(rows - copied) * stride].copy_from_slice(&pixels[copied * stride..rows * stride]);
        let groups = (0..copied).step_by(ROWS).map(|row| &pixels[row * stride..]);
        let groups = groups.chain((0..rows - copied).step_by(ROWS).map(|row| &last[row * stride..]));
        // Pixels are written by four bytes, of which the last is then the next one's.
        let mut four: [Vec<u8>; ROWS] = std::array::from_fn(|_| vec![0; target + 1]);
        for (group, place) in groups.zip(output.chunks_mut((ROWS * target).max(1))) {
            four_rows(kernel, group, stride, first, &mut four);
            place.chunks_exact_mut(target).zip(&four).for_each(|(place, row)| place.copy_from_slice(&row[..target]));
        }
        output
    }

    /// The first four rows of `pixels`, which go on for a block behind them.
    #[target_feature(enable = "avx2")]
    fn four_rows(kernel: &Kernel, pixels: &[u8], stride: usize, first: usize, output: &mut [Vec<u8>; ROWS]) {
        // Of two pixels, red next to red, green to green, blue to blue, each as 16 bits.
        const NONE: i8 = -128;
        let first_two = _mm256_broadcastsi128_si256(_mm_setr_epi8(
            0, NONE, 3, NONE, 1, NONE, 4, NONE, 2, NONE, 5, NONE, NONE, NONE, NONE, NONE,
        ));
        let next_two = _mm256_broadcastsi128_si256(_mm_setr_epi8(
            6, NONE, 9, NONE, 7, NONE, 10, NONE, 8, NONE, 11, NONE, NONE, NONE, NONE, NONE,
        ));
        let precision = _mm_cvtsi32_si128(kernel.precision as i32);
        let half = _mm256_set1_epi32(kernel.half());
        for (index, (start, weights)) in kernel.each().enumerate() {
            let (mut ab, mut cd) = (half, half);
            // All that is read for this pixel, of four rows: the last block ends behind the last weight's pixel.
            let at = (start - first) * 3;
            let read = &pixels[at..][..(ROWS - 1) * stride + weights.len() * 3 + BLOCK - LANES * 3];
            for (step, &[w0, w1, w2, w3]) in weights.as_chunks::<LANES>().0.iter().enumerate() {
                let (one, two) = (_mm256_set1_epi32(pair(w0, w1)), _mm256_set1_epi32(pair(w2, w3)));
                #[expect(unsafe_code, reason = "a check of each block takes as long as what is computed with it")]
                // SAFETY: `step` is less than a fourth of the weights, and `row` less than `ROWS`, so the block is within `read`.
                let block =
                    |row: usize| unsafe { _mm_loadu_si128(read.as_ptr().add(row * stride + step * LANES * 3).cast()) };
                let (upper, lower) = (_mm256_set_m128i(block(1), block(0)), _mm256_set_m128i(block(3), block(2)));
                ab = _mm256_add_epi32(ab, _mm256_madd_epi16(_mm256_shuffle_epi8(upper, first_two), one));
                cd = _mm256_add_epi32(cd, _mm256_madd_epi16(_mm256_shuffle_epi8(lower, first_two), one));
                ab = _mm256_add_epi32(ab, _mm256_madd_epi16(_mm256_shuffle_epi8(upper, next_two), two));
                cd = _mm256_add_epi32(cd, _mm256_madd_epi16(_mm256_shuffle_epi8(lower, next_two), two));
            }
            // Packing saturates, which is what clamping is.
            let (ab, cd) = (_mm256_sra_epi32(ab, precision), _mm256_sra_epi32(cd, precision));
            let words = _mm256_packs_epi32(ab, cd);
            let bytes = _mm256_packus_epi16(words, words);
            let (ac, bd) = (_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes));
            let (a, b) = (_mm_cvtsi128_si32(ac), _mm_cvtsi128_si32(bd));
            let (c, d) = (_mm_extract_epi32::<1>(ac), _mm_extract_epi32::<1>(bd));
            for (row, pixel) in output.iter_mut().zip([a, b, c, d]) {
                row[index * 3..][..4].copy_from_slice(&pixel.to_le_bytes());
            }
        }
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn vertical(kernel: &Kernel, pixels: &[u8], stride: usize, first: usize, output: &mut [u8]) -> usize {
        let precision = _mm_cvtsi32_si128(kernel.precision as i32);
        let Some(last) = (pixels.len() / stride.max(1)).checked_sub(1) else { return 0 };
        let done = stride / BLOCK * BLOCK;
        for ((start, weights), target) in kernel.each().zip(output.chunks_exact_mut(stride.max(1))) {
            for (block, place) in target.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
                let (mut left, mut right) = (_mm256_set1_epi32(kernel.half()), _mm256_set1_epi32(kernel.half()));
                #[expect(unsafe_code, reason = "a check of each block takes as long as what is computed with it")]
                // SAFETY: there are rows up to `last`, and `block` is a whole one of a row. (Weights of 0 may reach beyond the last row.)
                let block_of = |row: usize| unsafe {
                    _mm_loadu_si128(pixels.as_ptr().add(row.min(last) * stride + block * BLOCK).cast())
                };
                for (step, &[w0, w1]) in weights.as_chunks::<2>().0.iter().enumerate() {
                    let row = start - first + 2 * step;
                    let (upper, lower) = (block_of(row), block_of(row + 1));
                    let weights = _mm256_set1_epi32(pair(w0, w1));
                    let low = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(upper, lower));
                    let high = _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(upper, lower));
                    left = _mm256_add_epi32(left, _mm256_madd_epi16(low, weights));
                    right = _mm256_add_epi32(right, _mm256_madd_epi16(high, weights));
                }
                let (left, right) = (_mm256_sra_epi32(left, precision), _mm256_sra_epi32(right, precision));
                // Packing goes by halves of a register, so their quarters have to be put in order.
                let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(left, right));
                let bytes = _mm256_packus_epi16(words, words);
                place[..8].copy_from_slice(&_mm256_extract_epi64::<0>(bytes).to_le_bytes());
                place[8..].copy_from_slice(&_mm256_extract_epi64::<2>(bytes).to_le_bytes());
            }
        }
        done
    }

    /// Two weights as the multiplication takes them.
    fn pair(first: i16, second: i16) -> i32 {
        i32::from(first) & 0xffff | i32::from(second) << 16
    }
}
