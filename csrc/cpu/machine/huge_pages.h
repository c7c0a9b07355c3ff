// Memory that a kernel is the first to touch. A fault for each 4 KB page costs more than writing the page does (28
// against 13 ms for 64 MB in a virtual machine), so large arrays ask for large pages.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace slt::SLT_ISA {
namespace {

// A wish, for the whole large pages inside [at, at + bytes); nothing depends on whether it is granted.
inline void want_large_pages([[maybe_unused]] void *at, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr uintptr_t PAGE = 2 << 20;
    const uintptr_t start = (uintptr_t(at) + PAGE - 1) / PAGE * PAGE, end = (uintptr_t(at) + bytes) / PAGE * PAGE;
    if (start < end) madvise(reinterpret_cast<void *>(start), end - start, MADV_HUGEPAGE);
#endif
}

}  // namespace
}  // namespace slt::SLT_ISA
