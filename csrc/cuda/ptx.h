// Instructions that C++ has no expression for, a function each. Products are of the matrices that one warp (mma) or
// one warpgroup (wgmma) holds: a thread (g, t), g = lane / 4 and t = lane % 4, has the first operand's rows g and
// g + 8, and of the sums those rows and columns 8 j + 2 t, 8 j + 2 t + 1.
#pragma once

#include <cstdint>

namespace slt::cuda {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool WARPGROUP_PRODUCTS = true;
#else
constexpr bool WARPGROUP_PRODUCTS = false;
#endif

// Later tensor cores emulate products of bits: no launch uses them there.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr bool BIT_PRODUCTS = false;
#else
constexpr bool BIT_PRODUCTS = true;
#endif

// The address of shared memory as instructions take it.
__device__ __forceinline__ uint32_t shared_address(const void *p) { return uint32_t(__cvta_generic_to_shared(p)); }

// blockIdx.x, which is not kept in a register from use to use.
__device__ __forceinline__ uint32_t block_number() {
    uint32_t number;
    asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(number));
    return number;
}

// threadIdx.x, likewise.
__device__ __forceinline__ uint32_t thread_number() {
    uint32_t number;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(number));
    return number;
}

// Registers that are computed before products that read them, or read after products that wrote them.
template <int N>
__device__ __forceinline__ void pin(uint32_t (&r)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+r"(r[i])::"memory");
}
template <int N>
__device__ __forceinline__ void pin(int (&r)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+r"(r[i])::"memory");
}
template <int N>
__device__ __forceinline__ void pin(float (&r)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+f"(r[i])::"memory");
}

// An address that is in registers as it is: nothing that it was computed of is added later instead.
__device__ __forceinline__ const char *opaque(const char *address) {
    asm volatile("" : "+l"(address));
    return address;
}

// Four matrices of 8 rows of 16 bytes; lane l gives the address of row l % 8 of matrix l / 8, and gets word t of row g.
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

// The same, each matrix transposed: elements g of rows 2 t and 2 t + 1, of 16 bits.
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

// d += a b, 16 rows and 8 columns: over 256 bits, and over 32 bytes.
__device__ __forceinline__ void multiply_bits(int *d, const uint32_t *a, uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void multiply_bytes(int *d, const uint32_t *a, uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// d += a b, 16 rows and 8 columns, over 8 elements of float32, whose low 13 bits are dropped.
__device__ __forceinline__ void multiply_tf32(float *d, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                              uint32_t b1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// To the nearest number that TF32 has.
__device__ __forceinline__ uint32_t rounded_tf32(uint32_t x) {
    uint32_t rounded;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(x)));
    return rounded;
}

// Brings what is at an address in global memory to the L2 cache.
__device__ __forceinline__ void prefetch(const void *address) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

// A store to global memory, at an address that the compiler knows nothing of.
__device__ __forceinline__ void store_global(const void *address, float value) {
    asm volatile("st.global.f32 [%0], %1;" ::"l"(address), "f"(value) : "memory");
}

// d += a b, 16 rows and 8 columns, over 16 floats of a type.
template <class Type>
__device__ __forceinline__ void multiply_floats(float *d, const uint32_t *a, uint32_t b0, uint32_t b1);
#define SLT_FLOATS(TYPE, NAME)                                                                                         \
    struct TYPE {};                                                                                                    \
    template <>                                                                                                        \
    __device__ __forceinline__ void multiply_floats<TYPE>(float *d, const uint32_t *a, uint32_t b0, uint32_t b1) {     \
        asm("mma.sync.aligned.m16n8k16.row.col.f32." NAME "." NAME ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "         \
            "{%8, %9}, {%0, %1, %2, %3};"                                                                              \
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                           \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                                           \
    }
SLT_FLOATS(Bfloat16, "bf16")
SLT_FLOATS(Float16, "f16")

// A matrix of 8 rows and 8 columns of 16 bits, transposed; lane (g, t) has columns 2 t and 2 t + 1 of row g.
__device__ __forceinline__ uint32_t transposed(uint32_t matrix) {
    uint32_t result;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(matrix));
    return result;
}

// Copies 16 bytes from global to shared memory; zeros, and nothing is read, unless `valid`. Asynchronous.
__device__ __forceinline__ void copy_16_bytes(uint32_t to, const void *from, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0) : "memory");
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most PENDING committed groups of the thread's copies are under way.
template <int PENDING>
__device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

__device__ __forceinline__ void store_4_bytes(uint32_t to, uint32_t v) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(to), "r"(v) : "memory");
}

