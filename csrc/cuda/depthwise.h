// Convolutions with few channels and rows per group, and their grad_input. With one of each they are depthwise. A
// product on tensor cores would compute tiles of 128 rows, of which a group uses few.
//
// A block has some groups and a tile of output pixels, of some images one after the other. It makes the groups' weights
// once. Of each image it brings the input that the tile reads into shared memory: in fixed point if it is float32, and
// zeros outside of the image. Then each thread sums RUN outputs of one channel, one below the other, for a tap at once:
//
//     outputs o + apart p and taps j + every n read rows  stride o + dilation j + spacing (p + n),
//     where  apart = dilation / gcd(stride, dilation),  every = stride / gcd,  spacing = stride apart = dilation every
//
// so that each tap needs one value that the tap before did not: a thread reads RUN - 1 + taps values for RUN * taps
// products.
#pragma once

#include <type_traits>

#include "cuda/floats.h"
#include "cuda/product_output.h"
#include "cuda/words.h"

namespace slt::cuda {

constexpr int NARROW_THREADS = 256;
constexpr int RUN = 8;

// What a block computes.
struct NarrowTile {
    int32_t group, groups;  // the first, and how many
    int32_t row, column;  // of the first output pixel
    int32_t image, end;  // the first, and the one after the last
};

__device__ __forceinline__ NarrowTile narrow_tile(const Depthwise &a, uint32_t block) {
    NarrowTile tile;
    uint32_t rest = block / a.tiles_w;
    tile.column = (block - rest * a.tiles_w.number) * a.tile_w.number;
    block = rest;
    rest = block / a.tiles_h;
    tile.row = (block - rest * a.tiles_h.number) * a.tile_h;
    block = rest;
    rest = block / a.group_blocks;
    tile.group = (block - rest * a.group_blocks.number) * a.block_groups;
    tile.groups = min(a.block_groups, a.groups - tile.group);
    tile.image = rest * a.block_images;
    tile.end = min(tile.image + a.block_images, a.images);
    return tile;
}

// The weight k of a row, masked.
__device__ __forceinline__ int masked_weight(const Generator &g, const uint32_t *mask, uint32_t row, uint32_t k,
                                             const NormalTable &table) {
    const uint32_t word = k / WORD, in_word = k % WORD, bit = bit_of_k(in_word);
    if (!(__ldg(mask + uint64_t(row) * g.words + word) >> bit & 1)) return 0;
    const uint32_t in_calls = word + g.skipped, i = in_calls % WORDS_PER_CALL;
    const uint64_t call = call_index(g, row, in_calls / WORDS_PER_CALL);
    const bool is_signed = g.source.weight == SIGNED_CONSTANT;
    const Words4 words = call_words(g.weight, is_signed ? call : 2 * (WORDS_PER_CALL * call + i) + in_word / 16);
    const uint32_t at = is_signed ? i : in_word / 4 % 4;
    const uint32_t chosen =
        at < 2 ? (at == 0 ? words.word[0] : words.word[1]) : (at == 2 ? words.word[2] : words.word[3]);
    if (is_signed) return 1 - 2 * int(chosen >> bit & 1);
    return int8_t(four_values(g.source.weight, chosen >> in_word % 4 * 8 & 0xFF, table));
}

__device__ __forceinline__ void add(float &sum, float weight, float x) { sum = __fmaf_rn(weight, x, sum); }
__device__ __forceinline__ void add(int32_t &sum, int32_t weight, int32_t x) { sum += weight * x; }
__device__ __forceinline__ void add(int64_t &sum, int32_t weight, int32_t x) { sum += int64_t(weight) * x; }

// T: of input and output. Sum: float for 16-bit inputs; int32_t for float32 if it holds the sums, or else int64_t.
template <class T, class Sum>
class Narrow {
    typedef std::conditional_t<std::is_same_v<Sum, float>, float, int32_t> Value;

  public:
    const NarrowTile tile;

    __device__ __forceinline__ Narrow(const Depthwise &a, int32_t *memory)
        : tile(narrow_tile(a, blockIdx.x)),
          pixels(memory),
          weights(reinterpret_cast<Value *>(memory + a.tile_pixels)),
          width(a.block_groups * a.group_out.number),
          values(weights + a.group_in * a.kernel_h * a.kernel_w * width) {}

