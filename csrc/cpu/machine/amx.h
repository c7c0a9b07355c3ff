// The thread's AMX tile registers: eight, each of up to 16 rows of 64 bytes.
#pragma once

#include "cpu/machine/simd.h"

#if defined(SLT_AMX)

namespace slt::SLT_ISA {
namespace {

// gcc 12's intrinsics do not declare that tiles and configurations are read from memory, so it may drop the stores
// before a load. Call this after the stores.
SLT_INLINE void tile_memory() { asm volatile("" ::: "memory"); }

// Configures the tile registers for the lifetime of the object.
class Tiles {
  public:
    Tiles() = default;
    Tiles(const Tiles &) = delete;
    Tiles &operator=(const Tiles &) = delete;
    ~Tiles() {
        if (now.palette) _tile_release();
    }

    // `rows` rows for each register; 16 for registers whose bit is set in `whole`.
    void configure(int rows, int whole = 0) {
        if (now.palette && rows == now_rows && whole == now_whole) return;
        now.palette = 1;
        for (int i = 0; i < 8; ++i) {
            now.bytes[i] = 64;
            now.rows[i] = uint8_t(whole >> i & 1 ? 16 : rows);
        }
        now_rows = rows;
        now_whole = whole;
        tile_memory();
        _tile_loadconfig(&now);
    }

  private:
    struct alignas(64) {
        uint8_t palette = 0, start_row = 0, reserved[14] = {};
        uint16_t bytes[16] = {};
        uint8_t rows[16] = {};
    } now;
    int now_rows = 0, now_whole = 0;
};

}  // namespace
}  // namespace slt::SLT_ISA

#endif
