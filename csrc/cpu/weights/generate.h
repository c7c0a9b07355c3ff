// The weights of the contract, many at a time: Philox with one row per lane, and weights as bytes for a dot product.
//
// Lanes are rows. The calls of LANES rows at one place differ only in their counter, so the generator needs no shuffle,
// and one word of each row is one register. The unit of work is one call, 128 k, of LANES rows. Calls are counted from
// the start of the whole layer's row; a shard's first word may be inside a call (`Frame`).
//
// The supermask is applied here, before the product: a dropped weight becomes the byte of 0. With AMX and with the dot
// products of AArch64, which take signed bytes, the byte of a weight is v. Elsewhere it is the unsigned byte v + zero,
// where zero is 1 for signed_constant and 128 for the byte weights; the product is corrected once, by zero * sum(x).
//
// A quad is four bytes of a lane: one operand of vpdpbusd; 16 registers of quads of 16 rows are one operand of an AMX
// tile product. A word is eight quads. Quad s of a word of signed_constant holds the k of bits s, s + 8, s + 16 and s +
// 24, the order in which shifts produce them; of byte weights (uniform, normal), k = 4s to 4s + 3. `quad_k` is that
// order.
//
// Vector instructions for 16 rows x 128 k (2048 weights) with AVX-512, without loads and stores: a call of Philox 116;
// gathering and transposing the mask 20; codes and bytes of signed_constant 4 x 13. That is 0.09 per weight.
#pragma once

#include <type_traits>

#include "contract/frame.h"
#include "contract/weights.h"
#include "cpu/machine/simd.h"

namespace slt::SLT_ISA {
namespace {

constexpr int QUADS = 32;          // per call
constexpr int QUADS_PER_WORD = 8;
constexpr int CALLS_PER_LINE = 4;  // calls of a row of the mask per cache line

#if defined(SLT_AMX) || defined(__ARM_FEATURE_DOTPROD)
constexpr bool SIGNED_BYTES = true;
#else
constexpr bool SIGNED_BYTES = false;
#endif

// The byte of a dropped weight.
SLT_INLINE int zero_of(int64_t weight) { return SIGNED_BYTES ? 0 : weight == SIGNED_CONSTANT ? 1 : 128; }

// The k inside its word of byte i of quad s.
SLT_INLINE constexpr int quad_k(int64_t weight, int s, int i) {
    return weight == SIGNED_CONSTANT ? k_of_bit(8 * i + s) : 4 * s + i;
}

// 64-bit numbers of LANES rows: of the even rows, and of the odd rows.
struct Index {
    U64 even, odd;

    Index operator+(uint64_t n) const { return {even + n, odd + n}; }
    Index twice() const { return {even + even, odd + odd}; }
};

// first + lane * step, for a step below 2^32.
SLT_INLINE Index index_of(uint64_t first, uint32_t step) {
    U64 lane;
    for (int i = 0; i < LANES / 2; ++i) lane[i] = 2 * i;
    return {first + multiply_low(lane, step), first + multiply_low(lane + 1, step)};
}

// Runs nothing between the rounds of a generator.
struct Nothing {
    SLT_INLINE void operator()(int) const {}
};

// One stream of a layer, its key schedule computed once. Rounds run on 64-bit lanes: the product's low half needs no
// masking, because the next multiplication ignores the high half. The stream and the layer are the same in every lane,
// so the constructor does a third of the first two rounds. A round depends on the one before (a latency of 7 cycles
// with AVX-512, for 6 cycles of work), so two calls run side by side if 32 registers hold their state.
class Generator {
  public:
    Generator(const Source &s, Stream stream) {
        uint32_t k0 = uint32_t(s.seed), k1 = uint32_t(uint64_t(s.seed) >> 32);
        for (int i = 0; i < PHILOX_ROUNDS; ++i) {
            key0[i] = k0;
            key1[i] = k1;
            k0 += PHILOX_KEY_STEP_0;
            k1 += PHILOX_KEY_STEP_1;
        }
        const uint64_t b = uint64_t(PHILOX_MULTIPLIER_1) * stream;
        const uint32_t c0 = uint32_t(b >> 32) ^ uint32_t(s.layer) ^ uint32_t(key0[0]);
        const uint64_t a = uint64_t(PHILOX_MULTIPLIER_0) * c0;
        c1 = uint32_t(b);
        a_high = uint32_t(a >> 32) ^ key1[1];
        a_low = uint32_t(a);
    }

