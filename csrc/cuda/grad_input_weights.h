// Weights of grad_input as the first operand, the transposed W: its rows are the k of some words, and its columns are
// summands.
//
// A step has 128 summands, each a row of W at a tap. They are made a summand a thread, and kept in shared memory as
// words or bytes of k; lanes read those of several summands, and turn bytes or halves so that a register has one k of
// them. A warp multiplies the 32 k of one word, in two blocks of 16. Its lane (g, t) has k = lane_k(g, r) + b, for row
// g + 8 r of block b.
#pragma once

#include "cuda/product_weights.h"

namespace slt::cuda {

constexpr int STEP_SUMMANDS = 128, GRAD_THREADS = 256;

// The tile of a block: its k, of a group from channel `first` on, which may be negative, and its columns.
struct GradTile {
    uint32_t group, part, column;
    int first;

    __device__ __forceinline__ GradTile(const GradInput &a, int words, int columns) {
        uint32_t number = blockIdx.x;  // consecutive blocks read the same columns of dy
        first = int(number % a.channel_tiles) * words * int(WORD) - a.lead;
        number /= a.channel_tiles;
        column = number % a.column_tiles * columns;
        number /= a.column_tiles;
        part = number % a.parts;
        group = number / a.parts;
    }
};

// Where the weights of a summand are in its source's calls: `k` is 0 at the beginning of its row's first call.
struct Summand {
    uint32_t row;
    int k;
    bool valid;

    __device__ __forceinline__ Summand(const GradInput &a, const GradTile &tile, uint32_t number) {
        const uint32_t tap = number / a.rows;
        valid = number < a.summands;
        row = tile.group * a.rows.number + number - tap * a.rows.number;
        k = int(tap * a.channels) + tile.first + a.generator.skipped * int(WORD);
    }

    // The last word that has k of a tile of some words, and channels of the group.
    __device__ __forceinline__ int last_word(const GradInput &a, const GradTile &tile, int words) const {
        return (k + min(words * int(WORD), int(a.channels) - tile.first) - 1) / int(WORD);
    }

    // The mask of a word, which is 0 outside the row.
    __device__ __forceinline__ uint32_t mask_word(const GradInput &a, int word) const {
        word -= a.generator.skipped;
        const bool inside = valid && uint32_t(word) < a.generator.words;
        return inside ? __ldg(a.mask + uint64_t(row) * a.generator.words + word) : 0;
    }
};

// The word that starts at bit k = shift of the first of two, in the order of a word: the even k, then the odd ones.
__device__ __forceinline__ uint32_t word_from(uint32_t first, uint32_t second, int shift) {
    const uint32_t even = bytes_of(first, second, 0x5410), odd = bytes_of(first, second, 0x7632);
    const bool swap = shift % 2;
    return bytes_of((swap ? odd : even) >> shift / 2, (swap ? even : odd) >> (shift + 1) / 2, 0x5410);
}

// The mask and the signs of a summand's k. `kept`: the words of the mask from the first one's on.
template <int WORDS>
struct SignWords {
    uint32_t keep[WORDS], sign[WORDS];

    __device__ __forceinline__ SignWords(const GradInput &a, const GradTile &tile, const Summand &s,
                                         const uint32_t (&kept)[WORDS + 1]) {
        const Generator &g = a.generator;
        const int word = s.k / int(WORD), call = word / 4;
        const Words4 first = call_words(g.weight, call_index(g, s.row, call));
        if (WORDS == 4 && a.whole_calls) {
#pragma unroll
            for (int i = 0; i < WORDS; ++i) keep[i] = kept[i], sign[i] = first.word[i];
            return;
        }
        const int last = s.last_word(a, tile, WORDS), shift = s.k % int(WORD);
        Words4 second{};
        if (last / 4 > call) second = call_words(g.weight, call_index(g, s.row, call + 1));
        uint32_t signs[8];
#pragma unroll
        for (int i = 0; i < 4; ++i) signs[i] = first.word[i], signs[4 + i] = second.word[i];
#pragma unroll
        for (int i = 0; i < WORDS + 3; ++i) signs[i] = word % 2 ? signs[i + 1] : signs[i];
#pragma unroll
        for (int i = 0; i < WORDS + 1; ++i) signs[i] = word / 2 % 2 ? signs[i + 2] : signs[i];
#pragma unroll
        for (int i = 0; i < WORDS; ++i) {
            keep[i] = word_from(kept[i], kept[i + 1], shift);
            sign[i] = word_from(signs[i], signs[i + 1], shift);
        }
    }
};

// Signed weights, as coded words: [word][even bits, odd bits][summand]. WORDS: of a tile, 2 or 4.
template <int WORDS>
class CodedSummands {
  public:
    static constexpr int BYTES = WORDS * 2 * (STEP_SUMMANDS + 16) * 4;

