// Huge pages for memory that a kernel is the first to touch: a fault for each 4 KB page costs more than writing the
// page.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace slt::SLT_ISA {
namespace {

// Advises the whole huge pages inside [at, at + bytes); the system may ignore it.
inline void advise_huge_pages([[maybe_unused]] void *at, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr uintptr_t PAGE = 2 << 20;
    const uintptr_t start = (uintptr_t(at) + PAGE - 1) / PAGE * PAGE, end = (uintptr_t(at) + bytes) / PAGE * PAGE;
    if (start < end) madvise(reinterpret_cast<void *>(start), end - start, MADV_HUGEPAGE);
#endif
}

}  // namespace
}  // namespace slt::SLT_ISA
