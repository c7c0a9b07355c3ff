// The bounds of a product on the CPU without a matrix unit, on one thread: the cost of making weights, 2048 at a time
// (16 rows x 128 k), and of multiplying by them.
//
//     flags="-std=c++20 -O3 -ffp-contract=off -mavx2 -mfma -mf16c -mbmi -mbmi2 -mavx512f -mavx512bw -mavx512dq"
//     flags="$flags -mavx512vl -mprefer-vector-width=512 -mavx512vnni -mavx512vbmi -mgfni"
//     c++ $flags -DSLT_ISA=avx512vnni -Icsrc bench/cpu_generator.cpp -o /tmp/cpu_generator && /tmp/cpu_generator
//
// Two calls are made at a time, as in products. The cycle is timed in the same run, by a chain of dependent
// multiplications of three cycles each.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "cpu/weights/generate.h"

using namespace slt;
using namespace slt::SLT_ISA;

constexpr int64_t ROWS = 1024, CALLS = 32, ROUNDS = 20, REPEATS = 100;  // the best repeat counts

static double seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

static double cycle() {
    double best = 1;
    for (int repeat = 0; repeat < 5; ++repeat) {
        uint64_t x = 1;
        const double start = seconds();
        for (int64_t i = 0; i < 20000000; ++i) asm volatile("imul %0, %0" : "+r"(x));
        const double each = (seconds() - start) / 60000000;
        best = each < best ? each : best;
    }
    return best;
}

template <class Body>
static void measure(const char *name, const Body &body) {
    double best = 1;
    for (int repeat = 0; repeat < REPEATS; ++repeat) {
        const double start = seconds();
        for (int64_t i = 0; i < ROUNDS; ++i)
            for (int64_t row = 0; row < ROWS; row += LANES)
                for (int64_t call = 0; call < CALLS; call += 2) body(row, call);
        const double each = (seconds() - start) / double(ROUNDS * ROWS / LANES * CALLS);
        best = each < best ? each : best;
    }
    printf("%-22s %6.1f ns  %5.0f cycles\n", name, best * 1e9, best / cycle());
}

// The vector instructions that make 2048 weights of signed_constant (cpu/weights/generate.h), independent of each
// other: the bound of the processor.
static void mixed() {
#define PAIR(r) "vpmuludq %%zmm20, %%zmm" #r ", %%zmm" #r "\n vpsrlq $32, %%zmm" #r ", %%zmm" #r "\n"
#define THREE(r) PAIR(r) "vpternlogq $0x96, %%zmm20, %%zmm21, %%zmm" #r "\n"
#define TWELVE(x) x(0) x(1) x(2) x(3) x(4) x(5) x(6) x(7) x(8) x(9) x(10) x(11)
    asm volatile(TWELVE(THREE) TWELVE(THREE) TWELVE(THREE) TWELVE(THREE) TWELVE(THREE)  // 180
                 THREE(0) THREE(1) PAIR(2)::: "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6", "zmm7", "zmm8",
                 "zmm9", "zmm10", "zmm11");
}

// The dot products of 4096 weights with one digit of a vector.
static void dot_products() {
#define DOT(r) "vpdpbusd %%zmm20, %%zmm21, %%zmm" #r "\n"
#define SIXTEEN(x) TWELVE(x) x(12) x(13) x(14) x(15)
    asm volatile(SIXTEEN(DOT) SIXTEEN(DOT) SIXTEEN(DOT) SIXTEEN(DOT)::: "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5",
                 "zmm6", "zmm7", "zmm8", "zmm9", "zmm10", "zmm11", "zmm12", "zmm13", "zmm14", "zmm15");
}

// The same with sixteen vectors of integers, as sums from tables: one line for three weights, with known numbers.
static void lines(const uint32_t *tables) {
#define LINE(r) "vpaddd " #r "*64(%0), %%zmm" #r ", %%zmm" #r "\n"
    for (int i = 0; i < 4096 / 48; ++i, tables += 16)
        asm volatile(SIXTEEN(LINE) : "+r"(tables) : : "memory", "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6",
                     "zmm7", "zmm8", "zmm9", "zmm10", "zmm11", "zmm12", "zmm13", "zmm14", "zmm15");
}

int main() {
    const int64_t words = CALLS * WORDS_PER_CALL;
    uint32_t *mask = static_cast<uint32_t *>(aligned_alloc(64, ROWS * words * 4));
    for (int64_t i = 0; i < ROWS * words; ++i) mask[i] = uint32_t(rand()) * 2654435761u;
    alignas(64) static uint32_t out[2 * QUADS * LANES];
    U32 sum = {}, two[2][4];

    Source source = {ROWS, CALLS * CALL, 42, 1, SIGNED_CONSTANT, 0, 256, 0, 0, CALLS};
    const Generator generator(source, SIGN);
    measure("188 mixed instructions", [&](int64_t, int64_t) { mixed(), mixed(); });
    measure("one call of Philox", [&](int64_t row, int64_t call) {
        generator({sign_index(source, row, call), sign_index(source, row, call + 1)}, two);
        for (int i = 0; i < 8; ++i) sum ^= two[i / 4][i % 4];
    });
    measure("mask words", [&](int64_t row, int64_t call) {
        load_words(mask + row * words, words, ROWS - row, call * WORDS_PER_CALL, two[0]);
        load_words(mask + row * words, words, ROWS - row, (call + 1) * WORDS_PER_CALL, two[1]);
        for (int i = 0; i < 8; ++i) sum ^= two[i / 4][i % 4];
    });
    measure("a digit", [&](int64_t, int64_t) { dot_products(); });
    measure("lines, 16 vectors", [&](int64_t, int64_t) { lines(mask); });
    Source half = source;
    half.prune_below = 90, half.lock_from = 166;
    const FrozenWords frozen(half);
    const Frame frame = frame_of(half);
    measure("frozen pattern", [&](int64_t row, int64_t call) {
        for (int64_t word = call * WORDS_PER_CALL; word < (call + 2) * WORDS_PER_CALL; ++word) {
            frozen(word_index(half, row, frame, word), two[0][0], two[0][1]);
            sum ^= two[0][0] ^ two[0][1];
        }
    });
    half.prune_below = 80, half.lock_from = 160;
    const FrozenWords sixteenths(half);
    measure("frozen pattern, sixteenths", [&](int64_t row, int64_t call) {
        for (int64_t word = call * WORDS_PER_CALL; word < (call + 1) * WORDS_PER_CALL; ++word) {
            U32 free[2], locked[2];
            const Index of_rows = word_index(half, row, frame, word);
            const Index of_next = of_rows + LANES * half.row_calls * WORDS_PER_CALL;
            sixteenths.by_one_call({of_rows, of_next}, free, locked, Nothing());
            sum ^= free[0] ^ free[1] ^ locked[0] ^ locked[1];
        }
    });
    const std::pair<const char *, Weight> kinds[] = {
        {"signed constant", SIGNED_CONSTANT}, {"uniform", UNIFORM}, {"normal", NORMAL}};
    for (const auto &[name, weight] : kinds) {
        source.weight = weight;
        const Weights weights(source, mask);
        measure(name, [&](int64_t row, int64_t call) { weights.write(row, call, 2, out); });
    }
    uint32_t kept = out[0];
    for (int i = 0; i < LANES; ++i) kept ^= sum[i];
    printf("(%u)\n", kept);  // keeps the computation above
    free(mask);
}
