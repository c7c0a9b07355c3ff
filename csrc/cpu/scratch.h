// Memory for the length of one call, on whole cache lines.
#pragma once

#include <cstdint>
#include <cstdlib>

namespace slt::SLT_ISA {
namespace {

template <class T>
class Scratch {
  public:
    T *const data;

    explicit Scratch(int64_t count)
        : data(static_cast<T *>(aligned_alloc(64, (uint64_t(count) * sizeof(T) + 127) / 64 * 64))) {
        if (!data) abort();  // as the kernel's own overcommit would end it
    }
    ~Scratch() { free(data); }
    Scratch(const Scratch &) = delete;
    Scratch &operator=(const Scratch &) = delete;
    operator T *() const { return data; }
};

}  // namespace
}  // namespace slt::SLT_ISA
