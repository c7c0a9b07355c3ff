// Embedding: the rows of the masked weight that are looked up, and the gradient of their scores. Each lane of the
// generator has a row of its own, so only the rows that are looked up are made. A piece of work goes over LANES rows
// one call at a time, and uses each word row by row: 32 weights in the order of k.
#include "cpu/machine/dtype.h"
#include "cpu/machine/parallel.h"
#include "cpu/weights/frozen.h"
#include "operations.h"

namespace slt::SLT_ISA {
namespace {

// Up to LANES rows of a source, by their numbers; missing rows repeat the last.
class Rows {
  public:
    const int lanes;
    const int64_t *const number;

    Rows(const Source &s, const int64_t *rows, int64_t count)
        : lanes(int(least(count, LANES))), number(rows), first(first_call(s)) {}

    Index call(int64_t call) const { return first + call; }
    Index word(int64_t word) const { return first.twice().twice() + word; }  // counted from the first call's first

  private:
    const Index first;

    Index first_call(const Source &s) const {
        Index index;
        for (int l = 0; l < LANES; ++l) {
            const uint64_t row = number[least(l, lanes - 1)] + s.first_row;
            U64 &half = l % 2 ? index.odd : index.even;
            half[l / 2] = row * s.row_calls + s.first_word / WORDS_PER_CALL;
        }
        return index;
    }
};

// The weights of one call of rows: sign words, or 32 bytes v + 128 per word in the order of k.
class CallOfWeights {
  public:
    CallOfWeights(const Source &s) : weight(s.weight), generator(s, weight == SIGNED_CONSTANT ? SIGN : VALUE) {}

    void fill(const Rows &rows, int64_t call) {
        call_words(weight, generator, rows.call(call), rows.word(call * WORDS_PER_CALL), words);
    }

    // scale * v of word i of a row, 0 for bits not in `keep`; in the order of k.
    SLT_INLINE void values(int i, int lane, uint32_t keep, float scale, float out[WORD]) const {
        uint32_t value[WORD];
        if (weight == SIGNED_CONSTANT) {
            uint32_t one;
            memcpy(&one, &scale, sizeof one);
            const uint32_t sign = words[i][0][lane];
            for (int k = 0; k < WORD; ++k) value[k] = one ^ sign >> bit_of_k(k) << 31;
        } else {
            uint8_t bytes[WORD];
            for (int j = 0; j < 8; ++j) memcpy(bytes + 4 * j, &words[i][j][lane], 4);
            float product[WORD];
            for (int k = 0; k < WORD; ++k) product[k] = float(bytes[k] - 128) * scale;
            memcpy(value, product, sizeof value);
        }
        for (int k = 0; k < WORD; ++k) value[k] &= 0 - (keep >> bit_of_k(k) & 1);
        memcpy(out, value, sizeof value);
    }

  private:
    const int64_t weight;
    const Generator generator;
    alignas(64) uint32_t words[WORDS_PER_CALL][8][LANES];
};

// One word of one row.
struct Word {
    const CallOfWeights &weights;
    int in_call, lane;
    int64_t number;         // of the word
    int count;              // of weights
    uint32_t free, locked;  // set only if there are `offsets`
    int64_t first;          // number of the word's first free weight; set only if there are `offsets`

    SLT_INLINE void values(uint32_t keep, float scale, float out[WORD]) const {
        weights.values(in_call, lane, keep, scale, out);
    }
};

// Calls body(n, word) for every word of the rows index[n]. `offsets`: of the free weights; null if the pattern is
// unused.
template <class Body>
SLT_INLINE void each_word(const Source &s, const int64_t *index, int64_t count, const int64_t *offsets, int threads,
                          const Body &body) {
    const Frame frame = frame_of(s);
    const int64_t words = words_of(s), size = rows_per_piece(s);
    parallel_for(threads, ceil_div(count, size), [&](int64_t piece) {
        const FrozenWords frozen(s);
        CallOfWeights weights(s);
        const int64_t end = least((piece + 1) * size, count);
        for (int64_t n = piece * size; n < end; n += LANES) {
            const Rows rows(s, index + n, end - n);
            int64_t next[LANES] = {};  // next free weight of each row
            for (int l = 0; offsets && l < rows.lanes; ++l) next[l] = offsets[rows.number[l]];
            for (int64_t w = 0, call = -1; w < words; ++w) {
                const int64_t here = frame.skipped + w, left = s.fan - w * WORD;
                if (here / WORDS_PER_CALL != call) weights.fill(rows, call = here / WORDS_PER_CALL);
                U32 free = splat(~0u), locked = splat(0);
                if (offsets && !nothing_frozen(s)) frozen(rows.word(here), free, locked);
                free &= valid_bits(s, w);
                for (int l = 0; l < rows.lanes; ++l) {
                    const int valid = int(least(left, WORD)), in_call = int(here % WORDS_PER_CALL);
                    body(n + l, Word{weights, in_call, l, w, valid, free[l], locked[l], next[l]});
                    next[l] += __builtin_popcount(free[l]);
                }
            }
        }
    });
}

}  // namespace

void embedding_forward(const EmbeddingForward &a, int threads) {
    const Source &s = a.source;
    each_word(s, a.index, a.count, a.offsets, threads, [&](int64_t n, const Word &word) {
        uint32_t keep;
        if (a.offsets)
            keep = deposit(compact_bits(a.mask, a.offsets[s.rows], word.first), word.free) | word.locked;
        else
            keep = a.mask[a.index[n] * words_of(s) + word.number];
        float values[WORD];
        word.values(keep, a.scale, values);
        write_floats(values, word.count, a.y + (n * s.fan + word.number * WORD));
    });
}

void embedding_grad_scores(const EmbeddingGradScores &a, int threads) {
    const Source &s = a.source;
    each_word(s, a.index, a.count, a.offsets, threads, [&](int64_t n, const Word &word) {
        double sum[WORD] = {};
        for (int64_t i = a.starts[n]; i < a.starts[n + 1]; ++i) {
            float dy[WORD];
            read_floats(a.dy + (a.order[i] * s.fan + word.number * WORD), word.count, dy);
            for (int k = 0; k < word.count; ++k) sum[k] += dy[k];
        }
        float weights[WORD];
        word.values(~0u, a.scale, weights);
        int64_t at = word.first;
        for (uint32_t free = word.free; free; free &= free - 1, ++at) {
            const int k = k_of_bit(__builtin_ctz(free));
            const float grad = float(sum[k] * weights[k]);
            a.out[at] = a.scores[at] < 0 ? -grad : grad;
        }
    });
}

}  // namespace slt::SLT_ISA
