// Memory for the length of one call, aligned to cache lines; 64 bytes behind its end may be read.
#pragma once

#include <cstdint>
#include <cstdlib>

#include "cpu/machine/errors.h"
#include "cpu/machine/huge_pages.h"

namespace slt::SLT_ISA {
namespace {

// Up to WITHIN bytes are in the object itself: small products would spend more on an allocation than on their sums.
template <class T, int64_t WITHIN = 0>
class Scratch {
    alignas(64) char within[WITHIN + 64];

  public:
    T *const data;

    explicit Scratch(int64_t count) : data(static_cast<T *>(allocate(count))) {
        if (!data) out_of_memory();
        // glibc returns blocks above 32 MB to the system, so that each call faults their pages again.
        const int64_t bytes = count * int64_t(sizeof(T));
        if (bytes > 32 << 20) advise_huge_pages(data, bytes);
    }
    ~Scratch() {
        if (static_cast<void *>(data) != within) free(data);
    }
    Scratch(const Scratch &) = delete;
    Scratch &operator=(const Scratch &) = delete;
    operator T *() const { return data; }

  private:
    static constexpr int64_t MOST = (INT64_MAX - 127) / sizeof(T);

    void *allocate(int64_t count) {
        if (count < 0 || count > MOST) return nullptr;
        const int64_t bytes = count * int64_t(sizeof(T));
        return bytes <= WITHIN ? within : aligned_alloc(64, (bytes + 127) / 64 * 64);
    }
};

}  // namespace
}  // namespace slt::SLT_ISA