    // Reads the mask ahead, from a step on. One half of the threads has the even steps, the other the odd ones.
    __device__ __forceinline__ CodedSummands(const GradInput &a, const GradTile &tile, uint32_t step) {
        read(a, tile, step + (threadIdx.x / STEP_SUMMANDS ^ step % 2));
    }

    // Makes the weights of a step: every one after the other.
    __device__ __forceinline__ void make(const GradInput &a, const GradTile &tile, const NormalTable &, uint32_t step,
                                         uint32_t to) {
        if (threadIdx.x / STEP_SUMMANDS != step % 2) return;
        const int i = threadIdx.x % STEP_SUMMANDS;
        const SignWords<WORDS> words(a, tile, Summand(a, tile, step * STEP_SUMMANDS + i), next_);
        read(a, tile, step + 2);
#pragma unroll
        for (int w = 0; w < WORDS; ++w) {
            const CodedWord coded = coded_word(words.keep[w], words.sign[w]);
            store_4_bytes(to + 2 * w * PITCH + i * 4, coded.even);
            store_4_bytes(to + (2 * w + 1) * PITCH + i * 4, coded.odd);
        }
    }

    static __device__ __forceinline__ int lane_k(int g, int r) { return 16 * r + 4 * (g % 4) + 2 * (g / 4); }

  protected:
    static constexpr int PITCH = (STEP_SUMMANDS + 16) * 4;  // even and odd bits are in different banks

    // Where a lane's words are, and a factor that shifts its fields to the top of bytes or halves: multiplications have
    // other units than the logic beside them.
    static __device__ __forceinline__ uint32_t lane_place(int word, int lane) {
        return (2 * word + lane / 16) * PITCH;
    }
    static __device__ __forceinline__ uint32_t lane_factor(int lane) { return 64u >> lane / 4 % 4 * 2; }

  private:
    __device__ __forceinline__ void read(const GradInput &a, const GradTile &tile, uint32_t step) {
        const Summand s(a, tile, step * STEP_SUMMANDS + threadIdx.x % STEP_SUMMANDS);
        const int word = s.k / int(WORD);
        if (WORDS == 4 && a.whole_calls && a.aligned_words) {
            uint4 v = make_uint4(0, 0, 0, 0);
            if (s.valid)
                v = __ldg(reinterpret_cast<const uint4 *>(a.mask + uint64_t(s.row) * a.generator.words + word));
            const uint32_t words[5] = {v.x, v.y, v.z, v.w, 0};
#pragma unroll
            for (int i = 0; i <= WORDS; ++i) next_[i] = words[i];
        } else {
            const int last = s.last_word(a, tile, WORDS);
#pragma unroll
            for (int i = 0; i <= WORDS; ++i) next_[i] = word + i <= last ? s.mask_word(a, word + i) : 0;
        }
    }

    uint32_t next_[WORDS + 1];
};

// As floats of 2 v: see product_weights.h.
template <class Type, int WORDS>
class FloatSummands : public CodedSummands<WORDS> {
  public:
    using CodedSummands<WORDS>::CodedSummands;
    typedef float Sum;
    static constexpr int SIZE = 2, LINES = 2, SUMS = 1, PRODUCTS = 8;

