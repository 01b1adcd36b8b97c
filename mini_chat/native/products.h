// Products C (M × N) = or += A (M × K) · B (K × N) of blocks that lie in the cache, with sums in float32.
//
// One way for each kind of processor; all have the type T of what is multiplied, PAD, of which M, N and K are
// multiples, `multiply`, and how blocks are laid out. A lies row by row. So does B in float32; in bfloat16 two rows of
// it lie side by side, number by number, since processors add up products of pairs (VNNI).

#pragma once

#include "vectors.h"

#if defined(__AMX_BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#define HAS_AMX 1
#else
#define HAS_AMX 0
#endif

// A document's positions for one head: n rows of D numbers, `stride` apart. Copies are filled up with zeros.
template <class S> struct Rows {
  const S* data;
  long stride, n, D;

  Rows from(long first) const { return {data + first * stride, stride, n - first, D}; }
  V at(long row, long d) const { return row < n ? load(data + row * stride + d) : V{}; }
};

// Two rows of a block that lies row by row, from column c on.
template <class T> inline void put_rows(T* to, long width, long c, V even, V odd) {
  store(to + c, even);
  store(to + width + c, odd);
}

struct Float32 {
  typedef float T;
  static constexpr long PAD = 16;
  static constexpr bool SAME = true;  // A and B are laid out alike
  static void begin() {}
  static void end() {}

  template <int R, int C>
  static inline void tile(long K, const T* A, long lda, const T* B, long ldb, float* out, long ldc, bool add) {
    V sums[R][C];
    for (int r = 0; r < R; r++)
      for (int c = 0; c < C; c++) sums[r][c] = add ? load(out + r * ldc + c * W) : V{};
    for (long k = 0; k < K; k++) {
      V b[C];
      for (int c = 0; c < C; c++) b[c] = load(B + k * ldb + c * W);
      for (int r = 0; r < R; r++) {
        const V a = all(A[r * lda + k]);
        for (int c = 0; c < C; c++) sums[r][c] += a * b[c];
      }
    }
    for (int r = 0; r < R; r++)
      for (int c = 0; c < C; c++) store(out + r * ldc + c * W, sums[r][c]);
  }

  static void multiply(long M, long N, long K, const T* A, long lda, const T* B, long ldb, float* C, long ldc,
                       bool add) {
    constexpr long WIDE = W == 16 ? 4 : 2;  // AVX-512 has 32 registers, the others 16
    long n = 0;
    for (; n + WIDE * W <= N; n += WIDE * W)
      for (long m = 0; m < M; m += 4) tile<4, WIDE>(K, A + m * lda, lda, B + n, ldb, C + m * ldc + n, ldc, add);
    for (; n < N; n += W)
      for (long m = 0; m < M; m += 8) tile<8, 1>(K, A + m * lda, lda, B + n, ldb, C + m * ldc + n, ldc, add);
  }

  // (padded, D), as A and as B.
  template <class S> static void first(Rows<S> rows, T* to, long padded) {
    for (long r = 0; r < padded; r++)
      for (long d = 0; d < rows.D; d += W) store(to + r * rows.D + d, rows.at(r, d));
  }
  template <class S> static void second(Rows<S> rows, T* to, long padded) { first(rows, to, padded); }

  // (D, padded), as A and as B.
  template <class S> static void first_turned(Rows<S> rows, T* to, long padded) {
    for (long r = 0; r < padded; r += W)
      for (long d = 0; d < rows.D; d += W) {
        V x[W];
        for (long i = 0; i < W; i++) x[i] = rows.at(r + i, d);
        turn(x);
        for (long i = 0; i < W; i++) store(to + (d + i) * padded + r, x[i]);
      }
  }
  template <class S> static void second_turned(Rows<S> rows, T* to, long padded) { first_turned(rows, to, padded); }

  // Two rows of numbers from column c on, as A and as B.
  static void put_first(T* to, long width, long c, V even, V odd) { put_rows(to, width, c, even, odd); }
  static void put_second(T* to, long width, long c, V even, V odd) { put_rows(to, width, c, even, odd); }
};

#if defined(__AVX512BF16__)
struct Pairs {
  typedef bf16 T;
  static constexpr bool SAME = false;

  static void first(Rows<bf16> rows, T* to, long padded) {
    for (long r = 0; r < padded; r++)
      if (r < rows.n) std::memcpy(to + r * rows.D, rows.data + r * rows.stride, rows.D * sizeof(T));
      else std::memset(to + r * rows.D, 0, rows.D * sizeof(T));
  }
  static void second(Rows<bf16> rows, T* to, long padded) {
    for (long r = 0; r < padded; r += 2)
      for (long d = 0; d < rows.D; d += W) put_second(to + r * rows.D, rows.D, d, rows.at(r, d), rows.at(r + 1, d));
  }

