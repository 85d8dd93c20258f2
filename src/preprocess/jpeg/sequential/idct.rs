//! Inverse discrete cosine transforms, to the same bits as those of libjpeg-turbo.
//!
//! Source: `jidctint.c` and `jidctred.c` of the Independent JPEG Group, and `simd/x86_64/jidctint-avx2.asm` of libjpeg-turbo. The one of
//! the whole size is the same for all coefficients; the reduced ones are for those that an encoder can arrive at, others overflow
//! otherwise.

use std::arch::x86_64::*;

/// Of the constants.
const FRACTION_BITS: i32 = 13;

/// A constant in fixed point.
const fn fix(value: f64) -> i32 {
    (value * (1 << FRACTION_BITS) as f64 + if value < 0.0 { -0.5 } else { 0.5 }) as i32
}

/// The samples of a block of `coefficients`, of which only the first `extent` in the order of the file may be other than 0, at
/// `eighths` of its size: as many rows of as many samples, at the start of `output` and then each `stride` behind the one before.
#[target_feature(enable = "avx2")]
pub(super) fn transform(
    coefficients: &[i16; 64],
    steps: &[i16; 64],
    extent: usize,
    eighths: usize,
    output: &mut [u8],
    stride: usize,
) {
    if extent == 1 || eighths == 1 {
        // All samples are the mean.
        let mean = (i32::from(coefficients[0].wrapping_mul(steps[0]) << 2) + 16) >> 5;
        let rows = [_mm_set1_epi16(mean as i16); 8];
        return match eighths {
            8 => store::<8>(rows, output, stride),
            4 => store::<4>(rows, output, stride),
            2 => store::<2>(rows, output, stride),
            _ => store::<1>(rows, output, stride),
        };
    }
    let (coefficients, steps) = (coefficients.as_chunks::<8>().0, steps.as_chunks::<8>().0);
    let coefficients: [__m128i; 8] = std::array::from_fn(|row| load(&coefficients[row]));
    let rows = std::array::from_fn(|row| _mm_mullo_epi16(coefficients[row], load(&steps[row])));
    // Along the columns, and then along the rows.
    match eighths {
        8 => {
            let below = coefficients[1..].iter().fold(_mm_setzero_si128(), |any, &row| _mm_or_si128(any, row));
            // Where all columns are their means, the library spares the sums, and other values overflow.
            let columns = match _mm_testz_si128(below, below) {
                1 => [_mm_slli_epi16::<2>(rows[0]); 8],
                _ => whole::<11>(rows),
            };
            store::<8>(transpose(whole::<18>(transpose(columns))), output, stride);
        }
        4 => store::<4>(transpose(half::<19>(transpose(half::<12>(rows)))), output, stride),
        _ => store::<2>(transpose(quarter::<20>(transpose(quarter::<13>(rows)))), output, stride),
    }
}

/// The first samples of the first rows, which are around 0.
#[target_feature(enable = "avx2")]
fn store<const SIDE: usize>(rows: [__m128i; 8], output: &mut [u8], stride: usize) {
    let output = &mut output[..(SIDE - 1) * stride + SIDE];
    for (index, row) in rows.into_iter().take(SIDE).enumerate() {
        let samples = _mm_add_epi8(_mm_packs_epi16(row, row), _mm_set1_epi8(-128));
        output[index * stride..][..SIDE].copy_from_slice(&_mm_cvtsi128_si64(samples).to_le_bytes()[..SIDE]);
    }
}

/// Along the columns; results are shifted by so many bits.
#[target_feature(enable = "avx2")]
fn whole<const SHIFT: i32>(rows: [__m128i; 8]) -> [__m128i; 8] {
    const C0_298: i32 = fix(0.298631336);
    const C0_390: i32 = fix(0.390180644);
    const C0_541: i32 = fix(0.541196100);
    const C0_765: i32 = fix(0.765366865);
    const C0_899: i32 = fix(0.899976223);
    const C1_175: i32 = fix(1.175875602);
    const C1_501: i32 = fix(1.501321110);
    const C1_847: i32 = fix(1.847759065);
    const C1_961: i32 = fix(1.961570560);
    const C2_053: i32 = fix(2.053119869);
    const C2_562: i32 = fix(2.562915447);
    const C3_072: i32 = fix(3.072711026);
    let [x0, x1, x2, x3, x4, x5, x6, x7] = rows;
    // Even part.
    let even = interleave(x2, x6);
    let t3 = sum_of_products(even, C0_541 + C0_765, C0_541);
    let t2 = sum_of_products(even, C0_541, C0_541 - C1_847);
    let t0 = _mm256_slli_epi32::<FRACTION_BITS>(_mm256_cvtepi16_epi32(_mm_add_epi16(x0, x4)));
    let t1 = _mm256_slli_epi32::<FRACTION_BITS>(_mm256_cvtepi16_epi32(_mm_sub_epi16(x0, x4)));
    let (e0, e3) = (_mm256_add_epi32(t0, t3), _mm256_sub_epi32(t0, t3));
    let (e1, e2) = (_mm256_add_epi32(t1, t2), _mm256_sub_epi32(t1, t2));
    // Odd part.
    let sums = interleave(_mm_add_epi16(x3, x7), _mm_add_epi16(x1, x5));
    let z3 = sum_of_products(sums, C1_175 - C1_961, C1_175);
    let z4 = sum_of_products(sums, C1_175, C1_175 - C0_390);
    let (outer, inner) = (interleave(x7, x1), interleave(x5, x3));
    let o0 = _mm256_add_epi32(sum_of_products(outer, C0_298 - C0_899, -C0_899), z3);
    let o1 = _mm256_add_epi32(sum_of_products(inner, C2_053 - C2_562, -C2_562), z4);
    let o2 = _mm256_add_epi32(sum_of_products(inner, -C2_562, C3_072 - C2_562), z3);
    let o3 = _mm256_add_epi32(sum_of_products(outer, -C0_899, C1_501 - C0_899), z4);
    let ((y0, y7), (y1, y6)) = (both::<SHIFT>(e0, o3), both::<SHIFT>(e1, o2));
    let ((y2, y5), (y3, y4)) = (both::<SHIFT>(e2, o1), both::<SHIFT>(e3, o0));
    [y0, y1, y2, y3, y4, y5, y6, y7]
}

