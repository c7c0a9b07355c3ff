// Weights of grad_input as the first operand of a product, the transposed W: its rows are k, and its columns are
// summands. Lanes read what was made of several summands, and turn it so that a register has one k of all of them.
#pragma once

#include "cuda/grad_input_weights.h"

namespace slt::cuda {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Products of a warpgroup: a warp has 16 k, half of a word's. Lane (g, t) has two of them for rows g and g + 8 of the
// operand: lane_k, and APART from it.

// The half of a word that a warp has.
__device__ __forceinline__ int warp_half() { return threadIdx.x / 32 % 2; }

// Halves of coded words: [word][k % 4][summand]. A half has every fourth k of a word, in fields of two bits, and a
// register has the same half of two summands: one shift brings one k of both to the top.
// SIZE: bytes of what the weights are multiplied as.
template <int SIZE>
struct CodedHalves {
    static constexpr int PITCH = STEP_SUMMANDS * 2 + 64;  // neighbouring lanes read different banks
    static constexpr int WORD_BYTES = 4 * PITCH;

    // The lanes of two summands exchange halves: one stores the lower ones of both, the other the upper ones.
    static __device__ __forceinline__ void store(uint32_t to, int summand, const CodedWord &coded) {
        const bool odd = summand % 2;
        const uint32_t own = odd ? 0x7632 : 0x5410, other = odd ? 0x5410 : 0x7632, order = odd ? 0x1054 : 0x5410;
        const uint32_t kept = bytes_of(coded.even, coded.odd, own);
        const uint32_t got = __shfl_xor_sync(0xFFFFFFFF, bytes_of(coded.even, coded.odd, other), 1);
        to += odd * PITCH + place(summand);
        store_4_bytes(to, bytes_of(kept, got, order));
        store_4_bytes(to + 2 * PITCH, bytes_of(kept, got, order + 0x2222));
    }

    // Where a lane's halves of a word are: 16 bytes of 32 summands, and so on every 64 bytes.
    static __device__ __forceinline__ uint32_t lane_place(int word, int lane) {
        return word * WORD_BYTES + lane / 4 % 4 * PITCH + lane % 4 * 16;
    }
    static __device__ __forceinline__ int lane_k(int lane) { return 16 * warp_half() + lane / 4; }

    // A factor that shifts a lane's field of row g to the top of its byte; a sixteenth of it shifts that of row g + 8.
    // Multiplications have other units than the logic beside them.
    static __device__ __forceinline__ uint32_t lane_factor() { return 64u >> threadIdx.x % 32 / 16 * 2; }

  private:
    // The place of two summands, so that what a lane multiplies is together.
    static __device__ __forceinline__ int place(int summand) {
        const int pair = SIZE == 2 ? summand / 2 % 4 * 4 + summand / 8 % 4
                                   : summand / 4 % 4 * 4 + summand / 16 % 2 * 2 + summand / 2 % 2;
        return summand / 32 * 64 + pair * 4;
    }
};

// What a lane reads of them for half a step.
struct LaneHalves {
    uint32_t pairs[2][4];

    __device__ __forceinline__ void load(uint32_t from, int half) {
        load_16_bytes(pairs[0], from + half * 128);
        load_16_bytes(pairs[1], from + half * 128 + 64);
    }
};

// As floats of 2 v: see product_weights.h.
template <class Type, int WORDS>
class FloatSummands : LaneHalves {
    typedef CodedHalves<2> Layout;

  public:
    typedef CodedSummands<WORDS, Layout> Maker;
    typedef float Sum;
    static constexpr int SIZE = 2, LINES = 2, SUMS = 1, PRODUCTS = 8, APART = 8;
    using LaneHalves::load;

    __device__ __forceinline__ void operand(int number, uint32_t (&a)[4]) const {
        const uint32_t factor = Layout::lane_factor() << (warp_half() ? 0 : 8);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const uint32_t both = pairs[number / 2 % 2][number % 2 * 2 + i];
            a[2 * i] = both * factor & 0xC000C000;
            a[2 * i + 1] = both * (factor >> 4) & 0xC000C000;
        }
    }

    template <int N>
    static __device__ __forceinline__ void multiply_async(float (&d)[N / 2], const uint32_t *a, uint64_t b) {
        FloatProduct<Type, N>::add(d, a, b);
    }

