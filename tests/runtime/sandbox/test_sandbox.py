"""What honest programs can do in the sandbox, and what a caller learns."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

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
        ("import tempfile; f = tempfile.NamedTemporaryFile('w+'); f.write('x'); print(f.name[:9])", "", "/scratch/\n"),
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
