// Weights of a product as the first operand: made by producers, a row of a tile each, and read by consumers.
//
// A step is a call: 128 weights of every row. A tile has 128 rows or 64. The operand's registers a[0..3] of one product
// are those of rows g and g + 8 in the lower half of k, and of both in the upper half.
#pragma once

#include "cuda/arguments.h"
#include "cuda/product_output.h"
#include "cuda/words.h"

namespace slt::cuda {

// A producer's row of the source; there are no weights where it is not valid.
class ProducerRow {
  public:
    __device__ __forceinline__ uint64_t index(int call) const { return index_ + uint32_t(call); }

  protected:
    __device__ __forceinline__ ProducerRow(const Product &a, uint32_t row, bool valid)
        : row_(row), calls_(valid ? a.generator.calls : 0), index_(call_index(a.generator, row, 0)) {}

    uint32_t row_;
    int calls_;

  private:
    uint64_t index_;
};

// Its kept weights by a resolved mask, whose words are read one call ahead.
class ResolvedRow : public ProducerRow {
  public:
    __device__ __forceinline__ ResolvedRow(const Product &a, uint32_t row, bool valid, int first)
        : ProducerRow(a, row, valid), mask_(a.mask + uint64_t(row) * a.generator.words) {
        read(a, first);
    }

    // The words of `call`, which was read before; reads those of the next one.
    __device__ __forceinline__ void take(const Product &a, int call, uint32_t (&words)[4]) {
#pragma unroll
        for (int i = 0; i < 4; ++i) words[i] = next_[i];
        read(a, call + 1);
    }

  private:
    __device__ __forceinline__ void read(const Product &a, int call) {
        const Generator &g = a.generator;
        const int first = call * 4 - g.skipped;
        if (a.aligned_words) {
            uint4 v = make_uint4(0, 0, 0, 0);
            if (call < calls_) v = __ldg(reinterpret_cast<const uint4 *>(mask_ + first));
            next_[0] = v.x, next_[1] = v.y, next_[2] = v.z, next_[3] = v.w;
        } else {
#pragma unroll
            for (int i = 0; i < 4; ++i)
                next_[i] = call < calls_ && uint32_t(first + i) < g.words ? __ldg(mask_ + first + i) : 0;
        }
    }

    const uint32_t *mask_;
    uint32_t next_[4];
};

// The same by a compact mask. Its bits are read one call ahead, and where they start two calls ahead.
class CompactRow : public ProducerRow {
  public:
    __device__ __forceinline__ CompactRow(const Product &a, uint32_t row, bool valid, int first)
        : ProducerRow(a, row, valid) {
        find_start(a, first);
        read(a, first);
    }

    __device__ __forceinline__ void take(const Product &a, int call, uint32_t (&words)[4]) {
        const Generator &g = a.generator;
        uint32_t bits[5];
#pragma unroll
        for (int i = 0; i < 4; ++i) bits[i] = __funnelshift_r(next_[i], next_[i + 1], shift_);
        bits[4] = 0;
        read(a, call + 1);
#pragma unroll 1
        for (int i = 0; i < 4; ++i) {
            const uint32_t valid = call < calls_ ? valid_word(g, call * 4 + i - g.skipped) : 0;
            const FrozenWord frozen = frozen_word<ANY>(g, 4 * index(call) + i, valid);
            const int count = __popc(frozen.free);
            const uint32_t kept = g.planes == 0 ? deposit_halves(bits[0], frozen.free) : deposit(bits[0], frozen.free);
#pragma unroll
            for (int j = 0; j < 4; ++j) bits[j] = __funnelshift_rc(bits[j], bits[j + 1], count);
#pragma unroll
            for (int j = 0; j < 3; ++j) words[j] = words[j + 1];  // a loop cannot index registers
            words[3] = kept | frozen.locked;
        }
    }

  private:
    __device__ __forceinline__ void find_start(const Product &a, int call) {
        if (call < calls_) start_ = free_start<ANY>(a.generator, a.segment_starts, a.call_starts, row_, call);
    }

    // Words past the end of the mask are not read.
    __device__ __forceinline__ void read(const Product &a, int call) {
        const int64_t at = start_ / WORD;
        const int left = call < calls_ ? int(least(a.mask_words - at, 5)) : 0;
#pragma unroll
        for (int i = 0; i < 5; ++i) next_[i] = i < left ? __ldg(a.mask + at + i) : 0;
        shift_ = start_ % WORD;
        find_start(a, call + 1);
    }

