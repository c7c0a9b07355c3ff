// Weights of grad_input, made for the transposed W: a step has 128 summands, each a row of W at a tap, and a thread
// makes those of a summand, for the k of some words. They are kept in shared memory, as grad_input_operands.h reads
// them.
#pragma once

#include "cuda/patches.h"
#include "cuda/product_weights.h"

namespace slt::cuda {

// GRAD_THREADS multiply. GRAD_MAKERS make weights and copy dy: producers of their own, or the same threads.
constexpr int STEP_SUMMANDS = 128, GRAD_THREADS = 256, GRAD_MAKERS = WARPGROUP_PRODUCTS ? PRODUCERS : GRAD_THREADS;

// A tile: its k, of a group from channel `first` on, which may be negative, its columns, and its steps. Consecutive
// tiles read the same columns of dy.
struct GradTile {
    uint32_t group, part, column;
    int first;

    __device__ __forceinline__ GradTile(const GradInput &a, uint32_t number, int words, int columns) {
        first = int(number % a.channel_tiles) * words * int(WORD) - a.lead;
        number /= a.channel_tiles;
        column = number % a.column_tiles * columns;
        number /= a.column_tiles;
        part = number % a.parts;
        group = number / a.parts;
    }

    __device__ __forceinline__ uint32_t first_step(const GradInput &a) const {
        return min(part * a.part_steps, steps(a));
    }
    __device__ __forceinline__ uint32_t end_step(const GradInput &a) const {
        return min(first_step(a) + a.part_steps, steps(a));
    }