    // The four words of each call, for each row of its index. `between(i)` is called once for each i < BETWEEN, between
    // the rounds of the first calls.
    template <int CALLS, class Between = Nothing>
    SLT_INLINE void operator()(const Index (&index)[CALLS], U32 (&out)[CALLS][4], const Between &between = {}) const {
#if defined(__aarch64__)
        SLT_UNROLL for (int i = 0; i < CALLS; ++i)
            i == 0 ? rounds_of_words(index[i], out[i], between) : rounds_of_words(index[i], out[i], Nothing());
#else
        constexpr int together = CALLS % TOGETHER ? 1 : TOGETHER;
        SLT_UNROLL for (int i = 0; i < CALLS; i += together) {
            U64 c[2 * together][4];
            SLT_UNROLL for (int j = 0; j < together; ++j) {
                c[2 * j][0] = index[i + j].even;
                c[2 * j + 1][0] = index[i + j].odd;
            }
            i == 0 ? rounds<2 * together>(c, between) : rounds<2 * together>(c, Nothing());
            SLT_UNROLL for (int j = 0; j < together; ++j)
                SLT_UNROLL for (int w = 0; w < 4; ++w) out[i + j][w] = interleave(c[2 * j][w], c[2 * j + 1][w]);
        }
#endif
    }

    static constexpr int BETWEEN = PHILOX_ROUNDS - 2;

  private:
    static constexpr int TOGETHER = LANES == 16 ? 2 : 1;

    uint64_t key0[PHILOX_ROUNDS], key1[PHILOX_ROUNDS];
    uint64_t c1, a_high, a_low;  // state after the constant part of the first rounds

#if defined(__aarch64__)
    // The rounds on 32-bit lanes: two multiplications make the 64-bit products of four lanes, and two shuffles separate
    // their halves.
    template <class Between>
    SLT_INLINE void rounds_of_words(const Index &index, U32 c[4], const Between &between) const {
        U32 high, low;
        products(interleave(index.even, index.odd), PHILOX_MULTIPLIER_0, high, low);
        c[2] = low ^ uint32_t(a_high);
        c[3] = splat(uint32_t(a_low));
        products(high ^ interleave(index.even >> 32, index.odd >> 32) ^ uint32_t(key1[0]), PHILOX_MULTIPLIER_1, high,
                 c[1]);
        c[0] = high ^ uint32_t(c1 ^ key0[1]);
        SLT_UNROLL for (int i = 2; i < PHILOX_ROUNDS; ++i) {
            between(i - 2);
            U32 other_high, other_low;
            products(c[0], PHILOX_MULTIPLIER_0, high, low);
            products(c[2], PHILOX_MULTIPLIER_1, other_high, other_low);
            c[0] = other_high ^ c[1] ^ uint32_t(key0[i]);
            c[1] = other_low;
            c[2] = high ^ c[3] ^ uint32_t(key1[i]);
            c[3] = low;
        }
    }

    // The halves of the 64-bit products of each lane.
    static SLT_INLINE void products(U32 a, uint32_t b, U32 &high, U32 &low) {
        const uint32x4_t factor = vdupq_n_u32(b);
        const uint32x4_t first = (uint32x4_t)vmull_u32(vget_low_u32((uint32x4_t)a), vget_low_u32(factor));
        const uint32x4_t second = (uint32x4_t)vmull_high_u32((uint32x4_t)a, factor);
        high = (U32)vuzp2q_u32(first, second);
        low = (U32)vuzp1q_u32(first, second);
    }
#endif