    static __device__ __forceinline__ float total(const float (&sum)[1]) { return sum[0] * 0.5f; }
};

// As bytes of 64 v.
template <int DIGITS, int WORDS>
class ByteSummands : LaneHalves, public DigitProducts<DIGITS> {
    typedef CodedHalves<1> Layout;

  public:
    typedef CodedSummands<WORDS, Layout> Maker;
    static constexpr int APART = 8;
    using LaneHalves::load;

    __device__ __forceinline__ void operand(int number, uint32_t (&a)[4]) const {
        const uint32_t factor = Layout::lane_factor(), bytes = warp_half() ? 0x7531 : 0x6420;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const uint32_t four = bytes_of(pairs[number % 2][2 * i], pairs[number % 2][2 * i + 1], bytes);
            a[2 * i] = four * factor & 0xC0C0C0C0;
            a[2 * i + 1] = four * (factor >> 4) & 0xC0C0C0C0;
        }
    }

    static __device__ __forceinline__ int64_t total(const int (&sum)[DIGITS]) {
        return DigitProducts<DIGITS>::total(sum) >> 6;
    }
};

// Weights that are bytes of VALUE.
template <int DIGITS, int WORDS>
class ValueSummands : public DigitProducts<DIGITS> {
  public:
    struct Maker : ValueLines<WORDS> {
        using ValueLines<WORDS>::ValueLines;

        // Where a lane's four k, of which it multiplies two, are in the line of its first summand.
        static __device__ __forceinline__ uint32_t lane_place(int word, int lane) {
            const int first = 4 * (lane % 4), k = word * int(WORD) + lane_k(lane) / 4 * 4;
            return first * LINE + Maker::place(first, k) + k % 16;
        }
        static __device__ __forceinline__ int lane_k(int lane) { return 16 * warp_half() + lane / 4 * 2; }
    };
    static constexpr int APART = 1;

    __device__ __forceinline__ void load(uint32_t from, int half) {
#pragma unroll
        for (int four = 0; four < 4; ++four)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                words_[four][i] = load_4_bytes((from ^ Maker::place(i, 0)) + (half * 64 + four * 16 + i) * LINE);
    }

    __device__ __forceinline__ void operand(int number, uint32_t (&a)[4]) const {
        const uint32_t own = threadIdx.x / 4 % 2 ? 0x7632 : 0x5410;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const uint32_t(&w)[4] = words_[number % 2 * 2 + i];
            const uint32_t first = bytes_of(w[0], w[1], own), second = bytes_of(w[2], w[3], own);
            a[2 * i] = bytes_of(first, second, 0x6420);
            a[2 * i + 1] = bytes_of(first, second, 0x7531);
        }
    }

  private:
    uint32_t words_[4][4];  // of four k
};

#else

// Products of a warp: it has the 32 k of a word, in two blocks of 16. Lane (g, t) has k = lane_k(g, r) + b for row
// g + 8 r of block b.

// Coded words: [even bits, odd bits][summand].
struct CodedWords {
    static constexpr int PITCH = (STEP_SUMMANDS + 16) * 4;  // even and odd bits are in different banks
    static constexpr int WORD_BYTES = 2 * PITCH;

    static __device__ __forceinline__ void store(uint32_t to, int summand, const CodedWord &coded) {
        store_4_bytes(to + summand * 4, coded.even);
        store_4_bytes(to + PITCH + summand * 4, coded.odd);
    }

    // Where a lane's words are, and a factor that shifts its fields to the top of bytes or halves: multiplications have
    // other units than the logic beside them.
    static __device__ __forceinline__ uint32_t lane_place(int word, int lane) {
        return (2 * word + lane / 16) * PITCH;
    }
    static __device__ __forceinline__ uint32_t lane_factor(int lane) { return 64u >> lane / 4 % 4 * 2; }
    static __device__ __forceinline__ int lane_k(int g, int r) { return 16 * r + 4 * (g % 4) + 2 * (g / 4); }
};

// As floats of 2 v: see product_weights.h.
template <class Type, int WORDS>
class FloatSummands {
  public:
    typedef CodedSummands<WORDS, CodedWords> Maker;
    typedef float Sum;
    static constexpr int SIZE = 2, LINES = 2, SUMS = 1, PRODUCTS = 8;

