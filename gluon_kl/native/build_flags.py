"""How the kernels are compiled: read by setup.py and by tests/native/run.py."""

FLAGS = ["-std=c++17", "-O3", "-g0", "-fno-math-errno", "-fno-trapping-math", "-fvisibility-inlines-hidden"]

# One source per instruction set; which one runs is decided on the machine that runs it.
ISA_FLAGS = {
    "kernel_baseline.cc": [],
    "kernel_avx2.cc": ["-mavx2", "-mfma", "-mf16c"],
    "kernel_avx512.cc": ["-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mfma", "-mf16c"],
}


def kernel_sources(machine: str) -> list:
    """Names of the sources for a machine as `platform.machine` calls it."""
    return sorted(ISA_FLAGS) if machine in ("x86_64", "AMD64") else ["kernel_baseline.cc"]
