// Linear's forward for few vectors: y = x W^T, where making the weights takes most of the time.
//
// A block has GROUPS groups of four warps. It converts its part of k of x to the second operand in shared memory. Its
// groups make the weights of some tiles of 64 rows in registers, and multiply: each group a tile, and its share of the
// steps of k where there are more groups than tiles. The blocks of a cluster share k, and each converts its part of x.
// The groups' sums, exact integers, are added through the shared memory of the cluster.
#pragma once

#include "cuda/kept.h"
#include "cuda/planes.h"

namespace slt::cuda {

constexpr int GROUP_THREADS = 128, GROUP_ROWS_LOG = 6, GROUP_ROWS = 1 << GROUP_ROWS_LOG;
constexpr int MOST_VECTORS = 64;

// Of kernels that take more registers than 512 threads have where products are of a warp (mma).
constexpr int FEWER_GROUPS = WARPGROUP_PRODUCTS ? 4 : 2;

// The beginning of shared memory; the second operand follows.
struct Shared {
    uint32_t largest[MOST_VECTORS];  // the largest magnitude in the block's part of each vector, as bits
    float2 up[MOST_VECTORS];         // of FixedPoint
    double power[MOST_VECTORS];
    NormalTable table;
};
static_assert(sizeof(Shared) == 1536);  // _HEADER of forward_small.py

__device__ __forceinline__ int cluster_of(const ForwardSmall &a) { return 1 << a.cluster_log; }

// The block's place in its cluster, and its first row. They are read again where they are needed: registers are few.
__device__ __forceinline__ int rank_of(const ForwardSmall &a) { return block_number() & (cluster_of(a) - 1); }
__device__ __forceinline__ uint32_t first_row_of(const ForwardSmall &a) {
    return block_number() >> a.cluster_log << (GROUP_ROWS_LOG + a.tiles_log);
}

// The first step of the block's part of k; of the next block's for next = 1.
__device__ __forceinline__ int first_step_of(const ForwardSmall &a, int next) {
    return min((rank_of(a) + next) * a.block_steps, a.steps);
}

__device__ __forceinline__ void block_barrier(int cluster) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (cluster > 1) return cluster_barrier();
#endif
    __syncthreads();
}

// A variable of shared memory in block `rank` of the cluster.
__device__ __forceinline__ uint32_t read_block(const uint32_t &variable, int rank, int cluster) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (cluster > 1) return load_cluster_u32(address_in_block(shared_address(&variable), rank));
#endif
    return variable;
}

__device__ __forceinline__ int64_t read_block(const int64_t &variable, int rank, int cluster) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (cluster > 1) return load_cluster_s64(address_in_block(shared_address(&variable), rank));
#endif
    return variable;
}

// Where the second operand of a product begins, as products take it: in units of so many bytes. LEAD: the distance of
// its matrices in k.
constexpr int PLACE_UNIT = WARPGROUP_PRODUCTS ? 16 : 1;

template <int LEAD>
__device__ __forceinline__ uint32_t operand_place(uint32_t address) {
    if (WARPGROUP_PRODUCTS) return address / 16 | LEAD / 16 << 16;
    const int lane = threadIdx.x % 32;
    return address + lane / 8 * LEAD + lane % 8 * 16;  // the row of the matrices that a lane loads
}

__device__ __forceinline__ int64_t add_over_row(int64_t sum) {
    sum += __shfl_xor_sync(0xFFFFFFFF, sum, 1);
    return sum + __shfl_xor_sync(0xFFFFFFFF, sum, 2);
}

// Signed weights by bit planes: K and its negative weights are first operands as they are, and
// S = sum over planes of 2^b (popcount(K & X_b) - 2 popcount(negative & X_b)), the top plane negative.
template <int TILES, int VECTORS>
class SignBits {
  public:
    static constexpr int ALL_TILES = TILES * VECTORS, LEAD = 128 * ALL_TILES;
    typedef PlaneOrder<TILES, LEAD> Order;