    // From the index in c[h][0] to the words in c[h].
    template <int HALVES, class Between>
    SLT_INLINE void rounds(U64 c[HALVES][4], const Between &between) const {
        SLT_UNROLL for (int h = 0; h < HALVES; ++h) {
            const U64 index = c[h][0], a = multiply_low(index, PHILOX_MULTIPLIER_0);
            const U64 b = multiply_low(a >> 32 ^ index >> 32 ^ key1[0], PHILOX_MULTIPLIER_1);
            c[h][0] = b >> 32 ^ (c1 ^ key0[1]);
            c[h][1] = b;
            c[h][2] = a ^ a_high;
            c[h][3] = splat64(a_low);
        }
        SLT_UNROLL for (int i = 2; i < PHILOX_ROUNDS; ++i) {
            between(i - 2);
            SLT_UNROLL for (int h = 0; h < HALVES; ++h) {
                const U64 a = multiply_low(c[h][0], PHILOX_MULTIPLIER_0);
                const U64 b = multiply_low(c[h][2], PHILOX_MULTIPLIER_1);
                c[h][0] = b >> 32 ^ c[h][1] ^ key0[i];
                c[h][1] = b;
                c[h][2] = a >> 32 ^ c[h][3] ^ key1[i];
                c[h][3] = a;
                SLT_IN_ORDER(c[h][0], c[h][1], c[h][2], c[h][3]);
            }
        }
    }
};

// The calls of SIGN, four words each, of LANES rows from `row` on.
SLT_INLINE Index sign_index(const Source &s, int64_t row, int64_t call) {
    const uint64_t first = uint64_t(s.first_row + row) * s.row_calls + s.first_word / WORDS_PER_CALL + call;
    return index_of(first, uint32_t(s.row_calls));
}

// The numbers q of the contract; the calls of VALUE and FREEZE are 2q and 2q + 1. `word` counts from the frame's first.
SLT_INLINE Index word_index(const Source &s, int64_t row, const Frame &frame, int64_t word) {
    const uint64_t step = uint64_t(s.row_calls) * WORDS_PER_CALL;  // at most 2^18
    return index_of(uint64_t(s.first_row + row) * step + frame.first_call * WORDS_PER_CALL + word, uint32_t(step));
}

template <class Between = Nothing>
SLT_INLINE void eight_words(const Generator &generator, const Index &word, U32 out[8], const Between &between = {}) {
    const Index twice = word.twice();
    U32 calls[2][4];
    generator({twice, twice + 1}, calls, between);
    SLT_UNROLL for (int i = 0; i < 8; ++i) out[i] = calls[i / 4][i % 4];
}

// `below` of the contract for LANES rows: one majority per plane, from the lowest plane on.
template <int PLANES>
SLT_INLINE U32 below(const U32 planes[PLANES], const Threshold &threshold) {
    U32 result = splat(threshold.always);
    SLT_UNROLL for (int i = PLANES - 1; i >= 0; --i)
        result = majority_not(result, planes[i], splat(threshold.plane[i]));
    return result;
}

// The frozen pattern of LANES rows. Padding is not cleared: apply `valid_bits`.
class FrozenWords {
  public:
    explicit FrozenWords(const Source &s)
        : generator(s, FREEZE),
          prune(threshold_of(s.prune_below)),
          lock(threshold_of(s.lock_from)),
          four(planes_of(s.prune_below) == 4 && planes_of(s.lock_from) == 4) {}

    // Whether one call decides: both thresholds are multiples of 16.
    bool one_call() const { return four; }

    // Of two words, by one call each.
    template <class Between>
    SLT_INLINE void by_one_call(const Index (&words)[2], U32 (&free)[2], U32 (&locked)[2],
                                const Between &between) const {
        U32 planes[2][4];
        generator({words[0].twice(), words[1].twice()}, planes, between);
        SLT_UNROLL for (int i = 0; i < 2; ++i) compare<4>(planes[i], free[i], locked[i]);
    }

    // The free and the locked weights of one word; `between` as in Generator.
    template <class Between = Nothing>
    SLT_INLINE void operator()(const Index &word, U32 &free, U32 &locked, const Between &between = {}) const {
        if (four) {  // both thresholds are multiples of 16: the second call decides nothing
            U32 planes[1][4];
            generator({word.twice()}, planes, between);
            compare<4>(planes[0], free, locked);
        } else {
            U32 planes[8];
            eight_words(generator, word, planes, between);
            compare<8>(planes, free, locked);
        }
    }

