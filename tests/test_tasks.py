"""The set-up script: which Python, what is missing, when to make things anew, and what it says."""

import ast
import errno
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

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
    assert imported <= {"argparse", "configparser", "errno", "fcntl", "hashlib", "json", "os", "pathlib", "re", "runpy",
                        "shlex", "shutil", "subprocess", "sys", "zipfile"}


# Which Python


@pytest.mark.parametrize("version, fits", [
    ("3.7.17", False), ("3.8.0", True), ("3.10.13", True), ("3.13.9", True), ("3.14.0", False), ("4.0.0", False)])
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
    script(tmp_path / "bin" / "python3.11", answering("3.14.1"))
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
    ("3.14.1", None, "3.11.2"),
    ("3.13.1", None, "3.13.1"),
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
    machine("3.14.1")
    with pytest.raises(tasks.CannotRun, match=r"from 3\.8 to 3\.13, this is 3\.14\.1 and no other .*uv python install"):
        tasks.choose_python()


@pytest.mark.parametrize("wanted", ["3.12", "3.14", "3.1", "latest", "/nowhere/python3"])
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
    for name in ("setup.py", "pyproject.toml", "gluon_kl/native/kernel.h", "gluon_kl/native/build_flags.py",
                 "gluon_kl/loss.py"):
        (tmp_path / name).write_text(name)
    (tmp_path / "setup.cfg").write_text("[options.extras_require]\ntutorial =\n    figures<3\n"
                                        "docs =\n    %(tutorial)s\n    pages\ntest =\n    %(docs)s\n    tests>=8\n"
                                        "lint =\n    style\nwheel =\n    wheels\n")
    done = []

    def step(title, command, environ=None):
        if "venv" in command:
            assert "--clear" in command
            shutil.rmtree(str(command[-1]), ignore_errors=True)
            inside = command[-1] / "bin" / "python"
            inside.parent.mkdir(parents=True)
            inside.touch()
            done.append("make")
        elif "--no-deps" in command:
            done.append(command[-1])
        else:
            done.append("install")
            done.append(command[command.index("off") + 1:])

    monkeypatch.setattr(tasks, "ROOT", tmp_path)
    monkeypatch.setattr(tasks, "step", step)
    return done


def set_up(version="3.9.1", command="test", **options):
    return tasks.set_up(python(version), tasks.ROOT / ".venv", command, **options)


def actions(project):
    return [action for action in project if isinstance(action, str) and "=" not in action]


def test_second_time_nothing_is_done(project, capsys):
    folder = tasks.ROOT / ".venv"
    assert set_up() == folder / "bin" / "python"
    assert project == ["make", "mxnet==1.9.1.*", "install",
                       ["numpy", "figures<3", "pages", "tests>=8", "requests<3", "graphviz<0.9", "-e", "."]]
    said = capsys.readouterr().out
    assert "Setting up .venv: up to 250 MB to fetch" in said and "operator to compile; 4 to 6 minutes" in said
    set_up()
    assert len(project) == 4
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("command, installed", [
    ("tutorial", ["figures<3", "pages"]), ("docs", ["figures<3", "pages"]), ("bench", ["figures<3"])])
def test_only_what_the_command_needs(project, command, installed):
    set_up(command=command)
    assert project[-1] == ["numpy", *installed, "requests<3", "graphviz<0.9", "-e", "."]


def library(text="compiled"):
    (tasks.ROOT / tasks.LIBRARY).write_text(text)
    return tasks.ROOT / tasks.LIBRARY


def a_wheel(**changed):
    """A wheel in dist with the operator and what it is made from, some of it changed."""
    (tasks.ROOT / "dist").mkdir()
    with zipfile.ZipFile(str(tasks.ROOT / "dist" / "gluon_kl.whl"), "w") as archive:
        for file in tasks.operator_sources():
            archive.writestr(str(file.relative_to(tasks.ROOT)), changed.get(file.stem, file.read_text()))
        archive.writestr(tasks.LIBRARY, "from the wheel")


def test_a_current_operator_in_the_tree_is_ready_made(project, capsys):
    made = library()
    os.utime(str(made), (4e9, 4e9))
    set_up()
    assert "1 to 2 minutes" in capsys.readouterr().out
    assert made.read_text() == "compiled"


def test_an_operator_older_than_a_source_is_not(project):
    os.utime(str(library()), (1e9, 1e9))
    assert not tasks.ready_made()


def test_the_operator_of_a_wheel_of_these_sources_is_ready_made(project):
    os.utime(str(library()), (1e9, 1e9))
    a_wheel()
    assert tasks.ready_made()
    assert (tasks.ROOT / tasks.LIBRARY).read_text() == "from the wheel"
    assert tasks.ready_made()