    // Adds the products of the thread's calls. `place`: of the step's operand. `used` is called after the last use of
    // the words.
    template <class Used>
    __device__ __forceinline__ void add(const ForwardSmall &a, const Shared &, const ThreadRows &rows,
                                        const KeptWords &words, uint32_t place, Used used) {
        uint32_t k[8], s[8];
        const Words4 signs[2] = {call_words(a.generator.weight, call_index(a, rows, 0)),
                                 call_words(a.generator.weight, call_index(a, rows, 1))};
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
        wait_for_products<0>();  // the last products may read the registers that are written next
#endif
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            k[i] = both_after(0xFFFFFFFF, words[i % 2][i / 2]);
            s[i] = both_after(signs[i % 2].word[i / 2], words[i % 2][i / 2]);
        }
        used();
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
        begin_products();
        const uint64_t first = operand_descriptor(place), second = operand_descriptor(place + 2 * LEAD / 16);
        multiply_bits_async<8 * ALL_TILES>(kept, k, first);
        multiply_bits_async<8 * ALL_TILES>(kept, k + 4, second);
        multiply_bits_async<8 * ALL_TILES>(negative, s, first);
        multiply_bits_async<8 * ALL_TILES>(negative, s + 4, second);
        commit_products();
#else
#pragma unroll
        for (int tile = 0; tile < ALL_TILES; ++tile) {
            uint32_t b[4];
            load_matrices(b, place + tile * 128);
            multiply_bits(kept + 4 * tile, k, b[0], b[1]);
            multiply_bits(negative + 4 * tile, s, b[0], b[1]);
            multiply_bits(kept + 4 * tile, k + 4, b[2], b[3]);
            multiply_bits(negative + 4 * tile, s + 4, b[2], b[3]);
        }
#endif
    }

    static __device__ __forceinline__ void prepare(const ForwardSmall &, Shared &) {}

    // Until the sums are complete.
    __device__ __forceinline__ void wait() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
        wait_for_products<0>();
        pin(kept);
        pin(negative);
#endif
    }

    // Calls write(row of the group, vector, sum) for each sum, in one thread.
    template <class Write>
    __device__ __forceinline__ void finish(const ForwardSmall &a, Write write) {
        const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, row = threadIdx.x / 32 % 4 * 16 + g;
#pragma unroll
        for (int v = 0; v < VECTORS; ++v) {
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                int64_t sum = 0;
#pragma unroll
                for (int tile = 0; tile < TILES; ++tile) {
                    const int at = 4 * (v * TILES + tile) + 2 * r;
                    const int64_t low = kept[at] - 2 * negative[at];
                    const int64_t high = 4 * int64_t(kept[at + 1] - 2 * negative[at + 1]);
                    const bool top = tile == TILES - 1 && t == 3;
                    sum += (top ? low - high : low + high) << plane_shift(tile, t);
                }
                sum = add_over_row(sum);
                if (t == 0 && v < a.batch) write(row + 8 * r, v, sum);
            }
        }
    }

  private:
    int kept[4 * ALL_TILES] = {}, negative[4 * ALL_TILES] = {};
};

// Products of bytes with the digits of x.
template <int COLUMNS, bool BYTES>
class DigitSums {
  public:
    static constexpr int LEAD = 16 * COLUMNS + 16;  // not a multiple of 128, so that a warp's stores meet no bank twice
    typedef DigitOrder<BYTES, LEAD> Order;

