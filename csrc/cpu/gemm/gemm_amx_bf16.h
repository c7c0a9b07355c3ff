// The product of bfloat16 vectors on the matrix unit: weights are bfloat16 too, and sums float32.
//
// A panel is outputs in groups of 16: [group][pair][16 lanes], a lane holds the weights of two k. A signed constant is
// stored doubled: the only set bit of 2 as a bfloat16 is the top bit of its exponent, so one or two shifts make a pair
// from the codes.
//
// A product takes 18 cycles, a load of a tile 9 from L1 and 22 from L2. If positions of images overlap, so that they
// stay in L1, 48 vectors are multiplied by one group of weights at a time: a third of a load from L2 per product.
// Otherwise 32 vectors are multiplied by two groups: half a load of vectors and half a load of weights. In both, the
// next step's tiles are loaded between the products of this step, into other registers.
#pragma once

#include "cpu/gemm/gemm.h"
#include "cpu/weights/transposed.h"

namespace slt::SLT_ISA {
namespace {

#if defined(SLT_AMX)

// The weights of bytes A and B of a quad, as the lower and the upper half of a lane; signed constants are doubled.
template <bool SIGNS, int A, int B>
SLT_INLINE U32 pair_of(U32 quad) {
    if constexpr (SIGNS) {  // the lowest two bits of a byte are its value
        const U32 a = A < 2 ? quad << (14 - 8 * A) : quad >> (8 * A - 14);
        return (a & 0xC000) | (quad << (30 - 8 * B) & 0xC0000000);
    }
    const F32 a = __builtin_convertvector((S32)(quad << (24 - 8 * A)) >> 24, F32);
    const F32 b = __builtin_convertvector((S32)(quad << (24 - 8 * B)) >> 24, F32);
    return where(splat(0xFFFF0000), (U32)b, (U32)a >> 16);
}

class Bfloat16Product {
  public:
    typedef uint16_t Number;  // type of results, already rounded
    static constexpr bool FIXED_POINT = false;
    static constexpr int64_t OUTPUTS = 32, BYTES = 2, SUMS = 0;  // see DigitProduct
    static constexpr int64_t DEPTH_STEP = WORD, PART_STEP = WORD;
    static constexpr int64_t LONGEST_DEPTH = 5632;  // sums stay in registers, so the whole panel must fit
    static constexpr int VECTORS = 48;

    // The factor of the sums.
    static float scale_of(const Weights &weights, float scale) { return weights.signs() ? 0.5f * scale : scale; }

    // The weights of LANES rows; `k` is 0.
    static void make_rows(const Weights &weights, int64_t row, int64_t, int64_t depth, uint32_t *panel) {
        weights.signs() ? make_rows<true>(weights, row, depth / WORD, panel)
                        : make_rows<false>(weights, row, depth / WORD, panel);
    }

    // One call of COLUMN_ROWS rows, one lane per k.
    static void make_columns(const Weights &weights, int64_t row, int64_t call, uint32_t *out) {
        alignas(64) uint32_t quads[ROW_QUADS * CALL];
        slt::SLT_ISA::make_columns(weights, row, call, quads);
        weights.signs() ? split_columns<true>(quads, out) : split_columns<false>(quads, out);
    }

    // y = sums * scale + bias.
    static void multiply(Tiles &tiles, const VectorsOf<uint16_t> &x, int vectors, const uint32_t *panel, int64_t depth,
                         const Output &out) {
        const int rows = x.chosen ? x.chosen[vectors - 1] + 1 : vectors, last = rows > 16 ? rows - 16 : 0;
        tiles.configure(int(least(rows, 16)), 1 << 6 | 1 << 7);
        alignas(64) float sums[VECTORS * OUTPUTS];
        const int64_t group = depth / 2 * LANES;
        for (int lane = 0; lane < out.lanes; lane += int(OUTPUTS), panel += 2 * group) {
            const int lanes = int(least(out.lanes - lane, OUTPUTS));
            const uint32_t *second = lanes > LANES ? panel + group : panel;  // a single group is multiplied twice
            if (rows > 32) {
                multiply_tall(x, last, panel, depth, sums);
                multiply_tall(x, last, second, depth, sums + LANES);
            } else {
                multiply_square(x, last, panel, second, depth, sums);
            }
            const __mmask32 exist = lanes == OUTPUTS ? ~0u : (1u << lanes) - 1;
            F32 bias[2] = {};
            if (out.bias) memcpy(bias, out.bias + lane, size_t(lanes) * sizeof(float));
            for (int v = 0; v < vectors; ++v)
                write(sums + (x.chosen ? x.chosen[v] : v) * OUTPUTS, bias, out.scale, exist,
                      out.y + ((out.places ? out.places[v] : v * out.vector_stride) + lane));
        }
    }

