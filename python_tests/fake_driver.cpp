// Stands in for NVIDIA's driver: it has the functions that csrc/cuda/driver.cpp calls, counts their calls, records
// launches, and fails when told to. A "fatbin" is a text: of each kernel, a line with its name and its argument's size.
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

namespace {

struct Configuration {
    unsigned grid[3], block[3], shared;
    void *stream;
    const unsigned *attributes;  // 18 words each: a number, padding, and the value
    unsigned count;
};

struct Kernel {
    std::string name;
    size_t size;
};

std::map<std::string, int> calls, failures;
std::map<std::string, Kernel> kernels;
std::string log_text;
std::mutex state;  // of what is counted and recorded
thread_local std::vector<intptr_t> contexts;  // 1 + device, the current one last
int current = -1;  // the device of the runtime, as cudaSetDevice leaves it
bool is_capturing = false, logging = true;
std::atomic<bool> held = false;

int from_environment(const char *name, int otherwise) {
    const char *value = std::getenv(name);
    return value ? std::atoi(value) : otherwise;
}

int called(const char *name) {
    if (!logging) return 0;
    const std::lock_guard lock(state);
    ++calls[name];
    const auto failure = failures.find(name);
    if (failure != failures.end()) return failure->second;
    return from_environment((std::string("FAKE_") + name).c_str(), 0);
}

int device_now() { return contexts.empty() ? current : int(contexts.back() - 1); }

}  // namespace

#define CALLED(name) \
    if (const int status = called(#name)) return status

extern "C" {

// What tests ask of it.
int fake_calls(const char *name) {
    const std::lock_guard lock(state);
    return calls[name];
}
void fake_fail(const char *name, int status) { failures[name] = status; }
void fake_current(int device) { current = device; }
void fake_capture(int on) { is_capturing = on; }
void fake_hold(int on) { held = on; }
void fake_quiet() { logging = false; }
const char *fake_log() { return log_text.c_str(); }

int cuInit(unsigned) {
    CALLED(cuInit);
    return 0;
}

int cuDriverGetVersion(int *version) {
    CALLED(cuDriverGetVersion);
    *version = from_environment("FAKE_VERSION", 13000);
    return 0;
}

int cuGetErrorString(int status, const char **text) {
    *text = status == 700 ? "an illegal memory access was encountered" : status == 1 ? "invalid argument" : nullptr;
    return *text ? 0 : 1;
}

int cuDeviceGetCount(int *count) {
    CALLED(cuDeviceGetCount);
    *count = from_environment("FAKE_DEVICES", 2);
    return 0;
}

int cuDeviceGet(int *device, int index) {
    CALLED(cuDeviceGet);
    *device = index;
    return index < from_environment("FAKE_DEVICES", 2) ? 0 : 101;
}

int cuDeviceGetAttribute(int *value, int id, int device) {
    CALLED(cuDeviceGetAttribute);
    const std::string name = "FAKE_CAPABILITY_" + std::to_string(device);
    const int capability = from_environment(name.c_str(), from_environment("FAKE_CAPABILITY", 90));
    *value = id == 75 ? capability / 10 : id == 76 ? capability % 10 : id == 16 ? 132 : id == 97 ? 227 * 1024 : -1;
    return *value < 0;
}

int cuDevicePrimaryCtxRetain(void **context, int device) {
    CALLED(cuDevicePrimaryCtxRetain);
    *context = reinterpret_cast<void *>(intptr_t(1 + device));
    return 0;
}

int cuCtxGetDevice(int *device) {
    CALLED(cuCtxGetDevice);
    *device = device_now();
    return *device < 0 ? 201 : 0;
}

int cuCtxPushCurrent_v2(void *context) {
    CALLED(cuCtxPushCurrent);
    contexts.push_back(reinterpret_cast<intptr_t>(context));
    return 0;
}

int cuCtxPopCurrent_v2(void **context) {
    CALLED(cuCtxPopCurrent);
    if (contexts.empty()) return 201;
    *context = reinterpret_cast<void *>(contexts.back());
    contexts.pop_back();
    return 0;
}

int cuStreamIsCapturing(void *, int *status) {
    CALLED(cuStreamIsCapturing);
    *status = is_capturing;
    return 0;
}

int cuStreamSynchronize(void *) {
    CALLED(cuStreamSynchronize);
    return 0;
}

int cuThreadExchangeStreamCaptureMode(int *mode) {
    CALLED(cuThreadExchangeStreamCaptureMode);
    static int now = 0;
    std::swap(now, *mode);
    return 0;
}

int cuLibraryLoadData(void **library, const void *code, int *, void **, unsigned, int *, void **, unsigned) {
    CALLED(cuLibraryLoadData);
    std::istringstream lines(static_cast<const char *>(code));
    Kernel kernel;
    while (lines >> kernel.name >> kernel.size) kernels[kernel.name] = kernel;
    *library = &kernels;
    return 0;
}

int cuLibraryGetKernel(void **kernel, void *, const char *name) {
    CALLED(cuLibraryGetKernel);
    const auto found = kernels.find(name);
    if (found == kernels.end()) return 500;
    *kernel = &found->second;
    return 0;
}

int cuKernelGetFunction(void **function, void *kernel) {
    CALLED(cuKernelGetFunction);
    *function = kernel;
    return 0;
}

int cuKernelSetAttribute(int id, int value, void *kernel, int device) {
    CALLED(cuKernelSetAttribute);
    std::ostringstream line;
    line << "attribute " << static_cast<Kernel *>(kernel)->name << ' ' << id << ' ' << value << ' ' << device << '\n';
    const std::lock_guard lock(state);
    log_text += line.str();
    return 0;
}

int cuLaunchKernelEx(const Configuration *c, void *handle, void **parameters, void **) {
    CALLED(cuLaunchKernelEx);
    if (!logging) return 0;
    using namespace std::chrono;
    const auto longest = steady_clock::now() + seconds(5);
    while (held) {
        if (steady_clock::now() > longest) return 999;
        std::this_thread::yield();
    }
    const Kernel &kernel = *static_cast<Kernel *>(handle);
    std::ostringstream line;
    line << "launch " << kernel.name << ' ' << c->grid[0] << ' ' << c->grid[1] << ' ' << c->grid[2] << ' '
         << c->block[0] << ' ' << c->block[1] << ' ' << c->block[2] << ' ' << c->shared << ' '
         << reinterpret_cast<uintptr_t>(c->stream) << ' ' << device_now() << ' ';
    char hex[3];
    for (size_t i = 0; i < kernel.size; ++i) {
        std::snprintf(hex, sizeof hex, "%02x", static_cast<const unsigned char *>(parameters[0])[i]);
        line << hex;
    }
    for (unsigned i = 0; i < c->count; ++i)
        line << ' ' << c->attributes[18 * i] << ':' << c->attributes[18 * i + 2] << ',' << c->attributes[18 * i + 3]
             << ',' << c->attributes[18 * i + 4];
    const std::lock_guard lock(state);
    log_text += line.str() + '\n';
    return 0;
}

}  // extern "C"
