// `multiply` with AMX: tiles of 16 vectors by 16 lanes, 64 k a step (16 quads). A tile of digits is read where it lies:
// rows may overlap, and each step may lie anywhere (`Vectors::steps`).
//
// Tile registers. Three digits: 0 to 5 hold sums, a digit by a group each, 6 digits of x, 7 weights; seven loads for
// six products, with the last digit kept for the second group. Two digits: 0 to 3 sums, 4 and 5 digits, 6 and 7 weights.
// Where all digits of all vectors fit 16 rows, as with a batch of 5, one tile holds them all, and 0 to 3 are the sums
// of the four groups. What bounds it is loading tiles from L2: 1.6 to 1.9 T products/s a core where registers alone
// reach 3.2.
#pragma once

#include "tiles.h"

namespace slt::SLT_ISA {
namespace {

constexpr int STEP = 16 * LANES;  // words of a panel in one step

// All digits of a few vectors at once: rows of x are digit_pitch apart.
template <int DIGITS>
void few(const Vectors &x, const uint32_t *panel, int64_t quads, int32_t *tile) {
    const int64_t group = quads * LANES;
    tile_memory();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t q = 0; q < quads; q += 16, panel += STEP) {
        _tile_loadd(5, x.digits + q * 4, x.digit_pitch);
        _tile_loadd(7, panel, 64);
        _tile_dpbssd(0, 5, 7);
        _tile_loadd(7, panel + group, 64);
        _tile_dpbssd(1, 5, 7);
        _tile_loadd(7, panel + 2 * group, 64);
        _tile_dpbssd(2, 5, 7);
        _tile_loadd(7, panel + 3 * group, 64);
        _tile_dpbssd(3, 5, 7);
    }
    _tile_stored(0, tile, BLOCK * 4);
    _tile_stored(1, tile + LANES, BLOCK * 4);
    _tile_stored(2, tile + 2 * LANES, BLOCK * 4);
    _tile_stored(3, tile + 3 * LANES, BLOCK * 4);
}

// Sixteen vectors by two groups.
template <int DIGITS>
void many(const Vectors &x, const uint32_t *panel, int64_t quads, int32_t *tile) {
    const uint32_t *second = panel + quads * LANES;
    const int64_t steps = quads / 16;
    constexpr int64_t row = DIGITS * BLOCK * 4;
    tile_memory();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    if constexpr (DIGITS == 3) {
        _tile_zero(4);
        _tile_zero(5);
        for (int64_t s = 0; s < steps; ++s, panel += STEP, second += STEP) {
            const Digit *x0 = x.digits + (x.steps ? x.steps[s] : 64 * s), *x1 = x0 + x.digit_pitch;
            _tile_loadd(7, panel, 64);
            _tile_loadd(6, x0, x.vector_pitch);
            _tile_dpbssd(0, 6, 7);
            _tile_loadd(6, x1, x.vector_pitch);
            _tile_dpbssd(1, 6, 7);
            _tile_loadd(6, x1 + x.digit_pitch, x.vector_pitch);
            _tile_dpbssd(2, 6, 7);
            _tile_loadd(7, second, 64);
            _tile_dpbssd(5, 6, 7);
            _tile_loadd(6, x0, x.vector_pitch);
            _tile_dpbssd(3, 6, 7);
            _tile_loadd(6, x1, x.vector_pitch);
            _tile_dpbssd(4, 6, 7);
        }
        _tile_stored(0, tile, row);
        _tile_stored(1, tile + BLOCK, row);
        _tile_stored(2, tile + 2 * BLOCK, row);
        _tile_stored(3, tile + LANES, row);
        _tile_stored(4, tile + BLOCK + LANES, row);
        _tile_stored(5, tile + 2 * BLOCK + LANES, row);
    } else {
        for (int64_t s = 0; s < steps; ++s, panel += STEP, second += STEP) {
            const Digit *x0 = x.digits + (x.steps ? x.steps[s] : 64 * s);
            _tile_loadd(4, x0, x.vector_pitch);
            _tile_loadd(6, panel, 64);
            _tile_loadd(5, x0 + x.digit_pitch, x.vector_pitch);
            _tile_loadd(7, second, 64);
            _tile_dpbssd(0, 4, 6);
            _tile_dpbssd(1, 5, 6);
            _tile_dpbssd(2, 4, 7);
            _tile_dpbssd(3, 5, 7);
        }
        _tile_stored(0, tile, row);
        _tile_stored(1, tile + BLOCK, row);
        _tile_stored(2, tile + LANES, row);
        _tile_stored(3, tile + BLOCK + LANES, row);
    }
}

template <int DIGITS>
void multiply(Tiles &tiles, const Vectors &x, int64_t vectors, const uint32_t *panel, int used, int64_t quads,
              const Output &out) {
    alignas(64) int32_t tile[MOST_VECTORS * DIGITS * BLOCK];
    const bool together = !x.chosen && vectors * DIGITS <= 16 && x.vector_pitch == DIGITS * x.digit_pitch;
    for (int64_t v = 0; v < vectors; v += MOST_VECTORS) {
        const int count = vectors - v < MOST_VECTORS ? int(vectors - v) : MOST_VECTORS;
        const int rows = x.chosen ? MOST_VECTORS : together ? count * DIGITS : count;
        tiles.configure(rows, DIGITS == 3 ? 1 << 7 : 1 << 7 | 1 << 6);
        Vectors here = x;
        here.digits += v * x.vector_pitch;
        if (together)
            few<DIGITS>(here, panel, quads, tile);
        else
            for (int g = 0; g < used; g += 2)
                many<DIGITS>(here, panel + g * quads * LANES, quads, tile + g * LANES);
        for (int i = 0; i < count; ++i)
            finish<DIGITS>(tile + (x.chosen ? x.chosen[i] : i) * DIGITS * BLOCK, v + i, out);
    }
}

}  // namespace
}  // namespace slt::SLT_ISA
