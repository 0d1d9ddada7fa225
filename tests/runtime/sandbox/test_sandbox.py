"""What honest programs can do in the sandbox, and what a caller learns."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from verst.runtime.sandbox import Sandbox, SandboxError, SandboxLimits
from verst.runtime.sandbox.methods import METHODS, check_names, missing
from verst.runtime.sandbox.sandbox import best_method, problem_of
from verst.runtime.sandbox.system_calls import filter_program


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(SandboxLimits(seconds=60, cpu_seconds=30, memory_mib=2048)) as opened:
        yield opened


@pytest.mark.parametrize(
    ("program", "stdin", "stdout"),
    [
        ("print(input() + input())", "a\nb\n", "ab\n"),
        ("import sys; print(len(sys.stdin.read()))", "x" * 2_000_000, "2000000\n"),
        ("print(open(0).read(), open('/dev/stdin').read())", "é", "é é\n"),
        ("print('before'); exit(0); print('after')", "", "before\n"),
        ("if __name__ == '__main__': print(__file__ if '__file__' in globals() else 'main')", "", "main\n"),
        ("import threading; t = threading.Thread(target=lambda: print('t')); t.start(); t.join()", "", "t\n"),
        ("import asyncio\nasync def f(): print('a')\nasyncio.run(f())", "", "a\n"),
        ("import tempfile; print(tempfile.NamedTemporaryFile('w').name[:15])", "", "/verst-scratch/\n"),
        ("import os; os.kill(os.getpid(), 15)", "", ""),
        ("import dataclasses\n@dataclasses.dataclass\nclass A:\n    x: int\nprint(A(1))", "", "A(x=1)\n"),
        ("import sys; sys.setrecursionlimit(10**6)\ndef f(n): return n and f(n - 1)\nprint(f(20000))", "", "0\n"),
        ("import resource; print(resource.getrlimit(resource.RLIMIT_AS)[0] >> 20)", "", "2048\n"),
        ("import numpy; print(numpy.arange(3).sum())", "", "3\n"),
        ("print('\\ud800'.encode('utf-8', 'surrogatepass'))", "", "b'\\xed\\xa0\\x80'\n"),
    ],
)  # fmt: skip
def test_honest_programs_run(sandbox: Sandbox, program: str, stdin: str, stdout: str) -> None:
    outcome = sandbox.run(program, stdin)
    assert (outcome.stdout, outcome.stderr) == (stdout, "")
    assert outcome.status == ("error" if "kill" in program else "ok")


def test_a_caller_learns_how_a_program_ended(sandbox: Sandbox) -> None:
    outcome = sandbox.run("x = 1\nprint(x)\nraise KeyError('a')")
    assert (outcome.status, outcome.code, outcome.stdout) == ("error", 1, "1\n")
    assert outcome.stderr.endswith(
        "File \"main.py\", line 3, in <module>\n    raise KeyError('a')\nKeyError: 'a'\n"
    )
    assert (sandbox.run("exit(3)").code, sandbox.run("import os; os.abort()").code) == (3, -signal.SIGABRT)
    assert "MemoryError" in sandbox.run("bytearray(4 << 30)").stderr
    assert "SyntaxError" in sandbox.run("x = = 1").stderr
    measured = sandbox.run("a = bytearray(300 << 20)\nt = 0\nfor i in range(10**6): t += i")
    assert 300 << 20 < measured.memory_bytes < 500 << 20
    assert measured.cpu_seconds > 0


def test_stdout_may_be_closed_and_left_unread(sandbox: Sandbox) -> None:
    assert sandbox.run("import os, time; os.close(1); os.close(2); time.sleep(0.2)").code == 0
    assert len(sandbox.run("print('x' * 500_000)").stdout) == 500_001


def test_packages_and_further_folders_are_there_only_if_asked_for(tmp_path: object) -> None:
    with open(f"{tmp_path}/data", "w") as file:
        file.write("7")
    os.chmod(str(tmp_path), 0o755)
    with Sandbox(packages=False, readable=[f"{tmp_path}/data"]) as sandbox:
        assert "No module named 'numpy'" in sandbox.run("import numpy").stderr
        read = sandbox.run(f"print(open('{tmp_path}/data').read())")
        assert read.stdout == "7\n", read.stderr
        assert sandbox.run(f"open('{tmp_path}/data', 'w')").code == 1


def test_a_program_has_the_memory_that_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reward runs in a process with a bound of its own (`rollout.reward_memory_gib`), which programs inherit."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (512 << 20, before[1]))
    try:
        sandbox = Sandbox(SandboxLimits(seconds=60, memory_mib=2048))
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
    with sandbox:
        assert sandbox.run("print(len(bytearray(1 << 30)) >> 20)").stdout == "1024\n"


@pytest.mark.parametrize("method", [m for m in METHODS if m in ("namespaces", "bubblewrap")])
def test_readable_folders_may_be_anywhere_and_stay_read_only(method: Any) -> None:
    """Many clusters have file systems at /scratch: Python's packages are there, too."""
    if problem_of(method) is not None:
        pytest.skip("not on this machine")
    places = [Path("/dev/shm")]
    if not Path("/scratch").exists() and os.geteuid() == 0:
        places.append(Path("/scratch"))
    for place in places:
        made = not place.exists()
        place.mkdir(exist_ok=True)
        folder = place / f"verst-test-{os.getpid()}"
        folder.mkdir()
        folder.chmod(0o777)
        try:
            (folder / "data").write_text("7")
            with Sandbox(SandboxLimits(seconds=60), method=method, readable=[str(folder)]) as sandbox:
                read = sandbox.run(f"print(open('{folder}/data').read())")
                assert (read.stdout, read.stderr) == ("7\n", "")
                assert "OSError" in sandbox.run(f"open('{folder}/mark', 'w')").stderr
        finally:
            shutil.rmtree(folder)
            if made:
                place.rmdir()


