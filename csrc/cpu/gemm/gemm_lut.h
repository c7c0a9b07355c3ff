// Products of signed constants from lookup tables (the method of four Russians). Three weights of -1, 0 or 1 give 27
// different sums of three integers. A table holds these sums for sixteen vectors, one cache line per sum, and an output
// adds the line that its three weights select: one load and addition for 48 multiplications by integers of any size.
// Dot products of bytes take three instructions for 64 multiplications, multiply-add of pairs eight.
//
// Vectors are the integers themselves (`Whole`). The panel has the numbers of four lines, a byte each, in place of
// three quads (`choose`). A step is STEP such words: 8 x 27 lines are written, 14 KB that stay in L1, for all outputs
// of the panel. Per step, an output reads two words and eight lines, and reads and writes its sum, which is a line too.
// Making the lines takes 216 stores, for any number of outputs.
//
// Sums are int32 for EXACT_STEPS. Then their low 16 bits and the rest are added to two separate sums.
#pragma once

#include "cpu/gemm/epilogue.h"
#include "cpu/gemm/workspace.h"

namespace slt::SLT_ISA {
namespace {

constexpr int LINES = 3 * 3 * 3;
constexpr int STEP = 2;                 // words of four numbers per step
constexpr int STEP_K = 12 * STEP;       // integers per step
constexpr int EXACT_STEPS = 10;
constexpr int LOW_BITS = 16;
constexpr int UNIT = 8;                 // a line's number is stored times UNIT
static_assert(STEP_K * EXACT_STEPS <= 256);  // sums of 256 integers of three bytes fit an int32

// Whether tables are faster. Dot products of bytes are as fast with two digits, or with too few outputs for a table.
inline bool tables_pay(int64_t weight, int64_t outputs, int64_t vectors, int digits) {
    if (weight != SIGNED_CONSTANT || vectors <= (SLT_BYTE_DIGITS ? 12 : LINE / 2)) return false;
    return SLT_BYTE_DIGITS ? digits == 3 && outputs >= 2 * TABLE_OUTPUTS : outputs >= 32;
}

// Words per group of a panel of `quads` quads.
constexpr int64_t chosen_words(int64_t quads) { return ceil_div(4 * quads, STEP_K) * STEP * LANES; }

// The numbers of the lines of a group's quads, times UNIT: w0 + 3 w1 + 9 w2 for the weights + 1. `numbers` may be the
// memory of the quads, whose count is a multiple of 16. Lanes of outputs that do not exist may hold anything; they get
// a valid number.
inline void choose(const uint32_t *quads, int64_t count, uint32_t *numbers) {
    const U32 zero = splat(0x01010101);
    const U8 last = uint8_t((LINES - 1) * UNIT) - U8{};
    const int64_t words = chosen_words(count) / LANES;
    for (int64_t w = 0, q = 0; w < words; ++w, q += 3) {
        const auto weights = [&](int64_t q) { return q < count ? load<U32>(quads + q * LANES) : zero; };
        const U32 second = weights(q + 1), third = weights(q + 2), high = second + third + third + third;
        const U8 number = (U8)((weights(q) + high + high + high) * UNIT);
        store(numbers + w * LANES, number < last ? number : last);
    }
}

// Tables for LANES * REGISTERS vectors: sixteen, or LANES with lines of one register.
template <int REGISTERS>
class Tables {
  public:
    // Makes the lines of the step from the k-th of `depth` integers on. Integers past `depth` may be anything: their
    // weights are 0.
    void write(const VectorsOf<int32_t> &x, int vectors, int64_t k, int64_t depth) {
        constexpr int elements_read = (STEP_K + LANES - 1) / LANES * LANES;
        alignas(64) U32 elements[elements_read][REGISTERS];
        for (int r = 0; r < REGISTERS; ++r)
            for (int part = 0; part < elements_read; part += LANES) {
                S32 square[LANES];
                for (int i = 0; i < LANES; ++i) {
                    const int32_t *at = x.at + least(r * LANES + i, vectors - 1) * x.vector_pitch + k + part;
                    square[i] = load<S32>(k + part < depth ? at : x.at);
                    __builtin_prefetch(at + STEP_K, 0, 2);
                }
                transpose(square);
                for (int i = 0; i < LANES; ++i) elements[part + i][r] = (U32)square[i];
            }
        for (int i = 0; i < STEP_LINES; ++i)
            for (int r = 0; r < REGISTERS; ++r) {
                const U32 *at = &elements[i / 4 * 12 + i % 4][r];  // the same place of three quads
                write_lines(at[0], at[4 * REGISTERS], at[8 * REGISTERS], lines[i][0] + r * LANES);
            }
    }

