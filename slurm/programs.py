"""Calls Slurm's commands. Each call has a deadline, and an error has the command and Slurm's answer."""

from __future__ import annotations

import errno
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from verst.slurm.shell import environment_for_slurm

_TIMEOUT_S = 60.0  # longer than Slurm's own message timeouts, since a busy slurmctld answers late
_FIRST_PAUSE_S = 5.0
_LONGEST_PAUSE_S = 60.0
# Answers after which it is worth trying again: slurmctld was away or overloaded.
_PASSING = (
    "Socket timed out",
    "Unable to contact slurm controller",
    "Unexpected message received",  # scontrol requeue, when it cannot contact slurmctld
    "Zero Bytes were transmitted or received",
    "Connection refused",
    "Connection reset",
    "Connection timed out",
    "No route to host",
    "Slurm temporarily unable to accept job",
    "Resource temporarily unavailable",
    "Slurm backup controller in standby mode",
)
# The machine cannot start a process at the moment, or its file system does not answer.
_PASSING_ERRNO = {
    errno.EAGAIN,
    errno.ENOMEM,
    errno.EMFILE,
    errno.ENFILE,
    errno.ETXTBSY,
    errno.EIO,
    errno.ESTALE,
}


class SlurmError(RuntimeError):
    """A Slurm command failed. The message has the command and its answer."""


class CommandMissing(SlurmError):
    """A command is not on this machine, or cannot be run here."""


class NoAnswer(SlurmError):
    """slurmctld was away or too busy. It may nevertheless have done what it was asked."""


@dataclass(frozen=True)
class Patience:
    """How long to go on asking while slurmctld does not answer."""

    total_s: float = 15.0  # the sum of the pauses between two calls
    say: Callable[[str], None] = lambda text: None  # is told each time, before the pause

    def pauses(self) -> Iterator[float]:
        """The seconds between two calls: each pause is twice as long as the one before, up to a minute."""
        left, pause = self.total_s, _FIRST_PAUSE_S
        while left > 0:
            yield min(pause, left)
            left -= pause
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def waits(self, pauses: Iterator[float], error: NoAnswer) -> bool:
        """Waits for the next of `pauses` because of `error`. Returns False when there is none."""
        pause = next(pauses, None)
        if pause is None:
            return False
        self.say(f"{error}; next try in {pause:.0f} s")
        time.sleep(pause)
        return True


QUICK = Patience()


def call(argv: Sequence[str], timeout_s: float = _TIMEOUT_S, patience: Patience = QUICK) -> str:
    """Runs a command that may be repeated. If slurmctld is away, it tries again. Returns stdout. Raises SlurmError."""
    pauses = patience.pauses()
    while True:
        try:
            return call_once(argv, timeout_s)
        except NoAnswer as error:
            if not patience.waits(pauses, error):
                raise


def call_once(
    argv: Sequence[str], timeout_s: float = _TIMEOUT_S, variables: Mapping[str, str] | None = None
) -> str:
    """Runs a command a single time, with `variables` added to its environment. Returns stdout.

    Raises NoAnswer if another try may succeed, CommandMissing, or another SlurmError.
    """
    command = shlex.join(argv)
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
            env=environment_for_slurm() | dict(variables or {}),
        )
    except FileNotFoundError:
        raise CommandMissing(
            f"there is no {argv[0]} on this machine: use a login node (perhaps after `module load slurm`)"
        ) from None
    except OSError as error:
        if error.errno in _PASSING_ERRNO:
            raise NoAnswer(f"{command}: cannot be started now: {error.strerror}") from error
        raise CommandMissing(f"{argv[0]} cannot be run on this machine: {error.strerror}") from error
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"{command}: no answer within {timeout_s:.0f} s") from None
    if done.returncode == 0:
        return done.stdout
    answer = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
    kind = NoAnswer if any(text in answer for text in _PASSING) else SlurmError
    raise kind(f"{command}: {answer}".replace("\n", "; "))


def requeue(job: str, patience: Patience = QUICK) -> None:
    """Requeues a job. Its processes get SIGTERM at once."""
    call(["scontrol", "requeue", job], patience=patience)


def cancel(jobs: Sequence[str], *options: str) -> None:
    """Cancels jobs. Jobs that have already ended are not an error."""
    if jobs:
        call(["scancel", "--quiet", *options, *jobs])
