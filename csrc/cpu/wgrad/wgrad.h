// The weight gradient dW = dy^T x as a contraction over the pixels of the output, one block of it at a time.
//
// A block is some rows by the columns (k) of a few calls, 128 each. Its columns are in bit order, word by word, so
// that a row of its sums lies as the bits of the mask do, and the free weights of a word are its set bits, compressed.
#pragma once

#include "cpu/layout/pixels.h"
#include "cpu/layout/position.h"
#include "cpu/machine/parallel.h"
#include "cpu/machine/scratch.h"
#include "cpu/weights/frozen.h"
#include "operations.h"

namespace slt::SLT_ISA {
namespace {

// Where the columns of a call are read, relative to the first tap of the kernel at a pixel.
struct Columns {
    int64_t h[CALL], w[CALL], channel[CALL];
    bool valid[CALL];             // the others are padding, or another shard's
    bool together[WORDS_A_CALL];  // the word's columns are 32 neighbouring channels of one tap
    int64_t first;                // k of the call's first column; negative where that belongs to another shard

    Columns() = default;
    Columns(const GradScores &a, int64_t call, int64_t group) {
        const Frame frame(a.source);
        const int64_t channels = a.source.fan / (a.window.kernel_h * a.window.kernel_w);
        first = (call * WORDS_A_CALL - frame.skipped) * WORD;
        for (int i = 0; i < WORDS_A_CALL; ++i) {
            const int64_t k0 = first + i * WORD;
            for (int bit = 0; bit < WORD; ++bit) {
                const int64_t k = k0 + k_of_bit(bit), tap = k / channels;
                const int column = i * WORD + bit;
                valid[column] = k >= 0 && k < a.source.fan;
                h[column] = valid[column] ? tap / a.window.kernel_w * a.window.dilation_h : 0;
                w[column] = valid[column] ? tap % a.window.kernel_w * a.window.dilation_w : 0;
                channel[column] = valid[column] ? group * channels + k % channels : 0;
            }
            together[i] = k0 >= 0 && k0 + WORD <= a.source.fan && k0 % channels + WORD <= channels;
        }
    }

    bool any(int64_t column, int64_t count) const {
        for (int64_t c = column; c < column + count; ++c)
            if (valid[c]) return true;
        return false;
    }
};

}  // namespace
}  // namespace slt::SLT_ISA
