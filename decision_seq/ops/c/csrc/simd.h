/* What the kernels share: vectors of V floats, partial loads and stores, 2^x and what is made of it.
 *
 * float32 throughout. Compiled on first use for the machine at hand and called through ctypes
 * (build.py); no header but the C library's. Ragged widths are handled by partial loads and stores
 * with zeros in the unused elements, for which the kernels' formulas yield 0. Inner functions take
 * `elements` and `count` and are inlined into callers that pass constants, so that the common case
 * compiles to straight vector code.
 *
 * Determinism: work is cut into items that do not depend on the number of threads; what several
 * items contribute to one gradient is kept apart and summed in a fixed order afterwards.
 *
 * Matrices with a `_row` argument may be views: rows that many floats apart, row b * length + t. */

#ifndef DECISION_SEQ_SIMD_H
#define DECISION_SEQ_SIMD_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef __AVX512F__
#include <immintrin.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#else
static inline int omp_get_thread_num(void) { return 0; }
#endif

/* Channels a vector: as many as the hardware has registers for. Compilers split wider ones badly: with
 * 16 on Zen 3, which has room for 8, a scan took three times as long and a step of a policy fifty. */
#if defined(__AVX512F__)
#define V 16
#elif defined(__AVX2__)
#define V 8
#else
#define V 4
#endif
#define SMALL 32768           /* multiply-adds below which starting threads costs more than it saves */
#define LOG2E 1.44269504088896f
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * V)));
typedef unsigned uvec __attribute__((vector_size(4 * V)));
typedef uint16_t halfvec __attribute__((vector_size(2 * V)));
typedef int ivec __attribute__((vector_size(4 * V)));

INLINE long ceil_div(long a, long b) { return (a + b - 1) / b; }
INLINE int min_int(int a, int b) { return a < b ? a : b; }
INLINE vec splat(float x) { return x - (vec){0}; }

/* Some of V floats: fast where their number is known at compile time, or by AVX-512's masks. */
INLINE vec load(const float *p, int elements) {
#ifdef __AVX512F__
    if (elements < V) return (vec)_mm512_maskz_loadu_ps((1u << elements) - 1, p);
    elements = V;
#endif
    vec v = {0};
    memcpy(&v, p, elements * sizeof(float));
    return v;
}

INLINE void store(float *p, vec v, int elements) {
#ifdef __AVX512F__
    if (elements < V) {
        _mm512_mask_storeu_ps(p, (1u << elements) - 1, (__m512)v);
        return;
    }
    elements = V;
#endif
    memcpy(p, &v, elements * sizeof(float));
}

/* The same of `left` floats, many or few. */
INLINE vec load_some(const float *p, long left) { return left < V ? load(p, left) : load(p, V); }

INLINE void store_some(float *p, vec v, long left) {
    if (left < V)
        store(p, v, left);
    else
        store(p, v, V);
}

/* Matrices that mixed precision keeps in bfloat16, the upper half of a float32, are `void *` with a
 * flag `half`; `at` counts numbers. Arithmetic is in float32. */
INLINE vec load_from(const void *p, long at, int elements, int half) {
    if (!half) return load((const float *)p + at, elements);
    halfvec v = {0};
    memcpy(&v, (const uint16_t *)p + at, elements * sizeof(uint16_t));
    return (vec)(__builtin_convertvector(v, uvec) << 16);
}

INLINE void store_to(void *p, long at, vec x, int elements, int half) {
    if (!half) {
        store((float *)p + at, x, elements);
        return;
    }
#ifdef __AVX512BF16__
    const halfvec v = (halfvec)_mm512_cvtneps_pbh((__m512)x);
#else
    const uvec bits = (uvec)x, nan = (uvec)(x != x);
    const uvec nearest = bits + 0x7fff + (bits >> 16 & 1); /* the even one of two */
    const halfvec v = __builtin_convertvector(((nearest & ~nan) | (0x7fc00000 & nan)) >> 16, halfvec);
#endif
    memcpy((uint16_t *)p + at, &v, elements * sizeof(uint16_t));
}

/* Where number `at` of such a matrix lies. */
INLINE const void *place(const void *p, long at, int half) {
    return half ? (const void *)((const uint16_t *)p + at) : (const void *)((const float *)p + at);
}

INLINE vec larger(vec a, vec b) {
    const ivec second = a <= b; /* not where a is NaN */
    return (vec)((second & (ivec)b) | (~second & (ivec)a));
}

INLINE vec at_least(vec x, float low) { return larger(x, splat(low)); }

INLINE float sum_elements(vec v) {
    typedef float quad __attribute__((vector_size(16)));
    quad q[V / 4];
    memcpy(q, &v, sizeof q);
    for (int half = V / 8; half; half /= 2)
        for (int i = 0; i < half; i++) q[i] += q[i + half];
    return (q[0][0] + q[0][2]) + (q[0][1] + q[0][3]);
}

INLINE float max_element(vec v) {
    float elements[V];
    memcpy(elements, &v, sizeof v);
    for (int half = V / 2; half; half /= 2)
        for (int i = 0; i < half; i++)
            elements[i] = elements[i] > elements[i + half] ? elements[i] : elements[i + half];
    return elements[0];
}

