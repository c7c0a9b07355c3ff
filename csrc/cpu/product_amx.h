// `multiply` with AMX: tiles of 16 vectors by 16 lanes, 64 k a step (16 quads).
//
// Tile registers: 0 to 5 hold sums, a digit by a group each; 6 holds digits of x, 7 weights. Where all digits of all
// vectors fit 16 rows, as with a batch of 5, one tile holds them all, and 0 to 3 are the sums of the four groups.
#pragma once

namespace slt::SLT_ISA {
namespace {

struct alignas(64) TileConfiguration {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {};

    explicit TileConfiguration(int vectors) {
        for (int i = 0; i < 7; ++i) rows[i] = uint8_t(vectors);
        rows[7] = 16;
    }
};

// The thread's tile registers, for as long as this lives.
class Tiles {
  public:
    void configure(int vectors) {
        if (vectors == configured) return;
        const TileConfiguration configuration(vectors);
        _tile_loadconfig(&configuration);
        configured = vectors;
    }
    ~Tiles() {
        if (configured) _tile_release();
    }

  private:
    int configured = 0;
};

constexpr int STEP = 16 * LANES;  // words of a panel in one step

// All digits of a few vectors at once: rows of x are digit_pitch apart.
template <int DIGITS>
void few(const Vectors &x, const uint32_t *panel, int64_t quads, int32_t *tile) {
    const int64_t group = quads * LANES;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t q = 0; q < quads; q += 16, panel += STEP) {
        _tile_loadd(6, x.digits + q * 4, x.digit_pitch);
        _tile_loadd(7, panel, 64);
        _tile_dpbsud(0, 6, 7);
        _tile_loadd(7, panel + group, 64);
        _tile_dpbsud(1, 6, 7);
        _tile_loadd(7, panel + 2 * group, 64);
        _tile_dpbsud(2, 6, 7);
        _tile_loadd(7, panel + 3 * group, 64);
        _tile_dpbsud(3, 6, 7);
    }
    _tile_stored(0, tile, BLOCK * 4);
    _tile_stored(1, tile + LANES, BLOCK * 4);
    _tile_stored(2, tile + 2 * LANES, BLOCK * 4);
    _tile_stored(3, tile + 3 * LANES, BLOCK * 4);
}

// Sixteen vectors by two groups.
template <int DIGITS>
void many(const Vectors &x, const uint32_t *panel, int64_t quads, int32_t *tile) {
    const uint32_t *second = panel + quads * LANES;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    const Digit *x0 = x.digits, *x1 = x0 + x.digit_pitch, *x2 = x1 + x.digit_pitch;
    for (int64_t q = 0; q < quads; q += 16, panel += STEP, second += STEP) {
        _tile_loadd(7, panel, 64);
        _tile_loadd(6, x0 + q * 4, x.vector_pitch);
        _tile_dpbsud(0, 6, 7);
        _tile_loadd(6, x1 + q * 4, x.vector_pitch);
        _tile_dpbsud(1, 6, 7);
        if (DIGITS == 3) {
            _tile_loadd(6, x2 + q * 4, x.vector_pitch);
            _tile_dpbsud(2, 6, 7);
        }
        _tile_loadd(7, second, 64);
        _tile_loadd(6, x0 + q * 4, x.vector_pitch);
        _tile_dpbsud(3, 6, 7);
        _tile_loadd(6, x1 + q * 4, x.vector_pitch);
        _tile_dpbsud(4, 6, 7);
        if (DIGITS == 3) {
            _tile_loadd(6, x2 + q * 4, x.vector_pitch);
            _tile_dpbsud(5, 6, 7);
        }
    }
    constexpr int64_t row = DIGITS * BLOCK * 4;
    _tile_stored(0, tile, row);
    _tile_stored(1, tile + BLOCK, row);
    _tile_stored(3, tile + LANES, row);
    _tile_stored(4, tile + BLOCK + LANES, row);
    if (DIGITS == 3) {
        _tile_stored(2, tile + 2 * BLOCK, row);
        _tile_stored(5, tile + 2 * BLOCK + LANES, row);
    }
}

template <int DIGITS>
void multiply(Tiles &tiles, const Vectors &x, int64_t vectors, const uint32_t *panel, int used, int64_t quads,
              const Output &out) {
    alignas(64) int32_t tile[MOST_VECTORS * DIGITS * BLOCK];
    const bool together = vectors * DIGITS <= 16 && x.vector_pitch == DIGITS * x.digit_pitch;
    for (int64_t v = 0; v < vectors; v += MOST_VECTORS) {
        const int count = vectors - v < MOST_VECTORS ? int(vectors - v) : MOST_VECTORS;
        tiles.configure(together ? count * DIGITS : count);
        const Vectors here = {x.digits + v * x.vector_pitch, x.vector_pitch, x.digit_pitch};
        if (together)
            few<DIGITS>(here, panel, quads, tile);
        else
            for (int g = 0; g < used; g += 2)
                many<DIGITS>(here, panel + g * quads * LANES, quads, tile + g * LANES);
        for (int i = 0; i < count; ++i) finish<DIGITS>(tile + i * DIGITS * BLOCK, v + i, out);
    }
}

}  // namespace
}  // namespace slt::SLT_ISA
