// Products of signed constants without a multiplication: four weights of -1, 0 or 1 make 81 different sums of four
// integers. They are added up once for sixteen vectors, a line of the caches each, and an output then adds the line
// that its four weights choose (the method of four Russians). Where bytes have no dot product that is about twice as fast as
// multiply-add: 64 multiplications are a line loaded and added.
//
// The vectors are the integers themselves (`WHOLE`), and the panel has the number of its line in place of each quad, in
// half of its bytes (`choose_lines`). A step is four quads: 4 x 81 lines are written, 20 KB that stay in L1, and all
// outputs of the panel go over them; per output and step four numbers and four lines are read, and its sum, a line too,
// is read and written. Making the lines takes as long as some ninety outputs do.
//
// Sums are int32 for EXACT_QUADS. Then their low 16 bits and the rest of them are summed on apart.
#pragma once

#include "output.h"
#include "workspace.h"

namespace slt::SLT_ISA {
namespace {

constexpr int LINES = 3 * 3 * 3 * 3;
constexpr int STEP_QUADS = 4;
constexpr int EXACT_QUADS = 64;  // 256 integers of three bytes
constexpr int LOW_BITS = 16;
constexpr int UNIT = 16;  // bytes: what a line's number is scaled to

// Whether tables are the faster way.
inline bool tables_pay(int64_t weight, int64_t outputs, int64_t vectors) {
    return weight == SIGNED_CONSTANT && outputs >= 32 && vectors > LANES / 2;
}

// The numbers of the lines of so many quads, times UNIT; they may take the place of these. Lanes of outputs that do not
// exist may hold anything, and get a number all the same.
inline void choose_lines(const uint32_t *quads, int64_t count, uint16_t *lines) {
    for (int64_t q = 0; q < count; q += LANES) {
        // The top byte of the product is w0 + 3 w1 + 9 w2 + 27 w3 of the weights + 1.
        const U32 line = load<U32>(quads + q) * 0x0103091B >> 24, last = splat(LINES - 1);
        store(lines + q, __builtin_convertvector((line < last ? line : last) * UNIT, U16));
    }
}

// Sixteen vectors, or LANES of them in shorter lines of one register.
template <int REGISTERS>
class Tables {
  public:
    // The next step of `vectors` of them.
    void write(const VectorsOf<int32_t> &x, int vectors, int64_t quad) {
        alignas(64) U32 elements[4 * STEP_QUADS][REGISTERS];
        for (int r = 0; r < REGISTERS; ++r)
            for (int part = 0; part < 4 * STEP_QUADS; part += LANES) {
                S32 square[LANES];
                for (int i = 0; i < LANES; ++i) {
                    const int v = least(r * LANES + i, vectors - 1);
                    square[i] = load<S32>(x.at + v * x.vector_pitch + 4 * quad + part);
                }
                transpose(square);
                for (int i = 0; i < LANES; ++i) elements[part + i][r] = (U32)square[i];
            }
        for (int i = 0; i < STEP_QUADS; ++i)
            for (int r = 0; r < REGISTERS; ++r)
                write_lines(elements[4 * i][r], elements[4 * i + 1][r], elements[4 * i + 2][r], elements[4 * i + 3][r],
                            lines[i][0] + r * LANES);
    }

    // Adds the step's lines of `groups` of outputs, whose numbers are `pitch` apart; the first ones begin the sums.
    __attribute__((noinline)) void add(const uint16_t *chosen, int64_t pitch, int64_t groups, bool first,
                                       uint32_t *sums) const {
        for (; groups > 0; --groups, chosen += pitch)
            for (int l = 0; l < LANES; ++l, sums += LINE) {
                U32 sum[REGISTERS];
                SLT_UNROLL for (int r = 0; r < REGISTERS; ++r) sum[r] = first ? U32{} : load<U32>(sums + r * LANES);
                SLT_UNROLL for (int i = 0; i < STEP_QUADS; ++i) {
                    // A factor of 1, 2 or 4, which an address has for nothing.
                    const char *line = reinterpret_cast<const char *>(lines[i]) +
                                       uint64_t(chosen[i * LANES + l]) * (sizeof lines[i][0] / UNIT);
                    SLT_UNROLL for (int r = 0; r < REGISTERS; ++r) sum[r] += load<U32>(line + r * sizeof(U32));
                }
                SLT_UNROLL for (int r = 0; r < REGISTERS; ++r) store(sums + r * LANES, sum[r]);
            }
    }

  private:
    alignas(64) uint32_t lines[STEP_QUADS][LINES][REGISTERS * LANES];

    static SLT_INLINE void write_lines(U32 x0, U32 x1, U32 x2, U32 x3, uint32_t *to) {
        const U32 nine[9] = {-x0 - x1, -x1, x0 - x1, -x0, U32{}, x0, x1 - x0, x1, x0 + x1};
        U32 high = -x3 - x2;
        for (int i = 0; i < 3; ++i, high += x3 - 3 * x2)
            for (int j = 0; j < 3; ++j, high += x2)
                SLT_UNROLL for (int n = 0; n < 9; ++n, to += REGISTERS * LANES) store(to, nine[n] + high);
    }
};

// The sums of up to sixteen vectors for the first `outputs` of a panel.
template <int REGISTERS>
void add_lines(const VectorsOf<int32_t> &x, int vectors, const uint16_t *panel, int64_t quads, int64_t outputs,
               const Workspace::Sums &sums) {
    const int64_t groups = ceil_div(outputs, LANES);
    if (quads == 0) {  // positions that no tap reaches
        memset(sums.low, 0, size_t(groups * LANES * LINE) * sizeof(uint32_t));
        memset(sums.high, 0, size_t(groups * LANES * LINE) * sizeof(uint32_t));
    }
    Tables<REGISTERS> tables;
    for (int64_t q = 0; q < quads; q += STEP_QUADS) {
        tables.write(x, vectors, q);
        tables.add(panel + q * LANES, quads * LANES, groups, q % EXACT_QUADS == 0, sums.now);
        if ((q + STEP_QUADS) % EXACT_QUADS != 0 && q + STEP_QUADS < quads) continue;
        const bool first = q < EXACT_QUADS;
        for (int64_t i = 0; i < groups * LANES * LINE; i += LANES) {
            const U32 sum = load<U32>(sums.now + i), low = sum & ((1 << LOW_BITS) - 1);
            const U32 high = (U32)((S32)sum >> LOW_BITS);
            store(sums.low + i, first ? low : load<U32>(sums.low + i) + low);
            store(sums.high + i, first ? high : load<U32>(sums.high + i) + high);
        }
    }
}

// Rounds a block of them, from `lane` on.
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

// Up to sixteen vectors, the first of which is number v of `all`, against all of a panel.
inline void multiply_by_tables(Workspace &workspace, const VectorsOf<int32_t> &x, int vectors, const uint16_t *panel,
                               int64_t quads, int64_t v, int64_t all, const Output &out) {
    const Workspace::Sums &sums = workspace.sums(ceil_div(out.lanes, BLOCK) * BLOCK);
    vectors <= LANES ? add_lines<1>(x, vectors, panel, quads, out.lanes, sums)
                     : add_lines<LINE / LANES>(x, vectors, panel, quads, out.lanes, sums);
    for (int lane = 0; lane < out.lanes; lane += BLOCK) finish_lines(sums, lane, vectors, out.block(v, all, lane));
}

}  // namespace
}  // namespace slt::SLT_ISA
