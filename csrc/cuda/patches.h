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

// The beginning and the end of the columns of a tile, and its group.
struct TileColumns {
    uint32_t first, end, group;
};

// Where tap 0 of a column reads.
struct Position {
    int32_t image, y, x;
};

__device__ __forceinline__ Position position_of(const Product &a, uint32_t column) {
    const uint32_t image = column / a.pixels, at = column - image * a.pixels.number;
    const int32_t row = at / a.out_width, right = at - row * a.out_width.number;
    return {int32_t(image), row * a.stride_h - a.padding_h, right * a.stride_w - a.padding_w};
}

// A column that is copied in whole pieces of 16 bytes: where its tap 0 is, in pieces from the first channel of x that
// the tile reads, and which of its taps are outside of the image: bits of the window's columns, then of its rows.
struct alignas(8) PiecePixel {
    static constexpr uint32_t NONE = 1u << 31;  // of every column, for k that is no tap's
    int32_t place;
    uint32_t outside;

    template <int PIECE>
    static __device__ __forceinline__ PiecePixel of(const Product &a, uint32_t column) {
        if (column >= a.columns) return {0, ~0u};
        const Position at = position_of(a, column);
        uint32_t outside = NONE, bit = 1;
#pragma unroll 1
        for (int i = 0, x = at.x; i < int(a.kernel_w.number); ++i, x += a.dilation_w, bit <<= 1)
            if (uint32_t(x) >= uint32_t(a.width)) outside |= bit;
#pragma unroll 1
        for (int i = 0, y = at.y; i < a.kernel_h; ++i, y += a.dilation_h, bit <<= 1)
            if (uint32_t(y) >= uint32_t(a.height)) outside |= bit;
        const int32_t image = int32_t(at.image * (a.image_pitch / PIECE));
        return {image + (at.y * a.width + at.x) * (a.pitch / PIECE), outside};
    }
};

// Where value k of a patch is, relative to its column: in pieces, and the bits of its tap.
struct PieceReach {
    int32_t place;
    uint32_t tap;

    template <int PIECE>
    static __device__ __forceinline__ PieceReach of(const Product &a, int k) {
        const uint32_t tap = uint32_t(k) / a.group_channels, channel = k - tap * a.group_channels.number;
        const uint32_t row = tap / a.kernel_w, right = tap - row * a.kernel_w.number;
        const int32_t pitch = a.pitch / PIECE;
        const int32_t place = row * (a.dilation_h * a.width * pitch) + right * (a.dilation_w * pitch) + channel / PIECE;
        const bool valid = uint32_t(k) < uint32_t(a.depth);
        return {place, valid ? 1u << right | 1u << (a.kernel_w.number + row) : PiecePixel::NONE};
    }
};

// A column of copies of single values: where its tap 0 is, in bytes from the group's first channel of x.
struct alignas(16) ValuePixel {
    int64_t offset;
    int32_t y, x;

    template <int SIZE>
    static __device__ __forceinline__ ValuePixel of(const Product &a, uint32_t column) {
        if (column >= a.columns) return {0, -(1 << 30), 0};  // outside of every image
        const Position at = position_of(a, column);
        const int64_t pixel = int64_t(at.y) * a.width + at.x;
        return {(at.image * a.image_pitch + pixel * a.pitch) * SIZE, at.y, at.x};
    }
};

// Where value k of a patch is, relative to its pixel.
struct ValueReach {
    int64_t offset;  // in bytes
    int32_t y, x;
    bool valid;

    template <int SIZE>
    static __device__ __forceinline__ ValueReach of(const Product &a, int k) {
        if (uint32_t(k) >= uint32_t(a.depth)) return {0, 0, 0, false};
        const uint32_t tap = uint32_t(k) / a.group_channels, channel = k - tap * a.group_channels.number;
        const uint32_t row = tap / a.kernel_w;
        const int32_t y = row * a.dilation_h, x = (tap - row * a.kernel_w.number) * a.dilation_w;
        return {((int64_t(y) * a.width + x) * a.pitch + channel) * SIZE, y, x, true};
    }

    __device__ __forceinline__ bool inside(const Product &a, const ValuePixel &pixel) const {
        const bool rows = uint32_t(pixel.y + y) < uint32_t(a.height);
        const bool columns = uint32_t(pixel.x + x) < uint32_t(a.width);
        return valid & rows & columns;  // without branches
    }
};

// The columns of a tile, as their copies need them.
constexpr int MOST_COLUMNS = 256;
union ColumnTable {
    PiecePixel pieces[MOST_COLUMNS];
    ValuePixel values[MOST_COLUMNS];
};

// A thread copies 16 bytes i = thread % 8 of every line thread / 8, thread / 8 + 16, ...
template <int COLUMNS, int LINES, int SIZE>
class Patches {
  public:
    static constexpr int BYTES = LINES * COLUMNS * LINE;

