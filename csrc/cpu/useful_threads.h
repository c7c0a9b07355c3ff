// The number of threads for a product: one if a second thread would cost more than it saves.
//
// Measured by `bench/crossings.py --divide-all`: a product of less than some 40 us is up to a quarter slower on two
// threads than on one, even with both awake. If other programs hold a core, the second thread may start milliseconds
// late.
#pragma once

#include "operations.h"

namespace slt {

// The work of a product, in multiplications. Making a weight costs 16.
inline int64_t work_of(const Source &s, int64_t vectors) { return s.rows * s.fan * (vectors + 16); }
inline int64_t work_of(const LinearForward &a) { return work_of(a.source, a.batch); }
inline int64_t work_of(const LinearGradInput &a) { return work_of(a.source, a.batch); }
// Converting or moving an element of an image costs 24. The vectors of a Linear, images of one pixel, are not counted.
template <class X, class Y>
int64_t work_of_images(const Source &s, const X &x, const Y &y) {
    const int64_t pixels = x.pixels() == 1 ? 0 : greatest(x.channels * x.pixels(), y.channels * y.pixels());
    return work_of(s, y.samples * y.pixels()) + 24 * x.samples * pixels;
}
inline int64_t work_of(const Conv2dForward &a) { return work_of_images(a.source, a.x, a.y); }
inline int64_t work_of(const Conv2dGradInput &a) { return work_of_images(a.source, a.dx, a.dy); }
inline int64_t work_of(const GradScores &a) { return work_of_images(a.source, a.x, a.dy); }

template <class Arguments>
int64_t work_of(const Arguments &) {  // other operations divide their work into pieces that are large enough
    return INT64_MAX;
}

inline int64_t least_divided_work = 3 << 20;  // tests set it to 0, so that small products use threads too

template <class Arguments>
int useful_threads(const Arguments &a, int threads) {
    return threads > 1 && work_of(a) < least_divided_work ? 1 : threads;
}

}  // namespace slt
