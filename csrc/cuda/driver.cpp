#include "cuda/driver.h"

#include <dlfcn.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <utility>

#ifndef SLT_CUDA_SOURCE
#define SLT_CUDA_SOURCE ""
#endif

namespace slt::cuda {

const char *const SOURCE = SLT_CUDA_SOURCE;

namespace {

// The driver's types and numbers that are used here, as its interface fixes them.
typedef int Status;
typedef int DeviceHandle;
typedef struct ContextObject *Context;
typedef struct LibraryObject *Library;
typedef struct StreamObject *Stream;

constexpr Status SUCCESS = 0;
enum { SHARED_OPTIN = 97, PROCESSORS = 16, CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76 };  // of a device
enum { MAX_DYNAMIC_SHARED = 8 };                                                            // of a kernel
enum { CLUSTER_DIMENSION = 4 };                                                             // of a launch
enum { CAPTURE_RELAXED = 2 };

struct Attribute {
    int id;
    char pad[4];
    union {
        char bytes[64];
        unsigned cluster[3];
    };
};
static_assert(sizeof(Attribute) == 72);

struct Configuration {
    unsigned grid[3], block[3], shared;
    Stream stream;
    Attribute *attributes;
    unsigned count;
};
static_assert(sizeof(Configuration) == 56);

void *open_driver() {
    static void *opened = nullptr;
    if (opened) return opened;
    const char *named = std::getenv("SLT_CUDA_DRIVER");
    opened = dlopen(named && *named ? named : "libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!opened) throw std::runtime_error(std::string("NVIDIA's driver cannot be loaded: ") + dlerror());
    return opened;
}

void *symbol(const char *name) {
    if (void *found = dlsym(open_driver(), name)) return found;
    throw std::runtime_error(std::string("NVIDIA's driver has no function ") + name);
}

struct Functions {
#define SLT_DRIVER(name, suffix, parameters) \
    Status(*name) parameters = reinterpret_cast<Status(*) parameters>(symbol("cu" #name suffix))
    SLT_DRIVER(Init, "", (unsigned));
    SLT_DRIVER(GetErrorString, "", (Status, const char **));
    SLT_DRIVER(DeviceGetCount, "", (int *));
    SLT_DRIVER(DeviceGet, "", (DeviceHandle *, int));
    SLT_DRIVER(DeviceGetAttribute, "", (int *, int, DeviceHandle));
    SLT_DRIVER(DevicePrimaryCtxRetain, "", (Context *, DeviceHandle));
    SLT_DRIVER(CtxGetDevice, "", (DeviceHandle *));
    SLT_DRIVER(CtxPushCurrent, "_v2", (Context));
    SLT_DRIVER(CtxPopCurrent, "_v2", (Context *));
    SLT_DRIVER(StreamIsCapturing, "", (Stream, int *));
    SLT_DRIVER(StreamSynchronize, "", (Stream));
    SLT_DRIVER(ThreadExchangeStreamCaptureMode, "", (int *));
    SLT_DRIVER(LibraryLoadData, "", (Library *, const void *, int *, void **, unsigned, int *, void **, unsigned));
    SLT_DRIVER(LibraryGetKernel, "", (void **, Library, const char *));
    SLT_DRIVER(KernelSetAttribute, "", (int, int, void *, DeviceHandle));
    SLT_DRIVER(KernelGetFunction, "", (void **, void *));
    SLT_DRIVER(LaunchKernelEx, "", (const Configuration *, void *, void **, void **));
#undef SLT_DRIVER

    Functions() { check(Init(0), "the driver cannot be initialized"); }

    std::string text(Status status) const {
        const char *found = nullptr;
        if (GetErrorString(status, &found) == SUCCESS && found) return found;
        return "error " + std::to_string(status);
    }

    void check(Status status, const std::string &what) const {
        if (status != SUCCESS) throw std::runtime_error(what + ": " + text(status));
    }
};

// Guards what is remembered between launches: their callers do not hold Python's lock.
std::mutex state;

const Functions &driver() {
    static const Functions functions;
    return functions;
}

std::string on(const Kernel &kernel, int device) { return kernel.name + " on cuda:" + std::to_string(device); }

// Makes a device current during its life, where another or none is.
class Current {
  public:
    explicit Current(int device) {
        DeviceHandle wanted, found;
        driver().check(driver().DeviceGet(&wanted, device), "cuda:" + std::to_string(device));
        if (driver().CtxGetDevice(&found) == SUCCESS && found == wanted) return;
        driver().check(driver().CtxPushCurrent(primary(device, wanted)), "cuda:" + std::to_string(device));
        pushed_ = true;
    }

    ~Current() {
        Context popped;
        if (pushed_) driver().CtxPopCurrent(&popped);
    }

    Current(const Current &) = delete;

  private:
    // PyTorch's context of the device. It is never released: kernels may be running in it until the process ends.
    static Context primary(int device, DeviceHandle handle) {
        const std::lock_guard lock(state);
        static std::map<int, Context> retained;
        Context &context = retained[device];
        if (!context)
            driver().check(driver().DevicePrimaryCtxRetain(&context, handle), "cuda:" + std::to_string(device));
        return context;
    }

    bool pushed_ = false;
};

// Loads are no part of any capture, and must not invalidate one that another thread has begun.
class OutsideCapture {
  public:
    OutsideCapture() { driver().ThreadExchangeStreamCaptureMode(&mode_); }
    ~OutsideCapture() { driver().ThreadExchangeStreamCaptureMode(&mode_); }
    OutsideCapture(const OutsideCapture &) = delete;

  private:
    int mode_ = CAPTURE_RELAXED;
};

bool capturing(Stream stream) {
    int status = 0;
    driver().check(driver().StreamIsCapturing(stream, &status), "stream");
    return status != 0;
}

std::string folder;

Library library_of(const std::string &file) {
    static std::map<std::string, Library> loaded;
    Library &library = loaded[file];
    if (library) return library;
    const std::string path = folder + "/" + file + ".fatbin";
    std::ifstream stream(path, std::ios::binary);
    const std::string code{std::istreambuf_iterator<char>(stream), {}};
    if (code.empty()) throw std::runtime_error(path + ": cannot be read");
    driver().check(driver().LibraryLoadData(&library, code.c_str(), nullptr, nullptr, 0, nullptr, nullptr, 0), path);
    return library;
}

// Loads the kernel for the device, and allows it so much shared memory. Once per device, kernel and size.
void prepare(Kernel &kernel, const Grid &grid, int device, Stream stream) {
    if (size_t(device) >= kernel.shared.size()) kernel.shared.resize(device + 1, -1);
    int64_t &shared = kernel.shared[device];
    if (shared < 0 && capturing(stream))
        throw std::runtime_error("first use of " + on(kernel, device) +
                                 " during CUDA graph capture: run the same calls once before it");
    const OutsideCapture outside;
    if (!kernel.handle) {
        void *handle = nullptr;
        driver().check(driver().LibraryGetKernel(&handle, library_of(kernel.file), kernel.name.c_str()),
                       kernel.name + " of " + kernel.file + ".fatbin");
        kernel.handle = handle;
    }
    if (shared < 0) {  // the driver is lazy: it may load a library's kernel when its function is asked for
        void *function = nullptr;
        driver().check(driver().KernelGetFunction(&function, kernel.handle), on(kernel, device));
        shared = 0;
    }
    if (shared < grid.shared) {
        DeviceHandle handle;
        driver().check(driver().DeviceGet(&handle, device), on(kernel, device));
        driver().check(driver().KernelSetAttribute(MAX_DYNAMIC_SHARED, int(grid.shared), kernel.handle, handle),
                       on(kernel, device) + ": " + std::to_string(grid.shared) + " bytes of shared memory");
        shared = grid.shared;
    }
}

std::string described(const Kernel &kernel, const Grid &grid, int device) {
    std::string text = on(kernel, device) + ", " + std::to_string(grid.blocks) + " blocks of " +
                       std::to_string(grid.threads) + " threads, " + std::to_string(grid.shared) +
                       " bytes of shared memory";
    if (grid.cluster > 1) text += ", clusters of " + std::to_string(grid.cluster) + " blocks";
    return text;
}

bool checked() {
    static const bool set = [] {
        const char *value = std::getenv("SLT_CUDA_CHECK");
        return value && std::string(value) == "1";
    }();
    return set;
}

}  // namespace

int driver_version() {
    int version = 0;
    const auto get = reinterpret_cast<Status (*)(int *)>(symbol("cuDriverGetVersion"));
    if (get(&version) != SUCCESS) throw std::runtime_error("NVIDIA's driver does not say its version");
    return version;
}

std::vector<Device> devices() {
    int count = 0;
    driver().check(driver().DeviceGetCount(&count), "the devices cannot be counted");
    std::vector<Device> found;
    for (int i = 0; i < count; ++i) {
        DeviceHandle device;
        const std::string name = "cuda:" + std::to_string(i);
        driver().check(driver().DeviceGet(&device, i), name);
        const auto attribute = [&](int id) {
            int value = 0;
            driver().check(driver().DeviceGetAttribute(&value, id, device), name);
            return value;
        };
        found.push_back({10 * attribute(CAPABILITY_MAJOR) + attribute(CAPABILITY_MINOR), attribute(PROCESSORS),
                         attribute(SHARED_OPTIN)});
    }
    return found;
}

void use_kernels(const std::string &path) { folder = path; }

Kernel &kernel_of(const std::string &file, const std::string &name) {
    const std::lock_guard lock(state);
    static std::map<std::pair<std::string, std::string>, std::unique_ptr<Kernel>> kernels;
    std::unique_ptr<Kernel> &kernel = kernels[{file, name}];
    if (!kernel) kernel.reset(new Kernel{file, name});
    return *kernel;
}

void enqueue(Kernel &kernel, const Grid &grid, int device, uintptr_t stream_handle, void *arguments) {
    if (grid.blocks == 0) return;
    const Stream stream = reinterpret_cast<Stream>(stream_handle);
    const Current current(device);
    {
        const std::lock_guard lock(state);
        if (size_t(device) >= kernel.shared.size() || kernel.shared[device] < grid.shared)
            prepare(kernel, grid, device, stream);
    }
    Attribute cluster{.id = CLUSTER_DIMENSION, .pad = {}, .bytes = {}};
    cluster.cluster[0] = grid.cluster;
    cluster.cluster[1] = cluster.cluster[2] = 1;
    const Configuration configuration{{grid.blocks, 1, 1}, {grid.threads, 1, 1}, grid.shared, stream, &cluster,
                                      grid.cluster > 1};
    void *parameters[] = {arguments};
    Status status = driver().LaunchKernelEx(&configuration, kernel.handle, parameters, nullptr);
    if (status == SUCCESS && checked() && !capturing(stream)) status = driver().StreamSynchronize(stream);
    if (status != SUCCESS) driver().check(status, described(kernel, grid, device));
}

}  // namespace slt::cuda
