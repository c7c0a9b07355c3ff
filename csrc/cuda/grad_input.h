// Grad_input of Linear and Conv2d: dx^T = W^T dy^T.
//
// A block computes some words of k, or channels, of a group for some columns, which are pixels of dx; the sum is over
// the rows of the group at each tap of the window. A warp has 32 k and a part of the columns. In a step of 128 summands
// all warps multiply, copy dy for a later step, and make the weights of the next.
#pragma once

#include "contract/fixed_point.h"
#include "cuda/grad_input_weights.h"

#include <type_traits>
#include <utility>

namespace slt::cuda {

// The pixel of dy that tap 0 of a column reads, rounded down where strides skip it. y and x are with the remainders in
// units of 2^20, so that one comparison finds a difference to a tap's remainder as well.
struct alignas(16) GradPixel {
    int64_t offset;  // in bytes
    uint32_t y, x;
};

constexpr uint32_t REMAINDER = 1 << 20, NO_PIXEL = 1u << 31;

// dy in shared memory, as in patches.h: a line of 128 bytes a column, in each of LINES tables.
template <int COLUMNS, int LINES, int SIZE>
class GradPatches {
  public:
    static constexpr int BYTES = LINES * COLUMNS * 128;

    // The threads of a block call this with the table of the tile's columns, before a barrier.
    __device__ __forceinline__ GradPatches(const GradInput &a, const GradTile &tile, GradPixel *table)
        : dy_(static_cast<const char *>(a.dy) + int64_t(tile.group) * a.rows.number * SIZE), table_(table) {
        if (a.copy == GradInput::ROWS) {
            left_ = int(a.columns - tile.column);
            dy_ += int64_t(tile.column) * a.pitch * SIZE;
        } else {
            for (int i = threadIdx.x; i < COLUMNS; i += GRAD_THREADS) table[i] = pixel_of(a, tile.column + i);
        }
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
    static constexpr int SUMMANDS = 128, PIECES = 8, PER_PIECE = 16 / SIZE;
    static constexpr int STRIDE = GRAD_THREADS / PIECES, EACH = COLUMNS / STRIDE;
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

// Where channel 0 of a column of dx is, and the unit of its image.
struct GradColumn {
    int64_t at;
    float2 power;  // two factors

    __device__ __forceinline__ GradColumn(const GradInput &a, uint32_t column) {
        const uint32_t image = column / a.pixels;
        at = image * a.dx_image + (column - image * a.pixels.number) * a.dx_pixel;
        power = a.power == nullptr ? make_float2(1, 1) : __ldg(reinterpret_cast<const float2 *>(a.power) + image);
    }
};

// dx of a sum, rounded to a float. A power of two in two factors is applied as one, since only the second can round.
__device__ __forceinline__ float grad_of(float sum, const GradColumn &column, float scale) {
    return __fmul_rn(__fmul_rn(__fmul_rn(sum, column.power.x), column.power.y), scale);
}

// Two values in the type of dx, of 16 bits, the first in the lower half.
__device__ __forceinline__ uint32_t two_halves(const GradInput &a, float low, float high) {
    uint32_t both;
    if (a.element == BFLOAT16)
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    else
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

__device__ __forceinline__ void store_grad(const GradInput &a, int64_t at, float value) {
    if (a.element == FLOAT32)
        static_cast<float *>(a.dx)[at] = value;
    else
        static_cast<uint16_t *>(a.dx)[at] = uint16_t(two_halves(a, value, value));
}

// Of four channels that follow each other in memory, the first at a multiple of four.
__device__ __forceinline__ void store_grads(const GradInput &a, int64_t at, const float (&v)[4]) {
    if (a.element == FLOAT32)
        static_cast<float4 *>(a.dx)[at / 4] = make_float4(v[0], v[1], v[2], v[3]);
    else
        static_cast<uint2 *>(a.dx)[at / 4] = make_uint2(two_halves(a, v[0], v[1]), two_halves(a, v[2], v[3]));
}

// In shared memory, before the stages of dy and two buffers of weights.
template <int COLUMNS>
struct GradShared {
    GradPixel columns[COLUMNS];
    NormalTable table;
};

// WORDS: of a tile. SPAN: a warp's columns.
template <class Weights, int WORDS, int SPAN>
class GradInputKernel {
    static constexpr int COLUMNS = GRAD_THREADS / 32 / WORDS * SPAN;
    static constexpr int K = WORDS * int(WORD), PITCH = K + 4;  // PITCH: of floats of dx in shared memory

  public:
    static __device__ __forceinline__ void run(const GradInput &a) {
        extern __shared__ __align__(128) char memory[];
        GradShared<COLUMNS> &shared = *reinterpret_cast<GradShared<COLUMNS> *>(memory);
        const uint32_t stages = shared_address(memory) + sizeof(GradShared<COLUMNS>);
        const uint32_t weights = stages + a.stages * Patches::BYTES;
        const GradTile tile(a, WORDS, COLUMNS);
        const Patches patches(a, tile, shared.columns);
        shared.table.fill(a.generator);

        const uint32_t steps = uint32_t(ceil_div(a.summands, STEP_SUMMANDS));
        const uint32_t first = min(tile.part * a.part_steps, steps), end = min(first + a.part_steps, steps);
        const int ahead = a.stages - 1;
        int filling = 0, reading = 0;  // stages
        Weights maker(a, tile, first);
        Sum sums[2][SUMS][SPAN / 2] = {};
#pragma unroll 1
        for (int step = int(first) - ahead; step < int(end); ++step) {  // before the first, only what is ahead of it
            if (ahead == 2)
                wait_for_copies<1>();
            else
                wait_for_copies<0>();
            __syncthreads();
            if (step + ahead < int(end)) patches.copy(a, step + ahead, stages + filling * Patches::BYTES);
            commit_copies();
            if (++filling == a.stages) filling = 0;
            if (step + 1 >= int(first) && step + 1 < int(end))
                maker.make(a, tile, shared.table, step + 1, weights + (step + 1) % 2 * Weights::BYTES);
            if (step < int(first)) continue;
            multiply(stages + reading * Patches::BYTES, weights + step % 2 * Weights::BYTES, sums);
            if (++reading == a.stages) reading = 0;
        }
        if (a.parts > 1) {
            store_part(a, tile, sums);
        } else {
            __syncthreads();  // nobody reads a stage
            store(a, tile, reinterpret_cast<float *>(memory + sizeof(GradShared<COLUMNS>)), sums);
        }
    }

  private:
    typedef GradPatches<COLUMNS, Weights::LINES, Weights::SIZE> Patches;
    typedef typename Weights::Sum Sum;
    static constexpr int SUMS = Weights::SUMS;
    static constexpr bool HALVES = Weights::SIZE == 2;

    static __device__ __forceinline__ void multiply(uint32_t dy, uint32_t weights, Sum (&sums)[2][SUMS][SPAN / 2]) {
        const int lane = threadIdx.x % 32, word = threadIdx.x / 32 % WORDS;
        // Lane l gives the address of the 16 bytes l / 8 of column l % 8.
        const uint32_t place = (threadIdx.x / (32 * WORDS) * SPAN + lane % 8) * 128 + (lane / 8 ^ lane % 8) * 16;
#pragma unroll
        for (int n = 0; n < Weights::PRODUCTS; n += 2) {  // over 64 bytes of a line
            uint32_t operand[2][2][4];
#pragma unroll
            for (int i = 0; i < 2; ++i) Weights::operand(weights, word, lane, n + i, operand[i]);
#pragma unroll
            for (int s = 0; s < SUMS; ++s) {
                const uint32_t from = dy + (HALVES ? n / 4 : s) * COLUMNS * 128 + (place ^ n / 2 % 2 * 64);
#pragma unroll
                for (int j = 0; j < SPAN / 8; ++j) {
                    uint32_t x[4];
                    load_matrices(x, from + j * 8 * 128);
#pragma unroll
                    for (int b = 0; b < 2; ++b) {
                        Weights::multiply(sums[b][s] + 4 * j, operand[0][b], x[0], x[1]);
                        Weights::multiply(sums[b][s] + 4 * j, operand[1][b], x[2], x[3]);
                    }
                }
            }
        }
    }

    typedef decltype(Weights::total(std::declval<const Sum(&)[SUMS]>())) Total;

    // Calls write(column, k, sum of k, sum of k + 1) for the sums of a thread, in the tile.
    template <class Write>
    static __device__ __forceinline__ void each_pair(const Sum (&sums)[2][SUMS][SPAN / 2], Write write) {
        const int lane = threadIdx.x % 32, word = threadIdx.x / 32 % WORDS;
        const int column = threadIdx.x / (32 * WORDS) * SPAN + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < SPAN / 2; ++i) {  // a register of each sum
            Total total[2];
#pragma unroll
            for (int b = 0; b < 2; ++b) {
                Sum sum[SUMS];
#pragma unroll
                for (int s = 0; s < SUMS; ++s) sum[s] = sums[b][s][i];
                total[b] = Weights::total(sum);
            }
            const int k = word * int(WORD) + Weights::lane_k(lane / 4, i / 2 % 2);
            write(column + i / 4 * 8 + i % 2, k, total[0], total[1]);
        }
    }

    static __device__ __forceinline__ void store_part(const GradInput &a, const GradTile &tile,
                                                      const Sum (&sums)[2][SUMS][SPAN / 2]) {
        Total *to = static_cast<Total *>(a.sums) + uint64_t(tile.part) * a.columns * a.all_channels;
        each_pair(sums, [&](int column, int k, Total first, Total second) {
            const uint32_t number = tile.column + column, channel = tile.first + k;
            if (number >= a.columns) return;
            Total *at = to + uint64_t(number) * a.all_channels + tile.group * a.channels + channel;
            if (channel < a.channels) at[0] = first;  // not before the first channel either
            if (channel + 1 < a.channels) at[1] = second;
        });
    }

    // By way of shared memory, so that neighbouring threads write neighbouring elements. `grads` [COLUMNS, PITCH].
    static __device__ __forceinline__ void store(const GradInput &a, const GradTile &tile, float *grads,
                                                 const Sum (&sums)[2][SUMS][SPAN / 2]) {
        each_pair(sums, [&](int column, int k, Total first, Total second) {
            *reinterpret_cast<float2 *>(grads + column * PITCH + k) = make_float2(float(first), float(second));
        });
        __syncthreads();
        const float scale = *a.scale;
        const uint32_t channels = tile.group * a.channels;  // before the group
        if (a.dx_channel == 1) {
            const int k = threadIdx.x % (K / 4) * 4;
#pragma unroll 1
            for (int c = threadIdx.x / (K / 4); c < COLUMNS; c += GRAD_THREADS / (K / 4)) {
                const uint32_t channel = tile.first + k;
                if (tile.column + c >= a.columns) break;
                const GradColumn column(a, tile.column + c);
                const float4 sum = *reinterpret_cast<const float4 *>(grads + c * PITCH + k);
                const float v[4] = {grad_of(sum.x, column, scale), grad_of(sum.y, column, scale),
                                    grad_of(sum.z, column, scale), grad_of(sum.w, column, scale)};
                const int64_t at = column.at + channels + channel;
                if (a.quads) {
                    if (channel < a.channels) store_grads(a, at, v);
                } else {
#pragma unroll
                    for (int i = 0; i < 4; ++i)
                        if (channel + i < a.channels) store_grad(a, at + i, v[i]);
                }
            }
        } else {
            const int c = threadIdx.x % COLUMNS;
            if (tile.column + c >= a.columns) return;
            const GradColumn column(a, tile.column + c);
#pragma unroll 4
            for (int k = threadIdx.x / COLUMNS; k < K; k += GRAD_THREADS / COLUMNS) {
                const uint32_t channel = tile.first + k;
                if (channel < a.channels)
                    store_grad(a, column.at + (channels + channel) * a.dx_channel,
                               grad_of(grads[c * PITCH + k], column, scale));
            }
        }
    }
};

// Adds the sums of the parts, in their order: a thread a channel of a column.
template <class Sum>
__device__ __forceinline__ void add_grad_parts(const GradInput &a) {
    const uint32_t blocks = uint32_t(ceil_div(a.all_channels, GRAD_THREADS)), column = blockIdx.x / blocks;
    const uint32_t channel = blockIdx.x % blocks * GRAD_THREADS + threadIdx.x;
    if (channel >= a.all_channels) return;
    const Sum *from = static_cast<const Sum *>(a.sums) + uint64_t(column) * a.all_channels + channel;
    Sum sum = 0;
    for (uint32_t i = 0; i < a.parts; ++i) sum += from[i * uint64_t(a.columns) * a.all_channels];
    const GradColumn to(a, column);
    store_grad(a, to.at + channel * a.dx_channel, grad_of(float(sum), to, *a.scale));
}

}  // namespace slt::cuda