  private:
    template <int PLANES>
    SLT_INLINE void compare(const U32 planes[PLANES], U32 &free, U32 &locked) const {
        const U32 unlocked = below<PLANES>(planes, lock);
        free = unlocked & ~below<PLANES>(planes, prune);
        locked = ~unlocked;
    }

    const Generator generator;
    const Threshold prune, lock;
    const bool four;
};

// Four words, from `word` on, of LANES rows of a matrix of words, one row per lane. Words outside [0, words) are 0. The
// matrix has `rows` rows from `matrix` on. Rows past the end repeat the last row; if rows <= 0, all do, and the last
// row is before `matrix`.
__attribute__((noinline)) inline void load_edge(const uint32_t *matrix, int64_t words, int64_t rows, int64_t word,
                                                U32 out[4]) {
    uint32_t lanes[4][LANES];
    for (int i = 0; i < 4; ++i)
        for (int l = 0; l < LANES; ++l) {
            const int64_t row = least(l, rows - 1);
            lanes[i][l] = word + i >= 0 && word + i < words ? matrix[row * words + word + i] : 0;
        }
    memcpy(out, lanes, sizeof lanes);
}

SLT_INLINE void load_words(const uint32_t *matrix, int64_t words, int64_t rows, int64_t word, U32 out[4]) {
    if (__builtin_expect(word < 0 || word + 4 > words || rows < LANES, 0))
        return load_edge(matrix, words, rows, word, out);
    const uint32_t *at = matrix + word;
#if defined(__AVX512F__)
    __m512i r[4];  // four rows per register, 128 bits each; then a transposition inside the 128 bits
    SLT_UNROLL for (int i = 0; i < 4; ++i) {
        __m512i v = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(at + i * words)));
        v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(at + (4 + i) * words)), 1);
        v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(at + (8 + i) * words)), 2);
        r[i] = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(at + (12 + i) * words)), 3);
    }
    const __m512i a = _mm512_unpacklo_epi32(r[0], r[1]), b = _mm512_unpackhi_epi32(r[0], r[1]);
    const __m512i c = _mm512_unpacklo_epi32(r[2], r[3]), d = _mm512_unpackhi_epi32(r[2], r[3]);
    out[0] = (U32)_mm512_unpacklo_epi64(a, c);
    out[1] = (U32)_mm512_unpackhi_epi64(a, c);
    out[2] = (U32)_mm512_unpacklo_epi64(b, d);
    out[3] = (U32)_mm512_unpackhi_epi64(b, d);
#elif defined(__aarch64__)
    S32 square[LANES];
    for (int l = 0; l < LANES; ++l) square[l] = load<S32>(at + l * words);
    transpose(square);
    for (int i = 0; i < 4; ++i) out[i] = (U32)square[i];
#else
    for (int l = 0; l < LANES; ++l)
        for (int i = 0; i < 4; ++i) out[i][l] = at[l * words + i];
#endif
}

// Bits 2f and 2f + 1 of every byte as its value; with signed bytes, bit 2f + 1 is the sign.
SLT_INLINE U32 field(U32 v, int f) {
#if defined(__GFNI__) && defined(__AVX512F__)
    // Result bit i is the product with row 7 - i: bit 0 is bit 2f, and bit 1 (with a sign, all others) bit 2f + 1.
    const uint64_t matrix = (1ull << 56 | (SIGNED_BYTES ? 0x0002020202020202 : 2ull << 48)) << (2 * f);
    return (U32)_mm512_gf2p8affine_epi64_epi8((__m512i)v, _mm512_set1_epi64(int64_t(matrix)), 0);
#else
    if (SIGNED_BYTES) return (U32)((S8)v << (6 - 2 * f) >> 6);
    return v >> (2 * f) & 0x03030303;
#endif
}

