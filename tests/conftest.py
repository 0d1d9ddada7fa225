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

from tests.small_disk import SmallDisk

# Before anything imports torch; inherited by every process that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if not glob.glob("/dev/nvidia[0-9]*"):
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
# A shell's job in the background ignores Ctrl-C, and so would all that tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Tests that share what takes long to start (an engine, ranks, a process to fork from) run in one worker of
# pytest-xdist, one after another. The longest come first, so that the workers end at about the same time.
_TOGETHER = ("runtime/rollout", "runtime/trainer", "runs", "sync", "launcher/check")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts each test into a group for `--dist loadgroup`: its folder if that is one of `_TOGETHER`, else its file."""
    root = Path(__file__).parent

    def group_of(item: pytest.Item) -> str:
        path = item.path.relative_to(root).as_posix()
        return next((folder for folder in _TOGETHER if path.startswith(f"{folder}/")), path)

    def place(item: pytest.Item) -> int:
        group = group_of(item)
        return _TOGETHER.index(group) if group in _TOGETHER else len(_TOGETHER)

    for item in items:
        item.add_marker(pytest.mark.xdist_group(group_of(item)))
    items.sort(key=place)


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
