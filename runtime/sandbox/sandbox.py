"""A sandbox in which untrusted Python programs run, and the choice of how to shut them in."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cache

from verst.runtime.sandbox.limits import SandboxLimits
from verst.runtime.sandbox.methods import (
    METHODS,
    Method,
    SandboxError,
    bubblewrap,
    check_names,
    landlock_version,
    missing,
)
from verst.runtime.sandbox.room import Room

_TRIAL_S = 60.0  # a busy machine is no reason to take a weaker method


class Sandbox(Room):
    """Runs Python programs, one at a time, each in a process of its own.

    They share a scratch folder, their working directory, which is empty at first and goes with the sandbox. Use `with`,
    or `close`. Calls block; in async code use `await asyncio.to_thread(sandbox.run, program)`.
    """

    def __init__(
        self,
        limits: SandboxLimits | None = None,
        *,
        require: Collection[str] = (),
        readable: Sequence[str] = (),
        packages: bool = True,
        method: Method | None = None,
    ) -> None:
        """Starts the sandbox's process.

        Args:
            limits: of each program.
            require: protections without which none is to run; docs/sandbox.md lists them.
            readable: further files and folders that programs may read, as absolute paths.
            packages: programs may import the packages of this Python environment.
            method: how to shut programs in; by default the strongest that this machine has.

        Raises SandboxError if this machine cannot protect as required, or the process does not start.
        """
        check_names(require)
        taken = best_method(require) if method is None else method
        if lacking := missing(taken, require):
            raise SandboxError(f"the method {taken!r} does not give {', '.join(lacking)}")
        super().__init__(limits or SandboxLimits(), taken, readable=readable, packages=packages)


def best_method(require: Collection[str] = ()) -> Method:
    """The strongest method that this machine has. Raises SandboxError if it does not give what is required."""
    check_names(require)
    best = next((method for method in METHODS if problem_of(method) is None), None)
    if best is None:
        raise SandboxError(f"programs cannot be run in a sandbox here ({_reasons(METHODS)})")
    if lacking := missing(best, require):
        stronger = METHODS[: METHODS.index(best)]
        raise SandboxError(
            f"no sandbox of this machine protects {' and '.join(lacking)} ({_reasons(stronger)})"
        )
    return best


@cache
def problem_of(method: Method) -> str | None:
    """Why a method does not work on this machine; None if it works. It is tried once in each process."""
    if method == "bubblewrap" and bubblewrap() is None:
        return "bwrap is not installed"
    if method == "landlock" and landlock_version() < 1:
        return "the kernel has no Landlock"
    try:
        with Room(SandboxLimits(seconds=_TRIAL_S), method) as room:
            outcome = room.run("print(6 * 7)")
    except SandboxError as error:
        return str(error)
    except KeyError as error:
        return f"the numbers of the system calls of {error.args[0]} are not known"
    return None if outcome.stdout == "42\n" else f"{outcome.status}: {outcome.stderr.strip()[-300:]}"


def _reasons(methods: Sequence[Method]) -> str:
    return "; ".join(f"{method}: {problem_of(method)}" for method in methods)
