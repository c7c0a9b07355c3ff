// Loops over threads. Work is handed out piece by piece, since other work may share the cores; results never depend
// on who does what.
#pragma once

#include <cstdint>

namespace slt::SLT_ISA {
namespace {

// body(i) for i in [0, count), on up to `threads` threads.
template <class Body>
void parallel_for(int threads, int64_t count, const Body &body) {
#if defined(_OPENMP)
    if (threads > 1 && count > 1) {
        const int used = count < threads ? int(count) : threads;
#pragma omp parallel for num_threads(used) schedule(dynamic)
        for (int64_t i = 0; i < count; ++i) body(i);
        return;
    }
#endif
    for (int64_t i = 0; i < count; ++i) body(i);
}

}  // namespace
}  // namespace slt::SLT_ISA