    // Where weights are in shared memory: of an output channel those for its taps, and of a tap those for its inputs.
    __device__ __forceinline__ void make_weights(const Depthwise &a, const NormalTable &table) const {
        const int count = tile.groups * a.group_rows.number * a.fan.number, taps = a.kernel_h * a.kernel_w;
#pragma unroll 1
        for (int n = threadIdx.x; n < count; n += NARROW_THREADS) {
            const uint32_t row = uint32_t(n) / a.fan, k = n - row * a.fan.number;
            const uint32_t first_row = tile.group * a.group_rows.number;
            const int weight = masked_weight(a.generator, a.mask, first_row + row, k, table);
            const uint32_t tap = k / a.group_channels, channel = k - tap * a.group_channels.number;
            const uint32_t group = row / a.group_rows, in_group = row - group * a.group_rows.number;
            const int term = a.reverse ? (taps - 1 - tap) * a.group_rows.number + in_group : k;
            const int out = a.reverse ? group * a.group_channels.number + channel : row;
            weights[term * width + out] = Value(weight);
        }
    }

    // Where the input pixels of the tile are in an image, or -1 for one outside, or a zero between pixels.
    __device__ __forceinline__ void find_pixels(const Depthwise &a) const {
        const int first_row = tile.row * a.stride_h - a.padding_h,
                  first_column = tile.column * a.stride_w - a.padding_w;
#pragma unroll 1
        for (int n = threadIdx.x; n < a.tile_pixels; n += NARROW_THREADS) {
            const uint32_t down = uint32_t(n) / a.tile_row;
            const int32_t y = first_row + int(down), x = first_column + int(n - down * a.tile_row.number);
            int32_t at = -1;
            if (y >= 0 && x >= 0) {
                const uint32_t row = uint32_t(y) / a.up_h, column = uint32_t(x) / a.up_w;
                if (row * a.up_h.number == y && column * a.up_w.number == x && row < a.in_height && column < a.in_width)
                    at = int32_t(row * a.in_width + column) * a.in_pixel;
            }
            pixels[n] = at;
        }
    }

    // Brings the input of the tile into shared memory.
    __device__ __forceinline__ void load(const Depthwise &a, int image, float2 up) const {
        const T *from =
            static_cast<const T *>(a.in) + image * a.in_image + int64_t(tile.group) * a.group_in * a.in_channel;
        const int channels = tile.groups * a.group_in, lanes = 1 << a.in_lanes_log;
        const int near = a.channels_last ? channels : a.tile_pixels, far = a.channels_last ? a.tile_pixels : channels;
        const int first = threadIdx.x >> a.in_lanes_log, stride = NARROW_THREADS >> a.in_lanes_log;
        const int pixel_stride = a.channels_last ? stride : 0, channel_stride = a.channels_last ? 0 : stride;
        constexpr int TOGETHER = 4;  // loads, since each takes long
#pragma unroll 1
        for (int n = threadIdx.x & (lanes - 1); n < near; n += lanes) {
            const int32_t *pixel = pixels + (a.channels_last ? first : n);
            int32_t channel = (a.channels_last ? n : first) * a.in_channel;
            Value *to = values + first * pitch(a) + n;
#pragma unroll 1
            for (int left = far - first; left > 0; left -= TOGETHER * stride) {
                T value[TOGETHER];
#pragma unroll
                for (int i = 0; i < TOGETHER; ++i) {
                    const int32_t at = i * stride < left ? *pixel : -1;
                    value[i] = T(0.0f);
                    if (at >= 0) value[i] = __ldg(from + (at + channel));
                    pixel += pixel_stride;
                    channel += channel_stride * a.in_channel;
                }
#pragma unroll
                for (int i = 0; i < TOGETHER; ++i) {
                    if (i * stride < left) *to = value_of(widened(value[i]), up);
                    to += stride * pitch(a);
                }
            }
        }
    }

    // Sums and writes the outputs of the tile.
    __device__ __forceinline__ void write(const Depthwise &a, int image, const Factors &by) const {
        T *to = static_cast<T *>(a.out) + image * a.out_image;
        const int channels = tile.groups * a.group_out.number, runs = a.tile_h / RUN * a.tile_w.number;
        const int lanes = 1 << a.out_lanes_log;
        const int near = a.channels_last ? channels : runs, far = a.channels_last ? runs : channels;
#pragma unroll 1
        for (int n = threadIdx.x & (lanes - 1); n < near; n += lanes) {
#pragma unroll 1
            for (int f = threadIdx.x >> a.out_lanes_log; f < far; f += NARROW_THREADS >> a.out_lanes_log) {
                const int channel = a.channels_last ? n : f;
                const uint32_t run = a.channels_last ? f : n;
                const uint32_t down = run / a.tile_w, right = run - down * a.tile_w.number, whole = down / a.apart;
                const int first = whole * (RUN - 1) * a.apart.number + down;  // of whole * RUN * apart, and the rest
                const int row = tile.row + first, column = tile.column + right;
                if (row >= a.out_height || column >= a.out_width) continue;
                Sum sum[RUN];
                add_taps(a, channel, first, right, sum);
                const uint32_t all = tile.group * a.group_out.number + channel;
                const float bias = bias_of(a, all);
                T *at = to + all * a.out_channel + (row * a.out_width + column) * a.out_pixel;
                const int below = a.apart.number * a.out_width * a.out_pixel;
#pragma unroll
                for (int p = 0; p < RUN; ++p, at += below)
                    if (row + p * int(a.apart.number) < a.out_height) *at = rounded<T>(output_of(sum[p], by, bias));
            }
        }
    }