    // The producers call this with the table of the tile's columns, in shared memory.
    __device__ __forceinline__ Patches(const Product &a, const TileColumns &tile, ColumnTable &table)
        : x_(static_cast<const char *>(a.x) + int64_t(tile.group) * a.group_channels.number * SIZE),
          table_(table.values),
          line_(threadIdx.x / 8),
          piece_(threadIdx.x % 8) {
        if (a.load == Product::ROWS) {
            x_ += int64_t(tile.first) * a.pitch * SIZE;
#pragma unroll
            for (int i = 0; i < EACH; ++i) {
                const uint32_t column = line_ + i * STRIDE;
                const bool exists = tile.first + column < tile.end;
                columns_[i] = {int32_t(column * (a.pitch / PIECE)), exists ? PiecePixel::NONE : ~0u};
            }
            return;
        }
        named_barrier(PRODUCER_BARRIER, PRODUCERS);  // nobody reads the last tile's
#pragma unroll 1
        for (int i = threadIdx.x; i < COLUMNS; i += PRODUCERS) {
            if (a.load == Product::PIXELS)
                table.pieces[i] = PiecePixel::of<PIECE>(a, tile.first + i);
            else
                table.values[i] = ValuePixel::of<SIZE>(a, tile.first + i);
        }
        named_barrier(PRODUCER_BARRIER, PRODUCERS);
        if (a.load == Product::PIXELS) {
#pragma unroll
            for (int i = 0; i < EACH; ++i) columns_[i] = table.pieces[line_ + i * STRIDE];
        }
    }

    // Begins to copy the values from k = first on to the address.
    __device__ __forceinline__ void copy(const Product &a, int first, uint32_t to) const {
        to += line_ * LINE + (piece_ ^ line_ % 8) * 16;
        const int k = first + piece_ * PIECE;
        if (a.load == Product::VALUES)
            copy_values(a, k, to);
        else
            copy_pieces(a, k, to);
    }

  private:
    static constexpr int PRODUCER_BARRIER = 15, STRIDE = PRODUCERS / 8, EACH = COLUMNS / STRIDE;
    static constexpr int PIECE = 16 / SIZE;   // values
    static constexpr int HALF = LINE / SIZE;  // values of k from a line to the next, of halves
    static constexpr bool HALVES = SIZE == 2;
    static_assert((!HALVES || LINES == 2) && COLUMNS <= MOST_COLUMNS);

    __device__ __forceinline__ void copy_pieces(const Product &a, int k, uint32_t to) const {
        const char *from[LINES];
        const PieceReach reach = reach_of(a, k);
        from[0] = opaque(x_ + reach.place * int64_t(16));
        if constexpr (HALVES) {
            const PieceReach upper = reach_of(a, k + HALF);
            from[1] = from[0] + LINE;
            if (reach.tap == upper.tap && reach.place + HALF / PIECE == upper.place)
                return copy_lines(from, {reach.tap, reach.tap}, to);
            from[1] = opaque(x_ + upper.place * int64_t(16));
            copy_lines(from, {reach.tap, upper.tap}, to);
        } else {
#pragma unroll
            for (int line = 1; line < LINES; ++line) from[line] = from[line - 1] + a.plane;
            copy_lines(from, {reach.tap, reach.tap}, to);
        }
    }

    static __device__ __forceinline__ PieceReach reach_of(const Product &a, int k) {
        if (a.load == Product::PIXELS) return PieceReach::of<PIECE>(a, k);
        return {k / PIECE, uint32_t(k) < uint32_t(a.depth) ? 1 : PiecePixel::NONE};
    }

    // From where column 0 has each line; the taps of the first line and of the others.
    __device__ __forceinline__ void copy_lines(const char *const (&from)[LINES], const uint32_t (&tap)[2],
                                               uint32_t to) const {
#pragma unroll
        for (int i = 0; i < EACH; ++i)
#pragma unroll
            for (int line = 0; line < LINES; ++line)
                copy_16_bytes(to + (line * COLUMNS + i * STRIDE) * LINE, from[line] + columns_[i].place * int64_t(16),
                              (columns_[i].outside & tap[line > 0]) == 0);
    }

    __device__ __forceinline__ void copy_values(const Product &a, int k, uint32_t to) const {
        typedef std::conditional_t<SIZE == 2, uint16_t, uint8_t> Value;
        constexpr int PER_WORD = 4 / SIZE;
#pragma unroll 1
        for (int word = 0; word < 4 * LINES; ++word, k += PER_WORD) {
            const int line = word / 4;
            if (word > 0 && word % 4 == 0) k += (HALVES ? HALF : 0) - 4 * PER_WORD;
            const char *from = x_ + (HALVES ? 0 : line * a.plane);
            ValueReach reach[PER_WORD];
#pragma unroll
            for (int j = 0; j < PER_WORD; ++j) reach[j] = ValueReach::of<SIZE>(a, k + j);
#pragma unroll 1
            for (int i = 0; i < EACH; ++i) {
                const ValuePixel pixel = table_[line_ + i * STRIDE];
                uint32_t values = 0;
#pragma unroll
                for (int j = 0; j < PER_WORD; ++j) {
                    const auto *at = reinterpret_cast<const Value *>(from + pixel.offset + reach[j].offset);
                    const uint32_t value = reach[j].inside(a, pixel) ? __ldg(at) : 0;
                    values |= value << j * 8 * SIZE;
                }
                store_4_bytes(to + (line * COLUMNS + i * STRIDE) * LINE + word % 4 * 4, values);
            }
        }
    }

    const char *x_;
    const ValuePixel *table_;
    int line_, piece_;
    PiecePixel columns_[EACH];
};

}  // namespace slt::cuda
