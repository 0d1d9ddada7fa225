"""The echo of a failure is told from the failure."""

from __future__ import annotations

import signal

import pytest

from verst.runtime.run.blame import follows_another


@pytest.mark.parametrize(
    "line",
    [
        "RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.3]:5432",
        "RuntimeError: [..pair.cc:598] Read error [127.0.0.1]:3411: Connection reset by peer",
        "torch.distributed.DistBackendError: NCCL error: remote process exited or there was a network error",
        "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.",
        "[Rank 3] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=12, OpType=ALLREDUCE)",
        "verst: the run failed: step 7 failed: trainer-2 is lost: its process is gone during train",
        "BrokenPipeError: [Errno 32] Broken pipe",
    ],
)
def test_what_the_others_say_when_a_rank_has_died_is_an_echo(line):
    assert follows_another(1, ["Traceback (most recent call last):", line])
    assert follows_another(-signal.SIGABRT, [line, "terminate called"])


def test_a_failure_of_its_own_is_none():
    assert not follows_another(1, ["torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"])
    assert not follows_another(1, [])
    # Killed from outside or by a bad access, whatever it had said before.
    assert not follows_another(-signal.SIGKILL, ["Connection reset by peer"])
    assert not follows_another(-signal.SIGSEGV, ["Connection reset by peer"])
    # Long ago, and it went on.
    assert not follows_another(1, ["Connection refused", *["step"] * 12, "ValueError: bad batch"])
