"""A stand-in for an NVIDIA GPU, built with gcc: MindSpore's GPU backend compiles and launches, and computes nothing.

The wheel of MindSpore holds the GPU backend. It is linked to the driver, to CUDA's libraries and to a library of
MindSpore's own kernels. The stand-ins define every symbol that the backend wants from them. Memory is the host's. Calls
do nothing and succeed, and what is read from the device is zero, or true. So each op of a graph is given a kernel of
the GPU backend, or refused as a GPU would refuse it, and every kernel is launched.

Folders: ``driver`` (libcuda.so.1), ``packages/nvidia`` (as pip installs nvidia-*-cu11) and ``kernels``.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from dynamic_symbols import symbols

from mindspore_palm.cuda import LIBRARIES

DRIVER = r"""
#include <stdlib.h>
static int told(const char *name, int usual) { const char *value = getenv(name); return value ? atoi(value) : usual; }
int cuDriverGetVersion(int *version) { *version = told("STANDIN_CUDA", 12020); return 0; }
int cuInit(unsigned flags) { return told("STANDIN_INIT", 0); }
int cuDeviceGetCount(int *count) { *count = told("STANDIN_DEVICES", 1); return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  int capability = told("STANDIN_CAPABILITY", 80);
  *value = attribute == 75 ? capability / 10 : attribute == 76 ? capability % 10 : 0;
  return 0; }
"""
RUNTIME = r"""
#include <stdlib.h>
#include <string.h>
typedef int Error; typedef void *Pointer;
typedef struct { char name[256]; char id[28]; size_t memory, shared; int registers, warp; size_t pitch; int threads,
  block[3], grid[3], clock; size_t constant; int major, minor; size_t alignment[2]; int overlap, processors, more[60];
} Properties;
Error cudaGetDeviceCount(int *count) { *count = 1; return 0; }
Error cudaGetDeviceProperties(Properties *p, int device) {
  memset(p, 0, 712);  /* the size of cudaDeviceProp in CUDA 11 */
  strcpy(p->name, "stand-in"); p->memory = 40ul << 30; p->shared = 49152; p->registers = 65536; p->warp = 32;
  p->threads = p->block[0] = p->block[1] = 1024; p->block[2] = 64; p->grid[0] = 2147483647;
  p->grid[1] = p->grid[2] = 65535; p->clock = 1410000; p->constant = 65536; p->major = 8; p->processors = 108;
  return 0; }
static Error take(Pointer *place, size_t size) { *place = calloc(1, size + 512);
  if (!*place) return 2; *place = (Pointer)(((size_t)*place + 511) / 512 * 512); return 0; }
Error cudaMalloc(Pointer *place, size_t size) { return take(place, size); }
Error cudaHostAlloc(Pointer *place, size_t size, unsigned flags) { return take(place, size); }
Error cudaFree(Pointer place) { return 0; }
Error cudaFreeHost(Pointer place) { return 0; }
Error cudaMemGetInfo(size_t *free, size_t *all) { *free = 2ul << 30; *all = 40ul << 30; return 0; }
Error cudaMemcpy(Pointer to, const void *from, size_t size, int kind) {
  if (kind == 2) memset(to, size == 1, size);  /* from the device: no kernel has written there */
  else memcpy(to, from, size);
  return 0; }
Error cudaMemcpyAsync(Pointer to, const void *from, size_t size, int kind, Pointer stream) {
  return cudaMemcpy(to, from, size, kind); }
Error cudaMemset(Pointer to, int value, size_t size) { memset(to, value, size); return 0; }
Error cudaMemsetAsync(Pointer to, int value, size_t size, Pointer stream) { memset(to, value, size); return 0; }
Error cudaEventElapsedTime(float *milliseconds, Pointer from, Pointer to) { *milliseconds = 1; return 0; }
const char *cudaGetErrorName(Error error) { return "stand-in"; }
const char *cudaGetErrorString(Error error) { return "stand-in"; }
"""
BLAS = r"""
#include <stdio.h>
#include <stdlib.h>
static void record(int type) { const char *file = getenv("STANDIN_MATMULS"); FILE *open = file ? fopen(file, "a") : 0;
  if (open) { fprintf(open, "%d\n", type); fclose(open); } }