  // Pairs of numbers, as words of 32 bits, become columns.
  static void second_turned(Rows<bf16> rows, T* to, long padded) {
    const Rows<float> words{(const float*)rows.data, rows.stride / 2, rows.n, rows.D / 2};
    Float32::first_turned(words, (float*)to, padded);
  }
  static void first_turned(Rows<bf16> rows, T* to, long padded) {
    T strip[2 * W * W];
    for (long r = 0; r < padded; r += W)
      for (long d = 0; d < rows.D; d += 2 * W) {
        const Rows<bf16> block{rows.data + r * rows.stride + d, rows.stride, std::min(W, rows.n - r), 2 * W};
        second_turned(block, strip, W);
        for (long i = 0; i < W; i++)
          for (long c = 0; c < W; c++) {
            to[(d + 2 * i) * padded + r + c] = strip[2 * (i * W + c)];
            to[(d + 2 * i + 1) * padded + r + c] = strip[2 * (i * W + c) + 1];
          }
      }
  }

  static void put_first(T* to, long width, long c, V even, V odd) { put_rows(to, width, c, even, odd); }
  static void put_second(T* to, long, long c, V even, V odd) {
    const I words = __builtin_convertvector(to_bf16(even), I) | (__builtin_convertvector(to_bf16(odd), I) << 16);
    std::memcpy(to + 2 * c, &words, sizeof words);
  }
};

struct Dot : Pairs {
  static constexpr long PAD = 32;
  static void begin() {}
  static void end() {}

  template <int R, int C>
  static inline void tile(long K, const T* A, long lda, const T* B, long ldb, float* out, long ldc, bool add) {
    __m512 sums[R][C];
    for (int r = 0; r < R; r++)
      for (int c = 0; c < C; c++) sums[r][c] = add ? _mm512_loadu_ps(out + r * ldc + c * 16) : _mm512_setzero_ps();
    for (long k = 0; k < K; k += 2) {
      __m512i b[C];
      for (int c = 0; c < C; c++) b[c] = _mm512_loadu_si512(B + k * ldb + c * 32);
      for (int r = 0; r < R; r++) {
        int pair;
        std::memcpy(&pair, A + r * lda + k, sizeof pair);
        const __m512bh a = (__m512bh)_mm512_set1_epi32(pair);
        for (int c = 0; c < C; c++) sums[r][c] = _mm512_dpbf16_ps(sums[r][c], a, (__m512bh)b[c]);
      }
    }
    for (int r = 0; r < R; r++)
      for (int c = 0; c < C; c++) _mm512_storeu_ps(out + r * ldc + c * 16, sums[r][c]);
  }

  static void multiply(long M, long N, long K, const T* A, long lda, const T* B, long ldb, float* C, long ldc,
                       bool add) {
    long n = 0;
    for (; n + 64 <= N; n += 64)
      for (long m = 0; m < M; m += 4) tile<4, 4>(K, A + m * lda, lda, B + 2 * n, ldb, C + m * ldc + n, ldc, add);
    for (; n < N; n += 16)
      for (long m = 0; m < M; m += 8) tile<8, 1>(K, A + m * lda, lda, B + 2 * n, ldb, C + m * ldc + n, ldc, add);
  }
};
#endif

#if HAS_AMX
struct Tiles : Pairs {
  static constexpr long PAD = 32;

  // Whether Linux lets this process have the tiles: it wants to be asked (arch_prctl, XTILEDATA).
  static bool allowed() {
    constexpr int REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
    static const bool is = syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
    return is;
  }

  // The intrinsics do not say that they read memory: what was written before them has to be there.
  static void written() { asm volatile("" ::: "memory"); }

  static void begin() {
    alignas(64) uint8_t config[64] = {1};  // palette 1
    for (int t = 0; t < 8; t++) {
      config[16 + 2 * t] = 64;  // bytes of a row
      config[48 + t] = 16;      // rows
    }
    written();
    _tile_loadconfig(config);
  }
  static void end() { _tile_release(); }

  static void multiply(long M, long N, long K, const T* A, long lda, const T* B, long ldb, float* C, long ldc,
                       bool add) {
    written();
    for (long m = 0; m < M; m += 32)
      for (long n = 0; n < N; n += 32) {
        float* c = C + m * ldc + n;
        if (add) {
          _tile_loadd(0, c, ldc * 4);
          _tile_loadd(1, c + 16, ldc * 4);
          _tile_loadd(2, c + 16 * ldc, ldc * 4);
          _tile_loadd(3, c + 16 * ldc + 16, ldc * 4);
        } else {
          _tile_zero(0);
          _tile_zero(1);
          _tile_zero(2);
          _tile_zero(3);
        }
        for (long k = 0; k < K; k += 32) {
          _tile_loadd(4, A + m * lda + k, lda * 2);
          _tile_loadd(5, A + (m + 16) * lda + k, lda * 2);
          _tile_loadd(6, B + k * ldb + 2 * n, ldb * 4);
          _tile_loadd(7, B + k * ldb + 2 * n + 32, ldb * 4);
          _tile_dpbf16ps(0, 4, 6);
          _tile_dpbf16ps(1, 4, 7);
          _tile_dpbf16ps(2, 5, 6);
          _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, c, ldc * 4);
        _tile_stored(1, c + 16, ldc * 4);
        _tile_stored(2, c + 16 * ldc, ldc * 4);
        _tile_stored(3, c + 16 * ldc + 16, ldc * 4);
      }
  }
};
#endif
