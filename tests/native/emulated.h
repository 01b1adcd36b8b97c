// AVX512-BF16 and AMX in plain C++, for tests on processors that have neither: put before a source with -include.

#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#define __AVX512BF16__ 1
#ifdef EMULATE_AMX
#define __AMX_BF16__ 1
#endif

inline float emulated_float(uint16_t x) { uint32_t i = uint32_t(x) << 16; float y; std::memcpy(&y, &i, 4); return y; }

inline __m512 emulated_dot(__m512 sums, __m512i a, __m512i b) {
  float s[16];
  uint16_t x[32], y[32];
  std::memcpy(s, &sums, 64);
  std::memcpy(x, &a, 64);
  std::memcpy(y, &b, 64);
  for (int i = 0; i < 32; i++) s[i / 2] += emulated_float(x[i]) * emulated_float(y[i]);
  std::memcpy(&sums, s, 64);
  return sums;
}

inline __m256i emulated_round(__m512 x) {
  float f[16];
  uint16_t h[16];
  std::memcpy(f, &x, 64);
  for (int i = 0; i < 16; i++) {
    uint32_t u;
    std::memcpy(&u, &f[i], 4);
    h[i] = f[i] != f[i] ? 0x7fc0 : uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
  }
  __m256i y;
  std::memcpy(&y, h, 32);
  return y;
}

struct EmulatedTile {
  alignas(64) char rows[16][64];
};
inline thread_local EmulatedTile emulated_tiles[8];
inline thread_local bool emulated_configured = false;

inline void emulated_load(int tile, const void* from, long stride) {
  if (!emulated_configured) std::abort();
  for (int r = 0; r < 16; r++) std::memcpy(emulated_tiles[tile].rows[r], (const char*)from + r * stride, 64);
}
inline void emulated_store(int tile, void* to, long stride) {
  for (int r = 0; r < 16; r++) std::memcpy((char*)to + r * stride, emulated_tiles[tile].rows[r], 64);
}
inline void emulated_multiply(int c, int a, int b) {  // of 16 × 32 by 16 pairs × 16, as the instruction is described
  for (int m = 0; m < 16; m++) {
    float sums[16];
    uint16_t x[32];
    std::memcpy(sums, emulated_tiles[c].rows[m], 64);
    std::memcpy(x, emulated_tiles[a].rows[m], 64);
    for (int k = 0; k < 16; k++) {
      uint16_t y[32];
      std::memcpy(y, emulated_tiles[b].rows[k], 64);
      for (int n = 0; n < 16; n++)
        sums[n] += emulated_float(x[2 * k]) * emulated_float(y[2 * n]) +
                   emulated_float(x[2 * k + 1]) * emulated_float(y[2 * n + 1]);
    }
    std::memcpy(emulated_tiles[c].rows[m], sums, 64);
  }
}

#define __m512bh __m512i
#define __m256bh __m256i
#define _mm512_dpbf16_ps emulated_dot
#define _mm512_cvtneps_pbh emulated_round
#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#undef _tile_loadconfig
#undef _tile_release
#define _tile_loadd emulated_load
#define _tile_stored emulated_store
#define _tile_zero(tile) std::memset(&emulated_tiles[tile], 0, sizeof(EmulatedTile))
#define _tile_dpbf16ps emulated_multiply
#define _tile_loadconfig(config) (void(config), emulated_configured = true)
#define _tile_release() (emulated_configured = false)
#ifdef EMULATE_AMX
#include <sys/syscall.h>
#include <unistd.h>
#define syscall(...) 0  // the permission to use tiles
#endif