    uint32_t next_[5];  // 128 bits, from bit `shift_` on
    uint32_t shift_;
    int64_t start_ = 0;
};

// The signs and the mask of a word as fields of two bits, sign above kept: of its even bits, and of its odd ones.
struct CodedWord {
    uint32_t even, odd;
};

__device__ __forceinline__ CodedWord coded_word(uint32_t keep, uint32_t signs) {
    constexpr int CHOOSE = (0xF0 & 0xAA) | (0xCC & ~0xAA & 0xFF);  // a where c, else b
    const uint32_t negative = keep & signs;
    return {logic<CHOOSE>(negative << 1, keep, 0xAAAAAAAA), logic<CHOOSE>(negative, keep >> 1, 0xAAAAAAAA)};
}

// Signed weights as floats of 2 v: the sign and the upper bit of the exponent. Line of a row: its words, each in four
// variants, so that thread t cuts its own fields by the same shifts as all others.
template <class Type, int ROWS_>
class FloatSigns {
  public:
    typedef float Sum;
    static constexpr int SIZE = 2, LINES = 2, SUMS = 1, PRODUCTS = 8;  // PRODUCTS: of a step, for one sum
    static constexpr int ELEMENT = std::is_same_v<Type, Bfloat16> ? BFLOAT16 : FLOAT16;  // of y
    static constexpr int ROWS = ROWS_, ROW_BYTES = 64, BYTES = ROWS * ROW_BYTES;

    static __device__ __forceinline__ void make(const Product &a, const NormalTable &, uint64_t call,
                                                const uint32_t (&keep)[4], int row, uint32_t to) {
        const Words4 signs = call_words(a.generator.weight, call);
        uint32_t variant[4][4];
#pragma unroll
        for (int w = 0; w < 4; ++w) {
            const CodedWord coded = coded_word(keep[w], signs.word[w]);
            variant[0][w] = coded.even << 2, variant[1][w] = coded.odd << 2;
            variant[2][w] = coded.even, variant[3][w] = coded.odd;
        }
#pragma unroll
        for (int t = 0; t < 4; ++t) store_16_bytes(to + place(row, t), variant[t]);
    }

    // Where a lane's weights of 16 rows are in the operand, and how much further those of the next 16 rows.
    static __device__ __forceinline__ uint32_t lane_place(int row, int lane) { return place(row + lane / 4, lane % 4); }
    static constexpr int BLOCK_BYTES = 16 * ROW_BYTES;

    // Reads what a lane multiplies in half a step.
    __device__ __forceinline__ void load(uint32_t from, int half) {
        if (half != 0) return;  // all were read for the first half
        load_16_bytes(words_[0], from);
        load_16_bytes(words_[1], from + 8 * ROW_BYTES);
    }

    // The operand of product `number` of the step, over 16 k.
    __device__ __forceinline__ void operand(int number, uint32_t (&a)[4]) const {
        constexpr uint32_t FIELDS = 0xC000C000;
        const uint32_t w[2] = {words_[0][number / 2], words_[1][number / 2]};
        const int shift = number % 2 ? 4 : 12;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            a[r] = w[r] << shift & FIELDS;
            a[2 + r] = w[r] << (shift - 4) & FIELDS;
        }
    }

    static __device__ __forceinline__ void multiply(float *d, const uint32_t *a, uint32_t b0, uint32_t b1) {
        multiply_floats<Type>(d, a, b0, b1);
    }
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    template <int N>
    static __device__ __forceinline__ void multiply_async(float (&d)[N / 2], const uint32_t *a, uint64_t b) {
        FloatProduct<Type, N>::add(d, a, b);
    }
#endif

    static __device__ __forceinline__ float total(const float (&sum)[1]) { return sum[0]; }

  private:
    static __device__ __forceinline__ int place(int row, int variant) {
        return row * ROW_BYTES + (variant ^ (row >> 1 & 3)) * 16;
    }

    uint32_t words_[2][4];
};

// Products of bytes with planes of digits.
template <int DIGITS>
struct DigitProducts {
    typedef int Sum;
    static constexpr int SIZE = 1, LINES = DIGITS, SUMS = DIGITS, PRODUCTS = 4;

    static __device__ __forceinline__ void multiply(int *d, const uint32_t *a, uint32_t b0, uint32_t b1) {
        multiply_bytes(d, a, b0, b1);
    }
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    template <int N>
    static __device__ __forceinline__ void multiply_async(int (&d)[N / 2], const uint32_t *a, uint64_t b) {
        multiply_bytes_async<N>(d, a, b);
    }
#endif

