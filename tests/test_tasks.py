"""The set-up script: which Python, what is missing, when to make things anew, and what it says."""

import ast
import os
import re
import subprocess
import sys

import pytest

import tasks

ROOT = tasks.ROOT


def python(version="3.9.1", executable="/usr/bin/python3", venv=True, libraries=()):
    return {"version": version, "executable": executable, "venv": venv, "libraries": list(libraries)}


def script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def answering(version):
    return f"""echo '{{"version": "{version}", "executable": "'$0'", "venv": true, "libraries": []}}'"""


def test_needs_only_the_standard_library_and_an_old_python_can_read_it():
    tree = ast.parse((ROOT / "tasks.py").read_text(), feature_version=(3, 6))
    imported = {name.name for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))
                for name in ([ast.alias(node.module, None)] if isinstance(node, ast.ImportFrom) else node.names)}
    assert imported <= {"argparse", "hashlib", "json", "os", "shutil", "subprocess", "sys", "time", "pathlib"}


# Which Python


@pytest.mark.parametrize("version, fits", [
    ("3.7.17", False), ("3.8.0", True), ("3.10.13", True), ("3.11.9", True), ("3.12.0", False), ("4.0.0", False)])
def test_fits(version, fits):
    assert tasks.fits(python(version)) == fits


def test_probe_asks_the_interpreter_itself():
    answer = tasks.probe(sys.executable)
    assert answer["version"] == ".".join(map(str, sys.version_info[:3]))
    assert os.path.samefile(answer["executable"], sys.executable)
    assert answer["libraries"] == []


@pytest.mark.parametrize("text", ["echo 'pyenv: python3.8: command not found' >&2; exit 127", "echo no JSON"])
def test_probe_of_what_does_not_run(tmp_path, text):
    assert tasks.probe(script(tmp_path / "python3.8", text)) is None
    assert tasks.probe(tmp_path / "absent") is None


