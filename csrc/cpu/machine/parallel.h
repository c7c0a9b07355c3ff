// Parallel loops. Threads take one piece of work after another, because other programs may share the cores. Results do
// not depend on which thread takes a piece, nor on the floating-point control of the threads.
#pragma once

#include "cpu/machine/errors.h"

namespace slt::SLT_ISA {
namespace {

// body(i) for i in [0, count), on up to `threads` threads. The calling thread has a `DefaultFloatControl`.
template <class Body>
void parallel_for(int threads, int64_t count, const Body &body) {
#if defined(_OPENMP)
    if (threads > 1 && count > 1) {
        const auto work = [](const void *context, int64_t i) { (*static_cast<const Body *>(context))(i); };
        bool failed = false;
#pragma omp parallel for num_threads(int(count < threads ? count : threads)) schedule(dynamic) reduction(|| : failed)
        for (int64_t i = 0; i < count; ++i) failed = failed || !run_piece(work, &body, i);
        if (failed) out_of_memory();
        return;
    }
#endif
    for (int64_t i = 0; i < count; ++i) body(i);
}

}  // namespace
}  // namespace slt::SLT_ISA