/// Half as many results as there are rows.
#[target_feature(enable = "avx2")]
fn half<const SHIFT: i32>([x0, x1, x2, x3, _, x5, x6, x7]: [__m128i; 8]) -> [__m128i; 8] {
    let mean = _mm256_slli_epi32::<{ FRACTION_BITS + 1 }>(_mm256_cvtepi16_epi32(x0));
    let even = sum_of_products(interleave(x2, x6), fix(1.847759065), fix(-0.765366865));
    let (e0, e1) = (_mm256_add_epi32(mean, even), _mm256_sub_epi32(mean, even));
    let (a, b) = (interleave(x1, x3), interleave(x5, x7));
    let odd =
        |c1, c3, c5, c7| _mm256_add_epi32(sum_of_products(a, fix(c1), fix(c3)), sum_of_products(b, fix(c5), fix(c7)));
    let o0 = odd(2.562915447, 0.899976223, -0.601344887, -0.509795579);
    let o1 = odd(1.061594337, -2.172734803, 1.451774981, -0.211164243);
    let ((y0, y3), (y1, y2)) = (both::<SHIFT>(e0, o0), both::<SHIFT>(e1, o1));
    let none = _mm_setzero_si128();
    [y0, y1, y2, y3, none, none, none, none]
}

/// A quarter as many.
#[target_feature(enable = "avx2")]
fn quarter<const SHIFT: i32>([x0, x1, _, x3, _, x5, _, x7]: [__m128i; 8]) -> [__m128i; 8] {
    let even = _mm256_slli_epi32::<{ FRACTION_BITS + 2 }>(_mm256_cvtepi16_epi32(x0));
    let low = sum_of_products(interleave(x1, x3), fix(3.624509785), fix(-1.272758580));
    let odd = _mm256_add_epi32(low, sum_of_products(interleave(x5, x7), fix(0.850430095), fix(-0.720959822)));
    let none = _mm_setzero_si128();
    let (y0, y1) = both::<SHIFT>(even, odd);
    [y0, y1, none, none, none, none, none, none]
}

/// Sum and difference of an even and an odd part, which lie opposite each other.
#[target_feature(enable = "avx2")]
fn both<const SHIFT: i32>(even: __m256i, odd: __m256i) -> (__m128i, __m128i) {
    (round::<SHIFT>(_mm256_add_epi32(even, odd)), round::<SHIFT>(_mm256_sub_epi32(even, odd)))
}

/// Shifted by so many bits, rounded and clamped.
#[target_feature(enable = "avx2")]
fn round<const SHIFT: i32>(values: __m256i) -> __m128i {
    let rounded = _mm256_srai_epi32::<SHIFT>(_mm256_add_epi32(values, _mm256_set1_epi32(1 << (SHIFT - 1))));
    _mm_packs_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256::<1>(rounded))
}

/// Each value of `a` and next to it that of `b`.
#[target_feature(enable = "avx2")]
fn interleave(a: __m128i, b: __m128i) -> __m256i {
    _mm256_set_m128i(_mm_unpackhi_epi16(a, b), _mm_unpacklo_epi16(a, b))
}

/// Of two values next to each other, the first times `a` and the second times `b`.
#[target_feature(enable = "avx2")]
fn sum_of_products(pairs: __m256i, a: i32, b: i32) -> __m256i {
    _mm256_madd_epi16(pairs, _mm256_set1_epi32(a & 0xffff | b << 16))
}

#[target_feature(enable = "avx2")]
fn transpose(rows: [__m128i; 8]) -> [__m128i; 8] {
    let [a, b, c, d, e, f, g, h] = rows;
    let (ab, cd) =
        ([_mm_unpacklo_epi16(a, b), _mm_unpackhi_epi16(a, b)], [_mm_unpacklo_epi16(c, d), _mm_unpackhi_epi16(c, d)]);
    let (ef, gh) =
        ([_mm_unpacklo_epi16(e, f), _mm_unpackhi_epi16(e, f)], [_mm_unpacklo_epi16(g, h), _mm_unpackhi_epi16(g, h)]);
    let four = |ab: __m128i, cd: __m128i| (_mm_unpacklo_epi32(ab, cd), _mm_unpackhi_epi32(ab, cd));
    let ((a0, a2), (a4, a6)) = (four(ab[0], cd[0]), four(ab[1], cd[1]));
    let ((e0, e2), (e4, e6)) = (four(ef[0], gh[0]), four(ef[1], gh[1]));
    let two = |a: __m128i, e: __m128i| (_mm_unpacklo_epi64(a, e), _mm_unpackhi_epi64(a, e));
    let ((y0, y1), (y2, y3), (y4, y5), (y6, y7)) = (two(a0, e0), two(a2, e2), two(a4, e4), two(a6, e6));
    [y0, y1, y2, y3, y4, y5, y6, y7]
}

#[target_feature(enable = "avx2")]
fn load(values: &[i16; 8]) -> __m128i {
    #[expect(unsafe_code, reason = "the only way to read eight values at once")]
    // SAFETY: there are eight values.
    unsafe {
        _mm_loadu_si128(values.as_ptr().cast())
    }
}