  private:
    __device__ __forceinline__ static Value value_of(float x, float2 up) {
        if constexpr (std::is_same_v<Value, float>)
            return x;
        else
            return int32_t(integer_of(x, up));
    }

    // From a pixel in shared memory to the next, or from a channel to the next where channels are the far ones.
    __device__ __forceinline__ int pitch(const Depthwise &a) const {
        return a.channels_last ? a.block_groups * a.group_in : a.tile_pixels;
    }

    __device__ __forceinline__ void add_taps(const Depthwise &a, int channel, int first, int right,
                                             Sum (&sum)[RUN]) const {
        const int by_channel = a.channels_last ? 1 : pitch(a), by_pixel = a.channels_last ? pitch(a) : 1;
        const int by_row = a.tile_row.number * by_pixel, spacing = a.spacing * by_row;
        const int terms = a.kernel_w * a.group_in * width;  // of the weights, from a row of taps to the next
        const Value *group = values + int(uint32_t(channel) / a.group_out) * a.group_in * by_channel +
                             first * a.stride_h * by_row + right * a.stride_w * by_pixel;
#pragma unroll
        for (int p = 0; p < RUN; ++p) sum[p] = 0;
#pragma unroll 1
        for (int term = 0; term < a.kernel_w * a.group_in; ++term) {
            const int column = a.group_in == 1 ? term : term / a.group_in, in = term - column * a.group_in;
            const Value *beside = group + in * by_channel + column * a.dilation_w * by_pixel;
#pragma unroll 1
            for (int phase = 0; phase < min(a.every, a.kernel_h); ++phase) {
                const Value *x = beside + phase * a.dilation_h * by_row;
                const Value *weight = weights + phase * terms + term * width + channel;
                Value window[RUN];  // value i of the column is in window[i % RUN]
#pragma unroll
                for (int p = 0; p < RUN - 1; ++p, x += spacing) window[p] = *x;
#pragma unroll 1
                for (int tap = phase; tap < a.kernel_h; tap += RUN * a.every) {
#pragma unroll
                    for (int i = 0; i < RUN; ++i) {
                        if (tap + i * a.every >= a.kernel_h) break;
                        window[(RUN - 1 + i) % RUN] = *x;
                        const Value v = *weight;
#pragma unroll
                        for (int p = 0; p < RUN; ++p) add(sum[p], v, window[(i + p) % RUN]);
                        x += spacing;
                        weight += a.every * terms;
                    }
                }
            }
        }
    }

    int32_t *pixels;  // [tile pixels]
    Value *weights;  // [taps, inputs of a group, outputs of the block]
    int width;  // outputs of the block
    Value *values;  // of the tile: [pixels, channels] or [channels, pixels]
};

// The factors of an image's fixed point, and of its sums; all lanes of a warp take part.
struct NarrowUnit {
    float2 up;
    Factors down;
};

template <class Sum>
__device__ __forceinline__ NarrowUnit narrow_unit(const Depthwise &a, int image) {
    if constexpr (std::is_same_v<Sum, float>) return {make_float2(1, 1), {make_float2(1, 1), *a.scale}};
    uint32_t largest = 0;
    for (int i = threadIdx.x % 32; i < a.pieces; i += 32)
        largest = max(largest, __ldg(a.largest + int64_t(image) * a.pieces + i));
    const FixedPoint fixed = fixed_point(__reduce_max_sync(0xFFFFFFFF, largest), a.digits);
    const float2 up = make_float2(fixed.up, fixed.up_again);  // powers of two; 0 if the image is not finite
    return {up, {up.x == 0 ? make_float2(NAN, NAN) : make_float2(__frcp_rn(up.x), __frcp_rn(up.y)), *a.scale}};
}

template <class T, class Sum>
__device__ __forceinline__ void convolve_narrow(const Depthwise &a) {
    extern __shared__ __align__(16) int32_t memory[];
    __shared__ NormalTable table;
    const Narrow<T, Sum> narrow(a, memory);
    table.fill(a.generator);
    narrow.find_pixels(a);
    __syncthreads();
    narrow.make_weights(a, table);
#pragma unroll 1
    for (int image = narrow.tile.image; image < narrow.tile.end; ++image) {
        const NarrowUnit unit = narrow_unit<Sum>(a, image);
        narrow.load(a, image, unit.up);
        __syncthreads();
        narrow.write(a, image, unit.down);
        if (image + 1 < narrow.tile.end) __syncthreads();  // nobody reads what is overwritten
    }
}

}  // namespace slt::cuda
