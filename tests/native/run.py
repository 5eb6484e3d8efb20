"""Builds the standalone driver of the kernels and runs it under sanitizers and valgrind, or for time.

python tests/native/run.py            # accuracy; ASAN + UBSAN; valgrind and aarch64 where their programs are installed
python tests/native/run.py bench      # ns per element of each form; a form's name may follow
"""

import os
import platform
import runpy
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
NATIVE = os.path.join(HERE, "..", "..", "gluon_kl", "native")
BUILD = runpy.run_path(os.path.join(NATIVE, "build_flags.py"))
NUMERIC = [flag for flag in BUILD["FLAGS"] if flag not in ("-O3", "-g0")]
AARCH64 = "aarch64-linux-gnu-g++"


def isa_of(source):
    return source[len("kernel_"):-len(".cc")]


def build(folder, flags, compiler=None, machine=None):
    """The driver with every instruction set of the machine."""
    common = [compiler or os.environ.get("CXX", "g++"), *NUMERIC, "-w", "-pthread", "-I", NATIVE, *flags]
    jobs = [(os.path.join(NATIVE, name), BUILD["ISA_FLAGS"][name])
            for name in BUILD["kernel_sources"](machine or platform.machine())]
    jobs.append((os.path.join(HERE, "driver.cc"), []))
    objects, running = [], []
    for source, extra in jobs:
        objects.append(os.path.join(folder, os.path.basename(source) + ".o"))
        running.append(subprocess.Popen([*common, *extra, "-c", source, "-o", objects[-1]]))
    for process in running:
        process.wait()
    if any(process.returncode for process in running):
        sys.exit("the driver does not compile")
    program = os.path.join(folder, "driver")
    subprocess.run([*common, *objects, "-o", program], check=True)
    return program


def run(command, **environment):
    print("$", " ".join(os.path.basename(c) if os.sep in c else c for c in command), environment or "", flush=True)
    subprocess.run(command, env={**os.environ, **environment}, check=True)


def accuracy(folder):
    """Errors of the functions and terms, for each instruction set that this processor has."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        able = file.read()
    program = os.path.join(folder, "accuracy")
    for source in BUILD["kernel_sources"](platform.machine()):
        needed = {"avx2": "avx2", "avx512": "avx512dq"}.get(isa_of(source), "")
        if needed not in able:
            print(f"this processor has no {needed}: skipped")
            continue
        subprocess.run([os.environ.get("CXX", "g++"), *NUMERIC, "-O2", "-w", "-I", NATIVE, *BUILD["ISA_FLAGS"][source],
                        os.path.join(HERE, "accuracy.cc"), "-o", program, "-pthread"], check=True)
        run([program])


def main():
    with tempfile.TemporaryDirectory() as folder:
        if "bench" in sys.argv:
            return run([build(folder, ["-O3"]), *sys.argv[sys.argv.index("bench"):]])
        if "accuracy" in sys.argv:
            return accuracy(folder)
        accuracy(folder)
        program = build(folder, ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"])
        for source in BUILD["kernel_sources"](platform.machine()):
            run([program, "check", "400"], GLUON_KL_ISA=isa_of(source), GLUON_KL_NUM_THREADS="3")
        program = build(folder, ["-O1", "-g"])
        if shutil.which("valgrind"):
            # valgrind knows no AVX-512, and says so to programs that ask.
            for isa in ("baseline", "avx2"):
                # Threads stay until the process ends, their stacks with them: only what nothing points to is a leak.
                run(["valgrind", "-q", "--error-exitcode=1", "--leak-check=full", "--show-leak-kinds=definite",
                     "--errors-for-leak-kinds=definite", program, "check", "80"],
                    GLUON_KL_ISA=isa, GLUON_KL_NUM_THREADS="2")
        else:
            print("valgrind is not installed: skipped")
        if shutil.which(AARCH64) and shutil.which("qemu-aarch64"):
            program = build(folder, ["-O2", "-static"], AARCH64, "aarch64")
            run(["qemu-aarch64", program, "check", "400"], GLUON_KL_NUM_THREADS="2")
        else:
            print(f"{AARCH64} or qemu-aarch64 is not installed: skipped")


if __name__ == "__main__":
    main()
