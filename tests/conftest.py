"""What all tests share: one thread, no GPU unless a test asks for it, and no look at the Hugging Face hub."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.small_disk import SmallDisk

# Before anything imports torch; inherited by every process that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if not glob.glob("/dev/nvidia[0-9]*"):
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")


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