@pytest.mark.parametrize("changed", ["kernel", "build_flags"])
def test_a_wheel_of_other_sources_is_not(project, changed):
    a_wheel(**{changed: "another"})
    assert not tasks.ready_made()
    assert not (tasks.ROOT / tasks.LIBRARY).exists()


@pytest.mark.parametrize("command, installed", [("lint", "style"), ("wheel", "wheels")])
def test_what_needs_no_package_gets_none(project, command, installed):
    set_up(command=command)
    assert project == ["make", "install", ["numpy", installed]]


def test_another_command_adds_to_the_environment(project):
    set_up(command="lint")
    set_up(command="docs")
    assert actions(project) == ["make", "install", "install"]
    assert project[-1] == ["numpy", "figures<3", "pages", "requests<3", "graphviz<0.9", "-e", "."]
    set_up(command="lint")
    set_up(command="docs")
    assert actions(project) == ["make", "install", "install"]


@pytest.mark.parametrize("asked, pinned", [
    ("1.8.0", "mxnet==1.8.0.*"), ("1.9", "mxnet==1.9.*"), ("2.0.0b1", "mxnet==2.0.0b1")])
def test_another_mxnet_and_numpy(project, asked, pinned):
    set_up(mxnet=asked, numpy="1.26")
    assert project[1] == pinned and project[3][0] == "numpy==1.26.*"
    set_up(mxnet=asked, numpy="1.26")
    assert actions(project) == ["make", "install"]
    set_up(mxnet=asked)
    assert actions(project) == ["make", "install"] * 2


@pytest.mark.parametrize("name", ["setup.cfg", "setup.py", "pyproject.toml", "gluon_kl/native/kernel.h"])
def test_a_changed_source_of_the_install_installs_again(project, name):
    set_up()
    with (tasks.ROOT / name).open("a") as file:
        file.write("\n# changed")
    set_up()
    assert actions(project) == ["make", "install", "install"]


def test_python_sources_need_no_new_install(project):
    set_up()
    (tasks.ROOT / "gluon_kl" / "loss.py").write_text("changed")
    set_up()
    assert actions(project) == ["make", "install"]


def test_another_python_makes_it_anew(project):
    set_up("3.9.1")
    set_up("3.9.2")
    assert actions(project) == ["make", "install"] * 2


@pytest.mark.parametrize("at, done", [
    ("venv", ["make", "make", "install"]),  # as where it stopped for want of ensurepip
    ("pip", ["make", "install"]),           # as after Ctrl-C: what pip has installed need not be fetched again
])
def test_half_made(project, monkeypatch, at, done):
    working = tasks.step

    def interrupted(title, command):
        if at == "venv":
            working(title, command)
        if at in command:
            raise KeyboardInterrupt
        working(title, command)

    monkeypatch.setattr(tasks, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        set_up()
    (tasks.ROOT / ".venv" / "rubbish").touch()
    monkeypatch.setattr(tasks, "step", working)
    set_up()
    assert actions(project) == done
    assert (tasks.ROOT / ".venv" / "rubbish").exists() == (at == "pip")


def test_an_environment_whose_python_is_gone_is_made_anew(project):
    set_up()
    (tasks.ROOT / ".venv" / "bin" / "python").unlink()
    set_up()
    assert actions(project) == ["make", "install"] * 2


@pytest.mark.parametrize("options, folder", [
    ([], ".venv"), (["--python", "oldest"], ".venv-3.8"), (["--mxnet", "1.7.0"], ".venv-mxnet1.7.0"),
    (["--numpy", "2", "--python", "3.8", "--mxnet", "1.8.0"], ".venv-3.8-mxnet1.8.0-numpy2"),
    (["--mxnet", "wheels/mxnet-2.0.0+cpu-py3-none-any.whl"], ".venv-mxnet2.0.0+cpu")])
def test_each_cell_of_the_matrix_has_its_environment(project, monkeypatch, options, folder):
    monkeypatch.setattr(tasks, "choose_python", lambda wanted: python("3.8.18"))
    seen = []
    monkeypatch.setitem(tasks.COMMANDS, "lint", lambda inside, arguments: seen.append((inside, arguments)))
    tasks.main([*options, "lint", "--fix", "-k", "page"])
    assert seen == [(tasks.ROOT / folder / "bin" / "python", ["--fix", "-k", "page"])]


def test_a_wheel_of_mxnet_by_its_path():
    assert tasks.exactly("mxnet", "wheels/mxnet-2.0.0-py3-none-any.whl") == str(
        Path("wheels/mxnet-2.0.0-py3-none-any.whl").resolve())


# What it says


def test_without_arguments_it_lists_the_commands(capsys):
    assert tasks.main([]) == 0
    said = capsys.readouterr().out
    for name, command in tasks.COMMANDS.items():
        assert f"  {name:9} {command.__doc__}" in said


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["-k", "page", "--help"]])
@pytest.mark.parametrize("command", sorted({*tasks.COMMANDS} - {"bench"}))
def test_help_does_nothing(project, capsys, command, arguments):
    assert tasks.main([command, *arguments]) == 0
    assert tasks.COMMANDS[command].__doc__ in capsys.readouterr().out
    assert project == []