// Codes of two bits for the weights of one word of signed_constant: of the even bits in one register, of the odd bits
// in another. Every field of a register then takes one shift and one AND, or with GFNI one product of bit matrices. The
// code of v + 1 is high = keep & ~sign, low = ~keep; of the signed v, high = keep & sign, low = keep.
SLT_INLINE void sign_codes(U32 keep, U32 sign, U32 &even, U32 &odd) {
    const U32 high = keep & (SIGNED_BYTES ? sign : ~sign), high_bits = splat(0xAAAAAAAA);
    even = SIGNED_BYTES ? where(high_bits, high << 1, keep) : where_not(high_bits, high << 1, keep);
    odd = SIGNED_BYTES ? where(high_bits, high, keep >> 1) : where_not(high_bits, high, keep >> 1);
}

// The eight quads of one word of signed_constant.
SLT_INLINE void sign_quads(U32 keep, U32 sign, U32 out[8]) {
    U32 even, odd;
    sign_codes(keep, sign, even, odd);
    SLT_UNROLL for (int f = 0; f < 4; ++f) {
        out[2 * f] = field(even, f);
        out[2 * f + 1] = field(odd, f);
    }
}

alignas(64) constexpr int8_t NORMAL_HALF[128] = SLT_NORMAL_HALF;

// v + 128 of NORMAL for each byte.
SLT_INLINE U32 normal_bytes(U32 u) {
#if defined(__AVX512VBMI__)
    // The half table is in two registers; the low seven bits are the index, mirrored if the top bit is clear.
    const __mmask64 upper = _mm512_movepi8_mask((__m512i)u);
    const __m512i lookup = _mm512_mask_mov_epi8((__m512i)(u ^ 0x7F7F7F7F), upper, (__m512i)u);
    const __m512i low = load<__m512i>(NORMAL_HALF), high = load<__m512i>(NORMAL_HALF + 64);
    const __m512i half = _mm512_permutex2var_epi8(low, lookup, high), zero = _mm512_set1_epi8(-128);
    return (U32)_mm512_mask_add_epi8(_mm512_sub_epi8(zero, half), upper, zero, half);
#elif defined(__aarch64__)
    // The low seven bits are the index, mirrored if the top bit is clear. An index past a table of 64 bytes gives 0, or
    // leaves the byte as it is.
    const uint8x16_t upper = (uint8x16_t)((S8)u < 0), bytes = (uint8x16_t)u;
    const uint8x16_t index = vandq_u8(vbslq_u8(upper, bytes, vmvnq_u8(bytes)), vdupq_n_u8(0x7F));
    const uint8_t *at = reinterpret_cast<const uint8_t *>(NORMAL_HALF);
    const uint8x16_t low = vqtbl4q_u8(vld1q_u8_x4(at), index);
    const uint8x16_t half = vqtbx4q_u8(low, vld1q_u8_x4(at + 64), vsubq_u8(index, vdupq_n_u8(64)));
    const uint8x16_t zero = vdupq_n_u8(128);
    return (U32)vbslq_u8(upper, vaddq_u8(zero, half), vsubq_u8(zero, half));
#else
    U8 bytes = (U8)u;
    for (int i = 0; i < 4 * LANES; ++i)
        bytes[i] = uint8_t(bytes[i] >= 128 ? 128 + NORMAL_HALF[bytes[i] - 128] : 128 - NORMAL_HALF[127 - bytes[i]]);
    return (U32)bytes;
#endif
}

// v + 128 of a byte weight for each byte.
SLT_INLINE U32 value_bytes(int64_t weight, U32 u) { return weight == UNIFORM ? u | 0x01010101 : normal_bytes(u); }

// One call of LANES rows, for kernels that use weights one by one: [word][0] are the sign words, or [word][8] the bytes
// v + 128 in the order of k.
inline void call_words(int64_t weight, const Generator &generator, const Index &call, const Index &first_word,
                       uint32_t (*out)[8][LANES]) {
    if (weight == SIGNED_CONSTANT) {
        U32 sign[1][4];
        generator({call}, sign);
        for (int i = 0; i < WORDS_PER_CALL; ++i) store(out[i][0], sign[0][i]);
        return;
    }
    for (int i = 0; i < WORDS_PER_CALL; ++i) {
        U32 u[8];
        eight_words(generator, first_word + i, u);
        for (int j = 0; j < 8; ++j) store(out[i][j], value_bytes(weight, u[j]));
    }
}