def test_interpreters_are_those_that_run(tmp_path, monkeypatch):
    """Also where a pyenv shim on PATH fails, while the Python behind it is there."""
    shims, versions = tmp_path / "pyenv" / "shims", tmp_path / "pyenv" / "versions"
    script(shims / "python3.8", "exit 127")
    script(versions / "3.8.18" / "bin" / "python3.8", answering("3.8.18"))
    script(tmp_path / "bin" / "python3.10", answering("3.10.2"))
    script(tmp_path / "bin" / "python3.11", answering("3.12.1"))
    script(tmp_path / "home" / ".local/share/uv/python/cpython-3.9/bin/python3.9", answering("3.9.7"))
    for name in ("PYENV_ROOT", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("PATH", os.pathsep.join(map(str, [shims, tmp_path / "bin"])))
    found = tasks.interpreters()
    assert [each["version"] for each in found] == ["3.8.18", "3.9.7", "3.10.2"]


@pytest.fixture
def machine(monkeypatch):
    """Pretend to run under some Python, with others beside it."""

    def pretend(running, *others):
        monkeypatch.setattr(tasks, "probe", lambda path: python(running) if path == sys.executable else None)
        monkeypatch.setattr(tasks, "interpreters", lambda: [python(version) for version in others])

    return pretend


@pytest.mark.parametrize("running, wanted, chosen", [
    ("3.9.5", None, "3.9.5"),
    ("3.13.1", None, "3.11.2"),
    ("3.6.9", None, "3.11.2"),
    ("3.9.5", "newest", "3.11.2"),
    ("3.9.5", "oldest", "3.8.18"),
    ("3.9.5", "3.10", "3.10.4"),
    ("3.9.5", "3.10.4", "3.10.4"),
])
def test_choice(machine, running, wanted, chosen):
    machine(running, "3.8.18", "3.10.4", "3.11.2")
    assert tasks.choose_python(wanted)["version"] == chosen


def test_no_fitting_python(machine):
    machine("3.13.1")
    with pytest.raises(tasks.CannotRun, match=r"from 3\.8 to 3\.11, this is 3\.13\.1 and no other .*uv python install"):
        tasks.choose_python()


@pytest.mark.parametrize("wanted", ["3.12", "3.1", "latest", "/nowhere/python3"])
def test_python_that_cannot_be_had(machine, wanted):
    machine("3.9.5", "3.9.5", "3.10.4")
    with pytest.raises(tasks.CannotRun, match=f"must be .* not '{wanted}'"):
        tasks.choose_python(wanted)


# What is missing


@pytest.mark.parametrize("lacking, packages", [
    (python("3.10.4", venv=False), "python3.10-venv"),
    (python(libraries=["libgomp.so.1"]), "libgomp1"),
    (python(venv=False, libraries=["libgomp.so.1", "libquadmath.so.0"]), "python3.9-venv libgomp1 libquadmath0"),
])
@pytest.mark.parametrize("user, sudo", [(0, ""), (1000, "sudo ")])
def test_missing_packages_are_named_with_their_command(monkeypatch, lacking, packages, user, sudo):
    monkeypatch.setattr(os, "geteuid", lambda: user)
    with pytest.raises(tasks.CannotRun) as caught:
        tasks.check_machine(lacking)
    assert f"lacks {', '.join(packages.split())}:" in str(caught.value)
    assert f"`{sudo}apt-get update && {sudo}apt-get install -y {packages}`" in str(caught.value)


def test_nothing_missing():
    tasks.check_machine(python())


def test_a_bare_machine_gets_a_sentence_and_no_traceback(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(tasks, "ROOT", tmp_path)
    monkeypatch.setattr(tasks, "choose_python", lambda wanted: python(venv=False))
    for name in ("setup.cfg", "setup.py", "pyproject.toml"):
        (tmp_path / name).touch()
    assert tasks.main(["test"]) == 1
    said = capsys.readouterr()
    assert "python3.9-venv" in said.err
    assert "Traceback" not in said.err + said.out
    assert not (tmp_path / ".venv").exists()


def test_other_systems(monkeypatch, capsys):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert tasks.main(["test"]) == 1
    assert "supports Linux, not darwin" in capsys.readouterr().err


# The environment and its stamp


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of four files, with a `step` that only pretends; returns what it was asked to do."""
    (tmp_path / "gluon_kl" / "native").mkdir(parents=True)
    for name in ("setup.cfg", "setup.py", "pyproject.toml", "gluon_kl/native/kernel.h", "gluon_kl/loss.py"):
        (tmp_path / name).write_text(name)
    done = []

    def step(title, command):
        if "venv" in command:
            inside = command[-1] / "bin" / "python"
            inside.parent.mkdir(parents=True)
            inside.touch()
        done.append("make" if "venv" in command else "install")

    monkeypatch.setattr(tasks, "ROOT", tmp_path)
    monkeypatch.setattr(tasks, "step", step)
    return done


def test_second_time_nothing_is_done(project):
    folder = tasks.ROOT / ".venv"
    assert tasks.set_up(python(), folder) == folder / "bin" / "python"
    assert project == ["make", "install"]
    tasks.set_up(python(), folder)
    assert project == ["make", "install"]


@pytest.mark.parametrize("name", ["setup.cfg", "setup.py", "pyproject.toml", "gluon_kl/native/kernel.h"])
def test_a_changed_source_of_the_install_installs_again(project, name):
    tasks.set_up(python(), tasks.ROOT / ".venv")
    (tasks.ROOT / name).write_text("changed")
    tasks.set_up(python(), tasks.ROOT / ".venv")
    assert project == ["make", "install", "install"]


def test_python_sources_need_no_new_install(project):
    tasks.set_up(python(), tasks.ROOT / ".venv")
    (tasks.ROOT / "gluon_kl" / "loss.py").write_text("changed")
    tasks.set_up(python(), tasks.ROOT / ".venv")
    assert project == ["make", "install"]


def test_another_python_makes_it_anew(project):
    tasks.set_up(python("3.9.1"), tasks.ROOT / ".venv")
    tasks.set_up(python("3.9.2"), tasks.ROOT / ".venv")
    assert project == ["make", "install"] * 2


def test_half_made_is_made_anew(project, monkeypatch):
    """As after Ctrl-C, or where Debian's venv stopped for want of ensurepip."""
    working = tasks.step

    def interrupted(title, command):
        if "pip" in command:
            raise KeyboardInterrupt
        working(title, command)

    monkeypatch.setattr(tasks, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tasks.set_up(python(), tasks.ROOT / ".venv")
    (tasks.ROOT / ".venv" / "rubbish").touch()
    monkeypatch.setattr(tasks, "step", working)
    tasks.set_up(python(), tasks.ROOT / ".venv")
    assert project == ["make", "make", "install"]
    assert not (tasks.ROOT / ".venv" / "rubbish").exists()


def test_an_environment_whose_python_is_gone_is_made_anew(project):
    folder = tasks.ROOT / ".venv"
    tasks.set_up(python(), folder)
    (folder / "bin" / "python").unlink()
    tasks.set_up(python(), folder)
    assert project == ["make", "install"] * 2


def test_each_asked_for_python_has_its_environment(project, monkeypatch):
    monkeypatch.setattr(tasks, "choose_python", lambda wanted: python("3.8.18"))
    seen = []
    monkeypatch.setitem(tasks.COMMANDS, "lint", lambda inside, arguments: seen.append((inside, arguments)))
    tasks.main(["--python", "oldest", "lint", "--fix", "-k", "page"])
    tasks.main(["lint"])
    assert seen == [(tasks.ROOT / ".venv-3.8" / "bin" / "python", ["--fix", "-k", "page"]),
                    (tasks.ROOT / ".venv" / "bin" / "python", [])]


# Long steps


def test_step_shows_what_failed():
    with pytest.raises(tasks.CannotRun, match="Baking failed with exit code 3"):
        tasks.step("Baking", [sys.executable, "-c", "print('no flour'); raise SystemExit(3)"])


def test_step_prints_the_output_of_a_failure_only(capsys):
    tasks.step("Baking", [sys.executable, "-c", "print('all well')"])
    with pytest.raises(tasks.CannotRun):
        tasks.step("Baking", [sys.executable, "-c", "print('no flour'); raise SystemExit(3)"])
    said = capsys.readouterr().out
    assert "all well" not in said
    assert "done" in said
    assert "no flour" in said


# The site


@pytest.fixture
def builds(tmp_path, monkeypatch):
    """A project with a tutorial, and the list of builds that were run of it."""
    monkeypatch.setattr(tasks, "ROOT", tmp_path)
    monkeypatch.setattr(tasks, "SITE", tmp_path / "docs" / "_build" / "html")
    for name in ("gluon_kl/loss.py", "tutorials/kl_divergence.py", "docs/index.rst", "figures/a.png", "CHANGELOG.md",
                 "setup.cfg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    run = []

    def step(title, command):
        run.append(list(map(str, command)))
        tasks.SITE.mkdir(parents=True)
        (tasks.SITE / "index.html").touch()

    monkeypatch.setattr(tasks, "step", step)
    return run


def test_site_is_built_once_with_warnings_as_errors(builds):
    tasks.build_site(sys.executable)
    tasks.build_site(sys.executable)
    assert len(builds) == 1
    assert {"-W", "-n"} <= set(builds[0])


@pytest.mark.parametrize("name", ["gluon_kl/loss.py", "tutorials/kl_divergence.py", "docs/index.rst", "figures/a.png",
                                  "docs/new.rst"])
def test_any_change_builds_again_from_nothing(builds, name):
    tasks.build_site(sys.executable)
    (tasks.SITE / "forgotten.html").touch()
    (tasks.ROOT / name).write_text("changed")
    tasks.build_site(sys.executable)
    assert len(builds) == 2
    assert not (tasks.SITE / "forgotten.html").exists()


def test_the_whole_site_serves_the_tutorial_but_not_the_other_way_round(builds):
    tasks.tutorial(sys.executable, [])
    tasks.tutorial(sys.executable, [])
    assert len(builds) == 1
    assert "sphinx_gallery_conf.filename_pattern=kl_divergence" in builds[0]
    tasks.docs(sys.executable, [])
    assert len(builds) == 2
    tasks.tutorial(sys.executable, [])
    assert len(builds) == 2


def test_a_failed_build_is_no_build(builds, monkeypatch):
    working = tasks.step

    def failing(title, command):
        working(title, command)
        raise tasks.CannotRun("Sphinx failed")

    monkeypatch.setattr(tasks, "step", failing)
    with pytest.raises(tasks.CannotRun):
        tasks.build_site(sys.executable)
    monkeypatch.setattr(tasks, "step", working)
    tasks.build_site(sys.executable)
    assert len(builds) == 2


# The native operator


@pytest.mark.parametrize("why, in_ci, code, expected", [
    ("", False, 0, 0), ("", True, 0, 0), ("", True, 2, 2),
    ("no compiler", False, 0, 0), ("no compiler", True, 0, 1), ("no compiler", True, 2, 2),
])
def test_a_run_without_the_operator_says_so_and_fails_ci(monkeypatch, capsys, why, in_ci, code, expected):
    monkeypatch.setattr(subprocess, "call", lambda *_, **__: code)
    monkeypatch.setattr(tasks, "native_missing", lambda inside: why)
    monkeypatch.setenv("CI", "true" if in_ci else "")
    assert tasks.test(sys.executable, []) == expected
    assert ("WITHOUT the native operator: no compiler" in capsys.readouterr().out) == bool(why)


def test_operator_turned_off_is_not_missing(monkeypatch):
    monkeypatch.setenv("GLUON_KL_NATIVE", "0")
    assert tasks.native_missing("/nowhere") == ""


# CI


def test_ci_runs_what_the_readme_says():
    commands = re.findall(r"^python3 tasks\.py .*", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert commands
    assert all(re.match(r"python3 tasks\.py (--python \w+ )?test\b", command) for command in commands)
    assert "python3 tasks.py test" in (ROOT / "README.md").read_text()