    // The operands of product `number` of a step, over 16 summands.
    static __device__ __forceinline__ void operand(uint32_t from, int word, int lane, int number,
                                                   uint32_t (&a)[2][4]) {
        from += CodedSummands<WORDS>::lane_place(word, lane) + lane % 4 * 8 + number * 64;
        const uint32_t factor = CodedSummands<WORDS>::lane_factor(lane);
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

// Products of bytes with planes of digits.
template <int DIGITS>
struct ByteProducts {
    typedef int Sum;
    static constexpr int SIZE = 1, LINES = DIGITS, SUMS = DIGITS, PRODUCTS = 4;

    static __device__ __forceinline__ void multiply(int *d, const uint32_t *a, uint32_t b0, uint32_t b1) {
        multiply_bytes(d, a, b0, b1);
    }

  protected:
    static __device__ __forceinline__ int64_t combined(const int (&sum)[DIGITS]) {
        int64_t total = sum[0] + int64_t(sum[1]) * 256;
        if constexpr (DIGITS == 3) total += int64_t(sum[2]) * 65536;
        return total;
    }
};

// As bytes of 64 v.
template <int DIGITS, int WORDS>
class ByteSummands : public CodedSummands<WORDS>, public ByteProducts<DIGITS> {
  public:
    using CodedSummands<WORDS>::CodedSummands;

    static __device__ __forceinline__ void operand(uint32_t from, int word, int lane, int number,
                                                   uint32_t (&a)[2][4]) {
        from += CodedSummands<WORDS>::lane_place(word, lane) + lane % 4 * 16 + number * 128;
        const uint32_t factor = CodedSummands<WORDS>::lane_factor(lane);
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

    static __device__ __forceinline__ int64_t total(const int (&sum)[DIGITS]) {
        return ByteProducts<DIGITS>::combined(sum) >> 6;
    }
};

// Weights that are bytes of VALUE: a line of 128 bytes a summand, in the order of k.
template <int DIGITS, int WORDS>
class ValueSummands : public ByteProducts<DIGITS> {
  public:
    static constexpr int BYTES = STEP_SUMMANDS * 128;

    // Reads the mask ahead, from a step on.
    __device__ __forceinline__ ValueSummands(const GradInput &a, const GradTile &tile, uint32_t step) {
        read(a, tile, step);
    }

    // Makes the weights of a step: every one after the other. A thread makes half of a summand's.
    __device__ __forceinline__ void make(const GradInput &a, const GradTile &tile, const NormalTable &table,
                                         uint32_t step, uint32_t to) {
        const Generator &g = a.generator;
        const int i = threadIdx.x % STEP_SUMMANDS, begin = threadIdx.x / STEP_SUMMANDS * EACH;
        const Summand s(a, tile, step * STEP_SUMMANDS + i);
        const int shift = s.k % int(WORD), word = (s.k + begin) / int(WORD);
        const uint64_t index = 8 * call_index(g, s.row, 0) + 2 * word;
        const uint32_t line = to + i * 128;
        uint32_t words[3] = {};
#pragma unroll
        for (int w = 0; w <= WORDS / 2; ++w) words[w] = next_[w];
        read(a, tile, step + 1);
#pragma unroll 1
        for (int half = 0; half < WORDS + (shift ? 2 : 0); ++half) {  // a call: 16 k
            const uint32_t keep = half < 2 ? words[0] : half < 4 ? words[1] : words[2];
            uint32_t bytes[4] = {};
            if (keep != 0) {
                const Words4 values = call_words(g.weight, index + half);
#pragma unroll
                for (int q = 0; q < 4; ++q) {
                    const uint32_t kept = four_bits(keep >> (half % 2 * 8), q) * 0xFF;
                    bytes[q] = four_values(g.source.weight, values.word[q], table) & kept;
                }
            }
            const int k = half * 16 - shift;  // of the thread's
            if (shift == 0) {
                store_16_bytes(line + place(i, begin + k), bytes);
            } else {
#pragma unroll
                for (int j = 0; j < 16; ++j)
                    if (uint32_t(k + j) < EACH)
                        store_byte(line + place(i, begin + k + j) + (k + j) % 16, bytes[j / 4] >> j % 4 * 8);
            }
        }
    }

    static __device__ __forceinline__ void operand(uint32_t from, int word, int lane, int number,
                                                   uint32_t (&a)[2][4]) {
        const int g = lane / 4, t = lane % 4;
        from += (number * 32 + t * 4) * 128 + g % 4 * 4;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            uint32_t w[4], k[4];
#pragma unroll
            for (int i = 0; i < 4; ++i)
                w[i] = load_4_bytes(from + (half * 16 + i) * 128 + place(4 * t + i, word * 32 + g / 4 * 16));
            transpose_bytes(w, k);
#pragma unroll
            for (int i = 0; i < 4; ++i) a[i % 2][2 * half + i / 2] = k[i];
        }
    }

    static __device__ __forceinline__ int lane_k(int g, int r) { return 4 * g + 2 * r; }

    static __device__ __forceinline__ int64_t total(const int (&sum)[DIGITS]) {
        return ByteProducts<DIGITS>::combined(sum);
    }

  private:
    static constexpr int EACH = WORDS / 2 * int(WORD);

    __device__ __forceinline__ void read(const GradInput &a, const GradTile &tile, uint32_t step) {
        const Summand s(a, tile, step * STEP_SUMMANDS + threadIdx.x % STEP_SUMMANDS);
        const int word = (s.k + threadIdx.x / STEP_SUMMANDS * EACH) / int(WORD), last = s.last_word(a, tile, WORDS);
#pragma unroll
        for (int i = 0; i <= WORDS / 2; ++i) next_[i] = word + i <= last ? s.mask_word(a, word + i) : 0;
    }

    uint32_t next_[WORDS / 2 + 1];

    // Where the 16 bytes of k are in a summand's line: neither the lines of 8 summands, nor words of the same 16 bytes
    // or their neighbours in every fourth line, share banks.
    static __device__ __forceinline__ uint32_t place(int summand, int k) {
        return (k / 16 ^ (summand / 4 % 4 * 2) ^ (summand & 1) ^ (summand & 2) * 2) * 16;
    }
};

}  // namespace slt::cuda
