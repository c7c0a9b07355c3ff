// dy of grad_input in shared memory: the values that one step of summands meets in a tile's columns. Laid out as x of a
// product is, in patches.h.
#pragma once

#include "cuda/grad_input_weights.h"

#include <type_traits>

namespace slt::cuda {

// The pixel of dy that tap 0 of a column reads, rounded down where strides skip it. y and x are with the remainders in
// units of 2^20, so that one comparison finds a difference to a tap's remainder as well.
struct alignas(16) GradPixel {
    int64_t offset;  // in bytes
    uint32_t y, x;
};

constexpr uint32_t REMAINDER = 1 << 20, NO_PIXEL = 1u << 31;

// A line of 128 bytes a column, in each of LINES tables.
template <int COLUMNS, int LINES, int SIZE>
class GradPatches {
  public:
    static constexpr int BYTES = LINES * COLUMNS * LINE;

    // The makers of a block call this with the table of the tile's columns, before a barrier where they are all of its
    // threads.
    __device__ __forceinline__ GradPatches(const GradInput &a, const GradTile &tile, GradPixel *table)
        : dy_(static_cast<const char *>(a.dy) + int64_t(tile.group) * a.rows.number * SIZE), table_(table) {
        if (a.copy == GradInput::ROWS) {
            left_ = int(a.columns - tile.column);
            dy_ += int64_t(tile.column) * a.pitch * SIZE;
            return;
        }
        if (WARPGROUP_PRODUCTS) named_barrier(PRODUCER_BARRIER, GRAD_MAKERS);  // nobody reads the last tile's
        for (int i = threadIdx.x; i < COLUMNS; i += GRAD_MAKERS) table[i] = pixel_of(a, tile.column + i);
        if (WARPGROUP_PRODUCTS) named_barrier(PRODUCER_BARRIER, GRAD_MAKERS);
    }

    // Begins to copy the values of a step.
    __device__ __forceinline__ void copy(const GradInput &a, uint32_t step, uint32_t to) const {
        const int column = threadIdx.x / PIECES, piece = threadIdx.x % PIECES;
        to += column * 128 + (piece ^ column % 8) * 16;
        const uint32_t first = step * SUMMANDS + piece * PER_PIECE;
        if (a.copy == GradInput::ROWS)
            copy_rows(a, first, column, to);
        else if (a.copy == GradInput::PIECES)
            copy_pieces(a, first, column, to);
        else
            copy_values(a, first, column, to);
    }

  private:
    static constexpr int SUMMANDS = 128, PIECES = 8, PER_PIECE = 16 / SIZE, PRODUCER_BARRIER = 15;
    static constexpr int STRIDE = GRAD_MAKERS / PIECES, EACH = COLUMNS / STRIDE;
    static constexpr bool HALVES = SIZE == 2;  // each line has half of the summands
    static_assert(HALVES ? LINES == 2 : true);

    static __device__ __forceinline__ GradPixel pixel_of(const GradInput &a, uint32_t column) {
        if (column >= a.columns) return {0, NO_PIXEL, 0};
        const uint32_t image = column / a.pixels, at = column - image * a.pixels.number;
        const uint32_t row = at / a.width;
        const uint32_t down = row + a.padding_h, right = at - row * a.width.number + a.padding_w;
        const uint32_t y = down / a.stride_h, x = right / a.stride_w;
        return {(image * a.image_pitch + (int64_t(y) * a.out_width + x) * a.pitch) * SIZE,
                y + (down - y * a.stride_h.number) * REMAINDER, x + (right - x * a.stride_w.number) * REMAINDER};
    }

    // Where a summand is.
    struct Reach {
        int64_t offset;  // in bytes
        uint32_t y, x;   // as of a pixel
        bool valid;

        __device__ __forceinline__ Reach(const GradInput &a, uint32_t number) : valid(number < a.summands) {
            const uint32_t tap = number / a.rows, row = tap / a.kernel_w;
            const uint32_t down = row * a.dilation_h, right = (tap - row * a.kernel_w.number) * a.dilation_w;
            const uint32_t up = down / a.stride_h, left = right / a.stride_w;
            y = up + (down - up * a.stride_h.number) * REMAINDER;
            x = left + (right - left * a.stride_w.number) * REMAINDER;
            offset = (int64_t(number - tap * a.rows.number) - (int64_t(up) * a.out_width + left) * a.pitch) * SIZE;
        }

        __device__ __forceinline__ bool meets(const GradInput &a, const GradPixel &pixel) const {
            return valid & (pixel.y - y < uint32_t(a.out_height)) & (pixel.x - x < uint32_t(a.out_width));
        }
    };

    __device__ __forceinline__ void copy_rows(const GradInput &a, uint32_t first, int column, uint32_t to) const {
        const char *from = dy_ + (int64_t(column) * a.pitch + first) * SIZE;
        const bool valid[2] = {first < a.summands, first + SUMMANDS / 2 < a.summands};
        const int64_t stride = int64_t(STRIDE) * a.pitch * SIZE;
#pragma unroll
        for (int i = 0; i < EACH; ++i, from += stride) {
#pragma unroll
            for (int line = 0; line < LINES; ++line)
                copy_16_bytes(to + (line * COLUMNS + i * STRIDE) * 128, from + (HALVES ? line * 128 : line * a.plane),
                              valid[HALVES && line] && column + i * STRIDE < left_);
        }
    }

    __device__ __forceinline__ void copy_pieces(const GradInput &a, uint32_t first, int column, uint32_t to) const {
#pragma unroll
        for (int half = 0; half < (HALVES ? 2 : 1); ++half) {
            const Reach reach(a, first + half * (SUMMANDS / 2));
            const char *from = dy_ + reach.offset;
#pragma unroll
            for (int i = 0; i < EACH; ++i) {
                const GradPixel pixel = table_[column + i * STRIDE];
                const bool valid = reach.meets(a, pixel);
#pragma unroll
                for (int line = half; line < (HALVES ? half + 1 : LINES); ++line)
                    copy_16_bytes(to + (line * COLUMNS + i * STRIDE) * 128,
                                  from + pixel.offset + (HALVES ? 0 : line * a.plane), valid);
            }
        }
    }

    __device__ __forceinline__ void copy_values(const GradInput &a, uint32_t first, int column, uint32_t to) const {
        typedef std::conditional_t<HALVES, uint16_t, uint8_t> Value;
        constexpr int PER_WORD = 4 / SIZE;
#pragma unroll 1
        for (int word = 0; word < 4 * LINES; ++word) {
            const int line = word / 4;
            const uint32_t number = first + (HALVES ? line * (SUMMANDS / 2) : 0) + word % 4 * PER_WORD;
            const char *from = dy_ + (HALVES ? 0 : line * a.plane);
#pragma unroll 1
            for (int i = 0; i < EACH; ++i) {
                const GradPixel pixel = table_[column + i * STRIDE];
                uint32_t values = 0;
#pragma unroll
                for (int j = 0; j < PER_WORD; ++j) {
                    const Reach reach(a, number + j);
                    const auto *at = reinterpret_cast<const Value *>(from + pixel.offset + reach.offset);
                    const uint32_t value = reach.meets(a, pixel) ? __ldg(at) : 0;
                    values |= value << j * 8 * SIZE;
                }
                store_4_bytes(to + (line * COLUMNS + i * STRIDE) * 128 + word % 4 * 4, values);
            }
        }
    }

    const char *dy_;
    const GradPixel *table_;
    int left_;  // columns
};

}  // namespace slt::cuda
