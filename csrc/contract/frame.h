// A source's words as parts of whole Philox calls: the unit in which kernels make weights. The first word of a shard
// may stand inside a call.
#pragma once

#include "contract/source.h"

namespace slt {

// Word w of the source is word w + skipped of its calls.
struct Frame {
    int64_t first_call;  // in the whole layer's row
    int64_t skipped;     // words of the first call before the source's first word
    int64_t calls;
    int64_t k;  // weights of those calls: 128 * calls
};

SLT_HOST_DEVICE Frame frame_of(const Source &s) {
    const int64_t skipped = s.first_word % WORDS_PER_CALL, calls = ceil_div(skipped + words_of(s), WORDS_PER_CALL);
    return {s.first_word / WORDS_PER_CALL, skipped, calls, calls * CALL};
}

}  // namespace slt