    // Adds the step's lines to the sums of `groups` of outputs, whose numbers are `pitch` apart; `first` starts the
    // sums.
    __attribute__((noinline)) void add(const uint32_t *numbers, int64_t pitch, int64_t groups, bool first,
                                       uint32_t *sums) const {
        for (; groups > 0; --groups, numbers += pitch) {
            // The next step's numbers, which follow these: runs too short for the hardware prefetcher.
            for (int w = 0; w < STEP; ++w) __builtin_prefetch(numbers + (STEP + w) * LANES, 0, 2);
            for (int l = 0; l < LANES; ++l, sums += LINE) {
                // Otherwise gcc keeps the address of each table in a register, and there are not enough registers.
                const char *tables = reinterpret_cast<const char *>(lines);
                SLT_HIDE(tables);
                U32 sum[REGISTERS];
                SLT_UNROLL for (int r = 0; r < REGISTERS; ++r) sum[r] = first ? U32{} : load<U32>(sums + r * LANES);
                SLT_UNROLL for (int w = 0; w < STEP; ++w) {
                    uint32_t four = numbers[w * LANES + l];  // loaded once: loads of lines are the bound
                    SLT_HIDE(four);
                    SLT_UNROLL for (int i = 0; i < 4; ++i) {
                        // The factor is 2, 4 or 8, part of the addressing mode.
                        const char *line = tables + (4 * w + i) * sizeof lines[0] +
                                           uint64_t(four >> 8 * i & 0xFF) * (sizeof lines[0][0] / UNIT);
                        SLT_UNROLL for (int r = 0; r < REGISTERS; ++r) sum[r] += load<U32>(line + r * sizeof(U32));
                    }
                }
                SLT_UNROLL for (int r = 0; r < REGISTERS; ++r) store(sums + r * LANES, sum[r]);
            }
        }
    }

  private:
    static constexpr int STEP_LINES = 4 * STEP;
    alignas(64) uint32_t lines[STEP_LINES][LINES][REGISTERS * LANES];

    static SLT_INLINE void write_lines(U32 x0, U32 x1, U32 x2, uint32_t *to) {
        const U32 nine[9] = {-x0 - x1, -x1, x0 - x1, -x0, U32{}, x0, x1 - x0, x1, x0 + x1};
        U32 third = -x2;
        for (int i = 0; i < 3; ++i, third += x2)
            SLT_UNROLL for (int n = 0; n < 9; ++n, to += REGISTERS * LANES) store(to, nine[n] + third);
    }
};

// Sums of up to sixteen vectors for the first `outputs` of a panel.
template <int REGISTERS>
void add_lines(const VectorsOf<int32_t> &x, int vectors, const uint32_t *panel, int64_t quads, int64_t outputs,
               const Workspace::Sums &sums) {
    const int64_t groups = ceil_div(outputs, LANES);
    if (quads == 0) {  // no tap reaches the positions
        memset(sums.low, 0, size_t(groups * LANES * LINE) * sizeof(uint32_t));
        memset(sums.high, 0, size_t(groups * LANES * LINE) * sizeof(uint32_t));
    }
    Tables<REGISTERS> tables;
    const int64_t depth = 4 * quads, pitch = chosen_words(quads);
    for (int64_t k = 0, step = 0; k < depth; k += STEP_K, ++step, panel += STEP * LANES) {
        tables.write(x, vectors, k, depth);
        tables.add(panel, pitch, groups, step % EXACT_STEPS == 0, sums.now);
        if ((step + 1) % EXACT_STEPS != 0 && k + STEP_K < depth) continue;
        const bool first = step < EXACT_STEPS;
        for (int64_t i = 0; i < groups * LANES * LINE; i += LANES) {
            const U32 sum = load<U32>(sums.now + i), low = sum & ((1 << LOW_BITS) - 1);
            const U32 high = (U32)((S32)sum >> LOW_BITS);
            store(sums.low + i, first ? low : load<U32>(sums.low + i) + low);
            store(sums.high + i, first ? high : load<U32>(sums.high + i) + high);
        }
    }
}

// Rounds a block of the sums, from `lane` on.
inline void finish_lines(const Workspace::Sums &sums, int64_t lane, int vectors, const Output &out) {
    if (out.first_lane >= out.lanes) return;
    alignas(64) int32_t tile[LINE][2][BLOCK];
    for (int64_t v = 0; v < vectors; v += LANES)
        for (int l = 0; l < out.lanes; l += LANES)
            for (int part = 0; part < 2; ++part) {
                S32 square[LANES];
                const uint32_t *from = (part == 0 ? sums.low : sums.high) + (lane + l) * LINE + v;
                for (int i = 0; i < LANES; ++i) square[i] = load<S32>(from + i * LINE);
                transpose(square);
                for (int i = 0; i < LANES; ++i) store(tile[v + i][part] + l, square[i]);
            }
    for (int v = 0; v < vectors; ++v) finish<2, LOW_BITS>(tile[v][0], v, out);
}

// Multiplies up to sixteen vectors, from number v of `all` on, by all of a panel.
inline void multiply_by_tables(Workspace &workspace, const VectorsOf<int32_t> &x, int vectors, const uint32_t *panel,
                               int64_t quads, int64_t v, int64_t all, const Output &out) {
    const Workspace::Sums &sums = workspace.sums(ceil_div(out.lanes, BLOCK) * BLOCK);
    vectors <= LANES ? add_lines<1>(x, vectors, panel, quads, out.lanes, sums)
                     : add_lines<LINE / LANES>(x, vectors, panel, quads, out.lanes, sums);
    for (int lane = 0; lane < out.lanes; lane += BLOCK) finish_lines(sums, lane, vectors, out.block(v, all, lane));
}

}  // namespace
}  // namespace slt::SLT_ISA
