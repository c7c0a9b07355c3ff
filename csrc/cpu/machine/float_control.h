// Rounding mode and the treatment of denormal numbers are a state of each thread. Programs change it
// (torch.set_flush_denormal) and new threads inherit it; results must not depend on it.
#pragma once

#include <cstdint>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace slt {

// During its lifetime, its thread rounds to nearest, keeps denormal numbers, and does not trap.
class DefaultFloatControl {
  public:
    DefaultFloatControl() : before(get()) { set(DEFAULT); }
    ~DefaultFloatControl() { set(before); }
    DefaultFloatControl(const DefaultFloatControl &) = delete;
    DefaultFloatControl &operator=(const DefaultFloatControl &) = delete;

  private:
#if defined(__SSE2__)
    typedef uint32_t State;  // MXCSR
    static constexpr State DEFAULT = 0x1F80;

    static State get() { return _mm_getcsr(); }
    static void set(State state) { _mm_setcsr(state); }
#elif defined(__aarch64__)
    typedef uint64_t State;  // FPCR
    static constexpr State DEFAULT = 0;

    static State get() {
        State state;
        asm volatile("mrs %0, fpcr" : "=r"(state));
        return state;
    }
    static void set(State state) { asm volatile("msr fpcr, %0" : : "r"(state) : "memory"); }
#else
    typedef int State;
    static constexpr State DEFAULT = 0;

    static State get() { return DEFAULT; }
    static void set(State) {}
#endif

    const State before;
};

}  // namespace slt