  private:
    template <bool SIGNS>
    static void make_rows(const Weights &weights, int64_t row, int64_t words, uint32_t *panel) {
        constexpr Origin ORIGIN = SIGNS ? Origin::SIGNS : Origin::BYTES;
        for (int64_t first = 0; first < words; first += 2 * WORDS_PER_CALL) {
            const int64_t call = first / WORDS_PER_CALL;
            weights.each<ORIGIN, 2>({{row, call}, {row, call + 1}}, [&](int p, int w, const U32 quads[8]) {
                const int64_t word = first + p * WORDS_PER_CALL + w;
                if (word >= words) return;
                uint32_t *out = panel + word * 16 * LANES;
                SLT_UNROLL for (int s = 0; s < 8; ++s) {
                    // Quad s of signed_constant holds k = 2s, 2s + 16, 2s + 1, 2s + 17.
                    store(out + (SIGNS ? s : 2 * s) * LANES, pair_of<SIGNS, 0, SIGNS ? 2 : 1>(quads[s]));
                    store(out + (SIGNS ? s + 8 : 2 * s + 1) * LANES, pair_of<SIGNS, SIGNS ? 1 : 2, 3>(quads[s]));
                }
            });
        }
    }

    template <bool SIGNS>
    static void split_columns(const uint32_t *quads, uint32_t *out) {
        for (int q = 0; q < ROW_QUADS; ++q, quads += CALL, out += 2 * CALL)
            for (int k = 0; k < CALL; k += LANES) {
                const U32 quad = load<U32>(quads + k);
                store(out + k, pair_of<SIGNS, 0, 1>(quad));
                store(out + CALL + k, pair_of<SIGNS, 2, 3>(quad));
            }
    }

    // Writes the results of up to 32 lanes of a vector.
    static SLT_INLINE void write(const float *sums, const F32 *bias, float scale, __mmask32 lanes, const Result &y) {
        const F32 low = load<F32>(sums) * scale + bias[0], high = load<F32>(sums + LANES) * scale + bias[1];
        _mm512_mask_storeu_epi16(y.data, lanes, (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low));
    }

    // 48 vectors by one group; the third tile of vectors begins with vector `last`.
    static void multiply_tall(const VectorsOf<uint16_t> &x, int64_t last, const uint32_t *panel, int64_t depth,
                              float *sums) {
        const int64_t pitch = x.vector_pitch * sizeof(uint16_t), steps = depth / 32;
        const auto at = [&](int64_t s) { return x.step(least(s, steps - 1), 32); };
        const auto weights = [&](int64_t s) { return panel + least(s, steps - 1) * 16 * LANES; };
        const int64_t second = 16 * x.vector_pitch, third = last * x.vector_pitch;
        tile_memory();
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        if (steps > 0) {
            _tile_loadd(6, weights(0), 64);
            _tile_loadd(4, at(0), pitch);
            _tile_loadd(5, at(0) + second, pitch);
        }
        for (int64_t s = 0; s < steps; s += 2) {
            _tile_loadd(7, weights(s + 1), 64);
            _tile_loadd(3, at(s) + third, pitch);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(4, at(s + 1), pitch);
            _tile_dpbf16ps(1, 5, 6);
            _tile_loadd(5, at(s + 1) + second, pitch);
            _tile_dpbf16ps(2, 3, 6);
            if (s + 1 == steps) break;
            _tile_loadd(6, weights(s + 2), 64);
            _tile_loadd(3, at(s + 1) + third, pitch);
            _tile_dpbf16ps(0, 4, 7);
            _tile_loadd(4, at(s + 2), pitch);
            _tile_dpbf16ps(1, 5, 7);
            _tile_loadd(5, at(s + 2) + second, pitch);
            _tile_dpbf16ps(2, 3, 7);
        }
        constexpr int64_t row = OUTPUTS * sizeof(float);
        _tile_stored(0, sums, row);
        _tile_stored(1, sums + 16 * OUTPUTS, row);
        _tile_stored(2, sums + last * OUTPUTS, row);
    }

    // Up to 32 vectors by two groups; the second tile of vectors begins with vector `last`.
    static void multiply_square(const VectorsOf<uint16_t> &x, int64_t last, const uint32_t *panel,
                                const uint32_t *second_panel, int64_t depth, float *sums) {
        const int64_t pitch = x.vector_pitch * sizeof(uint16_t), steps = depth / 32, second = last * x.vector_pitch;
        tile_memory();
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        if (steps > 0) {
            _tile_loadd(6, panel, 64);
            _tile_loadd(4, x.step(0, 32), pitch);
        }
        for (int64_t s = 0; s < steps; ++s) {
            const int64_t next = least(s + 1, steps - 1);
            _tile_loadd(7, second_panel + s * 16 * LANES, 64);
            _tile_loadd(5, x.step(s, 32) + second, pitch);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(2, 5, 6);
            _tile_loadd(6, panel + next * 16 * LANES, 64);
            _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(4, x.step(next, 32), pitch);
            _tile_dpbf16ps(3, 5, 7);
        }
        constexpr int64_t row = OUTPUTS * sizeof(float);
        _tile_stored(0, sums, row);
        _tile_stored(1, sums + LANES, row);
        _tile_stored(2, sums + last * OUTPUTS, row);
        _tile_stored(3, sums + last * OUTPUTS + LANES, row);
    }
};

#endif

}  // namespace
}  // namespace slt::SLT_ISA
