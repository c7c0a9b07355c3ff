// What bounds a large batch on a CPU with AMX: products of int8 tiles (16 x 16 x 64), and where their operands come
// from.
//
//     c++ -std=c++20 -O3 -mavx512f -mamx-tile -mamx-int8 bench/cpu_tiles.cpp -o /tmp/cpu_tiles && /tmp/cpu_tiles
//
// On one thread. Cycles are those of a chain of dependent multiplications, three each, timed in the same run.
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

constexpr int64_t TILE = 1024, REPEATS = 30;  // bytes; the best repeat counts

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

// `count`: of the measured thing per call of body.
template <class Body>
static void measure(const char *name, int64_t count, const Body &body) {
    double best = 1;
    for (int repeat = 0; repeat < REPEATS; ++repeat) {
        const double start = seconds();
        body();
        const double each = (seconds() - start) / double(count);
        best = each < best ? each : best;
    }
    printf("%-36s %6.1f ns  %5.0f cycles\n", name, best * 1e9, best / cycle());
}

static void load(const char *from, int64_t tiles, int64_t rounds) {
    for (int64_t r = 0; r < rounds; ++r)
        for (int64_t t = 0; t < tiles; ++t) _tile_loadd(6, from + t * TILE, 64);
}

int main() {
    if (syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */)) return 1;
    struct alignas(64) {
        uint8_t palette = 1, start = 0, reserved[14] = {};
        uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } configuration;
    asm volatile("" ::"m"(configuration) : "memory");
    _tile_loadconfig(&configuration);

    constexpr int64_t MOST = 16384;
    char *memory = static_cast<char *>(aligned_alloc(TILE, MOST * TILE));
    memset(memory, 1, MOST * TILE);
    _tile_loadd(6, memory, 64);
    _tile_loadd(7, memory, 64);
    measure("a product, operands in registers", 60000, [] {
        for (int i = 0; i < 10000; ++i) {
            _tile_dpbssd(0, 6, 7);
            _tile_dpbssd(1, 6, 7);
            _tile_dpbssd(2, 6, 7);
            _tile_dpbssd(3, 6, 7);
            _tile_dpbssd(4, 6, 7);
            _tile_dpbssd(5, 6, 7);
        }
    });
    measure("an operand from 16 KB", 16 * 1000, [&] { load(memory, 16, 1000); });
    measure("an operand from 512 KB", 512 * 30, [&] { load(memory, 512, 30); });
    measure("an operand from 16 MB", MOST, [&] { load(memory, MOST, 1); });
}
