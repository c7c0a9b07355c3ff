// Planes of bfloat16: the images themselves if they need no zeros around them, or a copy.
#pragma once

#include "cpu/conv/geometry.h"
#include "cpu/gemm/gemm_amx_bf16.h"
#include "cpu/layout/pixels.h"

namespace slt::SLT_ISA {
namespace {

#if defined(SLT_AMX)

class Bfloat16Planes : public PlanesOf<uint16_t> {
  public:
    typedef uint16_t Element;
    typedef Bfloat16Product Product;
    static constexpr int PLANES = 1, VECTORS = Bfloat16Product::VECTORS;
    static constexpr int64_t TILE = 32;  // elements in a row of a tile

    // Elements of a pixel.
    static int64_t pixel_of(const Images &x, Reading) { return x.channels; }

    // The unnamed arguments are for fixed point.
    Bfloat16Planes(const Images &x, const Border &around, Reading reading, Layout, bool, int, int threads)
        : PlanesOf(x, around, reading, pixel_of(x, reading), sizeof(U32)), memory(is_view() ? 0 : plane) {
        if (is_view()) {
            first = reinterpret_cast<const uint16_t *>(x.data.data);
            return;
        }
        memset(memory, 0, size_t(before()) * sizeof(uint16_t));
        first = memory + before();
        const int64_t parts = parts_of_sample(threads);
        parallel_for(threads, x.samples * parts, [&](int64_t piece) {
            const int64_t part = piece % parts;
            write_rows(piece / parts, x.height * part / parts, x.height * (part + 1) / parts);
        });
    }

    // Vectors to multiply at a time.
    int together(const Taps &taps) const { return overlap(taps, VECTORS, PLANES) ? VECTORS : 32; }

    // Unused; see DigitPlanes.
    int64_t sum_of(const uint16_t *, int64_t, int64_t) const { return 0; }

    // Panels are as `multiply` reads them.
    void prepare(uint32_t *, int64_t, int64_t) const {}

  private:
    const Scratch<uint16_t> memory;

    bool is_view() const {
        return x.channels_last && reading != Reading::PACKED && before() == 0 && sample == x.pixels() * pixel;
    }

    // Writes rows [from, end) of a sample, with the zeros after them.
    void write_rows(int64_t index, int64_t from, int64_t end) const {
        uint16_t *out = memory + before() + index * sample;
        if (x.channels_last) {
            for (int64_t h = from; h < end; ++h)
                memcpy(out + h * row, (x.data + (index * x.pixels() + h * x.width) * pixel).data,
                       size_t(x.width * pixel) * sizeof(uint16_t));
        } else {
            transpose_rows(index, from, end, out);
        }
        clear_border(out, from, end);
    }

    static constexpr int64_t AHEAD = 128;  // pixels

    // Prefetches the next pixels of 32 channels, several lines of one channel after the other: each channel is in
    // another page.
    void fetch(int64_t index, int64_t c, int64_t first, int64_t end) const {
        const int64_t last = least(first + AHEAD, end);
        for (int64_t channel = c; channel < c + TILE && channel < x.channels; ++channel)
            for (int64_t i = first; i < last; i += 32)
                __builtin_prefetch((x.data + ((index * x.channels + channel) * x.pixels() + i)).data);
    }

    // Writes rows of NCHW images: 32 channels by 16 pixels at a time, transposed.
    void transpose_rows(int64_t index, int64_t from, int64_t end, uint16_t *out) const {
        for (int64_t c = 0; c < x.channels; c += TILE) {
            const __mmask32 exist = x.channels - c < TILE ? (1u << (x.channels - c)) - 1 : ~0u;
            Position p(from * x.width, x.height, x.width);
            for (int64_t i = from * x.width; i < end * x.width; i += LANES) {
                const int64_t n = least(end * x.width - i, LANES);
                if ((i - from * x.width) % AHEAD == 0) fetch(index, c, i + AHEAD, end * x.width);
                F32 low[LANES], high[LANES];
                read_pixels(x, index, i, n, c, x.channels, low);
                read_pixels(x, index, i, n, c + LANES, x.channels, high);
                for (int64_t j = 0; j < n; ++j, p.next())
                    _mm512_mask_storeu_epi16(out + p.h * row + p.w * pixel + c, exist,
                                             (__m512i)_mm512_cvtne2ps_pbh((__m512)high[j], (__m512)low[j]));
            }
        }
    }
};

#endif

}  // namespace
}  // namespace slt::SLT_ISA
