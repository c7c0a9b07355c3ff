// Functions of the contract run on the host and on a CUDA device.
#pragma once

#if defined(__CUDACC__)
#define SLT_HOST_DEVICE static constexpr __host__ __device__ __forceinline__
#else
#define SLT_HOST_DEVICE static constexpr inline
#endif
