"""Stand-ins for NVIDIA's libraries, with which MXNet's CUDA build can be imported on a machine without a GPU.

Each function that libmxnet.so wants from them does nothing. Two machines can be stood in for: one without a GPU, where
everything fails with error 100 (no device), and one with a GPU whose kernels compute nothing, but whose memory can be
written and read: there MXNet chooses and launches operators as it would on a real one.
"""

import collections
import subprocess
from pathlib import Path

# Not versioned: the driver, and NCCL.
UNVERSIONED = {"nccl": "libnccl.so.2", "cu": "libcuda.so.1"}
NEEDED = ["libcublas.so.11", "libcuda.so.1", "libcudart.so.11.0", "libcudnn.so.8", "libcufft.so.10", "libcurand.so.10",
          "libcusolver.so.11", "libnccl.so.2", "libnvToolsExt.so.1", "libnvrtc.so.11.2"]
COMMON = """
#include <stdlib.h>
#include <string.h>
#define TEXT(name) const char *name() { return "a stand-in"; }
"""
NO_GPU = {
    "cudaDriverGetVersion": "int cudaDriverGetVersion(int *v) { *v = 0; return 0; }",
    "cudaGetDeviceCount": "int cudaGetDeviceCount(int *n) { *n = 0; return 100; }",
}
ONE_GPU = {
    "cudaDriverGetVersion": "int cudaDriverGetVersion(int *v) { *v = 11020; return 0; }",
    "cudaRuntimeGetVersion": "int cudaRuntimeGetVersion(int *v) { *v = 11020; return 0; }",
    "cudaGetDeviceCount": "int cudaGetDeviceCount(int *n) { *n = 1; return 0; }",
    "cudaGetDevice": "int cudaGetDevice(int *i) { *i = 0; return 0; }",
    # Compute capability 8.0 (attributes 75, 76), warps of 32 (10), and enough of whatever else is asked for.
    "cudaDeviceGetAttribute": "int cudaDeviceGetAttribute(int *v, int of, int i)"
                              " { *v = of == 75 ? 8 : of == 76 ? 0 : of == 10 ? 32 : 1024; return 0; }",
    "cudaGetDeviceProperties": "int cudaGetDeviceProperties(int *p, int i)"
                               " { for (int k = 64; k < 180; ++k) p[k] = 1024; return 0; }",
    "cudaMemGetInfo": "int cudaMemGetInfo(size_t *f, size_t *t) { *f = *t = (size_t)1 << 33; return 0; }",
    "cudaMalloc": "int cudaMalloc(void **p, size_t n) { *p = calloc(n + 1, 1); return 0; }",
    "cudaMallocHost": "int cudaMallocHost(void **p, size_t n) { *p = calloc(n + 1, 1); return 0; }",
    "cudaHostAlloc": "int cudaHostAlloc(void **p, size_t n, unsigned f) { *p = calloc(n + 1, 1); return 0; }",
    "cudaFree": "int cudaFree(void *p) { free(p); return 0; }",
    "cudaFreeHost": "int cudaFreeHost(void *p) { free(p); return 0; }",
    "cudaMemcpy": "int cudaMemcpy(void *to, void *from, size_t n, int k) { memcpy(to, from, n); return 0; }",
    "cudaMemcpyAsync": "int cudaMemcpyAsync(void *to, void *from, size_t n, int k, void *s)"
                       " { memcpy(to, from, n); return 0; }",
    "cudaMemcpyPeerAsync": "int cudaMemcpyPeerAsync(void *to, int i, void *from, int j, size_t n, void *s)"
                           " { memcpy(to, from, n); return 0; }",
    "cudaMemset": "int cudaMemset(void *to, int x, size_t n) { memset(to, x, n); return 0; }",
    "cudaMemsetAsync": "int cudaMemsetAsync(void *to, int x, size_t n, void *s) { memset(to, x, n); return 0; }",
}


def wanted(library):
    """The names that a library leaves to NVIDIA's, by the file that is to hold them."""
    lines = subprocess.check_output(["nm", "-D", "--undefined-only", str(library)], text=True).split("\n")
    found = collections.defaultdict(set)
    for name in (line.split()[-1] for line in lines if line):
        name, _, version = name.partition("@")
        prefix = next((prefix for prefix in UNVERSIONED if name.startswith(prefix)), None)
        if version in NEEDED or (not version and prefix):
            found[version or UNVERSIONED[prefix]].add(name)
    return found


def body(name, gpu):
    special = (ONE_GPU if gpu else NO_GPU).get(name)
    if special:
        return special
    return f"TEXT({name})" if "String" in name else f"int {name}() {{ return {0 if gpu else 100}; }}"


def make(library, folder, gpu=False):
    """Compile the stand-ins for what `library` (libmxnet.so) needs into `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = wanted(library)
    for file in NEEDED:
        source, versions = folder / f"{file}.c", folder / f"{file}.map"
        source.write_text(COMMON + "\n".join(body(name, gpu) for name in sorted(names[file])) + "\n")
        versions.write_text(f"{file} {{ global: *; }};\n")
        versioned = [] if file in UNVERSIONED.values() else [f"-Wl,--version-script={versions}"]
        subprocess.run(["gcc", "-w", "-shared", "-fPIC", "-O1", f"-Wl,-soname,{file}", *versioned, "-o",
                        str(folder / file), str(source)], check=True)