/* 2^x for x < 127, relative error below 2e-7, exactly 1 at 0, and next to 0 far below -126. Adding
 * 1.5 * 2^23 (or 2^-5 of it) leaves round(x) (or round(32 x)) in the low bits of the sum, which is what
 * -ffast-math would break; the polynomials are minimax fits of 2^f with constant term 1. */
#ifdef __AVX512F__
static const float POWERS[32] __attribute__((aligned(64))) = { /* 2^(i / 32) */
    1.f, 1.02189715f, 1.04427378f, 1.0671404f, 1.09050773f, 1.11438674f, 1.13878863f, 1.16372486f,
    1.18920712f, 1.21524736f, 1.24185781f, 1.26905096f, 1.29683955f, 1.32523664f, 1.35425555f, 1.38390988f,
    1.41421356f, 1.44518081f, 1.47682615f, 1.50916443f, 1.54221083f, 1.57598085f, 1.61049033f, 1.64575548f,
    1.68179283f, 1.7186193f, 1.75625216f, 1.79470908f, 1.83400809f, 1.87416763f, 1.91520656f, 1.95714412f,
};

/* One permutation looks up 2^(i / 32), and a short polynomial is enough for the rest. */
INLINE vec exp2_vec(vec x) {
    const float shift = 393216.f;
    const vec shifted = x + shift, whole = shifted - shift, f = x - whole;
    const __m512 low = _mm512_load_ps(POWERS), high = _mm512_load_ps(POWERS + 16);
    const vec power = (vec)_mm512_permutex2var_ps(low, (__m512i)shifted, high);
    const vec p = f * (2.40226507e-1f * f + 6.93157344e-1f);
    return (vec)_mm512_scalef_ps((__m512)(power * p + power), (__m512)whole);
}

INLINE vec exp_vec(vec x) { return exp2_vec(LOG2E * x); }
#else
/* For x >= -126. */
INLINE vec exp2_normal(vec x) {
    const float shift = 12582912.f;
    const vec shifted = x + shift, whole = shifted - shift, f = x - whole;
    vec p = 1.3264727e-3f * f + 9.6715127e-3f;
    p = p * f + 5.5507433e-2f;
    p = p * f + 2.4022242e-1f;
    p = p * f + 6.9314698e-1f;
    p = p * f + 1.f;
    return (vec)((ivec)p + ((ivec)shifted << 23));
}

INLINE vec exp2_vec(vec x) { return exp2_normal(at_least(x, -126.f)); }

/* With nothing between them the products are fused with the sums that follow, and as exact. */
INLINE vec exp_vec(vec x) { return exp2_normal(LOG2E * at_least(x, -87.f)); }
#endif

/* 1 / x for finite x, to the last bit or two: a division takes as long as twenty other operations. */
INLINE vec reciprocal(vec x) {
#ifdef __AVX512F__
    const vec near = (vec)_mm512_rcp14_ps((__m512)x);
    return near * (2.f - x * near); /* Newton's step */
#else
    return 1.f / x;
#endif
}

INLINE vec sigmoid(vec x) {
    x = at_least(x, -80.f);
    return reciprocal(1.f + exp_vec(-x));
}

/* d silu(x) / dx, given s = sigmoid(x) */
INLINE vec silu_slope(vec x, vec s) { return s * (1.f + x * (1.f - s)); }

/* 1/2 + x p(2 (x / bound)^2 - 1) for x in [-bound, bound], and its value at the nearer end for others.
 * In this variable p's coefficients stay small; they are given from the highest power down. */
INLINE vec half_and_odd(vec x, float bound, const float *p, int count) {
    x = at_least(-at_least(-x, -bound), -bound);
    const vec s = (2.f / (bound * bound)) * x * x - 1.f;
    vec sum = splat(p[0]);
#pragma GCC unroll 16
    for (int i = 1; i < count; i++) sum = sum * s + p[i];
    return 0.5f + x * sum;
}

/* The normal distribution's Phi(x), absolute error below 2e-7. */
INLINE vec normal_cdf(vec x) {
    const float p[] = {
        -4.812762982e-04f, 1.268511117e-03f, -1.221496190e-03f, 1.800122419e-03f,
        -4.789036104e-03f, 8.559968033e-03f, -1.250512258e-02f, 1.795478675e-02f,
        -2.472362916e-02f, 3.198995932e-02f, -3.992981961e-02f, 5.002452135e-02f,
        -6.774366747e-02f, 1.359499930e-01f,
    };
    return half_and_odd(x, 5.2f, p, 14);
}

INLINE vec gelu(vec x) { return x * normal_cdf(x); }

/* log(1 + e^x) = max(x, 0) + log1p(w), w = e^-|x|, log1p(w) = 2 atanh(w / (2 + w)). */
INLINE vec softplus(vec x) {
    const vec w = exp_vec(-(vec)((ivec)x & 0x7fffffff));
    const vec s = w * reciprocal(2.f + w), q = s * s;
    vec p = q * (1.f / 15) + 1.f / 13;
    p = p * q + 1.f / 11;
    p = p * q + 1.f / 9;
    p = p * q + 1.f / 7;
    p = p * q + 1.f / 5;
    p = p * q + 1.f / 3;
    p = p * q + 1.f;
    return at_least(x, 0.f) + 2.f * s * p;
}

#endif
