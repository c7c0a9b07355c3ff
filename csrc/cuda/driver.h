// NVIDIA's driver. It is opened on first use, so that importing the extension neither needs nor loads it.
//
// Failures are thrown as std::runtime_error, with the driver's text. Threads may call at the same time.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace slt::cuda {

// What the fatbins and argument structs were built of, as setup.py names it; "" in a build of other origin.
extern const char *const SOURCE;

// The newest CUDA that the driver knows: 1000 major + 10 minor. Initializes nothing.
int driver_version();

struct Device {
    int capability;  // 10 major + minor
    int processors;  // multiprocessors
    int shared;      // bytes of shared memory that a block can have
};

// All devices that the process may use. Initializes the driver, and makes no context.
std::vector<Device> devices();

// The folder of the fatbins, for kernels that are loaded after this call.
void use_kernels(const std::string &folder);

struct Grid {
    unsigned blocks, threads;
    unsigned shared;   // bytes of dynamic shared memory per block
    unsigned cluster;  // blocks per cluster
};

struct Kernel {
    const std::string file, name;
    void *handle = nullptr;
    std::vector<int64_t> shared;  // per device: bytes of dynamic shared memory that are allowed; -1: not loaded
};

// The same object for the same names. Loads nothing.
Kernel &kernel_of(const std::string &file, const std::string &name);

// Runs a kernel on a stream of a device, whichever device is current. Loads it on first use; throws where that would be
// during the stream's capture. SLT_CUDA_CHECK=1 waits for its end.
void enqueue(Kernel &kernel, const Grid &grid, int device, uintptr_t stream, void *arguments);

}  // namespace slt::cuda
