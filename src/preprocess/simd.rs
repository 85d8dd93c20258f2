//! The resampling kernel's sums on processors with AVX2, to the same bits; elsewhere nothing here does anything.

use super::kernel::Kernel;

/// Has this processor AVX2, and what came with it?
pub(super) fn is_available() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("bmi2");
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
    const ROWS: usize = 8;
    /// Bytes that a row is read by along its length, of which four pixels are used.
    const BLOCK: usize = 16;
    /// Bytes of a row that are computed at a time where columns are resampled.
    const WIDE: usize = 32;

    #[target_feature(enable = "avx2")]
    pub(super) fn horizontal(kernel: &Kernel, pixels: &[u8], stride: usize, first: usize) -> Vec<u8> {
        let target = kernel.starts.len() * 3;
        let rows = pixels.len() / stride.max(1);
        let mut output = buffer::take(rows * target);
        // Blocks reach beyond what they are read for, so the last rows are read from a longer copy.
        let beyond = BLOCK * (1 + kernel.taps / LANES);
        let whole = pixels.len().saturating_sub(beyond) / (ROWS * stride).max(1) * ROWS;
        let mut last = vec![0; (rows - whole).next_multiple_of(ROWS) * stride + beyond];
        last[..(rows - whole) * stride].copy_from_slice(&pixels[whole * stride..rows * stride]);
        let (output_of_whole, output_of_last) = output.split_at_mut(whole * target);
        for (group, place) in (0..).step_by(ROWS).zip(output_of_whole.chunks_exact_mut((ROWS * target).max(1))) {
            resample_rows(kernel, &pixels[group * stride..], stride, first, place);
        }
        let mut place = vec![0; ROWS * target];
        for (group, output) in (0..).step_by(ROWS).zip(output_of_last.chunks_mut((ROWS * target).max(1))) {
            resample_rows(kernel, &last[group * stride..], stride, first, &mut place);
            output.copy_from_slice(&place[..output.len()]);
        }
        output
    }

    /// The first rows of `pixels`, which go on for a block behind them.
    #[target_feature(enable = "avx2")]
    fn resample_rows(kernel: &Kernel, pixels: &[u8], stride: usize, first: usize, output: &mut [u8]) {
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
        let Some(last) = kernel.starts.len().checked_sub(1) else { return };
        let target = (last + 1) * 3;
        // All that is read and written is looked at once, as to do so for each pixel takes as long as what is computed.
        let (lowest, highest) =
            kernel.starts.iter().fold((usize::MAX, 0), |(a, b), &start| (a.min(start), b.max(start)));
        let length = (ROWS - 1) * stride + (highest - first) * 3 + (kernel.taps / LANES - 1) * LANES * 3 + BLOCK;
        assert!(first <= lowest && length <= pixels.len() && output.len() == ROWS * target, "rows are too short");
        for (index, (start, weights)) in kernel.each().enumerate() {
            let mut sums = [half; ROWS / 2];
            for (step, &[w0, w1, w2, w3]) in weights.as_chunks::<LANES>().0.iter().enumerate() {
                let (one, two) = (_mm256_set1_epi32(pair(w0, w1)), _mm256_set1_epi32(pair(w2, w3)));
                let at = ((start - first) + step * LANES) * 3;
                #[expect(unsafe_code, reason = "see above")]
                // SAFETY: `row` is less than `ROWS`, `start` at least `first` and at most `highest`, and `step` less than a fourth of the
                // weights, so the block ends within `length`.
                let block = |row: usize| unsafe { _mm_loadu_si128(pixels.as_ptr().add(row * stride + at).cast()) };
                for (two_rows, sum) in sums.iter_mut().enumerate() {
                    let pixels = _mm256_set_m128i(block(two_rows * 2 + 1), block(two_rows * 2));
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(_mm256_shuffle_epi8(pixels, first_two), one));
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(_mm256_shuffle_epi8(pixels, next_two), two));
                }
            }
            // Packing saturates, which is what clamping is.
            let [ab, cd, ef, gh] = sums.map(|sum| _mm256_sra_epi32(sum, precision));
            let bytes = _mm256_packus_epi16(_mm256_packs_epi32(ab, cd), _mm256_packs_epi32(ef, gh));
            let (even, odd) = (_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes));
            let (a, c, e, g) = four(even);
            let (b, d, f, h) = four(odd);
            for (row, pixel) in [a, b, c, d, e, f, g, h].into_iter().enumerate() {
                let (at, pixel) = (row * target + index * 3, pixel.to_le_bytes());
                if index < last {
                    #[expect(unsafe_code, reason = "see above")]
                    // SAFETY: another pixel of the row comes behind this one. Its first byte is written to as well, but it is itself later.
                    unsafe {
                        output.as_mut_ptr().add(at).cast::<[u8; 4]>().write_unaligned(pixel);
                    }
                } else {
                    output[at..][..3].copy_from_slice(&pixel[..3]);
                }
            }
        }
    }

    #[target_feature(enable = "avx2")]
    fn four(values: __m128i) -> (i32, i32, i32, i32) {
        let others = (_mm_extract_epi32::<1>(values), _mm_extract_epi32::<2>(values), _mm_extract_epi32::<3>(values));
        (_mm_cvtsi128_si32(values), others.0, others.1, others.2)
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn vertical(kernel: &Kernel, pixels: &[u8], stride: usize, first: usize, output: &mut [u8]) -> usize {
        let precision = _mm_cvtsi32_si128(kernel.precision as i32);
        let half = _mm256_set1_epi32(kernel.half());
        let Some(last) = (pixels.len() / stride.max(1)).checked_sub(1) else { return 0 };
        let Some(last_block) = stride.checked_sub(WIDE) else { return 0 };
        let zero = _mm256_setzero_si256();
        let mut rows: Vec<&[u8]> = Vec::with_capacity(kernel.taps);
        for ((start, weights), target) in kernel.each().zip(output.chunks_exact_mut(stride)) {
            rows.clear();
            // Weights of 0 may reach beyond the last row.
            let row = |tap: usize| &pixels[(start - first + tap).min(last) * stride..][..stride];
            rows.extend((0..weights.len()).map(row));
            // The last block may begin within the one before.
            for at in (0..last_block).step_by(WIDE).chain([last_block]) {
                let mut sums = [half; 4];
                for (&[upper, lower], &[w0, w1]) in rows.as_chunks::<2>().0.iter().zip(weights.as_chunks::<2>().0) {
                    let (upper, lower) = (load(&upper[at..]), load(&lower[at..]));
                    let weights = _mm256_set1_epi32(pair(w0, w1));
                    let (low, high) = (_mm256_unpacklo_epi8(upper, lower), _mm256_unpackhi_epi8(upper, lower));
                    let pairs = [
                        _mm256_unpacklo_epi8(low, zero),
                        _mm256_unpackhi_epi8(low, zero),
                        _mm256_unpacklo_epi8(high, zero),
                        _mm256_unpackhi_epi8(high, zero),
                    ];
                    for (sum, pairs) in sums.iter_mut().zip(pairs) {
                        *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, weights));
                    }
                }
                // Packing goes by halves of a register, as unpacking has.
                let [a, b, c, d] = sums.map(|sum| _mm256_sra_epi32(sum, precision));
                let bytes = _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
                let place: &mut [u8] = &mut target[at..][..WIDE];
                #[expect(unsafe_code, reason = "the only way to write them at once")]
                // SAFETY: there are so many bytes.
                unsafe {
                    _mm256_storeu_si256(place.as_mut_ptr().cast(), bytes);
                }
            }
        }
        stride
    }

    /// The first bytes.
    #[target_feature(enable = "avx2")]
    fn load(bytes: &[u8]) -> __m256i {
        let bytes = &bytes[..WIDE];
        #[expect(unsafe_code, reason = "the only way to read them at once")]
        // SAFETY: there are so many bytes.
        unsafe {
            _mm256_loadu_si256(bytes.as_ptr().cast())
        }
    }

    /// Two weights as the multiplication takes them.
    fn pair(first: i16, second: i16) -> i32 {
        i32::from(first) & 0xffff | i32::from(second) << 16
    }
}
