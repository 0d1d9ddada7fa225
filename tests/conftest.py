"""What all tests share: one thread, no GPU unless a test asks for it, and no look at the Hugging Face hub."""

from __future__ import annotations

import faulthandler
import glob
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key
from hypothesis import HealthCheck, settings

from tests.small_disk import SmallDisk

# Before anything imports torch; inherited by every process that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if not glob.glob("/dev/nvidia[0-9]*"):
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
# Examples have no deadline, and may be drawn slowly: machines that run tests are busy.
settings.register_profile(
    "tests", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")
# A shell's job in the background ignores Ctrl-C, and so would all that tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="module")
def _stack_of_a_crash(request: pytest.FixtureRequest) -> None:
    """Libraries that tests import put handlers of their own in place of pytest's, which tells where a crash was."""
    stderr = request.config.stash[fault_handler_stderr_fd_key]
    faulthandler.disable()
    faulthandler.enable(file=stderr)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny mixture of experts with the data of its toy task, made once."""
    from verst.runtime.data.models import tiny_moe
    from verst.runtime.data.tasks import reversal

    folder = tmp_path_factory.mktemp("models") / "tiny-moe"
    tiny_moe(folder)
    reversal(folder, digits=2, train=80, held_out=20)
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """Where a test can mount a disk that becomes full."""
    disk = SmallDisk(tmp_path / "disk")
    try:
        yield disk
    finally:
        disk.unmount()
