"""Train a script on several processes, or on several machines, and end all of them as soon as one fails.

    python launch.py --workers 2 distributed_training.py --epochs 12

On several machines, start the same command on each; only the number after --host differs:

    python launch.py --hosts 2 --host 0 --root 192.168.0.10:9091 distributed_training.py
    python launch.py --hosts 2 --host 1 --root 192.168.0.10:9091 distributed_training.py

Environment variables tell MXNet the role of a process. A scheduler introduces the others to one another. A server
holds parameters. Both do their work inside `import mxnet`, which never returns in them. A worker runs the script.

Warning: the parameter server has neither passwords nor encryption, and it unpickles the optimizer that a worker sends.
Anybody who reaches its ports can run code on it. Use it on a network where you trust every machine.
"""

import argparse
import os
import queue
import signal
import socket
import subprocess
import sys
import threading

# Asks the kernel to end this process if its parent is killed, and then replaces itself by the command.
TIED = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


def free_port():
    """Return a free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def own_address(root, port):
    """Return the address of this machine on the network that leads to the root; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((root, port))
        return probe.getsockname()[0]


def plan(script, workers=2, hosts=1, host=0, root="127.0.0.1:0"):
    """Return what this machine has to start: from names to (command, environment).

    `script` is a list: the file and its arguments. Port 0 in `root` stands for any free one.
    """
    address, port = root.rsplit(":", 1)
    port = int(port) or free_port()
    shared = {
        **os.environ,
        "DMLC_PS_ROOT_URI": address,
        "DMLC_PS_ROOT_PORT": str(port),
        "DMLC_NODE_HOST": own_address(address, port),
        "DMLC_NUM_SERVER": str(hosts),
        "DMLC_NUM_WORKER": str(hosts * workers),
        "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // workers)),
    }
    helper = [sys.executable, "-c", "import gluon_kl"]  # which imports mxnet
    commands = {}
    if host == 0:
        commands["scheduler"] = helper, {**shared, "DMLC_ROLE": "scheduler"}
    commands["server"] = helper, {**shared, "DMLC_ROLE": "server"}
    for i in range(workers):
        commands[f"worker {i}"] = [sys.executable, *map(str, script)], {**shared, "DMLC_ROLE": "worker"}
    return commands


def start(command, environment):
    """Start a process that ends with this one. Its output and its errors go to one pipe."""
    # No preexec_fn: an interrupt that comes while Python runs its fork hooks would be lost.
    tied = [sys.executable, "-c", TIED, str(os.getpid()), *command]
    return subprocess.Popen(tied, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)


def forward(name, stream, lines):
    """Put each line of a stream into a queue, under a name, and None at its end."""
    for line in stream:
        lines.put((name, line.rstrip()))
    lines.put((name, None))


def run(commands, heard, patience=60):
    """Start the processes of a plan and wait for them; `heard(name, line, processes)` gets each line that they print.

    All workers wait for one that dies, for ever. So RuntimeError is raised, and all processes end, if one does not end
    well or if none prints anything for `patience` seconds.
    """
    processes, lines = {}, queue.Queue()
    said = {name: [] for name in commands}
    try:
        for name, (command, environment) in commands.items():
            processes[name] = start(command, environment)
            threading.Thread(target=forward, args=(name, processes[name].stdout, lines), daemon=True).start()
        running = set(processes)
        while running:
            try:
                name, line = lines.get(timeout=patience)
            except queue.Empty:
                raise RuntimeError(f"nothing heard for {patience:g} s from {', '.join(sorted(running))}; "
                                   f"run stopped") from None
            if line is not None:
                said[name].append(line)
                heard(name, line, processes)
                continue
            running.remove(name)
            code = processes[name].wait()
            if code:
                how = f"by {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
                words = "".join(f"\n  {line}" for line in said[name][-5:])
                raise RuntimeError(f"{name} ended {how}; run stopped\nits last words:{words or ' none'}")
    finally:
        for process in processes.values():
            process.kill()
            process.wait()


def main():
    """Read the command line, and run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2, help="workers on each machine (default: %(default)s)")
    parser.add_argument("--hosts", type=int, default=1, help="machines in all (default: %(default)s)")
    parser.add_argument("--host", type=int, default=0, help="which of them this is, from 0 (default: %(default)s)")
    parser.add_argument("--root", default="127.0.0.1:0", help="address:port of machine 0 (default: %(default)s)")
    parser.add_argument("--patience", type=float, default=60, help="seconds without output (default: %(default)s)")
    parser.add_argument("script", nargs=argparse.REMAINDER, help="the file to run, with its arguments")
    given = parser.parse_args()
    if not given.script:
        parser.error("name the script that the workers run")
    commands = plan(given.script, given.workers, given.hosts, given.host, given.root)
    try:
        run(commands, lambda name, line, processes: print(f"{name}: {line}", flush=True), given.patience)
    except RuntimeError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