// The eight quads of one word of a byte weight, from its eight words of VALUE. k = 4j and 4j + 2 are bits 2j and 2j + 1
// of the low half of `keep`; 4j + 1 and 4j + 3 are those bits of the high half.
SLT_INLINE void byte_quads(int64_t weight, U32 keep, U32 out[8]) {
#if defined(__AVX512BW__)
    const __m512i first = _mm512_set4_epi32(0x0E0C0E0C, 0x0A080A08, 0x06040604, 0x02000200);  // bytes 0, 2, 0, 2
    const __m512i second = _mm512_set4_epi32(0x0F0D0F0D, 0x0B090B09, 0x07050705, 0x03010301);
    const __m512i halves[2] = {_mm512_shuffle_epi8((__m512i)keep, first), _mm512_shuffle_epi8((__m512i)keep, second)};
#elif defined(__aarch64__)
    const U8 first = {0, 2, 0, 2, 4, 6, 4, 6, 8, 10, 8, 10, 12, 14, 12, 14};
    const uint8x16_t bytes = (uint8x16_t)keep;
    const uint8x16_t halves[2] = {vqtbl1q_u8(bytes, (uint8x16_t)first), vqtbl1q_u8(bytes, (uint8x16_t)(first + 1))};
#endif
    SLT_UNROLL for (int j = 0; j < 8; ++j) {
        const U32 v = value_bytes(weight, out[j]) ^ (SIGNED_BYTES ? 0x80808080 : 0);
#if defined(__AVX512BW__)
        const __m512i bits = _mm512_set1_epi32(0x02020101 << (2 * j % 8));
        const __mmask64 kept = _mm512_test_epi8_mask(halves[j / 4], bits);
        out[j] = (U32)_mm512_mask_mov_epi8(_mm512_set1_epi8(SIGNED_BYTES ? 0 : -128), kept, (__m512i)v);
#elif defined(__aarch64__)
        const uint8x16_t kept = vtstq_u8(halves[j / 4], (uint8x16_t)splat(0x02020101u << (2 * j % 8)));
        out[j] = where((U32)kept, v, splat(SIGNED_BYTES ? 0 : 0x80808080));
#else
        const U32 pair = keep >> (2 * j);
        const U32 kept = (pair & 1) | (pair >> 8 & 0x100) | (pair << 15 & 0x10000) | (pair << 7 & 0x1000000);
        out[j] = where((kept << 8) - kept, v, splat(0x80808080));
#endif
    }
}

// Where the weights before their mask come from: SIGN or VALUE of the generator, or stored words of SIGN.
enum class Origin { SIGNS, STORED_SIGNS, BYTES };

// Makes the masked weights of LANES rows, one or two calls at a time.
class Weights {
  public:
    const Source &source;
    const Frame frame;

    // One call of the rows from `row` on.
    struct Place {
        int64_t row, call;
    };

    // `mask`: resolved words. `stored`: words of SIGN for signed_constant, or null to generate them.
    Weights(const Source &s, const uint32_t *mask, const uint32_t *stored = nullptr)
        : source(s), frame(frame_of(s)), generator(s, s.weight == SIGNED_CONSTANT ? SIGN : VALUE), mask(mask),
          stored(stored), words(words_of(s)) {}

    bool signs() const { return source.weight == SIGNED_CONSTANT; }

    // Calls run(origin) with the origin of the weights as a type.
    template <class Run>
    void with_origin(const Run &run) const {
        if (!signs())
            run(std::integral_constant<Origin, Origin::BYTES>());
        else if (stored)
            run(std::integral_constant<Origin, Origin::STORED_SIGNS>());
        else
            run(std::integral_constant<Origin, Origin::SIGNS>());
    }

