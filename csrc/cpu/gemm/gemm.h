// The product of a panel of weights and vectors of integers: exact sums, then their rounding. It is computed by the
// matrix unit (gemm_amx.h), by dot products (gemm_dot.h), or from tables (gemm_lut.h).
//
// A panel is up to BLOCK outputs, a lane each, in groups of LANES: quads [group][quad][LANES] of unsigned bytes (signed
// bytes with AMX and with AArch64's dot products). With AMX, 16 quads of a group are one operand as they are in the
// panel, and a tile of sums is 16 vectors (or all digits of up to 5 vectors) by 16 lanes.
//
// int32 sums are exact for LONGEST quads; longer sums are added up from parts.
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

// Calls run(form) with the form of the vectors (`InDigits`, `Whole`) that is the fastest for a product of this size.
template <class Run>
void with_form(int64_t weight, int64_t outputs, int64_t vectors, int digits, const Run &run) {
#if SLT_TABLES
    if (tables_pay(weight, outputs, vectors, digits)) return run(Whole());
#endif
    if (SLT_BYTE_DIGITS && digits == 3) return run(InDigits<3>());
    run(InDigits<2>());
}

// Words of a group in the panel that a product reads.
template <class Form>
constexpr int64_t panel_words(int64_t quads) {
#if SLT_TABLES
    if (Form::TABLES) return chosen_words(quads);
#endif
    return quads * LANES;
}

// Makes those words from a group's quads.
template <class Form>
void prepare_group([[maybe_unused]] const uint32_t *quads, [[maybe_unused]] int64_t count,
                   [[maybe_unused]] uint32_t *panel) {
#if SLT_TABLES
    if (Form::TABLES) choose(quads, count, panel);
#endif
}

// Makes the words of all groups in the place of their quads.
template <class Form>
void prepare_panel(uint32_t *panel, int64_t groups, int64_t quads) {
    for (int64_t g = 0; Form::TABLES && g < groups; ++g)
        prepare_group<Form>(panel + g * quads * LANES, quads, panel + g * panel_words<Form>(quads));
}

// Reorders the quads of a panel from `layout` to the order of k, which is that of the vectors.
template <class Form>
void order_quads(uint32_t *panel, int64_t words, Layout layout) {
    if (layout != Layout::SIGN_QUADS && !Form::PAIRS) return;
    const auto even_bytes = [](U32 v) { return (v & 0xFF) | (v >> 8 & 0xFF00); };
    for (int64_t w = 0; w < words; ++w, panel += QUADS_PER_WORD * LANES) {
        U32 quads[QUADS_PER_WORD];
        for (int q = 0; q < QUADS_PER_WORD; ++q) quads[q] = load<U32>(panel + q * LANES);
        if (layout == Layout::SIGN_QUADS) {  // quad s has k = 2s, 2s + 16, 2s + 1 and 2s + 17
            for (int q = 0; q < QUADS_PER_WORD / 2; ++q) {
                const U32 a = load<U32>(panel + 2 * q * LANES), b = load<U32>(panel + (2 * q + 1) * LANES);
                quads[q] = even_bytes(a) | even_bytes(b) << 16;
                quads[QUADS_PER_WORD / 2 + q] = even_bytes(a >> 8) | even_bytes(b >> 8) << 16;
            }
        }
        for (int q = 0; q < QUADS_PER_WORD; ++q) {
            const U32 v = quads[q], swapped = (v & 0xFF0000FF) | (v << 8 & 0xFF0000) | (v >> 8 & 0xFF00);
            store(panel + q * LANES, Form::PAIRS ? swapped : v);
        }
    }
}

// Multiplies vectors (at most MOST_VECTORS if x.chosen) by several panels, [block][group][quad][LANES]. `out` begins at
// the first block and has the lanes of all. Sixteen vectors are multiplied by every panel before the next sixteen, so
// that large inputs are read from memory once per piece.
template <class Form>
void multiply_blocks(Workspace &workspace, const VectorsOf<typename Form::Element> &x, int64_t vectors,
                     const uint32_t *panel, int64_t quads, const Output &out) {
    for (int64_t v = 0; v < vectors; v += MOST_VECTORS) {
        const int count = int(least(vectors - v, MOST_VECTORS));
        VectorsOf<typename Form::Element> these = x;
        these.at += v * x.vector_pitch;
        if constexpr (Form::TABLES) {
#if SLT_TABLES
            multiply_by_tables(workspace, these, count, panel, quads, v, vectors, out);
#endif
        } else {
            for (int lane = 0; lane < out.lanes; lane += BLOCK) {
                const Output block = out.block(v, vectors, lane);
                if (block.first_lane >= block.lanes) continue;
                multiply<Form::PLANES>(workspace, these, count, panel + lane * quads,
                                       int(ceil_div(block.lanes, LANES)), quads, block);
            }
        }
    }
}

}  // namespace
}  // namespace slt::SLT_ISA