__device__ __forceinline__ void store_byte(uint32_t to, uint32_t v) {
    asm volatile("st.shared.u8 [%0], %1;" ::"r"(to), "r"(v) : "memory");
}

__device__ __forceinline__ void store_16_bytes(uint32_t to, const uint32_t (&v)[4]) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3])
                 : "memory");
}

__device__ __forceinline__ void load_16_bytes(uint32_t (&v)[4], uint32_t from) {
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                 : "r"(from)
                 : "memory");
}

__device__ __forceinline__ uint32_t load_4_bytes(uint32_t from) {
    uint32_t v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(from) : "memory");
    return v;
}

__device__ __forceinline__ void load_8_bytes(uint32_t (&v)[2], uint32_t from) {
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v[0]), "=r"(v[1]) : "r"(from) : "memory");
}

// A barrier of some of a block's warps: those that wait, and those that only arrive.
__device__ __forceinline__ void named_barrier(int number, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

__device__ __forceinline__ void arrive_at_barrier(int number, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
// Barriers in shared memory, whose phases complete after so many arrivals.
__device__ __forceinline__ void init_barrier(uint32_t address, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void arrive(uint32_t address, bool condition) {
    asm volatile("{ .reg .pred p;\nsetp.ne.b32 p, %1, 0;\n@p mbarrier.arrive.shared::cta.b64 _, [%0]; }" ::"r"(address),
                 "r"(int(condition))
                 : "memory");
}

// Waits until the phase with that parity is complete; the one before the first counts as complete.
__device__ __forceinline__ void wait_for_phase(uint32_t address, uint32_t parity) {
    uint32_t complete;
    do {
        asm volatile(
            "{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p; }"
            : "=r"(complete)
            : "r"(address), "r"(parity)
            : "memory");
    } while (!complete);
}
#endif

// Any function of the bits of three words: FUNCTION is its value for a = 0xF0, b = 0xCC, c = 0xAA.
template <int FUNCTION>
__device__ __forceinline__ uint32_t logic(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t d;
    asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(d) : "r"(a), "r"(b), "r"(c), "n"(FUNCTION));
    return d;
}

// a & b; where products are asynchronous, computed after what stands before it, such as a wait for them.
__device__ __forceinline__ uint32_t both_after(uint32_t a, uint32_t b) {
    if (!WARPGROUP_PRODUCTS) return a & b;
    uint32_t d;
    asm volatile("and.b32 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}

// The bytes of b:a (4 to 7 are b's) that the digits of `selector` name, the lowest first; + 8 repeats the byte's sign.
__device__ __forceinline__ uint32_t bytes_of(uint32_t a, uint32_t b, uint32_t selector) {
    uint32_t d;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(selector));
    return d;
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
// All threads of the cluster have come here, and see what the others wrote to shared memory.
__device__ __forceinline__ void cluster_barrier() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// The address of the same variable in a block of the cluster.
__device__ __forceinline__ uint32_t address_in_block(uint32_t address, uint32_t rank) {
    uint32_t remote;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
    return remote;
}

__device__ __forceinline__ uint32_t load_cluster_u32(uint32_t address) {
    uint32_t value;
    asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
    return value;
}

__device__ __forceinline__ int64_t load_cluster_s64(uint32_t address) {
    int64_t value;
    asm volatile("ld.shared::cluster.s64 %0, [%1];" : "=l"(value) : "r"(address) : "memory");
    return value;
}
#endif

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
// What threads wrote to shared memory is seen by asynchronous products.
__device__ __forceinline__ void fence_for_products() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Registers that were written are seen by the products that follow.
__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most PENDING committed groups of products are under way.
template <int PENDING>
__device__ __forceinline__ void wait_for_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// The second operand in shared memory: matrices of 8 columns of 16 bytes, without swizzle; those of further columns
// follow at once. `place` is a sixteenth of its address and, above 16 bits, of the distance of its matrices in k.
__device__ __forceinline__ uint64_t operand_descriptor(uint32_t place) { return uint64_t(128 >> 4) << 32 | place; }

// The same in rows of 128 bytes, which are a column each: 8 rows are 1024 bytes, aligned to as many, and the place of
// 16 bytes in row r is its number XOR r. 32 bytes further in k are 32 bytes further in memory.
__device__ __forceinline__ uint64_t swizzled_descriptor(uint32_t address) {
    return uint64_t(address >> 4 & 0x3FFF) | uint64_t(1) << 16 | uint64_t(1024 >> 4) << 32 | uint64_t(1) << 62;
}

// Registers move from the warps that need fewer of them to others.
template <int REGISTERS>
__device__ __forceinline__ void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <int REGISTERS>
__device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

// d += a b, 64 rows and N columns: over 256 bits, and over 32 bytes. Asynchronous.
template <int N>
__device__ void multiply_bits_async(int (&d)[N / 2], const uint32_t *a, uint64_t b);
template <int N>
__device__ void multiply_bytes_async(int (&d)[N / 2], const uint32_t *a, uint64_t b);

#define SLT_D4(i) "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3])
#define SLT_D8(i) SLT_D4(i), SLT_D4(i + 4)
#define SLT_D16(i) SLT_D8(i), SLT_D8(i + 8)
#define SLT_D32(i) SLT_D16(i), SLT_D16(i + 16)
#define SLT_PRODUCT(NAME, N, SHAPE, NAMES, A, B, ...) \
    template <> \
    __device__ __forceinline__ void NAME<N>(int (&d)[N / 2], const uint32_t *a, uint64_t b) { \
        asm volatile("{ .reg .pred p; setp.ne.b32 p, 1, 0;\nwgmma.mma_async.sync.aligned.m64n" #N SHAPE " {" NAMES \
                     "}, {" A "}, " B ", p; }" \
                     : __VA_ARGS__ \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)); \
    }
#define SLT_PRODUCTS(N, NAMES, A, B, ...) \
    SLT_PRODUCT(multiply_bits_async, N, "k256.s32.b1.b1.and.popc", NAMES, A, B, __VA_ARGS__) \
    SLT_PRODUCT(multiply_bytes_async, N, "k32.s32.s8.s8", NAMES, A, B, __VA_ARGS__)
#define SLT_N4 "%0, %1, %2, %3"
#define SLT_N8 SLT_N4 ", %4, %5, %6, %7"
#define SLT_N12 SLT_N8 ", %8, %9, %10, %11"
#define SLT_N16 SLT_N12 ", %12, %13, %14, %15"
#define SLT_N24 SLT_N16 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define SLT_N32 SLT_N24 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define SLT_N48 SLT_N32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define SLT_N64 SLT_N48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

SLT_PRODUCTS(8, SLT_N4, "%4, %5, %6, %7", "%8", SLT_D4(0))
SLT_PRODUCTS(16, SLT_N8, "%8, %9, %10, %11", "%12", SLT_D8(0))
SLT_PRODUCTS(24, SLT_N12, "%12, %13, %14, %15", "%16", SLT_D8(0), SLT_D4(8))
SLT_PRODUCTS(32, SLT_N16, "%16, %17, %18, %19", "%20", SLT_D16(0))
SLT_PRODUCTS(48, SLT_N24, "%24, %25, %26, %27", "%28", SLT_D16(0), SLT_D8(16))
SLT_PRODUCTS(64, SLT_N32, "%32, %33, %34, %35", "%36", SLT_D32(0))
SLT_PRODUCTS(128, SLT_N64, "%64, %65, %66, %67", "%68", SLT_D32(0), SLT_D32(32))

// An operand in shared memory, of 16-bit elements, whose rows (or columns, of the second operand) follow each other: in
// pieces of 64, 128 bytes, one after the other in k. The 16-byte chunks of a piece are exchanged by its number modulo
// 8. The next 64 rows are `next` bytes away. The operand starts at a multiple of 1024.
__device__ __forceinline__ uint64_t pieces_descriptor(uint32_t address, uint32_t next) {
    return uint64_t(address >> 4 & 0x3FFF) | uint64_t(next >> 4) << 16 | uint64_t(1024 >> 4) << 32 | uint64_t(1) << 62;
}

// d += a b, 64 rows and 128 columns, over 16 elements; both operands in pieces. Asynchronous.
#define SLT_F4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SLT_F16(i) SLT_F4(i), SLT_F4(i + 4), SLT_F4(i + 8), SLT_F4(i + 12)
#define SLT_PIECES_PRODUCT(NAME, TYPE)                                                                                 \
    __device__ __forceinline__ void NAME(float (&d)[64], uint64_t a, uint64_t b) {                                     \
        asm volatile("{ .reg .pred p; setp.ne.b32 p, 1, 0;\nwgmma.mma_async.sync.aligned.m64n128k16.f32."              \
                     TYPE "." TYPE " {" SLT_N64 "}, %64, %65, p, 1, 1, 1, 1; }"                                        \
                     : SLT_F16(0), SLT_F16(16), SLT_F16(32), SLT_F16(48)                                               \
                     : "l"(a), "l"(b));                                                                                \
    }
SLT_PIECES_PRODUCT(multiply_bfloat16_async, "bf16")
SLT_PIECES_PRODUCT(multiply_float16_async, "f16")
// The same over 16 floats of a type.
template <class Type, int N>
struct FloatProduct;

#define SLT_F64(i) SLT_F16(i), SLT_F16(i + 16), SLT_F16(i + 32), SLT_F16(i + 48)
#define SLT_N128                                                                                                       \
    SLT_N64                                                                                                            \
    ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, " \
    "%86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, " \
    "%107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, "     \
    "%125, %126, %127"
#define SLT_FLOAT_PRODUCT(TYPE, NAME, N, NAMES, A, B, ...)                                                             \
    template <>                                                                                                        \
    struct FloatProduct<TYPE, N> {                                                                                     \
        static __device__ __forceinline__ void add(float (&d)[N / 2], const uint32_t *a, uint64_t b) {                 \
            asm volatile("{ .reg .pred p; setp.ne.b32 p, 1, 0;\nwgmma.mma_async.sync.aligned.m64n" #N "k16.f32." NAME  \
                         "." NAME " {" NAMES "}, {" A "}, " B ", p, 1, 1, 0; }"                                        \
                         : __VA_ARGS__                                                                                 \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                        \
        }                                                                                                              \
    };
#define SLT_FLOAT_PRODUCTS(N, NAMES, A, B, ...)                                                                        \
    SLT_FLOAT_PRODUCT(Bfloat16, "bf16", N, NAMES, A, B, __VA_ARGS__)                                                   \
    SLT_FLOAT_PRODUCT(Float16, "f16", N, NAMES, A, B, __VA_ARGS__)

SLT_FLOAT_PRODUCTS(128, SLT_N64, "%64, %65, %66, %67", "%68", SLT_F64(0))
SLT_FLOAT_PRODUCTS(256, SLT_N128, "%128, %129, %130, %131", "%132", SLT_F64(0), SLT_F64(64))
#endif

}  // namespace slt::cuda
