// What a thread keeps from one product to the next: the configuration of its tile registers, or sums from tables.
#pragma once

#include <optional>

#include "cpu/gemm/fixed_point.h"
#include "cpu/machine/amx.h"
#include "cpu/machine/scratch.h"

namespace slt::SLT_ISA {
namespace {

// For tables: the vectors of one table, the fewest outputs that are worth one, and the bytes of an output's sums.
constexpr int LINE = 16;
constexpr int64_t TABLE_OUTPUTS = 128, SUM_BYTES = 3 * LINE * sizeof(uint32_t);

#if defined(SLT_AMX)

typedef Tiles Workspace;

#elif !SLT_TABLES

struct Workspace {};

#else

// Sums [output][LINE], allocated when a product needs them.
class Workspace {
  public:
    struct Sums {
        Scratch<uint32_t> now, low, high;

        explicit Sums(int64_t outputs) : now(outputs * LINE), low(outputs * LINE), high(outputs * LINE) {}
    };

    // For at least `outputs`.
    const Sums &sums(int64_t outputs) {
        if (outputs > made) sums_.emplace(made = outputs);
        return *sums_;
    }

  private:
    int64_t made = 0;
    std::optional<Sums> sums_;
};

#endif

}  // namespace
}  // namespace slt::SLT_ISA
