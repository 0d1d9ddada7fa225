"""Shared memory promises: another process sees the same bytes; what cannot be mapped is said; nothing is left."""

from __future__ import annotations

import os
import subprocess
import sys

import msgspec
import pytest
import torch

from verst.sync.wire import shared_memory
from verst.sync.wire.shared_memory import Exported, NotMappable, allocate, export, map_exported

CPU = torch.device("cpu")
CHILD = """
import sys, msgspec
from verst.sync.wire.shared_memory import Exported, map_exported
memory = map_exported(msgspec.json.decode(sys.argv[1], type=Exported))
assert memory[:3].tolist() == [1, 2, 3] and len(memory) == 10_000
memory[-1] = 9
"""


def test_another_process_reads_and_writes_the_same_bytes() -> None:
    memory = allocate(10_000, CPU)
    memory[:3] = torch.tensor([1, 2, 3])
    description = msgspec.json.encode(export(memory)).decode()
    subprocess.run([sys.executable, "-P", "-c", CHILD, description], check=True, timeout=60)
    assert memory[-1] == 9


def test_memory_of_a_process_that_is_gone_or_elsewhere_is_not_mapped() -> None:
    memory = export(allocate(64, CPU))
    with pytest.raises(NotMappable, match="another node"):
        map_exported(msgspec.structs.replace(memory, node="elsewhere"))
    gone = subprocess.Popen(["true"])
    gone.wait(10)
    with pytest.raises(NotMappable, match="No such file"):
        map_exported(msgspec.structs.replace(memory, pid=gone.pid))
    with pytest.raises(NotMappable):
        map_exported(msgspec.structs.replace(memory, nbytes=1 << 20))


def test_descriptors_end_with_the_memory_and_mappings_do_not() -> None:
    before = len(os.listdir("/proc/self/fd"))
    memory = allocate(4096, CPU)
    mapped: Exported = export(memory)
    view = map_exported(mapped)
    memory[0] = 5
    del memory
    assert len(os.listdir("/proc/self/fd")) <= before + 1, "the mapping may keep one of its own"
    assert view[0] == 5
    del view
    assert len(os.listdir("/proc/self/fd")) == before


def test_memory_that_has_the_address_of_memory_that_went_keeps_its_descriptor() -> None:
    """Addresses are free before descriptors are closed: another thread can come in between."""
    memory, later = allocate(4096, CPU), os.memfd_create("of another thread")
    address = memory.data_ptr()
    mine, shared_memory._descriptors[address] = shared_memory._descriptors[address], later
    del memory
    assert shared_memory._descriptors.pop(address) == later
    os.close(later)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(mine)