    // Adds 128 products a row: of the quads of one word in each of four calls.
    __device__ __forceinline__ void multiply(uint32_t (&quads)[16], uint32_t place) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
        pin(quads);
        begin_products();
#pragma unroll
        for (int j = 0; j < 4; ++j)
            multiply_bytes_async<COLUMNS>(sums, quads + 4 * j, operand_descriptor(place + 2 * j * LEAD / 16));
        commit_products();
        if constexpr (!BYTES) wait_for_products<1>();
#else
#pragma unroll
        for (int j = 0; j < 4; j += 2) {
#pragma unroll
            for (int tile = 0; tile < COLUMNS / 8; ++tile) {
                uint32_t b[4];
                load_matrices(b, place + 2 * j * LEAD + tile * 128);
                multiply_bytes(sums + 4 * tile, quads + 4 * j, b[0], b[1]);
                multiply_bytes(sums + 4 * tile, quads + 4 * j + 4, b[2], b[3]);
            }
        }
#endif
    }

    // Until the sums are complete.
    __device__ __forceinline__ void wait() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
        wait_for_products<0>();
        pin(sums);
#endif
    }

    template <class Write>
    __device__ __forceinline__ void finish(const ForwardSmall &a, Write write) {
        constexpr int factor = BYTES ? 0 : 6;  // of coded weights: 2^6
        const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, row = threadIdx.x / 32 % 4 * 16 + g;
#pragma unroll
        for (int tile = 0; tile < COLUMNS / 8; ++tile) {
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const int64_t low = sums[4 * tile + 2 * r], high = int64_t(sums[4 * tile + 2 * r + 1]) * 256;
                if (a.digits == 2) {
                    const int v = tile * 4 + t;
                    if (v < a.batch) write(row + 8 * r, v, (low + high) >> factor);
                } else {
                    const int v = tile * 2 + t / 2;
                    int64_t sum = t % 2 ? low << 16 : low + high;
                    sum += __shfl_xor_sync(0xFFFFFFFF, sum, 1);
                    if (t % 2 == 0 && v < a.batch) write(row + 8 * r, v, sum >> factor);
                }
            }
        }
    }

  private:
    int sums[COLUMNS / 2] = {};
};

// Signed weights as bytes of 64 v, cut from fields of two bits, sign above kept: of even bits and of odd ones.
template <int COLUMNS>
class SignDigits : public DigitSums<COLUMNS, false> {
  public:
    static __device__ __forceinline__ void prepare(const ForwardSmall &, Shared &) {}

    template <class Used>
    __device__ __forceinline__ void add(const ForwardSmall &a, const Shared &, const ThreadRows &rows,
                                        const KeptWords &words, uint32_t place, Used used) {
        constexpr int CHOOSE = (0xF0 & 0xAA) | (0xCC & ~0xAA & 0xFF);  // a where c, else b
        constexpr uint32_t UPPER = 0xAAAAAAAA, FIELDS = 0xC0C0C0C0;
        const Words4 signs[2] = {call_words(a.generator.weight, call_index(a, rows, 0)),
                                 call_words(a.generator.weight, call_index(a, rows, 1))};
#pragma unroll
        for (int w = 0; w < 4; ++w) {
            uint32_t quads[16];
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const uint32_t k = words[r][w], s = k & signs[r].word[w];
                const uint32_t even = logic<CHOOSE>(s << 1, k, UPPER), odd = logic<CHOOSE>(s, k >> 1, UPPER);
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    quads[4 * j + r] = even << (6 - 2 * j) & FIELDS;
                    quads[4 * j + 2 + r] = odd << (6 - 2 * j) & FIELDS;
                }
            }
            this->multiply(quads, place + w * 8 * this->LEAD / PLACE_UNIT);
        }
        used();
    }
};

// Weights that are bytes of VALUE, or of the table of NORMAL.
template <int COLUMNS>
class ByteDigits : public DigitSums<COLUMNS, true> {
  public:
    static __device__ __forceinline__ void prepare(const ForwardSmall &a, Shared &shared) {
        shared.table.fill(a.generator);
    }

