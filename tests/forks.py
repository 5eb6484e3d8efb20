"""Runs programs in separate processes without starting Python each time: in children of one that has imported all."""

import gc
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile


class Forks:
    """A process that imports `modules` with `environment`, and runs each program that it receives in a child."""

    def __init__(self, modules, environment):
        self.process = subprocess.Popen([sys.executable, "-W", "ignore", __file__, *modules], env=environment,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, source, timeout, environment):
        """The exit code of a child that runs `source`, negative for a signal, and its output."""
        with tempfile.NamedTemporaryFile("r", encoding="utf-8", errors="replace") as printed:
            print(json.dumps([source, timeout, environment, printed.name]), file=self.process.stdin, flush=True)
            answer = self.process.stdout.readline()
            assert answer, "the process that forks has ended"
            return int(answer), printed.read()

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def serve(requests, answers):
    """Fork for every request and answer with the exit code; in the child, return the program to run."""
    for request in iter(requests.readline, b""):
        source, timeout, environment, printed = json.loads(request)
        child = os.fork()
        if not child:
            signal.alarm(timeout)  # ends the child wherever it hangs
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            for stream in (1, 2):
                os.dup2(os.open(printed, os.O_WRONLY | os.O_APPEND), stream)
            os.environ.update(environment)
            return source
        status = os.waitpid(child, 0)[1]
        os.write(answers, b"%d\n" % (-os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)))
    return ""


if __name__ == "__main__":
    answers = os.dup(1)
    os.dup2(2, 1)
    for name in sys.argv[1:]:
        importlib.import_module(name)
    gc.freeze()  # a child that ends would look through all of this for garbage, which takes 0.3 s
    # Unbuffered, because every child would inherit what is in a buffer.
    program = serve(io.FileIO(0, closefd=False), answers)
    exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})  # and ends like any Python