    static __device__ __forceinline__ int64_t total(const int (&sum)[DIGITS]) {
        int64_t total = sum[0] + int64_t(sum[1]) * 256;
        if constexpr (DIGITS == 3) total += int64_t(sum[2]) * 65536;
        return total;
    }
};

// Signed weights as bytes of 64 v. Two words of fields per word, whose bytes i have k = 4 t + i of the word at field t:
// of its first 16 k, and of its last.
template <int DIGITS, int ROWS_>
class ByteSigns : public DigitProducts<DIGITS> {
  public:
    static constexpr int ELEMENT = FLOAT32;
    static constexpr int ROWS = ROWS_, BYTES = 2 * ROWS * 16;

    static __device__ __forceinline__ void make(const Product &a, const NormalTable &, uint64_t call,
                                                const uint32_t (&keep)[4], int row, uint32_t to) {
        const Words4 signs = call_words(a.generator.weight, call);
        uint32_t first[4], last[4];
#pragma unroll
        for (int w = 0; w < 4; ++w) {
            const CodedWord coded = coded_word(keep[w], signs.word[w]);
            first[w] = bytes_of(coded.even, coded.odd, 0x6420);
            last[w] = bytes_of(coded.even, coded.odd, 0x7531);
        }
        store_16_bytes(to + row * 16, first);
        store_16_bytes(to + (ROWS + row) * 16, last);
    }

    static __device__ __forceinline__ uint32_t lane_place(int row, int lane) { return (row + lane / 4) * 16; }
    static constexpr int BLOCK_BYTES = 16 * 16;

    __device__ __forceinline__ void load(uint32_t from, int half) {
#pragma unroll
        for (int part = 0; part < 2; ++part)
#pragma unroll
            for (int r = 0; r < 2; ++r)
                load_8_bytes(words_[part][r], from + (part * ROWS + 8 * r) * 16 + half * 8);
    }

    __device__ __forceinline__ void operand(int number, uint32_t (&a)[4]) const {
#pragma unroll
        for (int i = 0; i < 4; ++i)
            a[i] = words_[i / 2][i % 2][number % 2] << (6 - threadIdx.x % 4 * 2) & 0xC0C0C0C0;
    }

  private:
    uint32_t words_[2][2][2];  // part, row, word
};

// Weights that are bytes of VALUE: a line of 128 bytes per row, in the order of k, swizzled as x is.
template <int DIGITS, int ROWS_>
class ByteValues : public DigitProducts<DIGITS> {
  public:
    static constexpr int ELEMENT = ANY_ELEMENT;
    static constexpr int ROWS = ROWS_, ROW_BYTES = 128, BYTES = ROWS * ROW_BYTES;

    static __device__ __forceinline__ void make(const Product &a, const NormalTable &table, uint64_t call,
                                                const uint32_t (&keep)[4], int row, uint32_t to) {
        const int64_t weight = a.generator.source.weight;
        to += row * ROW_BYTES;
#pragma unroll 1
        for (int w = 0; w < 4; ++w) {
            const uint32_t k = w == 0 ? keep[0] : w == 1 ? keep[1] : w == 2 ? keep[2] : keep[3];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const Words4 values = call_words(a.generator.weight, 8 * call + 2 * w + half);
                uint32_t bytes[4];
#pragma unroll
                for (int i = 0; i < 4; ++i) {  // the bytes of quad m are at bits 2 m, 16 + 2 m, 2 m + 1 and 17 + 2 m
                    const uint32_t kept = bytes_of(k << (7 - 2 * i), k << (6 - 2 * i), half ? 0xFDB9 : 0xECA8);
                    bytes[i] = four_values(weight, values.word[i], table) & kept;
                }
                store_16_bytes(to + ((2 * w + half) ^ (row & 7)) * 16, bytes);
            }
        }
    }

    static __device__ __forceinline__ uint32_t lane_place(int row, int lane) {
        row += lane % 16;
        return row * ROW_BYTES + (lane / 16 ^ (row & 7)) * 16;
    }
    static constexpr int BLOCK_BYTES = 16 * ROW_BYTES;

    __device__ __forceinline__ void load(uint32_t from, int half) {
#pragma unroll
        for (int i = 0; i < 2; ++i) load_matrices(quads_[i], from ^ (half * 64 + i * 32));
    }

    __device__ __forceinline__ void operand(int number, uint32_t (&a)[4]) const {
#pragma unroll
        for (int i = 0; i < 4; ++i) a[i] = quads_[number % 2][i];
    }

  private:
    uint32_t quads_[2][4];
};

}  // namespace slt::cuda