    // Calls use(p, w, quads) with the eight quads of word w at each place p.
    template <Origin ORIGIN, int PLACES, class Use>
    SLT_INLINE void each(const Place (&places)[PLACES], const Use &use) const {
        if constexpr (ORIGIN == Origin::BYTES) return each_of_bytes(places, use);
        Index index[PLACES];
        U32 sign[PLACES][WORDS_PER_CALL];
        if constexpr (ORIGIN == Origin::SIGNS) {
            SLT_UNROLL for (int p = 0; p < PLACES; ++p) index[p] = sign_index(source, places[p].row, places[p].call);
            generator(index, sign);
        }
        SLT_UNROLL for (int p = 0; p < PLACES; ++p) {
            U32 keep[WORDS_PER_CALL], quads[8];
            load_call(mask, places[p], keep);
            if constexpr (ORIGIN == Origin::STORED_SIGNS) load_call(stored, places[p], sign[p]);
            SLT_UNROLL for (int w = 0; w < WORDS_PER_CALL; ++w) {
                sign_quads(keep[w], sign[p][w], quads);
                use(p, w, quads);
            }
        }
    }

    // Stores the quads, [PLACES][QUADS][LANES].
    template <Origin ORIGIN, int PLACES>
    SLT_INLINE void write(const Place (&places)[PLACES], uint32_t *out) const {
        each<ORIGIN>(places, [&](int p, int w, const U32 quads[8]) {
            uint32_t *at = out + (p * QUADS + 8 * w) * LANES;
            SLT_UNROLL for (int s = 0; s < 8; ++s) store(at + s * LANES, quads[s]);
        });
    }

    // Stores `count` calls of the rows from `row` on.
    void write(int64_t row, int64_t call, int64_t count, uint32_t *out) const {
        with_origin([&](auto origin) { write_calls<origin>(row, call, count, out); });
    }

    // Stores one call of two groups of LANES rows, from `row` on.
    template <Origin ORIGIN>
    SLT_INLINE void write_pair(int64_t row, int64_t call, uint32_t *out) const {
        if constexpr (ORIGIN != Origin::BYTES) return write<ORIGIN>({{row, call}, {row + LANES, call}}, out);
        write_calls<Origin::BYTES>(row, call, 1, out);
        write_calls<Origin::BYTES>(row + LANES, call, 1, out + QUADS * LANES);
    }

    // Prefetches the mask, and stored signs, at this call of ROWS rows. The rows are too far apart, and too many, for
    // the hardware prefetcher.
    template <Origin ORIGIN, int ROWS>
    SLT_INLINE void prefetch(int64_t row, int64_t call) const {
        const int64_t at = row * words + call * WORDS_PER_CALL;
        SLT_UNROLL for (int l = 0; l < ROWS; ++l) {
            __builtin_prefetch(mask + (at + l * words));
            if constexpr (ORIGIN == Origin::STORED_SIGNS) __builtin_prefetch(stored + (at + l * words));
        }
    }

  private:
    const Generator generator;
    const uint32_t *mask, *stored;
    const int64_t words;

    // One call of LANES rows of a mask or of stored signs.
    SLT_INLINE void load_call(const uint32_t *from, const Place &place, U32 out[WORDS_PER_CALL]) const {
        load_words(from + place.row * words, words, source.rows - place.row,
                   place.call * WORDS_PER_CALL - frame.skipped, out);
    }

    // `each` of byte weights. Not unrolled: the weights of a word are up to 5 KB of instructions.
    template <int PLACES, class Use>
    SLT_INLINE void each_of_bytes(const Place (&places)[PLACES], const Use &use) const {
        for (int p = 0; p < PLACES; ++p) {
            U32 keep[WORDS_PER_CALL], quads[8];
            load_call(mask, places[p], keep);
            for (int w = 0; w < WORDS_PER_CALL; ++w) {
                const int64_t word = places[p].call * WORDS_PER_CALL + w;
                eight_words(generator, word_index(source, places[p].row, frame, word), quads);
                byte_quads(source.weight, keep[w], quads);
                use(p, w, quads);
            }
        }
    }

    // Not inlined: the instruction cache has room for one copy.
    template <Origin ORIGIN>
    __attribute__((noinline)) void write_calls(int64_t row, int64_t call, int64_t count, uint32_t *out) const {
        int64_t i = 0;
        for (; i + 1 < count; i += 2)
            write<ORIGIN>({{row, call + i}, {row, call + i + 1}}, out + i * QUADS * LANES);
        if (i < count) write<ORIGIN>({{row, call + i}}, out + i * QUADS * LANES);
    }
};

}  // namespace
}  // namespace slt::SLT_ISA
