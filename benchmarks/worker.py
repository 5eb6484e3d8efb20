"""One competitor in a separate process, which reads requests on standard input and answers in lines of JSON."""

import gc
import importlib
import json
import re
import sys
import time

import numpy as np
from rows import FORMS, Row, inputs, smaller

MODULES = {"torch": "with_torch", "torch-compile": "with_torch", "jax": "with_jax",
           **dict.fromkeys(("copy", "copy-two-threads", "forward", "backward"), "ceiling")}


def resident(field):
    """The bytes of memory of this process, now ("VmRSS") or at its peak ("VmHWM")."""
    with open("/proc/self/status", encoding="ascii") as file:
        return 1024 * int(re.search(field + r":\s*(\d+)", file.read()).group(1))


def peak(make, subject, row):
    """The peak memory of two steps in bytes, beyond the inputs of the loss and the gradients."""
    warm = make(subject, smaller(row), inputs(smaller(row)))
    warm.steps["step"]()
    made = make(subject, row, inputs(row))
    gc.collect()

    def most(step):
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")  # resets the peak
        for _ in range(2):
            step()
        return resident("VmHWM")

    if "without" in made.steps:  # the step without the loss, which gets the gradients
        given = most(made.steps["without"])
        return most(made.steps["step"]) - given - 4 * int(np.prod(row.shape)) * FORMS[row.form].followed
    given = resident("VmRSS")
    return most(made.steps["step"]) - given - made.unallocated


def seconds(step, count):
    step()  # not measured: it fills the caches again
    taken = []
    for _ in range(count):
        start = time.perf_counter()
        step()
        taken.append(time.perf_counter() - start)
    return taken


def main(subject, threads):
    def answer(**content):
        print(json.dumps(content), flush=True)

    try:
        module = importlib.import_module(MODULES.get(subject, "with_mxnet"))
        answer(version=module.start(subject, threads))
    except ImportError as error:
        answer(missing=str(error))
        return
    made = None
    for line in sys.stdin:
        order = json.loads(line)
        row = Row(**order["row"])
        try:
            if order["do"] == "peak":
                answer(bytes=peak(module.Steps, subject, row))
            elif order["do"] == "prepare":
                made = None
                made = module.Steps(subject, row, inputs(row))
                np.savez(order["file"], *made.results())
                answer(first={name: min(seconds(step, 2)) for name, step in made.steps.items()})
            else:
                answer(taken={name: seconds(step, order["counts"][name]) for name, step in made.steps.items()})
        except Exception as error:  # the others continue, whatever a library raises
            answer(missing=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
