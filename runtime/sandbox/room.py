"""The process behind a sandbox: starts it, gives it programs, and ends it."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import msgspec

from verst.runtime.sandbox.inside import remove_folder
from verst.runtime.sandbox.limits import Outcome, SandboxLimits
from verst.runtime.sandbox.methods import Method, SandboxError, bubblewrap, landlock_version
from verst.runtime.sandbox.system_calls import filter_program

_INSIDE = Path(__file__).with_name("inside.py")
_SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/etc/ld.so.cache", "/etc/localtime")
_START_S = 30.0
_GRACE_S = 10.0  # after a program's own limit, for the process that watches it
_SCRATCH = "/verst-scratch"  # no place where a readable path could be: many clusters have a /scratch


class Room:
    """A process that is shut in by one method and runs programs (`inside.py`). `Sandbox` tells users more."""

    def __init__(
        self, limits: SandboxLimits, method: Method, *, readable: Sequence[str] = (), packages: bool = True
    ) -> None:
        self.limits = limits
        self.method: Method = method
        hidden = self.method in ("namespaces", "bubblewrap")
        self._scratch = _SCRATCH if hidden else _new_folder()
        site = _package_folders() if packages else []
        self._readable = [*_SYSTEM, *_python_folders(), *site, *readable]
        self._process, self._socket = self._started()
        try:
            problem = self._exchange(self._order(site), _START_S).get("problem")
            if problem:
                raise SandboxError(f"the sandbox ({self.method}) did not start: {problem}")
        except BaseException:
            self.close()
            raise

    def run(self, program: str, stdin: str = "") -> Outcome:
        """Runs a program and returns what became of it. It gets `stdin` as its standard input.

        Raises SandboxError if the sandbox itself failed or is closed; it is then of no more use.
        """
        try:
            found = self._exchange({"program": program, "stdin": stdin}, self.limits.seconds + _GRACE_S)
        except SandboxError:
            self.close()
            raise
        return msgspec.convert(found, Outcome)

    def close(self) -> None:
        """Ends the sandbox with all that runs in it, and removes its scratch folder."""
        self._socket.close()  # it ends by itself then
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        if self._process.returncode is None:
            self._process.kill()
            self._process.wait()
        if self._scratch != _SCRATCH:
            with contextlib.suppress(OSError):
                remove_folder(self._scratch)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _started(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        ours, theirs = socket.socketpair()
        inside = "/inside.py" if self.method == "bubblewrap" else str(_INSIDE)
        command = [_python(), "-I", "-S", inside, str(theirs.fileno())]
        if self.method == "bubblewrap":
            command = [*self._bubblewrap_command(), "--", *command]
        libraries = os.environ.get("LD_LIBRARY_PATH")
        with theirs:
            try:
                process = subprocess.Popen(
                    command,
                    env={"LANG": "C.UTF-8"} | ({"LD_LIBRARY_PATH": libraries} if libraries else {}),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    cwd="/",
                )
            except OSError as error:
                ours.close()
                raise SandboxError(f"the sandbox ({self.method}) did not start: {error}") from error
        return process, ours

    def _order(self, packages: list[str]) -> dict[str, Any]:
        limits, mib = self.limits, 1 << 20
        rules = b"" if self.method == "limits" else filter_program(mounts=self._scratch == _SCRATCH)
        return {
            "method": self.method,
            "scratch": self._scratch,
            "readable": self._readable,
            "packages": packages,
            "python": _python(),
            "libraries": os.environ.get("LD_LIBRARY_PATH", ""),
            "landlock": landlock_version(),
            "shielded": "VERST_SHIELDED" in os.environ,  # Slurm's SIGTERM to a job must not end its programs
            "filter": base64.b64encode(rules).decode(),
            "seconds": limits.seconds,
            "cpu_seconds": limits.cpu_seconds,
            "memory_bytes": limits.memory_mib * mib,
            "output_bytes": limits.output_kib << 10,
            "file_bytes": limits.file_mib * mib,
            "disk_bytes": limits.disk_mib * mib,
        }

    def _bubblewrap_command(self) -> list[str]:
        program = bubblewrap()
        assert program is not None
        command = [program, "--unshare-all", "--cap-drop", "ALL", "--clearenv", "--setenv", "LANG", "C.UTF-8"]
        for path in self._readable:
            if os.path.islink(path):
                command += ["--symlink", os.readlink(path), path]
            elif os.path.exists(path):
                command += ["--ro-bind", path, path]
        for name in ("null", "zero", "urandom", "random"):
            command += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
        command += ["--symlink", f"{_SCRATCH}/.stdin", "/dev/stdin"]
        command += ["--perms", "0700", "--size", str(self.limits.disk_mib << 20), "--tmpfs", _SCRATCH]
        return [*command, "--ro-bind", str(_INSIDE), "/inside.py", "--remount-ro", "/"]

    def _exchange(self, message: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        body = json.dumps(message).encode()
        try:
            self._socket.settimeout(timeout_s)
            self._socket.sendall(struct.pack("<I", len(body)) + body)
            size = struct.unpack("<I", self._receive(4))[0]
            answer: dict[str, Any] = json.loads(self._receive(size))
            return answer
        except OSError as error:
            told = "did not answer in time" if isinstance(error, TimeoutError) else f"has ended: {error}"
            raise SandboxError(f"the sandbox ({self.method}) {told}") from error

    def _receive(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            part = self._socket.recv(size - len(data))
            if not part:
                raise ConnectionError("its process is gone")
            data += part
        return bytes(data)


def _new_folder() -> str:
    try:
        return tempfile.mkdtemp(prefix="verst-sandbox-")
    except OSError as error:
        raise SandboxError(f"no scratch folder can be made: {error}") from error


def _python() -> str:
    """The interpreter itself, without the environment around it."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable) or sys.executable)


def _python_folders() -> list[str]:
    """What the interpreter needs: its library and its own file, if they are not in the system's folders."""
    library = os.path.realpath(
        sysconfig.get_path("stdlib", vars={"base": sys.base_prefix, "installed_base": sys.base_prefix})
    )
    folders = [os.path.realpath(sys.base_prefix), os.path.dirname(_python()), library]
    return [
        folder for folder in dict.fromkeys(folders) if folder not in ("/", "/usr", "/usr/bin", "/usr/local")
    ]


def _package_folders() -> list[str]:
    """Where the packages of this environment are."""
    folders = [folder for folder in sys.path if Path(folder).name in ("site-packages", "dist-packages")]
    return [os.path.realpath(folder) for folder in folders if os.path.isdir(folder)]
