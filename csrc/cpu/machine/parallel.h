// Parallel loops. Threads take one run of pieces after another, because other programs may share the cores. Where there
// are many pieces a run has several, because threads wait for each other to take one. Results do not depend on which
// thread takes a piece, nor on the floating-point control of the threads.
#pragma once

#include "cpu/machine/errors.h"

namespace slt::SLT_ISA {
namespace {

// Not inlined: with and without threads, a body is compiled once.
template <class Body>
__attribute__((noinline)) void piece_of(const void *body, int64_t i) {
    (*static_cast<const Body *>(body))(i);
}

[[maybe_unused]] constexpr int64_t RUNS = 16;  // of a thread, about

// body(i) for i in [0, count), on up to `threads` threads. The calling thread has a `DefaultFloatControl`.
template <class Body>
void parallel_for(int threads, int64_t count, const Body &body) {
#if defined(_OPENMP)
    if (threads > 1 && count > 1) {
        bool failed = false;
        const int64_t run = count / (RUNS * threads) + 1;
#pragma omp parallel for num_threads(int(count < threads ? count : threads)) schedule(dynamic, run) \
    reduction(|| : failed)
        for (int64_t i = 0; i < count; ++i) failed = failed || !run_piece(piece_of<Body>, &body, i);
        if (failed) out_of_memory();
        return;
    }
#endif
    for (int64_t i = 0; i < count; ++i) piece_of<Body>(&body, i);
}

}  // namespace
}  // namespace slt::SLT_ISA
