// The thread's AMX tile registers: eight of 16 rows of 64 bytes, or of fewer rows.
#pragma once

#include "cpu/machine/simd.h"

namespace slt::SLT_ISA {
namespace {

// gcc 12's intrinsics say neither that a tile nor that a configuration is read from memory, so what stands there may
// never have been stored. Before the first of some loads, this has it stored.
SLT_INLINE void tile_memory() { asm volatile("" ::: "memory"); }

// Configures them, for as long as this lives.
class Tiles {
  public:
    Tiles() = default;
    Tiles(const Tiles &) = delete;
    Tiles &operator=(const Tiles &) = delete;
    ~Tiles() {
        if (now.palette) _tile_release();
    }

    // `rows` of each register, and all 16 of those whose bit is set in `whole`.
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