    // The operands of product `number` of a step, over 16 summands.
    static __device__ __forceinline__ void operand(uint32_t from, int word, int lane, int number,
                                                   uint32_t (&a)[2][4]) {
        from += CodedWords::lane_place(word, lane) + lane % 4 * 8 + number * 64;
        const uint32_t factor = CodedWords::lane_factor(lane);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            uint32_t w[2];
            load_8_bytes(w, from + half * 32);
#pragma unroll
            for (int b = 0; b < 2; ++b) {
                const uint32_t both = bytes_of(w[0], w[1], b ? 0x7632 : 0x5410);
                a[b][2 * half] = both * (factor << 8) & 0xC000C000;
                a[b][2 * half + 1] = both * factor & 0xC000C000;
            }
        }
    }

    static __device__ __forceinline__ int lane_k(int g, int r) { return CodedWords::lane_k(g, r); }
    static __device__ __forceinline__ void multiply(float *d, const uint32_t *a, uint32_t b0, uint32_t b1) {
        multiply_floats<Type>(d, a, b0, b1);
    }
    static __device__ __forceinline__ float total(const float (&sum)[1]) { return sum[0] * 0.5f; }
};

// The bytes of four words, transposed: word i has byte i of each.
__device__ __forceinline__ void transpose_bytes(const uint32_t (&w)[4], uint32_t (&out)[4]) {
    const uint32_t low[2] = {bytes_of(w[0], w[1], 0x5140), bytes_of(w[2], w[3], 0x5140)};
    const uint32_t high[2] = {bytes_of(w[0], w[1], 0x7362), bytes_of(w[2], w[3], 0x7362)};
    out[0] = bytes_of(low[0], low[1], 0x5410);
    out[1] = bytes_of(low[0], low[1], 0x7632);
    out[2] = bytes_of(high[0], high[1], 0x5410);
    out[3] = bytes_of(high[0], high[1], 0x7632);
}

// As bytes of 64 v.
template <int DIGITS, int WORDS>
class ByteSummands : public DigitProducts<DIGITS> {
  public:
    typedef CodedSummands<WORDS, CodedWords> Maker;

    static __device__ __forceinline__ void operand(uint32_t from, int word, int lane, int number,
                                                   uint32_t (&a)[2][4]) {
        from += CodedWords::lane_place(word, lane) + lane % 4 * 16 + number * 128;
        const uint32_t factor = CodedWords::lane_factor(lane);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            uint32_t w[4], k[4];
            load_16_bytes(w, from + half * 64);
#pragma unroll
            for (int i = 0; i < 4; ++i) w[i] = w[i] * factor & 0xC0C0C0C0;
            transpose_bytes(w, k);
#pragma unroll
            for (int i = 0; i < 4; ++i) a[i / 2][2 * half + i % 2] = k[i];
        }
    }

    static __device__ __forceinline__ int lane_k(int g, int r) { return CodedWords::lane_k(g, r); }
    static __device__ __forceinline__ int64_t total(const int (&sum)[DIGITS]) {
        return DigitProducts<DIGITS>::total(sum) >> 6;
    }
};

// Weights that are bytes of VALUE.
template <int DIGITS, int WORDS>
class ValueSummands : public DigitProducts<DIGITS> {
  public:
    typedef ValueLines<WORDS> Maker;

    static __device__ __forceinline__ void operand(uint32_t from, int word, int lane, int number,
                                                   uint32_t (&a)[2][4]) {
        const int g = lane / 4, t = lane % 4;
        from += (number * 32 + t * 4) * LINE + g % 4 * 4;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            uint32_t w[4], k[4];
#pragma unroll
            for (int i = 0; i < 4; ++i)
                w[i] = load_4_bytes(from + (half * 16 + i) * LINE + Maker::place(4 * t + i, word * 32 + g / 4 * 16));
            transpose_bytes(w, k);
#pragma unroll
            for (int i = 0; i < 4; ++i) a[i % 2][2 * half + i / 2] = k[i];
        }
    }

    static __device__ __forceinline__ int lane_k(int g, int r) { return 4 * g + 2 * r; }
};

#endif

}  // namespace slt::cuda
