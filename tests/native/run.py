"""Builds the standalone driver of the kernels and runs it under sanitizers and valgrind, or for time.

python tests/native/run.py            # ASAN + UBSAN, then valgrind where it is installed
python tests/native/run.py bench      # ns per element
"""

import os
import platform
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
NATIVE = os.path.join(HERE, "..", "..", "gluon_kl", "native")
ISA_FLAGS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mfma", "-mf16c"],
}


def build(folder, flags):
    compiler = os.environ.get("CXX", "g++")
    common = [compiler, "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-pthread", "-I", NATIVE, *flags]
    isas = ISA_FLAGS if platform.machine() == "x86_64" else ["baseline"]
    jobs = [(os.path.join(NATIVE, f"kernel_{isa}.cc"), ISA_FLAGS[isa]) for isa in isas]
    jobs.append((os.path.join(HERE, "driver.cc"), []))
    objects, running = [], []
    for source, extra in jobs:
        objects.append(os.path.join(folder, os.path.basename(source) + ".o"))
        running.append(subprocess.Popen([*common, *extra, "-c", source, "-o", objects[-1]]))
    if any(process.wait() for process in running):
        sys.exit("the driver does not compile")
    program = os.path.join(folder, "driver")
    subprocess.run([*common, *objects, "-o", program], check=True)
    return program


def run(command, **environment):
    print("$", " ".join(os.path.basename(c) if os.sep in c else c for c in command), environment or "", flush=True)
    subprocess.run(command, env=dict(os.environ, **environment), check=True)


def main():
    with tempfile.TemporaryDirectory() as folder:
        if "bench" in sys.argv:
            return run([build(folder, ["-O3"]), "bench"])
        program = build(folder, ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"])
        for isa in ISA_FLAGS:
            run([program, "check", "800"], GLUON_KL_ISA=isa, GLUON_KL_NUM_THREADS="3")
        if not shutil.which("valgrind"):
            return print("valgrind is not installed: skipped")
        # valgrind knows no AVX-512, and says so to programs that ask.
        program = build(folder, ["-O1", "-g"])
        for isa in ("baseline", "avx2"):
            # The threads stay until the process ends, their stacks with them: only what nothing points to is a leak.
            run(["valgrind", "-q", "--error-exitcode=1", "--leak-check=full", "--show-leak-kinds=definite",
                 "--errors-for-leak-kinds=definite", program, "check", "150"],
                GLUON_KL_ISA=isa, GLUON_KL_NUM_THREADS="2")


if __name__ == "__main__":
    main()