    template <class Used>
    __device__ __forceinline__ void add(const ForwardSmall &a, const Shared &shared, const ThreadRows &rows,
                                        const KeptWords &words, uint32_t place, Used used) {
#pragma unroll 1
        for (int w = 0; w < 4; ++w) {
            uint32_t quads[16];
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const uint64_t index = 8 * call_index(a, rows, r) + 2 * w;
                const Words4 values[2] = {call_words(a.generator.weight, index),
                                          call_words(a.generator.weight, index + 1)};
#pragma unroll
                for (int m = 0; m < 8; ++m) quads[slot(m, r)] = values[m / 4].word[m % 4];
            }
            if (a.generator.source.weight == UNIFORM) {
#pragma unroll
                for (int i = 0; i < 16; ++i) quads[i] = four_values(UNIFORM, quads[i], shared.table);
            } else {
#pragma unroll
                for (int i = 0; i < 16; ++i) quads[i] = four_values(NORMAL, quads[i], shared.table);
            }
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
            wait_for_products<0>();  // the last products may read the registers that are written next
            pin(quads);
#endif
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const uint32_t k = w == 0 ? words[r][0] : w == 1 ? words[r][1] : w == 2 ? words[r][2] : words[r][3];
                // Bits 2 m, 16 + 2 m, 2 m + 1 and 17 + 2 m are those of the bytes of quad m.
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const uint32_t first = k << (7 - 2 * i), second = k << (6 - 2 * i);
                    quads[slot(i, r)] &= bytes_of(first, second, 0xECA8);
                    quads[slot(i + 4, r)] &= bytes_of(first, second, 0xFDB9);
                }
            }
            this->multiply(quads, place + w * 8 * this->LEAD / PLACE_UNIT);
        }
        used();
    }

  private:
    // Quad m of row g + 8 r among the registers of four products.
    static __device__ __forceinline__ constexpr int slot(int m, int r) { return 4 * (m / 2) + m % 2 * 2 + r; }
};

__device__ __forceinline__ void store_output(const ForwardSmall &a, int64_t at, float y) {
    if (a.element == FLOAT32) {
        static_cast<float *>(a.y)[at] = y;
    } else {
        uint16_t bits;
        if (a.element == BFLOAT16)
            asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(y));
        else
            asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(y));
        static_cast<uint16_t *>(a.y)[at] = bits;
    }
}

template <int TURN>
struct Turn {
    static constexpr int value = TURN;
};

