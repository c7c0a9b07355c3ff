// Memory for the length of one call, on whole cache lines; 64 bytes behind its end may be read. glibc returns blocks
// above 32 MB to the system, so that each call faults their pages again: such blocks ask for large ones.
#pragma once

#include <cstdint>
#include <cstdlib>

#include "cpu/machine/errors.h"
#include "cpu/machine/huge_pages.h"

namespace slt::SLT_ISA {
namespace {

template <class T>
class Scratch {
  public:
    T *const data;

    explicit Scratch(int64_t count)
        : data(count < 0 || count > MOST ? nullptr
                                         : static_cast<T *>(aligned_alloc(64, (count * sizeof(T) + 127) / 64 * 64))) {
        if (!data) out_of_memory();
        const int64_t bytes = count * int64_t(sizeof(T));
        if (bytes > 32 << 20) want_large_pages(data, bytes);
    }
    ~Scratch() { free(data); }
    Scratch(const Scratch &) = delete;
    Scratch &operator=(const Scratch &) = delete;
    operator T *() const { return data; }

  private:
    static constexpr int64_t MOST = (INT64_MAX - 127) / sizeof(T);
};

}  // namespace
}  // namespace slt::SLT_ISA
