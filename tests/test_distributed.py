"""Training on several processes: the same result, and no process left behind, whatever happens."""

import os
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from bs4 import BeautifulSoup
from rendered import site  # noqa: F401

matplotlib.use("Agg")
TUTORIALS = Path(__file__).resolve().parent.parent / "tutorials"
SCRIPT = TUTORIALS / "distributed_training.py"
EPOCHS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(scope="module")
def page(folder):
    """The names of the page after a short run, accident included."""
    sizes = [f"--epochs={EPOCHS}", f"--save={folder / 'digits.params'}", f"--figures={folder}"]
    with pytest.MonkeyPatch.context() as patch, matplotlib.rc_context():
        patch.syspath_prepend(str(TUTORIALS))
        patch.setattr(sys, "argv", ["page", *sizes])
        names = runpy.run_path(str(SCRIPT), run_name="__main__")
        matplotlib.pyplot.close("all")
    assert (folder / "distributed_training.png").stat().st_size > 10000
    return names


def is_gone(pid):
    """Whether no such process runs; one that ended and awaits its parent's notice does not run."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_two_workers_equal_one_process(page):
    assert sorted(page["together"]) == ["worker 0", "worker 1"]
    for curve in page["together"].values():
        assert len(curve) == len(page["alone"]) == EPOCHS
        np.testing.assert_allclose(curve, page["alone"], rtol=0, atol=5e-7)
    assert page["alone"][-1] < 0.5 * page["alone"][0]


def test_saved_parameters_equal_those_of_one_process(page, folder):
    alone = page["train"](None, EPOCHS, page["options"].batch, page["options"].seed, lambda epoch, value: None)
    together = page["make_network"](seed=99)
    together.load_parameters(str(folder / "digits.params"))
    for mine, theirs in zip(alone.collect_params().values(), together.collect_params().values()):
        np.testing.assert_allclose(theirs.data().asnumpy(), mine.data().asnumpy(), rtol=0, atol=1e-6)


def test_labels_are_votes(page):
    (images, labels), (test_images, test_labels) = page["load_data"]()
    assert len(images) + len(test_images) == 1797
    for votes in (labels, test_labels):
        np.testing.assert_allclose(votes.sum(1), 1)
        np.testing.assert_allclose(votes * 15, np.round(votes * 15))
    assert 0.1 < np.mean(labels.max(1) < 1) < 0.9  # some disagree, some do not


def test_two_hosts_with_one_worker_each(page, monkeypatch):
    """Both hosts' processes, on loopback, under one parent: two servers and two workers."""
    root = f"127.0.0.1:{page['free_port']()}"
    arguments = [f"--epochs={EPOCHS}"]
    commands = {f"host {host} {name}": command for host in (0, 1)
                for name, command in page["plan"](2, host, 1, root, arguments).items()}
    assert len(commands) == 5  # one scheduler
    values = {}

    def heard(name, line, processes):
        found = re.search(r'"held_out": ([\d.]+)', line)
        if found:
            values.setdefault(name, []).append(float(found.group(1)))

    page["run"](commands, 60, heard)
    for host in (0, 1):
        np.testing.assert_allclose(values[f"host {host} worker 0"], page["alone"], rtol=0, atol=5e-7)


def test_a_killed_worker_fails_the_run(page):
    pids, killed = [], []

    def kill(name, epoch, processes):
        if not pids:
            pids.extend(process.pid for process in processes.values())
            os.kill(processes["worker 0"].pid, signal.SIGKILL)
            killed.append(time.monotonic())

    with pytest.raises(RuntimeError, match="worker 0 ended by SIGKILL; run stopped"):
        page["train_distributed"](hosts=1, host=0, workers=2, root="127.0.0.1:0", disturb=kill)
    assert time.monotonic() - killed[0] < 5
    assert len(pids) == 4 and all(is_gone(pid) for pid in pids)


def python(source):
    return [sys.executable, "-c", source], dict(os.environ)


def test_silence_fails_the_run(page):
    pids = {}

    def heard(name, line, processes):
        pids[name] = processes[name].pid

    commands = {"a": python("import time; print(1, flush=True); time.sleep(60)"),
                "b": python("import time; print(2, flush=True); time.sleep(60)")}
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="nothing heard for 2 s from a, b; run stopped"):
        page["run"](commands, 2, heard)
    assert time.monotonic() - began < 20
    assert sorted(pids) == ["a", "b"] and all(is_gone(pid) for pid in pids.values())


def test_the_message_has_the_last_words(page):
    with pytest.raises(RuntimeError, match=r"(?s)worker 7 ended with code 3; run stopped.*the disk is full"):
        page["run"]({"worker 7": python("import sys; print('the disk is full'); sys.exit(3)")}, 60, lambda *_: None)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_child_survives_its_parent(stop, folder):
    """Ctrl-C, a polite end and a rude one, while scheduler, server and workers start."""
    parent = subprocess.Popen([sys.executable, "-W", "ignore", str(SCRIPT), "--epochs=1", f"--figures={folder}"],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        tasks, children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children"), []
        deadline = time.monotonic() + 60
        while len(children) < 4 and time.monotonic() < deadline:
            time.sleep(0.02)
            children = [int(pid) for pid in tasks.read_text().split()]
        assert len(children) == 4
        parent.send_signal(stop)
        assert parent.wait(timeout=60) != 0
    finally:
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 10
    while not all(map(is_gone, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert all(map(is_gone, children))


def test_help_names_every_size():
    done = subprocess.run([sys.executable, "-W", "ignore", str(SCRIPT), "--help"], capture_output=True, text=True,
                          timeout=60)
    assert done.returncode == 0
    assert {"--workers", "--hosts", "--root", "--patience", "--epochs"} <= set(re.findall(r"--\w+", done.stdout))


@pytest.mark.site
def test_page_shows_the_same_digits_and_the_accident(site):  # noqa: F811
    soup = BeautifulSoup((site / "gallery" / "distributed_training.html").read_text(), "html.parser")
    text = "\n".join(block.get_text() for block in soup.select("div.sphx-glr-script-out"))
    rows = re.findall(r"^(?:one process|worker \d) +([\d.]+) +([\d.]+)$", text, re.MULTILINE)
    assert len(rows) == 3
    assert all(abs(float(a) - float(b)) < 1.5e-6 for row in rows for a, b in zip(row, rows[0]))
    assert float(rows[0][1]) == pytest.approx(0.0832, abs=0.005)
    assert "worker 1 ended by SIGKILL; run stopped" in text
