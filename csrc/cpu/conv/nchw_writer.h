// Writes results as NCHW images.
#pragma once

#include "cpu/machine/dtype.h"
#include "cpu/machine/scratch.h"

namespace slt::SLT_ISA {
namespace {

// Collects results as [position][lane] and writes them transposed, a whole cache line of a channel at a time: writing
// parts of lines costs several times more. `Number`: float, which is rounded to the type of the images, or uint16_t,
// bits of that type already.
template <class Number>
class NchwWriter {
  public:
    static constexpr int64_t BYTES = 144 << 10, MOST = 256;
    const int64_t pitch;

    // The number of positions that fit. Whole registers are read, past the last position too.
    static constexpr int64_t room(int64_t pitch) {
        const int64_t rows = BYTES / int64_t(sizeof(Number)) / pitch - LANES;
        return least(rows, MOST);
    }

    // `lanes` outputs, at most MOST_LANES, each a plane of `plane` pixels.
    NchwWriter(int64_t lanes, const Result &y, int64_t plane)
        : pitch(ceil_div(lanes, LANES) * LANES),
          lanes(lanes),
          plane(plane),
          most(lanes == 0 ? 0 : room(pitch)),
          y(y),
          rows(lanes == 0 ? 0 : (most + LANES) * pitch) {}

    // Room for the next positions; `places`: where their first lanes are in y.
    Result add(const int64_t *places, int positions) {
        if (count + positions > most) write();
        memcpy(place + count, places, positions * sizeof *places);
        count += positions;
        return {reinterpret_cast<char *>(rows + (count - positions) * pitch), NARROW ? y.type : Type::FLOAT32};
    }

    void write() {
        for (int64_t v = 0, run; v < count; v += run) {
            for (run = 1; v + run < count && place[v + run] == place[v] + run;) ++run;
            for (int64_t lane = 0; lane < lanes; lane += LANES)
                write_run(rows + v * pitch + lane, run, int(least(lanes - lane, LANES)),
                          y + lane * plane + place[v]);
        }
        count = 0;
    }

  private:
    static constexpr bool NARROW = sizeof(Number) == 2;
    const int64_t lanes, plane, most;
    const Result y;
    const Scratch<Number> rows;  // the last LANES are only read
    int64_t place[MOST];
    int64_t count = 0;

    void write_run(const Number *from, int64_t run, int lanes_here, const Result &to) const {
        if (run < 4) {
            for (int64_t i = 0; i < run; ++i)
                for (int l = 0; l < lanes_here; ++l) put(read(from + i * pitch + l), 1, to + (l * plane + i));
            return;
        }
        for (int64_t i = 0, here; i < run; i += here) {
            here = LANES - int64_t(uintptr_t((to + i).data) / to.size() % LANES);  // up to the end of a cache line
            here = least(here, run - i);
            S32 square[LANES];
            for (int j = 0; j < LANES; ++j) square[j] = read(from + (i + j) * pitch);
            transpose(square);
            if (here == LANES && lanes_here == LANES) {
                SLT_UNROLL for (int l = 0; l < LANES; ++l) put(square[l], LANES, to + (l * plane + i));
            } else {
                for (int l = 0; l < lanes_here; ++l) put(square[l], here, to + (l * plane + i));
            }
        }
    }

    static SLT_INLINE S32 read(const Number *from) {
        if constexpr (NARROW)
            return (S32)__builtin_convertvector(load<U16>(from), U32);
        else
            return load<S32>(from);
    }

    static SLT_INLINE void put(S32 v, int64_t count, const Result &to) {
        if constexpr (NARROW) {
            const U16 narrow = __builtin_convertvector((U32)v, U16);
            memcpy(to.data, &narrow, size_t(count) * sizeof(uint16_t));
        } else {
            write_floats((F32)v, count, to);
        }
    }
};

}  // namespace
}  // namespace slt::SLT_ISA