int cublasGemmEx(void *handle, int ta, int tb, int m, int n, int k, void *alpha, void *a, int at, int lda, void *b,
  int bt, int ldb, void *beta, void *c, int ct, int ldc, int type, int algorithm) { record(type); return 0; }
int cublasGemmStridedBatchedEx(void *handle, int ta, int tb, int m, int n, int k, void *alpha, void *a, int at, int lda,
  long long sa, void *b, int bt, int ldb, long long sb, void *beta, void *c, int ct, int ldc, long long sc, int count,
  int type, int algorithm) { record(type); return 0; }
"""
"""Writes the compute type of each matmul (cublasComputeType_t) to the file STANDIN_MATMULS."""
CUDNN_VERSION = 8906


def build(folder: Path) -> dict[str, str]:
    """Builds all libraries in a folder; returns the environment variables with which a process sees the GPU.

    Raises:
        OSError, subprocess.CalledProcessError: gcc or nm is missing, or fails.
    """
    plugin = Path(next(iter(find_spec("mindspore").submodule_search_locations))) / "lib" / "plugin"
    backend = plugin / "libmindspore_gpu.so.11.6"
    users = [backend, *(plugin / "gpu11.6").glob("*.so*")]
    wanted = symbols(users, "--undefined-only")
    own = symbols([plugin / "gpu" / "libcuda_ops.so.11"], "--defined-only") & wanted
    driver, kernels, packages = folder / "driver", folder / "kernels", folder / "packages"
    compile_library(driver / "libcuda.so.1", DRIVER, (n for n in wanted if n.startswith("cu") and n[2:3].isupper()))
    for library, package in LIBRARIES.items():
        prefix = prefix_of(library)
        longer = tuple(p for p in map(prefix_of, LIBRARIES) if p != prefix and p.startswith(prefix))
        names = [n for n in wanted if n.startswith(prefix) and not n.startswith(longer)]
        source = {"libcudart.so.11.0": RUNTIME, "libcublas.so.11": BLAS}.get(library, "")
        compile_library(packages / "nvidia" / package / "lib" / library, source, names, version=library)
    compile_library(kernels / "libcuda_ops.so.11", "", own)
    return {
        "LD_LIBRARY_PATH": str(driver),
        "LD_PRELOAD": str(kernels / "libcuda_ops.so.11"),
        "PYTHONPATH": str(packages),
        "MINDSPORE_PALM_CACHE": str(folder / "cache"),
    }


def prefix_of(library: str) -> str:
    """How the names of a library's functions begin."""
    name = library.partition(".so")[0].removeprefix("lib")
    return "cuda" if name == "cudart" else name


def compile_library(file: Path, source: str, names: Iterable[str], version: str = "") -> None:
    """Compiles a library of a source, and of functions that do nothing for all names that it does not define."""
    file.parent.mkdir(parents=True, exist_ok=True)
    fillers = (filler(name) for name in sorted(names) if f" {name}(" not in source and f"*{name}(" not in source)
    with tempfile.TemporaryDirectory() as work:
        code, script = Path(work) / "library.c", Path(work) / "library.map"
        code.write_text("\n".join([source, *fillers]) + "\n")
        script.write_text(f"{version} {{ global: *; }};\n")
        options = [f"-Wl,--version-script,{script}"] if version else []
        command = ["gcc", "-w", "-O0", "-shared", "-fPIC", f"-Wl,-soname,{file.name}", *options, "-o", file, code]
        subprocess.run(command, check=True)


def filler(name: str) -> str:
    """A function that does nothing, and returns success; one that creates something returns room for it."""
    if name.startswith(("cu", "nvrtc")) and "reate" in name:
        return f"int {name}(void **made) {{ *made = __builtin_calloc(1, 4096); return 0; }}"
    return f"unsigned long {name}() {{ return {CUDNN_VERSION if name == 'cudnnGetVersion' else 0}; }}"
