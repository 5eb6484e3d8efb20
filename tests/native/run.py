"""Builds the standalone driver of the kernels and runs it under sanitizers and valgrind, or for time.

python tests/native/run.py            # accuracy; ASAN + UBSAN; valgrind and aarch64 where their programs are installed
python tests/native/run.py quick      # the same, ASAN + UBSAN with the widest vectors alone, valgrind with SSE2
python tests/native/run.py accuracy   # accuracy alone
python tests/native/run.py bench      # ns per element of each form; a form's name may follow
"""

import functools
import os
import platform
import runpy
import shutil
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor

HERE = os.path.dirname(os.path.abspath(__file__))
NATIVE = os.path.join(HERE, "..", "..", "gluon_kl", "native")
BUILD = runpy.run_path(os.path.join(NATIVE, "build_flags.py"))
NUMERIC = [flag for flag in BUILD["FLAGS"] if flag not in ("-O3", "-g0")]
AARCH64 = "aarch64-linux-gnu-g++"
CORES = threading.BoundedSemaphore(os.cpu_count() or 1)  # as many programs as these run at once


def isa_of(source):
    return source[len("kernel_"):-len(".cc")]


def runnable():
    """The sources that this processor can run, the widest vectors first."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        able = file.read()
    words = {"kernel_avx512.cc": "avx512dq", "kernel_avx2.cc": "avx2", "kernel_baseline.cc": ""}
    ours = BUILD["kernel_sources"](platform.machine())
    for source in ours:
        if words[source] not in able:
            print(f"this processor has no {words[source]}: {source} is not run")
    return [source for source, word in words.items() if source in ours and word in able]


def run(command, **environment):
    """Run a program as soon as a core is free; what it prints comes when it has ended."""
    with CORES:
        done = subprocess.run(command, env={**os.environ, **environment}, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True)
    words = " ".join(os.path.basename(c) if os.sep in c else c for c in command)
    if done.stdout or done.returncode:
        print(f"$ {words} {environment or ''}\n{done.stdout}", end="", flush=True)
    if done.returncode:
        raise RuntimeError(f"{words} ended with exit code {done.returncode}")


def side_by_side(jobs):
    """Call all of these functions at once; raise what one of them raised when all have ended."""
    with ThreadPoolExecutor(len(jobs)) as pool:
        for running in [pool.submit(job) for job in jobs]:
            running.result()


def build(folder, flags, wanted, compiler=None, machine=None):
    """The driver with the kernels of `wanted`; the other ones of the machine are left empty."""
    os.mkdir(folder)
    common = [compiler or os.environ.get("CXX", "g++"), *NUMERIC, "-w", "-pthread", "-I", NATIVE, *flags]
    sources = {os.path.join(HERE, "driver.cc"): []}
    for name in BUILD["kernel_sources"](machine or platform.machine()):
        source = os.path.join(NATIVE if name in wanted else folder, name)
        sources[source] = BUILD["ISA_FLAGS"][name]
        if name not in wanted:
            with open(source, "w", encoding="utf-8") as file:
                file.write(f"#include \"job.h\"\nconst gluon_kl::Kernels* gluon_kl::kernels_{isa_of(name)}"
                           "(gluon_kl::Precision) { return nullptr; }\n")
    objects = {source: os.path.join(folder, os.path.basename(source) + ".o") for source in sources}
    side_by_side([functools.partial(run, [*common, *extra, "-c", source, "-o", objects[source]])
                  for source, extra in sources.items()])
    program = os.path.join(folder, "driver")
    run([*common, *objects.values(), "-o", program])
    return program


def accuracy(folder, source):
    """Errors of the functions and terms for one instruction set."""
    program = os.path.join(folder, "accuracy_" + isa_of(source))
    run([os.environ.get("CXX", "g++"), *NUMERIC, "-O2", "-w", "-I", NATIVE, *BUILD["ISA_FLAGS"][source],
         os.path.join(HERE, "accuracy.cc"), "-o", program, "-pthread"])
    run([program])


def sanitizers(folder, wanted):
    lean = ["--param", "asan-instrumentation-with-call-threshold=0"]  # inline it would take a third longer to compile
    program = build(os.path.join(folder, "sanitized"), ["-O0", "-g1", "-fsanitize=address,undefined",
                                                        "-fno-sanitize-recover=all", *lean], wanted)
    side_by_side([functools.partial(run, [program, "check", "400"], GLUON_KL_ISA=isa_of(source),
                                    GLUON_KL_NUM_THREADS="3") for source in wanted])


def build_top_k(program, flags, compiler=None):
    """The driver of the loss for a stored teacher."""
    run([compiler or os.environ.get("CXX", "g++"), *NUMERIC, "-g1", "-w", "-I", NATIVE, *flags,
         os.path.join(HERE, "top_k.cc"), "-o", program])
    return program


def top_k(folder, source):
    """The loss for a stored teacher, for one instruction set."""
    run([build_top_k(os.path.join(folder, "top_k_" + isa_of(source)), [
        "-O1", *BUILD["ISA_FLAGS"][source], "-fsanitize=address,undefined", "-fno-sanitize-recover=all"])])


def valgrind(folder, wanted):
    if not shutil.which("valgrind"):
        print("valgrind is not installed: skipped")
        return
    # valgrind knows no AVX-512, and says so to programs that ask. Threads stay until the process ends, their stacks
    # with them: only what nothing points to is a leak.
    wanted = [source for source in wanted if source != "kernel_avx512.cc"]
    program = build(os.path.join(folder, "plain"), ["-O1", "-g1"], wanted)
    under = ["valgrind", "-q", "--error-exitcode=1", "--leak-check=full", "--show-leak-kinds=definite",
             "--errors-for-leak-kinds=definite"]
    side_by_side([functools.partial(run, [*under, program, "check", "80"], GLUON_KL_ISA=isa_of(source),
                                    GLUON_KL_NUM_THREADS="2") for source in wanted])
    run([*under, build_top_k(os.path.join(folder, "plain_top_k"), ["-O1", "-DIN_DOUBLE"]), "40"])


def other_processor(folder):
    if not (shutil.which(AARCH64) and shutil.which("qemu-aarch64")):
        print(f"{AARCH64} or qemu-aarch64 is not installed: skipped")
        return
    program = build(os.path.join(folder, "aarch64"), ["-O2", "-static"], ["kernel_baseline.cc"], AARCH64, "aarch64")
    run(["qemu-aarch64", program, "check", "400"], GLUON_KL_NUM_THREADS="2")
    program = build_top_k(os.path.join(folder, "aarch64_top_k"), ["-O2", "-static", "-DIN_DOUBLE"], AARCH64)
    run(["qemu-aarch64", program, "100"])


def main():
    with tempfile.TemporaryDirectory() as folder:
        sources = runnable()
        if "bench" in sys.argv:
            program = build(os.path.join(folder, "bench"), ["-O3"], sources)
            return subprocess.run([program, *sys.argv[sys.argv.index("bench"):]], check=True)
        jobs = [functools.partial(accuracy, folder, source) for source in sources]
        if "accuracy" not in sys.argv:  # the longest first
            first, last = (sources[:1], sources[-1:]) if "quick" in sys.argv else (sources, sources)
            jobs = [functools.partial(sanitizers, folder, first), functools.partial(valgrind, folder, last),
                    functools.partial(other_processor, folder),
                    *[functools.partial(top_k, folder, source) for source in first], *jobs]
        side_by_side(jobs)


if __name__ == "__main__":
    main()