@pytest.mark.parametrize("command", ["tutorial", "docs", "wheel"])
def test_what_takes_no_arguments_refuses_them_at_once(project, capsys, command):
    with pytest.raises(SystemExit) as caught:
        tasks.main([command, "--nope"])
    assert caught.value.code == 2 and project == []
    assert f"{command} takes no arguments, and was given --nope" in capsys.readouterr().err


@pytest.mark.parametrize("argument, code, said", [("--help", 0, "--quick"), ("--nope", 2, "unrecognized arguments")])
def test_bench_knows_its_options_before_it_is_set_up(argument, code, said):
    """By the standard library alone, as where nothing is installed."""
    done = subprocess.run([sys.executable, "-I", "-S", str(ROOT / "tasks.py"), "bench", argument], timeout=60,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == code and said in done.stdout and "Setting up" not in done.stdout


def test_ctrl_c(project, monkeypatch, capsys):
    monkeypatch.setattr(tasks, "choose_python", lambda wanted: python())

    def interrupted(title, command):
        raise KeyboardInterrupt

    monkeypatch.setattr(tasks, "step", interrupted)
    assert tasks.main(["docs"]) == 130
    said = capsys.readouterr().err
    assert "is kept" in said and re.search("`python3 .* docs` goes on from here", said)


@pytest.mark.parametrize("code, reason", [
    (errno.ENOSPC, "the disk is full"), (errno.EROFS, "can only be read"), (errno.EACCES, "can only be read")])
def test_where_nothing_can_be_written(project, monkeypatch, capsys, code, reason):
    monkeypatch.setattr(tasks, "choose_python", lambda wanted: python())

    def failing(title, command, environ=None):
        raise OSError(code, os.strerror(code), str(tasks.ROOT / ".venv"))

    monkeypatch.setattr(tasks, "step", failing)
    assert tasks.main(["test"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"{tasks.ROOT / '.venv'}: ") and reason in said and "Traceback" not in said


# Long steps


def test_step_shows_what_the_command_says(capfd):
    tasks.step("Baking", [sys.executable, "-c", "print('all well')"])
    assert capfd.readouterr().out == "Baking ...\nall well\n"
    with pytest.raises(tasks.CannotRun, match="Baking failed with exit code 3"):
        tasks.step("Baking", [sys.executable, "-c", "print('no flour'); raise SystemExit(3)"])
    assert "no flour" in capfd.readouterr().out


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

    def step(title, command, environ=None):
        run.append(list(map(str, command)))
        command[-1].mkdir(parents=True)
        (command[-1] / "index.html").touch()

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
    assert any("img:not([src*=kl_divergence])" in option for option in builds[0])  # no placeholders
    tasks.docs(sys.executable, [])
    assert len(builds) == 2
    tasks.tutorial(sys.executable, [])
    assert len(builds) == 2


def test_a_failed_build_is_no_build(builds, monkeypatch):
    working = tasks.step

    def failing(title, command, environ=None):
        working(title, command)
        raise tasks.CannotRun("Sphinx failed")

    monkeypatch.setattr(tasks, "step", failing)
    with pytest.raises(tasks.CannotRun):
        tasks.build_site(sys.executable)
    monkeypatch.setattr(tasks, "step", working)
    tasks.build_site(sys.executable)
    assert len(builds) == 2


def test_a_finished_site_outlives_a_build_that_fails(builds, monkeypatch):
    tasks.build_site(sys.executable)

    def failing(title, command, environ=None):
        raise tasks.CannotRun("Sphinx failed")

    monkeypatch.setattr(tasks, "step", failing)
    (tasks.ROOT / "docs" / "index.rst").write_text("changed")
    with pytest.raises(tasks.CannotRun):
        tasks.tutorial(sys.executable, [])
    assert (tasks.SITE / "index.html").exists()


def test_of_two_processes_one_builds(builds, monkeypatch):
    """The other waits, and finds the site."""
    working = tasks.step

    def slow(title, command, environ=None):
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive()
        working(title, command)

    waiting = threading.Thread(target=tasks.build_site, args=(sys.executable,))
    monkeypatch.setattr(tasks, "step", slow)
    tasks.build_site(sys.executable)
    waiting.join(10)
    assert not waiting.is_alive() and len(builds) == 1


def test_the_last_line_points_at_the_page(builds, capsys):
    tasks.docs(sys.executable, [])
    tasks.tutorial(sys.executable, [])
    said = capsys.readouterr().out.strip().split("\n")
    assert said[-2] == f"Open {(tasks.SITE / 'index.html').as_uri()}"
    assert said[-1] == f"Open {(tasks.SITE / 'gallery' / 'kl_divergence.html').as_uri()}"


@pytest.mark.parametrize("name, excused", [("with space", True), ("ohne", False)])
def test_a_space_in_the_path_is_no_reason_to_fail(builds, monkeypatch, tmp_path, name, excused):
    monkeypatch.setattr(tasks, "ROOT", tmp_path / name)
    monkeypatch.setattr(tasks, "SITE", tmp_path / name / "docs" / "_build" / "html")
    shutil.copytree(str(tmp_path / "docs"), str(tmp_path / name / "docs"))
    for each in ("CHANGELOG.md", "setup.cfg"):
        shutil.copy(str(tmp_path / each), str(tmp_path / name))
    tasks.build_site(sys.executable)
    assert ("suppress_warnings=sphinx_gallery.space_in_filename" in builds[0]) == excused


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
    commands = re.findall(r"python3 tasks\.py (?:--\w+ \S+ )*(\w+)", (ROOT / ".ci" / "run").read_text())
    assert {"test", "lint", "wheel"} == set(commands) <= set(tasks.COMMANDS)
    assert "python3 tasks.py test" in (ROOT / "README.md").read_text()


def test_the_matrix_is_what_ci_runs():
    table = (ROOT / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| (\S+) \| (3\.\d+) \| (\S+) \| (\S+) \|", table, re.MULTILINE)
    cells = re.findall(r"^cell (\S+) (\S+) (\S+) (\S+)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert len(cells) >= 9 and rows == cells


@pytest.mark.parametrize("failing, code, words", [
    ("nothing", 0, "newest: passed"),
    ("--mxnet 1.8.0 .*not site", 1, "mxnet-1.8: FAILED with exit code 3"),
    ("--python 3.13 .* --version", 1, "newest: FAILED with exit code 3"),  # its set-up
    ("tests/native/run.py", 1, "kernels: FAILED with exit code 3"),
    ("tasks.py wheel", 1, "wheel: FAILED with exit code 3"),
    ("tasks.py lint", 1, "lint: FAILED with exit code 3"),
])
def test_ci_fails_where_a_part_fails(tmp_path, failing, code, words):
    """The script itself, over commands that only pretend."""
    (tmp_path / "project" / ".ci").mkdir(parents=True)
    shutil.copy(str(ROOT / ".ci" / "run"), str(tmp_path / "project" / ".ci"))
    for name in ("chromium", "g++", "valgrind", "qemu-aarch64", "aarch64-linux-gnu-g++", "locale-gen"):
        script(tmp_path / "bin" / name, "exit 0")
    script(tmp_path / "bin" / "ldconfig", "echo libgomp.so.1 libquadmath.so.0")
    script(tmp_path / "bin" / "python3",
           f"""if echo "$*" | grep -q -- "{failing}"; then
echo "=== 1 failed, 2 passed in 1.00s ==="; exit 3; fi
case "$*" in *"3.8"*interpreters*) exit 1;; esac
echo "=== 3 passed in 1.00s (0:00:01) ===" """)
    done = subprocess.run(["bash", str(tmp_path / "project" / ".ci" / "run")], stdout=subprocess.PIPE, text=True,
                          stderr=subprocess.STDOUT, timeout=60,
                          env={**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"})
    assert done.returncode == code, done.stdout
    assert f"=== {words}" in done.stdout
    assert "=== oldest: SKIPPED, there is no Python 3.8" in done.stdout
    jobs = len(re.findall("^=== .*: (passed|FAILED)", done.stdout, re.MULTILINE))
    assert jobs >= 10
    *_, last = done.stdout.strip().split("\n")
    assert re.fullmatch(rf"=== 1 failed, {3 * jobs - 1} passed in \d+ s \(0:\d\d\) ===" if code else
                        rf"=== {3 * jobs} passed in \d+ s \(0:\d\d\) ===", last)
