// The product of all products: a panel of weights against vectors of integers, to exact sums and their rounding. Three
// ways lead there: the matrix unit (gemm_amx.h), dot products (gemm_dot.h), and tables (gemm_lut.h).
//
// A panel is up to BLOCK outputs, a lane each, in groups of LANES: quads [group][quad][LANES] of unsigned bytes (signed
// ones with AMX). With AMX, 16 quads of a group are one operand as they lie in the panel, and a tile of sums is 16
// vectors (or all digits of up to 5) by 16 lanes.
//
// int32 sums are exact for LONGEST quads; what takes more adds up parts.
#pragma once

#include "cpu/gemm/workspace.h"

#if defined(SLT_AMX)
#include "cpu/gemm/gemm_amx.h"
#else
#include "cpu/gemm/gemm_dot.h"
#endif
#if SLT_TABLES
#include "cpu/gemm/gemm_lut.h"
#endif

namespace slt::SLT_ISA {
namespace {

// Calls run(DIGITS) with the number of digits, or WHOLE, for products of so many outputs and vectors.
template <class Run>
void with_digits(int64_t weight, int64_t outputs, int64_t vectors, int bytes, const Run &run) {
#if SLT_TABLES
    if (tables_pay(weight, outputs, vectors, bytes)) return run(std::integral_constant<int, WHOLE>());
#endif
    if (digits_for(bytes) == 3) return run(std::integral_constant<int, 3>());
    run(std::integral_constant<int, 2>());
}

// Words of a group in the panel that a product reads.
template <int DIGITS>
constexpr int64_t panel_words(int64_t quads) {
#if SLT_TABLES
    if (DIGITS == WHOLE) return chosen_words(quads);
#endif
    return quads * LANES;
}

// Makes those words from a group's quads.
template <int DIGITS>
void prepare_group([[maybe_unused]] const uint32_t *quads, [[maybe_unused]] int64_t count,
                   [[maybe_unused]] uint32_t *panel) {
#if SLT_TABLES
    if (DIGITS == WHOLE) choose(quads, count, panel);
#endif
}

// Makes those of all groups, in the place of their quads.
template <int DIGITS>
void prepare_panel(uint32_t *panel, int64_t groups, int64_t quads) {
    for (int64_t g = 0; DIGITS == WHOLE && g < groups; ++g)
        prepare_group<DIGITS>(panel + g * quads * LANES, quads, panel + g * panel_words<DIGITS>(quads));
}

// Vectors (at most MOST_VECTORS where some are chosen) against several panels, [block][group][quad][LANES]; `out` is
// the first block's, its lanes those of all. Sixteen vectors meet every panel before the next do, so that large inputs are
// read from far memory once a piece.
template <int DIGITS>
void multiply_blocks(Workspace &workspace, const VectorsOf<DigitOf<DIGITS>> &x, int64_t vectors, const uint32_t *panel,
                     int64_t quads, const Output &out) {
    for (int64_t v = 0; v < vectors; v += MOST_VECTORS) {
        const int count = int(least(vectors - v, MOST_VECTORS));
        VectorsOf<DigitOf<DIGITS>> these = x;
        these.at += v * x.vector_pitch;
        if constexpr (DIGITS == WHOLE) {
#if SLT_TABLES
            multiply_by_tables(workspace, these, count, panel, quads, v, vectors, out);
#endif
        } else {
            for (int lane = 0; lane < out.lanes; lane += BLOCK) {
                const Output block = out.block(v, vectors, lane);
                if (block.first_lane >= block.lanes) continue;
                multiply<DIGITS>(workspace, these, count, panel + lane * quads, int(ceil_div(block.lanes, LANES)),
                                 quads, block);
            }
        }
    }
}

}  // namespace
}  // namespace slt::SLT_ISA