  private:
    static __device__ __forceinline__ uint32_t steps(const GradInput &a) {
        return uint32_t(ceil_div(a.summands, STEP_SUMMANDS));
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

// Signed weights, as coded words, which `Layout` stores. WORDS: of a tile, 2 or 4.
template <int WORDS, class Layout>
class CodedSummands : public Layout {
    static constexpr int TURNS = GRAD_MAKERS / STEP_SUMMANDS;  // groups of makers, which take steps in turn

  public:
    static constexpr int BYTES = WORDS * Layout::WORD_BYTES;

    // Reads the mask ahead, from a step on.
    __device__ __forceinline__ CodedSummands(const GradInput &a, const GradTile &tile, uint32_t step) {
        read(a, tile, TURNS == 1 ? step : step + (threadIdx.x / STEP_SUMMANDS ^ step % 2));
    }

    // Makes the weights of a step: every one after the other.
    __device__ __forceinline__ void make(const GradInput &a, const GradTile &tile, const NormalTable &, uint32_t step,
                                         uint32_t to) {
        if (TURNS > 1 && threadIdx.x / STEP_SUMMANDS != step % TURNS) return;
        const int i = threadIdx.x % STEP_SUMMANDS;
        const SignWords<WORDS> words(a, tile, Summand(a, tile, step * STEP_SUMMANDS + i), next_);
        read(a, tile, step + TURNS);
#pragma unroll
        for (int w = 0; w < WORDS; ++w)
            Layout::store(to + w * Layout::WORD_BYTES, i, coded_word(words.keep[w], words.sign[w]));
    }

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

// Weights that are bytes of VALUE: a line of 128 bytes a summand, in the order of k. WORDS: of a tile, 2 or 4.
template <int WORDS>
class ValueLines {
  public:
    static constexpr int BYTES = STEP_SUMMANDS * LINE;

    // Reads the mask ahead, from a step on.
    __device__ __forceinline__ ValueLines(const GradInput &a, const GradTile &tile, uint32_t step) {
        read(a, tile, step);
    }

    // Makes the weights of a step: every one after the other. Makers share a summand's if there are more of them.
    __device__ __forceinline__ void make(const GradInput &a, const GradTile &tile, const NormalTable &table,
                                         uint32_t step, uint32_t to) {
        const Generator &g = a.generator;
        const int i = threadIdx.x % STEP_SUMMANDS, begin = threadIdx.x / STEP_SUMMANDS * EACH;
        const Summand s(a, tile, step * STEP_SUMMANDS + i);
        const int shift = s.k % int(WORD), word = (s.k + begin) / int(WORD);
        const uint64_t index = 8 * call_index(g, s.row, 0) + 2 * word;
        const uint32_t line = to + i * LINE;
        uint32_t words[EACH_WORDS + 1];
#pragma unroll
        for (int w = 0; w <= EACH_WORDS; ++w) words[w] = next_[w];
        read(a, tile, step + 1);
#pragma unroll 1
        for (int half = 0; half < 2 * EACH_WORDS + (shift ? 2 : 0); half += TOGETHER) {  // a call: 16 k
            uint32_t keep = words[EACH_WORDS];
#pragma unroll
            for (int w = EACH_WORDS - 1; w >= 0; --w) keep = half < 2 * w + 2 ? words[w] : keep;
            uint32_t bytes[TOGETHER][4] = {};
            if (keep != 0) {
                Words4 values[TOGETHER];
#pragma unroll
                for (int c = 0; c < TOGETHER; ++c) values[c] = call_words(g.weight, index + half + c);
                if (g.source.weight == UNIFORM)
                    convert<UNIFORM>(bytes, values, table);
                else
                    convert<NORMAL>(bytes, values, table);
#pragma unroll
                for (int c = 0; c < TOGETHER; ++c)
#pragma unroll
                    for (int q = 0; q < 4; ++q)  // its bits are 2 q, 16 + 2 q, 2 q + 1 and 17 + 2 q of the half
                        bytes[c][q] &= bytes_of(keep << (7 - 2 * q), keep << (6 - 2 * q),
                                                (TOGETHER == 2 ? c : half % 2) ? 0xFDB9 : 0xECA8);
            }
#pragma unroll
            for (int c = 0; c < TOGETHER; ++c) {
                const int k = (half + c) * 16 - shift;  // of the thread's
                if (shift == 0) {
                    store_16_bytes(line + place(i, begin + k), bytes[c]);
                } else {
#pragma unroll
                    for (int j = 0; j < 16; ++j)
                        if (uint32_t(k + j) < EACH)
                            store_byte(line + place(i, begin + k + j) + (k + j) % 16, bytes[c][j / 4] >> j % 4 * 8);
                }
            }
        }
    }

    // Where the 16 bytes of k are in a summand's line: neither the lines of 8 summands, nor words of the same 16 bytes
    // or their neighbours in every fourth line, share banks.
    static __device__ __forceinline__ uint32_t place(int summand, int k) {
        return (k / 16 ^ (summand / 4 % 4 * 2) ^ (summand & 1) ^ (summand & 2) * 2) * 16;
    }

  private:
    static constexpr int EACH_WORDS = WORDS * STEP_SUMMANDS / GRAD_MAKERS, EACH = EACH_WORDS * int(WORD);
    static constexpr int TOGETHER = WARPGROUP_PRODUCTS ? 2 : 1;  // calls, where no other warps hide their latencies

    template <int WEIGHT>
    static __device__ __forceinline__ void convert(uint32_t (&bytes)[TOGETHER][4], const Words4 (&values)[TOGETHER],
                                                   const NormalTable &table) {
#pragma unroll
        for (int c = 0; c < TOGETHER; ++c)
#pragma unroll
            for (int q = 0; q < 4; ++q) bytes[c][q] = four_values(WEIGHT, values[c].word[q], table);
    }

    __device__ __forceinline__ void read(const GradInput &a, const GradTile &tile, uint32_t step) {
        const Summand s(a, tile, step * STEP_SUMMANDS + threadIdx.x % STEP_SUMMANDS);
        const int word = (s.k + threadIdx.x / STEP_SUMMANDS * EACH) / int(WORD), last = s.last_word(a, tile, WORDS);
#pragma unroll
        for (int i = 0; i <= EACH_WORDS; ++i) next_[i] = word + i <= last ? s.mask_word(a, word + i) : 0;
    }

    uint32_t next_[EACH_WORDS + 1];
};

}  // namespace slt::cuda
