// `multiply` with AMX: tiles of 16 vectors by 16 lanes, 64 k (16 quads) per step. A tile of digits is loaded from the
// vectors directly: its rows may overlap, and each step may be anywhere (`VectorsOf::steps`). The mask is already
// applied to the weights of the panel (generate.h).
//
// Tile registers: 0 to 5 hold sums, one digit by one group each; 6 holds digits, 7 weights. Three digits take two
// groups at a time, two digits take three: seven loads for six products, because the last digit of one group is kept
// for the next. If all digits of all vectors fit 16 rows, as with a batch of 5, one tile holds them all. Loads of tiles
// from L2 are the bound (23 cycles; a product takes 17, a load from L1 10): five different tiles for six products.
// Positions of images overlap, so their digits can be in L1 (`overlapping`), and then two groups are faster for two
// digits too. The last tile of a panel may include groups past the last; their sums are dropped.
#pragma once

#include "cpu/gemm/epilogue.h"
#include "cpu/gemm/workspace.h"

namespace slt::SLT_ISA {
namespace {

constexpr int STEP_WORDS = 16 * LANES;  // of a panel per step

// All digits of a few vectors in one tile, by three groups: rows of x are `pitch` apart.
inline void all_digits(const Vectors &x, int64_t pitch, const uint32_t *panel, int64_t quads, int32_t *tile) {
    const int64_t group = quads * LANES;
    tile_memory();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    for (int64_t s = 0; s < quads / 16; ++s, panel += STEP_WORDS) {
        _tile_loadd(6, x.step(s, 64), pitch);
        _tile_loadd(7, panel, 64);
        _tile_dpbssd(0, 6, 7);
        _tile_loadd(7, panel + group, 64);
        _tile_dpbssd(1, 6, 7);
        _tile_loadd(7, panel + 2 * group, 64);
        _tile_dpbssd(2, 6, 7);
    }
    _tile_stored(0, tile, BLOCK * 4);
    _tile_stored(1, tile + LANES, BLOCK * 4);
    _tile_stored(2, tile + 2 * LANES, BLOCK * 4);
}

// Sixteen vectors of three digits by one group, if the vectors stay in L1: the next step's tiles are loaded between the
// products of this step, into other registers (3 to 5 digits, 6 and 7 weights).
inline void overlapping(const Vectors &x, const uint32_t *panel, int64_t quads, int32_t *tile) {
    const int64_t steps = quads / 16;
    const auto at = [&](int64_t s) { return x.step(least(s, steps - 1), 64); };
    const auto weights = [&](int64_t s) { return panel + least(s, steps - 1) * STEP_WORDS; };
    const int64_t second = x.plane_pitch, third = 2 * x.plane_pitch;
    tile_memory();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_loadd(6, weights(0), 64);
    _tile_loadd(4, at(0), x.vector_pitch);
    _tile_loadd(5, at(0) + second, x.vector_pitch);
    for (int64_t s = 0; s < steps; s += 2) {
        _tile_loadd(7, weights(s + 1), 64);
        _tile_loadd(3, at(s) + third, x.vector_pitch);
        _tile_dpbssd(0, 4, 6);
        _tile_loadd(4, at(s + 1), x.vector_pitch);
        _tile_dpbssd(1, 5, 6);
        _tile_loadd(5, at(s + 1) + second, x.vector_pitch);
        _tile_dpbssd(2, 3, 6);
        if (s + 1 == steps) break;
        _tile_loadd(6, weights(s + 2), 64);
        _tile_loadd(3, at(s + 1) + third, x.vector_pitch);
        _tile_dpbssd(0, 4, 7);
        _tile_loadd(4, at(s + 2), x.vector_pitch);
        _tile_dpbssd(1, 5, 7);
        _tile_loadd(5, at(s + 2) + second, x.vector_pitch);
        _tile_dpbssd(2, 3, 7);
    }
    constexpr int64_t row = 3 * BLOCK * 4;
    _tile_stored(0, tile, row);
    _tile_stored(1, tile + BLOCK, row);
    _tile_stored(2, tile + 2 * BLOCK, row);
}

// Sixteen vectors by GROUPS_HERE groups, 2 or 3.
template <int DIGITS, int GROUPS_HERE>
void many(const Vectors &x, const uint32_t *panel, int64_t quads, int32_t *tile) {
    const int64_t group = quads * LANES, steps = quads / 16;
    constexpr int64_t row = DIGITS * BLOCK * 4;
    tile_memory();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    for (int64_t s = 0; s < steps; ++s, panel += STEP_WORDS) {
        const Digit *x0 = x.step(s, 64), *x1 = x0 + x.plane_pitch;
        if constexpr (DIGITS == 3) {
            _tile_loadd(7, panel, 64);
            _tile_loadd(6, x0, x.vector_pitch);
            _tile_dpbssd(0, 6, 7);
            _tile_loadd(6, x1, x.vector_pitch);
            _tile_dpbssd(1, 6, 7);
            _tile_loadd(6, x1 + x.plane_pitch, x.vector_pitch);
            _tile_dpbssd(2, 6, 7);
            _tile_loadd(7, panel + group, 64);
            _tile_dpbssd(5, 6, 7);
            _tile_loadd(6, x0, x.vector_pitch);
            _tile_dpbssd(3, 6, 7);
            _tile_loadd(6, x1, x.vector_pitch);
            _tile_dpbssd(4, 6, 7);
        } else if constexpr (GROUPS_HERE == 3) {
            _tile_loadd(7, panel, 64);
            _tile_loadd(6, x0, x.vector_pitch);
            _tile_dpbssd(0, 6, 7);
            _tile_loadd(6, x1, x.vector_pitch);
            _tile_dpbssd(1, 6, 7);
            _tile_loadd(7, panel + group, 64);
            _tile_dpbssd(3, 6, 7);
            _tile_loadd(6, x0, x.vector_pitch);
            _tile_dpbssd(2, 6, 7);
            _tile_loadd(7, panel + 2 * group, 64);
            _tile_dpbssd(4, 6, 7);
            _tile_loadd(6, x1, x.vector_pitch);
            _tile_dpbssd(5, 6, 7);
        } else {
            _tile_loadd(4, x0, x.vector_pitch);
            _tile_loadd(7, panel, 64);
            _tile_dpbssd(0, 4, 7);
            _tile_loadd(6, x1, x.vector_pitch);
            _tile_dpbssd(1, 6, 7);
            _tile_loadd(7, panel + group, 64);
            _tile_dpbssd(2, 4, 7);
            _tile_dpbssd(3, 6, 7);
        }
    }
    const auto at = [&](int sums) { return tile + sums % DIGITS * BLOCK + sums / DIGITS * LANES; };
    _tile_stored(0, at(0), row);
    _tile_stored(1, at(1), row);
    _tile_stored(2, at(2), row);
    _tile_stored(3, at(3), row);
    if constexpr (DIGITS * GROUPS_HERE == 6) {
        _tile_stored(4, at(4), row);
        _tile_stored(5, at(5), row);
    }
}

template <int DIGITS>
void multiply(Workspace &tiles, const Vectors &x, int64_t vectors, const uint32_t *panel, int used, int64_t quads,
              const Output &out) {
    alignas(64) int32_t tile[MOST_VECTORS * DIGITS * BLOCK];
    const bool together =
        DIGITS == 1 || (!x.chosen && vectors * DIGITS <= 16 && x.vector_pitch == DIGITS * x.plane_pitch);
    for (int64_t v = 0; v < vectors; v += MOST_VECTORS) {
        const int count = int(least(vectors - v, MOST_VECTORS));
        tiles.configure(x.chosen ? MOST_VECTORS : together ? count * DIGITS : count, 1 << 7);
        Vectors here = x;
        here.at += v * x.vector_pitch;
        for (int g = 0, groups; g < used; g += groups) {
            const uint32_t *weights = panel + g * quads * LANES;
            const bool three = together || (DIGITS == 2 && used - g != 2 && used - g != 4 && !x.steps);
            groups = DIGITS == 3 && x.overlap ? 1 : three ? 3 : 2;
            if (together) {
                all_digits(here, DIGITS == 1 ? x.vector_pitch : x.plane_pitch, weights, quads, tile + g * LANES);
            } else if constexpr (DIGITS > 1) {
                if (groups == 1)
                    overlapping(here, weights, quads, tile + g * LANES);
                else if (groups == 2)
                    many<DIGITS, 2>(here, weights, quads, tile + g * LANES);
                else if constexpr (DIGITS == 2)
                    many<2, 3>(here, weights, quads, tile + g * LANES);
            }
        }
        for (int i = 0; i < count; ++i)
            finish<DIGITS>(tile + (x.chosen ? x.chosen[i] : i) * DIGITS * BLOCK, v + i, out);
    }
}

}  // namespace
}  // namespace slt::SLT_ISA
