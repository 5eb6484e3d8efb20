"""Training on several processes: the same result, and no process left behind, whatever happens."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import gallery
import numpy as np
import pytest
from conftest import LEAN
from rendered import printed

sys.path.insert(0, str(gallery.ROOT / "tutorials"))
import launch

sys.path.pop(0)

EPOCHS = 3
SCRIPT = [gallery.ROOT / "tutorials" / "distributed_training.py", f"--epochs={EPOCHS}"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return tmp_path_factory.mktemp("distributed") / "digits.params"


@pytest.fixture(scope="module")
def page(saved):
    """What the page defines; that its own run agrees is on the rendered one."""
    return gallery.definitions("distributed_training")


@pytest.fixture(scope="module")
def alone(page):
    """One process: its network and its curve."""
    curve, sizes = [], page["sizes"]
    network = page["train"](None, EPOCHS, sizes.batch, sizes.seed, lambda epoch, value: curve.append(value))
    return network, curve


@pytest.fixture(scope="module")
def together(saved):
    """The curves of two hosts with one worker each: their processes, on loopback, under one parent."""
    root, script = f"127.0.0.1:{launch.free_port()}", [*SCRIPT, f"--save={saved}"]
    commands = {f"host {host} {name}": command for host in (0, 1)
                for name, command in launch.plan(script, 1, 2, host, root).items()}
    assert len(commands) == 5  # one scheduler
    curves = {}

    def heard(name, line, processes):
        found = re.search(r"^epoch \d+: ([\d.]+)$", line)
        if found:
            curves.setdefault(name, []).append(float(found.group(1)))

    launch.run(commands, heard, 300)
    return curves


def is_gone(pid):
    """Whether no such process runs; one that ended and awaits its parent's notice does not run."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_two_hosts_equal_one_process(together, alone):
    assert sorted(together) == ["host 0 worker 0", "host 1 worker 0"]
    for curve in together.values():
        assert len(curve) == len(alone[1]) == EPOCHS
        np.testing.assert_allclose(curve, alone[1], rtol=0, atol=5e-7)
    assert alone[1][-1] < 0.5 * alone[1][0]


def test_saved_parameters_equal_those_of_one_process(page, together, alone, saved):
    theirs = page["make_network"](seed=99)
    theirs.load_parameters(str(saved))
    for one, other in zip(alone[0].collect_params().values(), theirs.collect_params().values()):
        np.testing.assert_allclose(other.data().asnumpy(), one.data().asnumpy(), rtol=0, atol=1e-6)


def test_labels_are_votes(page):
    (images, labels), (test_images, test_labels) = page["load_data"]()
    assert len(images) + len(test_images) == 1797
    for votes in (labels, test_labels):
        np.testing.assert_allclose(votes.sum(1), 1)
        np.testing.assert_allclose(votes * 15, np.round(votes * 15))
    assert 0.1 < np.mean(labels.max(1) < 1) < 0.9  # some disagree, some do not


def test_shares_add_up_to_the_batch(page):
    """Sums of unequal shares, over the size of the batch; their means do not."""
    assert sum(page["sums"]) / 7 == pytest.approx(page["whole"], rel=1e-9)
    assert abs(sum(page["means"]) / 2 - page["whole"]) > 0.01 * abs(page["whole"])


WAITS = """
import gluon_kl, mxnet as mx
store = mx.kv.create("dist_sync")
print("epoch 1", flush=True)
while True:
    store._barrier()
"""


def test_a_killed_worker_fails_the_run(tmp_path, monkeypatch):
    """While the others wait for it."""
    pids, killed = [], []
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, [LEAN, gallery.ROOT])))
    script = tmp_path / "waits.py"
    script.write_text(WAITS)

    def kill(name, line, processes):
        if not pids and line.startswith("epoch"):
            pids.extend(process.pid for process in processes.values())
            os.kill(processes["worker 0"].pid, signal.SIGKILL)
            killed.append(time.monotonic())

    with pytest.raises(RuntimeError, match="worker 0 ended by SIGKILL; run stopped"):
        launch.run(launch.plan([script]), kill)
    assert time.monotonic() - killed[0] < 5
    assert len(pids) == 4 and all(is_gone(pid) for pid in pids)


def python(source):
    return [sys.executable, "-c", source], dict(os.environ)


def test_silence_fails_the_run():
    pids = {}

    def heard(name, line, processes):
        pids[name] = processes[name].pid

    commands = {"a": python("import time; print(1, flush=True); time.sleep(60)"),
                "b": python("import time; print(2, flush=True); time.sleep(60)")}
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="nothing heard for 2 s from a, b; run stopped"):
        launch.run(commands, heard, 2)
    assert time.monotonic() - began < 20
    assert sorted(pids) == ["a", "b"] and all(is_gone(pid) for pid in pids.values())


def test_the_message_has_the_last_words():
    with pytest.raises(RuntimeError, match=r"(?s)worker 7 ended with code 3; run stopped.*the disk is full"):
        launch.run({"worker 7": python("import sys; print('the disk is full'); sys.exit(3)")}, lambda *_: None)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_child_survives_its_parent(stop):
    """Ctrl-C, a polite end and a rude one, while scheduler, server and workers start."""
    commands = launch.plan(SCRIPT)
    parent = os.fork()
    if not parent:
        try:
            launch.run(commands, lambda *_: None)
        finally:
            os._exit(1)
    try:
        listing, children = Path(f"/proc/{parent}/task/{parent}/children"), []
        deadline = time.monotonic() + 60
        while len(children) < 4 and time.monotonic() < deadline:
            time.sleep(0.02)
            children = [int(pid) for pid in listing.read_text().split()]
        assert len(children) == 4
        os.kill(parent, stop)
        while not is_gone(parent) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert is_gone(parent)
    finally:
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
    deadline = time.monotonic() + 10
    while not all(map(is_gone, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert all(map(is_gone, children))


def test_the_command_runs_a_script_and_says_who_fails(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import sys; print('rank', sys.argv[1]); sys.exit(int(sys.argv[1]))")
    command = [sys.executable, launch.__file__, "--workers", "1", str(script)]
    done = subprocess.run([*command, "4"], text=True, capture_output=True, timeout=120)
    assert done.returncode == 1 and "worker 0: rank 4" in done.stdout
    assert done.stderr.startswith("worker 0 ended with code 4; run stopped")
    done = subprocess.run(command[:-1], text=True, capture_output=True, timeout=120)
    assert done.returncode == 2 and "name the script that the workers run" in done.stderr


@pytest.mark.site
def test_page_shows_the_same_digits(site):
    text = printed(site, "distributed_training")
    rows = re.findall(r"^(?:one process|worker \d) +([\d.]+) +([\d.]+)$", text, re.MULTILINE)
    assert len(rows) == 3
    assert all(abs(float(a) - float(b)) < 1.5e-6 for row in rows for a, b in zip(row, rows[0]))
    assert float(rows[0][1]) == pytest.approx(0.0832, abs=0.005)
    found = re.findall(r"^(?:whole batch|sums|means)[^:\n]*: +(-?[\d.]+)$", text, re.MULTILINE)
    whole, sums, means = map(float, found)
    assert whole == sums != means