def test_a_signal_to_all_processes_of_a_job_ends_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm sends SIGTERM before it preempts a job; the run then has time to save."""
    monkeypatch.setenv("VERST_SHIELDED", "1")
    with Sandbox(SandboxLimits(seconds=60), method="seccomp") as sandbox:
        sandbox.run("print(1)")

        def stop_all() -> None:
            time.sleep(0.5)
            for pid in (sandbox._process.pid, *_below(sandbox._process.pid)):
                os.kill(pid, signal.SIGTERM)

        thread = threading.Thread(target=stop_all)
        thread.start()
        outcome = sandbox.run("import time; time.sleep(1); print('right')")
        thread.join()
        assert (outcome.status, outcome.stdout) == ("ok", "right\n")


def test_machines_whose_system_calls_are_not_known_have_no_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "ppc64le")
    assert problem_of.__wrapped__("seccomp") == "the numbers of the system calls of ppc64le are not known"


def test_without_a_place_for_scratch_folders_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    assert str(problem_of.__wrapped__("seccomp")).startswith("no scratch folder can be made: ")


def test_what_is_required_is_given_or_refused() -> None:
    assert missing("landlock", ["network", "disk"]) == ["disk"]
    with pytest.raises(SandboxError, match="the method 'seccomp' does not give files"):
        Sandbox(method="seccomp", require=["network", "files"])
    with pytest.raises(
        ValueError, match="require is a list of network, files, processes, disk; 'net' is none of them"
    ):
        check_names(["net"])
    with pytest.raises(ValueError, match="'network' is none of them"):
        check_names("network")


def test_a_machine_without_namespaces_says_what_it_cannot_give(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"seccomp": None, "limits": None}
    monkeypatch.setattr("verst.runtime.sandbox.sandbox.problem_of", lambda method: found.get(method, "no"))
    assert best_method(["network"]) == "seccomp"
    with pytest.raises(
        SandboxError, match="protects files and disk \\(namespaces: no; bubblewrap: no; landlock: no"
    ):
        best_method(["network", "files", "disk"])


def test_a_sandbox_whose_process_is_gone_says_so() -> None:
    sandbox = Sandbox(method="seccomp")
    sandbox._process.kill()
    with pytest.raises(SandboxError, match="has ended"):
        sandbox.run("print(1)")
    with pytest.raises(SandboxError, match="has ended"):
        sandbox.run("print(1)")


@pytest.mark.parametrize(
    "method", [METHODS[0], *(pytest.param(m, marks=pytest.mark.long) for m in METHODS[1:])]
)
def test_programs_end_with_the_process_that_started_them(method: str) -> None:
    if problem_of(method) is not None:  # type: ignore[arg-type]
        pytest.skip("not on this machine")
    mark = f"verst-{os.getpid()}-{method}"
    starter = (
        "import threading\nfrom verst.runtime.sandbox import Sandbox, SandboxLimits\n"
        f"box = Sandbox(SandboxLimits(seconds=60), method={method!r})\n"
        f"box.run('print(1)'); print('ready', flush=True); box.run('import time; time.sleep(50)  # {mark}')"
    )
    process = subprocess.Popen([sys.executable, "-P", "-c", starter], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)
    children = _below(process.pid)
    assert len(children) >= 2
    process.kill()
    process.wait()
    until = time.monotonic() + 10
    while (left := [pid for pid in children if _alive(pid)]) and time.monotonic() < until:
        time.sleep(0.05)
    assert left == []


def _below(pid: int) -> list[int]:
    found = []
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/children") as file:
            for child in map(int, file.read().split()):
                found += [child, *_below(child)]
    return found


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_several_threads_may_have_sandboxes_of_their_own() -> None:
    found: list[str] = []

    def one(number: int) -> None:
        with Sandbox(packages=False) as sandbox:
            found.append(sandbox.run(f"print({number})").stdout)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == ["0\n", "1\n", "2\n", "3\n"]


def test_the_filter_ends_in_an_allowance_and_every_jump_lands_inside() -> None:
    for mounts in (True, False):
        program = filter_program(mounts=mounts)
        rules = [program[i : i + 8] for i in range(0, len(program), 8)]
        assert len(rules) < 4096
        assert int.from_bytes(rules[-1][4:], "little") == 0x7FFF0000
        for place, rule in enumerate(rules):
            assert place + 1 + max(rule[2], rule[3]) <= len(rules) - (rule[0] != 0x06)
