"""Stand-ins for what NVIDIA puts between a program and its GPUs, on machines without any.

They show the GPUs of CUDA_VISIBLE_DEVICES, as the real ones do, or two where that is not set.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

_COMMON = """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static int num_gpus(void) {
    const char *list = getenv("CUDA_VISIBLE_DEVICES");
    if (!list) list = "0,1";
    int count = *list != 0;
    for (; *list; list++) count += *list == ',';
    return count;
}
static int address(char *text, int length, int device) {
    return snprintf(text, length, "0000:%X0:00.0", 10 + device) >= length;
}
"""
_DRIVER = """
int cuInit(unsigned flags) { return STATUS; }
int cuDeviceGetCount(int *count) { *count = num_gpus(); return 0; }
int cuDeviceGet(int *device, int number) { *device = number; return 0; }
int cuDeviceGetPCIBusId(char *text, int length, int device) { return address(text, length, device); }
"""
# What tritonserver 2.51 asks of CUDA 12: a GPU's memory is that of the machine, and what is asked is done at once.
_RUNTIME = """
static _Thread_local int current;
static int nothing(void) { return 1; }
int cudaGetDeviceCount(int *count) { *count = num_gpus(); return *count ? 0 : 100; }
int cudaGetDevice(int *device) { *device = current; return 0; }
int cudaSetDevice(int device) { current = device; return 0; }
int cudaGetDeviceProperties_v2(char *properties, int device) {
    memset(properties, 0, 1032);
    ((int *)(properties + 360))[0] = 9;  /* compute capability 9.0 */
    return 0;
}
int cudaDeviceGetPCIBusId(char *text, int length, int device) { return address(text, length, device); }
int cudaDeviceCanAccessPeer(int *can, int device, int peer) { *can = 0; return 0; }
int cudaDeviceEnablePeerAccess(int peer, unsigned flags) { return 0; }
int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = *greatest = 0; return 0; }
const char *cudaGetErrorString(int error) { return "an error of the stand-in for CUDA"; }
int cudaGetLastError(void) { return 0; }
int cudaGetDriverEntryPoint(const char *name, void **function, unsigned long long flags, int *found) {
    *function = (void *)nothing;
    if (found) *found = 0;
    return 0;
}
int cudaHostAlloc(void **memory, size_t size, unsigned flags) { return !(*memory = malloc(size)); }
int cudaMalloc(void **memory, size_t size) { return !(*memory = malloc(size)); }
int cudaMallocManaged(void **memory, size_t size, unsigned flags) { return !(*memory = malloc(size)); }
int cudaFreeHost(void *memory) { free(memory); return 0; }
int cudaFree(void *memory) { free(memory); return 0; }
int cudaMemGetInfo(size_t *available, size_t *total) { *available = *total = 1ull << 34; return 0; }
int cudaMemPrefetchAsync(const void *memory, size_t size, int device, void *stream) { return 0; }
int cudaMemcpy(void *target, const void *source, size_t size, int kind) { memmove(target, source, size); return 0; }
int cudaMemcpyAsync(void *target, const void *source, size_t size, int kind, void *stream) {
    memmove(target, source, size);
    return 0;
}
int cudaMemcpyPeer(void *target, int to, const void *source, int from, size_t size) {
    memmove(target, source, size);
    return 0;
}
int cudaMemcpyPeerAsync(void *target, int to, const void *source, int from, size_t size, void *stream) {
    memmove(target, source, size);
    return 0;
}
int cudaMemset(void *memory, int value, size_t size) { memset(memory, value, size); return 0; }
int cudaLaunchHostFunc(void *stream, void (*function)(void *), void *argument) { function(argument); return 0; }
int cudaStreamCreate(void **stream) { *stream = malloc(1); return 0; }
int cudaStreamCreateWithPriority(void **stream, unsigned flags, int priority) { *stream = malloc(1); return 0; }
int cudaStreamDestroy(void *stream) { free(stream); return 0; }
int cudaStreamGetFlags(void *stream, unsigned *flags) { *flags = 0; return 0; }
int cudaStreamSynchronize(void *stream) { return 0; }
int cudaEventRecord(void *event, void *stream) { return 0; }
int cudaEventSynchronize(void *event) { return 0; }
"""


def driver(folder: Path, *, status: int = 0) -> Path:
    """A library in `folder` under the driver's name, for LD_LIBRARY_PATH; `status` is what it says when it starts."""
    return _compiled(folder / "libcuda.so.1", _DRIVER, f"-DSTATUS={status}")


def runtime(folder: Path) -> Path:
    """A library in `folder` that stands before CUDA's runtime when it is named by LD_PRELOAD."""
    return _compiled(folder / "libstandin.so", _RUNTIME)


def _compiled(library: Path, functions: str, *flags: str) -> Path:
    source = library.with_suffix(".c")
    library.parent.mkdir(parents=True, exist_ok=True)
    source.write_text(_COMMON + functions, encoding="utf-8")
    command = ["cc", "-w", "-shared", "-fPIC", "-Wl,-Bsymbolic", *flags, "-o", library, source]
    subprocess.run(command, check=True)
    return library