template <class Weights, class Kept, int GROUPS>
__device__ __forceinline__ void forward_small(const ForwardSmall &a) {
    constexpr int THREADS = GROUPS * GROUP_THREADS, WARPS = THREADS / 32;
    extern __shared__ __align__(128) char memory[];
    typedef typename Weights::Order Order;
    Shared &shared = *reinterpret_cast<Shared *>(memory);
    const uint32_t operand = shared_address(memory + sizeof(Shared));
    const int warp = __shfl_sync(0xFFFFFFFF, threadIdx.x / 32, 0);  // so that it is known to be the same in all lanes
    const int lane = threadIdx.x % 32, group = warp / 4, parts = GROUPS >> a.tiles_log;

    // The first words of the mask are on their way while x is converted.
    const int tile = group & ((1 << a.tiles_log) - 1);
    int step = first_step_of(a, 0) + (group >> a.tiles_log);
    const int stride = parts * STEP_CALLS;
    ThreadRows rows(a.generator, first_row_of(a) + tile * GROUP_ROWS + warp % 4 * 16 + lane / 4,
                    step * STEP_CALLS + lane % 4);
    Kept kept(a, rows, stride);

    if (threadIdx.x < MOST_VECTORS) shared.largest[threadIdx.x] = 0;
    Weights::prepare(a, shared);
    __syncthreads();
    // Sums of each group [vector][row], added up over the chunks.
    int64_t *sums = reinterpret_cast<int64_t *>(memory + a.sums_at);
    int chunk = first_step_of(a, 0);
    bool scaled = false;  // the first time, only the largest magnitudes are computed
#pragma unroll 1
    while (true) {
        const int last = first_step_of(a, 1), end = scaled ? min(chunk + a.chunk_steps, last) : last;
#pragma unroll 1
        for (int task = warp; task < (end - chunk) * a.batch; task += WARPS) {
            const int vector = task % a.batch, at = task / a.batch;
            float values[STEP_CALLS][4];
            load_step(values, a, vector, chunk + at, lane);
            if (scaled) {
                Order::write(values, shared.up[vector], vector, a.digits, lane, operand + at * Order::STEP_BYTES);
            } else {
                const uint32_t largest = largest_of(values);
                if (lane == 0) atomicMax(&shared.largest[vector], largest);
            }
        }
        if (!scaled) {
            block_barrier(cluster_of(a));
            if (threadIdx.x < a.batch) {
                uint32_t largest = 0;
#pragma unroll 1
                for (int i = 0; i < cluster_of(a); ++i)
                    largest = max(largest, read_block(shared.largest[threadIdx.x], i, cluster_of(a)));
                const FixedPoint fixed = fixed_point(largest, a.digits);
                shared.up[threadIdx.x] = make_float2(fixed.up, fixed.up_again);
                shared.power[threadIdx.x] = fixed.power;
            }
            __syncthreads();
            scaled = true;
            continue;
        }
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
        fence_for_products();
#endif
        __syncthreads();
        Weights weights;
        uint32_t place = operand_place<Weights::LEAD>(operand + (step - chunk) * Order::STEP_BYTES);
        const auto multiply = [&](auto turn) {
            constexpr int TURN = decltype(turn)::value;
            KeptWords words;
            kept.template take<TURN>(a, rows, stride, words);
            weights.add(a, shared, rows, words, place, [&] { kept.template used<TURN>(a, rows, stride); });
            rows.advance(stride);
            step += parts;
            place += parts * (Order::STEP_BYTES / PLACE_UNIT);
        };
#pragma unroll 1
        while (step < end) {
            multiply(Turn<0>());
            if constexpr (Kept::AHEAD == 2) {
                if (step >= end) break;  // only after the last chunk: others have an even number of steps
                multiply(Turn<1>());
            }
        }
        weights.wait();
        __syncthreads();  // the next chunk's operand, or the sums if there is one chunk, take the operand's place
        const bool first = chunk == first_step_of(a, 0);
        weights.finish(a, [&](int row, int v, int64_t sum) {
            int64_t &total = sums[(group * a.batch + v) * GROUP_ROWS + row];
            total = first ? sum : total + sum;
        });
        chunk = end;
        if (chunk >= last) break;
    }

    block_barrier(cluster_of(a));
    const uint32_t first_row = first_row_of(a);
    const int rows_log = GROUP_ROWS_LOG + a.tiles_log;
    const float scale = *a.scale;
#pragma unroll 1
    for (int i = rank_of(a) * THREADS + threadIdx.x; i < a.batch << rows_log; i += THREADS << a.cluster_log) {
        const int v = i >> rows_log, block_row = i & ((1 << rows_log) - 1);
        const uint32_t row = first_row + block_row;
        if (row >= a.generator.rows) continue;
        int64_t sum = 0;
#pragma unroll 1
        for (int block = 0; block < cluster_of(a); ++block)
#pragma unroll 1
            for (int from = block_row / GROUP_ROWS; from < GROUPS; from += 1 << a.tiles_log)
                sum +=
                    read_block(sums[(from * a.batch + v) * GROUP_ROWS + block_row % GROUP_ROWS], block, cluster_of(a));
        float y = rounded_sum(sum, shared.power[v], scale);
        if (a.bias != nullptr) y = __fadd_rn(y, a.bias[row]);
        store_output(a, uint64_t(v) * a.generator.rows + row, y);
    }
    if (a.cluster_log) block_barrier(cluster_of(a));  // a block's memory lasts until the others have read it
}

}  // namespace slt::cuda
