// Vectors of float32, as wide as the processor's registers, and what bfloat16 is to them.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

typedef uint16_t bf16;

#if defined(__AVX512F__)
constexpr long W = 16;  // numbers of a vector
#elif defined(__AVX2__)
constexpr long W = 8;
#else
constexpr long W = 4;
#endif
typedef float V __attribute__((vector_size(4 * W)));
typedef int32_t I __attribute__((vector_size(4 * W)));
typedef uint16_t Halves __attribute__((vector_size(2 * W)));

inline V load(const float* from) { V x; std::memcpy(&x, from, sizeof x); return x; }
inline void store(float* to, V x) { std::memcpy(to, &x, sizeof x); }
inline I bits(V x) { I i; std::memcpy(&i, &x, sizeof i); return i; }
inline V of_bits(I i) { V x; std::memcpy(&x, &i, sizeof x); return x; }
inline V all(float x) { return x - V{}; }  // V{} + x would be computed: it turns -0 into 0
inline V larger(V a, V b) { return a > b ? a : b; }
inline float sum(V x) { float s = 0; for (long i = 0; i < W; i++) s += x[i]; return s; }
inline long up(long n, long to) { return (n + to - 1) / to * to; }

inline Halves to_bf16(V x) {  // to the nearest, ties to even
#if defined(__AVX512BF16__)
  const __m256bh h = _mm512_cvtneps_pbh((__m512)x);
  Halves y; std::memcpy(&y, &h, sizeof y); return y;
#else
  const I i = bits(x), rounded = i + 0x7fff + ((i >> 16) & 1);
  return __builtin_convertvector((x != x ? I{} + 0x7fc00000 : rounded) >> 16, Halves);
#endif
}

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) {
  const uint32_t i = uint32_t(x) << 16;
  float y;
  std::memcpy(&y, &i, sizeof y);
  return y;
}

inline V load(const bf16* from) {
  Halves h; std::memcpy(&h, from, sizeof h);
  return of_bits(__builtin_convertvector(h, I) << 16);
}
inline void store(bf16* to, V x) { const Halves h = to_bf16(x); std::memcpy(to, &h, sizeof h); }

// e^x to within 2 units in the last place, 0 below -87: 2^n · 2^f, f in [-1/2, 1/2] by its Taylor polynomial.
inline V exponential(V x) {
  constexpr float LOG2_E = 1.44269502f, REST = 1.9259630e-8f;  // log2(e) is their sum
  const V y = x < all(-88.f) ? all(-88.f) : x;
  const V magic = all(12582912.f);  // 1.5 · 2^23: adding it rounds to a whole number, in the low bits
  const V shifted = y * LOG2_E + magic, n = shifted - magic;
  const V f = (y * LOG2_E - n) + y * REST;
  V p = all(1.5403530e-4f);
  p = p * f + 1.3333558e-3f;
  p = p * f + 9.6181291e-3f;
  p = p * f + 5.5504109e-2f;
  p = p * f + 2.4022651e-1f;
  p = p * f + 6.9314718e-1f;
  p = p * f + 1.f;
  const V power = of_bits(bits(p) + (bits(shifted) << 23));
  return x < all(-87.f) ? V{} : x == x ? power : x;  // what is not a number stays so
}

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (I){__VA_ARGS__})
#endif
inline V zip_low(V a, V b) {
#if defined(__AVX512F__)
  return SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
#elif defined(__AVX2__)
  return SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
#else
  return SHUFFLE(a, b, 0, 4, 1, 5);
#endif
}
inline V zip_high(V a, V b) {
#if defined(__AVX512F__)
  return SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#elif defined(__AVX2__)
  return SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
  return SHUFFLE(a, b, 2, 6, 3, 7);
#endif
}

// Rows become columns: log2(W) times, the first half is zipped with the second.
inline void turn(V x[W]) {
  for (long step = 1; step < W; step *= 2) {
    V y[W];
    for (long r = 0; r < W / 2; r++) {
      y[2 * r] = zip_low(x[r], x[r + W / 2]);
      y[2 * r + 1] = zip_high(x[r], x[r + W / 2]);
    }
    for (long r = 0; r < W; r++) x[r] = y[r];
  }
}
