"""Programs try to get out of the sandbox, by each method that this machine has.

Where a method does not protect, the same program must get out: else it would show nothing.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.sandbox import escapes
from verst.runtime.sandbox import Sandbox, SandboxLimits
from verst.runtime.sandbox.methods import METHODS, Method, protections
from verst.runtime.sandbox.sandbox import problem_of

BUSY = """
import threading
def spin():
    while True: pass
for _ in range(4): threading.Thread(target=spin).start()
"""
LIMITS = SandboxLimits(seconds=30, memory_mib=1024, file_mib=8, disk_mib=32, output_kib=64)


# The first is the one that is taken; those after it are long tests.
PARAMETERS = [METHODS[0], *(pytest.param(method, marks=pytest.mark.long) for method in METHODS[1:])]


@pytest.fixture(scope="module", params=PARAMETERS)
def method(request: pytest.FixtureRequest) -> Method:
    if (problem := problem_of(request.param)) is not None:
        pytest.skip(f"{request.param}: {problem}")
    return request.param


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What a program might reach outside."""
    os.environ["VERST_TEST_SECRET"] = "the secret"
    folder = tmp_path_factory.mktemp("outside")
    home = tmp_path_factory.mktemp("home")
    (home / "key").write_text("the secret")
    with contextlib.ExitStack() as stack:
        families = (socket.AF_INET, socket.AF_UNIX, socket.AF_UNIX)
        tcp, abstract, unix = (stack.enter_context(socket.socket(family)) for family in families)
        tcp.bind(("127.0.0.1", 0))
        name, path = f"verst-test-{os.getpid()}", str(folder / "socket")
        abstract.bind("\0" + name)
        unix.bind(path)
        datagrams = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        datagrams.bind(f"\0{name}-d")
        for server in (tcp, abstract, unix):
            server.listen(64)
        folder.chmod(0o777)
        Path(path).chmod(0o777)
        facts = {
            "secret": str(home / "key"),
            "folder": str(folder),
            "pid": os.getpid(),
            "name": name,
            "path": path,
        }
        yield facts | {"port": tcp.getsockname()[1]}
    del os.environ["VERST_TEST_SECRET"]


@pytest.fixture(scope="module")
def sandbox(method: Method, outside: dict[str, Any]) -> Iterator[Sandbox]:
    with Sandbox(LIMITS, method=method) as opened:
        yield opened


def escaped(sandbox: Sandbox, programs: dict[str, str], outside: dict[str, Any]) -> set[str]:
    """The programs that got out. Every program must have run."""
    found = set()
    for name, program in programs.items():
        Path(outside["folder"], "victim").write_text("x")
        Path(outside["secret"]).write_text("the secret")
        outcome = sandbox.run(program.format(**outside))
        assert outcome.status in ("ok", "error"), (name, outcome)
        assert "SyntaxError" not in outcome.stderr, (name, outcome)
        if "ESCAPED" in outcome.stdout:
            found.add(name)
        secret = Path(outside["secret"])
        touched = (
            secret.read_text() != "the secret"
            or secret.stat().st_mode & 0o777 == 0o777
            or secret.stat().st_mtime == 1
        )
        assert not touched or name in found, name
        secret.unlink()  # with its mode and attributes
    return found


def test_the_network(sandbox: Sandbox, outside: dict[str, Any]) -> None:
    got_out = escaped(sandbox, escapes.NETWORK, outside)
    if "network" in protections(sandbox.method):
        assert got_out == set()
    else:
        assert got_out >= escapes.NETWORK.keys() - {"dns"}  # a machine without a route cannot


def test_files_outside(sandbox: Sandbox, outside: dict[str, Any]) -> None:
    programs = escapes.FILES | escapes.CALLS_ON_FILES
    got_out = escaped(sandbox, programs, outside)
    for place in (Path("/dev/shm"), Path(os.__file__).parent):
        for mark in place.glob(f"mark-{os.getpid()}*"):
            mark.unlink()
    if "files" in protections(sandbox.method):
        assert got_out == set()
        assert not Path(outside["folder"], "mark").exists()
    else:
        ours = {
            "a secret",
            "writing outside",
            "a symbolic link",
            "up the tree",
        }
        assert got_out >= ours
        assert bool(got_out & escapes.CALLS_ON_FILES.keys()) == (sandbox.method == "limits")


def test_other_processes(sandbox: Sandbox, outside: dict[str, Any]) -> None:
    programs = dict(escapes.PROCESSES)
    if platform.machine() == "x86_64":
        programs |= {
            "machine code": escapes.MACHINE_CODE.replace("{", "{{").replace("}", "}}"),
            "x32": escapes.X32,
        }
    got_out = escaped(sandbox, programs, outside)
    if "processes" in protections(sandbox.method):
        assert got_out == set()
    else:
        assert got_out >= {
            "fork",
            "subprocess",
            "fork bomb",
            "a signal to the parent",
            "a signal to the starter",
        }


