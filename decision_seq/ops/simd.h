/* What the kernels share: vectors of V floats, partial loads and stores, 2^x and what is made of it.
 *
 * float32 throughout. Compiled on first use for the machine at hand and called through ctypes
 * (native.py); no header but the C library's. Ragged widths are handled by partial loads and stores
 * with zeros in the unused lanes, for which the kernels' formulas yield 0. Inner functions take
 * `lanes` and `count` and are inlined into callers that pass constants, so that the common case
 * compiles to straight vector code.
 *
 * Determinism: work is cut into items that do not depend on the number of threads; what several
 * items contribute to one gradient is kept apart and summed in a fixed order afterwards.
 *
 * Matrices with a `_row` argument may be views: rows that many floats apart, row b * length + t. */

#ifndef DECISION_SEQ_SIMD_H
#define DECISION_SEQ_SIMD_H

#include <stdlib.h>
#include <string.h>

#ifdef __AVX512F__
#include <immintrin.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num(void) { return 0; }
#endif

#define V 16                  /* channels a vector; narrower hardware splits it */
#define SMALL 32768           /* multiply-adds below which starting threads costs more than it saves */
#define LOG2E 1.44269504088896f
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * V)));
typedef int ivec __attribute__((vector_size(4 * V)));

INLINE long ceil_div(long a, long b) { return (a + b - 1) / b; }
INLINE int min_int(int a, int b) { return a < b ? a : b; }
INLINE vec splat(float x) { return x - (vec){0}; }

INLINE vec load(const float *p, int lanes) {
    vec v = {0};
    memcpy(&v, p, lanes * sizeof(float));
    return v;
}

INLINE void store(float *p, vec v, int lanes) { memcpy(p, &v, lanes * sizeof(float)); }

INLINE vec at_least(vec x, float low) {
    const ivec above = x > low;
    return (vec)((above & (ivec)x) | (~above & (ivec)splat(low)));
}

INLINE float sum_lanes(vec v) {
    typedef float half __attribute__((vector_size(2 * V)));
    typedef float quarter __attribute__((vector_size(V)));
    half h[2];
    quarter q[2];
    memcpy(h, &v, sizeof h);
    h[0] += h[1];
    memcpy(q, h, sizeof q);
    q[0] += q[1];
    return (q[0][0] + q[0][2]) + (q[0][1] + q[0][3]);
}

/* 2^x for x < 127, relative error below 2e-7, and exactly 1 at 0; far below -126 it is 0 with
 * AVX-512, which scales by powers of two in one instruction, and 2^-126 elsewhere. Adding
 * 1.5 * 2^23 leaves round(x) in the low bits of the sum, ready to be shifted into the exponent;
 * this is what -ffast-math would break. The polynomial is the minimax fit of 2^f on [-1/2, 1/2]
 * with constant term 1. */
INLINE vec exp2_vec(vec x) {
    const float shift = 12582912.f;
#ifndef __AVX512F__
    x = at_least(x, -126.f);
#endif
    vec shifted = x + shift, whole = shifted - shift, f = x - whole;
    vec p = 1.3264727e-3f * f + 9.6715127e-3f;
    p = p * f + 5.5507433e-2f;
    p = p * f + 2.4022242e-1f;
    p = p * f + 6.9314698e-1f;
    p = p * f + 1.f;
#ifdef __AVX512F__
    return (vec)_mm512_scalef_ps((__m512)p, (__m512)whole);
#else
    return (vec)((ivec)p + ((ivec)shifted << 23));
#endif
}

INLINE vec sigmoid(vec x) {
    x = at_least(x, -80.f);
    return 1.f / (1.f + exp2_vec(-LOG2E * x));
}

/* d silu(x) / dx, given s = sigmoid(x) */
INLINE vec silu_slope(vec x, vec s) { return s * (1.f + x * (1.f - s)); }

#endif
