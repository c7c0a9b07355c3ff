// bfloat16 for the weight gradient on tiles: products of 16-bit inputs are exact, and their sums float32.
//
// A dword is one pixel of two samples. Register blocking: two tiles of rows by two of columns; per step four loads and
// four products (64 cycles), the loads of x from L1. A block starts from the sums of the blocks before it.
//
// Tile registers: 0 to 3 are sums, 4 and 5 rows of dy, 6 and 7 columns of x.
#pragma once

#include "cpu/wgrad/wgrad_amx.h"

namespace slt::SLT_ISA {
namespace {

class Bfloat16 {
  public:
    static constexpr int64_t SAMPLES = 2, PLANES = 1, DEPTH = 12;

    static bool suits(const GradScores &a) {
        return a.x.data.type == Type::BFLOAT16 && a.dy.data.type == Type::BFLOAT16;
    }

    SLT_INLINE void x_dwords(const F32 elements[SAMPLES], int64_t, __m512i out[1]) const {
        out[0] = (__m512i)where(splat(0xFFFF0000), (U32)elements[1], (U32)elements[0] >> 16);
    }
    SLT_INLINE void dy_dwords(const F32 elements[SAMPLES], int64_t row, __m512i out[1]) const {
        x_dwords(elements, row, out);
    }

    // See Digits::multiply.
    template <class Between>
    void multiply(const uint32_t *dy, int64_t dy_pitch, const XTiles &x, int64_t steps, int64_t, int64_t rows,
                  const int64_t *, bool add, float *sums, Between &between) const {
        for (int64_t r = 0; r < rows; r += 32, dy += 2 * dy_pitch, sums += 32 * CALL) {
            // A single tile of rows is multiplied twice.
            const bool two = rows - r > 16;
            multiply_tiles(dy, two ? dy_pitch : 0, x.at, x.half, steps, add, sums, two ? sums + 16 * CALL : sums);
            for (int i = 0; i < 4; ++i) between();
        }
    }

  private:
    static void multiply_tiles(const uint32_t *dy, int64_t dy_pitch, const uint32_t *x, int64_t x_pitch, int64_t steps,
                               bool add, float *sums, float *sums_below) {
        constexpr int64_t pitch = CALL * sizeof(float);
        tile_memory();
        if (add) {
            _tile_loadd(0, sums, pitch);
            _tile_loadd(1, sums + 16, pitch);
            _tile_loadd(2, sums_below, pitch);
            _tile_loadd(3, sums_below + 16, pitch);
        } else {
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
        }
        for (int64_t s = 0; s < steps; ++s, dy += TILE, x += TILE) {
            _tile_loadd(4, dy, 64);
            _tile_loadd(6, x, 64);
            _tile_loadd(7, x + x_pitch, 64);
            _tile_loadd(5, dy + dy_pitch, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, sums, pitch);
        _tile_stored(1, sums + 16, pitch);
        _tile_stored(2, sums_below, pitch);
        _tile_stored(3, sums_below + 16, pitch);
    }
};

}  // namespace
}  // namespace slt::SLT_ISA
