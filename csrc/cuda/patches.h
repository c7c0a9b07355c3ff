// x of a product in shared memory: the values that one step of k, a call of 128 weights, meets in a tile's columns.
//
// A column is a line of 128 bytes in each of LINES tables: the halves of 128 16-bit floats, or a plane of digits each.
// The place of a line's 16 bytes i is i XOR (column % 8), as products read them: swizzled_descriptor of ptx.h.
#pragma once

#include "cuda/arguments.h"
#include "cuda/ptx.h"

#include <type_traits>

namespace slt::cuda {

constexpr int LINE = 128;       // bytes
constexpr int PRODUCERS = 128;  // threads that make a stage

// Where tap 0 of a column reads.
struct alignas(16) Pixel {
    int64_t offset;  // in bytes from the group's first channel of x
    int32_t y, x;
};

// The beginning and the end of the columns of a tile, and its group.
struct TileColumns {
    uint32_t first, end, group;
};

template <int SIZE>
__device__ __forceinline__ Pixel pixel_of(const Product &a, uint32_t column) {
    if (column >= a.columns) return {0, -(1 << 30), 0};  // outside of every image
    const uint32_t image = column / a.pixels, at = column - image * a.pixels.number;
    const int32_t row = at / a.out_width, right = at - row * a.out_width.number;
    const int32_t y = row * a.stride_h - a.padding_h, x = right * a.stride_w - a.padding_w;
    return {(image * a.image_pitch + (int64_t(y) * a.width + x) * a.pitch) * SIZE, y, x};
}

// Where value k of a patch is, relative to its pixel.
struct Reach {
    int64_t offset;  // in bytes
    int32_t y, x;
    bool valid;
};

template <int SIZE>
__device__ __forceinline__ Reach reach_of(const Product &a, int k) {
    if (uint32_t(k) >= uint32_t(a.depth)) return {0, 0, 0, false};
    const uint32_t tap = uint32_t(k) / a.group_channels, channel = k - tap * a.group_channels.number;
    const uint32_t row = tap / a.kernel_w;
    const int32_t y = row * a.dilation_h, x = (tap - row * a.kernel_w.number) * a.dilation_w;
    return {((int64_t(y) * a.width + x) * a.pitch + channel) * SIZE, y, x, true};
}

__device__ __forceinline__ bool inside(const Product &a, const Pixel &pixel, const Reach &reach) {
    const bool rows = uint32_t(pixel.y + reach.y) < uint32_t(a.height);
    const bool columns = uint32_t(pixel.x + reach.x) < uint32_t(a.width);
    return reach.valid & rows & columns;  // without branches
}

// A thread copies 16 bytes i = thread % 8 of every line thread / 8, thread / 8 + 16, ...
template <int COLUMNS, int LINES, int SIZE>
class Patches {
  public:
    static constexpr int BYTES = LINES * COLUMNS * LINE;

    // The producers call this with the table of the tile's columns, in shared memory.
    __device__ __forceinline__ Patches(const Product &a, const TileColumns &tile, Pixel *table)
        : x_(static_cast<const char *>(a.x) + int64_t(tile.group) * a.group_channels.number * SIZE),
          table_(table),
          line_(threadIdx.x / 8),
          piece_(threadIdx.x % 8),
          left_(int(tile.end - tile.first) - line_) {
        if (a.load == Product::ROWS) {
            x_ += int64_t(tile.first + line_) * a.pitch * SIZE;
            return;
        }
        named_barrier(PRODUCER_BARRIER, PRODUCERS);  // nobody reads the last tile's
        for (int i = threadIdx.x; i < COLUMNS; i += PRODUCERS) table[i] = pixel_of<SIZE>(a, tile.first + i);
        named_barrier(PRODUCER_BARRIER, PRODUCERS);
    }

    // Begins to copy the values from k = first on to the address.
    __device__ __forceinline__ void copy(const Product &a, int first, uint32_t to) const {
        to += line_ * LINE + (piece_ ^ line_ % 8) * 16;
        const int k = first + piece_ * (16 / SIZE);
        if (a.load == Product::ROWS)
            copy_rows(a, k, to);
        else if (a.load == Product::PIXELS)
            copy_pixels(a, k, to);
        else
            copy_values(a, k, to);
    }

  private:
    static constexpr int PRODUCER_BARRIER = 15, STRIDE = PRODUCERS / 8, EACH = COLUMNS / STRIDE;
    static constexpr int HALF = LINE / SIZE;  // values of k from a line to the next, of halves
    static constexpr bool HALVES = SIZE == 2;
    static_assert(!HALVES || LINES == 2);

    __device__ __forceinline__ void copy_rows(const Product &a, int k, uint32_t to) const {
        const char *from = x_ + k * SIZE;
        const bool valid[2] = {uint32_t(k) < uint32_t(a.depth), uint32_t(k + HALF) < uint32_t(a.depth)};
        const int64_t stride = int64_t(STRIDE) * a.pitch * SIZE;
#pragma unroll
        for (int i = 0; i < EACH; ++i, from += stride) {
#pragma unroll
            for (int line = 0; line < LINES; ++line)
                copy_16_bytes(to + (line * COLUMNS + i * STRIDE) * LINE, from + (HALVES ? line * LINE : line * a.plane),
                              valid[HALVES && line] && i * STRIDE < left_);
        }
    }

    __device__ __forceinline__ void copy_pixels(const Product &a, int k, uint32_t to) const {
#pragma unroll
        for (int half = 0; half < (HALVES ? 2 : 1); ++half) {
            const Reach reach = reach_of<SIZE>(a, k + half * HALF);
            const char *from = x_ + reach.offset;
#pragma unroll
            for (int i = 0; i < EACH; ++i) {
                const Pixel pixel = table_[line_ + i * STRIDE];
                const bool valid = inside(a, pixel, reach);
#pragma unroll
                for (int line = half; line < (HALVES ? half + 1 : LINES); ++line)
                    copy_16_bytes(to + (line * COLUMNS + i * STRIDE) * LINE,
                                  from + pixel.offset + (HALVES ? 0 : line * a.plane), valid);
            }
        }
    }

    __device__ __forceinline__ void copy_values(const Product &a, int k, uint32_t to) const {
        typedef std::conditional_t<SIZE == 2, uint16_t, uint8_t> Value;
        constexpr int PER_WORD = 4 / SIZE;
#pragma unroll 1
        for (int word = 0; word < 4 * LINES; ++word, k += PER_WORD) {
            const int line = word / 4;
            if (word > 0 && word % 4 == 0) k += (HALVES ? HALF : 0) - 4 * PER_WORD;
            const char *from = x_ + (HALVES ? 0 : line * a.plane);
            Reach reach[PER_WORD];
#pragma unroll
            for (int j = 0; j < PER_WORD; ++j) reach[j] = reach_of<SIZE>(a, k + j);
#pragma unroll 1
            for (int i = 0; i < EACH; ++i) {
                const Pixel pixel = table_[line_ + i * STRIDE];
                uint32_t values = 0;
#pragma unroll
                for (int j = 0; j < PER_WORD; ++j) {
                    const auto *at = reinterpret_cast<const Value *>(from + pixel.offset + reach[j].offset);
                    const uint32_t value = inside(a, pixel, reach[j]) ? __ldg(at) : 0;
                    values |= value << j * 8 * SIZE;
                }
                store_4_bytes(to + (line * COLUMNS + i * STRIDE) * LINE + word % 4 * 4, values);
            }
        }
    }

    const char *x_;
    Pixel *table_;
    int line_, piece_, left_;
};

}  // namespace slt::cuda