def test_privileges_and_limits_hold_with_every_method(sandbox: Sandbox, outside: dict[str, Any]) -> None:
    assert escaped(sandbox, escapes.PRIVILEGES, outside) == set()


def test_the_whole_scratch_folder(method: Method) -> None:
    with Sandbox(LIMITS, method=method) as sandbox:
        assert ("ESCAPED" in sandbox.run(escapes.DISK).stdout) == ("disk" not in protections(method))


def test_no_daemon_is_left_behind(sandbox: Sandbox, outside: dict[str, Any]) -> None:
    outcome = sandbox.run(escapes.DAEMON.format(**outside))
    assert (outcome.code == 0) == (sandbox.method == "limits")
    time.sleep(0 if outcome.code else 4)
    assert not Path(outside["folder"], "daemon").exists()


def test_time_and_output_end_a_program(method: Method) -> None:
    limits = SandboxLimits(seconds=1.5, cpu_seconds=1, output_kib=64)
    with Sandbox(limits, method=method) as sandbox:
        asleep = sandbox.run("print('a', flush=True)\nimport time; time.sleep(60)")
        assert (asleep.status, asleep.stdout, asleep.code) == ("time", "a\n", -9)
        assert asleep.seconds < 15
        busy = sandbox.run(BUSY)
        assert busy.status in ("cpu", "time")
        assert busy.cpu_seconds < 4
        deaf = sandbox.run(
            "import signal\nfor n in (2, 15, 24): signal.signal(n, signal.SIG_IGN)\nwhile True: pass"
        )
        assert deaf.status in ("cpu", "time")
        for stream in ("stdout", "stderr"):
            flood = sandbox.run(f"import sys\nwhile True: sys.{stream}.write('x' * 9999)")
            assert flood.status in ("output", "time")  # of a busy machine
            assert len(flood.stdout) + len(flood.stderr) <= 64 * 1024 + 1


def test_a_program_finds_nothing_of_the_one_before_but_its_files(sandbox: Sandbox) -> None:
    assert (
        sandbox.run("open('left', 'w').write('7')\nimport builtins; builtins.print = None; x = 1").code == 0
    )
    assert sandbox.run("print(open('left').read(), 'x' in globals())").stdout == "7 False\n"
    # Not even a folder in the place of the next program stops it.
    assert (
        sandbox.run("import os; os.unlink('main.py'); os.mkdir('main.py'); open('main.py/a', 'w')").code == 0
    )
    assert sandbox.run("print(7)").stdout == "7\n"


DEEP = """
import os
name = {name!r}
if os.path.exists(name): os.unlink(name)
for _ in range(3000):
    os.mkdir(name); os.chdir(name); name = 'a'
"""


def test_thousands_of_nested_folders_are_removed_like_others(method: Method) -> None:
    """They once ended the sandbox, and with it a run, for Python's own removal calls itself for each."""
    with Sandbox(LIMITS, method=method) as sandbox:
        assert sandbox.run(DEEP.format(name="main.py")).status == "ok"
        assert sandbox.run("print(7)").stdout == "7\n"
        sandbox.run(DEEP.format(name="deep"))
    assert not Path(sandbox._scratch).exists()


def test_nothing_is_left_when_it_is_closed(method: Method) -> None:
    before = set(Path("/tmp").glob("verst-sandbox-*"))
    sandbox = Sandbox(LIMITS, method=method)
    made = set(Path("/tmp").glob("verst-sandbox-*")) - before
    assert bool(made) == (method not in ("namespaces", "bubblewrap"))
    sandbox.run(
        "import os; os.mkdir('a'); open('a/b', 'w'); os.mkdir('a/c')\ntry: os.chmod('a', 0)\nexcept OSError: pass"
    )
    sandbox.close()
    assert sandbox._process.returncode is not None
    assert set(Path("/tmp").glob("verst-sandbox-*")) & made == set()


@pytest.mark.parametrize("gone", [False, True])
def test_closing_changes_nothing_outside(method: Method, outside: dict[str, Any], gone: bool) -> None:
    """Also if the scratch folder is gone already: its removal once took everyone's rights to /tmp away."""
    linked = Path(outside["folder"], "linked")
    linked.mkdir(exist_ok=True)
    linked.chmod(0o755)
    sandbox = Sandbox(LIMITS, method=method)
    sandbox.run(f"import os; os.symlink({str(linked)!r}, 'link')")
    scratch = Path(sandbox._scratch)
    before = scratch.parent.stat().st_mode
    if gone and scratch.name.startswith("verst-sandbox-"):
        shutil.rmtree(scratch)
    sandbox.close()
    assert scratch.parent.stat().st_mode == before
    assert linked.stat().st_mode & 0o777 == 0o755
