// What generates the words of a source on a device. The host prepares it; kernels have it as a parameter, which
// instructions read at no cost.
#pragma once

#include "contract/frame.h"
#include "contract/weights.h"
#include "cuda/calls.h"

namespace slt::cuda {

// Division of numbers below 2^31 by a positive one, as a product.
struct Divisor {
    uint32_t number, factor;
    int shift;
};

SLT_HOST_DEVICE Divisor divisor(uint32_t number) {
    int bits = 0;
    while (uint64_t(1) << bits < number) ++bits;
    const uint64_t one = uint64_t(1) << (31 + bits);
    return {number, uint32_t((one + number - 1) / number), 31 + bits};
}

SLT_HOST_DEVICE uint32_t operator/(uint32_t value, const Divisor &d) {
    return uint32_t(uint64_t(value) * d.factor >> d.shift);
}

// The free weights of a row are counted in segments of so many calls, so that 16 bits hold what is before a call.
constexpr int SEGMENT = 512;

// A source in its calls: word w of a row is word (w + skipped) % 4 of call (w + skipped) / 4. `rows * calls` < 2^31.
struct Generator {
    Source source;
    uint32_t rows, words, calls, segments;  // the last three per row
    int32_t skipped;
    uint64_t first_call, row_calls;  // call c of row n has the index first_call + row_calls * n + c
    Divisor by_calls;
    Calls weight;  // of SIGN, or of VALUE where weights are bytes
    Calls freeze;
    Threshold prune, lock;
};

SLT_HOST_DEVICE Generator generator_of(const Source &s) {
    const Frame frame = frame_of(s);
    return {
        .source = s,
        .rows = uint32_t(s.rows),
        .words = uint32_t(words_of(s)),
        .calls = uint32_t(frame.calls),
        .segments = uint32_t(ceil_div(frame.calls, SEGMENT)),
        .skipped = int32_t(frame.skipped),
        .first_call = uint64_t(s.first_row) * uint64_t(s.row_calls) + uint64_t(frame.first_call),
        .row_calls = uint64_t(s.row_calls),
        .by_calls = divisor(uint32_t(frame.calls)),
        .weight = calls_of(s.seed, s.layer, s.weight == SIGNED_CONSTANT ? SIGN : VALUE),
        .freeze = calls_of(s.seed, s.layer, FREEZE),
        .prune = threshold_of(s.prune_below),
        .lock = threshold_of(s.lock_from),
    };
}

SLT_HOST_DEVICE uint64_t call_index(const Generator &g, uint32_t row, uint32_t call) {
    return g.first_call + g.row_calls * row + call;
}

// The bits of word w that are weights; 0 for a word outside the row.
SLT_HOST_DEVICE uint32_t valid_word(const Generator &g, int32_t w) {
    return uint32_t(w) < g.words ? valid_bits(g.source, w) : 0;
}

}  // namespace slt::cuda
